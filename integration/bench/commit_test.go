package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/s3"
	"github.com/walferry/walferry/segment"
)

// What is promised of a commit that waits for walferry.
const (
	goalSpool   = 1.1                  // times that of waitBase
	goalArchive = 1 * time.Millisecond // more than one PUT alone, with one client
)

const (
	// commitSQL is a transaction of about 150 bytes of WAL.
	commitSQL = "SELECT pg_logical_emit_message(true, 'bench', 'a tiny transaction')"
	// putSize is what a tail object of one such transaction comes to, roughly.
	putSize = 256
	// commitWarmUp is thrown away: connections, caches, the first of a segment.
	commitWarmUp = 300 * time.Millisecond
)

// commitClients are how many commit at once.
var commitClients = []int{1, 8, 32}

// standby is a contender for which the commits wait.
type standby struct {
	contender
	application string // its application_name; empty: nobody is waited for
	commit      string // synchronous_commit
}

const (
	waitNobody  = "no standby"
	waitBase    = "pg_receivewal --synchronous"
	waitSpool   = "walferry, spool"
	waitArchive = "walferry --ack archive"
	waitNoSpool = "walferry --spool none"
	waitPut     = "one PUT alone"
)

// standbys are all that there could be here.
func (w *world) standbys() []standby {
	all := []standby{
		{contender{name: waitNobody}, "", "on"},
		{receivewal(waitBase, "none", "", "--synchronous"), "pg_receivewal", "on"},
		// Into a directory: an S3 server here would write to the spool's disk.
		{directory(waitSpool, w.binary), "walferry", "on"},
	}
	if w.other != "" {
		all = append(all, standby{directory("WALFERRY_BENCH_OTHER, spool", w.other), "walferry", "on"})
	}
	if w.s3 != nil {
		all = append(all,
			standby{bucketed(waitSpool+", S3 beside it", w.binary), "walferry", "on"},
			standby{bucketed(waitArchive, w.binary, "--ack", "archive"), "walferry", "on"},
			standby{bucketed(waitArchive+", remote_write", w.binary, "--ack", "archive"), "walferry", "remote_write"},
			standby{bucketed(waitNoSpool, w.binary, "--spool", "none"), "walferry", "on"})
	}
	return all
}

// commits are the latencies of one run, in ms, and how many came in a second.
type commits struct {
	ms   []float64
	rate float64
}

// percentile is the value below which p of 100 values lie; 0 of nothing.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return s[min(int(float64(len(s))*p/100), len(s)-1)]
}

// BenchmarkCommit: how long a commit takes that waits for each in turn.
func BenchmarkCommit(b *testing.B) {
	if b.N > 1 {
		b.Skip("one run has all its rounds in it")
	}
	rounds := number(b, "WALFERRY_BENCH_ROUNDS", 5)
	seconds := time.Duration(number(b, "WALFERRY_BENCH_SECONDS", 2)) * time.Second
	w := newWorld(b, overSocket, map[string]string{"max_wal_size": "8GB", "max_connections": "100"})
	w.encrypt()
	var put *putter
	if w.s3 != nil {
		put = w.putter()
	}
	all := w.standbys()
	say("transactions of about 150 bytes of WAL, each waiting for one contender, which is alone with the server; %d rounds of %s for each number of clients\n", rounds, seconds)
	results := map[string]map[int][]commits{}
	take := func(name string, clients int, c commits) {
		if results[name] == nil {
			results[name] = map[int][]commits{}
		}
		results[name][clients] = append(results[name][clients], c)
		say("%-36s  %2d clients  %8.0f/s  %7.3f ms  99 %%: %7.3f ms", name, clients, c.rate, median(c.ms), percentile(c.ms, 99))
	}
	for round := range rounds {
		say("round %d of %d", round+1, rounds)
		for turn := range len(all) {
			s := all[(turn+round)%len(all)]
			if results[s.name] == nil && round > 0 {
				continue // it could not in the first
			}
			err := w.standby(s, fmt.Sprintf("commit_%d_%d", round, turn), seconds, take)
			if errors.Is(err, errCannot) {
				loud("%s is left out: %v", s.name, err)
				continue
			}
			w.must(err)
		}
		if put != nil {
			c, err := put.run(seconds)
			w.must(err)
			take(waitPut, 1, c)
		}
	}
	w.reportCommits(all, results)
}

// errCannot: a program does not know what it is asked for.
var errCannot = errors.New("it does not know how")

