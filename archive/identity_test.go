package archive

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

var ours = Identity{SystemIdentifier: testSystem, SegmentSize: 16 << 20, WALCodec: "lz4"}

func TestClaim(t *testing.T) {
	store := count(mem.New())
	a := New(store, Options{})
	if _, err := a.Identity(t.Context()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("Identity of an empty store: %v", err)
	}
	for round := range 2 {
		id, err := New(store, Options{}).Claim(t.Context(), ours)
		if err != nil || id != ours {
			t.Fatalf("round %d: %+v, %v", round, id, err)
		}
	}
	if n := store.taken("PUT"); n != 3 {
		t.Errorf("%d PUTs; want one and two probes", n)
	}
	want := `{
  "version": 1,
  "system_identifier": "7710929516611631544",
  "wal_segment_size": 16777216,
  "wal_codec": "lz4"
}
`
	if got := string(stored(t, store, "walferry_005/identity.json")); got != want {
		t.Errorf("stored %s", got)
	}
	if id, err := a.Identity(t.Context()); err != nil || id != ours {
		t.Errorf("%+v, %v", id, err)
	}
	if id, present, err := New(store, Options{}).Recognise(t.Context()); err != nil || !present || id != ours {
		t.Errorf("Recognise: %+v, %v, %v", id, present, err)
	}
	for _, c := range []struct {
		want Identity
		err  error
		says string
	}{
		{Identity{testSystem + 1, 16 << 20, "lz4"}, ErrForeignCluster, "7710929516611631545"},
		{Identity{testSystem, 64 << 20, "lz4"}, ErrForeignCluster, "64MB"},
		{Identity{testSystem, 16 << 20, "zstd"}, ErrCodec, "go on with lz4"},
		{Identity{testSystem, 16 << 20, "none"}, ErrCodec, "none"},
		{Identity{testSystem, 16 << 20, ""}, nil, ""},
	} {
		id, err := New(store, Options{}).Claim(t.Context(), c.want)
		if !errors.Is(err, c.err) || c.err == nil && (err != nil || id != ours) {
			t.Errorf("%+v: %+v, %v; want %v", c.want, id, err, c.err)
		}
		if err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v does not say %q", err, c.says)
		}
	}
	if got := string(stored(t, store, "walferry_005/identity.json")); got != want {
		t.Errorf("rewritten: %s", got)
	}
}

func TestClaimWithoutCodecTakesLZ4(t *testing.T) {
	id, err := New(mem.New(), Options{}).Claim(t.Context(), Identity{testSystem, 1 << 20, ""})
	if err != nil || id.WALCodec != "lz4" {
		t.Errorf("%+v, %v", id, err)
	}
}

func TestClaimRefusesNonsense(t *testing.T) {
	store := mem.New()
	for _, want := range []Identity{{0, 16 << 20, "lz4"}, {1, 0, "lz4"}, {1, 3 << 20, "lz4"}, {1, 16 << 20, "lz4:9"}, {1, 16 << 20, "gzip"}} {
		if id, err := New(store, Options{}).Claim(t.Context(), want); err == nil {
			t.Errorf("%+v: %+v", want, id)
		}
	}
	if keys := keysOf(t, store); len(keys) != 0 {
		t.Errorf("stored %q", keys)
	}
	// An identity that is not understood is never replaced.
	for _, there := range []string{"", "{}", "null", "[]", `{"version":2,"system_identifier":"1","wal_segment_size":16777216,"wal_codec":"lz4"}`,
		`{"version":1,"system_identifier":"x","wal_segment_size":16777216,"wal_codec":"lz4"}`, `{"version":1,"system_identifier":"1","wal_segment_size":5,"wal_codec":"lz4"}`,
		`{"version":1,"system_identifier":"1","wal_segment_size":16777216,"wal_codec":"snappy"}`} {
		put(t, store, identityKey, []byte(there))
		if id, err := New(store, Options{}).Claim(t.Context(), ours); !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %+v, %v", there, id, err)
		}
		if got := string(stored(t, store, identityKey)); got != there {
			t.Errorf("%q became %q", there, got)
		}
		if _, _, err := New(store, Options{}).Recognise(t.Context()); !errors.Is(err, ErrIdentity) {
			t.Errorf("%s recognised: %v", there, err)
		}
	}
	later := `{"version":1,"system_identifier":"7710929516611631544","wal_segment_size":16777216,"wal_codec":"lz4","later":{"a":1}}`
	put(t, store, identityKey, []byte(later))
	if id, err := New(store, Options{}).Claim(t.Context(), ours); err != nil || id != ours {
		t.Errorf("fields of a later version: %+v, %v", id, err)
	}
}

