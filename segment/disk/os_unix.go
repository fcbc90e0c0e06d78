//go:build linux || darwin

package disk

import (
	"errors"
	"os"
	"syscall"
)

func flock(f *os.File) error {
	err := control(f, func(fd int) error { return syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) })
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}

func statfs(name string) (free, total int64, err error) {
	var s syscall.Statfs_t
	for {
		if err := syscall.Statfs(name, &s); err == nil {
			break
		} else if !errors.Is(err, syscall.EINTR) {
			return 0, 0, err
		}
	}
	unit := int64(s.Bsize)
	return int64(s.Bavail) * unit, int64(s.Blocks) * unit, nil
}
