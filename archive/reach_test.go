package archive

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

func TestReachFrom(t *testing.T) {
	const mb = segment.Size(1 << 20)
	at := func(t segment.Timeline, number uint64, offset segment.LSN) segment.Position {
		return segment.Position{Timeline: t, LSN: segment.LSN(number*uint64(mb)) + offset}
	}
	seg := func(t segment.Timeline, number uint64) segment.Name { return numbered(t, number, mb) }
	one := segment.History{Timeline: 1}
	middle := segment.History{Timeline: 2, Ancestors: []segment.Switch{{Timeline: 1, At: 0x500028}}} // in segment 5
	boundary := segment.History{Timeline: 2, Ancestors: []segment.Switch{{Timeline: 1, At: 0x500000}}}
	for _, c := range []struct {
		what          string
		h             segment.History
		make          func(t *testing.T, s objstore.Store)
		from          segment.LSN
		sealed, reach segment.Position
	}{
		{"nothing", one, func(*testing.T, objstore.Store) {}, 0x300028, at(1, 3, 0), at(1, 3, 0)},
		{"whole segments", one, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 6, ".lz4")
		}, 0x300028, at(1, 6, 0), at(1, 6, 0)},
		{"from the middle of the run", one, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 6, ".lz4")
		}, 0x4FFFFF, at(1, 6, 0), at(1, 6, 0)},
		{"a hole in front of it", one, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 1, 2, ".lz4")
			fillRun(t, s, 1, mb, 3, 6, ".lz4")
		}, 0x300000, at(1, 6, 0), at(1, 6, 0)},
		{"a hole behind it", one, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 5, ".lz4")
			fillRun(t, s, 1, mb, 6, 8, ".lz4")
			putTail(t, s, seg(1, 8), 0, 0x500, ".lz4")
		}, 0x300028, at(1, 5, 0), at(1, 5, 0)},
		{"a hole at its first segment", one, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 4, 6, ".lz4")
		}, 0x300028, at(1, 3, 0), at(1, 3, 0)},
		{"from behind the end", one, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 6, ".lz4")
		}, 0x900028, at(1, 9, 0), at(1, 9, 0)},
		{"a base backup elsewhere is of no account", one, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 6, ".lz4")
			fillRun(t, s, 1, mb, 8, 9, ".lz4")
			putBase(t, s, 1, mb, 0x800028, 0x800100)
		}, 0x300028, at(1, 6, 0), at(1, 6, 0)},
		{"tail objects", one, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 5, ".lz4")
			putTail(t, s, seg(1, 5), 0, 0x200, ".lz4")
			putTail(t, s, seg(1, 5), 0x200, 0x300, ".lz4")
			putTail(t, s, seg(1, 5), 0x400, 0x500, ".lz4")
		}, 0x300028, at(1, 5, 0), at(1, 5, 0x300)},
		{"tail objects alone", one, func(t *testing.T, s objstore.Store) {
			putTail(t, s, seg(1, 3), 0, 0x200, ".lz4")
		}, 0x300028, at(1, 3, 0), at(1, 3, 0x200)},
		{"tail objects to the end of a segment, and on", one, func(t *testing.T, s objstore.Store) {
			putTail(t, s, seg(1, 3), 0, uint32(mb), ".lz4")
			putTail(t, s, seg(1, 4), 0, 0x100, ".lz4")
		}, 0x300028, at(1, 3, 0), at(1, 4, 0x100)},
		{"a tail that fills a segment, and a whole one behind it", one, func(t *testing.T, s objstore.Store) {
			putTail(t, s, seg(1, 3), 0, uint32(mb), ".lz4")
			fillRun(t, s, 1, mb, 4, 7, ".lz4")
			putTail(t, s, seg(1, 7), 0, 0x100, ".lz4")
		}, 0x300028, at(1, 3, 0), at(1, 7, 0x100)},
		{"across a promotion", middle, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 9, ".lz4") // the old server went on
			fillRun(t, s, 2, mb, 5, 7, ".lz4")
			putTail(t, s, seg(2, 7), 0, 0x90, ".lz4")
		}, 0x300028, at(2, 7, 0), at(2, 7, 0x90)},
		{"the old timeline's partial", middle, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 5, ".lz4")
			put(t, s, walDir+seg(1, 5).String()+".partial.lz4", nil)
		}, 0x300028, at(1, 5, 0), at(1, 5, 0x28)},
		{"the old timeline's tail beyond the fork", middle, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 5, ".lz4")
			putTail(t, s, seg(1, 5), 0, 0x4000, ".lz4")
		}, 0x300028, at(1, 5, 0), at(1, 5, 0x28)},
		{"the new timeline's tail in the segment of the fork", middle, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 5, ".lz4")
			putTail(t, s, seg(1, 5), 0, 0x4000, ".lz4")
			putTail(t, s, seg(2, 5), 0, 0x90, ".lz4")
		}, 0x300028, at(1, 5, 0), at(2, 5, 0x90)},
		{"a start behind the fork", middle, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 9, ".lz4")
			fillRun(t, s, 2, mb, 6, 7, ".lz4")
		}, 0x600000, at(2, 7, 0), at(2, 7, 0)},
		{"a promotion at a boundary", boundary, func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 3, 9, ".lz4")
		}, 0x300028, at(2, 5, 0), at(2, 5, 0)},
	} {
		t.Run(c.what, func(t *testing.T) {
			store := mem.New()
			c.make(t, store)
			a := New(store, Options{})
			sealed, reach, err := a.ReachFrom(t.Context(), c.h, mb, c.from)
			if err != nil || sealed != c.sealed || reach != c.reach {
				t.Errorf("sealed %s, reach %s, %v; want %s, %s", sealed, reach, err, c.sealed, c.reach)
			}
		})
	}
	if _, _, err := New(mem.New(), Options{}).ReachFrom(t.Context(), one, 3, 0); err == nil {
		t.Error("a segment size that no cluster has is taken")
	}
}

