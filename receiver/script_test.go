package receiver

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

// What PostgreSQL does at the end of a timeline, of a stream and of a server,
// and what its own pg_receivewal does badly there, each as a script of fakepg:
//
//	timeline 1 has no history file                          TestTheFirstTimelineHasNoHistory
//	a history that cannot be had ends the attempt           TestNothingOfATimelineWithoutItsHistory
//	an ancestor's own file that is gone does not            TestAnAncestorsFileIsGone
//	CopyDone, ours, a row, two CommandComplete              TestFollowsAPromotion, TestEndsOfATimeline
//	the next timeline must be larger, and begin within      TestEndsOfATimeline
//	what was sent; it need not be the next number           TestTimelinesJump
//	the next timeline is asked for from its segment's start TestEndsOfATimeline
//	the old timeline's last segment is sent out of the next TestSeveralSwitchesInOneSegment
//	  one's file, which may be renamed
//	the segment of the switch exists twice                  TestFollowsAPromotion, TestEndsOfATimeline
//	a result set at once, where a timeline ends exactly at  TestEndsOfATimeline ("a result set at once")
//	  the position asked for (pg_receivewal never ends)
//	the server shuts down: COPY 0, and no CopyDone          TestFastShutdownIsNotHindered, TestShutdownGrace,
//	                                                        TestAServerThatEndedTheStreamIsLeftAlone
//	the end position, passed, reached, behind the start     TestEndPos, TestEndPosOfAnIdleServer
//	told to stop: CopyDone, and the server's is waited for  TestTheLastReport
//	--no-loop                                               TestNoLoop
//	the slot is lost, and nothing is held (a silent gap)    TestLostSlot, TestEmptySpoolContinuesAtTheArchive
//	no last report, and none at a segment's end             TestTheLastReport, TestASealIsReported
//	the first connection, or IDENTIFY_SYSTEM, fails for     TestAFirstConnectionThatFails
//	  good
//	a server that hangs                                     TestAServerThatDoesNotAnswer, TestSilentServerIsGivenUp
//	WAL of another cluster is not noticed                   TestForeignClusterIsRefused
//	partials stay behind for good                           TestAheadOfTheNewTimeline, TestTheOldTimelinesRestIsFinishedLater

func TestTheFirstTimelineHasNoHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		w.run(12 * time.Second)
		for _, sql := range w.srv.Commands() {
			if strings.HasPrefix(sql, "TIMELINE_HISTORY") {
				t.Errorf("asked for %q", sql)
			}
		}
	})
}

// TestNothingOfATimelineWithoutItsHistory: as long as the server does not give
// it, nothing of the timeline is asked for, let alone reported.
func TestNothingOfATimelineWithoutItsHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		at := w.srv.FillTo(3*mb + 5000)
		w.start(0)
		time.Sleep(12 * time.Second)
		settle()
		w.srv.OnCommand(func(sql string) error {
			if strings.HasPrefix(sql, "TIMELINE_HISTORY") {
				return &replication.ServerError{Severity: "ERROR", SQLSTATE: "58030", Message: "could not read file"}
			}
			return nil
		})
		w.srv.Promote(at)
		w.srv.FillTo(5 * mb)
		time.Sleep(time.Minute)
		settle()
		for _, sql := range w.srv.Commands() {
			if strings.HasPrefix(sql, "START_REPLICATION") && strings.HasSuffix(sql, "TIMELINE 2") {
				t.Errorf("%q without the history of timeline 2", sql)
			}
		}
		if s := w.lastStatus(); s.Write > at {
			t.Errorf("told of %s, and timeline 1 ended at %s", s.Write, at)
		}
		w.srv.OnCommand(nil)
		time.Sleep(time.Minute)
		settle()
		if got := w.checkArchive(2); got != 5*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}

// TestAnAncestorsFileIsGone: the server has been restored, or rebuilt, and has
// only its own timeline's, which lists them all.
func TestAnAncestorsFileIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3*mb + 5000)
		w.run(12 * time.Second)
		w.srv.Promote(w.srv.End())
		w.srv.FillTo(4*mb + 5000)
		w.srv.Promote(w.srv.End())
		w.srv.FillTo(6 * mb)
		w.srv.OnCommand(func(sql string) error {
			if sql == "TIMELINE_HISTORY 2" {
				return &replication.ServerError{Severity: "ERROR", SQLSTATE: "58P01", Routine: "SendTimeLineHistory", Message: `could not open file "pg_wal/00000002.history"`}
			}
			return nil
		})
		w.run(time.Minute)
		if got := w.checkArchive(3); got != 6*mb {
			t.Errorf("the archive ends at %s", got)
		}
		if _, ok := w.archive.histories[3]; !ok || len(w.archive.histories) != 1 {
			t.Errorf("the archive has %d histories", len(w.archive.histories))
		}
	})
}

