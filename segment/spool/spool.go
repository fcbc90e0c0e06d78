package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
)

// What callers decide on, for errors.Is; beside them disk.ErrLocked,
// fs.ErrNotExist, segment.ErrForeignCluster and syscall.ENOSPC.
var (
	// ErrConflict: a history file of that timeline with other content is held.
	ErrConflict = errors.New("conflicting content")
	// ErrClosed: the spool was closed.
	ErrClosed = errors.New("spool is closed")
	// ErrAbandoned: the segment was given up after a failure.
	ErrAbandoned = errors.New("segment was given up")
	// ErrDropped: the segment was removed from the spool.
	ErrDropped = errors.New("segment was dropped")
	// ErrFinished: the segment was finished in front of this place.
	ErrFinished = errors.New("timeline ended in front of it")
	// ErrLimit: the limit is less than one segment.
	ErrLimit = errors.New("spool limit holds no segment")
)

const (
	lockName      = "walferry.lock"
	partialSuffix = ".partial"
	tmpSuffix     = ".tmp"
)

// Options are the settings of a spool. The zero value is usable.
type Options struct {
	// Limit is how many bytes of segments may lie in the spool. Zero: 80 % of
	// what is free in the file system at Open and what the spool has already,
	// but one segment at least.
	Limit int64
	// LimitFor, where it is set, says what the limit is in Limit's place, for a
	// limit that depends on the segment size. It is asked when that is known;
	// its error is then Open's or Bind's. It must not call the spool.
	LimitFor func(segment.Size) (int64, error)
	// Log gets what an operator wants to know of Open. nil: nothing.
	Log *slog.Logger
	// GroupAccess lets the group read: files 0640 instead of 0600, the
	// directory 0750 instead of 0700.
	GroupAccess bool
	// Keep leaves the files of what is dropped where they are, whole ones under
	// their final name: the directory is somebody's own archive. Limit then
	// counts what is not dropped yet.
	Keep bool
}

// Spool is an open spool directory. It is safe for concurrent use; a Segment
// has one writer and any number of readers.
type Spool struct {
	fs       disk.FS
	dir      string
	log      *slog.Logger
	filePerm fs.FileMode
	keep     bool
	lock     io.Closer

	// put is held while a small file or the directory is made durable. It
	// comes before mu.
	put    sync.Mutex
	dirErr error // a sync of the directory failed: final for the spool

	mu         sync.Mutex
	closed     bool
	identity   *Identity
	limit      int64
	limitGiven bool
	limitFor   func(segment.Size) (int64, error) // or nil
	histories  map[segment.Timeline][]byte
	segments   map[segment.Name]*Segment // abandoned ones too: their files are there
	queue      []*Segment                // not taken yet
	queued     chan struct{}             // closed when something is queued, or at Close
	room       chan struct{}             // closed when a segment is dropped, or at Close
}

// Open opens the spool in dir, which is made with its parents if it is
// missing, and takes its lock until Close: disk.ErrLocked when another holds
// it. It reads what is held: identity, histories, sealed segments, whose size
// must be right, and partials, whose records are checked (Segment.Vouched).
// Empty partials and *.tmp left by a crash are removed. It writes nothing
// else, so that a full disk does not keep the segments in it from being
// uploaded.
func Open(fsys disk.FS, dir string, o Options) (*Spool, error) {
	s := &Spool{
		fs: fsys, dir: dir, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), filePerm: 0o600, keep: o.Keep, limitFor: o.LimitFor,
		histories: make(map[segment.Timeline][]byte), segments: make(map[segment.Name]*Segment),
		queued: make(chan struct{}), room: make(chan struct{}),
	}
	dirPerm := fs.FileMode(0o700)
	if o.GroupAccess {
		s.filePerm, dirPerm = 0o640, 0o750
	}
	if o.Limit < 0 {
		return nil, fmt.Errorf("spool limit %d is negative", o.Limit)
	}
	if err := disk.MakeDir(fsys, dir, dirPerm); err != nil {
		return nil, fmt.Errorf("making the spool directory: %w", err)
	}
	lock, err := fsys.Lock(s.path(lockName))
	if err != nil {
		return nil, fmt.Errorf("locking the spool %s: %w", dir, err)
	}
	s.lock = lock
	if err := s.load(o.Limit); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the spool %s: %w", dir, err), lock.Close())
	}
	return s, nil
}

