// Package memory is a file system in this process's memory: a disk for a
// receiver that has none. What it holds is gone with the process; nothing here
// is durable, whatever Sync and SyncDir return.
//
// It is made for few files that are all of one large size and come and go, as
// the segments of a spool do. File.Allocate takes a buffer of that size from
// those that removed files have left, and only without one asks for memory. So
// its memory is what was ever held at once, and stays at that: nothing waits
// for a garbage collection, and nothing grows with time. How much is held is
// for the user to bound (spool.Options).
package memory

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/walferry/walferry/segment/disk"
)

// FS is a disk.FS. Its root exists; other directories are made by Mkdir. Names
// are cleaned as the host's are. A directory cannot be renamed, nor linked.
type FS struct {
	mu    sync.Mutex // comes before a node's
	names map[string]*node
	locks map[string]bool
	free  map[int][][]byte // what Allocate took and files have left, by length
}

var _ disk.FS = (*FS)(nil)

// New returns an empty file system.
func New() *FS {
	return &FS{names: make(map[string]*node), locks: make(map[string]bool), free: make(map[int][][]byte)}
}

// node is a file or a directory.
type node struct {
	perm fs.FileMode
	dir  bool

	users int // names and open files; guarded by FS.mu

	// mu is locked to change data, and read-locked to use the bytes in it:
	// those that read and write beside each other use ranges of their own.
	mu        sync.RWMutex
	data      []byte
	allocated bool // data is what Allocate took
}

// grow makes data longer, by zeros; mu is locked.
func (n *node) grow(to int64) {
	have := len(n.data)
	if to > int64(cap(n.data)) {
		n.allocated = false
	}
	n.data = slices.Grow(n.data, int(to)-have)[:to]
	clear(n.data[have:])
}

// swap puts other bytes in data's place, and returns those that it had if they
// are to be used again; mu is locked.
func (n *node) swap(data []byte) (old []byte) {
	if n.allocated {
		old = n.data[:cap(n.data)]
	}
	n.data, n.allocated = data, true
	return old
}

func failed(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// find returns the node of a clean name; mu is held.
func (f *FS) find(op, name string) (*node, error) {
	if n := f.names[name]; n != nil {
		return n, nil
	}
	if filepath.Dir(name) == name {
		return &node{dir: true, perm: 0o700}, nil
	}
	return nil, failed(op, name, fs.ErrNotExist)
}

// add makes a node with a name, in a directory that is there; mu is held.
func (f *FS) add(op, name string, n *node) (*node, error) {
	parent, err := f.find(op, filepath.Dir(name))
	switch {
	case err != nil:
		return nil, failed(op, name, fs.ErrNotExist)
	case !parent.dir:
		return nil, failed(op, name, syscall.ENOTDIR)
	}
	f.names[name] = n
	n.users++
	return n, nil
}

// file returns the node of a file; mu is held.
func (f *FS) file(op, name string) (*node, error) {
	n, err := f.find(op, name)
	if err == nil && n.dir {
		err = failed(op, name, syscall.EISDIR)
	}
	return n, err
}

// leave takes a name or an open file away from a node, and with the last one
// the bytes; mu is held.
func (f *FS) leave(n *node) {
	if n.users--; n.users > 0 {
		return
	}
	n.mu.Lock() // a read of a file that is being closed ends first
	defer n.mu.Unlock()
	f.keep(n.swap(nil))
}

// keep takes a buffer back, if it is one; mu is held.
func (f *FS) keep(b []byte) {
	if len(b) > 0 {
		f.free[len(b)] = append(f.free[len(b)], b)
	}
}

// buffer returns size bytes of zeros.
func (f *FS) buffer(size int) []byte {
	f.mu.Lock()
	var b []byte
	if free := f.free[size]; len(free) > 0 {
		b, free[len(free)-1] = free[len(free)-1], nil
		f.free[size] = free[:len(free)-1]
	}
	f.mu.Unlock()
	if b == nil {
		return make([]byte, size)
	}
	clear(b)
	return b
}

// Create implements disk.FS.
func (f *FS) Create(name string, perm fs.FileMode) (disk.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = filepath.Clean(name)
	if _, err := f.find("create", name); err == nil {
		return nil, failed("create", name, fs.ErrExist)
	}
	n, err := f.add("create", name, &node{perm: perm.Perm()})
	if err != nil {
		return nil, err
	}
	return f.open(n, name, true), nil
}

// Open implements disk.FS. A directory cannot be opened.
func (f *FS) Open(name string, write bool) (disk.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = filepath.Clean(name)
	n, err := f.file("open", name)
	if err != nil {
		return nil, err
	}
	return f.open(n, name, write), nil
}

func (f *FS) open(n *node, name string, write bool) *file {
	n.users++
	return &file{fs: f, n: n, name: name, write: write}
}

// Rename implements disk.FS.
func (f *FS) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, to = filepath.Clean(from), filepath.Clean(to)
	n, err := f.file("rename", from)
	if err != nil {
		return err
	}
	old := f.names[to]
	switch {
	case old == n:
		return nil
	case old != nil && old.dir:
		return failed("rename", to, fs.ErrExist)
	}
	if _, err := f.add("rename", to, n); err != nil {
		return err
	}
	delete(f.names, from)
	f.leave(n)
	if old != nil {
		f.leave(old)
	}
	return nil
}

