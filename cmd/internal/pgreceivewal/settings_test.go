package pgreceivewal

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/cmd/internal/getopt"
	"github.com/walferry/walferry/segment"
)

func none(string) (string, bool) { return "", false }

// printed is what the error of a line prints: "" when there is none.
func printed(t *testing.T, argv0 string, args ...string) string {
	t.Helper()
	_, err := Parse(argv0, args, none)
	if err == nil {
		return ""
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%q: the error %v is no *Error", args, err)
	}
	var b bytes.Buffer
	e.Print(&b, Program(argv0))
	return b.String()
}

const try = "pg_receivewal: hint: Try \"pg_receivewal --help\" for more information.\n"

func TestSettings(t *testing.T) {
	standard := Settings{Directory: "x", StatusInterval: 10 * time.Second}
	for _, c := range []struct {
		args []string
		set  func(*Settings)
	}{
		{[]string{"-D", "x"}, func(*Settings) {}},
		{[]string{"-Dx"}, func(*Settings) {}},
		{[]string{"--directory=x"}, func(*Settings) {}},
		{[]string{"--dir", "x"}, func(*Settings) {}},
		{[]string{"-D", "y", "-D", "x"}, func(*Settings) {}},
		{[]string{"-D", ""}, func(s *Settings) { s.Directory = "" }},
		{[]string{"-D", "--", "-n"}, func(s *Settings) { s.Directory, s.NoLoop = "--", true }},
		{[]string{"-nvDx"}, func(s *Settings) { s.NoLoop, s.Verbose = true, true }},
		{[]string{"-vvnDx", "--"}, func(s *Settings) { s.NoLoop, s.Verbose = true, true }},
		{[]string{"--no-l", "--verb", "--di=x"}, func(s *Settings) { s.NoLoop, s.Verbose = true, true }},
		{[]string{"-Dx", "--no-sync"}, func(s *Settings) { s.NoSync = true }},
		{[]string{"-Dx", "--no-s"}, func(s *Settings) { s.NoSync = true }},
		{[]string{"-Dx", "--sy"}, func(s *Settings) { s.Synchronous = true }},
		{[]string{"-Dx", "-s", "3"}, func(s *Settings) { s.StatusInterval = 3 * time.Second }},
		{[]string{"-Dx", "-s", " +3 "}, func(s *Settings) { s.StatusInterval = 3 * time.Second }},
		{[]string{"-Dx", "--st=0"}, func(s *Settings) { s.StatusInterval = 0 }},
		{[]string{"-Dx", "-s", ""}, func(s *Settings) { s.StatusInterval = 0 }},
		{[]string{"-Dx", "-s", " "}, func(s *Settings) { s.StatusInterval = 0 }},
		{[]string{"-Dx", "-s", "2147483"}, func(s *Settings) { s.StatusInterval = 2147483 * time.Second }},
		{[]string{"-Dx", "-Sslot"}, func(s *Settings) { s.Slot, s.HasSlot = "slot", true }},
		{[]string{"-Dx", "--sl", ""}, func(s *Settings) { s.Slot, s.HasSlot = "", true }},
		{[]string{"-Dx", "-E16/b374D848"}, func(s *Settings) { s.EndPos = 0x16B374D848 }},
		{[]string{"-Dx", "--e=0/0"}, func(*Settings) {}},
		{[]string{"-Dx", "-Z9"}, func(s *Settings) { s.Compression = Compression{Gzip, 9} }},
		{[]string{"-Dx", "--comp=lz4"}, func(s *Settings) { s.Compression = Compression{LZ4, 0} }},
		{[]string{"-Dx", "-Z", "bad", "-Z", "0"}, func(*Settings) {}},
		{[]string{"-Dx", "-d", "host=h", "-h", "h2", "-p", "5433", "-U", "u"}, func(s *Settings) {
			s.ConnString, s.Host, s.Port, s.User = "host=h", "h2", "5433", "u"
		}},
		{[]string{"-Dx", "--db=host=h", "--ho=h2", "--po=junk", "--us=u"}, func(s *Settings) {
			s.ConnString, s.Host, s.Port, s.User = "host=h", "h2", "junk", "u"
		}},
		{[]string{"-Dx", "-w"}, func(s *Settings) { s.NoPassword = true }},
		{[]string{"-Dx", "--pa"}, func(s *Settings) { s.AskPassword = true }},
		{[]string{"-Dx", "-wW"}, func(s *Settings) { s.AskPassword = true }},
		{[]string{"-Dx", "-Ww"}, func(s *Settings) { s.NoPassword = true }},
		{[]string{"--cr", "-Sx"}, func(s *Settings) { s.Directory, s.CreateSlot, s.Slot, s.HasSlot = "", true, "x", true }},
		{[]string{"--dr", "-Sx", "--if"}, func(s *Settings) {
			s.Directory, s.DropSlot, s.IfNotExists, s.Slot, s.HasSlot = "", true, true, "x", true
		}},
		{[]string{"-Dx", "--create-slot", "-S", ""}, func(s *Settings) { s.CreateSlot, s.HasSlot = true, true }},
		{[]string{"-Dx", "--store", "file:///a"}, func(s *Settings) { s.Store = "file:///a" }},
		{[]string{"--store=s3://b/p?region=x", "-Dx"}, func(s *Settings) { s.Store = "s3://b/p?region=x" }},
	} {
		want := standard
		c.set(&want)
		got, err := Parse("pg_receivewal", c.args, none)
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v; want %+v", c.args, got, err, want)
		}
	}
}

