package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// gapScene is a scene whose server keeps no more WAL than its slots ask for. A
// base backup was taken and rows were written; all of it is in the archive, the
// unfinished segment in tail objects, and the receiver has stopped.
type gapScene struct {
	*operator
	backup string // its name
	rows   int    // that the archive has
	held   segment.Name
	target segment.LSN // in the unfinished segment, with 100 rows behind
}

// keep is the server's wal_keep_size.
func newGapScene(t *testing.T, i instance.Installation, keep string) *gapScene {
	t.Helper()
	s := newScene(t, options{pg: i, settings: map[string]string{"wal_keep_size": keep, "min_wal_size": "2MB", "max_wal_size": "2MB"}})
	g := &gapScene{operator: s.operator()}
	r := s.receive()
	s.slotSegment()
	s.table()
	s.fill(500)
	g.backup = g.operator.backup()
	s.switchWAL()
	s.fill(200)
	g.target = s.lsn("SELECT pg_current_wal_lsn()")
	s.fill(100)
	end := s.awaitShipped()
	g.held, g.rows = s.size.Name(1, end-1), rows(s.ctx(), s.pg)
	r.stop()
	if g.rows != 800 || s.size.Name(1, g.target) != g.held {
		t.Fatalf("%d rows, the target %s and the end %s must be in one segment", g.rows, g.target, end)
	}
	return g
}

// change sets settings of the running server.
func (g *gapScene) change(settings map[string]string) {
	g.t.Helper()
	if err := g.pg.Configure(settings); err != nil {
		g.t.Fatal(err)
	}
	if err := g.pg.Reload(); err != nil {
		g.t.Fatal(err)
	}
}

// recycle writes until the server has removed the segment in which the archive
// ends, and the two that follow.
func (g *gapScene) recycle() {
	g.t.Helper()
	eventually(g.t, "the server to remove the WAL that follows the archive", func() bool {
		g.fill(200)
		g.switchWAL()
		g.sql("CHECKPOINT")
		last := g.held.Next(g.size).Next(g.size)
		_, err := os.Stat(filepath.Join(g.pg.DataDir(), "pg_wal", last.String()))
		return os.IsNotExist(err) && g.lsn("SELECT pg_current_wal_lsn()") > last.End(g.size)
	})
}

// lost waits until the slot is invalidated.
func (g *gapScene) lost() {
	g.t.Helper()
	eventually(g.t, "the slot to be lost", func() bool {
		g.sql("CHECKPOINT")
		return g.sql("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'ferry'") == "lost"
	})
}

// ways are those in which a slot stops to retain WAL.
func (g *gapScene) ways() map[string]func() {
	ways := map[string]func(){
		"dropped": func() { g.sql("SELECT pg_drop_replication_slot('ferry')") },
		"max_slot_wal_keep_size": func() {
			g.change(map[string]string{"max_slot_wal_keep_size": "1MB"})
			g.recycle()
			g.lost()
			if got := g.sql("SELECT coalesce(restart_lsn::text, 'null') FROM pg_replication_slots WHERE slot_name = 'ferry'"); got != "null" {
				g.t.Errorf("the lost slot's restart_lsn is %s", got)
			}
		},
	}
	if g.pg.Installation().Major >= 18 {
		ways["idle_replication_slot_timeout"] = func() {
			g.change(map[string]string{"idle_replication_slot_timeout": "1s"})
			g.lost()
			g.change(map[string]string{"idle_replication_slot_timeout": ""})
		}
	}
	return ways
}

// recordedGap is a gap as the archive has it.
type recordedGap struct {
	Version    int       `json:"version"`
	System     string    `json:"system_identifier"`
	Timeline   uint32    `json:"timeline"`
	Start      lsnField  `json:"start"`
	End        lsnField  `json:"end"`
	RecordedAt time.Time `json:"recorded_at"`
	Reason     string    `json:"reason"`
	Slot       string    `json:"slot"`
}

// recorded reads them, out of the archive's directory.
func (g *gapScene) recorded() (all []recordedGap) {
	g.t.Helper()
	paths, err := filepath.Glob(filepath.Join(g.archive, "walferry_005", "gaps", "*"))
	if err != nil {
		g.t.Fatal(err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			g.t.Fatal(err)
		}
		var one recordedGap
		if err := json.Unmarshal(b, &one); err != nil {
			g.t.Fatalf("%s: %v", p, err)
		}
		if want := fmt.Sprintf("%08x-%016x-%016x.json", one.Timeline, uint64(one.Start.LSN), uint64(one.End.LSN)); filepath.Base(p) != want {
			g.t.Errorf("%s holds %+v, whose name is %s", p, one, want)
		}
		all = append(all, one)
	}
	return all
}

// The slot is gone or lost, and the server has removed the WAL that follows. It
// is told what is missing, and which backups it cuts. When it is to, the receiver
// records the gap and goes on, and every reader knows of it: what lies in front
// restores up to the gap, to the last acknowledged row, but only when that is
// said; what lies behind restores from a new base backup.
func TestGap(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		for _, way := range []string{"dropped", "max_slot_wal_keep_size", "idle_replication_slot_timeout"} {
			t.Run(way, func(t *testing.T) {
				g := newGapScene(t, i, "0")
				lose := g.ways()[way]
				if lose == nil {
					t.Skipf("%s has no %s", i, way)
				}
				lose()
				g.recycle()
				g.stops()
				gap := g.records()
				g.restoresInFront(gap)
				g.restoresBehind()
			})
		}
	})
}

