package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/segment"
)

const (
	// batchSize is the buffer of one batch in bytes: one message of the
	// largest usual size (128 kB) and most of another.
	batchSize = 256 << 10
	// largeMessage is from when on a read ends where the message does.
	largeMessage = 64 << 10
	// queued batches wait between the reader and the owner. With the one
	// being read and the one being worked on, a stream holds six buffers.
	queued = 4
	// writeTimeout bounds one SendStatus. A server that takes no 39 bytes
	// for so long reads nothing at all.
	writeTimeout = 10 * time.Second
)

// Batch is what one read from the server brought: whole messages in order.
// It belongs to whoever took it until its Release.
type Batch struct {
	Messages []Message

	buf  []byte
	home chan *Batch
	out  *atomic.Int32 // the stream's
}

// Release gives the batch's memory back. Neither the batch nor the Data of
// its messages may be used afterwards.
func (b *Batch) Release() {
	if b.out != nil { // nil: of no stream
		b.out.Add(-1)
	}
	if len(b.buf) > batchSize {
		return // grown for an unusual message
	}
	b.Messages = b.Messages[:0]
	select {
	case b.home <- b:
	default: // more were in use than are kept
	}
}

// Stream is a connection over which WAL flows. One goroutine inside reads;
// it ends with the stream, and Close waits for it. One owner takes batches,
// sends statuses and ends the stream; SendStatus may run beside the taking of
// batches, and beside nothing else.
//
// The reader never asks for more than the owner takes: when the queue is full
// it stops reading, and the server waits. Statuses can be sent all the same.
type Stream struct {
	wire     *wire
	server   string
	timeline segment.Timeline
	batches  chan *Batch
	free     chan *Batch
	out      atomic.Int32                      // batches that were handed over and not released
	direct   atomic.Pointer[func(*Batch) bool] // may take them in the reader's goroutine
	closing  chan struct{}                     // closed by Close
	closed   sync.Once
	done     chan struct{} // closed when the reader has ended

	// Written by the reader before done is closed, read behind it.
	err   error
	ended *EndOfTimeline

	mu       sync.Mutex // one writer
	sendBuf  [statusSize]byte
	sendErr  error // the first failed write; the stream is broken
	copyDone bool  // ours was sent
}

// newStream takes over a wire on which CopyBothResponse was just received.
func newStream(w *wire, server string, timeline segment.Timeline) *Stream {
	s := &Stream{
		wire:     w,
		server:   server,
		timeline: timeline,
		batches:  make(chan *Batch, queued),
		free:     make(chan *Batch, queued+2),
		closing:  make(chan struct{}),
		done:     make(chan struct{}),
	}
	streams(w.conn)
	go s.run()
	return s
}

// Timeline is the timeline that is streamed.
func (s *Stream) Timeline() segment.Timeline { return s.timeline }

// Batches is the stream. It is closed at the stream's end; Err tells why.
func (s *Stream) Batches() <-chan *Batch { return s.batches }

// Direct lets take have the batches from now on, in the goroutine that reads, so
// that an answer needs no other goroutine to wake up. What take returns true
// for it has taken, and must Release like one of Batches; all others come from
// Batches. The order is kept: take is asked only while no batch before is
// unreleased. Until it returns nothing is read. It must not wait for the
// stream's end.
func (s *Stream) Direct(take func(*Batch) bool) { s.direct.Store(&take) }

// Err returns why the stream ended, once Batches is closed; before that, nil.
// It is nil after Stop, an *EndOfTimeline after FinishTimeline, ErrClosed
// after Close. ErrShutdown, ErrWALRemoved, ErrAhead, ErrProtocol,
// io.ErrUnexpectedEOF and *ServerError can be matched.
func (s *Stream) Err() error {
	select {
	case <-s.done:
		if s.err != nil {
			return s.err
		}
		if s.ended != nil {
			return s.ended
		}
	default:
	}
	return nil
}

// Close ends the stream at once, without a word to the server, and waits for
// the reader. Batches that were not taken are lost. It may be called at any
// time, also again, and beside a SendStatus, which then fails. The error is
// always nil: nothing hangs on how a connection that is given up ends.
func (s *Stream) Close() error {
	s.closed.Do(func() {
		close(s.closing)
		_ = s.wire.conn.Close() // TLS would tell that the server is gone already
	})
	<-s.done
	return nil
}