// Link implements disk.FS.
func (f *FS) Link(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, to = filepath.Clean(from), filepath.Clean(to)
	n, err := f.file("link", from)
	if err != nil {
		return err
	}
	if _, err := f.find("link", to); err == nil {
		return failed("link", to, fs.ErrExist)
	}
	_, err = f.add("link", to, n)
	return err
}

// Remove implements disk.FS. The bytes stay until the last of the file's names
// is removed and it is closed wherever it is open.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = filepath.Clean(name)
	n, err := f.find("remove", name)
	if err != nil {
		return err
	}
	if filepath.Dir(name) == name || n.dir && len(f.list(name)) > 0 {
		return failed("remove", name, syscall.ENOTEMPTY)
	}
	delete(f.names, name)
	f.leave(n)
	return nil
}

// Mkdir implements disk.FS.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mkdir(filepath.Clean(name), perm)
}

// mkdir is Mkdir; mu is held.
func (f *FS) mkdir(name string, perm fs.FileMode) error {
	switch n, err := f.find("mkdir", name); {
	case err == nil && n.dir:
		return nil
	case err == nil:
		return failed("mkdir", name, syscall.ENOTDIR)
	}
	if err := f.mkdir(filepath.Dir(name), perm); err != nil {
		return err
	}
	_, err := f.add("mkdir", name, &node{dir: true, perm: perm.Perm()})
	return err
}

// list returns the names in a directory, in order; mu is held.
func (f *FS) list(dir string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(f.names)), func(name string) bool { return filepath.Dir(name) != dir })
}

// ReadDir implements disk.FS. The entries are sorted by name.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = filepath.Clean(name)
	n, err := f.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, failed("readdir", name, syscall.ENOTDIR)
	}
	var out []fs.DirEntry
	for _, entry := range f.list(name) {
		out = append(out, fs.FileInfoToDirEntry(infoOf(entry, f.names[entry])))
	}
	return out, nil
}

// Stat implements disk.FS.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = filepath.Clean(name)
	n, err := f.find("stat", name)
	if err != nil {
		return nil, err
	}
	return infoOf(name, n), nil
}

// SyncDir implements disk.FS. It does nothing, to a directory that is there.
func (f *FS) SyncDir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = filepath.Clean(name)
	n, err := f.find("sync", name)
	if err == nil && !n.dir {
		err = failed("sync", name, syscall.ENOTDIR)
	}
	return err
}

// Lock implements disk.FS. Nobody but this process can see the file: the lock
// is between those who share the FS.
func (f *FS) Lock(name string) (io.Closer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = filepath.Clean(name)
	if f.locks[name] {
		return nil, failed("lock", name, disk.ErrLocked)
	}
	_, err := f.find("lock", name)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = f.add("lock", name, &node{perm: 0o600})
	}
	if err != nil {
		return nil, err
	}
	f.locks[name] = true
	return &lock{fs: f, name: name}, nil
}

type lock struct {
	fs   *FS
	name string
	gone bool // guarded by fs.mu
}

