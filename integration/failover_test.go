package integration

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// failover is a scene whose server is replaced by another one, with a receiver
// that finds it at the same address, and a ledger of all commits that must be
// found by a restore that crosses the switches.
type failover struct {
	*scene
	random *rand.Rand
	gate   *gate
	r      *process
	acked  []commit
	last   int64 // number of the last row that was tried
}

// drama is a scenario. The short form has some, on one version and with small
// segments; the full form runs all of them on every version.
type drama struct {
	name  string
	short bool // part of the short form
	sizes bool // in the full form also with segments of 16 and 64 MB
	play  func(f *failover)
}

func dramas() []drama {
	return []drama{
		{"the receiver is up", true, true, func(f *failover) { f.promotion(true) }},
		{"the receiver is down", false, true, func(f *failover) { f.promotion(false) }},
		{"several hosts", true, false, (*failover).severalHosts},
		{"two promotions while it is down", false, true, func(f *failover) { f.twoPromotions(100) }},
		{"two promotions in one segment while it is down", true, false, func(f *failover) { f.twoPromotions(3) }},
		{"at a boundary, the receiver is up", false, true, func(f *failover) { f.boundary(true) }},
		{"at a boundary, the receiver is down", false, false, func(f *failover) { f.boundary(false) }},
		{"a standby is the source", false, true, (*failover).cascade},
		{"the old primary comes back", false, false, (*failover).rewound},
		{"restored to an earlier point", false, false, (*failover).setBack},
		{"shut down while the receiver lags", false, false, (*failover).switchover},
		{"the receiver was ahead", false, false, (*failover).ahead},
		{"two promotions to one timeline", true, false, (*failover).twoBranches},
	}
}

// Whatever becomes of the primary, the archive is restored across the switch,
// and no commit is missing that the timeline which is followed had.
func TestFailover(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		for _, c := range dramas() {
			if !theLab.full && !c.short {
				continue
			}
			sizes := []int{1}
			if theLab.full && c.sizes {
				sizes = []int{1, 16, 64}
			}
			for _, mb := range sizes {
				t.Run(fmt.Sprintf("%s, %d MB", c.name, mb), func(t *testing.T) {
					t.Parallel()
					c.play(newFailover(t, i, mb))
				})
			}
		}
	})
}

func newFailover(t *testing.T, i instance.Installation, mb int) *failover {
	t.Helper()
	f := &failover{scene: newScene(t, options{pg: i, segmentSize: mb, settings: failoverSettings(mb)}), random: seeded(t)}
	f.gate = f.scene.gate()
	f.receive()
	f.slotSegment()
	f.sql("CREATE TABLE ledger (id bigint PRIMARY KEY, v text, sum text)")
	return f
}

// failoverSettings are those of every server: what pg_rewind asks for, room for
// two segments, which PostgreSQL wants, and an archiver, with which a promoted
// server renames the old timeline's last segment. The receiver reports thrice in
// a wal_sender_timeout.
func failoverSettings(mb int) map[string]string {
	return map[string]string{
		"wal_log_hints": "on", "wal_keep_size": "4GB", "max_wal_size": "4GB", "min_wal_size": fmt.Sprint(max(2*mb, 80), "MB"),
		"autovacuum": "off", "hot_standby": "on", "archive_mode": "on", "archive_command": "true", "wal_sender_timeout": "6s",
	}
}

// receive starts the receiver, which connects through the gate.
func (f *failover) receive(more ...string) {
	f.t.Helper()
	f.r = f.receiveAs(f.gate, "ferry", f.spool, more...)
}

func (f *failover) receiveAs(g *gate, slot, spool string, more ...string) *process {
	f.t.Helper()
	return start(f.t, append(append(f.env(), g.env()...), "PGUSER=postgres", "PGSSLMODE=disable"), f.binary,
		append([]string{"receive", "--slot", slot, "--spool", spool, "--store", f.store()}, more...)...)
}

