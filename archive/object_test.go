package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

func TestPutPartial(t *testing.T) {
	n := name(t, "000000010000000000000003")
	w := n.Start(mb) + 300_001
	ours := wal(n, mb, testSystem)
	clear(ours[300_001:])
	garbage := bytes.Clone(ours)
	for i := 300_001; i < len(garbage); i++ {
		garbage[i] = 0xAA // what PostgreSQL's own archiver found in a recycled file
	}
	other := bytes.Clone(ours)
	other[300_000] ^= 1
	key := "wal_005/000000010000000000000003.partial.lz4"
	frame := func(content []byte) []byte { return bytesOf(t, encoded(t, lz4, content)) }
	for _, c := range []struct {
		what  string
		there []byte
		err   error
	}{
		{"nothing", nil, nil},
		{"equal", frame(ours), nil},
		{"equal up to the switchpoint", frame(garbage), nil},
		{"cut behind the switchpoint", frame(ours[:300_001]), nil},
		{"cut before it", frame(ours[:300_000]), ErrConflict},
		{"other byte before it", frame(other), ErrConflict},
		{"equal, and damaged behind", frame(garbage)[:len(frame(garbage))-2], codec.ErrDamaged},
	} {
		store := mem.New()
		if c.there != nil {
			put(t, store, key, c.there)
		}
		err := New(store, Options{}).PutPartial(t.Context(), n, w, lz4, encoded(t, lz4, ours), bytes.NewReader(ours), mb)
		if !errors.Is(err, c.err) || c.err != nil && !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v; want %v", c.what, err, c.err)
		}
		if keys := keysOf(t, store); len(keys) != 1 || keys[0] != key {
			t.Errorf("%s: keys %q", c.what, keys)
		}
	}
	for _, w := range []segment.LSN{n.Start(mb) - 1, n.End(mb) + 1} {
		if err := New(mem.New(), Options{}).PutPartial(t.Context(), n, w, lz4, encoded(t, lz4, ours), bytes.NewReader(ours), mb); err == nil {
			t.Errorf("a timeline that ended at %s has no partial %s", w, n)
		}
	}
}

