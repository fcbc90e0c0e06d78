package integration

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// commit is what a client remembers of a commit that was acknowledged.
type commit struct {
	id  int64
	lsn segment.LSN // where the server was behind it: its own end, or later
	at  time.Time   // of the acknowledgement
}

// ledger is what clients of a server know of their commits, kept outside of
// the database: it survives the server.
type ledger struct {
	first  int64 // number of the first row
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu    sync.Mutex
	last  int64 // number of the last row that was tried
	acked []commit
	ended error // what ended the first client that has ended
}

// writing says how the clients of a ledger write.
type writing struct {
	first       int64
	clients     int
	pace        time.Duration // the longest pause between two commits of a client
	synchronous string        // synchronous_commit
}

// ledger starts clients on the scene's server. They insert numbered rows of
// all sizes, each in a transaction of its own, until the server goes away or
// stop.
func (s *scene) ledger(random *rand.Rand, w writing) *ledger {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	l := &ledger{first: w.first, last: w.first - 1, cancel: cancel}
	s.t.Cleanup(func() { l.stop() })
	for range w.clients {
		c, err := pgconn.Connect(ctx, s.pg.DSN("postgres"))
		if err != nil {
			s.t.Fatal(err)
		}
		if w.synchronous != "" {
			if _, err := c.Exec(ctx, "SET synchronous_commit = "+w.synchronous).ReadAll(); err != nil {
				s.t.Fatal(err)
			}
		}
		choices := rand.New(rand.NewPCG(random.Uint64(), 0))
		l.done.Go(func() {
			err := l.client(ctx, c, choices, w.pace)
			l.mu.Lock()
			if l.ended == nil {
				l.ended = err
			}
			l.mu.Unlock()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = c.Close(ctx) // the server may be gone: that is what it is for
		})
	}
	return l
}