// TestEndsOfATimeline: the server goes to another timeline between two
// commands, and ends the stream in every way there is. Whatever it says, in the
// end its timeline is followed, at its switchpoint, and nothing is mixed.
func TestEndsOfATimeline(t *testing.T) {
	for name, c := range map[string]struct {
		boundary bool
		// end is the stream's script: the timeline that is streamed ended at at,
		// and there is more of it.
		end func(w *fakepg.Walsender, child segment.Timeline, at, more segment.LSN) error
	}{
		"CopyDone": {end: func(w *fakepg.Walsender, child segment.Timeline, at, _ segment.LSN) error {
			return errors.Join(w.Send(at), w.CopyDone(child, at))
		}},
		"CopyDone at a boundary": {boundary: true, end: func(w *fakepg.Walsender, child segment.Timeline, at, _ segment.LSN) error {
			return errors.Join(w.Send(at), w.CopyDone(child, at))
		}},
		"a result set at once": {boundary: true, end: func(w *fakepg.Walsender, child segment.Timeline, at, _ segment.LSN) error {
			return w.ResultSet(child, at)
		}},
		"behind half of a record more": {end: func(w *fakepg.Walsender, child segment.Timeline, at, more segment.LSN) error {
			return errors.Join(w.Send(more-100), w.CopyDone(child, at))
		}},
		"no next timeline": {end: func(w *fakepg.Walsender, _ segment.Timeline, at, _ segment.LSN) error {
			return errors.Join(w.Send(at), w.CopyDone(0, 0))
		}},
		"the same timeline": {end: func(w *fakepg.Walsender, _ segment.Timeline, at, _ segment.LSN) error {
			return errors.Join(w.Send(at), w.CopyDone(w.From.Timeline, at))
		}},
		"beyond what was sent": {end: func(w *fakepg.Walsender, child segment.Timeline, at, more segment.LSN) error {
			return errors.Join(w.Send(at), w.CopyDone(child, more))
		}},
		"the connection ends": {end: func(w *fakepg.Walsender, _ segment.Timeline, at, _ segment.LSN) error {
			return errors.Join(w.Send(at), w.Raw([]byte{'c', 0, 0, 0, 4}), w.Drop())
		}},
		"it shuts down": {end: func(w *fakepg.Walsender, _ segment.Timeline, at, _ segment.LSN) error {
			return errors.Join(w.Send(at), w.Raw([]byte{'c', 0, 0, 0, 4}), w.CopyZero())
		}},
		"an error": {end: func(w *fakepg.Walsender, _ segment.Timeline, at, _ segment.LSN) error {
			return errors.Join(w.Send(at), w.Raw([]byte{'c', 0, 0, 0, 4}),
				w.Fail(&replication.ServerError{Severity: "FATAL", SQLSTATE: "57P01", Message: "terminating walsender process due to administrator command"}))
		}},
		"silence": {end: func(w *fakepg.Walsender, _ segment.Timeline, at, _ segment.LSN) error {
			if err := errors.Join(w.Send(at), w.Raw([]byte{'c', 0, 0, 0, 4})); err != nil {
				return err
			}
			for {
				if _, err := w.Status(); err != nil && !errors.Is(err, fakepg.ErrCopyDone) {
					return err
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				at := w.srv.FillTo(3*mb + 5000)
				if c.boundary {
					at = w.srv.WAL().SwitchSegment(1)
				}
				end, _ := w.start(0)
				time.Sleep(12 * time.Second)
				settle()
				more := w.srv.WAL().Append(1, 3000)
				child := w.srv.WAL().Fork(1, at)
				w.srv.WAL().FillTo(child, 6*mb)
				promoted := false
				w.srv.Script(func(s *fakepg.Walsender) error {
					if !promoted {
						promoted = true
						w.srv.Follow(child)
					}
					if c.boundary && s.From.LSN < at {
						if s.From.LSN != at-8192 && s.From.LSN != 3*mb {
							t.Errorf("asked from %s", s.From)
						}
					}
					return c.end(s, child, at, more)
				})
				w.srv.Cut()
				time.Sleep(3 * time.Minute)
				settle()
				if !promoted {
					t.Fatal("the script was not played")
				}
				if got := w.checkArchive(child); got != 6*mb {
					t.Errorf("the archive ends at %s on timeline %d", got, child)
				}
				n := segment.MinSize.Name(1, at)
				w.archive.mu.Lock()
				if got := w.archive.partials[n]; !c.boundary && got != at || c.boundary && got != 0 {
					t.Errorf("the old timeline's last segment is stored up to %s, it ended at %s", got, at)
				}
				w.archive.mu.Unlock()
				w.checkStatuses()
				asked := "START_REPLICATION SLOT \"" + slotName + "\" PHYSICAL " + segment.MinSize.Start(at).String() + " TIMELINE 2"
				if !slices.Contains(w.srv.Commands(), asked) {
					t.Errorf("%q is not among %q", asked, w.srv.Commands())
				}
				if err := end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestEndPosOfAnIdleServer: it is passed, not reached; and one that is behind the
// start is done at once.
func TestEndPosOfAnIdleServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		w.options.EndPos = w.srv.End()
		end, result := w.start(0)
		time.Sleep(time.Minute)
		settle()
		select {
		case err := <-result:
			t.Fatalf("Run = %v at the end position", err)
		default:
		}
		w.srv.Append(100)
		if err := <-result; err != nil {
			t.Errorf("Run = %v", err)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		w.options.EndPos = 2 * mb
		before := len(w.srv.Statuses())
		_, result = w.start(0)
		if err := <-result; err != nil {
			t.Errorf("Run = %v", err)
		}
		if n := len(w.srv.Statuses()); n != before {
			t.Errorf("%d statuses of a run that had nothing to do", n-before)
		}
	})
}

// TestTheLastReport: who is told to stop reports all that is durable, says
// CopyDone, and takes the server's in.
func TestTheLastReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.options.Hold = 0
		w.srv.FillTo(3 * mb)
		end, _ := w.start(0)
		time.Sleep(12 * time.Second)
		settle()
		last := w.srv.Append(5000)
		settle()
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if restart, _ := w.srv.Slot(slotName); restart != last {
			t.Errorf("the slot is at %s, all is durable up to %s", restart, last)
		}
	})
}

// TestTheLastOffer: what a stop makes durable goes up before the end, where the
// archive works.
func TestTheLastOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		end, _ := w.start(0)
		time.Sleep(12 * time.Second)
		settle()
		w.srv.Append(5000)
		settle()
		last := w.srv.Append(5000) // its fsync is not due yet
		settle()
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if o := w.carrier.offers; len(o) == 0 || o[len(o)-1].to != last {
			t.Errorf("%s is durable, and was not offered to the archive: %+v", last, o)
		}
	})
}

