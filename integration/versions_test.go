package integration

import (
	"testing"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// coreVersions are the installations that the core scenarios run on: one of
// every major version in a full run, else the main one and the newest.
// found is sorted by major version.
func coreVersions(found []instance.Installation, main instance.Installation, full bool) []instance.Installation {
	var core []instance.Installation
	for n, i := range found {
		switch {
		case i.Major == main.Major:
			if i != main {
				continue
			}
		case n > 0 && found[n-1].Major == i.Major:
			continue
		case n > 0 && !full:
			continue
		}
		core = append(core, i)
	}
	return core
}

func TestCoreVersions(t *testing.T) {
	of := func(majors ...int) (all []instance.Installation) {
		for n, m := range majors {
			all = append(all, instance.Installation{Major: m, Bin: string(rune('a' + n))})
		}
		return all
	}
	cases := []struct {
		name  string
		found []instance.Installation
		main  int // index in found
		full  bool
		want  string // the directories
	}{
		{"one", of(15), 0, false, "a"},
		{"one, full", of(15), 0, true, "a"},
		{"the newest beside", of(18, 17, 15, 14), 2, false, "ac"},
		{"all", of(18, 17, 15, 14), 2, true, "abcd"},
		{"the newest is the main one", of(15, 14), 0, false, "a"},
		{"two of a version", of(18, 18, 15, 15), 2, true, "ac"},
		{"15 is not there", of(18, 17), 0, false, "a"},
	}
	for _, c := range cases {
		var got string
		for _, i := range coreVersions(c.found, c.found[c.main], c.full) {
			got += i.Bin
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// onVersions runs a core scenario on several versions of PostgreSQL at a time.
func onVersions(t *testing.T, scenario func(t *testing.T, i instance.Installation)) {
	t.Helper()
	if theLab.missing != "" {
		t.Skip("NOT TESTED: " + theLab.missing)
	}
	t.Parallel() // beside other tests too
	for _, i := range theLab.core {
		t.Run(i.Version, func(t *testing.T) {
			t.Parallel()
			scenario(t, i)
		})
	}
}

// onVersionsInFull is onVersions where every version matters and a commit cannot
// wait for all: else the scenario runs on the main one alone.
func onVersionsInFull(t *testing.T, scenario func(t *testing.T, i instance.Installation)) {
	t.Helper()
	if theLab.missing != "" || theLab.full {
		onVersions(t, scenario)
		return
	}
	t.Parallel()
	scenario(t, theLab.main)
}

// The smallest and the largest segments that the spool has been sized for:
// received over a kill and a restart, archived and fetched, they are the
// server's own bytes.
func TestSegmentSizes(t *testing.T) {
	for name, size := range map[string]int{"1 MB": 1, "64 MB": 64} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// PostgreSQL wants room for two segments.
			s := newScene(t, options{segmentSize: size, settings: map[string]string{"min_wal_size": "128MB"}})
			r := s.receive()
			first := s.slotSegment()
			s.table()
			s.fill(5000)
			eventually(t, "some WAL in the spool", func() bool { return len(spooled(t, s.spool)) > 0 })
			r.kill9()
			r = s.receive()
			s.fill(5000)
			var last segment.Name
			for range 2 {
				last = s.switchWAL()
				s.fill(100)
			}
			s.awaitSealed(first, last)
			r.stop()
			s.checkArchive(first, last)
			s.checkFetched(first, last)
		})
	}
}
