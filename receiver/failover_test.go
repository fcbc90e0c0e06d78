package receiver

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/spool"
)

// address leads to one server, and can be pointed to another.
type address struct{ to atomic.Pointer[fakepg.Server] }

func (a *address) point(srv *fakepg.Server) { a.to.Store(srv) }

// address is what the world's receiver connects to; it leads to its server.
func (w *world) address() *address {
	a := &address{}
	a.point(w.srv)
	w.options.Connect = func(ctx context.Context) (*replication.Conn, error) { return connect(a.to.Load())(ctx) }
	return a
}

// sibling is another server of the cluster, with the same log.
func sibling(t *testing.T, w *world, o fakepg.Options) *fakepg.Server {
	t.Helper()
	o.WAL, o.SegmentSize = w.srv.WAL(), w.srv.WAL().Size()
	s := fakepg.New(o)
	t.Cleanup(s.Close)
	return s
}

// nothingReported wants no position in what a server was told.
func nothingReported(t *testing.T, srv *fakepg.Server) {
	t.Helper()
	for _, s := range srv.Statuses() {
		if s.Write != 0 || s.Flush != 0 {
			t.Errorf("a refused server was told a position: %+v", s)
			return
		}
	}
}

// TestDemotedPrimaryIsRefused: the old primary comes back as one, in the place of
// the one that was promoted, and has written on. Whoever holds something that
// knows of the newer timeline refuses it.
func TestDemotedPrimaryIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		sameRun   bool
		spoolLost bool
		atSwitch  bool // it has written nothing yet
		standby   bool // it is none: it has not followed yet
	}{
		"while it runs":                    {sameRun: true},
		"with its spool":                   {},
		"spool lost":                       {spoolLost: true},
		"has written nothing yet":          {atSwitch: true},
		"spool lost, has written nothing":  {spoolLost: true, atSwitch: true},
		"a standby":                        {standby: true},
		"a standby, spool lost":            {standby: true, spoolLost: true},
		"a standby, while it runs":         {standby: true, sameRun: true},
		"a standby, has not received more": {standby: true, atSwitch: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				db := w.address()
				at := w.srv.FillTo(3*mb + 5000)
				old := sibling(t, w, fakepg.Options{Timeline: 1, InRecovery: c.standby})
				old.SetSlot(slotName, mb)
				end, result := w.start(0)
				time.Sleep(time.Second)
				child := w.srv.Promote(at)
				w.srv.FillTo(6*mb + 5000)
				time.Sleep(time.Minute)
				settle()
				if !c.atSwitch {
					old.FillTo(8 * mb)
				}
				archived := len(w.archive.segments)
				var err error
				switch {
				case c.sameRun:
					db.point(old)
					w.srv.Cut()
					select {
					case err = <-result:
					case <-time.After(10 * time.Minute):
					}
				default:
					if e := end(); e != nil {
						t.Fatal(e)
					}
					if c.spoolLost {
						w.dir = t.TempDir()
					}
					db.point(old)
					end, result = w.start(0)
					select {
					case err = <-result:
					case <-time.After(10 * time.Minute):
					}
				}
				if c.standby {
					if err != nil {
						t.Errorf("Run = %v: a standby is waited for", err)
					}
				} else if !errors.Is(err, ErrDemoted) {
					t.Errorf("Run = %v", err)
				}
				nothingReported(t, old)
				if n := len(w.archive.segments); n != archived {
					t.Errorf("%d segments are archived, there were %d", n, archived)
				}
				if got := w.checkArchive(child); got != 6*mb {
					t.Errorf("the archive ends at %s", got)
				}
				_ = end()
			})
		})
	}
}

// TestForkedServerIsRefused: two standbys were promoted, each to a timeline of
// its own, and the address moves from one to the other. Nothing of the second
// is kept, not even its history: a restore to the newest timeline would follow it.
func TestForkedServerIsRefused(t *testing.T) {
	for name, sameRun := range map[string]bool{"while it runs": true, "with its spool": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				db := w.address()
				at := w.srv.FillTo(3*mb + 5000)
				end, result := w.start(0)
				time.Sleep(time.Second)
				other := sibling(t, w, fakepg.Options{})
				other.SetSlot(slotName, mb)
				w.srv.Promote(at) // 2
				other.Promote(at) // 3, of the same parent
				w.srv.FillTo(6*mb + 5000)
				other.FillTo(9*mb + 5000)
				time.Sleep(time.Minute)
				settle()
				db.point(other)
				if sameRun {
					w.srv.Cut()
				} else {
					if err := end(); err != nil {
						t.Fatal(err)
					}
					end, result = w.start(0)
				}
				var err error
				select {
				case err = <-result:
				case <-time.After(10 * time.Minute):
				}
				settle()
				if !errors.Is(err, ErrForked) {
					t.Errorf("Run = %v", err)
				}
				nothingReported(t, other)
				w.archive.mu.Lock()
				if _, ok := w.archive.histories[3]; ok {
					t.Error("the history of the server that was refused is in the archive")
				}
				for n := range w.archive.segments {
					if n.Timeline == 3 {
						t.Errorf("segment %s of the server that was refused is in the archive", n)
					}
				}
				w.archive.mu.Unlock()
				_ = end()
			})
		})
	}
}

