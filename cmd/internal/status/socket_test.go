package status

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// serve listens in dir; the returned function ends it.
func serve(t *testing.T, dir string, document func() Process) (end func()) {
	t.Helper()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.Serve(ctx, document, func(err error) { t.Error(err) }) })
	end = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(end)
	return end
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestSocket(t *testing.T) {
	dir := t.TempDir()
	if _, err := Ask(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before it listens: %v", err)
	}
	asked := 0
	end := serve(t, dir, func() Process { asked++; return Process{PID: asked} })
	if st, err := os.Lstat(filepath.Join(dir, SocketName)); err != nil || st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	// Who connects and reads nothing keeps nobody waiting.
	idle, err := net.Dial("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	for want := 2; want < 5; want++ {
		if p, err := Ask(t.Context(), dir); err != nil || p.PID != want {
			t.Errorf("%d, %v; want document %d", p.PID, err, want)
		}
	}
	end()
	if err := idle.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Ask(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("when it has ended: %v", err)
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("it leaves %q", left)
	}
}

// What a killed process has left answers nobody, and is replaced.
func TestStaleSocket(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{SocketName, SocketName + ".tmp"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Ask(t.Context(), dir); !errors.Is(err, ErrNotRunning) || Reason(err) != "connection refused" {
		t.Errorf("nobody listens: %v", err)
	}
	end := serve(t, dir, func() Process { return Process{PID: 7} })
	if p, err := Ask(t.Context(), dir); err != nil || p.PID != 7 {
		t.Errorf("%+v, %v", p, err)
	}
	end()
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("it leaves %q", left)
	}
}

// A spool may lie deeper than a socket's path may be long, and its path may
// begin with what means something else in a socket's.
func TestPathsOfSockets(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("d", 200))
	t.Chdir(t.TempDir())
	for _, dir := range []string{deep, strings.Repeat("e", 200), "@spool", "."} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Ask(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%.10s…: nobody listens: %v", dir, err)
		}
		end := serve(t, dir, func() Process { return Process{PID: 7} })
		if p, err := Ask(t.Context(), dir); err != nil || p.PID != 7 {
			t.Errorf("%.10s…: %+v, %v", dir, p, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, SocketName)); err != nil {
			t.Error(err)
		}
		end()
		if err := os.Remove(dir); dir != "." && err != nil {
			t.Errorf("it leaves something: %v", err)
		}
	}
	for _, dir := range []string{"missing", filepath.Join(deep, "missing")} {
		if _, err := Ask(t.Context(), dir); !errors.Is(err, ErrNotRunning) || Reason(err) != "no such file or directory" {
			t.Errorf("%.10s…: %v", dir, err)
		}
		if _, err := Listen(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%.10s…: %v", dir, err)
		}
	}
}

// What stands in the way is an error that names the socket, and nothing is left
// of the attempt.
func TestSocketCannotBeMade(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, SocketName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(dir); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, SocketName)) {
		t.Errorf("%v", err)
	}
	if left := files(t, dir); len(left) != 1 {
		t.Errorf("it leaves %q", left)
	}
}

// A process that is stopped, or answers nonsense, is not taken for none.
func TestNoAnswer(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Ask(ctx, dir); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNotRunning) {
		t.Errorf("no answer: %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, err = c.Write([]byte("walferry?"))
			if err := errors.Join(err, c.Close()); err != nil {
				t.Log(err) // the one who gave up above
			}
		}
	})
	if _, err := Ask(t.Context(), dir); err == nil || errors.Is(err, ErrNotRunning) {
		t.Errorf("nonsense: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// Connections that cannot be taken are told once, and end nothing.
func TestConnectionsCannotBeTaken(t *testing.T) {
	l, err := Listen(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan error, 10)
	var wg sync.WaitGroup
	wg.Go(func() { l.Serve(ctx, func() Process { return Process{} }, func(err error) { told <- err }) })
	if err := l.net.SetDeadline(time.Now()); err != nil { // every Accept fails from here on
		t.Fatal(err)
	}
	if err := <-told; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	cancel()
	wg.Wait()
	if len(told) != 0 {
		t.Errorf("told again: %v", <-told)
	}
}
