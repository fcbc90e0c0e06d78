package receiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/spool"
)

// gapWorld is a world that has received up to a bit behind 3 MB, with tail
// objects, and was stopped; the server has gone on to a bit behind 8 MB and has
// removed what lies before 6 MB.
func gapWorld(t *testing.T, o fakepg.Options) (w *world, held segment.LSN) {
	t.Helper()
	w = newWorld(t, o)
	w.tailing = true
	held = w.srv.FillTo(3*mb + 50000)
	w.run(12 * time.Second)
	w.srv.FillTo(8*mb + 10000)
	w.srv.RemoveWALBefore(6 * mb)
	return w, held
}

// runs lets the receiver work on the world's server for some time, which writes
// on meanwhile, and stops it.
func (w *world) runs(d time.Duration) {
	w.t.Helper()
	end, _ := w.start(0)
	w.worksOn(d)
	if err := end(); err != nil {
		w.t.Fatalf("Run: %v", err)
	}
}

func (w *world) worksOn(d time.Duration) {
	time.Sleep(d)
	w.srv.FillTo(w.srv.End() + mb)
	time.Sleep(20 * time.Second)
	settle()
}

// recorded are the gaps in the archive.
func (w *world) recorded() segment.Gaps {
	w.archive.mu.Lock()
	defer w.archive.mu.Unlock()
	all := slices.Clone(w.archive.gaps)
	slices.SortFunc(all, segment.Gap.Compare)
	return all
}

// checkBehind wants the archive to have what the server has of timeline t from
// an LSN on, whole segments and the tail, and what was reported to be its end.
func (w *world) checkBehind(t segment.Timeline, from segment.LSN) {
	w.t.Helper()
	end := w.srv.End()
	w.archive.mu.Lock()
	defer w.archive.mu.Unlock()
	for l := from; l < end; l += mb {
		n := segment.MinSize.Name(t, l)
		have := w.archive.segments[n]
		if to := min(l+mb, end); to < l+mb {
			have = w.archive.tails[n]
		}
		if want := w.srv.WAL().Bytes(t, l, min(l+mb, end)); !bytes.Equal(have, want) {
			w.t.Errorf("segment %s behind the gap: %d bytes in the archive, which must be the server's %d", n, len(have), len(want))
		}
	}
	if s := w.lastStatus(); s.Write != end {
		w.t.Errorf("the last status is %+v, the server's end %s", s, end)
	}
}

// checkFront wants what was held in front of the gap to be in tail objects, and
// no longer in the spool.
func (w *world) checkFront(t segment.Timeline, held segment.LSN) {
	w.t.Helper()
	n := segment.MinSize.Name(t, held)
	w.archive.mu.Lock()
	defer w.archive.mu.Unlock()
	if want := w.srv.WAL().Bytes(t, segment.MinSize.Start(held), held); !bytes.Equal(w.archive.tails[n], want) {
		w.t.Errorf("of %s, in front of the gap, %d bytes are in the archive, which must be the server's %d", n, len(w.archive.tails[n]), len(want))
	}
	if _, whole := w.archive.segments[n]; whole {
		w.t.Errorf("%s, which was never received whole, is in the archive as if", n)
	}
	if _, ended := w.archive.partials[n]; ended {
		w.t.Errorf("%s is in the archive as if its timeline had ended there", n)
	}
	for _, g := range w.sp.Segments() {
		if g.Name() == n {
			t := g
			w.t.Errorf("%s is still in the spool", t.Name())
		}
	}
}

func one(start, end segment.LSN) segment.Gaps {
	return segment.Gaps{{Timeline: 1, Start: start, End: end}}
}

