package receiver

import (
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment/disk"
)

// TestAReadOnlySpoolIsToldAsSuch: a disk that fails is not told as trouble with
// the server, which has none. It passes, and is told in one line when it does.
func TestAReadOnlySpoolIsToldAsSuch(t *testing.T) {
	for _, stalled := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fakepg.Options{})
			mount := &readOnlyDisk{FS: disk.OS{}}
			w.fs = mount
			w.srv.FillTo(2*mb + 5000)
			w.start(0)
			time.Sleep(12 * time.Second)
			if stalled {
				w.carrier.stall() // so that segments have to be sealed
			}
			mount.readOnly.Store(true)
			w.srv.FillTo(6*mb + 5000)
			time.Sleep(5 * time.Minute)
			settle()
			told := func(what string) int { return strings.Count(w.log.String(), what) }
			if told("cannot write to the spool; trying again") != 1 || told("read-only file system") == 0 {
				t.Error("it is not told in one line that the spool cannot be written")
			}
			mount.readOnly.Store(false)
			time.Sleep(time.Minute)
			settle()
			if told("can write to the spool again") != 1 {
				t.Error("it is not told in one line that it is over")
			}
			if told("receive from the server") != 0 {
				t.Error("it is told as trouble with the server")
			}
			if s := w.lastStatus(); s.Write != w.srv.End() {
				t.Errorf("write %s, the server ends at %s", s.Write, w.srv.End())
			}
			if stalled {
				w.carrier.flow()
				time.Sleep(time.Minute)
				settle()
			}
			if got := w.checkArchive(1); got != 6*mb {
				t.Errorf("the archive ends at %s", got)
			}
		})
	}
}

// readOnlyDisk is a disk on which no name can be made or changed for a while.
type readOnlyDisk struct {
	disk.FS
	readOnly atomic.Bool
}

func (d *readOnlyDisk) refuse(op, name string) error {
	if d.readOnly.Load() {
		return &fs.PathError{Op: op, Path: name, Err: syscall.EROFS}
	}
	return nil
}

func (d *readOnlyDisk) Create(name string, perm fs.FileMode) (disk.File, error) {
	if err := d.refuse("open", name); err != nil {
		return nil, err
	}
	return d.FS.Create(name, perm)
}

func (d *readOnlyDisk) Open(name string, write bool) (disk.File, error) {
	if write {
		if err := d.refuse("open", name); err != nil {
			return nil, err
		}
	}
	return d.FS.Open(name, write)
}

func (d *readOnlyDisk) Rename(from, to string) error {
	if err := d.refuse("rename", from); err != nil {
		return err
	}
	return d.FS.Rename(from, to)
}
