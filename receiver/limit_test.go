package receiver

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// A limit that holds no segment of this server never will: to try again says
// so every minute, and helps nobody.
func TestALimitThatHoldsNoSegmentEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		end, result := w.start(int64(segment.MinSize) - 1)
		select {
		case err := <-result:
			if !errors.Is(err, spool.ErrLimit) {
				t.Errorf("Run = %v", err)
			}
		case <-time.After(time.Hour):
			t.Error("still at it after an hour")
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		if w.told("created the replication slot") != 0 {
			t.Error("a slot was made")
		}
	})
}
