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

// TestASlotThatWasStreamedFromStays: a run drops the slot that it made when it
// refuses to begin. When it ends later, that slot retains WAL that nobody else
// has; and one of that name on another server was never ours.
func TestASlotThatWasStreamedFromStays(t *testing.T) {
	newRun := func(t *testing.T) (w *world, result <-chan error, move func(*fakepg.Server)) {
		w = newWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 5000)
		at := w.srv
		w.options.Slot = "another"
		w.options.Connect = func(ctx context.Context) (*replication.Conn, error) { return connect(at)(ctx) }
		end, result := w.start(4 << 20)
		t.Cleanup(func() { _ = end() })
		time.Sleep(time.Second)
		w.srv.FillTo(5*mb + 5000)
		time.Sleep(12 * time.Second)
		settle()
		if _, ok := w.srv.Slot("another"); !ok {
			t.Fatal("no slot was made")
		}
		return w, result, func(other *fakepg.Server) { at = other; w.srv.Cut() }
	}
	must := func(t *testing.T, result <-chan error, want error) {
		t.Helper()
		select {
		case err := <-result:
			if !errors.Is(err, want) {
				t.Errorf("Run = %v, want %v", err, want)
			}
		case <-time.After(10 * time.Minute):
			t.Errorf("Run goes on, want %v", want)
		}
	}
	t.Run("shipping has stopped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, result, _ := newRun(t)
			w.carrier.stop(errors.New("conflict"))
			w.carrier.stall()
			w.srv.FillTo(12 * mb)
			must(t, result, ErrSpoolStuck)
			if _, ok := w.srv.Slot("another"); !ok {
				t.Error("the slot is gone, and with it the WAL that follows what we hold")
			}
			w.carrier.flow()
		})
	})
	t.Run("another server", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, result, move := newRun(t)
			other := fakepg.New(fakepg.Options{SystemIdentifier: 42, SegmentSize: segment.MinSize})
			defer other.Close()
			other.SetSlot("another", mb)
			move(other)
			must(t, result, segment.ErrForeignCluster)
			if _, ok := other.Slot("another"); !ok {
				t.Error("a slot of the other server was dropped, which this run did not make")
			}
		})
	})
}
