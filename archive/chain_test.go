package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

var (
	zstd  = codec.Method{Name: codec.Zstd}
	plain = codec.Method{Name: codec.None}
)

// patch is a place in memory.
type patch struct {
	b    []byte
	fail error
}

func (p *patch) ReadAt(b []byte, at int64) (int, error) { return bytes.NewReader(p.b).ReadAt(b, at) }

func (p *patch) WriteAt(b []byte, at int64) (int, error) {
	if p.fail != nil {
		return 0, p.fail
	}
	return copy(p.b[at:], b), nil
}

func newPatch(size segment.Size) *patch { return &patch{b: bytes.Repeat([]byte{0xEE}, int(size))} }

// tails writes tail objects of one segment.
type tails struct {
	t     testing.TB
	store *mem.Store
	name  segment.Name
	size  segment.Size
	wal   []byte
}

func newTails(t testing.TB, store *mem.Store, size segment.Size) *tails {
	n := name(t, "000000010000000000000003")
	b := wal(n, size, testSystem)
	random := rand.NewChaCha8([32]byte{1}) // so that codecs leave it as it is
	if _, err := random.Read(b[64:]); err != nil {
		t.Fatal(err)
	}
	return &tails{t, store, n, size, b}
}

func (s *tails) tail(start, end uint32) Tail {
	return Tail{Segment: s.name, Start: start, End: end, CRC: crc32.Checksum(s.wal[:end], castagnoli)}
}

func (s *tails) put(start, end uint32) string { s.t.Helper(); return s.putAs(lz4, start, end) }

func (s *tails) putAs(m codec.Method, start, end uint32) string {
	s.t.Helper()
	t := s.tail(start, end)
	if err := New(s.store, Options{}).PutTail(s.t.Context(), t, m, encoded(s.t, m, s.wal[start:end])); err != nil {
		s.t.Fatal(err)
	}
	return t.key(m)
}

// damage cuts an object's end off.
func (s *tails) damage(key string) string {
	s.t.Helper()
	b := stored(s.t, s.store, key)
	if err := s.store.Put(s.t.Context(), key, objstore.Bytes(b[:len(b)-3])); err != nil {
		s.t.Fatal(err)
	}
	return key
}

// other makes the following objects those of another history, from at on.
func (s *tails) other(at int) {
	s.wal = bytes.Clone(s.wal)
	for i := at; i < len(s.wal); i++ {
		s.wal[i] ^= 0x55
	}
}

