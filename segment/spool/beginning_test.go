package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/waltest"
)

// crossing is a log of two segments, the first on timeline 1: a record of
// 80,000 bytes begins in it, and ends in the second at the LSN returned.
func crossing(sysid uint64, t segment.Timeline) (log *waltest.Log, end segment.LSN) {
	log = waltest.New(sysid, size, base)
	log.Timeline = t
	log.Fill(second.Start(size) - 25_000)
	log.Record(80_000)
	end = (log.End() + 7) &^ 7
	log.Fill(second.End(size))
	return log, end
}

// torn is a spool as a process that was killed leaves it: the first segment
// sealed, or dropped since, and [0, n) of the second.
func torn(t *testing.T, log *waltest.Log, n segment.LSN, drop bool) (*crashfs.FS, *Spool) {
	t.Helper()
	fsys := crashfs.New(1)
	s := mustOpen(t, fsys, spoolDir)
	check(t, s.Bind(cluster))
	g, err := s.Begin(first)
	check(t, err)
	write(t, g, log, first.Start(size), first.End(size))
	check(t, g.Seal())
	if drop {
		check(t, s.Drop(g))
	}
	if g, err = s.Begin(second); err != nil {
		t.Fatal(err)
	}
	write(t, g, log, second.Start(size), second.Start(size)+n)
	_, err = g.Sync()
	check(t, err)
	check(t, s.Close())
	fsys.Crash()
	return fsys, mustOpen(t, fsys, spoolDir)
}

func find(t *testing.T, s *Spool, n segment.Name) *Segment {
	t.Helper()
	for _, g := range s.Segments() {
		if g.Name() == n {
			return g
		}
	}
	t.Fatalf("%s is not in the spool", n)
	return nil
}

// records returns what a segment's own records vouch for, of n bytes.
func records(t *testing.T, log *waltest.Log, s segment.Name, n segment.LSN) (start, end segment.LSN) {
	t.Helper()
	start, end, err := segment.VerifiedRecords(bytes.NewReader(log.Segment(s.Start(size))), int64(n), segment.PageRules{Name: s, Size: size})
	check(t, err)
	return start, end
}

// vouched checks Vouched, and that Written follows it.
func vouched(t *testing.T, g *Segment, start, end segment.LSN) {
	t.Helper()
	written := g.Start()
	if start == g.Start() {
		written = end
	}
	if from, to := g.Vouched(); from != start || to != end || g.Written() != written {
		t.Errorf("%s is vouched for from %s to %s and written to %s; want from %s to %s, and %s", g.Name(), from, to, g.Written(), start, end, written)
	}
}

func TestOpenVouchesForTheBeginning(t *testing.T) {
	log, _ := crossing(sysid, 1)
	const n = 300_000
	_, end := records(t, log, second, n)
	_, s := torn(t, log, n, false)
	g := find(t, s, second)
	vouched(t, g, g.Start(), end)
	if to, err := g.VouchBeginning(nil); to != end || err != nil { // nothing is asked of the segment before
		t.Errorf("VouchBeginning: %s, %v", to, err)
	}
	g, err := s.Begin(second)
	check(t, err)
	vouched(t, g, g.Start(), end)
	if err := g.WriteAt([]byte{^log.Bytes(g.Start()+500, g.Start()+501)[0]}, g.Start()+500); !errors.Is(err, ErrConflict) {
		t.Errorf("another byte in the rest of the record: %v", err)
	}
	// Given up, it is another Segment, and checked again.
	g.Abandon()
	g, err = s.Begin(second)
	check(t, err)
	vouched(t, g, g.Start(), end)
}

// The segment in front of a timeline's first one is the parent's.
func TestOpenVouchesAcrossAFork(t *testing.T) {
	log, _ := crossing(sysid, 1)
	const n = 300_000
	_, end := records(t, log, second, n)
	child := second
	child.Timeline = 2
	fsys := crashfs.New(1)
	s := mustOpen(t, fsys, spoolDir)
	check(t, s.Bind(cluster))
	g, err := s.Begin(first)
	check(t, err)
	write(t, g, log, first.Start(size), first.End(size))
	check(t, g.Seal())
	check(t, s.PutHistory(2, fmt.Appendf(nil, "1\t%s\tno recovery target specified\n", end)))
	g, err = s.Begin(child)
	check(t, err)
	write(t, g, log, child.Start(size), child.Start(size)+n)
	_, err = g.Sync()
	check(t, err)
	check(t, s.Close())
	fsys.Crash()
	s = mustOpen(t, fsys, spoolDir)
	vouched(t, find(t, s, child), child.Start(size), end)
	if got := s.Before(child, size); got != first {
		t.Errorf("in front of %s is %s, want %s", child, got, first)
	}
	behind := child.Next(size)
	if got := s.Before(behind, size); got != child {
		t.Errorf("in front of %s is %s, want %s", behind, got, child)
	}
	unknown := behind
	unknown.Timeline = 3
	if got := s.Before(unknown, size); got.Timeline != 3 {
		t.Errorf("in front of %s, whose history is not held, is %s", unknown, got)
	}
}

