package uploader

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// TestAnObjectThatIsBeingWritten: an archive_command that writes in place
// shows the half of a file for a while. That is no conflict, unless it stays.
func TestAnObjectThatIsBeingWritten(t *testing.T) {
	for what, becomes := range map[string]struct {
		whole    bool
		conflict bool
	}{
		"whole":      {whole: true},
		"stays half": {conflict: true},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, Options{})
				s.wal.FillTo(1, 2*segment.LSN(size))
				b, err := codec.Method{Name: "lz4"}.Encode(s.wal.Segment(name(1, 1)))
				if err != nil {
					t.Fatal(err)
				}
				frame := make([]byte, b.Size())
				if _, err := b.ReadAt(frame, 0); err != nil {
					t.Fatal(err)
				}
				key := "wal_005/" + name(1, 1).String() + ".lz4"
				put := func(n int) {
					if err := s.store.Put(t.Context(), key, objstore.Bytes(frame[:n])); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.up.Claim(t.Context(), spool.Identity{SystemIdentifier: systemID, SegmentSize: size}); err != nil {
					t.Fatal(err)
				}
				put(0)
				s.up.Base(segment.Position{Timeline: 1, LSN: segment.LSN(size)})
				end := s.run()
				s.write(name(1, 1))
				time.Sleep(20 * time.Second)
				synctest.Wait()
				if err := s.up.Stopped(); err != nil {
					t.Errorf("shipping has stopped: %v", err)
				}
				if !s.up.Failing() {
					t.Error("nothing is said of it")
				}
				s.shipped(segment.LSN(size))
				put(len(frame) / 2)
				if becomes.whole {
					time.Sleep(20 * time.Second)
					put(len(frame))
				}
				s.write(name(1, 2))
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if err := s.up.Stopped(); errors.Is(err, archive.ErrConflict) != becomes.conflict || !becomes.conflict && err != nil {
					t.Errorf("Stopped = %v", err)
				}
				if becomes.whole {
					s.shipped(3 * segment.LSN(size))
					if b, err := s.stored(name(1, 1).String()); err != nil || !bytes.Equal(b, s.wal.Segment(name(1, 1))) {
						t.Errorf("the object is not what it became: %v", err)
					}
				} else {
					s.shipped(segment.LSN(size))
				}
				if err := end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
