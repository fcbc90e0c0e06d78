package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/segment"
)

// Requests are what object storage bills. These tests count them where the
// server sees them, and hold them against the WAL that came meanwhile. What
// depends on time is a number of ship intervals that have really passed.

// keeping is a way of keeping and acknowledging what was received.
type keeping struct {
	name string
	args []string
	full int // seconds that are counted in a full run
}

func keepings() []keeping {
	return []keeping{
		{"spool", nil, 60},
		{"archive", []string{"--ack", "archive"}, 20},
		{"no spool", []string{"--spool", "none"}, 20},
	}
}

// counted is what came to the S3 server in a window of time.
type counted struct {
	requests map[string]int
	passed   time.Duration
	from, to segment.LSN // what was shipped before the window, and where the server's WAL ends behind it
	sealed   int         // whole segments that are new
	tails    int         // tail objects that are new
}

// count counts requests while do runs, from when all WAL was shipped. No
// request is under way at either end of the window.
func (s *bucketScene) count(do func()) counted {
	s.t.Helper()
	return s.countFrom(s.awaitShipped(), do)
}

// countFrom is count where something need not be shipped.
func (s *bucketScene) countFrom(from segment.LSN, do func()) (c counted) {
	s.t.Helper()
	c.from = from
	var began time.Time
	s.proxy.Between(func() {
		s.proxy.ResetCounts()
		c.sealed, c.tails = -len(s.sealed()), -len(s.tailObjects())
		began = time.Now()
	})
	do()
	s.proxy.Between(func() {
		c.passed, c.requests = time.Since(began), s.proxy.Counts()
		c.sealed += len(s.sealed())
		c.tails += len(s.tailObjects())
	})
	c.to = s.lsn("SELECT pg_current_wal_insert_lsn()")
	return c
}

// String tells the requests, and how many they are in an hour and in a day.
func (c counted) String() string {
	var names []string
	all := 0
	for _, name := range slices.Sorted(maps.Keys(c.requests)) {
		names = append(names, fmt.Sprintf("%d %s", c.requests[name], name))
		all += c.requests[name]
	}
	hourly := float64(all) / c.passed.Hours()
	return fmt.Sprintf("%d bytes of WAL in %s: %d requests (%s), which is %.0f an hour, %.0f a day",
		c.to-c.from, c.passed.Round(time.Millisecond), all, strings.Join(names, ", "), hourly, 24*hourly)
}

// wants checks that there were nothing but the PUTs of what is new in the
// archive.
func (c counted) wants(t *testing.T) {
	t.Helper()
	for name, n := range c.requests {
		if name == "PUT wal_005" && n == c.sealed || name == "PUT wal_tail_005" && n == c.tails {
			continue
		}
		t.Errorf("%d requests %q for %d new segments and %d new tail objects, want a PUT for each and nothing else", n, name, c.sealed, c.tails)
	}
}

// tailObject is the name of a tail object.
type tailObject struct {
	segment    segment.Name
	start, end segment.LSN
}

// tailObjects lists the tail objects in the archive.
func (s *scene) tailObjects() []tailObject {
	s.t.Helper()
	paths, err := filepath.Glob(filepath.Join(s.archive, "wal_tail_005", "*", "*-*-*.lz4"))
	if err != nil {
		s.t.Fatal(err)
	}
	var all []tailObject
	for _, p := range paths {
		n, err := segment.ParseName(filepath.Base(filepath.Dir(p)))
		parts := strings.Split(filepath.Base(p), "-")
		start, startErr := strconv.ParseUint(parts[0], 16, 32)
		end, endErr := strconv.ParseUint(parts[1], 16, 32)
		if err := errors.Join(err, startErr, endErr); err != nil {
			s.t.Fatalf("%s: %v", p, err)
		}
		at := n.Start(s.size)
		all = append(all, tailObject{n, at + segment.LSN(start), at + segment.LSN(end)})
	}
	return all
}

// awaitShipped waits until the archive has the server's WAL to its end, and
// returns that. It looks into the archive's directory: nothing is asked for it.
func (s *scene) awaitShipped() (end segment.LSN) {
	s.t.Helper()
	eventually(s.t, "the end of the server's WAL to be in the archive", func() bool {
		end = s.lsn("SELECT pg_current_wal_flush_lsn()")
		n := s.size.Name(1, end-1)
		if _, ok := s.sealed()[n]; ok {
			return true
		}
		return slices.ContainsFunc(s.tailObjects(), func(o tailObject) bool { return o.segment == n && o.end >= end })
	})
	return end
}

// trickle commits a little every so often until stop, which returns how many
// commits were acknowledged.
func (s *scene) trickle(every time.Duration) (stop func() int) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	c, err := pgconn.Connect(ctx, s.pg.DSN("postgres"))
	if err != nil {
		cancel()
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	n := 0
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				ended <- c.Close(context.WithoutCancel(ctx))
				return
			case <-tick.C:
			}
			if _, err := c.Exec(context.WithoutCancel(ctx), "INSERT INTO rows (v) VALUES ('a little')").ReadAll(); err != nil {
				ended <- errors.Join(err, c.Close(context.WithoutCancel(ctx)))
				return
			}
			n++
		}
	}()
	return func() int {
		s.t.Helper()
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("committing a little: %v", err)
		}
		return n
	}
}

