package receiver

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk/crashfs"
)

// promotions are what a receiver meets that holds timeline 1.
type promotions struct {
	at      []segment.LSN // of each next timeline, where the one before ended
	beyond  segment.LSN   // how much more of timeline 1 is held
	stalled bool          // the store is away until the power goes
	sameRun bool          // the server is cut off, and not the receiver started
}

// TestPromotionsSurviveAPowerCut cuts the power at one operation of the spool's
// disk after the other, from the promotions on: with the next start the archive
// has each timeline up to its end, and what was acknowledged beyond it.
func TestPromotionsSurviveAPowerCut(t *testing.T) {
	each, step := 7, 41
	if os.Getenv("WALFERRY_FULL") != "" {
		each, step = 1, 31
	}
	n := 0
	for _, at := range [][]segment.LSN{
		{3*mb + 50000},
		{4 * mb},
		{3*mb + 50000, 3*mb + 90000},
		{3*mb + 50000, 3*mb + 90000, 3*mb + 130000},
		{3*mb + 50000, 4*mb + 90000},
	} {
		for _, beyond := range []segment.LSN{0, 20000, 200000, 2 * mb} {
			for _, mode := range []promotions{{stalled: true}, {}, {stalled: true, sameRun: true}, {sameRun: true}} {
				p := promotions{at, beyond, mode.stalled, mode.sameRun}
				if n++; n%each != 0 {
					continue
				}
				for op := 1 + n%step; ; op += step {
					reached := false
					synctest.Test(t, func(t *testing.T) { reached = p.cut(t, op) })
					if t.Failed() {
						t.Fatalf("operation %d, %+v", op, p)
					}
					if !reached {
						if op == 1+n%step {
							t.Errorf("only %d operations: the sweep shows nothing", op)
						}
						break
					}
				}
			}
		}
	}
}

