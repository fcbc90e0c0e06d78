package receiver

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

// The status follows a run: a server that is away, one that streams, a full
// spool, the end.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(2*mb + 5000)
		var mu sync.Mutex
		away := true
		w.options.Connect = func(ctx context.Context) (*replication.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if away {
				return nil, errors.New("connection refused")
			}
			return connect(w.srv)(ctx)
		}
		begin := time.Now()
		end, _ := w.start(4 << 20)
		time.Sleep(10 * time.Second)
		settle()
		s := w.r.Status()
		if s.State != Waiting || s.Server != "" || s.Received != (segment.Position{}) || s.ServerEnd != 0 || s.Slot != slotName || len(s.Troubles) != 1 {
			t.Fatalf("while the server is away: %+v", s)
		}
		if r := s.Troubles[0]; r.What != "receive from the server" || r.Reason != "connection refused" || !r.Since.Equal(begin) || r.Attempts < 3 {
			t.Errorf("while the server is away: %+v", r)
		}

		mu.Lock()
		away = false
		mu.Unlock()
		time.Sleep(time.Minute)
		settle()
		s = w.r.Status()
		if s.State != Streaming || s.Troubles != nil || s.Server != "db:5432 as user walferry" || s.Version == "" || s.Timeline != 1 ||
			s.SystemIdentifier == 0 || s.SegmentSize != segment.MinSize {
			t.Errorf("streaming: %+v", s)
		}
		here := segment.Position{Timeline: 1, LSN: w.srv.End()}
		if s.Received != here || s.Spooled.Timeline != 1 || s.Spooled.LSN < 2*mb || s.Spooled.LSN > here.LSN || s.ServerEnd != here.LSN {
			t.Errorf("streaming, with the server at %s: %+v", here, s)
		}
		if last := w.lastStatus(); s.Write != last.Write || s.Flush != last.Flush || s.Write == 0 {
			t.Errorf("write %s, flush %s; the server was told %+v", s.Write, s.Flush, last)
		}
		if !s.Hold || s.CommitWaits {
			t.Errorf("hold %v, commit waits %v", s.Hold, s.CommitWaits)
		}
		since := s.Since

		// The archive is away, until the spool is full. What the spool has no
		// room for is behind, and longer the longer it takes.
		w.carrier.stall()
		w.carrier.fail(true)
		w.srv.FillTo(9 * mb)
		grown := time.Now()
		settle()
		if lag := w.r.Lag(s.Received.LSN); lag != 0 {
			t.Errorf("%v behind just then", lag)
		}
		time.Sleep(time.Minute)
		settle()
		s = w.r.Status()
		if s.State != Full || !s.Since.After(since) || s.Hold || s.Received.LSN >= 9*mb || s.ServerEnd <= s.Received.LSN {
			t.Errorf("with a full spool: %+v", s)
		}
		if lag, want := w.r.Lag(s.Received.LSN), time.Since(grown); lag < want-time.Second || lag > want+growthStep {
			t.Errorf("%v behind; want %v", lag, want)
		}
		w.carrier.flow()
		w.carrier.fail(false)
		time.Sleep(time.Minute)
		settle()
		s = w.r.Status()
		if lag := w.r.Lag(s.Received.LSN); s.State != Streaming || lag != 0 || s.Received.LSN != w.srv.End() {
			t.Errorf("%v behind: %+v", lag, s)
		}

		if err := end(); err != nil {
			t.Fatal(err)
		}
		last := w.r.Status()
		if last.State != Stopped || last.Received != s.Received || last.Spooled != s.Received || last.Hold {
			t.Errorf("stopped: %+v", last)
		}
	})
}

// What the archive has is spooled, also while nothing turns.
func TestStatusCountsWhatIsShipped(t *testing.T) {
	r := New(newHotPath(t, 1, 1).sp, nil, nil, Options{})
	for _, c := range []struct {
		shipped segment.Position
		want    segment.LSN
	}{
		{segment.Position{Timeline: 3, LSN: 5 * mb}, 5 * mb},
		{segment.Position{Timeline: 3, LSN: 3 * mb}, 4 * mb},
		{segment.Position{Timeline: 3, LSN: 7 * mb}, 6 * mb}, // two receivers: the other one is ahead
		{segment.Position{Timeline: 2, LSN: 5 * mb}, 4 * mb},
	} {
		r.uploader = &carrier{shipped: c.shipped, known: true}
		r.pos, r.spooled, r.resolved = segment.Position{Timeline: 3, LSN: 6 * mb}, 4*mb, true
		r.publish(Waiting)
		if s := r.Status(); s.Spooled != (segment.Position{Timeline: 3, LSN: c.want}) || s.Received != r.pos {
			t.Errorf("shipped %s: spooled %s, received %s; want spooled %s", c.shipped, s.Spooled, s.Received, c.want)
		}
	}
}

