package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/walferry/walferry/segment/disk"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// onBoth runs a test on the host's file system and on this one: what callers
// see must be the same.
func onBoth(t *testing.T, f func(t *testing.T, fsys disk.FS, dir string)) {
	t.Run("disk.OS", func(t *testing.T) { f(t, disk.OS{}, t.TempDir()) })
	t.Run("memory", func(t *testing.T) {
		fsys, dir := New(), filepath.Join(string(filepath.Separator), "var", "spool")
		check(t, disk.MakeDir(fsys, dir, 0o700))
		f(t, fsys, dir)
		if n := len(fsys.locks); n != 0 {
			t.Errorf("%d locks are held", n)
		}
	})
}

func create(t testing.TB, fsys disk.FS, name string, content string) {
	t.Helper()
	f, err := fsys.Create(name, 0o600)
	check(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	check(t, errors.Join(err, f.Sync(), f.Close()))
}

func content(t testing.TB, fsys disk.FS, name string) string {
	t.Helper()
	f, err := fsys.Open(name, false)
	check(t, err)
	n, err := f.Size()
	check(t, err)
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	check(t, f.Close())
	return string(b)
}

func TestNames(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys disk.FS, dir string) {
		in := func(name string) string { return filepath.Join(dir, name) }
		is := func(what string, err, want error) {
			t.Helper()
			if !errors.Is(err, want) || err == nil != (want == nil) {
				t.Errorf("%s: %v; want %v", what, err, want)
			}
			var path *fs.PathError
			var link *os.LinkError
			if err != nil && !errors.As(err, &path) && !errors.As(err, &link) {
				t.Errorf("%s: %v does not say which file", what, err)
			}
		}
		create(t, fsys, in("a"), "one")
		_, err := fsys.Create(in("a"), 0o600)
		is("making a file twice", err, fs.ErrExist)
		_, err = fsys.Create(in("none/a"), 0o600)
		is("making a file in no directory", err, fs.ErrNotExist)
		_, err = fsys.Open(in("b"), false)
		is("opening no file", err, fs.ErrNotExist)
		_, err = fsys.Stat(in("b"))
		is("asking for no file", err, fs.ErrNotExist)
		is("removing no file", fsys.Remove(in("b")), fs.ErrNotExist)
		is("renaming no file", fsys.Rename(in("b"), in("c")), fs.ErrNotExist)
		is("linking no file", fsys.Link(in("b"), in("c")), fs.ErrNotExist)
		_, err = fsys.ReadDir(in("none"))
		is("listing no directory", err, fs.ErrNotExist)
		is("syncing no directory", fsys.SyncDir(in("none")), fs.ErrNotExist)
		is("renaming to no directory", fsys.Rename(in("a"), in("none/a")), fs.ErrNotExist)
		if got := content(t, fsys, in("a")); got != "one" {
			t.Errorf("after a rename that failed: %q", got)
		}

		is("linking", fsys.Link(in("a"), in("b")), nil)
		create(t, fsys, in("c"), "three")
		is("linking to a name that is taken", fsys.Link(in("a"), in("c")), fs.ErrExist)
		is("renaming over a file", fsys.Rename(in("c"), in("a")), nil)
		is("renaming to itself", fsys.Rename(in("a"), in("a")), nil)
		is("removing one name", fsys.Remove(in("a")), nil)
		if got := content(t, fsys, in("b")); got != "one" {
			t.Errorf("under its other name: %q", got)
		}
		is("making directories", fsys.Mkdir(in("x/y/z"), 0o700), nil)
		is("making them again", fsys.Mkdir(in("x/y/z"), 0o700), nil)
		if fsys.Mkdir(in("b"), 0o700) == nil || fsys.Mkdir(in("b/c"), 0o700) == nil {
			t.Error("a directory was made in place of a file, or in it")
		}
		if fsys.Remove(in("x")) == nil {
			t.Error("a directory was removed that is not empty")
		}
		create(t, fsys, in("x/f"), "")
		is("syncing a directory", fsys.SyncDir(in("x")), nil)
		entries, err := fsys.ReadDir(dir)
		check(t, err)
		var names []string
		for _, e := range entries {
			fi, err := e.Info()
			check(t, err)
			names = append(names, fmt.Sprint(e.Name(), " ", e.IsDir(), " ", !fi.IsDir() && fi.Size() == 3 && fi.Mode() == 0o600))
		}
		if want := []string{"b false true", "x true false"}; !slices.Equal(names, want) {
			t.Errorf("the directory has %q; want %q", names, want)
		}
		if fi, err := fsys.Stat(in("x/y/../../b")); err != nil || fi.Name() != "b" || fi.Size() != 3 {
			t.Errorf("by a name that is not clean: %v, %v", fi, err)
		}
		is("removing a directory", errors.Join(fsys.Remove(in("x/y/z")), fsys.Remove(in("x/y"))), nil)
	})
}

