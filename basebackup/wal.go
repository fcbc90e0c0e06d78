package basebackup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

const (
	// statusInterval is how often the server hears from us while nothing else
	// is to be said: a sixth of its own patience (wal_sender_timeout, 1 min).
	statusInterval = 10 * time.Second
	// walMemory bounds the parts of the WAL's object in memory, and walSlots
	// how many there are: 16 MiB beside those of the archives.
	walMemory = smallestPart
	walSlots  = 2
)

// walPart is the part that holds the backup's WAL, streamed over a connection
// of its own beside the copy.
//
// A temporary slot keeps the WAL on the server until it was sent: it is made
// before the backup begins, and gone with the connection. We report what we
// have received as written, and nothing as flushed: so the server can be shut
// down, and the slot never moves, and no commit is released by a backup, not
// even where synchronous_standby_names names us (SyncRepGetCandidateStandbys in
// src/backend/replication/syncrep.c takes no standby without a flush LSN).
type walPart struct {
	t      *taking
	conn   walServer
	slot   string
	stream walStream
	start  segment.Position

	object  *object
	encoder *codec.Stream
	tar     *tar.Writer
	counted counter // between tar and encoder
	files   int

	next     segment.LSN           // behind what was received
	left     int64                 // bytes that the segment under way still lacks
	received atomic.Uint64         // next, for the goroutine that reports
	answer   chan struct{}         // of one element: the server wants a status
	stop     chan segment.Position // of one element: where the backup ends
	done     chan struct{}         // closed when the part is stored
}

// counter counts what goes through it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// openWAL connects, and makes the slot.
func (t *taking) openWAL() (*walPart, error) {
	conn, err := t.again(t.ctx)
	if err != nil {
		return nil, err
	}
	w := &walPart{
		t: t, conn: conn, slot: fmt.Sprintf("walferry_backup_%d", conn.PID()),
		answer: make(chan struct{}, 1), stop: make(chan segment.Position, 1), done: make(chan struct{}),
	}
	system, err := conn.IdentifySystem(t.ctx)
	if err == nil && system.SystemIdentifier != t.system.SystemIdentifier {
		err = fmt.Errorf("%w: it leads to system identifier %d, the first one to %d", ErrForeignCluster, system.SystemIdentifier, t.system.SystemIdentifier)
	}
	if err == nil {
		err = conn.CreateTemporarySlot(t.ctx, w.slot)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close(t.ctx))
	}
	return w, nil
}

// begin has the WAL stream from the segment that holds start.
func (w *walPart) begin(start segment.Position) (err error) {
	t := w.t
	w.start = start
	w.next = t.size.Start(start.LSN)
	w.received.Store(uint64(w.next))
	method := t.asked.how()
	w.object = t.newObject("part_wal.tar"+method.Ext(), -1, min(walMemory, t.o.MemoryPart), walSlots)
	// With a checksum: the manifest does not know of these files.
	if w.encoder, err = codec.NewEncoders(method).NewStream(w.object); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.encoder.GiveUp() // else run does, in the end
		}
	}()
	w.counted.w = w.encoder
	w.tar = tar.NewWriter(&w.counted)
	if start.Timeline > 1 {
		content, err := w.conn.TimelineHistory(t.ctx, start.Timeline)
		if err != nil {
			return err
		}
		if err := w.file(start.Timeline.HistoryName(), content); err != nil {
			return err
		}
	}
	w.stream, err = w.conn.StartReplication(t.ctx, w.slot, segment.Position{Timeline: start.Timeline, LSN: w.next})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	t.crew.start(func() error { return w.report(ended) })
	t.crew.start(func() error {
		defer close(ended)
		return w.run()
	})
	return nil
}

// run receives until it has everything up to the backup's end.
func (w *walPart) run() error {
	defer w.encoder.GiveUp()
	var stop *segment.Position
	for {
		select {
		case b, ok := <-w.stream.Batches():
			if !ok {
				return w.lost(w.stream.Err())
			}
			err := w.take(b.Messages)
			b.Release()
			if err != nil {
				return err
			}
		case p := <-w.stop:
			if p.Timeline != w.start.Timeline {
				return fmt.Errorf("the backup started at %s and stopped at %s: WAL of several timelines is not included, take it again", w.start, p)
			}
			stop = &p
		case <-w.t.ctx.Done():
			return context.Cause(w.t.ctx)
		}
		if stop != nil && w.next >= stop.LSN {
			return w.complete()
		}
	}
}

