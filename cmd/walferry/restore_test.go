package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walferry/walferry/restore/recovery"
)

func TestTablespaceMapping(t *testing.T) {
	got, err := tablespaceMapping([]string{"/srv/a=/new/a", `/srv/x\=y=/new/x\=z`, "/srv/b/=/new//b"})
	if want := map[string]string{"/srv/a": "/new/a", "/srv/x=y": "/new/x=z", "/srv/b": "/new/b"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("the mapping is %v (%v), want %v", got, err, want)
	}
	for _, wrong := range []string{"", "=", "/a", "/a=", "=/b", "/a=/b=/c", "a=/b", "/a=b"} {
		if got, err := tablespaceMapping([]string{wrong}); err == nil {
			t.Errorf("%q is taken for %v", wrong, got)
		}
	}
}

// A server counts as running while its process is there, and postmaster.pid
// alone says nothing.
func TestRunningServer(t *testing.T) {
	dir := t.TempDir()
	if pid, running := runningServer(dir); running {
		t.Errorf("without postmaster.pid, process %d runs", pid)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "postmaster.pid"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, sign := range []string{"", "-"} { // a standalone backend writes its number below zero
		write(fmt.Sprintf("%s%d\n%s\n", sign, os.Getpid(), dir))
		if pid, running := runningServer(dir); !running || pid != os.Getpid() {
			t.Errorf("process %d runs: %t", pid, running)
		}
	}
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "x\n", "0\n", fmt.Sprintf("%d\n", ended.Process.Pid)} {
		write(text)
		if pid, running := runningServer(dir); running {
			t.Errorf("postmaster.pid with %q: process %d runs", text, pid)
		}
	}
}

// --force empties data directories, and nothing else.
func TestClearDir(t *testing.T) {
	fill := func(names ...string) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "data")
		for _, name := range names {
			path := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	cluster := []string{"PG_VERSION", "base/1/112", "global/pg_control", "pg_wal/x", "postgresql.auto.conf", "recovery.signal", "backup_label.old"}
	for _, c := range []struct {
		dir   string
		force bool
		want  string // what the error says; "": it is emptied
	}{
		{filepath.Join(t.TempDir(), "missing"), false, ""},
		{t.TempDir(), false, ""},
		{fill(cluster...), false, "is not empty"},
		{fill(cluster...), true, ""},
		{fill("PG_VERSION", "thesis.tex"), true, "is no PostgreSQL data directory: it holds thesis.tex"},
		{fill("base/1/112"), true, ""}, // what an interrupted restore has left
		{fill("base/1/112", recovery.TemporaryPrefix+"postgresql.auto.conf.2526055669"), true, ""},
	} {
		err := (&restoring{call: &call{log: slog.New(slog.DiscardHandler)}, dir: c.dir, force: c.force}).clearDir()
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.dir, err)
			}
			if entries, err := os.ReadDir(c.dir); err == nil && len(entries) > 0 {
				t.Errorf("%s is not empty: %v", c.dir, entries)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the error is %v, want one with %q", c.dir, err, c.want)
		}
		if entries, err := os.ReadDir(c.dir); err != nil || len(entries) == 0 {
			t.Errorf("%s was emptied all the same (%v)", c.dir, err)
		}
	}
}

func TestQuoteShell(t *testing.T) {
	for _, path := range []string{"/srv/data", "/srv/my data", "/it's", "/a$b`c", `/a"b\c`, "/50%"} {
		out, err := exec.Command("sh", "-c", "printf %s "+quoteShell(path)).Output()
		if err != nil || string(out) != path {
			t.Errorf("the shell reads %s as %q (%v)", quoteShell(path), out, err)
		}
	}
}

// A user who restores for himself gets the keys that his own environment leads
// to, also where HOME is not what the system has for him.
func TestCredentialsFile(t *testing.T) {
	home := func() (dir, file string) {
		t.Helper()
		dir = t.TempDir()
		file = filepath.Join(dir, ".aws", "credentials")
		if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		return dir, file
	}
	passwd, ofPasswd := home()
	variable, ofVariable := home()
	named := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(named, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		environ []string
		want    string
	}{
		{[]string{"HOME=" + variable}, ofVariable},
		{[]string{"HOME=" + t.TempDir()}, ofPasswd},
		{[]string{"HOME=" + variable, "AWS_SHARED_CREDENTIALS_FILE=" + named}, named},
	} {
		r := &restoring{call: &call{program: &program{environ: c.environ}}}
		if got := r.credentialsFile(account{home: passwd}); got != c.want {
			t.Errorf("%v: the keys are in %s, want %s", c.environ, got, c.want)
		}
	}
}
