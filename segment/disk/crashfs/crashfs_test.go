package crashfs

import (
	"bytes"
	"errors"
	"io/fs"
	"syscall"
	"testing"

	"github.com/walferry/walferry/segment/disk"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, f *FS, name, content string) disk.File {
	t.Helper()
	h, err := f.Create(name, 0o600)
	check(t, err)
	_, err = h.WriteAt([]byte(content), 0)
	check(t, err)
	return h
}

// read returns a file's content, or "absent".
func read(t *testing.T, f *FS, name string) string {
	t.Helper()
	h, err := f.Open(name, false)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent"
	}
	check(t, err)
	n, err := h.Size()
	check(t, err)
	b := make([]byte, n)
	if n > 0 {
		_, err = h.ReadAt(b, 0)
		check(t, err)
	}
	check(t, h.Close())
	return string(b)
}

// outcomes collects what crashes with many seeds leave.
func outcomes(t *testing.T, before func(*FS), name string) map[string]bool {
	t.Helper()
	got := make(map[string]bool)
	for seed := range uint64(200) {
		f := New(seed)
		before(f)
		f.Crash()
		got[read(t, f, name)] = true
	}
	return got
}

func TestWhatIsSyncedStays(t *testing.T) {
	got := outcomes(t, func(f *FS) {
		check(t, f.Mkdir("/d", 0o700))
		check(t, f.SyncDir("/"))
		h := create(t, f, "/d/x", "kept")
		check(t, h.Sync())
		check(t, f.SyncDir("/d"))
	}, "/d/x")
	if len(got) != 1 || !got["kept"] {
		t.Errorf("%v", got)
	}
}

func TestWhatIsNotSyncedMayStayOrGo(t *testing.T) {
	for _, c := range []struct {
		what   string
		before func(f *FS)
		want   []string
	}{
		{"content", func(f *FS) {
			create(t, f, "/x", "abcd")
			check(t, f.SyncDir("/"))
		}, []string{"", "abcd", "\x00\x00\x00\x00"}},
		{"name", func(f *FS) { check(t, create(t, f, "/x", "abcd").Sync()) }, []string{"absent", "abcd"}},
		{"directory", func(f *FS) {
			check(t, f.Mkdir("/d", 0o700))
			check(t, create(t, f, "/d/x", "abcd").Sync())
			check(t, f.SyncDir("/d"))
			check(t, f.Rename("/d/x", "/x"))
			check(t, f.SyncDir("/d"))
		}, []string{"abcd"}},
		{"removal", func(f *FS) {
			check(t, create(t, f, "/x", "abcd").Sync())
			check(t, f.SyncDir("/"))
			check(t, f.Remove("/x"))
		}, []string{"absent", "abcd"}},
		{"rename onto another", func(f *FS) {
			check(t, create(t, f, "/x", "old").Sync())
			check(t, create(t, f, "/y", "new").Sync())
			check(t, f.SyncDir("/"))
			check(t, f.Rename("/y", "/x"))
		}, []string{"old", "new"}},
		{"bytes after a failed sync", func(f *FS) {
			h := create(t, f, "/x", "old")
			check(t, h.Sync())
			check(t, f.SyncDir("/"))
			_, err := h.WriteAt([]byte("new"), 0)
			check(t, err)
			f.FailAt(1, syscall.EIO)
			if err := h.Sync(); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			if read(t, f, "/x") != "new" {
				t.Fatal("written bytes are not read")
			}
			check(t, h.Sync()) // proves nothing
		}, []string{"old", "new"}},
		{"bytes written again after a failed sync", func(f *FS) {
			h := create(t, f, "/x", "old")
			check(t, h.Sync())
			check(t, f.SyncDir("/"))
			f.FailAt(2, syscall.EIO)
			_, err := h.WriteAt([]byte("new"), 0)
			check(t, err)
			if h.Sync() == nil {
				t.Fatal("no failure")
			}
			_, err = h.WriteAt([]byte("new"), 0)
			check(t, err)
			check(t, h.Sync())
		}, []string{"new"}},
	} {
		got := outcomes(t, c.before, "/x")
		for _, w := range c.want {
			if !got[w] {
				t.Errorf("%s: never %q", c.what, w)
			}
			delete(got, w)
		}
		if len(got) != 0 {
			t.Errorf("%s: also %v", c.what, got)
		}
	}
	gone := outcomes(t, func(f *FS) {
		check(t, f.Mkdir("/d", 0o700))
		check(t, create(t, f, "/d/x", "abcd").Sync())
		check(t, f.SyncDir("/d"))
	}, "/d/x")
	if !gone["absent"] || !gone["abcd"] || len(gone) != 2 {
		t.Errorf("a file in a directory whose name was not synced: %v", gone)
	}
}

