package segment_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/pierrec/lz4/v4"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/waltest"
)

const (
	goldenSysid = 7711011443698998812
	goldenSize  = segment.MinSize
)

// golden returns a segment that a real server wrote, of one the first 64 KB
// with zeros behind.
func golden(t testing.TB, file string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "pg15", file+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err := errors.Join(err, z.Close(), f.Close()); err != nil || len(b) > int(goldenSize) {
		t.Fatalf("%s: %d bytes, %v", file, len(b), err)
	}
	return append(b, make([]byte, int(goldenSize)-len(b))...)
}

func goldenHistory(t testing.TB) *segment.History {
	t.Helper()
	b, err := os.ReadFile("testdata/pg15/00000002.history")
	if err != nil {
		t.Fatal(err)
	}
	h, err := segment.ParseHistory(2, b)
	if err != nil {
		t.Fatal(err)
	}
	return &h
}

// goldenSegments are the recorded segments with what pg_waldump says of them.
var goldenSegments = []struct {
	file       string
	start, end segment.LSN
	remains    bool // behind its end are pages of the file's earlier life
}{
	{"000000010000000000000007", 0x700000, 0x709828, false},
	{"000000010000000000000008", 0x896338, 0x900000, false},
	{"000000010000000000000009", 0x900000, 0x900CF8, true},
	{"000000010000000000000009.overwritten", 0x900000, 0xA00000, false},
	{"000000020000000000000009", 0x900000, 0xA00000, false},
	{"00000002000000000000000A", 0xA00000, 0xA000A0, false},
}

func goldenRules(t testing.TB, file string) segment.PageRules {
	t.Helper()
	n, err := segment.ParseName(file[:24])
	if err != nil {
		t.Fatal(err)
	}
	r := segment.PageRules{Name: n, Size: goldenSize, SystemIdentifier: goldenSysid}
	if n.Timeline == 2 {
		r.History = goldenHistory(t)
	}
	return r
}

// checkPages gives b to a checker in parts of n bytes.
func checkPages(r segment.PageRules, b []byte, n int) error {
	c := segment.NewPageChecker(r)
	for len(b) > 0 {
		k := min(n, len(b))
		if _, err := c.Write(b[:k]); err != nil {
			return errors.Join(err, c.Close())
		}
		b = b[k:]
	}
	return c.Close()
}

func TestPageCheckerTakesRealSegments(t *testing.T) {
	for _, g := range goldenSegments {
		b := golden(t, g.file)
		for _, n := range []int{7, 8191, 8192, 8193, 100_000, len(b)} {
			err := checkPages(goldenRules(t, g.file), b, n)
			if g.remains != (err != nil) || err != nil && !errors.Is(err, segment.ErrPage) {
				t.Errorf("%s in parts of %d: %v", g.file, n, err)
			}
		}
	}
}