func TestFiles(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys disk.FS, dir string) {
		name := filepath.Join(dir, "f")
		f, err := fsys.Create(name, 0o600)
		check(t, err)
		reads := func(what string, off int64, n int, want string, wantErr error) {
			t.Helper()
			b := make([]byte, n)
			if k, err := f.ReadAt(b, off); string(b[:k]) != want || !errors.Is(err, wantErr) || err == nil != (wantErr == nil) {
				t.Errorf("%s: %q, %v; want %q, %v", what, b[:k], err, want, wantErr)
			}
		}
		sized := func(what string, want int64) {
			t.Helper()
			if n, err := f.Size(); n != want || err != nil {
				t.Errorf("%s: %d bytes, %v; want %d", what, n, err, want)
			}
			if fi, err := fsys.Stat(name); err != nil || fi.Size() != want {
				t.Errorf("%s: Stat says %v, %v; want %d", what, fi, err, want)
			}
		}
		writes := func(text string, off int64) {
			t.Helper()
			if n, err := f.WriteAt([]byte(text), off); n != len(text) || err != nil {
				t.Errorf("writing %q at %d: %d, %v", text, off, n, err)
			}
		}
		reads("empty", 0, 1, "", io.EOF)
		writes("abc", 2)
		sized("written behind its end", 5)
		reads("whole", 0, 5, "\x00\x00abc", nil)
		reads("further than it has", 3, 5, "bc", io.EOF)
		reads("behind its end", 5, 1, "", io.EOF)
		check(t, f.Truncate(3))
		sized("cut", 3)
		check(t, f.Truncate(6))
		reads("cut and longer", 0, 6, "\x00\x00a\x00\x00\x00", nil)
		check(t, f.Allocate(4))
		sized("allocated less", 6)
		check(t, f.Allocate(2<<20))
		sized("allocated", 2<<20)
		reads("allocated", 0, 8, "\x00\x00a\x00\x00\x00\x00\x00", nil)
		writes("z", 2<<20-1)
		writes("end", 2<<20)
		sized("written behind that", 2<<20+3)
		reads("at its end", 2<<20-2, 5, "\x00zend", nil)
		check(t, f.Sync())
		if _, err := f.ReadAt(make([]byte, 1), -1); err == nil {
			t.Error("a read in front of the file succeeded")
		}
		if _, err := f.WriteAt([]byte("x"), -1); err == nil {
			t.Error("a write in front of the file succeeded")
		}

		r, err := fsys.Open(name, false)
		check(t, err)
		if _, err := r.WriteAt([]byte("x"), 0); err == nil {
			t.Error("a file opened for reading was written")
		}
		if r.Truncate(0) == nil {
			t.Error("a file opened for reading was cut")
		}
		w, err := fsys.Open(name, true)
		check(t, err)
		_, err = w.WriteAt([]byte("other"), 0)
		check(t, err)
		reads("written by another", 0, 5, "other", nil)
		check(t, errors.Join(w.Close(), r.Close()))

		// Removed, it lives on where it is open.
		check(t, fsys.Remove(name))
		reads("removed", 0, 5, "other", nil)
		create(t, fsys, name, "new")
		reads("removed, and another of its name", 0, 5, "other", nil)
		check(t, f.Close())
		for what, err := range map[string]error{
			"Close": f.Close(), "Sync": f.Sync(), "Truncate": f.Truncate(0), "Allocate": f.Allocate(1),
			"ReadAt":  second(f.ReadAt(make([]byte, 1), 0)),
			"WriteAt": second(f.WriteAt([]byte("x"), 0)),
			"Size":    second(f.Size()),
		} {
			if err == nil || fsys != (disk.OS{}) && !errors.Is(err, fs.ErrClosed) { // the system has more ways to say so
				t.Errorf("%s of a closed file: %v", what, err)
			}
		}
		if got := content(t, fsys, name); got != "new" {
			t.Errorf("the other file has %q", got)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestLocks(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys disk.FS, dir string) {
		name := filepath.Join(dir, "lock")
		l, err := fsys.Lock(name)
		check(t, err)
		if _, err := fsys.Lock(name); !errors.Is(err, disk.ErrLocked) {
			t.Errorf("locked twice: %v", err)
		}
		if _, err := fsys.Stat(name); err != nil {
			t.Error(err)
		}
		check(t, l.Close())
		if err := l.Close(); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("given back twice: %v", err)
		}
		again, err := fsys.Lock(name)
		check(t, err)
		check(t, again.Close())
		if _, err := fsys.Lock(filepath.Join(dir, "none", "lock")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a lock in no directory: %v", err)
		}
		l, err = fsys.Lock(dir)
		check(t, err)
		if _, err := fsys.Lock(dir); !errors.Is(err, disk.ErrLocked) {
			t.Errorf("a directory is locked twice: %v", err)
		}
		check(t, l.Close())
	})
}