// Of many blocks some survive and some do not, and some are torn.
func TestBlocksAreDrawnOneByOne(t *testing.T) {
	f := New(1)
	h, err := f.Create("/x", 0o600)
	check(t, err)
	check(t, h.Allocate(64*block))
	check(t, h.Sync())
	check(t, f.SyncDir("/"))
	_, err = h.WriteAt(bytes.Repeat([]byte{1}, 64*block), 0)
	check(t, err)
	f.Crash()
	if _, err := h.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrCrashed) {
		t.Errorf("a file of before the crash: %v", err)
	}
	var zero, one, torn int
	got := []byte(read(t, f, "/x"))
	for b := range 64 {
		switch n := bytes.Count(got[b*block:(b+1)*block], []byte{1}); {
		case n == 0:
			zero++
		case n == block:
			one++
		case n%sector == 0:
			torn++
		default:
			t.Fatalf("block %d has %d bytes", b, n)
		}
	}
	if len(got) != 64*block || zero == 0 || one == 0 || torn == 0 {
		t.Errorf("%d bytes; %d old, %d new, %d torn blocks", len(got), zero, one, torn)
	}
}

func TestFailures(t *testing.T) {
	f := New(1)
	f.SetSpace(1000)
	h := create(t, f, "/x", "abcd")
	if err := h.Allocate(1001); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	if _, err := h.WriteAt(make([]byte, 1001), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	check(t, h.Allocate(1000))
	if free, total, err := f.Space("/"); free != 0 || total != 1000 || err != nil {
		t.Error(free, total, err)
	}
	if _, err := f.Create("/no/x", 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := f.Create("/x", 0o600); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if err := f.Link("/x", "/x"); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	check(t, f.Link("/x", "/y"))
	r, err := f.Open("/y", false)
	check(t, err)
	if _, err := r.WriteAt([]byte{1}, 0); err == nil {
		t.Error("a file opened for reading was written")
	}
	l, err := f.Lock("/l")
	check(t, err)
	if _, err := f.Lock("/l"); !errors.Is(err, disk.ErrLocked) {
		t.Error(err)
	}
	check(t, l.Close())
	l, err = f.Lock("/l")
	check(t, err)
	if f.OpenFiles() != 2 {
		t.Errorf("%d open files", f.OpenFiles())
	}
	f.FailAt(2, syscall.EIO)
	if _, err := f.Stat("/x"); err != nil {
		t.Error(err)
	}
	if _, err := f.Stat("/x"); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	f.StopAt(1)
	for range 2 {
		if _, err := f.Stat("/x"); !errors.Is(err, ErrCrashed) {
			t.Error(err)
		}
	}
	f.Crash()
	check(t, l.Close())
	if _, err := f.Lock("/l"); err != nil {
		t.Error(err)
	}
	if f.OpenFiles() != 0 {
		t.Errorf("%d open files", f.OpenFiles())
	}
}

// The same seed and the same calls leave the same: a failure can be repeated.
func TestCrashIsRepeatable(t *testing.T) {
	run := func() string {
		f := New(42)
		for _, name := range []string{"/a", "/b", "/c", "/d"} {
			create(t, f, name, string(bytes.Repeat([]byte(name), 5000)))
		}
		f.Crash()
		return read(t, f, "/a") + read(t, f, "/b") + read(t, f, "/c") + read(t, f, "/d")
	}
	first := run()
	for range 20 {
		if run() != first {
			t.Fatal("two crashes with one seed differ")
		}
	}
}
