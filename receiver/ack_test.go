package receiver

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

// newArchiveWorld is a world that reports what the archive has, and whose
// uploader makes tail objects of what it is offered.
func newArchiveWorld(t *testing.T, o fakepg.Options) *world {
	t.Helper()
	w := newWorld(t, o)
	w.options.Ack = AckArchive
	w.tailing = true
	return w
}

// TestAckArchiveReportsWhatIsShipped: the write LSN is this host's disk, the
// flush LSN the archive.
func TestAckArchiveReportsWhatIsShipped(t *testing.T) {
	for _, noSpool := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newArchiveWorld(t, fakepg.Options{})
			w.options.NoSpool = noSpool
			w.srv.Set("synchronous_standby_names", "walferry")
			w.srv.FillTo(3*mb + 5000)
			w.start(0)
			time.Sleep(11 * time.Second)
			settle()
			if s := w.lastStatus(); s.Flush != w.srv.End() || s.Write != w.srv.End() {
				t.Errorf("write %s flush %s; all is shipped up to %s", s.Write, s.Flush, w.srv.End())
			}
			w.carrier.stall()
			shipped := w.srv.End()
			end := w.srv.Append(1000)
			settle()
			if s := w.lastStatus(); s.Flush != shipped || s.Write != end {
				t.Errorf("the store is away: write %s flush %s; shipped %s, on the disk %s", s.Write, s.Flush, shipped, end)
			}
			w.carrier.flow()
			end = w.srv.Append(1000)
			settle()
			if s := w.lastStatus(); s.Flush != end {
				t.Errorf("the store is back: flush %s, shipped %s", s.Flush, end)
			}
			w.checkStatuses()
		})
	}
}

// TestWriteWaitsForTheDisk: with a spool, received is not yet written.
func TestWriteWaitsForTheDisk(t *testing.T) {
	for _, noSpool := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newArchiveWorld(t, fakepg.Options{})
			disk := &hangingDisk{FS: w.fs}
			w.fs = disk
			w.options.NoSpool = noSpool
			w.srv.Set("synchronous_standby_names", "walferry")
			w.srv.FillTo(3*mb + 5000)
			w.start(0)
			time.Sleep(11 * time.Second)
			w.carrier.stall()
			before := w.srv.End()
			disk.hang()
			end := w.srv.Append(1000)
			time.Sleep(30 * time.Second)
			settle()
			want := before
			if noSpool {
				want = end
			}
			if s := w.lastStatus(); s.Write != want {
				t.Errorf("without spool %v: write %s; before the fsync %s, received %s", noSpool, s.Write, before, end)
			}
			disk.goOn()
			w.carrier.flow()
		})
	}
}

// TestACommitThatWaitsHurriesTheTail, and an idle standby does not.
func TestACommitThatWaitsHurriesTheTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newArchiveWorld(t, fakepg.Options{})
		w.options.WatchInterval = 10 * time.Second
		w.start(0)
		time.Sleep(time.Second)
		hurried := func() bool {
			settle()
			w.carrier.mu.Lock()
			defer w.carrier.mu.Unlock()
			return len(w.carrier.offers) > 0 && w.carrier.offers[len(w.carrier.offers)-1].hurry
		}
		w.srv.Append(100)
		if hurried() {
			t.Error("nobody waits, and the tail is hurried")
		}
		w.srv.Set("synchronous_standby_names", "*")
		time.Sleep(11 * time.Second)
		w.srv.Append(100)
		if !hurried() {
			t.Error("a commit waits, and the tail is not hurried")
		}
		w.srv.Set("synchronous_standby_names", "")
		time.Sleep(11 * time.Second)
		w.srv.Append(100)
		if hurried() {
			t.Error("nobody waits any more, and the tail is hurried")
		}
	})
}

