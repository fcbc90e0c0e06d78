package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/walferry/walferry/receiver"
	"github.com/walferry/walferry/segment"
)

// A gap cuts the windows that would have gone on: not those that ended before,
// nor that of a backup which cannot be restored.
func TestCutText(t *testing.T) {
	gap := &receiver.GapError{
		Missing: segment.Gaps{{Timeline: 1, Start: 0x5000100, End: 0x9000000}}, Cause: errors.New("removed"),
	}
	backup := func(name string, stop, reach segment.LSN) backupInfo {
		whole := reach != 0
		return backupInfo{Name: name, WALComplete: &whole, stop: segment.Position{Timeline: 1, LSN: stop}, reach: segment.Position{Timeline: 1, LSN: reach}}
	}
	early := backup("base_0", 0x1000100, 0x2000000) // ends at an older gap
	broken := backup("base_x", 0x3000100, 0)
	a, b := backup("base_a", 0x3000100, 0x5000000), backup("base_b", 0x4000100, 0x5000000)
	c, d := backup("base_c", 0x4800000, 0x5000000), backup("base_d", 0x5000000, 0x5000000)
	for _, x := range []struct {
		backups []backupInfo
		want    string
	}{
		{nil, "it cuts the recovery window of no base backup"},
		{[]backupInfo{broken}, "it cuts the recovery window of no base backup"},
		{[]backupInfo{early, a, broken}, "base backup base_a restores up to 0/5000100 and no further"},
		{[]backupInfo{early, a, b}, "base backups base_b, base_a restore up to 0/5000100 and no further"},
		{[]backupInfo{early, a, b, c, d}, "base backups base_d, base_c, base_b and 1 older ones restore up to 0/5000100"},
	} {
		if got := cutText(backupList{Backups: x.backups}, gap); !strings.Contains(got, x.want) || strings.Contains(got, "base_0") || strings.Contains(got, "base_x") {
			t.Errorf("%q; want %q", got, x.want)
		}
	}
}
