package integration

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/segment"
)

// blackout is how long the store is a black hole.
func blackout() time.Duration {
	if theLab.full {
		return 30 * time.Second
	}
	return 3 * time.Second
}

// troubled are faults of the way to the store, each of which passes, unless
// everything is lost before it does.
func (d *doomed) troubled() []func() {
	fault := func(f s3server.Fault, match string, most time.Duration) func() {
		return func() {
			if d.random.IntN(2) == 0 {
				d.proxy.Inject(f, match, 1+d.random.IntN(6))
				d.pause(most)
				return
			}
			d.proxy.Inject(f, match, -1)
			d.pause(most)
			if d.random.IntN(4) > 0 {
				d.proxy.Heal()
				d.pause(most)
			}
		}
	}
	return []func(){
		fault(s3server.Unavailable, "", time.Second),
		fault(s3server.Reset, "PUT", time.Second),
		fault(s3server.LostAnswer, "PUT", time.Second),
		func() {
			d.proxy.Inject(s3server.BlackHole, "", -1)
			time.Sleep(blackout())
			if d.random.IntN(4) > 0 {
				d.proxy.Heal()
				d.pause(time.Second)
			}
		},
	}
}

// The way to the store fails in each way that it has, alone and one after the
// other, and everything is lost in the middle of it or soon after: commits
// that waited are all there, and of the others those that the store had
// confirmed.
func TestLossUnderFaults(t *testing.T) {
	t.Parallel()
	for _, p := range some(t, play{}, play{receive: []string{"--ack", "archive"}, synchronous: "on"}) {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			d := newDoomed(t)
			all := d.rounds(rounds(1, 8), func() play {
				p := p
				p.trouble = func() {
					faults := d.troubled()
					if only := d.round % (len(faults) + 1); only > 0 {
						faults[only-1]()
						return
					}
					for _, i := range d.random.Perm(len(faults)) {
						faults[i]()
					}
				}
				return p
			})
			if p.synchronous != "" {
				loseNone(t, all)
			}
		})
	}
}

// Everything is lost while one whole segment hangs on its way and younger ones
// are stored: no tail object lies behind the hole. A recovery stops in front
// of it, unpromoted, until a person says that the archive ends there; then all
// that was stored before it is there.
func TestLossInABacklog(t *testing.T) {
	t.Parallel()
	d := newDoomed(t)
	d.beginFresh()
	st := d.stations[0]
	d.begin(st)
	d.begins = d.reserved()
	d.baseBackup()
	l := d.ledger(d.random, writing{first: 1, clients: 8})
	at := d.lsn("SELECT pg_current_wal_insert_lsn()")
	eventually(t, "the archive to reach "+at.String(), func() bool { return d.shipped() >= at })
	d.proxy.Inject(s3server.BlackHole, "PUT wal_005", 1)
	behind := func() (whole int) {
		whole, _ = d.stored.beyond(d.prefix, d.begins, d.size)
		return whole
	}
	eventually(t, "a younger segment in the archive", func() bool { return behind() > 0 })
	d.pause(3 * time.Second)
	killed := d.lose(l)
	d.proxy.Heal()
	d.loseSpool(st)

	missing := d.size.Name(1, d.shipped()).String()
	pg := d.adopt("stops", "recovery.signal")
	if err := pg.Launch(d.ctx()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the recovery to tell of the hole", func() bool {
		text, err := pg.Log()
		return err == nil && strings.Contains(text, "hole in the archive: "+missing)
	})
	if _, err := os.Stat(filepath.Join(pg.DataDir(), "pg_wal", "00000002.history")); err == nil {
		t.Error("the server has begun a timeline")
	}
	if err := pg.Remove(d.ctx()); err != nil {
		t.Fatal(err)
	}
	if o := d.settle(l, killed); !o.hole {
		t.Error("there was no hole")
	}
}

// Two receivers feed one archive, cut their tail objects differently, and die
// at different moments; the last one, or both, with everything else.
func TestLossWithTwoReceivers(t *testing.T) {
	t.Parallel()
	for _, p := range some(t, play{}, play{receive: []string{"--ack", "archive"}, synchronous: "on"}) {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			d := newDoomed(t)
			d.stations = []*station{d.station("left", "--ship-interval", "300ms"), d.station("right", "--ship-interval", "700ms")}
			all := d.rounds(rounds(1, 10), func() play {
				p := p
				p.trouble = func() { d.deaths(p.receive) }
				return p
			})
			if p.synchronous != "" {
				loseNone(t, all)
			}
		})
	}
}

