package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// archived is a scene whose archive is complete: n rows, all of them in whole
// segments, the receiver stopped and the primary gone.
func archived(t *testing.T, i instance.Installation) (s *scene, n int) {
	t.Helper()
	s = newScene(t, options{pg: i})
	r := s.receive()
	first := s.slotSegment()
	s.table()
	for range 3 {
		s.fill(1000)
		s.switchWAL()
	}
	last := s.switchWAL()
	s.awaitSealed(first, last)
	r.stop()
	if err := s.pg.Kill(s.ctx()); err != nil {
		t.Fatal(err)
	}
	return s, 3000
}

// broken are the ways in which a restore_command does not do what was meant.
// Each ends in neither a promotion nor a damaged cluster.
type broken struct {
	name    string
	command string
	says    string // in the server's log
	// survives: a standby polls on. It stops where only a signal's code is
	// left (a crash of ours, a program that is not there).
	survives bool
	// patient: a history file is tried without end in one call, and the
	// reason is told now and then.
	patient  bool
	do, undo func() // outside of the server
}

func (s *scene) brokenCommands() []broken {
	t := s.t
	panicking, err := theLab.panicking()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(s.home, "misspelt.yaml")
	s.writeHome("misspelt.yaml", "stroe: "+s.store()+"\n")
	// A hole: the segment in the middle is not there, later ones are.
	hole := filepath.Join(s.archive, "wal_005", s.middle().String()+".lz4")
	rename := func(from, to string) func() {
		return func() {
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	budget := " --budget 1s"
	return []broken{
		{name: "misspelt flag", command: s.binary + " fetch --bugdet 5m --store " + s.store() + " %f %p", says: "bugdet", survives: true},
		{name: "word too many", command: s.binary + " fetch --store " + s.store() + " %f %p more", says: "walferry", survives: true},
		{name: "unknown config key", command: s.binary + " fetch --config " + config + " %f %p", says: "stroe", survives: true},
		{name: "missing config file", command: s.binary + " fetch --config /nowhere/walferry.yaml %f %p", says: "/nowhere/walferry.yaml", survives: true},
		{name: "no store", command: s.binary + " fetch %f %p", says: "store", survives: true},
		{name: "wrong prefix", command: s.binary + " fetch --store " + s.store() + "/wrong %f %p" + budget, says: "wrong", survives: true, patient: true},
		{name: "directory not mounted", command: s.goodCommand() + budget, says: s.archive, survives: true, patient: true,
			do: rename(s.archive, s.archive+".away"), undo: rename(s.archive+".away", s.archive)},
		{name: "missing segment in the middle", command: s.goodCommand() + budget, says: s.middle().String(), survives: true,
			do: rename(hole, hole+".away"), undo: rename(hole+".away", hole)},
		{name: "panic", command: panicking + " fetch --store " + s.store() + " %f %p", says: "a bug"},
		{name: "program not there", command: "/nowhere/walferry fetch --store " + s.store() + " %f %p", says: "not found"},
	}
}

func (s *scene) goodCommand() string {
	return s.binary + " fetch --store " + s.store() + " %f %p"
}

// middle is a segment in the middle of the archive.
func (s *scene) middle() segment.Name {
	s.t.Helper()
	var first, last segment.Name
	for n := range s.sealed() {
		if first == (segment.Name{}) || n.Compare(first) < 0 {
			first = n
		}
		if n.Compare(last) > 0 {
			last = n
		}
	}
	middle := first.Next(s.size).Next(s.size)
	if middle.Compare(last) >= 0 {
		s.t.Fatalf("the archive holds %s to %s only", first, last)
	}
	return middle
}

// In archive recovery a restore_command that is wrong stops the server: it
// never ends the recovery, because that would promote a server that lacks
// rows. After the mend it goes on from where it was.
func TestRecoveryStopsAndGoesOn(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		s, want := archived(t, i)
		pg := s.recovery("recovered", "recovery.signal", "")
		for _, b := range s.brokenCommands() {
			if b.do != nil {
				b.do()
			}
			if err := pg.Configure(map[string]string{"restore_command": b.command}); err != nil {
				t.Fatal(err)
			}
			if err := pg.Launch(s.ctx()); err != nil {
				t.Fatal(err)
			}
			// It may say that it is ready for readers before it needs the file
			// that it does not get: what counts is that it ends, unpromoted.
			if err := pg.AwaitPrimary(s.ctx()); !errors.Is(err, instance.ErrExited) {
				t.Fatalf("%s: the server did not stop: %v", b.name, err)
			}
			s.unpromoted(pg, b)
			if b.undo != nil {
				b.undo()
			}
		}
		if err := pg.Configure(map[string]string{"restore_command": s.goodCommand()}); err != nil {
			t.Fatal(err)
		}
		if err := pg.Start(s.ctx()); err != nil {
			t.Fatal(err)
		}
		if err := pg.AwaitPrimary(s.ctx()); err != nil {
			t.Fatal(err)
		}
		if got := rows(s.ctx(), pg); got != want {
			t.Errorf("%d rows were recovered, want %d", got, want)
		}
	})
}