func TestSpaceIsNotKnown(t *testing.T) {
	fsys := New()
	if _, _, err := fsys.Space("/"); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if _, _, err := fsys.Space("/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// The bytes of a file that is gone are the next one's, as zeros: not before the
// last of its names and of those who have it open.
func TestBuffersAreUsedAgain(t *testing.T) {
	const size = 1 << 20
	fsys := New()
	kept := func(what string, want int) {
		t.Helper()
		sum := 0
		for n, free := range fsys.free {
			for _, b := range free {
				if len(b) != n || cap(b) != n {
					t.Errorf("%s: a buffer of %d bytes lies among those of %d", what, len(b), n)
				}
			}
			sum += len(free)
		}
		if sum != want {
			t.Errorf("%s: %d buffers are free; want %d", what, sum, want)
		}
	}
	filled := func(name string) disk.File {
		t.Helper()
		f, err := fsys.Create(name, 0o600)
		check(t, err)
		check(t, f.Allocate(size))
		b := make([]byte, size)
		_, err = f.ReadAt(b, 0)
		check(t, err)
		if bytes.ContainsFunc(b, func(r rune) bool { return r != 0 }) {
			t.Fatalf("%s is not of zeros", name)
		}
		_, err = f.WriteAt(bytes.Repeat([]byte{0xFF}, size), 0)
		check(t, err)
		return f
	}
	a := filled("/a")
	check(t, fsys.Link("/a", "/b"))
	check(t, fsys.Remove("/a"))
	check(t, a.Close())
	kept("with another name", 0)
	r, err := fsys.Open("/b", false)
	check(t, err)
	check(t, fsys.Remove("/b"))
	kept("open", 0)
	check(t, r.Close())
	kept("gone", 1)
	a = filled("/a")
	kept("taken again", 0)
	check(t, a.Allocate(size))
	kept("allocated twice", 0)
	check(t, a.Allocate(2*size))
	kept("allocated more", 1)
	check(t, a.Close())
	b := filled("/b")
	check(t, fsys.Rename("/b", "/a")) // which was the larger one
	kept("renamed over", 1)
	check(t, b.Close())
	c := filled("/c")
	kept("made beside the larger one", 1)
	_, err = c.WriteAt([]byte("more"), size) // which only an append can hold
	check(t, errors.Join(err, c.Close(), fsys.Remove("/c")))
	kept("grown beyond what was allocated", 1)
}

// A segment's life, many times over: no more memory than the first time.
func TestMemoryStaysFlat(t *testing.T) {
	const size = 4 << 20
	fsys := New()
	one := func() {
		f, err := fsys.Create("/a.partial", 0o600)
		check(t, err)
		check(t, f.Allocate(size))
		_, err = f.WriteAt([]byte("begin"), 0)
		check(t, err)
		check(t, errors.Join(f.Sync(), fsys.Rename("/a.partial", "/a"), fsys.SyncDir("/"), f.Close()))
		check(t, fsys.Remove("/a"))
	}
	one()
	if per := testing.AllocsPerRun(50, one); per > 30 {
		t.Errorf("%v allocations a file", per)
	}
	bench := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			one()
		}
	})
	if n := bench.AllocedBytesPerOp(); n > 64<<10 {
		t.Errorf("%d bytes are allocated for a file of %d", n, size)
	}
}

