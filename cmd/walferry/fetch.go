package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// fetchCommand describes fetch for the help text. Its arguments are read by
// runFetch, before the command-line library is asked: see fetchArguments.
func fetchCommand() *cli.Command {
	return &cli.Command{
		Name: "fetch", ArgsUsage: "%f %p", Usage: "give one WAL file to PostgreSQL: the restore_command",
		Flags: append(settingFlags("budget", "stop-at-gap", "sealed-only", "store"), generalFlags()...),
	}
}

// runFetch is "walferry fetch". args are the arguments without the word
// fetch. It returns the exit code; p.load and p.findStore give it its settings.
func runFetch(p *program, args []string) int {
	if _, err := fmt.Fprintf(p.stderr, "walferry: error: fetch %q is not wired yet\n", args); err != nil {
		return 255
	}
	return 255
}
