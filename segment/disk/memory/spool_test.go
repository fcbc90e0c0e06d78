package memory_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/memory"
	"github.com/walferry/walferry/segment/spool"
	"github.com/walferry/walferry/segment/waltest"
)

const (
	size = segment.MinSize
	dir  = "/spool"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, fsys *memory.FS, limit int64) *spool.Spool {
	t.Helper()
	s, err := spool.Open(fsys, dir, spool.Options{Limit: limit})
	check(t, err)
	check(t, s.Bind(spool.Identity{SystemIdentifier: 7, SegmentSize: size}))
	return s
}

// A spool works on it as on a disk: segments are written, followed, sealed,
// dropped and begun anew, within a limit, while readers look on.
func TestSpool(t *testing.T) {
	const segments, room = 12, 3
	log := waltest.New(7, size, 0x3000000)
	log.Fill(0x3000000 + segments*segment.LSN(size))
	fsys := memory.New()
	s := open(t, fsys, room*int64(size))
	if _, err := spool.Open(fsys, dir, spool.Options{}); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("a second spool: %v", err)
	}
	var workers sync.WaitGroup
	for range 2 { // as the uploader does
		workers.Go(func() {
			for {
				g, err := s.Take(t.Context())
				if errors.Is(err, spool.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(g.FollowBlocks(t.Context(), 64<<10))
				if err != nil || !bytes.Equal(b, log.Segment(g.Start())) {
					t.Errorf("%s: %d bytes, %v", g.Name(), len(b), err)
				}
				for !g.Sealed() {
					time.Sleep(time.Millisecond)
				}
				if err := s.Drop(g); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range segment.LSN(segments) {
		at := log.Start() + n*segment.LSN(size)
		for {
			room := s.RoomChanged()
			if s.Room() {
				break
			}
			<-room
		}
		g, err := s.Begin(size.Name(1, at))
		check(t, err)
		for from := at; from < g.End(); {
			to := min(from+50_001, g.End())
			check(t, g.WriteAt(log.Bytes(from, to), from))
			g.Advance(to)
			if from%3 == 0 {
				_, err := g.Sync()
				check(t, err)
			}
			from = to
		}
		check(t, g.Seal())
	}
	for len(s.Segments()) > 0 {
		<-s.RoomChanged()
	}
	check(t, s.Close())
	workers.Wait()
	entries, err := fsys.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		if _, err := segment.ParseName(e.Name()); err == nil || filepath.Ext(e.Name()) == ".partial" {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// What a spool holds is there for the next one on the same file system, and in
// no other.
func TestSpoolIsOpenedAgain(t *testing.T) {
	log := waltest.New(7, size, 0x3000000)
	log.Fill(0x3000000 + 2*segment.LSN(size))
	fsys := memory.New()
	s := open(t, fsys, 0)
	g, err := s.Begin(size.Name(1, log.Start()))
	check(t, err)
	check(t, g.WriteAt(log.Bytes(log.Start(), log.Start()+300_000), log.Start()))
	g.Advance(log.Start() + 300_000)
	g.Abandon()
	g, err = s.Begin(g.Name())
	check(t, err)
	_, vouched := g.Vouched()
	if vouched < log.Start()+200_000 {
		t.Errorf("after Abandon, vouched for up to %s", vouched)
	}
	check(t, s.Close())

	s = open(t, fsys, 0)
	held := s.Segments()
	if len(held) != 1 {
		t.Fatalf("%d segments", len(held))
	}
	if _, end := held[0].Vouched(); end != vouched {
		t.Errorf("opened again, vouched for up to %s; before %s", end, vouched)
	}
	check(t, s.Close())
	if _, err := memory.New().Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another file system has the directory: %v", err)
	}
}