func TestClaimProbesTheCondition(t *testing.T) {
	store := mem.NewWith(mem.Options{IgnoreCondition: true})
	if id, err := New(store, Options{}).Claim(t.Context(), ours); !errors.Is(err, objstore.ErrConditionIgnored) {
		t.Errorf("%+v, %v", id, err)
	}
	if id, err := New(store, Options{SingleReceiver: true}).Claim(t.Context(), ours); err != nil || id != ours {
		t.Errorf("single receiver: %+v, %v", id, err)
	}
	// The probe of a claim that fails changes nothing either.
	before := string(stored(t, store, identityKey))
	if _, err := New(store, Options{SingleReceiver: true}).Claim(t.Context(), Identity{5, 16 << 20, "lz4"}); !errors.Is(err, ErrForeignCluster) {
		t.Error(err)
	}
	if got := string(stored(t, store, identityKey)); got != before {
		t.Errorf("%s became %s", before, got)
	}
}

// The answer to our own put was lost, or another receiver was faster.
func TestClaimRaces(t *testing.T) {
	lost := errors.New("reset by peer")
	fail := true
	store := mem.NewWith(mem.Options{After: func(_ context.Context, op mem.Op, _ string) error {
		if op == mem.PutIfAbsent && fail {
			fail = false
			return lost
		}
		return nil
	}})
	if _, err := New(store, Options{}).Claim(t.Context(), ours); !errors.Is(err, lost) {
		t.Fatal(err)
	}
	if id, err := New(store, Options{}).Claim(t.Context(), ours); err != nil || id != ours {
		t.Errorf("%+v, %v", id, err)
	}
	for other, want := range map[uint64]error{testSystem: nil, 99: ErrForeignCluster} {
		var inner *mem.Store
		inner = mem.NewWith(mem.Options{Before: func(ctx context.Context, op mem.Op, key string) error {
			if op != mem.PutIfAbsent {
				return nil
			}
			b, err := encodeIdentity(Identity{other, 16 << 20, "lz4"})
			if err != nil {
				return err
			}
			return inner.Put(ctx, key, objstore.Bytes(b)) // just before ours
		}})
		if id, err := New(inner, Options{}).Claim(t.Context(), ours); !errors.Is(err, want) {
			t.Errorf("the other is %d: %+v, %v", other, id, err)
		}
	}
}

// Nothing is concluded from a store that does not answer.
func TestClaimAndRecogniseNeedAnswers(t *testing.T) {
	down := errors.New("503")
	for _, op := range []mem.Op{mem.Get, mem.List, mem.PutIfAbsent} {
		store := mem.NewWith(mem.Options{Before: func(_ context.Context, o mem.Op, _ string) error {
			if o == op {
				return down
			}
			return nil
		}})
		if _, err := New(store, Options{}).Claim(t.Context(), ours); !errors.Is(err, down) {
			t.Errorf("%s: %v", op, err)
		}
		if op == mem.PutIfAbsent {
			continue
		}
		_, _, err := New(store, Options{}).Recognise(t.Context())
		if !errors.Is(err, down) || errors.Is(err, ErrUnrecognised) {
			t.Errorf("Recognise without %s: %v", op, err)
		}
	}
}

