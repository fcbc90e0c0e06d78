package replication_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

const mb = segment.MinSize

// fake runs f in a bubble with a scripted server of 1 MB segments.
func fake(t *testing.T, o fakepg.Options, f func(t *testing.T, s *fakepg.Server, c *replication.Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.SegmentSize = mb
		s := fakepg.New(o)
		defer s.Close()
		f(t, s, fakeConfig(t, s))
	})
}

func fakeConfig(t *testing.T, s *fakepg.Server) *replication.Config {
	t.Helper()
	c, err := replication.ParseConfig(replication.Params{DSN: "sslmode=disable", Host: "fake", Port: "5432", User: "walferry", ApplicationName: "walferry"})
	if err != nil {
		t.Fatal(err)
	}
	c.DialFunc = s.Dial
	return c
}

func connect(t *testing.T, c *replication.Config) *replication.Conn {
	t.Helper()
	conn, err := replication.Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func stream(t *testing.T, c *replication.Config, slot string, from segment.Position) *replication.Stream {
	t.Helper()
	s, err := connect(t, c).StartReplication(t.Context(), slot, from)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var origin = segment.Position{Timeline: 1, LSN: segment.LSN(mb)}

// drain takes everything and returns the data and the reason of the end.
func drain(s *replication.Stream) (data []byte, err error) {
	for b := range s.Batches() {
		for _, m := range b.Messages {
			data = append(data, m.Data...)
		}
		b.Release()
	}
	return data, s.Err()
}

// TestDirect: what is taken in the reader's goroutine and what comes by the
// channel is one stream, in order, whoever is how fast.
func TestDirect(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		st := stream(t, c, "", origin)
		var mu sync.Mutex
		var got []byte
		inHand, direct, queued := 0, 0, 0
		rng := rand.New(rand.NewPCG(1, 2))
		take := func(b *replication.Batch) {
			for _, m := range b.Messages {
				got = append(got, m.Data...)
			}
			b.Release()
		}
		st.Direct(func(b *replication.Batch) bool {
			mu.Lock()
			defer mu.Unlock()
			if inHand > 0 {
				t.Error("a batch was offered while an older one was in hand")
			}
			if rng.IntN(2) == 0 {
				return false
			}
			direct++
			take(b)
			return true
		})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for b := range st.Batches() {
				mu.Lock()
				inHand++
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				inHand--
				queued++
				take(b)
				mu.Unlock()
			}
		}()
		for i := range 2000 {
			s.Append(100 + i%57)
			time.Sleep(time.Duration(i%5) * 700 * time.Microsecond)
		}
		end := s.End()
		time.Sleep(time.Minute)
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		<-ended
		if !bytes.Equal(got, s.WAL().Bytes(1, origin.LSN, end)) {
			t.Error("the data is not the server's")
		}
		if direct < 100 || queued < 100 {
			t.Errorf("%d batches were taken directly, %d came by the channel: the test shows little", direct, queued)
		}
	})
}

func TestStreamData(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		end := s.FillTo(segment.LSN(5 * mb))
		st := stream(t, c, "", origin)
		got := collect(t, st, origin.LSN, end)
		if !bytes.Equal(got, s.WAL().Bytes(1, origin.LSN, end)) {
			t.Error("the data is not the server's")
		}
		more := s.Append(100)
		if got := collect(t, st, end, more); !bytes.Equal(got, s.WAL().Bytes(1, end, more)) {
			t.Error("the data that came later is not the server's")
		}
		if err := st.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if st.Err() != nil {
			t.Error(st.Err())
		}
	})
}

func TestStreamStatus(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		s.SetSlot("walferry", origin.LSN)
		st := stream(t, c, "walferry", origin)
		now := time.Now().Truncate(time.Microsecond)
		want := []replication.Status{
			{Write: 0x1234567890, Time: now},
			{Write: 3, Flush: 2, Apply: 1, Time: now, ReplyRequested: true},
		}
		for _, w := range want {
			if err := st.SendStatus(w); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		got := s.Statuses()
		if len(got) != len(want) {
			t.Fatalf("the server got %+v", got)
		}
		for i := range want {
			if !got[i].Time.Equal(now) {
				t.Errorf("time %v; want %v", got[i].Time, now)
			}
			got[i].Time = now
			if got[i] != want[i] {
				t.Errorf("the server got %+v; want %+v", got[i], want[i])
			}
		}
		if at, _ := s.Slot("walferry"); at != 2 {
			t.Errorf("the slot is at %v", at)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		if err := st.SendStatus(want[0]); err == nil {
			t.Error("a status went over a closed stream")
		}
		if !errors.Is(st.Err(), replication.ErrClosed) {
			t.Errorf("Err = %v", st.Err())
		}
	})
}

