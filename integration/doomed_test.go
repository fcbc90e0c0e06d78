package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// doomed is a scene that is lost again and again: the server, the receiver and
// their disks, everything but the bucket. A round begins on a fresh copy of the
// cluster with an empty archive, or goes on with the server that the round
// before has restored, on its new timeline and in the same archive.
type doomed struct {
	*bucketScene
	random *rand.Rand
	stored *stored
	cold   string   // copy of the data directory from before the first start
	vars   []string // of the scene, without those of a round

	round   int
	prefix  string
	begins  segment.Name   // where the round's timeline begins in the archive
	settled map[int64]bool // the rows that were there when the round began
	last    int64          // the highest number of a row that was ever tried

	stations []*station
}

// station is a receiver's host.
type station struct {
	slot string
	name string   // application_name
	home string   // of the receiver: the spool is in it
	more []string // flags
	run  *process // the last one; may have ended
}

func newDoomed(t *testing.T) *doomed {
	t.Helper()
	random := seeded(t)
	size := 1
	if theLab.full {
		// Small segments are many, in large ones most is in tail objects.
		size = []int{1, 16}[random.IntN(2)]
	}
	d := &doomed{bucketScene: newBucketScene(t, options{segmentSize: size}), random: random,
		stored: &stored{whole: map[string]map[segment.Name]bool{}, parts: map[string]map[segment.Name][]part{}}}
	d.credentials("default", d.user.AccessKey, d.user.SecretKey)
	d.proxy.Watch(func(r *http.Request, status int) {
		if r.Method == http.MethodPut && status == http.StatusOK {
			d.stored.put(r.URL.Path)
		}
	})
	d.cold, d.vars = d.base, d.bucketScene.vars
	d.stations = []*station{{slot: "ferry", name: "walferry", home: d.home}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the archive holds\n%s", strings.Join(tree(t, d.archive), "\n"))
		}
	})
	return d
}

// some are all of the variants in a full run, else one by chance.
func some[T any](t *testing.T, variants ...T) []T {
	t.Helper()
	if theLab.full {
		return variants
	}
	n := seeded(t).IntN(len(variants))
	return variants[n : n+1]
}

// station makes another one.
func (d *doomed) station(name string, more ...string) *station {
	d.t.Helper()
	st := &station{slot: name, name: name, home: filepath.Join(d.dir, "home-"+name), more: more}
	if err := theLab.account.MkdirAll(st.home); err != nil {
		d.t.Fatal(err)
	}
	return st
}

// begin starts a station's receiver.
func (d *doomed) begin(st *station, more ...string) {
	d.t.Helper()
	st.run = d.ferry([]string{"WALFERRY_SLOT=" + st.slot, "WALFERRY_HOME=" + st.home, "PGAPPNAME=" + st.name},
		append(append([]string{"receive"}, more...), st.more...)...)
}

// spoolDir is a station's.
func (st *station) spoolDir() string { return filepath.Join(st.home, "spool") }

// loseSpool deletes a station's disk.
func (d *doomed) loseSpool(st *station) {
	d.t.Helper()
	if err := os.RemoveAll(st.spoolDir()); err != nil {
		d.t.Fatal(err)
	}
}

// play says what a round is like.
type play struct {
	receive     []string // flags
	synchronous string   // synchronous_commit, with the receiver as the standby that commits wait for; "": none do
	trouble     func()   // comes in the middle
	more        func()   // comes between the loss of the server and the restore
	keepsSpool  bool     // the receiver's disk is not lost
}

// String names a kind of play.
func (p play) String() string {
	if p.synchronous == "" {
		return "asynchronous"
	}
	return "synchronous"
}

// outcome is what a round has shown.
type outcome struct {
	acked int
	lost  []commit      // acknowledged and not restored, oldest first
	age   time.Duration // of the oldest one when everything was lost
	bytes segment.LSN   // from the end of what was restored to the last that was acknowledged
	tails bool          // what was restored goes beyond the whole segments
	hole  bool          // the restore ended in front of whole segments
}

