package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// The wire of an established connection. pgconn has done the start-up (TLS,
// authentication, parameters) and gave the connection up; framing is done here
// so that a stream's bytes can be read straight into the buffer in which they
// are handed over, and so that no library goroutine outlives a cancelled call.

// headerSize is a message's type byte and its length word.
const headerSize = 5

// maxBody bounds the body of one message, in bytes. The server cuts WAL at
// 16 pages (MAX_SEND_SIZE in walsender.c: 128 kB, 1 MB with the largest page
// size); a history file of thousands of timelines stays far below as well.
const maxBody = 16 << 20

// frame finds the first message in b. total is its size with the header, zero
// while the header is incomplete; the message is whole when total > 0 and
// total <= len(b). The error is ErrProtocol: the bytes cannot be a message.
func frame(b []byte) (kind byte, total int, err error) {
	if len(b) < headerSize {
		return 0, 0, nil
	}
	n := binary.BigEndian.Uint32(b[1:])
	if n < 4 || n > maxBody+4 {
		return 0, 0, fmt.Errorf("%w: message of type %q with a length of %d", ErrProtocol, b[0], n)
	}
	return b[0], int(n) + 1, nil
}

// wire reads and writes messages. Reading and writing may be concurrent with
// each other, but not with themselves.
type wire struct {
	conn net.Conn  // written to, closed, has the deadlines
	r    io.Reader // read from: pgconn's reader over conn, which may hold bytes already read
	buf  []byte
	rp   int // buf[rp:wp] was read and not yet taken
	wp   int
}

// next returns the next message. body is borrowed until the next call.
func (w *wire) next() (kind byte, body []byte, err error) {
	for {
		kind, body, ok, err := w.take()
		if ok || err != nil {
			return kind, body, err
		}
		if err := w.fill(); err != nil {
			return 0, nil, err
		}
	}
}

// take returns the next message if it was read already. body is borrowed until
// the next take, fill or reserve.
func (w *wire) take() (kind byte, body []byte, ok bool, err error) {
	kind, total, err := frame(w.buf[w.rp:w.wp])
	if err != nil || total == 0 || total > w.wp-w.rp {
		return 0, nil, false, err
	}
	body = w.buf[w.rp+headerSize : w.rp+total : w.rp+total]
	w.rp += total
	return kind, body, true, nil
}

// fill reads more. The beginning of a message is moved only when there is no
// room for the rest behind it.
func (w *wire) fill() error {
	_, total, err := frame(w.buf[w.rp:w.wp])
	if err != nil {
		return err
	}
	if w.rp == w.wp {
		w.rp, w.wp = 0, 0
	}
	if w.rp+max(total, headerSize) > len(w.buf) {
		w.wp = copy(w.buf, w.buf[w.rp:w.wp])
		w.rp = 0
		w.reserve(max(total, minBuffer))
	}
	n, err := w.r.Read(w.buf[w.wp:])
	w.wp += n
	if err != nil && n == 0 {
		return readError(err)
	}
	return nil
}

// minBuffer is the least that a wire's buffer holds, in bytes.
const minBuffer = 8192

// reserve makes the buffer at least size bytes long. What it holds stays.
func (w *wire) reserve(size int) {
	if size > len(w.buf) {
		w.buf = append(make([]byte, 0, size), w.buf...)[:size]
	}
}

// send writes one message.
func (w *wire) send(m pgproto3.FrontendMessage) error {
	b, err := m.Encode(nil)
	if err != nil {
		return err
	}
	_, err = w.conn.Write(b)
	return err
}

// readError names the end of a connection for what it is: PostgreSQL never
// closes a replication connection without a word, so an EOF is unexpected.
func readError(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the server closed the connection: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// longAgo is a deadline that has passed.
func longAgo() time.Time { return time.Unix(1, 0) }

// whileContext runs f and makes the reads and writes of conn fail as soon as
// ctx ends. It returns f's error, or ctx's when that is why f failed.
func whileContext(ctx context.Context, conn net.Conn, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		// A connection that takes no deadline is closed by its owner after
		// the failure that is reported here anyway.
		_ = conn.SetDeadline(longAgo())
	})
	err := f()
	if !stop() {
		<-fired
		if err != nil {
			return ctx.Err()
		}
		// f was faster than the deadline: what it returns is whole.
		return conn.SetDeadline(time.Time{})
	}
	return err
}

// leash closes a connection as soon as a context ends, over many calls: taking
// the same context again costs next to nothing. It keeps the context's channel,
// never the context. It is safe for concurrent use.
//
// It closes, and sets no deadline as whileContext does, because a socket that is
// read in the kernel has none.
type leash struct {
	conn net.Conn

	mu   sync.Mutex
	over bool            // drop was called
	done <-chan struct{} // of the context that holds; nil: none does
	stop func() bool
}

// hold gives the leash to ctx, and takes it from the one that held it. It
// returns false when that one has ended: the connection is closed, or will be.
func (l *leash) hold(ctx context.Context) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	done := ctx.Done()
	if l.over || done == l.done {
		return true
	}
	if !l.release() {
		return false
	}
	if done != nil {
		l.done = done
		// What the reader is told is why it was closed, not how.
		l.stop = context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	}
	return true
}

// release needs mu. It returns false when the one that held the leash has ended.
func (l *leash) release() bool {
	if l.done == nil {
		return true
	}
	if !l.stop() {
		return false
	}
	l.done, l.stop = nil, nil
	return true
}

// drop ends the leash: no context that has not ended closes the connection any
// more.
func (l *leash) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.release()
	l.over = true
}
