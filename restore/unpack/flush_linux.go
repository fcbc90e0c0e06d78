package unpack

import (
	"os"

	"golang.org/x/sys/unix"
)

// flush lets the kernel begin to write a file that is complete, so that the
// fsync at the end finds little left to do (PostgreSQL: pre_sync_fname in
// src/common/file_utils.c). It promises nothing, so it cannot fail.
func flush(f *os.File) {
	_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
}
