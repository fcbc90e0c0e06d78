package getopt

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

const (
	all = iota + 1
	allow
	file
	force
	level
	store
)

// table has a name that is the beginning of another one (all, allow), a name
// with an alias (file, filename), one that is never shortened (levels), one
// without a short form and one without a long one.
func table(posix bool) Rules {
	return Rules{Program: "./bin/prog", Posix: posix, Options: []Option{
		{ID: all, Long: "all", Short: 'a'},
		{ID: allow, Long: "allow", Argument: true},
		{ID: file, Long: "file", Short: 'f', Argument: true},
		{ID: file, Long: "filename", Argument: true},
		{ID: force, Short: 'F'},
		{ID: level, Long: "level", Short: 'l', Argument: true},
		{ID: store, Long: "levels", Argument: true, Exact: true},
	}}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args  string // separated by spaces; '' is an empty one
		given []Given
		words string
	}{
		{"", nil, ""},
		{"-a", []Given{{all, ""}}, ""},
		{"-a -a", []Given{{all, ""}, {all, ""}}, ""},
		{"-aFfx", []Given{{all, ""}, {force, ""}, {file, "x"}}, ""},
		{"-aFf x", []Given{{all, ""}, {force, ""}, {file, "x"}}, ""},
		{"-f=x", []Given{{file, "=x"}}, ""},
		{"-faF", []Given{{file, "aF"}}, ""},
		{"-f -a", []Given{{file, "-a"}}, ""},
		{"-f -- -a", []Given{{file, "--"}, {all, ""}}, ""},
		{"-f ''", []Given{{file, ""}}, ""},
		{"--all", []Given{{all, ""}}, ""},
		{"--allo x", []Given{{allow, "x"}}, ""},
		{"--allow=", []Given{{allow, ""}}, ""},
		{"--allow=x=y", []Given{{allow, "x=y"}}, ""},
		{"--allow --all", []Given{{allow, "--all"}}, ""},
		{"--allow -- --all", []Given{{allow, "--"}, {all, ""}}, ""},
		{"--f=x", []Given{{file, "x"}}, ""},
		{"--file=x --filen=y", []Given{{file, "x"}, {file, "y"}}, ""},
		{"--l 1 --leve=2 --level 3", []Given{{level, "1"}, {level, "2"}, {level, "3"}}, ""},
		{"--levels=x", []Given{{store, "x"}}, ""},
		{"one -a two --level=3 three", []Given{{all, ""}, {level, "3"}}, "one two three"},
		{"one -- -a --bad", nil, "one -a --bad"},
		{"-- -- -a", nil, "-- -a"},
		{"- -a -", []Given{{all, ""}}, "- -"},
		{"'' -a", []Given{{all, ""}}, "''"},
	} {
		given, words, err := table(false).Parse(fields(c.args))
		if err != nil || !slices.Equal(given, c.given) || !slices.Equal(words, fields(c.words)) {
			t.Errorf("%s: got %v, %q, %v; want %v, %q", c.args, given, words, err, c.given, c.words)
		}
	}
}

func TestPosix(t *testing.T) {
	given, words, err := table(true).Parse(fields("-a one -F -- --bad"))
	if err != nil || !slices.Equal(given, []Given{{all, ""}}) || !slices.Equal(words, fields("one -F -- --bad")) {
		t.Errorf("got %v, %q, %v; want -a, then words only", given, words, err)
	}
	given, words, err = table(true).Parse(fields("-a -- -F"))
	if err != nil || !slices.Equal(given, []Given{{all, ""}}) || !slices.Equal(words, fields("-F")) {
		t.Errorf("got %v, %q, %v; want -a, then the word -F", given, words, err)
	}
}

// The texts are those that glibc 2.36's getopt_long printed for this table.
func TestComplaints(t *testing.T) {
	for _, c := range []struct {
		args, want string
		before     []Given
	}{
		{"--bad", "unrecognized option '--bad'", nil},
		{"--bad=1", "unrecognized option '--bad=1'", nil},
		{"--allowed", "unrecognized option '--allowed'", nil},
		{"--levelss=1", "unrecognized option '--levelss=1'", nil},
		{"--F", "unrecognized option '--F'", nil},
		{"--al", "option '--al' is ambiguous; possibilities: '--all' '--allow'", nil},
		{"--al=3", "option '--al=3' is ambiguous; possibilities: '--all' '--allow'", nil},
		{"--=3", "option '--=3' is ambiguous; possibilities: '--all' '--allow' '--file' '--filename' '--level'", nil},
		{"--all=3", "option '--all' doesn't allow an argument", nil},
		{"--all=", "option '--all' doesn't allow an argument", nil},
		{"--fi", "option '--file' requires an argument", nil},
		{"--filen", "option '--filename' requires an argument", nil},
		{"-x", "invalid option -- 'x'", nil},
		{"-:", "invalid option -- ':'", nil},
		{"-?", "invalid option -- '?'", nil},
		{"-\xc3\xa4", "invalid option -- '\xc3'", nil},
		{"-f", "option requires an argument -- 'f'", nil},
		{"-aFf", "option requires an argument -- 'f'", []Given{{all, ""}, {force, ""}}},
		{"-a-", "invalid option -- '-'", []Given{{all, ""}}},
		{"word -a -l 3 -Fx -f y", "invalid option -- 'x'", []Given{{all, ""}, {level, "3"}, {force, ""}}},
	} {
		given, words, err := table(false).Parse(fields(c.args))
		var e *Error
		if !errors.As(err, &e) || e.Error() != "./bin/prog: "+c.want || words != nil || !slices.Equal(given, c.before) {
			t.Errorf("%s: got %v, %q, %v; want %v, %s", c.args, given, words, err, c.before, c.want)
		}
	}
}

// FuzzParse: no line makes it panic, and what was read says the same when it
// is written in full.
func FuzzParse(f *testing.F) {
	for _, line := range []string{"-aFfx", "--allo x -- -a", "--f=x one", "-f", "--=", "- -\xff", "-\x00", "--levels=1 --level=2"} {
		f.Add(line, false)
		f.Add(line, true)
	}
	f.Fuzz(func(t *testing.T, line string, posix bool) {
		rules := table(posix)
		given, words, err := rules.Parse(strings.Split(line, " "))
		if err != nil {
			if text := err.Error(); !strings.HasPrefix(text, "./bin/prog: ") {
				t.Fatalf("%q: error %q", line, text)
			}
			return
		}
		var again []string
		for _, g := range given {
			again = append(again, spelled(t, rules, g)...)
		}
		again = append(append(again, "--"), words...)
		given2, words2, err := rules.Parse(again)
		if err != nil || !slices.Equal(given, given2) || !slices.Equal(words, words2) {
			t.Fatalf("%q: %v, %q; written in full, %q: %v, %q, %v", line, given, words, again, given2, words2, err)
		}
	})
}

// spelled returns an option as it is given in full.
func spelled(t *testing.T, rules Rules, g Given) []string {
	for _, o := range rules.Options {
		switch {
		case o.ID != g.ID:
		case o.Long == "":
			return []string{"-" + string(o.Short)}
		case o.Argument:
			return []string{"--" + o.Long + "=" + g.Value}
		default:
			return []string{"--" + o.Long}
		}
	}
	t.Fatalf("%v is no option", g)
	return nil
}

func fields(line string) []string {
	var out []string
	for _, f := range strings.Fields(line) {
		out = append(out, strings.ReplaceAll(f, "''", ""))
	}
	return out
}
