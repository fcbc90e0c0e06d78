package segment_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/waltest"
)

func continued(t testing.TB, prev, next []byte, r segment.PageRules) (end segment.LSN, ok bool) {
	t.Helper()
	end, ok, err := segment.ContinuedRecord(bytes.NewReader(prev), bytes.NewReader(next), int64(len(next)), r)
	if err != nil {
		t.Fatal(err)
	}
	return end, ok
}

// In the recorded segments a message of 1.6 MB goes from one into the next;
// the others begin behind a segment switch.
func TestContinuedRecordOfRealSegments(t *testing.T) {
	for _, c := range []struct {
		prev, next string
		end        segment.LSN // zero: nothing goes on
	}{
		{"000000010000000000000007", "000000010000000000000008", 0x896338},
		{"000000010000000000000008", "000000010000000000000009", 0},
		{"000000010000000000000008", "000000020000000000000009", 0},
		{"000000010000000000000008", "000000010000000000000009.overwritten", 0},
		{"000000020000000000000009", "00000002000000000000000A", 0},
		{"000000010000000000000008", "000000010000000000000008", 0}, // not the one before
		{"000000010000000000000007", "000000010000000000000009", 0},
	} {
		end, ok := continued(t, golden(t, c.prev), golden(t, c.next), goldenRules(t, c.next))
		if ok != (c.end != 0) || end != c.end {
			t.Errorf("%s and %s: %s, %v; pg_waldump says %s", c.prev, c.next, end, ok, c.end)
		}
	}
}

// The timeline's own pages may begin in the middle of next, behind the record,
// and not in front of its end.
func TestContinuedRecordOfTheParent(t *testing.T) {
	prev, next := golden(t, "000000010000000000000007"), golden(t, "000000010000000000000008")
	r := goldenRules(t, "000000010000000000000008")
	for _, c := range []struct {
		at segment.LSN // where timeline 1 ended
		ok bool
	}{
		{0x900CF8, true}, {0x896338, true}, {0x896001, true}, {0x896000, false}, {0x850000, false}, {0x800000, false}, {0x700000, false},
	} {
		r.Name.Timeline = 2
		r.History = &segment.History{Timeline: 2, Ancestors: []segment.Switch{{Timeline: 1, At: c.at}}}
		if end, ok := continued(t, prev, next, r); ok != c.ok || ok && end != 0x896338 {
			t.Errorf("timeline 1 ended at %s: %s, %v", c.at, end, ok)
		}
	}
	r.History = &segment.History{Timeline: 3, Ancestors: []segment.Switch{{Timeline: 2, At: 0x900CF8}}}
	r.Name.Timeline = 3
	if _, ok := continued(t, prev, next, r); ok {
		t.Error("pages of a timeline that is no ancestor were taken")
	}
	r.Name.Timeline, r.History = 2, nil
	if _, ok := continued(t, prev, next, r); !ok {
		t.Error("without a history, an older timeline's pages were not taken")
	}
}

// across is a log with a record that begins so many bytes in front of a
// segment boundary and has n bytes of data.
func across(t *testing.T, at segment.LSN, before, n int) (log *waltest.Log, rec, end segment.LSN) {
	t.Helper()
	boundary := at + segment.LSN(goldenSize)
	log = waltest.New(7, goldenSize, at)
	log.Fill(boundary - 60_000)
	for log.End() < boundary-7000 {
		log.Record(16)
	}
	begin := (log.End() + 7) &^ 7
	log.Record(int(boundary-begin) - before - 24)
	if rec = log.Record(n); rec != boundary-segment.LSN(before) {
		t.Fatalf("the record begins at %s", rec)
	}
	end = (log.End() + 7) &^ 7
	log.Record(50)
	return log, rec, end
}

