package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/restore/instance"
)

// unfinished wants what a "backup create" that was ended has left to be no
// backup, or a whole one: known are the backups from before. It returns those
// that there are now.
func (o *operator) unfinished(what string, known []string) []string {
	o.t.Helper()
	l := o.list()
	var now []string
	for _, b := range l.Backups {
		now = append(now, b.Name)
		if slices.Contains(known, b.Name) {
			continue
		}
		// Killed so late that it was there.
		if b.Error != nil || b.WALComplete == nil || !*b.WALComplete {
			o.t.Errorf("%s: the list shows %+v", what, b)
			continue
		}
		o.checkLayout(b.Name)
	}
	for _, name := range known {
		if !slices.Contains(now, name) {
			o.t.Errorf("%s: backup %s is gone", what, name)
		}
	}
	return now
}

// "backup create" is killed at random moments. What it leaves is no backup, or a
// whole one, and hinders nothing: the next one works, and restores.
func TestKillBackup(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	s := newScene(t, options{})
	r := s.receive()
	s.slotSegment()
	s.table()
	s.fill(1000)
	o := s.operator()
	begin := time.Now()
	known := []string{o.backup()}
	took := time.Since(begin)
	home := everything(t, s.home)
	early, late := 0, 0
	n := rounds(3, 60)
	for round := range n {
		what := fmt.Sprint("round ", round)
		ways := [][]string{nil, {"--compress", "none"}, {"--compress", "client-zstd"}, {"--wal", "include"}}
		p := o.create(ways[random.IntN(len(ways))]...)
		time.Sleep(time.Duration(random.Int64N(int64(took * 5 / 4))))
		p.kill9()
		now := o.unfinished(what, known)
		if len(now) > len(known) {
			late++
		} else if len(partsOf(t, s.archive)) == len(now)*2 {
			early++
		}
		known = now
		if t.Failed() {
			return
		}
	}
	// Nothing of large parts is left beside the spool: they have no names.
	if after := everything(t, s.home); !slices.Equal(home, after) {
		t.Errorf("in the home directory is %v, and before there was %v", after, home)
	}
	t.Logf("killed %d times, of which %d had a whole backup and about %d had stored nothing", n, late, early)
	name := o.backup()
	eventually(t, "the server to know that all are gone", func() bool {
		return s.sql("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walferry_backup'") == "0" &&
			s.sql("SELECT count(*) FROM pg_replication_slots") == "1"
	})
	s.awaitShipped()
	r.stop()
	pg := o.restored("restored", "--backup", name)
	o.verify(pg.DataDir(), false)
	o.recovers(pg)
	if got := rows(s.ctx(), pg); got != 1000 {
		t.Errorf("%d rows were restored, want 1000", got)
	}
}

// "backup create" is killed in each of its requests to the store: before the
// store sees it, and when the store has done it and the answer is on its way.
func TestKillBackupInEveryRequest(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry(nil, "receive")
	s.slotSegment()
	s.table()
	s.fill(500)
	o := s.operator()
	const ours = "basebackups_005"
	s.proxy.ResetCounts()
	known := []string{o.backup()}
	requests := 0
	for name, n := range s.proxy.Counts() {
		if strings.HasSuffix(name, ours) {
			requests += n
		}
	}
	type stage struct {
		nth   int
		fault s3server.Fault
	}
	var stages []stage
	for nth := range requests {
		stages = append(stages, stage{nth + 1, s3server.BlackHole}, stage{nth + 1, s3server.Withhold})
	}
	if !theLab.full {
		// The last two are those of the sentinel.
		random.Shuffle(len(stages)-2, func(i, j int) { stages[i], stages[j] = stages[j], stages[i] })
		stages = stages[len(stages)-5:]
	}
	complete := 0
	for _, st := range stages {
		what := fmt.Sprintf("request %d of %d, %s", st.nth, requests, st.fault)
		caught := s.proxy.Catch(st.fault, ours, st.nth)
		p := o.create()
		select {
		case <-caught:
		case <-p.done:
			if code := p.wait(); code != 0 {
				t.Fatalf("%s: it ended with %d", what, code)
			}
			// Its requests are not always the same number.
		case <-time.After(patience):
			t.Fatalf("%s: it does not come", what)
		}
		p.kill9()
		s.proxy.Heal()
		now := o.unfinished(what, known)
		if len(now) > len(known) {
			complete++
			if st.fault == s3server.BlackHole && p.cmd.ProcessState.ExitCode() != 0 {
				t.Errorf("%s: it had stored everything with a request to come", what)
			}
		}
		known = now
		if t.Failed() {
			return
		}
	}
	t.Logf("killed in %d stages of %d requests, %d times with a whole backup", len(stages), requests, complete)
	name := o.backup()
	s.awaitShipped()
	r.stop()
	pg := o.restored("restored", "--backup", name)
	o.verify(pg.DataDir(), false)
	o.recovers(pg)
	if got := rows(s.ctx(), pg); got != 500 {
		t.Errorf("%d rows were restored, want 500", got)
	}
}

