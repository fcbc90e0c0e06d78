package receiver

import (
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
)

const mb = segment.LSN(1 << 20)

func TestStreamsSealsAndReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(5 * mb)
		end, _ := w.start(0)
		time.Sleep(11 * time.Second)
		settle()
		if got := w.checkArchive(1); got != w.srv.WAL().Size().Start(w.srv.End()) {
			t.Errorf("the archive ends at %s, the server at %s", got, w.srv.End())
		}
		// The hold: an archive that keeps up is what is reported.
		if s := w.lastStatus(); s.Write != w.srv.End() || s.Flush != w.srv.WAL().Size().Start(w.srv.End()) {
			t.Errorf("write %s flush %s; the server ends at %s", s.Write, s.Flush, w.srv.End())
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if restart, ok := w.srv.Slot(slotName); !ok || restart != w.lastStatus().Flush {
			t.Errorf("the slot is at %s", restart)
		}
		w.checkStatuses()
		if !strings.Contains(w.log.String(), "max_slot_wal_keep_size") {
			t.Errorf("the danger of a slot was not told:\n%s", w.log)
		}
	})
}

// TestMakesItsSlot: a new archive begins where the new slot does.
func TestMakesItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 5000)
		w.options.Slot = "another"
		w.start(0)
		time.Sleep(time.Second)
		w.srv.FillTo(5 * mb)
		time.Sleep(12 * time.Second)
		settle()
		if restart, ok := w.srv.Slot("another"); !ok || restart != 5*mb {
			t.Errorf("slot: %v, restart_lsn %s", ok, restart)
		}
		if len(w.archive.segments) != 2 {
			t.Errorf("%d segments archived, want those at 3 and 4 MB", len(w.archive.segments))
		}
		if !strings.Contains(w.log.String(), "created the replication slot") {
			t.Error("the slot's making was not told")
		}
	})
}

func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		w.options.Hold = 2 << 20
		w.start(0)
		time.Sleep(time.Second)
		sealed := w.srv.WAL().Size().Start(w.srv.End())
		report := func() segment.LSN { time.Sleep(11 * time.Second); settle(); return w.lastStatus().Flush }
		if got := report(); got != sealed {
			t.Errorf("within the hold: flush %s, shipped %s", got, sealed)
		}
		w.carrier.fail(true)
		if got := report(); got != w.srv.End() {
			t.Errorf("storage fails: flush %s, spooled %s", got, w.srv.End())
		}
		w.carrier.fail(false)
		if got := report(); got != w.srv.End() {
			t.Errorf("storage is back: flush went back from %s to %s", w.srv.End(), got)
		}
		w.carrier.stall()
		end := w.srv.FillTo(w.srv.End() + 3*mb)
		if got := report(); got != end {
			t.Errorf("the hold is full: flush %s, spooled %s", got, end)
		}
		w.carrier.flow()
	})
}

func TestSynchronousStandbyIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.Set("synchronous_standby_names", `FIRST 1 ("walferry", other)`)
		w.start(0)
		time.Sleep(time.Second)
		for range 5 {
			end := w.srv.Append(100)
			settle()
			if s := w.lastStatus(); s.Flush != end {
				t.Fatalf("flush %s when everything has settled, want %s: a commit would wait", s.Flush, end)
			}
		}
	})
}

func TestBecomingASynchronousStandbyIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.options.WatchInterval = 10 * time.Second
		w.start(0)
		time.Sleep(time.Second)
		w.srv.Set("synchronous_standby_names", "*")
		end := w.srv.Append(100)
		time.Sleep(10 * time.Second)
		settle()
		if s := w.lastStatus(); s.Flush != end {
			t.Errorf("flush %s, want %s", s.Flush, end)
		}
	})
}

func TestKeepalivesWhileTheSpoolIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{SenderTimeout: 6 * time.Second})
		w.srv.FillTo(10 * mb)
		end, _ := w.start(3 << 20) // three segments
		w.carrier.stall()
		time.Sleep(time.Minute)
		settle()
		if used, limit := w.sp.Used(); used > limit {
			t.Errorf("the spool holds %d bytes, its limit is %d", used, limit)
		}
		all := w.srv.Statuses()
		if len(all) < 25 {
			t.Errorf("%d statuses in a minute with a wal_sender_timeout of 6 s", len(all))
		}
		if n := strings.Count(w.log.String(), "the spool is full"); n != 1 {
			t.Errorf("told %d times that the spool is full", n)
		}
		w.carrier.flow()
		time.Sleep(10 * time.Second)
		settle()
		if got := w.checkArchive(1); got != 10*mb {
			t.Errorf("the archive ends at %s after the store came back", got)
		}
		if n := len(w.srv.Startups()); n != 1 {
			t.Errorf("%d connections: the stall should not cost one", n)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

func TestFullSpoolWithShippingStoppedEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(10 * mb)
		end, result := w.start(3 << 20)
		w.carrier.stall()
		time.Sleep(time.Second)
		w.carrier.stop(errors.New("conflict"))
		if err := <-result; !errors.Is(err, ErrSpoolStuck) {
			t.Errorf("Run = %v", err)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestServerGoesAwayAtEveryMessage cuts the connection after 0, 1, 2 …
// messages of each stream.
func TestServerGoesAwayAtEveryMessage(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 5, 8, 13} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{})
			w.srv.FillTo(3 * mb)
			w.srv.CloseAfter(n)
			end, _ := w.start(0)
			time.Sleep(30 * time.Second)
			w.srv.CloseAfter(-1)
			w.srv.FillTo(4 * mb)
			time.Sleep(time.Minute)
			settle()
			if got := w.checkArchive(1); got != 4*mb {
				t.Errorf("cut after %d messages: the archive ends at %s", n, got)
			}
			w.checkStatuses()
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSilentServerIsGivenUp: a connection that nobody answers on any more.
func TestSilentServerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{SenderTimeout: time.Hour})
		asked := false
		w.srv.Script(func(ws *fakepg.Walsender) error {
			if err := ws.Send(w.srv.End()); err != nil {
				return err
			}
			for {
				s, err := ws.Status()
				if err != nil {
					return err
				}
				asked = asked || s.ReplyRequested
			}
		})
		w.start(0)
		time.Sleep(90 * time.Second)
		settle()
		if n := len(w.srv.Startups()); n < 2 {
			t.Error("the connection was not given up")
		}
		if !asked {
			t.Error("no sign of life was asked for")
		}
		if !strings.Contains(w.log.String(), "nothing was heard") {
			t.Error("not told why")
		}
		// One that answers is kept, however idle it is.
		before := len(w.srv.Startups())
		time.Sleep(time.Hour)
		if n := len(w.srv.Startups()); n != before {
			t.Errorf("%d connections in an idle hour", n-before)
		}
	})
}

func TestRestartContinues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		for i := range 6 {
			w.srv.FillTo(w.srv.End() + 700_000)
			end, _ := w.start(0)
			if i == 2 {
				w.carrier.stall()
			}
			time.Sleep(11 * time.Second)
			settle()
			if s := w.lastStatus(); s.Write != w.srv.End() {
				t.Errorf("run %d: write %s, the server ends at %s", i, s.Write, w.srv.End())
			}
			if err := end(); err != nil {
				t.Fatalf("run %d: %v", i, err)
			}
		}
		w.srv.FillTo(w.srv.WAL().Size().Start(w.srv.End()) + 2*mb)
		w.start(0)
		time.Sleep(5 * time.Second)
		settle()
		w.checkArchive(1)
		w.checkStatuses()
	})
}

func TestEndPos(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		w.options.EndPos = w.srv.End() - 100
		_, result := w.start(0)
		if err := <-result; err != nil {
			t.Errorf("Run = %v", err)
		}
		if s := w.lastStatus(); s.Write != w.srv.End() {
			t.Errorf("the last status says write %s", s.Write)
		}
		if p := w.r.Summary().Position; p.LSN <= w.options.EndPos {
			t.Errorf("stopped at %s", p)
		}
	})
}

func TestNoLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.options.NoLoop = true
		_, result := w.start(0)
		time.Sleep(time.Second)
		w.srv.Cut()
		if err := <-result; err == nil || Final(err) {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestFastShutdownIsNotHindered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		w.start(0)
		time.Sleep(12 * time.Second)
		settle()
		if s := w.lastStatus(); s.Flush == w.srv.End() {
			t.Fatal("the hold does not hold: this test would prove nothing")
		}
		begin := time.Now()
		w.srv.Shutdown()
		for !strings.Contains(w.log.String(), "shutting down") && time.Since(begin) < 2*time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("the server waited %v for our flush LSN", took)
		}
		if s := w.lastStatus(); s.Flush != w.srv.End() {
			t.Errorf("flush %s at the end of the server's WAL at %s", s.Flush, w.srv.End())
		}
		w.srv.Start()
		w.srv.FillTo(5 * mb)
		time.Sleep(time.Minute)
		settle()
		if got := w.checkArchive(1); got != 5*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}

