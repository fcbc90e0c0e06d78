package archive

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

const gapSize = segment.Size(1 << 20)

// at is an LSN in a segment of gapSize.
func gapLSN(number uint64, offset segment.LSN) segment.LSN {
	return segment.LSN(number*uint64(gapSize)) + offset
}

func putGap(t testing.TB, s objstore.Store, g segment.Gap) {
	t.Helper()
	recorded := RecordedGap{Gap: g, RecordedAt: time.Unix(1_800_000_000, 0), Reason: "removed", Slot: "walferry", SystemIdentifier: testSystem}
	if err := New(s, Options{}).PutGap(context.Background(), recorded); err != nil {
		t.Fatal(err)
	}
}

func TestPutGap(t *testing.T) {
	store := mem.New()
	a := New(store, Options{})
	g := RecordedGap{
		Gap:        segment.Gap{Timeline: 1, Start: 0x3200000, End: 0xA000000},
		RecordedAt: time.Date(2026, 11, 26, 19, 0, 0, 0, time.FixedZone("", 3600)),
		Reason:     "requested WAL segment 000000010000000000000003 has already been removed", Slot: "ferry", SystemIdentifier: testSystem,
	}
	if err := a.PutGap(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	const key = "walferry_005/gaps/00000001-0000000003200000-000000000a000000.json"
	content, err := a.readWhole(t.Context(), key, maxGap)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(content, &doc); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]any{
		"version": 1.0, "timeline": 1.0, "start": "0/3200000", "end": "0/A000000", "recorded_at": "2026-11-26T18:00:00Z",
		"slot": "ferry", "reason": g.Reason, "system_identifier": "7710929516611631544",
	} {
		if doc[field] != want {
			t.Errorf("%s is %v, want %v", field, doc[field], want)
		}
	}
	all, err := a.RecordedGaps(t.Context())
	if err != nil || len(all) != 1 || all[0].Gap != g.Gap || !all[0].RecordedAt.Equal(g.RecordedAt) || all[0].Reason != g.Reason || all[0].Slot != g.Slot || all[0].SystemIdentifier != testSystem || all[0].Err != nil {
		t.Errorf("%+v, %v", all, err)
	}

	// Another receiver records the same gap, later and in other words.
	again := g
	again.RecordedAt, again.Reason, again.Slot = g.RecordedAt.Add(time.Hour), "x", "other"
	if err := a.PutGap(t.Context(), again); err != nil {
		t.Errorf("the same gap again: %v", err)
	}
	if now, err := a.readWhole(t.Context(), key, maxGap); err != nil || string(now) != string(content) {
		t.Errorf("the object has changed: %s, %v", now, err)
	}
	again.SystemIdentifier++
	var conflict *ConflictError
	if err := a.PutGap(t.Context(), again); !errors.As(err, &conflict) || conflict.Key != key {
		t.Errorf("another cluster's: %v", err)
	}
	if err := a.PutGap(t.Context(), RecordedGap{Gap: segment.Gap{Timeline: 1, Start: 5, End: 5}}); err == nil {
		t.Error("a gap without a byte was recorded")
	}
}

