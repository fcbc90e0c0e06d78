package waldir

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
)

// Options are the settings of a directory. The zero value is pg_receivewal's
// default.
type Options struct {
	// Method is how new segments are compressed. Those that are there are read
	// whatever theirs is.
	Method Method
	// Level is the method's: 1 to 9 for Gzip, 1 to 12 for LZ4, of which the
	// library has ten: 1 and 2 are its fastest, 11 and 12 its best. Zero is the
	// method's default.
	Level int
	// NoSync: nothing is made durable, whatever is promised.
	NoSync bool
	// All shows the spool every complete segment of the run without a gap that
	// ends with the newest. Otherwise it sees those alone that it goes on from.
	All bool
	// Hide says which complete segments the spool need not see. nil: none.
	Hide func(segment.Name) bool
	// Log gets what an operator wants to know of the files found. nil: nothing.
	Log *slog.Logger
}

// FileError says what is wrong with a file of the directory, in pg_receivewal's
// words where it has any.
type FileError struct {
	Text string
	Err  error // the reason; nil: Text says it
}

func (e *FileError) Error() string {
	if e.Err == nil {
		return e.Text
	}
	return e.Text + ": " + e.Err.Error()
}

func (e *FileError) Unwrap() error { return e.Err }

// FS is a directory of pg_receivewal's as a spool sees it, which must be the
// only one that uses it. It is safe for concurrent use.
type FS struct {
	fs  disk.FS
	dir string
	o   Options
	log *slog.Logger

	imaging  sync.Mutex // held while a temporary file has its name
	encoders sync.Pool  // of encoder

	mu      sync.Mutex
	newest  Newest              // of the last ReadDir
	id      *identity           // nil: not known yet
	draft   *note               // the identity, while the spool writes it
	shown   map[string]form     // of the view's names, which were found or written
	open    map[string]*decoded // compressed files by name, those that are open and the idle one
	idle    *decoded
	spare   []byte // of a segment that was closed, for the next
	streams map[segment.Name]*stream
}

var _ disk.FS = (*FS)(nil)

// New returns the directory dir of fsys, which must exist: it is never made,
// and its mode never changed. Nothing is read before ReadDir or Scan.
func New(fsys disk.FS, dir string, o Options) *FS {
	return &FS{
		fs: fsys, dir: filepath.Clean(dir), o: o, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		shown: make(map[string]form),
		open:  make(map[string]*decoded), streams: make(map[segment.Name]*stream),
	}
}

func (d *FS) path(file string) string { return filepath.Join(d.dir, file) }

// within returns the name of a file in the directory; ok is false for any
// other path, the directory's own among them.
func (d *FS) within(path string) (file string, ok bool) {
	path = filepath.Clean(path)
	return filepath.Base(path), path != d.dir && filepath.Dir(path) == d.dir
}

// segmentSize returns the cluster's.
func (d *FS) segmentSize() (segment.Size, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.id == nil {
		return 0, fmt.Errorf("the segment size of the WAL in %s is not known yet", d.dir)
	}
	return d.id.size, nil
}

func isHistory(file string) bool {
	_, err := segment.ParseHistoryName(strings.TrimSuffix(file, tmpSuffix))
	return err == nil
}

// Create implements disk.FS. The partial of a segment is made in the method's
// form; fs.ErrExist when it is there in any.
func (d *FS) Create(path string, perm fs.FileMode) (disk.File, error) {
	file, ok := d.within(path)
	n, partial, isSegment := parseView(file)
	switch {
	case ok && file == identityName+tmpSuffix:
		return d.createIdentity(path)
	case !ok || !isSegment:
		return d.create(path, perm)
	case !partial:
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrPermission} // it comes about by Rename alone
	}
	there, err := d.partials(n)
	if err != nil {
		return nil, err
	}
	if there != 0 {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	f := form{d.o.Method, true}
	if f.method != None {
		return d.newStream(n, perm)
	}
	plain, err := d.createNamed(d.path(f.name(n)), perm)
	if err == nil {
		d.show(n, f)
	}
	return plain, err
}