func TestAssembleTails(t *testing.T) {
	const k = 1 << 10
	for _, c := range []struct {
		what string
		size segment.Size
		put  func(s *tails) (key string) // that the error names
		end  uint32
		err  error
		says string // in the error
	}{
		{what: "nothing", put: func(*tails) string { return "" }},
		{what: "one object", end: 5001, put: func(s *tails) string { return s.put(0, 5001) }},
		{what: "the whole segment", end: 1 << 20, put: func(s *tails) string { return s.put(0, 1<<20) }},
		{what: "a chain", end: 300 * k, put: func(s *tails) string {
			s.put(0, 8*k)
			s.put(8*k, 9*k)
			s.put(9*k, 200*k)
			return s.put(200*k, 300*k)
		}},
		{what: "of several codecs", end: 4 * k, put: func(s *tails) string {
			s.putAs(plain, 0, k)
			s.putAs(zstd, k, 2*k)
			s.putAs(lz4, 2*k, 3*k)
			return s.putAs(plain, 3*k, 4*k)
		}},
		{what: "of two receivers", end: 330 * k, put: func(s *tails) string {
			for at := uint32(0); at < 300*k; at += 30 * k {
				s.put(at, at+30*k)
			}
			s.put(0, 100*k)
			s.put(100*k, 190*k)
			return s.put(190*k, 330*k)
		}},
		{what: "of two receivers that died", end: 330 * k, put: func(s *tails) string {
			s.put(0, 100*k)
			s.put(100*k, 200*k)
			s.put(0, 150*k)
			return s.put(150*k, 330*k)
		}},
		{what: "merged", end: 64 * k, put: func(s *tails) string {
			for at := uint32(0); at < 64*k; at += k {
				s.put(at, at+k)
			}
			s.put(0, 32*k)
			return s.put(32*k, 64*k)
		}},
		{what: "merged, the parts half removed", end: 40 * k, put: func(s *tails) string {
			for at := uint32(20 * k); at < 40*k; at += k {
				s.put(at, at+k)
			}
			return s.put(0, 32*k)
		}},
		{what: "large objects between small ones", size: 8 * mb, end: 7<<20 + k, put: func(s *tails) string {
			s.put(0, k)
			s.put(k, 3<<20)
			s.put(2<<20, 3<<20+5)
			s.put(3<<20+5, 7<<20)
			return s.put(7<<20, 7<<20+k)
		}},
		{what: "names that are none of ours", end: 5 * k, put: func(s *tails) string {
			s.put(0, 5*k)
			for _, text := range []string{"README", "00001400-00001800-00000000.lz4/x", "00001400-00001000-00000000", "00001400-00200000-00000000.lz4", "00001400-00001800-0000000g"} {
				put(s.t, s.store, tailDir+s.name.String()+"/"+text, nil)
			}
			return ""
		}},
		{what: "other segments", end: 5 * k, put: func(s *tails) string {
			s.put(0, 5*k)
			s.name.Seg++
			s.put(0, 7*k)
			s.name.Seg--
			return ""
		}},

		{what: "damaged, there being smaller ones", end: 9 * k, put: func(s *tails) string {
			s.put(0, 5*k)
			s.damage(s.put(0, 8*k))
			return s.put(5*k, 9*k)
		}},
		{what: "damaged in the middle, there being another", end: 9 * k, put: func(s *tails) string {
			s.put(0, 2*k)
			s.damage(s.put(2*k, 6*k))
			s.put(k, 4*k)
			s.put(4*k, 8*k)
			return s.put(8*k, 9*k)
		}},
		{what: "damaged in one of two forms", end: 5 * k, put: func(s *tails) string {
			s.putAs(lz4, 0, 5*k)
			return s.damage(s.putAs(zstd, 0, 5*k))
		}},
		{what: "all damaged", err: codec.ErrDamaged, put: func(s *tails) string { return s.damage(s.put(0, 5*k)) }},
		{what: "damaged in the middle", end: 2 * k, err: codec.ErrDamaged, put: func(s *tails) string {
			s.put(0, 2*k)
			s.put(4*k, 5*k)
			return s.damage(s.put(2*k, 4*k))
		}},
		{what: "damaged at the end", end: 2 * k, err: codec.ErrDamaged, put: func(s *tails) string {
			s.put(0, 2*k)
			return s.damage(s.put(2*k, 4*k))
		}},
		{what: "damaged, and the others reach less far", end: 3 * k, err: codec.ErrDamaged, put: func(s *tails) string {
			s.put(0, 2*k)
			s.put(2*k, 3*k)
			return s.damage(s.put(2*k, 4*k))
		}},
		{what: "a large one damaged", size: 4 * mb, end: 5, err: codec.ErrDamaged, put: func(s *tails) string {
			s.put(0, 5)
			return s.damage(s.put(0, 3<<20))
		}},
		{what: "empty", end: k, err: codec.ErrDamaged, put: func(s *tails) string {
			s.put(0, k)
			return s.raw(s.tail(k, 2*k), lz4, nil)
		}},
		{what: "too short", end: k, err: codec.ErrDamaged, says: "1023 bytes, 1024 by its name", put: func(s *tails) string {
			s.put(0, k)
			return s.raw(s.tail(k, 2*k), plain, s.wal[k:2*k-1])
		}},
		{what: "too long", end: k, err: codec.ErrDamaged, says: "more than 1024", put: func(s *tails) string {
			s.put(0, k)
			return s.raw(s.tail(k, 2*k), plain, s.wal[k:2*k+1])
		}},
		{what: "large where a small one should be", end: k, err: codec.ErrDamaged, put: func(s *tails) string {
			s.put(0, k)
			return s.raw(s.tail(k, 2*k), plain, bytes.Repeat([]byte{7}, 3*smallTail))
		}},

		{what: "another history in the overlap", end: 3 * k, err: ErrConflict, says: "first difference is at 0/3009C4", put: func(s *tails) string {
			s.put(0, 3*k)
			s.other(2500)
			return s.put(2*k, 9*k)
		}},
		{what: "another history behind", end: 3 * k, err: ErrConflict, says: "another history", put: func(s *tails) string {
			s.put(0, 3*k)
			s.other(2500)
			return s.put(3*k, 9*k)
		}},
		{what: "another history that is shorter", end: 9 * k, err: ErrConflict, says: "another history", put: func(s *tails) string {
			s.put(0, 3*k)
			s.put(3*k, 9*k)
			s.other(5 * k)
			return s.put(3*k, 6*k)
		}},
		{what: "another history of the same end", end: 9 * k, err: ErrConflict, says: "another history", put: func(s *tails) string {
			s.put(k, 9*k)
			s.put(0, k)
			s.other(5 * k)
			s.put(0, 9*k)
			return "00002400-" // one of the two
		}},
		{what: "another history whose object is damaged", end: 9 * k, err: ErrConflict, put: func(s *tails) string {
			s.put(0, 9*k)
			s.other(5 * k)
			return s.damage(s.put(3*k, 6*k))
		}},
		{what: "another history behind a hole", end: 3 * k, err: ErrTailHole, put: func(s *tails) string {
			s.put(0, 3*k)
			s.other(0)
			return s.put(4*k, 6*k)
		}},
		{what: "a changed byte in a plain object", end: k, err: ErrConflict, put: func(s *tails) string {
			s.put(0, k)
			b := bytes.Clone(s.wal[k : 2*k])
			b[77] ^= 4
			return s.raw(s.tail(k, 2*k), plain, b)
		}},
		{what: "damage in the overlap", end: k, err: codec.ErrDamaged, put: func(s *tails) string {
			s.put(0, k)
			b := stored(s.t, s.store, s.put(0, 2*k))
			b[len(b)/4] ^= 4
			return s.raw(s.tail(0, 2*k), lz4, b)
		}},

		{what: "a hole at the front", err: ErrTailHole, says: "0/300000 to 0/300400", put: func(s *tails) string { return s.put(k, 2*k) }},
		{what: "a hole", end: 2 * k, err: ErrTailHole, says: "0/300800 to 0/300C00 is missing in front of", put: func(s *tails) string {
			s.put(0, 2*k)
			s.put(5*k, 6*k)
			return s.put(3*k, 4*k)
		}},
		{what: "a hole behind one that cannot be decoded", end: k, err: ErrTailHole, put: func(s *tails) string {
			s.put(0, k)
			return s.raw(s.tail(2*k, 3*k), codec.Method{}, nil) + ".age"
		}},
		{what: "no decoder", end: k, err: ErrNoDecoder, says: ".zst", put: func(s *tails) string {
			s.put(0, k)
			return s.undecodable(k, 3*k)
		}},
		{what: "no decoder, and not needed", end: 3 * k, put: func(s *tails) string {
			s.put(0, 3*k)
			return s.undecodable(k, 3*k)
		}},
		{what: "no decoder, and of another history", end: 3 * k, err: ErrConflict, put: func(s *tails) string {
			s.put(0, 3*k)
			s.other(k)
			return s.undecodable(k, 2*k)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			if c.size == 0 {
				c.size = mb
			}
			store := mem.New()
			s := newTails(t, store, c.size)
			history := s.wal
			key := c.put(s)
			counted := count(store)
			into := newPatch(c.size)
			end, crc, err := New(counted, Options{}).AssembleTails(t.Context(), s.name, c.size, into)
			if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			for _, sentinel := range []error{ErrConflict, ErrTailHole, ErrNoDecoder, codec.ErrDamaged, ErrVanished} {
				if !errors.Is(c.err, sentinel) && errors.Is(err, sentinel) {
					t.Errorf("error %v matches %v, too", err, sentinel)
				}
			}
			if err != nil && (!strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("error %q does not say %q and %q", err, key, c.says)
			}
			if c.what == "another history of the same end" && crc == crc32.Checksum(s.wal[:end], castagnoli) {
				history = s.wal // either may be taken
			}
			if end != c.end || crc != crc32.Checksum(history[:c.end], castagnoli) || !bytes.Equal(into.b[:end], history[:end]) {
				t.Errorf("%d bytes with checksum %08X, want %d with %08X", end, crc, c.end, crc32.Checksum(history[:c.end], castagnoli))
			}
			if lists := counted.taken("LIST"); lists > 1 && !errors.Is(c.err, ErrTailHole) && c.what != "damaged in the middle" {
				t.Errorf("%d LISTs", lists)
			}
		})
	}
}

