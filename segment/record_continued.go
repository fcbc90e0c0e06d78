package segment

import (
	"errors"
	"io"
)

// ContinuedRecord checks the record with which a segment begins, when it is
// one that began in the segment before: the one that VerifiedRecords cannot
// check. prev holds that segment's bytes, on whichever timeline it was
// written; next holds the segment that rules describe, of which n bytes, and
// never more than the segment size, may be there.
//
// The walk follows the records from prev's start, as VerifiedRecords does, to
// the one that goes on in next, and through next's pages to its end. ok tells
// that it is good, and end is then the place behind it: what VerifiedRecords
// of next calls start when it finds a good record there. ok is false when the
// walk breaks off in front of the record; when next begins with no rest of
// one; when the record began in front of prev, or ends behind what there is of
// next; and when the server gave it up (XLP_FIRST_IS_OVERWRITE_CONTRECORD),
// since then no checksum speaks for the bytes that it left.
//
// Pages of prev and next are held against rules alike: with a history those of
// an ancestor are right in front of its switchpoint, so that the record may lie
// on the parent's pages.
//
// Errors: those of the readers, and ErrForeignCluster and ErrSegmentSize when
// the first page of either says so.
func ContinuedRecord(prev, next io.ReaderAt, n int64, rules PageRules) (end LSN, ok bool, err error) {
	if err := errors.Join(rules.Size.Check(), rules.Name.Check(rules.Size)); err != nil {
		return 0, false, err
	}
	base, size := rules.Name.Start(rules.Size), int64(rules.Size)
	if base == 0 {
		return 0, false, nil
	}
	rules.Name = rules.Size.Name(rules.Name.Timeline, base-1)
	w := newRecordWalk(&joined{prev, next, size}, size, rules)
	w.n += max(0, min(n, size))
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
	for last := LSN(0); w.at < size; {
		rec, step, err := w.record(last)
		if err != nil || step == stepStop {
			return 0, false, err
		}
		at := w.nextRecord(step)
		if step == stepOverwritten {
			continue
		}
		if at > size {
			return base + LSN(at-size), true, nil
		}
		last = rec.at
	}
	return 0, false, nil
}

// joined is two segments, one behind the other.
type joined struct {
	prev, next io.ReaderAt
	size       int64 // of prev
}

func (j *joined) ReadAt(p []byte, off int64) (int, error) {
	if off >= j.size {
		return j.next.ReadAt(p, off-j.size)
	}
	k := min(int64(len(p)), j.size-off)
	n, err := j.prev.ReadAt(p[:k], off)
	if int64(n) < k || n == len(p) {
		return n, err
	}
	m, err := j.next.ReadAt(p[k:], 0)
	return n + m, err
}
