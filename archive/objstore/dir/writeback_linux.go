package dir

import (
	"os"

	"golang.org/x/sys/unix"
)

// beginWriting has the kernel begin to write size bytes of f at the offset at,
// so that the disk works while more is received, and a Sync in the end has
// little left to wait for. It promises nothing: no error is told by it and none is
// taken from Sync (Linux: sync_file_range(2), which takes a file's error only
// where it waits).
func beginWriting(f *os.File, at, size int64) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	// A file system that cannot do this writes in Sync, and a file that is
	// closed meanwhile is given up.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SyncFileRange(int(fd), at, size, unix.SYNC_FILE_RANGE_WRITE)
	})
}
