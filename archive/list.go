package archive

import (
	"context"
	"fmt"
	"iter"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// How many keys a listing asks for: a store answers with at most listPage at a
// time. A probe wants the first of its kind, which a partial or a backup label
// may stand in front of.
const (
	listPage = 1000
	probe    = 8
)

// keys yields timeline t's objects in wal_005/ behind startAfter, in the order
// of their keys. first is how many the first answer holds. A consumer that
// stops early causes no further request.
func (a *Archive) keys(ctx context.Context, t segment.Timeline, startAfter string, first int) iter.Seq2[objstore.Info, error] {
	return a.pages(ctx, objstore.ListOptions{Prefix: fmt.Sprintf("%s%08X", walDir, uint32(t)), StartAfter: startAfter, Limit: first})
}

// pages yields all that opts select. opts.Limit is how many entries the first
// answer holds; the next hold listPage.
func (a *Archive) pages(ctx context.Context, opts objstore.ListOptions) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		opts := opts
		for {
			n := 0
			for info, err := range a.store.List(ctx, opts) {
				if !yield(info, err) || err != nil {
					return
				}
				n++
				opts.StartAfter = info.Key
			}
			if n < opts.Limit || opts.Limit == 0 {
				return
			}
			opts.Limit = listPage
		}
	}
}

// numbers of segments are LSNs divided by the segment size. stretch is a run
// of them, [from, to), that one timeline owns.
type stretch struct {
	timeline segment.Timeline
	from, to uint64
}

// present yields the numbers, ascending, of the whole and readable segments in
// s. first is as for keys. A segment whose name no cluster of this size has is
// none (WAL-G names segments of other sizes than 16 MB wrongly).
func (a *Archive) present(ctx context.Context, s stretch, size segment.Size, first int) iter.Seq2[uint64, error] {
	return func(yield func(uint64, error) bool) {
		if s.from >= s.to {
			return
		}
		startAfter := ""
		if s.from > 0 {
			startAfter = walDir + numbered(s.timeline, s.from-1, size).String() + behindName
		}
		last, any := uint64(0), false
		for info, err := range a.keys(ctx, s.timeline, startAfter, first) {
			if err != nil {
				yield(0, fmt.Errorf("listing WAL of timeline %d: %w", s.timeline, err))
				return
			}
			n, ext, k := walKey(info.Key)
			if k == other || n.Check(size) != nil {
				continue
			}
			number := uint64(n.Start(size)) / uint64(size)
			if number >= s.to {
				return
			}
			if !readable(ext, k) || any && number == last {
				continue // or the same segment under two extensions
			}
			last, any = number, true
			if !yield(number, nil) {
				return
			}
		}
	}
}

// Segments yields the whole and readable segments of from's timeline, ascending,
// from that one on, whether it is there or not. It lists as far as it is
// consumed.
func (a *Archive) Segments(ctx context.Context, from segment.Name) iter.Seq2[segment.Name, error] {
	return func(yield func(segment.Name, error) bool) {
		var last segment.Name
		for info, err := range a.keys(ctx, from.Timeline, walDir+from.String(), listPage) {
			if err != nil {
				yield(segment.Name{}, fmt.Errorf("listing WAL of timeline %d: %w", from.Timeline, err))
				return
			}
			n, ext, k := walKey(info.Key)
			if k == other || !readable(ext, k) || n == last {
				continue // or the same segment under two extensions
			}
			last = n
			if !yield(n, nil) {
				return
			}
		}
	}
}

// first returns the first segment in s.
func (a *Archive) first(ctx context.Context, s stretch, size segment.Size) (number uint64, ok bool, err error) {
	for number, err := range a.present(ctx, s, size, probe) {
		return number, err == nil, err
	}
	return 0, false, nil
}

// last returns the last segment in s: with one listing where it is among the
// last listPage numbers, else by halving what lies between the first segment
// and the end.
func (a *Archive) last(ctx context.Context, s stretch, size segment.Size) (number uint64, ok bool, err error) {
	for s.from < s.to {
		tail := s
		if s.to-s.from > listPage {
			tail.from = s.to - listPage
		}
		for n, err := range a.present(ctx, tail, size, listPage) {
			if err != nil {
				return 0, false, err
			}
			number, ok = n, true
		}
		if ok || tail.from == s.from {
			return number, ok, nil
		}
		s.to = tail.from
		n, some, err := a.first(ctx, s, size)
		if err != nil || !some {
			return 0, false, err
		}
		s.from = n
		for s.to-s.from > listPage {
			upper := stretch{s.timeline, s.from + (s.to-s.from)/2, s.to}
			n, some, err := a.first(ctx, upper, size)
			if err != nil {
				return 0, false, err
			}
			if some {
				s.from = n
			} else {
				s.to = upper.from
			}
		}
	}
	return 0, false, nil
}

// numbered returns the name of the segment of that number.
func numbered(t segment.Timeline, number uint64, size segment.Size) segment.Name {
	return size.Name(t, segment.LSN(number*uint64(size)))
}
