package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// leaves calls f for every command that does something.
func leaves(commands []*cli.Command, f func(*cli.Command)) {
	for _, c := range commands {
		if len(c.Subcommands) == 0 {
			f(c)
		}
		leaves(c.Subcommands, f)
	}
}

// TestFlagsAgree: a flag that stands before its command is read without
// knowing the command, so a name means the same everywhere.
func TestFlagsAgree(t *testing.T) {
	type meaning struct {
		long  string
		value bool
	}
	seen := map[string]meaning{}
	leaves(commandTable(&program{}), func(c *cli.Command) {
		own := map[string]bool{}
		for _, f := range c.Flags {
			for _, name := range f.Names() {
				m := meaning{f.Names()[0], !isBool(f)}
				if before, ok := seen[name]; ok && before != m {
					t.Errorf("%s: -%s means %+v, elsewhere %+v", c.Name, name, m, before)
				}
				if own[name] {
					t.Errorf("%s: two flags are called %s", c.Name, name)
				}
				seen[name], own[name] = m, true
			}
		}
		for _, taken := range []string{"help", "version", "?", "V"} {
			if own[taken] {
				t.Errorf("%s: %s is taken", c.Name, taken)
			}
		}
		if !own["config"] && c.Name != "version" && c.Name != dropInName {
			t.Errorf("%s: no --config", c.Name)
		}
	})
	if !reflect.DeepEqual(seen["h"], meaning{"host", true}) {
		t.Errorf("-h is %+v", seen["h"])
	}
}

// TestSettingTable: defaults are possible, names and letters are used once,
// and each setting is the flag of some command.
func TestSettingTable(t *testing.T) {
	flags := map[string]bool{}
	leaves(commandTable(&program{}), func(c *cli.Command) {
		if c.Name == "print" {
			return // has them all
		}
		for _, f := range c.Flags {
			flags[f.Names()[0]] = true
		}
	})
	seen := map[string]bool{}
	for _, s := range settingTable() {
		if seen[s.Name] || s.short != "" && seen[s.short] {
			t.Errorf("%s stands twice", s.Name)
		}
		seen[s.Name], seen[s.short] = true, true
		if s.Default != "" && s.Check != nil {
			if err := s.Check(s.Default); err != nil {
				t.Errorf("the default of %s: %v", s.Name, err)
			}
		}
		if !flags[s.Name] {
			t.Errorf("no command has --%s", s.Name)
		}
		if !s.Bool && s.value == "" {
			t.Errorf("--%s has nothing that stands for its value", s.Name)
		}
	}
}

func TestOrdered(t *testing.T) {
	for in, want := range map[string]string{
		"slot create x":                           "walferry slot create -- x",
		"slot create x -hdb":                      "walferry slot create --host=db -- x",
		"-h db slot -p5 create x -vw":             "walferry slot create --host=db --port=5 --verbose=true --no-password=true -- x",
		"slot create -- -x":                       "walferry slot create -- -x",
		"slot create -h --weird x":                "walferry slot create --host=--weird -- x",
		"receive -d host=a --endpos=0/1 -n":       "walferry receive --dsn=host=a --endpos=0/1 --no-loop=true --",
		"receive --no-loop=no --hold 0 --hold=1B": "walferry receive --no-loop=false --hold=0 --hold=1B --",
	} {
		l, err := readLine(commandTable(&program{}), strings.Fields(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := strings.Join(l.ordered("walferry"), " "); got != want {
			t.Errorf("%s: got %s; want %s", in, got, want)
		}
	}
}

func TestFetchArguments(t *testing.T) {
	for in, want := range map[string]string{
		"fetch a b":            "a b",
		"-v fetch a b":         "-v a b",
		"--config f fetch a b": "--config f a b",
		"--nonsense fetch":     "--nonsense",
		"fetch fetch fetch":    "fetch fetch",
		"slot create fetch":    "not fetch",
		"help fetch":           "not fetch",
		"receive":              "not fetch",
		"":                     "not fetch",
	} {
		got := "not fetch"
		if args, ok := fetchArguments(strings.Fields(in)); ok {
			got = strings.Join(args, " ")
		}
		if got != want {
			t.Errorf("%q: got %q; want %q", in, got, want)
		}
	}
}

// FuzzLine: whatever is typed, the outcome is an error of one line, or a line
// that reads the same when it is put in order.
func FuzzLine(f *testing.F) {
	for _, s := range []string{"slot\ncreate\n-h\ndb\nx", "receive\n--hold=1MB\n-vw\n--", "help\nslot", "-?", "fetch\n%f\n%p", "--\nslot\nlist", "-p\n-h\nslot\nlist"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\n")
		l, err := readLine(commandTable(&program{}), args)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n") {
				t.Fatalf("%q: %q", args, err)
			}
			return
		}
		if l.help || l.version {
			return
		}
		again, err := readLine(commandTable(&program{}), l.ordered("walferry")[1:])
		if err != nil {
			t.Fatalf("%q: put in order: %v", args, err)
		}
		if l.path() != again.path() || !slices.Equal(l.words, again.words) || len(l.flags) != len(again.flags) {
			t.Fatalf("%q became %q", args, l.ordered("walferry"))
		}
		for i := range l.flags {
			if l.flags[i].value != again.flags[i].value || l.flags[i].flag.Names()[0] != again.flags[i].flag.Names()[0] {
				t.Fatalf("%q became %q", args, l.ordered("walferry"))
			}
		}
	})
}
