package bench

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What the issue and README promise of base backups.
const (
	goalBackupClient = 1.0   // wall, times that of pg_basebackup, where the client compresses
	goalBackupServer = 1.1   // the same where the server does
	goalBackupCPU    = 0.7   // seconds a GB of the cluster
	goalBackupPeak   = 128.0 // MiB
)

// The contenders of base backups; those of ours name what they are compared to.
const (
	basebackupServer = "pg_basebackup -Ft server-lz4"
	basebackupClient = "pg_basebackup -Ft client-lz4"
)

// BenchmarkBackup: the same cluster, at rest, backed up by each in turn, with
// the WAL that makes the backup consistent; and restored.
func BenchmarkBackup(b *testing.B) {
	if b.N > 1 {
		b.Skip("one run has all its rounds in it")
	}
	rounds := number(b, "WALFERRY_BENCH_ROUNDS", 3)
	amount := int64(number(b, "WALFERRY_BENCH_MB", 1536)) << 20
	noise := int64(numberFrom(b, 0, "WALFERRY_BENCH_NOISE", 33))
	if noise >= 100 {
		b.Fatalf("WALFERRY_BENCH_NOISE is %d, want less than 100 (per cent of the cluster)", noise)
	}
	over := cmp.Or(os.Getenv("WALFERRY_BENCH_OVER"), overSocket)
	if over != overTCP && over != overSocket {
		b.Fatalf("WALFERRY_BENCH_OVER is %q, want %s or %s", over, overTCP, overSocket)
	}
	w := newWorld(b, over, map[string]string{"max_wal_size": "16GB"})
	w.encrypt()
	if !w.pg.Installation().Has("pg_basebackup") || !w.pg.Installation().Has("pgbench") {
		b.Fatalf("%s has no pg_basebackup or no pgbench: name another in WALFERRY_TEST_PG", w.pg.Installation())
	}
	size := w.fill(amount, noise)
	say("a cluster of %.2f GB, %d %% of it what hardly compresses, and the rest pgbench's; %d rounds, medians;\n"+
		"everything on one machine, the server reached by %s: its CPU time is not counted, but takes its share\n",
		float64(size)/1e9, noise, rounds, map[string]string{overTCP: "TCP", overSocket: "its Unix socket"}[over])
	w.backups(rounds, size)
	w.backupsApart(rounds, size)
	w.restores(rounds, size)
}

// fill makes tables of about so many bytes, of which noise per cent hardly
// compress, and returns the cluster's size.
func (w *world) fill(amount, noise int64) (size int64) {
	w.b.Helper()
	const scale = 15 << 20 // of pgbench, bytes
	w.pgbench("--initialize", "--quiet", fmt.Sprint("--scale=", max(1, amount*(100-noise)/100/scale)))
	w.sql(fmt.Sprintf("CREATE TABLE noise AS SELECT g, (SELECT string_agg(md5(random()::text || g || h), '') FROM generate_series(1, 30) AS h) AS v FROM generate_series(1, %d) AS g", amount*noise/100/1024),
		"CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT")
	w.must(filepath.WalkDir(w.pg.DataDir(), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.Contains(path, "/pg_wal/") {
			return err
		}
		info, err := e.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	}))
	return size
}

// backupContender is one that takes a base backup. kept is a file that the
// backup is not without.
func (w *world) backupContenders() (all []contender, to map[string]string) {
	to = map[string]string{}
	add := func(c contender, reference string) {
		all = append(all, c)
		to[c.name] = reference
	}
	for name, method := range map[string]string{basebackupServer: "server-lz4", basebackupClient: "client-lz4"} {
		add(contender{name: name, command: func(t task) *exec.Cmd {
			return w.account.Command(w.ctx, w.pg.Installation().Program("pg_basebackup"), "--dbname="+w.dsn("postgres"),
				"--pgdata="+filepath.Join(t.dir, "backup"), "--format=tar", "--checkpoint=fast", "--wal-method=stream", "--compress="+method)
		}}, name)
	}
	slices.SortFunc(all, func(a, b contender) int { return strings.Compare(b.name, a.name) })
	for _, binary := range []struct{ name, path string }{{"walferry", w.binary}, {"WALFERRY_BENCH_OTHER", w.other}} {
		if binary.path == "" {
			continue
		}
		for _, method := range []string{"server-lz4", "client-lz4"} {
			reference := basebackupServer
			if method == "client-lz4" {
				reference = basebackupClient
			}
			add(contender{name: binary.name + " " + method + ", directory", command: func(t task) *exec.Cmd {
				w.must(w.account.MkdirAll(filepath.Join(t.dir, "archive")))
				return t.create(binary.path, "file://"+filepath.Join(t.dir, "archive"), method)
			}}, reference)
			if w.s3 == nil {
				continue
			}
			add(contender{name: binary.name + " " + method + ", S3", s3: true, command: func(t task) *exec.Cmd {
				return t.create(binary.path, t.bucketURL(), method)
			}}, reference)
		}
	}
	return all, to
}

