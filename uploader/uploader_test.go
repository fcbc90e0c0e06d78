package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/spool"
)

const (
	size     = segment.MinSize
	systemID = 7300000000000000001
)

// failingStore is a store that fails as it is told.
type failingStore struct {
	objstore.Store
	mu   sync.Mutex
	puts int
	// before is asked before each put, after behind each that was stored, one at
	// a time. Set them while nothing runs, or by fail.
	before, after func(put int, key string) error
}

func (s *failingStore) PutIfAbsent(ctx context.Context, key string, body objstore.Body) error {
	s.mu.Lock()
	s.puts++
	put, before := s.puts, s.before
	s.mu.Unlock()
	if before != nil {
		if err := before(put, key); err != nil {
			return err
		}
	}
	if err := s.Store.PutIfAbsent(ctx, key, body); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.after != nil {
		return s.after(put, key)
	}
	return nil
}

// fail makes every put fail from now on, or none.
func (s *failingStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = nil
	if err != nil {
		s.before = func(int, string) error { return err }
	}
}

// refuse fails every put of a key that begins so.
func (s *failingStore) refuse(prefix string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = func(_ int, key string) error {
		if strings.HasPrefix(key, prefix) {
			return errors.New("the store is away")
		}
		return nil
	}
}

func (s *failingStore) Put(ctx context.Context, key string, body objstore.Body) error {
	s.mu.Lock()
	put, before := s.puts, s.before
	s.mu.Unlock()
	if before != nil {
		if err := before(put, key); err != nil {
			return err
		}
	}
	return s.Store.Put(ctx, key, body)
}

// scene is a spool, an uploader and a store, in a synctest bubble.
type scene struct {
	t     *testing.T
	wal   *fakepg.WAL
	sp    *spool.Spool
	store *failingStore
	up    *Uploader
	dir   string // of the spool
}

func newScene(t *testing.T, o Options) *scene {
	t.Helper()
	dir := t.TempDir()
	sp, err := spool.Open(disk.OS{}, dir, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sp.Bind(spool.Identity{SystemIdentifier: systemID, SegmentSize: size}); err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, wal: fakepg.NewWAL(systemID, size, 1), sp: sp, store: &failingStore{Store: mem.New()}, dir: dir}
	if o.Method.Name == "" {
		o.Method = codec.Method{Name: "lz4"}
	}
	o.Buffers = codec.NewBuffers(1<<20, t.TempDir())
	s.up = New(sp, archive.New(s.store, archive.Options{}), o)
	return s
}

// run starts the uploader; the returned function ends it.
func (s *scene) run() (end func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.up.Run(ctx) }()
	return func() error {
		cancel()
		err := <-done
		return errors.Join(err, s.sp.Close())
	}
}

// write puts a whole segment into the spool and seals it.
func (s *scene) write(n segment.Name) {
	s.t.Helper()
	s.writeUpTo(n, n.End(size))
	for _, g := range s.sp.Segments() {
		if g.Name() == n {
			if err := g.Seal(); err != nil && !errors.Is(err, spool.ErrDropped) {
				s.t.Fatal(err)
			}
		}
	}
}

func (s *scene) writeUpTo(n segment.Name, to segment.LSN) *spool.Segment {
	s.t.Helper()
	s.wal.FillTo(n.Timeline, to)
	g, err := s.sp.Begin(n)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := g.WriteAt(s.wal.Segment(n)[:to-n.Start(size)], n.Start(size)); err != nil {
		s.t.Fatal(err)
	}
	g.Advance(to)
	return g
}

func name(t segment.Timeline, number segment.LSN) segment.Name {
	return size.Name(t, number*segment.LSN(size))
}

// stored returns the decoded content of what the archive has under a name.
func (s *scene) stored(file string) ([]byte, error) {
	o, err := archive.New(s.store, archive.Options{}).Open(context.Background(), file)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(o)
	return b, errors.Join(err, o.Close())
}

