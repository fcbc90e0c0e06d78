package receiver

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

// run lets the world's receiver work for a while and stops it.
func (w *world) run(d time.Duration) {
	w.t.Helper()
	end, _ := w.start(0)
	time.Sleep(d)
	settle()
	if err := end(); err != nil {
		w.t.Fatalf("Run: %v", err)
	}
}

// refused starts a run and returns why it refused.
func (w *world) refused() error {
	w.t.Helper()
	end, result := w.start(0)
	select {
	case err := <-result:
		if err == nil {
			w.t.Error("Run ended without an error")
		}
		if e := end(); e != nil {
			w.t.Error(e)
		}
		return err
	case <-time.After(10 * time.Minute):
		w.t.Error("Run went on")
		_ = end()
		return nil
	}
}

func TestForeignClusterIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		w.run(time.Second)
		other := fakepg.New(fakepg.Options{SystemIdentifier: 42, SegmentSize: segment.MinSize})
		defer other.Close()
		w.options.Connect = connect(other)
		if err := w.refused(); !errors.Is(err, segment.ErrForeignCluster) {
			t.Errorf("Run = %v", err)
		}
		if _, ok := other.Slot(slotName); ok {
			t.Error("a slot was made on the foreign cluster")
		}
		// The archive alone says so, too.
		w.dir = t.TempDir()
		if err := w.refused(); !errors.Is(err, segment.ErrForeignCluster) {
			t.Errorf("with an empty spool: Run = %v", err)
		}
	})
}

// restored is a server set back to a copy of its WAL as it was at an LSN, that
// went on differently.
func restored(w *world, at segment.LSN, to segment.LSN) *fakepg.Server {
	other := fakepg.NewWAL(7300000000000000001, segment.MinSize, 99)
	_ = at
	other.FillTo(1, to)
	return fakepg.New(fakepg.Options{WAL: other, SegmentSize: segment.MinSize})
}

func TestSetBackPrimaryIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 5000)
		w.run(time.Second)
		before := restored(w, 0, 2*mb+5000)
		defer before.Close()
		before.SetSlot(slotName, 2*mb)
		w.options.Connect = connect(before)
		if err := w.refused(); !errors.Is(err, ErrSetBack) {
			t.Errorf("while it is behind us: Run = %v", err)
		}
		after := restored(w, 0, 5*mb)
		defer after.Close()
		after.SetSlot(slotName, 2*mb)
		w.options.Connect = connect(after)
		if err := w.refused(); !errors.Is(err, ErrConflict) {
			t.Errorf("when it has passed us: Run = %v", err)
		}
		for _, s := range after.Statuses() {
			if s.Write != 0 || s.Flush != 0 {
				t.Errorf("a position was reported before the overlap was compared: %+v", s)
			}
		}
	})
}

// TestSetBackAtABoundary: everything held ends at a segment's end, so that only
// the page before can tell.
func TestSetBackAtABoundary(t *testing.T) {
	for _, removed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{})
			w.srv.FillTo(2*mb + 5000)
			w.srv.WAL().SwitchSegment(1)
			w.run(12 * time.Second)
			if w.r.Summary().Position.LSN != 3*mb {
				t.Fatalf("held up to %s", w.r.Summary().Position)
			}
			other := restored(w, 0, 5*mb)
			defer other.Close()
			other.SetSlot(slotName, 3*mb)
			if removed {
				other.RemoveWALBefore(3 * mb)
			}
			w.options.Connect = connect(other)
			if err := w.refused(); !errors.Is(err, ErrConflict) {
				t.Errorf("removed=%v: Run = %v", removed, err)
			}
		})
	}
}

// TestContinuesAtABoundary: the same with the right server.
func TestContinuesAtABoundary(t *testing.T) {
	for _, removed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{})
			w.srv.FillTo(2*mb + 5000)
			w.srv.WAL().SwitchSegment(1)
			w.run(12 * time.Second)
			if removed {
				w.srv.RemoveWALBefore(3 * mb)
			}
			w.srv.FillTo(5 * mb)
			w.run(20 * time.Second)
			if got := w.checkArchive(1); got != 5*mb {
				t.Errorf("removed=%v: the archive ends at %s", removed, got)
			}
			w.checkStatuses()
		})
	}
}

func TestGapIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		w.run(time.Second)
		w.srv.FillTo(8 * mb)
		w.srv.RemoveWALBefore(6 * mb)
		err := w.refused()
		if !errors.Is(err, ErrGap) {
			t.Fatalf("Run = %v", err)
		}
		if !strings.Contains(err.Error(), w.r.Summary().Position.String()) {
			t.Errorf("the error does not say what is held: %v", err)
		}
	})
}

// TestSlotIsMadeOnlyWhereItHelps: the slot is gone, and with it the WAL.
func TestSlotIsMadeOnlyWhereItHelps(t *testing.T) {
	for _, gone := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{})
			w.srv.FillTo(3 * mb)
			w.run(time.Second)
			fresh := fakepg.New(fakepg.Options{WAL: w.srv.WAL(), SegmentSize: segment.MinSize})
			defer fresh.Close()
			fresh.FillTo(8 * mb)
			w.options.Connect = connect(fresh)
			if gone {
				fresh.RemoveWALBefore(6 * mb)
				if err := w.refused(); !errors.Is(err, ErrGap) {
					t.Errorf("Run = %v", err)
				}
			} else {
				w.run(20 * time.Second)
				w.checkArchive(1)
			}
			if _, ok := fresh.Slot(slotName); ok == gone {
				t.Errorf("gone=%v: slot exists = %v", gone, ok)
			}
		})
	}
}

// TestNewArchiveHasTheYoungerSegmentFirst: workers store in any order, and the
// receiver is killed between.
func TestNewArchiveHasTheYoungerSegmentFirst(t *testing.T) {
	for _, spoolLost := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{})
			w.srv.FillTo(2*mb + 300_000)
			end, _ := w.start(0)
			w.carrier.stall()
			time.Sleep(100 * time.Millisecond) // nothing is sealed yet
			if err := end(); err != nil {
				t.Fatal(err)
			}
			second := segment.MinSize.Name(1, 2*mb-1)
			if second.Start(segment.MinSize) != mb {
				t.Fatal(second)
			}
			younger := segment.MinSize.Name(1, 2*mb)
			w.srv.FillTo(3 * mb)
			w.archive.segments[younger] = w.srv.WAL().Segment(younger)
			if spoolLost {
				w.dir = t.TempDir()
			}
			w.srv.FillTo(5 * mb)
			w.run(30 * time.Second)
			if got := w.checkArchive(1); got != 5*mb {
				t.Errorf("spool lost=%v: the archive ends at %s", spoolLost, got)
			}
			w.checkStatuses()
		})
	}
}

// TestLostSlot: the server has invalidated the slot; its WAL may be there.
func TestLostSlot(t *testing.T) {
	for _, gone := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{Version: "18.1"})
			w.srv.FillTo(3 * mb)
			w.run(time.Second)
			lost := true
			w.srv.OnCommand(func(sql string) error {
				if strings.HasPrefix(sql, "DROP_REPLICATION_SLOT") {
					lost = false
				}
				if lost && strings.HasPrefix(sql, "START_REPLICATION SLOT") {
					return &replication.ServerError{Severity: "ERROR", SQLSTATE: "55000", Routine: "ReplicationSlotAcquire", Message: "can no longer access replication slot"}
				}
				return nil
			})
			w.srv.FillTo(8 * mb)
			if gone {
				w.srv.RemoveWALBefore(6 * mb)
				if err := w.refused(); !errors.Is(err, ErrGap) {
					t.Errorf("Run = %v", err)
				}
				return
			}
			w.run(20 * time.Second)
			if got := w.checkArchive(1); got != 8*mb {
				t.Errorf("the archive ends at %s", got)
			}
			if lost {
				t.Error("the slot was not made anew")
			}
		})
	}
}