// Nothing but the rest of the record is there whole, or not even that.
func TestBeginningIsTheRestOfARecord(t *testing.T) {
	log, end := crossing(sysid, 1)
	_, s := torn(t, log, end+8-second.Start(size), false)
	vouched(t, find(t, s, second), second.Start(size), end)
	_, s = torn(t, log, end-16-second.Start(size), false)
	vouched(t, find(t, s, second), second.Start(size), second.Start(size))
	_, s = torn(t, log, end-16-second.Start(size), true)
	g := find(t, s, second)
	if to, err := g.VouchBeginning(bytes.NewReader(log.Segment(base))); to != g.Start() || err != nil {
		t.Errorf("VouchBeginning: %s, %v", to, err)
	}
	vouched(t, g, g.Start(), g.Start())
}

func TestVouchBeginning(t *testing.T) {
	log, behind := crossing(sysid, 1)
	const n = 300_000
	start, end := records(t, log, second, n)
	if start != behind {
		t.Fatal(start, behind)
	}
	prev := log.Segment(base)
	fsys, s := torn(t, log, n, true)
	g := find(t, s, second)
	vouched(t, g, start, end)

	// Another segment, or none, vouches for nothing.
	wrong := bytes.Clone(prev)
	wrong[len(wrong)-1] ^= 1
	for _, p := range [][]byte{wrong, make([]byte, size), nil, log.Segment(second.Start(size))} {
		if to, err := g.VouchBeginning(bytes.NewReader(p)); to != g.Start() || err != nil {
			t.Errorf("with a wrong segment: %s, %v", to, err)
		}
		vouched(t, g, start, end)
	}
	other, _ := crossing(sysid+1, 1)
	if to, err := g.VouchBeginning(bytes.NewReader(other.Segment(base))); to != 0 || !errors.Is(err, segment.ErrForeignCluster) {
		t.Errorf("with another cluster's: %s, %v", to, err)
	}
	vouched(t, g, start, end)

	if to, err := g.VouchBeginning(bytes.NewReader(prev)); to != end || err != nil {
		t.Errorf("with the right one: %s, %v", to, err)
	}
	vouched(t, g, g.Start(), end)
	if to, err := g.VouchBeginning(bytes.NewReader(wrong)); to != end || err != nil {
		t.Errorf("once more: %s, %v", to, err)
	}
	if fsys.OpenFiles() != 0 {
		t.Errorf("%d files are open", fsys.OpenFiles())
	}

	again, err := s.Begin(second)
	check(t, err)
	if again != g {
		t.Fatal("Begin gave another segment")
	}
	vouched(t, g, g.Start(), end)
	check(t, g.WriteAt(log.Bytes(g.Start(), end), g.Start()))
	if err := g.WriteAt([]byte{1, 2, 3, 4}, g.Start()+600); !errors.Is(err, ErrConflict) {
		t.Errorf("other bytes in the rest of the record: %v", err)
	}
	if to, err := g.VouchBeginning(bytes.NewReader(prev)); to != end || err != nil {
		t.Errorf("after Begin: %s, %v", to, err)
	}
	write(t, g, log, g.Start(), g.End())
	check(t, g.Seal())
	if to, err := g.VouchBeginning(nil); to != g.End() || err != nil {
		t.Errorf("when it is sealed: %s, %v", to, err)
	}
	check(t, s.Drop(g))
	if _, err := g.VouchBeginning(bytes.NewReader(prev)); !errors.Is(err, ErrDropped) {
		t.Errorf("when it was dropped: %v", err)
	}
}

// A writer is not disturbed: what it compares was said at Begin.
func TestVouchBeginningAfterBegin(t *testing.T) {
	log, start := crossing(sysid, 1)
	_, s := torn(t, log, 300_000, true)
	g, err := s.Begin(second)
	check(t, err)
	_, end := g.Vouched()
	if to, err := g.VouchBeginning(bytes.NewReader(log.Segment(base))); to != g.Start() || err != nil {
		t.Errorf("VouchBeginning: %s, %v", to, err)
	}
	vouched(t, g, start, end)

	// Nor one that begins while the segment before is being read.
	_, s = torn(t, log, 300_000, true)
	g = find(t, s, second)
	prev := readerAt(func(p []byte, off int64) (int, error) {
		if off == 0 {
			_, err := s.Begin(second)
			check(t, err)
		}
		return bytes.NewReader(log.Segment(base)).ReadAt(p, off)
	})
	if to, err := g.VouchBeginning(prev); to != g.Start() || err != nil {
		t.Errorf("VouchBeginning: %s, %v", to, err)
	}
	vouched(t, g, start, end)
}