// stops starts a receiver that must not hide the gap.
func (g *gapScene) stops() {
	g.t.Helper()
	before := whole(g.t, g.archive)
	slots := g.sql("SELECT string_agg(slot_name || wal_status, ',') FROM pg_replication_slots")
	r := g.receive()
	r.failed(3, `a gap: WAL that follows what we hold is gone.*missing is 0/\w+ to 0/\w+ on timeline 1.*`+g.held.String()+` has already been removed`)
	for _, want := range []string{"hint: base backup " + g.backup + " restores up to 0/", "--on-gap record", "take a base backup", "another --store"} {
		if !strings.Contains(r.log(), want) {
			g.t.Errorf("the message does not say %q:\n%s", want, r.log())
		}
	}
	if got := whole(g.t, g.archive); strings.Join(got, "\n") != strings.Join(before, "\n") {
		g.t.Errorf("the archive has changed:\n%s", strings.Join(got, "\n"))
	}
	if got := g.sql("SELECT string_agg(slot_name || wal_status, ',') FROM pg_replication_slots"); got != slots {
		g.t.Errorf("the slots were %s, and are now %s", slots, got)
	}
}

// records starts one that is told to record it, which then streams what the
// server has.
func (g *gapScene) records() (gap recordedGap) {
	g.t.Helper()
	r := g.receive("--on-gap", "record")
	r.awaitLog("a gap was recorded")
	r.awaitLog("what the gap cuts: base backup " + g.backup + " restores up to 0/")
	g.fill(300)
	last := g.switchWAL()
	all := g.recorded()
	if len(all) != 1 {
		g.t.Fatalf("recorded: %+v", all)
	}
	gap = all[0]
	if gap.Version != 1 || gap.Timeline != 1 || gap.Slot != "ferry" || !strings.Contains(gap.Reason, "already been removed") || time.Since(gap.RecordedAt) > time.Hour ||
		gap.System != g.sql("SELECT system_identifier FROM pg_control_system()") {
		g.t.Errorf("recorded: %+v", gap)
	}
	if g.size.Name(1, gap.Start.LSN) != g.held || g.size.Offset(gap.Start.LSN) == 0 || g.size.Offset(gap.End.LSN) != 0 {
		g.t.Errorf("the gap is from %s to %s; what was held ends in %s", gap.Start, gap.End, g.held)
	}
	first := g.size.Name(1, gap.End.LSN)
	g.awaitSealed(first, last)
	for n := first; n.Compare(last) <= 0; n = n.Next(g.size) {
		path := filepath.Join(g.pg.DataDir(), "pg_wal", n.String())
		if _, err := os.Stat(path); err != nil {
			continue // removed since
		}
		got, err := decode(filepath.Join(g.archive, "wal_005", n.String()+".lz4"))
		if err != nil {
			g.t.Errorf("%s: %v", n, err)
			continue
		}
		g.compareWithServer(n, got)
	}
	if got := g.sql("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'ferry'"); got != "reserved" {
		g.t.Errorf("the slot's status is %s", got)
	}
	if left := spooled(g.t, g.spool); slices.Contains(left, g.held.String()+".partial") {
		g.t.Errorf("%v is in the spool", left)
	}
	// Another start, with another spool, knows where to go on.
	r.stop()
	r = g.receive("--spool", filepath.Join(g.home, "another-spool"))
	g.fill(100)
	g.awaitSealed(first, g.switchWAL())
	if again := g.recorded(); len(again) != 1 {
		g.t.Errorf("recorded: %+v", again)
	}
	g.t.Cleanup(r.stop)
	return gap
}

