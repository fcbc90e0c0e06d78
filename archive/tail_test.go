package archive

import (
	"testing"

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
		"wal_tail_005/00000001000000000000002A.00002000-01000000-DEADBEEF.lz4",
	} {
		if got, _, ok := tailKey(bad); ok {
			t.Errorf("tailKey(%s) = %+v", bad, got)
		}
	}
}