// A receiver that does not take batches, because its spool is full, still
// answers, and the server does not cut it.
func TestStreamStalled(t *testing.T) {
	fake(t, fakepg.Options{SenderTimeout: time.Minute}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		end := s.FillTo(segment.LSN(9 * mb))
		st := stream(t, c, "", origin)
		for range 30 {
			time.Sleep(10 * time.Second)
			if err := st.SendStatus(replication.Status{Write: origin.LSN, Time: time.Now()}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := len(s.Statuses()); n != 30 {
			t.Errorf("the server got %d statuses", n)
		}
		if n := len(st.Batches()); n == 0 || n > cap(st.Batches()) {
			t.Errorf("%d batches wait", n)
		}
		if got := collect(t, st, origin.LSN, end); !bytes.Equal(got, s.WAL().Bytes(1, origin.LSN, end)) {
			t.Error("the data is not the server's")
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Without an answer the server asks, then cuts.
func TestStreamSilent(t *testing.T) {
	fake(t, fakepg.Options{SenderTimeout: time.Minute}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		st := stream(t, c, "", origin)
		asked := false
		for b := range st.Batches() {
			for _, m := range b.Messages {
				asked = asked || m.Kind == replication.Keepalive && m.ReplyRequested && m.ServerEnd == s.End()
			}
			b.Release()
		}
		if !asked || !errors.Is(st.Err(), io.ErrUnexpectedEOF) || !replication.Passing(st.Err()) {
			t.Errorf("asked %v, then %v", asked, st.Err())
		}
	})
}

// A server that reads nothing does not hold SendStatus for ever.
func TestStreamWriteTimeout(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		s.Script(func(w *fakepg.Walsender) error {
			if err := w.Begin(); err != nil {
				return err
			}
			w.Deaf(true)
			_, err := w.Status()
			if err != nil {
				return err
			}
			_, err = w.Status()
			return err
		})
		st := stream(t, c, "", origin)
		synctest.Wait()
		var err error
		for range 3 {
			if err = st.SendStatus(replication.Status{Time: time.Now()}); err != nil {
				break
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("SendStatus = %v", err)
		}
		if again := st.SendStatus(replication.Status{Time: time.Now()}); !errors.Is(again, err) {
			t.Errorf("after a failed write: %v", again)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestStreamEnds(t *testing.T) {
	data := bytes.Repeat([]byte("wal "), 100)
	send := func(w *fakepg.Walsender) error { return w.SendWAL(w.From.LSN, data) }
	raw := func(b ...byte) func(*fakepg.Walsender) error {
		return func(w *fakepg.Walsender) error {
			return errors.Join(send(w), w.Raw(b), w.Drop())
		}
	}
	copyData := func(body ...byte) func(*fakepg.Walsender) error {
		return raw(append([]byte{'d', 0, 0, 0, byte(4 + len(body))}, body...)...)
	}
	removed := &replication.ServerError{SQLSTATE: "58P01", Routine: "WalSndSegmentOpen", Message: "das angeforderte WAL-Segment wurde schon entfernt"}
	ahead := &replication.ServerError{SQLSTATE: "XX000", Routine: "StartReplication", Message: "angeforderter Startpunkt ist vor der WAL-Flush-Position"}
	fatal := &replication.ServerError{Severity: "FATAL", SQLSTATE: "57P01", Routine: "ProcessInterrupts", Message: "terminating connection due to administrator command"}
	for name, c := range map[string]struct {
		script func(*fakepg.Walsender) error
		want   error
	}{
		"removed":            {func(w *fakepg.Walsender) error { return errors.Join(send(w), w.Fail(removed)) }, replication.ErrWALRemoved},
		"ahead":              {func(w *fakepg.Walsender) error { return errors.Join(send(w), w.Fail(ahead)) }, replication.ErrAhead},
		"fatal":              {func(w *fakepg.Walsender) error { return errors.Join(send(w), w.Fail(fatal)) }, nil},
		"shutdown":           {func(w *fakepg.Walsender) error { return errors.Join(send(w), w.CopyZero()) }, replication.ErrShutdown},
		"cut":                {func(w *fakepg.Walsender) error { return errors.Join(send(w), w.Drop()) }, io.ErrUnexpectedEOF},
		"cut in a header":    {raw('d', 0, 0), io.ErrUnexpectedEOF},
		"cut in a message":   {raw('d', 0, 0, 1, 0, 'w', 1, 2, 3), io.ErrUnexpectedEOF},
		"short length":       {raw('d', 0, 0, 0, 3), replication.ErrProtocol},
		"huge length":        {raw('d', 0xFF, 0xFF, 0xFF, 0xFF, 'w'), replication.ErrProtocol},
		"unknown type":       {raw('?', 0, 0, 0, 4), replication.ErrProtocol},
		"empty copy data":    {copyData(), replication.ErrProtocol},
		"unknown kind":       {copyData('x', 1), replication.ErrProtocol},
		"short data":         {copyData('w', 1, 2), replication.ErrProtocol},
		"short keepalive":    {copyData('k', 1, 2), replication.ErrProtocol},
		"a row too early":    {raw('D', 0, 0, 0, 6, 0, 0), replication.ErrProtocol},
		"ready too early":    {raw('Z', 0, 0, 0, 5, 'I'), replication.ErrProtocol},
		"a wrong error":      {raw('E', 0, 0, 0, 5, 'S'), replication.ErrProtocol},
		"data after the end": {raw('c', 0, 0, 0, 4, 'd', 0, 0, 0, 5, 'w'), replication.ErrProtocol},
		"two ends":           {raw('c', 0, 0, 0, 4, 'c', 0, 0, 0, 4), replication.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, cfg *replication.Config) {
				s.Script(c.script)
				st := stream(t, cfg, "", origin)
				got, err := drain(st)
				if !bytes.Equal(got, data) {
					t.Errorf("%d bytes came before the end; want %d", len(got), len(data))
				}
				var se *replication.ServerError
				if c.want != nil && !errors.Is(err, c.want) || c.want == nil && (!errors.As(err, &se) || se.SQLSTATE != "57P01") {
					t.Errorf("the stream ended by %v; want %v", err, c.want)
				}
				if err := st.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The server goes away in the place of every message.
func TestStreamCutEverywhere(t *testing.T) {
	wal := fakepg.NewWAL(1, mb, 0)
	wal.FillTo(1, segment.LSN(5*mb))
	for n := range 20 {
		fake(t, fakepg.Options{WAL: wal}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
			end := s.End()
			s.CloseAfter(n)
			st := stream(t, c, "", origin)
			got, err := drain(st)
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("after %d messages: %v", n, err)
			}
			if !bytes.Equal(got, s.WAL().Bytes(1, origin.LSN, origin.LSN+segment.LSN(len(got)))) || len(got) < n*100000 || origin.LSN+segment.LSN(len(got)) >= end {
				t.Errorf("after %d messages: %d bytes", n, len(got))
			}
		})
	}
}

func TestStreamTimeline(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		at := s.FillTo(segment.LSN(2*mb) + 5000)
		st := stream(t, c, "", origin)
		collect(t, st, origin.LSN, at)
		s.Promote(at)
		b := <-st.Batches()
		if len(b.Messages) != 1 || b.Messages[0].Kind != replication.CopyDone {
			t.Fatalf("messages %+v", b.Messages)
		}
		b.Release()
		if st.Err() != nil {
			t.Errorf("Err before the end: %v", st.Err())
		}
		next, err := st.FinishTimeline(t.Context())
		if want := (segment.Position{Timeline: 2, LSN: at}); err != nil || next != want {
			t.Fatalf("FinishTimeline = %v, %v; want %v", next, err, want)
		}
		if e, ok := replication.IsEndOfTimeline(st.Err()); !ok || *e != (replication.EndOfTimeline{Timeline: 1, Next: 2, At: at}) {
			t.Errorf("Err = %v", st.Err())
		}
		conn := connect(t, c)
		_, err = conn.StartReplication(t.Context(), "", segment.Position{Timeline: 1, LSN: at})
		if e, ok := replication.IsEndOfTimeline(err); !ok || e.Position() != next {
			t.Errorf("at the switchpoint: %v", err)
		}
		st, err = conn.StartReplication(t.Context(), "", segment.Position{Timeline: 2, LSN: mb2})
		if err != nil {
			t.Fatal(err)
		}
		collect(t, st, mb2, s.End())
		if err := st.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

const mb2 = segment.LSN(2 * mb)

func TestStreamTimelineNonsense(t *testing.T) {
	for name, script := range map[string]func(*fakepg.Walsender) error{
		"no next timeline":    func(w *fakepg.Walsender) error { return w.CopyDone(0, 0) },
		"an earlier timeline": func(w *fakepg.Walsender) error { return w.CopyDone(1, 5) },
	} {
		t.Run(name, func(t *testing.T) {
			fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
				s.Script(script)
				st := stream(t, c, "", origin)
				(<-st.Batches()).Release()
				if next, err := st.FinishTimeline(t.Context()); !errors.Is(err, replication.ErrProtocol) {
					t.Errorf("FinishTimeline = %v, %v", next, err)
				}
			})
		})
	}
}

// Stop waits for the server's end, but not longer than it was told to.
func TestStreamStopContext(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		s.Script(func(w *fakepg.Walsender) error {
			for {
				if err := w.Keepalive(w.Sent, false); err != nil {
					return err
				}
				time.Sleep(time.Second)
			}
		})
		st := stream(t, c, "", origin)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := st.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Stop = %v", err)
		}
	})
}

// A controlled shutdown waits for what we report.
func TestStreamShutdown(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		end := s.FillTo(segment.LSN(2 * mb))
		st := stream(t, c, "", origin)
		collect(t, st, origin.LSN, end)
		s.Shutdown()
		pings := 0
		for b := range st.Batches() {
			for _, m := range b.Messages {
				if m.Kind == replication.Keepalive && m.ReplyRequested {
					pings++
				}
			}
			b.Release()
			status := replication.Status{Write: end, Flush: end - 8, Time: time.Now()}
			if pings > 5 {
				status.Flush = 0
			}
			if err := st.SendStatus(status); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				t.Error(err)
			}
		}
		if pings <= 5 || !errors.Is(st.Err(), replication.ErrShutdown) {
			t.Errorf("%d pings, then %v", pings, st.Err())
		}
		if _, err := replication.Connect(t.Context(), c); !replication.Passing(err) {
			t.Errorf("connecting during the shutdown: %v", err)
		}
	})
}

func TestConnContext(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		hang := make(chan struct{})
		s.OnCommand(func(string) error { <-hang; return fakepg.ErrDrop })
		conn := connect(t, c)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := conn.IdentifySystem(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("IdentifySystem = %v", err)
		}
		if _, err := conn.IdentifySystem(t.Context()); !errors.Is(err, replication.ErrClosed) {
			t.Errorf("after a cancelled command: %v", err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
		close(hang)
	})
}

func TestConnCommands(t *testing.T) {
	fake(t, fakepg.Options{Version: "14.23"}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		conn := connect(t, c)
		defer func() { _ = conn.Close(t.Context()) }()
		if err := conn.CreateSlot(t.Context(), "s"); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.ReadSlot(t.Context(), "s"); !errors.Is(err, replication.ErrUnsupported) {
			t.Errorf("ReadSlot on 14: %v", err)
		}
		for _, bad := range []string{"", "S", "a-b", `a"b`, "ä", string(bytes.Repeat([]byte("a"), 64))} {
			if replication.CheckSlotName(bad) == nil || conn.CreateSlot(t.Context(), bad) == nil || conn.DropSlot(t.Context(), bad) == nil {
				t.Errorf("slot name %q was taken", bad)
			}
		}
		if got := s.Commands(); len(got) != 1 || got[0] != `CREATE_REPLICATION_SLOT "s" PHYSICAL RESERVE_WAL` {
			t.Errorf("commands on 14: %q", got)
		}
		s.OnCommand(func(string) error {
			return &replication.ServerError{Severity: "FATAL", SQLSTATE: "57P01", Message: "terminating"}
		})
		var se *replication.ServerError
		if _, err := conn.Show(t.Context(), "wal_level"); !errors.As(err, &se) || se.SQLSTATE != "57P01" {
			t.Errorf("a fatal error: %v", err)
		}
	})
}

// A loopback listener serves a whole program.
func TestFakeListen(t *testing.T) {
	s := fakepg.New(fakepg.Options{SegmentSize: mb})
	defer s.Close()
	port, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	c := fakeConfig(t, s)
	c.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String())
	}
	end := s.FillTo(segment.LSN(3 * mb))
	st := stream(t, c, "", origin)
	if got := collect(t, st, origin.LSN, end); !bytes.Equal(got, s.WAL().Bytes(1, origin.LSN, end)) {
		t.Error("the data is not the server's")
	}
	if err := st.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
