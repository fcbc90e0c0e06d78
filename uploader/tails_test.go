package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/spool"
)

// patch is a segment in memory.
type patch []byte

func (p patch) ReadAt(b []byte, off int64) (int, error)  { return copy(b, p[off:]), nil }
func (p patch) WriteAt(b []byte, off int64) (int, error) { return copy(p[off:], b), nil }

// tailed returns what the tail objects of a segment give, held against the
// server's bytes.
func (s *scene) tailed(n segment.Name) segment.LSN {
	s.t.Helper()
	b := make(patch, size)
	end, _, err := archive.New(s.store, archive.Options{}).AssembleTails(context.Background(), n, size, b)
	if err != nil {
		s.t.Errorf("tail objects of %s: %v", n, err)
	}
	if !bytes.Equal(b[:end], s.wal.Segment(n)[:end]) {
		s.t.Errorf("the tail objects of %s hold other bytes than the server", n)
	}
	return n.Start(size) + segment.LSN(end)
}

// objects returns the tail objects of a segment.
func (s *scene) objects(n segment.Name) []archive.StoredTail {
	s.t.Helper()
	all, err := archive.New(s.store, archive.Options{}).Tails(context.Background(), n)
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// grow appends n bytes of records to a segment, and offers them.
func (s *scene) grow(g *spool.Segment, n int, hurry bool) {
	s.t.Helper()
	from := g.Advanced()
	to := min(s.wal.Append(g.Name().Timeline, n), g.End())
	if err := g.WriteAt(s.wal.Bytes(g.Name().Timeline, from, to), from); err != nil {
		s.t.Fatal(err)
	}
	g.Advance(to)
	s.up.Offer(g, to, hurry)
}

func (s *scene) begin(n segment.Name) *spool.Segment {
	s.t.Helper()
	s.wal.FillTo(n.Timeline, n.Start(size))
	g, err := s.sp.Begin(n)
	if err != nil {
		s.t.Fatal(err)
	}
	return g
}

func TestTailsGoEveryInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Second})
		n := name(1, 1)
		s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
		end := s.run()
		time.Sleep(500 * time.Millisecond)
		g := s.begin(n)
		for range 40 { // 4 s
			s.grow(g, 100, false)
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := len(s.objects(n)); got < 4 || got > 6 {
			t.Errorf("%d tail objects in 4 s", got)
		}
		if got := s.tailed(n); got != g.Advanced() {
			t.Errorf("tail objects up to %s, want %s", got, g.Advanced())
		}
		s.shipped(g.Advanced())
		if p, _ := s.up.Sealed(); p.LSN != n.Start(size) {
			t.Errorf("sealed %s", p)
		}
		puts := s.store.puts
		time.Sleep(time.Hour)
		if s.store.puts != puts {
			t.Errorf("%d puts in an idle hour", s.store.puts-puts)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestOffersWakeNobodyForNothing: with each commit something moves, and what is
// due later is woken for once.
func TestOffersWakeNobodyForNothing(t *testing.T) {
	s := newScene(t, Options{ShipInterval: time.Second})
	g := s.begin(name(1, 1))
	woken := func(hurry bool) bool {
		s.grow(g, 100, hurry)
		select {
		case <-s.up.tailNews:
			return true
		default:
			return false
		}
	}
	for i, c := range []struct{ hurry, want bool }{
		{false, true}, {false, false}, {false, false}, {true, true}, {true, true}, {false, false},
	} {
		if got := woken(c.hurry); got != c.want {
			t.Errorf("offer %d, hurry %v: woken %v, want %v", i, c.hurry, got, c.want)
		}
	}
	if err := s.sp.Close(); err != nil {
		t.Error(err)
	}
}

// TestAHurriedTailGoesAtOnce, and all that came while one was under way in one.
func TestAHurriedTailGoesAtOnce(t *testing.T) {
	for _, interval := range []time.Duration{time.Second, 0} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{ShipInterval: interval})
			n := name(1, 1)
			s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
			s.store.before = func(int, string) error { time.Sleep(20 * time.Millisecond); return nil }
			end := s.run()
			g := s.begin(n)
			s.grow(g, 100, true)
			time.Sleep(10 * time.Second)
			synctest.Wait()
			before := s.store.puts
			for range 100 {
				s.grow(g, 100, true)
				time.Sleep(time.Millisecond)
			}
			time.Sleep(30 * time.Millisecond)
			synctest.Wait()
			s.shipped(g.Advanced())
			if got := s.store.puts - before; got < 5 || got > 7 {
				t.Errorf("%d puts for what came in 100 ms, with 20 ms each", got)
			}
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoTailsWithoutInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		n := name(1, 1)
		end := s.run()
		s.grow(s.begin(n), 1000, false)
		time.Sleep(time.Minute)
		if got := s.objects(n); len(got) != 0 {
			t.Errorf("tail objects %v", got)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestCatchUpWritesNoTails: a segment that is whole before its tail was due.
func TestCatchUpWritesNoTails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Second})
		s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
		end := s.run()
		s.wal.FillTo(1, 9*segment.LSN(size))
		for i := segment.LSN(1); i <= 8; i++ {
			n := name(1, i)
			g := s.begin(n)
			if err := g.WriteAt(s.wal.Segment(n), n.Start(size)); err != nil {
				t.Fatal(err)
			}
			g.Advance(n.End(size))
			s.up.Offer(g, n.End(size), true)
			synctest.Wait()
		}
		s.shipped(9 * segment.LSN(size))
		for i := segment.LSN(1); i <= 8; i++ {
			if got := s.objects(name(1, i)); len(got) != 0 {
				t.Errorf("tail objects %v", got)
			}
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestATailWaitsForTheOldest: a new archive does not begin with a younger
// segment's tail object.
func TestATailWaitsForTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Second})
		n := name(1, 1)
		var mu sync.Mutex
		away := true
		s.store.before = func(_ int, key string) error {
			mu.Lock()
			defer mu.Unlock()
			if away && strings.HasPrefix(key, "wal_005/"+n.String()) {
				return errors.New("503")
			}
			return nil
		}
		s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
		end := s.run()
		s.write(n)
		g := s.begin(n.Next(size))
		s.grow(g, 1000, true)
		time.Sleep(5 * time.Second)
		if got := s.objects(n.Next(size)); len(got) != 0 {
			t.Errorf("the archive begins with %v", got)
		}
		mu.Lock()
		away = false
		mu.Unlock()
		time.Sleep(time.Minute)
		s.shipped(g.Advanced())
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestNoTailBehindAHole: a tail object is stored to be restored. While a whole
// segment is on its way, or waits for a worker, none goes up behind it.
func TestNoTailBehindAHole(t *testing.T) {
	for _, first := range []bool{false, true} { // there is an older one in the archive
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{ShipInterval: time.Second, Workers: 2})
			n := name(1, 2)
			var mu sync.Mutex
			away := true
			s.store.before = func(_ int, key string) error {
				mu.Lock()
				defer mu.Unlock()
				if away && strings.HasPrefix(key, "wal_005/"+n.String()) {
					return errors.New("503")
				}
				return nil
			}
			base := segment.Position{Timeline: 1, LSN: n.Start(size)}
			if first {
				base.LSN -= segment.LSN(size)
				s.write(name(1, 1))
			}
			s.up.Base(base)
			for i := segment.LSN(2); i <= 5; i++ {
				s.write(name(1, i))
			}
			g := s.begin(name(1, 6))
			s.grow(g, 1000, false) // before anybody has taken one
			end := s.run()
			time.Sleep(5 * time.Second)
			s.grow(g, 1000, false)
			time.Sleep(5 * time.Second)
			if got := s.objects(g.Name()); len(got) != 0 {
				t.Errorf("segment %s is missing, and behind it is %v", n, got)
			}
			mu.Lock()
			away = false
			mu.Unlock()
			time.Sleep(time.Minute)
			s.shipped(g.Advanced())
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAWaitingCommitBesideASlowSegment: tail objects run to the segment's end
// and into the next one while the whole segment is still on its way.
func TestAWaitingCommitBesideASlowSegment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Second})
		n := name(1, 1)
		whole := "wal_005/" + n.String()
		var mu sync.Mutex
		away := true
		s.store.before = func(_ int, key string) error {
			mu.Lock()
			defer mu.Unlock()
			if away && strings.HasPrefix(key, whole) {
				return errors.New("503")
			}
			return nil
		}
		s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
		end := s.run()
		g := s.begin(n)
		s.grow(g, 5000, true)
		synctest.Wait()
		s.wal.FillTo(1, n.End(size)-5000)
		s.grow(g, 100, true)
		synctest.Wait()
		for g.Advanced() < g.End() {
			s.grow(g, 3000, true)
		}
		synctest.Wait()
		s.shipped(n.End(size))
		next := s.begin(n.Next(size))
		s.grow(next, 3000, true)
		time.Sleep(2 * time.Second)
		s.shipped(next.Advanced())
		if p, _ := s.up.Sealed(); p.LSN != n.Start(size) {
			t.Errorf("sealed %s", p)
		}
		mu.Lock()
		away = false
		mu.Unlock()
		time.Sleep(time.Minute)
		s.mustHold(n)
		if p, _ := s.up.Sealed(); p.LSN != n.End(size) {
			t.Errorf("sealed %s", p)
		}
		s.shipped(next.Advanced())
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestTailsAreMergedAndRemoved: a reader finds dozens of objects at any time,
// and a chain from the segment's start at every moment.
func TestTailsAreMergedAndRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Second})
		n := name(1, 1)
		s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
		written := int64(0)
		s.store.after = func(_ int, key string) error {
			if strings.HasPrefix(key, "wal_tail_005/") {
				i := strings.LastIndexByte(key, '/')
				var from, to int64
				if _, err := fmt.Sscanf(key[i+1:], "%X-%X-", &from, &to); err != nil {
					t.Error(err)
				}
				written += to - from
			}
			return nil
		}
		end := s.run()
		g := s.begin(n)
		for i := range 2200 {
			s.grow(g, 100, false)
			time.Sleep(time.Second)
			if i%100 == 99 {
				synctest.Wait()
				if got := s.tailed(n); got != g.Advanced() {
					t.Fatalf("after %d s: tail objects up to %s, want %s", i, got, g.Advanced())
				}
			}
		}
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		left := s.objects(n)
		// 2200 = 2 * 32*32 + 4 * 32 + 24
		if len(left) > 40 {
			t.Errorf("%d objects are left of 2200", len(left))
		}
		if got := s.tailed(n); got != g.Advanced() {
			t.Errorf("tail objects up to %s, want %s", got, g.Advanced())
		}
		if total := int64(g.Advanced() - g.Start()); written > 4*total {
			t.Errorf("%d bytes were written %d times", total, written/total)
		}
		// The whole segment stands for all of them.
		s.wal.FillTo(1, n.End(size))
		for g.Advanced() < g.End() {
			s.grow(g, 10000, false)
		}
		synctest.Wait()
		s.mustHold(n)
		time.Sleep(9 * time.Minute)
		if got := s.objects(n); len(got) == 0 {
			t.Error("the tail objects were removed at once: a reader may have just listed them")
		}
		time.Sleep(2 * time.Minute)
		if got := s.objects(n); len(got) != 0 {
			t.Errorf("tail objects of a whole segment are left: %v", got)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestTailsThatMayNotBeRemoved: told once.
func TestTailsThatMayNotBeRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &lockedBuffer{}
		s := newScene(t, Options{ShipInterval: time.Second, Log: slog.New(slog.NewTextHandler(log, nil))})
		s.store.Store = &undeletable{s.store.Store}
		n := name(1, 1)
		s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
		end := s.run()
		g := s.begin(n)
		for range 100 {
			s.grow(g, 100, false)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		if got := strings.Count(log.String(), "may not be removed"); got != 1 {
			t.Errorf("told %d times", got)
		}
		s.shipped(g.Advanced())
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

type undeletable struct{ objstore.Store }

func (s *undeletable) Delete(context.Context, string) error { return objstore.ErrDenied }

// TestTheChainOfAnOpenSegmentIsRenewed: a lifecycle rule that removes what is
// 30 days old never removes what nothing else holds.
func TestTheChainOfAnOpenSegmentIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Second})
		born := map[string]time.Time{}
		var mu sync.Mutex
		s.store.Store = &dated{Store: s.store.Store, mu: &mu, born: born}
		n := name(1, 1)
		s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
		end := s.run()
		g := s.begin(n)
		for range 5 {
			s.grow(g, 1000, false)
			time.Sleep(2 * time.Second)
		}
		for range 60 { // days
			time.Sleep(24 * time.Hour)
			mu.Lock()
			for key, at := range born {
				if time.Since(at) > 30*24*time.Hour {
					if err := s.store.Delete(context.Background(), key); err != nil {
						t.Error(err)
					}
				}
			}
			mu.Unlock()
			if got := s.tailed(n); got != g.Advanced() {
				t.Fatalf("tail objects up to %s, want %s", got, g.Advanced())
			}
		}
		if got := s.objects(n); len(got) != 1 {
			t.Errorf("tail objects %v, want one of all", got)
		}
		s.grow(g, 1000, false)
		time.Sleep(2 * time.Second)
		if got := s.tailed(n); got != g.Advanced() {
			t.Errorf("tail objects up to %s, want %s", got, g.Advanced())
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// dated remembers when each object was last put.
type dated struct {
	objstore.Store
	mu   *sync.Mutex
	born map[string]time.Time
}

func (s *dated) PutIfAbsent(ctx context.Context, key string, body objstore.Body) error {
	err := s.Store.PutIfAbsent(ctx, key, body)
	s.note(key, err)
	return err
}

func (s *dated) Put(ctx context.Context, key string, body objstore.Body) error {
	err := s.Store.Put(ctx, key, body)
	s.note(key, err)
	return err
}

func (s *dated) note(key string, err error) {
	if err == nil && strings.HasPrefix(key, "wal_tail_005/") {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.born[key] = time.Now()
	}
}

// restart closes the spool and opens it again with a new uploader on the same
// store.
func (s *scene) restart(o Options) {
	s.t.Helper()
	dir := s.dir
	sp, err := spool.Open(disk.OS{}, dir, spool.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	if o.Method.Name == "" {
		o.Method = codec.Method{Name: "lz4"}
	}
	o.Buffers = codec.NewBuffers(1<<20, s.t.TempDir())
	s.sp = sp
	s.up = New(sp, archive.New(s.store, archive.Options{}), o)
}

// TestWhatTheDiskHoldsGoesUpWithoutAServer: as one object from the segment's
// start, which also stands for older ones.
func TestWhatTheDiskHoldsGoesUpWithoutAServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Second})
		n := name(1, 1)
		end := s.run()
		g := s.begin(n)
		s.grow(g, 1000, false)
		time.Sleep(2 * time.Second)
		first := s.objects(n)
		s.store.fail(errors.New("503"))
		s.grow(g, 1000, false)
		time.Sleep(2 * time.Second)
		held := g.Advanced()
		if _, err := g.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		s.store.fail(nil)

		s.restart(Options{ShipInterval: time.Second})
		end = s.run()
		time.Sleep(2 * time.Second)
		if got := s.tailed(n); got != held {
			t.Errorf("tail objects up to %s, the disk holds %s", got, held)
		}
		all := s.objects(n)
		if i := slices.IndexFunc(all, func(o archive.StoredTail) bool { return o.Start == 0 && o.End == uint32(held-n.Start(size)) }); i < 0 || len(all) != len(first)+1 {
			t.Errorf("tail objects %v, before %v; want one more, of everything", all, first)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestOldTailsAreSwept: what a run before this one left of segments that are
// stored whole.
func TestOldTailsAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Second})
		s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
		end := s.run()
		n := name(1, 1)
		g := s.begin(n)
		s.grow(g, 1000, false)
		time.Sleep(2 * time.Second)
		s.wal.FillTo(1, n.End(size))
		for g.Advanced() < g.End() {
			s.grow(g, 100000, false)
		}
		open := s.begin(n.Next(size))
		s.grow(open, 1000, false)
		time.Sleep(2 * time.Second)
		if _, err := open.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		if len(s.objects(n)) == 0 {
			t.Fatal("nothing is left over")
		}
		s.restart(Options{ShipInterval: time.Second})
		s.up.Base(segment.Position{Timeline: 1, LSN: n.End(size)})
		end = s.run()
		time.Sleep(time.Hour)
		if got := s.objects(n); len(got) != 0 {
			t.Errorf("left over: %v", got)
		}
		if got := s.tailed(n.Next(size)); got != open.Advanced() && got < open.Start()+1000 {
			t.Errorf("the open segment's tail objects reach %s", got)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestTailsInFrontOfAGapStay: nothing else holds what they do. They are not
// swept, and no lifecycle rule of 30 days removes them, though the spool and the
// run that stored them are gone.
func TestTailsInFrontOfAGapStay(t *testing.T) {
	for _, filled := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{ShipInterval: time.Second})
			born := map[string]time.Time{}
			var mu sync.Mutex
			s.store.Store = &dated{Store: s.store.Store, mu: &mu, born: born}
			n := name(1, 1)
			s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
			end := s.run()
			g := s.begin(n)
			for range 3 {
				s.grow(g, 1000, false)
				time.Sleep(2 * time.Second)
			}
			held := g.Advanced()
			behind := n.Start(size) + 5*segment.LSN(size)
			gap := archive.RecordedGap{Gap: segment.Gap{Timeline: 1, Start: held, End: behind}}
			ar := archive.New(s.store, archive.Options{})
			if err := ar.PutGap(context.Background(), gap); err != nil {
				t.Fatal(err)
			}
			g.Abandon()
			if err := errors.Join(s.sp.Drop(g), end()); err != nil {
				t.Fatal(err)
			}
			if filled {
				frame, err := codec.Method{Name: codec.LZ4}.Encode(s.wal.Segment(n))
				if err != nil {
					t.Fatal(err)
				}
				if err := ar.PutSegment(context.Background(), n, codec.Method{Name: codec.LZ4}, frame, bytes.NewReader(s.wal.Segment(n)), size); err != nil {
					t.Fatal(err)
				}
			}
			s.restart(Options{ShipInterval: time.Second})
			s.up.Base(segment.Position{Timeline: 1, LSN: behind})
			end = s.run()
			for range 60 { // days
				time.Sleep(24 * time.Hour)
				mu.Lock()
				for key, at := range born {
					if time.Since(at) > 30*24*time.Hour {
						if err := s.store.Delete(context.Background(), key); err != nil {
							t.Error(err)
						}
					}
				}
				mu.Unlock()
			}
			if got := s.tailed(n); !filled && got != held || filled && got != n.Start(size) {
				t.Errorf("filled=%v: tail objects up to %s, the gap begins at %s", filled, got, held)
			}
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTailsOnAFailingStore: puts fail at random before or after they were
// stored; at each moment what is said to be shipped can be read.
func TestTailsOnAFailingStore(t *testing.T) {
	for seed := range uint64(5) {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{ShipInterval: time.Second})
			r := rand.New(rand.NewPCG(seed, 1))
			begin := time.Now()
			var mu sync.Mutex
			fail := func(int, string) error {
				mu.Lock()
				defer mu.Unlock()
				if time.Since(begin) < 2*time.Minute && r.IntN(3) > 0 {
					return errors.New("503 Slow Down")
				}
				return nil
			}
			s.store.before, s.store.after = fail, fail
			n := name(1, 1)
			s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
			end := s.run()
			g := s.begin(n)
			for i := range 1000 {
				mu.Lock()
				hurry := r.IntN(2) == 0
				mu.Unlock()
				s.grow(g, 50+int(seed), hurry)
				time.Sleep(200 * time.Millisecond)
				if i%20 != 0 {
					continue
				}
				p, _ := s.up.Shipped()
				if got := s.tailed(n); got < p.LSN {
					t.Fatalf("seed %d: shipped %s, and the tail objects reach %s", seed, p, got)
				}
			}
			time.Sleep(3 * time.Minute)
			s.shipped(g.Advanced())
			if got := s.tailed(n); got != g.Advanced() {
				t.Errorf("seed %d: tail objects up to %s, want %s", seed, got, g.Advanced())
			}
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestShippedAcrossASwitch: what the old timeline's tail objects hold behind
// the switchpoint is not shipped on the new one.
func TestShippedAcrossASwitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Second})
		n := name(1, 1)
		s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
		end := s.run()
		g := s.begin(n)
		s.grow(g, 5000, true)
		at := g.Advanced()
		s.grow(g, 5000, true)
		synctest.Wait()
		s.shipped(g.Advanced())
		s.up.Switch(1, at, 2)
		if p, _ := s.up.Shipped(); p != (segment.Position{Timeline: 2, LSN: at}) {
			t.Errorf("shipped %s, the switchpoint is %s", p, at)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestDrainTakesTheTailAlong: what was offered is there at the end.
func TestDrainTakesTheTailAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Minute})
		n := name(1, 1)
		s.up.Base(segment.Position{Timeline: 1, LSN: n.Start(size)})
		end := s.run()
		g := s.begin(n)
		s.grow(g, 100, false)
		time.Sleep(time.Second)
		s.grow(g, 5000, false)
		synctest.Wait()
		if err := s.up.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		if got := s.tailed(n); got != g.Advanced() {
			t.Errorf("tail objects up to %s, want %s", got, g.Advanced())
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestARecordThatGoesOnFromTheArchive: of what the disk holds, the beginning is
// the rest of a record whose front only the archive has; also in the first
// segment of a timeline, where it has it under the parent's name.
func TestARecordThatGoesOnFromTheArchive(t *testing.T) {
	for _, c := range []struct{ torn, forked bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{ShipInterval: time.Second})
			n := name(1, 1)
			end := s.run()
			s.wal.FillTo(1, n.End(size)-100)
			s.wal.Append(1, 5000)
			to := s.wal.Append(1, 5000)
			first := s.begin(n)
			if err := first.WriteAt(s.wal.Segment(n), n.Start(size)); err != nil {
				t.Fatal(err)
			}
			first.Advance(n.End(size))
			synctest.Wait()
			s.mustHold(n)
			s.store.fail(errors.New("503"))
			next := n.Next(size)
			if c.forked {
				next.Timeline = s.wal.Fork(1, to)
				content, _ := s.wal.HistoryFile(next.Timeline)
				if err := s.sp.PutHistory(next.Timeline, content); err != nil {
					t.Fatal(err)
				}
				to = s.wal.Append(next.Timeline, 3000)
			}
			g := s.begin(next)
			b := bytes.Clone(s.wal.Segment(g.Name())[:to-g.Start()])
			if c.torn {
				b[1000] ^= 1 // in the middle of the record that goes on
			}
			if err := g.WriteAt(b, g.Start()); err != nil {
				t.Fatal(err)
			}
			g.Advance(to)
			if _, err := g.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := end(); err != nil {
				t.Error(err)
			}
			s.store.fail(nil)
			s.restart(Options{ShipInterval: time.Second})
			end = s.run()
			time.Sleep(2 * time.Second)
			want := to
			if c.torn {
				want = g.Start()
			}
			if got := s.tailed(g.Name()); got != want {
				t.Errorf("%+v: tail objects up to %s, want %s", c, got, want)
			}
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNoTailWithoutAHistory: what a run before this one has left of a timeline
// goes up when the spool tells where it comes from.
func TestNoTailWithoutAHistory(t *testing.T) {
	for _, of := range []segment.Timeline{0, 2, 3} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, Options{ShipInterval: time.Second})
			s.wal.Fork(1, s.wal.FillTo(1, segment.LSN(size)+5000))
			s.wal.Fork(2, s.wal.FillTo(2, segment.LSN(size)+90000))
			n := name(2, 1)
			s.writeUpTo(n, s.wal.End(2))
			if of != 0 {
				content, _ := s.wal.HistoryFile(of)
				if err := s.sp.PutHistory(of, content); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.sp.Close(); err != nil {
				t.Fatal(err)
			}
			s.restart(Options{ShipInterval: time.Second})
			end := s.run()
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := len(s.objects(n)); n > 0 != (of != 0) {
				t.Errorf("with the history of %d: %d tail objects", of, n)
			}
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}
