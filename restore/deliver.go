package restore

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/segment"
)

// errDisputed: history files say different things about where a timeline
// ended, and the answer would depend on which of them the recovery follows.
var errDisputed = errors.New("history files disagree")

// errHistoryFile: the content of a history file is none.
var errHistoryFile = errors.New("invalid timeline history file")

// maxHistory bounds the size of a history file in bytes. One of a thousand
// promotions has less than a tenth of it.
const maxHistory = 1 << 20

// delivery brings one object to its place.
type delivery struct {
	*Fetcher
	wanted  wanted
	cluster cluster
	target  string

	// Of a segment that was never completed:
	unsealed bool
	tails    *tails // nil: it has no tail objects that matter
	reached  uint64 // how many bytes of it are known to be there
	ended    bool   // a history says that the timeline ended in it
}

// serve delivers the object of that name. found is false when the store
// answered that it has none, in any form; only then may another name be tried.
func (d *delivery) serve(ctx context.Context, name string) (found bool, err error) {
	o, err := d.archive.Open(ctx, name)
	if errors.Is(err, archive.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("opening %s in %s: %w", name, d.archive, err)
	}
	err = d.object(ctx, o)
	if damaged(err) {
		err = d.otherForm(ctx, name, o.Key, err)
	}
	return true, err
}

// otherForm delivers an object that is damaged under one key from another,
// where its content may be sound. Without one, the damage is the error.
func (d *delivery) otherForm(ctx context.Context, name, key string, damage error) error {
	keys, err := d.archive.Forms(ctx, name)
	if err != nil {
		return fmt.Errorf("%w; %w", damage, err)
	}
	for _, other := range keys {
		if other == key || !decodable(other, name) {
			continue
		}
		o, err := d.archive.OpenKey(ctx, other)
		if err == nil {
			err = d.object(ctx, o)
		}
		if final(err) {
			d.log.Warn(fmt.Sprintf("%v; %s was taken instead", damage, other))
			return err
		}
		damage = fmt.Errorf("%w; %w", damage, err)
	}
	return damage
}

// damaged tells whether an object was read, and is not what it should be.
func damaged(err error) bool {
	return errors.Is(err, codec.ErrDamaged) || errors.Is(err, segment.ErrPage) ||
		errors.Is(err, segment.ErrSegmentSize) || errors.Is(err, errHistoryFile)
}

// object delivers an open object, and closes it.
func (d *delivery) object(ctx context.Context, o *archive.Object) (err error) {
	defer func() { _ = o.Close() }() // whatever counts was read and checked by then
	switch {
	case d.wanted.isHistory():
		err = d.history(ctx, o)
	case d.tails != nil:
		err = d.segment(ctx, &partial{d: d, object: o})
	default:
		err = d.segment(ctx, o)
	}
	if err != nil && !errors.Is(err, ErrAbsent) {
		return fmt.Errorf("%s in %s: %w", o.Key, d.archive, err)
	}
	return err
}