// What a name says counts, whatever the object holds; other names are none.
func TestGapObjects(t *testing.T) {
	store := mem.New()
	good := segment.Gap{Timeline: 2, Start: gapLSN(3, 7), End: gapLSN(10, 0)}
	putGap(t, store, good)
	newer := segment.Gap{Timeline: 1, Start: gapLSN(1, 0), End: gapLSN(2, 0)}
	put(t, store, gapKey(newer), []byte(`{"version": 2, "timeline": 1, "start": "0/100000", "end": "0/200000", "recorded_at": "2026-11-26T18:00:00Z", "system_identifier": "42", "more": [1]}`))
	var broken []segment.Gap
	for i, content := range []string{
		"", "{}", `{"version": 1, "timeline": 1, "start": "0/100000", "end": "0/200000", "recorded_at": "2026-11-26T18:00:00Z"}`,
		`{"version": 1, "timeline": 3, "start": "x", "end": "0/200000"}`, `{"version": 1, "timeline": 3, "start": "0/1", "end": ""}`,
	} {
		g := segment.Gap{Timeline: 3, Start: gapLSN(1, segment.LSN(i)), End: gapLSN(2, 0)}
		broken = append(broken, g)
		put(t, store, gapKey(g), []byte(content))
	}
	put(t, store, gapsDir+"README", nil)
	put(t, store, gapsDir+good.Name(), nil)
	put(t, store, gapsDir+strings.ToUpper(good.Name())+gapSuffix, nil)

	a := New(store, Options{})
	names, err := a.Gaps(t.Context())
	if err != nil || len(names) != 2+len(broken) {
		t.Fatalf("%v, %v", names, err)
	}
	all, err := a.RecordedGaps(t.Context())
	if err != nil || len(all) != len(names) {
		t.Fatalf("%v, %v", all, err)
	}
	if all[0].Gap != newer || all[0].Err != nil || all[1].Gap != good || all[1].Err != nil {
		t.Errorf("%v: %v, %v: %v", all[0], all[0].Err, all[1], all[1].Err)
	}
	for i, g := range broken {
		if got := all[2+i]; got.Gap != g || !errors.Is(got.Err, ErrGapObject) {
			t.Errorf("%+v", got)
		}
	}
	// A record that cannot be understood is not this one.
	if err := a.PutGap(t.Context(), RecordedGap{Gap: broken[0], SystemIdentifier: testSystem}); !errors.Is(err, ErrConflict) {
		t.Errorf("PutGap = %v", err)
	}
}

func TestPutGapNeedsAnswers(t *testing.T) {
	down := errors.New("503")
	g := RecordedGap{Gap: segment.Gap{Timeline: 1, Start: 1, End: 2}, SystemIdentifier: testSystem}
	for _, op := range []mem.Op{mem.PutIfAbsent, mem.Get} {
		failing := false
		store := mem.NewWith(mem.Options{Before: func(_ context.Context, o mem.Op, _ string) error {
			if failing && o == op {
				return down
			}
			return nil
		}})
		if op == mem.Get {
			putGap(t, store, g.Gap)
		}
		failing = true
		if err := New(store, Options{}).PutGap(t.Context(), g); !errors.Is(err, down) || errors.Is(err, ErrConflict) {
			t.Errorf("op %v fails: PutGap = %v", op, err)
		}
	}
	store := mem.NewWith(mem.Options{Before: func(_ context.Context, o mem.Op, _ string) error {
		if o == mem.List {
			return down
		}
		return nil
	}})
	if _, err := New(store, Options{}).Gaps(t.Context()); !errors.Is(err, down) {
		t.Errorf("Gaps = %v", err)
	}
}

