package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// usualMajor is the version that is measured when it is there with all of its
// programs: the one of the tests.
const usualMajor = 15

// segmentSize is PostgreSQL's default, which nearly everybody has.
const segmentSize = segment.Size(16 << 20)

// world is one benchmark's surroundings: a directory, a server, the program.
type world struct {
	b       *testing.B
	ctx     context.Context // ends with the benchmark or with an interrupt
	dir     string          // other users can pass through
	account instance.Account
	pg      *instance.Server // running
	over    string           // how it is reached: overSocket or overTCP
	binary  string           // walferry, as users have it: without the race detector
	other   string           // another one to compare with, or ""
	s3      *s3server.Server // nil: there is none
	user    s3server.User    // of s3, with the three actions of the documentation
	caFile  string           // of its certificate, where it speaks TLS
	bound   *bound           // of the contenders that are started; nil: none
}

// newWorld makes a running server, which others reach by its socket, or over TCP
// on 127.0.0.1. Without PostgreSQL it skips the benchmark.
func newWorld(b *testing.B, over string, settings map[string]string) *world {
	b.Helper()
	// An interrupt ends what runs, and so the benchmark, which then cleans up.
	ctx, stop := signal.NotifyContext(b.Context(), syscall.SIGINT, syscall.SIGTERM)
	b.Cleanup(stop)
	w := &world{b: b, ctx: ctx, over: over, other: os.Getenv("WALFERRY_BENCH_OTHER")}
	installation, err := findInstallation(ctx)
	if errors.Is(err, instance.ErrNoPostgreSQL) {
		loud("nothing can be measured: %v", err)
		b.Skip("NOT MEASURED")
	}
	w.must(err)
	w.account, err = instance.Unprivileged()
	w.must(err)
	w.dir, err = os.MkdirTemp("", "walferry-bench-")
	w.must(err)
	b.Cleanup(func() {
		if err := os.RemoveAll(w.dir); err != nil {
			b.Error(err)
		}
	})
	w.must(os.Chmod(w.dir, 0o755))
	w.binary = w.build()
	all := map[string]string{
		// Nothing happens on the server but what the benchmark does.
		"fsync": "off", "autovacuum": "off", "checkpoint_timeout": "1d", "shared_buffers": "256MB",
		"max_replication_slots": "100", "max_wal_senders": "20",
	}
	for name, value := range settings {
		all[name] = value
	}
	w.pg, err = instance.Create(ctx, instance.Options{
		Installation: installation, Dir: filepath.Join(w.dir, "pg"), Account: &w.account, Settings: all,
		Listen: over == overTCP, HBA: []string{"host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"},
	})
	w.must(err)
	b.Cleanup(func() {
		if err := w.pg.Remove(context.WithoutCancel(ctx)); err != nil {
			b.Error(err)
		}
	})
	w.must(w.pg.Start(ctx))
	if _, err := s3server.Program(); err != nil {
		loud("no S3 server: %v: walferry into S3 is left out (integration/tools/versitygw.sh builds it)", err)
	} else {
		w.s3 = s3server.Start(b)
		w.s3.MakeBucket(b, bucket)
		w.user = w.s3.AddUser(b, bucket)
	}
	w.facts()
	return w
}

const bucket = "bench"

// The ways to the server.
const (
	overSocket = "unix"
	overTCP    = "tcp"
)

// dsn is the connection string of a database, on the way that is measured.
func (w *world) dsn(database string) string {
	if w.over == overTCP {
		return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=%s sslmode=disable", w.pg.Port(), database)
	}
	return w.pg.DSN(database)
}

// encrypt lets the S3 server speak TLS, as it does for who cares for his WAL.
// Over plain HTTP every byte has to be hashed for the signature, here and there.
func (w *world) encrypt() {
	w.b.Helper()
	if w.s3 == nil {
		return
	}
	w.s3.Secure(w.b)
	text, err := os.ReadFile(w.s3.CAFile)
	w.must(err)
	// The test's own directory is closed to the account that runs the contenders.
	w.caFile = filepath.Join(w.dir, "ca.crt")
	w.must(os.WriteFile(w.caFile, text, 0o644))
}

// findInstallation prefers one that can measure everything.
func findInstallation(ctx context.Context) (instance.Installation, error) {
	found, err := instance.Find(ctx, filepath.SplitList(os.Getenv("WALFERRY_TEST_PG")))
	if err != nil {
		return instance.Installation{}, err
	}
	complete := func(i instance.Installation) bool { return i.Has("pgbench") && i.Has("pg_receivewal") }
	for _, is := range []func(instance.Installation) bool{
		func(i instance.Installation) bool { return complete(i) && i.Major == usualMajor },
		complete,
		func(i instance.Installation) bool { return i.Has("pg_receivewal") },
	} {
		if n := slices.IndexFunc(found, is); n >= 0 {
			return found[n], nil
		}
	}
	return found[0], nil
}