// A store that does not answer is never taken for one that has no more.
func TestReachFromNeedsAnswers(t *testing.T) {
	const mb = segment.Size(1 << 20)
	h := segment.History{Timeline: 2, Ancestors: []segment.Switch{{Timeline: 1, At: 0x500028}}}
	down := errors.New("503")
	for fail := 1; ; fail++ {
		n := 0
		store := mem.NewWith(mem.Options{Before: func(_ context.Context, op mem.Op, _ string) error {
			if op == mem.Put {
				return nil
			}
			if n++; n == fail {
				return down
			}
			return nil
		}})
		fillRun(t, store, 1, mb, 3, 5, ".lz4")
		putTail(t, store, numbered(2, 5, mb), 0, uint32(mb), ".lz4")
		sealed, reach, err := New(store, Options{}).ReachFrom(t.Context(), h, mb, 0x300028)
		if n < fail {
			if err != nil || reach.LSN != 0x600000 || n < 4 {
				t.Errorf("%d calls: %s, %v", n, reach, err)
			}
			break
		}
		if !errors.Is(err, down) || sealed.LSN != 0 || reach.LSN != 0 {
			t.Errorf("call %d failed: %s, %s, %v", fail, sealed, reach, err)
		}
	}
}

func TestHistoryOf(t *testing.T) {
	store := mem.New()
	a := New(store, Options{})
	if n, err := a.NewestTimeline(t.Context()); n != 0 || err != nil {
		t.Errorf("of nothing: %d, %v", n, err)
	}
	putHistory(t, store, 2, "1\t0/500028\tx\n")
	putHistory(t, store, 4, "2\t0/500028\tx\n1\t0/600000\tout of order\n")
	put(t, store, walDir+segment.Timeline(5).HistoryName()+".lz4", []byte("no frame"))
	for timeline, want := range map[segment.Timeline]error{1: nil, 2: nil, 3: ErrNotFound, 4: ErrHistory, 5: codec.ErrDamaged} {
		h, err := a.HistoryOf(t.Context(), timeline)
		if !errors.Is(err, want) || h.Timeline != timeline || (len(h.Ancestors) > 0) != (timeline == 2) {
			t.Errorf("of %d: %+v, %v; want %v", timeline, h, err, want)
		}
		for _, other := range []error{ErrNotFound, ErrHistory, codec.ErrDamaged} {
			if !errors.Is(want, other) && errors.Is(err, other) {
				t.Errorf("of %d: %v is %v, too", timeline, err, other)
			}
		}
	}
	if n, err := a.NewestTimeline(t.Context()); n != 5 || err != nil {
		t.Errorf("newest is %d, %v; want 5, of which there is a history file", n, err)
	}
	fillRun(t, store, 7, m16, 3, 4, ".lz4")
	if n, err := a.NewestTimeline(t.Context()); n != 7 || err != nil {
		t.Errorf("newest is %d, %v; want 7", n, err)
	}
	down := errors.New("503")
	a = New(mem.NewWith(mem.Options{Before: func(context.Context, mem.Op, string) error { return down }}), Options{})
	_, err := a.NewestTimeline(t.Context())
	_, historyErr := a.HistoryOf(t.Context(), 2)
	if !errors.Is(err, down) || !errors.Is(historyErr, down) {
		t.Errorf("%v, %v", err, historyErr)
	}
}

func TestHistories(t *testing.T) {
	store := mem.New()
	a := New(store, Options{})
	if all, err := a.Histories(t.Context(), 0); len(all) != 0 || err != nil {
		t.Errorf("of nothing: %+v, %v", all, err)
	}
	putHistory(t, store, 2, "1\t0/500028\tx\n")
	putHistory(t, store, 9, "1\t0/500028\tx\n2\t0/600000\ty\n")
	put(t, store, walDir+segment.Timeline(5).HistoryName()+".lz4", []byte("no frame"))
	fillRun(t, store, 7, m16, 3, 4, ".lz4") // its history is missing
	for above, want := range map[segment.Timeline][]segment.Timeline{0: {2, 9}, 1: {2, 9}, 2: {9}, 6: {9}, 9: nil} {
		all, err := a.Histories(t.Context(), above)
		var got []segment.Timeline
		for _, h := range all {
			got = append(got, h.Timeline)
			if at, ok := h.Switchpoint(1); !ok || at != 0x500028 {
				t.Errorf("timeline %d: %+v", h.Timeline, h)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("above %d: %v, %v; want %v", above, got, err, want)
		}
	}
	down := errors.New("503")
	for fail := 1; ; fail++ {
		calls, armed := 0, false
		failing := mem.NewWith(mem.Options{Before: func(context.Context, mem.Op, string) error {
			if calls++; armed && calls == fail {
				return down
			}
			return nil
		}})
		putHistory(t, failing, 2, "1\t0/500028\tx\n")
		calls, armed = 0, true
		_, err := New(failing, Options{}).Histories(t.Context(), 1)
		if calls < fail {
			break // all of them were tried
		}
		if !errors.Is(err, down) {
			t.Errorf("call %d failed: %v", fail, err)
		}
	}
}
