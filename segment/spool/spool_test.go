package spool

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/waltest"
)

const (
	sysid = 7710929516611631544
	size  = segment.MinSize
	base  = segment.LSN(0x3000000)
)

var cluster = Identity{sysid, size} // compared by value only

func mustOpen(t *testing.T, fsys disk.FS, dir string) *Spool {
	t.Helper()
	s, err := Open(fsys, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write writes and advances [from, to) of the log in messages of odd lengths.
func write(t *testing.T, g *Segment, l *waltest.Log, from, to segment.LSN) {
	t.Helper()
	for at := from; at < to; {
		n := min(to, at+30011)
		check(t, g.WriteAt(l.Bytes(at, n), at))
		g.Advance(n)
		at = n
	}
}

func TestLifeOfASegment(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "spool")
	s := mustOpen(t, disk.OS{}, dir)
	if _, ok := s.Identity(); ok {
		t.Fatal("a new spool has an identity")
	}
	name := size.Name(1, base)
	if _, err := s.Begin(name); err == nil {
		t.Fatal("a segment was begun in a spool of no cluster")
	}
	check(t, s.Bind(cluster))
	check(t, s.Bind(cluster))
	if err := s.Bind(Identity{1, size}); !errors.Is(err, segment.ErrForeignCluster) {
		t.Fatalf("Bind to another cluster: %v", err)
	}
	if err := s.Bind(Identity{sysid, 2 * size}); !errors.Is(err, segment.ErrForeignCluster) {
		t.Fatalf("Bind to another size: %v", err)
	}

	log := waltest.New(sysid, size, base)
	log.Fill(base + segment.LSN(size))
	g, err := s.Begin(name)
	check(t, err)
	if fi, err := os.Stat(filepath.Join(dir, name.String()+".partial")); err != nil || fi.Size() != int64(size) || fi.Mode().Perm() != 0o600 {
		t.Fatalf("partial: %v, %v", fi, err)
	}
	if a, b := g.Vouched(); a != base || b != base || g.Written() != base {
		t.Fatalf("a new segment has %s to %s, written %s", a, b, g.Written())
	}
	taken, err := s.Take(t.Context())
	if err != nil || taken != g {
		t.Fatal(taken, err)
	}
	var got []byte
	var readErr error
	var wg sync.WaitGroup
	wg.Go(func() { got, readErr = io.ReadAll(g.Follow(t.Context())) })

	mid := base + 500_001
	write(t, g, log, base, mid)
	if at, err := g.Sync(); err != nil || at != mid {
		t.Fatalf("Sync = %s, %v; want %s", at, err, mid)
	}
	if err := g.Seal(); err == nil {
		t.Fatal("a segment was sealed that is not complete")
	}
	if err := s.Drop(g); err == nil {
		t.Fatal("a segment was dropped that is not sealed")
	}
	if again, err := s.Begin(name); err != nil || again != g {
		t.Fatal(again, err)
	}
	if a, b := g.Vouched(); a != base || b != mid {
		t.Fatalf("begun again it has %s to %s", a, b)
	}
	write(t, g, log, base, g.End()) // the first part is compared
	check(t, g.Seal())
	check(t, g.Seal())
	wg.Wait()
	want := log.Segment(base)
	if readErr != nil || !bytes.Equal(got, want) {
		t.Fatalf("Follow gave %d bytes, equal %v, error %v", len(got), bytes.Equal(got, want), readErr)
	}
	if b, err := os.ReadFile(filepath.Join(dir, name.String())); err != nil || !bytes.Equal(b, want) {
		t.Fatal("the sealed file is not the segment", err)
	}
	if err := g.WriteAt([]byte{1}, base); err == nil {
		t.Fatal("a sealed segment was written")
	}
	if _, err := s.Begin(name); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("Begin of a sealed segment: %v", err)
	}
	if used, _ := s.Used(); used != int64(size) {
		t.Fatalf("used %d", used)
	}
	room := s.RoomChanged()
	check(t, s.Drop(g))
	select {
	case <-room:
	default:
		t.Fatal("Drop did not say that there is room")
	}
	if used, _ := s.Used(); used != 0 || len(s.Segments()) != 0 {
		t.Fatalf("used %d, %d segments", used, len(s.Segments()))
	}
	if _, err := os.Stat(filepath.Join(dir, name.String())); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := g.ReadAt(make([]byte, 1), base); !errors.Is(err, ErrDropped) {
		t.Fatalf("reading a dropped segment: %v", err)
	}
	if err := s.Drop(g); !errors.Is(err, ErrDropped) {
		t.Fatalf("dropping twice: %v", err)
	}
}

func TestTakeIsInOrderAndWaits(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, disk.OS{}, dir)
	check(t, s.Bind(cluster))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Take(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	log := waltest.New(sysid, size, base)
	log.Fill(base + 3*segment.LSN(size))
	var all []*Segment
	for at := base; at < base+2*segment.LSN(size); at += segment.LSN(size) {
		g, err := s.Begin(size.Name(1, at))
		check(t, err)
		write(t, g, log, at, g.End())
		check(t, g.Seal())
		all = append(all, g)
	}
	g, err := s.Begin(size.Name(1, base+2*segment.LSN(size)))
	check(t, err)
	write(t, g, log, g.Start(), g.Start()+100_000)
	_, err = g.Sync()
	check(t, err)
	for _, want := range append(all, g) {
		if got, err := s.Take(t.Context()); err != nil || got != want {
			t.Fatal(got, err)
		}
	}
	done := make(chan error)
	go func() {
		_, err := s.Take(t.Context())
		done <- err
	}()
	check(t, s.Close())
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Fatalf("Take in a closed spool: %v", err)
	}

	s = mustOpen(t, disk.OS{}, dir)
	if len(s.Segments()) != 3 {
		t.Fatalf("%d segments are held", len(s.Segments()))
	}
	for i, want := range []bool{true, true, false} {
		got, err := s.Take(t.Context())
		if err != nil || got.Sealed() != want || got.Start() != base+segment.LSN(i)*segment.LSN(size) {
			t.Fatalf("%d: %v, %v", i, got, err)
		}
	}
	got := s.Segments()[2]
	if _, b := got.Vouched(); b > got.Start()+100_000 || b < got.Start()+70_000 {
		t.Fatalf("the partial is vouched for up to %s", b)
	}
}