// unpromoted looks whether a server stayed what it was, and said why.
func (s *scene) unpromoted(pg *instance.Server, b broken) {
	s.t.Helper()
	c, err := instance.ReadControl(pg.DataDir())
	if err != nil {
		s.t.Fatal(err)
	}
	if c.State == instance.StateInProduction {
		s.t.Fatalf("%s: the server was promoted", b.name)
	}
	if _, err := os.Stat(filepath.Join(pg.DataDir(), "pg_wal", "00000002.history")); err == nil {
		s.t.Fatalf("%s: the server has begun a timeline", b.name)
	}
	text, err := pg.Log()
	if err != nil {
		s.t.Fatal(err)
	}
	if !strings.Contains(text, b.says) {
		s.t.Errorf("%s: the server's log does not say %q:\n%s", b.name, b.says, text)
	}
}

// A standby polls on while its restore_command is wrong, without being
// promoted, and catches up after the mend; it goes down only with a crash of
// the command, and then comes back.
func TestStandbyWaitsAndGoesOn(t *testing.T) {
	t.Parallel()
	s, want := archived(t, theLab.main)
	all := s.brokenCommands()
	for _, b := range all {
		if b.do == nil {
			continue // the same cluster serves all but those that need a fresh one
		}
		t.Run(b.name, func(t *testing.T) {
			b.do()
			pg := s.recovery(strings.ReplaceAll(b.name, " ", "-"), "standby.signal", b.command)
			s.polls(pg, b)
			b.undo()
			// Nothing of the server is changed: the storage is back.
			s.catchesUp(pg, want)
		})
	}
	pg := s.recovery("standby", "standby.signal", "")
	for _, b := range all {
		if b.do != nil {
			continue
		}
		if err := pg.Configure(map[string]string{"restore_command": b.command}); err != nil {
			t.Fatal(err)
		}
		if b.survives {
			s.polls(pg, b)
			if err := pg.Stop(s.ctx(), instance.Fast); err != nil {
				t.Fatalf("%s: the standby does not stop: %v", b.name, err)
			}
			continue
		}
		if err := pg.Launch(s.ctx()); err != nil {
			t.Fatal(err)
		}
		if err := pg.AwaitPrimary(s.ctx()); !errors.Is(err, instance.ErrExited) {
			t.Fatalf("%s: the standby did not stop: %v", b.name, err)
		}
		s.unpromoted(pg, b)
	}
	// The mend of a running standby: a reload.
	s.polls(pg, broken{name: "before the mend", command: all[0].command, says: all[0].says})
	if err := pg.Configure(map[string]string{"restore_command": s.goodCommand()}); err != nil {
		t.Fatal(err)
	}
	if pg.Installation().Major < 14 {
		t.Fatal("restore_command needs a restart before PostgreSQL 14")
	}
	if err := pg.Reload(); err != nil {
		t.Fatal(err)
	}
	s.catchesUp(pg, want)
	if err := pg.Promote(s.ctx()); err != nil {
		t.Fatal(err)
	}
	if got := rows(s.ctx(), pg); got != want {
		t.Errorf("after the promotion there are %d rows, want %d", got, want)
	}
}

// polls starts a standby and waits until its restore_command has failed with
// the reason, again and again; it runs on, unpromoted.
func (s *scene) polls(pg *instance.Server, b broken) {
	s.t.Helper()
	if b.command != "" {
		if err := pg.Configure(map[string]string{"restore_command": b.command}); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := pg.Launch(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
	times := 2
	if b.patient {
		times = 1
	}
	eventually(s.t, b.name+": the standby to poll", func() bool {
		if !pg.Running() {
			s.t.Fatalf("%s: the standby went down", b.name)
		}
		text, err := pg.Log()
		return err == nil && strings.Count(text, b.says) >= times
	})
	s.unpromoted(pg, b)
}

func (s *scene) catchesUp(pg *instance.Server, want int) {
	s.t.Helper()
	eventually(s.t, "the standby to have every row", func() bool {
		if !pg.Running() {
			s.t.Fatal("the standby went down")
		}
		return rows(s.ctx(), pg) == want
	})
	if v, err := query(s.ctx(), pg.DSN("postgres"), "SELECT pg_is_in_recovery()"); err != nil || v != "t" {
		s.t.Errorf("the standby is in recovery: %s, %v", v, err)
	}
}

// A recovery to a time stops there: the rows before it are there, those behind
// it are not.
func TestRecoveryToTime(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive()
	first := s.slotSegment()
	s.table()
	s.fill(1000)
	target := s.sql("SELECT pg_sleep(0.1); SELECT now()::text")
	s.sql("SELECT pg_sleep(0.1)")
	s.fill(1000)
	s.awaitSealed(first, s.switchWAL())
	r.stop()
	pg := s.recovery("recovered", "recovery.signal", s.goodCommand())
	if err := pg.Configure(map[string]string{"recovery_target_time": target, "recovery_target_action": "promote"}); err != nil {
		t.Fatal(err)
	}
	if err := pg.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := pg.AwaitPrimary(s.ctx()); err != nil {
		t.Fatal(err)
	}
	if got := rows(s.ctx(), pg); got != 1000 {
		t.Errorf("%d rows were recovered, want 1000", got)
	}
}
