package disk

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestOSFile(t *testing.T) {
	var o OS
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 { // the second time it exists
		if err := MakeDir(o, dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := o.Stat(dir); err != nil || !fi.IsDir() {
		t.Fatal(fi, err)
	}
	name := filepath.Join(dir, "f")
	f, err := o.Create(name, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Create(name, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second Create: %v", err)
	}
	const size = 3<<20 + 5
	if _, err := f.WriteAt([]byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Allocate(size); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "kept\x00\x00" {
		t.Fatalf("after Allocate: %q, %v", got, err)
	}
	if n, err := f.Size(); err != nil || n != size {
		t.Fatalf("size %d, %v", n, err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := o.SyncDir(dir); err != nil {
		t.Fatal(err)
	}
	r, err := o.Open(name, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a file opened for reading was written")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	free, total, err := o.Space(dir)
	if err != nil || free <= 0 || total < free {
		t.Errorf("Space = %d, %d, %v", free, total, err)
	}
}

// The way of file systems without fallocate must give the same file.
func TestZeroFill(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	o := &osFile{f}
	if _, err := o.WriteAt([]byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	const size = 2<<20 + 1
	if err := o.zeroFill(size); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil || len(b) != size || string(b[:5]) != "kept\x00" || b[size-1] != 0 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLock(t *testing.T) {
	var o OS
	name := filepath.Join(t.TempDir(), "lock")
	l, err := o.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Lock(name); !errors.Is(err, ErrLocked) {
		t.Fatalf("second Lock: %v", err)
	}
	// A child must not keep the lock of a parent that is gone.
	sleep := exec.Command("cat")
	in, err := sleep.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sleep.Start(); err != nil {
		t.Skipf("SKIPPED: no child process: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := o.Lock(name)
	if err != nil {
		t.Fatalf("after Close, with a child alive: %v", err)
	}
	if err := errors.Join(again.Close(), in.Close(), sleep.Wait()); err != nil {
		t.Fatal(err)
	}
}
