// Package storetest holds the one suite that every implementation of
// objstore.Store passes.
package storetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walferry/walferry/archive/objstore"
)

// Run checks the contract on stores that open makes, each of them empty.
func Run(t *testing.T, open func(t *testing.T) objstore.Store) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s objstore.Store)
	}{
		{"put and get", putAndGet},
		{"put if absent", putIfAbsent},
		{"put if absent races", putIfAbsentRaces},
		{"put replaces", putReplaces},
		{"lying body", lyingBody},
		{"absent", absent},
		{"ranges", ranges},
		{"bad keys", badKeys},
		{"list", list},
		{"list many", listMany},
		{"list stops", listStops},
		{"delete", remove},
		{"upload", upload},
		{"upload of one part", uploadOne},
		{"upload over an object", uploadExists},
		{"uploads race", uploadsRace},
		{"upload aborted", uploadAborted},
		{"upload of wrong parts", uploadWrong},
		{"uploads left behind", uploadsLeft},
		{"cancelled", cancelled},
		{"name", name},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// random gives n bytes that depend on seed alone.
func random(n int, seed uint64) []byte {
	b := make([]byte, 0, n+8)
	for r := rand.NewPCG(seed, seed); len(b) < n; {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b[:n]
}

func mustPut(t *testing.T, s objstore.Store, key string, content []byte) {
	t.Helper()
	if err := s.PutIfAbsent(t.Context(), key, objstore.Bytes(content)); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func mustGet(t *testing.T, s objstore.Store, key string) ([]byte, objstore.Info) {
	t.Helper()
	r, info, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read %s: %v", key, err)
	}
	if err := r.Close(); err != nil {
		t.Fatalf("close %s: %v", key, err)
	}
	return b, info
}

func mustHold(t *testing.T, s objstore.Store, key string, want []byte) {
	t.Helper()
	got, info := mustGet(t, s, key)
	if !bytes.Equal(got, want) {
		t.Errorf("%s holds %d other bytes than the %d that were stored", key, len(got), len(want))
	}
	if info.Key != key || info.Size != int64(len(want)) {
		t.Errorf("info of %s is %+v, want its key and %d bytes", key, info, len(want))
	}
	if crc := crc32.Checksum(want, crc32.MakeTable(crc32.Castagnoli)); info.HasCRC && info.CRC32C != crc {
		t.Errorf("info of %s tells checksum %08X, want %08X", key, info.CRC32C, crc)
	}
}

func mustBe(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %q", what, err, want)
		return
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: the error has more than one line: %q", what, err)
	}
	for _, other := range []error{objstore.ErrNotFound, objstore.ErrExists, objstore.ErrNoStore, objstore.ErrDenied, objstore.ErrUploadLost} {
		if !errors.Is(want, other) && errors.Is(err, other) {
			t.Errorf("%s: %v is %q and %q", what, err, want, other)
		}
	}
}

func putAndGet(t *testing.T, s objstore.Store) {
	for i, n := range []int{0, 1, 4096, 300_000, 3 << 20} {
		key := fmt.Sprintf("wal_005/%024X.lz4", i)
		content := random(n, uint64(i))
		mustPut(t, s, key, content)
		mustHold(t, s, key, content)
	}
	for _, key := range []string{"top", "a/b/c/d", "wal_005/with space+plus%25.lz4", "wal_005/ünï", "basebackups_005/x&y=z#1?.json"} {
		mustPut(t, s, key, []byte(key))
	}
	for _, key := range []string{"top", "a/b/c/d", "wal_005/with space+plus%25.lz4", "wal_005/ünï", "basebackups_005/x&y=z#1?.json"} {
		mustHold(t, s, key, []byte(key))
	}
}

func putIfAbsent(t *testing.T, s objstore.Store) {
	first, second := random(70_000, 1), random(70_001, 2)
	mustPut(t, s, "wal_005/a", first)
	for _, body := range [][]byte{second, first} {
		mustBe(t, "put over an object", s.PutIfAbsent(t.Context(), "wal_005/a", objstore.Bytes(body)), objstore.ErrExists)
	}
	mustHold(t, s, "wal_005/a", first)
}

func putIfAbsentRaces(t *testing.T, s objstore.Store) {
	const writers = 8
	var (
		wg     sync.WaitGroup
		errs   [writers]error
		bodies [writers][]byte
	)
	for i := range writers {
		bodies[i] = random(100_000+i, uint64(i))
		wg.Go(func() { errs[i] = s.PutIfAbsent(t.Context(), "race/key", objstore.Bytes(bodies[i])) })
	}
	wg.Wait()
	got, _ := mustGet(t, s, "race/key")
	winners := 0
	for i, err := range errs {
		switch {
		case err == nil:
			winners++
			if !bytes.Equal(got, bodies[i]) {
				t.Errorf("writer %d was told that its object is stored, but another one is", i)
			}
		case !errors.Is(err, objstore.ErrExists):
			t.Errorf("writer %d: %v", i, err)
		}
	}
	if winners != 1 {
		t.Errorf("%d writers were told that their object is stored, want 1", winners)
	}
}

func putReplaces(t *testing.T, s objstore.Store) {
	for i, n := range []int{1000, 100_000, 10, 0} {
		content := random(n, uint64(i))
		if err := s.Put(t.Context(), "tail/a", objstore.Bytes(content)); err != nil {
			t.Fatal(err)
		}
		mustHold(t, s, "tail/a", content)
	}
}

// liar says another checksum than its bytes have.
type liar struct{ objstore.Body }

func (l liar) CRC32C() uint32 { return l.Body.CRC32C() ^ 1 }

func lyingBody(t *testing.T, s objstore.Store) {
	if err := s.PutIfAbsent(t.Context(), "wal_005/a", liar{objstore.Bytes(random(5000, 1))}); err == nil {
		t.Error("an object with a wrong checksum was stored")
	}
	_, _, err := s.Get(t.Context(), "wal_005/a")
	mustBe(t, "get after a failed put", err, objstore.ErrNotFound)
}

func absent(t *testing.T, s objstore.Store) {
	mustPut(t, s, "wal_005/a.lz4", []byte("x"))
	for _, key := range []string{"wal_005/a", "wal_005/a.lz4x", "wal_005", "wal_005/b/c", "nothing"} {
		_, _, err := s.Get(t.Context(), key)
		mustBe(t, "get "+key, err, objstore.ErrNotFound)
		_, _, err = s.GetRange(t.Context(), key, 0, 1)
		mustBe(t, "get-range "+key, err, objstore.ErrNotFound)
	}
}

func ranges(t *testing.T, s objstore.Store) {
	content := random(200_000, 7)
	mustPut(t, s, "wal_005/a", content)
	for _, r := range [][2]int64{{0, 1}, {0, 200_000}, {199_999, 1}, {8192, 8192}, {1, 150_000}} {
		body, info, err := s.GetRange(t.Context(), "wal_005/a", r[0], r[1])
		if err != nil {
			t.Errorf("range %v: %v", r, err)
			continue
		}
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, content[r[0]:r[0]+r[1]]) {
			t.Errorf("range %v gave %d bytes that are not those, %v", r, len(got), err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
		if info.Size != 200_000 || info.Key != "wal_005/a" {
			t.Errorf("range %v: info is %+v, want the size of the object", r, info)
		}
	}
	for _, r := range [][2]int64{{0, 200_001}, {199_999, 2}, {200_000, 1}, {300_000, 5}, {0, 0}, {10, 0}, {-1, 5}, {5, -1}, {1<<63 - 1, 1}} {
		body, _, err := s.GetRange(t.Context(), "wal_005/a", r[0], r[1])
		if err == nil {
			t.Errorf("range %v of 200000 bytes is no error", r)
			if err := body.Close(); err != nil {
				t.Error(err)
			}
		} else if errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("range %v: %v", r, err)
		}
	}
}

func badKeys(t *testing.T, s objstore.Store) {
	for _, key := range []string{"", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\x00b", "a\nb", "\xff", strings.Repeat("k", 300), strings.Repeat("k/", 500) + "k"} {
		_, _, getErr := s.Get(t.Context(), key)
		_, _, rangeErr := s.GetRange(t.Context(), key, 0, 1)
		_, beginErr := s.BeginUpload(t.Context(), key)
		for what, err := range map[string]error{
			"put-if-absent": s.PutIfAbsent(t.Context(), key, objstore.Bytes(nil)),
			"put":           s.Put(t.Context(), key, objstore.Bytes(nil)),
			"delete":        s.Delete(t.Context(), key),
			"get":           getErr,
			"get-range":     rangeErr,
			"begin-upload":  beginErr,
		} {
			mustBe(t, fmt.Sprintf("%s %.20q", what, key), err, objstore.ErrBadKey)
		}
	}
}

func keys(t *testing.T, s objstore.Store, opts objstore.ListOptions) []string {
	t.Helper()
	found := []string{}
	for info, err := range s.List(t.Context(), opts) {
		if err != nil {
			t.Fatalf("list %+v: %v", opts, err)
		}
		found = append(found, info.Key)
	}
	return found
}

func list(t *testing.T, s objstore.Store) {
	if got := keys(t, s, objstore.ListOptions{}); len(got) != 0 {
		t.Fatalf("a new store holds %q", got)
	}
	// In bytewise order: '+', '-', '.' sort before '/', digits and letters behind.
	all := []string{
		"a+", "a-b", "a.c/x", "a/b", "a/b-c", "a/bb/c", "a/bb/d", "a0", "b",
		"wal_005/000000010000000000000001.lz4", "wal_005/000000010000000000000002.lz4",
		"wal_005/000000010000000000000002.partial.lz4", "wal_005/00000002.history.lz4",
		"wal_tail_005/000000010000000000000003/00000000-00000010-AAAAAAAA.lz4",
	}
	for i, key := range all {
		mustPut(t, s, key, make([]byte, i))
	}
	for _, opts := range []objstore.ListOptions{
		{},
		{Prefix: "a"}, {Prefix: "a/"}, {Prefix: "a/b"}, {Prefix: "a/bb/"}, {Prefix: "a/bb/c"}, {Prefix: "a/bb/cc"}, {Prefix: "b"}, {Prefix: "b/"}, {Prefix: "zz"},
		{Prefix: "/"}, {Prefix: "../"}, {Prefix: "a//"}, {Prefix: "./a"},
		{StartAfter: "a"}, {StartAfter: "a/"}, {StartAfter: "a/b"}, {StartAfter: "a/bb"}, {StartAfter: "a/bb/c"}, {StartAfter: "a/zz"}, {StartAfter: "b"}, {StartAfter: "zz"},
		{Prefix: "wal_005/", StartAfter: "wal_005/000000010000000000000001"},
		{Prefix: "wal_005/", StartAfter: "wal_005/000000010000000000000001.lz4"},
		{Prefix: "wal_005/00000001", StartAfter: "wal_005/000000010000000000000001~", Limit: 1},
		{Prefix: "wal_005/", StartAfter: "a"}, {Prefix: "wal_005/", StartAfter: "x"}, {Prefix: "a/", StartAfter: "a/bb/c"},
		{Limit: 1}, {Limit: 5}, {Limit: len(all)}, {Limit: 100}, {Prefix: "a/", Limit: 2}, {StartAfter: "a-b", Limit: 3},
		{Delimiter: "/"}, {Delimiter: "/", Prefix: "a"}, {Delimiter: "/", Prefix: "a/"}, {Delimiter: "/", Prefix: "a/b"}, {Delimiter: "/", Prefix: "wal"},
		{Delimiter: "/", StartAfter: "a"}, {Delimiter: "/", StartAfter: "a/"}, {Delimiter: "/", StartAfter: "a/b"}, {Delimiter: "/", StartAfter: "a0"},
		{Delimiter: "/", Limit: 3}, {Delimiter: "/", StartAfter: "a.c/", Limit: 2}, {Delimiter: "/", Prefix: "wal_tail_005/"},
	} {
		if got, want := keys(t, s, opts), expect(all, opts); !slices.Equal(got, want) {
			t.Errorf("list %+v\n got %q\nwant %q", opts, got, want)
		}
	}
	for info, err := range s.List(t.Context(), objstore.ListOptions{Prefix: "wal_005/"}) {
		if err != nil {
			t.Fatal(err)
		}
		if want := int64(slices.Index(all, info.Key)); info.Size != want || info.HasCRC {
			t.Errorf("list says %+v, want %d bytes and no checksum", info, want)
		}
		// In whole seconds at least; the store's clock is this host's here.
		if age := time.Since(info.Modified); age < -time.Minute || age > time.Hour {
			t.Errorf("list says that %s was stored at %v", info.Key, info.Modified)
		}
	}
}

// expect lists the sorted keys all by the words of the contract.
func expect(all []string, opts objstore.ListOptions) []string {
	found := []string{}
	for _, key := range all {
		rest, ok := strings.CutPrefix(key, opts.Prefix)
		if !ok {
			continue
		}
		if opts.Delimiter != "" {
			if i := strings.Index(rest, opts.Delimiter); i >= 0 {
				key = opts.Prefix + rest[:i+1]
			}
		}
		if key > opts.StartAfter && !slices.Contains(found, key) {
			found = append(found, key)
		}
	}
	if opts.Limit > 0 {
		found = found[:min(opts.Limit, len(found))]
	}
	return found
}

// listMany makes stores that answer by the page turn a page.
func listMany(t *testing.T, s objstore.Store) {
	const n = 1100
	var want []string
	var wg sync.WaitGroup
	for part := range 4 {
		wg.Go(func() {
			for i := part; i < n; i += 4 {
				if err := s.Put(t.Context(), fmt.Sprintf("wal_005/%08X", i), objstore.Bytes(nil)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for i := range n {
		want = append(want, fmt.Sprintf("wal_005/%08X", i))
	}
	if got := keys(t, s, objstore.ListOptions{}); !slices.Equal(got, want) {
		t.Errorf("%d keys were listed, want %d in order", len(got), n)
	}
	if got := keys(t, s, objstore.ListOptions{StartAfter: want[41], Limit: 1020}); !slices.Equal(got, want[42:42+1020]) {
		t.Errorf("%d keys were listed, want 1020 from the 42nd on", len(got))
	}
	if got := keys(t, s, objstore.ListOptions{Delimiter: "/"}); !slices.Equal(got, []string{"wal_005/"}) {
		t.Errorf("folders are %q", got)
	}
}

func listStops(t *testing.T, s objstore.Store) {
	for i := range 5 {
		mustPut(t, s, fmt.Sprintf("k/%d", i), nil)
	}
	var got []string
	for info, err := range s.List(t.Context(), objstore.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Key)
		if len(got) == 2 {
			break
		}
	}
	if !slices.Equal(got, []string{"k/0", "k/1"}) {
		t.Errorf("the first two keys are %q", got)
	}
}

func remove(t *testing.T, s objstore.Store) {
	mustPut(t, s, "a/b", []byte("1"))
	mustPut(t, s, "a/c", []byte("2"))
	for _, key := range []string{"a/b", "a/b", "never/was", "a"} {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Errorf("delete %s: %v", key, err)
		}
	}
	_, _, err := s.Get(t.Context(), "a/b")
	mustBe(t, "get what was deleted", err, objstore.ErrNotFound)
	mustHold(t, s, "a/c", []byte("2"))
	mustPut(t, s, "a/b", []byte("3"))
	for _, key := range []string{"a/b", "a/c"} {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Errorf("delete %s: %v", key, err)
		}
	}
	if got := keys(t, s, objstore.ListOptions{Delimiter: "/"}); len(got) != 0 {
		t.Errorf("after all was deleted the store lists %q", got)
	}
}

func cancelled(t *testing.T, s objstore.Store) {
	mustPut(t, s, "a", []byte("1"))
	u := mustBegin(t, s, "c")
	mustPart(t, u, 1, 0, []byte("1"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, beginErr := s.BeginUpload(ctx, "b")
	_, sweepErr := s.AbortUploads(ctx, "", time.Now())
	_, _, getErr := s.Get(ctx, "a")
	_, _, rangeErr := s.GetRange(ctx, "a", 0, 1)
	var listErr error
	for _, err := range s.List(ctx, objstore.ListOptions{}) {
		listErr = err
	}
	for what, err := range map[string]error{
		"put-if-absent": s.PutIfAbsent(ctx, "b", objstore.Bytes(nil)),
		"put":           s.Put(ctx, "a", objstore.Bytes(nil)),
		"delete":        s.Delete(ctx, "a"),
		"get":           getErr,
		"get-range":     rangeErr,
		"list":          listErr,
		"begin-upload":  beginErr,
		"complete":      u.Complete(ctx),
		"upload-part":   u.Part(ctx, 1, 0, objstore.Bytes([]byte("2"))),
		"abort-uploads": sweepErr,
	} {
		mustBe(t, what+" with a context that ended", err, context.Canceled)
	}
	mustHold(t, s, "a", []byte("1"))
	_, _, err := s.Get(t.Context(), "b")
	mustBe(t, "get what was not put", err, objstore.ErrNotFound)
	// And it goes on where it was.
	mustNotBe(t, s, "c")
	mustPart(t, u, 1, 0, []byte("1"))
	if err := u.Complete(t.Context()); err != nil {
		t.Errorf("complete: %v", err)
	}
	mustHold(t, s, "c", []byte("1"))
}

func name(t *testing.T, s objstore.Store) {
	if kind, _, ok := strings.Cut(s.String(), "://"); !ok || kind == "" {
		t.Errorf("the store is called %q, want a URL", s.String())
	}
}
