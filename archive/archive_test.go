package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

const (
	testSystem = 7710929516611631544
	mb         = segment.Size(1 << 20)
)

var lz4 = codec.Method{Name: codec.LZ4}

// counted counts the requests that a store would be sent.
type counted struct {
	objstore.Store

	mu    sync.Mutex
	calls map[string]int // by verb
}

func count(s objstore.Store) *counted { return &counted{Store: s, calls: map[string]int{}} }

func (c *counted) add(verb string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[verb]++
}

// taken returns the requests of one kind since the last call.
func (c *counted) taken(verb string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.calls[verb]
	delete(c.calls, verb)
	return n
}

func (c *counted) PutIfAbsent(ctx context.Context, key string, body objstore.Body) error {
	c.add("PUT")
	return c.Store.PutIfAbsent(ctx, key, body)
}

func (c *counted) Get(ctx context.Context, key string) (io.ReadCloser, objstore.Info, error) {
	c.add("GET")
	return c.Store.Get(ctx, key)
}

// List counts a request per 1000 entries that are consumed, as S3 answers.
func (c *counted) List(ctx context.Context, o objstore.ListOptions) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		n := 0
		c.add("LIST")
		for info, err := range c.Store.List(ctx, o) {
			if n > 0 && n%1000 == 0 {
				c.add("LIST")
			}
			n++
			if !yield(info, err) {
				return
			}
		}
	}
}

// wal returns a segment's bytes: a first page's header and something that
// differs from segment to segment.
func wal(n segment.Name, size segment.Size, system uint64) []byte {
	b := make([]byte, size)
	le := binary.LittleEndian
	le.PutUint16(b, 0xD110)
	le.PutUint16(b[2:], 0x0002)
	le.PutUint32(b[4:], uint32(n.Timeline))
	le.PutUint64(b[8:], uint64(n.Start(size)))
	le.PutUint64(b[24:], system)
	le.PutUint32(b[32:], uint32(size))
	le.PutUint32(b[36:], 8192)
	for i := 8192; i < len(b); i += 509 {
		b[i] = byte(i * int(n.Seg+7))
	}
	return b
}

func name(t testing.TB, s string) segment.Name {
	t.Helper()
	n, err := segment.ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func encoded(t testing.TB, m codec.Method, content []byte) *codec.Frame {
	t.Helper()
	f, err := m.Encode(content)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Release)
	return f
}

func bytesOf(t testing.TB, f *codec.Frame) []byte {
	t.Helper()
	b := make([]byte, f.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t testing.TB, s objstore.Store, key string, content []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, objstore.Bytes(content)); err != nil {
		t.Fatal(err)
	}
}