// standby starts a standby of a server.
func (f *failover) standby(name string, of *instance.Server) *instance.Server {
	f.t.Helper()
	pg := f.recovery(name, "standby.signal", "")
	settings := failoverSettings(int(f.size >> 20))
	settings["primary_conninfo"] = of.DSN("postgres")
	if err := pg.Configure(settings); err != nil {
		f.t.Fatal(err)
	}
	if err := pg.Start(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	return pg
}

// follow leads a standby to another server.
func (f *failover) follow(standby, of *instance.Server) {
	f.t.Helper()
	conninfo := ""
	if of != nil {
		conninfo = of.DSN("postgres")
	}
	if err := errors.Join(standby.Configure(map[string]string{"primary_conninfo": conninfo}), standby.Reload()); err != nil {
		f.t.Fatal(err)
	}
}

// commit commits rows on the scene's server that must be found again.
func (f *failover) commit(n int) {
	f.t.Helper()
	f.acked = append(f.acked, f.commitLoose(n)...)
}

// commitLoose commits rows, and returns those that were acknowledged.
func (f *failover) commitLoose(n int) []commit {
	f.t.Helper()
	l := f.ledger(f.random, writing{first: f.last + 1, clients: 3, pace: 2 * time.Millisecond})
	eventually(f.t, "commits", func() bool {
		if err := l.broken(); err != nil {
			f.t.Fatalf("a client ended: %v", err)
		}
		acked, _ := l.acknowledged()
		return len(acked) >= n
	})
	l.stop()
	acked, last := l.acknowledged()
	f.last = last
	return acked
}

// ask asks a server.
func (f *failover) ask(pg *instance.Server, sql string) string {
	f.t.Helper()
	v, err := query(f.ctx(), pg.DSN("postgres"), sql)
	if err != nil {
		f.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func (f *failover) lsn(pg *instance.Server, sql string) segment.LSN {
	f.t.Helper()
	lsn, err := segment.ParseLSN(f.ask(pg, sql))
	if err != nil {
		f.t.Fatal(err)
	}
	return lsn
}

// caughtUp waits until standbys have replayed all that the server has.
func (f *failover) caughtUp(standbys ...*instance.Server) {
	f.t.Helper()
	end := f.lsn(f.pg, "SELECT pg_current_wal_flush_lsn()")
	for _, pg := range standbys {
		eventually(f.t, "the standby to have caught up", func() bool {
			return f.lsn(pg, "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')") >= end
		})
	}
}

// received waits until the receiver has what a server has.
func (f *failover) received(from *instance.Server) {
	f.t.Helper()
	now := "pg_current_wal_flush_lsn()"
	if f.ask(from, "SELECT pg_is_in_recovery()") == "t" {
		now = "pg_last_wal_replay_lsn()"
	}
	end := f.lsn(from, "SELECT "+now)
	eventually(f.t, "the receiver to have "+end.String(), func() bool {
		if !f.r.running() {
			f.t.Fatalf("the receiver ended: %v", f.r.err)
		}
		return f.lsn(from, "SELECT coalesce(max(write_lsn), '0/0') FROM pg_stat_replication WHERE application_name = 'walferry'") >= end
	})
}

// promote makes a standby the scene's server, to which the address leads.
func (f *failover) promote(standby *instance.Server) {
	f.t.Helper()
	if err := standby.Promote(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	eventually(f.t, "the end of the recovery", func() bool { return f.ask(standby, "SELECT pg_is_in_recovery()") == "f" })
	f.pg = standby
	f.gate.lead(standby)
	f.gate.cut()
}

// forked is the server's timeline, and where its parent ended.
func (f *failover) forked() (segment.Timeline, segment.LSN) {
	f.t.Helper()
	n, err := segment.ParseName(f.ask(f.pg, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())"))
	if err != nil {
		f.t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(f.pg.DataDir(), "pg_wal", n.Timeline.HistoryName()))
	if err != nil {
		f.t.Fatal(err)
	}
	h, err := segment.ParseHistory(n.Timeline, content)
	if err != nil {
		f.t.Fatal(err)
	}
	return n.Timeline, h.Begin()
}

func (f *failover) kill(pg *instance.Server) {
	f.t.Helper()
	if err := pg.Kill(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
}

// settled ends everything, and wants what was committed from a restore along a
// timeline.
func (f *failover) settled(timeline segment.Timeline) {
	f.t.Helper()
	f.received(f.pg)
	if n, _ := f.forked(); n != timeline {
		f.t.Errorf("the server is on timeline %d, and %d was meant to be crossed to", n, timeline)
	}
	f.r.stop()
	f.kill(f.pg)
	f.restores("latest", f.acked)
}

// restores restores along a timeline, and wants commits.
func (f *failover) restores(timeline string, acked []commit) map[int64]bool {
	f.t.Helper()
	pg := f.recovery("restored-"+timeline, "recovery.signal", f.goodCommand())
	if err := pg.Configure(map[string]string{"recovery_target_timeline": timeline, "min_wal_size": failoverSettings(int(f.size >> 20))["min_wal_size"]}); err != nil {
		f.t.Fatal(err)
	}
	if err := pg.Launch(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	eventually(f.t, "the end of the recovery", func() bool {
		text, err := pg.Log()
		if !pg.Running() {
			f.t.Fatal("the recovery ended the server")
		}
		return err == nil && strings.Contains(text, "database system is ready to accept connections")
	})
	rows := rowsOfLedger(f.t, f.ctx(), pg)
	if lost := missing(acked, rows); len(lost) > 0 {
		f.t.Errorf("timeline %s: %d of %d acknowledged commits are missing, the first is row %d (%s or before)", timeline, len(lost), len(acked), lost[0].id, lost[0].lsn)
	}
	for id := range rows {
		if id > f.last {
			f.t.Errorf("nobody ever wrote row %d", id)
		}
	}
	if err := pg.Remove(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	return rows
}

// promotion: the primary dies, and its standby is promoted.
func (f *failover) promotion(up bool) {
	standby := f.standby("standby", f.pg)
	f.commit(50)
	f.caughtUp(standby)
	f.received(f.pg)
	if !up {
		f.r.kill9()
	}
	f.kill(f.pg)
	f.promote(standby)
	f.commit(50)
	if !up {
		f.receive()
	}
	f.received(f.pg)
	if f.ask(f.pg, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'ferry'") != "1" {
		f.t.Error("the receiver has made no slot on the new primary")
	}
	f.commit(20)
	f.settled(2)
}

// severalHosts: the receiver knows both servers, and finds the primary.
func (f *failover) severalHosts() {
	f.r.stop()
	standby := f.standby("standby", f.pg)
	old := f.pg
	f.r = start(f.t, f.env(), f.binary, "receive", "--slot", "ferry", "--spool", f.spool, "--store", f.store(),
		"-d", fmt.Sprintf("host=%s,%s port=%d,%d user=postgres sslmode=disable target_session_attrs=read-write",
			standby.SocketDir(), old.SocketDir(), standby.Port(), old.Port()))
	f.commit(50)
	f.caughtUp(standby)
	f.received(old)
	f.kill(old)
	f.promote(standby)
	f.commit(50)
	f.settled(2)
}

// twoPromotions: the second one's server is a standby of the first one's.
func (f *failover) twoPromotions(most int) {
	first, second := f.standby("first", f.pg), f.standby("second", f.pg)
	f.commit(50)
	f.switchWAL()
	f.commit(2)
	f.received(f.pg)
	f.r.kill9()
	f.commit(1 + f.random.IntN(most))
	f.caughtUp(first, second)
	f.kill(f.pg)
	f.follow(second, first)
	f.promote(first)
	_, one := f.forked()
	f.commit(1 + f.random.IntN(most))
	f.caughtUp(second)
	f.kill(first)
	f.promote(second)
	_, two := f.forked()
	f.t.Logf("the timelines ended at %s and %s", one, two)
	f.commit(50)
	f.receive()
	f.settled(3)
}

// boundary: the old timeline ends exactly at a segment's end.
func (f *failover) boundary(up bool) {
	standby := f.standby("standby", f.pg)
	f.commit(50)
	f.caughtUp(standby)
	f.ask(f.pg, "SELECT pg_switch_wal()") // by no transaction, so that nothing follows
	f.caughtUp(standby)
	f.received(f.pg)
	if !up {
		f.r.kill9()
	}
	f.kill(f.pg)
	f.promote(standby)
	if _, at := f.forked(); f.size.Offset(at) != 0 {
		f.t.Logf("THE BOUNDARY IS NOT TESTED: the server wrote something behind the switch, and the timeline ended at %s", at)
	}
	f.commit(50)
	if !up {
		f.receive()
	}
	f.settled(2)
}

// cascade: the receiver's source is a standby, which is led to another server
// that was promoted, and is promoted itself in the end.
func (f *failover) cascade() {
	f.r.stop()
	first, source := f.standby("first", f.pg), f.standby("source", f.pg)
	f.gate.lead(source)
	f.receive()
	f.commit(50)
	f.caughtUp(first, source)
	f.received(source)
	primary := f.pg
	f.kill(primary)
	f.follow(source, first)
	if err := first.Promote(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	eventually(f.t, "the end of the recovery", func() bool { return f.ask(first, "SELECT pg_is_in_recovery()") == "f" })
	f.pg = first
	f.commit(50)
	f.caughtUp(source)
	f.received(source)
	f.kill(first)
	if err := source.Promote(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	eventually(f.t, "the end of the recovery", func() bool { return f.ask(source, "SELECT pg_is_in_recovery()") == "f" })
	f.pg = source
	f.commit(50)
	f.settled(3)
}

// rewound: the old primary has written what nobody has. As a primary it is
// refused, also by a receiver that has nothing but the archive. Rewound, it is
// a standby like every other, and can be promoted.
func (f *failover) rewound() {
	old := f.pg
	standby := f.standby("standby", old)
	f.commit(50)
	f.caughtUp(standby)
	f.received(old)
	f.follow(standby, nil)
	eventually(f.t, "the standby to be cut off", func() bool { return f.ask(standby, "SELECT count(*) FROM pg_stat_wal_receiver") == "0" })
	f.r.stop()
	f.commitLoose(20) // which the receiver does not have either
	f.kill(old)
	f.promote(standby)
	f.receive()
	f.commit(50)
	f.received(f.pg)
	f.r.stop()

	if err := old.Start(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	f.gate.lead(old)
	unchanged := strings.Join(whole(f.t, f.archive), "\n")
	for what, spool := range map[string]string{"with its spool": f.spool, "with an empty spool": f.empty("empty")} {
		r := f.receiveAs(f.gate, "ferry", spool)
		f.refused(r, "the old primary, "+what, `older timeline.*00000002\.history`)
		if now := strings.Join(whole(f.t, f.archive), "\n"); now != unchanged {
			f.t.Errorf("%s: the archive has changed:\n%s\nwas:\n%s", what, now, unchanged)
		}
	}
	if err := old.Stop(f.ctx(), instance.Fast); err != nil {
		f.t.Fatal(err)
	}
	f.gate.lead(f.pg)
	f.receive()
	i := old.Installation()
	if !i.Has("pg_rewind") {
		f.t.Logf("%s has no pg_rewind: the old primary stays away", i)
		f.settled(2)
		return
	}
	// It asks the source's control file for the timeline, which a promotion alone
	// does not change (PostgreSQL documentation, pg_rewind).
	f.sql("CHECKPOINT")
	start(f.t, nil, i.Program("pg_rewind"), "--target-pgdata="+old.DataDir(), "--source-server="+f.pg.DSN("postgres"), "--no-sync").exits(0)
	// pg_rewind brings the source's settings along.
	settings := failoverSettings(int(f.size >> 20))
	settings["primary_conninfo"], settings["restore_command"] = f.pg.DSN("postgres"), ""
	if err := errors.Join(old.Configure(settings), os.WriteFile(filepath.Join(old.DataDir(), "standby.signal"), nil, 0o600), theLab.account.Own(old.DataDir())); err != nil {
		f.t.Fatal(err)
	}
	if err := old.Start(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	f.commit(20)
	f.caughtUp(old)
	f.received(f.pg)
	f.kill(f.pg)
	f.promote(old)
	f.commit(50)
	f.settled(3)
}

// setBack: the primary is lost with an error of a person, and made again from the
// archive up to an earlier point, twice: the second time to a point before the
// first. The receiver goes on with the same spool, and what is behind such a
// point stays to be had on the old timeline.
func (f *failover) setBack() {
	f.commit(30)
	early, upToEarly := f.lsn(f.pg, "SELECT pg_current_wal_insert_lsn()"), slices.Clone(f.acked)
	f.commit(30)
	late, upToLate := f.lsn(f.pg, "SELECT pg_current_wal_insert_lsn()"), slices.Clone(f.acked)
	f.commit(100)
	onFirst, lastOfFirst := slices.Clone(f.acked), f.last
	f.received(f.pg)
	f.r.stop()
	f.kill(f.pg)

	f.recoverTo("late", late)
	f.receive()
	f.acked = upToLate
	f.commit(50)
	onSecond, lastOfSecond := slices.Clone(f.acked), f.last
	f.received(f.pg)
	f.r.awaitLog(`stays on the old timeline`)
	f.r.stop()
	f.kill(f.pg)

	f.recoverTo("early", early)
	f.receive()
	f.acked = upToEarly
	f.commit(50)
	f.r.awaitLog(`stays on the old timeline`)
	f.settled(3)
	for timeline, want := range map[string]struct {
		acked []commit
		last  int64
	}{"1": {onFirst, lastOfFirst}, "2": {onSecond, lastOfSecond}} {
		rows := f.restores(timeline, want.acked)
		for id := range rows {
			if id > want.last {
				f.t.Errorf("row %d of a later timeline is on timeline %s", id, timeline)
			}
		}
	}
}

// recoverTo makes the scene's server out of the archive, up to an LSN.
func (f *failover) recoverTo(name string, target segment.LSN) {
	f.t.Helper()
	pg := f.recovery(name, "recovery.signal", f.goodCommand())
	settings := failoverSettings(int(f.size >> 20))
	maps.Copy(settings, map[string]string{"recovery_target_lsn": target.String(), "recovery_target_inclusive": "false", "recovery_target_action": "promote"})
	if err := pg.Configure(settings); err != nil {
		f.t.Fatal(err)
	}
	if err := pg.Start(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	eventually(f.t, "the end of the recovery", func() bool { return f.ask(pg, "SELECT pg_is_in_recovery()") == "f" })
	f.pg = pg
	f.gate.lead(pg)
	n, at := f.forked()
	f.t.Logf("timeline %d began at %s, the target was %s", n, at, target)
}

// switchover: a fast shutdown, which waits for the receiver, which lags; then
// the standby takes over.
func (f *failover) switchover() {
	standby := f.standby("standby", f.pg)
	f.commit(50)
	f.received(f.pg)
	f.r.signal(syscall.SIGSTOP)
	f.commit(200)
	stopped := f.shutDown()
	eventually(f.t, "the server to be shutting down", func() bool {
		_, err := query(f.ctx(), f.pg.DSN("postgres"), "SELECT 1")
		return err != nil && strings.Contains(err.Error(), "shutting down")
	})
	f.r.signal(syscall.SIGCONT)
	if err := <-stopped; err != nil {
		f.t.Fatalf("the shutdown is held up: %v", err)
	}
	f.promote(standby)
	f.commit(50)
	f.settled(2)
}

// ahead: commits wait for the receiver's disk alone, and the standby that is
// promoted does not have them. They are on the old timeline, also when the
// disk is lost behind the promotion: the archive has them by then.
func (f *failover) ahead() {
	f.r.stop()
	f.receive("--ship-interval", "1h", "--synchronous", "on")
	standby := f.standby("standby", f.pg)
	f.commit(50)
	f.caughtUp(standby)
	f.received(f.pg)
	f.follow(standby, nil)
	eventually(f.t, "the standby to be cut off", func() bool { return f.ask(standby, "SELECT count(*) FROM pg_stat_wal_receiver") == "0" })
	if err := errors.Join(f.pg.Configure(map[string]string{"synchronous_standby_names": "walferry"}), f.pg.Reload()); err != nil {
		f.t.Fatal(err)
	}
	eventually(f.t, "the receiver to be a synchronous standby", func() bool {
		return f.sql("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walferry' AND sync_state = 'sync'") == "1"
	})
	before := slices.Clone(f.acked)
	undone := f.commitLoose(1 + f.random.IntN(200)) // in the same segment, or further
	oldLast := f.last
	f.kill(f.pg)
	f.promote(standby)
	f.commit(50)
	f.received(f.pg)
	f.r.awaitLog(`stays on the old timeline`)
	f.r.awaitLog(`(?s)the archive has WAL that the timeline's child does not contain`)
	eventually(f.t, "the old timeline to leave the spool", func() bool {
		return !slices.ContainsFunc(spooled(f.t, f.spool), func(name string) bool { return strings.HasPrefix(name, "00000001") })
	})
	f.settled(2)
	if err := os.RemoveAll(f.spool); err != nil {
		f.t.Fatal(err)
	}
	rows := f.restores("1", append(before, undone...))
	for id := range rows {
		if id > oldLast {
			f.t.Errorf("row %d of the new timeline is on the old one", id)
		}
	}
}

// twoBranches: two standbys are promoted at a time, each followed by a receiver,
// which write to the same archive. The one that comes second stops there, and
// changes nothing; one that begins with the archive alone is refused.
func (f *failover) twoBranches() {
	left, right := f.standby("left", f.pg), f.standby("right", f.pg)
	g := f.scene.gate()
	other := f.receiveAs(g, "other", f.empty("other-spool"), "--spool-limit", "4MB")
	f.commit(50)
	f.caughtUp(left, right)
	f.follow(right, nil)
	eventually(f.t, "the standby to be cut off", func() bool { return f.ask(right, "SELECT count(*) FROM pg_stat_wal_receiver") == "0" })
	f.commit(20) // so that they branch off at two places
	f.caughtUp(left)
	f.received(f.pg)
	g.lead(right)
	f.kill(f.pg)
	f.promote(left)
	f.commit(50)
	f.received(f.pg)
	eventually(f.t, "the history in the archive", func() bool {
		_, err := os.Stat(filepath.Join(f.archive, "wal_005", "00000002.history.lz4"))
		return err == nil
	})
	if err := right.Promote(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	eventually(f.t, "the end of the recovery", func() bool { return f.ask(right, "SELECT pg_is_in_recovery()") == "f" })
	other.awaitLog(`shipping has stopped.*00000002\.history`)
	for other.running() { // its spool fills
		f.ask(right, "INSERT INTO ledger SELECT g, v, md5(v) FROM (SELECT g, md5(random()::text) AS v FROM generate_series(1000000, 1010000) AS g) AS x ON CONFLICT (id) DO UPDATE SET v = excluded.v, sum = excluded.sum")
	}
	other.exits(3)
	f.refused(f.receiveAs(g, "another", f.empty("another-spool")), "with the archive alone", `conflict: .*two servers were promoted to timeline 2`)
	f.commit(20)
	f.settled(2)
}
