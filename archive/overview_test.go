package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

func putIdentity(t testing.TB, s objstore.Store, size segment.Size) {
	t.Helper()
	put(t, s, identityKey, mustIdentity(t.(*testing.T), Identity{testSystem, size, codec.LZ4}))
}

func putTail(t testing.TB, s objstore.Store, n segment.Name, start, end uint32, ext string) {
	t.Helper()
	put(t, s, tailDir+Tail{Segment: n, Start: start, End: end}.String()+ext, nil)
}

func putHistory(t testing.TB, s objstore.Store, timeline segment.Timeline, lines string) {
	t.Helper()
	put(t, s, walDir+timeline.HistoryName(), []byte(lines))
}

func TestOverview(t *testing.T) {
	const mb = segment.Size(1 << 20)
	at := func(t segment.Timeline, number uint64, offset segment.LSN) segment.Position {
		return segment.Position{Timeline: t, LSN: segment.LSN(number*uint64(mb)) + offset}
	}
	seg := func(t segment.Timeline, number uint64) segment.Name { return numbered(t, number, mb) }
	type tl = FoundTimeline
	const (
		middle   = "1\t0/500028\tno recovery target specified\n" // in segment 5
		boundary = "1\t0/500000\tno recovery target specified\n"
	)
	for _, c := range []struct {
		what      string
		make      func(t *testing.T, s objstore.Store)
		timelines []FoundTimeline
		sealed    segment.Position
		reach     segment.Position
		last      string // what its key contains
		behind    segment.Name
		unknown   bool // the history is
	}{
		{what: "nothing but the identity", make: func(*testing.T, objstore.Store) {}},
		{what: "whole segments", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 6, ".lz4")
		}, timelines: []tl{{1, false, true}}, sealed: at(1, 6, 0), reach: at(1, 6, 0), last: seg(1, 5).String() + ".lz4"},
		{what: "a hole", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 4, ".lz4")
			fillRun(t, s, 1, mb, 5, 8, ".lz4")
		}, timelines: []tl{{1, false, true}}, sealed: at(1, 4, 0), reach: at(1, 4, 0), last: seg(1, 3).String(), behind: seg(1, 7)},
		{what: "tail objects", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 6, ".lz4")
			putTail(t, s, seg(1, 5), 0, 0x8000, ".lz4") // of a segment that is whole by now
			putTail(t, s, seg(1, 6), 0, 0x200, ".lz4")
			putTail(t, s, seg(1, 6), 0x180, 0x300, ".lz4") // another receiver's cut
			putTail(t, s, seg(1, 6), 0x400, 0x500, ".lz4") // behind a hole
			putTail(t, s, seg(1, 6), 0x300, 0x400, ".age") // nobody here can read it
			putTail(t, s, seg(1, 7), 0, 0x100, ".lz4")
		}, timelines: []tl{{1, false, true}}, sealed: at(1, 6, 0), reach: at(1, 6, 0x300), last: seg(1, 6).String() + "/00000400"},
		{what: "tail objects to the end of a segment, and on", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 6, ".lz4")
			putTail(t, s, seg(1, 6), 0, uint32(mb), ".lz4")
			putTail(t, s, seg(1, 7), 0, 0x100, ".lz4")
		}, timelines: []tl{{1, false, true}}, sealed: at(1, 6, 0), reach: at(1, 7, 0x100), last: seg(1, 7).String() + "/"},
		{what: "a hole that tail objects reach over", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 6, ".lz4")
			putTail(t, s, seg(1, 6), 0, uint32(mb), ".lz4")
			fillRun(t, s, 1, mb, 7, 9, ".lz4")
		}, timelines: []tl{{1, false, true}}, sealed: at(1, 6, 0), reach: at(1, 9, 0), last: seg(1, 8).String() + ".lz4"},
		{what: "a hole that tail objects do not reach over", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 6, ".lz4")
			putTail(t, s, seg(1, 6), 0, uint32(mb)-8, ".lz4")
			fillRun(t, s, 1, mb, 7, 9, ".lz4")
		}, timelines: []tl{{1, false, true}}, sealed: at(1, 6, 0), reach: segment.Position{Timeline: 1, LSN: at(1, 7, 0).LSN - 8}, last: seg(1, 6).String() + "/", behind: seg(1, 8)},
		{what: "tail objects only", make: func(t *testing.T, s objstore.Store) {
			putTail(t, s, seg(1, 3), 0, 0x100, ".lz4")
		}, timelines: []tl{{1, false, true}}, reach: at(1, 3, 0x100), last: seg(1, 3).String() + "/"},
		{what: "a promotion of which there is the history alone", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 5, ".lz4")
			putHistory(t, s, 2, middle)
			putTail(t, s, seg(1, 5), 0, 0x20, ".lz4")
		}, timelines: []tl{{1, false, true}, {2, true, false}}, sealed: at(1, 5, 0), reach: at(1, 5, 0x20), last: seg(1, 5).String() + "/"},
		{what: "tail objects beyond the fork", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 5, ".lz4")
			putHistory(t, s, 2, middle)
			putTail(t, s, seg(1, 5), 0, 0x4000, ".lz4")
		}, timelines: []tl{{1, false, true}, {2, true, false}}, sealed: at(1, 5, 0), reach: at(1, 5, 0x28), last: seg(1, 5).String() + "/"},
		{what: "the old timeline's partial", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 5, ".lz4")
			putHistory(t, s, 2, middle)
			put(t, s, walDir+seg(1, 5).String()+".partial.lz4", nil)
		}, timelines: []tl{{1, false, true}, {2, true, false}}, sealed: at(1, 5, 0), reach: at(1, 5, 0x28), last: ".partial.lz4"},
		{what: "the old timeline's partial and the new one's tail", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 5, ".lz4")
			putHistory(t, s, 2, middle)
			put(t, s, walDir+seg(1, 5).String()+".partial.lz4", nil)
			putTail(t, s, seg(2, 5), 0, 0x90, ".lz4")
		}, timelines: []tl{{1, false, true}, {2, true, false}}, sealed: at(1, 5, 0), reach: at(2, 5, 0x90), last: seg(2, 5).String() + "/"},
		{what: "both timelines' segments; the old server went on", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 9, ".lz4")
			fillRun(t, s, 2, mb, 5, 7, ".lz4")
			putHistory(t, s, 2, middle)
		}, timelines: []tl{{1, false, true}, {2, true, true}}, sealed: at(2, 7, 0), reach: at(2, 7, 0), last: seg(2, 6).String()},
		{what: "a promotion at a boundary", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 5, ".lz4")
			putHistory(t, s, 2, boundary)
			putTail(t, s, seg(1, 5), 0, 0x90, ".lz4") // of the server that went on
		}, timelines: []tl{{1, false, true}, {2, true, false}}, sealed: at(2, 5, 0), reach: at(2, 5, 0), last: seg(1, 4).String()},
		{what: "a branch that was left", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 5, ".lz4")
			fillRun(t, s, 2, mb, 5, 9, ".lz4")
			putHistory(t, s, 2, middle)
			putHistory(t, s, 3, "1\t0/480000\tbefore 0/480000\n")
		}, timelines: []tl{{1, false, true}, {2, true, true}, {3, true, false}}, sealed: at(1, 4, 0), reach: at(1, 4, 0x80000), last: seg(1, 4).String()},
		{what: "no history", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 5, ".lz4")
			fillRun(t, s, 3, mb, 5, 7, ".lz4")
		}, timelines: []tl{{1, false, true}, {3, false, true}}, sealed: at(3, 7, 0), reach: at(3, 7, 0), last: seg(3, 6).String(), unknown: true},
		{what: "a history that is none", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 2, mb, 5, 7, ".lz4")
			putHistory(t, s, 2, "1\tx\n")
		}, timelines: []tl{{2, true, true}}, sealed: at(2, 7, 0), reach: at(2, 7, 0), last: seg(2, 6).String(), unknown: true},
		{what: "a base backup and no WAL", make: func(t *testing.T, s objstore.Store) {
			putBase(t, s, 1, mb, at(1, 4, 0x28).LSN, at(1, 4, 0x100).LSN)
		}},
		{what: "what is not ours", make: func(t *testing.T, s objstore.Store) {
			fillRun(t, s, 1, mb, 2, 4, ".lz4")
			for i := range 20 {
				put(t, s, fmt.Sprintf("%s00000000-%d", walDir, i), nil)
				put(t, s, fmt.Sprintf("%s00000002.history.%d", walDir, i), nil)
				put(t, s, fmt.Sprintf("%s00000003stray-%d", walDir, i), nil)
			}
		}, timelines: []tl{{1, false, true}}, sealed: at(1, 4, 0), reach: at(1, 4, 0), last: seg(1, 3).String()},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := mem.New()
				putIdentity(t, store, mb)
				c.make(t, aging{store})
				o, err := New(store, Options{}).Overview(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if o.Identity != (Identity{testSystem, mb, codec.LZ4}) || !slices.Equal(o.Timelines, c.timelines) {
					t.Errorf("%+v, timelines %+v; want %+v", o.Identity, o.Timelines, c.timelines)
				}
				if o.Sealed != c.sealed || o.Reach != c.reach || o.Behind != c.behind {
					t.Errorf("sealed %s, reach %s, behind a hole %s; want %s, %s, %s", o.Sealed, o.Reach, o.Behind, c.sealed, c.reach, c.behind)
				}
				if (o.Last.Key == "") != (c.last == "") || !strings.Contains(o.Last.Key, c.last) || (c.last != "" && o.Last.Modified.IsZero()) {
					t.Errorf("last object %+v; want %q", o.Last, c.last)
				}
				if (o.HistoryErr != nil) != c.unknown {
					t.Errorf("history: %v", o.HistoryErr)
				}
			})
		})
	}
}