func TestPageCheckerFindsWhatIsWrong(t *testing.T) {
	le := binary.LittleEndian
	const file = "000000020000000000000009"
	page := func(b []byte, n int) []byte { return b[n*segment.PageSize:] }
	for _, c := range []struct {
		what string
		do   func(b []byte, r *segment.PageRules) []byte
		want error
		text string // in the message
	}{
		{"another cluster", func(b []byte, r *segment.PageRules) []byte { r.SystemIdentifier = 7; return b }, segment.ErrForeignCluster, "system identifier 7711011443698998812, expected 7"},
		{"another segment size", func(b []byte, r *segment.PageRules) []byte {
			r.Size = 2 << 20
			r.Name.Seg = 4
			le.PutUint64(b[8:], 0x800000)
			return b
		}, segment.ErrSegmentSize, "page at 0/800000: wrong WAL segment size: 1MB, expected 2MB"},
		{"another segment", func(b []byte, r *segment.PageRules) []byte { r.Name.Seg = 8; return b }, segment.ErrPage, "page at 0/800000: invalid WAL page: page address 0/900000"},
		{"cut short", func(b []byte, _ *segment.PageRules) []byte { return b[:len(b)-1] }, segment.ErrSegmentSize, "1048575 bytes"},
		{"nothing", func([]byte, *segment.PageRules) []byte { return nil }, segment.ErrSegmentSize, "0 bytes"},
		{"too long", func(b []byte, _ *segment.PageRules) []byte { return append(b, 0) }, segment.ErrSegmentSize, "more than"},
		{"zeros alone", func(b []byte, _ *segment.PageRules) []byte { return make([]byte, len(b)) }, segment.ErrPage, "page at 0/900000"},
		{"no WAL", func(b []byte, _ *segment.PageRules) []byte { return bytes.Repeat([]byte("walferry"), len(b)/8) }, segment.ErrPage, "page at 0/900000"},
		{"other byte order", func(b []byte, _ *segment.PageRules) []byte { b[0], b[1] = b[1], b[0]; return b }, segment.ErrPage, "big-endian"},
		{"first page without long header", func(b []byte, _ *segment.PageRules) []byte { b[2] &^= 2; return b }, segment.ErrPage, "xlp_info"},
		{"other page size", func(b []byte, _ *segment.PageRules) []byte { le.PutUint32(b[36:], 4096); return b }, segment.ErrPage, "4096"},
		{"impossible segment size", func(b []byte, _ *segment.PageRules) []byte { le.PutUint32(b[32:], 3); return b }, segment.ErrPage, "invalid WAL segment size"},
		{"long header in the middle", func(b []byte, _ *segment.PageRules) []byte { page(b, 3)[2] |= 2; return b }, segment.ErrPage, "page at 0/906000"},
		{"magic changes", func(b []byte, _ *segment.PageRules) []byte { page(b, 3)[0]++; return b }, segment.ErrPage, "page at 0/906000: invalid WAL page: magic number D111"},
		{"unknown bit", func(b []byte, _ *segment.PageRules) []byte { page(b, 3)[3] |= 0x10; return b }, segment.ErrPage, "xlp_info"},
		{"pages changed about", func(b []byte, _ *segment.PageRules) []byte { copy(page(b, 3), b[4*8192:5*8192]); return b }, segment.ErrPage, "page at 0/906000: invalid WAL page: page address 0/908000"},
		{"page of before", func(b []byte, _ *segment.PageRules) []byte { le.PutUint64(page(b, 16)[8:], 0x820000); return b }, segment.ErrPage, "page at 0/920000"},
		{"a hole", func(b []byte, _ *segment.PageRules) []byte { clear(page(b, 3)[:8192]); return b }, segment.ErrPage, "page at 0/908000: invalid WAL page: not empty"},
		{"remains in the empty tail", func(b []byte, _ *segment.PageRules) []byte { b[len(b)-1] = 1; return b }, segment.ErrPage, "page at 0/9FE000"},
		{"remains on an empty page", func(b []byte, _ *segment.PageRules) []byte { page(b, 18)[24] = 1; return b }, segment.ErrPage, "page at 0/924000"},
		{"later timeline", func(b []byte, r *segment.PageRules) []byte { r.Name.Timeline = 1; r.History = nil; return b }, segment.ErrPage, "timeline 2 in a segment of timeline 1"},
		{"timeline 0", func(b []byte, _ *segment.PageRules) []byte { b[4] = 0; return b }, segment.ErrPage, "timeline 0"},
		{"timeline goes back", func(b []byte, r *segment.PageRules) []byte { r.History = nil; page(b, 3)[4] = 1; return b }, segment.ErrPage, "timeline 1 behind a page of timeline 2"},
		{"ancestor behind its end", func(b []byte, _ *segment.PageRules) []byte { page(b, 1)[4] = 1; return b }, segment.ErrPage, "page at 0/902000: invalid WAL page: timeline 1, which ended at 0/900CF8"},
		{"no ancestor", func(b []byte, r *segment.PageRules) []byte {
			r.Name.Timeline = 3
			r.History = &segment.History{Timeline: 3, Ancestors: []segment.Switch{{Timeline: 2, At: 0xA00000}}}
			return b
		}, segment.ErrPage, "timeline 1 is no ancestor of timeline 3"},
	} {
		rules := goldenRules(t, file)
		b := c.do(golden(t, file), &rules)
		for _, n := range []int{13, 1 << 21} {
			err := checkPages(rules, b, n)
			if !errors.Is(err, c.want) || !bytes.Contains([]byte(err.Error()), []byte(c.text)) {
				t.Errorf("%s, in parts of %d: %v; want %v with %q", c.what, n, err, c.want, c.text)
			}
		}
	}
}

