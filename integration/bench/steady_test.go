package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/segment"
)

const (
	// messageSize is what one transaction of the steady writer puts into the
	// WAL, with its headers, roughly.
	messageSize = 8300
	// burstInterval is how often the steady writer writes what is due.
	burstInterval = 20 * time.Millisecond
	// sampleInterval is how often the server is asked for the lag.
	sampleInterval = 50 * time.Millisecond
	// patience is how long what must happen is waited for.
	patience = 2 * time.Minute
)

// writerSQL makes emit(n), which commits n small transactions, half noise and
// half always the same: one that compresses to about half. The noise is taken
// from random places of a pool that is larger than lz4's window.
var writerSQL = []string{
	`CREATE TABLE pool AS SELECT string_agg(sha256(convert_to(i::text, 'UTF8')), ''::bytea) AS noise FROM generate_series(1, 32768) i`,
	`CREATE PROCEDURE emit(n int) LANGUAGE plpgsql AS $$
	DECLARE
		noise bytea;
		same bytea := convert_to(repeat('0123456789abcdef', 256), 'UTF8');
	BEGIN
		SELECT p.noise || ''::bytea INTO noise FROM pool p; -- flat, not in pieces of its table
		FOR i IN 1..n LOOP
			PERFORM pg_logical_emit_message(true, 'bench', substr(noise, 1 + floor(random() * (32768 * 32 - 4096))::int, 4096) || same);
			COMMIT;
		END LOOP;
	END $$`,
}

// steady is what one run of a contender under a steady stream came to.
type steady struct {
	figures
	gib      float64 // received
	rate     float64 // MB/s that were really written
	segments int
	samples  []sample
	requests map[string]int // nil: no S3
}

// BenchmarkSteady: streams of some rates, each contender alone with the server.
func BenchmarkSteady(b *testing.B) {
	if b.N > 1 {
		b.Skip("one run has everything in it")
	}
	seconds := time.Duration(number(b, "WALFERRY_BENCH_SECONDS", 15)) * time.Second
	w := newWorld(b, overSocket, map[string]string{"max_wal_size": "1GB"})
	w.sql(writerSQL...)
	all := w.able()
	var proxy *s3server.Proxy
	if w.s3 != nil {
		proxy = w.s3.Proxy(b)
	}
	say("a writer of small transactions, half compressible, for %s at each rate; one contender at a time\n", seconds)
	t := table{{"MB/s", "got", "unsent MB", "ms", "write MB", "ms", "flush MB", "ms",
		"CPU s/GiB", "CPU %", "peak MiB", "CPU ×", "peak ×", "requests/segment", "/GiB"}}
	for _, rate := range []int{1, 10, 50} {
		done := map[string]steady{}
		for i, c := range all {
			r := w.steady(c, fmt.Sprintf("steady_%d_%d", rate, i), float64(rate)*1e6, seconds, proxy)
			done[c.name] = r
			say("%2d MB/s  %-26s  %6.2f s of CPU  %5.1f MiB  %s", rate, c.name, r.cpu.Seconds(), mib(r.figures), requests(r.requests))
		}
		for _, c := range all {
			t.row(done[c.name].row(fmt.Sprintf("%2d %s", rate, c.name), done[base])...)
		}
	}
	say("\n%s", t)
	say(`MB and ms: median / most of the lag behind pg_current_wal_lsn(), sampled every %s: of sent_lsn, which is what the
contender has not taken yet, and of write_lsn and flush_lsn as it reports them (both programs report at least every 10 s;
walferry also when a segment is sealed, and its flush LSN is what the archive has: the hold). What was not reached in
the run counts from its beginning. × are to %s. CPU %% is of one core, requests are those of S3.
`, sampleInterval, base)
}

// row is a line of the table.
func (r steady) row(name string, reference steady) []string {
	cpu := func(s steady) float64 {
		if s.gib == 0 {
			return 0
		}
		return s.cpu.Seconds() / s.gib
	}
	cells := []string{name, fmt.Sprintf("%.1f", r.rate)}
	for _, of := range []func(sample) segment.LSN{
		func(s sample) segment.LSN { return s.sent },
		func(s sample) segment.LSN { return s.write },
		func(s sample) segment.LSN { return s.flush },
	} {
		mb, ms := lags(r.samples, of)
		cells = append(cells,
			fmt.Sprintf("%.2f / %.2f", median(mb), most(mb)), fmt.Sprintf("%.0f / %.0f", median(ms), most(ms)))
	}
	cells = append(cells, fmt.Sprintf("%.2f", cpu(r)), fmt.Sprintf("%.1f", 100*r.cpu.Seconds()/r.wall.Seconds()), fmt.Sprintf("%.1f", mib(r.figures)),
		ratio(cpu(r), cpu(reference)), ratio(mib(r.figures), mib(reference.figures)))
	if r.requests == nil {
		return append(cells, "-", "-")
	}
	n := 0
	for _, count := range r.requests {
		n += count
	}
	return append(cells, fmt.Sprintf("%.2f", float64(n)/float64(r.segments)), fmt.Sprintf("%.0f", float64(n)/r.gib))
}

func most(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	return slices.Max(values)
}

// requests names the requests of S3 that were counted.
func requests(counts map[string]int) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		names = append(names, fmt.Sprintf("%d %s", counts[name], name))
	}
	return strings.Join(names, ", ")
}