// standby runs one contender and lets clients wait for it.
func (w *world) standby(s standby, slot string, d time.Duration, take func(name string, clients int, c commits)) error {
	w.b.Helper()
	if s.application == "" {
		for _, n := range commitClients {
			c, err := w.commits(s.commit, n, d, nil)
			if err != nil {
				return err
			}
			take(s.name, n, c)
		}
		return nil
	}
	// Each begins with a segment of its own.
	w.endSegment()
	w.makeSlot(slot)
	t := w.task(slot, 0)
	defer t.clear()
	syscall.Sync()
	// A transaction waits from the beginning: it proves that they do.
	w.waitFor(s.application)
	first := make(chan error, 1)
	go func() {
		_, err := w.commits(s.commit, 1, 0, nil)
		first <- err
	}()
	w.await(nil, "a commit to wait", func() bool {
		return w.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "1"
	})
	child, err := s.start(t)
	w.must(err)
	select {
	case err = <-first:
		w.must(err)
	case <-child.done:
		// The transaction need not wait any longer.
		w.waitFor("")
		w.must(<-first)
		w.sql("SELECT pg_drop_replication_slot('" + slot + "')")
		if child.cmd.ProcessState.ExitCode() == 2 {
			return fmt.Errorf("%w: %s", errCannot, child.out.Bytes())
		}
		_, err = child.wait()
		return errors.Join(errors.New("it has ended"), err)
	case <-time.After(patience):
		w.b.Fatalf("nothing was released by %s", s.name)
	}
	n := 0
	for _, clients := range commitClients {
		c, err := w.commits(s.commit, clients, d, child)
		w.must(err)
		take(s.name, clients, c)
		n += len(c.ms)
	}
	w.waitFor("")
	w.must(child.cmd.Process.Signal(syscall.SIGINT))
	f, err := child.wait()
	w.must(err)
	say("%-36s  %.0f µs of CPU a commit, %.1f MiB", s.name, float64(f.cpu.Microseconds())/float64(n), mib(f))
	w.await(nil, "the slot to be free", func() bool {
		return w.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0"
	})
	w.sql("SELECT pg_drop_replication_slot('" + slot + "')")
	return nil
}

// waitFor lets commits wait for a standby of that name, or for none.
func (w *world) waitFor(application string) {
	w.b.Helper()
	w.sql("ALTER SYSTEM SET synchronous_standby_names = '"+application+"'", "SELECT pg_reload_conf()")
	w.await(nil, "the server to know for whom it waits", func() bool { return w.sql("SHOW synchronous_standby_names") == application })
	// The checkpointer tells the backends, and looks at the setting before it
	// does this (HandleCheckpointerInterrupts in checkpointer.c).
	w.sql("CHECKPOINT")
}

// commits lets clients commit for d, and a warm-up before it, each as soon as
// its last one was answered. With no time each commits once.
func (w *world) commits(synchronous string, clients int, d time.Duration, child *child) (commits, error) {
	ctx, cancel := context.WithCancelCause(w.ctx)
	defer cancel(nil)
	if child != nil {
		// What waits for a contender that has ended waits for ever.
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			select {
			case <-child.done:
				_, err := child.wait()
				cancel(errors.Join(errors.New("the contender has ended"), err))
			case <-ended:
			}
		}()
	}
	conns := make([]*pgconn.PgConn, clients)
	defer func() {
		for _, c := range conns {
			if c != nil {
				// One whose commit was given up is closed already.
				_ = c.Close(context.WithoutCancel(w.ctx))
			}
		}
	}()
	for i := range conns {
		var err error
		if conns[i], err = pgconn.Connect(ctx, w.pg.DSN("postgres")); err != nil {
			return commits{}, err
		}
		if _, err = value(ctx, conns[i], "SET synchronous_commit = "+synchronous); err != nil {
			return commits{}, err
		}
		if _, err = conns[i].Prepare(ctx, "commit", commitSQL, nil); err != nil {
			return commits{}, err
		}
	}
	warm := time.Now()
	if d > 0 {
		warm = warm.Add(commitWarmUp)
	}
	end := warm.Add(d)
	all, errs := make([][]float64, clients), make([]error, clients)
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() { all[i], errs[i] = commitUntil(ctx, c, warm, end) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return commits{}, errors.Join(err, context.Cause(ctx))
	}
	ms := slices.Concat(all...)
	return commits{ms: ms, rate: float64(len(ms)) / max(d, 1).Seconds()}, nil
}

// commitUntil commits and returns the latencies of those that were begun behind
// warm and ended before end, in ms.
func commitUntil(ctx context.Context, c *pgconn.PgConn, warm, end time.Time) (ms []float64, err error) {
	for began := time.Now(); ; {
		if r := c.ExecPrepared(ctx, "commit", nil, nil, nil).Read(); r.Err != nil {
			return nil, fmt.Errorf("committing: %w", r.Err)
		}
		ended := time.Now()
		if ended.After(end) {
			return ms, nil
		}
		if began.After(warm) {
			ms = append(ms, float64(ended.Sub(began).Nanoseconds())/1e6)
		}
		began = ended
	}
}

// putter puts small objects into the S3 server, with the same code as walferry.
type putter struct {
	w     *world
	store *s3.Store
	n     uint32
}

func (w *world) putter() *putter {
	w.b.Helper()
	w.b.Setenv("AWS_ACCESS_KEY_ID", w.user.AccessKey)
	w.b.Setenv("AWS_SECRET_ACCESS_KEY", w.user.SecretKey)
	store, err := s3.Open(w.ctx, s3.Config{Bucket: bucket, Prefix: "put", Region: "us-east-1", Endpoint: w.s3.URL, PathStyle: true, CAFile: w.caFile})
	w.must(err)
	w.b.Cleanup(func() {
		if err := store.Close(); err != nil {
			w.b.Error(err)
		}
	})
	return &putter{w: w, store: store}
}

