package uploader

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/segment"
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
