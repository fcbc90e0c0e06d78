package unpack

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mount mounts a small file system, or skips the test.
func mount(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("walferry-test", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("NOT TESTED: no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFileSystemFull unpacks onto a disk that is too small: the error names the
// disk and the file, and the space is free again.
func TestFileSystemFull(t *testing.T) {
	dir := mount(t, "size=1m")
	b, src := newBackup(t, t.TempDir()).build()
	err := Unpack(t.Context(), src, b, Options{Dir: filepath.Join(dir, "data")})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(dir, "data")) || !strings.Contains(err.Error(), "the disk is full") {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestUnwritable: so does a file system that is read-only.
func TestUnwritable(t *testing.T) {
	dir := mount(t, "size=1m")
	if err := unix.Mount("walferry-test", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	b, src := newBackup(t, t.TempDir()).build()
	err := Unpack(t.Context(), src, b, Options{Dir: filepath.Join(dir, "data")})
	if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), filepath.Join(dir, "data")+": the file system is read-only") {
		t.Error(err)
	}
}