// Wherever the record is cut by the boundary, in its header too, it is good
// when it is there whole, and as soon as it is.
func TestContinuedRecordIsWhole(t *testing.T) {
	const at = segment.LSN(0x900000)
	boundary := at + segment.LSN(goldenSize)
	r := segment.PageRules{Name: goldenSize.Name(1, boundary), Size: goldenSize, SystemIdentifier: 7}
	for _, before := range []int{8, 16, 24, 1000} {
		for _, n := range []int{7000, 7010, 900_000} {
			log, _, end := across(t, at, before, n)
			prev, next := log.Segment(at), log.Segment(boundary)
			if got, ok := continued(t, prev, next, r); !ok || got != end {
				t.Fatalf("%d bytes, %d of them in front of the boundary: %s, %v; want %s", n, before, got, ok, end)
			}
			if start, _ := verified(t, next, r); start != end {
				t.Errorf("VerifiedRecords begins at %s, behind the record is %s", start, end)
			}
			last := end - 7 // of its bytes, at the least
			for _, k := range []segment.LSN{0, 1, 39, 40, 41, (last - boundary) / 2, last - boundary - 1} {
				got, ok, err := segment.ContinuedRecord(bytes.NewReader(prev), bytes.NewReader(next), int64(k), r)
				if ok || err != nil {
					t.Errorf("%d bytes, %d of them in front of the boundary: by %d of the rest it is good up to %s, %v", n, before, k, got, err)
				}
				if got, ok := continued(t, prev, next[:k], r); ok {
					t.Errorf("%d bytes, %d of them in front of the boundary: with %d of the rest it is good up to %s", n, before, k, got)
				}
			}
			if got, ok := continued(t, prev, next[:end-boundary], r); !ok || got != end {
				t.Errorf("%d bytes, %d of them in front of the boundary, no more behind it: %s, %v", n, before, got, ok)
			}
			// Segments do not stand for each other, and n is only a bound.
			if _, ok := continued(t, next, prev, r); ok {
				t.Error("the wrong way round it is good")
			}
			if got, ok, err := segment.ContinuedRecord(bytes.NewReader(prev), bytes.NewReader(next), 1<<40, r); err != nil || !ok || got != end {
				t.Errorf("of a segment that is longer than one: %s, %v, %v", got, ok, err)
			}
			if _, ok := continued(t, prev[:len(prev)-1], next, r); ok {
				t.Error("with a byte less in front of it it is good")
			}
		}
	}
}

// No byte of the record, and none that says where it is, may be another.
func TestContinuedRecordIsChecked(t *testing.T) {
	const at = segment.LSN(0x900000)
	boundary := at + segment.LSN(goldenSize)
	r := segment.PageRules{Name: goldenSize.Name(1, boundary), Size: goldenSize, SystemIdentifier: 7}
	log, rec, end := across(t, at, 48, 20_001)
	prev, next := log.Segment(at), log.Segment(boundary)
	both := append(bytes.Clone(prev), next...)
	for place := rec - at; place < end-at; place++ {
		inPage := place % segment.PageSize
		if inPage > 64 && place-(rec-at) > 32 && place%101 != 0 && end-at-place > 16 {
			continue // every byte of headers and ends, of others some
		}
		long := place/segment.LSN(goldenSize) == 1 && inPage == place-segment.LSN(goldenSize)
		switch {
		case place >= end-at-7: // padding, of which nothing speaks
			continue
		case inPage >= 20 && inPage < 24: // of a page's header, too
			continue
		}
		b := bytes.Clone(both[place : place+1])
		both[place] ^= 0x10
		_, ok, err := segment.ContinuedRecord(bytes.NewReader(both[:goldenSize]), bytes.NewReader(both[goldenSize:]), int64(goldenSize), r)
		if ok || err != nil && !(long && (errors.Is(err, segment.ErrForeignCluster) || errors.Is(err, segment.ErrSegmentSize))) {
			t.Errorf("with another byte at %s: %v, %v", at+place, ok, err)
		}
		both[place] = b[0]
	}
	// The walk to it must be right: nothing else says that a record is there.
	for place := segment.LSN(0); place < rec-at; place += 4099 {
		if place%segment.PageSize < 24 || prev[place] == 0 {
			continue
		}
		wrong := bytes.Clone(prev)
		wrong[place] ^= 0x10
		if _, ok := continued(t, wrong, next, r); ok {
			t.Errorf("with another byte at %s, in front of the record: it is good", at+place)
		}
	}
	// What comes behind the record is of no interest.
	wrong := bytes.Clone(next)
	wrong[end-boundary] ^= 1
	if got, ok := continued(t, prev, wrong, r); !ok || got != end {
		t.Errorf("with another byte behind the record: %s, %v", got, ok)
	}
	// A rest of the right length that belongs to another record.
	other := waltest.New(7, goldenSize, at)
	other.Record(1)
	for other.End() < boundary-7000 {
		other.Record(16)
	}
	other.Record(int(boundary-(other.End()+7)&^7) - 48 - 24)
	if r := other.Record(20_001); r != rec {
		t.Fatal(r)
	}
	if _, ok := continued(t, prev, other.Segment(boundary), r); ok {
		t.Error("the rest of another record is good")
	}
	if _, ok := continued(t, other.Segment(at), other.Segment(boundary), r); !ok {
		t.Error("that other record is not good")
	}
	// One that names another predecessor.
	le := binary.LittleEndian
	for _, wrong := range []bool{false, true} {
		log, rec, end := across(t, at, 48, 5000)
		prev, next := log.Segment(at), log.Segment(boundary)
		b := prev[rec-at:]
		if wrong {
			le.PutUint64(b[8:], le.Uint64(b[8:])-8)
		}
		table := crc32.MakeTable(crc32.Castagnoli)
		crc := crc32.Update(0, table, b[24:])
		crc = crc32.Update(crc, table, next[40:40+5000+24-48])
		le.PutUint32(b[20:], crc32.Update(crc, table, b[:20]))
		if got, ok := continued(t, prev, next, r); ok == wrong || ok && got != end {
			t.Errorf("names another predecessor %v: %s, %v", wrong, got, ok)
		}
	}
	short := bytes.Clone(next)
	le.PutUint32(short[16:], le.Uint32(short[16:])-8)
	if _, ok := continued(t, prev, short, r); ok {
		t.Error("the page says that less is left, and it is good")
	}
	none := bytes.Clone(next)
	le.PutUint16(none[2:], le.Uint16(none[2:])&^1)
	if _, ok := continued(t, prev, none, r); ok {
		t.Error("the page says that nothing is left, and it is good")
	}
}