func TestHistory(t *testing.T) {
	content := []byte("1\t0/3000000\tno recovery target specified\n")
	for _, m := range []codec.Method{{Name: codec.LZ4}, {Name: codec.Zstd}, {Name: codec.None}} {
		store := mem.New()
		a := New(store, Options{})
		if b, err := a.History(t.Context(), 2); !errors.Is(err, ErrNotFound) {
			t.Fatalf("%q, %v", b, err)
		}
		for range 2 {
			if err := a.PutHistory(t.Context(), 2, m, content); err != nil {
				t.Fatal(err)
			}
		}
		if keys := keysOf(t, store); !slices.Equal(keys, []string{"wal_005/00000002.history" + m.Ext()}) {
			t.Errorf("keys %q", keys)
		}
		if b, err := a.History(t.Context(), 2); err != nil || !bytes.Equal(b, content) {
			t.Errorf("%q, %v", b, err)
		}
		for _, other := range []string{"1\t0/3000008\tno recovery target specified\n", "1\t0/3000000\tno recovery target specified", "1\t0/3000000\tno recovery target specified\n\n"} {
			var conflict *ConflictError
			err := a.PutHistory(t.Context(), 2, m, []byte(other))
			if !errors.As(err, &conflict) || conflict.HasLSN || conflict.Damaged != nil {
				t.Errorf("%q: %v", other, err)
			}
		}
	}
	store := mem.New()
	a := New(store, Options{})
	for _, bad := range []string{"", "x", "2\t0/1\tr\n"} {
		if err := a.PutHistory(t.Context(), 2, lz4, []byte(bad)); err == nil {
			t.Errorf("%q was stored", bad)
		}
	}
	put(t, store, "wal_005/00000002.history.lz4", nil)
	if b, err := a.History(t.Context(), 2); !errors.Is(err, codec.ErrDamaged) {
		t.Errorf("%q, %v", b, err)
	}
	put(t, store, "wal_005/00000003.history", bytes.Repeat([]byte("#\n"), maxHistory))
	if _, err := a.History(t.Context(), 3); !errors.Is(err, codec.ErrDamaged) {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	store := count(mem.New())
	a := New(store, Options{})
	const n = "000000010000000000000003"
	if o, err := a.Open(t.Context(), n); !errors.Is(err, ErrNotFound) {
		t.Fatalf("%v, %v", o, err)
	}
	if got := store.taken("GET"); got != len(codec.Readable()) {
		t.Errorf("%d GETs prove the absence of %d forms", got, len(codec.Readable()))
	}
	if store.taken("LIST") != 0 {
		t.Error("a LIST on the way of a file")
	}
	open := func(want string) {
		t.Helper()
		o, err := a.Open(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		if o.Key != want {
			t.Errorf("opened %s, want %s", o.Key, want)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
	put(t, store, "wal_005/"+n+".partial.lz4", nil)
	put(t, store, "wal_005/"+n+".lzma", []byte("\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff"))
	open("wal_005/" + n + ".lzma")
	put(t, store, "wal_005/"+n+".zst", bytesOf(t, encoded(t, codec.Method{Name: codec.Zstd}, []byte("z"))))
	open("wal_005/" + n + ".zst")
	put(t, store, "wal_005/"+n+".lz4", bytesOf(t, encoded(t, lz4, []byte("l"))))
	open("wal_005/" + n + ".lz4")
	if _, err := a.Claim(t.Context(), Identity{1, mb, "zstd"}); err == nil {
		t.Fatal("the archive says nothing about whose it is, and was claimed")
	}
	put(t, store, identityKey, mustIdentity(t, Identity{1, mb, "zstd"}))
	if _, err := a.Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	store.taken("GET")
	open("wal_005/" + n + ".zst") // the archive's own codec comes first
	if got := store.taken("GET"); got != 1 {
		t.Errorf("%d GETs", got)
	}
	o, err := a.OpenKey(t.Context(), "wal_005/"+n+".lz4")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(o); err != nil || string(b) != "l" || o.Close() != nil {
		t.Errorf("%q, %v", b, err)
	}
	if o, err := a.OpenKey(t.Context(), "wal_005/000000010000000000000009.lz4"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v, %v", o, err)
	}
	for _, bad := range []string{"", "wal_005/" + n + ".gpg", "basebackups_005/x.lz4", "wal_005/" + n + ".00000028.backup.age"} {
		if _, err := a.OpenKey(t.Context(), bad); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("OpenKey(%q): %v", bad, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "../x", "a/b", "a\\b", "a\x00"} {
		if _, err := a.Open(t.Context(), bad); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("Open(%q): %v", bad, err)
		}
		if _, err := a.Forms(t.Context(), bad); err == nil {
			t.Errorf("Forms(%q)", bad)
		}
	}
}

func mustIdentity(t *testing.T, id Identity) []byte {
	t.Helper()
	b, err := encodeIdentity(id)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// One form that was not asked for is one proof that is missing.
func TestOpenNeedsAnswers(t *testing.T) {
	down := errors.New("503")
	for i := range codec.Readable() {
		n := -1
		store := mem.NewWith(mem.Options{Before: func(context.Context, mem.Op, string) error {
			if n++; n == i {
				return down
			}
			return nil
		}})
		if _, err := New(store, Options{}).Open(t.Context(), "00000002.history"); !errors.Is(err, down) || errors.Is(err, ErrNotFound) {
			t.Errorf("GET %d failed: %v", i, err)
		}
	}
	store := mem.NewWith(mem.Options{Before: func(context.Context, mem.Op, string) error { return down }})
	if _, err := New(store, Options{}).Forms(t.Context(), "00000002.history"); !errors.Is(err, down) {
		t.Error(err)
	}
	if _, _, err := New(store, Options{}).NextSegment(t.Context(), segment.Name{Timeline: 1}); !errors.Is(err, down) {
		t.Error(err)
	}
}

func TestForms(t *testing.T) {
	store := mem.New()
	const n = "000000010000000000000003"
	for _, ext := range []string{"", ".lz4", ".zst.age", ".gpg", ".partial", ".partial.lz4", ".partials", ".00000028.backup", ".00000028.backup.lz4", "x"} {
		put(t, store, walDir+n+ext, nil)
	}
	put(t, store, walDir+"00000003.history.lz4", nil)
	put(t, store, walDir+"00000003.historyx.lz4", nil)
	for name, want := range map[string]string{
		n:                          n + " " + n + ".gpg " + n + ".lz4 " + n + ".partials " + n + ".zst.age",
		n + ".partial":             n + ".partial " + n + ".partial.lz4",
		n + ".00000028.backup":     n + ".00000028.backup " + n + ".00000028.backup.lz4",
		"00000003.history":         "00000003.history.lz4",
		"00000002.history":         "",
		"000000010000000000000004": "",
	} {
		keys, err := New(store, Options{}).Forms(t.Context(), name)
		if got := strings.ReplaceAll(strings.Join(keys, " "), walDir, ""); err != nil || got != want {
			t.Errorf("Forms(%s) = %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestNextSegment(t *testing.T) {
	store := mem.New()
	for _, key := range []string{
		"000000010000000000000003.lz4", "000000010000000000000003.partial.lz4", "00000001000000000000000A.br", "00000001000000000000000B.partial.lz4",
		"000000010000000100000000.gpg", "000000020000000000000003.lz4", "00000002.history.lz4", "000000030000000000000005.00000028.backup.lz4", "00000004.history",
		"0000000500000000000000", "00000005000000000000000g.lz4", "000000050000000000000001x", "000000050000000000000007",
	} {
		put(t, store, walDir+key, nil)
	}
	for i := range 3000 { // more than a page of what is no segment
		put(t, store, walDir+segment.Name{Timeline: 6, Seg: uint32(i)}.String()+".00000028.backup.lz4", nil)
	}
	put(t, store, walDir+"000000060000000000000B00", nil)
	for after, want := range map[string]string{
		"000000010000000000000000": "000000010000000000000003",
		"000000010000000000000002": "000000010000000000000003",
		"000000010000000000000003": "00000001000000000000000A",
		"00000001000000000000000A": "00000001000000000000000B",
		"00000001000000000000000B": "000000010000000100000000",
		"000000010000000100000000": "",
		"000000020000000000000003": "",
		"000000020000000000000000": "000000020000000000000003",
		"000000030000000000000000": "",
		"000000040000000000000000": "",
		"000000050000000000000000": "000000050000000000000007",
		"000000060000000000000000": "000000060000000000000B00",
		"000000070000000000000000": "",
	} {
		got, ok, err := New(store, Options{}).NextSegment(t.Context(), name(t, after))
		if err != nil || ok != (want != "") || ok && got.String() != want {
			t.Errorf("NextSegment(%s) = %s, %v, %v; want %q", after, got, ok, err, want)
		}
	}
}

// An object that is removed between the put and the look at it is put again.
func TestPutAfterRemoval(t *testing.T) {
	n := name(t, "000000010000000000000003")
	content := wal(n, mb, testSystem)
	var store *mem.Store
	removals := 1
	store = mem.NewWith(mem.Options{Before: func(ctx context.Context, op mem.Op, key string) error {
		if op == mem.Get && removals != 0 {
			removals--
			return store.Delete(ctx, key)
		}
		return nil
	}})
	key := "wal_005/" + n.String() + ".lz4"
	put(t, store, key, []byte("x"))
	a := New(store, Options{})
	if err := a.PutSegment(t.Context(), n, lz4, encoded(t, lz4, content), bytes.NewReader(content), mb); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, store, key); !bytes.Equal(got, bytesOf(t, encoded(t, lz4, content))) {
		t.Errorf("%d bytes stored", len(got))
	}
}

// Our own bytes that cannot be read are not the archive's fault.
func TestCompareNeedsOurBytes(t *testing.T) {
	n := name(t, "000000010000000000000003")
	content := wal(n, mb, testSystem)
	store := mem.NewWith(mem.Options{NoCRC: true})
	put(t, store, "wal_005/"+n.String()+".lz4", bytesOf(t, encoded(t, lz4, content)))
	err := New(store, Options{}).PutSegment(t.Context(), n, lz4, encoded(t, lz4, content), bytes.NewReader(content[:1000]), mb)
	if err == nil || errors.Is(err, ErrConflict) {
		t.Error(err)
	}
}

func FuzzWALKey(f *testing.F) {
	for _, s := range []string{"wal_005/000000010000000000000003.lz4", "wal_005/000000010000000000000003.partial.lz4", "wal_005/000000010000000000000003.00000028.backup", "wal_005/00000001.history", "", "wal_005/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		n, ext, k := walKey(key)
		suffix := map[kind]string{whole: "", partial: partialSuffix}[k]
		if k != other && walDir+n.String()+suffix+ext != key {
			t.Fatalf("%q -> %s, %q, %v", key, n, ext, k)
		}
		if got, ok := extOf(key); ok && !strings.HasSuffix(key, got) {
			t.Fatalf("%q: extension %q", key, got)
		}
	})
}

func FuzzIdentity(f *testing.F) {
	b, err := encodeIdentity(Identity{testSystem, 16 << 20, "zstd"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		id, err := decodeIdentity(content)
		if err != nil {
			return
		}
		again, err := encodeIdentity(id)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeIdentity(again); err != nil || back != id {
			t.Fatalf("%q -> %+v -> %+v, %v", content, id, back, err)
		}
	})
}

func FuzzSentinelKey(f *testing.F) {
	f.Add("basebackups_005/base_000000010000000000000002_backup_stop_sentinel.json")
	f.Add("basebackups_005/base_000000010000000000000002_00000028_backup_stop_sentinel.json")
	f.Add("basebackups_005/base_000000010000000000000004_D_000000010000000000000002_backup_stop_sentinel.json")
	f.Fuzz(func(t *testing.T, key string) {
		n, ok := sentinelName(key)
		if ok && (n.sentinelKey() != key || !strings.HasPrefix(n.String(), "base_"+n.Segment().String())) {
			t.Fatalf("%q -> %s", key, n)
		}
	})
}
