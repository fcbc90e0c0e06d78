package instance

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// CopyDataDir makes a cold copy of a data directory: of a server that does not
// run, or the copy is worth nothing (an error when postmaster.pid is there).
// dst must not exist. Modes are kept; the copy belongs to this process. A
// cluster with tablespaces is refused: the copy's links would lead to the
// original's files.
//
// Nothing is fsynced: it is meant for clusters that can be thrown away.
func CopyDataDir(dst, src string) error {
	if _, err := os.Lstat(filepath.Join(src, "postmaster.pid")); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("copying data directory %s: a server runs in it, or ended badly (postmaster.pid)", src)
	}
	if err := copyTree(dst, src); err != nil {
		return fmt.Errorf("copying data directory %s: %w", src, err)
	}
	return nil
}

func copyTree(dst, src string) error {
	return filepath.WalkDir(src, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		to := filepath.Join(dst, rel)
		switch {
		case e.IsDir():
			return os.Mkdir(to, info.Mode().Perm())
		case info.Mode().IsRegular():
			return copyFile(to, p, info.Mode().Perm())
		default:
			return fmt.Errorf("%s is neither a file nor a directory", rel)
		}
	})
}

func copyFile(dst, src string, perm fs.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return errors.Join(err, in.Close())
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), in.Close())
}