// TestSynchronousIsToldByTheSetting, whatever the server says.
func TestSynchronousIsToldByTheSetting(t *testing.T) {
	for _, c := range []struct {
		told  Synchronous
		names string
		want  bool
	}{
		{SynchronousAuto, "", false}, {SynchronousAuto, "walferry", true},
		{SynchronousOn, "", true}, {SynchronousOff, "walferry", false},
	} {
		w := &watcher{name: "walferry", told: c.told, changed: make(chan struct{}, 1)}
		w.saw(c.names)
		if w.waiting() != c.want {
			t.Errorf("%v with %q: waiting %v", c.told, c.names, w.waiting())
		}
	}
}

// TestTailsOfTheSpoolAreDurable: with AckSpool nothing is offered that is not
// on the disk.
func TestTailsOfTheSpoolAreDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		disk := &hangingDisk{FS: w.fs}
		w.fs = disk
		w.srv.FillTo(3*mb + 5000)
		w.start(0)
		time.Sleep(11 * time.Second)
		before := w.srv.End()
		disk.hang()
		w.srv.Append(1000)
		time.Sleep(30 * time.Second)
		settle()
		w.carrier.mu.Lock()
		for _, o := range w.carrier.offers {
			if o.to > before || o.hurry {
				t.Errorf("offered up to %s (hurry %v), on the disk is %s", o.to, o.hurry, before)
			}
		}
		if len(w.carrier.offers) == 0 || w.carrier.offers[len(w.carrier.offers)-1].to != before {
			t.Errorf("the last offer is not of what is on the disk, %s", before)
		}
		w.carrier.mu.Unlock()
		disk.goOn()
	})
}

// TestChangeToAckArchive: the slot is further than what is shipped; it is not
// moved back, and no commit is told that it is safe.
func TestChangeToAckArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.options.Hold = 0
		w.srv.FillTo(3*mb + 5000)
		w.run(12 * time.Second)
		slot, _ := w.srv.Slot(slotName)
		if slot != w.srv.End() {
			t.Fatalf("the slot is at %s", slot)
		}
		w.options.Ack = AckArchive
		seen := len(w.srv.Statuses())
		w.start(0)
		time.Sleep(12 * time.Second)
		settle()
		for _, s := range w.srv.Statuses()[seen:] {
			if s.Flush != 0 {
				t.Errorf("flush %s, with nothing but %s shipped", s.Flush, 3*mb)
			}
		}
		if now, _ := w.srv.Slot(slotName); now != slot {
			t.Errorf("the slot went from %s to %s", slot, now)
		}
		end := w.srv.FillTo(5 * mb)
		time.Sleep(12 * time.Second)
		settle()
		if s := w.lastStatus(); s.Flush != w.srv.WAL().Size().Start(end) {
			t.Errorf("flush %s, shipped %s", s.Flush, w.srv.WAL().Size().Start(end))
		}
	})
}

// TestShutdownWithTheStoreAway: the primary's shutdown is not blocked longer
// than the grace, and what it sent is not reported as safe.
func TestShutdownWithTheStoreAway(t *testing.T) {
	for _, ack := range []Ack{AckSpool, AckArchive} {
		synctest.Test(t, func(t *testing.T) {
			w := newArchiveWorld(t, fakepg.Options{})
			w.options.Ack = ack
			w.srv.FillTo(3*mb + 5000)
			w.start(0)
			time.Sleep(12 * time.Second)
			w.carrier.stall()
			shipped := w.srv.End()
			end := w.srv.Append(1000)
			time.Sleep(time.Second)
			w.srv.Shutdown()
			time.Sleep(40 * time.Second)
			settle()
			slot, _ := w.srv.Slot(slotName)
			if last := w.lastStatus(); ack == AckArchive && (last.Flush != 0 || last.Write != end) {
				t.Errorf("the last status is write %s flush %s, received %s", last.Write, last.Flush, end)
			}
			if ack == AckArchive && slot > shipped {
				t.Errorf("the slot is at %s, shipped %s", slot, shipped)
			}
			if ack == AckSpool && slot != end {
				t.Errorf("the slot is at %s, on the disk is %s", slot, end)
			}
			w.srv.Start()
			w.carrier.flow()
			time.Sleep(time.Minute)
		})
	}
}