// A version that is not known yet may set bits that are not known yet.
func TestPageCheckerTakesNewerVersions(t *testing.T) {
	log := waltest.New(1, goldenSize, 0x900000)
	log.Magic = 0xD11A
	log.Fill(0xA00000)
	b := log.Segment(0x900000)
	b[3*segment.PageSize+2] |= 0x40
	rules := segment.PageRules{Name: goldenSize.Name(1, 0x900000), Size: goldenSize}
	if err := checkPages(rules, b, 5000); err != nil {
		t.Error(err)
	}
	if _, err := segment.NewPageChecker(rules).Write(golden(t, "00000002000000000000000A")); !errors.Is(err, segment.ErrPage) {
		t.Error(err)
	}
}

func TestPageCheckerDoesNotAllocate(t *testing.T) {
	b := golden(t, "000000010000000000000008")
	rules := goldenRules(t, "000000010000000000000008")
	if n := testing.AllocsPerRun(5, func() {
		if err := checkPages(rules, b, 100_000); err != nil {
			t.Fatal(err)
		}
	}); n > 1 { // the checker itself
		t.Errorf("%v allocations a segment", n)
	}
}

func TestLongHeader(t *testing.T) {
	h, err := segment.ParseLongHeader(golden(t, "000000010000000000000008"))
	want := segment.LongHeader{Magic: 0xD110, Info: 7, Timeline: 1, PageAddr: 0x800000, Remaining: 613383, SystemIdentifier: goldenSysid, SegmentSize: goldenSize, BlockSize: 8192}
	if err != nil || h != want {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := segment.ParseLongHeader(make([]byte, 39)); !errors.Is(err, segment.ErrPage) {
		t.Error(err)
	}
}

// What WAL-G archived from another cluster, with 16 MB segments.
func TestPagesAndRecordsOfAWALGArchive(t *testing.T) {
	dir := filepath.Join("..", "..", "shared", "fixtures", "walg-archive", "wal_005")
	files, err := filepath.Glob(filepath.Join(dir, "*.lz4"))
	if err != nil || len(files) == 0 {
		t.Skipf("SKIPPED: no archive beside the checkout, in %s", dir)
	}
	for i, name := range files {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			t.Skip("SKIPPED: ", err)
		}
		b, err := io.ReadAll(lz4.NewReader(f))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		n, err := segment.ParseName(filepath.Base(name)[:24])
		if err != nil {
			t.Fatal(err)
		}
		r := segment.PageRules{Name: n, Size: segment.DefaultSize, SystemIdentifier: 7710929516611631544}
		if err := checkPages(r, b, 1<<16); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		// All were archived whole; the first was full, or switched away from.
		start, end, err := segment.VerifiedRecords(bytes.NewReader(b), int64(len(b)), r)
		if err != nil || end-start < 1000 || start-n.Start(r.Size) > 1<<16 || n.End(r.Size)-end > 1<<16 {
			t.Errorf("%d: %s verifies from %s to %s, %v", i, n, start, end, err)
		}
	}
}

// The checker must say the same whatever the parts are, take what is right,
// and find a change of any header.
func FuzzPageChecker(f *testing.F) {
	log := waltest.New(7, goldenSize, 0x900000)
	log.Fill(0x980000)
	log.Switch()
	whole := log.Segment(0x900000)
	rules := segment.PageRules{Name: goldenSize.Name(1, 0x900000), Size: goldenSize, SystemIdentifier: 7}
	f.Add(uint32(0), byte(0), uint16(100))
	f.Add(uint32(8192*3), byte(1), uint16(24))
	f.Fuzz(func(t *testing.T, at uint32, change byte, part uint16) {
		b := bytes.Clone(whole)
		at %= uint32(len(b))
		b[at] ^= change
		one := checkPages(rules, b, len(b))
		two := checkPages(rules, b, int(part)%10000+100)
		if (one == nil) != (two == nil) || one != nil && one.Error() != two.Error() {
			t.Fatalf("in one part: %v; in several: %v", one, two)
		}
		inPage := at % segment.PageSize
		switch {
		case change == 0 && one != nil:
			t.Fatal(one)
		case change != 0 && one == nil && (at >= 0x80000+40 || inPage < 2 || inPage >= 8 && inPage < 16):
			t.Fatalf("the change of byte %d went unnoticed", at)
		}
	})
}
