package archive

import (
	"context"
	"fmt"
	"math"

	"github.com/walferry/walferry/segment"
)

// lookBack is how far before the newest segment, in segments, a hole is looked
// for when there is no base backup to say from where on none may be.
const lookBack = listPage

// RunEnd returns where the archive's gapless run of whole segments along h
// ends: the position from which WAL has to be streamed next, on the timeline
// of h that owns it, always at the start of a segment. ok is false when the
// archive holds neither WAL along h nor a base backup.
//
// Which segment is meant at an LSN is a matter of h: before a switchpoint it
// is the ancestor's, and the one that holds the switchpoint is the child's,
// who has it whole (the ancestor's ends as a partial; where the ancestor's
// server went on, its own whole segment of that number is another history).
//
// The run begins at the start segment of the newest base backup along h: from
// there on no segment may be missing (the package's promise to a restore), so
// every one from there on is counted, also when it is long ago, and what lies
// before is of no account. A base whose start segment is missing ends the run
// right there. Where what is missing lies in a recorded gap the run goes on
// behind it. Without a base backup the run is the one that holds the newest
// segment at or before near, or else the first one behind near; a hole is
// seen within the last lookBack segments of it.
//
// near is any LSN about where the archive may end, such as the server's
// position. It costs one listing per 1000 segments of the run, one of the gaps,
// and without a base a few more that grow with the logarithm of the distance to
// near.
func (a *Archive) RunEnd(ctx context.Context, h segment.History, size segment.Size, near segment.LSN) (end segment.Position, ok bool, err error) {
	if err := size.Check(); err != nil {
		return segment.Position{}, false, err
	}
	from, ok, err := a.runStart(ctx, h, size, near)
	if err != nil || !ok {
		return segment.Position{}, false, wrap("finding where the archive ends", err)
	}
	end, err = a.runEnd(ctx, h, size, from)
	return end, err == nil, wrap("finding where the archive ends", err)
}

// runEnd returns where the run ends that begins with the segment of that
// number, gaps included.
func (a *Archive) runEnd(ctx context.Context, h segment.History, size segment.Size, from uint64) (segment.Position, error) {
	gaps, err := a.Gaps(ctx)
	if err != nil {
		return segment.Position{}, err
	}
	for {
		number, err := a.firstMissing(ctx, stretches(h, size), size, from)
		if err != nil {
			return segment.Position{}, err
		}
		lsn := segment.LSN(number * uint64(size))
		behind, ok := gaps.Behind(h, size, lsn)
		if !ok {
			return segment.Position{Timeline: h.Owner(lsn), LSN: lsn}, nil
		}
		from = uint64(behind) / uint64(size)
	}
}

// ReachFrom tells how far WAL reaches along h without a gap, from the segment
// that holds from on, by names alone: no segment is read. sealed counts whole
// segments, as RunEnd does; reach is where a restore gets, with what tail objects
// and partials add. When the very first segment is missing, sealed is its start;
// when nothing at all is there of it, reach is, too.
func (a *Archive) ReachFrom(ctx context.Context, h segment.History, size segment.Size, from segment.LSN) (sealed, reach segment.Position, err error) {
	if err := size.Check(); err != nil {
		return segment.Position{}, segment.Position{}, err
	}
	what := "finding how far WAL reaches from " + from.String()
	number, err := a.firstMissing(ctx, stretches(h, size), size, uint64(from)/uint64(size))
	if err != nil {
		return segment.Position{}, segment.Position{}, wrap(what, err)
	}
	lsn := segment.LSN(number * uint64(size))
	sealed = segment.Position{Timeline: h.Owner(lsn), LSN: lsn}
	reach, _, err = a.reach(ctx, h, size, lsn)
	if err != nil {
		return segment.Position{}, segment.Position{}, wrap(what, err)
	}
	if reach.LSN == 0 {
		reach = sealed
	}
	return sealed, reach, nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// runStart returns the number of a segment from which on none may be missing.
func (a *Archive) runStart(ctx context.Context, h segment.History, size segment.Size, near segment.LSN) (number uint64, ok bool, err error) {
	start, ok, err := a.newestBase(ctx, h, size)
	if err != nil {
		return 0, false, err
	}
	if ok {
		return uint64(start) / uint64(size), true, nil
	}
	all := stretches(h, size)
	upTo := uint64(near)/uint64(size) + 1
	for i := len(all) - 1; i >= 0; i-- {
		newest, ok, err := a.last(ctx, until(all[i], upTo), size)
		if err != nil {
			return 0, false, err
		}
		if ok {
			return a.firstAlong(ctx, all, size, newest-min(newest, lookBack-1))
		}
	}
	return a.firstAlong(ctx, all, size, upTo)
}

// stretches divides the segment numbers between the timelines of h: a segment
// is whole on the timeline that owns its last byte.
func stretches(h segment.History, size segment.Size) []stretch {
	var all []stretch
	from := uint64(0)
	for _, s := range h.Ancestors {
		if to := uint64(s.At) / uint64(size); to > from {
			all = append(all, stretch{s.Timeline, from, to})
			from = to
		}
	}
	return append(all, stretch{h.Timeline, from, math.MaxUint64 / uint64(size)})
}

func since(s stretch, from uint64) stretch { return stretch{s.timeline, max(s.from, from), s.to} }
func until(s stretch, to uint64) stretch   { return stretch{s.timeline, s.from, min(s.to, to)} }

// firstAlong returns the first segment at or behind number.
func (a *Archive) firstAlong(ctx context.Context, all []stretch, size segment.Size, number uint64) (uint64, bool, error) {
	for _, s := range all {
		first, ok, err := a.first(ctx, since(s, number), size)
		if err != nil || ok {
			return first, ok, err
		}
	}
	return 0, false, nil
}

// firstMissing returns the first number at or behind next that is missing.
func (a *Archive) firstMissing(ctx context.Context, all []stretch, size segment.Size, next uint64) (uint64, error) {
	for _, s := range all {
		if next >= s.to {
			continue
		}
		for number, err := range a.present(ctx, since(s, next), size, listPage) {
			if err != nil {
				return 0, err
			}
			if number != next {
				return next, nil
			}
			next++
		}
		if next < s.to {
			return next, nil
		}
	}
	return next, nil
}