// TestResumesBehindTheTails: a host that has nothing goes on behind what the
// archive has in tail objects, and has them for its own.
func TestResumesBehindTheTails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newArchiveWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 50000)
		w.run(12 * time.Second)
		shipped := w.srv.End()
		if got := segment.LSN(len(w.archive.tails[segment.MinSize.Name(1, 3*mb)])); got != shipped-3*mb {
			t.Fatalf("the tail has %d bytes", got)
		}
		w.dir = t.TempDir()
		w.srv.Append(5000)
		w.start(0)
		time.Sleep(time.Second)
		settle()
		if !strings.Contains(w.log.String(), "tail objects have more") {
			t.Errorf("nothing was restored:\n%s", w.log)
		}
		if s := w.lastStatus(); s.Write < shipped {
			t.Errorf("write %s, shipped before %s", s.Write, shipped)
		}
		w.srv.FillTo(5 * mb)
		time.Sleep(12 * time.Second)
		settle()
		if got := w.checkArchive(1); got != 5*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}

// TestOtherTailsAreAConflict: the archive's tail objects and the server are two
// histories.
func TestOtherTailsAreAConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newArchiveWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 50000)
		w.run(12 * time.Second)
		w.archive.tails[segment.MinSize.Name(1, 3*mb)][40000] ^= 1
		w.dir = t.TempDir()
		seen := len(w.srv.Statuses())
		if err := w.refused(); !errors.Is(err, ErrConflict) {
			t.Errorf("Run: %v", err)
		}
		for _, s := range w.srv.Statuses()[seen:] {
			if s.Write != 0 || s.Flush != 0 {
				t.Errorf("reported write %s flush %s", s.Write, s.Flush)
			}
		}
	})
}

// TestTailsUpToTheSegmentsEnd: the last segment was reported to its end by its
// tail objects, was not sealed, and the server has removed it. Only the archive
// can complete it.
func TestTailsUpToTheSegmentsEnd(t *testing.T) {
	for _, further := range []segment.LSN{0, 3000} {
		synctest.Test(t, func(t *testing.T) {
			w := newArchiveWorld(t, fakepg.Options{})
			w.srv.FillTo(3 * mb)
			w.run(12 * time.Second)
			w.srv.FillTo(4*mb + further)
			n := segment.MinSize.Name(1, 3*mb)
			w.archive.tails[n] = w.srv.WAL().Segment(n)
			if further > 0 {
				next := segment.MinSize.Name(1, 4*mb)
				w.archive.tails[next] = w.srv.WAL().Bytes(1, 4*mb, 4*mb+further)
			}
			w.srv.SetSlot(slotName, 4*mb+further)
			w.srv.RemoveWALBefore(4 * mb)
			w.dir = t.TempDir()
			w.start(0)
			time.Sleep(30 * time.Second)
			w.srv.FillTo(6 * mb)
			time.Sleep(12 * time.Second)
			settle()
			if got := w.checkArchive(1); got != 6*mb {
				t.Errorf("the archive ends at %s", got)
			}
			if b := w.archive.segments[n]; !bytes.Equal(b, w.srv.WAL().Segment(n)) {
				t.Errorf("segment %s was not completed from its tail objects", n)
			}
		})
	}
}

// TestNewArchiveWithTailsOnly: the first segment is not whole, the host is
// lost, and the slot is gone: what the tail objects have is where to go on.
func TestNewArchiveWithTailsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newArchiveWorld(t, fakepg.Options{})
		w.srv.FillTo(mb + 50000)
		w.run(12 * time.Second)
		if len(w.archive.segments) != 0 || len(w.archive.tails) != 1 {
			t.Fatalf("%d segments, %d with tails", len(w.archive.segments), len(w.archive.tails))
		}
		w.dir = t.TempDir()
		w.options.Slot = "another"
		w.srv.FillTo(4 * mb)
		w.start(0)
		time.Sleep(12 * time.Second)
		settle()
		if got := w.checkArchive(1); got != 4*mb || len(w.archive.segments) != 3 {
			t.Errorf("the archive ends at %s and has %d segments", got, len(w.archive.segments))
		}
	})
}

