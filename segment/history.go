package segment

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// History is a timeline with its ancestors: what a timeline history file
// says. Timeline 1 has no file and no ancestors.
type History struct {
	Timeline  Timeline
	Ancestors []Switch // oldest first; each timeline larger than the one before
}

// Switch says that a timeline ended: its child took over at LSN At, the
// switchpoint. Bytes in [.., At) belong to the ended timeline, the byte at At
// is the child's first.
type Switch struct {
	Timeline Timeline
	At       LSN
	Reason   string
}

// ParseHistory reads the content of timeline t's history file: a line per
// ancestor with timeline ID, switchpoint and reason, separated by white space;
// lines that are empty or begin with # are comments (PostgreSQL:
// readTimeLineHistory in src/backend/access/transam/timeline.c). Timelines
// must increase and be smaller than t.
//
// A recovery that ends before the place where its target's timeline began still
// names that one as its parent (writeTimeLineHistory there), so that
// switchpoints may decrease: of the timelines in between nothing is part of the
// history. At is the earliest switchpoint from there on; a timeline of which
// nothing is part ends where it began.
func ParseHistory(t Timeline, content []byte) (History, error) {
	h := History{Timeline: t}
	sc := bufio.NewScanner(bytes.NewReader(content))
	for line := 1; sc.Scan(); line++ {
		text := strings.TrimSpace(sc.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		f := strings.Fields(text)
		if len(f) < 2 {
			return History{}, fmt.Errorf("%s, line %d: want a timeline and a switchpoint, have %q", t.HistoryName(), line, text)
		}
		id, err := strconv.ParseUint(f[0], 10, 32)
		if err != nil || id == 0 {
			return History{}, fmt.Errorf("%s, line %d: invalid timeline %q", t.HistoryName(), line, f[0])
		}
		at, err := ParseLSN(f[1])
		if err != nil {
			return History{}, fmt.Errorf("%s, line %d: %w", t.HistoryName(), line, err)
		}
		s := Switch{Timeline: Timeline(id), At: at, Reason: strings.Join(f[2:], " ")}
		if s.Timeline >= t {
			return History{}, fmt.Errorf("%s, line %d: timeline %d is not older than %d", t.HistoryName(), line, s.Timeline, t)
		}
		if n := len(h.Ancestors); n > 0 && s.Timeline <= h.Ancestors[n-1].Timeline {
			return History{}, fmt.Errorf("%s, line %d: timelines are out of order", t.HistoryName(), line)
		}
		for i := range h.Ancestors {
			h.Ancestors[i].At = min(h.Ancestors[i].At, s.At)
		}
		h.Ancestors = append(h.Ancestors, s)
	}
	if err := sc.Err(); err != nil {
		return History{}, fmt.Errorf("reading %s: %w", t.HistoryName(), err)
	}
	if t > 1 && len(h.Ancestors) == 0 {
		return History{}, fmt.Errorf("%s names no ancestor", t.HistoryName())
	}
	return h, nil
}

// Owner returns the timeline that the byte at l belongs to in this history:
// the ancestor whose range holds it, or the timeline itself.
func (h History) Owner(l LSN) Timeline {
	for _, s := range h.Ancestors {
		if l < s.At {
			return s.Timeline
		}
	}
	return h.Timeline
}

// Switchpoint returns where timeline t ended on the way to this one. ok is
// false when t is not an ancestor.
func (h History) Switchpoint(t Timeline) (at LSN, ok bool) {
	for _, s := range h.Ancestors {
		if s.Timeline == t {
			return s.At, true
		}
	}
	return 0, false
}

// Contains reports whether the byte before p is part of this history: whether
// a receiver that holds everything up to p can go on along it. It is so when
// p lies on the timeline itself, or on an ancestor at or before the LSN where
// that ancestor ended.
func (h History) Contains(p Position) bool {
	if p.Timeline == h.Timeline {
		return true
	}
	at, ok := h.Switchpoint(p.Timeline)
	return ok && p.LSN <= at
}

// Begin returns the LSN at which the timeline itself began: its parent's
// switchpoint, or zero for a timeline without ancestors.
func (h History) Begin() LSN {
	if n := len(h.Ancestors); n > 0 {
		return h.Ancestors[n-1].At
	}
	return 0
}

// BeginOf returns the LSN at which timeline t, this one or an ancestor, began:
// its parent's switchpoint; zero for the oldest, and for a timeline that is
// not part of this history.
func (h History) BeginOf(t Timeline) LSN {
	var begin LSN
	for _, s := range h.Ancestors {
		if s.Timeline == t {
			return begin
		}
		begin = s.At
	}
	if t == h.Timeline {
		return begin
	}
	return 0
}