// aging stores each object a second after the one before.
type aging struct{ objstore.Store }

func (s aging) Put(ctx context.Context, key string, body objstore.Body) error {
	time.Sleep(time.Second)
	return s.Store.Put(ctx, key, body)
}

// An archive of WAL-G's says by itself what it is; one that does not say how
// large its segments are has no end that a name tells.
func TestOverviewOfWALGArchive(t *testing.T) {
	const mb = segment.Size(1 << 20)
	store := mem.New()
	a := New(store, Options{})
	if _, err := a.Overview(t.Context()); !errors.Is(err, ErrUnrecognised) {
		t.Errorf("an empty store: %v", err)
	}
	n := numbered(1, 4, mb)
	put(t, store, walDir+n.String(), []byte("no page"))
	put(t, store, "basebackups_005/base_000000010000000000000004_backup_stop_sentinel.json", sentinelJSON(testSystem, 4<<20, 4<<20))
	o, err := a.Overview(t.Context())
	if err != nil || o.Identity != (Identity{testSystem, 0, "none"}) || o.Sealed.LSN != 0 || len(o.Timelines) != 1 {
		t.Errorf("no segment size: %+v, %v", o, err)
	}
	put(t, store, walDir+n.String(), wal(n, mb, testSystem)[:8192])
	fillRun(t, store, 1, mb, 5, 9, "")
	o, err = a.Overview(t.Context())
	if err != nil || o.Identity != (Identity{testSystem, mb, "none"}) || o.Sealed != (segment.Position{Timeline: 1, LSN: 9 * segment.LSN(mb)}) {
		t.Errorf("%+v, %v", o, err)
	}
}

