package segment_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/waltest"
)

func verified(t testing.TB, b []byte, r segment.PageRules) (start, end segment.LSN) {
	t.Helper()
	start, end, err := segment.VerifiedRecords(bytes.NewReader(b), int64(len(b)), r)
	if err != nil {
		t.Fatal(err)
	}
	return start, end
}

func TestVerifiedRecordsOfRealSegments(t *testing.T) {
	for _, g := range goldenSegments {
		b := golden(t, g.file)
		if start, end := verified(t, b, goldenRules(t, g.file)); start != g.start || end != g.end {
			t.Errorf("%s: %s to %s; pg_waldump says %s to %s", g.file, start, end, g.start, g.end)
		}
	}
}

// Whatever is cut off or broken, the range ends at a record's place in front
// of it, and never reaches beyond it.
func TestVerifiedRecordsStopsAtDamage(t *testing.T) {
	const at = segment.LSN(0x900000)
	log := waltest.New(7, goldenSize, at)
	var ends []segment.LSN // of each record, padded
	for log.End() < at+60_000 {
		log.Record(int(uint32(log.End())*7919) % 3000)
		ends = append(ends, (log.End()+7)&^7)
	}
	aborted := log.Abort()
	ends = append(ends, (log.End()+7)&^7)
	for range 20 {
		log.Record(500)
		ends = append(ends, (log.End()+7)&^7)
	}
	switched := log.Switch()
	ends = append(ends, switched+24)
	whole := log.Segment(at)
	rules := segment.PageRules{Name: goldenSize.Name(1, at), Size: goldenSize, SystemIdentifier: 7}
	if start, end := verified(t, whole, rules); start != at || end != at+segment.LSN(goldenSize) {
		t.Fatalf("%s to %s", start, end)
	}
	before := func(l segment.LSN) (last segment.LSN) { // end of the last record that is whole in front of l
		last = at
		for _, e := range ends {
			if e <= l {
				last = e
			}
		}
		return last
	}
	for cut := segment.LSN(0); cut < switched+32-at; cut += 499 {
		zeroed := bytes.Clone(whole)
		clear(zeroed[cut:])
		start, end := verified(t, zeroed, rules)
		// Zeros cut off may have been zeros: padding, and bytes of the data.
		if want := before(at + cut); start != at || end < want || end > want+8 && end != before(at+cut+8) {
			t.Fatalf("zeros from %s on: %s to %s; want %s", at+cut, start, end, want)
		}
		start, end = verified(t, whole[:cut], rules)
		if want := before(at + cut); start != at || end > want+8 || end < want {
			t.Fatalf("cut at %s: %s to %s; want %s", at+cut, start, end, want)
		}
		flipped := bytes.Clone(whole)
		flipped[cut] ^= 0x10
		switch _, end, err := segment.VerifiedRecords(bytes.NewReader(flipped), int64(len(flipped)), rules); {
		case errors.Is(err, segment.ErrForeignCluster), errors.Is(err, segment.ErrSegmentSize): // a bit of the first header
		case err != nil:
			t.Fatal(err)
		case end > at+cut && end != at+segment.LSN(goldenSize) && end != before(end):
			t.Fatalf("bit of %s: up to %s, which is no record's end", at+cut, end)
		case end > at+cut && !unchecked(whole, cut, aborted-at):
			t.Fatalf("bit of %s: up to %s", at+cut, end)
		}
	}
	behind := bytes.Clone(whole)
	behind[len(behind)-1] = 1
	if _, end := verified(t, behind, rules); end != switched+24 {
		t.Errorf("with remains behind a switch: up to %s; want %s", end, switched+24)
	}
}

// unchecked reports whether nothing speaks for the byte at a place: padding
// behind a record, flags and padding of a page's header, and the part of a
// record that was given up.
func unchecked(b []byte, at, aborted segment.LSN) bool {
	inPage := at % segment.PageSize
	if inPage < 24 || at < 40 {
		return true
	}
	return b[at] == 0 || at >= aborted && at < (aborted|(segment.PageSize-1))
}

