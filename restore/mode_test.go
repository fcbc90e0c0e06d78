package restore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
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

// TestLastQuestion: a server that has removed its signal files can do without
// the history file that it asks for, where it has its own.
func TestLastQuestion(t *testing.T) {
	failure := errors.New("x")
	for _, c := range []struct {
		what string
		set  func(f *fixture)
		file string
		want int
	}{
		{"of timeline 1", func(*fixture) {}, "00000001.history", 1},
		{"its own copy", func(f *fixture) { f.history(3, "1:0/500000") }, "00000003.history", 1},
		{"no copy", func(*fixture) {}, "00000003.history", 255},
		{"another's copy", func(f *fixture) { f.history(2, "1:0/500000") }, "00000003.history", 255},
		{"a copy that is none", func(f *fixture) { f.write("pg_wal/00000003.history", []byte("x\n")) }, "00000003.history", 255},
		{"a segment", func(f *fixture) { f.write("pg_wal/000000010000000000000005", nil) }, "000000010000000000000005", 255},
		{"no name", func(*fixture) {}, "", 255},
		{"still in recovery", func(f *fixture) { f.write("recovery.signal", nil) }, "00000001.history", 255},
		{"no data directory", func(f *fixture) { f.options.Place.DataDir = f.t.TempDir() }, "00000001.history", 255},
	} {
		f := newFixture(t, Recovery)
		c.set(f)
		if got := f.options.Place.ExitCode(c.file, failure); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
		if got := f.options.Place.ExitCode(c.file, nil); got != 0 {
			t.Errorf("%s, delivered: %d", c.what, got)
		}
	}
	f := newFixture(t, Standby)
	f.write("standby.signal", nil)
	if got := f.options.Place.ExitCode("00000003.history", failure); got != 1 {
		t.Errorf("a standby: %d", got)
	}

	// It is not kept waiting, and gets what the archive has.
	f = newFixture(t, Recovery)
	f.history(3, "1:0/500000")
	f.archive.fail["Open"] = failure
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		if err := f.fetch(t.Context(), "00000003.history"); !errors.Is(err, failure) {
			t.Error(err)
		}
		if took := time.Since(begin); took > Standby.Budget() {
			t.Errorf("it was kept waiting for %s", took)
		}
	})
	f.archive.mend("Open")
	f.put("00000003.history.lz4", historyOf("1:0/500000"))
	if err := f.fetch(t.Context(), "00000003.history"); err != nil || f.content() == nil {
		t.Errorf("not delivered: %v", err)
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
