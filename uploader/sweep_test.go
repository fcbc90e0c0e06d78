package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
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
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/spool"
)

// fate is what becomes of one call of the store.
type fate struct {
	name   string
	effect bool // what it asks for is done all the same; of what it reads a part comes
	kill   bool // the process dies there; else the call fails
	power  bool // and its host with it
}

// TestEveryStoreCallInTurn lets one call of the store after the other fail, or
// kills the process there and starts it again: everything ends up stored, once
// and equal. At no time do the shipped position, or the spool, count on what
// the store does not have. The archive is a new one, or has everything already,
// as when a process was killed before it emptied its spool: then the calls are
// those that compare.
func TestEveryStoreCallInTurn(t *testing.T) {
	wal := newSweepWAL(t)
	for _, again := range []bool{false, true} {
		for _, f := range []fate{
			{name: "fails"},
			{name: "is done and fails", effect: true},
			{name: "process killed before it", kill: true},
			{name: "process killed behind it", kill: true, effect: true},
			{name: "power cut before it", kill: true, power: true},
			{name: "power cut behind it", kill: true, power: true, effect: true},
		} {
			t.Run(fmt.Sprintf("%s, again %v", f.name, again), func(t *testing.T) {
				t.Parallel()
				step := 1
				if f.kill && os.Getenv("WALFERRY_FULL") == "" {
					step = 3
				}
				for n, hit := 1, true; hit; n += step {
					synctest.Test(t, func(t *testing.T) { hit = sweep(t, wal, again, f, n) })
					if t.Failed() {
						t.Fatalf("at call %d", n)
					}
					if !hit && n <= 12 {
						t.Errorf("call %d was not reached: so few show nothing", n)
					}
				}
			})
		}
	}
}

// sweep runs uploaders until everything is stored. It reports whether there
// was an n-th call.
func sweep(t *testing.T, wal *sweepWAL, again bool, f fate, n int) bool {
	w := &sweepWorld{t: t, wal: wal, disk: crashfs.New(uint64(n)),
		// Where no checksums are told, what is there is decoded and compared.
		objects: mem.NewWith(mem.Options{NoCRC: again}),
		method:  codec.Method{Name: "lz4"}}
	if f.kill {
		w.method.Name = "none" // in a fifth of the time
	}
	if again {
		w.fill()
	}
	store := &sweptStore{Store: w.objects, fate: f, n: n, dead: make(chan struct{})}
	if f.power {
		store.dies = func() { w.disk.StopAt(1) }
	}
	w.live(store)
	if store.died() {
		if f.power {
			w.disk.Crash()
		}
		w.live(&sweptStore{Store: w.objects, dead: make(chan struct{})})
	}
	w.complete()
	return store.reached()
}

// piece is what a server sends of one segment.
type piece struct {
	name    segment.Name
	end     segment.LSN
	content []byte // a segment's, with zeros behind end
	frames  map[string][]byte
}

// partial tells of the last segment of a timeline that has ended.
func (p piece) partial() bool { return p.end != p.name.End(size) }

func (p piece) file() string {
	if p.partial() {
		return p.name.String() + ".partial"
	}
	return p.name.String()
}

// sweepWAL is WAL with a promotion in its middle. It does not change.
type sweepWAL struct {
	pieces  []piece
	history segment.History // of the younger timeline
	file    []byte          // its history file
}

// newSweepWAL makes segments that were switched early, as most of their bytes
// would show nothing more and take their time.
func newSweepWAL(t *testing.T) *sweepWAL {
	t.Helper()
	const some = 50_000
	wal := fakepg.NewWAL(systemID, size, 1)
	for range 2 {
		wal.FillTo(1, wal.End(1)+some)
		wal.SwitchSegment(1)
	}
	at := wal.FillTo(1, wal.End(1)+some)
	child := wal.Fork(1, at)
	wal.FillTo(child, wal.End(child)+some)
	wal.SwitchSegment(child)
	w := &sweepWAL{}
	w.file, _ = wal.HistoryFile(child)
	w.history, _ = wal.History(child)
	for _, n := range []segment.Name{name(1, 1), name(1, 2), name(1, 3), name(child, 3)} {
		p := piece{name: n, end: n.End(size), content: wal.Segment(n)}
		if n == name(1, 3) {
			p.end = at
			clear(p.content[at-n.Start(size):])
		}
		p.frames = map[string][]byte{"none": p.content}
		frame, err := codec.Method{Name: "lz4"}.Encode(p.content)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, frame.Size())
		if _, err := frame.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		frame.Release()
		p.frames["lz4"] = b
		w.pieces = append(w.pieces, p)
	}
	return w
}

