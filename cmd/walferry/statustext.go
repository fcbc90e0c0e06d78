package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/walferry/walferry/cmd/internal/status"
)

// statusText is the report for a person.
func statusText(r status.Report, now time.Time) string {
	t := &table{}
	if p := r.Process; p != nil {
		processText(t, p)
		t.blank()
	} else {
		t.line("process", "%s", *r.NoProcess)
	}
	if a := r.Archive; a != nil {
		archiveText(t, a, now)
		if p := r.Process; p != nil && p.Archive != a.Store {
			t.line("note", "the process stores in another archive, %s", p.Archive)
		}
	} else {
		t.line("archive", "not shown: %s", *r.NoArchive)
	}
	return t.String()
}

// table is lines of a label and a text.
type table struct{ strings.Builder }

func (t *table) line(label, format string, args ...any) {
	fmt.Fprintf(&t.Builder, "%-11s%s\n", label, fmt.Sprintf(format, args...))
}

func (t *table) blank() { t.WriteByte('\n') }

func processText(t *table, p *status.Process) {
	since := func(at status.Time) string { return duration(p.At.Sub(at.Time)) }
	t.line("process", "%d, walferry %s, runs for %s", p.PID, p.Version, since(p.Started))
	t.line("state", "%s, for %s", p.State, since(p.StateSince))
	for _, w := range p.WaitingFor {
		attempts := ""
		if w.Attempts > 0 {
			attempts = fmt.Sprintf(", %d attempts", w.Attempts)
		}
		t.line("trouble", "cannot %s, for %s%s: %s", w.What, since(w.Since), attempts, w.Error)
	}
	if p.ShippingStopped != nil {
		t.line("stopped", "nothing more is stored in the archive: %s", *p.ShippingStopped)
	}
	if s := p.Server; s != nil {
		t.line("server", "%s, PostgreSQL %s, timeline %d", s.Address, s.Version, s.Timeline)
	} else {
		t.line("server", "not connected to yet")
	}
	t.line("slot", "%s; the server was told write %s, flush %s", p.Slot, orElse(p.Reported.Write, "-"), orElse(p.Reported.Flush, "-"))
	t.line("ack", "%s; %s", p.Ack, holdText(p))
	if s := p.Spool; s != nil {
		t.line("spool", "%s, %s of %s", s.Directory, formatBytes(s.UsedBytes), formatBytes(s.LimitBytes))
	}
	last := "nothing stored yet"
	if p.LastObject != nil {
		last = "stored last: " + objectText(p.LastObject, p.At.Time)
	}
	t.line("uploads", "%d pending; %s", p.UploadsPending, last)
	t.blank()
	positionsText(t, p)
}

func holdText(p *status.Process) string {
	hold := "no hold"
	switch {
	case p.Hold.InForce:
		hold = "the hold of " + formatBytes(p.Hold.LimitBytes) + " is in force"
	case p.Hold.LimitBytes > 0:
		hold = "the hold of " + formatBytes(p.Hold.LimitBytes) + " is not in force"
	}
	if p.CommitWaits {
		return "commits wait for walferry; " + hold
	}
	return hold
}

// positionsText is a line for each position, the server's end first.
func positionsText(t *table, p *status.Process) {
	w := tabwriter.NewWriter(t, 0, 8, 2, ' ', 0)
	// Writing to memory cannot fail.
	row := func(cells ...string) { _, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) }
	row("POSITION", "LSN", "TIMELINE", "BEHIND", "FOR")
	if s := p.Server; s != nil {
		row("server", orElse(s.End, "-"), fmt.Sprint(s.Timeline), "-", "-")
	}
	for _, at := range []struct {
		name string
		*status.Lagging
	}{{"received", p.Positions.Received}, {"spooled", p.Positions.Spooled}, {"shipped", p.Positions.Shipped}, {"sealed", p.Positions.Sealed}} {
		if at.Lagging == nil {
			row(at.name, "-", "-", "-", "-")
			continue
		}
		bytes, seconds := "-", "-"
		if at.LagBytes != nil {
			bytes = formatBytes(int64(*at.LagBytes))
		}
		if at.LagSeconds != nil {
			seconds = duration(time.Duration(*at.LagSeconds * float64(time.Second)))
		}
		row(at.name, at.LSN, fmt.Sprint(at.Timeline), bytes, seconds)
	}
	_ = w.Flush()
}

