package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// keep starts a pg_receivewal in a directory, for a server.
func (s *scene) keep(r receivewal, pg *instance.Server, dir string, args ...string) *process {
	s.t.Helper()
	return s.keepWith(libpq(pg), r, dir, args...)
}

// keepWith is keep with an environment that says where the server is.
func (s *scene) keepWith(env []string, r receivewal, dir string, args ...string) *process {
	s.t.Helper()
	cmd := r.command(context.WithoutCancel(s.t.Context()), env, append([]string{"-D", dir}, args...))
	return run(s.t, cmd)
}

// interrupt sends SIGINT and wants a clean end.
func (p *process) interrupt() {
	p.t.Helper()
	p.signal(syscall.SIGINT)
	p.exits(0)
}

// directory makes a directory for WAL.
func (s *scene) directory(name string) string {
	s.t.Helper()
	dir := filepath.Join(s.dir, name)
	if err := theLab.account.MkdirAll(dir); err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// reserve makes the slot and returns the segment that it begins in.
func (s *scene) reserve() segment.Name {
	s.t.Helper()
	s.sql("SELECT pg_create_physical_replication_slot('ferry', true)")
	return s.slotSegment()
}

// gonePast is an end position that the server has just gone past.
func (s *scene) gonePast() string {
	s.t.Helper()
	return (s.flushed() - 1).String()
}

// segmentOf reads the name of a segment's file in a directory.
func segmentOf(file string) (n segment.Name, partial, ok bool) {
	whole, partial := strings.CutSuffix(file, ".partial")
	n, err := segment.ParseName(strings.TrimSuffix(strings.TrimSuffix(whole, ".gz"), ".lz4"))
	return n, partial, err == nil
}

// complete lists the whole segments in a directory, in order.
func complete(t *testing.T, dir string) (all []segment.Name) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if n, partial, ok := segmentOf(e.Name()); ok && !partial {
			all = append(all, n)
		}
	}
	return all
}

// awaitComplete waits until a directory has a whole segment.
func (s *scene) awaitComplete(dir string, n segment.Name) {
	s.t.Helper()
	eventually(s.t, n.String()+" to be whole in "+dir, func() bool { return slices.Contains(complete(s.t, dir), n) })
}

// checkDirectory wants nothing in a directory but what pg_receivewal leaves
// there, every whole segment to be the server's own bytes, once, and none to be
// missing from first to last. It returns the partials.
func (s *scene) checkDirectory(dir string, first, last segment.Name) (partials []string) {
	s.t.Helper()
	have := map[segment.Name]bool{}
	for name, f := range readDirectory(s.t, dir) {
		n, partial, ok := segmentOf(name)
		_, err := segment.ParseHistoryName(name)
		switch {
		case err == nil:
		case !ok:
			s.t.Errorf("%s is in the directory", name)
		case partial:
			partials = append(partials, name)
		case f.err != nil:
			s.t.Errorf("%s: %v", name, f.err)
		case have[n]:
			s.t.Errorf("%s is there twice", n)
		default:
			have[n] = true
			s.compareWithServer(n, f.content)
		}
	}
	for n := first; n.Compare(last) <= 0; n = n.Next(s.size) {
		if !have[n] {
			s.t.Errorf("%s is missing in the directory: a gap", n)
		}
	}
	if len(have) == 0 {
		s.t.Error("the directory has no whole segment")
	}
	slices.Sort(partials)
	return partials
}

// inDirectory wants every byte from a segment on up to an LSN to be in the
// directory, in one form or another.
func (s *scene) inDirectory(dir string, from segment.Name, upTo segment.LSN) {
	s.t.Helper()
	for n := from; n.Start(s.size) < upTo; n = n.Next(s.size) {
		need := min(upTo-n.Start(s.size), segment.LSN(s.size))
		want, err := os.ReadFile(filepath.Join(s.pg.DataDir(), "pg_wal", n.String()))
		if err != nil {
			s.t.Fatal(err)
		}
		var found []string
		held := false
		for _, ext := range []string{"", ".gz", ".lz4", ".partial", ".gz.partial", ".lz4.partial"} {
			raw, err := os.ReadFile(filepath.Join(dir, n.String()+ext))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			got, decoding := decodeWAL(n.String()+ext, raw) // of a partial what can be decoded
			if len(got) < int(need) && strings.HasSuffix(ext, ".partial") {
				got = append(got, make([]byte, int(need)-len(got))...) // behind it are zeros
			}
			held = held || err == nil && len(got) >= int(need) && bytes.Equal(got[:need], want[:need])
			found = append(found, fmt.Sprintf("%q with %d bytes, %d of them right (%v)", ext, len(got), equal(got, want), decoding))
		}
		if !held {
			s.t.Errorf("the server was told of %s, and %s has not the bytes up to there: %s", upTo, n, strings.Join(found, ", "))
		}
	}
}