// restoresInFront restores the backup from before the gap.
func (g *gapScene) restoresInFront(gap recordedGap) {
	g.t.Helper()
	b := g.show(g.backup)
	if b.RestorableTo == nil || b.RestorableTo.LSN != gap.Start || b.Gap == nil || b.Gap.Start != gap.Start || b.Gap.End != gap.End || b.Gap.Timeline != 1 {
		g.t.Errorf("backup show says %+v, %+v of the gap %+v", b.RestorableTo, b.Gap, gap)
	}
	p := g.walferry("backup", "list")
	p.exits(0)
	if !strings.Contains(p.stdout.String(), "WAL ends at a recorded gap: "+gap.Start.String()) {
		g.t.Errorf("backup list says\n%s", p.stdout.String())
	}
	p = g.walferry("status")
	p.exits(0)
	if !strings.Contains(p.stdout.String(), "lost       "+gap.Start.String()+" to "+gap.End.String()+" on timeline 1: a gap was recorded") {
		g.t.Errorf("status says\n%s", p.stdout.String())
	}
	if window := fmt.Sprintf("window     %s to %s on timeline 1, with %s or a newer one\n", b.Stop.LSN, gap.Start, g.backup); !strings.Contains(p.stdout.String(), window) {
		g.t.Errorf("status says\n%swant\n%s", p.stdout.String(), window)
	}
	dir := filepath.Join(g.dir, "refused")
	lostAt := "WAL from " + gap.Start.String() + " to " + gap.End.String() + " on timeline 1 is lost: a gap was recorded there"
	for _, args := range [][]string{{}, {"--target-lsn", (gap.Start.LSN + 8).String()}, {"--target-lsn", (gap.End.LSN + 0x1000).String()}, {"--standby"},
		{"--target-time", time.Now().Add(time.Minute).Format(time.RFC3339)}} {
		p := g.restore(dir, args...)
		p.failed(1, "(?s)"+strings.NewReplacer("(", `\(`, ")", `\)`).Replace(lostAt)+".*possible: from .* to before "+gap.Start.String())
		absent(g.t, dir)
	}

	pg := g.restored("up-to-the-gap", "--stop-at-gap")
	g.recovers(pg)
	if got := rows(g.ctx(), pg); got != g.rows {
		g.t.Errorf("restored up to the gap: %d rows, %d were acknowledged and in the archive", got, g.rows)
	}
	// A target in the unfinished segment in front of the gap is reached.
	pg = g.restored("in-front", "--target-lsn", g.target.String(), "--target-action", "promote")
	g.recovers(pg)
	if got := rows(g.ctx(), pg); got != g.rows-100 {
		g.t.Errorf("restored to %s: %d rows, want %d", g.target, got, g.rows-100)
	}
}

// restoresBehind takes a base backup behind the gap and restores it.
func (g *gapScene) restoresBehind() {
	g.t.Helper()
	name := g.operator.backup()
	g.fill(123)
	g.awaitShipped()
	if b := g.show("LATEST"); b.Name != name || b.Gap != nil {
		g.t.Errorf("the newest backup is %s, with the gap %+v; want %s", b.Name, b.Gap, name)
	}
	want := rows(g.ctx(), g.pg)
	pg := g.restored("behind")
	g.recovers(pg)
	if got := rows(g.ctx(), pg); got != want {
		g.t.Errorf("restored behind the gap: %d rows, %d were acknowledged", got, want)
	}
}

// A lost slot is no proof: the server still has the WAL, since wal_keep_size
// keeps it. Nothing is missing.
func TestLostSlotWithoutAGap(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		if i.Major < 18 {
			t.Skip("before 18 a slot is lost only with its WAL")
		}
		g := newGapScene(t, i, "4GB")
		g.ways()["idle_replication_slot_timeout"]()
		g.fill(2000)
		g.sql("CHECKPOINT")
		last := g.switchWAL()
		r := g.receive("--on-gap", "record")
		g.awaitSealed(g.held, last)
		r.stop()
		if all := g.recorded(); len(all) != 0 {
			t.Errorf("recorded: %+v", all)
		}
		g.compareHeldWithServer(last)
	})
}

// compareHeldWithServer holds what came behind the restart against the server's
// bytes.
func (g *gapScene) compareHeldWithServer(last segment.Name) {
	g.t.Helper()
	for n := g.held; n.Compare(last) <= 0; n = n.Next(g.size) {
		got, err := decode(filepath.Join(g.archive, "wal_005", n.String()+".lz4"))
		if err != nil {
			g.t.Errorf("%s: %v", n, err)
			continue
		}
		g.compareWithServer(n, got)
	}
}

// The primary has removed the WAL that follows, and a standby, which the
// connection string names and target_session_attrs passes over, has it: nothing
// is missing.
func TestAnotherHostHasTheWAL(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		g := newGapScene(t, i, "4GB")
		standby := g.standby()
		g.sql("SELECT pg_create_physical_replication_slot('standby')")
		if err := errors.Join(standby.Configure(map[string]string{"primary_slot_name": "standby"}), standby.Reload()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the standby to use its slot", func() bool {
			return g.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'standby'") == "t"
		})
		g.sql("SELECT pg_drop_replication_slot('ferry')")
		g.change(map[string]string{"wal_keep_size": "0"})
		g.recycle()
		last := g.switchWAL()
		g.caughtUp(standby)
		dsn := fmt.Sprintf("host='%s,%s' port=%d,%d user=postgres dbname=postgres sslmode=disable target_session_attrs=primary",
			g.pg.SocketDir(), standby.SocketDir(), g.pg.Port(), standby.Port())
		r := g.receive("-d", dsn)
		r.awaitLog("asking another host for it")
		g.awaitSealed(g.held, last)
		g.fill(500)
		g.awaitSealed(g.held, g.switchWAL())
		g.awaitShipped()
		want := rows(g.ctx(), g.pg)
		r.stop()
		if all := g.recorded(); len(all) != 0 {
			t.Errorf("recorded: %+v", all)
		}
		// The backup from before restores all of it.
		pg := g.restored("all")
		g.recovers(pg)
		if got := rows(g.ctx(), pg); got != want {
			t.Errorf("restored %d rows, %d were acknowledged", got, want)
		}
	})
}
