package segment

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// Facts of XLogRecord (PostgreSQL: src/include/access/xlogrecord.h, rmgrlist.h
// and src/include/catalog/pg_control.h).
const (
	recordHeader = 24 // SizeOfXLogRecord
	recordAlign  = 8  // MAXIMUM_ALIGNOF: records begin at multiples
	beforeCRC    = 20 // offsetof(XLogRecord, xl_crc)

	rmgrXLOG   = 0
	infoMask   = 0xF0 // the bits of xl_info that belong to the resource manager
	infoSwitch = 0x40 // XLOG_SWITCH
)

// VerifiedRecords returns the range of a segment that its records vouch for.
// r holds the segment's bytes from its first, of which n, and never more than
// the segment size, may be there; what a crash left behind its last good byte
// is expected and no error.
//
// The walk follows the records from the segment's start: each must lie on
// pages that are right by rules, name its predecessor, and have the checksum
// that it says. start is the segment's first byte, or, when a record of an
// earlier segment goes on there, the place behind it: that record cannot be
// checked from this segment alone. end is the place of the next record behind
// the last good one; behind a segment switch with nothing but zeros after it,
// the segment's end (only when n is the segment size). A record that the
// server gave up after a crash is passed over where the server says so
// (XLP_FIRST_IS_OVERWRITE_CONTRECORD). When no record is good, start and end
// are both the segment's first byte.
//
// Errors: those of r, and ErrForeignCluster and ErrSegmentSize when the first
// page says so.
func VerifiedRecords(r io.ReaderAt, n int64, rules PageRules) (start, end LSN, err error) {
	if err := errors.Join(rules.Size.Check(), rules.Name.Check(rules.Size)); err != nil {
		return 0, 0, err
	}
	w := newRecordWalk(r, n, rules)
	base := rules.Name.Start(rules.Size)
	from, to, _, err := w.walk()
	return base + LSN(from), base + LSN(to), err
}

// LastRecords returns where the records begin that the first record of the
// following segment may name as its predecessor: the last one that begins in
// this segment, of which r holds all bytes. There are two when the last one
// goes on behind the segment, since a server that crashed in its midst may
// have given it up (XLP_FIRST_IS_OVERWRITE_CONTRECORD) and names the one
// before. There is none when no record of the segment is good. rules and
// errors as in VerifiedRecords.
func LastRecords(r io.ReaderAt, rules PageRules) ([]LSN, error) {
	if err := errors.Join(rules.Size.Check(), rules.Name.Check(rules.Size)); err != nil {
		return nil, err
	}
	w := newRecordWalk(r, int64(rules.Size), rules)
	from, to, last, err := w.walk()
	if err != nil || from == to {
		return nil, err
	}
	if to < int64(rules.Size) {
		return []LSN{last, rules.Name.Start(rules.Size) + LSN(to)}, nil
	}
	return []LSN{last}, nil
}

// FirstRecordPrev returns what the first record that begins in a segment names
// as its predecessor (xl_prev). r holds the segment's first n bytes; ok is
// false while the record is not there whole, or not good.
func FirstRecordPrev(r io.ReaderAt, n int64, rules PageRules) (prev LSN, ok bool, err error) {
	if err := errors.Join(rules.Size.Check(), rules.Name.Check(rules.Size)); err != nil {
		return 0, false, err
	}
	w := newRecordWalk(r, n, rules)
	h, ok, err := w.enter(0)
	if err != nil || !ok {
		return 0, false, err
	}
	if h.Info&infoContRecord != 0 {
		step, err := w.data(h.Remaining, func([]byte) {})
		if err != nil || step == stepStop {
			return 0, false, err
		}
		w.nextRecord(step)
	}
	rec, step, err := w.record(0)
	return rec.before, err == nil && step == stepDone, err
}

// recordWalk reads the records of a segment, or of some that follow each other,
// in order. Places are counted from the start of the first, the one that
// run.Name names.
type recordWalk struct {
	r   io.ReaderAt
	n   int64 // bytes that may be there
	run pageRun

	buf   []byte // window, whole pages
	bufAt int64  // where the window begins
	bufN  int    // bytes in it

	at   int64  // next byte
	rest []byte // of the current page, from at on
}

func newRecordWalk(r io.ReaderAt, n int64, rules PageRules) *recordWalk {
	return &recordWalk{r: r, n: min(n, int64(rules.Size)), run: pageRun{PageRules: rules}, buf: make([]byte, 32*PageSize)}
}

// How a step of the walk ended.
type walkStep int

const (
	stepDone        walkStep = iota
	stepStop                 // nothing that is good follows
	stepOverwritten          // the record was given up; another begins on the page just entered
)

// walk returns the range that records vouch for, and where the last good
// record begins.
func (w *recordWalk) walk() (start, end int64, last LSN, err error) {
	h, ok, err := w.enter(0)
	if err != nil || !ok {
		return 0, 0, 0, err
	}
	if h.Info&infoContRecord != 0 {
		step, err := w.data(h.Remaining, func([]byte) {})
		if err != nil || step == stepStop {
			return 0, 0, 0, err
		}
		start = w.nextRecord(step)
	}
	for end = start; ; {
		rec, step, err := w.record(last)
		if err != nil || step == stepStop {
			if end == start {
				return 0, 0, 0, err
			}
			return start, end, last, err
		}
		next := w.nextRecord(step)
		if step == stepOverwritten {
			continue // the record in front of it stays the predecessor
		}
		end, last = next, rec.at
		if !rec.isSwitch {
			continue
		}
		zeros, err := w.zerosToEnd(next)
		if zeros {
			end = w.n
		}
		return start, end, last, err
	}
}

