package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/segment"
)

// leastTail is how much of a segment is worth delivering, in bytes: less than
// the header of the first page cannot be checked, and holds no WAL.
const leastTail = 40

// shortHeader is the size of the other pages' headers.
const shortHeader = 24

// unfinished delivers what there is of a segment that was never completed.
// found is false when the store answered that there is nothing of it.
//
// Tail objects come before a partial, since they are checked against each
// other and may reach further: a partial ends where some child of the timeline
// began, and this recovery may follow another one, or none. But the tail
// objects can also end first: when the server died with WAL that had not been
// shipped, and the receiver took the rest from the promoted standby, only the
// partial holds it. So where the tail objects end before the recovery's
// history does, the partial is asked for what lies behind them, and taken when
// it begins with the same bytes. A standby that knows of no such end is spared
// the question: it will ask again, and learn the history when there is one.
func (d *delivery) unfinished(ctx context.Context) (found bool, err error) {
	d.unsealed = true
	size, limit, err := d.extent(ctx)
	if err != nil {
		return true, err
	}
	var broken error // why the tail objects do not reach as far as they should
	if limit > 0 {
		t := &tails{scratch: scratch{open: d.openScratch}, size: size}
		defer t.close()
		t.end, _, err = d.archive.AssembleTails(ctx, d.wanted.segment, size, t)
		switch {
		case err == nil:
		case !endsEarly(err):
			return true, fmt.Errorf("%s: %w", d.archive, err)
		case uint64(t.end) < limit: // what is behind it does not matter
			broken = fmt.Errorf("%w: %s: %w", ErrHole, d.archive, err)
		}
		d.tails, d.reached = t, uint64(t.end)
	}
	ended := limit < uint64(size)
	if broken != nil && !ended && !d.o.StopAtGap {
		return true, broken
	}
	if d.tails == nil || d.reached < leastTail || d.reached < limit && (ended || d.o.Place.Mode == Recovery) {
		d.ended = ended
		found, err := d.serve(ctx, partialOf(d.wanted))
		if found {
			return true, err
		}
	}
	switch {
	case broken != nil && (!d.o.StopAtGap || d.reached < leastTail):
		return true, broken
	case broken != nil:
		d.log.Warn(fmt.Sprintf("%s: %v; taken for the end of the archive (--stop-at-gap)", d.wanted, broken))
	case d.tails == nil || d.reached < leastTail:
		return false, nil
	}
	if err := d.segment(ctx, d.tails.padded(0)); err != nil {
		return true, fmt.Errorf("tail objects of %s in %s: %w", d.wanted, d.archive, err)
	}
	return true, nil
}

// endsEarly tells errors of AssembleTails that leave what is in front good.
func endsEarly(err error) bool { return errors.Is(err, archive.ErrTailHole) || damaged(err) }