func (d *doomed) logf(format string, args ...any) {
	d.t.Helper()
	d.t.Logf("round %d: "+format, append([]any{d.round}, args...)...)
}

// rounds plays several and wants none of their rows damaged, doubled in time,
// or missing below what the store has confirmed. It prints what was lost.
func (d *doomed) rounds(n int, next func() play) (all []outcome) {
	d.t.Helper()
	for range n {
		all = append(all, d.play(next()))
		if d.t.Failed() {
			d.t.Fatalf("in round %d of %d", d.round, n)
		}
		d.round++
	}
	var lost []int
	var ages []time.Duration
	var bytes []segment.LSN
	acked, tails, holes := 0, 0, 0
	for _, o := range all {
		if o.hole {
			holes++
		}
		lost, ages, bytes = append(lost, len(o.lost)), append(ages, o.age.Round(time.Millisecond)), append(bytes, o.bytes)
		acked += o.acked
		if o.tails {
			tails++
		}
	}
	stored, _ := d.stored.count()
	d.t.Logf("%d rounds, %d acknowledged commits, segments of %s, %d tail objects; %d restores went beyond the whole segments, %d ended at a hole", n, acked, d.size, stored, tails, holes)
	d.t.Logf("commits lost: %s", spread(lost, strconv.Itoa))
	d.t.Logf("age of the oldest one lost: %s", spread(ages, time.Duration.String))
	d.t.Logf("WAL lost: %s", spread(bytes, func(b segment.LSN) string { return fmt.Sprintf("%d kB", b>>10) }))
	if stored == 0 {
		d.t.Error("no tail object was stored")
	}
	return all
}

// play plays a round.
func (d *doomed) play(p play) outcome {
	d.t.Helper()
	goesOn := d.round > 0 && (d.round == 1 || d.random.IntN(2) == 0)
	if goesOn {
		d.goOn()
	} else {
		d.beginFresh()
	}
	// So slow a load as the first round's needs tail objects.
	paces := []time.Duration{200 * time.Millisecond, 20 * time.Millisecond, 2 * time.Millisecond}
	w := writing{first: d.last + 1, clients: 1 + d.random.IntN(8), synchronous: p.synchronous, pace: paces[min(d.round, 1)*d.random.IntN(3)]}
	if p.synchronous != "" {
		var names []string
		for _, st := range d.stations {
			names = append(names, st.name)
		}
		// Whichever has it first.
		d.makeSynchronous(d.pg, "ANY 1 ("+strings.Join(names, ", ")+")")
	}
	var l *ledger
	early := goesOn && p.synchronous == "" && d.random.IntN(2) == 0
	if early {
		// The restored server is at work before anybody receives from it.
		l = d.ledger(d.random, w)
		d.pause(time.Second)
	}
	// While a store takes its time, what is said too early is not there.
	d.proxy.Slow([]time.Duration{100 * time.Millisecond, 0, 400 * time.Millisecond}[min(d.round, 1)*d.random.IntN(3)])
	for _, st := range d.stations {
		d.begin(st, p.receive...)
	}
	if !goesOn {
		d.begins = d.reserved()
		d.baseBackup()
	}
	if !early {
		l = d.ledger(d.random, w)
	}
	// The archive works, and holds what a restore of the base copy needs. By
	// the second time the receiver has caught up.
	for range 1 + d.random.IntN(2) {
		at := d.lsn("SELECT pg_current_wal_insert_lsn()")
		eventually(d.t, "the archive to reach "+at.String(), func() bool {
			if err := l.broken(); err != nil {
				d.t.Fatalf("a client ended: %v", err)
			}
			return d.shipped() >= at
		})
	}
	d.pause(2 * time.Second)
	if p.trouble != nil {
		p.trouble()
	}
	killed := d.lose(l)
	if p.more != nil {
		p.more()
	}
	d.proxy.Heal()
	for _, st := range d.stations {
		if !p.keepsSpool {
			d.loseSpool(st)
		}
	}
	return d.settle(l, killed)
}