// nextRecord moves to where the next record begins, behind the padding of the
// one before, and returns the end of the one before.
func (w *recordWalk) nextRecord(step walkStep) int64 {
	if step == stepOverwritten {
		return w.at &^ (PageSize - 1)
	}
	pad := min(-w.at&(recordAlign-1), int64(len(w.rest)))
	w.at, w.rest = w.at+pad, w.rest[pad:]
	return w.at
}

// foundRecord is a record whose checksum is right.
type foundRecord struct {
	at       LSN
	before   LSN // the record that it says comes before it (xl_prev)
	isSwitch bool
}

// record checks the record that begins at w.at, or behind the header of the
// page that begins there. prev is the place of the one before, zero when that
// is not known.
func (w *recordWalk) record(prev LSN) (foundRecord, walkStep, error) {
	if len(w.rest) == 0 {
		h, ok, err := w.enter(w.at)
		if err != nil || !ok || h.Info&infoContRecord != 0 {
			return foundRecord{}, stepStop, err
		}
	}
	rec := foundRecord{at: w.run.Name.Start(w.run.Size) + LSN(w.at)}
	if len(w.rest) < recordAlign {
		return rec, stepStop, nil // the prefix ends here
	}
	le := binary.LittleEndian
	total := le.Uint32(w.rest)
	if total < recordHeader {
		return rec, stepStop, nil
	}
	header := make([]byte, 0, recordHeader)
	table, crc := crc32.MakeTable(crc32.Castagnoli), uint32(0)
	step, err := w.data(total, func(b []byte) {
		k := min(recordHeader-len(header), len(b))
		header = append(header, b[:k]...)
		crc = crc32.Update(crc, table, b[k:])
	})
	if err != nil || step != stepDone {
		return rec, step, err
	}
	crc = crc32.Update(crc, table, header[:beforeCRC])
	rec.before = LSN(le.Uint64(header[8:]))
	if crc != le.Uint32(header[beforeCRC:]) || rec.before >= rec.at || prev != 0 && rec.before != prev {
		return rec, stepStop, nil
	}
	rec.isSwitch = header[17] == rmgrXLOG && header[16]&infoMask == infoSwitch
	return rec, stepDone, nil
}

// data hands the next n bytes of a record to f, page by page. A page that is
// entered on the way must say that so many bytes of the record are left.
func (w *recordWalk) data(n uint32, f func(b []byte)) (walkStep, error) {
	for {
		k := min(int(n), len(w.rest))
		f(w.rest[:k])
		w.at, w.rest, n = w.at+int64(k), w.rest[k:], n-uint32(k)
		if n == 0 {
			return stepDone, nil
		}
		h, ok, err := w.enter(w.at)
		switch {
		case err != nil || !ok:
			return stepStop, err
		case h.Info&infoContRecord != 0 && h.Remaining == n:
		case h.Info&infoOverwritten != 0 && h.Info&infoContRecord == 0:
			return stepOverwritten, nil
		default:
			return stepStop, nil
		}
	}
}

// enter reads the header of the page at the given place and moves behind it.
// ok is false when there is no page that is right.
func (w *recordWalk) enter(at int64) (h pageHeader, ok bool, err error) {
	if at%PageSize != 0 || at >= w.n { // a page that is not there whole ends the walk
		return h, false, nil
	}
	page, err := w.page(at)
	size, first := shortHeader, at%int64(w.run.Size) == 0
	if first {
		size = longHeader
	}
	if err != nil || len(page) < size {
		return h, false, err
	}
	if place := w.run.Name.Start(w.run.Size) + LSN(at); first {
		h, err = w.run.first(page, place)
	} else {
		h, err = w.run.next(page, place)
	}
	if errors.Is(err, ErrPage) {
		return h, false, nil
	}
	w.at, w.rest = at+int64(size), page[size:]
	return h, err == nil, err
}

// page returns the bytes of the page at the given place, fewer when the
// segment's prefix ends in it. They are valid until the next call.
func (w *recordWalk) page(at int64) ([]byte, error) {
	if at < w.bufAt || at >= w.bufAt+int64(w.bufN) {
		want := min(int64(len(w.buf)), w.n-at)
		n, err := w.r.ReadAt(w.buf[:want], at)
		if int64(n) == want || errors.Is(err, io.EOF) {
			err = nil
		}
		if err != nil {
			return nil, err
		}
		w.bufAt, w.bufN = at, n
	}
	b := w.buf[at-w.bufAt : w.bufN]
	return b[:min(len(b), PageSize)], nil
}

// zerosToEnd reports whether the segment is there to its end, with nothing but
// zeros from the given place on.
func (w *recordWalk) zerosToEnd(from int64) (bool, error) {
	if w.n != int64(w.run.Size) {
		return false, nil
	}
	for at := from; at < w.n; {
		page, err := w.page(at &^ (PageSize - 1))
		if err != nil {
			return false, err
		}
		if len(page) < PageSize {
			return false, nil
		}
		rest := page[at&(PageSize-1):]
		if !allZero(rest) {
			return false, nil
		}
		at += int64(len(rest))
	}
	return true, nil
}
