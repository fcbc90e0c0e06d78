package replication

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// blocking is a socket that is read in the kernel, by a thread of its own as
// long as nothing comes. A stream's connection is one, and a base backup's. With
// the runtime's poller each message would wake the poller's thread, that one a
// scheduler for the reader, and that its watchman: some ten microseconds each,
// for which the commit waits that a small message belongs to. A base backup,
// whose server writes 8 kB at a time, takes a seventh to a third less CPU time.
//
// Read has no deadline: Close ends it. One goroutine may read, others write.
type blocking struct {
	fd            int
	local, remote net.Addr
	closing       atomic.Bool
	use           sync.RWMutex // read-locked while fd is in use
	closed        bool         // guarded by use

	timeout atomic.Int64 // nanoseconds that the socket lets a write wait; 0: for ever
	yielded time.Time    // the reader's
}

// yieldAfter is how long the reader keeps its thread at most without giving the
// scheduler a chance. At ten milliseconds that takes it away by force, which
// costs more (retake in the runtime's proc.go).
const yieldAfter = 4 * time.Millisecond

// newBlocking takes over the socket of conn. When it cannot, conn stays as it
// is, and is returned; and so where Go code runs on one processor, which a
// thread in the kernel keeps from all others until somebody notices.
func newBlocking(conn net.Conn) net.Conn {
	s, ok := conn.(syscall.Conn)
	if !ok || runtime.GOMAXPROCS(0) < 2 {
		return conn // no socket: a scripted server's
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return conn
	}
	fd := -1
	if err := raw.Control(func(old uintptr) {
		if fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			fd = -1
		}
	}); err != nil || fd < 0 {
		return conn
	}
	b := &blocking{fd: fd, local: conn.LocalAddr(), remote: conn.RemoteAddr()}
	// The poller lets go of it with conn, and the connection lives on. (The two
	// share its mode, so conn must be gone before that is changed.)
	if err := errors.Join(conn.Close(), unix.SetNonblock(fd, false)); err != nil {
		_ = b.Close() // whoever uses it is told that it is closed
	}
	return b
}

func (b *blocking) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(b.yielded) >= yieldAfter {
		b.yielded = now
		runtime.Gosched()
	}
	b.use.RLock()
	defer b.use.RUnlock()
	for {
		if b.closed {
			return 0, b.error("read", net.ErrClosed)
		}
		n, err := unix.Read(b.fd, p)
		switch {
		case b.closing.Load():
			return 0, b.error("read", net.ErrClosed)
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, b.error("read", os.NewSyscallError("read", err))
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (b *blocking) Write(p []byte) (written int, err error) {
	b.use.RLock()
	defer b.use.RUnlock()
	for written < len(p) {
		if b.closed || b.closing.Load() {
			return written, b.error("write", net.ErrClosed)
		}
		n, err := unix.Write(b.fd, p[written:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return written, b.error("write", os.ErrDeadlineExceeded)
		case err != nil:
			return written, b.error("write", os.NewSyscallError("write", err))
		default:
			written += n
		}
	}
	return written, nil
}

func (b *blocking) error(op string, err error) error {
	return &net.OpError{Op: op, Net: b.remote.Network(), Source: b.local, Addr: b.remote, Err: err}
}

// Close ends the connection, and what reads and writes it.
func (b *blocking) Close() error {
	b.closing.Store(true)
	b.use.RLock()
	if !b.closed { // or the number may be somebody else's by now
		// Who is in the kernel comes back. That the server has gone is no error.
		_ = unix.Shutdown(b.fd, unix.SHUT_RDWR)
	}
	b.use.RUnlock()
	b.use.Lock()
	defer b.use.Unlock()
	if b.closed {
		return b.error("close", net.ErrClosed)
	}
	b.closed = true
	return os.NewSyscallError("close", unix.Close(b.fd))
}

// SetWriteDeadline bounds each wait of the writes that begin from now on, not
// their sum: what is written is a few bytes.
func (b *blocking) SetWriteDeadline(t time.Time) error {
	var d time.Duration
	if !t.IsZero() {
		d = max(time.Until(t).Round(100*time.Millisecond), time.Millisecond)
	}
	if time.Duration(b.timeout.Load()) == d {
		return nil
	}
	b.use.RLock()
	defer b.use.RUnlock()
	if b.closed {
		return b.error("set", net.ErrClosed)
	}
	tv := unix.NsecToTimeval(int64(d))
	if err := unix.SetsockoptTimeval(b.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return b.error("set", os.NewSyscallError("setsockopt", err))
	}
	b.timeout.Store(int64(d))
	return nil
}

func (b *blocking) SetReadDeadline(time.Time) error { return b.error("set", os.ErrNoDeadline) }
func (b *blocking) SetDeadline(t time.Time) error   { return b.SetReadDeadline(t) }
func (b *blocking) LocalAddr() net.Addr             { return b.local }
func (b *blocking) RemoteAddr() net.Addr            { return b.remote }
