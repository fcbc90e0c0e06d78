package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/cmd/internal/nearest"
)

// line is a command line, read: what PostgreSQL's own programs take, on top
// of what the command-line library takes. Flags stand before, between and
// after words; --flag value and --flag=value, -p5432 and -p 5432, and -vw for
// -v -w mean the same.
type line struct {
	commands []*cli.Command // from the outermost to the one that is meant; empty: none was named
	flags    []given
	words    []string // the arguments that are left
	help     bool
	version  bool
}

// given is a flag that was given, by its long name. A flag that is on or off
// has "true" or "false".
type given struct {
	flag  cli.Flag
	typed string // as it stands there, for errors: "--host" or "-h"
	value string
}

// readLine reads args (without the program's name) against the table of
// commands. What is wrong is an error of one line that names the nearest
// right word.
func readLine(commands []*cli.Command, args []string) (*line, error) {
	l := &line{}
	r := &reader{line: l, commands: commands}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		var err error
		switch {
		case arg == "--":
			for _, word := range args {
				if err = r.word(word); err != nil {
					break
				}
			}
			args = nil
		case len(arg) > 2 && strings.HasPrefix(arg, "--"):
			args, err = r.long(arg, args)
		case len(arg) > 1 && arg[0] == '-':
			args, err = r.short(arg, args)
		default:
			err = r.word(arg)
		}
		if err != nil {
			return nil, err
		}
		if l.help {
			return l, r.topic(args)
		}
		if l.version {
			return l, nil
		}
	}
	return l, r.complete()
}

// ordered returns the line as the library wants it: commands, flags, words.
func (l *line) ordered(program string) []string {
	out := []string{program}
	for _, c := range l.commands {
		out = append(out, c.Name)
	}
	for _, g := range l.flags {
		out = append(out, "--"+g.flag.Names()[0]+"="+g.value)
	}
	return append(append(out, "--"), l.words...)
}

// path is how a command is called: "slot create".
func (l *line) path() string {
	names := make([]string, len(l.commands))
	for i, c := range l.commands {
		names[i] = c.Name
	}
	return strings.Join(names, " ")
}

// reader reads one command line.
type reader struct {
	*line
	commands []*cli.Command // of the outermost level
}

// command is the innermost command that was named so far; nil: none yet.
func (r *reader) command() *cli.Command {
	if n := len(r.line.commands); n > 0 {
		return r.line.commands[n-1]
	}
	return nil
}

// group returns the commands that may be named next; none below a command
// that does something by itself.
func (r *reader) group() []*cli.Command {
	if c := r.command(); c != nil {
		return c.Subcommands
	}
	return r.commands
}

// word takes a word: a command's name as long as one is wanted, then an argument.
func (r *reader) word(word string) error {
	group := r.group()
	if word == "help" && (r.command() == nil || len(group) > 0 || arity(r.command()) == 0) {
		r.help = true // "walferry help", "walferry slot help", "walferry config print help"
		return nil
	}
	if len(group) == 0 {
		r.words = append(r.words, word)
		if want := arity(r.command()); len(r.words) > want {
			return usageError("%s: one word too many: %q (walferry %s)", r.path(), word, synopsis(r.line))
		}
		return nil
	}
	if err := r.name(word); err != nil {
		return err
	}
	return r.recheck()
}

// topic takes the words that follow a request for help: "walferry help slot
// create". Where a command was named, what follows is what its own call would
// have had, and does not matter.
func (r *reader) topic(args []string) error {
	if r.command() != nil && len(r.group()) == 0 {
		return nil
	}
	for _, word := range args {
		if strings.HasPrefix(word, "-") {
			continue
		}
		if len(r.group()) == 0 {
			return usageError("help %s: one word too many: %q", r.path(), word)
		}
		if err := r.name(word); err != nil {
			return err
		}
	}
	return nil
}

// name takes the name of a command of the level that is reached.
func (r *reader) name(word string) error {
	group := r.group()
	for _, c := range group {
		if c.Name == word {
			r.line.commands = append(r.line.commands, c)
			return nil
		}
	}
	what := "command"
	if r.command() != nil {
		what = "verb"
	}
	return usageError("unknown %s %q%s", what, strings.TrimSpace(r.path()+" "+word), meant(word, names(group), "%q", "one of "+strings.Join(names(group), ", ")))
}

// long takes --name, --name=value or --name value.
func (r *reader) long(arg string, rest []string) ([]string, error) {
	name, value, hasValue := strings.Cut(arg[2:], "=")
	switch name {
	case "help", "version":
		if !hasValue {
			r.help, r.version = name == "help", name == "version"
			return rest, nil
		}
		return nil, usageError("--%s takes no value", name)
	}
	f := r.find(name)
	switch {
	case f != nil && len(name) == 1:
		return nil, usageError("unknown flag --%s: did you mean -%s?", name, name)
	case f == nil:
		return nil, r.unknown("--" + name)
	}
	if isBool(f) {
		if !hasValue {
			value = "true"
		}
		return rest, r.on(f, "--"+name, value)
	}
	if !hasValue {
		var err error
		if value, rest, err = r.next("--"+name, rest); err != nil {
			return nil, err
		}
	}
	r.flags = append(r.flags, given{f, "--" + name, value})
	return rest, nil
}

