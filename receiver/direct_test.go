package receiver

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment/disk"
)

// TestCommitsAreAnsweredOneByOne: each small transaction is released by a
// status of its own, as soon as it is durable, and not with the next interval.
func TestCommitsAreAnsweredOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.Set("synchronous_standby_names", "walferry")
		counting := &hangingDisk{FS: disk.OS{}}
		w.fs = counting
		w.srv.FillTo(2*mb + 5000)
		w.start(0)
		time.Sleep(12 * time.Second)
		for range 500 { // across the ends of segments
			end := w.srv.Append(4000)
			settle()
			if s := w.lastStatus(); s.Flush != end || s.Write != end {
				t.Fatalf("write %s, flush %s, and a commit waits for %s", s.Write, s.Flush, end)
			}
		}
		w.checkHeld()
		w.checkStatuses()
		if n := counting.synced(); n < 500 {
			t.Errorf("%d fsyncs for 500 commits that were released one by one", n)
		}
	})
}

// TestAFailedSyncUnderACommit: what the failed fsync may have lost is streamed
// again, and until then nothing of it is reported.
func TestAFailedSyncUnderACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.Set("synchronous_standby_names", "walferry")
		broken := &slowlyFailingDisk{FS: disk.OS{}}
		w.fs = broken
		w.srv.FillTo(2*mb + 5000)
		w.start(0)
		time.Sleep(12 * time.Second)
		durable := w.srv.Append(100)
		settle()
		broken.failing.Store(true)
		w.srv.Append(100)
		time.Sleep(4 * time.Second)
		for _, s := range w.srv.Statuses() {
			if s.Flush > durable {
				t.Errorf("flush %s was reported before the failure has passed", s.Flush)
			}
		}
		time.Sleep(time.Minute)
		settle()
		if s := w.lastStatus(); s.Flush != w.srv.End() {
			t.Errorf("flush %s a minute after the failure, want %s", s.Flush, w.srv.End())
		}
		if n := w.told("input/output error"); n == 0 {
			t.Error("the failure was not told")
		}
		w.checkHeld()
		w.checkStatuses()
	})
}

// TestStoppedUnderACommit: who stops the program while an fsync hangs gets, once
// it is back, what any stop gets: all that is held is reported.
func TestStoppedUnderACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.Set("synchronous_standby_names", "walferry")
		gate := &hangingDisk{FS: disk.OS{}}
		w.fs = gate
		w.srv.FillTo(2*mb + 5000)
		end, _ := w.start(0)
		time.Sleep(12 * time.Second)
		settle()
		gate.hang()
		at := w.srv.Append(100)
		settle()
		go func() {
			time.Sleep(2 * time.Second)
			gate.goOn()
		}()
		if err := end(); err != nil {
			t.Error(err)
		}
		if s := w.lastStatus(); s.Flush != at || s.Write != at {
			t.Errorf("the last status has write %s and flush %s, want %s", s.Write, s.Flush, at)
		}
	})
}

// TestBehindASlowSyncMoreIsRead: while the disk is slow, a commit that waits for
// less than the disk does not wait for the fsync of the one before.
func TestBehindASlowSyncMoreIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.Set("synchronous_standby_names", "walferry")
		gate := &hangingDisk{FS: disk.OS{}}
		w.fs = gate
		w.srv.FillTo(2*mb + 5000)
		w.start(0)
		time.Sleep(12 * time.Second)
		settle()
		gate.hang()
		w.srv.Append(100)
		settle()
		time.Sleep(2 * directSync)
		gate.goOn()
		settle()

		gate.hang()
		first := w.srv.Append(100)
		settle()
		second := w.srv.Append(100)
		settle()
		gate.letOneThrough()
		settle()
		if s := w.lastStatus(); s.Write != second || s.Flush != first {
			t.Errorf("write %s, flush %s; received %s, the fsync began at %s", s.Write, s.Flush, second, first)
		}
		gate.goOn()
		settle()
		if s := w.lastStatus(); s.Flush != second {
			t.Errorf("flush %s after the second fsync, want %s", s.Flush, second)
		}
	})
}
