package receiver

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

// TestNothingIsReportedBeforeTheOverlap: a server that asks before it has sent
// what we hold is told no position: it may be one that was set back, whose slot
// our position would move over WAL that nobody has.
func TestNothingIsReportedBeforeTheOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 5000)
		w.run(12 * time.Second)
		asked := false
		w.srv.Script(func(ws *fakepg.Walsender) error {
			if err := ws.Keepalive(w.srv.End(), true); err != nil {
				return err
			}
			s, err := ws.Status()
			if err != nil {
				return err
			}
			asked = true
			if s.Write != 0 || s.Flush != 0 {
				t.Errorf("write %s, flush %s before anything was compared", s.Write, s.Flush)
			}
			return ws.Stream()
		})
		w.run(30 * time.Second)
		if !asked {
			t.Error("the server got no answer")
		}
		if s := w.lastStatus(); s.Write != w.srv.End() {
			t.Errorf("behind the overlap: write %s, the server is at %s", s.Write, w.srv.End())
		}
	})
}

// TestWALWithAHoleIsRefused: a message that begins behind the expected position
// is not taken for what belongs there.
func TestWALWithAHoleIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(4 * mb)
		left := false
		w.srv.Script(func(ws *fakepg.Walsender) error {
			// Within a page: no page's header tells that some of it is missing.
			if err := ws.Send(2*mb + 8192 + 2000); err != nil {
				return err
			}
			at := 2*mb + segment.LSN(8192+3000)
			if err := ws.SendWAL(at, w.srv.WAL().Bytes(1, at, at+1000)); err != nil {
				return err
			}
			ws.Sent = at + 1000
			err := ws.Stream()
			left = err != nil
			return err
		})
		w.start(0)
		time.Sleep(time.Minute)
		settle()
		if !left {
			t.Error("the receiver goes on behind a hole")
		}
		if got := w.checkArchive(1); got != 4*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}