// equal returns how many bytes two have in common at their beginning.
func equal(a, b []byte) (n int) {
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// The drop-in is killed at random moments, and started again with another
// compression. At no time has the server been told of what the directory has
// not; in the end every file is whole and the server's own, and there is no other.
// The original takes the directory, goes on, and ours goes on from that.
func TestDropInKills(t *testing.T) {
	t.Parallel()
	our := ours(t)
	random := seeded(t)
	s := newScene(t, options{settings: map[string]string{"wal_keep_size": "32GB", "max_wal_size": "32GB"}})
	dir := s.directory("wal")
	first := s.reserve()
	l := s.pgbench()
	methods := []string{"none", "gzip:1", "lz4"}
	reserved := s.restartLSN()
	before := reserved
	moved := 0
	for round := range rounds(6, 120) {
		args := []string{"-S", "ferry", "-s", "1", "-Z", methods[random.IntN(3)]}
		if random.IntN(2) == 0 {
			args = append(args, "--synchronous")
		}
		r := s.keep(our, s.pg, dir, args...)
		if random.IntN(4) > 0 {
			eventually(t, "restart_lsn to move", func() bool { return !r.running() || s.restartLSN() > before })
		}
		// No other clock decides at which instruction it is hit.
		time.Sleep(time.Duration(random.Int64N(int64(400 * time.Millisecond))))
		if random.IntN(5) == 0 {
			s.sql("CHECKPOINT") // behind it every page goes into the WAL whole: more of it
		}
		if !r.running() {
			t.Fatalf("round %d: it ended by itself: %v", round, r.err)
		}
		r.kill9()
		eventually(t, "the server to notice that it is gone", func() bool {
			return s.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0"
		})
		restart := s.restartLSN()
		if restart < before {
			t.Errorf("round %d: restart_lsn went back from %s to %s", round, before, restart)
		}
		if restart > before {
			moved++
		}
		if restart > reserved {
			s.inDirectory(dir, s.size.Name(1, before), restart)
		}
		before = restart
		if t.Failed() {
			t.FailNow()
		}
	}
	l.stop()
	if moved == 0 {
		t.Error("the kills did not hit what they were meant to")
	}
	s.table()
	for _, by := range []struct {
		receivewal
		method string
	}{{our, "lz4"}, {originalFor(t, s.pg.Installation()), "none"}, {our, "gzip"}} {
		s.fill(500)
		last := s.switchWAL()
		s.fill(50)
		s.keep(by.receivewal, s.pg, dir, "-n", "-S", "ferry", "-Z", by.method, "-E", s.gonePast()).exits(0)
		partials := s.checkDirectory(dir, first, last)
		if by.major == 0 && len(partials) != 1 {
			t.Errorf("the partials are %q", partials)
		}
	}
}

// What a synchronous commit was acknowledged for survives kills of the drop-in
// and the loss of the server: a copy of it from before, and the directory, have
// every row.
func TestDropInSynchronousCommits(t *testing.T) {
	for _, method := range []string{"none", "gzip:1", "lz4"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			our := ours(t)
			s := newScene(t, options{settings: map[string]string{"synchronous_standby_names": "receiver"}})
			s.sql("SET synchronous_commit = local; CREATE TABLE written (id bigint PRIMARY KEY, v text)")
			dir := s.directory("wal")
			s.reserve()
			keep := func() *process {
				return s.keepWith(append(libpq(s.pg), "PGAPPNAME=receiver"), our, dir, "-S", "ferry", "--synchronous", "-Z", method)
			}
			r := keep()
			w := s.writer()
			for range rounds(3, 20) {
				acked := w.acknowledged()
				eventually(t, "commits to be acknowledged", func() bool { return w.acknowledged() > acked+50 })
				r.kill9()
				r = keep()
			}
			acked := w.acknowledged()
			eventually(t, "commits to be acknowledged", func() bool { return w.acknowledged() > acked+50 })
			r.kill9()
			if err := s.pg.Kill(s.ctx()); err != nil {
				t.Fatal(err)
			}
			acked = w.stop()
			plain := s.plain(dir)
			pg := s.recovery("recovered", "recovery.signal", "cp "+plain+"/%f %p")
			if err := pg.Launch(s.ctx()); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(pg.AwaitPrimary(s.ctx()), pg.AwaitReady(s.ctx())); err != nil {
				t.Fatal(err)
			}
			if got, err := query(s.ctx(), pg.DSN("postgres"), "SELECT max(id) || ' ' || count(*) FROM written"); err != nil {
				t.Error(err)
			} else if last, count, _ := strings.Cut(got, " "); last != count || atoi(t, last) < acked {
				t.Errorf("%s rows up to %s were recovered; %d were acknowledged", count, last, acked)
			}
		})
	}
}

