package uploader

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// TestNoWALBeforeItsHistory: as long as a timeline's history cannot be stored,
// nothing of the timeline is, although the store would take it.
func TestNoWALBeforeItsHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		at := s.wal.FillTo(1, segment.LSN(size))
		child := s.wal.Fork(1, at)
		content, _ := s.wal.HistoryFile(child)
		if err := s.sp.PutHistory(child, content); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		s.store.before = func(_ int, key string) error {
			if strings.Contains(key, ".history") && time.Since(begin) < time.Minute {
				return errors.New("503 Slow Down")
			}
			return nil
		}
		s.up.Base(segment.Position{Timeline: 1, LSN: at})
		s.up.Switch(1, at, child)
		end := s.run()
		s.write(name(child, 1))
		time.Sleep(50 * time.Second)
		synctest.Wait()
		if _, err := s.stored(name(child, 1).String()); err == nil {
			t.Error("a segment is in the archive without its timeline's history")
		}
		s.shipped(at)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		s.mustHold(name(child, 1))
		s.shipped(2 * segment.LSN(size))
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestTheOldestIsStoredFirst: a new archive never begins with a segment behind
// one that is still to come, or its run would seem to begin there.
func TestTheOldestIsStoredFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		begin := time.Now()
		s.store.before = func(_ int, key string) error {
			if strings.Contains(key, name(1, 1).String()) && time.Since(begin) < time.Minute {
				return errors.New("503 Slow Down")
			}
			return nil
		}
		end := s.run()
		for i := segment.LSN(1); i <= 6; i++ {
			s.write(name(1, i))
		}
		time.Sleep(50 * time.Second)
		synctest.Wait()
		for i := segment.LSN(2); i <= 6; i++ {
			if _, err := s.stored(name(1, i).String()); err == nil {
				t.Errorf("segment %d is in the archive and the first is not", i)
			}
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		for i := segment.LSN(1); i <= 6; i++ {
			s.mustHold(name(1, i))
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestAnOpenSegmentHoldsUpNothing: the rest of a timeline that has ended and
// whose end cannot be verified never becomes whole; the younger segments are
// stored all the same.
func TestAnOpenSegmentHoldsUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		s.writeUpTo(name(1, 1), name(1, 1).Start(size)+pageSize)
		end := s.run()
		s.write(name(1, 2))
		s.write(name(1, 3))
		synctest.Wait()
		s.mustHold(name(1, 2))
		s.mustHold(name(1, 3))
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

const pageSize = 8192

// TestWhatWasGivenUpWithAnOlderOneIsNotStored: a failed sync gives up the oldest
// segment, which was not compressed yet, and a younger one that was. The younger
// one must not be the first of a new archive: nothing would show that the other
// is missing until it is streamed again.
func TestWhatWasGivenUpWithAnOlderOneIsNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		oldest := &item{seg: s.writeUpTo(name(1, 1), name(1, 1).End(size))}
		younger := &item{seg: s.writeUpTo(name(1, 2), name(1, 2).End(size))}
		s.up.queue = []*item{oldest, younger}
		done := make(chan error, 1)
		go func() { done <- s.up.waitForOlder(context.Background(), younger) }()
		synctest.Wait()
		younger.seg.Abandon()
		oldest.seg.Abandon()
		s.up.forget(oldest)
		if err := <-done; !errors.Is(err, spool.ErrAbandoned) {
			t.Errorf("a segment that was given up may be stored: %v", err)
		}
		if err := s.sp.Close(); err != nil {
			t.Error(err)
		}
	})
}