// TestGapSaysWhatIsMissing: from where to where is found with a few connections.
func TestGapSaysWhatIsMissing(t *testing.T) {
	for _, slot := range []string{"there", "missing"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{})
			held := w.srv.FillTo(3*mb + 50000)
			w.run(12 * time.Second)
			w.srv.FillTo(60*mb + 10000)
			w.srv.RemoveWALBefore(47 * mb)
			if slot == "missing" {
				w.options.Slot = "another"
			}
			before := len(w.srv.Startups())
			err := w.refused()
			var gap *GapError
			if !errors.Is(err, ErrGap) || !errors.Is(err, replication.ErrWALRemoved) || !errors.As(err, &gap) {
				t.Fatalf("Run = %v", err)
			}
			if !slices.Equal(gap.Missing, one(held, 47*mb)) || gap.Held().LSN != held || gap.End() != 47*mb {
				t.Errorf("missing is %v", gap.Missing)
			}
			for _, want := range []string{held.String(), (47 * mb).String(), "timeline 1", "already been removed"} {
				if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("the error must be one line with %s: %v", want, err)
				}
			}
			if n := len(w.srv.Startups()) - before; n > 16 {
				t.Errorf("%d connections", n)
			}
			if len(w.recorded()) > 0 {
				t.Errorf("a gap was recorded, unasked: %v", w.recorded())
			}
			if _, ok := w.srv.Slot("another"); ok {
				t.Error("a slot was left")
			}
		})
	}
}

// TestRecordedGap: reception goes on behind it, with the slot there, missing, or
// lost; the next starts resume where it went on, though the spool is lost.
func TestRecordedGap(t *testing.T) {
	for _, slot := range []string{"there", "missing", "lost"} {
		for _, ack := range []Ack{AckSpool, AckArchive} {
			synctest.Test(t, func(t *testing.T) {
				w, held := gapWorld(t, fakepg.Options{Version: "18.1"})
				w.options.OnGap, w.options.Ack = RecordGap, ack
				told := 0
				w.options.Recorded = func(_ context.Context, gap *GapError) {
					told++
					if !slices.Equal(gap.Missing, one(held, 6*mb)) {
						t.Errorf("told of %v", gap.Missing)
					}
				}
				lost := false
				switch slot {
				case "missing":
					w.options.Slot = "another"
				case "lost":
					lost = true
					w.srv.OnCommand(func(sql string) error {
						lost = lost && !strings.HasPrefix(sql, "DROP_REPLICATION_SLOT")
						if lost && strings.HasPrefix(sql, "START_REPLICATION SLOT") {
							return &replication.ServerError{Severity: "ERROR", SQLSTATE: "55000", Routine: "ReplicationSlotAcquire", Message: "can no longer access replication slot"}
						}
						return nil
					})
				}
				w.runs(30 * time.Second)
				if lost {
					t.Error("the lost slot was not made anew")
				}
				if got := w.recorded(); !slices.Equal(got, one(held, 6*mb)) || told != 1 {
					t.Fatalf("recorded: %v, told %d times", got, told)
				}
				w.checkFront(1, held)
				w.checkBehind(1, 6*mb)
				w.checkStatuses()
				if !strings.Contains(w.log.String(), "a gap was recorded") {
					t.Error("the log does not say so")
				}

				w.runs(20 * time.Second)
				w.dir = t.TempDir()
				w.runs(20 * time.Second)
				w.checkBehind(1, 6*mb)
				if got := w.recorded(); len(got) != 1 || told != 1 {
					t.Errorf("recorded: %v, told %d times", got, told)
				}
			})
		}
	}
}

// TestGapAtABoundary: a new spool, an archive that ends at a boundary, and a
// server that begins later.
func TestGapAtABoundary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.tailing = true
		w.srv.FillTo(2*mb + 5000)
		w.srv.WAL().SwitchSegment(1)
		w.run(12 * time.Second)
		w.srv.FillTo(8 * mb)
		w.srv.RemoveWALBefore(6 * mb)
		w.dir = t.TempDir()
		w.options.OnGap = RecordGap
		w.runs(30 * time.Second)
		if got := w.recorded(); !slices.Equal(got, one(3*mb, 6*mb)) {
			t.Errorf("recorded: %v", got)
		}
		w.checkBehind(1, 6*mb)
	})
}

