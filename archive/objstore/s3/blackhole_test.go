package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive/objstore"
)

// pipes is a network of pipes in memory, for bubbles in which time costs nothing.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// inBubble runs test in a bubble, with a store whose server is handle.
func inBubble(t *testing.T, handle http.HandlerFunc, test func(t *testing.T, s *Store)) {
	as(t, somebody)
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		server := &http.Server{Handler: handle}
		served := make(chan error)
		go func() { served <- server.Serve(p) }()
		s, err := open(t.Context(), Config{Bucket: "wal", Region: "us-east-1", Endpoint: "http://s3.test", PathStyle: true}, p.dial)
		if err != nil {
			t.Fatal(err)
		}
		test(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(48 * time.Hour) // handlers that sleep wake up
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// hang keeps a request for as long as the client does.
func hang(r *http.Request) {
	// A server notices that its client is gone when it reads behind the body.
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// TestBlackHoles: nobody ever answers, and every call ends by itself. In a
// bubble, a call that does not end is a test that does not end.
func TestBlackHoles(t *testing.T) {
	big := objstore.Bytes(make([]byte, 3<<20))
	for _, test := range []struct {
		name   string
		handle http.HandlerFunc
		words  string
	}{
		{"answer never begins", func(_ http.ResponseWriter, r *http.Request) { hang(r) }, "nothing moved"},
		{"answer drips for ever", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			for _, err = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Drip: "); err == nil; _, err = io.WriteString(c, "x") {
				time.Sleep(20 * time.Second)
			}
			_ = c.Close() // it is broken already
		}, "within the time a call may take"},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, test.handle, func(t *testing.T, s *Store) {
				_, getErr := read(t, s, "a")
				_, _, rangeErr := s.GetRange(t.Context(), "a", 0, 1)
				_, listErr := listAll(t, s)
				_, beginErr := s.BeginUpload(t.Context(), "a")
				_, sweepErr := s.AbortUploads(t.Context(), "", time.Now())
				for what, err := range map[string]error{
					"begin-upload": beginErr, "abort-uploads": sweepErr,
					"upload-part": begun(s).Part(t.Context(), 1, 0, big),
					"complete":    begun(s).Complete(t.Context()),
					"abort":       begun(s).Abort(t.Context()),
					"get":         getErr, "range": rangeErr, "list": listErr,
					"put":           s.Put(t.Context(), "a", objstore.Bytes(nil)),
					"put big":       s.Put(t.Context(), "a", big),
					"put-if-absent": s.PutIfAbsent(t.Context(), "a", big),
					"delete":        s.Delete(t.Context(), "a"),
				} {
					mustBe(t, what, err, nil, "no answer from http://s3.test", test.words)
					if errors.Is(err, context.DeadlineExceeded) && t.Context().Err() == nil && strings.Contains(test.words, "within") {
						t.Errorf("%s: %v looks as if the caller's context had ended", what, err)
					}
				}
			})
		})
	}
}

// TestBlackHoleNetwork: connections do not come about, or nobody reads.
func TestBlackHoleNetwork(t *testing.T) {
	as(t, somebody)
	for _, test := range []struct {
		name  string
		dial  dialFunc
		words string
	}{
		{"no connection", func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }, "no connection within 10s (4 attempts)"},
		{"nobody reads", func(context.Context, string, string) (net.Conn, error) { c, _ := net.Pipe(); return c, nil }, "nothing moved"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, err := open(t.Context(), Config{Bucket: "wal", Region: "us-east-1", Endpoint: "http://s3.test"}, test.dial)
				if err != nil {
					t.Fatal(err)
				}
				_, err = read(t, s, "a")
				mustBe(t, "get", err, nil, test.words)
				mustBe(t, "put", s.Put(t.Context(), "a", objstore.Bytes(make([]byte, 3<<20))), nil, test.words)
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestStalledBodies: a body that stops flowing, in either direction.
func TestStalledBodies(t *testing.T) {
	inBubble(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPut:
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			time.Sleep(24 * time.Hour) // without reading on
		case http.MethodGet:
			w.Header().Set("Content-Length", "2000000")
			_, _ = w.Write(make([]byte, 1_000_000))
			_ = http.NewResponseController(w).Flush()
			hang(r)
		}
	}, func(t *testing.T, s *Store) {
		mustBe(t, "put", s.Put(t.Context(), "a", objstore.Bytes(make([]byte, 4<<20))), nil, "nothing moved")
		got, err := read(t, s, "a")
		mustBe(t, "read", err, io.ErrUnexpectedEOF, "after 1000000 of 2000000 bytes", "nothing moved")
		if len(got) != 1_000_000 {
			t.Errorf("read %d bytes", len(got))
		}
	})
}