// TestASlotThatRetainsNothing: before 18 the server streams from a slot that it
// has invalidated, and keeps no WAL for it. It is made anew, once.
func TestASlotThatRetainsNothing(t *testing.T) {
	for _, version := range []string{"14.20", "15.18", "17.2"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{Version: version})
			w.options.SlotPosition = func(context.Context, string) (segment.LSN, bool, error) {
				l, ok := w.srv.Slot(slotName)
				return l, ok, nil
			}
			w.srv.FillTo(3 * mb)
			w.run(time.Second)
			w.srv.FillTo(8 * mb)
			w.srv.SetSlot(slotName, 0)
			w.run(20 * time.Second)
			w.srv.FillTo(9 * mb)
			w.run(20 * time.Second)
			if got := w.checkArchive(1); got != 9*mb {
				t.Errorf("%s: the archive ends at %s", version, got)
			}
			made := 0
			for _, sql := range w.srv.Commands() {
				if strings.HasPrefix(sql, "CREATE_REPLICATION_SLOT") && strings.Contains(sql, "RESERVE_WAL") {
					made++
				}
			}
			if made != 1 {
				t.Errorf("%s: the slot was made %d times", version, made)
			}
		})
	}
}

func TestUnreachableArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		w.archive.down = errDown
		w.options.Slot = "another"
		end, _ := w.start(0)
		time.Sleep(time.Minute)
		settle()
		if _, ok := w.srv.Slot("another"); ok {
			t.Error("a new receiver made a slot without knowing the archive")
		}
		w.archive.mu.Lock()
		w.archive.down = nil
		w.archive.mu.Unlock()
		time.Sleep(time.Minute)
		settle()
		w.srv.FillTo(4*mb + 5000)
		time.Sleep(time.Minute)
		settle()
		if len(w.archive.segments) == 0 {
			t.Error("nothing is archived after the archive came back")
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		// With WAL in the spool the reception does not wait for the archive.
		w.archive.down = errDown
		w.srv.FillTo(5 * mb)
		w.srv.FillTo(5*mb + 5000)
		end, _ = w.start(0)
		w.carrier.stall()
		time.Sleep(time.Minute)
		settle()
		if s := w.lastStatus(); s.Write != w.srv.End() {
			t.Errorf("with the archive away: write %s, the server ends at %s", s.Write, w.srv.End())
		}
		w.carrier.flow()
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestServerThatCannotBeUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{Version: "13.14"})
		if err := w.refused(); !errors.Is(err, ErrServer) || !strings.Contains(err.Error(), "13.14") {
			t.Errorf("version 13: Run = %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.Set("wal_level", "minimal")
		if err := w.refused(); !errors.Is(err, ErrServer) || !strings.Contains(err.Error(), "wal_level") {
			t.Errorf("wal_level minimal: Run = %v", err)
		}
	})
}

func TestNamesStandby(t *testing.T) {
	for setting, want := range map[string]bool{
		"": false, "walferry": true, "WalFerry": true, "a, walferry": true, "*": true, `"*"`: false,
		"FIRST 2 (a, walferry)": true, "ANY 1 (b)": false, "2 (walferry,b)": true, `ANY 1 ("walferry")`: true,
		`"wal""ferry"`: false, `FIRST 1 ("a(b", walferry)`: true, "walferry2": false, "any": false,
	} {
		if got := namesStandby(setting, "walferry"); got != want {
			t.Errorf("%q: %v", setting, got)
		}
	}
}

// TestAnotherReceiverIsAhead: between the server's answer where its WAL ends
// and the archive's answer where that ends, another receiver ships more. That is
// no server that was set back.
func TestAnotherReceiverIsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(2*mb + 5000)
		w.run(time.Second)
		w.dir = t.TempDir() // the disk is lost
		ahead := false
		w.archive.asked = func() { // behind IDENTIFY_SYSTEM, in front of RunEnd
			if ahead {
				return
			}
			ahead = true
			w.srv.FillTo(4*mb + 5000)
			for at := segment.LSN(2 * mb); at < 4*mb; at += mb {
				w.archive.segments[segment.MinSize.Name(1, at)] = bytes.Clone(w.srv.WAL().Bytes(1, at, at+mb))
			}
		}
		w.run(30 * time.Second)
		if !ahead {
			t.Fatal("the archive was not asked")
		}
		w.srv.FillTo(5*mb + 5000)
		w.run(30 * time.Second)
		if got := w.checkArchive(1); got != 5*mb {
			t.Errorf("the archive ends at %s", got)
		}
		w.checkStatuses()
	})
}
