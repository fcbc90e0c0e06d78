// Package dir is an object store in a directory: a key is a path below the
// root, an object a regular file.
//
// # Writing
//
// An object is written to a temporary file in walferry_005/tmp/ below the
// root, fsynced, and only then given its name: by link(2) when it must not
// exist yet (the kernel decides who was first, also between hosts on NFS), by
// rename(2) otherwise. Then the directory is fsynced, and once in the life of a
// Store every directory between it and the root. So a name never stands for
// less than the whole object:
//
//	crash after             state left                     what happens next
//	write, fsync of temp    a temporary file               removed by a later writer, when a day old
//	link                    the object, whole; its name    put again: gone, or ErrExists, which
//	                        may be lost with the host      makes it durable first
//	fsync of the directory  the object, durable            put again: ErrExists
//
// The parts of an upload are written to such a file, where they belong in it;
// Complete is a put from the fsync on:
//
//	begin, parts            a temporary file               removed by a later writer, when a day old
//	fsync, link, fsync      as of a put                    as of a put
//
// # Absence
//
// An empty mount point looks like an empty archive, and taking one for the
// other would end a recovery early. Every call therefore holds the root open
// (which keeps it mounted) and compares it with the root that Open saw: another
// directory is ErrNoStore. One that was mounted again, with another device number
// but the same inodes of root and walferry_005, is taken for the same.
//
// A call takes as long as the operating system takes: a hard NFS mount without a
// server hangs it.
package dir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/walferry/walferry/archive/objstore"
)

const (
	ownFolder  = "walferry_005"
	tempFolder = ownFolder + "/tmp"

	// WAL is readable by the owner and the group at most, as PostgreSQL's own
	// files are; the umask narrows it further.
	filePerm = 0o640
	dirPerm  = 0o750
)

// Option changes how a store is opened.
type Option uint8

// Create makes the root, and what is missing above it, when it is not there.
// Without it that is ErrNoStore: it may not be mounted, or be misspelt.
const Create Option = 1

// Store keeps objects in a directory. It is safe for concurrent use, also
// beside other processes.
type Store struct {
	path string // absolute, clean

	sweep sync.Once // removal of stale temporary files

	mu     sync.Mutex
	id     rootID          // guarded by mu
	synced map[string]bool // directories whose names are durable up to the root; guarded by mu
}

var _ objstore.Store = (*Store)(nil)

// rootID tells directories apart.
type rootID struct {
	dev, ino uint64
	own      uint64 // inode of walferry_005, 0 when there is none
}

// Open opens the store in the directory path. The root must exist unless
// Create is given: ErrNoStore. Nothing is written below it before the first put.
func Open(path string, opts ...Option) (*Store, error) {
	if path == "" {
		return nil, errors.New("open store: the path of the directory is empty")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	s := &Store{path: abs, synced: map[string]bool{}}
	for _, o := range opts {
		if o == Create {
			if err := makeRoot(abs); err != nil {
				return nil, fmt.Errorf("create store %s: %w", abs, classify(err))
			}
		}
	}
	root, err := openRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.id, err = identify(root)
	if cerr := root.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", abs, err)
	}
	return s, nil
}

// String names the store as a URL.
func (s *Store) String() string { return "file://" + s.path }

// makeRoot makes path and its missing parents, durably.
func makeRoot(path string) error {
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := makeRoot(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func openRoot(path string) (*os.File, error) {
	root, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: there is no directory %s", objstore.ErrNoStore, path)
	case err != nil:
		return nil, classify(err)
	}
	st, err := root.Stat()
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%w: %s is not a directory", objstore.ErrNoStore, path)
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

func identify(root *os.File) (rootID, error) {
	st, err := root.Stat()
	if err != nil {
		return rootID{}, err
	}
	sys := st.Sys().(*syscall.Stat_t)
	id := rootID{dev: uint64(sys.Dev), ino: sys.Ino}
	if own, err := os.Stat(filepath.Join(root.Name(), ownFolder)); err == nil {
		id.own = own.Sys().(*syscall.Stat_t).Ino
	}
	return id, nil
}

// enter opens the root and makes sure that it is the one that was opened
// first. The caller closes it when done: while it is open the file system cannot
// be unmounted (but lazily, see check).
func (s *Store) enter() (*os.File, error) {
	root, err := openRoot(s.path)
	if err != nil {
		return nil, err
	}
	if err := s.compare(root); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

func (s *Store) compare(root *os.File) error {
	now, err := identify(root)
	if err != nil {
		return fmt.Errorf("look at %s: %w", s.path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	same := now.dev == s.id.dev && now.ino == s.id.ino
	again := now.ino == s.id.ino && now.own != 0 && now.own == s.id.own
	if !same && !again {
		return fmt.Errorf("%w: %s is not the directory that was opened (device %d inode %d, now %d and %d): was its file system unmounted?",
			objstore.ErrNoStore, s.path, s.id.dev, s.id.ino, now.dev, now.ino)
	}
	if !same || s.id.own != now.own {
		clear(s.synced) // other directories may be there than those that we synced
	}
	s.id = now
	return nil
}

// check makes sure that the root is still what enter saw: a lookup that
// found nothing counts only then, since a lazy unmount takes the tree away from
// under an open descriptor.
func (s *Store) check() error {
	root, err := s.enter()
	if err != nil {
		return err
	}
	return root.Close()
}

// absent decides what it means that the file of key was not found: ErrNotFound
// when the root is there and no directory on the way is a link to nowhere.
func (s *Store) absent(key string) error {
	if err := s.check(); err != nil {
		return err
	}
	for dir := filepath.Dir(filepath.FromSlash(key)); dir != "."; dir = filepath.Dir(dir) {
		if err := dangling(filepath.Join(s.path, dir)); err != nil {
			return err
		}
	}
	if err := dangling(s.file(key)); err != nil {
		return err
	}
	return objstore.ErrNotFound
}

// dangling tells of a symbolic link whose target is not there, perhaps because
// it is on a file system that is not mounted.
func dangling(path string) error {
	st, err := os.Lstat(path)
	if err != nil || st.Mode()&fs.ModeSymlink == 0 {
		return nil
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: the target of the symbolic link %s is not there", objstore.ErrNoStore, path)
	}
	return nil
}

// noSuchFile tells of a path that names nothing, also when a part of it is a
// file and no directory.
func noSuchFile(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

func (s *Store) file(key string) string {
	return filepath.Join(s.path, filepath.FromSlash(key))
}

// classify adds the sentinel by which callers decide.
func classify(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", objstore.ErrDenied, err)
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return errors.Join(err, d.Close())
	}
	return d.Close()
}