// deaths lets one receiver after the other die. Most come back, some with an
// empty disk; one runs at each moment.
func (d *doomed) deaths(flags []string) {
	d.t.Helper()
	for range 1 + d.random.IntN(3) {
		victim := d.stations[d.random.IntN(len(d.stations))]
		for _, st := range d.stations {
			if !st.run.running() {
				d.t.Fatalf("the receiver of slot %s ended by itself: %v", st.slot, st.run.err)
			}
		}
		victim.run.kill9()
		what := "stays away"
		d.pause(time.Second)
		if d.random.IntN(3) > 0 {
			what = "comes back"
			if d.random.IntN(2) == 0 {
				what = "comes back with an empty disk"
				d.loseSpool(victim)
			}
			d.begin(victim, flags...)
		}
		d.logf("the receiver of slot %s dies and %s", victim.slot, what)
		if what == "stays away" {
			return
		}
		d.pause(time.Second)
	}
}

// A server that is shut down fast while the store is a black hole stops, with
// either acknowledgement; no commit is let go of that is not stored, and the
// slot stays where it is safe.
func TestShutdownDuringABlackHole(t *testing.T) {
	t.Parallel()
	for _, ack := range []string{"spool", "archive"} {
		t.Run(ack, func(t *testing.T) {
			t.Parallel()
			d := newDoomed(t)
			st := d.stations[0]
			d.beginFresh()
			w := writing{first: 1, clients: 4, pace: 5 * time.Millisecond}
			if ack == "archive" {
				d.makeSynchronous(d.pg, st.name)
				w.synchronous = "on"
			}
			flags := []string{"--ack", ack, "--shutdown-grace", "2s"}
			d.begin(st, flags...)
			d.begins = d.reserved()
			d.baseBackup()
			l := d.ledger(d.random, w)
			at := d.lsn("SELECT pg_current_wal_insert_lsn()")
			eventually(t, "the archive to reach "+at.String(), func() bool { return d.shipped() >= at })
			d.pause(time.Second)

			d.proxy.Inject(s3server.BlackHole, "", -1)
			d.pause(time.Second)
			began := time.Now()
			if err := <-d.shutDown(); err != nil {
				t.Fatalf("the shutdown is held up: %v", err)
			}
			took := time.Since(began).Round(time.Millisecond)
			l.stop()
			if !st.run.running() {
				t.Fatalf("the receiver ended with the server: %v", st.run.err)
			}
			st.run.kill9()
			d.proxy.Heal()
			shipped := d.shipped()

			// The slot, as the server has it after its shutdown.
			if err := d.pg.Configure(map[string]string{"synchronous_standby_names": ""}); err != nil {
				t.Fatal(err)
			}
			d.startServer()
			restart := d.restart(st)
			t.Logf("the server stopped in %s; its slot is at %s, the archive reaches %s", took, restart, shipped)
			if restart == 0 {
				t.Error("the slot is gone")
			}
			if ack == "archive" && restart > shipped {
				t.Errorf("the slot is at %s, but the archive reaches %s only", restart, shipped)
			}

			if ack == "archive" {
				// As if everything were lost now.
				acked, _ := l.acknowledged()
				restored := d.restore("restored", "latest")
				if lost := missing(acked, rowsOfLedger(t, d.ctx(), restored)); len(lost) > 0 {
					t.Errorf("%d of %d acknowledged commits are not in the archive, the first is row %d", len(lost), len(acked), lost[0].id)
				}
			}
			d.begin(st, flags...)
			last := d.switchWAL()
			d.awaitSealed(d.begins, last)
			d.checkArchive(d.begins, last)
			st.run.stop()
		})
	}
}

// The receiver is restarted at random moments: killed or stopped, with its
// spool, with an empty one, without one. At no moment is the slot further than
// what the acknowledgement promises; in the end the archive is gapless; and no
// more is asked of the server again than the segment in which it goes on.
func TestRestarts(t *testing.T) {
	t.Parallel()
	for _, ack := range some(t, "spool", "archive") {
		t.Run(ack, func(t *testing.T) {
			t.Parallel()
			d := newDoomed(t)
			d.beginFresh()
			// The receiver tells its position every third of this time.
			if err := errors.Join(d.pg.Configure(map[string]string{"wal_sender_timeout": "2s"}), d.pg.Reload()); err != nil {
				t.Fatal(err)
			}
			d.proxy.Slow(100 * time.Millisecond)
			(&restarts{doomed: d, st: d.stations[0], gate: d.gate(), ack: ack}).play(rounds(3, 50))
		})
	}
}

// restarts is a receiver that is restarted again and again.
type restarts struct {
	*doomed
	st   *station
	gate *gate
	ack  string
	none bool         // it runs without a spool
	made segment.LSN  // where the slot was made: nothing before it is the archive's
	seen atomic.Int64 // places at which the slot was seen
}

func (r *restarts) start() {
	r.t.Helper()
	flags := []string{"--ack", r.ack}
	if r.none {
		flags = append(flags, "--spool", "none")
	}
	r.st.run = r.ferry(append(r.gate.env(), "PGAPPNAME="+r.st.name), append([]string{"receive"}, flags...)...)
}