// TestTimelinesJump: the server goes from timeline 1 to 3 (2 was another's), and
// then through two more while the receiver is away.
func TestTimelinesJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		at := w.srv.FillTo(3*mb + 5000)
		end, _ := w.start(0)
		time.Sleep(time.Second)
		w.srv.WAL().Fork(1, at) // 2: a clone's, elsewhere
		if child := w.srv.Promote(at); child != 3 {
			t.Fatalf("promoted to %d", child)
		}
		w.srv.FillTo(5*mb + 5000)
		time.Sleep(time.Minute)
		settle()
		if got := w.checkArchive(3); got != 5*mb {
			t.Errorf("the archive ends at %s on timeline 3", got)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		w.srv.FillTo(6*mb + 5000)
		w.srv.Promote(w.srv.End()) // 4
		w.srv.FillTo(6*mb + 70000)
		w.srv.Promote(w.srv.End()) // 5, in the same segment
		w.srv.FillTo(9 * mb)
		w.run(time.Minute)
		if got := w.checkArchive(5); got != 9*mb {
			t.Errorf("the archive ends at %s on timeline 5", got)
		}
		for _, t5 := range []segment.Timeline{3, 4, 5} {
			if _, ok := w.archive.histories[t5]; !ok {
				t.Errorf("the history of timeline %d is not in the archive", t5)
			}
		}
		if _, ok := w.archive.histories[2]; ok {
			t.Error("the archive has the history of timeline 2, which is no ancestor")
		}
		w.checkStatuses()
	})
}

// TestAheadOfTheNewTimeline: what is held beyond the switchpoint stays on the old
// timeline, with the archive's end told in words, and nothing beyond the
// switchpoint is reported on the new one that it has not sent.
func TestAheadOfTheNewTimeline(t *testing.T) {
	for name, c := range map[string]struct {
		segments segment.LSN // so much further
		sameRun  bool
	}{
		"in the same segment":                {0, false},
		"in the same segment, while it runs": {0, true},
		"in a later one":                     {2 * mb, false},
		"in a later one, while it runs":      {2 * mb, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				w.options.Hold = 0 // what the disk has counts
				db := w.address()
				at := w.srv.FillTo(3*mb + 5000)
				ahead := w.srv.FillTo(at + c.segments + 50000)
				standby := sibling(t, w, fakepg.Options{})
				standby.SetSlot(slotName, mb)
				end, _ := w.start(0)
				time.Sleep(20 * time.Second)
				settle()
				if s := w.lastStatus(); s.Flush != ahead {
					t.Fatalf("flush %s, want %s", s.Flush, ahead)
				}
				if !c.sameRun {
					if err := end(); err != nil {
						t.Fatal(err)
					}
				}
				child := standby.Promote(at)
				db.point(standby)
				if c.sameRun {
					w.srv.Cut()
				} else {
					w.start(0)
				}
				time.Sleep(20 * time.Second)
				settle()
				for _, s := range standby.Statuses() {
					if s.Write > standby.End() || s.Flush > standby.End() {
						t.Errorf("the new timeline ends at %s and was told %+v", standby.End(), s)
					}
				}
				for _, want := range []string{ahead.String(), at.String(), "stays on the old timeline"} {
					if !strings.Contains(w.log.String(), want) {
						t.Errorf("the log does not say %q", want)
					}
				}
				standby.FillTo(9 * mb)
				time.Sleep(time.Minute)
				settle()
				if got := w.checkArchive(child); got != 9*mb {
					t.Errorf("the archive ends at %s on timeline %d", got, child)
				}
				// What was acknowledged on the old timeline is not lost, with no
				// help of a next start.
				for l := segment.MinSize.Start(at); l < ahead; l += mb {
					n := segment.MinSize.Name(1, l)
					to := min(ahead, l+mb)
					have := w.archive.segments[n]
					if have == nil {
						have = w.archive.beyond[n]
					}
					if want := w.srv.WAL().Bytes(1, l, to); len(have) < len(want) || !bytes.Equal(have[:len(want)], want) {
						t.Errorf("of segment %s up to %s the archive has %d bytes", n, to, len(have))
					}
				}
				if left := w.sp.Segments(); len(left) > 1 || len(left) == 1 && left[0].Name().Timeline == 1 {
					t.Errorf("%d segments are in the spool, the first is %s", len(left), left[0].Name())
				}
			})
		})
	}
}