// TestGapUpToTheServersEnd: it begins where it ends, at a segment's start.
func TestGapUpToTheServersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, held := gapWorld(t, fakepg.Options{})
		w.srv.WAL().SwitchSegment(1)
		end := w.srv.End()
		w.srv.RemoveWALBefore(end)
		w.options.OnGap, w.options.Slot = RecordGap, "another"
		w.runs(20 * time.Second)
		if got := w.recorded(); !slices.Equal(got, one(held, end)) || segment.MinSize.Offset(end) != 0 {
			t.Errorf("recorded: %v, the server had ended at %s", got, end)
		}
		w.checkBehind(1, end)
	})
}

// TestASecondGap: the server goes on removing WAL between the record and the
// stream, and again later.
func TestASecondGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, held := gapWorld(t, fakepg.Options{})
		w.options.OnGap = RecordGap
		w.options.Recorded = func(_ context.Context, gap *GapError) {
			if gap.End() == 6*mb {
				w.srv.RemoveWALBefore(7 * mb)
			}
		}
		w.runs(30 * time.Second)
		want := append(one(held, 6*mb), one(6*mb, 7*mb)...)
		if got := w.recorded(); !slices.Equal(got, want) {
			t.Errorf("recorded: %v, want %v", got, want)
		}
		w.checkBehind(1, 7*mb)

		second := w.srv.End()
		w.srv.FillTo(14 * mb)
		w.srv.RemoveWALBefore(12 * mb)
		w.runs(30 * time.Second)
		want = append(want, one(second, 12*mb)...)
		if got := w.recorded(); !slices.Equal(got, want) {
			t.Errorf("recorded: %v, want %v", got, want)
		}
		w.checkFront(1, second)
		w.checkBehind(1, 12*mb)
		w.checkStatuses()
	})
}

// TestGapAcrossASwitch: one is recorded for each timeline.
func TestGapAcrossASwitch(t *testing.T) {
	for _, c := range []struct {
		what   string
		at     segment.LSN // the switchpoint, about
		remove segment.LSN
	}{
		{"in the segment that we hold", 3*mb + 200000, 6 * mb},
		{"in a segment that is gone", 4*mb + 200000, 6 * mb},
		{"in the first segment that is there", 6*mb + 200000, 6 * mb},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				w.tailing = true
				held := w.srv.FillTo(3*mb + 50000)
				w.run(12 * time.Second)
				at := w.srv.FillTo(c.at)
				w.srv.Promote(at)
				w.srv.FillTo(8*mb + 10000)
				w.srv.RemoveWALBefore(c.remove)
				want := segment.Gaps{{Timeline: 1, Start: held, End: min(at, c.remove)}}
				if at < c.remove {
					want = append(want, segment.Gap{Timeline: 2, Start: at, End: c.remove})
				}
				var gap *GapError
				if err := w.refused(); !errors.As(err, &gap) || !slices.Equal(gap.Missing, want) {
					t.Errorf("Run = %v", err)
				}
				w.options.OnGap = RecordGap
				w.runs(30 * time.Second)
				if got := w.recorded(); !slices.Equal(got, want) {
					t.Errorf("recorded: %v, want %v", got, want)
				}
				w.checkFront(1, held)
				w.checkBehind(2, max(7*mb, c.remove))
				w.dir = t.TempDir()
				w.runs(20 * time.Second)
				w.checkBehind(2, max(7*mb, c.remove))
				if got := w.recorded(); !slices.Equal(got, want) {
					t.Errorf("recorded: %v, want %v", got, want)
				}
			})
		})
	}
}

