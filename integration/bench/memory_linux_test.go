package bench

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// warmMemory fills so many bytes of free memory, half of it at most, and frees
// them again. A virtual machine may have to get each page from its host first,
// and gives free ones back: then to write a file took from 0.2 to 2.4 s for
// 750 MB, by what had run before it. It is memory without a file, and not this
// process's, whose peak would hide the contenders'.
func warmMemory(size int64) error {
	fd, err := unix.MemfdCreate("walferry-bench", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memory to warm: %w", err)
	}
	f := os.NewFile(uintptr(fd), "walferry-bench")
	piece := make([]byte, 1<<20)
	for left := min(size, meminfo("MemAvailable")/2); left > 0 && err == nil; left -= int64(len(piece)) {
		_, err = f.Write(piece)
	}
	return errors.Join(err, f.Close())
}
