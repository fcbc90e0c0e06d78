package receiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// rememberTail keeps the last page of a segment that was received whole, for
// the comparison at the next start on its boundary. Where that fails, the
// start reads it again.
func (r *Receiver) rememberTail(g *spool.Segment) {
	if r.tail.bytes == nil {
		r.tail.bytes = make([]byte, pageSize)
	}
	r.tail.end = 0
	end := g.Name().End(r.size)
	for at := end; at > g.Start(); {
		at -= pageSize
		if g.ReadAt(r.tail.bytes, at) != nil {
			return
		}
		if !zero(r.tail.bytes) {
			r.tail.at, r.tail.end = at, end
			return
		}
	}
}

// zero reports whether b holds nothing else.
func zero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }

// lastPage returns the last page that is not empty before the boundary at which
// the stream goes on: from memory, the spool, or the archive. from is the page
// before the boundary. A segment switch leaves empty pages at the end of any
// history, so that these prove nothing.
func (r *Receiver) lastPage(ctx context.Context, from segment.Position) (tailPage, error) {
	if r.tail.end == r.pos.LSN {
		return r.tail, nil
	}
	n := r.size.Name(from.Timeline, from.LSN)
	held, err := r.heldSegment(ctx, n)
	if err != nil {
		return tailPage{}, fmt.Errorf("reading the end of the WAL that we hold, to compare it: %w", err)
	}
	last := tailPage{at: n.Start(r.size), end: r.pos.LSN}
	for at, page, next := last.at, make([]byte, pageSize), make([]byte, pageSize); at < last.end && err == nil; at += pageSize {
		if _, err = held.ReadAt(page, int64(r.size.Offset(at))); err == nil && (last.bytes == nil || !zero(page)) {
			last.at, last.bytes = at, page
			page, next = next, page
		}
	}
	if err = errors.Join(err, held.Close()); err != nil {
		return tailPage{}, fmt.Errorf("reading the end of the WAL that we hold, to compare it: %w", err)
	}
	return last, nil
}

// heldSegment opens a whole segment from the spool or the archive. It is read
// from front to back.
func (r *Receiver) heldSegment(ctx context.Context, n segment.Name) (readAtCloser, error) {
	if g, ok := r.find(n); ok && g.Sealed() {
		page := make([]byte, 1)
		if err := g.ReadAt(page, g.Start()); err == nil {
			return segmentReader{g, r.size}, nil
		}
		// It was shipped and dropped just now.
	}
	body, err := r.archive.Segment(ctx, n)
	if err != nil {
		return nil, &archiveError{err}
	}
	r.asking.Over()
	return struct {
		io.ReaderAt
		io.Closer
	}{segment.Forward(body), body}, nil
}

// takenAway reports whether err says that a segment is no longer in a directory
// that others look after, too: there is nothing to compare with then.
func (r *Receiver) takenAway(err error) bool {
	if !r.spool.Keeps() || !errors.Is(err, ErrNotArchived) {
		return false
	}
	r.log.Info("the last segment was taken out of the directory: going on without comparing it", "position", r.pos.String())
	return true
}

type readAtCloser interface {
	io.ReaderAt
	io.Closer
}

// lastRecord is the last record that begins in the WAL we hold. Where the
// server has no page before the boundary any more, the first record behind it
// must name this one as its predecessor (xl_prev): nothing else tells the
// history that we hold from another of the same length.
type lastRecord struct {
	at     []segment.LSN // it, and before it the one that counts if the server gave it up
	proved bool
}

// lastHeldRecord finds it in the segment before the boundary.
func (r *Receiver) lastHeldRecord(ctx context.Context) (*lastRecord, error) {
	n := r.size.Name(r.history.Owner(r.pos.LSN-1), r.pos.LSN-1)
	held, err := r.heldSegment(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("reading the end of the WAL that we hold, to compare it: %w", err)
	}
	at, err := segment.LastRecords(held, segment.PageRules{Name: n, Size: r.size, SystemIdentifier: r.system})
	if err = errors.Join(err, held.Close()); err != nil {
		return nil, fmt.Errorf("reading segment %s, to compare it: %w", n, err)
	}
	if len(at) == 0 {
		if err := r.checkPages(ctx, n); err != nil {
			return nil, err
		}
		// One record fills it from an earlier segment on: nothing begins here.
		r.log.Warn("no record begins in the last segment that we hold; going on without the comparison", "segment", n.String())
		return nil, nil
	}
	return &lastRecord{at: at}, nil
}

// checkPages makes sure that a segment that we hold is WAL at all.
func (r *Receiver) checkPages(ctx context.Context, n segment.Name) error {
	held, err := r.heldSegment(ctx, n)
	if err != nil {
		return err
	}
	check := segment.NewPageChecker(segment.PageRules{Name: n, Size: r.size, SystemIdentifier: r.system})
	_, err = io.Copy(check, io.NewSectionReader(held, 0, int64(r.size)))
	if err = errors.Join(err, check.Close(), held.Close()); err != nil {
		return fmt.Errorf("%w: segment %s, behind which the stream would go on, is not this cluster's WAL: %w", ErrConflict, n, err)
	}
	return nil
}

// behindUnproved reports whether a comparison by xl_prev is still open: until
// it is made, nothing is reported.
func (st *streaming) behindUnproved() bool { return st.behind != nil && !st.behind.proved }

// proveBehind makes the comparison as soon as the first record is there.
func (st *streaming) proveBehind() error {
	r, g := st.r, st.r.seg
	rules := segment.PageRules{Name: g.Name(), Size: r.size, SystemIdentifier: r.system}
	prev, ok, err := segment.FirstRecordPrev(segmentReader{g, r.size}, int64(g.Advanced()-g.Start()), rules)
	if err != nil || !ok {
		return err
	}
	if !slices.Contains(st.behind.at, prev) {
		return fmt.Errorf("%w: the first record behind %s follows one at %s, and the last that we hold is at %s",
			ErrConflict, g.Start(), prev, st.behind.at[len(st.behind.at)-1])
	}
	st.behind.proved = true
	return nil
}

// segmentReader reads a segment by the place in it.
type segmentReader struct {
	g    *spool.Segment
	size segment.Size
}

// Close does nothing: the spool owns the file.
func (s segmentReader) Close() error { return nil }

// ReadAt implements io.ReaderAt.
func (s segmentReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(s.size) {
		return 0, io.EOF
	}
	n := min(int64(len(p)), int64(s.size)-off)
	if err := s.g.ReadAt(p[:n], s.g.Start()+segment.LSN(off)); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
