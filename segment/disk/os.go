package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/walferry/walferry/internal/tempfile"
)

// OS is the host's file system. Its zero value is ready.
//
// On Linux space is reserved by fallocate, Sync is fdatasync (which covers
// what is needed to read the bytes back: the length and the extents, but no
// time stamps), and the lock is flock: it ends with the process, however that
// ends. Elsewhere zeros are written, Sync is os.File's, and what the system
// cannot do answers errors.ErrUnsupported.
type OS struct{}

var _ FS = OS{}

// Create implements FS.
func (OS) Create(name string, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	return &osFile{f}, nil
}

// Unnamed implements Unnamer.
func (OS) Unnamed(dir string, perm fs.FileMode) (File, error) {
	f, err := tempfile.Unnamed(dir, perm)
	if err != nil {
		return nil, err
	}
	return &osFile{f}, nil
}

// Open implements FS.
func (OS) Open(name string, write bool) (File, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(name, flag, 0)
	if err != nil {
		return nil, err
	}
	return &osFile{f}, nil
}

// Rename implements FS.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Link implements FS.
func (OS) Link(from, to string) error { return os.Link(from, to) }

// Remove implements FS.
func (OS) Remove(name string) error { return os.Remove(name) }

// Mkdir implements FS.
func (OS) Mkdir(name string, perm fs.FileMode) error { return os.MkdirAll(name, perm) }

// ReadDir implements FS. The entries are sorted by name.
func (OS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

// Stat implements FS.
func (OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// SyncDir implements FS. A file system that cannot sync a directory and says
// so by EINVAL or EBADF is taken at its word, as PostgreSQL does
// (src/common/file_utils.c, fsync_fname).
func (OS) SyncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil // a directory cannot be opened there
	}
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EBADF) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// Lock implements FS.
func (OS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, syscall.EISDIR) {
		f, err = os.Open(name)
	}
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "lock", Path: name, Err: err}, f.Close())
	}
	return f, nil
}

// Space implements FS.
func (OS) Space(name string) (free, total int64, err error) {
	free, total, err = statfs(name)
	if err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return free, total, nil
}

// osFile adds to os.File what File asks for beyond it.
type osFile struct{ *os.File }

// Allocate implements File.
func (f *osFile) Allocate(size int64) error {
	err := fallocate(f.File, size)
	if errors.Is(err, errors.ErrUnsupported) {
		err = f.zeroFill(size)
	}
	if err != nil {
		return &fs.PathError{Op: "allocate", Path: f.Name(), Err: err}
	}
	return nil
}

// zeroFill makes the file size bytes long by writing zeros behind its end.
// What is there already stays: a file that is reopened is only completed.
func (f *osFile) zeroFill(size int64) error {
	at, err := f.Size()
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for at < size {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at)
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// Size implements File.
func (f *osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// Sync implements File.
func (f *osFile) Sync() error {
	if err := datasync(f.File); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	return nil
}

// control runs op on f's descriptor, and again when a signal interrupted it.
func control(f *os.File, op func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = c.Control(func(fd uintptr) {
		for {
			opErr = op(int(fd))
			if !errors.Is(opErr, syscall.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, opErr)
}

// MakeDir makes a directory with its missing parents so that it survives a
// crash: on return every name on the way is durable. One that exists is no
// error; its name is synced all the same, since whoever made it may have been
// killed before it did that (where its parent may be read at all: a directory
// that an administrator made in a place closed to us is taken as it is).
func MakeDir(fsys FS, dir string, perm fs.FileMode) error {
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	_, err := fsys.Stat(dir)
	switch {
	case err == nil && parent == dir:
		return nil
	case err == nil:
		if err := fsys.SyncDir(parent); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist) || parent == dir:
		return err
	}
	// From the top down, each synced before the next is made: after a crash
	// only the deepest that exists can be one whose name is not durable.
	if err := MakeDir(fsys, parent, perm); err != nil {
		return err
	}
	if err := fsys.Mkdir(dir, perm); err != nil {
		return err
	}
	return fsys.SyncDir(parent)
}