func (d *doomed) pause(most time.Duration) {
	// No other clock decides at which instruction everything ends.
	time.Sleep(time.Duration(d.random.Int64N(int64(most))))
}

// beginFresh begins on a copy of the cluster, with an empty archive.
func (d *doomed) beginFresh() {
	d.t.Helper()
	if d.round > 0 {
		if err := d.pg.Remove(d.ctx()); err != nil {
			d.t.Fatal(err)
		}
		d.base = d.cold
		d.pg = d.adopt(fmt.Sprint("fresh-", d.round), "")
		d.startServer()
	}
	d.enter(fmt.Sprint("round-", d.round))
	d.settled = map[int64]bool{}
	d.sql("CREATE TABLE ledger (id bigint PRIMARY KEY, v text, sum text)")
}

// enter makes the round's variables: the server, and the archive's prefix.
func (d *doomed) enter(prefix string) {
	d.prefix = prefix
	d.archive = filepath.Join(d.s3.Dir, bucket, prefix)
	d.bucketScene.vars = append(d.vars[:len(d.vars):len(d.vars)], "WALE_S3_PREFIX=s3://"+bucket+"/"+prefix,
		"PGHOST="+d.pg.SocketDir(), fmt.Sprint("PGPORT=", d.pg.Port()), "PGUSER=postgres", "PGSSLMODE=disable")
}

// goOn goes on with the restored server.
func (d *doomed) goOn() {
	d.t.Helper()
	d.enter(d.prefix)
	n, forked := d.timeline(d.pg)
	d.begins = d.size.Name(n, forked)
}

