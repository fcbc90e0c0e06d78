package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A file without a name changes nothing in its directory.
func TestUnnamed(t *testing.T) {
	dir := t.TempDir()
	past := time.Unix(1e9, 0)
	if err := os.Chtimes(dir, past, past); err != nil {
		t.Fatal(err)
	}
	f, err := OS{}.Unnamed(dir, 0o600)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("NOT TESTED: the file system of %s cannot", dir)
	}
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
	if st, err := os.Stat(dir); err != nil || !st.ModTime().Equal(past) {
		t.Errorf("the directory has changed: %v, %v", st.ModTime(), err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := (OS{}).Unnamed(filepath.Join(dir, "missing"), 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is not there: %v", err)
	}
}
