package recovery

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Text returns the plan for a person: lines of a word and what it is, with
// times in UTC. It ends with a line end.
func (p *Plan) Text() string {
	var b strings.Builder
	line := func(word, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", word, fmt.Sprintf(format, args...))
	}
	s := p.Backup.Sentinel
	line("base backup", "%s, PostgreSQL %s%s", p.Backup.Name, version(s.PgVersion), p.label())
	if !s.StartTime.IsZero() && !s.FinishTime.IsZero() {
		line("taken", "%s to %s", formatTime(s.StartTime), formatTime(s.FinishTime))
	}
	line("holds", "%s to %s%s", p.Backup.Start.LSN, p.Backup.Stop, sizes(s.UncompressedSize, s.CompressedSize))
	if s.Spec != nil {
		for _, oid := range slices.Sorted(maps.Keys(s.Spec.Locations)) {
			line("tablespace", "%d at %s", oid, s.Spec.Locations[oid])
		}
	}
	line("WAL", "up to %s", p.Reach)
	line("timeline", "%s", p.timelines())
	line("target", "%s", p.goal())
	for _, n := range p.Notes {
		line("note", "%s", n)
	}
	return b.String()
}

// label is what the backup was called, behind other words.
func (p *Plan) label() string {
	if p.Backup.Facts == nil || p.Backup.Facts.Label == "" {
		return ""
	}
	return fmt.Sprintf(", %q", p.Backup.Facts.Label)
}

// version writes 150018 as 15.18.
func version(n int) string { return fmt.Sprintf("%d.%d", n/10000, n%10000) }

func sizes(plain, stored int64) string {
	if plain == 0 {
		return ""
	}
	return fmt.Sprintf(", %s, %s in the archive", bytesText(plain), bytesText(stored))
}

// bytesText writes a number of bytes in the unit that suits.
func bytesText(n int64) string {
	const unit = 1024
	for i, name := range []string{"bytes", "kB", "MB", "GB"} {
		if next := int64(unit) << (10 * i); n < next {
			if i == 0 {
				return fmt.Sprintf("%d %s", n, name)
			}
			return fmt.Sprintf("%.1f %s", float64(n)/float64(next/unit), name)
		}
	}
	return fmt.Sprintf("%.1f TB", float64(n)/(1<<40))
}

// timelines are those that are replayed, from the backup's on.
func (p *Plan) timelines() string {
	var path []string
	from := p.Backup.Start.Timeline
	for _, s := range p.History.Ancestors {
		if s.Timeline >= from {
			path = append(path, fmt.Sprintf("%d to %s", s.Timeline, s.At))
		}
	}
	path = append(path, fmt.Sprint(p.History.Timeline))
	return strings.Join(path, ", then ")
}

// goal is the target, and what becomes of the server there.
func (p *Plan) goal() string {
	goal := p.Target.String()
	switch {
	case p.Standby && p.Target.none():
		return "none: a standby, which goes on with what is archived later"
	case p.Standby:
		return goal + ", as a standby; then " + p.Target.action()
	case p.Target.none():
		return goal + "; then the server becomes a primary on a new timeline"
	}
	return goal + "; then " + p.Target.action()
}

func (t Target) none() bool {
	return t.Time == nil && t.LSN == nil && t.XID == nil && t.Name == "" && !t.Immediate
}

// action is what the server does at the target, in words.
func (t Target) action() string {
	switch t.Action {
	case "promote":
		return "the server becomes a primary on a new timeline"
	case "shutdown":
		return "the server shuts down"
	}
	return "the server pauses, for you to look (pg_wal_replay_resume() makes it a primary)"
}
