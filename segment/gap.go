package segment

import (
	"cmp"
	"fmt"
	"strings"
)

// Gap is WAL that is known to be lost to an archive: the bytes [Start, End) of
// a timeline, in LSNs. Start is the first byte that is missing, which may lie
// inside a segment; End is where reception went on: the start of a segment, or
// the switchpoint behind which the gap goes on on the child. A gap says nothing
// of segments that turn up later: whoever reads one honours it as far as they
// are really missing.
type Gap struct {
	Timeline   Timeline
	Start, End LSN
}

// String returns the gap as "0/3200000 to 0/A000000 on timeline 1".
func (g Gap) String() string {
	return fmt.Sprintf("%s to %s on timeline %d", g.Start, g.End, g.Timeline)
}

// Name returns the name under which the gap is recorded: timeline, start and end
// in lower-case hexadecimal digits of fixed width,
// "00000001-0000000003200000-000000000a000000". No part of it looks like the
// name of a segment, so that nothing which removes old segments takes it along.
func (g Gap) Name() string {
	return fmt.Sprintf("%08x-%016x-%016x", uint32(g.Timeline), uint64(g.Start), uint64(g.End))
}

// ParseGap reads what Name returns, and nothing else.
func ParseGap(s string) (Gap, error) {
	if len(s) == 8+1+16+1+16 && s[8] == '-' && s[25] == '-' && strings.ToLower(s) == s {
		t, ok := parseHex(s[:8])
		start, okStart := parseHex16(s[9:25])
		end, okEnd := parseHex16(s[26:])
		g := Gap{Timeline(t), start, end}
		if ok && okStart && okEnd && g.Check() == nil {
			return g, nil
		}
	}
	return Gap{}, fmt.Errorf("invalid name of a gap %q: want a timeline, a start and a later end, in 8, 16 and 16 digits 0-9 a-f, with - between", s)
}

// parseHex16 reads 16 hexadecimal digits of either case.
func parseHex16(s string) (LSN, bool) {
	hi, okHi := parseHex(s[:8])
	lo, okLo := parseHex(s[8:])
	return LSN(hi)<<32 | LSN(lo), okHi && okLo
}

// Check returns an error unless the gap is on a timeline and has a byte.
func (g Gap) Check() error {
	if g.Timeline == 0 || g.Start >= g.End {
		return fmt.Errorf("no gap: %s", g)
	}
	return nil
}

// Touches reports whether a byte of segment n, of size s, lies in the gap: then
// the segment cannot be whole unless somebody else had it.
func (g Gap) Touches(n Name, s Size) bool {
	return g.Timeline == n.Timeline && g.Start < n.End(s) && n.Start(s) < g.End
}

// Along returns the part of the gap that is part of h; ok is false when there
// is none. A branch that left the timeline inside the gap has only what was
// missing before.
func (g Gap) Along(h History) (part Gap, ok bool) {
	end, ended := h.Switchpoint(g.Timeline)
	if !ended && g.Timeline != h.Timeline {
		return Gap{}, false
	}
	if ended {
		g.End = min(g.End, end)
	}
	g.Start = max(g.Start, h.BeginOf(g.Timeline))
	return g, g.Start < g.End
}

// Compare orders gaps by timeline, then by start and end.
func (g Gap) Compare(o Gap) int {
	return cmp.Or(cmp.Compare(g.Timeline, o.Timeline), cmp.Compare(g.Start, o.Start), cmp.Compare(g.End, o.End))
}

// Gaps are the gaps of an archive, in any order. They may overlap.
type Gaps []Gap

// Along returns their parts that are part of h.
func (all Gaps) Along(h History) Gaps {
	var parts Gaps
	for _, g := range all {
		if part, ok := g.Along(h); ok {
			parts = append(parts, part)
		}
	}
	return parts
}

// Behind returns where WAL goes on along h behind the gap in which the segment
// that holds l ends: the start of a segment. ok is false when that segment's
// last byte lies in no gap: then nothing excuses that it is missing. (A segment
// of which only the beginning lies in one is that of a child which began there,
// whose server has it whole.)
func (all Gaps) Behind(h History, s Size, l LSN) (next LSN, ok bool) {
	parts := all.Along(h)
	next = s.Start(l)
	for moved := true; moved; {
		moved = false
		last := next + LSN(s) - 1
		for _, g := range parts {
			if g.Start <= last && last < g.End {
				next, moved = s.Start(g.End), true
				break
			}
		}
	}
	return next, next > s.Start(l)
}

// EndsAt reports whether a gap along h ends at l: nothing is held of what lies
// before.
func (all Gaps) EndsAt(h History, l LSN) bool {
	for _, g := range all.Along(h) {
		if g.End == l {
			return true
		}
	}
	return false
}

// Missing returns what lies between a position and an LSN along h, a gap for
// each timeline, oldest first.
func Missing(h History, from, to LSN) Gaps {
	var all Gaps
	for from < to {
		g := Gap{Timeline: h.Owner(from), Start: from, End: to}
		if at, ended := h.Switchpoint(g.Timeline); ended {
			g.End = min(to, at)
		}
		all = append(all, g)
		from = g.End
	}
	return all
}