// TestShutdownWhileTheSpoolIsFull: the server has sent what we have no room
// for, and would wait for ever for us to read it.
func TestShutdownWhileTheSpoolIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.options.WatchInterval = 10 * time.Second
		w.srv.FillTo(10 * mb)
		w.start(3 << 20)
		w.carrier.stall()
		time.Sleep(12 * time.Second)
		settle()
		w.srv.Shutdown()
		time.Sleep(20 * time.Second)
		settle()
		if !strings.Contains(w.log.String(), "letting go of it") {
			t.Error("the server is held up")
		}
		w.srv.Start()
		w.carrier.flow()
		time.Sleep(2 * time.Minute)
		settle()
		if got := w.checkArchive(1); got != 10*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}

// TestShutdownGrace: a flush LSN that cannot come up to what was sent must not
// hold a shutdown for ever, nor may it be made up.
func TestShutdownGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		gate := &hangingDisk{FS: disk.OS{}}
		w.fs = gate
		w.srv.FillTo(2*mb + 5000)
		w.start(0)
		time.Sleep(12 * time.Second)
		gate.hang()
		defer gate.goOn()
		w.srv.Append(100)
		settle()
		begin := time.Now()
		w.srv.Shutdown()
		for time.Since(begin) < 2*time.Minute {
			time.Sleep(100 * time.Millisecond)
			s := w.lastStatus()
			if s.Flush == w.srv.End() {
				t.Fatalf("flush %s was reported while the disk hangs", s.Flush)
			}
			if s.Flush == 0 && s.Write == w.srv.End() {
				break
			}
		}
		if took := time.Since(begin); took < 30*time.Second || took > 35*time.Second {
			t.Errorf("let go after %v; the grace is 30 s", took)
		}
	})
}

// hangingDisk is a disk whose fsyncs hang at times.
type hangingDisk struct {
	disk.FS
	mu    sync.Mutex
	gate  chan struct{} // nil: it works
	syncs int           // that were begun
}

func (h *hangingDisk) synced() int { h.mu.Lock(); defer h.mu.Unlock(); return h.syncs }

func (h *hangingDisk) hang() { h.mu.Lock(); defer h.mu.Unlock(); h.gate = make(chan struct{}) }

func (h *hangingDisk) goOn() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.gate)
	h.gate = nil
}

func (h *hangingDisk) Create(name string, perm fs.FileMode) (disk.File, error) {
	f, err := h.FS.Create(name, perm)
	return hangingFile{f, h}, err
}

func (h *hangingDisk) Open(name string, write bool) (disk.File, error) {
	f, err := h.FS.Open(name, write)
	return hangingFile{f, h}, err
}

type hangingFile struct {
	disk.File
	disk *hangingDisk
}

func (f hangingFile) Sync() error {
	f.disk.mu.Lock()
	gate := f.disk.gate
	f.disk.syncs++
	f.disk.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return f.File.Sync()
}

func TestFollowsAPromotion(t *testing.T) {
	for _, boundary := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{})
			at := w.srv.FillTo(3*mb + 5000)
			if boundary {
				at = w.srv.WAL().SwitchSegment(1)
			}
			end, _ := w.start(0)
			time.Sleep(time.Second)
			child := w.srv.Promote(at)
			w.srv.FillTo(6 * mb)
			time.Sleep(time.Minute)
			settle()
			if got := w.checkArchive(child); got != 6*mb {
				t.Errorf("the archive ends at %s on timeline %d", got, child)
			}
			if _, err := w.sp.History(child); err != nil {
				t.Errorf("the history file is not in the spool: %v", err)
			}
			if !boundary {
				n := w.srv.WAL().Size().Name(1, at)
				w.archive.mu.Lock()
				if w.archive.partials[n] != at {
					t.Errorf("the old timeline's last segment %s: partial up to %s, want %s", n, w.archive.partials[n], at)
				}
				w.archive.mu.Unlock()
			}
			w.checkStatuses()
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPromotionWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		at := w.srv.FillTo(3*mb + 5000)
		end, _ := w.start(0)
		time.Sleep(time.Second)
		if err := end(); err != nil {
			t.Fatal(err)
		}
		child := w.srv.Promote(at)
		w.srv.FillTo(6 * mb)
		w.start(0)
		time.Sleep(time.Minute)
		settle()
		if got := w.checkArchive(child); got != 6*mb {
			t.Errorf("the archive ends at %s on timeline %d", got, child)
		}
	})
}
