package codec

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUnnamed: nobody ever sees the file's name where the file system can do
// without, and it does not stay anywhere else.
func TestUnnamed(t *testing.T) {
	dir := t.TempDir()
	past := time.Unix(1e9, 0)
	for name, open := range map[string]func(string) (*os.File, error){"unnamed": unnamed, "unlinked": unlinked} {
		if err := os.Chtimes(dir, past, past); err != nil {
			t.Fatal(err)
		}
		f, err := open(dir)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 3)
		if _, err := f.WriteAt([]byte("abc"), 5); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(got, 5); err != nil || string(got) != "abc" {
			t.Errorf("%s: read %q, %v", name, got, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: %v is left (%v)", name, left, err)
		}
		st, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		// A name that was there has changed the directory.
		if named := !st.ModTime().Equal(past); named && (name == "unlinked" || unsupported(t, dir)) {
			continue
		} else if named {
			t.Errorf("%s: it had a name", name)
		}
	}
}

func unsupported(t *testing.T, dir string) bool {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		t.Logf("the file system of %s cannot make files without a name: %v", dir, err)
		return true
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	return false
}