func atoi(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Error(err)
	}
	return n
}

// plain returns a directory with the plain bytes of another's segments, a
// partial padded with zeros and under its segment's name: what a person does
// before a recovery.
func (s *scene) plain(dir string) string {
	s.t.Helper()
	to := s.directory("plain")
	for name, f := range readDirectory(s.t, dir) {
		n, partial, ok := segmentOf(name)
		if !ok {
			s.t.Errorf("%s is in the directory", name)
			continue
		}
		if !partial && f.err != nil {
			s.t.Errorf("%s: %v", name, f.err)
		}
		whole := make([]byte, s.size)
		copy(whole, f.content)
		path := filepath.Join(to, n.String())
		if err := errors.Join(os.WriteFile(path, whole, 0o600), theLab.account.Own(path)); err != nil {
			s.t.Fatal(err)
		}
	}
	return to
}

// A fast shutdown of the server is not held up, with a slot or without. The
// drop-in says what happened, waits, and goes on when the server is back.
func TestDropInServerStops(t *testing.T) {
	t.Parallel()
	our := ours(t)
	s := newScene(t, options{})
	s.table()
	s.reserve()
	without, with := s.directory("without"), s.directory("with")
	a := s.keep(our, s.pg, without, "-v", "-Z", "lz4")
	b := s.keep(our, s.pg, with, "-v", "-S", "ferry")
	a.awaitLog(`starting log streaming`)
	b.awaitLog(`starting log streaming`)
	for range 2 {
		s.fill(300)
		last := s.switchWAL()
		s.awaitComplete(without, last)
		s.awaitComplete(with, last)
		s.fill(100) // something is on its way
		if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
			t.Fatal(err)
		}
		for _, p := range []*process{a, b} {
			p.awaitLog(`pg_receivewal: error: replication stream was terminated before stop point\n`)
			p.awaitLog(`pg_receivewal: disconnected; waiting \d+ seconds to try again\n`)
		}
		s.startServer()
	}
	s.fill(100)
	last := s.switchWAL()
	for dir, p := range map[string]*process{without: a, with: b} {
		s.awaitComplete(dir, last)
		p.interrupt()
		all := complete(t, dir)
		s.checkDirectory(dir, all[0], last)
	}
}

// Another cluster's directory is refused in one line, and not touched; so is one
// of which nobody would know it but for a partial.
func TestDropInForeignDirectory(t *testing.T) {
	t.Parallel()
	our := ours(t)
	s := newScene(t, options{})
	s.table()
	other := s.create("other", options{pg: s.pg.Installation(), segmentSize: 1})
	if err := other.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"none", "gzip", "lz4"} {
		dir := s.directory(method)
		s.keep(our, s.pg, dir, "-n", "-Z", method, "-E", s.gonePast()).exits(0)
		for range 2 {
			before := tree(t, dir)
			p := s.keep(our, other, dir, "-Z", method)
			p.exits(1)
			lines := strings.Split(strings.TrimSpace(p.log()), "\n")
			if len(lines) != 2 || !strings.HasPrefix(lines[0], "pg_receivewal: error: ") || !strings.Contains(lines[0], "cluster") || !strings.HasPrefix(lines[1], "pg_receivewal: hint: ") {
				t.Errorf("it printed:\n%s", p.log())
			}
			if after := tree(t, dir); !slices.Equal(before, after) {
				t.Errorf("the directory has changed from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
			last := s.switchWAL() // and again with a whole segment
			s.fill(100)
			s.keep(our, s.pg, dir, "-n", "-Z", method, "-E", s.gonePast()).exits(0)
			s.awaitComplete(dir, last)
		}
	}
}

// A full disk is waited for. When there is room again the drop-in goes on, and
// nothing is damaged.
func TestDropInFullDisk(t *testing.T) {
	t.Parallel()
	our := ours(t)
	s := newScene(t, options{})
	s.table()
	for _, method := range []string{"none", "gzip", "lz4"} {
		dir := s.directory(method)
		if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", dir).CombinedOutput(); err != nil {
			t.Skipf("NOT TESTED: a small file system cannot be mounted here: %v: %s", err, out)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
				t.Errorf("umount %s: %v: %s", dir, err, out)
			}
		})
		if err := theLab.account.Own(dir); err != nil {
			t.Fatal(err)
		}
		r := s.keep(our, s.pg, dir, "-Z", method)
		eventually(t, "a partial", func() bool { return len(spooled(t, dir)) > 0 })
		var last segment.Name
		for range 12 { // random bytes: 12 MB, or more than 4 compressed
			s.fill(900)
			last = s.switchWAL()
		}
		r.awaitLog(`pg_receivewal: (warning: .*full|error: .*no space left)`)
		away := s.directory(method + "-away")
		eventually(t, "all of it to come as room is made", func() bool {
			moveSegments(t, dir, away, last)
			return slices.Contains(complete(t, dir), last)
		})
		moveSegments(t, dir, away, last)
		r.interrupt()
		s.checkDirectory(dir, last, last)
		s.checkDirectory(away, complete(t, away)[0], s.size.Name(1, last.Start(s.size)-1))
	}
}

