package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/waltest"
)

// begun returns a spool in memory and its first segment, begun.
func begun(t *testing.T) (*Spool, *Segment) {
	t.Helper()
	s, err := Open(crashfs.New(1), spoolDir, Options{})
	check(t, err)
	check(t, s.Bind(cluster))
	g, err := s.Begin(first)
	check(t, err)
	return s, g
}

func TestWrittenIsARunWithoutGaps(t *testing.T) {
	_, g := begun(t)
	for _, c := range []struct {
		at, n, written segment.LSN
	}{
		{100, 50, 0}, {0, 60, 60}, {60, 40, 100}, {100, 50, 150}, {0, 10, 150}, {140, 20, 160}, {161, 5, 160}, {160, 1, 161},
	} {
		check(t, g.WriteAt(make([]byte, c.n), base+c.at))
		if g.Written() != base+c.written {
			t.Fatalf("after %d bytes at %d: written up to %s; want %s", c.n, c.at, g.Written(), base+c.written)
		}
	}
	g.Advance(g.End())
	if g.Advanced() != base+161 {
		t.Errorf("advanced beyond what is written, to %s", g.Advanced())
	}
	g.Advance(base)
	if g.Advanced() != base+161 {
		t.Errorf("advanced backwards, to %s", g.Advanced())
	}
	for _, at := range []segment.LSN{base - 1, g.End() - 4, g.End() + 1, 0} {
		if err := g.WriteAt(make([]byte, 5), at); err == nil {
			t.Errorf("5 bytes at %s were written", at)
		}
		if err := g.ReadAt(make([]byte, 5), at); err == nil {
			t.Errorf("5 bytes at %s were read", at)
		}
	}
	check(t, g.WriteAt(make([]byte, 5), g.End()-5))
}

// Bytes that are held never change: others are a conflict, with the place.
func TestHeldBytesAreCompared(t *testing.T) {
	log, next := logs()
	y := newStory(1, log, next)
	check(t, y.bind())
	check(t, y.stream(first, first.End(size)))
	check(t, y.stream(second, second.Start(size)+300_000)) // may begin with the end of a record
	check(t, y.s.Close())
	y.s = nil
	check(t, y.open())
	for _, n := range []segment.Name{first, second} {
		g, err := y.s.Begin(n)
		check(t, err)
		from, to := g.Vouched()
		if to-from < 250_000 {
			t.Fatalf("%s is vouched for from %s to %s", n, from, to)
		}
		right := bytes.Clone(log.Bytes(g.Start(), g.Start()+300_000))
		conflict := func(at segment.LSN) {
			t.Helper()
			wrong := bytes.Clone(right)
			wrong[at-g.Start()] ^= 1
			err := g.WriteAt(wrong, g.Start())
			if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), " at "+at.String()+":") {
				t.Errorf("%s: other byte at %s: %v", n, at, err)
			}
			got := make([]byte, len(right))
			check(t, g.ReadAt(got, g.Start()))
			if !bytes.Equal(got, right) {
				t.Errorf("%s: a byte that was held has changed", n)
			}
		}
		for _, at := range []segment.LSN{from, from + 65535, from + 65536, from + 200_000} {
			conflict(at)
		}
		check(t, g.WriteAt(right, g.Start()))
		if g.Written() < g.Start()+300_000 {
			t.Errorf("%s: written up to %s", n, g.Written())
		}
		g.Advance(g.Start() + 200_000)
		conflict(g.Start())
		conflict(g.Start() + 150_000)
		if again, err := y.s.Begin(n); err != nil || again != g {
			t.Fatal(again, err)
		}
		if from, to := g.Vouched(); from != g.Start() || to < g.Start()+300_000 {
			t.Errorf("%s begun again: vouched for from %s to %s", n, from, to)
		}
		conflict(g.Start() + 250_000)
	}
}

func TestWritingDoesNotAllocate(t *testing.T) {
	s, err := Open(disk.OS{}, t.TempDir(), Options{})
	check(t, err)
	check(t, s.Bind(cluster))
	g, err := s.Begin(first)
	check(t, err)
	p := make([]byte, 100)
	at := base
	if n := testing.AllocsPerRun(1000, func() {
		if err := g.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
		at += 100
		g.Advance(at)
	}); n != 0 {
		t.Errorf("%v allocations a write", n)
	}
	check(t, s.Close())
}

