package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
)

// state is how far a segment has come.
type state int

const (
	held     state = iota // a partial found at Open, not begun in this process
	open                  // a partial being written
	finished              // a partial whose timeline ended in it
	sealed                // whole
)

// Segment is a WAL segment in the spool. One goroutine writes it (WriteAt,
// Advance, Seal, Finish, Abandon, and Spool.Begin); Sync may run beside that,
// and all else from any number of goroutines.
//
// A byte goes through three LSNs, in this order: Written, Advance, and what
// Sync returned.
type Segment struct {
	spool *Spool
	name  segment.Name
	size  segment.Size

	// syncing is held by Sync, Seal and Finish: one at a time. It comes first.
	syncing sync.Mutex
	// file guards f: read-locked while f is used, locked to change it.
	file      sync.RWMutex
	f         disk.File   // nil: closed
	following atomic.Bool // f stays open until the segment is dropped: it is being read
	compare   []byte      // the writer's, for bytes that are held already
	top       segment.LSN // the writer's: end of all that was ever written
	zeroed    segment.LSN // the writer's: zeros were written ahead up to here

	mu                   sync.Mutex
	state                state
	err                  error // final: every call fails with it
	gone                 bool  // abandoned
	vouchStart, vouchEnd segment.LSN
	beginning            beginning // of a partial of an earlier process
	written              segment.LSN
	advanced             segment.LSN
	durable              segment.LSN   // bytes in front of it were synced since the segment was begun
	named                bool          // the file's name is durable
	finish               segment.LSN   // state finished: where
	beyond               segment.LSN   // and up to where there is more
	changed              chan struct{} // closed at the next change that is waited for, nil while no reader waits
	waitedFor            segment.LSN   // of Advance's changes, the first that counts
}

// Name returns the segment's name.
func (g *Segment) Name() segment.Name { return g.name }

// Start returns the LSN of the segment's first byte.
func (g *Segment) Start() segment.LSN { return g.name.Start(g.size) }

// End returns the LSN behind the segment's last byte.
func (g *Segment) End() segment.LSN { return g.name.End(g.size) }

// Sealed reports whether the segment is whole and durable.
func (g *Segment) Sealed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state == sealed
}

// Finished returns where Finish said that the timeline ended; false when it
// did not.
func (g *Segment) Finished() (segment.LSN, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.finish, g.state == finished
}

// Beyond returns up to where a finished segment holds WAL of its timeline: what
// lies behind the LSN that Finish was given is no part of the timeline that
// followed. ReadAt reads it. It is that LSN where there is no more, and the
// segment's start where Finish was not called.
func (g *Segment) Beyond() segment.LSN {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.beyond, g.Start())
}

// Vouched returns the range of bytes that were held when the segment was last
// begun, or the spool opened, and that are known to be WAL: of a partial of an
// earlier process what its records verify, of one that was written by this
// process all of it, of a sealed one the whole. (At its front a record of the
// segment before may go on: see VouchBeginning.) They are to be compared with
// what the server sends, not written again; WriteAt does that. A new segment
// has none: both LSNs are its start.
func (g *Segment) Vouched() (start, end segment.LSN) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.vouchStart, g.vouchEnd
}