// An interrupt ends "backup create" and "restore" with one line. No upload is
// left, the server is told, list shows nothing, and what was restored by half
// does not start.
func TestInterruptBackupAndRestore(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	// It may take its own uploads back.
	s.s3.SetPolicy(t, bucket, s.user, "s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:AbortMultipartUpload", "s3:ListBucketMultipartUploads")
	r := s.ferry(nil, "receive")
	s.slotSegment()
	s.table()
	s.fill(500)
	o := s.operator()
	known := []string{o.backup()}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		p := o.create(slowly(4)...)
		eventually(t, "the backup to be under way", func() bool {
			return s.sql("SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 1000000") == "1" || !p.running()
		})
		p.signal(sig)
		p.failed(1, `interrupted`)
		if p.stdout.String() != "" {
			t.Errorf("it printed %q", p.stdout.String())
		}
		if now := o.unfinished(sig.String(), known); !slices.Equal(now, known) {
			t.Errorf("%s: the backups are %v", sig, now)
		}
		if left := s.s3.Uploads(t, bucket); len(left) > 0 {
			t.Errorf("%s: uploads are left: %v", sig, left)
		}
		eventually(t, "the server to be told", func() bool { return s.sql("SELECT count(*) FROM pg_stat_progress_basebackup") == "0" })

		dir := filepath.Join(s.home, "new")
		s.proxy.ResetCounts()
		o.restore(filepath.Join(s.home, "whole")).exits(0)
		caught := s.proxy.Catch(s3server.BlackHole, "GET basebackups_005", s.proxy.Counts()["GET basebackups_005"])
		p = o.restore(dir)
		select {
		case <-caught:
		case <-time.After(patience):
			t.Fatal("the restore does not come to its last request")
		}
		begin := time.Now()
		p.signal(sig)
		p.failed(1, `interrupted`)
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: it ended after %s", sig, took)
		}
		s.proxy.Heal()
		absent(t, filepath.Join(dir, "global", "pg_control"))
		o.restore(dir, "--force").exits(0)
		o.verify(dir, false)
		if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(filepath.Join(s.home, "whole"))); err != nil {
			t.Fatal(err)
		}
	}
	r.stop()
}

// "restore" is killed at random moments, and each time that something of it
// appears. A server does not start in what it leaves, or is one with every row;
// and with --force the restore is done once more.
func TestKillRestore(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	s := newScene(t, options{})
	r := s.receive()
	s.slotSegment()
	s.table()
	s.fill(500)
	o := s.operator()
	// The WAL in the first would let a server start without the rest of it.
	backups := []string{o.backup("--wal", "include"), o.backup()}
	s.fill(500)
	s.awaitShipped()
	r.stop()
	const want = 1000
	begin := time.Now()
	o.restore(filepath.Join(s.home, "whole")).exits(0)
	took := time.Since(begin)

	stages := []string{"base/1", "backup_label", "global/pg_control", "backup_manifest", "pg_wal", "recovery.signal", "../data.walferry.yaml"}
	if theLab.full {
		stages = slices.Repeat(stages, 4)
	} else {
		random.Shuffle(len(stages), func(i, j int) { stages[i], stages[j] = stages[j], stages[i] })
		stages = append(stages[:2], "global/pg_control")
	}
	for range rounds(2, 40) {
		stages = append(stages, "")
	}
	refused, started := 0, 0
	for round, stage := range stages {
		name := backups[random.IntN(2)]
		what := fmt.Sprintf("round %d, of %s, when there is %q", round, name, stage)
		var dir string
		pg := o.restoredBy(fmt.Sprint("restored", round), func(d string) error {
			dir = d
			p := o.restore(dir, "--backup", name)
			if stage == "" {
				time.Sleep(time.Duration(random.Int64N(int64(took * 5 / 4))))
			} else {
				o.awaitFile(p, filepath.Join(dir, stage), random)
			}
			p.kill9()
			if _, err := os.Stat(dir); err == nil {
				return nil
			}
			return theLab.account.MkdirAll(dir) // killed before it was made
		})
		if o.starts(pg, what, want) {
			started++
		} else {
			refused++
		}
		p := o.restore(dir, "--backup", name, "--force")
		p.exits(0)
		o.verify(dir, name == backups[0])
		o.recovers(pg)
		if got := rows(s.ctx(), pg); got != want {
			t.Errorf("%s: %d rows were restored with --force, want %d", what, got, want)
		}
		if err := pg.Remove(s.ctx()); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("killed %d times: in %d of the directories no server started, and %d were whole", len(stages), refused, started)
}

// awaitFile waits, without a pause, until a file is there, or the process has
// ended. Half of the times it waits a moment longer.
func (o *operator) awaitFile(p *process, path string, random *rand.Rand) {
	o.t.Helper()
	for end := time.Now().Add(patience); p.running(); {
		if _, err := os.Lstat(path); err == nil {
			if random.IntN(2) == 0 {
				time.Sleep(time.Duration(random.Int64N(int64(20 * time.Millisecond))))
			}
			return
		}
		if time.Now().After(end) {
			o.t.Fatalf("waited %s in vain for %s", patience, path)
		}
	}
}

// starts tells whether a server starts in what an unfinished restore has left.
// One that does must have recovered from the archive and have every row.
func (o *operator) starts(pg *instance.Server, what string, want int) bool {
	t := o.t
	t.Helper()
	if err := pg.Launch(o.ctx()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(o.ctx(), patience/2)
	defer cancel()
	// pg_control may be that of a primary until recovery has begun.
	err := pg.AwaitReady(ctx)
	if err == nil {
		err = pg.AwaitPrimary(ctx)
	}
	if errors.Is(err, instance.ErrExited) {
		return false
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if got := rows(o.ctx(), pg); got != want {
		t.Errorf("%s: a server starts, and has %d rows, want %d", what, got, want)
	}
	if _, err := os.Stat(filepath.Join(pg.DataDir(), "pg_wal", "00000002.history")); err != nil {
		t.Errorf("%s: a server starts that was not recovered from the archive (%v)", what, err)
	}
	if err := pg.Kill(o.ctx()); err != nil {
		t.Fatal(err)
	}
	return true
}