// TestTheOldTimelinesRestIsFinishedLater: the receiver is killed when the
// child's first whole segment was stored and the parent's partial was not. Its
// first bytes are those of a record that began in a segment which only the
// archive has. Where another host went on meanwhile, the start goes on at the end
// of the archive all the same, and not at that of the old timeline.
func TestTheOldTimelinesRestIsFinishedLater(t *testing.T) {
	for name, beyond := range map[string]bool{"up to the switchpoint": false, "and beyond": true, "another went on": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				db := w.address()
				w.srv.FillTo(3*mb - 1000)
				w.srv.Append(20000)
				at := w.srv.FillTo(3*mb + 50000)
				ahead := at
				if beyond {
					ahead = w.srv.FillTo(at + 50000)
				}
				standby := sibling(t, w, fakepg.Options{})
				standby.SetSlot(slotName, mb)
				end, _ := w.start(0)
				w.carrier.stall()
				time.Sleep(20 * time.Second)
				child := standby.Promote(at)
				standby.FillTo(5*mb + 5000)
				db.point(standby)
				w.srv.Cut()
				time.Sleep(20 * time.Second)
				settle()
				if err := end(); err != nil {
					t.Fatal(err)
				}
				for _, n := range []segment.Name{segment.MinSize.Name(1, mb), segment.MinSize.Name(1, 2*mb), segment.MinSize.Name(child, 3*mb)} {
					if err := os.Remove(filepath.Join(w.dir, n.String())); err != nil {
						t.Fatal(err)
					}
					w.archive.segments[n] = w.srv.WAL().Segment(n)
				}
				if name == "another went on" {
					// On another host, from the archive's end; the server keeps nothing
					// of what that one has stored.
					for at := segment.LSN(4 * mb); at < 6*mb; at += mb {
						n := segment.MinSize.Name(child, at)
						for _, file := range []string{n.String(), n.String() + ".partial"} {
							if err := os.Remove(filepath.Join(w.dir, file)); err != nil && !errors.Is(err, os.ErrNotExist) {
								t.Fatal(err)
							}
						}
					}
					standby.FillTo(6*mb + 5000)
					for at := segment.LSN(4 * mb); at < 6*mb; at += mb {
						n := segment.MinSize.Name(child, at)
						w.archive.segments[n] = standby.WAL().Segment(n)
					}
					standby.SetSlot(slotName, 6*mb)
					standby.RemoveWALBefore(6 * mb)
				}
				standby.FillTo(6*mb + 5000)
				w.run(time.Minute)
				if got := w.checkArchive(child); got != 6*mb {
					t.Errorf("the archive ends at %s", got)
				}
				n := segment.MinSize.Name(1, at)
				if w.archive.partials[n] != at {
					t.Errorf("the partial ends at %s, the timeline at %s", w.archive.partials[n], at)
				}
				if got := n.Start(segment.MinSize) + segment.LSN(len(w.archive.beyond[n])); beyond && got != ahead {
					t.Errorf("beyond the switchpoint the archive has it up to %s, held was up to %s", got, ahead)
				}
				if left := w.sp.Segments(); len(left) > 1 {
					t.Errorf("%d segments are in the spool, the first is %s", len(left), left[0].Name())
				}
			})
		})
	}
}

// TestAServerThatEndedTheStreamIsLeftAlone: behind its CopyDone it may be about
// to stop. Nobody comes back at once, and while it refuses not again and again.
func TestAServerThatEndedTheStreamIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		at := w.srv.FillTo(3*mb + 5000)
		w.start(0)
		time.Sleep(20 * time.Second)
		settle()
		before := len(w.srv.Startups())
		w.srv.Promote(at)
		settle()
		if n := len(w.srv.Startups()); n != before {
			t.Errorf("%d connections were made at once", n-before)
		}
		w.srv.Shutdown()
		time.Sleep(time.Minute)
		settle()
		if n := len(w.srv.Startups()) - before; n < 1 || n > 8 {
			t.Errorf("%d connections were made within a minute", n)
		}
		w.srv.Start()
		w.srv.FillTo(5 * mb)
		time.Sleep(2 * time.Minute)
		settle()
		if got := w.checkArchive(2); got != 5*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}

