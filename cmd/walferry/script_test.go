package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/walferry/walferry/restore/instance"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"walferry": main})
}

// commands are those of the sessions, beside testscript's own.
//
//	exits N PROGRAM ARGS…   runs it; the exit code must be N
//	refuses ARGS…           runs walferry, which must say one line of error on
//	                        stderr, nothing on stdout, and exit with 2
//	sql QUERY               asks the server of the session; stdout has the rows
func commands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	return map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"exits": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) < 2 {
				ts.Fatalf("usage: exits N PROGRAM ARGS")
			}
			want, err := strconv.Atoi(args[0])
			ts.Check(err)
			if got := exitCode(ts, args[1], args[2:]...); got != want {
				ts.Fatalf("exit code %d, want %d", got, want)
			}
		},
		"refuses": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg {
				ts.Fatalf("usage: refuses ARGS")
			}
			if got := exitCode(ts, "walferry", args...); got != exitUsage {
				ts.Fatalf("exit code %d, want %d", got, exitUsage)
			}
			text := ts.ReadFile("stderr")
			if !strings.HasPrefix(text, "walferry: error: ") || strings.Count(text, "\n") != 1 {
				ts.Fatalf("want one line of error")
			}
			if out := ts.ReadFile("stdout"); out != "" {
				ts.Fatalf("want nothing on stdout")
			}
		},
		"sql": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) != 1 {
				ts.Fatalf("usage: sql QUERY")
			}
			ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
			defer cancel()
			conn, err := pgconn.Connect(ctx, ts.Getenv("SUPERUSER_DSN"))
			ts.Check(err)
			results, err := conn.Exec(ctx, args[0]).ReadAll()
			ts.Check(errors.Join(err, conn.Close(ctx)))
			for _, r := range results {
				for _, row := range r.Rows {
					for i, field := range row {
						if i > 0 {
							_, _ = fmt.Fprint(ts.Stdout(), "|")
						}
						_, _ = fmt.Fprint(ts.Stdout(), string(field))
					}
					_, _ = fmt.Fprintln(ts.Stdout())
				}
			}
		},
	}
}

// noSleep tells the race detector not to wait a second at the end of each of
// the hundreds of processes here, which leave no goroutine that matters.
const noSleep = "atexit_sleep_ms=0"

// scriptPatience is how long a session may take: only the end matters, not when.
const scriptPatience = 2 * time.Minute

func exitCode(ts *testscript.TestScript, program string, args ...string) int {
	err := ts.Exec(program, args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	ts.Check(err)
	return 0
}

// TestScript runs the sessions that need no server.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/script",
		Cmds: commands(),
		Setup: func(env *testscript.Env) error {
			home := filepath.Join(env.WorkDir, "home")
			env.Setenv("GORACE", noSleep)
			env.Setenv("HOME", home)
			env.Setenv("WALFERRY_HOME", filepath.Join(env.WorkDir, "state"))
			return os.MkdirAll(home, 0o755)
		},
	})
}

// TestServerScript runs the sessions that need a PostgreSQL, one after the
// other on the same: each leaves no slot behind.
func TestServerScript(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: the sessions with a server are left out")
	}
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	found, err := instance.Find(ctx, filepath.SplitList(os.Getenv("WALFERRY_TEST_PG")))
	if errors.Is(err, instance.ErrNoPostgreSQL) && os.Getenv("WALFERRY_TEST_PG") == "" {
		t.Skip("NOTHING IS TESTED HERE: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "walferry-cmd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil { // the server's account must get in
		t.Fatal(err)
	}
	server, err := instance.Create(ctx, instance.Options{
		Installation: found[0],
		Dir:          filepath.Join(dir, "pg"),
		Settings:     map[string]string{"max_replication_slots": "2", "max_wal_senders": "4"},
		Listen:       true,
		// By TCP, "repl" gets replication connections only.
		HBA: []string{"host replication repl 127.0.0.1/32 trust"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
		defer cancel()
		if err := server.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := server.Start(ctx); err != nil {
		t.Fatal(err)
	}
	superuser := server.DSN("postgres")
	conn, err := pgconn.Connect(ctx, superuser)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, "CREATE ROLE repl LOGIN REPLICATION").ReadAll(); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(ctx); err != nil {
		t.Fatal(err)
	}
	sessions, err := filepath.Glob("testdata/server/*.txtar")
	if err != nil || len(sessions) == 0 {
		t.Fatal("no sessions: ", err)
	}
	for _, session := range sessions {
		testscript.RunT(sequential{t}, testscript.Params{
			Files: []string{session},
			Cmds:  commands(),
			// The server's own: pg_receivewal refuses a server that is newer
			// than itself. Some installations have the server alone.
			Condition: func(cond string) (bool, error) {
				if cond != "pg_receivewal" {
					return false, fmt.Errorf("unknown condition %q", cond)
				}
				_, err := exec.LookPath(found[0].Program(cond))
				return err == nil, nil
			},
			Setup: func(env *testscript.Env) error {
				env.Setenv("GORACE", noSleep)
				env.Setenv("PATH", found[0].Bin+string(os.PathListSeparator)+env.Getenv("PATH"))
				env.Setenv("HOME", env.WorkDir)
				env.Setenv("WALFERRY_HOME", filepath.Join(env.WorkDir, "state"))
				env.Setenv("PGHOST", server.SocketDir())
				env.Setenv("PGPORT", strconv.Itoa(server.Port()))
				env.Setenv("PGUSER", "repl")
				env.Setenv("SUPERUSER_DSN", superuser)
				env.Setenv("SERVER_DATA", server.DataDir())
				return nil
			},
		})
	}
}

// sequential is a test whose sessions do not run in parallel: they count the
// server's slots.
type sequential struct{ *testing.T }

func (s sequential) Run(name string, f func(t testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(sequential{t}) })
}

func (s sequential) Parallel() {}

func (s sequential) Verbose() bool { return testing.Verbose() }
