package restore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/walferry/walferry/segment"
)

// holds tells whether the server itself has a segment whole: it was in the base
// backup, whose WAL the archive need not have. Told that a segment is absent,
// the server takes the one in pg_wal (PostgreSQL: RestoreArchivedFile in
// src/backend/access/transam/xlogarchive.c), and goes on behind it.
//
// Whole is one with WAL of that very place up to its last page, or up to a
// segment switch: not what a crash has left of the newest one, nor a file that
// was renamed for later use, behind which recovery would end.
func (p Place) holds(n segment.Name, c cluster) (bool, error) {
	f, err := os.Open(p.path(walDir, n.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking whether the server has the segment: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	whole, err := holdsWhole(f, n, c)
	if err != nil && !notWhole(err) {
		return false, fmt.Errorf("looking whether the server has the segment: %w", err)
	}
	return whole, nil
}

// notWhole tells what a file is from failures to read it.
func notWhole(err error) bool {
	return errors.Is(err, segment.ErrPage) || errors.Is(err, segment.ErrSegmentSize) || errors.Is(err, segment.ErrForeignCluster)
}

func holdsWhole(f *os.File, n segment.Name, c cluster) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	size := segment.Size(info.Size())
	if size.Check() != nil || n.Check(size) != nil {
		return false, nil
	}
	rules := segment.PageRules{Name: n, Size: size, SystemIdentifier: c.systemIdentifier, History: c.history(n.Timeline)}
	pages := segment.NewPageChecker(rules)
	if _, err := io.Copy(pages, f); err != nil {
		return false, err
	}
	if err := pages.Close(); err != nil {
		return false, err
	}
	last := make([]byte, segment.PageSize)
	if _, err := f.ReadAt(last, info.Size()-int64(len(last))); err != nil {
		return false, err
	}
	for _, b := range last {
		if b != 0 {
			return true, nil
		}
	}
	_, end, err := segment.VerifiedRecords(f, info.Size(), rules)
	return end == n.End(size), err
}
