package receiver

import (
	"bytes"
	"fmt"
	"io/fs"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
)

// TestFlushWaitsForTheDisk: what was received is not what is durable, however
// long the disk takes and however urgently a commit waits.
func TestFlushWaitsForTheDisk(t *testing.T) {
	for _, size := range []int{100, directBytes + 1} {
		t.Run(fmt.Sprint(size, " bytes"), func(t *testing.T) { flushWaitsForTheDisk(t, size) })
	}
}

func flushWaitsForTheDisk(t *testing.T, size int) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.Set("synchronous_standby_names", "walferry")
		gate := &hangingDisk{FS: disk.OS{}}
		w.fs = gate
		w.srv.FillTo(2*mb + 5000)
		w.start(0)
		time.Sleep(12 * time.Second)
		settle()
		durable := w.srv.End()
		if s := w.lastStatus(); s.Flush != durable {
			t.Fatalf("flush %s, want %s", s.Flush, durable)
		}
		gate.hang()
		first := w.srv.Append(size)
		settle()
		for i := range 3 {
			end := w.srv.Append(100)
			if size <= directBytes {
				end = first // the goroutine that reads is in the fsync
			}
			told := len(w.srv.Statuses())
			time.Sleep(12 * time.Second) // a status is due, too
			settle()
			if s := w.lastStatus(); s.Write != end || s.Flush != durable || len(w.srv.Statuses()) == told {
				t.Errorf("turn %d while the disk hangs: %d statuses, the last with write %s, flush %s; received %s, durable %s",
					i, len(w.srv.Statuses())-told, s.Write, s.Flush, end, durable)
			}
		}
		gate.goOn()
		settle()
		if s := w.lastStatus(); s.Flush != w.srv.End() {
			t.Errorf("the disk is back: flush %s, want %s", s.Flush, w.srv.End())
		}
	})
}

// TestAFailedSealTakesAllBehindItAlong: when the fsync of a full segment fails
// and more was received behind it, everything that is not durable is streamed
// again, and not only the segment that is open.
func TestAFailedSealTakesAllBehindItAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.Set("synchronous_standby_names", "walferry")
		broken := &slowlyFailingDisk{FS: disk.OS{}}
		w.fs = broken
		w.srv.FillTo(2*mb + 5000)
		w.start(0)
		w.carrier.stall()
		time.Sleep(12 * time.Second)
		broken.failing.Store(true)
		w.srv.FillTo(5*mb + 5000)
		time.Sleep(2 * time.Minute)
		settle()
		if broken.failing.Load() {
			t.Fatal("nothing was synced")
		}
		flush := w.lastStatus().Flush
		if flush != w.srv.End() {
			t.Errorf("flush %s after the failure has passed, the server is at %s", flush, w.srv.End())
		}
		got := w.checkArchive(1)
		if got == 0 {
			got = mb
		}
		for _, g := range w.sp.Segments() {
			if g.Start() > got {
				break
			}
			to := min(g.End(), flush)
			b := make([]byte, to-g.Start())
			if err := g.ReadAt(b, g.Start()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, w.srv.WAL().Bytes(1, g.Start(), to)) {
				t.Errorf("segment %s differs from the server's", g.Name())
			}
			got = max(got, to)
		}
		if got < flush {
			t.Errorf("flush %s was reported; the spool and the archive have everything up to %s", flush, got)
		}
		w.carrier.flow()
	})
}

// slowlyFailingDisk is a disk on which the next fsync takes a while, and
// fails.
type slowlyFailingDisk struct {
	disk.FS
	failing atomic.Bool
}

func (d *slowlyFailingDisk) Create(name string, perm fs.FileMode) (disk.File, error) {
	f, err := d.FS.Create(name, perm)
	return slowlyFailingFile{f, d}, err
}

func (d *slowlyFailingDisk) Open(name string, write bool) (disk.File, error) {
	f, err := d.FS.Open(name, write)
	return slowlyFailingFile{f, d}, err
}

type slowlyFailingFile struct {
	disk.File
	disk *slowlyFailingDisk
}

func (f slowlyFailingFile) Sync() error {
	if f.disk.failing.Load() {
		time.Sleep(5 * time.Second)
		f.disk.failing.Store(false)
		return syscall.EIO
	}
	return f.File.Sync()
}

// TestPromotionInTheHold: while the archive is behind, a promotion does not
// move what counts as shipped: the loss of this host would leave a gap.
func TestPromotionInTheHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		at := w.srv.FillTo(3*mb + 5000)
		w.start(0)
		time.Sleep(12 * time.Second)
		w.carrier.stall()
		child := w.srv.Promote(at)
		w.srv.FillTo(6 * mb)
		time.Sleep(30 * time.Second)
		settle()
		shipped, _ := w.carrier.Shipped()
		if shipped != (segment.Position{Timeline: 1, LSN: 3 * mb}) {
			t.Fatalf("shipped %s, want the old timeline's last whole segment", shipped)
		}
		if s := w.lastStatus(); s.Write != w.srv.End() || s.Flush > shipped.LSN {
			t.Errorf("within the hold: write %s, flush %s; the server is at %s, shipped is %s", s.Write, s.Flush, w.srv.End(), shipped)
		}
		w.carrier.flow()
		time.Sleep(time.Minute)
		settle()
		if got := w.checkArchive(child); got != 6*mb {
			t.Errorf("the archive ends at %s on timeline %d", got, child)
		}
	})
}

// TestFlushIsWhatTheSyncBeganWith: what comes while an fsync is under way is
// durable after the next one only.
func TestFlushIsWhatTheSyncBeganWith(t *testing.T) {
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
		first := w.srv.Append(directBytes + 1) // so that the next is read meanwhile
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

// letOneThrough ends the fsync that hangs; the next one hangs again.
func (h *hangingDisk) letOneThrough() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.gate)
	h.gate = make(chan struct{})
}

// TestTheEndWaitsForTheDisk: however long a disk, or a compressor, takes for
// what was received up to the end, the run ends well, and all of it is reported.
func TestTheEndWaitsForTheDisk(t *testing.T) {
	for _, told := range []bool{false, true} {
		t.Run(fmt.Sprintf("told to stop: %v", told), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				w.options.Lazy, w.options.Hold = true, 0
				gate := &hangingDisk{FS: disk.OS{}}
				w.fs = gate
				w.srv.FillTo(2*mb + 5000)
				if !told {
					w.options.EndPos = 3 * mb
				}
				end, result := w.start(0)
				w.carrier.stall()
				time.Sleep(12 * time.Second)
				gate.hang()
				w.srv.FillTo(3*mb + 5000)
				settle()
				time.AfterFunc(5*stopPatience, gate.goOn)
				if told {
					if err := end(); err != nil {
						t.Errorf("Run = %v", err)
					}
				} else if err := <-result; err != nil {
					t.Errorf("Run = %v", err)
				}
				if s := w.lastStatus(); s.Flush != w.r.Summary().Position.LSN || s.Flush < 3*mb {
					t.Errorf("the last status is %+v, and received was %s", s, w.r.Summary().Position)
				}
			})
		})
	}
}
