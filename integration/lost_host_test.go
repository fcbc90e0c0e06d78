package integration

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/segment"
)

// lostHost is a scene whose server keeps no more WAL than the slots ask for,
// and with a witness: pg_receivewal on a slot of its own, whose directory says
// what the server's bytes were when the server has them no longer.
type lostHost struct {
	*bucketScene
	witness string // the directory
	keeper  *process
	first   segment.Name
}

func newLostHost(t *testing.T) *lostHost {
	t.Helper()
	s := &lostHost{bucketScene: newBucketScene(t, options{settings: map[string]string{
		"wal_keep_size": "0", "min_wal_size": "2MB", "max_wal_size": "8MB",
	}})}
	i := s.pg.Installation()
	if !i.Has("pg_receivewal") || !i.Has("pgbench") {
		t.Skipf("NOT TESTED: %s lacks pg_receivewal or pgbench", i)
	}
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	s.witness = filepath.Join(s.dir, "witness")
	if err := theLab.account.MkdirAll(s.witness); err != nil {
		t.Fatal(err)
	}
	s.bench("--initialize", "--scale=1", "--quiet").exits(0)
	s.sql("SELECT pg_create_physical_replication_slot('witness', true)")
	s.keeper = start(t, nil, i.Program("pg_receivewal"), "--dbname="+s.pg.DSN("postgres"), "--slot=witness",
		"--directory="+s.witness, "--status-interval=1", "--no-loop")
	return s
}

// bench starts pgbench.
func (s *lostHost) bench(args ...string) *process {
	s.t.Helper()
	return start(s.t, libpq(s.pg), s.pg.Installation().Program("pgbench"), args...)
}

// burst starts a load that writes several segments, and fewer than the hold
// also when every page goes into the WAL whole.
func (s *lostHost) burst() *process {
	s.t.Helper()
	return s.bench("--client=4", "--jobs=1", "--no-vacuum", "--transactions=400", "--rate=1500")
}

// pause waits up to a second, with a checkpoint now and then. No other clock
// decides at which instruction the receiver is hit.
func (s *lostHost) pause(random *rand.Rand) {
	for range random.IntN(4) {
		time.Sleep(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
		if random.IntN(2) == 0 {
			s.sql("CHECKPOINT")
		}
	}
}

// lose kills the receiver and deletes its spool. It returns how many whole
// segments were there and nowhere else, and the slot's restart_lsn.
func (s *lostHost) lose(r *process) (alone int, restart segment.LSN) {
	s.t.Helper()
	if !r.running() {
		s.t.Fatalf("the receiver ended by itself: %v", r.err)
	}
	r.kill9()
	archived := s.sealed()
	entries, err := os.ReadDir(s.spool)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		n, err := segment.ParseName(e.Name())
		if _, ok := archived[n]; err == nil && !ok {
			alone++
		}
	}
	if err := os.RemoveAll(s.spool); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the server to notice that the receiver is gone", func() bool {
		return s.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'ferry'") == "f"
	})
	return alone, s.restartLSN()
}

// removeWAL lets the server remove all WAL that the slot does not ask for.
func (s *lostHost) removeWAL(restart segment.LSN) {
	s.t.Helper()
	eventually(s.t, "the server to remove the WAL before "+restart.String(), func() bool {
		s.sql("CHECKPOINT")
		// Those that were only renamed for later use have higher names.
		oldest, err := segment.ParseName(s.sql("SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'"))
		if err != nil {
			s.t.Fatal(err)
		}
		return oldest == s.size.Name(1, restart)
	})
}

// archiveEnd is the end of the gapless run of segments in the archive.
func (s *lostHost) archiveEnd() segment.LSN {
	s.t.Helper()
	sealed := s.sealed()
	n := s.first
	for {
		if _, ok := sealed[n]; !ok {
			return n.Start(s.size)
		}
		n = n.Next(s.size)
	}
}