func BenchmarkWriteAt(b *testing.B) {
	s, err := Open(disk.OS{}, b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	id := Identity{sysid, segment.DefaultSize}
	if err := s.Bind(id); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 128<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	var g *Segment
	at := base
	for b.Loop() {
		if id.SegmentSize.Offset(at) == 0 {
			if g != nil {
				if err := errors.Join(g.Seal(), s.Drop(g)); err != nil {
					b.Fatal(err)
				}
			}
			if g, err = s.Begin(id.SegmentSize.Name(1, at)); err != nil {
				b.Fatal(err)
			}
			if _, err := s.Take(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		if err := g.WriteAt(p, at); err != nil {
			b.Fatal(err)
		}
		at += segment.LSN(len(p))
		g.Advance(at)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// Readers see what was advanced, at once, and nothing beyond.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, g := begun(t)
		defer func() { check(t, s.Close()) }()
		log, _ := logs()
		var mu sync.Mutex
		var got []byte
		var end error
		ended := func() error { mu.Lock(); defer mu.Unlock(); return end }
		go func() {
			r := g.Follow(t.Context())
			p := make([]byte, 10_000)
			for {
				n, err := r.Read(p)
				mu.Lock()
				got = append(got, p[:n]...)
				end = err
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}()
		for _, to := range []segment.LSN{base + 1, base + 50_000, base + 50_001, g.End()} {
			check(t, g.WriteAt(log.Bytes(g.Written(), to), g.Written()))
			synctest.Wait()
			if n := base + segment.LSN(len(got)); n != g.Advanced() {
				t.Fatalf("read up to %s; only %s was let go", n, g.Advanced())
			}
			if ended() != nil {
				t.Fatalf("the end comes before the segment's: %v", end)
			}
			g.Advance(to)
			synctest.Wait()
			if !bytes.Equal(got, log.Bytes(base, to)) {
				t.Fatalf("read %d bytes, not those up to %s", len(got), to)
			}
		}
		if !errors.Is(ended(), io.EOF) {
			t.Fatalf("at the segment's end: %v", end)
		}
		check(t, g.Seal())
		again, err := io.ReadAll(g.Follow(t.Context()))
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("a second reader got %d bytes, %v", len(again), err)
		}
	})
}

// A reader of blocks is let at them when they are whole, at the rest where no
// more comes, and not woken in between.
func TestFollowBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, g := begun(t)
		defer func() { check(t, s.Close()) }()
		log, _ := logs()
		var mu sync.Mutex
		var reads []int
		var end error
		slow := g.FollowBlocks(t.Context(), 10_000)
		go func() {
			for p := make([]byte, 10_000); ; {
				n, err := slow.Read(p)
				mu.Lock()
				reads, end = append(reads, n), err
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}()
		for _, step := range []struct {
			to   segment.LSN
			want []int
		}{
			{base + 9_999, nil},
			{base + 10_000, []int{10_000}},
			{base + 10_001, []int{10_000}},
			{base + 35_000, []int{10_000, 10_000, 10_000}},
		} {
			check(t, g.WriteAt(log.Bytes(g.Written(), step.to), g.Written()))
			g.Advance(step.to)
			synctest.Wait()
			mu.Lock()
			if !slices.Equal(reads, step.want) {
				t.Errorf("up to %s: reads %v, want %v", step.to, reads, step.want)
			}
			mu.Unlock()
			// One that takes every byte is not kept waiting by it.
			if n, err := io.ReadFull(g.Follow(t.Context()), make([]byte, step.to-base)); err != nil {
				t.Fatalf("up to %s: %d bytes, %v", step.to, n, err)
			}
		}
		check(t, g.Finish(base+34_000))
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if want := []int{10_000, 10_000, 10_000, 4_000, 0}; !slices.Equal(reads, want) || !errors.Is(end, io.EOF) {
			t.Errorf("finished: reads %v, want %v; %v", reads, want, end)
		}
	})
}

