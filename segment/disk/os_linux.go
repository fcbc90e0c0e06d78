package disk

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func fallocate(f *os.File, size int64) error {
	err := control(f, func(fd int) error { return syscall.Fallocate(fd, 0, 0, size) })
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return errors.ErrUnsupported
	}
	return err
}

// Unnamed implements Unnamer (open(2), O_TMPFILE). NFS, for one, cannot.
func (OS) Unnamed(dir string, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|os.O_EXCL|unix.O_TMPFILE, perm)
	switch {
	case err == nil:
		return &osFile{f}, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL):
		return nil, errors.ErrUnsupported
	}
	return nil, err
}

func datasync(f *os.File) error { return control(f, syscall.Fdatasync) }