// sweepWorld is what outlives a process: the disk and the store.
type sweepWorld struct {
	t       *testing.T
	wal     *sweepWAL
	disk    *crashfs.FS
	objects *mem.Store
	method  codec.Method
	durable int // so many pieces were made durable
}

func (w *sweepWorld) key(p piece) string { return "wal_005/" + p.file() + w.method.Ext() }

func (w *sweepWorld) historyKey() string {
	return "wal_005/" + w.wal.history.Timeline.HistoryName() + w.method.Ext()
}

func (w *sweepWorld) openSpool() *spool.Spool {
	w.t.Helper()
	sp, err := spool.Open(w.disk, "/spool", spool.Options{})
	if err == nil {
		err = sp.Bind(spool.Identity{SystemIdentifier: systemID, SegmentSize: size})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return sp
}

// fill puts everything into the archive and into the spool.
func (w *sweepWorld) fill() {
	w.t.Helper()
	ctx, ar, method := w.t.Context(), archive.New(w.objects, archive.Options{}), w.method
	_, err := ar.Claim(ctx, archive.Identity{SystemIdentifier: systemID, SegmentSize: size, WALCodec: method.Name})
	sp, t := w.openSpool(), w.wal.history.Timeline
	err = errors.Join(err, ar.PutHistory(ctx, t, method, w.wal.file), sp.PutHistory(t, w.wal.file))
	for _, p := range w.wal.pieces {
		frame := objstore.Bytes(p.frames[method.Name])
		if plain := bytes.NewReader(p.content); p.partial() {
			err = errors.Join(err, ar.PutPartial(ctx, p.name, p.end, method, frame, plain, size))
		} else {
			err = errors.Join(err, ar.PutSegment(ctx, p.name, method, frame, plain, size))
		}
		err = errors.Join(err, p.into(sp))
		w.durable++
	}
	if err = errors.Join(err, sp.Close()); err != nil {
		w.t.Fatal(err)
	}
}

// into writes the piece into the spool and makes it durable.
func (p piece) into(sp *spool.Spool) error {
	g, err := sp.Begin(p.name)
	if err != nil {
		return err
	}
	if err := g.WriteAt(p.content[:p.end-p.name.Start(size)], p.name.Start(size)); err != nil {
		return err
	}
	g.Advance(p.end)
	if p.partial() {
		return g.Finish(p.end)
	}
	time.Sleep(100 * time.Millisecond) // the uploader may be faster than the disk
	if err := g.Seal(); !errors.Is(err, spool.ErrDropped) {
		return err
	}
	return nil
}

// has tells whether the store has an object.
func (w *sweepWorld) has(key string) bool {
	_, _, err := w.objects.Get(context.Background(), key)
	return err == nil
}

// live is one process's life: an uploader, and what a receiver does with it.
// It ends when the process dies, or long after everything should be stored.
func (w *sweepWorld) live(store *sweptStore) {
	sp := w.openSpool()
	ar := archive.New(store, archive.Options{})
	up := New(sp, ar, Options{Method: w.method, Buffers: codec.NewBuffers(2<<20, "")})
	watch := &sweepWatch{sweepWorld: w, sp: sp, up: up}
	watch.survived()
	store.around = watch.look
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := up.Run(ctx); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-store.dead:
				cancel() // so that what it waits for in vain ends
			case <-up.Changed():
				watch.look()
			}
		}
	})
	if err := w.receive(ctx, sp, ar, up, store); err != nil && !store.died() {
		w.t.Errorf("what the receiver does: %v", err)
	}
	for range 20 { // much longer than one failure holds anything up
		if store.died() {
			break
		}
		time.Sleep(time.Minute)
	}
	synctest.Wait()
	watch.look()
	if !store.died() {
		watch.finished()
	}
	cancel()
	wg.Wait()
	if err := sp.Close(); err != nil && !store.died() {
		w.t.Error(err)
	}
}