// createNamed is create of a partial. Its name is durable before a byte is
// written, as with the original: a partial is never there without the ones
// before it, so that none of these is passed over (see found.goBack).
func (d *FS) createNamed(path string, perm fs.FileMode) (disk.File, error) {
	f, err := d.create(path, perm)
	if err != nil {
		return nil, err
	}
	if err := d.SyncDir(d.dir); err != nil {
		return nil, errors.Join(err, f.Close(), d.fs.Remove(path))
	}
	return f, nil
}

// create makes a file that is not compressed.
func (d *FS) create(path string, perm fs.FileMode) (disk.File, error) {
	f, err := d.fs.Create(path, perm)
	if err != nil {
		return nil, err
	}
	if err := setMode(f, perm); err != nil {
		return nil, errors.Join(err, f.Close(), d.fs.Remove(path))
	}
	return d.wrap(f), nil
}

// createAnew is create of a temporary file, of which a crash or a failure may
// have left another.
func (d *FS) createAnew(path string, perm fs.FileMode) (disk.File, error) {
	f, err := d.create(path, perm)
	if errors.Is(err, fs.ErrExist) {
		if err = d.fs.Remove(path); err == nil {
			f, err = d.create(path, perm)
		}
	}
	return f, err
}

// setMode gives a file the mode that it was made with, where the umask has
// taken some of it away and the file system can say so.
func setMode(f disk.File, perm fs.FileMode) error {
	m, ok := f.(interface {
		Stat() (fs.FileInfo, error)
		Chmod(fs.FileMode) error
	})
	if !ok {
		return nil
	}
	fi, err := m.Stat()
	if err != nil || fi.Mode().Perm() == perm {
		return err
	}
	return m.Chmod(perm)
}

// unsynced is a file whose Sync does nothing.
type unsynced struct{ disk.File }

func (unsynced) Sync() error { return nil }

func (d *FS) wrap(f disk.File) disk.File {
	if d.o.NoSync {
		return unsynced{f}
	}
	return f
}

// partials returns in which forms the partial of n is there.
func (d *FS) partials(n segment.Name) (forms, error) {
	var there forms
	for m := None; m <= LZ4; m++ {
		f := form{m, true}
		_, err := d.fs.Stat(d.path(f.name(n)))
		switch {
		case err == nil:
			there |= f.bit()
		case !errors.Is(err, fs.ErrNotExist):
			return 0, err
		}
	}
	return there, nil
}

// show notes in which form a segment is there.
func (d *FS) show(n segment.Name, f form) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shown[form{None, f.partial}.name(n)] = f
}

// find returns in which form a name of the view is there.
func (d *FS) find(op, path string, n segment.Name, partial bool) (form, error) {
	view := form{None, partial}.name(n)
	d.mu.Lock()
	f, ok := d.shown[view]
	d.mu.Unlock()
	if ok {
		return f, nil
	}
	if !partial {
		f = form{d.o.Method, false} // sealed by this run: no list is kept of these
		_, err := d.fs.Stat(d.path(f.name(n)))
		return f, err
	}
	there, err := d.partials(n)
	if err != nil {
		return form{}, err
	}
	if there == 0 {
		return form{}, &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
	}
	size, err := d.segmentSize()
	if err != nil {
		return form{}, err
	}
	return d.best(n, there.these(true), size)
}

// Open implements disk.FS. A compressed file is opened for reading as its
// plain bytes; of a partial what decodes is there, and zeros up to a segment's
// size. A partial that is opened for writing is taken over into the method's
// form: see the package comment.
func (d *FS) Open(path string, write bool) (disk.File, error) {
	file, ok := d.within(path)
	n, partial, isSegment := parseView(file)
	switch {
	case ok && file == identityName:
		return d.openIdentity(path, write)
	case !ok || !isSegment:
		f, err := d.fs.Open(path, write)
		if err != nil {
			return nil, err
		}
		return d.wrap(f), nil
	case write && !partial:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission}
	case write:
		return d.takeOver(n, path)
	}
	f, err := d.find("open", path, n, partial)
	if err != nil {
		return nil, err
	}
	size, err := d.segmentSize()
	if err != nil {
		return nil, err
	}
	if f.method != None {
		return d.decode(f.name(n), f.method, partial, int64(size))
	}
	if partial {
		if err := d.checkPlain(n, size); err != nil {
			return nil, err
		}
	}
	real, err := d.fs.Open(d.path(f.name(n)), false)
	if err != nil {
		return nil, err
	}
	return d.wrap(real), nil
}