// TestTailsOfBothTimelines: the host is lost behind a promotion, in whose
// segment both timelines have tail objects.
func TestTailsOfBothTimelines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newArchiveWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 50000)
		w.start(0)
		time.Sleep(12 * time.Second)
		w.srv.Promote(w.srv.End())
		w.srv.Append(30000)
		time.Sleep(20 * time.Second)
		shipped := w.srv.End()
		for _, old := range []segment.Timeline{1, 2} {
			if len(w.archive.tails[segment.MinSize.Name(old, 3*mb)]) == 0 {
				t.Fatalf("no tail of timeline %d", old)
			}
		}
		w2 := newArchiveWorld(t, fakepg.Options{})
		w2.srv, w2.archive = w.srv, w.archive
		w2.options.Connect = connect(w.srv)
		w2.options.Slot = "another"
		w2.start(0)
		time.Sleep(12 * time.Second)
		settle()
		if w2.r.pos.Timeline != 2 || w2.r.pos.LSN < shipped {
			t.Errorf("resumed at %s, shipped %s", w2.r.pos, shipped)
		}
	})
}

// TestGapWithTheArchiveUnasked: a spool that lost its end is no proof of a gap
// while the archive cannot be asked.
func TestGapWithTheArchiveUnasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newArchiveWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 50000)
		w.run(12 * time.Second)
		// Behind what this spool has, another receiver has gone on.
		w.srv.FillTo(5*mb + 10000)
		for l := 3 * mb; l < 5*mb; l += mb {
			n := segment.MinSize.Name(1, l)
			w.archive.segments[n] = w.srv.WAL().Segment(n)
		}
		w.srv.RemoveWALBefore(5 * mb)
		w.srv.SetSlot(slotName, 5*mb+10000)
		w.archive.down = errDown
		w.start(0)
		time.Sleep(time.Minute)
		settle()
		w.archive.mu.Lock()
		w.archive.down = nil
		w.archive.mu.Unlock()
		time.Sleep(time.Minute)
		w.srv.FillTo(7 * mb)
		time.Sleep(12 * time.Second)
		settle()
		if got := w.checkArchive(1); got != 7*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}

// TestMemoryIsFull: without a spool it is the memory that is told of, and the
// server keeps what has no room.
func TestMemoryIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newArchiveWorld(t, fakepg.Options{})
		w.options.NoSpool = true
		w.srv.FillTo(10 * mb)
		w.start(3 << 20)
		w.carrier.stall()
		time.Sleep(time.Minute)
		settle()
		if n := w.told("the memory for WAL (--memory) is full"); n != 1 {
			t.Errorf("told %d times that the memory is full", n)
		}
		if slot, _ := w.srv.Slot(slotName); slot > 2*mb {
			t.Errorf("the slot went to %s, and nothing is shipped", slot)
		}
		w.carrier.flow()
		time.Sleep(time.Minute)
		settle()
		if w.told("the memory for WAL (--memory) has room again") != 1 {
			t.Error("it was not told that there is room again")
		}
		if got := w.checkArchive(1); got != 10*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}

// TestTheFirstBytesBehindAQuietTimeAreSyncedAtOnce, although nothing that is
// reported waits for it: their tail object does. What follows them waits.
func TestTheFirstBytesBehindAQuietTimeAreSyncedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.tailing = true
		w.srv.FillTo(3*mb + 5000)
		w.start(0)
		time.Sleep(11 * time.Second)
		first := w.srv.Append(100)
		settle()
		if p, _ := w.carrier.Shipped(); p.LSN != first {
			t.Errorf("shipped %s at once, want %s", p, first)
		}
		time.Sleep(100 * time.Millisecond)
		second := w.srv.Append(100)
		settle()
		if p, _ := w.carrier.Shipped(); p.LSN != first {
			t.Errorf("shipped %s, with a sync 100 ms behind the last", p)
		}
		time.Sleep(time.Second)
		settle()
		if p, _ := w.carrier.Shipped(); p.LSN != second {
			t.Errorf("shipped %s a second later, want %s", p, second)
		}
	})
}