// A record that goes on over several segments: the middle has none of its
// own, the last begins behind it.
func TestVerifiedRecordsOfLongRecords(t *testing.T) {
	const at = segment.LSN(0x900000)
	seg := segment.LSN(goldenSize)
	log := waltest.New(7, goldenSize, at)
	log.Record(100)
	long := log.Record(int(goldenSize) * 5 / 2)
	next := log.Record(100)
	rules := func(n segment.LSN) segment.PageRules {
		return segment.PageRules{Name: goldenSize.Name(1, at+n*seg), Size: goldenSize, SystemIdentifier: 7}
	}
	for n, want := range [][2]segment.LSN{{at, long}, {at + seg, at + seg}, {next, (log.End() + 7) &^ 7}} {
		if start, end := verified(t, log.Segment(at+segment.LSN(n)*seg), rules(segment.LSN(n))); start != want[0] || end != want[1] {
			t.Errorf("segment %d: %s to %s; want %s", n, start, end, want)
		}
	}
	if start, end := verified(t, log.Segment(at + 2*seg)[:100_000], rules(2)); start != end {
		t.Errorf("a part of a record verifies from %s to %s", start, end)
	}
}

func TestVerifiedRecordsRefusesAnotherCluster(t *testing.T) {
	const file = "00000002000000000000000A"
	b := golden(t, file)
	r := goldenRules(t, file)
	r.SystemIdentifier = 8
	if _, _, err := segment.VerifiedRecords(bytes.NewReader(b), int64(len(b)), r); !errors.Is(err, segment.ErrForeignCluster) {
		t.Error(err)
	}
	r = goldenRules(t, file)
	r.Size, r.Name.Seg = 2*goldenSize, 5
	if _, _, err := segment.VerifiedRecords(bytes.NewReader(b), int64(len(b)), r); !errors.Is(err, segment.ErrSegmentSize) {
		t.Error(err)
	}
	r.Size = 3
	if _, _, err := segment.VerifiedRecords(bytes.NewReader(b), int64(len(b)), r); err == nil {
		t.Error("an impossible segment size was accepted")
	}
	r = goldenRules(t, file)
	if start, end := verified(t, nil, r); start != 0xA00000 || end != start {
		t.Errorf("of nothing, %s to %s", start, end)
	}
	// n may promise more than there is.
	if _, end, err := segment.VerifiedRecords(bytes.NewReader(b[:5000]), 1<<40, r); err != nil || end != 0xA000A0 {
		t.Error(end, err)
	}
	wrong := errors.New("disk on fire")
	if _, _, err := segment.VerifiedRecords(failing{wrong}, 1<<20, r); !errors.Is(err, wrong) {
		t.Error(err)
	}
}