// Readers beside the writer of other ranges, and those who close and remove
// beside them: the race detector looks on.
func TestAllAtOnce(t *testing.T) {
	const size, part, readers = 1 << 20, 8 << 10, 4
	fsys := New()
	for round := range 4 {
		name := fmt.Sprintf("/%d", round)
		f, err := fsys.Create(name, 0o600)
		check(t, err)
		check(t, f.Allocate(size))
		var mu sync.Mutex
		ready := sync.NewCond(&mu)
		written := 0
		var all sync.WaitGroup
		for range readers {
			all.Go(func() {
				h, err := fsys.Open(name, false)
				if err != nil {
					t.Error(err)
					return
				}
				b := make([]byte, part)
				for at := 0; at < size; at += part {
					mu.Lock()
					for written <= at {
						ready.Wait()
					}
					mu.Unlock()
					if _, err := h.ReadAt(b, int64(at)); err != nil || b[0] != byte(at/part)+1 || b[part-1] != b[0] {
						t.Errorf("at %d: %d, %v", at, b[0], err)
						break
					}
				}
				if err := h.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Go(func() { // others come and go meanwhile
			for i := range 50 {
				n := fmt.Sprintf("/%d-%d", round, i)
				g, err := fsys.Create(n, 0o600)
				if err == nil {
					err = errors.Join(g.Allocate(size), g.Close(), fsys.Remove(n))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
		for at := 0; at < size; at += part {
			_, err := f.WriteAt(bytes.Repeat([]byte{byte(at/part) + 1}, part), int64(at))
			check(t, err)
			mu.Lock()
			written = at + part
			ready.Broadcast()
			mu.Unlock()
			if at == size/2 {
				check(t, fsys.Rename(name, name+".x"))
				check(t, fsys.Link(name+".x", name))
			}
		}
		// The last one out takes the bytes: those who read still read.
		check(t, errors.Join(fsys.Remove(name+".x"), f.Close()))
		all.Wait()
		check(t, fsys.Remove(name))
	}
	if n := len(fsys.names); n != 0 {
		t.Errorf("%d names are left", n)
	}
}

// A file that is closed by another while it is read: an answer or an error, and
// never the bytes of the next file.
func TestCloseBesideReads(t *testing.T) {
	const size = 1 << 20
	fsys := New()
	for range 50 {
		f, err := fsys.Create("/a", 0o600)
		check(t, err)
		check(t, f.Allocate(size))
		_, err = f.WriteAt(bytes.Repeat([]byte{1}, size), 0)
		check(t, err)
		check(t, fsys.Remove("/a"))
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				b := make([]byte, size)
				for {
					if _, err := f.ReadAt(b, 0); err != nil {
						if !errors.Is(err, fs.ErrClosed) {
							t.Error(err)
						}
						return
					}
					if i := bytes.IndexFunc(b, func(r rune) bool { return r != 1 }); i >= 0 {
						t.Errorf("byte %d is %d", i, b[i])
						return
					}
				}
			})
		}
		check(t, f.Close())
		g, err := fsys.Create("/b", 0o600)
		check(t, err)
		check(t, g.Allocate(size))
		_, err = g.WriteAt(bytes.Repeat([]byte{2}, size), 0)
		check(t, errors.Join(err, g.Close(), fsys.Remove("/b")))
		all.Wait()
	}
}