// What ends a reader that waits.
func TestFollowEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	for what, c := range map[string]struct {
		do   func(s *Spool, g *Segment) error
		want error
	}{
		"finish":                 {func(_ *Spool, g *Segment) error { return g.Finish(base + 1000) }, nil},
		"finish in front of it":  {func(_ *Spool, g *Segment) error { return g.Finish(base + 999) }, ErrFinished},
		"abandon":                {func(_ *Spool, g *Segment) error { g.Abandon(); return nil }, ErrAbandoned},
		"close":                  {func(s *Spool, _ *Segment) error { return s.Close() }, ErrClosed},
		"the end of its context": {func(*Spool, *Segment) error { cancel(); return nil }, context.Canceled},
		// Which of the two the reader meets is chance: both end it.
		"finish, and then dropped": {func(s *Spool, g *Segment) error { return errors.Join(g.Finish(base+500), s.Drop(g)) }, ErrDropped},
	} {
		s, g := begun(t)
		check(t, g.WriteAt(make([]byte, 1000), base))
		g.Advance(base + 1000)
		r := g.Follow(ctx)
		if what != "the end of its context" {
			r = g.Follow(t.Context())
		}
		if n, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
			t.Fatal(n, err)
		}
		done := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, r)
			done <- err
		}()
		check(t, c.do(s, g))
		err := <-done
		if errors.Is(c.want, ErrDropped) && errors.Is(err, ErrFinished) {
			err = ErrDropped
		}
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v; want %v", what, err, c.want)
		}
		check(t, s.Close())
	}
}

func TestFinish(t *testing.T) {
	s, g := begun(t)
	check(t, g.WriteAt(make([]byte, 1000), base))
	g.Advance(base + 900)
	for _, at := range []segment.LSN{base + 901, g.End(), g.End() + 1, base - 1} {
		if err := g.Finish(at); err == nil {
			t.Fatalf("finished at %s", at)
		}
	}
	if _, ok := g.Finished(); ok {
		t.Fatal("finished by a failure")
	}
	check(t, g.Finish(base+800))
	check(t, g.Finish(base+800))
	if err := g.Finish(base + 700); err == nil {
		t.Error("finished twice, at two places")
	}
	if at, ok := g.Finished(); !ok || at != base+800 || g.Sealed() {
		t.Errorf("finished at %s, %v", at, ok)
	}
	if g.Beyond() != base+1000 || g.ReadAt(make([]byte, 200), base+800) != nil {
		t.Errorf("what was written behind it, up to %s, is held up to %s", base+1000, g.Beyond())
	}
	if g.WriteAt([]byte{1}, base+900) == nil || g.Seal() == nil {
		t.Error("a finished segment goes on")
	}
	if _, err := s.Begin(first); err == nil {
		t.Error("a finished segment was begun")
	}
	if at, err := g.Sync(); err != nil || at != base+800 {
		t.Errorf("Sync = %s, %v", at, err)
	}
	g.Abandon() // does nothing to it
	check(t, s.Drop(g))
}

// An abandoned segment is gone for its readers, and comes again.
func TestAbandonAndBegin(t *testing.T) {
	s, g := begun(t)
	log, _ := logs()
	if taken, err := s.Take(t.Context()); err != nil || taken != g {
		t.Fatal(taken, err)
	}
	check(t, g.WriteAt(log.Bytes(base, base+100_000), base))
	g.Advance(base + 100_000)
	g.Abandon()
	if used, _ := s.Used(); used != int64(size) || len(s.Segments()) != 0 {
		t.Errorf("used %d, %d segments", used, len(s.Segments()))
	}
	if _, err := g.Sync(); !errors.Is(err, ErrAbandoned) {
		t.Error(err)
	}
	again, err := s.Begin(first)
	if err != nil || again == g {
		t.Fatal(again, err)
	}
	if taken, err := s.Take(t.Context()); err != nil || taken != again {
		t.Fatal(taken, err)
	}
	if start, end := again.Vouched(); start != base || end < base+70_000 || end > base+100_000 || again.Advanced() != base {
		t.Errorf("vouched for from %s to %s, advanced to %s", start, end, again.Advanced())
	}
	if used, _ := s.Used(); used != int64(size) {
		t.Errorf("used %d", used)
	}
}