// create is the command line of "backup create".
func (t task) create(binary, store, method string) *exec.Cmd {
	cmd := t.w.account.Command(t.w.ctx, binary, "backup", "create", "-d", t.w.dsn("postgres"), "--store", store, "--wal", "include", "--compress", method)
	cmd.Env = append(cmd.Env, "HOME="+t.dir)
	if t.w.s3 != nil {
		cmd.Env = append(cmd.Env, t.w.user.Env()...)
	}
	return cmd
}

// measure runs a contender in a directory of its own. warm is how many bytes of
// memory it will need, files included.
func (w *world) measure(c contender, t task, warm int64) (figures, error) {
	w.b.Helper()
	syscall.Sync()
	w.must(warmMemory(warm))
	server, store := w.busy()
	r, err := c.start(t)
	if err != nil {
		return figures{}, err
	}
	w.must(w.bound.add(r.cmd.Process.Pid))
	f, err := r.wait()
	server2, store2 := w.busy()
	f.server, f.store = server2-server, store2-store
	return f, err
}

// busy is the CPU time that the PostgreSQL server and the store have taken.
func (w *world) busy() (server, store time.Duration) {
	server = cpuTime(w.pg.Pid())
	if w.s3 != nil {
		store = cpuTime(w.s3.Pid())
	}
	return server, store
}

// inTurns lets each of those that can take a backup take one in every round.
func (w *world) inTurns(all []contender, rounds int, size int64) (able []contender, used map[string][]figures) {
	w.b.Helper()
	used = map[string][]figures{}
	for _, c := range all { // also reads each program, and the cluster, from the disk
		t := w.task("backup", 0)
		_, err := w.measure(c, t, 2*size)
		t.clear()
		if err != nil && (w.ctx.Err() != nil || strings.HasPrefix(c.name, "walferry")) {
			w.must(err)
		}
		if err != nil {
			loud("%s is left out: %v", c.name, err)
			continue
		}
		able = append(able, c)
	}
	for round := range rounds {
		for turn := range able {
			c := able[(turn+round)%len(able)]
			t := w.task("backup", 0)
			f, err := w.measure(c, t, 2*size)
			w.must(err)
			t.clear()
			used[c.name] = append(used[c.name], f)
			say("round %d of %d  %-32s  %6.2f s  %5.2f s of CPU  %5.1f MiB", round+1, rounds, c.name, f.wall.Seconds(), f.cpu.Seconds(), mib(f))
		}
	}
	return able, used
}

func backupTable(able []contender, to map[string]string, used map[string][]figures, size int64) table {
	gb := float64(size) / 1e9
	t := table{{"", "wall s", "(min to max)", "MB/s", "CPU s/GB", "peak MiB", "wall ×", "server's CPU", "store's"}}
	for _, c := range able {
		s := sum(used[c.name])
		t.row(c.name, fmt.Sprintf("%.2f", s.wall), fmt.Sprintf("(%.2f to %.2f)", s.least, s.most), fmt.Sprintf("%.0f", gb*1e3/s.wall),
			fmt.Sprintf("%.2f", s.cpu/gb), fmt.Sprintf("%.1f", s.peak), ratio(s.wall, sum(used[to[c.name]]).wall),
			fmt.Sprintf("%.2f", s.server/gb), fmt.Sprintf("%.2f", s.store/gb))
	}
	return t
}