// cut reports whether there were so many operations.
func (p promotions) cut(t *testing.T, op int) (reached bool) {
	disk := crashfs.New(uint64(op))
	w := newWorld(t, fakepg.Options{})
	w.fs, w.dir, w.stalled = disk, "/spool", p.stalled
	db := w.address()
	at := []segment.LSN{w.srv.FillTo(p.at[0])}
	ahead := at[0]
	if p.beyond > 0 {
		ahead = w.srv.FillTo(at[0] + p.beyond)
	}
	end, _ := w.start(0)
	time.Sleep(20 * time.Second)
	settle()
	if !p.sameRun {
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	wal := w.srv.WAL()
	last := segment.Timeline(1)
	for i := range p.at {
		child := wal.Fork(last, at[i])
		if i+1 < len(p.at) {
			at = append(at, wal.FillTo(child, p.at[i+1]))
		}
		last = child
	}
	wal.FillTo(last, 7*mb)
	before := w.srv
	w.srv = fakepg.New(fakepg.Options{WAL: wal, SegmentSize: segment.MinSize, Timeline: last, Archiving: true})
	t.Cleanup(w.srv.Close)
	db.point(w.srv)
	if p.sameRun {
		before.Cut()
	} else {
		end, _ = w.start(0)
	}
	begin := disk.Ops()
	disk.StopAt(op)
	time.Sleep(time.Minute)
	settle()
	reached = disk.Ops()-begin >= op
	if err := end(); err != nil && !errors.Is(err, crashfs.ErrCrashed) {
		t.Logf("Run: %v", err)
	}
	disk.Crash()

	w.stalled = false
	w.start(0)
	time.Sleep(2 * time.Minute)
	settle()
	if got := w.checkArchive(last); got != 7*mb {
		t.Errorf("the archive ends at %s", got)
	}
	for i, at := range at {
		tl := segment.Timeline(i + 1)
		n := segment.MinSize.Name(tl, at)
		if got := w.archive.partials[n]; segment.MinSize.Offset(at) != 0 && got != at && w.archive.segments[n] == nil {
			t.Errorf("timeline %d ended at %s, its partial at %s", tl, at, got)
		}
	}
	for l := segment.MinSize.Start(at[0]); l < ahead; l += mb {
		n, to := segment.MinSize.Name(1, l), min(ahead, l+mb)
		have := w.archive.segments[n]
		if have == nil {
			have = w.archive.beyond[n]
		}
		if want := wal.Bytes(1, l, to); ahead > at[0] && (len(have) < len(want) || !bytes.Equal(have[:len(want)], want)) {
			t.Errorf("of segment %s up to %s the archive has %d bytes", n, to, len(have))
		}
	}
	if left := w.sp.Segments(); len(left) > 1 {
		t.Errorf("%d segments are in the spool, the first is %s", len(left), left[0].Name())
	}
	w.checkStatuses()
	return reached
}

// TestAChildsSegmentIsNoClaim: a crash has left the youngest timeline's first
// segment with less than its parent had, and of the parent's last nothing: the
// file is no sign that the parent's WAL is held.
func TestAChildsSegmentIsNoClaim(t *testing.T) {
	for name, archived := range map[string]bool{"older ones are in the spool": false, "older ones are in the archive": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				db := w.address()
				wal := w.srv.WAL()
				at := []segment.LSN{w.srv.FillTo(3*mb + 50000)}
				w.stalled = !archived
				w.run(20 * time.Second)
				for i, to := range []segment.LSN{3*mb + 90000, 3*mb + 130000, 7 * mb} {
					at = append(at, wal.FillTo(wal.Fork(segment.Timeline(i+1), at[i]), to))
				}
				w.srv = fakepg.New(fakepg.Options{WAL: wal, SegmentSize: segment.MinSize, Timeline: 4, Archiving: true})
				t.Cleanup(w.srv.Close)
				db.point(w.srv)

				partial := func(tl segment.Timeline, held []byte) {
					t.Helper()
					history, _ := wal.HistoryFile(tl)
					if err := os.WriteFile(filepath.Join(w.dir, tl.HistoryName()), history, 0o600); err != nil {
						t.Fatal(err)
					}
					b := append(held, make([]byte, int(segment.MinSize)-len(held))...)
					if err := os.WriteFile(filepath.Join(w.dir, segment.MinSize.Name(tl, 3*mb).String()+".partial"), b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				second := segment.MinSize.Name(2, 3*mb)
				if archived {
					first := segment.MinSize.Name(1, 3*mb)
					if err := os.Remove(filepath.Join(w.dir, first.String()+".partial")); err != nil {
						t.Fatal(err)
					}
					w.archive.partials[first], w.archive.partials[second] = at[0], at[1]
				} else {
					partial(2, wal.Bytes(2, 3*mb, at[1]))
				}
				partial(4, wal.Bytes(4, 3*mb, at[2]-32))

				w.stalled = false
				w.start(0)
				time.Sleep(2 * time.Minute)
				settle()
				if got := w.checkArchive(4); got != 7*mb {
					t.Errorf("the archive ends at %s", got)
				}
				for i, at := range at[:3] {
					if got := w.archive.partials[segment.MinSize.Name(segment.Timeline(i+1), 3*mb)]; got != at {
						t.Errorf("timeline %d ended at %s, its partial ends at %s", i+1, at, got)
					}
				}
				want := segment.Position{Timeline: 2, LSN: at[1]} // what is held
				if archived {
					want = segment.Position{Timeline: 1, LSN: 3 * mb}
				}
				if !strings.Contains(w.log.String(), `msg=resuming position="`+want.String()+`"`) {
					t.Errorf("the start does not go on at %s", want)
				}
				w.checkStatuses()
			})
		})
	}
}

// TestTailsBeyondTheEnd: behind the end of a timeline that is held beyond it,
// nothing is put together of its tail objects: the segment would stay in the spool.
func TestTailsBeyondTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		db := w.address()
		at := w.srv.FillTo(3*mb + 50000)
		w.srv.FillTo(4*mb + 50000)
		standby := sibling(t, w, fakepg.Options{})
		standby.SetSlot(slotName, mb)
		w.stalled = true
		w.run(20 * time.Second)
		open := segment.MinSize.Name(1, 4*mb) // it has gone up before the host was lost
		w.archive.tails[open] = w.srv.WAL().Bytes(1, 4*mb, 4*mb+50000)
		if err := os.Remove(filepath.Join(w.dir, open.String()+".partial")); err != nil {
			t.Fatal(err)
		}
		child := standby.Promote(at)
		standby.FillTo(7 * mb)
		db.point(standby)
		w.start(0)
		time.Sleep(20 * time.Second)
		w.carrier.flow()
		time.Sleep(2 * time.Minute)
		settle()
		if got := w.checkArchive(child); got != 7*mb {
			t.Errorf("the archive ends at %s", got)
		}
		if left := w.sp.Segments(); len(left) > 1 {
			t.Errorf("%d segments are in the spool, the first is %s", len(left), left[0].Name())
		}
		if strings.Contains(w.log.String(), "taken from there") {
			t.Error("tail objects of a timeline that has ended were put together")
		}
	})
}
