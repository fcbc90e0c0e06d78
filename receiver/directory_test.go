package receiver

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk/crashfs"
)

// beginAt is a directory's own word for where it goes on.
func beginAt(t segment.Timeline, l segment.LSN) func(segment.Size) (segment.Position, bool) {
	return func(segment.Size) (segment.Position, bool) { return segment.Position{Timeline: t, LSN: l}, true }
}

// started returns where the first stream was asked for.
func (h *heardEvents) started() string {
	for _, line := range h.all() {
		if at, ok := strings.CutPrefix(line, "starting "); ok {
			return at
		}
	}
	return ""
}

// TestADirectoryGoesOnWhereItsNamesSay: not where the slot is, and not where the
// server is, whether the spool has something of it or not.
func TestADirectoryGoesOnWhereItsNamesSay(t *testing.T) {
	for name, c := range map[string]struct {
		slot  string
		slots segment.LSN
		held  segment.LSN
	}{
		"nothing verifies, no slot":      {},
		"nothing verifies, slot behind":  {slotName, mb, 0},
		"nothing verifies, slot further": {slotName, 4 * mb, 0},
		"held, slot behind":              {slotName, mb, 3*mb + 5000},
		"held, no slot":                  {"", 0, 3*mb + 5000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				w.keep, w.options.Hold = true, 0
				if c.held != 0 {
					w.srv.SetSlot(slotName, 3*mb)
					w.srv.FillTo(c.held)
					w.run(3 * time.Second)
					clear(w.archive.segments) // there is none
				}
				heard := &heardEvents{}
				w.options.Events, w.options.Slot, w.options.NoFlush = heard, c.slot, c.slot == ""
				w.options.Begin = beginAt(1, 3*mb)
				if c.slots != 0 {
					w.srv.SetSlot(slotName, c.slots)
				}
				w.srv.FillTo(5*mb + 5000)
				w.run(5 * time.Second)
				if got := heard.started(); got != "0/300000 on timeline 1" {
					t.Errorf("started at %s", got)
				}
				for _, n := range []segment.Name{segment.MinSize.Name(1, 3*mb), segment.MinSize.Name(1, 4*mb)} {
					if got, err := os.ReadFile(filepath.Join(w.dir, n.String())); err != nil || !bytes.Equal(got, w.srv.WAL().Segment(n)) {
						t.Errorf("%s has %d bytes, %v", n, len(got), err)
					}
				}
				w.checkStatuses()
			})
		})
	}
}

// TestADirectoryOfAYoungerTimeline is not gone on with from an old primary, even
// if older files beside it are that one's.
func TestADirectoryOfAYoungerTimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		w.keep, w.options.Hold = true, 0
		w.srv.FillTo(3*mb + 5000)
		w.run(3 * time.Second)
		w.options.Begin = beginAt(2, 3*mb)
		if err := w.refused(); !errors.Is(err, ErrDemoted) {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestADirectoryBehindTheArchive: what the archive has and the directory has
// not is asked for again, so that the directory has no gap. Where the server
// has it no more, the directory goes on behind it.
func TestADirectoryBehindTheArchive(t *testing.T) {
	for name, removed := range map[string]bool{"there": false, "removed": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				w.keep, w.options.Hold = true, 0
				w.srv.FillTo(2*mb + 5000)
				w.run(3 * time.Second)
				home := w.dir
				w.dir = t.TempDir()
				w.srv.FillTo(5*mb + 5000)
				w.run(3 * time.Second) // another receiver of the archive
				if end := w.checkArchive(1); end != 5*mb {
					t.Fatalf("the archive ends at %s", end)
				}
				w.dir = home
				if removed {
					w.srv.RemoveWALBefore(5 * mb)
				}
				w.srv.FillTo(6*mb + 5000)
				w.run(5 * time.Second)
				for l := 2 * mb; l < 6*mb; l += mb {
					n := segment.MinSize.Name(1, l)
					got, err := os.ReadFile(filepath.Join(home, n.String()))
					want := !removed || l == 5*mb
					if (err == nil) != want || want && !bytes.Equal(got, w.srv.WAL().Segment(n)) {
						t.Errorf("%s has %d bytes, %v", n, len(got), err)
					}
				}
				if told := strings.Contains(w.log.String(), "the server has removed WAL that the directory lacks"); told != removed {
					t.Errorf("the gap was told of: %v", told)
				}
				w.checkStatuses()
			})
		})
	}
}

// TestAFullDiskIsTriedAgain by the clock, where nothing else would wake anybody:
// no status goes out, and nothing is ever carried away.
func TestAFullDiskIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{SenderTimeout: 24 * time.Hour})
		disk := crashfs.New(1)
		disk.SetSpace(2*int64(mb) + 1000)
		w.fs, w.dir, w.keep = disk, "/spool", true
		w.options.StatusInterval, w.options.Hold = -1, 0
		w.srv.FillTo(6*mb + 5000)
		end, result := w.start(1 << 40)
		time.Sleep(time.Hour)
		settle()
		if n := strings.Count(w.log.String(), "the disk of the directory is full"); n != 1 {
			t.Errorf("told %d times that the disk is full", n)
		}
		disk.SetSpace(1 << 40)
		time.Sleep(fullRetry + time.Second)
		settle()
		select {
		case err := <-result:
			t.Fatalf("Run = %v", err)
		default:
		}
		if got := w.r.Status().Received.LSN; got != w.srv.End() {
			t.Errorf("received up to %s of %s", got, w.srv.End())
		}
		if err := end(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestASegmentThatWasTakenAway: whole segments are moved out of a directory by
// whoever it belongs to, the newest too, and at any time. There is nothing to
// compare then, and the stream goes on behind it.
func TestASegmentThatWasTakenAway(t *testing.T) {
	for name, removed := range map[string]bool{"the page before is there": false, "the server has it no more": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fakepg.Options{})
				w.keep, w.options.Hold = true, 0
				w.srv.SetSlot(slotName, 2*mb)
				w.srv.FillTo(3*mb + 5000)
				w.srv.WAL().SwitchSegment(1) // so that it goes on at a boundary
				w.run(3 * time.Second)
				if removed {
					w.srv.RemoveWALBefore(4 * mb)
				}
				w.srv.FillTo(5*mb + 5000)
				plain := connect(w.srv)
				w.options.Connect = func(ctx context.Context) (*replication.Conn, error) {
					time.Sleep(time.Second)
					w.archive.mu.Lock()
					clear(w.archive.segments) // there is none
					w.archive.mu.Unlock()
					if err := os.Remove(filepath.Join(w.dir, segment.MinSize.Name(1, 3*mb).String())); err != nil && !errors.Is(err, os.ErrNotExist) {
						t.Error(err)
					}
					return plain(ctx)
				}
				w.run(5 * time.Second)
				n := segment.MinSize.Name(1, 4*mb)
				if got, err := os.ReadFile(filepath.Join(w.dir, n.String())); err != nil || !bytes.Equal(got, w.srv.WAL().Segment(n)) {
					t.Errorf("%s has %d bytes, %v", n, len(got), err)
				}
				w.checkStatuses()
			})
		})
	}
}
