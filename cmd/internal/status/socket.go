package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SocketName is the socket's name in the spool's directory.
const SocketName = "walferry.sock"

const (
	// answerPatience is how long one who asked may take to read the answer.
	answerPatience = 5 * time.Second
	// askPatience is how long an answer is waited for.
	askPatience = 10 * time.Second
	// acceptPause is between attempts when no connection can be taken.
	acceptPause = time.Second
	// maxAddress is how long a socket's path may be, with the zero at its end.
	maxAddress = len(unix.RawSockaddrUnix{}.Path)
	// maxDocument bounds what is read of an answer, in bytes.
	maxDocument = 4 << 20
)

// ErrNotRunning: nobody listens there.
var ErrNotRunning = errors.New("nobody listens")

// Listener is the socket of a running process.
type Listener struct {
	net *net.UnixListener
	dir string
}

// Listen makes the socket in dir, in place of one that is there: the caller
// holds the lock on dir. Serve takes it away again.
func Listen(dir string) (*Listener, error) {
	l, err := listen(dir)
	if err != nil {
		return nil, fmt.Errorf("making the socket %s: %w", filepath.Join(dir, SocketName), err)
	}
	return l, nil
}

func listen(dir string) (l *Listener, err error) {
	// Under another name, so that the socket has its mode when it appears.
	const name = SocketName + ".tmp"
	tmp := filepath.Join(dir, name)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	path, done, err := address(dir, name)
	if err != nil {
		return nil, err
	}
	n, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err := errors.Join(err, done()); err != nil {
		return nil, err
	}
	n.SetUnlinkOnClose(false) // by the path that it was bound to, which is no more
	if err := os.Chmod(tmp, 0o600); err != nil {
		return nil, errors.Join(err, n.Close(), os.Remove(tmp))
	}
	if err := os.Rename(tmp, filepath.Join(dir, SocketName)); err != nil {
		return nil, errors.Join(err, n.Close(), os.Remove(tmp))
	}
	return &Listener{n, dir}, nil
}

// address returns what to bind or connect to for a socket in dir. A path that
// is too long for the system call goes by an open directory. done is to be
// called when that is over.
func address(dir, name string) (path string, done func() error, err error) {
	path = filepath.Join(dir, name)
	if !filepath.IsAbs(path) {
		path = "./" + path // an @ in front would mean something else
	}
	if len(path) < maxAddress {
		return path, func() error { return nil }, nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name), func() error { return unix.Close(fd) }, nil
}

// Serve answers everybody who connects with what document returns then, one
// after the other, until ctx ends; then it takes the socket away. failed is
// told what went wrong, of connections that cannot be taken the first alone.
func (l *Listener) Serve(ctx context.Context, document func() Process, failed func(error)) {
	var closing sync.WaitGroup
	closing.Go(func() {
		<-ctx.Done()
		if err := errors.Join(l.net.Close(), os.Remove(filepath.Join(l.dir, SocketName))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed(fmt.Errorf("removing the socket: %w", err))
		}
	})
	defer closing.Wait()
	told := false
	for {
		conn, err := l.net.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close() // nobody is answered any more
			}
			return
		}
		if err != nil {
			if !told {
				failed(fmt.Errorf("taking a connection: %w", err))
				told = true
			}
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		// Who goes away without having read the answer is not our concern.
		_ = answer(conn, document())
	}
}

func answer(conn net.Conn, p Process) (err error) {
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetWriteDeadline(time.Now().Add(answerPatience)); err != nil {
		return err
	}
	return json.NewEncoder(conn).Encode(p)
}

// Ask asks the process that works on the spool in dir. ErrNotRunning when there
// is none.
func Ask(ctx context.Context, dir string) (p Process, err error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	path, done, err := address(dir, SocketName)
	if errors.Is(err, fs.ErrNotExist) {
		return Process{}, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	if err != nil {
		return Process{}, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if closeErr := done(); closeErr != nil {
		return Process{}, errors.Join(err, closeErr)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOTDIR) {
		return Process{}, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	if err != nil {
		return Process{}, err
	}
	defer func() {
		// It was read to its end, or is of no use.
		_ = conn.Close()
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	d := json.NewDecoder(io.LimitReader(conn, maxDocument))
	if err := d.Decode(&p); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return Process{}, fmt.Errorf("reading what the process answers: %w", err)
	}
	return p, nil
}

// Reason returns the innermost words of an error of Ask, for one line.
func Reason(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e.Error()
	}
	return strings.TrimPrefix(err.Error(), ErrNotRunning.Error()+": ")
}
