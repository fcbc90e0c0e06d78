package integration

import (
	"archive/tar"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// reachedOn tells whether the archive has a timeline's WAL up to an LSN.
func (s *scene) reachedOn(t segment.Timeline, lsn segment.LSN) bool {
	s.t.Helper()
	n := s.size.Name(t, lsn-1)
	if _, ok := s.sealed()[n]; ok {
		return true
	}
	return slices.ContainsFunc(s.tailObjects(), func(o tailObject) bool { return o.segment == n && o.end >= lsn })
}

// With --wal include a base backup is whole by itself: no receiver runs, the
// archive has no other WAL, and a server is restored from it with every row
// that was acknowledged before it began.
func TestBackupWithItsWAL(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		s.sql("CREATE TABLE ledger (id bigint PRIMARY KEY, v text, sum text)")
		busy := s.pgbench()
		l := s.ledger(seeded(t), writing{first: 1, clients: 2, pace: 5 * time.Millisecond})
		eventually(t, "commits", func() bool { acked, _ := l.acknowledged(); return len(acked) > 50 })
		before, _ := l.acknowledged()
		o := s.operator()
		// Slowly, so that there is WAL of several segments.
		name := o.backup(append(slowly(16), "--wal", "include")...)
		busy.stop()
		l.stop()
		eventually(t, "the temporary slots to be gone", func() bool { return s.sql("SELECT count(*) FROM pg_replication_slots") == "0" })
		if got := everything(t, s.archive); slices.Contains(got, "wal_005") {
			t.Errorf("the archive has WAL of its own: %v", got)
		}
		b := o.show(name)
		if !b.WALIncluded || b.WALComplete == nil || !*b.WALComplete || b.RestorableTo == nil || *b.RestorableTo != *b.Stop {
			t.Errorf("it is said to be %+v", b)
		}
		o.checkIncluded(o.checkLayout(name), b)
		if err := s.pg.Kill(s.ctx()); err != nil {
			t.Fatal(err)
		}

		dir := filepath.Join(s.home, "beyond")
		o.restore(dir, "--target-lsn", (b.Stop.LSN.LSN+8<<20).String()).failed(1, b.Stop.LSN.String())
		absent(t, dir)
		pg := o.restored("restored")
		o.verify(pg.DataDir(), true)
		o.recovers(pg)
		o.hasLedger(pg, before)
		o.amcheck(pg)

		// The same of a server that has had a promotion, into a new archive.
		s.archive = filepath.Join(s.dir, "archive2")
		if err := theLab.account.MkdirAll(s.archive); err != nil {
			t.Fatal(err)
		}
		s.pg = pg
		o = s.operator()
		name = o.backup("--wal", "include")
		if b = o.show(name); b.Start.Timeline != 2 {
			t.Errorf("it begins on timeline %d", b.Start.Timeline)
		}
		stated := o.checkLayout(name)
		o.checkIncluded(stated, b)
		if _, ok := stated.entries["pg_wal/00000002.history"]; !ok {
			t.Error("the history of its timeline is not in the backup")
		}
		if err := pg.Kill(s.ctx()); err != nil {
			t.Fatal(err)
		}
		again := o.restored("again")
		o.verify(again.DataDir(), true)
		o.recovers(again)
		o.hasLedger(again, before)
	})
}

// A receiver that comes while a backup with its WAL inside is taken has what
// follows, and not what the backup has: together they lead to the end.
func TestBackupWithItsWALAndALateReceiver(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	s.table()
	o := s.operator()
	p := o.create(append(slowly(4), "--wal", "include")...)
	eventually(t, "the backup to be under way", func() bool {
		return s.sql("SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 100000") == "1" || !p.running()
	})
	for range 3 {
		s.fill(500)
		s.switchWAL()
	}
	s.sql("CHECKPOINT") // a new slot begins there
	r := s.receive()
	first := s.slotSegment()
	s.fill(500)
	s.switchWAL()
	p.exits(0)
	name := strings.TrimSpace(p.stdout.String())
	b := o.show(name)
	if start := s.size.Name(1, b.Start.LSN.LSN); start.Compare(first) >= 0 || first.Start(s.size) >= b.Stop.LSN.LSN {
		t.Fatalf("the receiver began with %s, the backup is from %s to %s", first, b.Start.LSN, b.Stop.LSN)
	}
	s.fill(500)
	s.awaitShipped()
	r.stop()
	b = o.show(name)
	if b.WALComplete == nil || !*b.WALComplete || b.RestorableTo == nil || b.RestorableTo.LSN.LSN <= b.Stop.LSN.LSN {
		t.Errorf("it is said to be %+v", b)
	}
	pg := o.restored("restored")
	o.verify(pg.DataDir(), true)
	o.recovers(pg)
	if got := rows(s.ctx(), pg); got != 2500 {
		t.Errorf("%d rows were restored, want 2500", got)
	}
}