// What is printed here was printed by the pg_receivewal of PostgreSQL 15, 17
// and 18, for the same lines (integration's TestDropIn asks them again).
func TestWrongUsage(t *testing.T) {
	const p, e = "pg_receivewal: ", "pg_receivewal: error: "
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, e + "no target directory specified\n" + try},
		{[]string{"--"}, e + "no target directory specified\n" + try},
		{[]string{"-Q"}, p + "invalid option -- 'Q'\n" + try},
		{[]string{"-nvQ"}, p + "invalid option -- 'Q'\n" + try},
		{[]string{"-n", "-V"}, p + "invalid option -- 'V'\n" + try},
		{[]string{"-n", "-?"}, p + "invalid option -- '?'\n" + try},
		{[]string{"-n", "--help"}, try},
		{[]string{"-n", "--version"}, try},
		{[]string{"--hel"}, try},
		{[]string{"--ver"}, p + "option '--ver' is ambiguous; possibilities: '--version' '--verbose'\n" + try},
		{[]string{"--s=3"}, p + "option '--s=3' is ambiguous; possibilities: '--status-interval' '--slot' '--synchronous'\n" + try},
		{[]string{"--st"}, p + "option '--status-interval' requires an argument\n" + try},
		{[]string{"--sto"}, p + "unrecognized option '--sto'\n" + try},
		{[]string{"--stor=x"}, p + "unrecognized option '--stor=x'\n" + try},
		{[]string{"--no-l=5"}, p + "option '--no-loop' doesn't allow an argument\n" + try},
		{[]string{"-n", "-D"}, p + "option requires an argument -- 'D'\n" + try},
		{[]string{"foo", "--bad"}, p + "unrecognized option '--bad'\n" + try},
		{[]string{"foo", "-n"}, e + "too many command-line arguments (first is \"foo\")\n" + try},
		{[]string{"-", "-n"}, e + "too many command-line arguments (first is \"-\")\n" + try},
		{[]string{"-n", "--", "-D", "x"}, e + "too many command-line arguments (first is \"-D\")\n" + try},
		{[]string{"--create-slot", "--drop-slot", "foo"}, e + "too many command-line arguments (first is \"foo\")\n" + try},
		{[]string{"--create-slot", "--drop-slot"}, e + "cannot use --create-slot together with --drop-slot\n" + try},
		{[]string{"--create-slot"}, e + "--create-slot needs a slot to be specified using --slot\n" + try},
		{[]string{"--drop-slot", "--synchronous", "--no-sync"}, e + "--drop-slot needs a slot to be specified using --slot\n" + try},
		{[]string{"--synchronous", "--no-sync", "-Z", "bad"}, e + "cannot use --synchronous together with --no-sync\n" + try},
		{[]string{"-Z", "bad"}, e + "no target directory specified\n" + try},
		{[]string{"-Z", "bad", "-D", "x"}, e + "unrecognized compression algorithm: \"bad\"\n"},
		{[]string{"-Z", "bad", "--drop-slot", "-S", "x"}, e + "unrecognized compression algorithm: \"bad\"\n"},
		{[]string{"-s", "abc"}, e + "invalid value \"abc\" for option -s/--status-interval\n"},
		{[]string{"-s", "5x"}, e + "invalid value \"5x\" for option -s/--status-interval\n"},
		{[]string{"-s", "0x10"}, e + "invalid value \"0x10\" for option -s/--status-interval\n"},
		{[]string{"-s", "- 5"}, e + "invalid value \"- 5\" for option -s/--status-interval\n"},
		{[]string{"-s", "99999999999999999999x"}, e + "invalid value \"99999999999999999999x\" for option -s/--status-interval\n"},
		{[]string{"-s", "-1"}, e + "-s/--status-interval must be in range 0..2147483\n"},
		{[]string{"-s", "2147484"}, e + "-s/--status-interval must be in range 0..2147483\n"},
		{[]string{"-s", "99999999999999999999"}, e + "-s/--status-interval must be in range 0..2147483\n"},
		{[]string{"-s", "-99999999999999999999"}, e + "-s/--status-interval must be in range 0..2147483\n"},
		{[]string{"-s", "18446744073709551617"}, e + "-s/--status-interval must be in range 0..2147483\n"}, // 2^64 + 1
		{[]string{"-s", "-18446744073709551615"}, e + "-s/--status-interval must be in range 0..2147483\n"},
		{[]string{"-E", "abc", "--bad"}, e + "could not parse end position \"abc\"\n"},
		{[]string{"--bad", "-E", "abc"}, p + "unrecognized option '--bad'\n" + try},
		{[]string{"-E", "abc", "-s", "abc"}, e + "could not parse end position \"abc\"\n"},
		{[]string{"-n", "--help", "-E", "abc"}, try},
		// Ours.
		{[]string{"--store"}, p + "option '--store' requires an argument\n" + try},
		{[]string{"--store="}, e + "invalid value \"\" for option --store\npg_receivewal: hint: Name the archive by its URL, as in s3://bucket/prefix or file:///directory.\n"},
	} {
		if got := printed(t, "pg_receivewal", c.args...); got != c.want {
			t.Errorf("%q:\n%swant:\n%s", c.args, got, c.want)
		}
	}
}