// build builds walferry as `make build` does.
func (w *world) build() string {
	w.b.Helper()
	out := filepath.Join(w.dir, "walferry")
	cmd := exec.CommandContext(w.ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", out, "github.com/walferry/walferry/cmd/walferry")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		w.b.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, text)
	}
	w.must(os.Chmod(out, 0o755))
	return out
}

// facts prints what the figures depend on.
func (w *world) facts() {
	pg := w.pg.Installation()
	say("machine:    %s, %d cores, %s of memory; load %s before",
		field("/proc/cpuinfo", "model name"), cores(), memory(), firstWords("/proc/loadavg", 3))
	say("kernel:     %s; files in %s", firstWords("/proc/version", 3), os.TempDir())
	say("server:     %s, segments of %s, fsync off", pg, segmentSize)
	commit := w.output("git", "rev-parse", "HEAD")
	if commit != "" && w.output("git", "status", "--porcelain", "--untracked-files=no", ":/") != "" {
		commit += ", changed"
	}
	say("walferry:   commit %s, %s", commit, w.output("go", "version"))
	var set []string
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "WALFERRY_BENCH_") {
			set = append(set, v+" ")
		}
	}
	say("command:    %sgo test -run '^$' -bench %s ./integration/bench\n", strings.Join(set, ""), strings.TrimPrefix(w.b.Name(), "Benchmark"))
}

// output is what a program says, or "" when it cannot.
func (w *world) output(program string, args ...string) string {
	out, err := exec.CommandContext(w.ctx, program, args...).Output()
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(out))
}

// must ends the benchmark on an error.
func (w *world) must(err error) {
	w.b.Helper()
	if err != nil && w.ctx != nil && w.ctx.Err() != nil {
		w.b.Fatal("interrupted")
	}
	if err != nil {
		w.b.Fatal(err)
	}
}

// sql runs statements, each a transaction of its own, and returns the first
// value of the last.
func (w *world) sql(statements ...string) string {
	w.b.Helper()
	c, err := pgconn.Connect(w.ctx, w.pg.DSN("postgres"))
	w.must(err)
	var v string
	for _, s := range statements {
		v, err = value(w.ctx, c, s)
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", s, err), c.Close(context.WithoutCancel(w.ctx)))
			w.must(err)
		}
	}
	w.must(c.Close(w.ctx))
	return v
}

func value(ctx context.Context, c *pgconn.PgConn, statement string) (string, error) {
	results, err := c.Exec(ctx, statement).ReadAll()
	if err != nil {
		return "", err
	}
	if n := len(results); n > 0 && len(results[n-1].Rows) > 0 {
		return string(results[n-1].Rows[0][0]), nil
	}
	return "", nil
}

// lsn is sql for statements that end in an LSN.
func (w *world) lsn(statements ...string) segment.LSN {
	w.b.Helper()
	l, err := segment.ParseLSN(w.sql(statements...))
	w.must(err)
	return l
}

// makeSlot makes a physical slot that keeps the WAL from now on and returns
// the start of the segment from which that is.
func (w *world) makeSlot(name string) segment.LSN {
	w.b.Helper()
	w.sql("SELECT pg_create_physical_replication_slot('" + name + "', true)")
	l := w.lsn("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '" + name + "'")
	return segmentSize.Start(l)
}

// endSegment ends the segment that is being written and returns its end; a
// little WAL follows, so that whoever receives to there sees that it is over.
func (w *world) endSegment() segment.LSN {
	w.b.Helper()
	message := "SELECT pg_logical_emit_message(true, 'bench', repeat('x', 65536))"
	l := w.lsn(message, "SELECT pg_switch_wal()") // it returns where the switch record ends
	w.sql(message)
	return segmentSize.Start(l-1) + segment.LSN(segmentSize)
}

// number is a variable that holds a positive whole number.
func number(b *testing.B, variable string, otherwise int) int {
	b.Helper()
	return numberFrom(b, 1, variable, otherwise)
}

// numberFrom is a variable that holds a whole number that is not too small.
func numberFrom(b *testing.B, least int, variable string, otherwise int) int {
	b.Helper()
	v := os.Getenv(variable)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < least {
		b.Fatalf("%s is %q, want a whole number from %d on", variable, v, least)
	}
	return n
}
