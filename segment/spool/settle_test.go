package spool

import (
	"errors"
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
)

// TestSettle: what was written behind the place is overwritten, what lies in
// front of it is compared.
func TestSettle(t *testing.T) {
	s, err := Open(disk.OS{}, t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.Bind(Identity{SystemIdentifier: 1, SegmentSize: segment.MinSize}); err != nil {
		t.Fatal(err)
	}
	g, err := s.Begin(segment.MinSize.Name(1, segment.LSN(segment.MinSize)))
	if err != nil {
		t.Fatal(err)
	}
	right, wrong := []byte("right bytes"), []byte("wrong bytes")
	place := g.Start() + segment.LSN(len(right))
	for _, w := range []struct {
		p  []byte
		at segment.LSN
	}{{right, g.Start()}, {wrong, place}} {
		if err := g.WriteAt(w.p, w.at); err != nil {
			t.Fatal(err)
		}
	}
	g.Settle(place)
	if from, to := g.Vouched(); from != g.Start() || to != place || g.Written() != place || g.Advanced() != place {
		t.Errorf("vouched %s to %s, written %s, advanced %s; settled at %s", from, to, g.Written(), g.Advanced(), place)
	}
	if err := g.WriteAt(right, place); err != nil {
		t.Errorf("behind the place: %v", err)
	}
	if err := g.WriteAt(wrong, g.Start()); !errors.Is(err, ErrConflict) {
		t.Errorf("other bytes in front of it: %v", err)
	}
	if g, err = s.Begin(g.Name()); err != nil { // as the next stream does
		t.Fatal(err)
	}
	got := make([]byte, len(right))
	if err := g.ReadAt(got, place); err != nil || string(got) != string(right) {
		t.Errorf("behind the place are %q, %v", got, err)
	}
}