// run puts one object after the other, named as tail objects are.
func (p *putter) run(d time.Duration) (commits, error) {
	body := make([]byte, putSize)
	warm := time.Now().Add(commitWarmUp)
	end := warm.Add(d)
	var ms []float64
	for {
		p.n++
		copy(body, fmt.Sprintf("object %d", p.n))
		name := segmentSize.Name(1, segment.LSN(p.n/1000+1)*segment.LSN(segmentSize))
		began := time.Now()
		err := p.store.PutIfAbsent(p.w.ctx, fmt.Sprintf("wal_tail_005/%s/%08X-%08X-%08X.lz4", name, p.n, p.n+1, p.n), objstore.Bytes(body))
		if err != nil {
			return commits{}, err
		}
		ended := time.Now()
		if ended.After(end) {
			return commits{ms: ms, rate: float64(len(ms)) / d.Seconds()}, nil
		}
		if began.After(warm) {
			ms = append(ms, float64(ended.Sub(began).Nanoseconds())/1e6)
		}
	}
}

// summary is the medians over the rounds.
type summary struct{ rate, ms, low, high, slow float64 }

func summarize(rounds []commits) (s summary) {
	var rate, ms, slow []float64
	for _, c := range rounds {
		rate, ms, slow = append(rate, c.rate), append(ms, median(c.ms)), append(slow, percentile(c.ms, 99))
	}
	s = summary{rate: median(rate), ms: median(ms), slow: median(slow)}
	if len(ms) > 0 {
		s.low, s.high = slices.Min(ms), slices.Max(ms)
	}
	return s
}

// inRounds returns how many times the other's median latency one has, in each
// round, and of that the median: the machine is at times twice as fast as at
// others, and within a round less so. 0: there is nothing to compare.
func inRounds(one, other []commits) float64 {
	var times []float64
	for i := range min(len(one), len(other)) {
		if base := median(other[i].ms); base > 0 {
			times = append(times, median(one[i].ms)/base)
		}
	}
	return median(times)
}

// reportCommits prints the medians side by side, and what became of the goals.
func (w *world) reportCommits(all []standby, results map[string]map[int][]commits) {
	of := func(name string, clients int) summary { return summarize(results[name][clients]) }
	put := of(waitPut, 1)
	t := table{{"", "clients", "commits/s", "median ms", "(min to max)", "99 % ms", "commits ×", "median ×", "99 % ×", "PUTs"}}
	for _, clients := range commitClients {
		reference := of(waitBase, clients)
		for _, s := range all {
			r := of(s.name, clients)
			if r.rate == 0 {
				continue
			}
			t.row(s.name, fmt.Sprint(clients), fmt.Sprintf("%.0f", r.rate), fmt.Sprintf("%.3f", r.ms), fmt.Sprintf("(%.3f to %.3f)", r.low, r.high), fmt.Sprintf("%.3f", r.slow),
				ratio(r.rate, reference.rate), ratio(inRounds(results[s.name][clients], results[waitBase][clients]), 1), ratio(r.slow, reference.slow), ratio(r.ms, put.ms))
		}
	}
	if put.rate > 0 {
		t.row(waitPut, "1", fmt.Sprintf("%.0f", put.rate), fmt.Sprintf("%.3f", put.ms), fmt.Sprintf("(%.3f to %.3f)", put.low, put.high), fmt.Sprintf("%.3f", put.slow))
	}
	say("\n%s\n× are to %s, which archives nothing; median ×: in each round, and the median of that; PUTs: the median in PUTs of %d bytes by the same code to the same server\n", t, waitBase, putSize)
	for _, clients := range commitClients {
		verdict := "NOT MEASURED"
		if times := inRounds(results[waitSpool][clients], results[waitBase][clients]); times > 0 {
			verdict = fmt.Sprintf("%.2f: %s", times, met(times, goalSpool))
		}
		say("goal of %s, %d clients: median at most %.1f × %s: %s", waitSpool, clients, goalSpool, waitBase, verdict)
	}
	for _, name := range []string{waitArchive, waitNoSpool} {
		r, verdict := of(name, 1), "NOT MEASURED"
		if r.rate > 0 && put.rate > 0 {
			verdict = fmt.Sprintf("%.3f ms more: %s", r.ms-put.ms, met(r.ms-put.ms, goalArchive.Seconds()*1e3))
		}
		say("goal of %s, 1 client: median at most %s more than %s: %s", name, goalArchive, waitPut, verdict)
	}
	for _, name := range []string{waitSpool, waitArchive, waitNoSpool} {
		verdict := "met"
		var rates []string
		for i, clients := range commitClients {
			r := of(name, clients).rate
			rates = append(rates, fmt.Sprintf("%.0f", r))
			if i > 0 && r <= of(name, commitClients[i-1]).rate {
				verdict = "NOT met"
			}
		}
		if of(name, 1).rate == 0 {
			verdict = "NOT MEASURED"
		}
		say("goal of %s: more commits a second with %d clients each: %s: %s", name, commitClients, rates, verdict)
	}
	say("")
}
