package integration

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/restore/instance"
)

// load is traffic on the scene's cluster until stop.
type load struct {
	stopped func()
}

// libpq is an environment in which PostgreSQL's programs find a server.
func libpq(pg *instance.Server) []string {
	return []string{"PGHOST=" + pg.SocketDir(), "PGPORT=" + strconv.Itoa(pg.Port()), "PGUSER=postgres", "PGDATABASE=postgres"}
}

// pgbench runs pgbench's own load, or what comes near it where the
// installation has no pgbench.
func (s *scene) pgbench() *load {
	s.t.Helper()
	i := s.pg.Installation()
	if !i.Has("pgbench") {
		s.t.Logf("%s has no pgbench: the load is a writer of ours", i)
		w := s.writer()
		return &load{stopped: func() { w.stop() }}
	}
	env := libpq(s.pg)
	start(s.t, env, i.Program("pgbench"), "--initialize", "--scale=1", "--quiet").exits(0)
	// Many more transactions than a test waits for; no duration is agreed on.
	p := start(s.t, env, i.Program("pgbench"), "--client=4", "--jobs=1", "--no-vacuum", "--transactions=10000000")
	return &load{stopped: func() {
		if !p.running() {
			s.t.Fatalf("pgbench ended by itself: %v", p.err)
		}
		p.kill9()
	}}
}

func (l *load) stop() { l.stopped() }

// writer commits rows, one a transaction, and knows which were acknowledged.
type writer struct {
	t      *testing.T
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu    sync.Mutex
	acked int // rows 1..acked were acknowledged
}

// writer starts one. It ends with the first error (the server went away) or stop.
func (s *scene) writer() *writer {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	c, err := pgconn.Connect(ctx, s.pg.DSN("postgres"))
	if err != nil {
		cancel()
		s.t.Fatal(err)
	}
	if _, err := c.Exec(ctx, "CREATE TABLE IF NOT EXISTS written (id bigint PRIMARY KEY, v text)").ReadAll(); err != nil {
		cancel()
		s.t.Fatal(err)
	}
	w := &writer{t: s.t, cancel: cancel}
	w.done.Go(func() {
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = c.Close(ctx) // the server may be gone: that is what many tests want
		}()
		for id := 1; ; id++ {
			sql := "INSERT INTO written SELECT " + strconv.Itoa(id) + ", repeat(md5(random()::text), 30)"
			if _, err := c.Exec(ctx, sql).ReadAll(); err != nil {
				return
			}
			w.mu.Lock()
			w.acked = id
			w.mu.Unlock()
		}
	})
	s.t.Cleanup(func() { w.stop() })
	return w
}

func (w *writer) acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acked
}

// stop ends the writer and returns how many rows were acknowledged.
func (w *writer) stop() int {
	w.cancel()
	w.done.Wait()
	return w.acknowledged()
}