// SendStatus sends a status, whether or not anybody takes batches. It returns
// within ten seconds; a failure is final for the stream.
func (s *Stream) SendStatus(st Status) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write("sending a status", appendStatus(s.sendBuf[:0], st))
}

// sendCopyDone sends our CopyDone, once.
func (s *Stream) sendCopyDone() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.copyDone {
		return nil
	}
	b, err := (&pgproto3.CopyDone{}).Encode(nil)
	if err != nil {
		return err
	}
	s.copyDone = true
	return s.write("ending the stream", b)
}

// write needs mu. A write that fails may have gone out in part, so nothing
// more may follow it.
func (s *Stream) write(what string, b []byte) error {
	if s.sendErr != nil {
		return s.sendErr
	}
	select {
	case <-s.closing:
		return fmt.Errorf("%s to %s: %w", what, s.server, ErrClosed)
	default:
	}
	err := s.wire.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = s.wire.conn.Write(b)
	}
	if err != nil {
		s.sendErr = fmt.Errorf("%s to %s: %w", what, s.server, err)
	}
	return s.sendErr
}

// FinishTimeline answers the server's CopyDone and returns where the next
// timeline begins. It is called once, after the message of Kind CopyDone was
// taken, and ends the stream and its connection. When the server names no next
// timeline the error is ErrProtocol.
func (s *Stream) FinishTimeline(ctx context.Context) (segment.Position, error) {
	if err := s.finish(ctx); err != nil {
		return segment.Position{}, fmt.Errorf("ending timeline %d on %s: %w", s.timeline, s.server, err)
	}
	if s.ended == nil {
		return segment.Position{}, fmt.Errorf("ending timeline %d on %s: %w: no next timeline was named", s.timeline, s.server, ErrProtocol)
	}
	return s.ended.Position(), nil
}

// Stop ends the stream in good order: it asks the server to end, throws away
// the batches that are still under way, waits for the server's end and closes
// the connection. A last status has to be sent before it. When ctx ends first
// the connection is closed as it is and ctx's error returned.
func (s *Stream) Stop(ctx context.Context) error {
	if err := s.finish(ctx); err != nil && !errors.Is(err, ErrShutdown) {
		return fmt.Errorf("stopping the stream from %s: %w", s.server, err)
	}
	return nil
}

// finish sends CopyDone, waits for the reader to see the server's end, and
// closes the connection whatever happened.
func (s *Stream) finish(ctx context.Context) error {
	err := s.sendCopyDone()
	for err == nil {
		select {
		case b, ok := <-s.batches:
			if ok {
				b.Release()
				continue
			}
			<-s.done
			err = s.err
		case <-ctx.Done():
			err = ctx.Err()
		}
		break
	}
	if err == nil {
		s.mu.Lock()
		if b, encodeErr := (&pgproto3.Terminate{}).Encode(nil); encodeErr == nil {
			// The server has ended its part; it also understands a
			// connection that just ends.
			_ = s.write("closing the connection", b)
		}
		s.mu.Unlock()
	}
	// What matters was said and heard before.
	_ = s.Close()
	return err
}

// batch returns an empty batch.
func (s *Stream) batch() *Batch {
	select {
	case b := <-s.free:
		return b
	default:
		return &Batch{buf: make([]byte, batchSize), home: s.free, out: &s.out}
	}
}

// run reads until the stream ends and says why.
func (s *Stream) run() {
	defer close(s.batches) // behind done: who sees the end finds its reason
	defer close(s.done)
	err := s.read()
	select {
	case <-s.closing:
		if err != nil {
			err = ErrClosed
		}
	default:
	}
	if err != nil {
		s.err = fmt.Errorf("streaming timeline %d from %s: %w", s.timeline, s.server, err)
	}
}