func (l *lock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	if l.gone {
		return failed("unlock", l.name, fs.ErrClosed)
	}
	l.gone = true
	delete(l.fs.locks, l.name)
	return nil
}

// Space implements disk.FS. How much memory there is, is not known here:
// errors.ErrUnsupported.
func (f *FS) Space(name string) (free, total int64, err error) {
	if _, err := f.Stat(name); err != nil {
		return 0, 0, err
	}
	return 0, 0, failed("space", name, errors.ErrUnsupported)
}

// info is a fs.FileInfo. There are no times.
type info struct {
	name string
	size int64
	mode fs.FileMode
}

func infoOf(name string, n *node) info {
	i := info{name: filepath.Base(name), mode: n.perm}
	if n.dir {
		i.mode |= fs.ModeDir
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	i.size = int64(len(n.data))
	return i
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return nil }

// file is an open file.
type file struct {
	fs     *FS
	n      *node
	name   string
	write  bool
	closed atomic.Bool
}

// usable returns an error unless the file may be used so. n.mu is held, so that
// the bytes stay while they are used: Close waits for it.
func (h *file) usable(op string, write bool) error {
	switch {
	case h.closed.Load():
		return failed(op, h.name, fs.ErrClosed)
	case write && !h.write:
		return failed(op, h.name, fs.ErrPermission)
	}
	return nil
}

// ReadAt implements disk.File.
func (h *file) ReadAt(p []byte, off int64) (int, error) {
	h.n.mu.RLock()
	defer h.n.mu.RUnlock()
	if err := h.usable("read", false); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, failed("read", h.name, fs.ErrInvalid)
	}
	if off >= int64(len(h.n.data)) {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := copy(p, h.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements disk.File. Within the file's length it copies, and no
// more.
func (h *file) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if off < 0 || end < off || end > math.MaxInt {
		return 0, failed("write", h.name, fs.ErrInvalid)
	}
	h.n.mu.RLock()
	if err := h.usable("write", true); err != nil || end <= int64(len(h.n.data)) {
		defer h.n.mu.RUnlock()
		if err != nil {
			return 0, err
		}
		return copy(h.n.data[off:], p), nil
	}
	h.n.mu.RUnlock()
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if err := h.usable("write", true); err != nil {
		return 0, err
	}
	if end > int64(len(h.n.data)) && len(p) > 0 {
		h.n.grow(end)
	}
	return copy(h.n.data[min(off, int64(len(h.n.data))):], p), nil
}

// Allocate implements disk.File.
func (h *file) Allocate(size int64) error {
	if size < 0 || size > math.MaxInt {
		return failed("allocate", h.name, fs.ErrInvalid)
	}
	if have, err := h.Size(); err != nil || have >= size {
		return err
	}
	b := h.fs.buffer(int(size))
	h.n.mu.Lock()
	err := h.usable("allocate", true)
	if err == nil && int64(len(h.n.data)) < size {
		copy(b, h.n.data)
		b = h.n.swap(b)
	}
	h.n.mu.Unlock()
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	h.fs.keep(b)
	return err
}

// Truncate implements disk.File.
func (h *file) Truncate(size int64) error {
	if size < 0 || size > math.MaxInt {
		return failed("truncate", h.name, fs.ErrInvalid)
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if err := h.usable("truncate", true); err != nil {
		return err
	}
	if size > int64(len(h.n.data)) {
		h.n.grow(size)
	}
	h.n.data = h.n.data[:size]
	return nil
}

// Size implements disk.File.
func (h *file) Size() (int64, error) {
	h.n.mu.RLock()
	defer h.n.mu.RUnlock()
	if err := h.usable("size", false); err != nil {
		return 0, err
	}
	return int64(len(h.n.data)), nil
}

// Sync implements disk.File. It does nothing, to a file that is open.
func (h *file) Sync() error {
	if h.closed.Load() {
		return fmt.Errorf("sync: %w", failed("sync", h.name, fs.ErrClosed))
	}
	return nil
}

// Close implements disk.File.
func (h *file) Close() error {
	if !h.closed.CompareAndSwap(false, true) {
		return failed("close", h.name, fs.ErrClosed)
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	h.fs.leave(h.n)
	return nil
}