// load reads the directory into a spool that nobody else knows yet.
func (s *Spool) load(limit int64) error {
	entries, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var segments []*Segment
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		name := e.Name()
		text, partial := strings.CutSuffix(name, partialSuffix)
		if n, err := segment.ParseName(text); err == nil {
			g := &Segment{spool: s, name: n, state: sealed}
			if partial {
				g.state = held
			}
			segments = append(segments, g)
		} else if t, err := segment.ParseHistoryName(name); err == nil {
			if s.histories[t], err = s.readFile(name); err != nil {
				return err
			}
		} else if s.ownTemporary(name) {
			if err := s.fs.Remove(s.path(name)); err != nil {
				return err
			}
		}
	}
	if err := s.loadIdentity(); err != nil {
		return err
	}
	slices.SortFunc(segments, func(a, b *Segment) int {
		return cmp.Or(a.name.Compare(b.name), cmp.Compare(b.state, a.state)) // a sealed one in front of its partial
	})
	for _, g := range segments {
		if err := s.loadSegment(g); err != nil {
			return err
		}
	}
	// Every name that was found is believed from here on, and a name may have
	// been in the kernel's memory only when the last process was killed.
	if err := s.fs.SyncDir(s.dir); err != nil {
		return err
	}
	return s.setLimit(limit)
}

// ownTemporary reports whether a file name is one that writeFile uses before
// the rename.
func (s *Spool) ownTemporary(name string) bool {
	final, ok := strings.CutSuffix(name, tmpSuffix)
	_, err := segment.ParseHistoryName(final)
	return ok && (err == nil || final == identityName)
}

// loadSegment takes up a segment file that was found.
func (s *Spool) loadSegment(g *Segment) error {
	if s.identity == nil {
		return fmt.Errorf("%s is there, but no %s says which cluster it is of", g.fileName(), identityName)
	}
	g.size = s.identity.SegmentSize
	if err := g.name.Check(g.size); err != nil {
		return err
	}
	if s.segments[g.name] != nil { // sealed: found first
		s.log.Warn("partial of a segment that is sealed is left alone", "file", g.fileName())
		return nil
	}
	fi, err := s.fs.Stat(s.path(g.fileName()))
	if err != nil {
		return err
	}
	full := int64(g.size)
	if g.state == sealed {
		if fi.Size() != full {
			return fmt.Errorf("%s has %d bytes instead of %d: it is damaged, or another cluster's", g.fileName(), fi.Size(), full)
		}
		g.vouchStart, g.vouchEnd = g.Start(), g.End()
		g.written, g.advanced, g.durable = g.End(), g.End(), g.End()
		s.add(g)
		return nil
	}
	if fi.Size() > full {
		return fmt.Errorf("%s has %d bytes, a segment has %d: it is damaged, or another cluster's", g.fileName(), fi.Size(), full)
	}
	empty, err := g.inspect(fi.Size())
	if err != nil {
		return err
	}
	if empty {
		// Nothing of it was promised: the first byte of a segment is not zero,
		// and Begin had allocated it before anything could be synced.
		s.log.Info("removing an empty partial", "file", g.fileName())
		return s.fs.Remove(s.path(g.fileName()))
	}
	g.named = true
	s.add(g)
	return nil
}

// setLimit fixes the limit; the identity and the segments are known. One that
// nobody gave holds a segment at least: whether the disk does, Begin says, and
// a full disk must not keep a spool from being opened and emptied.
func (s *Spool) setLimit(limit int64) error {
	s.limit, s.limitGiven = limit, limit != 0 || s.limitFor != nil
	if !s.limitGiven {
		free, _, err := s.fs.Space(s.dir)
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			free = math.MaxInt64 / 4 // nobody knows: the disk itself is the limit
		case err != nil:
			return fmt.Errorf("finding out the free space: %w", err)
		}
		s.limit = (free + s.used()) / 10 * 8
	}
	if s.identity != nil {
		return s.fitLimit(s.identity.SegmentSize)
	}
	return nil
}

// fitLimit checks or raises the limit now that the segment size is known; mu
// is held, or s is not yet known to others.
func (s *Spool) fitLimit(size segment.Size) error {
	if s.limitFor != nil {
		limit, err := s.limitFor(size)
		if err != nil {
			return err
		}
		s.limit = limit
	}
	switch {
	case s.limit >= int64(size):
	case s.limitGiven:
		return fmt.Errorf("%w: %d bytes, a segment has %s", ErrLimit, s.limit, size)
	default:
		s.limit = int64(size)
	}
	return nil
}

// Close gives up the files and the lock. Nothing is synced: what was not
// promised is not promised by Close. Waiting calls return ErrClosed. Later
// calls do nothing.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	all := s.all()
	close(s.queued)
	close(s.room)
	s.mu.Unlock()
	var errs []error
	for _, g := range all {
		errs = append(errs, g.shut(ErrClosed))
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// all returns every segment in the map by name order; mu is held.
func (s *Spool) all() []*Segment {
	out := make([]*Segment, 0, len(s.segments))
	for _, g := range s.segments {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *Segment) int { return a.name.Compare(b.name) })
	return out
}

// Segments returns the segments held at this moment, sealed ones and
// partials, by timeline and LSN. One that was abandoned is not among them
// until it is begun again.
func (s *Spool) Segments() []*Segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(s.all(), (*Segment).abandoned)
}