// timeline is a server's own, and where it began.
func (d *doomed) timeline(pg *instance.Server) (segment.Timeline, segment.LSN) {
	d.t.Helper()
	v, err := query(d.ctx(), pg.DSN("postgres"), "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
	if err != nil {
		d.t.Fatal(err)
	}
	n, err := segment.ParseName(v)
	if err != nil {
		d.t.Fatal(err)
	}
	if n.Timeline == 1 {
		return 1, 0
	}
	content, err := os.ReadFile(filepath.Join(pg.DataDir(), "pg_wal", n.Timeline.HistoryName()))
	if err != nil {
		d.t.Fatal(err)
	}
	h, err := segment.ParseHistory(n.Timeline, content)
	if err != nil {
		d.t.Fatal(err)
	}
	return n.Timeline, h.Begin()
}

// adopt makes a server, not started, out of the base copy.
func (d *doomed) adopt(name, signal string) *instance.Server {
	d.t.Helper()
	pg, err := instance.Adopt(d.ctx(), instance.Options{
		Installation: d.pg.Installation(), Dir: filepath.Join(d.dir, name), Account: &theLab.account,
		Settings: map[string]string{
			"fsync": "off", "wal_keep_size": "4GB", "max_wal_size": "4GB", "autovacuum": "off",
			"restore_command": d.binary + " fetch %f %p", "wal_retrieve_retry_interval": "100ms", "hot_standby": "on",
		},
		// The race detector sleeps for a second at the end of each program.
		Env: append([]string{"GORACE=atexit_sleep_ms=0"}, d.bucketScene.vars...),
	}, func(dir string) error {
		if err := instance.CopyDataDir(dir, d.base); err != nil || signal == "" {
			return err
		}
		return os.WriteFile(filepath.Join(dir, signal), nil, 0o600)
	})
	if err != nil {
		d.t.Fatal(err)
	}
	d.removeAtEnd(pg)
	return pg
}

// baseBackup copies the running server as a person would.
func (d *doomed) baseBackup() {
	d.t.Helper()
	i := d.pg.Installation()
	if !i.Has("pg_basebackup") {
		d.t.Logf("%s has no pg_basebackup: restores begin with a copy from before the first start", i)
		return
	}
	d.base = filepath.Join(d.dir, fmt.Sprint("backup-", d.round))
	if err := theLab.account.MkdirAll(d.base); err != nil {
		d.t.Fatal(err)
	}
	start(d.t, nil, i.Program("pg_basebackup"), "--dbname="+d.pg.DSN("postgres"), "--pgdata="+d.base,
		"--wal-method=none", "--checkpoint=fast", "--no-sync", "--no-manifest").exits(0)
}

// makeSynchronous names the standbys that commits wait for, and returns when
// they do wait: the server learns of it a moment after it was told.
func (d *doomed) makeSynchronous(pg *instance.Server, standbys string) {
	d.t.Helper()
	if err := pg.Configure(map[string]string{"synchronous_standby_names": standbys}); err != nil {
		d.t.Fatal(err)
	}
	if err := pg.Reload(); err != nil {
		d.t.Fatal(err)
	}
	d.awaitWaiting(pg)
}

// awaitWaiting commits until a commit waits for a standby. It is released when
// one comes.
func (d *doomed) awaitWaiting(pg *instance.Server) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(d.t.Context())
	c, err := pgconn.Connect(ctx, pg.DSN("postgres"))
	if err != nil {
		cancel()
		d.t.Fatal(err)
	}
	seen := make(chan struct{})
	var probe sync.WaitGroup
	probe.Go(func() {
		defer func() { _ = c.Close(ctx) }() // of no account
		for {
			if _, err := c.Exec(ctx, "SELECT pg_logical_emit_message(true, 'probe', '')").ReadAll(); err != nil {
				return
			}
			select {
			case <-seen:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	d.t.Cleanup(func() {
		cancel()
		probe.Wait()
	})
	eventually(d.t, "a commit to wait for a standby", func() bool {
		n, err := query(d.ctx(), pg.DSN("postgres"), "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
		return err == nil && n != "0"
	})
	close(seen)
}

// shipped is how far the archive goes on the round's timeline.
func (d *doomed) shipped() segment.LSN {
	end, _ := d.stored.end(d.prefix, d.begins, d.size)
	return end
}

// reserved waits for the stations' slots, and returns the segment from which
// on all of them hold the server's WAL.
func (d *doomed) reserved() segment.Name {
	d.t.Helper()
	for _, st := range d.stations {
		eventually(d.t, "slot "+st.slot+" to reserve WAL", func() bool { return d.restart(st) != 0 })
	}
	return d.size.Name(1, d.lsn("SELECT max(restart_lsn) FROM pg_replication_slots"))
}

// restart is the restart_lsn of a station's slot, 0 while it has none.
func (d *doomed) restart(st *station) segment.LSN {
	d.t.Helper()
	return d.lsn("SELECT coalesce((SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '" + st.slot + "'), '0/0')")
}

// hole reports whether whole segments lie behind one that is missing. A tail
// object must not: it is stored to be restored.
func (d *doomed) hole() bool {
	d.t.Helper()
	whole, tails := d.stored.beyond(d.prefix, d.begins, d.size)
	if tails > 0 {
		d.t.Errorf("round %d: %d tail objects lie behind a segment that is missing; the archive reaches %s", d.round, tails, d.shipped())
	}
	return whole > 0
}

// lose kills the server and the receivers at one moment, and deletes the
// server's disk. It returns the moment.
func (d *doomed) lose(l *ledger) time.Time {
	d.t.Helper()
	if err := l.broken(); err != nil {
		d.t.Fatalf("round %d: a client ended before the server did: %v", d.round, err)
	}
	runs := 0
	for _, st := range d.stations {
		if st.run.running() {
			runs++
		} else if how := st.run.cmd.ProcessState; how.Exited() {
			d.t.Fatalf("round %d: the receiver of slot %s ended by itself: %v", d.round, st.slot, st.run.err)
		}
	}
	if runs == 0 {
		d.t.Fatalf("round %d: no receiver runs", d.round)
	}
	killed := time.Now()
	var kill error
	var all sync.WaitGroup
	ctx := d.ctx()
	all.Go(func() { kill = d.pg.Kill(ctx) })
	for _, st := range d.stations {
		all.Go(st.run.kill9)
	}
	all.Wait()
	l.stop()
	if err := errors.Join(kill, d.pg.Remove(ctx)); err != nil {
		d.t.Fatal(err)
	}
	return killed
}

// restore makes a primary of the base copy and the archive.
func (d *doomed) restore(name, timeline string) *instance.Server {
	d.t.Helper()
	pg := d.adopt(name, "recovery.signal")
	settings := map[string]string{"recovery_target_timeline": timeline}
	if d.hole() {
		// Of several segments a younger one was stored first. A person has to
		// say that the archive ends in front of it.
		settings["restore_command"] = d.binary + " fetch --stop-at-gap %f %p"
	}
	if err := pg.Configure(settings); err != nil {
		d.t.Fatal(err)
	}
	if err := pg.Launch(d.ctx()); err != nil {
		d.t.Fatal(err)
	}
	// (Its control file is no witness: the copy's says that a primary runs.)
	eventually(d.t, "the end of the recovery", func() bool {
		text, err := pg.Log()
		if !pg.Running() {
			d.t.Fatalf("round %d: the recovery ended the server", d.round)
		}
		return err == nil && strings.Contains(text, "database system is ready to accept connections")
	})
	return pg
}

// settle restores, and holds what came back against the ledger: every row of
// the rounds before that was there, and no other of theirs; and every commit
// whose end the archive had reached.
func (d *doomed) settle(l *ledger, killed time.Time) (o outcome) {
	d.t.Helper()
	acked, last := l.acknowledged()
	_, object := d.stored.count()
	shipped, whole := d.stored.end(d.prefix, d.begins, d.size)
	d.pg = d.restore(fmt.Sprint("restored-", d.round), "latest")
	_, end := d.timeline(d.pg)
	rows := rowsOfLedger(d.t, d.ctx(), d.pg)
	for id := range d.settled {
		if !rows[id] {
			d.t.Errorf("row %d, which was there before the round, is missing", id)
		}
	}
	for id := range rows {
		switch {
		case id < l.first && !d.settled[id]:
			d.t.Errorf("row %d, which an earlier round had lost, came back", id)
		case id > last:
			d.t.Errorf("nobody ever wrote row %d", id)
		}
	}
	o = outcome{acked: len(acked), lost: missing(acked, rows), tails: end > whole, hole: d.hole()}
	for _, c := range acked {
		o.bytes = max(o.bytes, c.lsn-min(c.lsn, end))
	}
	if len(o.lost) > 0 {
		o.age = killed.Sub(o.lost[0].at)
	}
	for _, c := range o.lost {
		if c.lsn <= shipped {
			d.t.Errorf("the commit of row %d was acknowledged and ended at %s or before; the archive reached %s, and it is missing", c.id, c.lsn, shipped)
		}
	}
	d.logf("%d commits acknowledged, %d of them lost, the oldest %s before the end, the last object %s before it; the archive reached %s (whole segments %s), the restore %s", o.acked, len(o.lost), o.age.Round(time.Millisecond), killed.Sub(object).Round(time.Millisecond), shipped, whole, end)
	if o.acked == 0 {
		d.t.Errorf("no commit was acknowledged: that shows nothing")
	}
	d.settled, d.last = rows, last
	return o
}

// loseNone wants that no acknowledged commit is missing in any round.
func loseNone(t *testing.T, all []outcome) {
	t.Helper()
	for round, o := range all {
		if len(o.lost) > 0 {
			var ids []string
			for _, c := range o.lost[:min(len(o.lost), 20)] {
				ids = append(ids, fmt.Sprint(c.id, " (", c.lsn, ")"))
			}
			t.Errorf("round %d: %d of %d acknowledged commits are missing: %s", round, len(o.lost), o.acked, strings.Join(ids, ", "))
		}
	}
}