// TestGapIsRecordedFirst: while the record cannot be stored, nothing that lies
// behind the gap is asked for or reported, and no slot is made.
func TestGapIsRecordedFirst(t *testing.T) {
	for _, what := range []string{"the record", "what lies in front"} {
		synctest.Test(t, func(t *testing.T) {
			w, held := gapWorld(t, fakepg.Options{})
			w.options.OnGap, w.options.Slot = RecordGap, "another"
			if what == "the record" {
				w.archive.noGap = func(segment.Gap) error { return errDown }
			} else {
				w.archive.mu.Lock()
				delete(w.archive.tails, segment.MinSize.Name(1, held))
				w.archive.mu.Unlock()
			}
			end, _ := w.start(0)
			if what != "the record" {
				w.carrier.stall()
			}
			reported := len(w.srv.Statuses())
			time.Sleep(10 * time.Minute)
			settle()
			if n := len(w.srv.Statuses()); n != reported {
				t.Errorf("%d statuses were sent", n-reported)
			}
			if _, ok := w.srv.Slot("another"); ok || len(w.recorded()) != 0 {
				t.Errorf("a slot was made, or a gap recorded: %v", w.recorded())
			}
			if what == "the record" {
				w.archive.mu.Lock()
				w.archive.noGap = nil
				w.archive.mu.Unlock()
			} else {
				w.carrier.flow()
			}
			w.worksOn(2 * time.Minute)
			if got := w.recorded(); !slices.Equal(got, one(held, 6*mb)) {
				t.Errorf("recorded: %v", got)
			}
			w.checkFront(1, held)
			w.checkBehind(1, 6*mb)
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestStoppedBehindTheRecord: the run ends at each point between the record and
// the first byte behind the gap; the next one goes on there.
func TestStoppedBehindTheRecord(t *testing.T) {
	for _, c := range []struct{ at, prefix string }{
		{"before the slot", "START_REPLICATION PHYSICAL"},
		{"behind the slot", "START_REPLICATION SLOT"},
		{"before its making", "CREATE_REPLICATION_SLOT"},
	} {
		for _, spoolLost := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				w, held := gapWorld(t, fakepg.Options{})
				w.options.OnGap, w.options.Slot, w.options.NoLoop = RecordGap, "another", true
				cut := false
				w.srv.OnCommand(func(sql string) error {
					if cut || len(w.recorded()) == 0 || !strings.HasPrefix(sql, c.prefix) {
						return nil
					}
					cut = true
					return fakepg.ErrDrop
				})
				end, result := w.start(0)
				select {
				case err := <-result:
					if err == nil {
						t.Error("the run was not cut")
					}
				case <-time.After(time.Hour):
					t.Error("the run goes on")
				}
				_ = end()
				if !cut || len(w.recorded()) != 1 {
					t.Fatalf("%s: cut: %v, recorded: %v", c.at, cut, w.recorded())
				}
				w.options.NoLoop = false
				if spoolLost {
					w.dir = t.TempDir()
				}
				w.runs(20 * time.Second)
				if got := w.recorded(); !slices.Equal(got, one(held, 6*mb)) {
					t.Errorf("%s: recorded: %v", c.at, got)
				}
				w.checkFront(1, held)
				w.checkBehind(1, 6*mb)
				w.checkStatuses()
			})
		}
	}
}

// TestThePartialComesBack: the removal of the segment in front of the gap was
// not durable, and of what lies behind the spool has more than the archive. The
// run is the one behind the gap, and the server need not have it any more.
func TestThePartialComesBack(t *testing.T) {
	for _, archived := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w, held := gapWorld(t, fakepg.Options{})
			before := w.copySpool()
			w.options.OnGap = RecordGap
			end, _ := w.start(0)
			time.Sleep(30 * time.Second)
			w.carrier.stall()
			last := w.srv.FillTo(11*mb + 5000)
			time.Sleep(20 * time.Second)
			settle()
			if err := end(); err != nil {
				t.Fatal(err)
			}
			w.restoreFile(before, segment.MinSize.Name(1, held).String()+".partial")
			if !archived {
				delete(w.archive.tails, segment.MinSize.Name(1, held))
			}
			w.srv.RemoveWALBefore(11 * mb)
			w.srv.SetSlot(slotName, last)
			w.options.OnGap = StopAtGap
			w.stalled = true
			end, _ = w.start(0)
			time.Sleep(30 * time.Second)
			settle()
			if archived {
				w.checkFront(1, held)
			} else if _, there := w.r.find(segment.MinSize.Name(1, held)); !there {
				t.Error("what nothing else holds has left the spool")
			}
			w.carrier.flow()
			w.worksOn(30 * time.Second)
			if err := end(); err != nil {
				t.Fatalf("Run: %v", err)
			}
			w.checkBehind(1, 6*mb)
			if got := w.recorded(); !slices.Equal(got, one(held, 6*mb)) {
				t.Errorf("recorded: %v", got)
			}
		})
	}
}

