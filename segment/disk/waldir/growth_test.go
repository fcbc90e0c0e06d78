package waldir

import (
	"errors"
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/spool"
	"github.com/walferry/walferry/segment/waltest"
)

// A run of years seals segments without end: none of them is remembered.
func TestSealedSegmentsAreNotRemembered(t *testing.T) {
	const size = segment.MinSize
	for _, m := range []Method{None, Gzip, LZ4} {
		dir := t.TempDir()
		d := New(disk.OS{}, dir, Options{Method: m, NoSync: true})
		s, err := spool.Open(d, dir, spool.Options{Keep: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Bind(spool.Identity{SystemIdentifier: 7, SegmentSize: size}); err != nil {
			t.Fatal(err)
		}
		start := segment.LSN(3 * size)
		log := waltest.New(7, size, start)
		log.Fill(start + 20_000)
		log.Switch()
		for n := range segment.LSN(12) {
			g, err := s.Begin(size.Name(1, start+n*segment.LSN(size)))
			if err != nil {
				t.Fatal(err)
			}
			err = g.WriteAt(log.Segment(start), g.Start())
			g.Advance(g.End())
			err = errors.Join(err, g.Seal(), g.ReadAt(make([]byte, 100), g.Start()+5000), s.Drop(g))
			if err != nil {
				t.Fatal(err)
			}
		}
		if len(d.shown) != 0 || len(d.streams) != 0 || len(d.open) > 1 {
			t.Errorf("method %d: %d names, %d streams and %d files are remembered", m, len(d.shown), len(d.streams), len(d.open))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