func (l *ledger) client(ctx context.Context, c *pgconn.PgConn, random *rand.Rand, pace time.Duration) error {
	for {
		l.mu.Lock()
		l.last++
		id := l.last
		l.mu.Unlock()
		// Nothing of the answer is sent before all of it is known, so the
		// commit counts as acknowledged when we have the LSN as well.
		results, err := c.Exec(ctx, fmt.Sprintf(`BEGIN; INSERT INTO ledger SELECT %d, v, md5(v) FROM
			(SELECT string_agg(md5(random()::text), '') AS v FROM generate_series(1, %d)) AS x;
			COMMIT; SELECT pg_current_wal_insert_lsn()`, id, 1<<random.IntN(9))).ReadAll()
		if err != nil {
			return err
		}
		at := time.Now()
		lsn, err := segment.ParseLSN(string(results[3].Rows[0][0]))
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.acked = append(l.acked, commit{id, lsn, at})
		l.mu.Unlock()
		if pace > 0 {
			select {
			case <-time.After(time.Duration(random.Int64N(int64(pace)))):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// acknowledged returns the commits that were, and the number of the last that
// was tried.
func (l *ledger) acknowledged() (acked []commit, last int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.acked), l.last
}

// broken is what ended a client, nil while all of them write.
func (l *ledger) broken() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

// stop ends the clients.
func (l *ledger) stop() {
	l.cancel()
	l.done.Wait()
}

// rowsOfLedger lists the rows of a server, each of which must be intact.
func rowsOfLedger(t *testing.T, ctx context.Context, pg *instance.Server) map[int64]bool {
	t.Helper()
	text, err := query(ctx, pg.DSN("postgres"), "SELECT coalesce(string_agg(id::text, ' '), '') FROM ledger")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[int64]bool{}
	for word := range strings.FieldsSeq(text) {
		id, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		rows[id] = true
	}
	if bad, err := query(ctx, pg.DSN("postgres"), "SELECT count(*) FROM ledger WHERE md5(v) <> sum"); err != nil || bad != "0" {
		t.Errorf("%s of %d rows are damaged (%v)", bad, len(rows), err)
	}
	return rows
}

// missing picks the commits whose rows are not there, oldest first.
func missing(acked []commit, rows map[int64]bool) (lost []commit) {
	for _, c := range acked {
		if !rows[c.id] {
			lost = append(lost, c)
		}
	}
	slices.SortStableFunc(lost, func(a, b commit) int { return a.at.Compare(b.at) })
	return lost
}

// part is a tail object: the bytes from start to end of a segment.
type part struct{ start, end uint32 }

// stored is what a bucket holds, as far as its server has answered that it
// does. Keys begin with the archive's prefix.
type stored struct {
	mu    sync.Mutex
	whole map[string]map[segment.Name]bool
	parts map[string]map[segment.Name][]part
	tails int
	last  time.Time // when the last object came
}

// put notes the object of a path: /bucket/prefix/directory/name.
func (s *stored) put(path string) {
	_, key, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = time.Now()
	if prefix, name, ok := strings.Cut(key, "/wal_005/"); ok {
		base, ext, _ := strings.Cut(name, ".")
		if n, err := segment.ParseName(base); err == nil && !strings.Contains(ext, ".") {
			if s.whole[prefix] == nil {
				s.whole[prefix] = map[segment.Name]bool{}
			}
			s.whole[prefix][n] = true
		}
		return
	}
	prefix, name, ok := strings.Cut(key, "/wal_tail_005/")
	if !ok {
		return
	}
	dir, name, _ := strings.Cut(name, "/")
	name, _, _ = strings.Cut(name, ".")
	words := strings.Split(name, "-")
	n, err := segment.ParseName(dir)
	if err != nil || len(words) != 3 {
		return
	}
	start, err1 := strconv.ParseUint(words[0], 16, 32)
	end, err2 := strconv.ParseUint(words[1], 16, 32)
	if err1 != nil || err2 != nil {
		return
	}
	if s.parts[prefix] == nil {
		s.parts[prefix] = map[segment.Name][]part{}
	}
	s.parts[prefix][n] = append(s.parts[prefix][n], part{uint32(start), uint32(end)})
	s.tails++
}

// end returns how far the objects below a prefix go without a gap from the
// start of a segment on, and how far the whole segments alone do.
func (s *stored) end(prefix string, from segment.Name, size segment.Size) (end, whole segment.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := from
	for s.whole[prefix][n] {
		n = n.Next(size)
	}
	end, whole = n.Start(size), n.Start(size)
	for {
		at := uint32(0)
		for longer := true; longer; {
			longer = false
			for _, p := range s.parts[prefix][n] {
				if p.start <= at && p.end > at {
					at, longer = p.end, true
				}
			}
		}
		if s.whole[prefix][n] {
			at = uint32(size)
		}
		end = n.Start(size) + segment.LSN(at)
		if at < uint32(size) {
			return end, whole
		}
		n = n.Next(size)
	}
}

// beyond counts what lies behind the place where that run ends, in segments
// that come later: a segment that is missing is a hole.
func (s *stored) beyond(prefix string, from segment.Name, size segment.Size) (whole, tails int) {
	end, _ := s.end(prefix, from, size)
	s.mu.Lock()
	defer s.mu.Unlock()
	later := func(n segment.Name) bool { return n.Timeline == from.Timeline && n.Start(size) > end }
	for n := range s.whole[prefix] {
		if later(n) {
			whole++
		}
	}
	for n, parts := range s.parts[prefix] {
		if later(n) {
			tails += len(parts)
		}
	}
	return whole, tails
}

// count returns how many tail objects there are, and when the last object of
// any kind came.
func (s *stored) count() (tails int, last time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tails, s.last
}

func TestStoredEnd(t *testing.T) {
	t.Parallel()
	const size = segment.Size(1 << 20)
	first := size.Name(1, 5<<20)
	s := &stored{whole: map[string]map[segment.Name]bool{}, parts: map[string]map[segment.Name][]part{}}
	for _, step := range []struct {
		path       string
		end, whole segment.LSN
	}{
		{"", 5 << 20, 5 << 20},
		{"/b/p/q/wal_tail_005/000000010000000000000005/00000000-00000100-0BADCAFE.lz4", 5<<20 + 0x100, 5 << 20},
		{"/b/p/q/wal_tail_005/000000010000000000000005/00000200-00000300-0BADCAFE.lz4", 5<<20 + 0x100, 5 << 20},
		{"/b/other/wal_tail_005/000000010000000000000005/00000100-00000200-0BADCAFE.lz4", 5<<20 + 0x100, 5 << 20},
		{"/b/p/q/wal_tail_005/000000020000000000000005/00000100-00000200-0BADCAFE.lz4", 5<<20 + 0x100, 5 << 20},
		{"/b/p/q/wal_tail_005/000000010000000000000005/00000080-00000200-0BADCAFE.zst", 5<<20 + 0x300, 5 << 20},
		{"/b/p/q/wal_005/000000010000000000000005.partial.lz4", 5<<20 + 0x300, 5 << 20},
		{"/b/p/q/wal_005/000000010000000000000006.lz4", 5<<20 + 0x300, 5 << 20},
		{"/b/p/q/wal_tail_005/000000010000000000000005/00000300-00100000-0BADCAFE.lz4", 7 << 20, 5 << 20},
		{"/b/p/q/wal_005/000000010000000000000005.lz4", 7 << 20, 7 << 20},
	} {
		s.put(step.path)
		if end, whole := s.end("p/q", first, size); end != step.end || whole != step.whole {
			t.Errorf("with %s the archive ends at %s, with whole segments at %s; want %s and %s", step.path, end, whole, step.end, step.whole)
		}
	}
	s.put("/b/p/q/wal_005/000000010000000000000008.lz4")
	s.put("/b/p/q/wal_tail_005/000000010000000000000009/00000000-00000100-0BADCAFE.lz4")
	s.put("/b/p/q/wal_tail_005/000000020000000000000009/00000000-00000100-0BADCAFE.lz4")
	if whole, tails := s.beyond("p/q", first, size); whole != 1 || tails != 1 {
		t.Errorf("behind the hole are %d segments and %d tail objects", whole, tails)
	}
}

// spread prints the least, the middle and the most of some figures.
func spread[T cmp.Ordered](values []T, show func(T) string) string {
	slices.Sort(values)
	return fmt.Sprintf("min %s, median %s, max %s", show(values[0]), show(values[len(values)/2]), show(values[len(values)-1]))
}
