package receiver

import (
	"testing"
	"time"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/spool"
)

// boundSpool is a spool of a cluster's, on the disk.
func boundSpool(t *testing.T, o spool.Options) *spool.Spool {
	t.Helper()
	sp, err := spool.Open(disk.OS{}, t.TempDir(), o)
	if err == nil {
		err = sp.Bind(spool.Identity{SystemIdentifier: 1, SegmentSize: segment.MinSize})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sp.Close(); err != nil {
			t.Error(err)
		}
	})
	return sp
}

// TestAWholePartialThatWasGivenUpIsSealedLater: a segment is durable to its end
// when only its seal fails. What follows it cannot be compared with the page
// before, which is in no sealed segment and not in the archive: the segment is
// asked for once more, as after a restart.
func TestAWholePartialThatWasGivenUpIsSealedLater(t *testing.T) {
	sp := boundSpool(t, spool.Options{})
	n := segment.MinSize.Name(1, 3*mb)
	g, err := sp.Begin(n)
	if err == nil {
		err = g.WriteAt(make([]byte, mb), 3*mb)
	}
	if err != nil {
		t.Fatal(err)
	}
	g.Advance(4 * mb)
	durable, err := g.Sync()
	if err != nil || durable != 4*mb {
		t.Fatalf("durable up to %s, %v", durable, err)
	}
	r := &Receiver{spool: sp, size: segment.MinSize, history: segment.History{Timeline: 1},
		pos: segment.Position{Timeline: 1, LSN: 4 * mb}, spooled: durable, resolved: true}
	st := &streaming{r: r, disk: &syncer{queue: []fullSegment{{g, time.Now()}}}}
	st.giveUp()
	if r.pos.LSN != 4*mb {
		t.Errorf("received is %s; everything before %s is durable", r.pos, durable)
	}
	if from, page := r.startPosition(); page || from.LSN != 3*mb {
		t.Errorf("goes on at %s (page before it: %v), want the start of %s", from, page, n)
	}
	// Begun again it is one of those that are held.
	if _, err := sp.Begin(n); err != nil {
		t.Fatal(err)
	}
	if from, page := r.startPosition(); page || from.LSN != 3*mb {
		t.Errorf("begun again: goes on at %s (page before it: %v), want the start of %s", from, page, n)
	}
}
