package replication

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns the two ends of a connection, the first of them blocking.
func pair(t *testing.T, network string) (b, peer net.Conn) {
	t.Helper()
	before := runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0)))
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if peer, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	s := &socket{conn}
	streams(s)
	if _, ok := s.Conn.(*blocking); !ok {
		t.Fatalf("it is read by the poller: %T", s.Conn)
	}
	t.Cleanup(func() {
		_ = s.Close() // again, in most tests
		for _, c := range []io.Closer{peer, l} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return s, peer
}

func TestBlockingCarriesBothWays(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		b, peer := pair(t, network)
		if b.LocalAddr() == nil || b.RemoteAddr().Network() != network {
			t.Errorf("it is between %v and %v", b.LocalAddr(), b.RemoteAddr())
		}
		want := bytes.Repeat([]byte("wal"), 1<<20)
		var wg sync.WaitGroup
		echoed := make([]byte, len(want))
		wg.Go(func() {
			if _, err := io.CopyN(peer, peer, int64(len(want))); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := b.Write(want); err != nil {
				t.Error(err)
			}
		})
		if _, err := io.ReadFull(b, echoed); err != nil || !bytes.Equal(echoed, want) {
			t.Errorf("%s: what came back is not what was sent: %v", network, err)
		}
		wg.Wait()
	}
}

func TestBlockingSeesTheEnd(t *testing.T) {
	b, peer := pair(t, "tcp")
	if err := peer.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Read(make([]byte, 10)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes and %v", n, err)
	}
}

// TestBlockingCloses: Close ends a read and a write that wait in the kernel, and
// what comes later is told so.
func TestBlockingCloses(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		b, _ := pair(t, network)
		errs := make(chan error, 2)
		go func() {
			_, err := b.Read(make([]byte, 10))
			errs <- err
		}()
		go func() {
			for {
				if _, err := b.Write(make([]byte, 1<<20)); err != nil { // nobody reads it
					errs <- err
					return
				}
			}
		}()
		time.Sleep(20 * time.Millisecond) // they are in the kernel, most likely
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			// A write sees its socket shut down first, and says that.
			if err := <-errs; !errors.Is(err, net.ErrClosed) && !errors.As(err, new(*os.SyscallError)) {
				t.Errorf("%s: %v", network, err)
			}
		}
		_, readErr := b.Read(make([]byte, 10))
		_, writeErr := b.Write(make([]byte, 10))
		for _, err := range []error{readErr, writeErr, b.SetWriteDeadline(time.Now()), b.Close()} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
	}
}

// TestBlockingClosesItsOwn: a second Close, when the number of the socket is
// another's, leaves that alone.
func TestBlockingClosesItsOwn(t *testing.T) {
	b, _ := pair(t, "tcp")
	fd := b.(*socket).Conn.(*blocking).fd
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var others []int
	defer func() {
		for _, fd := range others {
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		}
	}()
	for !slices.Contains(others, fd) { // the lowest free numbers are given out first
		if len(others) > 200 {
			t.Fatal("the number is not given out again")
		}
		two, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, two[:]...)
	}
	if err := b.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the second Close: %v", err)
	}
	if _, err := unix.Write(fd, []byte("still there")); err != nil {
		t.Errorf("another connection was shut down: %v", err)
	}
}

// TestBlockingWriteIsBounded: who is not read gives up.
func TestBlockingWriteIsBounded(t *testing.T) {
	b, _ := pair(t, "unix")
	if err := b.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := b.Write(make([]byte, 1<<20)); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			break
		}
	}
	if err := b.SetReadDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("a deadline that it cannot keep was accepted: %v", err)
	}
}

// TestBlockingBackup: a context ends a base backup whose server says nothing,
// though its socket takes no deadline; so does Close; over TLS, too.
func TestBlockingBackup(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(b *BaseBackup, cancel func())
		want error
		tls  bool
	}{
		"context":           {end: func(_ *BaseBackup, cancel func()) { cancel() }, want: context.Canceled},
		"Close":             {end: func(b *BaseBackup, _ func()) { _ = b.Close() }, want: ErrClosed},
		"context, over TLS": {end: func(_ *BaseBackup, cancel func()) { cancel() }, want: context.Canceled, tls: true},
		"Close, over TLS":   {end: func(b *BaseBackup, _ func()) { _ = b.Close() }, want: ErrClosed, tls: true},
	} {
		conn, peer := pair(t, "tcp")
		if test.tls {
			conn = encrypted(t, conn, peer)
		}
		b := &BaseBackup{wire: &wire{conn: conn, r: conn}, leash: leash{conn: conn}, ending: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			_, err := b.Next(ctx)
			ended <- err
		}()
		time.Sleep(50 * time.Millisecond) // most likely it is in the kernel now; if not, it ends as well
		test.end(b, cancel)
		select {
		case err := <-ended:
			if !errors.Is(err, test.want) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: it still waits", name)
		}
		_ = b.Close()
	}
}

// encrypted makes TLS of a connection's two ends and returns the first.
func encrypted(t *testing.T, conn, peer net.Conn) net.Conn {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- tls.Server(peer, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: private}}}).Handshake()
	}()
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // who it is does not matter here
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestBlockingIsForSocketsOnly: a scripted server's connection stays what it is.
func TestBlockingIsForSocketsOnly(t *testing.T) {
	a, b := net.Pipe()
	s := &socket{a}
	streams(s)
	if s.Conn != a {
		t.Errorf("it became a %T", s.Conn)
	}
	for _, c := range []io.Closer{a, b} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestBlockingNeedsAProcessor: on a machine with one, a read must not keep it.
func TestBlockingNeedsAProcessor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	s := &socket{conn}
	streams(s)
	if s.Conn != conn {
		t.Errorf("it became a %T", s.Conn)
	}
	for _, c := range []io.Closer{conn, l} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