// TestOtherHistoryBeforeTheSwitch: the server that was promoted has other WAL
// before the switchpoint than we hold, up to which it was set back unseen. All
// that we hold lies at the switchpoint or beyond, so that nothing of the old
// timeline is missing.
func TestOtherHistoryBeforeTheSwitch(t *testing.T) {
	for name, c := range map[string]struct {
		boundary, sameRun, spoolLost, same bool
	}{
		"in a segment":                                {},
		"in a segment, while it runs":                 {sameRun: true},
		"at a boundary":                               {boundary: true},
		"at a boundary, while it runs":                {boundary: true, sameRun: true},
		"at a boundary, spool lost":                   {boundary: true, spoolLost: true},
		"the right one":                               {same: true},
		"the right one, while it runs":                {same: true, sameRun: true},
		"the right one at a boundary":                 {same: true, boundary: true},
		"the right one at a boundary, while it runs":  {same: true, boundary: true, sameRun: true},
		"the right one at a boundary, its spool lost": {same: true, boundary: true, spoolLost: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				db := w.address()
				at := w.srv.FillTo(3*mb + 50000)
				wal := fakepg.NewWAL(7300000000000000001, segment.MinSize, 99)
				theirs := wal.FillTo(1, 3*mb+20000)
				if c.boundary {
					at, theirs = w.srv.WAL().SwitchSegment(1), wal.SwitchSegment(1)
				}
				if c.same {
					wal, theirs = w.srv.WAL(), at
				}
				end, result := w.start(0)
				time.Sleep(20 * time.Second)
				settle()
				child := wal.Fork(1, theirs)
				wal.FillTo(child, 7*mb)
				other := fakepg.New(fakepg.Options{WAL: wal, SegmentSize: segment.MinSize, Timeline: child})
				defer other.Close()
				other.SetSlot(slotName, 2*mb)
				db.point(other)
				if c.sameRun {
					w.srv.Cut()
				} else {
					if err := end(); err != nil {
						t.Fatal(err)
					}
					if c.spoolLost {
						w.dir = t.TempDir()
					}
					end, result = w.start(0)
				}
				var err error
				select {
				case err = <-result:
				case <-time.After(5 * time.Minute):
				}
				settle()
				if c.same {
					if err != nil {
						t.Errorf("Run = %v", err)
					}
					if got := w.checkArchive(child); got != 7*mb {
						t.Errorf("the archive ends at %s", got)
					}
				} else {
					if !errors.Is(err, ErrConflict) {
						t.Errorf("Run = %v", err)
					}
					nothingReported(t, other)
					w.archive.mu.Lock()
					for n := range w.archive.segments {
						if n.Timeline == child {
							t.Errorf("segment %s of the other history is in the archive", n)
						}
					}
					w.archive.mu.Unlock()
				}
				_ = end()
			})
		})
	}
}

