package fakepg_test

import (
	"bytes"
	"testing"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

// The made-up WAL passes the checks that real WAL passes: every page, and
// every record to the last one.
func TestWAL(t *testing.T) {
	const id, size = 42, segment.MinSize
	w := fakepg.NewWAL(id, size, 1)
	w.FillTo(1, 3*segment.LSN(size)+1000)
	w.Append(1, 100_000) // over many pages
	switched := w.SwitchSegment(1)
	w.FillTo(1, switched+20_000)
	at := w.End(1)
	w.Append(1, 500)
	child := w.Fork(1, at)
	w.FillTo(child, size.Start(at)+2*segment.LSN(size))
	w.Append(child, 10) // the last segment holds a whole record

	file, ok := w.HistoryFile(child)
	if !ok {
		t.Fatal("no history file")
	}
	h, err := segment.ParseHistory(child, file)
	if err != nil || h.Begin() != at {
		t.Fatalf("history %q: %v", file, err)
	}
	for _, c := range []struct {
		timeline segment.Timeline
		history  *segment.History
	}{{1, nil}, {child, &h}} {
		for l := segment.LSN(size); l < w.End(c.timeline); l += segment.LSN(size) {
			n := size.Name(c.timeline, l)
			data := w.Segment(n)
			rules := segment.PageRules{Name: n, Size: size, SystemIdentifier: id, History: c.history}
			check := segment.NewPageChecker(rules)
			if _, err := check.Write(data); err != nil {
				t.Errorf("%s: %v", n, err)
			}
			if err := check.Close(); err != nil {
				t.Errorf("%s: %v", n, err)
			}
			want := min(n.End(size), w.End(c.timeline))
			_, end, err := segment.VerifiedRecords(bytes.NewReader(data), int64(size), rules)
			if err != nil {
				t.Errorf("%s: %v", n, err)
			}
			// A record that goes on in the next segment is not verified here.
			if end > want || want < n.End(size) && end != want || end+120_000 < want {
				t.Errorf("%s: records up to %v; want about %v", n, end, want)
			}
		}
	}
	if !bytes.Equal(w.Bytes(1, segment.LSN(size), at), w.Bytes(child, segment.LSN(size), at)) {
		t.Error("the timelines differ before the switchpoint")
	}
	if bytes.Equal(w.Bytes(1, at, at+80), w.Bytes(child, at, at+80)) {
		t.Error("the timelines are the same behind the switchpoint")
	}
	if a, b := fakepg.NewWAL(id, size, 1), fakepg.NewWAL(id, size, 2); bytes.Equal(a.Bytes(1, 0x100000, 0x100080), b.Bytes(1, 0x100000, 0x100080)) {
		t.Error("seeds do not matter")
	}
}
