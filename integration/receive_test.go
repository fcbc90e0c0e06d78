package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// Every whole segment in the archive is, decoded, the server's own file: with
// every codec, and with the segment size that people have.
// What fetch gives back is the same bytes, and pg_waldump reads them.
func TestArchiveIsTheServersBytes(t *testing.T) {
	codecs := []string{"lz4", "zstd", "none"}
	onVersions(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i, segmentSize: 16})
		r := s.receive("--compress", codecs[i.Major%len(codecs)])
		first := s.slotSegment()
		s.table()
		var last segment.Name
		for range 3 {
			s.fill(3000)
			last = s.switchWAL()
		}
		s.awaitSealed(first, last)
		r.stop()
		s.checkArchive(first, last)
		s.checkFetched(first, last)
	})
}

// checkFetched fetches segments into a directory, compares them with the
// server's and lets pg_waldump read them.
func (s *scene) checkFetched(first, last segment.Name) {
	s.t.Helper()
	dir := filepath.Join(s.dir, "fetched")
	if err := theLab.account.MkdirAll(dir); err != nil {
		s.t.Fatal(err)
	}
	for seg := first; seg.Compare(last) <= 0; seg = seg.Next(s.size) {
		path := filepath.Join(dir, seg.String())
		p := s.fetch(seg.String(), path, "--store", s.store())
		p.exits(0)
		got, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatal(err)
		}
		s.compareWithServer(seg, got)
	}
	if i := s.pg.Installation(); i.Has("pg_waldump") {
		p := start(s.t, nil, i.Program("pg_waldump"), "--quiet", "--path="+dir, first.String(), last.String())
		p.exits(0)
	}
}

// The other codecs of this version, on the main one.
func TestCodecs(t *testing.T) {
	for _, method := range []string{"zstd", "none"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, options{})
			r := s.receive("--compress", method)
			first := s.slotSegment()
			s.table()
			s.fill(2500)
			last := s.switchWAL()
			s.awaitSealed(first, last)
			r.stop()
			s.checkArchive(first, last)
			s.checkFetched(first, last)
		})
	}
}

// The receiver is killed again and again under load, at whatever it does then.
// What is in the archive in the end has no gap and is the server's own.
func TestKillReceiverUnderLoad(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		first := s.slotSegment()
		l := s.pgbench()
		for round := range 5 {
			before := len(s.sealed())
			s.sql("CHECKPOINT") // behind it every page goes into the WAL whole: more of it
			eventually(t, "a few more segments in the archive", func() bool { return len(s.sealed()) >= before+1+round%3 })
			r.kill9()
			if files := spooled(t, s.spool); len(files) == 0 {
				t.Error("the killed receiver left nothing in its spool")
			}
			r = s.receive()
		}
		l.stop()
		last := s.switchWAL()
		s.awaitSealed(first, last)
		s.checkArchive(first, last)
		r.stop()
		if files := spooled(t, s.spool); len(files) > 1 {
			t.Errorf("the spool still holds %v, of which all but the last are in the archive", files)
		}
	})
}

// spooled lists the segments in a spool.
func spooled(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		base, _, _ := strings.Cut(e.Name(), ".")
		if _, err := segment.ParseName(base); err == nil {
			names = append(names, e.Name())
		}
	}
	return names
}

// The server is killed and comes back: the receiver connects again, goes on
// where it was, and nothing is missing.
func TestServerCrash(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive()
	first := s.slotSegment()
	for range 2 {
		w := s.writer()
		eventually(t, "a thousand rows", func() bool { return w.acknowledged() >= 1000 })
		if err := s.pg.Kill(s.ctx()); err != nil {
			t.Fatal(err)
		}
		w.stop()
		s.startServer()
		s.sql("TRUNCATE written")
	}
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
}

