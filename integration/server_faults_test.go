package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pierrec/lz4/v4"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// churn is a load that a crash of the server may end: several sessions that
// write records of all sizes, up to many pages.
type churn struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (s *scene) churn(random *rand.Rand) *churn {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	c := &churn{cancel: cancel}
	for range 3 {
		conn, err := pgconn.Connect(ctx, s.pg.DSN("postgres"))
		if err != nil {
			cancel()
			s.t.Fatal(err)
		}
		sizes := rand.New(rand.NewPCG(random.Uint64(), 0))
		c.done.Go(func() {
			defer func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				_ = conn.Close(ctx) // the server may be gone: that is what it is for
			}()
			for {
				// No commit flushes these: the server's own writer does, up to a
				// page's end, in the middle of a record.
				sql := fmt.Sprintf("SELECT pg_logical_emit_message(false, 'churn', repeat(md5(random()::text), %d))", 1<<sizes.IntN(12))
				if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
					return
				}
			}
		})
	}
	s.t.Cleanup(c.stop)
	return c
}

func (c *churn) stop() {
	c.cancel()
	c.done.Wait()
}

// interruptions counts how often the receiver has said that it has trouble
// with the server, and that this is over.
func interruptions(p *process) (begun, over int) {
	return strings.Count(p.log(), "cannot receive from the server; trying again"), strings.Count(p.log(), "can receive from the server again")
}

// The server crashes again and again under load, often in the middle of a
// record, and now and then the receiver with it. The one goes on behind its
// recovery, the other where it was; what was sent of a record that the server
// had to give up is part of the WAL, and in the archive.
func TestServerCrashRounds(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	s := newScene(t, options{settings: map[string]string{
		"wal_keep_size": "32GB", "max_wal_size": "32GB",
		"wal_buffers": "64kB", // so that it writes in the middle of records
	}})
	r := s.receive()
	first := s.slotSegment()
	crashes := 0 // that this process has seen
	for range rounds(3, 40) {
		before := len(s.sealed())
		load := s.churn(random)
		eventually(t, "more in the archive", func() bool { return len(s.sealed()) > before })
		time.Sleep(time.Duration(random.Int64N(int64(100 * time.Millisecond)))) // no other clock decides at which instruction it is hit
		if err := s.pg.Kill(s.ctx()); err != nil {
			t.Fatal(err)
		}
		load.stop()
		if !r.running() {
			t.Fatalf("the receiver ended with the server: %v", r.err)
		}
		crashes++
		if random.IntN(3) == 0 {
			r.kill9()
			r, crashes = s.receive(), 1 // it begins without a server
			r.awaitLog(`cannot receive from the server`)
		}
		s.startServer()
		eventually(t, "the receiver to be back", func() bool {
			begun, over := interruptions(r)
			return begun == crashes && over == crashes
		})
	}
	last := s.switchWAL()
	s.awaitSealed(first, last)
	if begun, over := interruptions(r); begun != crashes || over != crashes {
		t.Errorf("it has told %d times that it cannot receive and %d times that it can again, in %d crashes", begun, over, crashes)
	}
	r.stop()
	s.checkArchive(first, last)
	if i := s.pg.Installation(); i.Has("pg_waldump") {
		dump := start(t, nil, i.Program("pg_waldump"), "--rmgr=XLOG", "--path="+filepath.Join(s.pg.DataDir(), "pg_wal"), first.String(), last.String())
		dump.exits(0)
		n := strings.Count(dump.log(), "OVERWRITE_CONTRECORD")
		if t.Logf("%d records were given up in a crash", n); n == 0 {
			t.Error("no crash was in the middle of a record")
		}
	}
}

// shutDown begins a fast shutdown. The server has ended when the channel has
// the outcome.
func (s *scene) shutDown() <-chan error {
	s.t.Helper()
	done := make(chan error, 1)
	ctx := s.ctx()
	go func() { done <- s.pg.Stop(ctx, instance.Fast) }()
	return done
}

