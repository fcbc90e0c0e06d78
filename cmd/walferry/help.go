package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/cmd/internal/pgreceivewal"
)

// printHelp prints the help text of the whole program, of a group, or of a
// command, on one page made from the table of commands.
func printHelp(w io.Writer, all, path []*cli.Command) error {
	var b strings.Builder
	if len(path) == 0 {
		b.WriteString("walferry streams PostgreSQL's write-ahead log to object storage while it is being\nwritten, and gives it back as restore_command.\n\nUsage:\n")
		writeSynopses(&b, "walferry", all)
		b.WriteString("\nwalferry help COMMAND tells more. Every flag of the form --flag-name is also the variable\nWALFERRY_FLAG_NAME and, as flag-name, a key of the YAML file that --config names.\n\nExit codes: 0 done, 1 failed, 2 wrong usage, 3 stopped for safety: a person must decide.\n")
		_, err := io.WriteString(w, b.String())
		return err
	}
	if path[0].Name == dropInName {
		_, err := io.WriteString(w, pgreceivewal.Help(dropInName))
		return err
	}
	call := "walferry"
	for _, c := range path {
		call += " " + c.Name
	}
	c := path[len(path)-1]
	fmt.Fprintf(&b, "%s: %s\n\nUsage:\n", call, c.Usage)
	if len(c.Subcommands) > 0 {
		writeSynopses(&b, call, c.Subcommands)
	} else {
		fmt.Fprintf(&b, "  %s\n", strings.TrimSpace(call+" [flags] "+c.ArgsUsage))
	}
	if c.Description != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(c.Description))
	}
	writeFlags(&b, c.Flags)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeSynopses writes a line for each command, or for each of its verbs.
func writeSynopses(b *strings.Builder, call string, commands []*cli.Command) {
	for _, c := range commands {
		if c.Hidden {
			continue
		}
		if len(c.Subcommands) > 0 {
			writeSynopses(b, call+" "+c.Name, c.Subcommands)
			continue
		}
		fmt.Fprintf(b, "  %-30s %s\n", strings.TrimSpace(call+" "+c.Name+" "+c.ArgsUsage), c.Usage)
	}
}

// writeFlags writes the flags of a command by category, its own first.
func writeFlags(b *strings.Builder, flags []cli.Flag) {
	for _, category := range []string{"", categoryArchive, categoryConnection, categoryGeneral} {
		title := category + " flags"
		if category == "" {
			title = "Flags"
		}
		for _, f := range flags {
			if f.(cli.CategorizableFlag).GetCategory() != category {
				continue
			}
			if title != "" {
				fmt.Fprintf(b, "\n%s:\n", title)
				title = ""
			}
			value, usage := "", f.(cli.DocGenerationFlag).GetUsage()
			if rest, ok := strings.CutPrefix(usage, "`"); ok {
				value, usage, _ = strings.Cut(rest, "` ")
				value = " " + value
			}
			short := "    "
			if names := f.Names(); len(names) > 1 {
				short = "-" + names[1] + ", "
			}
			head := fmt.Sprintf("  %s--%s%s", short, f.Names()[0], value)
			if len(head) > 33 {
				fmt.Fprintf(b, "%s\n%33s %s\n", head, "", usage)
			} else {
				fmt.Fprintf(b, "%-33s %s\n", head, usage)
			}
		}
		if category == categoryGeneral {
			b.WriteString("  -?, --help                      this text\n  -V, --version                   print the version\n")
		}
	}
}