// receive does what a receiver does in the spool: it finds out where the
// archive ends, and brings what neither the archive nor the spool has.
func (w *sweepWorld) receive(ctx context.Context, sp *spool.Spool, ar *archive.Archive, up *Uploader, store *sweptStore) error {
	var archived segment.Position
	for {
		var ok bool
		err := up.Claim(ctx, spool.Identity{SystemIdentifier: systemID, SegmentSize: size})
		if err == nil {
			archived, ok, err = ar.RunEnd(ctx, w.wal.history, size, 4*segment.LSN(size))
		}
		if err == nil {
			if !ok {
				archived = segment.Position{Timeline: 1, LSN: segment.LSN(size)}
			}
			break
		}
		if store.died() {
			return err
		}
		time.Sleep(time.Second)
	}
	up.Base(archived)
	switched := false
	for i, p := range w.wal.pieces {
		if store.died() {
			return nil
		}
		if t := w.wal.history.Timeline; p.name.Timeline == t && !switched {
			if err := sp.PutHistory(t, w.wal.file); err != nil {
				return err
			}
			up.Switch(1, w.wal.pieces[i-1].end, t)
			switched = true
		}
		var held *spool.Segment
		for _, g := range sp.Segments() {
			if g.Name() == p.name {
				held = g
			}
		}
		var err error
		switch {
		case held != nil && held.Sealed():
		case held == nil && p.end <= archived.LSN:
		case p.end <= archived.LSN && !p.partial():
			err = sp.Drop(held) // what is left of one that was dropped before its seal
		default:
			err = p.into(sp)
		}
		if err != nil {
			return err
		}
		w.durable = max(w.durable, i+1)
	}
	return nil
}

// complete wants everything in the store, once and as it was sent, and
// nothing else.
func (w *sweepWorld) complete() {
	w.t.Helper()
	want := []string{w.historyKey(), "walferry_005/identity.json"}
	for _, p := range w.wal.pieces {
		want = append(want, w.key(p))
		w.mustHold(p.file(), p.content)
	}
	w.mustHold(w.wal.history.Timeline.HistoryName(), w.wal.file)
	var got []string
	for info, err := range w.objects.List(context.Background(), objstore.ListOptions{}) {
		if err != nil {
			w.t.Fatal(err)
		}
		got = append(got, info.Key)
	}
	if slices.Sort(want); !slices.Equal(got, want) {
		w.t.Errorf("the store has %q, want %q", got, want)
	}
}

func (w *sweepWorld) mustHold(file string, want []byte) {
	w.t.Helper()
	o, err := archive.New(w.objects, archive.Options{}).Open(context.Background(), file)
	if err != nil {
		w.t.Error(err)
		return
	}
	b, err := io.ReadAll(o)
	if err = errors.Join(err, o.Close()); err != nil || !bytes.Equal(b, want) {
		w.t.Errorf("%s in the archive: %d bytes, which are not those that were sent (%v)", file, len(b), err)
	}
}

// sweepWatch compares what a process believes with what the store has.
type sweepWatch struct {
	*sweepWorld
	sp *spool.Spool
	up *Uploader

	mu   sync.Mutex
	last segment.Position // that was shipped
}

// look may be called at any time.
func (w *sweepWatch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	// The store only grows: it is asked last.
	shipped, ok := w.up.Shipped()
	if shipped.LSN < w.last.LSN || shipped.Timeline < w.last.Timeline {
		w.t.Errorf("shipped went back from %s to %s", w.last, shipped)
	}
	w.last = shipped
	for i, p := range w.wal.pieces {
		has := w.has(w.key(p))
		// The child's first segment repeats the bytes of its parent's last.
		repeated := p.partial() && w.has(w.key(w.wal.pieces[i+1]))
		if ok && p.end <= shipped.LSN && !has && !repeated {
			w.t.Errorf("shipped is %s, and the store has no %s", shipped, w.key(p))
		}
		if has && p.name.Timeline != 1 && !w.has(w.historyKey()) {
			w.t.Errorf("the store has %s, and no history", w.key(p))
		}
		if has && !w.has(w.key(w.wal.pieces[0])) {
			w.t.Errorf("the store has %s, and not the oldest", w.key(p))
		}
	}
	if w.up.Stopped() != nil {
		w.t.Errorf("shipping has stopped: %v", w.up.Stopped())
	}
}

// survived wants all that was durable when the process before died to be in
// the spool, which was opened again, or in the store.
func (w *sweepWatch) survived() {
	held := map[segment.Name]bool{}
	for _, g := range w.sp.Segments() {
		held[g.Name()] = true
	}
	for _, p := range w.wal.pieces[:w.durable] {
		if !held[p.name] && !w.has(w.key(p)) {
			w.t.Errorf("%s was durable, and is neither in the spool nor in the store", p.file())
		}
	}
}