// A fast shutdown of the server is not held up by its receiver, under load and
// idle; the receiver goes on when it is back, and has everything up to the
// shutdown checkpoint.
func TestFastShutdown(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		first := s.slotSegment()
		for range 2 {
			w := s.writer()
			eventually(t, "a thousand rows", func() bool { return w.acknowledged() >= 1000 })
			if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
				t.Fatalf("the shutdown is held up: %v", err)
			}
			w.stop()
			if !r.running() {
				t.Fatal("the receiver ended with the server")
			}
			s.startServer()
			s.sql("TRUNCATE written")
		}
		last := s.switchWAL()
		s.awaitSealed(first, last)
		s.checkArchive(first, last)
		r.stop()
	})
}

// SIGTERM and SIGINT end the receiver at once and well, and its last line says
// what it leaves behind on the server.
func TestStopSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := newScene(t, options{})
			r := s.receive()
			first := s.slotSegment()
			s.table()
			s.fill(500)
			s.awaitSealed(first, s.switchWAL())
			s.fill(500)
			flushed := s.sql("SELECT pg_current_wal_flush_lsn()")
			eventually(t, "the server to have sent everything", func() bool {
				return s.sql("SELECT count(*) FROM pg_stat_replication WHERE sent_lsn >= '"+flushed+"'") == "1"
			})
			r.signal(sig)
			r.exits(0)
			last := r.lastLine()
			for _, want := range []string{"ferry", "retain", "walferry slot drop ferry"} {
				if !strings.Contains(last, want) {
					t.Errorf("the last line does not say %q: %s", want, last)
				}
			}
			// It holds what it had, and goes on from there.
			if files := spooled(t, s.spool); len(files) != 1 || !strings.HasSuffix(files[0], ".partial") {
				t.Errorf("the spool holds %v", files)
			}
			r = s.receive()
			end := s.switchWAL()
			s.awaitSealed(first, end)
			s.checkArchive(first, end)
			r.stop()
		})
	}
}

// The receiver stops with 0 when it has the WAL up to --endpos, and at once
// when it has it already.
func TestEndPos(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	s.table()
	s.sql("SELECT pg_create_physical_replication_slot('ferry', true)")
	first := s.slotSegment()
	s.fill(3000)
	end := s.sql("SELECT pg_current_wal_lsn()")
	s.fill(3000)
	last := s.switchWAL()
	r := s.receive("--endpos", end)
	r.exits(0)
	lsn, err := segment.ParseLSN(end)
	if err != nil {
		t.Fatal(err)
	}
	in := s.size.Name(1, lsn)
	held := map[segment.Name]bool{}
	for n := range s.sealed() {
		held[n] = true
	}
	for _, name := range spooled(t, s.spool) {
		n, err := segment.ParseName(strings.TrimSuffix(name, ".partial"))
		if err != nil {
			t.Fatal(err)
		}
		held[n] = true
	}
	for n := first; n.Compare(in) <= 0; n = n.Next(s.size) {
		if !held[n] {
			t.Errorf("segment %s lies before the end position, and is held nowhere", n)
		}
	}
	if held[last] {
		t.Errorf("it went on to %s, far behind %s", last, end)
	}
	s.receive("--endpos", end).exits(0)
	s.receive("--endpos", first.Start(s.size).String()).exits(0)
}

// With --no-loop the end of the stream is the end of the receiver, with 1.
func TestNoLoop(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive("--no-loop")
	first := s.slotSegment()
	s.table()
	s.fill(2000)
	last := s.switchWAL()
	s.awaitSealed(first, last)
	if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
		t.Fatal(err)
	}
	r.exits(1)
	s.receive("--no-loop").exits(1)
	s.startServer()
	s.checkArchive(first, last)
}

// A second receiver on the same spool is refused in one line, and does not
// disturb the first.
func TestSecondReceiver(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive()
	first := s.slotSegment()
	second := s.receive()
	if code := second.wait(); code == 0 {
		t.Error("the second one ended with 0")
	}
	if !strings.Contains(second.log(), s.spool) {
		t.Error("the second one does not name the spool")
	}
	s.table()
	s.fill(2000)
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
}

