// Package crashfs is a file system in memory for tests of durability. It
// forgets what was not synced, fails on demand, and runs out of space.
//
// A crash keeps what disk.FS promises and draws the rest by lot, from a seed:
//
//   - Of a file's blocks that were written after its last sync, each is what it
//     was, what it became, or a mixture of both by sectors; the length is the
//     old or the new one.
//   - Of the changes of names since a directory's last sync, the first few
//     happened, or any of them: a rename happens whole or not at all.
//   - A sync that failed took the written blocks for clean: they can be read
//     until the crash, and no later sync makes them durable unless they are
//     written again. So Linux does it.
//   - A write that failed may have written its first part.
//
// Every call counts as an operation. FailAt fails a single one, StopAt that
// and all after it, as for a process that dies there. After Crash the files
// and locks of before are dead (ErrCrashed).
package crashfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/walferry/walferry/segment/disk"
)

// ErrCrashed: the operation comes after a crash, on something from before, or
// after the operation at which StopAt let the process die.
var ErrCrashed = errors.New("crashed")

const (
	block  = 4096
	sector = 512
)

// FS is a disk.FS. Names are slash-separated and absolute; "/" exists.
type FS struct {
	mu     sync.Mutex
	rng    *rand.Rand
	names  map[string]*node // as a process sees them
	synced map[string]*node // as they are on the disk
	log    []change         // what makes names out of synced, oldest first
	locks  map[string]bool
	life   int // counts crashes
	open   int // files that are open
	space  int64

	ops    int
	failAt int
	stopAt int
	err    error
}

// node is a file or a directory. synced and syncedSize are its content on the
// disk; dirty are the blocks that a sync would write.
type node struct {
	dir    bool
	perm   fs.FileMode
	data   []byte
	synced []byte
	dirty  map[int]bool
	lost   map[int]bool // written, but a failed sync took them for clean
}

// change is one change of names: to becomes n, nil: removed; from, when it is
// not empty, is removed in the same step.
type change struct {
	from, to string
	n        *node
}

func (c change) apply(names map[string]*node) {
	if c.from != "" && names[c.from] == c.n {
		delete(names, c.from)
	}
	if c.n == nil {
		delete(names, c.to)
	} else {
		names[c.to] = c.n
	}
}

var _ disk.FS = (*FS)(nil)

// New returns an empty file system; seed decides what its crashes leave.
func New(seed uint64) *FS {
	root := &node{dir: true, perm: 0o755}
	return &FS{
		rng:   rand.New(rand.NewPCG(seed, 0)),
		names: map[string]*node{"/": root}, synced: map[string]*node{"/": root},
		locks: make(map[string]bool), space: 1 << 40,
	}
}

// SetSpace sets the size of the file system in bytes. Files count with their
// length. Writing beyond it fails with ENOSPC.
func (f *FS) SetSpace(total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.space = total
}

// Ops returns how many operations were counted.
func (f *FS) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ops
}

// OpenFiles returns how many files are open, locks not counted.
func (f *FS) OpenFiles() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

// FailAt lets the n-th operation from now fail with err; 1 is the next, 0 none.
// One that fails changes nothing, but see the package comment for writes and
// syncs.
func (f *FS) FailAt(n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failAt, f.err = 0, err
	if n > 0 {
		f.failAt = f.ops + n
	}
}

// StopAt lets the n-th operation from now and all after it fail with
// ErrCrashed, until Crash; 0 none.
func (f *FS) StopAt(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopAt = 0
	if n > 0 {
		f.stopAt = f.ops + n
	}
}

