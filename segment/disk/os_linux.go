package disk

import (
	"errors"
	"os"
	"syscall"
)

func fallocate(f *os.File, size int64) error {
	err := control(f, func(fd int) error { return syscall.Fallocate(fd, 0, 0, size) })
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return errors.ErrUnsupported
	}
	return err
}

func datasync(f *os.File) error { return control(f, syscall.Fdatasync) }
