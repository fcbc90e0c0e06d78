package archive

import (
	"fmt"
	"slices"
	"testing"

	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

func TestTailKeys(t *testing.T) {
	n, err := segment.ParseName("00000001000000000000002A")
	if err != nil {
		t.Fatal(err)
	}
	want := Tail{Segment: n, Start: 0x2000, End: 0x01000000, CRC: 0xDEADBEEF}
	key := tailDir + want.String() + ".lz4"
	if key != "wal_tail_005/00000001000000000000002A/00002000-01000000-DEADBEEF.lz4" {
		t.Errorf("key %s", key)
	}
	got, ext, ok := tailKey(key)
	if !ok || got != want || ext != ".lz4" {
		t.Errorf("tailKey(%s) = %+v, %q, %v", key, got, ext, ok)
	}
	for _, bad := range []string{
		"wal_005/00000001000000000000002A/00002000-01000000-DEADBEEF.lz4",
		"wal_tail_005/00000001000000000000002A/00002000-01000000-deadbeef.lz4", // lower case
		"wal_tail_005/00000001000000000000002A/00002000-00002000-DEADBEEF.lz4", // nothing
		"wal_tail_005/00000001000000000000002A/+0002000-01000000-DEADBEEF.lz4",
		"wal_tail_005/00000001000000000000002A/00002000-01000000-DEADBEEFlz4",
		"wal_tail_005/00000001000000000000002A/00002000-01000000-DEADBEE.lz4",
		"wal_tail_005/00000001000000000000002/00002000-01000000-DEADBEEF.lz4",
		"wal_tail_005/00000001000000000000002A/00002000-01000000-DEADBEEF.lz4/x",
		"wal_tail_005/00000001000000000000002A.00002000-01000000-DEADBEEF.lz4",
	} {
		if got, _, ok := tailKey(bad); ok {
			t.Errorf("tailKey(%s) = %+v", bad, got)
		}
	}
}

func TestTailsAreListed(t *testing.T) {
	store := mem.New()
	a := New(store, Options{})
	ctx := t.Context()
	expect := func(n string, want ...string) {
		t.Helper()
		got, err := a.Tails(ctx, name(t, n))
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, g := range got {
			keys = append(keys, g.storedKey())
		}
		if !slices.Equal(keys, want) {
			t.Errorf("tail objects of %s: %q, want %q", n, keys, want)
		}
	}
	segments := func(tl segment.Timeline, want ...string) {
		t.Helper()
		got, err := a.TailSegments(ctx, tl)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, g := range got {
			names = append(names, g.String())
		}
		if !slices.Equal(names, want) {
			t.Errorf("segments of timeline %d with tail objects: %q, want %q", tl, names, want)
		}
	}
	next := func(after, want string) {
		t.Helper()
		n, ok, err := a.NextTail(ctx, name(t, after))
		if err != nil || ok != (want != "") || ok && n.String() != want {
			t.Errorf("behind %s: %s, %v, %v; want %q", after, n, ok, err, want)
		}
	}
	const one, two, three, other = "000000010000000000000003", "000000010000000000000005", "000000010000000100000000", "000000020000000000000005"
	next(one, "")
	expect(one)
	segments(1)
	keys := []string{
		tailDir + one + "/00000000-00000010-00000001",
		tailDir + one + "/00000000-00000010-00000001.lz4",
		tailDir + one + "/00000000-00000010-00000002.zst",
		tailDir + one + "/00000000-00000020-00000000.foo",
		tailDir + one + "/00000008-00000010-00000001",
		tailDir + two + "/00000000-00000010-00000001.lz4",
		tailDir + three + "/00000000-00000010-00000001.lz4",
		tailDir + other + "/00000000-00000010-00000001.lz4",
	}
	for _, key := range keys {
		put(t, store, key, nil)
	}
	for _, text := range []string{one + "/README", one + "/00000000-00000010-00000001lz4", "000000010000000000000004/junk", "00000001000000000000000X/00000000-00000010-00000001", "000000010000000000000006"} {
		put(t, store, tailDir+text, nil)
	}
	expect(one, keys[:5]...)
	expect(two, keys[5])
	expect("000000010000000000000004")
	segments(1, one, "000000010000000000000004", two, three)
	segments(2, other)
	segments(3)
	next("000000010000000000000001", one)
	next(one, two)
	next("000000010000000000000004", two)
	next(two, three)
	next(three, "")
	next("000000020000000000000000", other)
	next(other, "")

	listed, err := a.Tails(ctx, name(t, one))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.DeleteStoredTail(ctx, listed[2]); err != nil {
			t.Fatal(err)
		}
	}
	expect(one, keys[0], keys[1], keys[3], keys[4])

	// Junk in any number stands in front, and costs a page more.
	for i := range 3 * probe {
		put(t, store, fmt.Sprintf("%s%s/00%d", tailDir, "000000010000000000000004", i), nil)
	}
	counted := count(store)
	a = New(counted, Options{})
	next(one, two)
	if n := counted.taken("LIST"); n != 2 {
		t.Errorf("%d LISTs", n)
	}
	next(two, three)
	if n := counted.taken("LIST"); n != 1 {
		t.Errorf("%d LISTs", n)
	}
}
