package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
)

// A standby that lags is promoted while the receiver, which commits wait for,
// is ahead of it: what the receiver holds beyond the switchpoint acknowledges
// nothing on the new timeline. No commit of the new timeline is let go of that
// is not in the archive, and what was beyond the switchpoint stays on the old
// timeline, whose commits can be had back.
func TestPromotionBehindTheReceiver(t *testing.T) {
	t.Parallel()
	for _, elsewhere := range some(t, false, true) {
		name := "the server's address moves"
		if elsewhere {
			name = "the receiver is restarted elsewhere"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range rounds(1, 5) {
				promoteBehind(t, elsewhere)
				if t.Failed() {
					return
				}
			}
		})
	}
}

func promoteBehind(t *testing.T, elsewhere bool) {
	t.Helper()
	d := newDoomed(t)
	st := d.stations[0]
	d.beginFresh()
	old := d.pg
	standby := d.adopt("standby", "standby.signal")
	if err := standby.Configure(map[string]string{"restore_command": "", "primary_conninfo": old.DSN("postgres"), "synchronous_standby_names": st.name}); err != nil {
		t.Fatal(err)
	}
	if err := standby.Start(d.ctx()); err != nil {
		t.Fatal(err)
	}
	d.makeSynchronous(old, st.name)
	g := d.gate()
	flags := []string{"receive", "--ack", "archive"}
	receive := func(more ...string) {
		st.run = d.ferry(append(append([]string{"PGAPPNAME=" + st.name}, g.env()...), more...), flags...)
	}
	receive()
	d.begins = d.reserved()
	d.baseBackup()
	w := writing{first: 1, clients: 4, pace: 5 * time.Millisecond, synchronous: "on"}
	before := d.ledger(d.random, w)
	eventually(t, "commits on the old timeline", func() bool { acked, _ := before.acknowledged(); return len(acked) >= 20 })

	// The standby falls behind, and is promoted.
	if err := standby.Configure(map[string]string{"primary_conninfo": ""}); err != nil {
		t.Fatal(err)
	}
	if err := standby.Reload(); err != nil {
		t.Fatal(err)
	}
	ask := func(sql string) string {
		v, err := query(d.ctx(), standby.DSN("postgres"), sql)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	eventually(t, "the standby to be cut off", func() bool { return ask("SELECT count(*) FROM pg_stat_wal_receiver") == "0" })
	acked, _ := before.acknowledged()
	more := len(acked) + 20 + d.random.IntN(400)
	eventually(t, "commits that the standby does not have", func() bool { acked, _ := before.acknowledged(); return len(acked) >= more })
	if err := old.Kill(d.ctx()); err != nil {
		t.Fatal(err)
	}
	before.stop()
	oldAcked, oldLast := before.acknowledged()
	d.loseSpoolOr(elsewhere, st)
	early := !elsewhere && d.random.IntN(2) == 0
	if early {
		g.lead(standby) // the receiver is there first
	}
	if err := standby.Promote(d.ctx()); err != nil {
		t.Fatal(err)
	}
	d.pg = standby
	eventually(t, "the end of the recovery", func() bool { return ask("SELECT pg_is_in_recovery()") == "f" })
	inherited := rowsOfLedger(t, d.ctx(), standby)
	n, forked := d.timeline(standby)
	beyond := missing(oldAcked, inherited)
	if len(beyond) == 0 {
		t.Fatal("the receiver was not ahead of the switchpoint")
	}

	// Commits wait on the new timeline, of which nothing can be stored: none
	// may be let go of, although the archive has the old timeline far beyond.
	d.proxy.Inject(s3server.Unavailable, "PUT wal_tail_005", -1)
	w.first = oldLast + 1
	if !early {
		d.awaitWaiting(standby)
	}
	after := d.ledger(d.random, w)
	if elsewhere {
		receive("PGHOST="+standby.SocketDir(), fmt.Sprint("PGPORT=", standby.Port()))
	}
	if !early {
		g.lead(standby)
	}
	eventually(t, "the receiver to have WAL of the new timeline", func() bool {
		return ask("SELECT count(*) FROM pg_stat_replication WHERE write_lsn > '"+forked.String()+"'") != "0"
	})
	if flush := ask("SELECT coalesce(max(flush_lsn), '0/0') FROM pg_stat_replication WHERE flush_lsn > '" + forked.String() + "'"); flush != "0/0" {
		t.Errorf("the receiver tells of %s on timeline %d, of which nothing beyond %s is stored", flush, n, forked)
	}
	if acked, _ := after.acknowledged(); len(acked) > 0 {
		t.Errorf("%d commits were let go of on timeline %d, of which nothing is stored: the first is row %d (%s or before), and the timeline began at %s",
			len(acked), n, acked[0].id, acked[0].lsn, forked)
	}
	d.proxy.Between(func() {
		d.proxy.Heal()
		d.proxy.Slow(150 * time.Millisecond) // so that what is let go of too early is not there
	})
	eventually(t, "a commit on the new timeline", func() bool {
		if err := after.broken(); err != nil {
			t.Fatalf("a client ended: %v", err)
		}
		if !st.run.running() {
			t.Fatalf("the receiver ended: %v", st.run.err)
		}
		acked, _ := after.acknowledged()
		return len(acked) > 0
	})
	if d.random.IntN(2) == 0 {
		d.pause(2 * time.Second)
	}
	d.lose(after)
	d.proxy.Heal()
	d.loseSpool(st)
	newAcked, _ := after.acknowledged()

	restored := d.restore(fmt.Sprint("latest-", d.round), "latest")
	rows := rowsOfLedger(t, d.ctx(), restored)
	for id := range inherited {
		if !rows[id] {
			t.Errorf("row %d, from before the switchpoint, is missing", id)
		}
	}
	for id := range rows {
		if id <= oldLast && !inherited[id] {
			t.Errorf("row %d, from beyond the switchpoint of the old timeline, came back on the new one", id)
		}
	}
	if lost := missing(newAcked, rows); len(lost) > 0 {
		t.Errorf("%d of %d commits that were acknowledged on the new timeline are missing, the first is row %d (%s or before); the switchpoint is %s",
			len(lost), len(newAcked), lost[0].id, lost[0].lsn, forked)
	}
	if err := restored.Remove(d.ctx()); err != nil {
		t.Fatal(err)
	}

	restored = d.restore(fmt.Sprint("old-", d.round), "1")
	rows = rowsOfLedger(t, d.ctx(), restored)
	if lost := missing(oldAcked, rows); len(lost) > 0 {
		t.Errorf("%d of %d commits that were acknowledged on the old timeline are missing there, the first is row %d (%s or before)",
			len(lost), len(oldAcked), lost[0].id, lost[0].lsn)
	}
	for id := range rows {
		if id > oldLast {
			t.Errorf("row %d of the new timeline is on the old one", id)
		}
	}
	t.Logf("timeline %d began at %s: %d commits of the old one lie beyond it, and %d are on the new one", n, forked, len(beyond), len(newAcked))
}

// loseSpoolOr ends the receiver before the promotion where it is restarted
// elsewhere, half of the times with the loss of its disk.
func (d *doomed) loseSpoolOr(elsewhere bool, st *station) {
	d.t.Helper()
	if !elsewhere {
		return
	}
	st.run.kill9()
	if d.random.IntN(2) == 0 {
		d.loseSpool(st)
	}
}