// checkIncluded wants a backup to hold every segment from its start to its
// stop, whole, and each to be marked as archived.
func (o *operator) checkIncluded(s *stated, b listedBackup) {
	t := o.t
	t.Helper()
	want := map[string]bool{}
	for n := o.size.Name(segment.Timeline(b.Start.Timeline), b.Start.LSN.LSN); n.Start(o.size) < b.Stop.LSN.LSN; n = n.Next(o.size) {
		want[n.String()] = true
	}
	for name := range want {
		e, ok := s.entries["pg_wal/"+name]
		if !ok || e.header.Size != int64(o.size) {
			t.Errorf("the backup has %d bytes of segment %s (there: %v)", e.header.Size, name, ok)
		}
	}
	for name, e := range s.entries {
		file, ok := strings.CutPrefix(name, "pg_wal/")
		if !ok || e.header.Typeflag != tar.TypeReg {
			continue
		}
		if done, ok := strings.CutPrefix(file, "archive_status/"); ok {
			file, ok = strings.CutSuffix(done, ".done")
			if _, there := s.entries["pg_wal/"+file]; !ok || !there || e.header.Size != 0 {
				t.Errorf("the backup has %s of %d bytes", name, e.header.Size)
			}
			continue
		}
		if !regexp.MustCompile(`^[0-9A-F]{24}$|^[0-9A-F]{8}\.history$`).MatchString(file) {
			t.Errorf("the backup has %s", name)
		}
		if _, ok := s.entries["pg_wal/archive_status/"+file+".done"]; !ok {
			t.Errorf("%s would be archived once more", name)
		}
	}
	t.Logf("the backup has %d segments of WAL", len(want))
}

// Without a receiver a backup has no WAL and could not be restored: it is
// given up, with what to do instead, and leaves nothing that list shows or that
// hinders the next one.
func TestBackupWithoutReceiver(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		before bool // a receiver has run, and has ended
	}{{"never", false}, {"no longer", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, options{})
			s.table()
			o := s.operator()
			if c.before {
				r := s.receive()
				first := s.slotSegment()
				s.awaitSealed(first, s.switchWAL())
				r.stop()
				s.fill(100)
				s.switchWAL()
			}
			begin := time.Now()
			p := o.create()
			p.failed(1, `--wal include`)
			if took := time.Since(begin); took < 20*time.Second || took > 60*time.Second {
				t.Errorf("it was given up after %s, want about 30 s", took)
			}
			if !strings.Contains(p.log(), "walferry receive") {
				t.Errorf("it does not name walferry receive:\n%s", p.log())
			}
			if files, err := filepath.Glob(filepath.Join(s.archive, "basebackups_005", "*_backup_stop_sentinel.json")); err != nil || len(files) > 0 {
				t.Errorf("there is a backup: %v, %v", files, err)
			}
			if v := s.sql("SELECT count(*) FROM pg_stat_replication"); v != "0" {
				t.Errorf("%s connections are left", v)
			}
			if c.before {
				if got := o.list().names(); len(got) > 0 {
					t.Errorf("the backups are %v", got)
				}
			}
			r := s.receive()
			name := o.backup()
			if got := o.list().names(); !slices.Equal(got, []string{name}) {
				t.Errorf("the backups are %v, want %s alone", got, name)
			}
			r.stop()
		})
	}
}

// A receiver that is behind, or comes a little late, is waited for: a backup
// exists when its WAL does, not before.
func TestBackupWaitsForItsWAL(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	s.table()
	r := s.receive()
	first := s.slotSegment()
	s.awaitSealed(first, s.switchWAL())
	r.stop()
	o := s.operator()
	p := o.create()
	eventually(t, "the copy to begin", func() bool {
		return s.sql("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walferry_backup'") != "0" || !p.running()
	})
	eventually(t, "the copy to be done", func() bool {
		return s.sql("SELECT count(*) FROM pg_stat_progress_basebackup") == "0" && len(partsOf(t, s.archive)) > 0 || !p.running()
	})
	time.Sleep(3 * time.Second)
	if !p.running() {
		t.Fatalf("it did not wait: %v", p.err)
	}
	if got := o.list().names(); len(got) > 0 {
		t.Errorf("the backups are %v, and their WAL is not there", got)
	}
	r = s.receive()
	p.exits(0)
	name := strings.TrimSpace(p.stdout.String())
	if b := o.show(name); b.WALComplete == nil || !*b.WALComplete {
		t.Errorf("it is said to be %+v", b)
	}
	s.fill(10)
	s.awaitShipped()
	r.stop()
	pg := o.restored("restored")
	o.recovers(pg)
	if got := rows(s.ctx(), pg); got != 10 {
		t.Errorf("%d rows were restored, want 10", got)
	}
}

// partsOf lists the parts of all backups and of what would have been one.
func partsOf(t *testing.T, archive string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(archive, "basebackups_005", "*", "tar_partitions", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// One archive has one cluster: a backup of another is refused at once, and by a
// receiver's identity as by an older backup.
func TestBackupOfForeignCluster(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive()
	s.slotSegment()
	o := s.operator()
	o.backup()
	r.stop()
	own := s.pg
	foreign := s.create("foreign", options{pg: own.Installation(), segmentSize: 1})
	if err := foreign.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	before := tree(t, s.archive)
	for _, wal := range []string{"archive", "include"} {
		begin := time.Now()
		o.at(foreign).create("--wal", wal).failed(3, `system identifier|another cluster|foreign`)
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("--wal %s was refused after %s", wal, took)
		}
	}
	if after := tree(t, s.archive); !slices.Equal(before, after) {
		t.Errorf("the archive holds\n%s", fmt.Sprint(after))
	}
}
