package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// printBackups prints the list for a person.
func (c *call) printBackups(list backupList) error {
	if len(list.Backups) == 0 {
		return c.say("no base backup in %s\n", list.Archive)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	// tabwriter keeps the first error for Flush.
	row := func(cells ...string) { _, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) }
	row("NAME", "FINISHED", "TOOK", "SIZE", "STORED", "SERVER", "RESTORES FROM", "TO", "REMARKS")
	for _, b := range list.Backups {
		row(b.Name, orElse(b.Finished, "-"), b.took(), bytesText(b.Bytes), bytesText(b.StoredBytes), firstWord(orElse(b.Server, "-")),
			positionText(b.Stop), positionText(b.RestorableTo), orDash(strings.Join(b.remarks(), "; ")))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the backups: %w", err)
	}
	return nil
}

func (b backupInfo) took() string {
	if b.DurationSeconds == nil {
		return "-"
	}
	return duration(time.Duration(*b.DurationSeconds * float64(time.Second)))
}

// remarks are what a person must know beside the numbers.
func (b backupInfo) remarks() []string {
	var all []string
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	switch {
	case b.Error != nil:
		add("CANNOT BE READ: %s", *b.Error)
	case b.WALMissing != nil:
		add("CANNOT BE RESTORED: WAL is missing from segment %s on", *b.WALMissing)
	case b.WALComplete == nil:
		add("not known whether its WAL is there")
	case b.WALSealed != nil && !*b.WALSealed:
		add("its WAL ends in tail objects so far: wal-g cannot use it yet")
	}
	if b.Gap != nil {
		add("WAL ends at a recorded gap: %s", *b.Gap)
	}
	if b.FactsError != nil {
		add("its walferry.json CANNOT BE READ: %s", *b.FactsError)
	}
	if n := len(b.Suspect); n > 0 {
		add("SUSPECT: %d warnings about pages", n)
	}
	if b.WALIncluded {
		add("with its WAL")
	}
	if b.DependsOn != nil {
		add("a delta of %s", *b.DependsOn)
	}
	if b.FromStandby != nil && *b.FromStandby {
		add("from a standby")
	}
	if n := len(b.Tablespaces); n > 0 {
		add("%d tablespaces", n)
	}
	if b.Permanent {
		add("permanent")
	}
	if b.By == "wal-g" && b.Error == nil {
		add("by wal-g")
	}
	return all
}

func positionText(p *backupPosition) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprintf("%s (%d)", p.LSN, p.Timeline)
}

func bytesText(n *int64) string {
	if n == nil {
		return "-"
	}
	return formatBytes(*n)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func firstWord(text string) string {
	word, _, _ := strings.Cut(text, " ")
	return word
}

// backupText is a backup for a person, a line for each thing.
func backupText(b backupInfo, list backupList) string {
	t := &table{}
	newest := ""
	if list.Latest != nil && *list.Latest == b.Name {
		newest = ", the newest"
	}
	t.line("backup", "%s, by %s%s", b.Name, b.By, newest)
	t.line("archive", "%s", list.Archive)
	if b.Error != nil {
		t.line("error", "%s", *b.Error)
		return t.String()
	}
	t.line("label", "%s", orDash(orElse(b.Label, "-")))
	standby := ""
	if b.FromStandby != nil && *b.FromStandby {
		standby = ", a standby"
	}
	t.line("server", "PostgreSQL %s, system identifier %s%s", orElse(b.Server, "-"), orElse(b.System, "-"), standby)
	t.line("time", "%s to %s, %s", orElse(b.Started, "-"), orElse(b.Finished, "-"), b.took())
	t.line("size", "%s, stored as %s (%s)", bytesText(b.Bytes), bytesText(b.StoredBytes), orElse(b.Compression, "-"))
	if b.Start != nil && b.Stop != nil {
		t.line("start", "%s", b.Start)
		t.line("stop", "%s: no earlier target can be reached", b.Stop)
	}
	switch {
	case b.RestorableTo != nil:
		t.line("restores", "to any moment from there to %s", b.RestorableTo)
	case b.WALMissing != nil:
		t.line("restores", "NOT: WAL is missing from segment %s on", *b.WALMissing)
	}
	for _, remark := range b.remarks() {
		t.line("remark", "%s", remark)
	}
	for _, oid := range sortedNames(b.Tablespaces) {
		t.line("tablespace", "%s at %s", oid, b.Tablespaces[oid])
	}
	for _, page := range b.Suspect {
		t.line("suspect", "%s", page)
	}
	return t.String()
}

func sortedNames(m map[string]string) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