// Crash takes the power away and gives it back: what was not synced is drawn
// by lot, open files and locks are dead, and nothing fails any more.
func (f *FS) Crash() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.life++
	f.open, f.failAt, f.stopAt = 0, 0, 0
	clear(f.locks)
	names := maps.Clone(f.synced)
	cut := f.rng.IntN(len(f.log) + 1)
	ordered := f.rng.IntN(2) == 0
	for i, c := range f.log {
		if ordered && i < cut || !ordered && f.rng.IntN(2) == 0 {
			c.apply(names)
		}
	}
	for again := true; again; { // what lay in a directory that is gone is gone too
		again = false
		for name := range names {
			if name != "/" && names[path.Dir(name)] == nil {
				delete(names, name)
				again = true
			}
		}
	}
	f.names, f.synced, f.log = names, maps.Clone(names), nil
	seen := make(map[*node]bool)
	for _, name := range slices.Sorted(maps.Keys(names)) { // in order, so that a seed always draws the same
		if n := names[name]; !seen[n] {
			seen[n] = true
			n.crash(f.rng)
		}
	}
}

// crash draws what is left of a file.
func (n *node) crash(rng *rand.Rand) {
	if n.dir || len(n.dirty)+len(n.lost) == 0 && len(n.data) == len(n.synced) {
		return
	}
	size := len(n.synced)
	if rng.IntN(2) == 0 {
		size = len(n.data)
	}
	was := resized(n.synced, max(len(n.data), len(n.synced)))
	is := resized(n.data, len(was))
	unsynced := slices.AppendSeq(slices.Collect(maps.Keys(n.dirty)), maps.Keys(n.lost))
	slices.Sort(unsynced) // a block is in one of the two
	for _, b := range unsynced {
		from := min(b*block, len(was))
		to := min(from+block, len(was))
		switch rng.IntN(3) {
		case 0:
			copy(was[from:to], is[from:to])
		case 1:
			for s := from; s < to; s += sector {
				if rng.IntN(2) == 0 {
					copy(was[s:min(s+sector, to)], is[s:])
				}
			}
		}
	}
	n.synced = was[:size:size]
	n.data = bytes.Clone(n.synced)
	n.dirty, n.lost = nil, nil
}

// resized returns a copy of b with another length, with zeros behind.
func resized(b []byte, size int) []byte {
	out := make([]byte, size)
	copy(out, b)
	return out
}

// op counts an operation and says whether it must fail; mu is held.
func (f *FS) op(what, name string) error {
	f.ops++
	switch {
	case f.stopAt != 0 && f.ops >= f.stopAt:
		return &fs.PathError{Op: what, Path: name, Err: ErrCrashed}
	case f.ops == f.failAt:
		return &fs.PathError{Op: what, Path: name, Err: f.err}
	}
	return nil
}

func (f *FS) used() int64 {
	var sum int64
	seen := make(map[*node]bool)
	for _, n := range f.names {
		if !seen[n] {
			seen[n] = true
			sum += int64(len(n.data))
		}
	}
	return sum
}

// change applies a change of names and notes it for the next sync.
func (f *FS) change(c change) {
	c.apply(f.names)
	f.log = append(f.log, c)
}

func (f *FS) add(name string, perm fs.FileMode, dir bool) (*node, error) {
	if p := f.names[path.Dir(name)]; p == nil || !p.dir {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrNotExist}
	}
	n := &node{perm: perm, dir: dir}
	f.change(change{to: name, n: n})
	return n, nil
}

func (f *FS) find(what, name string) (*node, error) {
	if n := f.names[name]; n != nil {
		return n, nil
	}
	return nil, &fs.PathError{Op: what, Path: name, Err: fs.ErrNotExist}
}

// Create implements disk.FS.
func (f *FS) Create(name string, perm fs.FileMode) (disk.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = path.Clean(name)
	if err := f.op("create", name); err != nil {
		return nil, err
	}
	if f.names[name] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	n, err := f.add(name, perm, false)
	if err != nil {
		return nil, err
	}
	f.open++
	return &file{fs: f, n: n, name: name, life: f.life, write: true}, nil
}

