package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

// fillRun stores segments [from, to) by number.
func fillRun(t testing.TB, s objstore.Store, timeline segment.Timeline, size segment.Size, from, to uint64, ext string) {
	t.Helper()
	for i := from; i < to; i++ {
		put(t, s, walDir+numbered(timeline, i, size).String()+ext, nil)
	}
}

func putBase(t testing.TB, s objstore.Store, timeline segment.Timeline, size segment.Size, start, finish segment.LSN) {
	t.Helper()
	n := size.Name(timeline, start)
	put(t, s, fmt.Sprintf("%sbase_%s_%08X%s", basesDir, n, size.Offset(start), sentinelSuffix), sentinelJSON(testSystem, start, finish))
}

func TestRunEnd(t *testing.T) {
	const m16 = segment.Size(16 << 20)
	one := segment.History{Timeline: 1}
	// Timeline 2 took over in the middle of segment 10.
	mid := func(size segment.Size) segment.History {
		return segment.History{Timeline: 2, Ancestors: []segment.Switch{{Timeline: 1, At: segment.LSN(10*size) + 0x28}}}
	}
	// Exactly between segments 9 and 10.
	edge := func(size segment.Size) segment.History {
		return segment.History{Timeline: 2, Ancestors: []segment.Switch{{Timeline: 1, At: segment.LSN(10 * size)}}}
	}
	// Twice within segment 10, then on timeline 5 (3 was another branch).
	twice := func(size segment.Size) segment.History {
		return segment.History{Timeline: 5, Ancestors: []segment.Switch{
			{Timeline: 1, At: segment.LSN(10*size) + 0x28}, {Timeline: 2, At: segment.LSN(10*size) + 0x4000}, {Timeline: 4, At: segment.LSN(13*size) + 1}}}
	}
	type run struct {
		timeline segment.Timeline
		from, to uint64
		ext      string
	}
	type at struct { // a base backup
		timeline      segment.Timeline
		start, finish uint64 // segment numbers; both at byte 0x28 of it
	}
	for _, c := range []struct {
		what    string
		h       func(segment.Size) segment.History // nil: timeline 1
		runs    []run
		bases   []at
		objects []string // 16 MB only
		near    uint64   // segment number
		want    uint64   // segment number; 0: no WAL
		on      segment.Timeline
	}{
		{what: "empty", near: 5},
		{what: "one run, near its end", runs: []run{{1, 1, 8, ".lz4"}}, near: 8, want: 8, on: 1},
		{what: "one run, near before its end", runs: []run{{1, 1, 80, ".lz4"}}, near: 8, want: 80, on: 1},
		{what: "one run, near far behind", runs: []run{{1, 1, 8, ".lz4"}}, near: 500_000, want: 8, on: 1},
		{what: "one run, near in front of it", runs: []run{{1, 100, 108, ".lz4"}}, near: 3, want: 108, on: 1},
		{what: "every extension counts", runs: []run{{1, 1, 3, ".lz4"}, {1, 3, 4, ".zst"}, {1, 4, 5, ""}, {1, 5, 6, ".gz"}, {1, 6, 7, ".br"}, {1, 7, 8, ".lzma"}}, near: 20, want: 8, on: 1},
		{what: "two extensions of one", runs: []run{{1, 1, 8, ".lz4"}, {1, 2, 5, ".zst"}, {1, 4, 6, ""}}, near: 20, want: 8, on: 1},
		{what: "an extension that nobody can read is a hole", runs: []run{{1, 1, 4, ".lz4"}, {1, 4, 5, ".lz4.gpg"}, {1, 5, 8, ".lz4"}}, near: 20, want: 4, on: 1},
		{what: "a hole", runs: []run{{1, 1, 4, ".lz4"}, {1, 5, 8, ".lz4"}}, near: 8, want: 4, on: 1},
		{what: "a hole, near before it", runs: []run{{1, 1, 4, ".lz4"}, {1, 5, 8, ".lz4"}}, near: 2, want: 4, on: 1},
		{what: "what four workers of a lost host leave", runs: []run{{1, 1, 40, ".lz4"}, {1, 41, 42, ".lz4"}, {1, 43, 44, ".lz4"}}, near: 44, want: 40, on: 1},
		{what: "a hole of many", runs: []run{{1, 1, 4, ".lz4"}, {1, 700, 720, ".lz4"}}, near: 720, want: 4, on: 1},
		{what: "partials are not whole", runs: []run{{1, 1, 4, ".lz4"}, {1, 4, 5, ".partial.lz4"}, {1, 5, 6, ".partial"}}, near: 8, want: 4, on: 1},
		{what: "only partials", runs: []run{{1, 4, 5, ".partial.lz4"}, {1, 4, 5, ".00000028.backup.lz4"}}, near: 4},
		{what: "another timeline only", runs: []run{{3, 1, 4, ".lz4"}}, near: 4},
		{what: "backup labels between", runs: []run{{1, 1, 8, ".lz4"}, {1, 2, 7, ".00000028.backup.lz4"}, {1, 2, 7, ".00000028.backup"}}, near: 8, want: 8, on: 1},

		{what: "base, run behind it", runs: []run{{1, 1, 8, ".lz4"}}, bases: []at{{1, 3, 3}}, near: 8, want: 8, on: 1},
		{what: "a hole before the base is of no account", runs: []run{{1, 1, 3, ".lz4"}, {1, 5, 8, ".lz4"}}, bases: []at{{1, 5, 6}}, near: 8, want: 8, on: 1},
		{what: "a hole behind the base, long ago", runs: []run{{1, 1, 10, ".lz4"}, {1, 11, 2500, ".lz4"}}, bases: []at{{1, 5, 6}}, near: 2500, want: 10, on: 1},
		{what: "the newest base counts", runs: []run{{1, 1, 10, ".lz4"}, {1, 11, 30, ".lz4"}}, bases: []at{{1, 5, 6}, {1, 20, 21}, {1, 15, 16}}, near: 30, want: 30, on: 1},
		{what: "base whose WAL was never kept", runs: []run{{1, 1, 10, ".lz4"}}, bases: []at{{1, 20, 20}}, near: 30, want: 20, on: 1},
		{what: "base without any WAL", bases: []at{{1, 20, 20}}, near: 30, want: 20, on: 1},
		{what: "base whose first segment is missing", runs: []run{{1, 21, 30, ".lz4"}}, bases: []at{{1, 20, 20}}, near: 30, want: 20, on: 1},
		{what: "base of another timeline", runs: []run{{1, 1, 8, ".lz4"}}, bases: []at{{3, 5, 6}}, near: 8, want: 8, on: 1},

		{what: "switch in a segment, all there", h: mid, runs: []run{{1, 1, 10, ".lz4"}, {1, 10, 11, ".partial.lz4"}, {2, 10, 15, ".lz4"}}, near: 15, want: 15, on: 2},
		{what: "switch in a segment, child has none yet", h: mid, runs: []run{{1, 1, 10, ".lz4"}, {1, 10, 11, ".partial.lz4"}}, near: 12, want: 10, on: 1},
		{what: "the old timeline went on: not ours", h: mid, runs: []run{{1, 1, 13, ".lz4"}}, near: 12, want: 10, on: 1},
		{what: "the old timeline went on, child has more", h: mid, runs: []run{{1, 1, 13, ".lz4"}, {2, 10, 12, ".lz4"}}, near: 12, want: 12, on: 2},
		{what: "the child's switch segment is missing", h: mid, runs: []run{{1, 1, 13, ".lz4"}, {2, 11, 14, ".lz4"}}, near: 14, want: 10, on: 1},
		{what: "the parent's last is missing", h: mid, runs: []run{{1, 1, 9, ".lz4"}, {2, 10, 14, ".lz4"}}, near: 14, want: 9, on: 1},
		{what: "the child has segments of before it began", h: mid, runs: []run{{2, 5, 14, ".lz4"}}, near: 14, want: 14, on: 2},
		{what: "near on the parent", h: mid, runs: []run{{1, 1, 10, ".lz4"}, {2, 10, 14, ".lz4"}}, near: 6, want: 14, on: 2},
		{what: "switch at an edge, all there", h: edge, runs: []run{{1, 1, 10, ".lz4"}, {2, 10, 12, ".lz4"}}, near: 12, want: 12, on: 2},
		{what: "switch at an edge, child has none yet", h: edge, runs: []run{{1, 1, 11, ".lz4"}}, near: 12, want: 10, on: 2},
		{what: "two switches in a segment", h: twice, runs: []run{{1, 1, 10, ".lz4"}, {2, 10, 11, ".partial.lz4"}, {4, 10, 13, ".lz4"}, {5, 13, 15, ".lz4"}}, near: 12, want: 15, on: 5},
		{what: "two switches in a segment, the middle one's is no substitute", h: twice, runs: []run{{1, 1, 10, ".lz4"}, {2, 10, 11, ".lz4"}}, near: 12, want: 10, on: 1},
		{what: "hole on the middle timeline", h: twice, runs: []run{{1, 1, 10, ".lz4"}, {4, 10, 11, ".lz4"}, {4, 12, 13, ".lz4"}, {5, 13, 15, ".lz4"}}, near: 15, want: 11, on: 4},
		{what: "base on the parent", h: mid, runs: []run{{1, 5, 10, ".lz4"}, {2, 10, 12, ".lz4"}}, bases: []at{{1, 6, 7}}, near: 12, want: 12, on: 2},
		{what: "base on the parent behind the fork is not ours", h: mid, runs: []run{{1, 5, 13, ".lz4"}, {2, 10, 12, ".lz4"}}, bases: []at{{1, 6, 7}, {1, 12, 12}}, near: 12, want: 12, on: 2},
		{what: "base that was consistent only behind the fork", h: mid, runs: []run{{1, 8, 10, ".lz4"}, {2, 10, 12, ".lz4"}}, bases: []at{{1, 6, 11}}, near: 12, want: 12, on: 2},
		{what: "base in the switch segment, before the fork", h: mid, runs: []run{{2, 10, 12, ".lz4"}}, bases: []at{{1, 10, 10}}, near: 12, want: 12, on: 2},
		{what: "base in the switch segment, its WAL missing", h: mid, runs: []run{{1, 8, 12, ".lz4"}}, bases: []at{{1, 10, 10}}, near: 12, want: 10, on: 1},
		{what: "base on the child", h: mid, runs: []run{{2, 11, 14, ".lz4"}}, bases: []at{{2, 11, 11}, {1, 3, 3}}, near: 12, want: 14, on: 2},
	} {
		for _, size := range []segment.Size{1 << 20, m16, 64 << 20} {
			t.Run(fmt.Sprintf("%s, %s", c.what, size), func(t *testing.T) {
				store := mem.New()
				for _, r := range c.runs {
					fillRun(t, store, r.timeline, size, r.from, r.to, r.ext)
				}
				for _, b := range c.bases {
					putBase(t, store, b.timeline, size, segment.LSN(b.start*uint64(size))+0x28, segment.LSN(b.finish*uint64(size))+0x28)
				}
				h := one
				if c.h != nil {
					h = c.h(size)
				}
				end, ok, err := New(store, Options{}).RunEnd(t.Context(), h, size, segment.LSN(c.near*uint64(size))+77)
				want := segment.Position{Timeline: c.on, LSN: segment.LSN(c.want * uint64(size))}
				if err != nil || ok != (c.want != 0) || end != want {
					t.Errorf("%s, %v, %v; want %s", end, ok, err, want)
				}
			})
		}
	}
}

