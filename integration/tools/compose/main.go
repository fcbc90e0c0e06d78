// Command compose loads a compose file as docker compose does, with compose-go,
// and prints what it understood as JSON: what is wrong with the file is an
// error here, and not on a user's machine. It is a module of its own: the
// product needs nothing of it.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "compose:", err)
		os.Exit(1)
	}
}

// run loads the one file with nothing of the caller's environment and prints
// the project.
func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want one compose file, got %d arguments", len(args))
	}
	options, err := cli.NewProjectOptions(args, cli.WithName("walferry"), cli.WithResolvedPaths(true))
	if err != nil {
		return fmt.Errorf("preparing %s: %w", args[0], err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return fmt.Errorf("loading %s: %w", args[0], err)
	}
	text, err := project.MarshalJSON()
	if err != nil {
		return fmt.Errorf("printing %s: %w", args[0], err)
	}
	if _, err := os.Stdout.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("printing %s: %w", args[0], err)
	}
	return nil
}
