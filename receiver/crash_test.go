package receiver

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/spool"
)

// TestReportedFlushSurvivesAPowerCut cuts the power at one operation of the
// spool's disk after the other, and fails one after the other: whatever was
// reported as flushed until then is on the disk (invariant 1).
func TestReportedFlushSurvivesAPowerCut(t *testing.T) {
	for _, mode := range []struct{ fail, synchronous bool }{{false, true}, {true, true}, {false, false}} {
		step := 11
		if os.Getenv("WALFERRY_FULL") != "" {
			step = 1
		}
		for op := 1; ; op += step {
			reached := false
			synctest.Test(t, func(t *testing.T) { reached = powerCut(t, op, mode.fail, mode.synchronous) })
			if t.Failed() {
				t.Fatalf("operation %d, %+v", op, mode)
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

// powerCut runs a receiver until the power goes: one that is a synchronous
// standby with a store that is away, or one whose hold lasts. It reports
// whether the run was long enough to reach the operation.
func powerCut(t *testing.T, op int, fail, synchronous bool) bool {
	disk := crashfs.New(uint64(op))
	w := newWorld(t, fakepg.Options{})
	w.fs, w.dir = disk, "/spool"
	if synchronous {
		w.srv.Set("synchronous_standby_names", "walferry")
	}
	w.options.NoLoop = !fail
	end, _ := w.start(0)
	if fail {
		disk.FailAt(op, syscall.EIO)
	} else {
		disk.StopAt(op)
	}
	begin := disk.Ops()
	if synchronous {
		w.carrier.stall()
	}
	for i := range 12 {
		w.srv.FillTo(w.srv.End() + 130_000)
		if w.srv.End() > 2*mb && w.srv.End() < 2*mb+130_000 {
			w.srv.WAL().SwitchSegment(1)
		}
		if i%2 == 0 {
			time.Sleep(2 * time.Second)
		}
	}
	if fail {
		time.Sleep(time.Minute) // for the attempt after the failure
	}
	settle()
	ops := disk.Ops() - begin
	if err := end(); err != nil && !fail && !errors.Is(err, crashfs.ErrCrashed) {
		t.Logf("Run: %v", err)
	}
	disk.Crash()

	var flush segment.LSN
	for _, s := range w.srv.Statuses() {
		flush = max(flush, s.Flush)
	}
	if fail && flush != w.srv.End() && !errors.Is(w.runError, ErrSpoolFailed) {
		t.Errorf("after one failed operation the flush LSN stays at %s; the server is at %s", flush, w.srv.End())
	}
	sp, err := spool.Open(disk, w.dir, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := max(mb, w.checkArchive(1))
	for _, g := range sp.Segments() {
		to := min(g.End(), flush)
		if to <= got {
			continue
		}
		b := make([]byte, to-g.Start())
		if err := g.ReadAt(b, g.Start()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, w.srv.WAL().Bytes(1, g.Start(), to)) {
			t.Errorf("segment %s differs from the server's before %s", g.Name(), to)
		}
		got = to
	}
	if got < flush {
		t.Errorf("flush %s was reported; the disk has everything up to %s", flush, got)
	}
	if err := sp.Close(); err != nil {
		t.Error(err)
	}

	// Whatever the crash left, the next run goes on from there to the end.
	w.options.NoLoop = false
	w.srv.SetSlot(slotName, max(mb, flush))
	w.start(0)
	w.srv.FillTo(w.srv.End() + 500_000)
	time.Sleep(time.Minute)
	settle()
	if s := w.lastStatus(); s.Write != w.srv.End() {
		t.Errorf("after the crash: write %s, the server ends at %s", s.Write, w.srv.End())
	}
	if left := w.sp.Segments(); len(left) != 1 {
		t.Errorf("after the crash: %d segments are left in the spool, want the open one", len(left))
	}
	if got := w.checkArchive(1); got != w.srv.WAL().Size().Start(w.srv.End()) {
		t.Errorf("after the crash: the archive ends at %s, the server at %s", got, w.srv.End())
	}
	return ops >= op
}