// Reception goes on behind a recorded gap; a restore does not get there before
// a base backup lies behind it.
func TestRunEndBehindGaps(t *testing.T) {
	two := segment.History{Timeline: 2, Ancestors: []segment.Switch{{Timeline: 1, At: gapLSN(6, 0x28)}}}
	one := segment.History{Timeline: 1}
	type run struct {
		timeline segment.Timeline
		from, to uint64
	}
	gap := func(t segment.Timeline, from, to segment.LSN) segment.Gap {
		return segment.Gap{Timeline: t, Start: from, End: to}
	}
	for _, c := range []struct {
		what string
		h    segment.History
		runs []run
		base uint64 // number; 0: none
		gaps []segment.Gap
		want uint64
		on   segment.Timeline
	}{
		{"nothing is behind it yet", one, []run{{1, 2, 4}}, 2, []segment.Gap{gap(1, gapLSN(4, 9), gapLSN(8, 0))}, 8, 1},
		{"something is", one, []run{{1, 2, 4}, {1, 8, 10}}, 2, []segment.Gap{gap(1, gapLSN(4, 9), gapLSN(8, 0))}, 10, 1},
		{"the same without a base", one, []run{{1, 2, 4}, {1, 8, 10}}, 0, []segment.Gap{gap(1, gapLSN(4, 9), gapLSN(8, 0))}, 10, 1},
		{"part of it was found", one, []run{{1, 2, 6}, {1, 8, 10}}, 2, []segment.Gap{gap(1, gapLSN(4, 9), gapLSN(8, 0))}, 10, 1},
		{"all of it was found, and the archive ends in it", one, []run{{1, 2, 6}}, 2, []segment.Gap{gap(1, gapLSN(4, 9), gapLSN(6, 0))}, 6, 1},
		{"a hole that was not recorded", one, []run{{1, 2, 4}, {1, 8, 10}}, 2, []segment.Gap{gap(1, gapLSN(5, 0), gapLSN(8, 0))}, 4, 1},
		{"two", one, []run{{1, 2, 4}, {1, 8, 10}, {1, 12, 13}}, 2, []segment.Gap{gap(1, gapLSN(10, 0), gapLSN(12, 0)), gap(1, gapLSN(4, 9), gapLSN(8, 0))}, 13, 1},
		{"across a switch", two, []run{{1, 2, 4}, {2, 9, 10}}, 2, []segment.Gap{gap(1, gapLSN(4, 9), gapLSN(6, 0x28)), gap(2, gapLSN(6, 0x28), gapLSN(9, 0))}, 10, 2},
		{"a branch that left inside it", two, []run{{1, 2, 4}, {1, 12, 14}, {2, 6, 8}}, 2, []segment.Gap{gap(1, gapLSN(4, 9), gapLSN(12, 0))}, 8, 2},
		{"a base behind it", one, []run{{1, 2, 4}, {1, 8, 10}}, 8, []segment.Gap{gap(1, gapLSN(4, 9), gapLSN(8, 0))}, 10, 1},
	} {
		store := mem.New()
		putIdentity(t, store, gapSize)
		putHistory(t, store, 2, "1\t"+two.Ancestors[0].At.String()+"\tx\n")
		if c.h.Timeline == 1 {
			store = mem.New()
			putIdentity(t, store, gapSize)
		}
		for _, r := range c.runs {
			fillRun(t, store, r.timeline, gapSize, r.from, r.to, ".lz4")
		}
		if c.base != 0 {
			putBase(t, store, 1, gapSize, gapLSN(c.base, 0x28), gapLSN(c.base, 0x99))
		}
		for _, g := range c.gaps {
			putGap(t, store, g)
		}
		a := New(store, Options{})
		end, ok, err := a.RunEnd(t.Context(), c.h, gapSize, gapLSN(20, 0))
		if want := (segment.Position{Timeline: c.on, LSN: gapLSN(c.want, 0)}); err != nil || !ok || end != want {
			t.Errorf("%s: RunEnd = %s, %v, %v; want %s", c.what, end, ok, err, want)
		}
	}
}

func TestOverviewEndsAtAGap(t *testing.T) {
	store := mem.New()
	putIdentity(t, store, gapSize)
	fillRun(t, store, 1, gapSize, 2, 4, ".lz4")
	putTail(t, store, numbered(1, 4, gapSize), 0, 0x900, ".lz4")
	fillRun(t, store, 1, gapSize, 8, 10, ".lz4")
	putBase(t, store, 1, gapSize, gapLSN(2, 0x28), gapLSN(2, 0x99))
	g := segment.Gap{Timeline: 1, Start: gapLSN(4, 0x900), End: gapLSN(8, 0)}
	putGap(t, store, g)
	a := New(store, Options{})
	o, err := a.Overview(t.Context())
	if err != nil || o.Sealed.LSN != gapLSN(4, 0) || o.Reach.LSN != gapLSN(4, 0x900) || o.Behind != numbered(1, 9, gapSize) {
		t.Errorf("%+v, %v", o, err)
	}
	if len(o.Gaps) != 1 || o.Gaps[0].Gap != g {
		t.Errorf("gaps: %v", o.Gaps)
	}
	putBase(t, store, 1, gapSize, gapLSN(8, 0x28), gapLSN(8, 0x99))
	o, err = New(store, Options{}).Overview(t.Context())
	if err != nil || o.Sealed.LSN != gapLSN(10, 0) || o.Behind != (segment.Name{}) {
		t.Errorf("with a base behind it: %+v, %v", o, err)
	}
}
