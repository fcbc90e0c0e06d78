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

// TestSetBackBehindASwitch: both histories ended the last segment that we hold
// by a segment switch, so that its last page holds zeros in both. archive_timeout
// makes such segments all day.
func TestSetBackBehindASwitch(t *testing.T) {
	for name, c := range map[string]struct {
		theirs    segment.LSN // where their switch lies
		spoolLost bool
		sameRun   bool
	}{
		"theirs is later":   {theirs: 2*mb + 30000},
		"theirs is earlier": {theirs: 2*mb + 1000},
		"in the same page":  {theirs: 2*mb + 5000},
		"spool lost":        {theirs: 2*mb + 30000, spoolLost: true},
		"while it runs":     {theirs: 2*mb + 30000, sameRun: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				w.srv.FillTo(2*mb + 5000)
				w.srv.WAL().SwitchSegment(1)
				wal := fakepg.NewWAL(7300000000000000001, segment.MinSize, 99)
				wal.FillTo(1, c.theirs)
				wal.SwitchSegment(1)
				wal.FillTo(1, 5*mb)
				other := fakepg.New(fakepg.Options{WAL: wal, SegmentSize: segment.MinSize})
				defer other.Close()
				other.SetSlot(slotName, 3*mb)

				var err error
				if c.sameRun {
					at := w.srv
					w.options.Connect = func(ctx context.Context) (*replication.Conn, error) { return connect(at)(ctx) }
					end, result := w.start(0)
					defer func() { _ = end() }()
					time.Sleep(12 * time.Second)
					settle()
					at = other
					w.srv.Cut()
					select {
					case err = <-result:
					case <-time.After(time.Minute):
						t.Error("Run goes on")
					}
				} else {
					w.run(12 * time.Second)
					if c.spoolLost {
						w.dir = t.TempDir()
					}
					w.options.Connect = connect(other)
					err = w.refused()
				}
				if !errors.Is(err, ErrConflict) {
					t.Errorf("Run = %v", err)
				}
				if got := w.checkArchive(1); got != 3*mb {
					t.Errorf("the archive ends at %s", got)
				}
				for _, s := range other.Statuses() {
					if s.Write != 0 || s.Flush != 0 {
						t.Errorf("a position was reported before the overlap was compared: %+v", s)
					}
				}
			})
		})
	}
}

// TestContinuesBehindASwitch: the same with the right server, which sends the
// zeros in pieces of its own.
func TestContinuesBehindASwitch(t *testing.T) {
	for name, spoolLost := range map[string]bool{"with its spool": false, "spool lost": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				w.srv.FillTo(2*mb + 500_000)
				w.srv.WAL().SwitchSegment(1)
				w.run(12 * time.Second)
				if spoolLost {
					w.dir = t.TempDir()
				}
				_, _ = w.start(0)
				time.Sleep(12 * time.Second)
				w.srv.Cut() // and once more out of what it remembers
				time.Sleep(12 * time.Second)
				w.srv.FillTo(5 * mb)
				w.srv.WAL().SwitchSegment(1)
				time.Sleep(12 * time.Second)
				w.srv.Cut()
				time.Sleep(12 * time.Second)
				w.srv.FillTo(8 * mb)
				time.Sleep(12 * time.Second)
				settle()
				if got := w.checkArchive(1); got != 8*mb {
					t.Errorf("the archive ends at %s", got)
				}
				w.checkStatuses()
			})
		})
	}
}