func archiveText(t *table, a *status.Archive, now time.Time) {
	about := []string{a.Store}
	if a.SystemIdentifier != nil {
		about = append(about, "system identifier "+*a.SystemIdentifier)
	}
	if a.SegmentSize != nil {
		about = append(about, fmt.Sprintf("segments of %s", formatBytes(int64(*a.SegmentSize))))
	}
	if a.WALCodec != nil {
		about = append(about, *a.WALCodec)
	}
	t.line("archive", "%s", strings.Join(about, ", "))
	backupsText(t, a, now)
	var timelines []string
	for i, one := range a.Timelines {
		text := fmt.Sprint(one.Timeline)
		switch {
		case one.Ended != nil:
			text += " to " + *one.Ended
		case i+1 < len(a.Timelines):
			text += " (another branch)"
		}
		timelines = append(timelines, text)
	}
	if len(timelines) == 0 {
		t.line("timelines", "none: there is no WAL")
		return
	}
	t.line("timelines", "%s", strings.Join(timelines, ", "))
	if a.HistoryError != nil {
		t.line("history", "of timeline %s is not known: %s", timelines[len(timelines)-1], *a.HistoryError)
	}
	if a.Sealed != nil {
		t.line("sealed", "%s", placeText(a.Sealed))
	}
	if a.BehindGap != nil {
		t.line("gap", "segment %s is missing; what lies behind it, to %s, is out of reach", orElse(a.Missing, "-"), *a.BehindGap)
	}
	for _, g := range a.Gaps {
		when := ""
		if g.RecordedAt != nil {
			when = fmt.Sprintf(", %s ago", duration(now.Sub(g.RecordedAt.Time)))
		}
		t.line("lost", "%s to %s on timeline %d: a gap was recorded%s", g.Start, g.End, g.Timeline, when)
	}
	if a.LastObject != nil {
		t.line("newest", "%s", objectText(a.LastObject, now))
	}
	switch {
	case a.Restorable != nil:
		t.line("restore", "would get up to %s right now", placeText(a.Restorable))
	case a.SegmentSize == nil:
		t.line("restore", "how far it would get is not known: nothing there says the size of a segment")
	default:
		t.line("restore", "would get nothing: there is no whole segment")
	}
}

// backupsText tells what a restore could choose from.
func backupsText(t *table, a *status.Archive, now time.Time) {
	switch {
	case a.BackupsError != nil:
		t.line("backups", "not known: %s", *a.BackupsError)
		return
	case len(a.Backups) == 0:
		t.line("backups", "none: nothing can be restored until there is one (walferry backup create)")
		return
	}
	newest := a.Backups[len(a.Backups)-1]
	text := newest.Name
	switch {
	case newest.Error != nil:
		text += ", which cannot be read: " + *newest.Error
	case newest.Restorable == nil:
		text += ", which cannot be restored (walferry backup show tells why)"
	case newest.Finished != nil:
		text += fmt.Sprintf(", finished %s ago", duration(now.Sub(newest.Finished.Time)))
	}
	t.line("backups", "%d; the newest is %s", len(a.Backups), text)
	for _, w := range a.Windows {
		t.line("window", "%s to %s, with %s or a newer one", w.From.LSN, placeText(&w.To), w.Backup)
	}
	if len(a.Windows) == 0 {
		t.line("window", "none: no backup can be restored")
	}
}

func placeText(p *status.Position) string { return fmt.Sprintf("%s on timeline %d", p.LSN, p.Timeline) }

func objectText(o *status.Object, now time.Time) string {
	return fmt.Sprintf("%s, %s, %s ago", o.Name, formatBytes(o.Bytes), duration(now.Sub(o.Stored.Time)))
}

// duration spells a time that has passed in the two largest units that matter.
func duration(d time.Duration) string {
	d = max(d, 0)
	switch s := int64(d / time.Second); {
	case d > 0 && d < time.Second:
		return fmt.Sprintf("%d ms", (d+time.Millisecond-1)/time.Millisecond)
	case d > 0 && d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 3600:
		return fmt.Sprintf("%d min %d s", s/60, s%60)
	case s < 48*3600:
		return fmt.Sprintf("%d h %d min", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%d days", s/(24*3600))
	}
}
