package integration

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore/dir"
	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// hand writes the scene's archive by hand, from the server's own files: what a
// receiver would have shipped up to some LSN, and nothing that one is needed for.
type hand struct {
	*scene
	store  *archive.Archive
	method codec.Method
	first  segment.Name // that the cold copy may need
	next   segment.Name // the first that is not sealed
	tail   uint32       // how much of it was shipped
	crc    uint32
}

func (s *scene) hand() *hand {
	s.t.Helper()
	store, err := dir.Open(s.archive)
	if err != nil {
		s.t.Fatal(err)
	}
	h := &hand{scene: s, store: archive.New(store, archive.Options{}), method: codec.Method{Name: codec.LZ4}}
	files, err := os.ReadDir(filepath.Join(s.base, "pg_wal"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range files { // sorted
		if h.first, err = segment.ParseName(f.Name()); err == nil {
			break
		}
	}
	h.next = h.first
	system, err := strconv.ParseUint(s.sql("SELECT system_identifier FROM pg_control_system()"), 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := h.store.Claim(s.ctx(), archive.Identity{SystemIdentifier: system, SegmentSize: s.size}); err != nil {
		s.t.Fatal(err)
	}
	h.own()
	return h
}

// own lets the server's user read what we wrote.
func (h *hand) own() {
	h.t.Helper()
	if err := theLab.account.Own(h.archive); err != nil {
		h.t.Fatal(err)
	}
}

// bytes reads the server's own file.
func (h *hand) bytes(n segment.Name) []byte {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.pg.DataDir(), "pg_wal", n.String()))
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// ship stores everything up to end: whole segments, and the rest as tail
// objects that random cuts.
func (h *hand) ship(end segment.LSN, random *rand.Rand) {
	h.t.Helper()
	for ; h.next.End(h.size) <= end; h.next, h.tail, h.crc = h.next.Next(h.size), 0, 0 {
		plain := h.bytes(h.next)
		frame, err := h.method.Encode(plain)
		if err != nil {
			h.t.Fatal(err)
		}
		if err := h.store.PutSegment(h.ctx(), h.next, h.method, frame, readerAt(plain), h.size); err != nil {
			h.t.Fatal(err)
		}
		frame.Release()
	}
	plain := h.bytes(h.next)
	for to := uint32(h.size.Offset(end)); h.tail < to; {
		cut := h.tail + 1 + random.Uint32N(min(to-h.tail, 30_000))
		h.crc = crc32.Update(h.crc, crc32.MakeTable(crc32.Castagnoli), plain[h.tail:cut])
		h.putTail(archive.Tail{Segment: h.next, Start: h.tail, End: cut, CRC: h.crc}, plain)
		h.tail = cut
	}
	h.own()
}

func (h *hand) putTail(t archive.Tail, plain []byte) {
	h.t.Helper()
	frame, err := h.method.Encode(plain[t.Start:t.End])
	if err != nil {
		h.t.Fatal(err)
	}
	defer frame.Release()
	if err := h.store.PutTail(h.ctx(), t, h.method, frame); err != nil {
		h.t.Fatal(err)
	}
}

// readerAt reads bytes that are in memory.
type readerAt []byte

func (b readerAt) ReadAt(p []byte, at int64) (int, error) {
	n := copy(p, b[at:])
	if n < len(p) {
		return n, errors.New("read behind the end")
	}
	return n, nil
}

// flushed is how far the server's WAL is in its files.
func (s *scene) flushed() segment.LSN {
	s.t.Helper()
	lsn, err := segment.ParseLSN(s.sql("SELECT pg_current_wal_flush_lsn()"))
	if err != nil {
		s.t.Fatal(err)
	}
	return lsn
}

// quickCommand is goodCommand without the second that a program with the race
// detector waits at its end.
func (s *scene) quickCommand() string { return "GORACE=atexit_sleep_ms=0 " + s.goodCommand() }

// recovers runs a recovery out of the cold copy to its end, and counts rows.
func (s *scene) recovers(name, command, count string) string {
	s.t.Helper()
	pg := s.recovery(name, "recovery.signal", command)
	if err := pg.Start(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
	if err := pg.AwaitPrimary(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
	got, err := query(s.ctx(), pg.DSN("postgres"), count)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := pg.Stop(s.ctx(), instance.Fast); err != nil {
		s.t.Fatal(err)
	}
	return got
}

// A recovery replays the tail objects of the open segment: every row that was
// committed before their end is there, wherever that lies in a record, and none
// behind it.
func TestFetchTailsIntoRecovery(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		random := seeded(t)
		s := newScene(t, options{pg: i})
		h := s.hand()
		s.table()
		for range 2 {
			s.fill(300)
			s.switchWAL()
		}
		certain, ends := 0, []segment.LSN{s.flushed()} // ends[n]: n rows were committed by then
		s.sql("DELETE FROM rows")
		ends[0] = s.flushed()
		begin := ends[0]
		for range 40 {
			s.sql(fmt.Sprintf("INSERT INTO rows (v) VALUES (repeat('x', %d))", 1+random.IntN(3000)))
			ends = append(ends, s.flushed())
		}
		last := ends[len(ends)-1]
		if s.size.Start(begin) != s.size.Start(last) {
			t.Fatalf("the rows, %s to %s, are not in one segment", begin, last)
		}
		for round := range rounds(2, 15) {
			// Each cut lies behind the one before: what is shipped grows.
			begin += segment.LSN(1 + random.Uint64N(uint64(last-begin)/2))
			h.ship(begin, random)
			for certain = 0; certain+1 < len(ends) && ends[certain+1] <= begin; certain++ {
			}
			got, err := strconv.Atoi(s.recovers(fmt.Sprintf("recovered-%d", round), s.quickCommand(), "SELECT count(*) FROM rows"))
			// The commit may have ended before the place that was asked for.
			if err != nil || got < certain || got > certain+1 {
				t.Errorf("tail objects up to %s hold %d rows, and %d were recovered (%v)", begin, certain, got, err)
			}
		}
		// And so does a standby, again and again.
		pg := s.recovery("standby", "standby.signal", s.quickCommand())
		if err := pg.Start(s.ctx()); err != nil {
			t.Fatal(err)
		}
		h.ship(last, random)
		s.catchesUp(pg, len(ends)-1)
		s.fill(100)
		h.ship(s.flushed(), random)
		s.catchesUp(pg, len(ends)-1+100)
		s.switchWAL()
		s.fill(100)
		h.ship(s.flushed(), random)
		s.catchesUp(pg, len(ends)-1+200)
	})
}

// A primary goes on behind the place where its standby was promoted, and what
// it wrote there is in the archive as tail objects. A recovery along the new
// timeline brings none of it back, although nothing else in the archive holds
// the segment. (PostgreSQL itself would replay it all, as the first recovery
// shows, which is given the same bytes by a command that does not cut.)
func TestOldTimelineTailsBeyondTheFork(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		random := seeded(t)
		s := newScene(t, options{pg: i})
		h := s.hand()
		s.table()
		s.fill(300)
		s.switchWAL()
		s.fill(100)
		h.ship(s.flushed(), random)

		standby := s.recovery("standby", "standby.signal", s.quickCommand())
		if err := standby.Start(s.ctx()); err != nil {
			t.Fatal(err)
		}
		s.catchesUp(standby, 400)
		if err := standby.Promote(s.ctx()); err != nil {
			t.Fatal(err)
		}
		const historyFile = "00000002.history"
		history, err := os.ReadFile(filepath.Join(standby.DataDir(), "pg_wal", historyFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := h.store.PutHistory(s.ctx(), 2, h.method, history); err != nil {
			t.Fatal(err)
		}
		parsed, err := segment.ParseHistory(2, history)
		if err != nil {
			t.Fatal(err)
		}
		fork := parsed.Begin()

		s.sql("INSERT INTO rows (v) SELECT 'ghost' FROM generate_series(1, 50)")
		h.ship(s.flushed(), random)
		if end := h.next.Start(s.size) + segment.LSN(h.tail); s.size.Start(fork) != h.next.Start(s.size) || end <= fork {
			t.Fatalf("the fork at %s is not inside the tail objects of %s, which end at %s", fork, h.next, end)
		}

		const count = "SELECT (SELECT count(*) FROM rows WHERE v <> 'ghost') || ' rows, ' || (SELECT count(*) FROM rows WHERE v = 'ghost') || ' ghosts'"
		uncut := filepath.Join(s.dir, "uncut")
		h.writeFiles(uncut, map[string][]byte{historyFile: history})
		if got := s.recovers("uncut-recovery", "cp "+uncut+"/%f %p", count); got != "400 rows, 50 ghosts" {
			t.Fatalf("without a cut there are %s: the rows beyond the fork are not where a recovery would find them, so this test shows nothing", got)
		}
		if got := s.recovers("recovered", s.quickCommand(), count); got != "400 rows, 0 ghosts" {
			t.Errorf("the recovery has %s, want all 400 rows and no ghost", got)
		}
	})
}

// writeFiles writes a directory of plain WAL files: all that the archive holds,
// tail objects under the segment's own name with zeros behind, and more.
func (h *hand) writeFiles(dir string, more map[string][]byte) {
	h.t.Helper()
	files := more
	for n := h.first; n.Compare(h.next) < 0; n = n.Next(h.size) {
		files[n.String()] = h.bytes(n)
	}
	padded := h.bytes(h.next)
	clear(padded[h.tail:])
	files[h.next.String()] = padded
	if err := theLab.account.MkdirAll(dir); err != nil {
		h.t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := theLab.account.Own(dir); err != nil {
		h.t.Fatal(err)
	}
}

// A tail object that is damaged, or missing, in the middle stops a recovery,
// and a standby waits; both say which, and go on after the mend.
func TestBrokenTailsStopARecovery(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	h := s.hand()
	s.table()
	s.fill(300)
	s.switchWAL()
	s.fill(50)
	random := seeded(t)
	h.ship(s.flushed(), random)
	s.fill(50)
	begin := h.tail
	h.ship(s.flushed(), rand.New(rand.NewPCG(1, 1)))
	s.fill(50)
	h.ship(s.flushed(), random)
	const want = 450

	objects, err := h.store.Tails(s.ctx(), h.next)
	if err != nil {
		t.Fatal(err)
	}
	var victim, behind archive.StoredTail
	for n, o := range objects {
		if o.Start == begin {
			victim, behind = o, objects[n+1]
		}
	}
	path := filepath.Join(s.archive, "wal_tail_005", victim.String()+victim.Ext)
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		broken
		spoil func() error
	}{
		{broken{name: "damaged", says: victim.String()}, func() error { return os.WriteFile(path, sound[:len(sound)/2], 0o600) }},
		{broken{name: "missing", says: "is missing in front of wal_tail_005/" + behind.String()}, func() error { return os.Remove(path) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.spoil(); err != nil {
				t.Fatal(err)
			}
			pg := s.recovery(c.name, "recovery.signal", s.quickCommand()+" --budget 5s")
			if err := pg.Launch(s.ctx()); err != nil {
				t.Fatal(err)
			}
			if err := pg.AwaitPrimary(s.ctx()); !errors.Is(err, instance.ErrExited) {
				t.Fatalf("the server did not stop: %v", err)
			}
			s.unpromoted(pg, c.broken)
			standby := s.recovery(c.name+"-standby", "standby.signal", s.quickCommand()+" --budget 5s")
			s.polls(standby, c.broken)

			if err := os.WriteFile(path, sound, 0o600); err != nil {
				t.Fatal(err)
			}
			h.own()
			s.catchesUp(standby, want)
			if err := pg.Start(s.ctx()); err != nil {
				t.Fatal(err)
			}
			if err := pg.AwaitPrimary(s.ctx()); err != nil {
				t.Fatal(err)
			}
			if got := rows(s.ctx(), pg); got != want {
				t.Errorf("%d rows were recovered, want %d", got, want)
			}
		})
	}
}