// Segment numbers go on over the edges of log files, whose length depends on
// the segment size, and names of other sizes are none.
func TestRunEndOverLogs(t *testing.T) {
	for _, size := range []segment.Size{1 << 20, 16 << 20, 64 << 20, 1 << 30} {
		perLog := (uint64(1) << 32) / uint64(size)
		store := mem.New()
		fillRun(t, store, 1, size, perLog*2-3, perLog*2+2, ".lz4")
		put(t, store, fmt.Sprintf("wal_005/%s.lz4", segment.Name{Timeline: 1, Log: 1, Seg: uint32(perLog)}), nil) // impossible
		end, ok, err := New(store, Options{}).RunEnd(t.Context(), segment.History{Timeline: 1}, size, segment.LSN(perLog*2*uint64(size)))
		if want := segment.LSN((perLog*2 + 2) * uint64(size)); err != nil || !ok || end.LSN != want {
			t.Errorf("%s: %s, %v, %v; want %s", size, end, ok, err, want)
		}
	}
	if _, _, err := New(mem.New(), Options{}).RunEnd(t.Context(), segment.History{Timeline: 1}, 3<<20, 0); err == nil {
		t.Error("a segment size that is none")
	}
}

// The cost is in listings: none of what lies before the newest base, none of a
// long archive without one.
func TestRunEndCost(t *testing.T) {
	const size = segment.Size(16 << 20)
	h := segment.History{Timeline: 2, Ancestors: []segment.Switch{{Timeline: 1, At: 5000*segment.LSN(size) + 9}}}
	lsn := func(n uint64) segment.LSN { return segment.LSN(n * uint64(size)) }
	inner := mem.New()
	fillRun(t, inner, 1, size, 1, 5000, ".lz4")
	fillRun(t, inner, 2, size, 5000, 9000, ".lz4")
	based := mem.New()
	fillRun(t, based, 1, size, 1, 5000, ".lz4")
	fillRun(t, based, 2, size, 5000, 9000, ".lz4")
	for i := range uint64(40) {
		putBase(t, based, 1, size, lsn(100*i+5), lsn(100*i+6))
	}
	for _, c := range []struct {
		what  string
		store objstore.Store
		near  uint64
		want  uint64
		lists int
	}{
		{"empty", mem.New(), 9000, 0, 8},
		{"no base, near at the end", inner, 9000, 9000, 6},
		{"no base, near far ahead", inner, 5_000_000, 9000, 23},
		{"no base, near in the middle", inner, 3000, 9000, 13},
		{"base 5095 segments ago", based, 9000, 9000, 9},
	} {
		store := count(c.store)
		end, ok, err := New(store, Options{}).RunEnd(t.Context(), h, size, lsn(c.near))
		if err != nil || ok != (c.want != 0) || end.LSN != lsn(c.want) {
			t.Errorf("%s: %s, %v, %v", c.what, end, ok, err)
		}
		if n := store.taken("LIST"); n > c.lists {
			t.Errorf("%s: %d LISTs, at most %d are meant", c.what, n, c.lists)
		}
		if n := store.taken("GET"); n > 1 {
			t.Errorf("%s: %d GETs", c.what, n)
		}
	}
}