// Another cluster is refused with 3, by the archive and by the spool, and
// nothing changes: no object, no slot, no file.
func TestForeignCluster(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		first := s.slotSegment()
		s.table()
		s.fill(2000)
		s.awaitSealed(first, s.switchWAL())
		r.stop()

		other := s.create("other", options{pg: s.pg.Installation(), segmentSize: 1})
		if err := other.Start(s.ctx()); err != nil {
			t.Fatal(err)
		}
		cases := []struct{ name, spool, store string }{
			{"its archive", filepath.Join(s.dir, "other-spool"), s.store()},
			{"its spool", s.spool, "file://" + filepath.Join(s.dir, "other-archive")},
			{"both", s.spool, s.store()},
		}
		for _, dir := range []string{"other-archive", "other-spool"} {
			if err := theLab.account.MkdirAll(filepath.Join(s.dir, dir)); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range cases {
			archive, spool := whole(t, s.archive), spooled(t, s.spool)
			p := s.receive("-d", other.DSN("postgres"), "--spool", c.spool, "--store", c.store)
			p.exits(3)
			id, err := instance.ReadControl(other.DataDir())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(p.log(), fmt.Sprint(id.SystemIdentifier)) {
				t.Errorf("%s: the system identifier is not named:\n%s", c.name, p.log())
			}
			if got := whole(t, s.archive); strings.Join(got, "\n") != strings.Join(archive, "\n") {
				t.Errorf("%s: the archive has changed:\n%s", c.name, strings.Join(got, "\n"))
			}
			if got := spooled(t, s.spool); strings.Join(got, " ") != strings.Join(spool, " ") {
				t.Errorf("%s: the spool has changed: %v, was %v", c.name, got, spool)
			}
			if n, err := query(s.ctx(), other.DSN("postgres"), "SELECT count(*) FROM pg_replication_slots"); err != nil || n != "0" {
				t.Errorf("%s: the other cluster has %s slots, %v", c.name, n, err)
			}
		}
	})
}

// The archive's directory goes away (an unmounted volume) and comes back:
// reception goes on, the spool holds what it gets, and nothing is missing.
func TestStorageAway(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive()
	first := s.slotSegment()
	s.table()
	s.fill(1000)
	s.awaitSealed(first, s.switchWAL())

	if err := os.Rename(s.archive, s.archive+".away"); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		s.fill(1000)
		s.switchWAL()
	}
	eventually(t, "the spool to hold what cannot be stored", func() bool { return len(spooled(t, s.spool)) >= 5 })
	r.awaitLog(`(?i)(no such store|not there|cannot|failed|archive)`)
	if _, err := os.Stat(s.archive); err == nil {
		t.Error("the receiver made a new archive in the place of the one that is not mounted")
	}
	if err := os.Rename(s.archive+".away", s.archive); err != nil {
		t.Fatal(err)
	}
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
}

// With the storage away and the spool full, the receiver says so and waits:
// the server keeps what does not fit, lives on, and is not cut off.
func TestFullSpool(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{settings: map[string]string{"wal_sender_timeout": "3s"}})
	r := s.receive("--spool-limit", "4MB")
	first := s.slotSegment()
	s.table()
	s.awaitSealed(first, s.switchWAL())
	if err := os.Rename(s.archive, s.archive+".away"); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		s.fill(1000)
		s.switchWAL()
	}
	r.awaitLog(`(?i)spool.*full|full.*spool|spool-limit`)
	sender := s.sql("SELECT pid FROM pg_stat_replication")
	if sender == "" {
		t.Error("the receiver has disconnected")
	}
	// Longer than wal_sender_timeout: the receiver answers although it reads
	// nothing, or the server cuts it off.
	s.sql("SELECT pg_sleep(8)")
	if now := s.sql("SELECT pid FROM pg_stat_replication"); now != sender {
		t.Errorf("the server cut the receiver off: walsender %s, was %s", now, sender)
	}
	var held int64
	for _, name := range spooled(t, s.spool) {
		if info, err := os.Stat(filepath.Join(s.spool, name)); err == nil {
			held += info.Size()
		}
	}
	if held > 4<<20 {
		t.Errorf("the spool holds %d bytes, more than its limit", held)
	}
	if err := os.Rename(s.archive+".away", s.archive); err != nil {
		t.Fatal(err)
	}
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
}

