package receiver

import (
	"errors"
	"testing"
	"time"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// TestASegmentThatAnotherSealed: the uploader may seal a kept segment before the
// receiver has come to it. Nothing of it waits for an fsync then: the loop would
// turn without a pause, with no segment that it could give to the disk.
func TestASegmentThatAnotherSealed(t *testing.T) {
	sp := boundSpool(t, spool.Options{Keep: true})
	g, err := sp.Begin(segment.MinSize.Name(1, 3*mb))
	if err != nil {
		t.Fatal(err)
	}
	r := &Receiver{spool: sp, size: segment.MinSize, history: segment.History{Timeline: 1}, pos: segment.Position{Timeline: 1, LSN: 4 * mb}, seg: g}
	st := &streaming{r: r, disk: &syncer{}, cursor: 3 * mb}
	if err := st.store(make([]byte, mb)); err != nil || !st.dirty {
		t.Fatalf("dirty %v, %v", st.dirty, err)
	}
	g.Advance(4 * mb)
	late := time.Now().Add(time.Hour)
	if next := st.nextSync(late); !next.Before(late) {
		t.Error("what was written is not synced")
	}
	if err := errors.Join(g.Seal(), st.close()); err != nil {
		t.Fatal(err)
	}
	if r.spooled != 4*mb {
		t.Errorf("spooled is %s", r.spooled)
	}
	if next := st.nextSync(late); st.dirty || !next.Equal(late) || len(st.disk.queue) > 0 {
		t.Errorf("a sync is due at %s, with nothing to sync (dirty %v, %d segments wait)", next, st.dirty, len(st.disk.queue))
	}
}

// TestANewSegmentIsNoWrite: where a segment ends of which nothing was written
// since the last sync, nothing was written now. A tail object waits for its
// interval from the last write on, and would wait for nothing.
func TestANewSegmentIsNoWrite(t *testing.T) {
	sp := boundSpool(t, spool.Options{Keep: true})
	g, err := sp.Begin(segment.MinSize.Name(1, 3*mb))
	if err != nil {
		t.Fatal(err)
	}
	r := &Receiver{spool: sp, size: segment.MinSize, history: segment.History{Timeline: 1}, pos: segment.Position{Timeline: 1, LSN: 4 * mb}, seg: g}
	last := time.Now().Add(-time.Hour)
	st := &streaming{r: r, disk: &syncer{}, cursor: 4 * mb, clean: last}
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	if !st.clean.Equal(last) {
		t.Errorf("something was written at %s", st.clean)
	}
	if len(st.disk.queue) != 1 {
		t.Errorf("%d segments wait to be sealed", len(st.disk.queue))
	}
}
