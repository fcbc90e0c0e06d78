package integration

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/restore/instance"
)

// standby makes a streaming standby of the scene's primary, which has caught up.
func (s *scene) standby() *instance.Server {
	s.t.Helper()
	pg := s.recovery("standby", "standby.signal", "")
	// A standby that is asked for a backup makes its restartpoint at once.
	if err := pg.Configure(map[string]string{"primary_conninfo": s.pg.DSN("postgres"), "wal_keep_size": "4GB", "max_wal_size": "4GB"}); err != nil {
		s.t.Fatal(err)
	}
	if err := pg.Start(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
	s.caughtUp(pg)
	return pg
}

// caughtUp waits until a standby has replayed what the primary has written.
func (s *scene) caughtUp(pg *instance.Server) {
	s.t.Helper()
	lsn := s.sql("SELECT pg_current_wal_lsn()")
	eventually(s.t, "the standby to catch up", func() bool {
		v, err := query(s.ctx(), pg.DSN("postgres"), "SELECT coalesce(pg_last_wal_replay_lsn() >= '"+lsn+"', false)")
		return err == nil && v == "t"
	})
}

// A base backup of a standby costs the primary nothing. Its WAL comes from the
// primary, and it restores to a server with every acknowledged row.
func TestBackupOfStandby(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		s.slotSegment()
		s.sql("CREATE TABLE ledger (id bigint PRIMARY KEY, v text, sum text)")
		standby := s.standby()
		o := s.operator().at(standby)
		l := s.ledger(seeded(t), writing{first: 1, clients: 2, pace: 10 * time.Millisecond})
		eventually(t, "commits", func() bool { acked, _ := l.acknowledged(); return len(acked) > 20 })
		names := []string{o.backup("--label", "busy")}
		l.stop()
		s.caughtUp(standby)
		// Nothing more is written: these begin at one LSN.
		names = append(names, o.backup("--label", "idle"), o.backup("--label", "idle too"))
		if a, b := names[1], names[2]; a == b || a[:len(a)-1] != b[:len(b)-1] {
			t.Errorf("two backups of an idle standby are called %s and %s, want the first name and the next", a, b)
		}
		// One that needs no archive: its WAL comes from the standby, too.
		names = append(names, o.backup("--wal", "include"))
		s.awaitShipped()
		acked, _ := l.acknowledged()
		for _, name := range names {
			o.checkLayout(name)
			b := o.show(name)
			if b.FromStandby == nil || !*b.FromStandby || b.WALComplete == nil || !*b.WALComplete {
				t.Errorf("%s is said to be %+v", name, b)
			}
		}
		r.stop()
		if err := s.pg.Kill(s.ctx()); err != nil {
			t.Fatal(err)
		}
		for n, name := range names {
			if n == 1 && !theLab.full {
				continue
			}
			pg := o.restored(strings.ToLower(name), "--backup", name)
			o.verify(pg.DataDir(), n == len(names)-1)
			o.recovers(pg)
			o.hasLedger(pg, acked)
			o.amcheck(pg)
			if err := pg.Remove(s.ctx()); err != nil {
				t.Fatal(err)
			}
		}
		// And a standby of it is one, whatever the original was.
		pg := o.restored("another", "--standby")
		if err := pg.Start(s.ctx()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the new standby to have every row", func() bool {
			v, err := query(s.ctx(), pg.DSN("postgres"), "SELECT count(*) FROM ledger")
			return err == nil && v == o.asked(standby, "SELECT count(*) FROM ledger")
		})
		if v := o.asked(pg, "SELECT pg_is_in_recovery()"); v != "t" {
			t.Error("the new standby is none")
		}
	})
}

// All backups of a standby at rest begin at one LSN, and what was killed keeps
// its name: the attempts are numbered, and when no number is left it is said
// which names to delete.
func TestKillBackupOfIdleStandby(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive()
	s.slotSegment()
	s.table()
	s.fill(100)
	standby := s.standby()
	o := s.operator().at(standby)
	known := []string{o.backup()}
	kills := rounds(2, 6)
	for range kills {
		p := o.create(slowly(4)...)
		p.awaitLog(`base backup begins`)
		p.kill9()
	}
	name := o.backup()
	// attempt is the name of an attempt behind the first, which was the first.
	attempt := func(n uint64) string {
		at, err := strconv.ParseUint(known[0][len(known[0])-8:], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s%08X", known[0][:len(known[0])-8], at+n)
	}
	if want := attempt(uint64(kills) + 1); name != want {
		t.Errorf("behind %d that were killed the backup is called %s, want %s", kills, name, want)
	}
	known = append(known, name)
	if got := o.list().names(); !slices.Equal(got, known) {
		t.Errorf("the backups are %v, want %v", got, known)
	}
	if theLab.full {
		p := o.create()
		p.failed(1, `all 8 names .* are taken`)
		killed := attempt(1)
		if !strings.Contains(p.log(), killed) || !strings.Contains(p.log(), "backup delete") {
			t.Errorf("it does not say which names to delete:\n%s", p.log())
		}
		o.walferry("backup", "delete", killed).failed(1, `younger than two days`)
		o.walferry("backup", "delete", killed, "--force").exits(0)
		if again := o.backup(); again != killed {
			t.Errorf("the backup is called %s, want the name that is free, %s", again, killed)
		}
	}
	r.stop()
}

// A standby is promoted while a base backup of it is taken: that fails, says
// why, and leaves no backup; the next one of the new primary is good.
func TestBackupAcrossPromotion(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		s.slotSegment()
		s.table()
		s.fill(1000)
		standby := s.standby()
		o := s.operator().at(standby)
		before := o.backup()
		p := o.create(slowly(4)...)
		eventually(t, "the backup to be under way", func() bool {
			if !p.running() {
				t.Fatalf("the backup has ended: %v", p.err)
			}
			v, err := query(s.ctx(), standby.DSN("postgres"), "SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 1000000")
			return err == nil && v == "1"
		})
		if err := s.pg.Kill(s.ctx()); err != nil {
			t.Fatal(err)
		}
		r.kill9()
		if err := standby.Promote(s.ctx()); err != nil {
			t.Fatal(err)
		}
		p.failed(1, `standby was promoted during online backup`)
		if got := o.list().names(); len(got) != 1 || got[0] != before {
			t.Errorf("the backups are %v, want %s alone", got, before)
		}

		s.pg = standby
		r = s.receive()
		after := o.backup()
		if b := o.show("LATEST"); b.Name != after || b.Stop.Timeline != 2 || *b.FromStandby {
			t.Errorf("LATEST is %+v, want %s on timeline 2", b, after)
		}
		o.checkLayout(after)
		s.fill(1000)
		lsn := s.lsn("SELECT pg_current_wal_flush_lsn()")
		eventually(t, "the new rows in the archive", func() bool { return s.reachedOn(2, lsn) })
		r.stop()
		for n, name := range []string{after, before} { // from before the promotion, and over it
			pg := o.restored([]string{"new", "old"}[n], "--backup", name)
			o.verify(pg.DataDir(), false)
			o.recovers(pg)
			if got := rows(s.ctx(), pg); got != 2000 {
				t.Errorf("from %s %d rows were restored, want 2000", name, got)
			}
		}
	})
}