// extent returns the segment size, and how many bytes of the wanted segment
// belong to the recovery's history. limit is zero where no tail object can
// matter: there are none, or the timeline had ended before. What proves that
// the segment is absent then is asked later.
func (d *delivery) extent(ctx context.Context) (size segment.Size, limit uint64, err error) {
	n := d.wanted.segment
	id, err := d.archive.Identity(ctx)
	if errors.Is(err, archive.ErrNotFound) {
		// An archive of WAL-G's has no tail objects. Where it has, the
		// identity was lost.
		var all []archive.StoredTail
		if all, err = d.archive.Tails(ctx, n); err == nil && len(all) == 0 {
			return 0, 0, nil
		}
		if err == nil {
			id, _, err = d.archive.Recognise(ctx)
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("asking for the segment size: %w", err)
	}
	if id.SegmentSize == 0 {
		return 0, 0, fmt.Errorf("%s has tail objects of %s and does not tell the size of its segments", d.archive, n)
	}
	if n.Check(id.SegmentSize) != nil {
		return id.SegmentSize, 0, nil
	}
	limit, err = d.limit(id.SegmentSize)
	switch {
	case errors.Is(err, ErrAbsent):
		return id.SegmentSize, 0, nil
	case errors.Is(err, errDisputed):
		if all, listErr := d.archive.Tails(ctx, n); listErr == nil && len(all) == 0 {
			return id.SegmentSize, 0, nil
		}
	}
	return id.SegmentSize, limit, err
}

// isEnd returns an error, unless a segment may be delivered of which so little
// is there: when WAL follows elsewhere, an archive recovery would end too
// early, for good. A standby comes back for the rest.
func (d *delivery) isEnd(ctx context.Context, size segment.Size, limit uint64) error {
	if !d.unsealed || d.reached >= limit || d.o.Place.Mode == Standby {
		return nil
	}
	p := &proof{archive: d.archive, wanted: d.wanted, cluster: d.cluster, unsealed: true}
	next, goesOn, err := p.behind(ctx, size)
	if err != nil {
		return err
	}
	if !goesOn {
		return nil
	}
	err = fmt.Errorf("%w: %s was never completed, and it goes on with %s", ErrHole, d.wanted, next)
	if d.o.StopAtGap {
		d.log.Warn(fmt.Sprintf("%v; taken for the end of the archive (--stop-at-gap)", err))
		return nil
	}
	return err
}

// tails are the first bytes of a segment, from its tail objects.
type tails struct {
	scratch
	end  uint32
	size segment.Size
}

// padded reads the segment from the byte at from on: what the tail objects
// gave, then zeros to the segment's end. A page of which not even the header is
// whole is left out.
func (t *tails) padded(from int64) io.Reader {
	end := int64(t.end)
	if end%segment.PageSize < shortHeader {
		end -= end % segment.PageSize
	}
	end = max(end, from)
	return io.MultiReader(io.NewSectionReader(t, from, end-from), io.LimitReader(zeros{}, int64(t.size)-end))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// partial reads a stored partial that begins with what the tail objects gave.
// When it does not, it is another child's that left the timeline earlier, or
// PostgreSQL's own archiver stored what its file held behind that place: then
// the tail objects are read instead. But where the history says that the
// timeline ended behind the tail objects (ended), these two must agree, or the
// partial must end before they differ.
type partial struct {
	d      *delivery
	object *archive.Object
	at     int64
	held   []byte
	rest   io.Reader // once they differ
}

func (p *partial) Read(b []byte) (int, error) {
	if p.rest != nil {
		return p.rest.Read(b)
	}
	end := int64(p.d.tails.end)
	if p.at >= end {
		return p.object.Read(b)
	}
	n, err := p.object.Read(b[:min(int64(len(b)), end-p.at)])
	if len(p.held) < n {
		p.held = make([]byte, len(b))
	}
	held := p.held[:n]
	if m, err := p.d.tails.ReadAt(held, p.at); m < n {
		return 0, err
	}
	if !bytes.Equal(held, b[:n]) {
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if p.d.ended {
			if err := p.endsBefore(held, b[:n]); err != nil {
				return 0, err
			}
		}
		p.d.log.Debug(fmt.Sprintf("%s differs from the tail objects, which are taken", p.object.Key))
		p.rest = p.d.tails.padded(p.at)
		return p.rest.Read(b)
	}
	p.at += int64(n)
	return n, err
}

// endsBefore returns nil when the partial holds nothing but zeros from where it
// differs on.
func (p *partial) endsBefore(tails, b []byte) error {
	i := 0
	for tails[i] == b[i] {
		i++
	}
	buf := make([]byte, 32*segment.PageSize)
	for rest, err := b[i:], error(nil); ; {
		if len(bytes.Trim(rest, "\x00")) > 0 {
			n := p.d.wanted.segment
			at := n.Start(p.d.tails.size) + segment.LSN(p.at) + segment.LSN(i)
			return &archive.ConflictError{Key: p.object.Key, LSN: at, HasLSN: true}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var n int
		n, err = p.object.Read(buf)
		rest = buf[:n]
	}
}

// scratch is a file beside the target that has no name once it is open: a
// crash gives its space back. It is made when it is first written to.
type scratch struct {
	open func() (file, error)
	f    file
}

func (s *scratch) WriteAt(p []byte, at int64) (int, error) {
	if s.f == nil {
		f, err := s.open()
		if err != nil {
			return 0, err
		}
		s.f = f
	}
	return s.f.WriteAt(p, at)
}

func (s *scratch) ReadAt(p []byte, at int64) (int, error) {
	if s.f == nil {
		return 0, io.EOF
	}
	return s.f.ReadAt(p, at)
}

func (s *scratch) close() {
	if s.f != nil {
		_ = s.f.Close() // whatever counted was read from it
	}
}

func (d *delivery) openScratch() (file, error) {
	t, err := d.files.createTemp(filepath.Dir(d.target), temporaryPrefix+"tails.*")
	if err != nil {
		return nil, err
	}
	d.setTemporary(t.Name())
	defer d.setTemporary("")
	if err := d.files.remove(t.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("taking the name of a temporary file away: %w", err), t.Close())
	}
	return t, nil
}