// moveSegments moves the whole segments before last to another directory.
func moveSegments(t *testing.T, dir, to string, last segment.Name) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if n, partial, ok := segmentOf(e.Name()); !ok || partial || n.Compare(last) >= 0 {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err := errors.Join(err, os.WriteFile(filepath.Join(to, e.Name()), raw, 0o600), os.Remove(filepath.Join(dir, e.Name()))); err != nil {
			t.Fatal(err)
		}
	}
}

// A line of the days of PostgreSQL 13, as it stands in somebody's unit, works:
// the level alone means gzip, and what asks for nothing is taken. The server's
// group may read the files when it may read the server's.
func TestDropInOldUnit(t *testing.T) {
	t.Parallel()
	our := ours(t)
	s := newScene(t, options{initArgs: []string{"--allow-group-access"}})
	s.table()
	first := s.reserve()
	dir := s.directory("wal")
	env := append(libpq(s.pg), "PGHOST=/nonexistent", "PGUSER=nobody")
	line := words("--create-slot --if-not-exists -S ferry -h " + s.pg.SocketDir() + " -U postgres -w")
	p := s.keepWith(env, our, dir, line...)
	p.exits(0)
	if p.log() != "" {
		t.Errorf("it printed:\n%s", p.log())
	}
	p = s.keepWith(env, our, dir, words("--slot=ferry --if-not-exists -v -Z 5 --status-interval=5 --no-sync --no-loop -w -U postgres --host="+s.pg.SocketDir())...)
	s.fill(300)
	last := s.switchWAL()
	s.awaitComplete(dir, last)
	s.fill(100)
	eventually(t, "the next segment", func() bool { return len(spooled(t, dir)) > len(complete(t, dir)) })
	p.stop()
	open := last.Next(s.size).String() + ".gz.partial"
	if partials := s.checkDirectory(dir, first, last); !slices.Equal(partials, []string{open}) {
		t.Errorf("the partials are %q", partials)
	}
	for name, f := range readDirectory(t, dir) {
		if f.mode != 0o640 || !strings.Contains(name, ".gz") {
			t.Errorf("%s has mode %v", name, f.mode)
		}
	}
	for _, line := range []string{"starting log streaming at ", "finished segment at ", "received interrupt signal, exiting\n", "not renaming \"" + open + "\", segment is not complete\n"} {
		if !strings.Contains(p.log(), "\npg_receivewal: "+line) && !strings.HasPrefix(p.log(), "pg_receivewal: "+line) {
			t.Errorf("it did not print %q", line)
		}
	}
}

// Ctrl-C ends it with 0 at every stage: while it waits for the first
// connection, while it streams, and between attempts.
func TestDropInInterrupted(t *testing.T) {
	t.Parallel()
	our := ours(t)
	s := newScene(t, options{})
	dir := s.directory("wal")
	if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
		t.Fatal(err)
	}
	r := s.keep(our, s.pg, dir)
	r.awaitLog(`disconnected; waiting`)
	r.interrupt()
	r = s.keep(our, s.pg, dir, "-v")
	r.awaitLog(`disconnected; waiting`)
	s.startServer()
	r.awaitLog(`starting log streaming`)
	if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
		t.Fatal(err)
	}
	r.awaitLog(`terminated before stop point\n.*disconnected; waiting`)
	r.interrupt()
	s.startServer()
	r = s.keep(our, s.pg, dir, "-v")
	r.awaitLog(`starting log streaming`)
	eventually(t, "its connection", func() bool {
		return s.sql("SELECT count(*) FROM pg_stat_replication WHERE sent_lsn = pg_current_wal_flush_lsn()") == "1"
	})
	r.interrupt()
	if got, want := r.lastLine(), `pg_receivewal: received interrupt signal, exiting`; got != want {
		t.Errorf("the last line is %q", got)
	}
}
