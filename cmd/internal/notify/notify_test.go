package notify

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestNew(t *testing.T) {
	for _, c := range []struct {
		name, environ string
		want          Notifier
		wrong         string // "": no error
	}{
		{name: "nothing"},
		{name: "empty", environ: "NOTIFY_SOCKET= WATCHDOG_USEC="},
		{name: "path", environ: "NOTIFY_SOCKET=/run/s", want: Notifier{socket: "/run/s"}},
		{name: "abstract", environ: "NOTIFY_SOCKET=@s", want: Notifier{socket: "@s"}},
		{name: "relative", environ: "NOTIFY_SOCKET=run/s", wrong: "NOTIFY_SOCKET=run/s"},
		{name: "no name", environ: "NOTIFY_SOCKET=@", wrong: "NOTIFY_SOCKET=@"},
		{name: "vsock, and the watchdog", environ: "NOTIFY_SOCKET=vsock:2:1 WATCHDOG_USEC=1000", want: Notifier{watchdog: time.Millisecond}, wrong: "NOTIFY_SOCKET=vsock:2:1"},
		{name: "watchdog", environ: "NOTIFY_SOCKET=/s WATCHDOG_USEC=120000000", want: Notifier{"/s", 2 * time.Minute}},
		{name: "ours", environ: "WATCHDOG_USEC=1 WATCHDOG_PID=7", want: Notifier{"", time.Microsecond}},
		{name: "another's", environ: "WATCHDOG_USEC=1 WATCHDOG_PID=8"},
		{name: "no number", environ: "NOTIFY_SOCKET=/s WATCHDOG_USEC=1s", want: Notifier{socket: "/s"}, wrong: "WATCHDOG_USEC=1s"},
		{name: "zero", environ: "WATCHDOG_USEC=0", wrong: "WATCHDOG_USEC=0"},
		{name: "negative", environ: "WATCHDOG_USEC=-5", wrong: "WATCHDOG_USEC=-5"},
		{name: "too long", environ: "WATCHDOG_USEC=9223372036854775807", wrong: "WATCHDOG_USEC=9223372036854775807"},
	} {
		got, err := New(strings.Fields(c.environ), 7)
		if *got != c.want {
			t.Errorf("%s: %+v; want %+v", c.name, *got, c.want)
		}
		if (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: the error is %v; want %q", c.name, err, c.wrong)
		}
	}
}

// manager is the other end: a socket at the path, or an abstract one.
func manager(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// wants reads the next message.
func wants(t *testing.T, conn *net.UnixConn, want string) {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatalf("waiting for %q: %v", want, err)
	}
	if got := string(buf[:n]); got != want {
		t.Fatalf("got the message %q; want %q", got, want)
	}
}

func TestLifeOfAService(t *testing.T) {
	for name, socket := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": fmt.Sprintf("@walferry-test-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			conn := manager(t, socket)
			n, err := New([]string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=1000"}, os.Getpid())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var asked atomic.Int32
			// Alive, then stuck for three questions, then alive again, and then it ends.
			alive := func() bool {
				switch k := asked.Add(1); {
				case k >= 6:
					cancel()
					return false
				default:
					return k == 1 || k == 5
				}
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				n.Run(ctx, alive, func(err error) { t.Error(err) })
			}()
			for _, want := range []string{
				"READY=1\nSTATUS=receiving", "WATCHDOG=1", "STATUS=stuck: the watchdog is not pinged",
				"WATCHDOG=1\nSTATUS=receiving", "STATUS=stuck: the watchdog is not pinged", "STOPPING=1\nSTATUS=stopping",
			} {
				wants(t, conn, want)
			}
			<-done
		})
	}
}

// Without a watchdog nobody is asked; without a manager nothing is sent, and a
// manager that is gone is told to the caller and to nobody else.
func TestWithout(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	for _, c := range []struct {
		name     string
		n        Notifier
		failures int
	}{
		{"no manager", Notifier{}, 0},
		{"a watchdog without a socket", Notifier{watchdog: time.Nanosecond}, 0},
		{"a manager that is gone", Notifier{socket: gone}, 2},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		failures := 0
		c.n.Run(ctx, func() bool { t.Errorf("%s: asked", c.name); return true }, func(err error) {
			failures++
			if !strings.Contains(err.Error(), "=1") {
				t.Errorf("%s: %v does not say what was to be told", c.name, err)
			}
		})
		if failures != c.failures {
			t.Errorf("%s: %d failures; want %d", c.name, failures, c.failures)
		}
	}
}

func TestUnset(t *testing.T) {
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		t.Setenv(name, "1")
	}
	if err := Unset(); err != nil {
		t.Fatal(err)
	}
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "NOTIFY_") || strings.HasPrefix(e, "WATCHDOG_") {
			t.Errorf("%s is left", e)
		}
	}
}