// TestTwoReceiversRecordTheSameGap: each with a slot and a spool of its own.
func TestTwoReceiversRecordTheSameGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, held := gapWorld(t, fakepg.Options{})
		w.options.OnGap = RecordGap
		second := *w
		second.options.Slot, second.dir, second.log = "another", t.TempDir(), &logBuffer{}
		end1, _ := w.start(0)
		end2, _ := second.start(0)
		w.worksOn(30 * time.Second)
		if err := errors.Join(end1(), end2()); err != nil {
			t.Fatal(err)
		}
		if got := w.recorded(); !slices.Equal(got, one(held, 6*mb)) {
			t.Errorf("recorded: %v", got)
		}
		w.checkBehind(1, 6*mb)
	})
}

// hosts are servers by the name that a connection asks for.
func hosts(servers map[string]*fakepg.Server) []func(context.Context) (*replication.Conn, error) {
	var all []func(context.Context) (*replication.Conn, error)
	for _, name := range []string{"db", "standby", "other"} {
		if srv := servers[name]; srv != nil {
			all = append(all, connectAs(name, srv))
		}
	}
	return all
}

// connectAs dials a server under a host name.
func connectAs(name string, srv *fakepg.Server) func(context.Context) (*replication.Conn, error) {
	return func(ctx context.Context) (*replication.Conn, error) {
		c, err := replication.ParseConfig(replication.Params{DSN: "host=" + name + " port=5432 user=walferry sslmode=disable", ApplicationName: "walferry"})
		if err != nil {
			return nil, err
		}
		c.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			return srv.Dial(ctx, network, address)
		}
		return replication.Connect(ctx, c)
	}
}

// TestAnotherHostHasTheWAL: nothing is lost, whatever --on-gap says.
func TestAnotherHostHasTheWAL(t *testing.T) {
	for _, c := range []struct {
		what    string
		standby func(w *world) *fakepg.Server
		has     segment.LSN // what it has beyond what is held; 0: nothing
	}{
		{"a standby", func(w *world) *fakepg.Server {
			return fakepg.New(fakepg.Options{WAL: w.srv.WAL(), SegmentSize: segment.MinSize, InRecovery: true})
		}, 9 * mb},
		{"one that has removed it, too", func(w *world) *fakepg.Server {
			s := fakepg.New(fakepg.Options{WAL: w.srv.WAL(), SegmentSize: segment.MinSize, InRecovery: true})
			s.RemoveWALBefore(5 * mb)
			return s
		}, 0},
		{"another cluster", func(*world) *fakepg.Server {
			s := fakepg.New(fakepg.Options{SystemIdentifier: 42, SegmentSize: segment.MinSize})
			s.FillTo(20 * mb)
			return s
		}, 0},
		{"one that went on differently", func(w *world) *fakepg.Server {
			return restored(w, 0, 20*mb)
		}, 0},
		{"one that is away", func(w *world) *fakepg.Server {
			s := fakepg.New(fakepg.Options{WAL: w.srv.WAL(), SegmentSize: segment.MinSize, InRecovery: true})
			s.Stop()
			return s
		}, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, held := gapWorld(t, fakepg.Options{})
				standby := c.standby(w)
				defer standby.Close()
				w.options.Connect = connectAs("db", w.srv)
				w.options.Hosts = hosts(map[string]*fakepg.Server{"db": w.srv, "standby": standby})
				if c.has == 0 {
					var gap *GapError
					if err := w.refused(); !errors.As(err, &gap) || !slices.Equal(gap.Missing, one(held, 6*mb)) {
						t.Errorf("Run = %v", err)
					} else if c.what != "one that is away" && (len(gap.Asked) != 1 || !strings.Contains(err.Error(), "standby")) {
						t.Errorf("the error does not say who was asked: %v", err)
					}
					return
				}
				w.runs(30 * time.Second)
				w.checkBehind(1, 2*mb)
				w.checkArchive(1)
				w.checkStatuses()
				if len(w.recorded()) != 0 {
					t.Errorf("recorded: %v", w.recorded())
				}
				for _, sql := range standby.Commands() {
					if strings.Contains(sql, "SLOT") {
						t.Errorf("the standby was asked for a slot: %s", sql)
					}
				}
				if n := strings.Count(w.log.String(), "asking another host for it"); n != 1 {
					t.Errorf("the log says %d times where the WAL comes from", n)
				}
			})
		})
	}
}