// Open implements disk.FS.
func (f *FS) Open(name string, write bool) (disk.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = path.Clean(name)
	if err := f.op("open", name); err != nil {
		return nil, err
	}
	n, err := f.find("open", name)
	if err != nil {
		return nil, err
	}
	f.open++
	return &file{fs: f, n: n, name: name, life: f.life, write: write}, nil
}

// Rename implements disk.FS.
func (f *FS) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, to = path.Clean(from), path.Clean(to)
	if err := f.op("rename", from); err != nil {
		return err
	}
	n, err := f.find("rename", from)
	if err != nil {
		return err
	}
	f.change(change{from: from, to: to, n: n})
	return nil
}

// Link implements disk.FS.
func (f *FS) Link(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, to = path.Clean(from), path.Clean(to)
	if err := f.op("link", from); err != nil {
		return err
	}
	n, err := f.find("link", from)
	if err != nil {
		return err
	}
	if f.names[to] != nil {
		return &fs.PathError{Op: "link", Path: to, Err: fs.ErrExist}
	}
	f.change(change{to: to, n: n})
	return nil
}

// Remove implements disk.FS.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = path.Clean(name)
	if err := f.op("remove", name); err != nil {
		return err
	}
	if _, err := f.find("remove", name); err != nil {
		return err
	}
	f.change(change{to: name})
	return nil
}

// Mkdir implements disk.FS.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = path.Clean(name)
	if err := f.op("mkdir", name); err != nil {
		return err
	}
	return f.mkdir(name, perm)
}

func (f *FS) mkdir(name string, perm fs.FileMode) error {
	if n := f.names[name]; n != nil {
		if !n.dir {
			return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		}
		return nil
	}
	if err := f.mkdir(path.Dir(name), perm); err != nil {
		return err
	}
	_, err := f.add(name, perm, true)
	return err
}

// ReadDir implements disk.FS.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = path.Clean(name)
	if err := f.op("readdir", name); err != nil {
		return nil, err
	}
	if _, err := f.find("readdir", name); err != nil {
		return nil, err
	}
	var out []fs.DirEntry
	for _, p := range slices.Sorted(maps.Keys(f.names)) {
		if p != "/" && path.Dir(p) == name {
			out = append(out, fs.FileInfoToDirEntry(infoOf(p, f.names[p])))
		}
	}
	return out, nil
}

// Stat implements disk.FS.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = path.Clean(name)
	if err := f.op("stat", name); err != nil {
		return nil, err
	}
	n, err := f.find("stat", name)
	if err != nil {
		return nil, err
	}
	return infoOf(name, n), nil
}

// SyncDir implements disk.FS.
func (f *FS) SyncDir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = path.Clean(name)
	if err := f.op("syncdir", name); err != nil {
		return err
	}
	if _, err := f.find("syncdir", name); err != nil {
		return err
	}
	f.log = slices.DeleteFunc(f.log, func(c change) bool {
		if path.Dir(c.to) != name && (c.from == "" || path.Dir(c.from) != name) {
			return false
		}
		c.apply(f.synced)
		return true
	})
	return nil
}

// Lock implements disk.FS.
func (f *FS) Lock(name string) (io.Closer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = path.Clean(name)
	if err := f.op("lock", name); err != nil {
		return nil, err
	}
	if f.locks[name] {
		return nil, &fs.PathError{Op: "lock", Path: name, Err: disk.ErrLocked}
	}
	if f.names[name] == nil {
		if _, err := f.add(name, 0o600, false); err != nil {
			return nil, err
		}
	}
	f.locks[name] = true
	return &lock{f, name, f.life}, nil
}

// Space implements disk.FS.
func (f *FS) Space(name string) (free, total int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.op("space", name); err != nil {
		return 0, 0, err
	}
	return max(0, f.space-f.used()), f.space, nil
}

type lock struct {
	fs   *FS
	name string
	life int
}

func (l *lock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	if l.life == l.fs.life {
		delete(l.fs.locks, l.name)
	}
	return nil
}