// getopt complains in the name that was typed, everything else in the file's.
func TestProgramName(t *testing.T) {
	const hint = "receive: hint: Try \"receive --help\" for more information.\n"
	for _, c := range []struct{ arg, want string }{
		{"--bad", "./bin/receive: unrecognized option '--bad'\n" + hint},
		{"word", "receive: error: too many command-line arguments (first is \"word\")\n" + hint},
	} {
		if got := printed(t, "./bin/receive", c.arg); got != c.want {
			t.Errorf("%s:\n%swant:\n%s", c.arg, got, c.want)
		}
	}
}

func TestHelpAndVersionComeFirst(t *testing.T) {
	for arg, want := range map[string]Settings{
		"--help": {Help: true}, "-?": {Help: true}, "--version": {Version: true}, "-V": {Version: true},
	} {
		if got, err := Parse("pg_receivewal", []string{arg, "--bad"}, none); err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", arg, got, err, want)
		}
	}
}

func TestPosixlyCorrect(t *testing.T) {
	set := func(name string) (string, bool) { return "", name == "POSIXLY_CORRECT" }
	_, err := Parse("pg_receivewal", []string{"word", "--bad"}, set)
	if err == nil || err.Error() != `too many command-line arguments (first is "word")` {
		t.Errorf("got %v; want the word refused, and --bad taken for another one", err)
	}
}

// No abbreviation that the original takes, and no list of possibilities that
// it prints, is another one because we have --store.
func TestStoreChangesNoAbbreviation(t *testing.T) {
	ours := getopt.Rules{Options: options()}
	original := getopt.Rules{Options: slices.DeleteFunc(options(), func(o getopt.Option) bool { return o.ID == optStore })}
	if len(ours.Options) != len(original.Options)+1 {
		t.Fatal("--store is not in the table")
	}
	for _, o := range ours.Options {
		for n := range len(o.Long) + 1 {
			for _, arg := range []string{"--" + o.Long[:n], "--" + o.Long[:n] + "=5"} {
				if o.ID == optStore && n == len(o.Long) {
					continue
				}
				got, _, gotErr := ours.Parse([]string{arg, "5"})
				want, _, wantErr := original.Parse([]string{arg, "5"})
				if !slices.Equal(got, want) || text(gotErr) != text(wantErr) {
					t.Errorf("%s: with --store %v, %v; without %v, %v", arg, got, gotErr, want, wantErr)
				}
			}
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// The numbers are those that C's sscanf("%X/%X") gave.
func TestEndPos(t *testing.T) {
	for s, want := range map[string]segment.LSN{
		"0/1": 0x1, "16/B374D848": 0x16B374D848, "abcdef/ABCDEF": 0xABCDEF00ABCDEF,
		"0/1junk": 0x1, "1/2/3": 0x100000002, "0x1/2": 0x100000002, "0X1/0x2": 0x100000002,
		" 1/2": 0x100000002, "1/ 2": 0x100000002, "\v1/\t2": 0x100000002, "+1/2": 0x100000002, "-1/-2": 0xFFFFFFFFFFFFFFFE,
		"-0x10/0X1f": 0xFFFFFFF00000001F, "00000000000000000001/2": 0x100000002,
		"1234567890/abcdefABCDEF": 0x34567890EFABCDEF, "fffffffffff/1": 0xFFFFFFFF00000001,
		"1234567890123456789/1": 0xFFFFFFFF00000001, "-1234567890123456789/1": 0xFFFFFFFF00000001,
		"10000000000000001/1": 0xFFFFFFFF00000001, "ffffffffffffffff/1": 0xFFFFFFFF00000001, "1000000000000000/1": 1,
	} {
		if got, ok := scanLSN(s); !ok || got != want {
			t.Errorf("%q: got %v, %v; want %v", s, got, ok, want)
		}
	}
	for _, s := range []string{"", " ", "abc", "1", "1/", "/1", "/", "1 /2", "1//2", "1/-", "--1/2", "+-1/2", "- 1/2", "0xg/1", "1/0xg", "0x/1", "1/0x", "g/1", "1\\2"} {
		if got, ok := scanLSN(s); ok {
			t.Errorf("%q: got %v; want it refused", s, got)
		}
	}
}

func TestDirectoryError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&os.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}, "No such file or directory"},
		{&os.PathError{Op: "open", Path: "/x", Err: syscall.ENOTDIR}, "Not a directory"},
		{&os.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, "Permission denied"},
		{syscall.ELOOP, "Too many levels of symbolic links"},
		{errors.New("some other"), "some other"},
	} {
		if got, want := DirectoryError("/x", c.err).Error(), `could not open directory "/x": `+c.want; got != want {
			t.Errorf("got %s; want %s", got, want)
		}
	}
}