// VouchBeginning vouches for the front of a partial of an earlier process,
// where a record of the segment before goes on, which the partial alone cannot
// check: see segment.ContinuedRecord. prev holds that segment, whichever
// timeline's; Open and Begin ask themselves when it is sealed in the spool. If
// the record is good, Vouched begins at the segment's start, and Written
// follows. It returns Vouched's end if that begins there, at last or before,
// and else the segment's start.
//
// It writes nothing. A segment that was begun is not looked at any more: its
// writer knows what it compares. Begin keeps what was found when it reads the
// same bytes again. Errors are those of the files, and those of prev's pages
// that segment.ContinuedRecord names; nothing changes then.
func (g *Segment) VouchBeginning(prev io.ReaderAt) (end segment.LSN, err error) {
	f, end, err := g.openHeld()
	if f == nil {
		return end, err
	}
	b, err := g.findBeginning(prev, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("checking the beginning of segment %s: %w", g.name, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == held && g.err == nil { // not begun meanwhile
		g.vouchFor(b, g.vouchStart, g.vouchEnd)
	}
	return g.vouchedBeginning(), nil
}

// openHeld opens a partial of an earlier process whose beginning is not vouched
// for; of any other segment it returns no file, and what VouchBeginning does.
func (g *Segment) openHeld() (f disk.File, end segment.LSN, err error) {
	g.syncing.Lock() // Drop waits
	defer g.syncing.Unlock()
	g.mu.Lock()
	end, err = g.vouchedBeginning(), g.err
	look := g.state == held && end == g.Start()
	g.mu.Unlock()
	if err == nil && look {
		f, err = g.spool.fs.Open(g.spool.path(g.fileName()), false)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("checking the beginning of segment %s: %w", g.name, err)
	}
	return f, end, nil
}

// vouchedBeginning returns the end of what is vouched for from the segment's
// start on; mu is held.
func (g *Segment) vouchedBeginning() segment.LSN {
	if g.vouchStart == g.Start() {
		return g.vouchEnd
	}
	return g.Start()
}

// Written returns the end of the run of bytes, without a gap from the
// segment's start, that were written or are vouched for.
func (g *Segment) Written() segment.LSN {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.written
}

// WriteAt writes p, which it does not keep, at an LSN of the segment. Nothing
// is durable on return, and no reader sees it: see Advance and Sync.
//
// Bytes that are vouched for, or in front of Advance, are never changed: those
// parts of p are compared, and a difference is ErrConflict with the LSN of the
// first one. Otherwise it does not allocate. A failure of the disk is not
// final: the same bytes may be written again.
func (g *Segment) WriteAt(p []byte, at segment.LSN) error {
	if err := g.within(len(p), at); err != nil {
		return fmt.Errorf("writing segment %s: %w", g.name, err)
	}
	g.mu.Lock()
	st, err, fixed, from, to := g.state, g.err, g.advanced, g.vouchStart, g.vouchEnd
	g.mu.Unlock()
	if err == nil && st != open {
		err = errors.New("it is not open for writing")
	}
	if err != nil {
		return fmt.Errorf("writing segment %s at %s: %w", g.name, at, err)
	}
	end := at + segment.LSN(len(p))
	for pos := at; pos < end; {
		switch {
		case pos < fixed:
			pos, err = g.same(p, at, pos, min(end, fixed))
		case from <= pos && pos < to:
			pos, err = g.same(p, at, pos, min(end, to))
		case pos < from:
			pos, err = g.put(p, at, pos, min(end, from))
		default:
			pos, err = g.put(p, at, pos, end)
		}
		if err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if at <= g.written && g.written < end {
		g.written = end
	}
	if g.vouchStart <= g.written && g.written < g.vouchEnd {
		g.written = g.vouchEnd
	}
	return nil
}

// put writes the bytes [pos, to) of p, whose first is at the LSN at.
func (g *Segment) put(p []byte, at, pos, to segment.LSN) (segment.LSN, error) {
	g.file.RLock()
	defer g.file.RUnlock()
	if g.f == nil {
		return pos, g.failure()
	}
	if _, err := g.f.WriteAt(p[pos-at:to-at], int64(pos-g.Start())); err != nil {
		return pos, fmt.Errorf("writing segment %s at %s: %w", g.name, pos, err)
	}
	g.top = max(g.top, to)
	if to == g.top && to > g.zeroed && to-pos <= smallWrite {
		if err := g.zeroAhead(); err != nil {
			return pos, fmt.Errorf("writing segment %s at %s: %w", g.name, to, err)
		}
	}
	return to, nil
}

const (
	// smallWrite is how long a write is at most behind which zeros are
	// written ahead: those that come one by one, each with a sync of its own.
	smallWrite = 8 << 10
	// zerosAhead is how far. They are written once for so much WAL.
	zerosAhead = 64 << 10
)

// zeros is never written to.
var zeros [zerosAhead]byte

// zeroAhead writes zeros behind all that was ever written, in a file that this
// Segment has made: they change nothing but the space, which from then on is
// written and not only reserved. A block that is used for the first time must
// be marked so, and a sync has to wait until the file system's journal has
// that, too; where zeros were, a sync writes the bytes alone. Where many bytes
// go into one sync that does not matter. g.file is read-locked.
func (g *Segment) zeroAhead() error {
	g.mu.Lock()
	unsynced := g.top - min(g.durable, g.top)
	g.mu.Unlock()
	if unsynced > zerosAhead {
		return nil
	}
	to := min(g.top+zerosAhead, g.End())
	if to > g.top {
		if _, err := g.f.WriteAt(zeros[:to-g.top], int64(g.top-g.Start())); err != nil {
			return err
		}
	}
	g.zeroed = to
	return nil
}

// same compares the bytes [pos, to) of p, whose first is at the LSN at, with
// those that are held.
func (g *Segment) same(p []byte, at, pos, to segment.LSN) (segment.LSN, error) {
	if g.compare == nil {
		g.compare = make([]byte, 64<<10)
	}
	for pos < to {
		have := g.compare[:min(to-pos, segment.LSN(len(g.compare)))]
		if err := g.ReadAt(have, pos); err != nil {
			return pos, err
		}
		sent := p[pos-at : pos-at+segment.LSN(len(have))]
		if !bytes.Equal(sent, have) {
			for have[0] == sent[0] {
				have, sent, pos = have[1:], sent[1:], pos+1
			}
			return pos, fmt.Errorf("segment %s at %s: %w: the server sends other bytes than the spool holds", g.name, pos, ErrConflict)
		}
		pos += segment.LSN(len(have))
	}
	return to, nil
}

// ReadAt reads len(p) bytes at an LSN of the segment, all or an error. It
// reads what is in the file, also in front of what readers of Follow see;
// bytes that were never written are zeros, or remains from before a crash.
func (g *Segment) ReadAt(p []byte, at segment.LSN) error {
	err := g.within(len(p), at)
	if err == nil {
		err = g.read(p, at)
	}
	if err != nil {
		return fmt.Errorf("reading segment %s at %s: %w", g.name, at, err)
	}
	return nil
}

// within checks that n bytes from an LSN on lie in the segment.
func (g *Segment) within(n int, at segment.LSN) error {
	if at < g.Start() || at > g.End() || segment.LSN(n) > g.End()-at {
		return fmt.Errorf("%d bytes at %s are not within it", n, at)
	}
	return nil
}

// read fills p from the open file, or, when there is none, from one opened
// for this once: of many segments that wait, few files are open.
func (g *Segment) read(p []byte, at segment.LSN) error {
	off := int64(at - g.Start())
	g.file.RLock()
	defer g.file.RUnlock()
	if g.f != nil {
		return readFull(g.f, p, off)
	}
	g.mu.Lock()
	err := g.err
	g.mu.Unlock()
	if err != nil {
		return err
	}
	f, err := g.spool.fs.Open(g.spool.path(g.fileName()), false)
	if err != nil {
		return err
	}
	return errors.Join(readFull(f, p, off), f.Close())
}

// readFull reads len(p) bytes, all or an error.
func readFull(f disk.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// Advance says that all bytes in front of an LSN are right, compared or
// written, and lets the readers have them. It never goes back, and not beyond
// Written. Advanced bytes are what the next Sync makes durable. It does not
// allocate.
func (g *Segment) Advance(to segment.LSN) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if to = min(to, g.written); to > g.advanced && g.state == open {
		g.advanced = to
		if to >= g.waitedFor {
			g.wake()
		}
	}
}

// Advanced returns the LSN in front of which readers see the bytes.
func (g *Segment) Advanced() segment.LSN {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.advanced
}

// wake lets waiting readers look again; mu is held.
func (g *Segment) wake() {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// Sync makes the bytes in front of Advance durable, and the file's name with
// the first call, and returns the LSN that Advance had when it began: all in
// front of it survives the loss of power. It may run beside WriteAt and
// Advance. When nothing came since the last time it costs nothing. A failure
// is final for this Segment: give it up (Abandon) and stream it again.
func (g *Segment) Sync() (segment.LSN, error) {
	g.syncing.Lock()
	defer g.syncing.Unlock()
	return g.sync()
}

// sync is Sync; syncing is held.
func (g *Segment) sync() (segment.LSN, error) {
	to, err := g.syncFile()
	if err != nil {
		return 0, err
	}
	g.mu.Lock()
	named := g.named
	g.mu.Unlock()
	if !named {
		if err := g.spool.syncNames(); err != nil {
			return 0, g.fail(fmt.Errorf("syncing segment %s: %w", g.name, err))
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.named = true
	return to, nil
}

// syncFile makes the bytes durable, not yet the name; syncing is held.
func (g *Segment) syncFile() (segment.LSN, error) {
	g.mu.Lock()
	st, err, to, durable := g.state, g.err, g.advanced, g.durable
	g.mu.Unlock()
	switch {
	case err == nil && st == held:
		err = errors.New("it was not begun")
		fallthrough
	case err != nil:
		return 0, fmt.Errorf("syncing segment %s: %w", g.name, err)
	case st != open || to == durable:
		return to, nil // sealed and finished were synced
	}
	g.file.RLock()
	if g.f == nil {
		err = g.failure()
	} else {
		err = disk.SyncTo(g.f, int64(to-g.Start()))
	}
	g.file.RUnlock()
	if err != nil {
		return 0, g.fail(fmt.Errorf("syncing segment %s up to %s: %w", g.name, to, err))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.durable = to
	return to, nil
}

// fail makes an error final and returns the one that is.
func (g *Segment) fail(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
		g.wake()
	}
	return g.err
}

// failure returns the final error of a segment whose file is closed.
func (g *Segment) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		return errors.New("its file is closed")
	}
	return g.err
}

// Seal makes the whole segment durable under its final name: bytes first, then
// the rename, then the directory. Every byte must have been written and
// advanced. Readers get their io.EOF after it. A failure is final for this
// Segment, except for one that says that it is not complete.
func (g *Segment) Seal() error {
	g.syncing.Lock()
	defer g.syncing.Unlock()
	return g.seal()
}

// seal is Seal; syncing is held.
func (g *Segment) seal() error {
	g.mu.Lock()
	st, to := g.state, g.advanced
	g.mu.Unlock()
	switch {
	case st == sealed:
		return nil
	case st == finished, st == held:
		return fmt.Errorf("sealing segment %s: it is not open for writing", g.name)
	case to != g.End():
		return fmt.Errorf("sealing segment %s: it is complete up to %s only", g.name, to)
	}
	if _, err := g.syncFile(); err != nil {
		return err
	}
	s := g.spool
	err := s.fs.Rename(s.path(g.fileName()), s.path(g.name.String()))
	if err == nil {
		err = s.syncNames()
	}
	if err != nil {
		return g.fail(fmt.Errorf("sealing segment %s: %w", g.name, err))
	}
	g.rest(sealed, g.End())
	return nil
}

// Finish says that the timeline ended at an LSN inside the segment, or at its
// start or before (then that is the LSN). What is in front of it must have been
// advanced; it is durable on return, under the partial's name. Nothing is
// written any more, and readers get io.EOF there; one that has read further
// gets ErrFinished. What was written behind it stays: see Beyond.
func (g *Segment) Finish(at segment.LSN) error {
	g.syncing.Lock()
	defer g.syncing.Unlock()
	g.mu.Lock()
	st, to, before := g.state, g.advanced, g.finish
	g.mu.Unlock()
	switch {
	case st == finished && at == before:
		return nil
	case st != open:
		return fmt.Errorf("finishing segment %s at %s: it is not open for writing", g.name, at)
	case at < g.Start() || at >= g.End():
		return fmt.Errorf("finishing segment %s: %s is not inside it", g.name, at)
	case at > to:
		return fmt.Errorf("finishing segment %s at %s: it is complete up to %s only", g.name, at, to)
	}
	if _, err := g.sync(); err != nil {
		return err
	}
	g.mu.Lock()
	g.beyond = max(at, g.written)
	g.mu.Unlock()
	g.rest(finished, at)
	return nil
}

// rest ends the writing of a segment whose content is durable. The file is
// closed unless it is being read, so that a backlog of any length does not use
// up the descriptors.
func (g *Segment) rest(st state, at segment.LSN) {
	g.mu.Lock()
	g.state, g.named = st, true
	g.written, g.advanced, g.durable = at, at, at
	if st == finished {
		g.finish = at
	} else {
		g.vouchStart, g.vouchEnd = g.Start(), g.End()
	}
	g.wake()
	g.mu.Unlock()
	g.file.Lock()
	defer g.file.Unlock()
	if g.following.Load() {
		return
	}
	if err := g.closeFile(); err != nil {
		g.spool.log.Warn("closing a segment that is durable", "segment", g.name.String(), "error", err)
	}
}

// closeFile closes the file, if it is open; file is locked.
func (g *Segment) closeFile() error {
	f := g.f
	g.f = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// Follow returns a reader of the segment from its start. It waits where the
// bytes end that Advance let go, and reads on when there are more; io.EOF
// comes at the segment's end, sealed or not, or where it was finished. Any
// number may be at work at once. Errors: ctx's, the one that ended the Segment
// (ErrAbandoned among them), ErrDropped, ErrClosed, ErrFinished.
func (g *Segment) Follow(ctx context.Context) io.Reader { return g.FollowBlocks(ctx, 1) }

// FollowBlocks is Follow with a reader that also waits until its Read has as
// many bytes as asked for or as a block has, unless no more will come: it is
// woken once a block, not each time that something was written.
func (g *Segment) FollowBlocks(ctx context.Context, block int) io.Reader {
	pos := g.Start()
	return readerFunc(func(p []byte) (int, error) {
		to, err := g.await(ctx, pos, segment.LSN(min(block, len(p))))
		if err != nil || len(p) == 0 {
			return 0, err
		}
		if err := g.keepOpen(); err != nil {
			return 0, fmt.Errorf("reading segment %s: %w", g.name, err)
		}
		p = p[:min(segment.LSN(len(p)), to-pos)]
		if err := g.ReadAt(p, pos); err != nil {
			return 0, err
		}
		pos += segment.LSN(len(p))
		return len(p), nil
	})
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// await returns up to where there are bytes behind pos, as soon as there are at
// least so many, or all that will ever be.
func (g *Segment) await(ctx context.Context, pos, least segment.LSN) (segment.LSN, error) {
	want := min(pos+max(least, 1), g.End())
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		g.mu.Lock()
		st, err, to := g.state, g.err, g.advanced
		more := err == nil && pos <= to && to < want && (st == open || st == held)
		if more {
			if g.changed == nil {
				g.changed, g.waitedFor = make(chan struct{}), want
			}
			g.waitedFor = min(g.waitedFor, want)
		}
		changed := g.changed
		g.mu.Unlock()
		switch {
		case err != nil:
			return 0, fmt.Errorf("reading segment %s at %s: %w", g.name, pos, err)
		case pos > to:
			return 0, fmt.Errorf("reading segment %s at %s: %w, at %s", g.name, pos, ErrFinished, to)
		case more:
		case pos < to:
			return to, nil
		default:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// keepOpen opens the file for reading, if it is not open, to stay so until
// the segment leaves the spool. A file that is being written is only marked,
// beside its writer, who does not wait for it.
func (g *Segment) keepOpen() error {
	g.file.RLock()
	g.following.Store(true) // rest looks at it under the lock that excludes this one
	ready := g.f != nil
	g.file.RUnlock()
	if ready {
		return nil
	}
	g.file.Lock()
	defer g.file.Unlock()
	g.mu.Lock()
	err := g.err
	g.mu.Unlock()
	if err == nil && g.f == nil {
		g.f, err = g.spool.fs.Open(g.spool.path(g.fileName()), false)
	}
	return err
}

// Abandon gives the file up after a failure: it is closed, and every call and
// reader gets the error. The file stays on the disk; Begin takes it up anew,
// as another Segment. A sealed or finished segment is not abandoned.
func (g *Segment) Abandon() {
	g.mu.Lock()
	if g.state == sealed || g.state == finished {
		g.mu.Unlock()
		return
	}
	g.gone = true
	g.mu.Unlock()
	if err := g.shut(ErrAbandoned); err != nil {
		g.spool.log.Warn("closing a segment that is given up", "segment", g.name.String(), "error", err)
	}
}

// Err returns the error that ended the Segment, nil while it lives: what a
// failed sync said, ErrAbandoned, ErrDropped or ErrClosed.
func (g *Segment) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (g *Segment) abandoned() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gone
}

// shut ends the Segment with an error, unless it has one, and closes the file.
func (g *Segment) shut(reason error) error {
	_ = g.fail(reason) // which error is final does not matter here
	g.file.Lock()
	defer g.file.Unlock()
	return g.closeFile()
}

// filling reports whether the segment is being written and not yet whole. One
// that was given up is not written any more.
func (g *Segment) filling() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state == open && g.advanced != g.End() && !g.gone
}

// whole reports whether the segment has all its bytes and is not sealed yet.
func (g *Segment) whole() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state == open && g.advanced == g.End() && g.err == nil
}

// fileName returns the name of the segment's file at this moment.
func (g *Segment) fileName() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.nameOf(g.state)
}

func (g *Segment) nameOf(st state) string {
	if st == sealed {
		return g.name.String()
	}
	return g.name.String() + partialSuffix
}

// rules returns what the segment's pages must be like. The history makes the
// check stricter; one that cannot be read leaves it out.
func (g *Segment) rules() segment.PageRules {
	s := g.spool
	s.mu.Lock()
	defer s.mu.Unlock()
	r := segment.PageRules{Name: g.name, Size: g.size, SystemIdentifier: s.identity.SystemIdentifier}
	history := s.histories[g.name.Timeline]
	if h, err := segment.ParseHistory(g.name.Timeline, history); err == nil && history != nil {
		r.History = &h
	}
	return r
}

// inspect looks into a partial of an earlier process, of n bytes. empty: it
// has nothing but zeros.
func (g *Segment) inspect(n int64) (empty bool, err error) {
	s := g.spool
	f, err := s.fs.Open(s.path(g.fileName()), false)
	if err != nil {
		return false, err
	}
	if empty, err = eachPart(f, n, func([]byte, int64) error { return errNotEmpty }); errors.Is(err, errNotEmpty) {
		err = g.vouch(f, n)
	}
	return empty, errors.Join(err, f.Close())
}

var errNotEmpty = errors.New("not empty")

// vouch finds out what the records of a partial of n bytes vouch for.
func (g *Segment) vouch(f disk.File, n int64) error {
	start, end, err := segment.VerifiedRecords(f, n, g.rules())
	if err != nil {
		return fmt.Errorf("checking %s: %w", g.fileName(), err)
	}
	for {
		g.mu.Lock()
		known := g.beginning
		g.mu.Unlock()
		var b beginning
		if start != g.Start() || end == start {
			if b, err = g.checkBeginning(f, known); err != nil {
				return fmt.Errorf("checking the beginning of %s: %w", g.fileName(), err)
			}
		}
		g.mu.Lock()
		if g.beginning == known { // else VouchBeginning was faster
			g.written, g.advanced, g.durable = g.Start(), g.Start(), g.Start()
			g.vouchFor(b, start, end)
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
	}
}

// beginning is the front of a segment, where a record of the one before goes
// on, when that record is good. The zero value says nothing.
type beginning struct {
	end segment.LSN
	crc uint32 // CRC-32C of the bytes
}

// vouchFor takes what the segment's own records vouch for, [start, end), with
// what is known of its beginning; mu is held.
func (g *Segment) vouchFor(b beginning, start, end segment.LSN) {
	switch {
	case b.end == 0:
	case start == end: // no record of its own is good, or there whole
		start, end = g.Start(), b.end
	case start == b.end:
		start = g.Start()
	}
	g.beginning, g.vouchStart, g.vouchEnd = b, start, end
	if start == g.Start() {
		g.written = end
	}
}

// findBeginning checks with prev's bytes the record that goes on at the front
// of f, a partial.
func (g *Segment) findBeginning(prev io.ReaderAt, f disk.File) (beginning, error) {
	n, err := f.Size()
	if err != nil {
		return beginning{}, err
	}
	end, ok, err := segment.ContinuedRecord(prev, f, n, g.rules())
	if err != nil || !ok {
		return beginning{}, err
	}
	crc, err := checksum(f, int64(end-g.Start()))
	return beginning{end, crc}, err
}

// checkBeginning returns what is known of the front of f, a partial: by the
// segment before, when it is sealed in the spool, or what was known already,
// when the bytes are still the same. A segment before that cannot be read, or
// is not what it should be, says nothing here, and keeps nobody from f.
func (g *Segment) checkBeginning(f disk.File, known beginning) (beginning, error) {
	s := g.spool
	s.mu.Lock()
	before := s.segments[s.before(g.name, g.size)]
	s.mu.Unlock()
	if before != nil && before.Sealed() {
		b, err := g.beginningAfter(before, f)
		switch {
		case err == nil && b.end != 0:
			return b, nil
		case err != nil && !errors.Is(err, fs.ErrNotExist): // it may be dropped at any moment
			s.log.Warn("the beginning of a partial cannot be checked with the segment before it", "file", g.fileName(), "error", err)
		}
	}
	if known.end == 0 {
		return beginning{}, nil
	}
	crc, err := checksum(f, int64(known.end-g.Start()))
	if err != nil || crc != known.crc {
		return beginning{}, err
	}
	return known, nil
}

// beginningAfter is findBeginning with a segment that is sealed in the spool.
func (g *Segment) beginningAfter(before *Segment, f disk.File) (beginning, error) {
	prev, err := g.spool.fs.Open(g.spool.path(before.fileName()), false)
	if err != nil {
		return beginning{}, err
	}
	b, err := g.findBeginning(prev, f)
	return b, errors.Join(err, prev.Close())
}

// checksum returns the CRC-32C of the first n bytes.
func checksum(r io.ReaderAt, n int64) (uint32, error) {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	_, err := io.CopyN(h, io.NewSectionReader(r, 0, n), n)
	return h.Sum32(), err
}

// eachPart reads n bytes of f and gives f those parts that are not all zeros.
// empty: there was none.
func eachPart(r io.ReaderAt, n int64, f func(part []byte, at int64) error) (empty bool, err error) {
	buf := make([]byte, 256<<10)
	empty = true
	for at := int64(0); at < n; {
		part := buf[:min(int64(len(buf)), n-at)]
		if k, err := r.ReadAt(part, at); k < len(part) {
			return false, fmt.Errorf("reading %d bytes: %w", len(part), err)
		}
		for _, b := range part {
			if b == 0 {
				continue
			}
			empty = false
			if err := f(part, at); err != nil {
				return false, err
			}
			break
		}
		at += int64(len(part))
	}
	return empty, nil
}

// make makes the segment's file, or takes up the one that is there.
func (g *Segment) make() error {
	s := g.spool
	path := s.path(g.name.String() + partialSuffix)
	f, err := s.fs.Create(path, s.filePerm)
	if errors.Is(err, fs.ErrExist) {
		return g.reopen()
	}
	if err != nil {
		return err
	}
	if err := f.Allocate(int64(g.size)); err != nil {
		return errors.Join(err, f.Close(), s.fs.Remove(path))
	}
	g.f, g.state = f, open
	g.top, g.zeroed = g.Start(), g.Start()
	g.vouchStart, g.vouchEnd = g.Start(), g.Start()
	g.written, g.advanced, g.durable = g.Start(), g.Start(), g.Start()
	return nil
}

// reopen opens a partial of an earlier process, or one that was abandoned, for
// writing. A sync of it may have failed, which the kernel says once and then
// forgets, taking its pages for clean. So what can be read is written again:
// whatever became of it, the next Sync makes it durable.
func (g *Segment) reopen() error {
	s := g.spool
	f, err := s.fs.Open(s.path(g.name.String()+partialSuffix), true)
	if err != nil {
		return err
	}
	full := int64(g.size)
	n, err := f.Size()
	if err == nil && n > full {
		err = fmt.Errorf("the partial has %d bytes, a segment has %d", n, full)
	}
	if err == nil {
		err = f.Allocate(full)
	}
	if err == nil {
		_, err = eachPart(f, full, func(part []byte, at int64) error {
			_, err := f.WriteAt(part, at)
			return err
		})
	}
	if err == nil {
		err = g.vouch(f, full)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	// What lies behind the vouched bytes stays until the server sends it again.
	g.top, g.zeroed = g.End(), g.End()
	g.file.Lock()
	old := g.closeFile()
	g.f = f
	g.file.Unlock()
	g.mu.Lock()
	g.state = open
	g.mu.Unlock()
	if old != nil {
		s.log.Warn("closing a segment's file that was read", "segment", g.name.String(), "error", old)
	}
	return nil
}

// again makes a held partial the writer's: it is reopened when it is of an
// earlier process; one that this process was writing is vouched for as far as
// it was written.
func (g *Segment) again() error {
	g.mu.Lock()
	st, err := g.state, g.err
	if st == open && err == nil && g.written >= g.vouchStart {
		g.vouchStart, g.vouchEnd = g.Start(), g.written
	}
	g.mu.Unlock()
	switch {
	case err != nil:
		return err
	case st == sealed:
		return fmt.Errorf("it is sealed: %w", fs.ErrExist)
	case st == finished:
		return fmt.Errorf("it is finished: %w", fs.ErrExist)
	case st == held:
		return g.reopen()
	}
	return nil
}
