package instance

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// deadline is the patience of a test that waits for a server: none of them
// depends on how long it takes, only that it comes to an end.
const deadline = 2 * time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// reachable makes a directory that the account of the server can reach
// (t.TempDir's parents are closed to other users).
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "walferry-instance-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func installation(t *testing.T) Installation {
	t.Helper()
	found, err := Find(testContext(t), nil)
	if errors.Is(err, ErrNoPostgreSQL) {
		t.Skip("NOT TESTED: no PostgreSQL server on this machine")
	}
	if err != nil {
		t.Fatal(err)
	}
	return found[len(found)-1]
}

func create(t *testing.T, o Options) *Server {
	t.Helper()
	if o.Installation == (Installation{}) {
		o.Installation = installation(t)
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(reachable(t), "pg")
	}
	s, err := Create(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, s) })
	return s
}

func remove(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Remove(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

func query(t *testing.T, dsn, sql string) (string, error) {
	t.Helper()
	ctx := testContext(t)
	c, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	defer func() {
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	results, err := c.Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", err
	}
	if n := len(results); n > 0 && len(results[n-1].Rows) > 0 {
		return string(results[n-1].Rows[0][0]), nil
	}
	return "", nil
}

func mustQuery(t *testing.T, s *Server, sql string) string {
	t.Helper()
	v, err := query(t, s.DSN("postgres"), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func mustStart(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func TestLife(t *testing.T) {
	s := create(t, Options{InitArgs: []string{"--wal-segsize=1"}, Settings: map[string]string{"work_mem": "5MB"}})
	if err := s.Stop(testContext(t), Fast); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("stop before the start: %v", err)
	}
	mustStart(t, s)
	if got := mustQuery(t, s, "SHOW wal_segment_size"); got != "1MB" {
		t.Errorf("wal_segment_size %s", got)
	}
	if got := mustQuery(t, s, "SHOW work_mem"); got != "5MB" {
		t.Errorf("work_mem %s", got)
	}
	if got := mustQuery(t, s, "SHOW listen_addresses"); got != "" {
		t.Errorf("the server listens on %q", got)
	}
	c, err := ReadControl(s.DataDir())
	if err != nil || c.State != StateInProduction || c.SystemIdentifier == 0 {
		t.Errorf("control file %+v, %v", c, err)
	}
	if err := s.Launch(testContext(t)); err == nil {
		t.Error("a second start of a running server")
	}
	mustQuery(t, s, "CREATE TABLE t AS SELECT 42 AS v")

	// A setting holds after a reload, and can be taken out again.
	if err := s.Configure(map[string]string{"work_mem": "", "application_name": `it's a \ test`}); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := poll(testContext(t), func() (bool, error) {
		return mustQuery(t, s, "SELECT setting FROM pg_settings WHERE name = 'work_mem'") == "4096", nil
	}); err != nil {
		t.Fatal(err)
	}

	if err := s.Stop(testContext(t), Fast); err != nil {
		t.Fatal(err)
	}
	if s.Running() || s.Pid() != 0 {
		t.Error("runs after Stop")
	}
	mustStart(t, s)
	if got := mustQuery(t, s, "SHOW application_name"); got != `it's a \ test` {
		t.Errorf("application_name %s", got)
	}
	if err := s.Stop(testContext(t), Immediate); err != nil {
		t.Fatal(err)
	}
	mustStart(t, s)
	if got := mustQuery(t, s, "SELECT v FROM t"); got != "42" {
		t.Errorf("after an immediate stop the table holds %q", got)
	}
	remove(t, s)
	if _, err := os.Stat(s.o.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

// A killed server is gone with all its children, leaves no shared memory, and
// its directory starts again.
func TestKill(t *testing.T) {
	s := create(t, Options{})
	mustStart(t, s)
	mustQuery(t, s, "CREATE TABLE t AS SELECT 42 AS v")
	all, err := parents(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	tree := descendants(s.Pid(), all)
	if len(tree) < 4 {
		t.Fatalf("a running server has the processes %v", tree)
	}
	shm := s.proc.shm
	if shm == (sharedMemory{}) {
		t.Fatal("no shared memory segment found")
	}
	if err := s.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	for _, pid := range tree {
		if !gone(pid) {
			t.Errorf("process %d is still there", pid)
		}
	}
	if _, err := os.Stat(filepath.Join(s.DataDir(), "postmaster.pid")); err != nil {
		t.Errorf("a killed server leaves its postmaster.pid: %v", err)
	}
	if ids, err := os.ReadFile("/proc/sysvipc/shm"); err == nil {
		for line := range strings.Lines(string(ids)) {
			if got, ok := parseSharedMemory(strings.Join(strings.Fields(line)[:2], " ")); ok && got == shm {
				t.Errorf("shared memory segment %d is left", shm.id)
			}
		}
	}
	if err := s.Kill(testContext(t)); err != nil {
		t.Errorf("a second Kill: %v", err)
	}
	if err := CopyDataDir(filepath.Join(reachable(t), "copy"), s.DataDir()); err == nil {
		t.Error("a cold copy of a crashed cluster")
	}
	mustStart(t, s)
	if got := mustQuery(t, s, "SELECT v FROM t"); got != "42" {
		t.Errorf("after the crash the table holds %q", got)
	}
}

// A server that ends by itself is told from one that does not start, and its
// reason is in the error.
func TestStartFails(t *testing.T) {
	s := create(t, Options{Settings: map[string]string{"no_such_setting": "1"}})
	err := s.Start(testContext(t))
	if !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("Start = %v", err)
	}
	if s.Running() {
		t.Error("it runs")
	}
	if err := s.Configure(map[string]string{"no_such_setting": ""}); err != nil {
		t.Fatal(err)
	}
	mustStart(t, s)
	if text, err := s.Log(); err != nil || strings.Contains(text, "no_such_setting") {
		t.Errorf("the log of the second run holds the first one's: %v\n%s", err, text)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Stop(testContext(t), Fast); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); !errors.Is(err, context.Canceled) || s.Running() {
		t.Errorf("Start of a cancelled context = %v, running %v", err, s.Running())
	}
}

func TestListen(t *testing.T) {
	s := create(t, Options{Listen: true})
	mustStart(t, s)
	first := "host=127.0.0.1 sslmode=disable user=postgres dbname=postgres port="
	if _, err := query(t, first+mustQuery(t, s, "SHOW port"), "SELECT 1"); err == nil || !strings.Contains(err.Error(), "no pg_hba.conf entry") {
		t.Errorf("without a line in pg_hba.conf: %v", err)
	}
	open := create(t, Options{Listen: true, HBA: []string{"host all all 127.0.0.1/32 trust"}})
	// The port that was free is taken now: Start finds another.
	open.port = s.Port()
	if err := open.writeConfig(); err != nil {
		t.Fatal(err)
	}
	mustStart(t, open)
	if open.Port() == s.Port() {
		t.Fatal("two servers on one port")
	}
	if got, err := query(t, first+mustQuery(t, open, "SHOW port"), "SELECT 7"); err != nil || got != "7" {
		t.Errorf("over TCP: %q, %v", got, err)
	}
}

// A cold copy of a primary becomes its standby, and is promoted.
func TestCopyAndPromote(t *testing.T) {
	primary := create(t, Options{})
	copied, err := Adopt(testContext(t), Options{Installation: primary.Installation(), Dir: filepath.Join(reachable(t), "pg"),
		Settings: map[string]string{"primary_conninfo": primary.DSN("postgres")}},
		func(dir string) error {
			if err := CopyDataDir(dir, primary.DataDir()); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o600)
		})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, copied) })
	mustStart(t, primary)
	mustStart(t, copied)
	if err := copied.Promote(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got := mustQuery(t, copied, "SELECT pg_is_in_recovery()"); got != "f" {
		t.Errorf("pg_is_in_recovery() = %s", got)
	}
}

// Adopt leaves nothing when the data directory cannot be filled.
func TestAdoptFails(t *testing.T) {
	dir := filepath.Join(reachable(t), "pg")
	reason := errors.New("no data")
	_, err := Adopt(testContext(t), Options{Dir: dir}, func(string) error { return reason })
	if !errors.Is(err, reason) {
		t.Errorf("Adopt = %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

func TestRefusesDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(testContext(t), Options{Dir: dir}); err == nil {
		t.Fatal("Create in a directory that is not empty")
	}
	if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
		t.Error(err)
	}
}

func TestFind(t *testing.T) {
	empty := t.TempDir()
	if _, err := Find(testContext(t), []string{empty}); !errors.Is(err, ErrNoPostgreSQL) || !strings.Contains(err.Error(), empty) {
		t.Errorf("Find in an empty directory = %v", err)
	}
	fake := func(version string) string {
		bin := filepath.Join(t.TempDir(), "bin")
		if err := os.Mkdir(bin, 0o755); err != nil {
			t.Fatal(err)
		}
		script := "#!/bin/sh\necho '" + version + "'\n"
		for _, name := range []string{"initdb", "postgres"} {
			if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		return bin
	}
	old, devel := fake("postgres (PostgreSQL) 9.6.24"), fake("postgres (PostgreSQL) 99devel")
	again := fake("postgres (PostgreSQL) 99.1 (Debian 99.1-1)")
	found, err := Find(testContext(t), []string{old, filepath.Dir(devel), again, devel})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 3 || found[0].Version != "99devel" || found[0].Major != 99 || found[1].Version != "99.1" ||
		found[len(found)-1].Major != 9 || found[2].Bin == found[0].Bin {
		t.Errorf("found %v", found)
	}
	if found[0].Has("pgbench") || !found[0].Has("initdb") {
		t.Error("Has is wrong")
	}
	if _, err := Find(testContext(t), []string{fake("fish")}); err == nil || errors.Is(err, ErrNoPostgreSQL) {
		t.Errorf("a program that is not PostgreSQL: %v", err)
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{"a": "'a'", "": "''", `it's`: `'it''s'`, `a\b`: `'a\\b'`, "a\nb": `'a\nb'`} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) = %s, want %s", in, got, want)
		}
	}
}

// What a process has started is ended, with what that has started; not itself,
// and nobody else's.
func TestKillChildren(t *testing.T) {
	parent := exec.CommandContext(testContext(t), "sh", "-c", "sh -c 'sleep 1000 & echo 1; wait' & sleep 1000 & wait; echo 2; read x; true")
	in, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	other := exec.CommandContext(testContext(t), "sleep", "1000")
	if err := errors.Join(parent.Start(), other.Start()); err != nil {
		t.Fatal(err)
	}
	says := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(out, got); err != nil || string(got) != want {
			t.Fatalf("%q, %v, want %q", got, err, want)
		}
	}
	says("1\n")
	if err := KillChildren(testContext(t), parent.Process.Pid); err != nil {
		t.Fatal(err)
	}
	all, err := parents(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range descendants(parent.Process.Pid, all)[1:] {
		if !gone(pid) {
			t.Errorf("process %d runs still", pid)
		}
	}
	says("2\n") // it goes on
	if gone(other.Process.Pid) {
		t.Error("somebody else's process is gone")
	}
	if err := errors.Join(in.Close(), parent.Wait(), other.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait() // it was killed
}

// The whole tree is found and ended, also a child in a session of its own and
// a grandchild; a process of somebody else is not.
func TestKillTree(t *testing.T) {
	a, err := Unprivileged()
	if err != nil {
		t.Fatal(err)
	}
	ready := filepath.Join(reachable(t), "r")
	if err := a.MkdirAll(ready); err != nil {
		t.Fatal(err)
	}
	// Nothing but the shell itself makes the files: a process that does would be
	// in the tree for a moment.
	root := a.Command(testContext(t), "sh", "-c", "(sleep 1000 & : >"+ready+"/a; wait) & : >"+ready+"/b; wait")
	other := a.Command(testContext(t), "sleep", "1000")
	for _, c := range []interface{ Start() error }{root, other} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := poll(testContext(t), func() (bool, error) {
		e, err := os.ReadDir(ready)
		return len(e) == 2, err
	}); err != nil {
		t.Fatal(err)
	}
	all, err := parents(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	tree := descendants(root.Process.Pid, all)
	if len(tree) != 3 {
		t.Errorf("tree %v", tree)
	}
	if err := killTree(testContext(t), root.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := root.Wait(); err == nil {
		t.Error("the root ended well")
	}
	for _, pid := range tree {
		if !gone(pid) {
			t.Errorf("process %d is still there", pid)
		}
	}
	if gone(other.Process.Pid) {
		t.Error("a process outside the tree is gone")
	}
	if err := other.Process.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := other.Wait(); err == nil {
		t.Error("killed, but ended well")
	}
}