func TestPrint(t *testing.T) {
	var b bytes.Buffer
	(&Error{Message: "m", Detail: "d", Hint: "h"}).Print(&b, "prog")
	if got, want := b.String(), "prog: error: m\nprog: detail: d\nprog: hint: h\n"; got != want {
		t.Errorf("got %q; want %q", got, want)
	}
}

// The help names every option that is taken, in the original's order, and no
// other.
func TestHelp(t *testing.T) {
	help := Help("receive")
	if !strings.Contains(help, "\n  receive [OPTION]...\n") || strings.Contains(help, "PROGRAM") {
		t.Errorf("usage without the program's name:\n%s", help)
	}
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^  (-.,|   ) (--[a-z-]+)`).FindAllStringSubmatch(help, -1) {
		got = append(got, strings.TrimSpace(m[1]+" "+m[2]))
	}
	want := strings.Split("-D, --directory/-E, --endpos/--if-not-exists/-n, --no-loop/--no-sync/-s, --status-interval/-S, --slot/--synchronous/-v, --verbose/"+
		"-V, --version/-Z, --compress/-?, --help/-d, --dbname/-h, --host/-p, --port/-U, --username/-w, --no-password/-W, --password/"+
		"--create-slot/--drop-slot/--store", "/")
	if !slices.Equal(got, want) {
		t.Errorf("got %q; want %q", got, want)
	}
	if len(want) != len(options()) {
		t.Errorf("%d options in the help, %d in the table", len(want), len(options()))
	}
	if got := Version("1.2.3"); got != "pg_receivewal (walferry) 1.2.3\n" {
		t.Errorf("version: %q", got)
	}
}

// FuzzParse: no line makes it panic, and each one ends in settings that keep
// what their comments promise, or in lines of the original's shape.
func FuzzParse(f *testing.F) {
	for _, line := range []string{"-nvDx -s 3", "--s", "-Dx -Zgzip:level=5,workers=1", "-Dx -E0/1", "--store=x --dr -S s", "-V", "-n --help", "-Dx -p 0", "-Dx -dhost='a"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		s, err := Parse("pg_receivewal", strings.Split(line, " "), none)
		var e *Error
		switch {
		case errors.As(err, &e):
			var b bytes.Buffer
			if e.Print(&b, "pg_receivewal"); !strings.HasPrefix(b.String(), "pg_receivewal: ") || !strings.HasSuffix(b.String(), "\n") {
				t.Fatalf("%q prints %q", line, b.String())
			}
		case err != nil:
			t.Fatalf("%q: %v is no *Error", line, err)
		case s.Help || s.Version:
		case s.CreateSlot && s.DropSlot, s.NoSync && s.Synchronous, s.NoPassword && s.AskPassword, (s.CreateSlot || s.DropSlot) && !s.HasSlot,
			s.StatusInterval < 0, s.StatusInterval%time.Second != 0, s.Compression.Level < 0, s.Compression.Level > 12, s.Compression.Method > LZ4:
			t.Fatalf("%q: %+v", line, s)
		}
		_ = s.CheckConnection()
	})
}