// raw stores bytes under a tail object's name.
func (s *tails) raw(t Tail, m codec.Method, content []byte) string {
	s.t.Helper()
	key := t.key(m)
	if m.Name == "" {
		key += ".age"
	}
	if err := s.store.Put(s.t.Context(), key, objstore.Bytes(content)); err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSuffix(key, ".age")
}

func (s *tails) undecodable(start, end uint32) string {
	s.t.Helper()
	key := s.tail(start, end).key(lz4) + ".age"
	put(s.t, s.store, key, nil)
	return key
}

// TestAssembleTailsBeginsAgain: what changes between the listing and the reads.
func TestAssembleTailsBeginsAgain(t *testing.T) {
	const k = 1 << 10
	// hooked runs f before the n-th call of a kind.
	type call struct {
		op mem.Op
		n  int
	}
	type hooks map[call]func(s *tails)
	run := func(t *testing.T, h hooks, set func(s *tails)) (end uint32, lists int, err error) {
		var mu sync.Mutex
		calls := map[mem.Op]int{}
		var s *tails
		var armed bool
		store := mem.NewWith(mem.Options{Before: func(_ context.Context, op mem.Op, key string) error {
			mu.Lock()
			if !armed || op == mem.List && !strings.HasPrefix(key, tailDir) {
				mu.Unlock()
				return nil
			}
			calls[op]++
			f := h[call{op, calls[op]}]
			if every := h[call{op, 0}]; f == nil {
				f = every
			}
			armed = f == nil // not for what f does
			mu.Unlock()
			if f != nil {
				f(s)
				mu.Lock()
				armed = true
				mu.Unlock()
			}
			return nil
		}})
		s = newTails(t, store, mb)
		set(s)
		mu.Lock()
		armed = true
		mu.Unlock()
		into := newPatch(mb)
		var crc uint32
		end, crc, err = New(store, Options{}).AssembleTails(t.Context(), s.name, mb, into)
		if !bytes.Equal(into.b[:end], s.wal[:end]) || crc != crc32.Checksum(s.wal[:end], castagnoli) {
			t.Errorf("other bytes than were stored")
		}
		mu.Lock()
		defer mu.Unlock()
		return end, calls[mem.List], err
	}
	remove := func(s *tails, start, end uint32) {
		if err := New(s.store, Options{}).DeleteTail(s.t.Context(), s.tail(start, end), lz4); err != nil {
			s.t.Error(err)
		}
	}
	t.Run("merged meanwhile", func(t *testing.T) {
		end, lists, err := run(t, hooks{{mem.Get, 1}: func(s *tails) {
			s.put(0, 3*k)
			remove(s, 0, 2*k)
			remove(s, 2*k, 3*k)
		}}, func(s *tails) { s.put(0, 2*k); s.put(2*k, 3*k) })
		if err != nil || end != 3*k || lists != 2 {
			t.Errorf("%d bytes, %v, %d listings", end, err, lists)
		}
	})
	t.Run("sealed meanwhile", func(t *testing.T) {
		end, _, err := run(t, hooks{{mem.Get, 1}: func(s *tails) { remove(s, 0, 2*k) }}, func(s *tails) { s.put(0, 2*k) })
		if err != nil || end != 0 {
			t.Errorf("%d bytes, %v", end, err)
		}
	})
	t.Run("merged again and again", func(t *testing.T) {
		at := uint32(3 * k)
		_, lists, err := run(t, hooks{{mem.Get, 0}: func(s *tails) {
			remove(s, 0, at)
			at++
			s.put(0, at)
		}}, func(s *tails) { s.put(0, at) })
		if !errors.Is(err, ErrVanished) || lists != assembleTries {
			t.Errorf("%v, %d listings", err, lists)
		}
	})
	t.Run("a listing that shows the younger object alone", func(t *testing.T) {
		end, _, err := run(t, hooks{{mem.List, 2}: func(s *tails) { s.put(k, 2*k) }}, func(s *tails) { s.put(0, k); s.put(2*k, 3*k) })
		if err != nil || end != 3*k {
			t.Errorf("%d bytes, %v", end, err)
		}
	})
	t.Run("a hole costs a second listing", func(t *testing.T) {
		end, lists, err := run(t, nil, func(s *tails) { s.put(0, k); s.put(2*k, 3*k) })
		if !errors.Is(err, ErrTailHole) || end != k || lists != 2 {
			t.Errorf("%d bytes, %v, %d listings", end, err, lists)
		}
	})
}

