package spool

import (
	"io/fs"
	"slices"
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/crashfs"
)

// ordered is a file system whose files want to know what is final, and note it.
type ordered struct {
	disk.FS
	told *[]int64
}

type orderedFile struct {
	disk.File
	told *[]int64
}

func (o ordered) Create(name string, perm fs.FileMode) (disk.File, error) {
	f, err := o.FS.Create(name, perm)
	return &orderedFile{f, o.told}, err
}

func (f *orderedFile) SyncTo(end int64) error {
	*f.told = append(*f.told, end)
	return f.File.Sync()
}

// A file that stores its bytes in their order learns at each sync how far they
// are final: what Advance let go, not what was written, and to the end at last.
func TestSyncsSayWhatIsFinal(t *testing.T) {
	var told []int64
	s := mustOpen(t, ordered{crashfs.New(1), &told}, spoolDir)
	check(t, s.Bind(cluster))
	told = nil
	g, err := s.Begin(first)
	check(t, err)
	check(t, g.WriteAt(make([]byte, 1000), base)) // zeros are written ahead of it
	g.Advance(base + 600)
	if _, err := g.Sync(); err != nil {
		t.Fatal(err)
	}
	check(t, g.WriteAt(make([]byte, size-1000), base+1000))
	g.Advance(base + segment.LSN(size))
	check(t, g.Seal())
	if want := []int64{600, int64(size)}; !slices.Equal(told, want) {
		t.Errorf("told %d, want %d", told, want)
	}
}