// Without a base the search looks back 1000 segments, as it says.
func TestRunEndLooksBack(t *testing.T) {
	const size = segment.Size(1 << 20)
	for hole, want := range map[uint64]uint64{1500: 1500, 900: 3000, 2001: 2001, 1999: 3000} {
		store := mem.New()
		fillRun(t, store, 1, size, 1, hole, ".lz4")
		fillRun(t, store, 1, size, hole+1, 3000, ".lz4")
		near := segment.LSN(3000 * uint64(size))
		if hole == 1500 {
			near = segment.LSN(2200 * uint64(size)) // 1500 is within 1000 of what is newest up to here
		}
		end, _, err := New(store, Options{}).RunEnd(t.Context(), segment.History{Timeline: 1}, size, near)
		if err != nil || end.LSN != segment.LSN(want*uint64(size)) {
			t.Errorf("hole %d: %s, %v", hole, end, err)
		}
	}
}

func TestRunEndNeedsAnswers(t *testing.T) {
	down := errors.New("503")
	const size = segment.Size(1 << 20)
	h := segment.History{Timeline: 2, Ancestors: []segment.Switch{{Timeline: 1, At: 10*segment.LSN(size) + 9}}}
	for _, withBase := range []bool{false, true} {
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
			fillRun(t, store, 1, size, 1, 10, ".lz4")
			fillRun(t, store, 2, size, 10, 12, ".lz4")
			if withBase {
				putBase(t, store, 1, size, 4*segment.LSN(size), 5*segment.LSN(size))
			}
			end, ok, err := New(store, Options{}).RunEnd(t.Context(), h, size, 0x100000000)
			if n < fail {
				if fail < 4 {
					t.Errorf("only %d calls", n)
				}
				break
			}
			if !errors.Is(err, down) || ok {
				t.Errorf("call %d failed: %s, %v, %v", fail, end, ok, err)
			}
		}
	}
}