// lost is the end of a stream that was needed still.
func (w *walPart) lost(err error) error {
	if err == nil {
		err = replication.ErrClosed
	}
	return fmt.Errorf("the WAL of the backup ends at %s: %w", segment.LSN(w.received.Load()), err)
}

// take writes what a batch brought.
func (w *walPart) take(messages []replication.Message) error {
	for _, m := range messages {
		switch m.Kind {
		case replication.WALData:
			if m.Start != w.next {
				return fmt.Errorf("%w: WAL at %s where that at %s is due", replication.ErrProtocol, m.Start, w.next)
			}
			if err := w.write(m.Data); err != nil {
				return err
			}
			w.received.Store(uint64(w.next))
		case replication.Keepalive:
			if m.ReplyRequested {
				select {
				case w.answer <- struct{}{}:
				default: // one is due already
				}
			}
		case replication.CopyDone:
			return w.lost(fmt.Errorf("the server went on to another timeline than %d", w.start.Timeline))
		}
	}
	return nil
}

// write writes WAL into as many segments as it belongs to.
func (w *walPart) write(p []byte) error {
	for len(p) > 0 {
		if w.left == 0 {
			if err := w.tar.WriteHeader(header(walPath(w.segment()), int64(w.t.size), time.Now())); err != nil {
				return err
			}
			w.left = int64(w.t.size)
		}
		now := p[:min(int64(len(p)), w.left)]
		if _, err := w.tar.Write(now); err != nil {
			return err
		}
		p = p[len(now):]
		w.next += segment.LSN(len(now))
		if w.left -= int64(len(now)); w.left == 0 {
			if err := w.archived(w.t.size.Name(w.start.Timeline, w.next-1).String()); err != nil {
				return err
			}
		}
	}
	return nil
}

// segment names the one that begins or goes on at next.
func (w *walPart) segment() string { return w.t.size.Name(w.start.Timeline, w.next).String() }

// archived ends a file of pg_wal: with the mark that keeps the restored server
// from archiving it once more.
func (w *walPart) archived(name string) error {
	w.files += 2
	return w.tar.WriteHeader(header(donePath(name), 0, time.Now()))
}

// file writes a small file of pg_wal.
func (w *walPart) file(name string, content []byte) error {
	if err := w.tar.WriteHeader(header(walPath(name), int64(len(content)), time.Now())); err != nil {
		return err
	}
	if _, err := w.tar.Write(content); err != nil {
		return err
	}
	return w.archived(name)
}

// complete fills the segment under way with zeros, as the server's own hold
// them behind their end, and stores what there is.
func (w *walPart) complete() error {
	if w.left > 0 {
		name := w.segment()
		for w.left > 0 {
			n, err := w.tar.Write(zeros[:min(w.left, int64(len(zeros)))])
			if err != nil {
				return err
			}
			w.left -= int64(n)
		}
		if err := w.archived(name); err != nil {
			return err
		}
	}
	if err := w.tar.Close(); err != nil {
		return err
	}
	if err := w.encoder.Close(); err != nil {
		return err
	}
	if err := w.object.end(); err != nil {
		return err
	}
	if err := w.object.complete(); err != nil {
		return err
	}
	close(w.done)
	return nil
}

// finish is told where the backup ends, and waits for the part.
func (w *walPart) finish(stop segment.Position) (archive.BackupPart, error) {
	w.stop <- stop
	select {
	case <-w.done:
	case <-w.t.ctx.Done():
		return archive.BackupPart{}, context.Cause(w.t.ctx)
	}
	w.close()
	part := w.object.facts()
	part.Uncompressed, part.Files = w.counted.n, w.files
	return part, nil
}

// report sends statuses, alone: by the clock, whatever the store does, and when
// the server asks.
func (w *walPart) report(ended <-chan struct{}) error {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		select {
		case <-w.answer:
		case <-tick.C:
		case <-ended:
			return nil
		case <-w.t.ctx.Done():
			return nil
		}
		err := w.stream.SendStatus(replication.Status{Write: segment.LSN(w.received.Load()), Time: time.Now()})
		if err != nil {
			return w.lost(err)
		}
	}
}

// close ends the connection, and the slot with it.
func (w *walPart) close() {
	if w.stream != nil {
		_ = w.stream.Close() // nothing of it is needed any more
	}
	_ = w.conn.Close(w.t.ctx)
}