// TestSeveralSwitchesInOneSegment: a server that archives renames the last file of
// each timeline that ends, and then cannot send what an older one has in the same
// segment. It is all in the youngest one's file.
func TestSeveralSwitchesInOneSegment(t *testing.T) {
	for name, c := range map[string]struct {
		held                                  segment.LSN
		archiving, spoolLost, slotLost, other bool
		cut                                   int
	}{
		"in the segment":                        {held: 3*mb + 5000, archiving: true},
		"in the segment, no slot":               {held: 3*mb + 5000, archiving: true, slotLost: true},
		"in the segment, spool lost":            {held: 3*mb + 5000, archiving: true, spoolLost: true},
		"in the segment, nothing is renamed":    {held: 3*mb + 5000},
		"in the segment, cut in the middle":     {held: 3*mb + 5000, archiving: true, cut: 2},
		"in the segment, another history":       {held: 3*mb + 5000, archiving: true, other: true},
		"before it":                             {held: 2*mb + 5000, archiving: true},
		"before it, no slot":                    {held: 2*mb + 5000, archiving: true, slotLost: true},
		"at its start":                          {held: 3 * mb, archiving: true},
		"at its start, spool lost":              {held: 3 * mb, archiving: true, spoolLost: true},
		"at its start, another history":         {held: 3 * mb, archiving: true, other: true},
		"in the first one's last record's page": {held: 3*mb + 49000, archiving: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				db := w.address()
				w.srv.FillTo(c.held)
				if c.held == 3*mb {
					w.srv = fakepg.New(fakepg.Options{SegmentSize: segment.MinSize})
					t.Cleanup(w.srv.Close)
					w.srv.SetSlot(slotName, mb)
					w.srv.FillTo(2*mb + 5000)
					w.srv.WAL().SwitchSegment(1)
					db.point(w.srv)
				}
				w.run(20 * time.Second)
				wal := w.srv.WAL()
				if c.other {
					wal = fakepg.NewWAL(7300000000000000001, segment.MinSize, 99)
				}
				first := wal.FillTo(1, 3*mb+50000)
				wal.Fork(1, first)
				second := wal.FillTo(2, 3*mb+100000)
				wal.Fork(2, second)
				third := wal.FillTo(3, 3*mb+150000)
				wal.Fork(3, third)
				wal.FillTo(4, 6*mb)
				w.srv = fakepg.New(fakepg.Options{WAL: wal, SegmentSize: segment.MinSize, Timeline: 4, Archiving: c.archiving})
				t.Cleanup(w.srv.Close)
				db.point(w.srv)
				if !c.slotLost {
					w.srv.SetSlot(slotName, 2*mb)
				}
				if c.spoolLost {
					w.dir = t.TempDir()
				}
				if c.other {
					if err := w.refused(); !errors.Is(err, ErrConflict) {
						t.Errorf("Run = %v", err)
					}
					nothingReported(t, w.srv)
					return
				}
				end, _ := w.start(0)
				if c.cut > 0 {
					w.srv.CloseAfter(c.cut)
					time.Sleep(time.Minute)
					w.srv.CloseAfter(-1)
				}
				time.Sleep(2 * time.Minute)
				settle()
				if err := end(); err != nil {
					t.Fatalf("Run: %v", err)
				}
				if got := w.checkArchive(4); got != 6*mb {
					t.Errorf("the archive ends at %s", got)
				}
				for old, at := range map[segment.Timeline]segment.LSN{1: first, 2: second, 3: third} {
					if got := w.archive.partials[segment.MinSize.Name(old, at)]; got != at {
						t.Errorf("timeline %d ended at %s, its partial ends at %s", old, at, got)
					}
				}
				w.checkStatuses()
				if left := w.sp.Segments(); len(left) > 1 {
					t.Errorf("%d segments are in the spool, the first is %s", len(left), left[0].Name())
				}
			})
		})
	}
}

// TestSetBackTwiceInOneSegment: the primary was made again from the archive, and
// once more up to an earlier point of the same segment. What the spool alone has of
// the second timeline lies wholly behind that segment, and is neither forgotten
// nor left to the next start.
func TestSetBackTwiceInOneSegment(t *testing.T) {
	for name, spoolOnly := range map[string]bool{"a segment of it is whole": false, "all of it is in the spool": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSetBackTwice(t, newWorld(t, fakepg.Options{}), 3*mb+100000, spoolOnly)
				s.w.start(0)
				time.Sleep(2 * time.Minute)
				settle()
				s.check()
			})
		})
	}
}

// TestSetBackTwiceSurvivesAPowerCut cuts the power at one operation of the
// spool's disk after the other, from the start that meets the younger timeline
// on: what the spool alone had of the second one is in the archive after the next
// start, and is told; be its beginning in the segment where the third begins, or
// behind it.
func TestSetBackTwiceSurvivesAPowerCut(t *testing.T) {
	step := 17
	if os.Getenv("WALFERRY_FULL") != "" {
		step = 4
	}
	for _, late := range []segment.LSN{3*mb + 100000, 5*mb + 100000} {
		for op := step; ; op += step {
			reached := false
			synctest.Test(t, func(t *testing.T) {
				disk := crashfs.New(uint64(op))
				w := newWorld(t, fakepg.Options{})
				w.fs, w.dir = disk, "/spool"
				s := newSetBackTwice(t, w, late, true)
				end, _ := w.start(0)
				begin := disk.Ops()
				disk.StopAt(op)
				time.Sleep(2 * time.Minute)
				settle()
				reached = disk.Ops()-begin >= op
				if err := end(); err != nil && !errors.Is(err, crashfs.ErrCrashed) {
					t.Logf("Run: %v", err)
				}
				disk.Crash()
				w.start(0)
				time.Sleep(2 * time.Minute)
				settle()
				s.check()
			})
			if t.Failed() {
				t.Fatalf("operation %d, the second timeline begins at %s", op, late)
			}
			if !reached {
				if op < 20 {
					t.Errorf("only %d operations: the sweep shows nothing", op)
				}
				break
			}
		}
	}
}