// TestAnotherHostHasSome: what it has makes the gap smaller.
func TestAnotherHostHasSome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.tailing = true
		w.srv.FillTo(3*mb + 50000)
		w.run(12 * time.Second)
		behind := fakepg.NewWAL(7300000000000000001, segment.MinSize, 0)
		some := behind.FillTo(1, 4*mb+50000)
		standby := fakepg.New(fakepg.Options{WAL: behind, SegmentSize: segment.MinSize, InRecovery: true})
		defer standby.Close()
		w.srv.FillTo(8*mb + 10000)
		if !bytes.Equal(behind.Bytes(1, 4*mb, some), w.srv.WAL().Bytes(1, 4*mb, some)) {
			t.Skip("the two servers' WAL differs")
		}
		w.srv.RemoveWALBefore(6 * mb)
		w.options.Connect = connectAs("db", w.srv)
		w.options.Hosts = hosts(map[string]*fakepg.Server{"db": w.srv, "standby": standby})
		w.options.OnGap = RecordGap
		w.runs(30 * time.Second)
		if got := w.recorded(); !slices.Equal(got, one(some, 6*mb)) {
			t.Errorf("recorded: %v, the standby had up to %s", got, some)
		}
		w.checkFront(1, some)
		w.checkBehind(1, 6*mb)
	})
}

// TestAGapThatTheSlotStillHas: another receiver has recorded a gap, and has gone
// on; what lies in it our slot retains. It is filled.
func TestAGapThatTheSlotStillHas(t *testing.T) {
	for _, spoolLost := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{})
			w.tailing = true
			held := w.srv.FillTo(5*mb + 50000)
			w.run(12 * time.Second)
			w.srv.FillTo(13*mb + 5000)
			w.archive.gaps = one(4*mb+500, 10*mb)
			for l := 10 * mb; l < 13*mb; l += mb {
				n := segment.MinSize.Name(1, l)
				w.archive.segments[n] = w.srv.WAL().Segment(n)
			}
			w.srv.SetSlot(slotName, held)
			w.srv.RemoveWALBefore(5 * mb)
			if spoolLost {
				w.dir = t.TempDir()
			}
			end, _ := w.start(0)
			time.Sleep(20 * time.Second)
			settle()
			w.worksOn(20 * time.Second)
			if err := end(); err != nil {
				t.Fatal(err)
			}
			w.checkBehind(1, 5*mb)
		})
	}
}

