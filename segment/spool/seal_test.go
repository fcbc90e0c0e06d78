package spool

import (
	"bytes"
	"testing"

	"github.com/walferry/walferry/segment/disk/crashfs"
)

// Seal alone makes the bytes durable: nothing has to have synced them before,
// and a segment that was received in one go is sealed so.
func TestSealSyncsTheBytes(t *testing.T) {
	log, _ := logs()
	for seed := range uint64(10) {
		fsys := crashfs.New(seed)
		s := mustOpen(t, fsys, spoolDir)
		check(t, s.Bind(cluster))
		g, err := s.Begin(first)
		check(t, err)
		write(t, g, log, first.Start(size), first.End(size))
		g.Advance(first.End(size))
		check(t, g.Seal())
		fsys.Crash()

		held := mustOpen(t, fsys, spoolDir).Segments()
		if len(held) != 1 || held[0].Name() != first || !held[0].Sealed() {
			t.Fatalf("seed %d: after the crash the spool holds %v", seed, held)
		}
		have := make([]byte, size)
		check(t, held[0].ReadAt(have, first.Start(size)))
		if !bytes.Equal(have, log.Segment(first.Start(size))) {
			t.Fatalf("seed %d: the sealed segment has other bytes after the crash", seed)
		}
	}
}