// window is how long is counted.
func (k keeping) window() time.Duration { return time.Duration(rounds(8, k.full)) * time.Second }

// receiving is a bucket scene whose receiver streams, with a table.
func receiving(t *testing.T, args ...string) (*bucketScene, *process) {
	t.Helper()
	s := newBucketScene(t, options{settings: map[string]string{"checkpoint_timeout": "1d"}})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry(nil, append([]string{"receive"}, args...)...)
	r.awaitLog("streaming")
	s.table()
	return s, r
}

// While no WAL comes nothing is asked of the archive at all. (An idle server
// writes one record of running transactions up to 15 s after its last other
// one, and no more: BackgroundWriterMain in bgwriter.c. The LSN tells.)
func TestRequestsIdle(t *testing.T) {
	t.Parallel()
	waits := keeping{"commits wait", []string{"--ack", "archive", "--synchronous", "on"}, 20}
	for _, k := range append(keepings(), waits) {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			s, r := receiving(t, k.args...)
			s.fill(50)
			s.awaitShipped()
			t.Logf("until the first WAL was shipped: %v", s.proxy.Counts())
			s.idle(k.window())
			r.stop()
			s.proxy.ResetCounts()
			r = s.ferry(nil, append([]string{"receive"}, k.args...)...)
			r.awaitLog("streaming")
			s.settle()
			t.Logf("a start: %v", s.proxy.Counts())
			s.idle(k.window() / 2)
			r.stop()
		})
	}
}

// settle waits until the requests of a start are over: none has come for some
// ship intervals.
func (s *bucketScene) settle() {
	s.t.Helper()
	last, since := s.proxy.Counts(), time.Now()
	eventually(s.t, "the requests of a start to end", func() bool {
		if now := s.proxy.Counts(); !maps.Equal(now, last) {
			last, since = now, time.Now()
		}
		return time.Since(since) > 3*time.Second
	})
}

// idle counts until there was a window without WAL, and wants no request in it.
func (s *bucketScene) idle(window time.Duration) {
	t := s.t
	t.Helper()
	for range 5 {
		c := s.count(func() { time.Sleep(window) })
		t.Log(c)
		c.wants(t)
		if c.to == c.from {
			if len(c.requests) > 0 {
				t.Errorf("no WAL came, and there were requests: %v", c.requests)
			}
			return
		}
		if c.tails > 1 {
			t.Errorf("%d tail objects for one record", c.tails)
		}
	}
	t.Fatal("the server is never idle")
}

// With a steady trickle of commits there is a tail object each ship interval,
// at most, and one in 32 more that merges them; a PUT for each, and for each
// whole segment, and nothing else.
func TestRequestsBusy(t *testing.T) {
	t.Parallel()
	for i, k := range keepings() {
		for j, interval := range []time.Duration{time.Second, 200 * time.Millisecond} {
			if !theLab.full && i%2 != j%2 {
				continue
			}
			t.Run(fmt.Sprint(k.name, ", ", interval), func(t *testing.T) {
				t.Parallel()
				s, r := receiving(t, append(k.args, "--ship-interval", interval.String())...)
				commits := 0
				c := s.count(func() {
					stop := s.trickle(20 * time.Millisecond)
					time.Sleep(k.window())
					commits = stop()
					s.awaitShipped()
				})
				t.Logf("%d commits, %s", commits, c)
				c.wants(t)
				// The first may go at once. What is merged follows from how many
				// there are: 32 of one level become one of the next.
				most := int(c.passed/interval) + 1
				if merged := most / 31; c.tails > most+merged {
					t.Errorf("%d tail objects in %s, want at most %d and %d of merged ones", c.tails, c.passed, most, merged)
				}
				if commits == 0 || c.tails+c.sealed == 0 {
					t.Errorf("%d commits, %d tail objects, %d segments: nothing was tried", commits, c.tails, c.sealed)
				}
				r.stop()
			})
		}
	}
}

// With --ship-interval 0 there are whole segments only.
func TestRequestsWithoutTails(t *testing.T) {
	t.Parallel()
	s, r := receiving(t, "--ship-interval", "0")
	first := s.slotSegment()
	s.awaitSealed(first, s.switchWAL())
	c := s.countFrom(first.Start(s.size), func() {
		stop := s.trickle(20 * time.Millisecond)
		time.Sleep(2 * time.Second)
		s.awaitSealed(first, s.switchWAL())
		time.Sleep(2 * time.Second)
		if stop() == 0 {
			t.Error("nothing was committed")
		}
	})
	t.Log(c)
	c.wants(t)
	if _, err := os.Stat(filepath.Join(s.archive, "wal_tail_005")); c.sealed == 0 || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%d segments, and the tail objects' folder: %v", c.sealed, err)
	}
	r.stop()
}