// read fills batches with whole messages straight from the connection. A
// message is moved only when a batch's buffer ended in its middle. Whatever a
// read brought is handed over at once: nobody waits for bytes that are still
// under way to see those that are here.
func (s *Stream) read() error {
	b := s.batch()
	b.room(s.wire.wp - s.wire.rp)
	held := copy(b.buf, s.wire.buf[s.wire.rp:s.wire.wp]) // what came with CopyBothResponse
	s.wire.buf, s.wire.rp, s.wire.wp = nil, 0, 0
	end := ending{timeline: s.timeline}
	for {
		taken, total, err := end.parse(b, held)
		if len(b.Messages) > 0 {
			// Everything behind the whole messages goes to the next batch,
			// before this one is given away.
			next := s.batch()
			next.room(total)
			held = copy(next.buf, b.buf[taken:held])
			if !s.handOver(b) {
				return ErrClosed
			}
			b = next
		} else {
			if taken > 0 {
				held = copy(b.buf, b.buf[taken:held])
			}
			b.room(total)
		}
		if err != nil {
			return err
		}
		if end.over {
			s.ended = end.next
			return nil
		}
		n, err := s.wire.r.Read(b.buf[held:end.upTo(held, len(b.buf))])
		held += n
		if err != nil && n == 0 {
			return readError(err)
		}
	}
}

// handOver gives a batch to the owner. It returns false when the stream is
// closed.
func (s *Stream) handOver(b *Batch) bool {
	alone := s.out.Add(1) == 1 // all that came before has been worked on
	if take := s.direct.Load(); take != nil && alone && (*take)(b) {
		return true
	}
	select {
	case s.batches <- b:
		return true
	case <-s.closing:
		return false
	}
}

// room makes the buffer large enough for a message of total bytes.
func (b *Batch) room(total int) {
	if total > len(b.buf) {
		b.buf = append(make([]byte, 0, total), b.buf...)[:total]
	}
}

// ending follows the order in which a stream ends: messages; the server's
// CopyDone; after ours the row with the next timeline; ReadyForQuery.
type ending struct {
	timeline segment.Timeline
	copyDone bool // the server's
	over     bool
	next     *EndOfTimeline

	total int // how long the message is whose beginning is held; 0: not known
	last  int // how long the last whole message was
}

// upTo returns where the next read should end at the latest, with held bytes of
// a message in a buffer of size bytes: where a large message ends, so that it
// need not be moved together with the beginning of the next. Large ones come in
// rows of equal size, of small ones a read should bring many.
func (e *ending) upTo(held, size int) int {
	want := e.total
	if held == 0 || want == 0 {
		want = e.last
	}
	if want < largeMessage || want <= held || want > size {
		return size
	}
	return want
}

// parse takes the whole messages of b.buf[:held]. taken is how many bytes they
// were, total how long the message behind them is, zero when that cannot be
// told yet. An error ends the stream, after the messages before it.
func (e *ending) parse(b *Batch, held int) (taken, total int, err error) {
	for !e.over {
		var kind byte
		kind, total, err = frame(b.buf[taken:held])
		if err != nil || total == 0 || total > held-taken {
			e.total = total
			return taken, total, err
		}
		body := b.buf[taken+headerSize : taken+total]
		taken += total
		e.last = total
		if err = e.message(b, kind, body); err != nil {
			return taken, 0, err
		}
	}
	return taken, 0, nil
}

func (e *ending) message(b *Batch, kind byte, body []byte) error {
	switch {
	case kind == 'd' && !e.copyDone:
		var m Message
		if err := parseCopyData(body, &m); err != nil {
			return err
		}
		b.Messages = append(b.Messages, m)
		return nil
	case kind == 'c' && !e.copyDone:
		e.copyDone = true
		b.Messages = append(b.Messages, Message{Kind: CopyDone})
		return nil
	case kind == 'D' && e.copyDone && e.next == nil:
		next, err := nextTimeline(body, e.timeline)
		e.next = next
		return err
	case kind == 'T' && e.copyDone:
		return nil
	case kind == 'C':
		// Without CopyDone it is the "COPY 0" with which the walsender says
		// that all was sent and acknowledged, before the server stops
		// (WalSndDone in walsender.c). Nothing follows it.
		if !e.copyDone {
			return ErrShutdown
		}
		return nil
	case kind == 'E':
		se, err := decodeError(body)
		if err != nil {
			return err
		}
		return streamError(se, true)
	case kind == 'Z' && e.copyDone:
		e.over = true
		return nil
	case kind == 'N' || kind == 'S' || kind == 'A':
		return nil
	}
	return fmt.Errorf("%w: unexpected message of type %q in a stream", ErrProtocol, kind)
}

// IsEndOfTimeline returns the *EndOfTimeline in err's chain.
func IsEndOfTimeline(err error) (*EndOfTimeline, bool) {
	var e *EndOfTimeline
	ok := errors.As(err, &e)
	return e, ok
}
