package receiver

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := heartbeat{epoch: time.Now()}
		want := func(alive bool) {
			t.Helper()
			if h.alive() != alive {
				t.Errorf("after %v: alive is %v; want %v", time.Since(h.epoch), !alive, alive)
			}
		}
		want(true)
		h.expect(time.Minute)
		time.Sleep(time.Minute)
		want(true)
		time.Sleep(time.Nanosecond)
		want(false)
		h.expect(time.Second)
		want(true)
		time.Sleep(time.Hour)
		want(false)
		h.rest()
		want(true)
	})
}

// A quiet server, a full spool and a server that is away are no reason to be
// restarted; a call that never returns is one.
func TestAlive(t *testing.T) {
	everySecond := func(w *world, d time.Duration) (dead int) {
		for range int(d / time.Second) {
			time.Sleep(time.Second)
			if !w.r.Alive() {
				dead++
			}
		}
		return dead
	}
	for _, c := range []struct {
		name  string
		make  func(w *world)
		limit segment.LSN // of the spool, in bytes
		dead  bool
	}{
		{name: "quiet", make: func(w *world) { w.srv.FillTo(3 * mb) }},
		{name: "full spool", limit: 3 * mb, make: func(w *world) { w.srv.FillTo(9 * mb) }},
		{name: "server away", make: func(w *world) {
			w.options.Connect = func(context.Context) (*replication.Conn, error) { return nil, errors.New("connection refused") }
		}},
		{name: "a call that never returns", dead: true, make: func(w *world) {
			w.options.Connect = func(ctx context.Context) (*replication.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				c.make(w)
				end, _ := w.start(int64(c.limit))
				if c.limit > 0 {
					w.carrier.stall()
				}
				if dead := everySecond(w, 2*attemptLimit); (dead > 0) != c.dead {
					t.Errorf("not alive for %d s", dead)
				}
				if err := end(); err != nil {
					t.Fatal(err)
				}
				if !w.r.Alive() {
					t.Error("not alive behind Run: nothing is left that could be stuck")
				}
			})
		})
	}
}
