package restore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestFindPlace(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"standby/pg_wal", "both/pg_wal", "recovery/pg_wal", "neither/pg_wal/sub", "elsewhere"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"standby/standby.signal", "both/standby.signal", "both/recovery.signal", "recovery/recovery.signal"} {
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		cwd, target string // below root; a target that begins with = is relative
		dir         string
		mode        Mode
	}{
		{"standby", "=pg_wal/RECOVERYXLOG", "standby", Standby},
		{"both", "=pg_wal/RECOVERYXLOG", "both", Standby},
		{"recovery", "=pg_wal/RECOVERYXLOG", "recovery", Recovery},
		{"neither", "=pg_wal/RECOVERYXLOG", "neither", Recovery},
		{"standby", "neither/pg_wal/000000010000000000000001", "neither", Recovery}, // pg_rewind
		{"neither", "standby/pg_wal/000000010000000000000001", "standby", Standby},
		{"elsewhere", "=../standby/pg_wal/x", "standby", Standby},
		{"standby", "neither/pg_wal/sub/x", "neither", Recovery},
		{"standby", "elsewhere/x", "standby", Standby},
		{"standby", "=x", "standby", Standby},
		{"standby", "=", "standby", Standby},
	} {
		target := filepath.Join(root, c.target)
		if c.target[0] == '=' {
			target = c.target[1:]
		}
		got := FindPlace(filepath.Join(root, c.cwd), target)
		if want := (Place{filepath.Join(root, c.dir), c.mode}); got != want {
			t.Errorf("FindPlace(%s, %s) = %v, want %v", c.cwd, c.target, got, want)
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err               error
		recovery, standby int
	}{
		{nil, 0, 0},
		{fmt.Errorf("x: %w", ErrAbsent), 1, 1},
		{ErrHole, 255, 1},
		{errors.New("x"), 255, 1},
		{&SettingError{errors.New("x")}, 255, 1},
	} {
		if r, s := Recovery.ExitCode(c.err), Standby.ExitCode(c.err); r != c.recovery || s != c.standby {
			t.Errorf("%v: %d and %d", c.err, r, s)
		}
	}
}

func TestSystemIdentifier(t *testing.T) {
	control := func(version uint32) []byte {
		return binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint64(nil, testSystem), version)
	}
	for what, c := range map[string]struct {
		content []byte
		want    uint64
	}{
		"13 to 16":           {control(1300), testSystem},
		"18":                 {control(1800), testSystem},
		"with more behind":   {append(control(1700), make([]byte, 8180)...), testSystem},
		"short":              {control(1300)[:11], 0},
		"empty":              {nil, 0},
		"another byte order": {control(0x14050000), 0},
	} {
		f := newFixture(t, Recovery)
		f.write("global/pg_control", c.content)
		if got := f.options.Place.systemIdentifier(); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
	}
	if got := (Place{DataDir: t.TempDir()}).systemIdentifier(); got != 0 {
		t.Errorf("no data directory: %d", got)
	}
}

func TestPostmaster(t *testing.T) {
	f := newFixture(t, Standby)
	if pid, status := f.options.Place.postmaster(); pid != 0 || status != "" {
		t.Errorf("no file: %d %q", pid, status)
	}
	f.server("starting")
	if pid, status := f.options.Place.postmaster(); pid != os.Getpid() || status != "starting" {
		t.Errorf("got %d %q", pid, status)
	}
	for _, content := range []string{"", "x\n", "-1\n", "999999999\n/\n1\n2\n3\n4\n5\nstarting\n"} {
		f.write("postmaster.pid", []byte(content))
		if pid, status := f.options.Place.postmaster(); pid != 0 || status != "" {
			t.Errorf("%q: %d %q", content, pid, status)
		}
	}
	f.write("postmaster.pid", fmt.Appendf(nil, "%d\n/data\n", os.Getpid()))
	if _, status := f.options.Place.postmaster(); status != "" {
		t.Errorf("a short file: %q", status)
	}
}