// A fast shutdown while the receiver is behind waits for it as long as it
// makes progress, and not for ever. Nothing is lost either way.
func TestFastShutdownWhileBehind(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive("--spool-limit", "4MB")
	first := s.slotSegment()
	s.table()

	// It stands still with much to read, and goes on in the middle.
	r.signal(syscall.SIGSTOP)
	s.fill(3000)
	stopped := s.shutDown()
	eventually(t, "the server to be shutting down", func() bool {
		_, err := query(s.ctx(), s.pg.DSN("postgres"), "SELECT 1")
		return err != nil && strings.Contains(err.Error(), "shutting down")
	})
	select {
	case err := <-stopped:
		t.Errorf("the server did not wait for the receiver: %v", err)
	default:
	}
	r.signal(syscall.SIGCONT)
	if err := <-stopped; err != nil {
		t.Fatalf("the shutdown is held up: %v", err)
	}
	s.startServer()
	s.awaitSealed(first, s.switchWAL())

	// It has no room for what the server has to send.
	s.move(s.archive, s.archive+".away")
	s.fill(6000)
	r.awaitLog(`the spool is full`)
	if err := <-s.shutDown(); err != nil {
		t.Fatalf("the shutdown is held up by a full spool: %v", err)
	}
	r.awaitLog(`letting go of it`)
	s.startServer()
	s.move(s.archive+".away", s.archive)
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
}

// walsender is the process that serves the scene's receiver.
func (s *scene) walsender() string {
	s.t.Helper()
	return s.sql("SELECT coalesce((SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = 'ferry'), '')")
}

// Every upload takes several times wal_sender_timeout: that costs no
// connection. And a server that is shut down does not wait for uploads.
func TestUploadsLongerThanSenderTimeout(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{settings: map[string]string{"wal_sender_timeout": "1s"}})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry(nil, "receive")
	first := s.slotSegment()
	s.table()
	s.awaitSealed(first, s.switchWAL())
	sender := s.walsender()
	s.proxy.Slow(3 * time.Second)
	var last segment.Name
	for range 3 {
		s.fill(500)
		last = s.switchWAL()
	}
	s.awaitSealed(first, last)
	if now := s.walsender(); now != sender {
		t.Errorf("the server cut the receiver off: walsender %q, was %q", now, sender)
	}
	if begun, _ := interruptions(r); begun > 0 {
		t.Errorf("it has lost its connection %d times", begun)
	}
	s.fill(2000)
	if err := <-s.shutDown(); err != nil {
		t.Fatalf("the shutdown is held up: %v", err)
	}
	s.startServer()
	last = s.switchWAL()
	s.proxy.Slow(0)
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
}

// A receiver that reads nothing for longer than wal_sender_timeout is cut off
// by the server. It goes on where it was, and says so once.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{settings: map[string]string{"wal_sender_timeout": "1s"}})
	r := s.receive()
	first := s.slotSegment()
	s.table()
	s.awaitSealed(first, s.switchWAL())
	for n := range rounds(1, 10) {
		r.signal(syscall.SIGSTOP)
		if n%2 == 0 {
			s.fill(1500) // more than fits into the sockets
		}
		eventually(t, "the server to cut the receiver off", func() bool { return s.walsender() == "" })
		restart := s.restartLSN()
		s.fill(2000)
		if now := s.restartLSN(); now != restart {
			t.Errorf("the slot has moved from %s to %s without a receiver", restart, now)
		}
		r.signal(syscall.SIGCONT)
		s.awaitSealed(first, s.switchWAL())
		eventually(t, "the receiver to say that it is over", func() bool {
			begun, over := interruptions(r)
			return begun == n+1 && over == n+1
		})
	}
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
}

// put makes the stopped server's data directory a copy of another one.
func (s *scene) put(copyOf string) {
	s.t.Helper()
	dir := s.pg.DataDir()
	if err := errors.Join(os.RemoveAll(dir), instance.CopyDataDir(dir, copyOf), theLab.account.Own(dir)); err != nil {
		s.t.Fatal(err)
	}
}

// still remembers archive and slot, and returns what looks whether they are
// as they were.
func (s *scene) still(slot string) (check func(what string)) {
	s.t.Helper()
	archive := strings.Join(whole(s.t, s.archive), "\n")
	return func(what string) {
		s.t.Helper()
		if now := strings.Join(whole(s.t, s.archive), "\n"); now != archive {
			s.t.Errorf("%s: the archive has changed:\n%s\nwas:\n%s", what, now, archive)
		}
		if now := s.sql("SELECT coalesce((SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'ferry'), 'none')"); now != slot {
			s.t.Errorf("%s: the slot is at %s, was at %s", what, now, slot)
		}
	}
}

// refused wants a receiver to end with 3, an error that matches a pattern, and
// a hint. It returns the error's matches.
func (s *scene) refused(r *process, what, pattern string) []string {
	s.t.Helper()
	r.exits(3)
	found := regexp.MustCompile(`walferry: error: .*` + pattern).FindStringSubmatch(r.log())
	if found == nil {
		s.t.Errorf("%s: the error does not say %q:\n%s", what, pattern, r.log())
		return make([]string, 10)
	}
	if !strings.Contains(r.log(), "walferry: hint: ") {
		s.t.Errorf("%s: there is no hint what to do", what)
	}
	return found
}