func (s *scene) mustHold(n segment.Name) {
	s.t.Helper()
	b, err := s.stored(n.String())
	if err != nil || !bytes.Equal(b, s.wal.Segment(n)) {
		s.t.Errorf("segment %s in the archive: %d bytes, %v", n, len(b), err)
	}
}

func (s *scene) shipped(want segment.LSN) {
	s.t.Helper()
	if p, ok := s.up.Shipped(); !ok || p.LSN != want {
		s.t.Errorf("shipped %s, want %s", p, want)
	}
}

func TestShipsAndDrops(t *testing.T) {
	for _, method := range []string{"lz4", "zstd", "none"} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{Method: codec.Method{Name: method}})
			s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
			end := s.run()
			for i := segment.LSN(1); i <= 6; i++ {
				s.write(name(1, i))
			}
			synctest.Wait()
			for i := segment.LSN(1); i <= 6; i++ {
				s.mustHold(name(1, i))
			}
			s.shipped(7 * segment.LSN(size))
			if left := s.sp.Segments(); len(left) != 0 {
				t.Errorf("%d segments are left in the spool", len(left))
			}
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNothingIsStoredBeforeItIsWhole: neither before its last byte, nor does
// the store wait for the disk's seal.
func TestNothingIsStoredBeforeItIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		end := s.run()
		n := name(1, 1)
		g := s.writeUpTo(n, n.End(size)-1)
		synctest.Wait()
		if _, err := s.stored(n.String()); !errors.Is(err, archive.ErrNotFound) {
			t.Errorf("an unfinished segment is in the archive: %v", err)
		}
		if err := g.WriteAt(s.wal.Segment(n)[size-1:], n.End(size)-1); err != nil {
			t.Fatal(err)
		}
		g.Advance(n.End(size))
		synctest.Wait()
		s.mustHold(n)
		if err := g.Seal(); !errors.Is(err, spool.ErrDropped) {
			t.Errorf("Seal of a segment that was shipped: %v", err)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestAStoreThatFails: every put fails at random before or after it was
// stored, for a minute.
func TestAStoreThatFails(t *testing.T) {
	for seed := range uint64(5) {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{})
			r := rand.New(rand.NewPCG(seed, 0))
			begin := time.Now()
			var mu sync.Mutex
			fail := func(int, string) error {
				mu.Lock()
				defer mu.Unlock()
				if time.Since(begin) < time.Minute && r.IntN(3) > 0 {
					return fmt.Errorf("503 Slow Down")
				}
				return nil
			}
			s.store.before, s.store.after = fail, fail
			s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
			end := s.run()
			for i := segment.LSN(1); i <= 8; i++ {
				s.write(name(1, i))
			}
			time.Sleep(3 * time.Minute)
			synctest.Wait()
			for i := segment.LSN(1); i <= 8; i++ {
				s.mustHold(name(1, i))
			}
			s.shipped(9 * segment.LSN(size))
			if s.up.Failing() || s.up.Stopped() != nil {
				t.Errorf("failing %v, stopped %v", s.up.Failing(), s.up.Stopped())
			}
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestATroubleIsToldOnce: segments that become whole while the store takes
// nothing are no sign that it does.
func TestATroubleIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &lockedBuffer{}
		s := newScene(t, Options{Log: slog.New(slog.NewTextHandler(log, nil))})
		s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
		end := s.run()
		s.write(name(1, 1))
		synctest.Wait()
		s.mustHold(name(1, 1))
		s.store.fail(objstore.ErrDenied)
		for i := segment.LSN(2); i <= 12; i++ {
			s.write(name(1, i))
			time.Sleep(36 * time.Millisecond)
		}
		s.store.fail(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		s.mustHold(name(1, 12))
		for _, line := range []string{"cannot write to the archive; trying again", "can write to the archive again"} {
			if n := strings.Count(log.String(), line); n != 1 {
				t.Errorf("it was told %d times that it %s:\n%s", n, line, log)
			}
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestAReadIsNoSign: what only reads ends its own trouble, and no other.
func TestAReadIsNoSign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		worked := func() error { return nil }
		fails := 1
		failsOnce := func() error {
			if fails--; fails >= 0 {
				return errors.New("503")
			}
			return nil
		}
		s.up.trouble.Failed(objstore.ErrDenied)
		time.Sleep(time.Second)
		if err := s.up.ask(t.Context(), "read", worked); err != nil || !s.up.Failing() {
			t.Errorf("%v; a read has ended the trouble of a write", err)
		}
		if err := s.up.insist(t.Context(), "write", worked); err != nil || s.up.Failing() {
			t.Errorf("%v; a write has not ended the trouble", err)
		}
		if err := s.up.ask(t.Context(), "read", failsOnce); err != nil || s.up.Failing() {
			t.Errorf("%v; a read that works again has not ended its own trouble", err)
		}
		if err := s.sp.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestShippedIsGapless: a segment that is stored does not count, and stays in
// the spool, while an older one is not.
func TestShippedIsGapless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		hold := name(1, 2).String()
		var mu sync.Mutex
		away := true
		s.store.before = func(_ int, key string) error {
			mu.Lock()
			defer mu.Unlock()
			if away && bytes.Contains([]byte(key), []byte(hold)) {
				return errors.New("503")
			}
			return nil
		}
		s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
		end := s.run()
		for i := segment.LSN(1); i <= 4; i++ {
			s.write(name(1, i))
		}
		synctest.Wait()
		s.mustHold(name(1, 4))
		s.shipped(2 * segment.LSN(size))
		if left := s.sp.Segments(); len(left) != 3 {
			t.Errorf("%d segments are in the spool, want 3", len(left))
		}
		mu.Lock()
		away = false
		mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		s.shipped(5 * segment.LSN(size))
		if left := s.sp.Segments(); len(left) != 0 {
			t.Errorf("%d segments are left in the spool", len(left))
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

func TestConflictStopsShipping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		other := fakepg.NewWAL(systemID, size, 2)
		other.FillTo(1, 2*segment.LSN(size))
		frame, err := codec.Method{Name: "lz4"}.Encode(other.Segment(name(1, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.store.Store.PutIfAbsent(t.Context(), "wal_005/"+name(1, 1).String()+".lz4", frame); err != nil {
			t.Fatal(err)
		}
		s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
		end := s.run()
		s.write(name(1, 1))
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := s.up.Stopped(); !errors.Is(err, archive.ErrConflict) {
			t.Errorf("Stopped = %v", err)
		}
		s.write(name(1, 2))
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, err := s.stored(name(1, 2).String()); !errors.Is(err, archive.ErrNotFound) {
			t.Errorf("shipping went on after a conflict: %v", err)
		}
		if b, err := s.stored(name(1, 1).String()); err != nil || !bytes.Equal(b, other.Segment(name(1, 1))) {
			t.Errorf("the object in conflict was changed: %v", err)
		}
		s.shipped(segment.LSN(size))
		if left := s.sp.Segments(); len(left) != 2 {
			t.Errorf("%d segments are in the spool, want 2", len(left))
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

func TestForeignArchiveEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		if _, err := archive.New(s.store, archive.Options{}).Claim(t.Context(), archive.Identity{SystemIdentifier: 42, SegmentSize: size, WALCodec: "lz4"}); err != nil {
			t.Fatal(err)
		}
		s.write(name(1, 1))
		err := s.up.Run(t.Context())
		if !errors.Is(err, archive.ErrForeignCluster) {
			t.Errorf("Run = %v", err)
		}
		if err := s.sp.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestFollowsTheArchivesCodec(t *testing.T) {
	for _, follow := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{Follow: follow})
			if _, err := archive.New(s.store, archive.Options{}).Claim(t.Context(), archive.Identity{SystemIdentifier: systemID, SegmentSize: size, WALCodec: "zstd"}); err != nil {
				t.Fatal(err)
			}
			err := s.up.Claim(t.Context(), spool.Identity{SystemIdentifier: systemID, SegmentSize: size})
			if follow != (err == nil) || !follow && !errors.Is(err, archive.ErrCodec) {
				t.Errorf("follow=%v: Claim = %v", follow, err)
			}
			if err := s.sp.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHistoryFirst: nothing of a timeline is in the archive before its history.
func TestHistoryFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		at := s.wal.FillTo(1, segment.LSN(size)+5000)
		child := s.wal.Fork(1, at)
		content, _ := s.wal.HistoryFile(child)
		if err := s.sp.PutHistory(child, content); err != nil {
			t.Fatal(err)
		}
		var keys []string
		s.store.after = func(_ int, key string) error { keys = append(keys, key); return nil }
		s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
		s.up.Switch(1, at, child)
		end := s.run()
		if err := s.writeUpTo(name(1, 1), at).Finish(at); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s.shipped(at)
		if p, _ := s.up.Shipped(); p.Timeline != child {
			t.Errorf("shipped %s; the old timeline ended there", p)
		}
		s.write(name(child, 1))
		synctest.Wait()
		s.shipped(2 * segment.LSN(size))
		b, err := s.stored(name(1, 1).String() + ".partial")
		want := s.wal.Segment(name(1, 1))
		if err != nil || len(b) != int(size) || !bytes.Equal(b, want) {
			t.Errorf("the partial: %d bytes, %v", len(b), err)
		}
		history, segmentAt := -1, -1
		for i, k := range keys {
			switch k {
			case "wal_005/" + child.HistoryName() + ".lz4":
				history = i
			case "wal_005/" + name(child, 1).String() + ".lz4":
				segmentAt = i
			}
		}
		if history < 0 || segmentAt < history {
			t.Errorf("stored in this order: %q", keys)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestPartialEndsAtTheSwitchpoint: what is held beyond it is not in the partial.
func TestPartialEndsAtTheSwitchpoint(t *testing.T) {
	for _, method := range []string{"lz4", "none"} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{Method: codec.Method{Name: method}})
			at := s.wal.FillTo(1, segment.LSN(size)+5000)
			end := s.run()
			g := s.writeUpTo(name(1, 1), s.wal.FillTo(1, at+9000))
			synctest.Wait() // the uploader has read beyond
			if err := g.Finish(at); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			b, err := s.stored(name(1, 1).String() + ".partial")
			if err != nil || len(b) != int(size) {
				t.Errorf("%s: %d bytes, %v", method, len(b), err)
			} else if n := int(at) - int(size); !bytes.Equal(b[:n], s.wal.Segment(name(1, 1))[:n]) || bytes.ContainsFunc(b[n:], func(r rune) bool { return r != 0 }) {
				t.Errorf("%s: the partial holds other bytes than [start, %s) and zeros", method, at)
			}
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTheRestOfAnEndedTimelineHoldsUpNothing: an open segment that nobody will
// fill does not keep younger ones in the spool.
func TestTheRestOfAnEndedTimelineHoldsUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		end := s.run()
		s.writeUpTo(name(1, 1), segment.LSN(size)+5000)
		s.write(name(1, 2))
		synctest.Wait()
		if left := s.sp.Segments(); len(left) != 1 {
			t.Errorf("%d segments are in the spool, want the open one", len(left))
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestBaseCountsOnlyWhatWasCompared: the archive has objects of the right
// names up to the base; what the spool holds of them may be other WAL.
func TestBaseCountsOnlyWhatWasCompared(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{})
			other := fakepg.NewWAL(systemID, size, 2)
			s.wal.FillTo(1, 5*segment.LSN(size))
			other.FillTo(1, 5*segment.LSN(size))
			for i := segment.LSN(1); i <= 3; i++ {
				content := s.wal.Segment(name(1, i))
				if foreign && i == 2 {
					content = other.Segment(name(1, i))
				}
				frame, err := codec.Method{Name: "lz4"}.Encode(content)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.store.Store.PutIfAbsent(t.Context(), "wal_005/"+name(1, i).String()+".lz4", frame); err != nil {
					t.Fatal(err)
				}
			}
			s.write(name(1, 2))
			s.write(name(1, 3))
			s.up.Base(segment.Position{Timeline: 1, LSN: 4 * segment.LSN(size)})
			s.shipped(2 * segment.LSN(size))
			end := s.run()
			time.Sleep(time.Minute)
			synctest.Wait()
			if foreign {
				s.shipped(2 * segment.LSN(size))
			} else {
				s.shipped(4 * segment.LSN(size))
				s.write(name(1, 4))
				synctest.Wait()
				s.shipped(5 * segment.LSN(size))
			}
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHistoryIsStoredAtOnce: not only with the timeline's first segment.
func TestHistoryIsStoredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		at := s.wal.FillTo(1, segment.LSN(size)+5000)
		child := s.wal.Fork(1, at)
		content, _ := s.wal.HistoryFile(child)
		end := s.run()
		if err := s.sp.PutHistory(child, content); err != nil {
			t.Fatal(err)
		}
		s.up.Switch(1, at, child)
		synctest.Wait()
		if b, err := s.stored(child.HistoryName()); err != nil || !bytes.Equal(b, content) {
			t.Errorf("%q, %v", b, err)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestWhatLiesBeyondTheSwitchpointIsStored: what a receiver holds behind the LSN
// at which the timeline ended was acknowledged there. It leaves the spool only
// when the archive has it, beside the partial, which ends at the switchpoint.
func TestWhatLiesBeyondTheSwitchpointIsStored(t *testing.T) {
	for what, c := range map[string]struct {
		ended   bool // before the segment's start
		offered bool // a part of it is in tail objects already
	}{
		"inside the segment":           {},
		"inside it, with tail objects": {offered: true},
		"before it":                    {ended: true},
		"before it, with tail objects": {ended: true, offered: true},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, Options{ShipInterval: time.Second})
				n := name(1, 1)
				at := s.wal.FillTo(1, segment.LSN(size)+5000)
				if c.ended {
					at = n.Start(size)
				}
				end := s.run()
				g := s.writeUpTo(n, s.wal.FillTo(1, at+9000))
				if c.offered {
					s.up.Offer(g, at+6000, false)
				}
				time.Sleep(3 * time.Second)
				s.store.refuse("wal_tail_005/")
				if err := g.Finish(at); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if len(s.sp.Segments()) == 0 {
					t.Error("it has left the spool, and the archive does not have it")
				}
				s.store.refuse("/")
				time.Sleep(time.Hour) // what is superseded is gone
				synctest.Wait()
				if got, want := s.tailed(n), g.Beyond(); got != want || want < at+9000 {
					t.Errorf("the tail objects reach %s, held is up to %s", got, want)
				}
				if left := len(s.sp.Segments()); left > 0 {
					t.Errorf("%d segments are in the spool", left)
				}
				b, err := s.stored(n.String() + ".partial")
				switch {
				case c.ended:
					if err == nil {
						t.Error("a partial was stored of a segment that the timeline did not reach")
					}
				case err != nil || len(b) != int(size):
					t.Errorf("the partial: %d bytes, %v", len(b), err)
				case bytes.ContainsFunc(b[at-n.Start(size):], func(r rune) bool { return r != 0 }):
					t.Error("the partial goes beyond the switchpoint")
				}
				if err := end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestTheChildsSegmentStandsForThePartial: where the parent's last segment is
// not stored, the child's, which repeats its bytes, is enough.
func TestTheChildsSegmentStandsForThePartial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		first := s.wal.FillTo(1, segment.LSN(size)+5000)
		s.wal.Fork(1, first)
		second := s.wal.FillTo(2, first+5000)
		s.wal.Fork(2, second)
		s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
		s.up.Switch(1, first, 2)
		s.up.Switch(2, second, 3)
		end := s.run()
		s.write(name(3, 2))
		synctest.Wait()
		s.shipped(segment.LSN(size))
		s.write(name(3, 1))
		synctest.Wait()
		s.shipped(3 * segment.LSN(size))
		if p, _ := s.up.Sealed(); p.Timeline != 3 {
			t.Errorf("sealed %s", p)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}
