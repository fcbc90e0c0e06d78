package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/cmd/internal/demo"
	"github.com/walferry/walferry/restore/instance"
)

// demoCommand is "walferry demo".
func demoCommand(p *program) *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "the whole story on a throw-away cluster, in about a minute",
		Description: `Starts a PostgreSQL of its own in a temporary directory, streams its WAL into an
archive, kills it, deletes its data, recovers from the archive, and counts what is
missing. Your own clusters are not touched, and nothing is left.`,
		Flags: generalFlags(),
		Action: p.action(func(ctx context.Context, c *call) error {
			executable, err := os.Executable()
			if err != nil {
				return fmt.Errorf("finding this program's own file: %w", err)
			}
			if err := forgetServerVariables(p.environ); err != nil {
				return err
			}
			err = demo.Run(ctx, demo.Options{Executable: executable, Out: p.stdout, Log: c.log})
			if errors.Is(err, instance.ErrNoPostgreSQL) {
				return withExit(exitFailed, err, "install PostgreSQL (Debian: postgresql-15), or put the directory of initdb on PATH; in a checkout, make demo does it")
			}
			return err
		}),
	}
}

// forgetServerVariables takes libpq's variables out of the environment of this
// process: the demonstration must reach its own server, not the one that
// somebody uses daily.
func forgetServerVariables(environ []string) error {
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, "PG") {
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("forgetting %s: %w", name, err)
			}
		}
	}
	return nil
}