// finished wants the process to know that everything is stored.
func (w *sweepWatch) finished() {
	want := segment.Position{Timeline: w.wal.history.Timeline, LSN: 4 * segment.LSN(size)}
	if p, ok := w.up.Shipped(); !ok || p != want {
		w.t.Errorf("shipped is %s, want %s", p, want)
	}
	for _, g := range w.sp.Segments() {
		w.t.Errorf("segment %s is left in the spool", g.Name())
	}
	if w.up.Failing() {
		w.t.Error("it takes the store for failing")
	}
}

// sweptStore is a store as one process sees it. Something happens to the n-th
// call; none, where n is 0.
type sweptStore struct {
	objstore.Store
	fate   fate
	n      int
	dies   func()        // optional: what else happens when the process dies
	around func()        // called before and behind each call
	dead   chan struct{} // closed when the process is dead

	mu    sync.Mutex
	calls int
}

func (s *sweptStore) reached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n > 0 && s.calls >= s.n
}

func (s *sweptStore) died() bool {
	select {
	case <-s.dead:
		return true
	default:
		return false
	}
}

var errSwept = errors.New("503 Slow Down")

// call makes one call. do is told whether it is the one that fails in its
// middle.
func (s *sweptStore) call(ctx context.Context, do func(broken bool) error) error {
	s.around()
	s.mu.Lock()
	s.calls++
	mine := s.calls == s.n
	s.mu.Unlock()
	var err error
	switch {
	case s.died():
	case mine && !s.fate.effect:
		err = errSwept
	default:
		err = do(mine)
		s.around()
		if mine && err == nil {
			err = errSwept
		}
	}
	if mine && s.fate.kill {
		close(s.dead) // first: who fails by it looks here for the reason
		if s.dies != nil {
			s.dies()
		}
	}
	if s.died() { // nothing comes to its ears any more
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

// PutIfAbsent implements objstore.Store.
func (s *sweptStore) PutIfAbsent(ctx context.Context, key string, body objstore.Body) error {
	return s.call(ctx, func(bool) error { return s.Store.PutIfAbsent(ctx, key, body) })
}

// Get implements objstore.Store. In its middle it fails in the body's.
func (s *sweptStore) Get(ctx context.Context, key string) (r io.ReadCloser, info objstore.Info, err error) {
	half := false
	err = s.call(ctx, func(broken bool) (err error) {
		r, info, err = s.Store.Get(ctx, key)
		half = broken && err == nil
		return err
	})
	return s.broken(half, r, info, err)
}

// GetRange implements objstore.Store as Get does.
func (s *sweptStore) GetRange(ctx context.Context, key string, offset, length int64) (r io.ReadCloser, info objstore.Info, err error) {
	half := false
	err = s.call(ctx, func(broken bool) (err error) {
		r, info, err = s.Store.GetRange(ctx, key, offset, length)
		half = broken && err == nil
		return err
	})
	return s.broken(half, r, info, err)
}

// broken replaces the failure of a call that reads by a body that ends early,
// in the way in which the contract wants it.
func (s *sweptStore) broken(half bool, r io.ReadCloser, info objstore.Info, err error) (io.ReadCloser, objstore.Info, error) {
	if !half || s.fate.kill {
		return r, info, err
	}
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, info, err
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(b[:len(b)/2]), failingReader{})), info, nil
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// List implements objstore.Store. In its middle it fails behind the first
// object.
func (s *sweptStore) List(ctx context.Context, opts objstore.ListOptions) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		half := false
		err := s.call(ctx, func(broken bool) error { half = broken; return nil })
		if err != nil && (!half || s.fate.kill) {
			yield(objstore.Info{}, err)
			return
		}
		for info, listErr := range s.Store.List(ctx, opts) {
			if !yield(info, listErr) {
				return
			}
			if half {
				break
			}
		}
		if half {
			yield(objstore.Info{}, errSwept)
		}
	}
}

// Put and Delete have no place in what a receiver does.
func (s *sweptStore) Put(_ context.Context, key string, _ objstore.Body) error {
	return fmt.Errorf("put %s without a condition", key)
}

// Delete implements objstore.Store.
func (s *sweptStore) Delete(_ context.Context, key string) error {
	return fmt.Errorf("delete %s", key)
}