// What cannot be vouched for: a record that is longer than two segments, and
// one that the server gave up.
func TestContinuedRecordThatIsNone(t *testing.T) {
	const at = segment.LSN(0x900000)
	seg := segment.LSN(goldenSize)
	rules := func(n segment.LSN) segment.PageRules {
		return segment.PageRules{Name: goldenSize.Name(1, at+n*seg), Size: goldenSize, SystemIdentifier: 7}
	}
	long := waltest.New(7, goldenSize, at)
	long.Record(100)
	long.Record(int(goldenSize) * 5 / 2)
	next := long.Record(int(goldenSize))
	end := long.Record(100)
	for k := segment.LSN(1); k <= 3; k++ {
		got, ok := continued(t, long.Segment(at+(k-1)*seg), long.Segment(at+k*seg), rules(k))
		if ok != (k == 3) || ok && got != end {
			t.Errorf("segments %d and %d: %s, %v; the last record, from %s on, ends at %s", k-1, k, got, ok, next, end)
		}
	}

	// Given up at the boundary: its first page in next says so.
	log := waltest.New(7, goldenSize, at)
	for log.End() < at+seg-segment.PageSize/2 {
		log.Record(16)
	}
	rec := log.Abort()
	log.Fill(at + seg + 50_000)
	if got, ok := continued(t, log.Segment(at), log.Segment(at+seg), rules(1)); ok || rec > at+seg || log.End() < at+seg+50_000 {
		t.Errorf("given up at the boundary: good up to %s", got)
	}
	// Given up behind it: the second page does.
	log, _, _ = across(t, at, 1000, 30_000)
	b := log.Segment(at + seg)
	binary.LittleEndian.PutUint16(b[segment.PageSize+2:], 8)
	binary.LittleEndian.PutUint32(b[segment.PageSize+16:], 0)
	if got, ok := continued(t, log.Segment(at), b, rules(1)); ok {
		t.Errorf("given up behind the boundary: good up to %s", got)
	}

	// One that was given up in prev is passed over.
	log = waltest.New(7, goldenSize, at)
	log.Fill(at + 500_000)
	log.Abort()
	log.Fill(at + seg - 30_000)
	log.Record(60_000)
	end = (log.End() + 7) &^ 7
	log.Record(10)
	if got, ok := continued(t, log.Segment(at), log.Segment(at+seg), rules(1)); !ok || got != end {
		t.Errorf("behind one that was given up: %s, %v; want %s", got, ok, end)
	}

	// One that ends where the segment does.
	log, _, _ = across(t, at, 48, 24)
	if got, ok := continued(t, log.Segment(at), log.Segment(at+seg), rules(1)); ok {
		t.Errorf("nothing goes on, and it is good up to %s", got)
	}

	if _, ok := continued(t, make([]byte, goldenSize), make([]byte, goldenSize), rules(1)); ok {
		t.Error("zeros are good")
	}
	if _, ok := continued(t, log.Segment(at), log.Segment(at+seg), segment.PageRules{Name: goldenSize.Name(1, 0), Size: goldenSize}); ok {
		t.Error("something is good in front of the first segment of all")
	}
}