// history delivers a timeline history file.
func (d *delivery) history(ctx context.Context, r io.Reader) error {
	content, err := io.ReadAll(io.LimitReader(r, maxHistory+1))
	if err != nil {
		return err
	}
	if len(content) > maxHistory {
		return fmt.Errorf("%w: more than %d bytes", errHistoryFile, maxHistory)
	}
	if _, err := segment.ParseHistory(d.wanted.history, content); err != nil {
		return fmt.Errorf("%w: %w", errHistoryFile, err)
	}
	// Its text does not say whose it is.
	if d.cluster.systemIdentifier != 0 {
		id, err := d.archive.Identity(ctx)
		if errors.Is(err, archive.ErrNotFound) {
			id, _, err = d.archive.Recognise(ctx)
		}
		if err != nil {
			return fmt.Errorf("asking whose archive it is: %w", err)
		}
		if err := d.cluster.checkIdentity(id, d.archive); err != nil {
			return err
		}
	}
	return d.install(d.target, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// segment delivers a segment, checked page by page on its way.
func (d *delivery) segment(ctx context.Context, r io.Reader) error {
	name := d.wanted.segment
	pages := &pages{r: r, buf: make([]byte, 32*segment.PageSize)}
	block, err := pages.next()
	if err != nil {
		return err
	}
	h, err := segment.ParseLongHeader(block)
	if err != nil {
		return err
	}
	size := h.SegmentSize
	if err := name.Check(size); err != nil {
		return fmt.Errorf("%w: %w", segment.ErrSegmentSize, err)
	}
	expected, err := d.expected(ctx)
	if err != nil {
		return err
	}
	limit, err := d.limit(size)
	if err != nil {
		return err
	}
	if err := d.isEnd(ctx, size, limit); err != nil {
		return err
	}
	rules := segment.PageRules{Name: name, Size: size, SystemIdentifier: expected, History: d.cluster.history(name.Timeline)}
	s := &sieve{checker: segment.NewPageChecker(rules), rules: rules, limit: limit, unfinished: d.unsealed}
	if d.tails != nil {
		s.firm = uint64(d.tails.end)
	}
	err = d.install(d.target, func(w io.Writer) error {
		for len(block) > 0 {
			if err := s.sift(block); err != nil {
				return err
			}
			if _, err := w.Write(block); err != nil {
				return err
			}
			var err error
			if block, err = pages.next(); err != nil {
				return err
			}
		}
		return s.close()
	})
	if err == nil && s.limit < uint64(size) {
		d.log.Debug(fmt.Sprintf("%s: zeros from %s on", name, name.Start(size)+segment.LSN(s.limit)))
	}
	return err
}

// expected returns the system identifier that the segment must have: that of
// the data directory, else that of the archive; zero when neither is known.
func (d *delivery) expected(ctx context.Context) (uint64, error) {
	if d.cluster.systemIdentifier != 0 {
		return d.cluster.systemIdentifier, nil
	}
	id, err := d.archive.Identity(ctx)
	if errors.Is(err, archive.ErrNotFound) {
		return 0, nil // WAL-G's own, and no data directory to compare with
	}
	if err != nil {
		return 0, fmt.Errorf("asking whose archive it is: %w", err)
	}
	return id.SystemIdentifier, nil
}

// limit returns how many bytes of the segment belong to the recovery's
// history: all of them, unless the timeline ended in it. A segment that
// starts where its timeline had ended is absent, whatever is stored: on 15
// and 18 its records would be replayed, rows that the next timeline never had.
func (d *delivery) limit(size segment.Size) (uint64, error) {
	n := d.wanted.segment
	first, last, ended := d.cluster.end(n.Timeline)
	switch {
	case !ended || n.End(size) <= first:
		return uint64(size), nil
	case n.Start(size) >= last:
		return 0, fmt.Errorf("%w of this recovery: timeline %d ended at %s", ErrAbsent, n.Timeline, last)
	case first != last:
		return 0, fmt.Errorf("%w: by those in %s timeline %d ended at %s, and at %s; remove the one that this recovery does not follow", errDisputed, d.o.Place.path(walDir), n.Timeline, first, last)
	}
	return uint64(last - n.Start(size)), nil
}

// pages reads content in blocks of whole pages.
type pages struct {
	r   io.Reader
	buf []byte
	end bool
}

// next returns the next pages, valid until the call after it; a block that
// does not fill the buffer is the last, an empty one the end.
func (p *pages) next() ([]byte, error) {
	n := 0
	for n < len(p.buf) && !p.end {
		m, err := p.r.Read(p.buf[n:])
		n += m
		switch {
		case err == io.EOF: //nolint:errorlint // a wrapped EOF is no clean end
			p.end = true
		case err != nil:
			return nil, err
		}
	}
	return p.buf[:n], nil
}

// sieve lets those bytes of a segment pass that are to be replayed, checked,
// and turns what lies behind them into zeros. These are written like any
// others: a file with a hole in it would be recycled as WAL later, and could
// end in a PANIC on a full disk.
type sieve struct {
	checker *segment.PageChecker
	rules   segment.PageRules
	limit   uint64 // how many bytes pass
	// unfinished: the segment was never completed. PostgreSQL's archiver
	// stores such a file as it lies in pg_wal, with old content behind the
	// last record. The first page that does not belong there ends what
	// passes; replay would end there as well. The first firm bytes are from
	// tail objects, which hold what the server sent and nothing else.
	unfinished bool
	firm       uint64
	ended      bool   // by such a page: the checker is not asked any more
	seen       uint64 // bytes
}

// sift checks and changes the next bytes of the segment: whole pages, but for
// the last call.
func (s *sieve) sift(p []byte) error {
	for len(p) > 0 {
		page := p[:min(len(p), segment.PageSize)]
		p = p[len(page):]
		at := s.seen
		s.seen += uint64(len(page))
		if s.seen > s.limit {
			clear(page[max(s.limit, at)-at:])
		}
		if s.ended {
			continue
		}
		_, err := s.checker.Write(page)
		if s.unfinished && at > 0 && at+shortHeader > s.firm && errors.Is(err, segment.ErrPage) {
			clear(page)
			s.limit, s.ended, err = min(s.limit, at), true, nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// close checks that the content had the size of a segment.
func (s *sieve) close() error {
	if !s.ended {
		return s.checker.Close()
	}
	if s.seen != uint64(s.rules.Size) {
		return fmt.Errorf("segment %s: %w: %d bytes, expected %d", s.rules.Name, segment.ErrSegmentSize, s.seen, uint64(s.rules.Size))
	}
	return nil
}