// TestASealIsReported: the slot does not lag by a status interval.
func TestASealIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.options.Hold = 0
		w.options.StatusInterval = time.Hour
		w.srv.FillTo(2*mb + 5000)
		w.start(0)
		time.Sleep(15 * time.Second)
		settle()
		w.srv.FillTo(3*mb + 5000)
		time.Sleep(5 * time.Second)
		settle()
		if restart, _ := w.srv.Slot(slotName); restart < 3*mb {
			t.Errorf("the slot is at %s behind a segment's end", restart)
		}
	})
}

// TestAFirstConnectionThatFails is tried again like every other, and so is what
// comes behind it.
func TestAFirstConnectionThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.srv.FillTo(3 * mb)
		w.srv.Stop()
		w.start(0)
		time.Sleep(time.Minute)
		w.srv.Start()
		w.srv.RefuseStartup(&replication.ServerError{Severity: "FATAL", SQLSTATE: "57P03", Message: "the database system is starting up"})
		time.Sleep(time.Minute)
		w.srv.RefuseStartup(nil)
		for _, word := range []string{"IDENTIFY_SYSTEM", "SHOW wal_segment_size", "READ_REPLICATION_SLOT", "START_REPLICATION"} {
			failed := false
			w.srv.OnCommand(func(sql string) error {
				if strings.HasPrefix(sql, word) {
					failed = true
					return &replication.ServerError{Severity: "FATAL", SQLSTATE: "57P01", Message: "terminating connection due to administrator command"}
				}
				return nil
			})
			time.Sleep(time.Minute)
			settle()
			if !failed {
				t.Errorf("%s was not tried", word)
			}
		}
		w.srv.OnCommand(nil)
		time.Sleep(time.Minute)
		settle()
		if got := w.checkArchive(1); got != 3*mb {
			t.Errorf("the archive ends at %s", got)
		}
	})
}

// TestAServerThatDoesNotAnswer: it takes the connection, and hangs, or is cut off,
// at one of the commands before the stream. It is given up for the next one,
// to which the address leads by then.
func TestAServerThatDoesNotAnswer(t *testing.T) {
	for _, word := range []string{"IDENTIFY_SYSTEM", "SHOW wal_level", "TIMELINE_HISTORY", "READ_REPLICATION_SLOT", "START_REPLICATION"} {
		t.Run(word, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				db := w.address()
				w.srv.FillTo(3*mb + 5000)
				w.srv.Promote(w.srv.End())
				other := sibling(t, w, fakepg.Options{})
				other.SetSlot(slotName, mb)
				release := make(chan struct{})
				defer close(release)
				w.srv.OnCommand(func(sql string) error {
					if strings.HasPrefix(sql, word) {
						db.point(other)
						<-release
						return fakepg.ErrDrop
					}
					return nil
				})
				end, _ := w.start(0)
				time.Sleep(10 * time.Minute)
				settle()
				if s := other.Statuses(); len(s) == 0 || s[len(s)-1].Write != other.End() {
					t.Errorf("%d statuses on the other server", len(s))
				}
				if err := end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