func stored(t testing.TB, s objstore.Store, key string) []byte {
	t.Helper()
	body, _, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func keysOf(t testing.TB, s objstore.Store) []string {
	t.Helper()
	var keys []string
	for info, err := range s.List(t.Context(), objstore.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

func TestPutSegment(t *testing.T) {
	n := name(t, "000000010000000A000000FF")
	content := wal(n, mb, testSystem)
	for _, m := range []codec.Method{{Name: codec.LZ4}, {Name: codec.Zstd, Level: 3}, {Name: codec.None}} {
		t.Run(m.String(), func(t *testing.T) {
			store := count(mem.New())
			a := New(store, Options{})
			frame := encoded(t, m, content)
			for round := range 2 {
				if err := a.PutSegment(t.Context(), n, m, frame, bytes.NewReader(content), mb); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			}
			if got, want := keysOf(t, store), []string{"wal_005/000000010000000A000000FF" + m.Ext()}; !slices.Equal(got, want) {
				t.Errorf("keys %q, want %q", got, want)
			}
			if store.taken("PUT") != 2 || store.taken("GET") != 1 {
				t.Error("more requests than two PUT and one GET")
			}
			o, err := a.Open(t.Context(), n.String())
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(o)
			if err := errors.Join(err, o.Close()); err != nil || !bytes.Equal(got, content) || o.Ext != m.Ext() {
				t.Errorf("%s: %d bytes, %v", o.Key, len(got), err)
			}
		})
	}
	a := New(mem.New(), Options{})
	bad := segment.Name{Timeline: 1, Seg: 64}
	if err := a.PutSegment(t.Context(), bad, lz4, encoded(t, lz4, content), bytes.NewReader(content), 64<<20); err == nil {
		t.Error("a name that no 64 MB cluster has was stored")
	}
}

// What is there decides: by decoded content, not by its bytes.
func TestPutSegmentExists(t *testing.T) {
	n := name(t, "000000020000000000000003")
	content := wal(n, mb, testSystem)
	changed := func(at int) []byte {
		b := bytes.Clone(content)
		b[at] ^= 0x10
		return b
	}
	frame := func(m codec.Method, content []byte) []byte { return bytesOf(t, encoded(t, m, content)) }
	whole := frame(lz4, content)
	ours := encoded(t, lz4, content)
	for _, c := range []struct {
		what    string
		there   []byte
		differs segment.LSN // zero: no LSN
		damaged bool
		ok      bool
	}{
		{what: "equal content, other frame", there: frame(codec.Method{Name: codec.LZ4, Level: 9}, content), ok: true},
		{what: "the same", there: whole, ok: true},
		{what: "first byte differs", there: frame(lz4, changed(0)), differs: 0x300000},
		{what: "last byte differs", there: frame(lz4, changed(1<<20-1)), differs: 0x3FFFFF},
		{what: "byte behind a buffer differs", there: frame(lz4, changed(compareBuffer)), differs: 0x300000 + compareBuffer},
		{what: "truncated", there: whole[:len(whole)-3], damaged: true},
		{what: "cut at the end mark", there: whole[:len(whole)-8], damaged: true},
		{what: "empty", there: nil, damaged: true},
		{what: "garbage behind", there: append(bytes.Clone(whole), 0), damaged: true},
		{what: "no frame", there: []byte("<html>"), damaged: true},
		{what: "shorter content", there: frame(lz4, content[:1<<19]), damaged: true},
		{what: "longer content", there: frame(lz4, append(bytes.Clone(content), 0)), damaged: true},
		{what: "empty content", there: frame(lz4, nil), damaged: true},
		{what: "differs, and is cut", there: func() []byte { b := frame(lz4, changed(5)); return b[:len(b)-1] }(), differs: 0x300005, damaged: true},
	} {
		for _, noCRC := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, no checksum %v", c.what, noCRC), func(t *testing.T) {
				store := mem.NewWith(mem.Options{NoCRC: noCRC})
				key := "wal_005/000000020000000000000003.lz4"
				put(t, store, key, c.there)
				err := New(store, Options{}).PutSegment(t.Context(), n, lz4, ours, bytes.NewReader(content), mb)
				if !bytes.Equal(stored(t, store, key), c.there) {
					t.Error("the stored object changed")
				}
				if c.ok {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				var conflict *ConflictError
				if !errors.Is(err, ErrConflict) || !errors.As(err, &conflict) {
					t.Fatalf("%v; want a conflict", err)
				}
				if conflict.Key != key || conflict.HasLSN != (c.differs != 0) || conflict.HasLSN && conflict.LSN != c.differs {
					t.Errorf("%+v; want LSN %s", conflict, c.differs)
				}
				if errors.Is(err, codec.ErrDamaged) != c.damaged || c.damaged != (conflict.Damaged != nil) {
					t.Errorf("%v; damaged should be %v", err, c.damaged)
				}
				if !strings.Contains(err.Error(), key) {
					t.Errorf("%v does not name the object", err)
				}
			})
		}
	}
}

// Equal checksum and size end the comparison before a byte is read.
func TestPutSegmentTrustsChecksum(t *testing.T) {
	n := name(t, "000000010000000000000003")
	content := wal(n, mb, testSystem)
	frame := encoded(t, lz4, content)
	inner := mem.New()
	put(t, inner, "wal_005/000000010000000000000003.lz4", bytesOf(t, frame))
	store := &unreadable{Store: inner}
	if err := New(store, Options{}).PutSegment(t.Context(), n, lz4, frame, bytes.NewReader(content), mb); err != nil {
		t.Fatal(err)
	}
	if store.open != 0 {
		t.Errorf("%d bodies left open", store.open)
	}
	// With another checksum the body has to be read, and that fails: not a conflict.
	other := encoded(t, codec.Method{Name: codec.LZ4, Level: 9}, content)
	err := New(store, Options{}).PutSegment(t.Context(), n, lz4, other, bytes.NewReader(content), mb)
	if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrConflict) || errors.Is(err, codec.ErrDamaged) {
		t.Errorf("%v; want the store's own error and no verdict", err)
	}
	if store.open != 0 {
		t.Errorf("%d bodies left open", store.open)
	}
}

// unreadable is a store whose bodies break after some bytes, as a lost
// connection does.
type unreadable struct {
	objstore.Store
	open int
}

func (s *unreadable) Get(ctx context.Context, key string) (io.ReadCloser, objstore.Info, error) {
	body, info, err := s.Store.Get(ctx, key)
	if err != nil {
		return nil, info, err
	}
	s.open++
	return &brokenBody{io.LimitReader(body, info.Size/2), body, s}, info, nil
}

type brokenBody struct {
	io.Reader
	body  io.Closer
	store *unreadable
}

func (b *brokenBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *brokenBody) Close() error {
	b.store.open--
	return b.body.Close()
}
