package uploader

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/segment"
)

// What is shipped, what was stored last, what is waited for and since when; and
// nothing of it when it is over.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{})
		var away atomic.Bool
		s.store.before = func(int, string) error {
			if away.Load() {
				return errors.New("503 Slow Down")
			}
			return nil
		}
		if st := s.up.Status(); st.Shipped.LSN != 0 || st.Sealed.LSN != 0 || st.Pending != 0 || st.Last != (Object{}) || st.Troubles != nil || st.Stopped != nil {
			t.Errorf("before it began: %+v", st)
		}
		s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
		end := s.run()
		s.write(name(1, 1))
		synctest.Wait()
		stored := time.Now()
		st := s.up.Status()
		if want := (segment.Position{Timeline: 1, LSN: 2 * segment.LSN(size)}); st.Sealed != want || st.Shipped != want || st.Pending != 0 || st.Troubles != nil {
			t.Errorf("after a segment: %+v", st)
		}
		body, info, err := s.store.Get(t.Context(), "wal_005/"+name(1, 1).String()+".lz4")
		if err := errors.Join(err, body.Close()); err != nil {
			t.Fatal(err)
		}
		if want := (Object{name(1, 1).String() + ".lz4", info.Size, stored}); st.Last != want {
			t.Errorf("stored last: %+v; want %+v", st.Last, want)
		}
		last := st.Last

		away.Store(true)
		begin := time.Now()
		s.write(name(1, 2))
		time.Sleep(time.Minute)
		st = s.up.Status()
		if st.Pending != 1 || st.Last != last || len(st.Troubles) != 1 {
			t.Fatalf("while the store is away: %+v", st)
		}
		if r := st.Troubles[0]; r.What != "write to the archive" || !strings.Contains(r.Reason, name(1, 2).String()) || !strings.HasSuffix(r.Reason, "503 Slow Down") ||
			!r.Since.Equal(begin) || r.Attempts < 3 {
			t.Errorf("while the store is away: %+v", r)
		}

		away.Store(false)
		time.Sleep(time.Minute)
		if st = s.up.Status(); st.Pending != 0 || st.Troubles != nil || st.Last.Name != name(1, 2).String()+".lz4" {
			t.Errorf("when it is back: %+v", st)
		}

		// The last segment of a timeline that ended has a name of its own.
		n, w := name(1, 3), 3*segment.LSN(size)+1000
		if err := s.writeUpTo(n, w).Finish(w); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if st = s.up.Status(); st.Last.Name != n.String()+".partial.lz4" {
			t.Errorf("after a partial: %+v", st.Last)
		}

		s.up.stop(&archive.ConflictError{Key: "k"})
		if st = s.up.Status(); !errors.Is(st.Stopped, archive.ErrConflict) {
			t.Errorf("after a conflict: %+v", st)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// A tail object counts as stored, and moves shipped but not sealed.
func TestStatusOfTails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, Options{ShipInterval: time.Second})
		begin := segment.LSN(size)
		s.up.Base(segment.Position{Timeline: 1, LSN: begin})
		end := s.run()
		n := name(1, 1)
		g := s.begin(n)
		s.grow(g, 5000, false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		st := s.up.Status()
		if st.Sealed != (segment.Position{Timeline: 1, LSN: begin}) || st.Shipped != (segment.Position{Timeline: 1, LSN: g.Advanced()}) {
			t.Errorf("%+v", st)
		}
		if !strings.HasPrefix(st.Last.Name, n.String()+"/00000000-") || !strings.HasSuffix(st.Last.Name, ".lz4") || st.Last.Size == 0 {
			t.Errorf("stored last: %+v", st.Last)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}