// TestHalfRecorded: of two timelines' gaps one was stored when the run ended.
func TestHalfRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.tailing = true
		held := w.srv.FillTo(3*mb + 50000)
		w.run(12 * time.Second)
		at := w.srv.FillTo(4*mb + 200000)
		w.srv.Promote(at)
		w.srv.FillTo(8*mb + 10000)
		w.srv.RemoveWALBefore(6 * mb)
		w.options.OnGap = RecordGap
		w.archive.noGap = func(segment.Gap) error {
			if len(w.archive.gaps) > 0 {
				return errDown
			}
			return nil
		}
		w.run(time.Minute)
		if len(w.recorded()) != 1 {
			t.Fatalf("recorded: %v", w.recorded())
		}
		w.archive.noGap = nil
		w.srv.RemoveWALBefore(7 * mb) // meanwhile
		w.runs(30 * time.Second)
		for l := held; l < 7*mb; l += 1000 {
			if !slices.ContainsFunc(w.recorded(), func(g segment.Gap) bool {
				return g.Start <= l && l < g.End && (g.Timeline == 1) == (l < at)
			}) {
				t.Fatalf("%s is missing, and no gap of its timeline says so: %v", l, w.recorded())
			}
		}
		w.checkFront(1, held)
		w.checkBehind(2, 7*mb)
	})
}

// TestTheServerGoesBeforeTheSlotIsMade: between the question whether it has the
// WAL, and the making of the slot.
func TestTheServerGoesBeforeTheSlotIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 50000)
		w.run(12 * time.Second)
		w.options.Slot = "another"
		tries := 0
		w.options.Connect = func(ctx context.Context) (*replication.Conn, error) {
			if tries++; tries == 2 {
				return nil, errDown
			}
			return connect(w.srv)(ctx)
		}
		w.runs(30 * time.Second)
		if _, ok := w.srv.Slot("another"); !ok || tries < 4 {
			t.Errorf("after %d connections the slot is there: %v", tries, ok)
		}
	})
}

// copySpool reads the spool's files.
func (w *world) copySpool() map[string][]byte {
	w.t.Helper()
	all := map[string][]byte{}
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(w.dir, e.Name())); err == nil {
			all[e.Name()] = b
		}
	}
	return all
}