type info struct {
	name string
	size int64
	mode fs.FileMode
}

func infoOf(name string, n *node) info {
	mode := n.perm
	if n.dir {
		mode |= fs.ModeDir
	}
	return info{path.Base(name), int64(len(n.data)), mode}
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
	life   int
	write  bool
	closed bool
}

// op counts an operation on the file; mu is held.
func (h *file) op(what string) error {
	switch {
	case h.life != h.fs.life:
		return &fs.PathError{Op: what, Path: h.name, Err: ErrCrashed}
	case h.closed:
		return &fs.PathError{Op: what, Path: h.name, Err: fs.ErrClosed}
	}
	return h.fs.op(what, h.name)
}

// ReadAt implements disk.File.
func (h *file) ReadAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.op("read"); err != nil {
		return 0, err
	}
	if off >= int64(len(h.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements disk.File.
func (h *file) WriteAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	err := h.op("write")
	if err == nil && !h.write {
		return 0, &fs.PathError{Op: "write", Path: h.name, Err: fs.ErrPermission}
	}
	if err != nil {
		if h.life != h.fs.life || h.closed || !h.write {
			return 0, err
		}
		p = p[:h.fs.rng.IntN(len(p)+1)]
	}
	grow := off + int64(len(p)) - int64(len(h.n.data))
	if grow > 0 && h.fs.used()+grow > h.fs.space {
		return 0, &fs.PathError{Op: "write", Path: h.name, Err: syscall.ENOSPC}
	}
	if grow > 0 {
		h.n.data = resized(h.n.data, int(off)+len(p))
	}
	copy(h.n.data[off:], p)
	h.n.touch(off, int64(len(p)))
	return len(p), err
}

// touch marks the blocks of a range as written.
func (n *node) touch(off, size int64) {
	if n.dirty == nil {
		n.dirty = make(map[int]bool)
	}
	for b := off / block; b*block < off+size; b++ {
		n.dirty[int(b)] = true
		delete(n.lost, int(b))
	}
}

// Allocate implements disk.File.
func (h *file) Allocate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.op("allocate"); err != nil {
		return err
	}
	grow := size - int64(len(h.n.data))
	if grow <= 0 {
		return nil
	}
	if h.fs.used()+grow > h.fs.space {
		return &fs.PathError{Op: "allocate", Path: h.name, Err: syscall.ENOSPC}
	}
	h.n.data = resized(h.n.data, int(size))
	return nil
}

// Truncate implements disk.File.
func (h *file) Truncate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.op("truncate"); err != nil {
		return err
	}
	was := int64(len(h.n.data))
	h.n.data = resized(h.n.data, int(size))
	if size < was {
		h.n.touch(size, was-size)
	}
	return nil
}

// Size implements disk.File.
func (h *file) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.op("size"); err != nil {
		return 0, err
	}
	return int64(len(h.n.data)), nil
}

// Sync implements disk.File.
func (h *file) Sync() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	n := h.n
	if err := h.op("sync"); err != nil {
		if h.life == h.fs.life && !h.closed {
			if n.lost == nil {
				n.lost = make(map[int]bool)
			}
			maps.Copy(n.lost, n.dirty)
			n.dirty = nil
		}
		return fmt.Errorf("crashfs: %w", err)
	}
	if len(n.synced) != len(n.data) {
		n.synced = resized(n.synced, len(n.data))
	}
	for b := range n.dirty {
		if from := b * block; from < len(n.data) {
			copy(n.synced[from:min(from+block, len(n.data))], n.data[from:])
		}
	}
	n.dirty = nil
	return nil
}

// Close implements disk.File.
func (h *file) Close() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.life != h.fs.life || h.closed {
		return &fs.PathError{Op: "close", Path: h.name, Err: fs.ErrClosed}
	}
	h.closed = true
	h.fs.open--
	return h.fs.op("close", h.name)
}
