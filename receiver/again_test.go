package receiver

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
)

// TestEmptySpoolContinuesAtTheArchive: where this host's spool is gone, the
// archive's end is where to go on, and not the slot, which somebody may have
// made anew or moved ahead.
func TestEmptySpoolContinuesAtTheArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		w.run(12 * time.Second)
		if got := w.checkArchive(1); got != 3*mb {
			t.Fatalf("the archive ends at %s", got)
		}
		w.srv.FillTo(8 * mb)
		w.srv.SetSlot(slotName, 6*mb)
		w.dir = t.TempDir()
		w.run(30 * time.Second)
		if got := w.checkArchive(1); got != 8*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}

// TestShutdownWhileTheSpoolIsFullAgain: what is told only now and then is
// acted upon each time.
func TestShutdownWhileTheSpoolIsFullAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.options.WatchInterval = 10 * time.Second
		w.srv.FillTo(10 * mb)
		w.start(3 << 20)
		w.carrier.stall()
		time.Sleep(12 * time.Second)
		settle()
		w.carrier.flow()
		time.Sleep(30 * time.Second)
		settle()
		w.carrier.stall()
		w.srv.FillTo(20 * mb)
		time.Sleep(12 * time.Second)
		settle()
		if n := strings.Count(w.log.String(), "the spool is full"); n != 1 {
			t.Errorf("told %d times that the spool is full", n)
		}
		w.srv.Shutdown()
		time.Sleep(20 * time.Second)
		settle()
		if !strings.Contains(w.log.String(), "letting go of it") {
			t.Error("the server is held up")
		}
		w.srv.Start()
		w.carrier.flow()
		time.Sleep(2 * time.Minute)
		settle()
		if got := w.checkArchive(1); got != 20*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}

// TestSpoolFillsAfterShippingHasStopped: nothing will ever make room again.
func TestSpoolFillsAfterShippingHasStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(2 * mb)
		end, result := w.start(3 << 20)
		w.carrier.stall()
		time.Sleep(time.Second)
		w.carrier.stop(errors.New("conflict"))
		settle() // it is told, and there is room
		w.srv.FillTo(10 * mb)
		select {
		case err := <-result:
			if !errors.Is(err, ErrSpoolStuck) {
				t.Errorf("Run = %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("Run waits for room")
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}