func (r *restarts) play(n int) {
	t := r.t
	t.Helper()
	r.start()
	r.begins = r.reserved()
	r.made = r.restart(r.st)
	l := r.ledger(r.random, writing{first: 1, clients: 4, pace: 20 * time.Millisecond})
	stop := r.watch()
	began := r.lsn("SELECT pg_current_wal_insert_lsn()")
	var kinds = map[string]int{}
	goesOn, streams := r.made, 0
	check := func() {
		seen, _ := r.gate.seen()
		for _, s := range seen[streams:] {
			if s.start+segment.LSN(r.size) < goesOn {
				t.Errorf("round %d: %s was asked for, more than a segment before %s, which is held", r.round, s.start, goesOn)
			}
		}
		streams = len(seen)
	}
	for r.round = range n {
		if r.round == 0 {
			eventually(t, "the slot to move", func() bool { return r.seen.Load() >= 3 })
		}
		// In the start, in the stream, or soon after a report.
		phase, places := r.random.IntN(3), r.seen.Load()
		eventually(t, "the receiver to come so far", func() bool {
			seen, _ := r.gate.seen()
			return phase == 0 || len(seen) > streams && (phase == 1 || r.seen.Load() > places) || !r.st.run.running()
		})
		r.pause(1500 * time.Millisecond)
		if !r.st.run.running() {
			t.Fatalf("round %d: the receiver ended by itself: %v", r.round, r.st.run.err)
		}
		how := "killed"
		if r.random.IntN(3) == 0 && r.st.run.log() != "" { // a program that has just begun knows no signal
			how = "stopped"
			r.st.run.stop()
		} else {
			r.st.run.kill9()
		}
		check()
		shipped := max(r.shipped(), r.made)
		restart := r.restart(r.st)
		if restart > shipped {
			if r.ack == "archive" {
				t.Errorf("round %d: the slot is at %s, but the archive reaches %s only", r.round, restart, shipped)
			} else {
				r.held(r.begins, restart)
			}
		}
		r.none = false
		with := "its spool"
		switch choice := r.random.IntN(3); {
		case choice == 1 && restart <= shipped:
			with = "an empty spool"
			r.loseSpool(r.st)
		case choice == 2 && r.ack == "archive":
			with, r.none = "no spool", true
		}
		goesOn = shipped
		if with == "its spool" {
			goesOn = max(goesOn, r.spooledEnd(r.st))
		}
		kinds[how+", goes on with "+with]++
		if t.Failed() {
			t.Fatalf("in round %d of %d", r.round, n)
		}
		r.start()
	}
	stop()
	if err := l.broken(); err != nil {
		t.Fatalf("a client ended: %v", err)
	}
	l.stop()
	last := r.switchWAL()
	eventually(t, "the archive to reach "+last.End(r.size).String(), func() bool {
		if !r.st.run.running() {
			t.Fatalf("the receiver ended by itself: %v", r.st.run.err)
		}
		return r.shipped() >= last.End(r.size)
	})
	r.awaitSealed(r.begins, last)
	check()
	r.st.run.stop()
	r.checkArchive(r.begins, last)
	seen, end := r.gate.seen()
	sent := segment.LSN(0)
	for _, s := range seen {
		sent += s.bytes
	}
	t.Logf("%d restarts %v: %d kB of WAL, of which the server sent %d kB in %d streams; segments of %s", n, kinds, (end-began)>>10, sent>>10, len(seen), r.size)
}

// watch holds the slot against the archive all the time, until the function
// that it returns is called.
func (r *restarts) watch() (stop func()) {
	r.t.Helper()
	ctx := context.WithoutCancel(r.t.Context())
	c, err := pgconn.Connect(ctx, r.pg.DSN("postgres"))
	if err != nil {
		r.t.Fatal(err)
	}
	quit, done := make(chan struct{}), make(chan struct{})
	looks := 0
	go func() {
		defer close(done)
		defer func() { _ = c.Close(ctx) }() // of no account
		var before segment.LSN
		for {
			select {
			case <-quit:
				return
			case <-time.After(20 * time.Millisecond):
			}
			results, err := c.Exec(ctx, "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '"+r.st.slot+"'").ReadAll()
			if err != nil {
				r.t.Errorf("looking at the slot: %v", err)
				return
			}
			restart, err := segment.ParseLSN(string(results[0].Rows[0][0]))
			if err != nil {
				r.t.Errorf("looking at the slot: %v", err)
				return
			}
			// The archive is looked at second: it can only be further by then.
			// (What a spool holds is looked at when nobody writes there.)
			if shipped := max(r.shipped(), r.made); r.ack == "archive" && restart > shipped {
				r.t.Errorf("the slot is at %s, but the archive reaches %s only", restart, shipped)
				return
			}
			looks++
			if restart != before {
				before = restart
				r.seen.Add(1)
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(quit)
		<-done
		r.t.Logf("%d looks at the slot, at %d places", looks, r.seen.Load())
	})
	r.t.Cleanup(stop)
	return stop
}