type readerAt func(p []byte, off int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// The disk gives other bytes to Begin than VouchBeginning saw: they are not
// vouched for any more.
func TestBeginChecksTheBeginningAgain(t *testing.T) {
	log, start := crossing(sysid, 1)
	fsys, s := torn(t, log, 300_000, true)
	g := find(t, s, second)
	end, err := g.VouchBeginning(bytes.NewReader(log.Segment(base)))
	check(t, err)
	f, err := fsys.Open(spoolDir+"/"+second.String()+".partial", true)
	check(t, err)
	_, err = f.WriteAt([]byte{1, 2, 3, 4}, 5000)
	check(t, errors.Join(err, f.Close()))
	g, err = s.Begin(second)
	check(t, err)
	vouched(t, g, start, end)
	check(t, g.WriteAt(log.Bytes(g.Start(), end), g.Start()))
	if g.Written() != end {
		t.Errorf("written to %s", g.Written())
	}
}

// The record lies on pages of the parent, on whose timeline the segment before
// is archived.
func TestVouchBeginningOfAChild(t *testing.T) {
	log, behind := crossing(sysid, 1)
	at := behind + 100_000
	fsys := crashfs.New(1)
	s := mustOpen(t, fsys, spoolDir)
	check(t, s.Bind(cluster))
	history := func(at segment.LSN) []byte { return []byte("1\t" + at.String() + "\tno recovery target specified\n") }
	check(t, s.PutHistory(2, history(at)))
	g, err := s.Begin(first)
	check(t, err)
	write(t, g, log, first.Start(size), first.End(size))
	check(t, g.Seal())
	check(t, s.Drop(g)) // or Open would know
	g, err = s.Begin(third)
	check(t, err)
	write(t, g, log, g.Start(), at)
	_, err = g.Sync()
	check(t, errors.Join(err, s.Close()))
	s = mustOpen(t, fsys, spoolDir)
	g = find(t, s, third)
	start, end := records(t, log, second, at-g.Start())
	vouched(t, g, start, end)
	if to, err := g.VouchBeginning(bytes.NewReader(log.Segment(base))); to != end || err != nil {
		t.Errorf("VouchBeginning: %s, %v", to, err)
	}
	vouched(t, g, g.Start(), end)
}

// A sealed segment that is damaged, or cannot be read, keeps nobody from the
// partial behind it.
func TestOpenWithADamagedSegmentBefore(t *testing.T) {
	log, start := crossing(sysid, 1)
	for what, damage := range map[string]func(b []byte){
		"one byte":     func(b []byte) { b[len(b)-1] ^= 1 },
		"all zeros":    func(b []byte) { clear(b) },
		"foreign":      func(b []byte) { b[25] ^= 1 },
		"segment size": func(b []byte) { b[34] ^= 0x30 },
	} {
		fsys, s := torn(t, log, 300_000, false)
		_, end := find(t, s, second).Vouched()
		check(t, s.Close())
		b := log.Segment(base)
		damage(b)
		f, err := fsys.Open(spoolDir+"/"+first.String(), true)
		check(t, err)
		_, err = f.WriteAt(b, 0)
		check(t, errors.Join(err, f.Close()))
		s = mustOpen(t, fsys, spoolDir)
		g := find(t, s, second)
		vouched(t, g, start, end)
		if to, err := g.VouchBeginning(bytes.NewReader(log.Segment(base))); to != end || err != nil {
			t.Errorf("%s: VouchBeginning with the right one: %s, %v", what, to, err)
		}
		check(t, s.Close())
	}
}

// The segment before may leave the spool at any moment, and the partial may be
// begun.
func TestVouchBeginningBesideOthers(t *testing.T) {
	log, _ := crossing(sysid, 1)
	prev := log.Segment(base)
	for range 20 {
		_, s := torn(t, log, 300_000, true)
		g := find(t, s, second)
		start, end := g.Vouched()
		begun := make(chan error, 1)
		go func() {
			_, err := s.Begin(second)
			begun <- err
		}()
		to, err := g.VouchBeginning(bytes.NewReader(prev))
		if err != nil || to != end && to != g.Start() {
			t.Errorf("VouchBeginning beside Begin: %s, %v", to, err)
		}
		check(t, <-begun)
		if to == end { // and what was said stays so
			start = g.Start()
		}
		vouched(t, g, start, end)
		check(t, s.Close())
	}
	for range 5 {
		fsys, s := torn(t, log, 300_000, false)
		before := find(t, s, first)
		dropped := make(chan error, 1)
		go func() { dropped <- s.Drop(before) }()
		g, err := s.Begin(second)
		check(t, errors.Join(err, <-dropped))
		if from, _ := g.Vouched(); from != g.Start() { // Open had found it, and the bytes are the same
			t.Errorf("vouched for from %s on", from)
		}
		if _, err := fsys.Stat(spoolDir + "/" + first.String()); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		check(t, s.Close())
	}
}