func TestContinuedRecordFails(t *testing.T) {
	const at = segment.LSN(0x900000)
	boundary := at + segment.LSN(goldenSize)
	log, _, _ := across(t, at, 1000, 30_000)
	prev, next := log.Segment(at), log.Segment(boundary)
	r := segment.PageRules{Name: goldenSize.Name(1, boundary), Size: goldenSize, SystemIdentifier: 7}
	wrong := errors.New("disk on fire")
	n := int64(goldenSize)
	if _, ok, err := segment.ContinuedRecord(failing{wrong}, bytes.NewReader(next), n, r); ok || !errors.Is(err, wrong) {
		t.Error(ok, err)
	}
	if _, ok, err := segment.ContinuedRecord(bytes.NewReader(prev), failing{wrong}, n, r); ok || !errors.Is(err, wrong) {
		t.Error(ok, err)
	}
	foreign := waltest.New(8, goldenSize, at)
	foreign.Fill(boundary + 1000)
	if _, ok, err := segment.ContinuedRecord(bytes.NewReader(foreign.Segment(at)), bytes.NewReader(next), n, r); ok || !errors.Is(err, segment.ErrForeignCluster) {
		t.Error(ok, err)
	}
	if _, ok, err := segment.ContinuedRecord(bytes.NewReader(prev), bytes.NewReader(foreign.Segment(boundary)), n, r); ok || !errors.Is(err, segment.ErrForeignCluster) {
		t.Error(ok, err)
	}
	r.Size = 3
	if _, _, err := segment.ContinuedRecord(bytes.NewReader(prev), bytes.NewReader(next), n, r); err == nil {
		t.Error("an impossible segment size was accepted")
	}
}

// However the bytes are, the walk ends, and where it finds the record good,
// VerifiedRecords agrees on its end.
func FuzzContinuedRecord(f *testing.F) {
	const at = segment.LSN(0x900000)
	boundary := at + segment.LSN(goldenSize)
	log := waltest.New(7, goldenSize, at)
	log.Fill(boundary - 3000)
	log.Record(20_000)
	log.Fill(boundary + 60_000)
	r := segment.PageRules{Name: goldenSize.Name(1, boundary), Size: goldenSize}
	f.Add([]byte{}, uint32(0), uint32(60_000))
	f.Add([]byte{1, 0, 0}, uint32(goldenSize)+16, uint32(60_000))
	f.Add([]byte{9, 0}, uint32(goldenSize)+8194, uint32(20_000))
	f.Fuzz(func(t *testing.T, change []byte, place, n uint32) {
		both := append(log.Segment(at), log.Segment(boundary)...)
		copy(both[place%uint32(len(both)):], change)
		n %= uint32(goldenSize) + 1
		prev, next := both[:goldenSize], both[goldenSize:]
		end, ok, err := segment.ContinuedRecord(bytes.NewReader(prev), bytes.NewReader(next), int64(n), r)
		if err != nil || !ok {
			return
		}
		if end <= boundary || end > boundary+(segment.LSN(n)+7)&^7 {
			t.Fatalf("with %d bytes, good up to %s", n, end)
		}
		if start, stop := verified(t, next[:n], r); stop > start && start != end {
			t.Fatalf("good up to %s, and the next record is at %s", end, start)
		}
	})
}
