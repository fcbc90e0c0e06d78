package main

import (
	"slices"
	"testing"
	"time"

	"github.com/walferry/walferry/segment"
)

// Backups whose WAL ends at one place open one window, from the oldest one's end
// on; those that cannot be restored open none.
func TestBackupWindows(t *testing.T) {
	at := func(tl segment.Timeline, l segment.LSN) segment.Position {
		return segment.Position{Timeline: tl, LSN: l}
	}
	finish := time.Date(2026, 11, 22, 1, 0, 0, 0, time.UTC)
	of := func(name string, stop, reach segment.Position) backupInfo {
		b := backupInfo{Name: name, stop: stop, reach: reach, finish: finish}
		b.WALComplete = new(reach != segment.Position{})
		return b
	}
	damaged := of("damaged", segment.Position{}, segment.Position{})
	damaged.Error, damaged.finish = new("invalid sentinel"), time.Time{}
	list := backupList{Backups: []backupInfo{
		of("a", at(1, 0x2000100), at(1, 0x5000000)),
		of("b", at(1, 0x4000100), at(1, 0x5000000)), // in front of a gap, as the first
		of("c", at(1, 0x9000100), at(2, 0xC000000)), // behind it
		of("d", at(2, 0xD000100), segment.Position{}),
		of("e", at(2, 0xB000100), at(2, 0xC000000)),
		damaged,
	}}
	backups, windows := backupsDocument(list)
	if len(backups) != len(list.Backups) {
		t.Fatalf("%d backups of %d", len(backups), len(list.Backups))
	}
	for i, b := range backups {
		from := list.Backups[i]
		if b.Name != from.Name || (b.Finished == nil) != from.finish.IsZero() || b.Error != from.Error || (b.Restorable == nil) != !from.restorable() {
			t.Errorf("%s: %+v", from.Name, b)
		}
	}
	var got []string
	for _, w := range windows {
		got = append(got, w.Backup+" "+w.From.LSN+" "+placeText(&w.To))
		if !w.Finished.Equal(finish) {
			t.Errorf("%s begins at %s", w.Backup, w.Finished)
		}
	}
	if want := []string{"a 0/2000100 0/5000000 on timeline 1", "c 0/9000100 0/C000000 on timeline 2"}; !slices.Equal(got, want) {
		t.Errorf("windows %q, want %q", got, want)
	}
	// In JSON "none" is a list, and "not known" is null.
	if backups, windows := backupsDocument(backupList{}); backups == nil || windows == nil {
		t.Error("none is nil")
	}
}