// failingBodies breaks some bodies off.
type failingBodies struct {
	*mem.Store
	fail func(key string, get int) error // for the get-th Get of the key, from 1

	mu   sync.Mutex
	gets map[string]int
}

func (s *failingBodies) Get(ctx context.Context, key string) (io.ReadCloser, objstore.Info, error) {
	body, info, err := s.Store.Get(ctx, key)
	s.mu.Lock()
	s.gets[key]++
	n := s.gets[key]
	s.mu.Unlock()
	if cause := s.fail(key, n); err == nil && cause != nil {
		return &cutBody{io.LimitReader(body, info.Size/2), body, cause}, info, nil
	}
	return body, info, err
}

type cutBody struct {
	io.Reader
	io.Closer
	cause error
}

func (b *cutBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = b.cause
	}
	return n, err
}

func TestAssembleTailsReadsAgain(t *testing.T) {
	reset := errors.New("connection reset by peer")
	for _, c := range []struct {
		what   string
		broken int
		cause  error
		err    error
		gets   int // of each object
	}{
		{"twice broken", 2, reset, nil, 3},
		{"always broken", 99, reset, reset, objectTries},
		{"refused", 99, objstore.ErrDenied, objstore.ErrDenied, 1},
		{"no store", 99, objstore.ErrNoStore, objstore.ErrNoStore, 1},
	} {
		for _, size := range []uint32{4 << 10, 2 << 20} {
			t.Run(fmt.Sprintf("%s/%d", c.what, size), func(t *testing.T) {
				store := &failingBodies{Store: mem.New(), gets: map[string]int{}}
				s := newTails(t, store.Store, 4*mb)
				key := s.put(0, size)
				store.fail = func(_ string, get int) error {
					if get <= c.broken {
						return c.cause
					}
					return nil
				}
				into := newPatch(4 * mb)
				end, _, err := New(store, Options{}).AssembleTails(t.Context(), s.name, 4*mb, into)
				if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) || (err == nil) != (end == size) || errors.Is(err, codec.ErrDamaged) {
					t.Errorf("%d bytes, %v", end, err)
				}
				if err != nil && !strings.Contains(err.Error(), key) {
					t.Errorf("%v does not name %s", err, key)
				}
				if store.gets[key] != c.gets {
					t.Errorf("%d GETs, want %d", store.gets[key], c.gets)
				}
			})
		}
	}
}

