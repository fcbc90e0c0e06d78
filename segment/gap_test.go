package segment_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/walferry/walferry/segment"
)

const gapMB = segment.LSN(1 << 20)

func TestGapName(t *testing.T) {
	g := segment.Gap{Timeline: 0x1A, Start: 0x1_0320_0000, End: 0xFF_0A00_0000}
	const want = "0000001a-0000000103200000-000000ff0a000000"
	if g.Name() != want {
		t.Errorf("Name = %s, want %s", g.Name(), want)
	}
	if back, err := segment.ParseGap(want); err != nil || back != g {
		t.Errorf("ParseGap = %v, %v", back, err)
	}
	for _, bad := range []string{
		"", want[1:], want + "0", strings.ToUpper(want), strings.Replace(want, "-", "_", 1),
		"00000000-0000000103200000-000000ff0a000000", // no timeline
		"0000001a-000000ff0a000000-000000ff0a000000", // no byte
		"0000001a-000000ff0a000000-0000000103200000", // backwards
		"0000001a-000000010320000g-000000ff0a000000",
		"0000001a-+000000103200000-000000ff0a000000",
		want + ".json",
	} {
		if g, err := segment.ParseGap(bad); err == nil {
			t.Errorf("ParseGap(%q) = %v", bad, g)
		}
	}
}

func FuzzGapName(f *testing.F) {
	f.Add("0000001a-0000000103200000-000000ff0a000000")
	f.Add("00000001-0000000003000000-000000000A000000")
	f.Fuzz(func(t *testing.T, s string) {
		if g, err := segment.ParseGap(s); err == nil && (g.Name() != s || g.Check() != nil) {
			t.Errorf("%q is read as %v, whose name is %q", s, g, g.Name())
		}
	})
}

func TestGapTouches(t *testing.T) {
	const size = segment.MinSize
	g := segment.Gap{Timeline: 1, Start: 3*gapMB + 100, End: 5 * gapMB}
	for _, c := range []struct {
		n    segment.Name
		want bool
	}{
		{size.Name(1, 2*gapMB), false},
		{size.Name(1, 3*gapMB), true},
		{size.Name(1, 4*gapMB), true},
		{size.Name(1, 5*gapMB), false},
		{size.Name(2, 4*gapMB), false},
	} {
		if got := g.Touches(c.n, size); got != c.want {
			t.Errorf("%s touches %s: %v", g, c.n, got)
		}
	}
}

// forkedAt is timeline 2, which left timeline 1 at an LSN.
func forkedAt(at segment.LSN) segment.History {
	return segment.History{Timeline: 2, Ancestors: []segment.Switch{{Timeline: 1, At: at}}}
}

func TestGapsBehind(t *testing.T) {
	const size = segment.MinSize
	one := segment.History{Timeline: 1}
	gap := func(t segment.Timeline, from, to segment.LSN) segment.Gap {
		return segment.Gap{Timeline: t, Start: from, End: to}
	}
	for _, c := range []struct {
		what    string
		h       segment.History
		gaps    segment.Gaps
		missing segment.LSN
		want    segment.LSN // 0: not excused
	}{
		{"no gap", one, nil, 3 * gapMB, 0},
		{"from inside a segment", one, segment.Gaps{gap(1, 3*gapMB+100, 5*gapMB)}, 3 * gapMB, 5 * gapMB},
		{"asked in its middle", one, segment.Gaps{gap(1, 3*gapMB+100, 5*gapMB)}, 4*gapMB + 7, 5 * gapMB},
		{"in front of it", one, segment.Gaps{gap(1, 3*gapMB, 5*gapMB)}, 2 * gapMB, 0},
		{"behind it", one, segment.Gaps{gap(1, 3*gapMB, 5*gapMB)}, 5 * gapMB, 0},
		{"one behind the other", one, segment.Gaps{gap(1, 5*gapMB, 9*gapMB), gap(1, 3*gapMB, 5*gapMB)}, 3 * gapMB, 9 * gapMB},
		{"overlapping", one, segment.Gaps{gap(1, 3*gapMB, 5*gapMB), gap(1, 4*gapMB, 6*gapMB)}, 3 * gapMB, 6 * gapMB},
		{"with a segment between", one, segment.Gaps{gap(1, 3*gapMB, 5*gapMB), gap(1, 6*gapMB, 9*gapMB)}, 3 * gapMB, 5 * gapMB},
		{"another timeline's", one, segment.Gaps{gap(2, 3*gapMB, 5*gapMB)}, 3 * gapMB, 0},
		{"across a switch", forkedAt(4*gapMB + 100), segment.Gaps{gap(1, 3*gapMB+9, 4*gapMB+100), gap(2, 4*gapMB+100, 7*gapMB)}, 3 * gapMB, 7 * gapMB},
		{"across a switch, within one segment", forkedAt(3*gapMB + 100), segment.Gaps{gap(1, 3*gapMB+9, 3*gapMB+100), gap(2, 3*gapMB+100, 7*gapMB)}, 3 * gapMB, 7 * gapMB},
		{"half recorded: the parent's part alone", forkedAt(5*gapMB + 100), segment.Gaps{gap(1, 3*gapMB+9, 5*gapMB+100)}, 3 * gapMB, 5 * gapMB},
		{"half recorded: the child's part alone", forkedAt(5*gapMB + 100), segment.Gaps{gap(2, 5*gapMB+100, 7*gapMB)}, 3 * gapMB, 0},
		{"a branch that left inside it", forkedAt(5*gapMB + 100), segment.Gaps{gap(1, 3*gapMB, 9*gapMB)}, 3 * gapMB, 5 * gapMB},
		{"a branch that left before it", forkedAt(3 * gapMB), segment.Gaps{gap(1, 3*gapMB, 9*gapMB)}, 3 * gapMB, 0},
	} {
		got, ok := c.gaps.Behind(c.h, size, c.missing)
		if !ok {
			got = 0
		}
		if got != c.want {
			t.Errorf("%s: Behind(%s) = %s, want %s", c.what, c.missing, got, c.want)
		}
	}
}

func TestMissing(t *testing.T) {
	h := forkedAt(4*gapMB + 100)
	for _, c := range []struct {
		from, to segment.LSN
		want     segment.Gaps
	}{
		{3 * gapMB, 3 * gapMB, nil},
		{2*gapMB + 5, 4 * gapMB, segment.Gaps{{Timeline: 1, Start: 2*gapMB + 5, End: 4 * gapMB}}},
		{2*gapMB + 5, 6 * gapMB, segment.Gaps{{Timeline: 1, Start: 2*gapMB + 5, End: 4*gapMB + 100}, {Timeline: 2, Start: 4*gapMB + 100, End: 6 * gapMB}}},
		{4*gapMB + 100, 6 * gapMB, segment.Gaps{{Timeline: 2, Start: 4*gapMB + 100, End: 6 * gapMB}}},
	} {
		if got := segment.Missing(h, c.from, c.to); !slices.Equal(got, c.want) {
			t.Errorf("Missing(%s, %s) = %v, want %v", c.from, c.to, got, c.want)
		}
	}
	gaps := segment.Missing(h, 2*gapMB, 6*gapMB)
	for l, want := range map[segment.LSN]bool{2 * gapMB: false, 4*gapMB + 100: true, 6 * gapMB: true, 5 * gapMB: false} {
		if got := gaps.EndsAt(h, l); got != want {
			t.Errorf("EndsAt(%s) = %v", l, got)
		}
	}
}
