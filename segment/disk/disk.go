// Package disk is the seam to the local file system: the few operations whose
// order and durability the spool depends on. OS is the real one; crashfs is
// one in memory that forgets what was not fsynced and fails on demand.
//
// The rules that callers rely on (POSIX, and PostgreSQL's own practice in
// src/common/file_utils.c): written bytes survive a crash after File.Sync; a
// created, renamed, linked or removed name survives a crash after SyncDir of
// its directory; Rename replaces its target atomically. A failed Sync is
// final: the kernel may have dropped the bytes, and a second Sync that
// succeeds proves nothing, so the file must be given up.
package disk

import (
	"errors"
	"io"
	"io/fs"
)

// ErrLocked: another process (or another holder in this one) has the lock.
var ErrLocked = errors.New("locked by another process")

// FS is a file system. Paths are those of the host. It is safe for concurrent
// use. Errors wrap the fs.Err… sentinels and syscall.Errno (ENOSPC).
type FS interface {
	// Create makes a new empty file; fs.ErrExist when the name is taken.
	Create(name string, perm fs.FileMode) (File, error)
	// Open opens a file for reading and writing when write is set, else for
	// reading only.
	Open(name string, write bool) (File, error)
	Rename(from, to string) error
	Link(from, to string) error
	Remove(name string) error
	Mkdir(name string, perm fs.FileMode) error // parents too; an existing directory is no error
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// Lock takes an exclusive advisory lock on the file, made if missing, or on
	// a directory that is there, until the returned closer is closed or the
	// process ends. It does not wait: ErrLocked.
	Lock(name string) (io.Closer, error)
	// Space returns the bytes that an unprivileged user can still write, and
	// the size of the file system that holds name.
	Space(name string) (free, total int64, err error)
}

// Unnamer is an FS that can make a file in dir, for reading and writing, which
// never has a name: nothing is left of it when it is closed, whatever happens.
// errors.ErrUnsupported: not in this directory.
type Unnamer interface {
	Unnamed(dir string, perm fs.FileMode) (File, error)
}

// File is an open file. ReadAt and WriteAt are safe for concurrent use on
// ranges that do not overlap, also beside Sync.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Allocate reserves size bytes of disk space for the file and makes it
	// that long; unwritten bytes read as zeros. With it, later writes within
	// size cannot fail for want of space. Where the file system cannot
	// reserve, zeros are written.
	Allocate(size int64) error
	Truncate(size int64) error
	Size() (int64, error)
	Sync() error
	Close() error
}

// InOrder is a File that stores bytes in their order, once each, as a
// compressed one does: it must know which of them will not change any more.
type InOrder interface {
	File
	// SyncTo is Sync for the bytes in front of end, all of them written. They
	// are never written again with other values. It may run beside ReadAt, and
	// beside WriteAt behind end.
	SyncTo(end int64) error
}

// SyncTo makes the bytes of f in front of end durable, which will not change
// any more: by f's own SyncTo where it has one.
func SyncTo(f File, end int64) error {
	if f, ok := f.(InOrder); ok {
		return f.SyncTo(end)
	}
	return f.Sync()
}
