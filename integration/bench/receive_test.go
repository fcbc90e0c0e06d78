package bench

import (
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/walferry/walferry/segment"
)

// What issue and README promise of a receiver that has its spool and ships
// what it receives.
const (
	goalWall = 1.1  // times that of base
	goalCPU  = 2.2  // seconds a GiB
	goalPeak = 64.0 // MiB
)

// BenchmarkReceive: the same WAL, as fast as it goes, by each in turn.
func BenchmarkReceive(b *testing.B) {
	if b.N > 1 {
		b.Skip("one run has all its rounds in it")
	}
	rounds := number(b, "WALFERRY_BENCH_ROUNDS", 3)
	amount := int64(number(b, "WALFERRY_BENCH_MB", 1024)) << 20
	w := newWorld(b, overSocket, map[string]string{"max_wal_size": "1TB", "wal_keep_size": "1TB"})
	w.encrypt()
	if !w.pg.Installation().Has("pgbench") {
		b.Fatalf("%s has no pgbench: name another in WALFERRY_TEST_PG", w.pg.Installation())
	}
	w.pgbench("--initialize", "--scale=50", "--quiet")
	all := w.able()
	w.sql("CHECKPOINT")
	slot := func(contender, round int) string { return fmt.Sprintf("c%d_round%d", contender, round) }
	var start segment.LSN
	for i := range all {
		for round := range rounds {
			at := w.makeSlot(slot(i, round))
			if start != 0 && at != start {
				b.Fatalf("slot %s begins at %s, the others at %s", slot(i, round), at, start)
			}
			start = at
		}
	}
	end := w.load(start, amount)
	gib := float64(end-start) / (1 << 30)
	say("%.2f GiB of pgbench's WAL, %d segments; %d rounds, medians; everything on one machine: the server's CPU time is not counted, but takes its share\n",
		gib, (end-start)/segment.LSN(segmentSize), rounds)

	used := map[string][]figures{}
	for round := range rounds {
		for turn := range all {
			i := (turn + round) % len(all)
			c := all[i]
			f, err := w.receive(c, slot(i, round), start, end)
			w.must(err)
			used[c.name] = append(used[c.name], f)
			say("round %d of %d  %-26s  %6.2f s  %5.2f s of CPU  %5.1f MiB", round+1, rounds, c.name, f.wall.Seconds(), f.cpu.Seconds(), mib(f))
		}
	}
	w.report(all, used, gib)
}

// able are the contenders that can do it: each receives a segment, unmeasured,
// which also reads its program from the disk. A pg_receivewal that cannot (one
// without lz4, say) is left out.
func (w *world) able() []contender {
	w.b.Helper()
	var all []contender
	for i, c := range w.contenders() {
		w.sql("CHECKPOINT")
		slot := fmt.Sprintf("trial%d", i)
		start := w.makeSlot(slot)
		_, err := w.receive(c, slot, start, w.endSegment())
		if w.ctx.Err() != nil || c.name == toDirectory || c.name == toS3 {
			w.must(err)
		}
		if err != nil {
			loud("%s is left out: %v", c.name, err)
		} else {
			all = append(all, c)
		}
		w.await(nil, "the slot to be free", func() bool {
			return w.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0"
		})
		w.sql("SELECT pg_drop_replication_slot('" + slot + "')")
	}
	return all
}

// receive runs a contender from the slot's beginning to the end position.
func (w *world) receive(c contender, slot string, start, end segment.LSN) (figures, error) {
	w.b.Helper()
	t := w.task(slot, end)
	defer t.clear()
	// What others wrote must not be written back on this one's time.
	syscall.Sync()
	r, err := c.start(t)
	if err != nil {
		return figures{}, err
	}
	f, err := r.wait()
	if err != nil {
		return f, err
	}
	return f, c.check(t, start, end)
}

// pgbench runs it on the server to its end.
func (w *world) pgbench(args ...string) {
	w.b.Helper()
	cmd := w.account.Command(w.ctx, w.pg.Installation().Program("pgbench"), args...)
	cmd.Env = append(cmd.Env, "PGHOST="+w.pg.SocketDir(), "PGPORT="+strconv.Itoa(w.pg.Port()), "PGUSER=postgres", "PGDATABASE=postgres")
	if out, err := cmd.CombinedOutput(); err != nil {
		w.must(fmt.Errorf("pgbench: %w:\n%s", err, out))
	}
}

// load lets pgbench write an amount of WAL, with a checkpoint now and then, as
// servers have them: behind each the pages go into the WAL whole. It returns
// the end of the last segment.
func (w *world) load(start segment.LSN, amount int64) segment.LSN {
	w.b.Helper()
	say("making %d MiB of WAL", amount>>20)
	next := int64(0)
	for {
		written := int64(w.lsn("SELECT pg_current_wal_lsn()") - start)
		if written >= amount {
			return w.endSegment()
		}
		if written >= next {
			w.sql("CHECKPOINT")
			next = written + 256<<20
		}
		w.pgbench("--client=8", "--jobs=1", "--no-vacuum", "--protocol=prepared", "--time=1")
	}
}

func mib(f figures) float64 { return float64(f.peak) / (1 << 20) }

// report prints the medians side by side, and what became of the goals.
func (w *world) report(all []contender, used map[string][]figures, gib float64) {
	of := func(name string, figure func(figures) float64) float64 {
		var values []float64
		for _, f := range used[name] {
			values = append(values, figure(f))
		}
		return median(values)
	}
	wall := func(f figures) float64 { return f.wall.Seconds() }
	cpu := func(f figures) float64 { return f.cpu.Seconds() / gib }
	t := table{{"", "wall s", "(min to max)", "MiB/s", "CPU s/GiB", "peak MiB", "wall ×", "CPU ×", "peak ×"}}
	for _, c := range all {
		var walls []float64
		for _, f := range used[c.name] {
			walls = append(walls, wall(f))
		}
		m, p, k := of(c.name, wall), of(c.name, cpu), of(c.name, mib)
		t.row(c.name, fmt.Sprintf("%.2f", m), fmt.Sprintf("(%.2f to %.2f)", slices.Min(walls), slices.Max(walls)), fmt.Sprintf("%.0f", gib*1024/m),
			fmt.Sprintf("%.2f", p), fmt.Sprintf("%.1f", k),
			ratio(m, of(base, wall)), ratio(p, of(base, cpu)), ratio(k, of(base, mib)))
	}
	say("\n%s\n× are to %s, which archives nothing\n", t, base)
	for _, name := range []string{toDirectory, toS3, ackArchive} {
		if len(used[name]) == 0 {
			say("goals of %s: NOT MEASURED", name)
			continue
		}
		m, p, k := of(name, wall), of(name, cpu), of(name, mib)
		if reference := of(base, wall); reference == 0 {
			say("goal of %s: wall at most %.1f × %s: NOT MEASURED", name, goalWall, base)
		} else {
			say("goal of %s: wall at most %.1f × %s: %.2f: %s", name, goalWall, base, m/reference, met(m/reference, goalWall))
		}
		say("goal of %s: CPU at most %.1f s/GiB: %.2f: %s", name, goalCPU, p, met(p, goalCPU))
		say("goal of %s: peak memory at most %.0f MiB: %.1f: %s", name, goalPeak, k, met(k, goalPeak))
	}
	say("")
}

func met(value, goal float64) string {
	if value <= goal {
		return "met"
	}
	return "NOT met"
}
