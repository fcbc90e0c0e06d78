// Package getopt reads a command line by the rules of GNU getopt_long, and
// complains in glibc's words. It is for a program that stands in for another
// one: the lines that the other one took mean the same here, and those that
// it refused end in the same text.
//
// The rules (glibc manual, "Program Argument Syntax Conventions" and "Parsing
// Long Options with getopt_long"; messages as in glibc 2.36):
//
//   - -n, several in one word (-nv), and a value in the same word or the next
//     one: -Ddir, -nvDdir, -D dir.
//   - --name, and a value behind = or in the next word: --name=value, --name
//     value. The next word is the value whatever it looks like.
//   - A long name may be shortened as long as it stays the beginning of one
//     option only; a name that is typed in full is that option, also when it
//     is the beginning of another one.
//   - Options stand before, between and behind other words; behind "--" there
//     are none. "-" alone is a word.
//
// Not there, because nobody here needs it: arguments that an option may go
// without, long options behind a single "-", and the signs that may stand at
// the beginning of getopt's list of short options.
package getopt

import (
	"fmt"
	"slices"
	"strings"
)

// Option is one that may be given.
type Option struct {
	ID       int    // what Given calls it. Two options of one ID and Argument are one option under two names
	Long     string // without the dashes, and without "="; "" when there is none
	Short    byte   // 0 when there is none
	Argument bool   // it has an argument, always
	Exact    bool   // Long counts only in full, and is not among the possibilities of an ambiguous name
}

// Given is an option that was given.
type Given struct {
	ID    int
	Value string // its argument; "" for an option that has none
}

// Error is a command line that cannot be read. Its text is glibc's, one line,
// that begins with the program's name as it was typed.
type Error struct{ text string }

func (e *Error) Error() string { return e.text }

// Rules are the options that a program takes, and how its name was typed.
type Rules struct {
	Program string // argv[0], the beginning of every complaint
	Options []Option
	// Posix is what a set POSIXLY_CORRECT asks for: the first word that is no
	// option ends them.
	Posix bool
}

// Parse reads args (without argv[0]). It returns the options in the order in
// which they were given, and the words that are left in theirs. The only error
// is *Error; given then holds the options in front of the one that is wrong,
// since a program that acts on each option as it comes has acted on them.
func (r Rules) Parse(args []string) (given []Given, words []string, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		var found []Given
		switch {
		case arg == "--":
			return given, append(words, args...), nil
		case strings.HasPrefix(arg, "--"):
			found, args, err = r.long(arg[2:], args)
		case len(arg) > 1 && arg[0] == '-':
			found, args, err = r.short(arg[1:], args)
		case r.Posix:
			return given, append(append(words, arg), args...), nil
		default:
			words = append(words, arg)
		}
		given = append(given, found...)
		if err != nil {
			return given, nil, err
		}
	}
	return given, words, nil
}

// long reads "name" or "name=value", and takes the value from rest where it
// is not in the word itself.
func (r Rules) long(typed string, rest []string) ([]Given, []string, error) {
	name, value, hasValue := strings.Cut(typed, "=")
	option, err := r.named(name, typed)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case hasValue && !option.Argument:
		return nil, nil, r.errorf("option '--%s' doesn't allow an argument", option.Long)
	case option.Argument && !hasValue:
		if len(rest) == 0 {
			return nil, nil, r.errorf("option '--%s' requires an argument", option.Long)
		}
		value, rest = rest[0], rest[1:]
	}
	return []Given{{option.ID, value}}, rest, nil
}

// named returns the option that a long name means, in full or shortened.
// typed is the name with what followed it, for errors.
func (r Rules) named(name, typed string) (Option, error) {
	var begin []Option
	for _, o := range r.Options {
		switch {
		case o.Long == "":
		case o.Long == name:
			return o, nil
		case strings.HasPrefix(o.Long, name) && !o.Exact:
			begin = append(begin, o)
		}
	}
	if len(begin) == 0 {
		return Option{}, r.errorf("unrecognized option '--%s'", typed)
	}
	// Another name of the first one is not another possibility.
	others := slices.DeleteFunc(begin[1:], func(o Option) bool {
		return o.ID == begin[0].ID && o.Argument == begin[0].Argument
	})
	if len(others) == 0 {
		return begin[0], nil
	}
	var b strings.Builder
	for _, o := range begin[:1+len(others)] {
		fmt.Fprintf(&b, " '--%s'", o.Long)
	}
	return Option{}, r.errorf("option '--%s' is ambiguous; possibilities:%s", typed, b.String())
}

// short reads a word of short options, of which the last one may have its
// argument in the same word, or takes it from rest.
func (r Rules) short(cluster string, rest []string) (given []Given, _ []string, err error) {
	for i := range len(cluster) {
		c, value := cluster[i], cluster[i+1:]
		at := slices.IndexFunc(r.Options, func(o Option) bool { return o.Short == c && c != 0 })
		if at < 0 {
			return given, nil, r.errorf("invalid option -- '%s'", cluster[i:i+1])
		}
		option := r.Options[at]
		if !option.Argument {
			given = append(given, Given{ID: option.ID})
			continue
		}
		if value == "" {
			if len(rest) == 0 {
				return given, nil, r.errorf("option requires an argument -- '%s'", cluster[i:i+1])
			}
			value, rest = rest[0], rest[1:]
		}
		return append(given, Given{option.ID, value}), rest, nil
	}
	return given, rest, nil
}

func (r Rules) errorf(format string, args ...any) error {
	return &Error{r.Program + ": " + fmt.Sprintf(format, args...)}
}
