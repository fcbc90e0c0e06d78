package settings

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// table is a small set of settings, one of each kind.
func table() []Spec {
	return []Spec{
		{Name: "dsn", Mask: MaskDSN},
		{Name: "hold", Default: "32MB", Check: CheckSize},
		{Name: "shutdown-grace", Default: "30s", Check: CheckDuration},
		{Name: "no-loop", Bool: true},
		{Name: "store", Mask: MaskURL},
	}
}

func load(t *testing.T, in Input) (*Set, error) {
	t.Helper()
	in.Reserved = []string{"WALFERRY_HOME", "WALFERRY_TEST_"}
	return Load(table(), in)
}

// file writes a settings file and returns its path.
func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPrecedence(t *testing.T) {
	config := file(t, "w.yaml", "# ours\nhold: 3MB\nno-loop: yes\n")
	for _, c := range []struct {
		name           string
		in             Input
		want, origin   string
		wantNoLoop     bool
		wantIsSetValue bool
	}{
		{"default", Input{}, "32MB", "default", false, false},
		{"file", Input{Config: config}, "3MB", config + ":2", true, true},
		{"file by variable", Input{Environ: []string{"WALFERRY_CONFIG=" + config}}, "3MB", config + ":2", true, true},
		{"variable", Input{Config: config, Environ: []string{"WALFERRY_HOLD=2MB", "WALFERRY_NO_LOOP=off"}}, "2MB", "environment WALFERRY_HOLD", false, true},
		{"empty variable", Input{Config: config, Environ: []string{"WALFERRY_HOLD="}}, "3MB", config + ":2", true, true},
		{"flag", Input{Config: config, Environ: []string{"WALFERRY_HOLD=2MB"}, Flags: []Given{{"hold", "1MB"}}}, "1MB", "flag --hold", true, true},
		{"flag twice", Input{Flags: []Given{{"hold", "1MB"}, {"hold", "0"}}}, "0", "flag --hold", false, true},
		{"flag of the file wins over its variable", Input{Config: config, Environ: []string{"WALFERRY_CONFIG=/nowhere"}}, "3MB", config + ":2", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := load(t, c.in)
			if err != nil {
				t.Fatal(err)
			}
			v := s.Value("hold")
			if v.Text != c.want || v.Origin.String() != c.origin || v.IsSet() != c.wantIsSetValue {
				t.Errorf("hold is %q from %q, set %v; want %q from %q", v.Text, v.Origin, v.IsSet(), c.want, c.origin)
			}
			if s.Bool("no-loop") != c.wantNoLoop {
				t.Errorf("no-loop is %v", s.Bool("no-loop"))
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	bad := func(content string) Input { return Input{Config: file(t, "walferry.yaml", content)} }
	for _, c := range []struct {
		name string
		in   Input
		want string // all of these, separated by |
	}{
		{"flag", Input{Flags: []Given{{"hold", "12x"}}}, "--hold=12x (flag)|32MB"},
		{"variable", Input{Environ: []string{"WALFERRY_HOLD=12x"}}, "WALFERRY_HOLD=12x (environment)|32MB"},
		{"file", bad("\n\nhold: 12x\n"), "walferry.yaml:3|hold: 12x|32MB"},
		{"overridden all the same", Input{Environ: []string{"WALFERRY_HOLD=12x"}, Flags: []Given{{"hold", "1MB"}}}, "WALFERRY_HOLD=12x"},
		{"bool", bad("no-loop: maybe\n"), "walferry.yaml:1|maybe|true or false"},
		{"unknown key", bad("hodl: 1MB\n"), `walferry.yaml:1|unknown setting "hodl"|did you mean "hold"?`},
		{"underscore", bad("no_loop: true\n"), `did you mean "no-loop"?`},
		{"far key", bad("xyzzy: 1\n"), `unknown setting "xyzzy"`},
		{"twice", bad("hold: 1MB\nhold: 2MB\n"), "walferry.yaml:2|set twice|line 1"},
		{"list", bad("hold: [1MB]\n"), "walferry.yaml:1|single value"},
		{"nothing", bad("hold:\n"), "walferry.yaml:1|single value"},
		{"nested", bad("receive:\n  hold: 1MB\n"), "walferry.yaml:1|unknown setting"},
		{"no mapping", bad("- hold\n"), "walferry.yaml:1|name: value"},
		{"no yaml", bad("hold: 1MB\n  x: [\n"), "walferry.yaml:|not YAML"},
		{"two documents", bad("hold: 1MB\n---\nhold: 2MB\n"), "one YAML document"},
		{"missing file", Input{Config: "/nowhere/w.yaml"}, "--config=/nowhere/w.yaml (flag)|no such file"},
		{"missing file by variable", Input{Environ: []string{"WALFERRY_CONFIG=/nowhere/w.yaml"}}, "WALFERRY_CONFIG=/nowhere/w.yaml (environment)|no such file"},
		{"unknown variable", Input{Environ: []string{"WALFERRY_HODL=1MB"}}, "unknown variable WALFERRY_HODL (environment)|did you mean WALFERRY_HOLD?"},
		{"far variable", Input{Environ: []string{"WALFERRY_XYZZY=1MB"}}, "unknown variable WALFERRY_XYZZY"},
		{"nearly reserved", Input{Environ: []string{"WALFERRY_HOEM=/x"}}, "did you mean WALFERRY_HOME?"},
		{"unknown flag", Input{Flags: []Given{{"x", "1"}}}, "--x is not a setting"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, c.in)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range strings.Split(c.want, "|") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
		})
	}
}

func TestTaken(t *testing.T) {
	for name, in := range map[string]Input{
		"reserved":      {Environ: []string{"WALFERRY_HOME=/x", "WALFERRY_TEST_PG=y"}},
		"empty file":    {Config: file(t, "a.yaml", "")},
		"comments only": {Config: file(t, "b.yaml", "# nothing\n---\n# here\n")},
		"not ours":      {Environ: []string{"walferry_hodl=1", "XWALFERRY_HODL=1", "nonsense"}},
	} {
		if _, err := load(t, in); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSecretInReadableFile(t *testing.T) {
	const content = "dsn: host=db password=hush\n"
	path := file(t, "w.yaml", content)
	s, err := load(t, Input{Config: path})
	if err != nil || len(s.Warnings()) != 0 {
		t.Fatalf("mode 600: %v, %q", err, s.Warnings())
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	s, err = load(t, Input{Config: path})
	if err != nil || len(s.Warnings()) != 1 || !strings.Contains(s.Warnings()[0], "chmod 600") || strings.Contains(s.Warnings()[0], "hush") {
		t.Fatalf("mode 640: %v, %q", err, s.Warnings())
	}
	if err := os.WriteFile(path, []byte("dsn: host=db\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if s, err = load(t, Input{Config: path}); err != nil || len(s.Warnings()) != 0 {
		t.Fatalf("no password: %v, %q", err, s.Warnings())
	}
}

func TestWALGFile(t *testing.T) {
	path := file(t, WALGFileName, `{"WALG_S3_PREFIX": "s3://b/p", "aws_region": "eu-central-1", "PGPORT": 5433, "AWS_S3_FORCE_PATH_STYLE": true,
		"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush", "WALG_NESTED": {"a": 1}, "PGHOST": "", "WALFERRY_HOLD": "1GB"}`)
	in := Input{HomeDir: filepath.Dir(path), Environ: []string{"WALG_S3_PREFIX=s3://env/p", "PGPORT="}}
	s, err := load(t, in)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"WALG_S3_PREFIX": "s3://env/p", "AWS_REGION": "eu-central-1", "PGPORT": "5433", "AWS_S3_FORCE_PATH_STYLE": "true"} {
		if v, ok := s.Variable(name); !ok || v.Text != want {
			t.Errorf("%s is %q, %v; want %q", name, v.Text, ok, want)
		}
	}
	if v, _ := s.Variable("AWS_SECRET_ACCESS_KEY"); v.Shown() != Masked || v.Text != "hush" {
		t.Errorf("the secret is shown as %q", v.Shown())
	}
	if _, ok := s.Variable("PGHOST"); ok {
		t.Error("an empty value counts")
	}
	if s.Text("hold") != "32MB" {
		t.Errorf("WAL-G's file set %q", s.Text("hold"))
	}
	lib := s.ForLibraries()
	for name, want := range map[string]string{"AWS_REGION": "eu-central-1", "PGPORT": "5433", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush", "WALG_S3_PREFIX": ""} {
		if lib[name] != want {
			t.Errorf("for libraries: %s is %q; want %q", name, lib[name], want)
		}
	}

	in.Environ = []string{"AWS_ACCESS_KEY_ID=other"}
	if s, err = load(t, in); err != nil {
		t.Fatal(err)
	}
	if lib := s.ForLibraries(); lib["AWS_SECRET_ACCESS_KEY"] != "" || lib["AWS_ACCESS_KEY_ID"] != "" {
		t.Errorf("an ID from one place met a secret from the other: %q", slices.Sorted(func(yield func(string) bool) {
			for k := range lib {
				if !yield(k) {
					return
				}
			}
		}))
	}

	if s, err = load(t, Input{HomeDir: t.TempDir()}); err != nil || len(s.Variables()) != 0 {
		t.Errorf("no file: %v, %v", s, err)
	}
	for content, want := range map[string]string{"[1]": "JSON object", "{\n\"a\": \"hush\n": "line 2", "": "JSON"} {
		broken := file(t, WALGFileName, content)
		if _, err := load(t, Input{HomeDir: filepath.Dir(broken)}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: got %v; want %q", content, err, want)
		}
	}
}

func TestMask(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "",
		"mydb":                          "mydb",
		"host=db port=5432 user=u":      "host=db port=5432 user=u",
		"host=db password=hush user=u":  "host=db password=******** user=u",
		"password = 'hu sh' user=u":     "password = ******** user=u",
		`password='hu\'sh x' user=u`:    "password=******** user=u",
		"password='hush user=u":         "password=********",
		"PASSWORD=hush sslpassword=k":   "PASSWORD=******** sslpassword=********",
		"passfile=/x host=y":            "passfile=/x host=y",
		"postgres://u:hush@db/x":        "postgres://u:********@db/x",
		"postgresql://u:hu@sh@db/x":     "postgresql://u:********@db/x",
		"postgres://u@db/x?password=hu": "postgres://u@db/x?password=********",
		"postgres://u@db/?pass%77ord=h": "postgres://u@db/?pass%77ord=********",
		"postgres://u:hu/sh@db/x":       Masked,
		"postgres://u:%zz@db":           Masked,
		"mysql://u:hush@db":             Masked,
	} {
		if got := MaskDSN(in); got != want {
			t.Errorf("MaskDSN(%q) = %q; want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"s3://bucket/prefix?region=eu": "s3://bucket/prefix?region=eu",
		"s3://id:hush@bucket/prefix":   "s3://id:********@bucket/prefix",
		"s3://b/p?secret_key=hush&a=b": "s3://b/p?secret_key=********&a=b",
		"s3://b/p?access_key=hush":     "s3://b/p?access_key=********",
		"file:///srv/archive":          "file:///srv/archive",
		"s3://b/p?a=b#hush":            "s3://b/p?a=b#********",
	} {
		if got := MaskURL(in); got != want {
			t.Errorf("MaskURL(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "1B": 1, "512kB": 512 << 10, "32MB": 32 << 20, "20 GB": 20 << 30, "1TB": 1 << 40, "0MB": 0} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "32", "MB", "-1MB", "1.5GB", "32mb", "32KB", "32MB ", " 32MB", "32 M B", "32MiB", "9999999999TB", "0 ", "1e3MB", "+1MB"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d; want an error", in, got)
		}
	}
}

func TestDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0": 0, "30s": 30 * time.Second, "1m30s": 90 * time.Second, "500ms": 500 * time.Millisecond, "1min": time.Minute,
		"5 min": 5 * time.Minute, "1d": 24 * time.Hour, "250us": 250 * time.Microsecond, "1.5h": 90 * time.Minute, "2h": 2 * time.Hour,
	} {
		if got, err := ParseDuration(in); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "30", "-1s", "s", "1 week", "1M", "min", "99999999999d", "1min30s"} {
		if got, err := ParseDuration(in); err == nil {
			t.Errorf("ParseDuration(%q) = %v; want an error", in, got)
		}
	}
}

func TestHomeDir(t *testing.T) {
	s, err := load(t, Input{Environ: []string{"WALFERRY_HOME=/srv/wal/"}})
	if err != nil {
		t.Fatal(err)
	}
	if home, err := s.HomeDir("/home/x"); err != nil || home != "/srv/wal" {
		t.Errorf("got %q, %v", home, err)
	}
	if s, err = load(t, Input{Environ: []string{"WALFERRY_HOME=wal"}}); err != nil {
		t.Fatal(err)
	}
	if home, err := s.HomeDir("/home/x"); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("got %q, %v", home, err)
	}
}

// FuzzMask: whatever stands in a connection string, the password does not.
func FuzzMask(f *testing.F) {
	f.Add("host=db ", " user=u")
	f.Add("postgres://u:", "@db/x")
	f.Add("'", "'")
	f.Fuzz(func(t *testing.T, before, after string) {
		const secret = "CorrectHorseBattery"
		if strings.Contains(before, `\`) || strings.Contains(before, "'") {
			t.Skip("what is quoted may be no password")
		}
		for _, in := range []string{before + " password=" + secret + " " + after, before + " password='" + secret + after} {
			if got := MaskDSN(in); strings.Contains(got, secret) {
				t.Errorf("MaskDSN(%q) = %q", in, got)
			}
		}
	})
}