// checkPlain refuses a plain partial whose size is not one that it can have:
// a segment's, or none yet. pg_receivewal and the spool allocate the whole
// before they sync a byte; one that is shorter is such a file of before its
// first sync when it begins as its segment must, or with zeros.
func (d *FS) checkPlain(n segment.Name, size segment.Size) error {
	f := form{None, true}
	fi, err := d.fs.Stat(d.path(f.name(n)))
	if err != nil || fi.Size() == 0 || fi.Size() == int64(size) {
		return err
	}
	if fi.Size() < int64(size) {
		page, err := d.firstPage(n, f)
		if err != nil {
			return err
		}
		id, err := identityOf(n, page)
		if err == nil && id.size == size || !slices.ContainsFunc(page, func(b byte) bool { return b != 0 }) {
			return nil
		}
	}
	return &FileError{fmt.Sprintf("write-ahead log file %q has %d bytes, should be 0 or %d", f.name(n), fi.Size(), size), nil}
}

// Rename implements disk.FS. That of a partial to its segment ends a
// compressed file, and makes it durable before.
func (d *FS) Rename(from, to string) error {
	oldFile, ok1 := d.within(from)
	newFile, ok2 := d.within(to)
	n, partial, isSegment := parseView(oldFile)
	switch {
	case ok1 && oldFile == identityName+tmpSuffix:
		return d.keepIdentity(from)
	case !ok1 || !ok2 || !isSegment:
		return d.fs.Rename(from, to)
	case !partial || newFile != n.String():
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrPermission}
	}
	d.mu.Lock()
	s := d.streams[n]
	d.mu.Unlock()
	if s != nil {
		return s.seal()
	}
	f, err := d.find("rename", from, n, true)
	if err != nil {
		return err
	}
	if f.method != None {
		return fmt.Errorf("renaming %s: it is not open, so that it cannot be ended", f.name(n))
	}
	if err := d.fs.Rename(d.path(f.name(n)), d.path(n.String())); err != nil {
		return err
	}
	d.sealed(n)
	return nil
}

// sealed notes that a segment is complete. Its name is found in the directory
// from now on: a run that seals for a year must not keep a year's names.
func (d *FS) sealed(n segment.Name) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.shown, form{None, true}.name(n))
	delete(d.shown, n.String())
}

// Link implements disk.FS: it is refused.
func (d *FS) Link(from, _ string) error {
	return &fs.PathError{Op: "link", Path: from, Err: errors.ErrUnsupported}
}

// Remove implements disk.FS. A complete segment is not removed, though it may
// not be shown any more: its file stays for ever, as pg_receivewal's does. A
// partial is removed in every form, but for one that another follows: by its
// name alone a start knows that the other is not what to go on from.
func (d *FS) Remove(path string) error {
	file, ok := d.within(path)
	n, partial, isSegment := parseView(file)
	switch {
	case ok && file == identityName+tmpSuffix:
		return d.removeIdentity(path)
	case !ok || !isSegment:
		return d.fs.Remove(path)
	case !partial:
		return d.drop(n, path)
	}
	there, err := d.partials(n)
	if err != nil {
		return err
	}
	if there == 0 {
		return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
	}
	if followed, err := d.followed(n); err != nil || followed {
		return err
	}
	for _, f := range there.these(true) {
		if err := d.remove(f.name(n)); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.shown, file)
	return nil
}