// A record whose checksum is right belongs here only when it names the record
// in front of it, and a page only when it says how much of its record is left.
func TestVerifiedRecordsChecksTheChain(t *testing.T) {
	const at = segment.LSN(0x900000)
	le := binary.LittleEndian
	log := waltest.New(7, goldenSize, at)
	first := log.Record(100)
	second := log.Record(100)
	long := log.Record(3 * segment.PageSize)
	log.Record(100)
	rules := segment.PageRules{Name: goldenSize.Name(1, at), Size: goldenSize}
	resum := func(b []byte, prev segment.LSN) {
		le.PutUint64(b[8:], uint64(prev))
		table := crc32.MakeTable(crc32.Castagnoli)
		le.PutUint32(b[20:], crc32.Update(crc32.Update(0, table, b[24:124]), table, b[:20]))
	}
	for _, c := range []struct {
		what string
		do   func(b []byte)
		want segment.LSN
	}{
		{"nothing", func(b []byte) { resum(b[second-at:], first) }, (log.End() + 7) &^ 7},
		{"first record's predecessor is any before it", func(b []byte) { resum(b[first-at:], at-8) }, (log.End() + 7) &^ 7},
		{"first record names itself", func(b []byte) { resum(b[first-at:], first) }, at},
		{"second record names another", func(b []byte) { resum(b[second-at:], first-8) }, second},
		{"a page says that more is left", func(b []byte) { b[segment.PageSize+16]++ }, long},
		{"a page says that nothing is left", func(b []byte) { b[segment.PageSize+2] &^= 1 }, long},
	} {
		b := log.Segment(at)
		c.do(b)
		if start, end := verified(t, b, rules); start != at || end != c.want {
			t.Errorf("%s: %s to %s; want %s", c.what, start, end, c.want)
		}
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

var _ io.ReaderAt = failing{}

// However the bytes are, the walk ends, and within them; a longer prefix never
// verifies less.
func FuzzVerifiedRecords(f *testing.F) {
	log := waltest.New(7, goldenSize, 0x900000)
	log.Fill(0x908000)
	log.Abort()
	log.Fill(0x90C000)
	log.Switch()
	whole := log.Segment(0x900000)
	rules := segment.PageRules{Name: goldenSize.Name(1, 0x900000), Size: goldenSize}
	f.Add([]byte{}, uint32(0), uint32(0))
	f.Add(binary.LittleEndian.AppendUint32(nil, 1<<30), uint32(40), uint32(5000))
	f.Add([]byte{9, 0}, uint32(8194), uint32(20000))
	f.Fuzz(func(t *testing.T, change []byte, at, n uint32) {
		b := bytes.Clone(whole)
		copy(b[at%uint32(len(b)):], change)
		n %= uint32(len(b)) + 1
		start, end, err := segment.VerifiedRecords(bytes.NewReader(b), int64(n), rules)
		if err != nil {
			return
		}
		if start < 0x900000 || end < start || end > 0x900000+(segment.LSN(n)+7)&^7 {
			t.Fatalf("%d bytes verify from %s to %s", n, start, end)
		}
		s2, e2, err := segment.VerifiedRecords(bytes.NewReader(b), int64(len(b)), rules)
		if err != nil || e2 < end || end > start && s2 != start {
			t.Fatalf("%d bytes verify from %s to %s, all of them from %s to %s, %v", n, start, end, s2, e2, err)
		}
	})
}

// The record on either side of a boundary, as a receiver compares them when it
// has no page to compare.
func TestRecordsOnEitherSideOfABoundary(t *testing.T) {
	const at = segment.LSN(0x900000)
	next := at + segment.LSN(goldenSize)
	rules := func(l segment.LSN) segment.PageRules {
		return segment.PageRules{Name: goldenSize.Name(1, l), Size: goldenSize, SystemIdentifier: 7}
	}
	for name, cross := range map[string]func(*waltest.Log) (last segment.LSN){
		"a switch": func(l *waltest.Log) segment.LSN { return l.Switch() },
		"a record that goes on": func(l *waltest.Log) (last segment.LSN) {
			for l.End() < next {
				last = l.Record(9000)
			}
			return last
		},
	} {
		log := waltest.New(7, goldenSize, at)
		log.Fill(at + 500_000)
		last := cross(log)
		log.Fill(next + 100_000)
		have, err := segment.LastRecords(bytes.NewReader(log.Segment(at)), rules(at))
		if err != nil || len(have) == 0 || have[len(have)-1] != last {
			t.Errorf("%s: last records %v, %v; want %s", name, have, err, last)
		}
		b := log.Segment(next)
		prev, ok, err := segment.FirstRecordPrev(bytes.NewReader(b), int64(len(b)), rules(next))
		if err != nil || !ok || prev != last {
			t.Errorf("%s: the first record follows %s, %v, %v; want %s", name, prev, ok, err, last)
		}
		if _, ok, err := segment.FirstRecordPrev(bytes.NewReader(b), 60, rules(next)); ok || err != nil {
			t.Errorf("%s: a record that is not there whole was read: %v, %v", name, ok, err)
		}
	}
	// A record that was given up exactly at the boundary.
	log := waltest.New(7, goldenSize, at)
	log.Fill(next - 9000)
	var whole segment.LSN
	for log.End()&0x1FFF < 0x1F00 || next-log.End() > 0x2000 {
		whole = log.Record(16)
	}
	log.Abort()
	log.Fill(next + 50_000)
	have, err := segment.LastRecords(bytes.NewReader(log.Segment(at)), rules(at))
	b := log.Segment(next)
	prev, ok, prevErr := segment.FirstRecordPrev(bytes.NewReader(b), int64(len(b)), rules(next))
	if err != nil || prevErr != nil || !ok || prev != whole || len(have) != 2 || have[0] != whole {
		t.Errorf("given up at the boundary: last records %v, %v; the first one behind follows %s, %v, %v; want %s", have, err, prev, ok, prevErr, whole)
	}
	if have, err := segment.LastRecords(bytes.NewReader(make([]byte, goldenSize)), rules(at)); err != nil || have != nil {
		t.Errorf("of zeros: %v, %v", have, err)
	}
}