// A sentinel that cannot be understood hides its backup, not the archive.
func TestRunEndWithDamagedSentinel(t *testing.T) {
	const size = segment.Size(16 << 20)
	store := mem.New()
	fillRun(t, store, 1, size, 1, 10, ".lz4")
	putBase(t, store, 1, size, 3*segment.LSN(size), 4*segment.LSN(size))
	for _, key := range []string{"base_000000010000000000000008_backup_stop_sentinel.json", "base_000000010000000000000040_backup_stop_sentinel.json.tmp", "base_000000010000000000000041_0000002_backup_stop_sentinel.json", "base_000000010000000000000042/metadata.json"} {
		put(t, store, basesDir+key, []byte("{"))
	}
	end, ok, err := New(store, Options{}).RunEnd(t.Context(), segment.History{Timeline: 1}, size, 0)
	if err != nil || !ok || end.LSN != 10*segment.LSN(size) {
		t.Errorf("%s, %v, %v", end, ok, err)
	}
}

func TestSegments(t *testing.T) {
	s := mem.New()
	fillRun(t, s, 2, segment.MinSize, 3, 6, ".lz4")
	fillRun(t, s, 2, segment.MinSize, 5, 6, ".zst") // twice
	fillRun(t, s, 2, segment.MinSize, 8, 9, "")
	fillRun(t, s, 1, segment.MinSize, 1, 20, ".lz4")
	put(t, s, walDir+numbered(2, 9, segment.MinSize).String()+".partial.lz4", nil)
	put(t, s, walDir+"00000002.history.lz4", nil)
	a := New(s, Options{})
	var got []string
	for n, err := range a.Segments(t.Context(), numbered(2, 4, segment.MinSize)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, n.String())
	}
	want := []string{"000000020000000000000004", "000000020000000000000005", "000000020000000000000008"}
	if !slices.Equal(got, want) {
		t.Errorf("listed %s, want %s", got, want)
	}
}