// empty makes a spool that holds nothing.
func (s *scene) empty(name string) string {
	s.t.Helper()
	dir := filepath.Join(s.dir, name)
	if err := theLab.account.MkdirAll(dir); err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// A primary is set back to a copy of an earlier state, on the same timeline.
// It is refused while it is behind what we hold, and when it has passed us:
// its WAL is never joined to that of the other history, wherever that ends.
func TestSetBackPrimary(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		first := s.slotSegment()
		s.table()
		s.fill(200)
		s.awaitSealed(first, s.switchWAL())
		if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
			t.Fatal(err)
		}
		snapshot := filepath.Join(s.dir, "snapshot")
		if err := instance.CopyDataDir(snapshot, s.pg.DataDir()); err != nil {
			t.Fatal(err)
		}

		// It goes on, ends a segment early, and writes a part of the next, which
		// it has sent when it stops.
		s.startServer()
		s.fill(200)
		end := s.switchWAL()
		s.awaitSealed(first, end)
		s.fill(200)
		if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
			t.Fatal(err)
		}
		s.put(snapshot)
		s.startServer()
		slot := s.restartLSN()
		unchanged := s.still(slot.String())

		// Behind us. The receiver still runs; others begin anew, with its spool,
		// and with an empty one.
		spools := map[string]string{"with its spool": s.spool, "with an empty spool": s.empty("empty")}
		behind := func(what string, r *process) {
			t.Helper()
			said := s.refused(r, what, `its WAL ends at ([0-9A-F/]+), we hold WAL up to ([0-9A-F/]+) on timeline 1`)
			theirs, err1 := segment.ParseLSN(said[1])
			ours, err2 := segment.ParseLSN(said[2])
			if err := errors.Join(err1, err2); err != nil || theirs >= ours || ours < end.End(s.size) {
				t.Errorf("%s: their WAL ends at %s, ours at %s: %v", what, theirs, ours, err)
			}
			unchanged(what)
		}
		behind("while it is behind, at once", r)
		for name, dir := range spools {
			behind("while it is behind, "+name, s.receive("--spool", dir))
		}

		// It writes past us, and ends the same segment early as well.
		s.fill(300)
		if n := s.switchWAL(); n != end {
			t.Fatalf("the other history has ended %s, want %s: there is nothing to be mistaken", n, end)
		}
		s.fill(2000)
		for name, dir := range spools {
			what := "when it has passed us, " + name
			r := s.receive("--spool", dir)
			said := s.refused(r, what, `conflict: .*we hold WAL up to ([0-9A-F/]+)`)
			if ours, err := segment.ParseLSN(said[1]); err != nil || ours < end.End(s.size) {
				t.Errorf("%s: ours ends at %s: %v", what, said[1], err)
			}
			if !regexp.MustCompile(`conflict: .* at [0-9A-F]+/[0-9A-F]+`).MatchString(r.log()) {
				t.Errorf("%s: the error does not say where the first difference is", what)
			}
			unchanged(what)
		}
	})
}

// The cluster is made anew in the place of the old one. The running receiver,
// and one with nothing but the archive, refuse it and name both.
func TestReinitialisedPrimary(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive()
	first := s.slotSegment()
	s.table()
	s.fill(500)
	s.awaitSealed(first, s.switchWAL())
	if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
		t.Fatal(err)
	}
	again := s.create("again", options{pg: s.pg.Installation(), segmentSize: 1})
	identifiers := func() (names []string) {
		for _, dir := range []string{s.pg.DataDir(), again.DataDir()} {
			c, err := instance.ReadControl(dir)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, strconv.FormatUint(c.SystemIdentifier, 10))
		}
		return names
	}()
	spool := spooled(t, s.spool)
	s.put(again.DataDir())
	s.startServer()
	unchanged := s.still("none")
	refused := func(what string, r *process) {
		t.Helper()
		s.refused(r, what, "of another cluster")
		for _, id := range identifiers {
			if !strings.Contains(r.log(), id) {
				t.Errorf("%s: the error does not name the system identifier %s", what, id)
			}
		}
		unchanged(what)
	}
	refused("at once", r)
	refused("with its spool", s.receive())
	refused("with an empty spool", s.receive("--spool", s.empty("empty")))
	if now := spooled(t, s.spool); strings.Join(now, " ") != strings.Join(spool, " ") {
		t.Errorf("the spool has changed: %v, was %v", now, spool)
	}
}