// The role that the documentation tells people to make, with its password in
// a file, over TCP, and the line "replication" in pg_hba.conf alone.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{listen: true, hba: []string{"host replication walferry 127.0.0.1/32 scram-sha-256"}})
	s.sql("CREATE ROLE walferry LOGIN REPLICATION PASSWORD 'a secret'")
	s.writeHome(".pgpass", fmt.Sprintf("127.0.0.1:%d:replication:walferry:a secret\n", s.pg.Port()))
	r := start(t, append(s.env(), "PGHOST=127.0.0.1", fmt.Sprint("PGPORT=", s.pg.Port()), "PGUSER=walferry"), s.binary,
		"receive", "--slot", "ferry", "--spool", s.spool, "--store", s.store())
	first := s.slotSegment()
	s.table()
	s.fill(2000)
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
	if strings.Contains(r.log(), "a secret") {
		t.Error("the password is in the log")
	}

	// A wrong password is told once, is not taken for final, and comes right
	// when the file does. (A process reads it at every connection.)
	s.writeHome(".pgpass", fmt.Sprintf("127.0.0.1:%d:replication:walferry:another secret\n", s.pg.Port()))
	r = start(t, append(s.env(), "PGHOST=127.0.0.1", fmt.Sprint("PGPORT=", s.pg.Port()), "PGUSER=walferry"), s.binary,
		"receive", "--slot", "ferry", "--spool", s.spool, "--store", s.store())
	r.awaitLog(`password authentication failed`)
	if strings.Contains(r.log(), "another secret") {
		t.Error("the password is in the log")
	}
	s.writeHome(".pgpass", fmt.Sprintf("127.0.0.1:%d:replication:walferry:a secret\n", s.pg.Port()))
	s.fill(2000)
	last = s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
}