func TestAssembleTailsNeedsAnswers(t *testing.T) {
	down := errors.New("connection refused")
	s := newTails(t, mem.New(), mb)
	s.put(0, 1000)
	s.put(1000, 2000)
	full := errors.New("no space left on device")
	counted := count(s.store)
	if _, _, err := New(counted, Options{}).AssembleTails(t.Context(), s.name, mb, &patch{fail: full}); !errors.Is(err, full) {
		t.Error(err)
	}
	if n := counted.taken("GET"); n > 2 {
		t.Errorf("%d GETs for two objects: reading again helps no disk", n)
	}
	if _, _, err := New(s.store, Options{}).AssembleTails(t.Context(), s.name, mb, unreadablePatch{newPatch(mb)}); err != nil {
		t.Errorf("read without need: %v", err)
	}
	s.put(1500, 3000)
	if _, _, err := New(s.store, Options{}).AssembleTails(t.Context(), s.name, mb, unreadablePatch{newPatch(mb)}); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	if _, _, err := New(s.store, Options{}).AssembleTails(t.Context(), s.name, 3, nil); err == nil {
		t.Error("a segment size of 3")
	}
	if _, _, err := New(s.store, Options{}).AssembleTails(t.Context(), segment.Name{Timeline: 1, Seg: 4}, segment.MaxSize, nil); err == nil {
		t.Error("a name that is not possible")
	}
	for _, op := range []mem.Op{mem.List, mem.Get} {
		store := mem.NewWith(mem.Options{Before: func(_ context.Context, o mem.Op, _ string) error {
			if o == op {
				return down
			}
			return nil
		}})
		a := New(store, Options{})
		b := newTails(t, store, mb)
		b.put(0, 1000)
		if end, _, err := a.AssembleTails(t.Context(), b.name, mb, newPatch(mb)); !errors.Is(err, down) || end != 0 {
			t.Errorf("%s: %d bytes, %v", op, end, err)
		}
		if op != mem.List {
			continue
		}
		if _, err := a.TailEnd(t.Context(), b.name); !errors.Is(err, down) {
			t.Error(err)
		}
		if _, err := a.Tails(t.Context(), b.name); !errors.Is(err, down) {
			t.Error(err)
		}
		if _, err := a.TailSegments(t.Context(), 1); !errors.Is(err, down) {
			t.Error(err)
		}
		if _, _, err := a.NextTail(t.Context(), b.name); !errors.Is(err, down) {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := New(s.store, Options{}).AssembleTails(ctx, s.name, mb, newPatch(mb)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

type unreadablePatch struct{ *patch }

func (unreadablePatch) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

// TestAssembleTailsInParallel: small objects are downloaded at a time, and a
// few at most; a large one passes through alone.
func TestAssembleTailsInParallel(t *testing.T) {
	var mu sync.Mutex
	running, most := 0, 0
	var s *tails
	store := &failingBodies{Store: mem.New(), gets: map[string]int{}}
	slow := &slowGets{failingBodies: store, around: func(step int) {
		mu.Lock()
		running += step
		most = max(most, running)
		mu.Unlock()
	}}
	store.fail = func(string, int) error { return nil }
	s = newTails(t, store.Store, 4*mb)
	at := uint32(0)
	for range 40 {
		s.put(at, at+1000)
		at += 1000
	}
	s.put(at, at+2<<20)
	at += 2 << 20
	for range 40 {
		s.put(at, at+1000)
		at += 1000
	}
	into := newPatch(4 * mb)
	end, _, err := New(slow, Options{}).AssembleTails(t.Context(), s.name, 4*mb, into)
	if err != nil || end != at || !bytes.Equal(into.b[:end], s.wal[:end]) {
		t.Fatalf("%d bytes, %v", end, err)
	}
	if most < 2 || most > tailsAhead {
		t.Errorf("%d GETs at one time", most)
	}
	if running != 0 {
		t.Errorf("%d GETs go on", running)
	}
	for key, n := range store.gets {
		if n != 1 {
			t.Errorf("%s was read %d times", key, n)
		}
	}
}

// TestAssembleTailsEndsItsDownloads: when it returns, nothing goes on.
func TestAssembleTailsEndsItsDownloads(t *testing.T) {
	s := newTails(t, mem.New(), mb)
	s.put(0, 1000)
	s.put(1000, 2000)
	s.put(2000, 3000)
	var mu sync.Mutex
	running := 0
	store := mem.NewWith(mem.Options{Before: func(ctx context.Context, op mem.Op, key string) error {
		if op != mem.Get {
			return nil
		}
		if strings.Contains(key, "/00000000-") {
			return objstore.ErrDenied
		}
		mu.Lock()
		running++
		mu.Unlock()
		<-ctx.Done()
		time.Sleep(10 * time.Millisecond)
		mu.Lock()
		running--
		mu.Unlock()
		return ctx.Err()
	}})
	for _, key := range keysOf(t, s.store) {
		put(t, store, key, stored(t, s.store, key))
	}
	if _, _, err := New(store, Options{}).AssembleTails(t.Context(), s.name, mb, newPatch(mb)); !errors.Is(err, objstore.ErrDenied) {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if running != 0 {
		t.Errorf("%d GETs go on", running)
	}
}

// TestAssembleTailsIsBounded: what says that it is small and is not does not
// wait in memory, and the shortest of those that reach equally far is read.
func TestAssembleTailsIsBounded(t *testing.T) {
	s := newTails(t, mem.New(), mb)
	s.put(0, 1000)
	s.raw(s.tail(1000, 2000), plain, make([]byte, 40*smallTail))
	store := &meteredBodies{Store: s.store}
	if _, _, err := New(store, Options{}).AssembleTails(t.Context(), s.name, mb, newPatch(mb)); !errors.Is(err, codec.ErrDamaged) {
		t.Error(err)
	}
	if store.read > smallTail {
		t.Errorf("%d bytes were read", store.read)
	}
	s = newTails(t, mem.New(), mb)
	s.put(0, 1<<19)
	s.put(1, 1<<20)
	s.put(1<<19, 1<<20)
	store = &meteredBodies{Store: s.store}
	if end, _, err := New(store, Options{}).AssembleTails(t.Context(), s.name, mb, newPatch(mb)); err != nil || end != 1<<20 {
		t.Errorf("%d bytes, %v", end, err)
	}
	if store.read < 1<<20 || store.read > 1<<20+1000 {
		t.Errorf("%d bytes were read", store.read)
	}
}

type meteredBodies struct {
	*mem.Store

	mu   sync.Mutex
	read int // bytes
}

func (s *meteredBodies) Get(ctx context.Context, key string) (io.ReadCloser, objstore.Info, error) {
	body, info, err := s.Store.Get(ctx, key)
	return &meteredBody{body, s}, info, err
}

type meteredBody struct {
	io.ReadCloser
	store *meteredBodies
}

func (b *meteredBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.store.mu.Lock()
	b.store.read += n
	b.store.mu.Unlock()
	return n, err
}

type slowGets struct {
	*failingBodies
	around func(step int)
}

func (s *slowGets) Get(ctx context.Context, key string) (io.ReadCloser, objstore.Info, error) {
	s.around(1)
	defer s.around(-1)
	time.Sleep(time.Millisecond)
	return s.failingBodies.Get(ctx, key)
}

// TestDamageThatWasPassedIsTold so that someone can look after the disk.
func TestDamageThatWasPassedIsTold(t *testing.T) {
	s := newTails(t, mem.New(), mb)
	key := s.damage(s.put(0, 5000))
	s.put(0, 4000)
	s.put(4000, 6000)
	var log strings.Builder
	a := New(s.store, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if end, _, err := a.AssembleTails(t.Context(), s.name, mb, newPatch(mb)); err != nil || end != 6000 {
		t.Fatalf("%d bytes, %v", end, err)
	}
	if !strings.Contains(log.String(), key) {
		t.Errorf("not told: %s", &log)
	}
}

// TestAssembleTailsAtRandom holds the assembly against what the names say: any
// set of objects of one history, whoever cut them, gives the longest prefix
// without a hole, or says what is missing.
func TestAssembleTailsAtRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	methods := []codec.Method{lz4, zstd, plain}
	for round := range 40 {
		s := newTails(t, mem.New(), mb)
		type part struct{ start, end uint32 }
		var parts []part
		for range 1 + random.IntN(3) { // receivers
			at := uint32(0)
			for range random.IntN(12) {
				next := at + 1 + uint32(random.IntN(60_000))
				parts = append(parts, part{at, next})
				at = next
			}
			if at > 0 && random.IntN(3) == 0 {
				parts = append(parts, part{0, at})
			}
		}
		random.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		parts = parts[:len(parts)-random.IntN(1+len(parts)/2)]
		for _, p := range parts {
			s.putAs(methods[random.IntN(3)], p.start, p.end)
		}
		want := uint32(0)
		for changed := true; changed; {
			changed = false
			for _, p := range parts {
				if p.start <= want && p.end > want {
					want, changed = p.end, true
				}
			}
		}
		hole := slices.ContainsFunc(parts, func(p part) bool { return p.start > want })
		a := New(s.store, Options{})
		into := newPatch(mb)
		end, crc, err := a.AssembleTails(t.Context(), s.name, mb, into)
		if end != want || crc != crc32.Checksum(s.wal[:want], castagnoli) || !bytes.Equal(into.b[:end], s.wal[:end]) {
			t.Fatalf("round %d: %v gives %d bytes, want %d", round, parts, end, want)
		}
		if hole != errors.Is(err, ErrTailHole) || !hole && err != nil {
			t.Fatalf("round %d: %v: hole %v, %v", round, parts, hole, err)
		}
		if byNames, err := a.TailEnd(t.Context(), s.name); err != nil || byNames != want {
			t.Fatalf("round %d: %v ends at %d by the names, want %d; %v", round, parts, byNames, want, err)
		}
		if want == 0 {
			continue
		}
		// And an object of another history does not pass, whatever it holds.
		from := random.IntN(int(want))
		s.other(from)
		to := uint32(from + 1 + random.IntN(int(want)-from))
		foreign := part{uint32(random.IntN(int(to))), to}
		s.putAs(methods[random.IntN(3)], foreign.start, foreign.end)
		if end, _, err := a.AssembleTails(t.Context(), s.name, mb, newPatch(mb)); !errors.Is(err, ErrConflict) {
			t.Fatalf("round %d: %v and %v, which differs from %d on: %d bytes, %v", round, parts, foreign, from, end, err)
		}
	}
}