// The way to the stream: what is said in the middle of each step.
func TestStatusOfAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		var connecting, starting Status
		w.options.Connect = func(ctx context.Context) (*replication.Conn, error) {
			if connecting.State == "" {
				connecting = w.r.Status()
			}
			return connect(w.srv)(ctx)
		}
		w.archive.down = errDown
		w.archive.asked = func() { starting = w.r.Status() }
		end, _ := w.start(0)
		time.Sleep(10 * time.Second)
		settle()
		if connecting.State != Connecting || connecting.Server != "" {
			t.Errorf("while it connects: %+v", connecting)
		}
		if starting.State != Starting || starting.Server == "" || starting.ServerEnd != w.srv.End() || starting.Received.Timeline != 0 {
			t.Errorf("while it asks the archive: %+v", starting)
		}
		if s := w.r.Status(); s.State != Waiting || len(s.Troubles) != 1 || s.Troubles[0].Reason != errDown.Error() {
			t.Errorf("while the archive is away: %+v", s)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// A state lasts from its first turn on, and what is held of a segment is
// compared before anything streams.
func TestStatusOfTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHotPath(t, 1, 1)
		r := h.st.r
		r.uploader, r.watch = &carrier{}, &watcher{}
		turn := func(want State, since time.Time) {
			t.Helper()
			h.st.publish()
			if s := r.Status(); s.State != want || !s.Since.Equal(since) {
				t.Errorf("%s since %v; want %s since %v", s.State, s.Since, want, since)
			}
		}
		begin := time.Now()
		h.st.cursor = r.pos.LSN - 1
		turn(Comparing, begin)
		time.Sleep(time.Second)
		turn(Comparing, begin)
		h.st.cursor = r.pos.LSN
		turn(Streaming, time.Now())
		h.st.behind = &lastRecord{}
		turn(Comparing, time.Now())
		r.writing.Failed(errDown)
		if s := r.Status(); len(s.Troubles) != 1 || s.Troubles[0].What != "write to the spool" {
			t.Errorf("%+v", s.Troubles)
		}
	})
}

// A synchronous standby says so.
func TestStatusOfASynchronousStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.Set("synchronous_standby_names", "walferry")
		w.srv.FillTo(3 * mb)
		end, _ := w.start(0)
		time.Sleep(time.Second)
		settle()
		if s := w.r.Status(); !s.CommitWaits || s.Hold || s.Flush != s.Write {
			t.Errorf("%+v", s)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// Anybody may ask at any time: the race detector looks on.
func TestStatusIsSafe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		end, _ := w.start(0)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var last Status
		wg.Go(func() {
			for ctx.Err() == nil {
				s := w.r.Status()
				w.r.Lag(s.Spooled.LSN)
				if s.Spooled.LSN > s.Received.LSN || s.Received.LSN < last.Received.LSN || s.Flush > s.Write {
					t.Errorf("positions are out of order: %+v behind %+v", s, last)
				}
				last = s
				time.Sleep(time.Millisecond)
			}
		})
		for i := range segment.LSN(6) {
			w.srv.FillTo((2+i)*mb + 100)
			time.Sleep(time.Second)
		}
		cancel()
		wg.Wait()
		if last.Received.LSN != w.srv.End() {
			t.Errorf("received %s; want %s", last.Received, w.srv.End())
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestSegmentsAreNoNews: however many are sealed, the log says nothing of it.
func TestSegmentsAreNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.options.Hold = 0 // every segment is sealed
		w.srv.FillTo(3 * mb)
		w.start(0)
		lines := func(level string) int {
			time.Sleep(time.Minute)
			settle()
			return strings.Count(w.log.String(), "level="+level)
		}
		w.carrier.stall()
		news := lines("INFO") + lines("WARN")
		for i := range segment.LSN(5) {
			w.srv.FillTo((4 + i) * mb)
			time.Sleep(time.Second)
		}
		if n := strings.Count(w.log.String(), "level=DEBUG msg=sealed"); n < 5 {
			t.Errorf("%d segments were sealed", n)
		}
		if n := lines("INFO") + lines("WARN") - news; n != 0 {
			t.Errorf("%d lines for 5 segments:\n%s", n, w.log)
		}
		w.carrier.flow()
	})
}

// TestNoAllocationPerTurn: to be watched costs the stream nothing.
func TestNoAllocationPerTurn(t *testing.T) {
	h := newHotPath(t, 50, 100)
	h.st.r.uploader = &carrier{known: true}
	h.st.r.watch = &watcher{}
	h.st.r.resolved = true
	if n := testing.AllocsPerRun(200, func() {
		h.st.r.server += 1 << 20
		h.st.publish()
	}); n != 0 {
		t.Errorf("%v allocations a turn", n)
	}
}

// BenchmarkPublish is what a turn of the loop pays for being watched.
func BenchmarkPublish(b *testing.B) {
	h := newHotPath(b, 50, 100)
	h.st.r.uploader = &carrier{known: true}
	h.st.r.watch = &watcher{}
	for b.Loop() {
		h.st.r.server += 1 << 20
		h.st.publish()
	}
}