// archiveAsWALG stores segments as WAL-G does, with no identity object. change
// may change the bytes.
func (s *scene) archiveAsWALG(pg *instance.Server, first, last segment.Name, change func(segment.Name, []byte)) {
	s.t.Helper()
	dir := filepath.Join(s.archive, "wal_005")
	if err := theLab.account.MkdirAll(dir); err != nil {
		s.t.Fatal(err)
	}
	for n := first; n.Compare(last) <= 0; n = n.Next(s.size) {
		content, err := os.ReadFile(filepath.Join(pg.DataDir(), "pg_wal", n.String()))
		if err != nil {
			s.t.Fatal(err)
		}
		change(n, content)
		var b bytes.Buffer
		w := lz4.NewWriter(&b)
		_, err = w.Write(content)
		if err := errors.Join(err, w.Close(), os.WriteFile(filepath.Join(dir, n.String()+".lz4"), b.Bytes(), 0o644)); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := theLab.account.Own(s.archive); err != nil {
		s.t.Fatal(err)
	}
}

// An archive that WAL-G has written, in which nothing says whose it is, met for
// the first time: it is continued where its own WAL says that it is the
// server's, up to its last record, and else refused.
func TestFirstContactWithWALGsArchive(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	s.table()
	first, err := segment.ParseName(s.sql("SELECT pg_walfile_name(pg_current_wal_lsn())"))
	if err != nil {
		t.Fatal(err)
	}
	s.fill(2500)
	walg := s.switchWAL()
	s.fill(2500)
	last := s.switchWAL()
	identity := filepath.Join(s.archive, "walferry_005", "identity.json")
	unclaimed := func(what string) {
		t.Helper()
		if _, err := os.Stat(identity); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: an identity was written (%v)", what, err)
		}
	}
	renew := func() {
		t.Helper()
		if err := os.RemoveAll(s.archive); err != nil {
			t.Fatal(err)
		}
	}

	other := s.create("other", options{pg: s.pg.Installation(), segmentSize: 1})
	entries, err := os.ReadDir(filepath.Join(other.DataDir(), "pg_wal"))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := segment.ParseName(entries[0].Name())
	if err != nil {
		t.Fatal(err)
	}
	s.archiveAsWALG(other, foreign, foreign, func(segment.Name, []byte) {})
	unchanged := s.still("none")
	s.refused(s.receive(), "another cluster's", "of another cluster")
	unchanged("another cluster's")
	unclaimed("another cluster's")

	// The same cluster, in another history: one byte of the last record differs.
	renew()
	s.archiveAsWALG(s.pg, first, walg, func(n segment.Name, content []byte) {
		if n == walg {
			content[len(bytes.TrimRight(content, "\x00"))-1]++
		}
	})
	spool := s.empty("another-history")
	r := s.receive("--spool", spool)
	s.refused(r, "another history's", `conflict: .*we hold WAL up to `+walg.End(s.size).String())
	if n := s.sql("SELECT count(*) FROM pg_replication_slots"); n != "0" {
		t.Error("another history's: the refused receiver left a slot, which would fill the server's disk")
	}
	if files := spooled(t, spool); len(files) > 0 {
		t.Errorf("another history's: the refused receiver has %v in its spool", files)
	}

	renew()
	s.archiveAsWALG(s.pg, first, walg, func(segment.Name, []byte) {})
	theirs := tree(t, filepath.Join(s.archive, "wal_005"))
	r = s.receive()
	s.awaitSealed(first, last)
	s.fill(500)
	last = s.switchWAL()
	s.awaitSealed(first, last)
	r.stop()
	if !strings.Contains(r.log(), `resuming position="`+walg.End(s.size).String()+" on timeline 1") {
		t.Errorf("it has not begun behind WAL-G's last segment %s", walg)
	}
	s.checkArchive(first, last)
	for i, now := range tree(t, filepath.Join(s.archive, "wal_005"))[:len(theirs)] {
		if now != theirs[i] {
			t.Errorf("WAL-G's object was changed: %s, was %s", now, theirs[i])
		}
	}
	control, err := instance.ReadControl(s.pg.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(identity); err != nil || !strings.Contains(string(text), strconv.FormatUint(control.SystemIdentifier, 10)) {
		t.Errorf("the identity is %s, %v", text, err)
	}
}