// short takes -n, -nvalue, -n value, -n=value, and several that need no
// value in one: -vw.
func (r *reader) short(arg string, rest []string) ([]string, error) {
	for i := 1; i < len(arg); i++ {
		name := arg[i : i+1]
		switch name {
		case "?":
			r.help = true
			return rest, nil
		case "V":
			r.version = true
			return rest, nil
		}
		f := r.find(name)
		if f == nil {
			if i == 1 && len(arg) > 2 {
				if near, ok := nearest.Word(strings.TrimLeft(arg, "-"), flagNames(r.allowed())); ok {
					return nil, usageError("unknown flag %q: did you mean --%s?", arg, near)
				}
			}
			return nil, r.unknown("-" + name)
		}
		if isBool(f) {
			if err := r.on(f, "-"+name, "true"); err != nil {
				return nil, err
			}
			continue
		}
		value := strings.TrimPrefix(arg[i+1:], "=")
		if i+1 == len(arg) {
			var err error
			if value, rest, err = r.next("-"+name, rest); err != nil {
				return nil, err
			}
		}
		r.flags = append(r.flags, given{f, "-" + name, value})
		return rest, nil
	}
	return rest, nil
}

// next takes the following argument as the value of a flag. One that is
// itself a flag of this command was not meant as a value; --flag=value can
// still say it.
func (r *reader) next(typed string, rest []string) (string, []string, error) {
	if len(rest) == 0 {
		return "", nil, usageError("%s needs a value", typed)
	}
	v := rest[0]
	if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "--") && (name == "--help" || name == "--version" || r.find(name[2:]) != nil) {
		return "", nil, usageError("%s needs a value, but %s follows", typed, name)
	}
	return v, rest[1:], nil
}

// on takes a flag that is on or off.
func (r *reader) on(f cli.Flag, typed, value string) error {
	switch value {
	case "true", "on", "yes", "1":
		value = "true"
	case "false", "off", "no", "0":
		value = "false"
	default:
		return usageError("invalid %s=%s (flag): want true or false", typed, value)
	}
	r.flags = append(r.flags, given{f, typed, value})
	return nil
}

// find returns the flag of that name, long or short, that may stand here.
func (r *reader) find(name string) cli.Flag {
	for _, f := range r.allowed() {
		for _, n := range f.Names() {
			if n == name {
				return f
			}
		}
	}
	return nil
}

// allowed returns the flags that may stand here: those of the command, and
// as long as it is not named, those of every command that it could become.
// (A flag means the same in all of them: TestFlagsAgree.)
func (r *reader) allowed() []cli.Flag {
	if c := r.command(); c != nil && len(c.Subcommands) == 0 {
		return c.Flags
	}
	return allFlags(r.group())
}

// recheck looks again at flags that stood before the command's name: it must have them.
func (r *reader) recheck() error {
	for _, g := range r.flags {
		if r.find(g.flag.Names()[0]) == nil {
			return r.unknown(g.typed)
		}
	}
	return nil
}

func (r *reader) unknown(typed string) error {
	of, help := "", "walferry help"
	if p := r.path(); p != "" {
		of, help = " of "+p, "walferry help "+p
	}
	return usageError("unknown flag %s%s%s", typed, of, meant(strings.TrimLeft(typed, "-"), flagNames(r.allowed()), "--%s", "see "+help))
}

// complete looks at what is missing.
func (r *reader) complete() error {
	c := r.command()
	switch {
	case c == nil:
		return usageError("no command given: see walferry help")
	case len(c.Subcommands) > 0:
		return usageError("%s needs a verb: %s", r.path(), strings.Join(names(c.Subcommands), ", "))
	case len(r.words) < arity(c):
		return usageError("%s: %s is missing (walferry %s)", r.path(), strings.Fields(c.ArgsUsage)[len(r.words)], synopsis(r.line))
	}
	return nil
}

// arity is the number of words that a command takes: one for each word of
// its ArgsUsage.
func arity(c *cli.Command) int { return len(strings.Fields(c.ArgsUsage)) }

// synopsis is the command with its words: "slot create NAME".
func synopsis(l *line) string {
	return strings.TrimSpace(l.path() + " " + l.commands[len(l.commands)-1].ArgsUsage)
}

func isBool(f cli.Flag) bool {
	_, ok := f.(*cli.BoolFlag)
	return ok
}

// meant is the end of an error about a word that nobody knows.
func meant(word string, among []string, form, otherwise string) string {
	if near, ok := nearest.Word(word, among); ok {
		return ": did you mean " + fmt.Sprintf(form, near) + "?"
	}
	return ": " + otherwise
}

func names(commands []*cli.Command) []string {
	out := make([]string, 0, len(commands))
	for _, c := range commands {
		if !c.Hidden {
			out = append(out, c.Name)
		}
	}
	return out
}

// flagNames are the long names of flags.
func flagNames(flags []cli.Flag) []string {
	out := make([]string, 0, len(flags))
	for _, f := range flags {
		out = append(out, f.Names()[0])
	}
	return out
}

// allFlags are the flags of commands and of all below them, each name once.
func allFlags(commands []*cli.Command) []cli.Flag {
	var out []cli.Flag
	seen := map[string]bool{}
	for _, c := range commands {
		for _, f := range append(allFlags(c.Subcommands), c.Flags...) {
			if name := f.Names()[0]; !seen[name] {
				seen[name] = true
				out = append(out, f)
			}
		}
	}
	return out
}