// A store that does not answer is never taken for one that has nothing.
func TestOverviewNeedsAnswers(t *testing.T) {
	const mb = segment.Size(1 << 20)
	down := errors.New("503")
	for _, withWAL := range []bool{false, true} {
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
			putIdentity(t, store, mb)
			if withWAL {
				fillRun(t, store, 1, mb, 2, 5, ".lz4")
				putHistory(t, store, 2, "1\t0/500028\tno recovery target specified\n")
			}
			putTail(t, store, numbered(1, 5, mb), 0, 0x20, ".lz4")
			o, err := New(store, Options{}).Overview(t.Context())
			if n < fail {
				if err != nil || o.Reach.LSN == 0 || fail < 6 {
					t.Errorf("%d calls: %+v, %v", n, o, err)
				}
				break
			}
			if !errors.Is(err, down) {
				t.Errorf("call %d failed: %+v, %v", fail, o, err)
			}
		}
	}
}

// A long archive is not listed to be looked at.
func TestOverviewCost(t *testing.T) {
	const size = segment.Size(16 << 20)
	inner := mem.New()
	putIdentity(t, inner, size)
	fillRun(t, inner, 1, size, 1, 5000, ".lz4")
	fillRun(t, inner, 2, size, 5000, 9000, ".lz4")
	at := 5000*segment.LSN(size) + 9
	putHistory(t, inner, 2, fmt.Sprintf("1\t%s\tx\n", at))
	putTail(t, inner, numbered(2, 9000, size), 0, 0x20, ".lz4")
	store := count(inner)
	o, err := New(store, Options{}).Overview(t.Context())
	if want := (segment.Position{Timeline: 2, LSN: 9000*segment.LSN(size) + 0x20}); err != nil || o.Reach != want {
		t.Errorf("%+v, %v; want %s", o, err, want)
	}
	if n := store.taken("LIST"); n > 60 {
		t.Errorf("%d LISTs", n)
	}

	// Of many timelines only those are asked for that have a part in the segment.
	h := segment.History{Timeline: 100}
	for i := range segment.Timeline(99) {
		h.Ancestors = append(h.Ancestors, segment.Switch{Timeline: i + 1, At: segment.LSN(i+1)*segment.LSN(size) + 9})
	}
	store.taken("LIST")
	if _, _, err := New(store, Options{}).unfinished(t.Context(), h, size, 50*segment.LSN(size)); err != nil {
		t.Error(err)
	}
	if n := store.taken("LIST"); n != 3 { // tail objects of 50 and 51, and what is stored of 50
		t.Errorf("%d LISTs for one segment", n)
	}
}