// Begin returns the partial of n for writing. A new one is allocated to the
// full size: a full disk shows here, as syscall.ENOSPC, and not in the middle
// of a segment. One that is held is taken up again: Vouched tells which bytes
// it has. A sealed or finished segment cannot be begun.
//
// What a partial from before this process, or an abandoned one, holds is
// written once more, in place, so that the next Sync makes it durable: an
// earlier sync may have failed, and the kernel would not say so again.
//
// Nothing is durable on return. A spool must be bound first.
func (s *Spool) Begin(n segment.Name) (*Segment, error) {
	s.mu.Lock()
	id, closed, g := s.identity, s.closed, s.segments[n]
	s.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case id == nil:
		return nil, fmt.Errorf("beginning segment %s: the spool is bound to no cluster", n)
	case n.Check(id.SegmentSize) != nil:
		return nil, n.Check(id.SegmentSize)
	}
	if err := s.Failed(); err != nil {
		return nil, fmt.Errorf("beginning segment %s: %w", n, err)
	}
	if g == nil || g.abandoned() {
		fresh := &Segment{spool: s, name: n, size: id.SegmentSize}
		if err := fresh.make(); err != nil {
			return nil, fmt.Errorf("beginning segment %s: %w", n, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed {
			return nil, errors.Join(ErrClosed, fresh.shut(ErrClosed))
		}
		s.add(fresh)
		return fresh, nil
	}
	if err := g.again(); err != nil {
		return nil, fmt.Errorf("beginning segment %s again: %w", n, err)
	}
	return g, nil
}

// add takes up a segment and offers it to Take; mu is held, or s is not yet
// known to others.
func (s *Spool) add(g *Segment) {
	s.segments[g.name] = g
	s.queue = append(s.queue, g)
	close(s.queued)
	s.queued = make(chan struct{})
}

// Take returns the oldest segment that was not taken yet, and waits until
// there is one. Those held at Open come first, by name; then each as it is
// begun, so that it can be read while it fills. A segment comes once; one that
// is begun again after Abandon comes again, as another Segment. Errors: ctx's,
// ErrClosed.
func (s *Spool) Take(ctx context.Context) (*Segment, error) {
	for {
		s.mu.Lock()
		for len(s.queue) > 0 {
			g := s.queue[0]
			s.queue[0], s.queue = nil, s.queue[1:]
			if !g.abandoned() {
				s.mu.Unlock()
				return g, nil
			}
		}
		queued, closed := s.queued, s.closed
		s.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		select {
		case <-queued:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Drop removes a segment's file, sealed or not, but not one that is still
// filling: only for one whose bytes are known to be in the archive, since
// nothing here holds them afterwards. Readers get ErrDropped, and so do a Sync or Seal that come
// later: to be in the archive is more than they promise. It waits for one that
// is under way. The removal itself is not made durable; should it come undone,
// the segment is offered again, or its remains are found again as a partial.
// On an error the segment is still held. With Options.Keep the file stays, and
// one that is whole is sealed before.
func (s *Spool) Drop(g *Segment) error {
	g.syncing.Lock()
	defer g.syncing.Unlock()
	if s.keep && g.whole() {
		if err := g.seal(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.segments[g.name] != g {
		return fmt.Errorf("dropping segment %s: %w", g.name, ErrDropped)
	}
	if g.filling() {
		return fmt.Errorf("dropping segment %s: it is still filling", g.name)
	}
	if !s.keep {
		if err := s.fs.Remove(s.path(g.fileName())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("dropping segment %s: %w", g.name, err)
		}
	}
	delete(s.segments, g.name)
	s.queue = slices.DeleteFunc(s.queue, func(q *Segment) bool { return q == g })
	close(s.room)
	s.room = make(chan struct{})
	if err := g.shut(ErrDropped); err != nil {
		// The file is gone, and the archive has its bytes: nothing is lost by this.
		s.log.Warn("closing a segment that was dropped", "segment", g.name.String(), "error", err)
	}
	return nil
}

// Keeps reports whether the files of what is dropped stay (Options.Keep).
func (s *Spool) Keeps() bool { return s.keep }

// Room reports whether one more segment fits below the limit.
func (s *Spool) Room() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity == nil || s.used()+int64(s.identity.SegmentSize) <= s.limit
}

// RoomChanged returns a channel that is closed when the next segment is
// dropped, or the spool closed. Ask for it before Room, then wait on it.
func (s *Spool) RoomChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room
}

// Used returns the bytes that segments take, each with its full size, and the
// limit for them.
func (s *Spool) Used() (used, limit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used(), s.limit
}

func (s *Spool) used() int64 {
	if s.identity == nil {
		return 0
	}
	return int64(len(s.segments)) * int64(s.identity.SegmentSize)
}

func (s *Spool) path(name string) string { return filepath.Join(s.dir, name) }
