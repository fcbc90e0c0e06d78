// Command walferry streams PostgreSQL's write-ahead log to object storage
// while it is being written, and gives it back as restore_command.
//
// This package is the only place that reads flags and variables, prints, ends
// the process, and joins the packages that do the work. Its exit codes:
//
//	0  done
//	1  failed
//	2  wrong usage: nothing was touched
//	3  stopped for safety: a person must decide
//
// fetch has codes of its own, because PostgreSQL reads a meaning into them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/restore"
	"github.com/walferry/walferry/segment"
)

func main() {
	// First of all: a panic must end in SIGABRT. Go's own exit code for it
	// is 2, which PostgreSQL would take from a restore_command for "end of
	// archive", and promote.
	debug.SetTraceback("crash")
	os.Exit(run(&program{
		name:    os.Args[0],
		args:    os.Args[1:],
		environ: os.Environ(),
		stdout:  os.Stdout,
		stderr:  os.Stderr,
	}))
}

// secondSignal is how long a clean stop is not cut short by another signal.
const secondSignal = 2 * time.Second

// program is what the process was given.
type program struct {
	name           string   // as it was called
	args           []string // without the program's own name
	environ        []string // "NAME=value"
	stdout, stderr io.Writer
}

// run does what the arguments say and returns the exit code.
func run(p *program) int {
	if name, args, ok := dropInArguments(p.name, p.args); ok {
		return p.runDropIn(name, args)
	}
	if args, ok := fetchArguments(p.args); ok {
		// Before the command line is read, and before a signal is caught:
		// fetch decides by itself what a wrong flag ends in, and dies by
		// SIGTERM.
		return runFetch(p, args)
	}
	commands := commandTable(p)
	line, err := readLine(commands, p.args)
	if err == nil {
		if len(line.commands) == 1 && line.commands[0].Name == "fetch" && !line.help && !line.version {
			// Behind the value of a flag that is itself a command's name.
			return runFetch(p, line.ordered("")[2:])
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		// A second signal ends the process the hard way, but not one that comes
		// with the first: timeout(1), make and terminals send it twice.
		context.AfterFunc(ctx, func() { time.AfterFunc(secondSignal, stop) })
		err = p.do(ctx, commands, line)
	}
	code := p.report(err)
	if code == exitUsage && namesWAL(p.args) {
		// A restore_command whose "fetch" is misspelt. What it ends in is not
		// for the shell but for PostgreSQL, which would promote on a 2.
		cwd, wdErr := os.Getwd()
		if wdErr != nil {
			cwd = "."
		}
		return restore.FindPlace(cwd, p.args[len(p.args)-1]).ExitCode(fetchName(nil, p.args), &restore.SettingError{Err: err})
	}
	return code
}

// namesWAL reports whether one of the arguments is the name of a file that
// PostgreSQL asks a restore_command for, and so none of a person's.
func namesWAL(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		_, segmentErr := segment.ParseName(arg)
		_, historyErr := segment.ParseHistoryName(arg)
		return segmentErr == nil || historyErr == nil
	})
}

// fetchArguments returns the arguments of fetch, if that is the command: the
// first argument that is a command's name.
func fetchArguments(args []string) ([]string, bool) {
	for i, arg := range args {
		if arg == "fetch" {
			return append(append([]string{}, args[:i]...), args[i+1:]...), true
		}
		for _, c := range commandTable(nil) {
			if arg == c.Name || arg == "help" || arg == "--" {
				return nil, false
			}
		}
	}
	return nil, false
}

// do runs every command but fetch.
func (p *program) do(ctx context.Context, commands []*cli.Command, line *line) error {
	switch {
	case line.help:
		return printHelp(p.stdout, commands, line.commands)
	case line.version:
		return printVersion(p.stdout)
	}
	// A global of the library: left as it is, a host called "t" or "1" reads
	// as the flag -h of its own help.
	cli.HelpFlag = nil
	app := &cli.App{
		Name:        "walferry",
		Commands:    commands,
		HideHelp:    true,
		HideVersion: true,
		Writer:      p.stdout,
		ErrWriter:   p.stderr,
		// A comma may stand in a path.
		DisableSliceFlagSeparator: true,
		ExitErrHandler:            func(*cli.Context, error) {}, // run returns the code
	}
	return app.RunContext(ctx, line.ordered(app.Name))
}

// commandTable is every command that there is.
func commandTable(p *program) []*cli.Command {
	commands := []*cli.Command{
		receiveCommand(p),
		slotCommand(p),
		backupCommand(p),
		fetchCommand(),
		restoreCommand(p),
		statusCommand(p),
		dropInCommand(),
		configCommand(p),
		demoCommand(p),
		{Name: "version", Usage: "print the version", Action: func(*cli.Context) error { return printVersion(p.stdout) }},
	}
	hideHelp(commands)
	return commands
}

// hideHelp keeps the library from adding its own help commands and flags.
func hideHelp(commands []*cli.Command) {
	for _, c := range commands {
		c.HideHelp = true
		hideHelp(c.Subcommands)
	}
}

// report prints the error that ends the program, and returns its exit code.
func (p *program) report(err error) int {
	if err == nil {
		return 0
	}
	code := 1
	var e *exitError
	if errors.As(err, &e) {
		code = e.code
	}
	say := func(kind, text string) {
		// When stderr is gone, too, nobody is left to be told.
		_, _ = fmt.Fprintf(p.stderr, "walferry: %s: %s\n", kind, oneLine(text))
	}
	say("error", err.Error())
	if e != nil && e.hint != "" {
		say("hint", e.hint)
	}
	return code
}

// oneLine joins the lines of a text: some libraries' errors have several.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}

// printVersion prints what was built.
func printVersion(w io.Writer) error {
	version, commit, goVersion := buildVersion()
	_, err := fmt.Fprintf(w, "walferry %s (%s%s)\n", version, goVersion, commit)
	return err
}

// buildVersion returns what was built: the version, and where that does not
// say it, the commit, as the end of a sentence.
func buildVersion() (version, commit, goVersion string) {
	version = "devel"
	if info, ok := debug.ReadBuildInfo(); ok {
		goVersion = info.GoVersion
		if v := info.Main.Version; v != "" && v != "(devel)" {
			version = v
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && !strings.Contains(version, s.Value[:min(12, len(s.Value))]) {
				commit = ", commit " + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return version, commit, goVersion
}
