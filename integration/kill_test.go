package integration

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/segment"
)

// seeded returns a source of random choices, whose seed is in the test's log.
// $WALFERRY_SEED makes the same choices again.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("WALFERRY_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("WALFERRY_SEED: %v", err)
		}
	}
	t.Logf("the seed is %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// rounds is how often something random is done: few times where every commit
// has to wait for it.
func rounds(few, full int) int {
	if theLab.full {
		return full
	}
	return few
}

// The receiver is killed at random moments under load, from its very start
// to the middle of its work, and started again each time. At no time has the
// server been told that it need not keep what is neither in the spool nor in
// the archive, and in the end the archive is gapless and the server's own.
func TestKillRounds(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	// The server keeps all WAL of all rounds for the comparison.
	s := newScene(t, options{settings: map[string]string{"wal_keep_size": "32GB", "max_wal_size": "32GB"}})
	// With the hold the server keeps what is not in the archive, and nothing
	// hangs on the spool; without it, it keeps what is not in the spool.
	receive := func() *process { return s.receive("--hold", []string{"0", "32MB"}[random.IntN(2)]) }
	r := receive()
	first := s.slotSegment()
	l := s.pgbench()
	var moved, inSpool, early int
	before := s.restartLSN()
	n := rounds(3, 200)
	for round := range n {
		// No other clock decides at which instruction it is hit. How far it gets
		// in such a time hangs on the machine, so that some kills wait until it is
		// at its work.
		pause := func() { time.Sleep(time.Duration(random.Int64N(int64(450 * time.Millisecond)))) }
		if random.IntN(3) == 0 {
			eventually(t, "restart_lsn to move", func() bool { return !r.running() || s.restartLSN() > before })
		}
		pause()
		// Without its storage it tells the server what the spool holds. (A
		// start without it is refused.)
		streams := s.sql("SELECT count(*) FROM pg_stat_replication") != "0"
		away := random.IntN(3) == 0 && streams
		if away {
			s.move(s.archive, s.archive+".away")
		}
		pause()
		if random.IntN(10) == 0 {
			s.sql("CHECKPOINT") // behind it every page goes into the WAL whole: more of it
		}
		if !r.running() {
			t.Fatalf("round %d: the receiver ended by itself: %v", round, r.err)
		}
		if !streams {
			early++
		}
		r.kill9()
		eventually(t, "the server to notice that the receiver is gone", func() bool {
			return s.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0"
		})
		if away {
			s.move(s.archive+".away", s.archive)
		}
		restart := s.restartLSN()
		if restart < before {
			t.Errorf("round %d: restart_lsn went back from %s to %s", round, before, restart)
		}
		if restart > before {
			moved++
		}
		before = restart
		if s.held(first, restart) {
			inSpool++
		}
		if t.Failed() {
			t.Fatalf("in round %d of %d", round, n)
		}
		r = receive()
	}
	l.stop()
	last := s.switchWAL()
	s.awaitSealed(first, last)
	r.stop()
	s.checkArchive(first, last)
	t.Logf("killed %d times: restart_lsn had moved in %d rounds and hung on the spool alone in %d; %d kills hit at or soon after the start",
		n, moved, inSpool, early)
	if n > 20 && (moved < n/10 || inSpool == 0 || early == 0) {
		t.Error("the kills did not hit what they were meant to")
	}
}

func (s *scene) move(from, to string) {
	s.t.Helper()
	if err := os.Rename(from, to); err != nil {
		s.t.Fatal(err)
	}
}

// restartLSN is the slot's, which must exist.
func (s *scene) restartLSN() segment.LSN {
	s.t.Helper()
	lsn, err := segment.ParseLSN(s.sql("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'ferry'"))
	if err != nil {
		s.t.Fatal(err)
	}
	return lsn
}

// held wants every byte from the segment first up to an LSN to be in the
// archive or in the spool, and what the spool holds of it to be the server's
// own. It tells whether some of it is in the spool alone. No receiver runs.
func (s *scene) held(first segment.Name, upTo segment.LSN) (inSpool bool) {
	s.t.Helper()
	archived := s.sealed()
	spool := map[string]bool{}
	for _, name := range spooled(s.t, s.spool) {
		spool[name] = true
	}
	for seg := first; seg.Start(s.size) < upTo; seg = seg.Next(s.size) {
		if _, ok := archived[seg]; ok {
			continue // compared when all is over
		}
		need := int(min(upTo-seg.Start(s.size), segment.LSN(s.size)))
		name := seg.String()
		if !spool[name] {
			name += ".partial"
		}
		if !spool[name] {
			s.t.Errorf("restart_lsn is %s, but segment %s is neither in the archive nor in the spool (%s)",
				upTo, seg, strings.Join(spooled(s.t, s.spool), " "))
			continue
		}
		inSpool = true
		got, err := os.ReadFile(filepath.Join(s.spool, name))
		if err != nil {
			s.t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(s.pg.DataDir(), "pg_wal", seg.String()))
		if err != nil {
			s.t.Fatal(err)
		}
		if len(got) < need || !bytes.Equal(got[:need], want[:need]) {
			s.t.Errorf("restart_lsn is %s, but the spool's %s is not the server's up to there", upTo, name)
		}
	}
	return inSpool
}