// compareWithWitness wants the archive to be gapless and the witness's own.
func (s *lostHost) compareWithWitness(last segment.Name) {
	s.t.Helper()
	eventually(s.t, "the witness to have the last segment", func() bool {
		_, err := os.Stat(filepath.Join(s.witness, last.String()))
		return err == nil
	})
	s.keeper.signal(syscall.SIGINT)
	s.keeper.exits(0)
	sealed := s.sealed()
	count := 0
	for n := s.first; n.Compare(last) <= 0; n = n.Next(s.size) {
		ext, ok := sealed[n]
		if !ok {
			s.t.Errorf("segment %s is missing in the archive: a gap", n)
			continue
		}
		got, err := decode(filepath.Join(s.archive, "wal_005", n.String()+"."+ext))
		if err != nil {
			s.t.Errorf("segment %s: %v", n, err)
			continue
		}
		want, err := os.ReadFile(filepath.Join(s.witness, n.String()))
		if err != nil {
			s.t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			s.t.Errorf("segment %s is not what the witness has", n)
		}
		count++
	}
	s.t.Logf("%d segments, from %s to %s, are the witness's own bytes", count, s.first, last)
}

// The receiver's host is lost at random moments under load: the process, and
// the spool with all that was in it alone. The server has removed what the slot
// did not ask for. Since the slot was never told more than what is in the
// archive (the hold), a new receiver with an empty spool goes on without a gap.
func TestLostHost(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	s := newLostHost(t)
	r := s.ferry(nil, "receive")
	s.first = s.slotSegment()
	var alone, moved int
	before := s.restartLSN()
	n := rounds(2, 20)
	for round := range n {
		// A store that needs its time: much is in the spool alone.
		s.proxy.Slow(time.Duration(random.Int64N(int64(500 * time.Millisecond))))
		load := s.burst()
		s.pause(random)
		lost, restart := s.lose(r)
		if lost > 0 {
			alone++
		}
		if restart > before {
			moved++
		}
		before = restart
		if end := s.archiveEnd(); restart > end && s.size.Name(1, restart) != s.first {
			t.Errorf("round %d: the slot was told %s, but the archive ends at %s", round, restart, end)
		}
		s.pause(random)
		s.removeWAL(restart)
		r = s.ferry(nil, "receive")
		load.exits(0)
		// More than the hold on this host alone would be the end of the hold.
		eventually(t, "the new receiver to come near", func() bool {
			if !r.running() {
				t.Fatalf("round %d: the new receiver ended: %v", round, r.err)
			}
			now, err := segment.ParseLSN(s.currentLSN())
			return err == nil && now-s.archiveEnd() < 8<<20
		})
		if t.Failed() {
			t.Fatalf("in round %d of %d", round, n)
		}
	}
	s.proxy.Slow(0)
	last := s.switchWAL()
	s.awaitSealed(s.first, last)
	r.stop()
	s.compareWithWitness(last)
	t.Logf("lost %d times: %d times with whole segments that were nowhere else, %d times the slot had moved", n, alone, moved)
	if n >= 20 && (alone == 0 || moved == 0) {
		t.Error("the hosts were not lost when it mattered")
	}
}

// The counter-proof: without the hold the slot is told what the spool has, and
// with the host that is lost. The new receiver sees the gap and refuses.
func TestLostHostWithoutTheHold(t *testing.T) {
	t.Parallel()
	s := newLostHost(t)
	r := s.ferry(nil, "receive", "--hold", "0")
	s.first = s.slotSegment()
	s.awaitSealed(s.first, s.switchWAL()) // an archive that begins and works
	s.proxy.Inject(s3server.BlackHole, "PUT wal_005", -1)
	end := s.archiveEnd()
	s.burst().exits(0)
	s.switchWAL()
	eventually(t, "the slot to be told what only the spool has", func() bool {
		return s.restartLSN() >= end+segment.LSN(s.size)
	})
	lost, restart := s.lose(r)
	if lost == 0 {
		t.Error("nothing was in the spool alone")
	}
	s.removeWAL(restart)
	s.proxy.Heal()
	r = s.ferry(nil, "receive")
	r.exits(3)
	r.awaitLog("(?i)gap|already been removed")
}