func sentinelJSON(system uint64, start, finish segment.LSN) []byte {
	return fmt.Appendf(nil, `{"LSN":%d,"PgVersion":150018,"FinishLSN":%d,"SystemIdentifier":%d,"Spec":null,"UserData":{"a":[1]}}`, uint64(start), uint64(finish), system)
}

// An archive that WAL-G wrote says itself whose it is.
func TestClaimOfWALGArchive(t *testing.T) {
	seg := func(key string, system uint64) func(*testing.T, objstore.Store) {
		return func(t *testing.T, s objstore.Store) {
			n, ext, _ := walKey("wal_005/" + key)
			content := wal(n, 1<<20, system)
			if m, ok := codec.ByExt(ext); ok {
				content = bytesOf(t, encoded(t, m, content))
			}
			put(t, s, "wal_005/"+key, content)
		}
	}
	object := func(key, content string) func(*testing.T, objstore.Store) {
		return func(t *testing.T, s objstore.Store) { put(t, s, key, []byte(content)) }
	}
	backup := func(name string, system uint64) func(*testing.T, objstore.Store) {
		return object("basebackups_005/base_"+name+"_backup_stop_sentinel.json", string(sentinelJSON(system, 1, 2)))
	}
	want := Identity{testSystem, 1 << 20, "lz4"}
	for _, c := range []struct {
		what       string
		there      []func(*testing.T, objstore.Store)
		err        error
		recognised error
		says       string
		codec      string // asked for; default lz4
	}{
		{what: "sentinel and segment", there: []func(*testing.T, objstore.Store){backup("000000010000000000000002", testSystem), seg("000000010000000000000002.lz4", testSystem)}},
		{what: "sentinel alone", there: []func(*testing.T, objstore.Store){backup("000000010000000000000002_00000028", testSystem)}},
		{what: "segment alone", there: []func(*testing.T, objstore.Store){seg("000000010000000000000002.lz4", testSystem)}},
		{what: "foreign sentinel", there: []func(*testing.T, objstore.Store){backup("000000010000000000000002", 5), seg("000000010000000000000002.lz4", testSystem)}, err: ErrForeignCluster, says: "base backup"},
		{what: "foreign segment", there: []func(*testing.T, objstore.Store){backup("000000010000000000000002", testSystem), seg("000000010000000000000002.lz4", 5)}, err: ErrForeignCluster, says: "000000010000000000000002.lz4"},
		{what: "newest sentinel foreign", there: []func(*testing.T, objstore.Store){backup("000000010000000000000002", testSystem), backup("000000020000000000000001_D_000000010000000000000002", 5)}, err: ErrForeignCluster},
		{what: "newest segment foreign", there: []func(*testing.T, objstore.Store){seg("000000010000000000000002.lz4", testSystem), seg("00000001000000070000000A.lz4", 5)}, err: ErrForeignCluster, says: "00000001000000070000000A.lz4"},
		{what: "newest timeline foreign", there: []func(*testing.T, objstore.Store){seg("00000001000000070000000A.lz4", testSystem), seg("000000030000000000000001.lz4", 5)}, err: ErrForeignCluster},
		{what: "old segment foreign", there: []func(*testing.T, objstore.Store){seg("000000010000000000000002.lz4", 5), seg("00000001000000070000000A.lz4", testSystem)}},
		{what: "history only", there: []func(*testing.T, objstore.Store){object("wal_005/00000002.history.lz4", "x")}, err: ErrUnrecognised},
		{what: "damaged segment only", there: []func(*testing.T, objstore.Store){object("wal_005/000000010000000000000002.lz4", "x")}, err: ErrUnrecognised},
		{what: "damaged sentinel only", there: []func(*testing.T, objstore.Store){object("basebackups_005/base_000000010000000000000002_backup_stop_sentinel.json", "x")}, err: ErrUnrecognised},
		{what: "sentinel without identifier, good segment", there: []func(*testing.T, objstore.Store){object("basebackups_005/base_000000010000000000000002_backup_stop_sentinel.json", `{"LSN":1,"SystemIdentifier":null}`), seg("000000010000000000000002.lz4", testSystem)}},
		{what: "good sentinel, damaged segment", there: []func(*testing.T, objstore.Store){backup("000000010000000000000002", testSystem), object("wal_005/000000010000000000000002.lz4", "x")}},
		{what: "parts of a backup that never was", there: []func(*testing.T, objstore.Store){object("basebackups_005/base_000000010000000000000002/tar_partitions/part_001.tar.lz4", "x")}, err: ErrUnrecognised},
		{what: "zstd, lz4 asked for", there: []func(*testing.T, objstore.Store){seg("000000010000000000000002.zst", testSystem)}, err: ErrCodec, says: "go on with zstd"},
		{what: "zstd, zstd asked for", there: []func(*testing.T, objstore.Store){seg("000000010000000000000002.zst", testSystem)}, codec: "zstd"},
		{what: "zstd, nothing asked for", there: []func(*testing.T, objstore.Store){seg("000000010000000000000002.zst", testSystem)}, codec: "-"},
		{what: "plain, lz4 asked for", there: []func(*testing.T, objstore.Store){seg("000000010000000000000002", testSystem)}, err: ErrCodec, says: "none"},
		{what: "went over from zstd to lz4", there: []func(*testing.T, objstore.Store){seg("000000010000000000000002.zst", testSystem), seg("000000010000000000000003.lz4", testSystem)}},
		{what: "brotli", there: []func(*testing.T, objstore.Store){backup("000000010000000000000002", testSystem), object("wal_005/000000010000000000000002.br", "x")}, err: ErrCodec, says: "000000010000000000000002.br"},
		{what: "tail objects whose identity was lost", there: []func(*testing.T, objstore.Store){object("wal_tail_005/000000010000000000000002/00000000-00000100-00000000.lz4", "x")}, err: ErrUnrecognised},
		{what: "something else beside", there: []func(*testing.T, objstore.Store){object("notes.txt", "x")}, recognised: ErrUnrecognised},
	} {
		t.Run(c.what, func(t *testing.T) {
			store := mem.New()
			for _, f := range c.there {
				f(t, store)
			}
			id, present, err := New(store, Options{}).Recognise(t.Context())
			if !errors.Is(err, c.recognised) || c.recognised == nil && err != nil || present {
				t.Errorf("Recognise: %+v, %v, %v", id, present, err)
			}
			want := want
			if c.codec != "" {
				want.WALCodec = strings.TrimPrefix(c.codec, "-")
			}
			got, err := New(store, Options{}).Claim(t.Context(), want)
			if !errors.Is(err, c.err) || c.err == nil && err != nil {
				t.Fatalf("%+v, %v; want %v", got, err, c.err)
			}
			if err != nil {
				if !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v does not say %q", err, c.says)
				}
				if _, _, getErr := store.Get(t.Context(), identityKey); !errors.Is(getErr, objstore.ErrNotFound) {
					t.Error("an identity was written all the same")
				}
				return
			}
			if c.codec == "-" {
				want.WALCodec = "zstd"
			}
			if got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

func TestRecogniseTellsWhatIsKnown(t *testing.T) {
	store := count(mem.New())
	put(t, store, "basebackups_005/base_000000010000000000000002_backup_stop_sentinel.json", sentinelJSON(testSystem, 1, 2))
	a := New(store, Options{})
	if id, _, err := a.Recognise(t.Context()); err != nil || id != (Identity{SystemIdentifier: testSystem}) {
		t.Errorf("%+v, %v", id, err)
	}
	page := wal(segment.Name{Timeline: 1, Seg: 2}, 1<<20, testSystem)[:8192]
	binary.LittleEndian.PutUint32(page[32:], 64<<20)
	put(t, store, "wal_005/000000010000000000000002.zst", bytesOf(t, encoded(t, codec.Method{Name: codec.Zstd}, page)))
	store.taken("LIST")
	if id, _, err := a.Recognise(t.Context()); err != nil || id != (Identity{testSystem, 64 << 20, "zstd"}) {
		t.Errorf("%+v, %v", id, err)
	}
	if n := store.taken("LIST"); n > 3 {
		t.Errorf("%d LISTs for an archive of one timeline: fetch asks this at every end of the archive", n)
	}
}

// The newest segment of a long archive is found without listing it.
func TestNewestSegment(t *testing.T) {
	store := count(mem.New())
	for _, timeline := range []segment.Timeline{1, 2, 7} {
		put(t, store, "wal_005/"+timeline.HistoryName()+".lz4", nil)
		for log := uint32(3); log < 40; log++ {
			for seg := uint32(0); seg < 64; seg++ {
				put(t, store, fmt.Sprintf("wal_005/%s.lz4", segment.Name{Timeline: timeline, Log: log, Seg: seg}), nil)
			}
		}
	}
	put(t, store, "wal_005/00000007000001FF00000001.lz4", nil)
	put(t, store, "wal_005/00000007000001FF00000001.00000028.backup.lz4", nil)
	put(t, store, "wal_005/00000007000001FF00000002.partial.lz4", nil)
	put(t, store, "wal_005/00000009.history.lz4", nil)
	key, ok, err := New(store, Options{}).newestSegment(t.Context())
	if err != nil || !ok || key != "wal_005/00000007000001FF00000001.lz4" {
		t.Errorf("%q, %v, %v", key, ok, err)
	}
	if n := store.taken("LIST"); n > 60 {
		t.Errorf("%d LISTs", n)
	}
	for _, n := range []string{"00000007FFFFFFFF000000FF", "00000007000001FF00000000", "0000000AFFFFFFFE00000001"} {
		one := mem.New()
		put(t, one, "wal_005/"+n+".br", nil)
		if key, ok, err := New(one, Options{}).newestSegment(t.Context()); err != nil || !ok || key != "wal_005/"+n+".br" {
			t.Errorf("%s: %q, %v, %v", n, key, ok, err)
		}
	}
}

// The archive that WAL-G itself wrote.
func TestFixture(t *testing.T) {
	root := filepath.Join("..", "..", "shared", "fixtures", "walg-archive")
	if _, err := os.Stat(root); err != nil {
		t.Skipf("SKIPPED: the archive written by WAL-G is not beside this checkout: %v", err)
	}
	store := mem.New()
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		key, err := filepath.Rel(root, path)
		put(t, store, filepath.ToSlash(key), b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a := New(store, Options{})
	if id, present, err := a.Recognise(t.Context()); err != nil || present || id != ours {
		t.Errorf("Recognise: %+v, %v, %v", id, present, err)
	}
	if _, err := a.Claim(t.Context(), Identity{testSystem + 1, 16 << 20, "lz4"}); !errors.Is(err, ErrForeignCluster) {
		t.Errorf("foreign claim: %v", err)
	}
	if id, err := a.Claim(t.Context(), ours); err != nil || id != ours {
		t.Errorf("Claim: %+v, %v", id, err)
	}
	for _, i := range []uint32{1, 4} {
		n := segment.Name{Timeline: 1, Seg: i}
		o, err := a.Open(t.Context(), n.String())
		if err != nil {
			t.Fatal(err)
		}
		pages := segment.NewPageChecker(segment.PageRules{Name: n, Size: 16 << 20, SystemIdentifier: testSystem})
		_, err = io.Copy(pages, o)
		if err := errors.Join(err, pages.Close(), o.Close()); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
	end, ok, err := a.RunEnd(t.Context(), segment.History{Timeline: 1}, 16<<20, 0x4000000)
	if want := (segment.Position{Timeline: 1, LSN: 0x5000000}); err != nil || !ok || end != want {
		t.Errorf("RunEnd = %s, %v, %v; want %s", end, ok, err, want)
	}
}