// One writer, a syncer and readers, as the race detector sees them.
func TestAllAtOnce(t *testing.T) {
	s := mustOpen(t, disk.OS{}, t.TempDir())
	check(t, s.Bind(cluster))
	log := waltest.New(sysid, size, base)
	log.Fill(base + 3*segment.LSN(size))
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 3 {
			g, err := s.Take(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(g.Follow(t.Context()))
			if err != nil || !bytes.Equal(got, log.Bytes(g.Start(), g.End())) {
				t.Errorf("%s: %d bytes, %v", g.Name(), len(got), err)
			}
			if err := s.Drop(g); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range segment.LSN(3) {
		g, err := s.Begin(size.Name(1, base+i*segment.LSN(size)))
		check(t, err)
		stop := make(chan struct{})
		wg.Go(func() {
			var before segment.LSN
			for {
				at, err := g.Sync()
				if err == nil && at < before || err != nil && !errors.Is(err, ErrDropped) {
					t.Errorf("synced up to %s after %s, %v", at, before, err)
				}
				select {
				case <-stop:
					return
				default:
					before = at
				}
			}
		})
		write(t, g, log, g.Start(), g.End())
		close(stop)
		check(t, g.Seal())
	}
	wg.Wait()
	if used, _ := s.Used(); used != 0 {
		t.Errorf("used %d", used)
	}
}

func TestHistories(t *testing.T) {
	f := crashfs.New(1)
	s, err := Open(f, spoolDir, Options{})
	check(t, err)
	if _, err := s.History(2); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	check(t, s.PutHistory(3, history3))
	check(t, s.PutHistory(2, history2))
	ops := f.Ops()
	check(t, s.PutHistory(2, history2))
	if f.Ops() != ops {
		t.Error("a history that is held was written again")
	}
	if err := s.PutHistory(2, history3); !errors.Is(err, ErrConflict) {
		t.Errorf("another history of timeline 2: %v", err)
	}
	if s.PutHistory(0, history2) == nil || s.PutHistory(4, make([]byte, 2<<20)) == nil {
		t.Error("an impossible history was stored")
	}
	check(t, s.Close())
	s, err = Open(f, spoolDir, Options{})
	check(t, err)
	if got, err := s.History(2); err != nil || !bytes.Equal(got, history2) {
		t.Errorf("%q, %v", got, err)
	}
	if ts := s.Histories(); len(ts) != 2 || ts[0] != 2 || ts[1] != 3 {
		t.Errorf("histories %v", ts)
	}
	check(t, s.Close())
	if err := s.PutHistory(5, history2); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestLimit(t *testing.T) {
	f := crashfs.New(1)
	if _, err := Open(f, spoolDir, Options{Limit: -1}); err == nil {
		t.Error("a negative limit was accepted")
	}
	s, err := Open(f, spoolDir, Options{Limit: int64(size) - 1})
	check(t, err)
	if err := s.Bind(cluster); !errors.Is(err, ErrLimit) {
		t.Errorf("Bind: %v", err)
	}
	check(t, s.Close())
	s, err = Open(f, spoolDir, Options{Limit: 2*int64(size) + 5})
	check(t, err)
	check(t, s.Bind(cluster))
	for i, n := range []segment.Name{first, second} {
		if !s.Room() {
			t.Fatalf("no room for segment %d", i)
		}
		g, err := s.Begin(n)
		check(t, err)
		check(t, g.WriteAt([]byte{1}, g.Start()))
	}
	if s.Room() {
		t.Error("room beyond the limit")
	}
	if used, limit := s.Used(); used != 2*int64(size) || limit != 2*int64(size)+5 {
		t.Errorf("used %d of %d", used, limit)
	}
	check(t, s.Close())
	select {
	case <-s.RoomChanged():
	default:
		t.Error("Close leaves those who wait for room alone")
	}
	if _, err := Open(f, spoolDir, Options{Limit: int64(size) - 1}); !errors.Is(err, ErrLimit) {
		t.Errorf("Open: %v", err)
	}
	f.SetSpace(100 * int64(size))
	s, err = Open(f, spoolDir, Options{})
	check(t, err)
	if _, limit := s.Used(); limit < 79*int64(size) || limit > 80*int64(size) {
		t.Errorf("the limit of 100 segments' space is %d", limit)
	}
	check(t, s.Close())
}

// A limit that hangs on the segment size is asked for when that is known.
func TestLimitFor(t *testing.T) {
	refused := errors.New("not so large")
	limit := func(s segment.Size) (int64, error) {
		if s > size {
			return 0, fmt.Errorf("%w: %w", ErrLimit, refused)
		}
		return 2 * int64(s), nil
	}
	f := crashfs.New(1)
	s, err := Open(f, spoolDir, Options{LimitFor: limit})
	check(t, err)
	if err := s.Bind(Identity{sysid, 2 * size}); !errors.Is(err, refused) || !errors.Is(err, ErrLimit) {
		t.Errorf("Bind to segments that are too large: %v", err)
	}
	if _, bound := s.Identity(); bound {
		t.Error("it is bound all the same")
	}
	check(t, s.Bind(cluster))
	for _, n := range []segment.Name{first, second} {
		if !s.Room() {
			t.Errorf("no room for %s", n)
		}
		g, err := s.Begin(n)
		check(t, err)
		check(t, g.WriteAt([]byte{1}, g.Start()))
	}
	if used, limit := s.Used(); s.Room() || used != 2*int64(size) || limit != used {
		t.Errorf("used %d of %d, room %v", used, limit, s.Room())
	}
	check(t, s.Close())
	s, err = Open(f, spoolDir, Options{LimitFor: limit, Limit: 100 * int64(size)})
	check(t, err)
	if _, limit := s.Used(); s.Room() || limit != 2*int64(size) {
		t.Errorf("opened again: a limit of %d, room %v", limit, s.Room())
	}
	check(t, s.Close())
	if _, err := Open(f, spoolDir, Options{LimitFor: func(segment.Size) (int64, error) { return 0, refused }}); !errors.Is(err, refused) {
		t.Errorf("Open: %v", err)
	}
	if _, err := Open(f, spoolDir, Options{LimitFor: func(s segment.Size) (int64, error) { return int64(s) - 1, nil }}); !errors.Is(err, ErrLimit) {
		t.Errorf("Open with less than a segment: %v", err)
	}
}

func TestSpoolIsLocked(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(disk.OS{}, dir, Options{})
	check(t, err)
	if _, err := Open(disk.OS{}, dir, Options{}); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("a second Open: %v", err)
	}
	check(t, s.Close())
	check(t, s.Close())
	s, err = Open(disk.OS{}, dir, Options{})
	check(t, err)
	check(t, s.Close())
	if _, err := s.Begin(first); !errors.Is(err, ErrClosed) {
		t.Errorf("Begin in a closed spool: %v", err)
	}
}

// TestDropBeforeTheSeal: a segment whose bytes are in the archive needs no
// seal; who asks for one is told.
func TestDropBeforeTheSeal(t *testing.T) {
	s, g := begun(t)
	defer func() { check(t, s.Close()) }()
	log := waltest.New(sysid, size, base)
	log.Fill(g.End())
	write(t, g, log, base, g.End())
	check(t, s.Drop(g))
	if err := g.Seal(); !errors.Is(err, ErrDropped) {
		t.Errorf("Seal = %v", err)
	}
	if _, err := g.Sync(); !errors.Is(err, ErrDropped) {
		t.Errorf("Sync = %v", err)
	}
	if left := s.Segments(); len(left) != 0 {
		t.Errorf("%d segments are left", len(left))
	}
}

// TestKeep: what is dropped leaves the spool and not the directory; what is
// whole has its final name then, whether it was sealed before or not.
func TestKeep(t *testing.T) {
	for _, sealedBefore := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed=%v", sealedBefore), func(t *testing.T) {
			dir := t.TempDir()
			s, err := Open(disk.OS{}, dir, Options{Keep: true, Limit: int64(size)})
			check(t, err)
			defer func() { check(t, s.Close()) }()
			check(t, s.Bind(cluster))
			l := waltest.New(sysid, size, base)
			g, err := s.Begin(first)
			check(t, err)
			l.Fill(g.End())
			write(t, g, l, g.Start(), g.End())
			if sealedBefore {
				check(t, g.Seal())
			}
			check(t, s.Drop(g))
			got, err := os.ReadFile(filepath.Join(dir, g.Name().String()))
			if err != nil || !bytes.Equal(got, l.Bytes(g.Start(), g.End())) {
				t.Errorf("the file after Drop: %d bytes, %v", len(got), err)
			}
			if _, err := os.Stat(filepath.Join(dir, g.Name().String()+partialSuffix)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the partial: %v", err)
			}
			if len(s.Segments()) != 0 || !s.Room() {
				t.Errorf("%d segments are held, room %v", len(s.Segments()), s.Room())
			}
		})
	}
}
