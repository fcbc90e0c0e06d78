package unpack

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/internal/patience"
)

// rangeSize is how many bytes of an object one request asks for.
const rangeSize = 4 << 20

// downloads reads objects ahead of those who decode them, in ranges that come
// side by side. It bounds the memory of all of them together. It is safe for
// concurrent use.
type downloads struct {
	src    Source
	backup archive.BackupName
	size   int64       // bytes of a range
	free   chan []byte // buffers of that size; nil: not made yet
	crc    *crc32.Table
	// patience is how long one range may fail; trouble tells of it.
	patience time.Duration
	trouble  *patience.Trouble
	// consumed is told how many bytes were taken.
	consumed func(n int)
}

func newDownloads(src Source, b archive.BackupName, buffers int, size int64, giveUp time.Duration, log *slog.Logger, consumed func(int)) *downloads {
	d := &downloads{
		src: src, backup: b, size: size, crc: crc32.MakeTable(crc32.Castagnoli),
		patience: giveUp, trouble: patience.New(log, "read base backup "+b.String()),
		free: make(chan []byte, buffers), consumed: consumed,
	}
	for range buffers {
		d.free <- nil
	}
	return d
}

// piece is a range of an object, under way or there.
type piece struct {
	done chan struct{} // closed when data or err is there
	data []byte        // of buf
	buf  []byte
	err  error
}

// object is an object of the backup, read from front to back. One goroutine
// reads it and closes it.
type object struct {
	d      *downloads
	ctx    context.Context // of this reader's life
	stop   context.CancelFunc
	name   string
	size   int64
	wg     sync.WaitGroup
	pieces chan *piece // in the object's order; holds as many as there are buffers
	at     *piece
	rest   []byte // of at
	got    int64
	crc    uint32 // of all that came, whole pieces
	failed error  // of the store: it says nothing about the object
}

// open begins to read an object of that size. The caller closes it; until then
// its goroutines and buffers are in use.
func (d *downloads) open(ctx context.Context, name string, size int64) *object {
	ctx, stop := context.WithCancel(ctx)
	o := &object{d: d, ctx: ctx, stop: stop, name: name, size: size, pieces: make(chan *piece, cap(d.free))}
	o.wg.Go(o.ahead)
	return o
}

// ahead asks for range after range. Each takes its buffer before the next
// does, so that the one that the reader waits for never lacks one.
func (o *object) ahead() {
	defer close(o.pieces)
	for offset := int64(0); offset < o.size && o.ctx.Err() == nil; offset += o.d.size {
		var buf []byte
		select {
		case buf = <-o.d.free:
		case <-o.ctx.Done():
			return
		}
		length := min(o.d.size, o.size-offset)
		if int64(len(buf)) < length {
			buf = make([]byte, length)
		}
		p := &piece{done: make(chan struct{}), buf: buf, data: buf[:length]}
		o.pieces <- p // never waits: there are no more buffers than places
		o.wg.Go(func() {
			defer close(p.done)
			p.err = o.d.fetch(o.ctx, o.name, offset, p.data)
		})
	}
}

// fetch reads a range, and tries again for as long as patience lasts.
func (d *downloads) fetch(ctx context.Context, name string, offset int64, into []byte) error {
	return d.again(ctx, func() error {
		body, err := d.src.ReadBackupRange(ctx, d.backup, name, offset, int64(len(into)))
		if err != nil {
			return err
		}
		_, err = io.ReadFull(body, into)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		_ = body.Close() // what was asked for is there, or an error is
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		return nil
	})
}

// again calls f until it works, fails for good, or has failed for too long.
func (d *downloads) again(ctx context.Context, f func() error) error {
	var since time.Time
	for {
		begun := time.Now()
		err := f()
		if err == nil {
			d.trouble.Worked(begun)
			return nil
		}
		if since.IsZero() {
			since = begun
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case final(err):
			return err
		case time.Since(since) >= d.patience:
			return fmt.Errorf("gave up after %s: %w", time.Since(since).Round(time.Second), err)
		}
		if d.trouble.Wait(ctx, err) != nil {
			return context.Cause(ctx)
		}
	}
}

// final tells what another attempt cannot change.
func final(err error) bool {
	for _, is := range []error{archive.ErrNotFound, objstore.ErrNotFound, objstore.ErrNoStore, objstore.ErrDenied} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// Read implements io.Reader. What a failed range's error says is passed on as
// it is; io.EOF comes when the whole object was read.
func (o *object) Read(p []byte) (int, error) {
	if len(o.rest) == 0 {
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, o.rest)
	o.rest = o.rest[n:]
	o.got += int64(n)
	o.d.consumed(n)
	return n, nil
}

// next gives the buffer of the piece that was read back, and waits for the
// next one.
func (o *object) next() error {
	o.release()
	p, ok := <-o.pieces
	if !ok {
		if o.got == o.size {
			return io.EOF
		}
		o.failed = context.Cause(o.ctx)
		return o.failed
	}
	o.at = p
	<-p.done
	if o.failed = p.err; o.failed != nil {
		return o.failed
	}
	o.crc = crc32.Update(o.crc, o.d.crc, p.data)
	o.rest = p.data
	return nil
}

func (o *object) release() {
	if o.at != nil {
		o.d.free <- o.at.buf // there is room: it came from there
		o.at, o.rest = nil, nil
	}
}

// checksum returns the CRC32C of the whole object; ok is false while it was
// not read to its end.
func (o *object) checksum() (sum uint32, ok bool) { return o.crc, o.got == o.size }

// Close ends the downloads and returns when they are still. It is no error.
func (o *object) Close() {
	o.stop()
	o.release()
	for p := range o.pieces {
		<-p.done
		o.at = p
		o.release()
	}
	o.wg.Wait()
}