// restoreFile puts one of them back.
func (w *world) restoreFile(files map[string][]byte, name string) {
	w.t.Helper()
	if files[name] == nil {
		w.t.Fatalf("there was no %s in the spool", name)
	}
	if err := os.WriteFile(filepath.Join(w.dir, name), files[name], 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// TestGapIsCutEverywhere cuts the connection at one command of the server's
// after the other, or the power at one operation of the spool's disk after the
// other, while a gap is met and recorded. Whatever was reported as flushed is in
// the archive, in the spool, or in a recorded gap; and the next run goes on.
func TestGapIsCutEverywhere(t *testing.T) {
	step := 11
	if os.Getenv("WALFERRY_FULL") != "" {
		step = 1
	}
	for _, power := range []bool{false, true} {
		for n := 1; ; n += step {
			reached := false
			synctest.Test(t, func(t *testing.T) { reached = cutAtGap(t, power, n) })
			if t.Failed() {
				t.Fatalf("power=%v, operation %d", power, n)
			}
			if !reached {
				if n < 10 {
					t.Errorf("power=%v: only %d operations: the sweep shows nothing", power, n)
				}
				break
			}
		}
	}
}

// cutAtGap reports whether the run was long enough for the n-th operation.
func cutAtGap(t *testing.T, power bool, n int) (reached bool) {
	disk := crashfs.New(uint64(n))
	w := newWorld(t, fakepg.Options{})
	w.fs, w.dir, w.tailing = disk, "/spool", true
	held := w.srv.FillTo(3*mb + 50000)
	w.run(12 * time.Second)
	at := w.srv.FillTo(4*mb + 50000)
	w.srv.Promote(at)
	w.srv.FillTo(8*mb + 10000)
	w.srv.RemoveWALBefore(6 * mb)
	w.options.OnGap, w.options.Slot, w.options.NoLoop = RecordGap, "another", true
	commands := 0
	if !power {
		w.srv.OnCommand(func(string) error {
			if commands++; commands == n {
				return fakepg.ErrDrop
			}
			return nil
		})
	}
	end, _ := w.start(0)
	if power {
		disk.StopAt(n)
	}
	begin := disk.Ops()
	time.Sleep(20 * time.Second)
	w.srv.FillTo(9*mb + 10000)
	time.Sleep(20 * time.Second)
	settle()
	if err := end(); err != nil && !errors.Is(err, crashfs.ErrCrashed) {
		t.Logf("Run: %v", err)
	}
	reached = commands >= n || power && disk.Ops()-begin >= n
	if power {
		disk.Crash()
	}
	w.srv.OnCommand(nil)
	var flush segment.LSN
	for _, s := range w.srv.Statuses() {
		flush = max(flush, s.Flush)
	}
	sp, err := spool.Open(disk, w.dir, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for l := mb; l < flush; l += 10_000 {
		owner := segment.Timeline(2)
		if l < at {
			owner = 1
		}
		if name := segment.MinSize.Name(owner, l); !w.has(name, l) && !inSpool(sp, w, name, l) && !slices.ContainsFunc(w.recorded(), func(g segment.Gap) bool {
			return g.Timeline == owner && g.Start <= l && l < g.End
		}) {
			t.Fatalf("flush %s was reported, and %s is nowhere", flush, l)
		}
	}
	if err := sp.Close(); err != nil {
		t.Error(err)
	}
	w.options.NoLoop = false
	w.runs(40 * time.Second)
	want := segment.Gaps{{Timeline: 1, Start: held, End: at}, {Timeline: 2, Start: at, End: 6 * mb}}
	if got := w.recorded(); !slices.Equal(got, want) {
		t.Errorf("recorded: %v, want %v", got, want)
	}
	w.checkFront(1, held)
	w.checkBehind(2, 6*mb)
	w.checkStatuses()
	return reached
}

// has reports whether the archive has the byte at an LSN, of a segment or its
// timeline's parent's.
func (w *world) has(n segment.Name, l segment.LSN) bool {
	w.archive.mu.Lock()
	defer w.archive.mu.Unlock()
	_, whole := w.archive.segments[n]
	return whole || w.archive.partials[n] > l || n.Start(segment.MinSize)+segment.LSN(len(w.archive.tails[n])) > l
}

// inSpool reports whether the spool has it, as the server sent it.
func inSpool(sp *spool.Spool, w *world, n segment.Name, l segment.LSN) bool {
	b := make([]byte, 1)
	return slices.ContainsFunc(sp.Segments(), func(g *spool.Segment) bool {
		return g.Name() == n && g.ReadAt(b, l) == nil && bytes.Equal(b, w.srv.WAL().Bytes(n.Timeline, l, l+1))
	})
}

// TestAServerThatHangsAtAGap: it takes the connection and does not answer, when
// it is asked whether it has the WAL, or where its WAL begins. It is asked again,
// not waited for.
func TestAServerThatHangsAtAGap(t *testing.T) {
	for _, c := range []struct {
		word string
		nth  int64 // of these commands since the start
	}{{"START_REPLICATION", 1}, {"START_REPLICATION", 2}, {"IDENTIFY_SYSTEM", 2}} {
		t.Run(fmt.Sprintf("%s %d", c.word, c.nth), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				held := w.srv.FillTo(3*mb + 50000)
				w.run(12 * time.Second)
				w.srv.FillTo(20*mb + 10000)
				w.srv.RemoveWALBefore(11 * mb)
				w.options.Slot = "another" // missing: the WAL is asked for without it
				release := make(chan struct{})
				defer close(release)
				var n atomic.Int64 // each connection asks in its own goroutine
				w.srv.OnCommand(func(sql string) error {
					if strings.HasPrefix(sql, c.word) && n.Add(1) == c.nth {
						<-release
						return fakepg.ErrDrop
					}
					return nil
				})
				_, result := w.start(0)
				select {
				case err := <-result:
					var gap *GapError
					if !errors.As(err, &gap) || !slices.Equal(gap.Missing, one(held, 11*mb)) {
						t.Errorf("Run = %v", err)
					}
				case <-time.After(10 * time.Minute):
					t.Error("it is waited for")
				}
			})
		})
	}
}
