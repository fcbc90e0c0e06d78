package spool

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/crashfs"
)

// reserving is a file system that knows which blocks of a file are reserved
// only, and counts the syncs that make ordinary ones of them.
type reserving struct {
	disk.FS
	syncs, marking, written *int
}

type reservedFile struct {
	disk.File
	fs     reserving
	blocks map[int64]bool // written, and synced or not
	fresh  bool           // since the last sync
}

func (r reserving) Create(name string, perm fs.FileMode) (disk.File, error) {
	f, err := r.FS.Create(name, perm)
	return &reservedFile{File: f, fs: r, blocks: map[int64]bool{}}, err
}

func (f *reservedFile) WriteAt(p []byte, off int64) (int, error) {
	*f.fs.written += len(p)
	for b := off / 4096; b <= (off+int64(len(p))-1)/4096; b++ {
		f.fresh = f.fresh || !f.blocks[b]
		f.blocks[b] = true
	}
	return f.File.WriteAt(p, off)
}

func (f *reservedFile) Sync() error {
	*f.fs.syncs++
	if f.fresh {
		*f.fs.marking++
	}
	f.fresh = false
	return f.File.Sync()
}

// Of syncs that follow each small write few have to do with more than bytes:
// one for so much WAL as is zeroed ahead, not one for each block.
func TestSmallSyncsFindOrdinaryBlocks(t *testing.T) {
	var syncs, marking, written int
	s := mustOpen(t, reserving{crashfs.New(1), &syncs, &marking, &written}, spoolDir)
	check(t, s.Bind(cluster))
	g, err := s.Begin(first)
	check(t, err)
	written = 0
	n := stream(t, g, 150, 1)
	if most := int(size)/zerosAhead + 1; marking > most || syncs < n {
		t.Errorf("%d of %d syncs of %d small writes had blocks to mark, want at most %d", marking, syncs, n, most)
	}
	if written > 2*int(size) {
		t.Errorf("%d bytes were written for a segment", written)
	}
}

// Where many writes go into one sync nothing is written twice.
func TestLargeSyncsNeedNoZeros(t *testing.T) {
	var syncs, marking, written int
	s := mustOpen(t, reserving{crashfs.New(1), &syncs, &marking, &written}, spoolDir)
	check(t, s.Bind(cluster))
	g, err := s.Begin(first)
	check(t, err)
	written = 0
	stream(t, g, 4000, 100)
	if most := int(size) + int(size)/(400_000)*zerosAhead + 2*zerosAhead; written > most {
		t.Errorf("%d bytes were written for a segment of %s, want at most %d", written, size, most)
	}
	written = 0
	g, err = s.Begin(second)
	check(t, err)
	stream(t, g, smallWrite+1, 1)
	if written > int(size) {
		t.Errorf("%d bytes were written for a segment of %s in large writes", written, size)
	}
}

// stream fills a segment by writes of n bytes, with a sync behind so many, and
// returns how many there were.
func stream(t *testing.T, g *Segment, n segment.LSN, together int) (writes int) {
	t.Helper()
	p := bytes.Repeat([]byte{1}, int(n))
	for at := g.Start(); at+n <= g.End(); at += n {
		check(t, g.WriteAt(p, at))
		g.Advance(at + n)
		if writes++; writes%together == 0 {
			if _, err := g.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return writes
}

// What an earlier process left behind the records that verify stays until the
// server sends it again: it may be the beginning of one that was reported.
func TestRemainsAreNotZeroed(t *testing.T) {
	log, next := logs()
	y := newStory(1, log, next)
	check(t, y.bind())
	// The end is in the middle of a record, most likely; what is behind the
	// vouched bytes is looked at whatever it is.
	check(t, y.stream(first, base+300_001))
	check(t, y.s.Close())
	y.s = nil
	check(t, y.open())
	g, err := y.s.Begin(first)
	check(t, err)
	_, to := g.Vouched()
	if to >= base+300_001 {
		t.Fatalf("vouched for up to %s: no remains", to)
	}
	at := to + (base+300_001-to)/2
	check(t, g.WriteAt(log.Bytes(base, at), base))
	for range 2 {
		g.Advance(at)
		if _, err := g.Sync(); err != nil {
			t.Fatal(err)
		}
		check(t, g.WriteAt(log.Bytes(at, at+1), at))
		at++
	}
	got := make([]byte, base+300_001-at)
	check(t, g.ReadAt(got, at))
	if !bytes.Equal(got, log.Bytes(at, base+300_001)) {
		t.Error("the remains have changed")
	}
}

// Zeros that are written ahead change nothing, whatever comes in which order.
func TestZerosAheadChangeNothing(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 0))
		_, g := begun(t)
		want := make([]byte, size)
		for range 300 {
			n := 1 + random.IntN(300)
			if random.IntN(10) == 0 {
				n = 1 + random.IntN(100_000)
			}
			at := g.Written() // mostly what follows
			if random.IntN(4) == 0 {
				at = base + segment.LSN(random.IntN(int(size)))
			}
			n = min(n, int(g.End()-at))
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(1 + random.IntN(255))
			}
			if let := g.Advanced(); at < let {
				copy(p, want[at-base:let-base]) // it never changes
			}
			check(t, g.WriteAt(p, at))
			copy(want[at-base:], p)
			if random.IntN(2) == 0 {
				g.Advance(g.Written())
				if _, err := g.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
		got := make([]byte, size)
		check(t, g.ReadAt(got, base))
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the segment has other bytes than were written", seed)
		}
	}
}
