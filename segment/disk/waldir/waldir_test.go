package waldir_test

import (
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
	"github.com/walferry/walferry/segment/waltest"
)

const (
	size  = segment.MinSize
	base  = segment.LSN(0x3000000)
	sysid = 7300000000000000001
	dir   = "/wal/dir"
)

var (
	cluster  = spool.Identity{SystemIdentifier: sysid, SegmentSize: size}
	first    = size.Name(1, base)
	second   = size.Name(1, base+segment.LSN(size))
	history2 = []byte("1\t0/3160000\tno recovery target specified\n")
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func twoSegments() *waltest.Log {
	log := waltest.New(sysid, size, base)
	log.Fill(base + 2*segment.LSN(size))
	return log
}
