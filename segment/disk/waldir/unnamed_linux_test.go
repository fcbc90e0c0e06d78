package waldir

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/walferry/walferry/segment/disk"
)

// named is a file system on which every file has a name.
type named struct{ disk.FS }

// The image of a large segment has no name in the directory, where the file
// system can do without, and else keeps it for a moment.
func TestImageHasNoName(t *testing.T) {
	dir := t.TempDir()
	past := time.Unix(1e9, 0)
	probe, err := disk.OS{}.Unnamed(dir, 0o600)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("NOT TESTED: the file system of %s cannot", dir)
	}
	if err := errors.Join(err, probe.Close()); err != nil {
		t.Fatal(err)
	}
	for what, fsys := range map[string]disk.FS{"unnamed": disk.OS{}, "named": named{disk.OS{}}} {
		if err := os.Chtimes(dir, past, past); err != nil {
			t.Fatal(err)
		}
		i, err := New(fsys, dir, Options{}).newImage(inMemory + 1)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1)
		if _, err := i.WriteAt([]byte{7}, inMemory); err != nil {
			t.Error(err)
		}
		if _, err := i.ReadAt(got, inMemory); err != nil || got[0] != 7 {
			t.Errorf("%s: read %v, %v", what, got, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: %v is left (%v)", what, left, err)
		}
		if st, err := os.Stat(dir); err != nil || (what == "unnamed") != st.ModTime().Equal(past) {
			t.Errorf("%s: the directory was changed at %v (%v)", what, st.ModTime(), err)
		}
		if err := i.file.Close(); err != nil {
			t.Error(err)
		}
	}
}