// writeHome writes a file of mode 0600 into the children's home.
func (s *scene) writeHome(name, content string) {
	s.t.Helper()
	path := filepath.Join(s.home, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := theLab.account.Own(s.home); err != nil {
		s.t.Fatal(err)
	}
}

// The receiver reads a standby, which is promoted: it follows to the new
// timeline, and the archive holds both, the history and the switch segment.
func TestFollowsPromotion(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		s.table()
		s.fill(1500)
		standby := s.recovery("standby", "standby.signal", "")
		if err := standby.Configure(map[string]string{"primary_conninfo": s.pg.DSN("postgres"), "wal_keep_size": "4GB"}); err != nil {
			t.Fatal(err)
		}
		if err := standby.Start(s.ctx()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the standby to have the rows", func() bool { return rows(s.ctx(), standby) == 1500 })
		primary := s.pg
		s.pg = standby
		r := s.receive()
		first := s.slotSegment()
		s.pg = primary
		s.fill(1500)
		s.switchWAL()
		s.fill(100)
		eventually(t, "the standby to have the rows", func() bool { return rows(s.ctx(), standby) == 3100 })
		if err := s.pg.Kill(s.ctx()); err != nil {
			t.Fatal(err)
		}
		if err := standby.Promote(s.ctx()); err != nil {
			t.Fatal(err)
		}
		s.pg = standby
		s.fill(1000)
		last := s.switchWAL()
		if last.Timeline != 2 {
			t.Fatalf("the promoted server writes %s", last)
		}
		want, err := os.ReadFile(filepath.Join(standby.DataDir(), "pg_wal", "00000002.history"))
		if err != nil {
			t.Fatal(err)
		}
		history, err := segment.ParseHistory(2, want)
		if err != nil {
			t.Fatal(err)
		}
		end, ok := history.Switchpoint(1)
		if !ok {
			t.Fatalf("the history file %q says nothing of timeline 1", want)
		}
		// The segment of the switchpoint is there twice: in part on the old
		// timeline, whole on the new one, where it begins with the parent's bytes.
		old := s.size.Name(1, end)
		s.awaitSealed(s.size.Name(2, end), last)
		partial := filepath.Join(s.archive, "wal_005", old.String()+".partial.lz4")
		eventually(t, "the old timeline's last segment in the archive", func() bool {
			_, err := os.Stat(partial)
			return err == nil
		})
		if previous := s.size.Name(1, s.size.Start(end)-1); first.Compare(previous) <= 0 {
			s.awaitSealed(first, previous)
		}
		r.stop()

		got, err := decode(filepath.Join(s.archive, "wal_005", "00000002.history.lz4"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("the history file in the archive: %q, the server's: %q", got, want)
		}
		// A standby keeps the old timeline's segments under their names.
		for n := range s.sealed() {
			got, err := decode(filepath.Join(s.archive, "wal_005", n.String()+".lz4"))
			if err != nil {
				t.Errorf("segment %s: %v", n, err)
				continue
			}
			s.compareWithServer(n, got)
			if n.Timeline == 1 && n.Compare(old) >= 0 {
				t.Errorf("segment %s lies behind the end of its timeline at %s", n, end)
			}
		}
		got, err = decode(partial)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(filepath.Join(standby.DataDir(), "pg_wal", s.size.Name(2, end).String()))
		if err != nil {
			t.Fatal(err)
		}
		at := s.size.Offset(end)
		if len(got) != int(s.size) || !bytes.Equal(got[:at], whole[:at]) || len(bytes.Trim(got[at:], "\x00")) > 0 {
			t.Errorf("the old timeline's last segment: %d bytes, which are not the server's up to %s and zeros from there on", len(got), end)
		}
	})
}

// The slot is gone after a pause. As long as the server still has the WAL that
// follows the archive, the receiver goes on there; when it has not, that is a
// gap: it stops with 3, and neither the archive nor the server has changed.
func TestSlotLost(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		first := s.slotSegment()
		s.table()
		s.fill(2000)
		s.awaitSealed(first, s.switchWAL())
		r.stop()

		s.sql("SELECT pg_drop_replication_slot('ferry')")
		s.fill(2000)
		s.sql("CHECKPOINT")
		last := s.switchWAL()
		r = s.receive()
		s.awaitSealed(first, last)
		s.checkArchive(first, last)
		r.stop()

		s.sql("SELECT pg_drop_replication_slot('ferry')")
		s.fill(2000)
		if err := s.pg.Configure(map[string]string{"wal_keep_size": "0", "max_wal_size": "2MB"}); err != nil {
			t.Fatal(err)
		}
		if err := s.pg.Reload(); err != nil {
			t.Fatal(err)
		}
		gone := filepath.Join(s.pg.DataDir(), "pg_wal", last.Next(s.size).String())
		eventually(t, "the server to remove the WAL that follows the archive", func() bool {
			s.fill(100)
			s.switchWAL()
			s.sql("CHECKPOINT")
			_, err := os.Stat(gone)
			return os.IsNotExist(err)
		})
		archive := whole(t, s.archive)
		r = s.receive()
		r.exits(3)
		if missing := last.Next(s.size).String(); !strings.Contains(r.log(), "gap") || !strings.Contains(r.log(), missing) {
			t.Errorf("the log names neither the gap nor the segment %s", missing)
		}
		if got := whole(t, s.archive); strings.Join(got, "\n") != strings.Join(archive, "\n") {
			t.Errorf("the archive has changed:\n%s", strings.Join(got, "\n"))
		}
		if s.sql("SELECT count(*) FROM pg_replication_slots") != "0" {
			t.Error("the refused receiver left a slot, which would fill the server's disk")
		}
	})
}