// setBackTwice is a primary that was made again from the archive twice, and a
// spool that holds WAL of the timeline between.
type setBackTwice struct {
	w    *world
	wal  *fakepg.WAL
	at   segment.LSN // where the third timeline begins
	held segment.LSN // how far the spool has the second
	end  segment.LSN // of the third, at a boundary
}

// newSetBackTwice ends before the receiver meets the third timeline. The second
// begins at about late.
func newSetBackTwice(t *testing.T, w *world, late segment.LSN, spoolOnly bool) *setBackTwice {
	t.Helper()
	db := w.address()
	wal := w.srv.WAL()
	early := w.srv.FillTo(3*mb + 50000)
	late = w.srv.FillTo(late)
	w.srv.FillTo(late + 50000)
	w.run(20 * time.Second)

	again := func(parent segment.Timeline, at, to segment.LSN) segment.LSN {
		child := wal.Fork(parent, at)
		end := wal.FillTo(child, to)
		w.srv = fakepg.New(fakepg.Options{WAL: wal, SegmentSize: segment.MinSize, Timeline: child, Archiving: true})
		t.Cleanup(w.srv.Close)
		db.point(w.srv)
		return end
	}
	next := segment.MinSize.Start(late) + mb
	held := again(1, late, next+50000)
	if spoolOnly {
		w.carrier.stall()
	}
	w.run(20 * time.Second)
	again(2, early, next+2*mb) // PostgreSQL takes the second timeline for the parent
	return &setBackTwice{w, wal, early, held, next + 2*mb}
}

func (s *setBackTwice) check() {
	s.w.t.Helper()
	if got := s.w.checkArchive(3); got != s.end {
		s.w.t.Errorf("the archive ends at %s", got)
	}
	n := segment.MinSize.Name(2, s.held)
	if have, want := s.w.archive.beyond[n], s.wal.Bytes(2, n.Start(segment.MinSize), s.held); !bytes.Equal(have, want) {
		s.w.t.Errorf("of segment %s the archive has %d bytes, want %d", n, len(have), len(want))
	}
	for _, want := range []string{s.held.String(), s.at.String(), "stays on the old timeline"} {
		if !strings.Contains(s.w.log.String(), want) {
			s.w.t.Errorf("the log does not say %q", want)
		}
	}
	if left := s.w.sp.Segments(); len(left) > 1 {
		s.w.t.Errorf("%d segments are in the spool, the first is %s", len(left), left[0].Name())
	}
}

// TestTwoPromotionsToOneTimeline: two servers were promoted to a timeline of the
// same number. What the archive has of the first is nothing of the second: a
// receiver that has nothing else is not given it.
func TestTwoPromotionsToOneTimeline(t *testing.T) {
	for name, spoolLost := range map[string]bool{"with its spool": false, "spool lost": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newArchiveWorld(t, fakepg.Options{})
				db := w.address()
				at := w.srv.FillTo(3*mb + 5000)
				wal := fakepg.NewWAL(7300000000000000001, segment.MinSize, 0) // the same as yet
				other := fakepg.New(fakepg.Options{WAL: wal, SegmentSize: segment.MinSize})
				defer other.Close()
				other.SetSlot(slotName, mb)
				other.Promote(other.FillTo(3*mb + 1000))
				other.FillTo(4 * mb)
				end, _ := w.start(0)
				time.Sleep(12 * time.Second)
				w.srv.Promote(at)
				w.srv.FillTo(3*mb + 90000)
				time.Sleep(20 * time.Second)
				settle()
				if err := end(); err != nil {
					t.Fatal(err)
				}
				if spoolLost {
					w.dir = t.TempDir()
				}
				db.point(other)
				if err := w.refused(); !errors.Is(err, ErrConflict) && !errors.Is(err, spool.ErrConflict) || !strings.Contains(err.Error(), "two servers were promoted to timeline 2") {
					t.Errorf("Run = %v", err)
				}
				nothingReported(t, other)
				if left := w.sp.Segments(); spoolLost && len(left) > 0 {
					t.Errorf("%d segments are in the spool, the first is %s", len(left), left[0].Name())
				}
			})
		})
	}
}
