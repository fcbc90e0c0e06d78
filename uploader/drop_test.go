package uploader

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// TestWhatCannotBeRemovedIsTriedAgain: while nothing can be removed from the
// spool, shipping goes on all the same; and when it can, the spool does not stay
// full of what the archive has.
func TestWhatCannotBeRemovedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		stuck := &stuckSpool{Spool: s.sp}
		log := &lockedBuffer{}
		s.up = New(stuck, archive.New(s.store, archive.Options{}), Options{
			Method: codec.Method{Name: "lz4"}, Buffers: codec.NewBuffers(1<<20, t.TempDir()),
			Log: slog.New(slog.NewTextHandler(log, nil)),
		})
		s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
		stuck.refuse.Store(true)
		end := s.run()
		for i := segment.LSN(1); i <= 6; i++ {
			s.write(name(1, i))
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		s.mustHold(name(1, 6))
		s.shipped(7 * segment.LSN(size))
		if left := s.sp.Segments(); len(left) != 6 {
			t.Fatalf("%d segments are in the spool", len(left))
		}
		stuck.refuse.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if left := s.sp.Segments(); len(left) != 0 {
			t.Errorf("%d segments stay in the spool, and nothing more comes that would remind of them", len(left))
		}
		for _, line := range []string{"cannot remove shipped segments from the spool; trying again", "can remove shipped segments from the spool again"} {
			if n := strings.Count(log.String(), line); n != 1 {
				t.Errorf("it was told %d times that it %s:\n%s", n, line, log)
			}
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// stuckSpool is a spool on a disk from which nothing can be removed for a while.
type stuckSpool struct {
	*spool.Spool
	refuse atomic.Bool
}

func (s *stuckSpool) Drop(g *spool.Segment) error {
	if s.refuse.Load() {
		return syscall.EROFS
	}
	return s.Spool.Drop(g)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