// backups lets all take turns, and prints what it took.
func (w *world) backups(rounds int, size int64) {
	all, to := w.backupContenders()
	able, used := w.inTurns(all, rounds, size)
	say("\n%s\n× are to pg_basebackup with the same compression, which checks nothing and ships nothing;\n"+
		"the server and the S3 store work on the same %d processors: theirs is in seconds a GB, too\n", backupTable(able, to, used, size), cores())
	gb := float64(size) / 1e9
	for _, c := range able {
		if !strings.HasPrefix(c.name, "walferry") {
			continue
		}
		s, goal := sum(used[c.name]), goalOf(to[c.name])
		if reference := sum(used[to[c.name]]).wall; reference == 0 {
			say("goal of %s: wall at most %.1f × %s: NOT MEASURED", c.name, goal, to[c.name])
		} else {
			say("goal of %s: wall at most %.1f × %s: %.2f: %s", c.name, goal, to[c.name], s.wall/reference, met(s.wall/reference, goal))
		}
		say("goal of %s: CPU at most %.1f s/GB: %.2f: %s", c.name, goalBackupCPU, s.cpu/gb, met(s.cpu/gb, goalBackupCPU))
		say("goal of %s: peak memory below %.0f MiB: %.1f: %s", c.name, goalBackupPeak, s.peak, met(s.peak, goalBackupPeak))
	}
	say("")
}

// goalOf is how long those may take that are compared to a reference, in its times.
func goalOf(reference string) float64 {
	if reference == basebackupClient {
		return goalBackupClient
	}
	return goalBackupServer
}

// backupsApart takes the backups again with processors of their own for the
// server, for who takes the backup, and for the store, as hosts of their own have
// them, of which the server's one process uses one. The others then take nothing
// away from what is measured.
func (w *world) backupsApart(rounds int, size int64) {
	w.b.Helper()
	if w.s3 == nil {
		return
	}
	// One processor and two, on a scale that leaves a whole one to the store: for
	// what hardly compresses it takes more than both.
	const ofServer, ofClient, ofStore = 0.33, 0.66, 1.0
	if cores() < 2 {
		loud("one processor cannot be shared out: the backups with processors of their own are left out")
		return
	}
	var bounds [3]*bound
	for i, of := range []float64{ofServer, ofClient, ofStore} {
		b, err := newBound(w.b, fmt.Sprintf("walferry-bench-%d-%d", os.Getpid(), i), of)
		if err != nil {
			loud("the backups with processors of their own are left out: %v", err)
			return
		}
		bounds[i] = b
	}
	servers, err := family(w.pg.Pid())
	w.must(err)
	w.must(bounds[0].add(servers...))
	w.must(bounds[2].add(w.s3.Pid()))
	w.bound = bounds[1]
	defer func() {
		w.bound = nil
		for _, b := range bounds {
			w.must(b.empty())
		}
	}()
	all, to := w.backupContenders()
	say("with %.2f of a processor for the server, twice that for who takes the backup, and %.0f for the store:\n", ofServer, ofStore)
	able, used := w.inTurns(all, rounds, size)
	say("\n%s", backupTable(able, to, used, size))
	for _, c := range able {
		reference := sum(used[to[c.name]]).wall
		if !strings.HasPrefix(c.name, "walferry") || reference == 0 {
			continue
		}
		got, goal := sum(used[c.name]).wall/reference, goalOf(to[c.name])
		say("goal of %s, apart: wall at most %.1f × %s: %.2f: %s", c.name, goal, to[c.name], got, met(got, goal))
	}
	say("")
}

// summed are the medians of a contender's rounds.
type summed struct{ wall, least, most, cpu, peak, server, store float64 }

func sum(rounds []figures) (s summed) {
	if len(rounds) == 0 {
		return s
	}
	var walls, cpus, peaks, servers, stores []float64
	for _, f := range rounds {
		walls, cpus, peaks = append(walls, f.wall.Seconds()), append(cpus, f.cpu.Seconds()), append(peaks, mib(f))
		servers, stores = append(servers, f.server.Seconds()), append(stores, f.store.Seconds())
	}
	return summed{median(walls), slices.Min(walls), slices.Max(walls), median(cpus), median(peaks), median(servers), median(stores)}
}

