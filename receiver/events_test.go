package receiver

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

// heardEvents keeps what it is told, a line each.
type heardEvents struct {
	mu    sync.Mutex
	lines []string
}

func (h *heardEvents) say(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, fmt.Sprintf(format, args...))
}

func (h *heardEvents) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.lines)
}

func (h *heardEvents) Starting(p segment.Position) { h.say("starting %s", p) }
func (h *heardEvents) Sealed(n segment.Name, end segment.LSN) {
	h.say("sealed %s, %s", n, end)
}
func (h *heardEvents) Switched(p segment.Position) { h.say("switched %s", p) }
func (h *heardEvents) Left(n segment.Name)         { h.say("left %s", n) }
func (h *heardEvents) Stopping(p segment.Position, finished bool) {
	h.say("stopping %s %v", p, finished)
}
func (h *heardEvents) Disconnected(err error, wait time.Duration) {
	h.say("disconnected, %v: %v", wait > 0, err)
}

// TestEventsAreToldInOrder: a segment, a promotion, and a stop.
func TestEventsAreToldInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		heard := &heardEvents{}
		w.options.Events, w.options.Hold = heard, 0
		w.srv.FillTo(2*mb + 5000)
		end, _ := w.start(0)
		time.Sleep(time.Second)
		at := w.srv.End()
		w.srv.Promote(at)
		w.srv.FillTo(at + 3000)
		time.Sleep(5 * time.Second)
		settle()
		if err := end(); err != nil {
			t.Errorf("Run = %v", err)
		}
		stop := w.srv.End()
		want := []string{
			"starting 0/100000 on timeline 1",
			"sealed 000000010000000000000001, 0/200000",
			"switched " + at.String() + " on timeline 2",
			"starting 0/200000 on timeline 1",
			"stopping " + stop.String() + " on timeline 2 false",
			"left 000000020000000000000002",
		}
		got := heard.all()
		// The segment that the switchpoint lies in is left on the old timeline.
		got = slices.DeleteFunc(got, func(s string) bool { return s == "left 000000010000000000000002" })
		if !slices.Equal(got, want) {
			t.Errorf("heard:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestWithoutASlot: no slot is asked for, made or used.
func TestWithoutASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.options.Slot, w.options.NoFlush, w.options.Hold = "", true, 0
		w.srv.FillTo(2*mb + 5000)
		end, _ := w.start(0)
		time.Sleep(time.Second)
		w.srv.FillTo(4 * mb)
		time.Sleep(30 * time.Second)
		settle()
		if err := end(); err != nil {
			t.Errorf("Run = %v", err)
		}
		for _, at := range []segment.LSN{2 * mb, 3 * mb} { // from where the server was
			n := segment.MinSize.Name(1, at)
			if !bytes.Equal(w.archive.segments[n], w.srv.WAL().Segment(n)) {
				t.Errorf("segment %s differs from the server's", n)
			}
		}
		for _, c := range w.srv.Commands() {
			if strings.Contains(c, "SLOT") {
				t.Errorf("the server was asked: %s", c)
			}
		}
		w.checkStatuses()
		if s := w.lastStatus(); s.Write != w.srv.End() || s.Flush != 0 {
			t.Errorf("the last status is %+v, the server ends at %s", s, w.srv.End())
		}
	})
}

// TestASlotThatMustExist is waited for, and not made, whether there is
// something to resume from or not.
func TestASlotThatMustExist(t *testing.T) {
	for _, held := range []bool{false, true} {
		t.Run(fmt.Sprintf("held=%v", held), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				w.srv.FillTo(2*mb + 5000)
				if held {
					w.run(5 * time.Second)
				}
				heard := &heardEvents{}
				w.options.Events, w.options.SlotMustExist, w.options.Slot, w.options.Hold = heard, true, "theirs", 0
				end, result := w.start(0)
				time.Sleep(time.Minute)
				select {
				case err := <-result:
					t.Fatalf("Run = %v", err)
				default:
				}
				if _, ok := w.srv.Slot("theirs"); ok {
					t.Error("the slot was made")
				}
				if got := heard.all(); len(got) < 3 || !strings.Contains(got[len(got)-1], `"theirs" does not exist`) {
					t.Errorf("heard: %q", got)
				}
				w.srv.SetSlot("theirs", 2*mb)
				time.Sleep(time.Minute)
				settle()
				if s := w.lastStatus(); s.Flush != w.srv.End() {
					t.Errorf("the last status is %+v, the server ends at %s", s, w.srv.End())
				}
				if err := end(); err != nil {
					t.Errorf("Run = %v", err)
				}
			})
		})
	}
}

// TestNoStatusInterval: only what is asked for is answered, and the silence of
// a server that is never asked is no reason to leave it.
func TestNoStatusInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{SenderTimeout: 24 * time.Hour})
		w.options.StatusInterval, w.options.Hold = -1, 0
		w.srv.FillTo(2*mb + 5000)
		end, _ := w.start(0)
		time.Sleep(time.Second)
		before := len(w.srv.Statuses())
		time.Sleep(10 * time.Minute)
		settle()
		if n := len(w.srv.Statuses()); n != before {
			t.Errorf("%d statuses without a question", n-before)
		}
		starts := 0
		for _, c := range w.srv.Commands() {
			if strings.HasPrefix(c, "START_REPLICATION") {
				starts++
			}
		}
		if starts != 1 {
			t.Errorf("%d streams were started", starts)
		}
		if err := end(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestLazy: bytes wait a second for their fsync while no commit does, and are
// not reported before.
func TestLazy(t *testing.T) {
	for _, lazy := range []bool{true, false} {
		t.Run(fmt.Sprintf("lazy=%v", lazy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				w.options.Lazy, w.options.Hold = lazy, 0
				w.srv.FillTo(2*mb + 5000)
				end, _ := w.start(0)
				time.Sleep(5 * time.Second)
				for range 20 {
					w.srv.Append(100)
					time.Sleep(lazySync / 40)
					settle()
				}
				now := w.srv.End()
				durable := w.r.Status().Spooled.LSN
				if lazy == (durable == now) {
					t.Errorf("durable up to %s of %s", durable, now)
				}
				time.Sleep(11 * time.Second)
				settle()
				if s := w.lastStatus(); s.Flush != now {
					t.Errorf("the last status is %+v, the server ends at %s", s, now)
				}
				w.checkStatuses()
				if err := end(); err != nil {
					t.Errorf("Run = %v", err)
				}
			})
		})
	}
}

// TestEndPosBeforeTheStart ends at once, and nothing is received.
func TestEndPosBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 5000)
		w.srv.SetSlot(slotName, 3*mb)
		w.options.EndPos = 2 * mb
		_, result := w.start(0)
		if err := <-result; err != nil {
			t.Errorf("Run = %v", err)
		}
		if n := len(w.sp.Segments()); n != 0 {
			t.Errorf("%d segments were begun", n)
		}
	})
}
