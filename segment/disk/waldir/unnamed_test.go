package waldir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/walferry/walferry/segment/disk"
)

// unnamer is a file system that makes files without a name elsewhere, or fails.
type unnamer struct {
	disk.OS
	elsewhere string
	err       error
}

func (u unnamer) Unnamed(_ string, perm fs.FileMode) (disk.File, error) {
	if u.err != nil {
		return nil, u.err
	}
	return u.Create(filepath.Join(u.elsewhere, "file"), perm)
}

// The image of a large segment never has a name in the directory where the file
// system can do without. Where it cannot, it has one for a moment; a disk that
// fails is an error.
func TestImageHasNoName(t *testing.T) {
	past := time.Unix(1e9, 0)
	broken := errors.New("i/o error")
	for what, c := range map[string]struct {
		err   error // of a file without a name
		named bool
	}{"it can": {}, "it cannot": {errors.ErrUnsupported, true}, "it fails": {broken, false}} {
		dir := t.TempDir()
		if err := os.Chtimes(dir, past, past); err != nil {
			t.Fatal(err)
		}
		i, err := New(unnamer{elsewhere: t.TempDir(), err: c.err}, dir, Options{}).newImage(inMemory + 1)
		if errors.Is(c.err, broken) {
			if !errors.Is(err, broken) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
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
		if st, err := os.Stat(dir); err != nil || c.named == st.ModTime().Equal(past) {
			t.Errorf("%s: the directory was changed at %v (%v)", what, st.ModTime(), err)
		}
		if err := i.file.Close(); err != nil {
			t.Error(err)
		}
	}
}
