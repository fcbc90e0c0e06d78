package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/cmd/internal/settings"
)

// configCommand is "walferry config".
func configCommand(p *program) *cli.Command {
	// Every flag of a setting, so that any command's flags can be tried.
	var all []string
	for _, s := range settingTable() {
		if s.Name != "verbose" {
			all = append(all, s.Name)
		}
	}
	return &cli.Command{
		Name:  "config",
		Usage: "look at the settings",
		Subcommands: []*cli.Command{{
			Name:   "print",
			Usage:  "every setting, its value and where it came from",
			Flags:  append(settingFlags(all...), generalFlags()...),
			Action: p.action(printConfig),
		}},
	}
}

// printConfig prints a line for each setting, and for each variable of other
// programs that has a say. Secrets are masked.
func printConfig(_ context.Context, c *call) error {
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	row := func(name, value, origin string) {
		if value == "" {
			value = "-"
		}
		// tabwriter keeps the first error for Flush.
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", name, value, origin)
	}
	if err := checkNoSpool(c.set); err != nil {
		return err
	}
	for name, v := range c.set.All {
		if name == "ack" && c.set.Text("spool") == noSpool {
			row(name, "archive", "implied by --spool "+noSpool)
			continue
		}
		row(name, v.Shown(), v.Origin.String())
	}
	for _, name := range c.set.Variables() {
		if v, _ := c.set.Variable(name); concerns(name, v) {
			row(name, v.Shown(), v.Origin.String())
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the settings: %w", err)
	}
	if store, err := c.findStore(c.set, true); err != nil {
		return err
	} else if _, err := fmt.Fprintf(c.stdout, "\nThe archive is %s (%s).\n", store.url, store.origin); err != nil {
		return fmt.Errorf("printing the settings: %w", err)
	}
	_, err := findCompression(c.set)
	return err
}

// concerns reports whether a variable is one that walferry, or a library
// that it is made of, looks at.
func concerns(name string, _ settings.Value) bool {
	if slices.Contains([]string{"WALFERRY_HOME", "WALFERRY_CONFIG"}, name) {
		return true
	}
	for _, prefix := range []string{"PG", "AWS_", "WALG_", "WALE_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