// followed reports whether the next segment has a partial, too.
func (d *FS) followed(n segment.Name) (bool, error) {
	size, err := d.segmentSize()
	if err != nil {
		return false, nil // of a cluster that nothing here tells: all of it is empty
	}
	there, err := d.partials(n.Next(size))
	return there != 0, err
}

func (d *FS) drop(n segment.Name, path string) error {
	f, err := d.find("remove", path, n, false)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.shown, n.String())
	d.forget(f.name(n))
	return nil
}

// Mkdir implements disk.FS: a directory that is not there is not made.
func (d *FS) Mkdir(path string, _ fs.FileMode) error {
	if fi, err := d.fs.Stat(path); err != nil || fi.IsDir() {
		return err
	}
	return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
}

// ReadDir implements disk.FS. Of the directory it returns the view, by name;
// before, it removes what a crash has left there, and partials whose segment
// is there complete with the same bytes. It must not run beside the writing of
// a segment.
func (d *FS) ReadDir(path string) ([]fs.DirEntry, error) {
	if filepath.Clean(path) != d.dir {
		return d.fs.ReadDir(path)
	}
	l, err := d.list()
	if err != nil {
		return nil, err
	}
	w, err := d.scan(l)
	if err != nil {
		return nil, err
	}
	if err := d.tidy(l, w.id); err != nil {
		return nil, err
	}
	d.mu.Lock()
	if w.id != nil {
		d.id = w.id
	}
	d.mu.Unlock()
	shown, err := d.view(l, w)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.newest, d.shown = w.Newest, shown
	d.mu.Unlock()
	entries := l.others
	for _, name := range slices.Sorted(maps.Keys(shown)) {
		entries = append(entries, entry{d, name})
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// entry is a segment in the view.
type entry struct {
	d    *FS
	name string
}

func (e entry) Name() string               { return e.name }
func (e entry) IsDir() bool                { return false }
func (e entry) Type() fs.FileMode          { return 0 }
func (e entry) Info() (fs.FileInfo, error) { return e.d.Stat(e.d.path(e.name)) }

// Stat implements disk.FS. A compressed segment has the size of a segment, a
// partial too.
func (d *FS) Stat(path string) (fs.FileInfo, error) {
	file, ok := d.within(path)
	n, partial, isSegment := parseView(file)
	if !ok || !isSegment {
		if file == identityName || file == lockName {
			return nil, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
		}
		return d.fs.Stat(path)
	}
	f, err := d.find("stat", path, n, partial)
	if err != nil {
		return nil, err
	}
	fi, err := d.fs.Stat(d.path(f.name(n)))
	if err != nil {
		return nil, err
	}
	size, err := d.segmentSize()
	switch {
	case err != nil:
		return nil, err
	case f.method != None:
		return info{fi, file, int64(size)}, nil
	case partial:
		return fi, d.checkPlain(n, size)
	}
	return fi, nil
}

// info is that of a compressed file, with the name and size in the view.
type info struct {
	fs.FileInfo
	name string
	size int64
}

func (i info) Name() string { return i.name }
func (i info) Size() int64  { return i.size }

// SyncDir implements disk.FS. Directories above, which others made, are left
// to them.
func (d *FS) SyncDir(path string) error {
	if d.o.NoSync || filepath.Clean(path) != d.dir {
		return nil
	}
	return d.fs.SyncDir(path)
}

// Lock implements disk.FS. The lock is on the directory itself, so that no file
// is made for it. Where the file system has no such lock it is gone without,
// with a warning: pg_receivewal has none at all.
func (d *FS) Lock(string) (io.Closer, error) {
	l, err := d.fs.Lock(d.dir)
	for _, none := range []error{errors.ErrUnsupported, syscall.EBADF, syscall.ENOLCK, syscall.EINVAL} {
		if errors.Is(err, none) {
			d.log.Warn("the directory cannot be locked: make sure that no other process writes to it", "directory", d.dir, "error", err)
			return &note{}, nil
		}
	}
	return l, err
}

// Space implements disk.FS.
func (d *FS) Space(path string) (free, total int64, err error) { return d.fs.Space(path) }