// TestSlowIsNoBlackHole: what moves may take its time, and so may a reader.
func TestSlowIsNoBlackHole(t *testing.T) {
	content := bytes.Repeat([]byte("slow"), 100_000)
	inBubble(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPut:
			buf := make([]byte, 64<<10)
			n := 0
			for {
				m, err := r.Body.Read(buf)
				n += m
				if err != nil {
					break
				}
				time.Sleep(20 * time.Second)
			}
			// The rest of the body is still in the kernel, as far as the client
			// knows: it waits longer than for an answer to a small request.
			time.Sleep(34 * time.Second)
			if n != len(content) {
				w.WriteHeader(http.StatusBadRequest)
			}
		case http.MethodGet:
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			for part := content; len(part) > 0; part = part[min(len(part), 50_000):] {
				_, _ = w.Write(part[:min(len(part), 50_000)])
				_ = http.NewResponseController(w).Flush()
				time.Sleep(25 * time.Second)
			}
		}
	}, func(t *testing.T, s *Store) {
		if err := s.Put(t.Context(), "a", objstore.Bytes(content)); err != nil {
			t.Errorf("a slow put: %v", err)
		}
		if got, err := read(t, s, "a"); err != nil || got != string(content) {
			t.Errorf("a slow get: %d bytes, %v", len(got), err)
		}
		r, _, err := s.Get(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100_000)
		for n := 0; ; time.Sleep(10 * time.Minute) {
			m, err := r.Read(buf)
			n += m
			if err != nil {
				if !errors.Is(err, io.EOF) || n != len(content) {
					t.Errorf("a slow reader: %d bytes, %v", n, err)
				}
				break
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour) // connections grow old
		if err := s.Put(t.Context(), "a", objstore.Bytes(content)); err != nil {
			t.Errorf("after an hour of nothing: %v", err)
		}
	})
}

// TestLongOutage: the SDK's quota of retries would be used up by it, and calls
// then fail without a retry, with an error about a quota.
func TestLongOutage(t *testing.T) {
	var requests atomic.Int64
	healthy := false
	inBubble(t, func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1); !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}, func(t *testing.T, s *Store) {
		for i := range 300 {
			before := requests.Load()
			err := s.Put(t.Context(), "a", objstore.Bytes(nil))
			mustBe(t, "put", err, nil, "503")
			if n := requests.Load() - before; n != attempts || strings.Contains(err.Error(), "quota") {
				t.Fatalf("call %d made %d requests, want %d: %v", i, n, attempts, err)
			}
		}
		healthy = true
		if err := s.Put(t.Context(), "a", objstore.Bytes(nil)); err != nil {
			t.Error(err)
		}
	})
}

// TestCancelWhileHanging: the end of the caller's context ends a call at once,
// and a read.
func TestCancelWhileHanging(t *testing.T) {
	inBubble(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/wal/half":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
		case "/wal/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		hang(r)
	}, func(t *testing.T, s *Store) {
		for _, key := range []string{"never", "busy"} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			err := s.PutIfAbsent(ctx, key, objstore.Bytes([]byte("x")))
			mustBe(t, key, err, context.DeadlineExceeded)
			cancel()
		}
		ctx, cancel := context.WithCancel(t.Context())
		r, _, err := s.Get(ctx, "half")
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, cancel)
		_, err = io.ReadAll(r)
		mustBe(t, "read", err, context.Canceled)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v: the object is not shorter", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestLoan: when a call ends, no read of its body is under way or begins.
func TestLoan(t *testing.T) {
	held := &heldBody{Body: objstore.Bytes(make([]byte, 10)), begun: make(chan struct{}), release: make(chan struct{})}
	l := &loan{body: held}
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := l.ReadAt(make([]byte, 5), 0); n != 5 || err != nil {
			t.Errorf("a read that began before the end: %d bytes, %v", n, err)
		}
	})
	<-held.begun
	// No bubble: waiting for a mutex does not let its time go on.
	time.AfterFunc(10*time.Millisecond, func() { close(held.release) })
	l.end()
	if !held.done.Load() {
		t.Error("the loan ended in the middle of a read")
	}
	if n, err := l.ReadAt(make([]byte, 5), 0); n != 0 || err == nil {
		t.Errorf("a read behind the end: %d bytes, %v", n, err)
	}
	wg.Wait()
}

// heldBody holds its first read until it is released.
type heldBody struct {
	objstore.Body
	begun, release chan struct{}
	done           atomic.Bool
}

func (h *heldBody) ReadAt(p []byte, at int64) (int, error) {
	close(h.begun)
	<-h.release
	defer h.done.Store(true)
	return h.Body.ReadAt(p, at)
}

func TestPause(t *testing.T) {
	last := time.Duration(0)
	for attempt := range 40 {
		low, high := firstPause<<min(attempt, 5)*4/5, min(firstPause<<min(attempt, 5), longestPause)*6/5
		for range 20 {
			if d := pause(attempt); d < min(low, longestPause*4/5) || d > high {
				t.Errorf("pause %d is %v, want %v to %v", attempt, d, low, high)
			}
		}
		last = high
	}
	if last != longestPause*6/5 {
		t.Errorf("pauses grow to %v", last)
	}
}