// restores brings the same cluster back: pg_basebackup's own tar by tar, ours by
// walferry; beside what the disk takes for so many bytes in one file. All end
// when everything is on the disk.
func (w *world) restores(rounds int, size int64) {
	w.b.Helper()
	source := w.task("restore", 0)
	defer source.clear()
	for _, c := range []*exec.Cmd{
		w.account.Command(w.ctx, w.pg.Installation().Program("pg_basebackup"), "--dbname="+w.dsn("postgres"),
			"--pgdata="+filepath.Join(source.dir, "tar"), "--format=tar", "--checkpoint=fast", "--wal-method=none"),
		w.prepared(source),
		w.preparedS3(source),
	} {
		if c == nil {
			continue
		}
		if out, err := c.CombinedOutput(); err != nil {
			w.must(fmt.Errorf("%s: %w\n%s", strings.Join(c.Args, " "), err, out))
		}
	}
	target := filepath.Join(source.dir, "target")
	restore := func(store string) func(task) *exec.Cmd {
		return func(t task) *exec.Cmd {
			cmd := w.account.Command(w.ctx, w.binary, "restore", "-D", target, "--store", store)
			cmd.Env = append(cmd.Env, "HOME="+t.dir)
			if w.s3 != nil {
				cmd.Env = append(cmd.Env, w.user.Env()...)
			}
			return cmd
		}
	}
	const byTar = "tar -x of pg_basebackup -Ft, and sync"
	all := []contender{
		{name: byTar, command: func(task) *exec.Cmd {
			return w.account.Command(w.ctx, "/bin/sh", "-ec", `mkdir -m 700 "$1"; tar -x -f "$2"/base.tar -C "$1"; sync -f "$1"`, "sh", target, filepath.Join(source.dir, "tar"))
		}},
		{name: "walferry restore, directory", command: restore("file://" + filepath.Join(source.dir, "archive"))},
	}
	if w.s3 != nil {
		all = append(all, contender{name: "walferry restore, S3", command: restore(source.bucketURL())})
	}
	used := map[string][]figures{}
	var disk []float64
	for round := range rounds {
		disk = append(disk, w.diskSpeed(filepath.Join(source.dir, "one file"), size))
		for turn := range all {
			c := all[(turn+round)%len(all)]
			f, err := w.measure(c, source, 2*size)
			w.must(err)
			if _, err := os.Stat(filepath.Join(target, "global", "pg_control")); err != nil {
				w.must(fmt.Errorf("%s has restored nothing: %w", c.name, err))
			}
			w.must(errors.Join(os.RemoveAll(target), os.RemoveAll(target+".walferry.yaml")))
			used[c.name] = append(used[c.name], f)
			say("round %d of %d  %-40s  %6.2f s  %5.2f s of CPU  %5.1f MiB", round+1, rounds, c.name, f.wall.Seconds(), f.cpu.Seconds(), mib(f))
		}
	}
	gb := float64(size) / 1e9
	t := table{{"", "wall s", "(min to max)", "MB/s", "CPU s/GB", "peak MiB", "wall ×"}}
	for _, c := range all {
		s := sum(used[c.name])
		t.row(c.name, fmt.Sprintf("%.2f", s.wall), fmt.Sprintf("(%.2f to %.2f)", s.least, s.most), fmt.Sprintf("%.0f", gb*1e3/s.wall),
			fmt.Sprintf("%.2f", s.cpu/gb), fmt.Sprintf("%.1f", s.peak), ratio(s.wall, sum(used[byTar]).wall))
	}
	t.row("so many bytes into one file, and sync", fmt.Sprintf("%.2f", median(disk)), fmt.Sprintf("(%.2f to %.2f)", slices.Min(disk), slices.Max(disk)),
		fmt.Sprintf("%.0f", gb*1e3/median(disk)), "", "", ratio(median(disk), sum(used[byTar]).wall))
	say("\n%s\n× are to tar, which checks nothing\n", t)
}

// prepared takes the backup that is restored from a directory.
func (w *world) prepared(t task) *exec.Cmd {
	w.must(w.account.MkdirAll(filepath.Join(t.dir, "archive")))
	return t.create(w.binary, "file://"+filepath.Join(t.dir, "archive"), "server-lz4")
}

// preparedS3 takes the one that is restored from S3; nil where there is none.
func (w *world) preparedS3(t task) *exec.Cmd {
	if w.s3 == nil {
		return nil
	}
	return t.create(w.binary, t.bucketURL(), "server-lz4")
}

// diskSpeed is how many seconds it takes to write so many bytes into a file, and
// to have them on the disk.
func (w *world) diskSpeed(file string, size int64) float64 {
	w.b.Helper()
	syscall.Sync()
	piece := make([]byte, 1<<20)
	for i := range piece {
		piece[i] = byte(i * i >> 3)
	}
	began := time.Now()
	f, err := os.Create(file)
	w.must(err)
	for left := size; left > 0; left -= int64(len(piece)) {
		_, err := f.Write(piece)
		w.must(err)
	}
	w.must(errors.Join(f.Sync(), f.Close()))
	took := time.Since(began)
	w.must(os.Remove(file))
	return took.Seconds()
}