// steady runs one contender while WAL is written at a rate, in bytes a second.
func (w *world) steady(c contender, slot string, rate float64, d time.Duration, proxy *s3server.Proxy) steady {
	w.b.Helper()
	// The slot begins with a segment of its own.
	w.endSegment()
	w.sql("CHECKPOINT")
	start := w.makeSlot(slot)
	t := w.task(slot, 0)
	defer t.clear()
	if proxy != nil {
		t.endpoint = proxy.URL
	}
	syscall.Sync()
	child, err := c.start(t)
	w.must(err)
	const streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sent_lsn = pg_current_wal_lsn()"
	w.await(child, c.name+" to stream", func() bool { return w.sql(streams) == "1" })
	if proxy != nil {
		proxy.ResetCounts() // what a start asks is not the stream's
	}

	from := w.lsn("SELECT pg_current_wal_lsn()")
	began := time.Now()
	ctx, stop := context.WithCancel(w.ctx)
	sampled := make(chan error, 1)
	var r steady
	go func() {
		var err error
		r.samples, err = w.sample(ctx)
		sampled <- err
	}()
	err = w.write(rate, d)
	stop()
	w.must(errors.Join(err, <-sampled))
	r.rate = float64(w.lsn("SELECT pg_current_wal_lsn()")-from) / 1e6 / time.Since(began).Seconds()

	end := w.endSegment()
	last := c.kept(t, segmentSize.Name(1, end-1))
	w.await(child, c.name+" to keep the last segment", func() bool {
		_, err := os.Stat(last)
		return err == nil
	})
	w.must(child.cmd.Process.Signal(syscall.SIGINT))
	r.figures, err = child.wait()
	w.must(err)
	if proxy != nil && c.s3 {
		r.requests = proxy.Counts()
	}
	w.must(c.check(t, start, end))
	r.gib = float64(end-start) / (1 << 30)
	r.segments = int((end - start) / segment.LSN(segmentSize))
	w.await(nil, "the slot to be free", func() bool {
		return w.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0"
	})
	w.sql("SELECT pg_drop_replication_slot('" + slot + "')")
	return r
}

// await waits until what is true. A child that ends first ends the benchmark.
func (w *world) await(child *child, what string, is func() bool) {
	w.b.Helper()
	deadline := time.Now().Add(patience)
	for !is() {
		if child != nil {
			select {
			case <-child.done:
				_, err := child.wait()
				w.must(fmt.Errorf("waiting for %s: it has ended: %w\n%s", what, err, child.out.Bytes()))
			default:
			}
		}
		if w.ctx.Err() != nil {
			w.must(w.ctx.Err())
		}
		if time.Now().After(deadline) {
			w.b.Fatalf("waited %s in vain for %s", patience, what)
		}
		time.Sleep(sampleInterval)
	}
}

// write writes WAL at a rate, in bytes a second, as far as the server can.
func (w *world) write(rate float64, d time.Duration) (err error) {
	c, err := pgconn.Connect(w.ctx, w.pg.DSN("postgres"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close(context.WithoutCancel(w.ctx))) }()
	tick := time.NewTicker(burstInterval)
	defer tick.Stop()
	began, written := time.Now(), 0
	for {
		elapsed := time.Since(began)
		due := int(min(elapsed, d).Seconds()*rate/messageSize) - written
		if due > 0 {
			if _, err := value(w.ctx, c, fmt.Sprintf("CALL emit(%d)", due)); err != nil {
				return fmt.Errorf("writing: %w", err)
			}
			written += due
		}
		if elapsed >= d {
			return nil
		}
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			return w.ctx.Err()
		}
	}
}

// sample is where the server and its only receiver were at a time.
type sample struct {
	at                          time.Time
	current, sent, write, flush segment.LSN // 0: not reported yet
}

// sample asks the server again and again until ctx ends.
func (w *world) sample(ctx context.Context) (samples []sample, err error) {
	c, err := pgconn.Connect(w.ctx, w.pg.DSN("postgres"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close(context.WithoutCancel(w.ctx))) }()
	tick := time.NewTicker(sampleInterval)
	defer tick.Stop()
	for {
		// Walferry's short connections beside the stream are replication, too.
		v, err := value(w.ctx, c, `SELECT concat_ws(' ', pg_current_wal_lsn(),
			coalesce(sent_lsn, '0/0'), coalesce(write_lsn, '0/0'), coalesce(flush_lsn, '0/0'))
			FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid`)
		if err != nil {
			return nil, fmt.Errorf("sampling the lag: %w", err)
		}
		s := sample{at: time.Now()}
		to := []*segment.LSN{&s.current, &s.sent, &s.write, &s.flush}
		fields := strings.Fields(v)
		if len(fields) != len(to) {
			return nil, fmt.Errorf("sampling the lag: the receiver is gone (%q)", v)
		}
		for i, f := range fields {
			if *to[i], err = segment.ParseLSN(f); err != nil {
				return nil, err
			}
		}
		samples = append(samples, s)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return samples, nil
		}
	}
}

// lags returns how far a position is behind the server's, in MB and in ms: how
// long ago the server's own WAL ended where the position is now. That time is
// interpolated; one before the first sample is taken for the first's.
func lags(samples []sample, of func(sample) segment.LSN) (mb, ms []float64) {
	then := 0 // the first sample whose current LSN is not below the position
	for i, s := range samples {
		p := of(s)
		if p >= s.current {
			mb, ms = append(mb, 0), append(ms, 0)
			continue
		}
		for then > 0 && samples[then-1].current >= p {
			then--
		}
		for then < i && samples[then].current < p {
			then++
		}
		at := samples[then].at
		if then > 0 {
			before := samples[then-1]
			if span := samples[then].current - before.current; span > 0 {
				at = before.at.Add(time.Duration(float64(at.Sub(before.at)) * float64(p-before.current) / float64(span)))
			}
		}
		mb = append(mb, float64(s.current-max(p, samples[0].current))/1e6)
		ms = append(ms, float64(s.at.Sub(at).Microseconds())/1e3)
	}
	return mb, ms
}
