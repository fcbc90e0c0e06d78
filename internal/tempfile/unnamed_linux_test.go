package tempfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The file can be written and read, and changes nothing in its directory: it
// never had a name. Where the file system cannot make one, that is said.
func TestUnnamed(t *testing.T) {
	dir := t.TempDir()
	past := time.Unix(1e9, 0)
	if err := os.Chtimes(dir, past, past); err != nil {
		t.Fatal(err)
	}
	f, err := Unnamed(dir, 0o600)
	if errors.Is(err, errors.ErrUnsupported) {
		if fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err == nil {
			t.Errorf("the file system of %s can", dir)
			_ = unix.Close(fd)
		}
	} else {
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 3)
		if _, err := f.WriteAt([]byte("abc"), 7); err != nil {
			t.Error(err)
		}
		if _, err := f.ReadAt(got, 7); err != nil || string(got) != "abc" {
			t.Errorf("read %q, %v", got, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if st, err := os.Stat(dir); err != nil || !st.ModTime().Equal(past) {
		t.Errorf("the directory has changed: %v, %v", st.ModTime(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := Unnamed(filepath.Join(dir, "missing"), 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is not there: %v", err)
	}
}
