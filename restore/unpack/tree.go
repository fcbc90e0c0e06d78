package unpack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"
)

// Owner is who gets what is unpacked.
type Owner struct{ UID, GID int }

// place is one directory that is filled: the data directory or a tablespace's
// location. Everything in it is reached through root, which follows no link
// out of it, whatever anybody puts there meanwhile.
type place struct {
	dir  string // absolute
	root *os.Root
	made bool // by us: it was not there
}

// tree is all that is filled, and what must be made durable. It is safe for
// concurrent use once its places are known.
type tree struct {
	owner *Owner
	data  *place
	// tablespaces are the places beside data, by OID. One that lies in the data
	// directory itself has none.
	tablespaces map[uint32]*place
	// step, which tests set, is told of every change before it is made, and can
	// make it fail.
	step func(op, name string) error

	mu    sync.Mutex
	dirs  map[string]*spot // made, by name from the data directory
	files []spot
	outer []string // directories in which places, or parents of theirs, were made
}

// spot is a file or directory by its name in a place; "." is the place itself.
type spot struct {
	place *place
	rel   string
}

func (s spot) String() string { return filepath.Join(s.place.dir, s.rel) }

// The modes of a data directory are 0700 and 0600, or 0750 and 0640 (initdb
// --allow-group-access; PostgreSQL: src/include/common/file_perm.h). No
// backup gets more than that.
const (
	dirMode       = 0o700
	dirModeGroup  = 0o750
	fileMode      = 0o600
	fileModeGroup = 0o640
)

// at returns where a name from the data directory leads.
func (t *tree) at(name string) (spot, error) {
	if oid, rest, ok := tablespaceOf(name); ok {
		p, known := t.tablespaces[oid]
		if !known {
			return spot{}, fmt.Errorf("%w: %s is in a tablespace that the backup does not describe", ErrDamaged, name)
		}
		if p != nil {
			if rest == "" {
				rest = "."
			}
			return spot{p, rest}, nil
		}
	}
	if name == "" {
		name = "."
	}
	return spot{t.data, name}, nil
}

func (t *tree) changing(op string, s spot) error {
	if t.step == nil {
		return nil
	}
	return t.step(op, s.String())
}

// own gives a new file or directory to its owner.
func (t *tree) own(s spot) error {
	if t.owner == nil {
		return nil
	}
	return s.place.root.Lchown(s.rel, t.owner.UID, t.owner.GID)
}

// mkdir makes a directory, and its parents where they are missing: the entry
// of a parent may be in another part. mode 0 is the usual one, and leaves what
// another entry said.
func (t *tree) mkdir(name string, mode fs.FileMode) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mkdirLocked(name, mode)
}

func (t *tree) mkdirLocked(name string, mode fs.FileMode) error {
	s, err := t.at(name)
	if err != nil {
		return err
	}
	if t.dirs[name] == nil {
		if s.rel != "." {
			if err := t.mkdirLocked(parent(name), 0); err != nil {
				return err
			}
			if err := t.changing("mkdir", s); err != nil {
				return err
			}
			if err := s.place.root.Mkdir(s.rel, dirMode); err != nil {
				return describe("making a directory", s, err)
			}
			if err := t.own(s); err != nil {
				return describe("giving a directory to its owner", s, err)
			}
		}
		t.dirs[name] = &s
	}
	if mode == 0 {
		return nil
	}
	mode = mode&dirModeGroup | dirMode
	if err := t.changing("chmod", s); err != nil {
		return err
	}
	if err := s.place.root.Chmod(s.rel, mode); err != nil {
		return describe("setting a directory's mode", s, err)
	}
	return nil
}

// parent returns the directory of a name; "" is the data directory.
func parent(name string) string {
	if dir := path.Dir(name); dir != "." {
		return dir
	}
	return ""
}

// create opens a file to be written, in a directory that mkdir made. Unless it
// replaces another, a file that is there already is fs.ErrExist.
func (t *tree) create(s spot, mode fs.FileMode, replace bool) (*os.File, error) {
	if err := t.changing("create", s); err != nil {
		return nil, err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if replace {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := s.place.root.OpenFile(s.rel, flags, fileMode)
	if err != nil {
		return nil, describe("making a file", s, err)
	}
	if mode = mode&fileModeGroup | fileMode; mode != fileMode {
		err = f.Chmod(mode)
	}
	if err == nil && t.owner != nil {
		err = f.Chown(t.owner.UID, t.owner.GID)
	}
	if err != nil {
		return nil, errors.Join(describe("making a file", s, err), f.Close())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.files = append(t.files, s)
	return f, nil
}

// link makes pg_tblspc/<oid> lead to a tablespace's location.
func (t *tree) link(oid uint32, location string) error {
	if err := t.mkdir(tablespacesDir, 0); err != nil {
		return err
	}
	s := spot{t.data, fmt.Sprintf("%s/%d", tablespacesDir, oid)}
	if err := t.changing("symlink", s); err != nil {
		return err
	}
	if err := s.place.root.Symlink(location, s.rel); err != nil {
		return describe("linking a tablespace", s, err)
	}
	if err := t.own(s); err != nil {
		return describe("giving a tablespace's link to its owner", s, err)
	}
	return nil
}

// write replaces or makes a small file of the data directory.
func (t *tree) write(name string, content []byte) error {
	s, err := t.at(name)
	if err != nil {
		return err
	}
	f, err := t.create(s, fileMode, true)
	if err != nil {
		return err
	}
	if err = t.changing("write", s); err == nil {
		_, err = f.Write(content)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return describe("writing", s, err)
	}
	return nil
}

// rename gives a file of the data directory another name in its directory, and
// makes the name durable.
func (t *tree) rename(from, to string) error {
	s := spot{t.data, to}
	if err := t.changing("rename", s); err != nil {
		return err
	}
	if err := t.data.root.Rename(from, to); err != nil {
		return describe("renaming", s, err)
	}
	return t.sync(spot{t.data, parent(to)})
}

// sync makes a file, or the names in a directory, durable. It is opened anew:
// the kernel reports an error of an earlier write to whoever asks first
// (Linux 4.17, errseq_sample), on which PostgreSQL relies in the same place
// (fsync_pgdata in src/common/file_utils.c).
func (t *tree) sync(s spot) error {
	if err := t.changing("sync", s); err != nil {
		return err
	}
	f, err := s.place.root.Open(s.rel)
	if err != nil {
		return describe("making durable", s, err)
	}
	err = f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EBADF) {
		// A file system that cannot do it for a directory and says so is taken
		// at its word, as by PostgreSQL (fsync_fname).
		if info, statErr := f.Stat(); statErr == nil && info.IsDir() {
			err = nil
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return describe("making durable", s, err)
	}
	return nil
}

// syncOuter makes the names in a directory above a place durable. One that is
// closed to us is taken as it is.
func (t *tree) syncOuter(dir string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(t.sync(spot{&place{dir: dir, root: root}, "."}), root.Close())
}

// describe says what could not be done, where, and in words that help when the
// reason is the disk.
func describe(doing string, s spot, err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err // the path is said already, and whole
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s %s: the disk is full: %w", doing, s, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s %s: the file system is read-only: %w", doing, s, err)
	}
	return fmt.Errorf("%s %s: %w", doing, s, err)
}

// open makes sure that a directory is there and empty, and opens it. Missing
// parents are made.
func (t *tree) open(dir string) (*place, error) {
	p := &place{dir: dir}
	s := spot{p, "."}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := t.makeDir(dir); err != nil {
			return nil, err
		}
		p.made = true
	case err != nil:
		return nil, describe("looking into", s, err)
	case len(entries) > 0:
		return nil, fmt.Errorf("%s is %w: it holds %s", dir, ErrNotEmpty, entries[0].Name())
	default:
		if err := t.changing("chmod", s); err != nil {
			return nil, err
		}
		if err := os.Chmod(dir, dirMode); err != nil {
			return nil, describe("setting the mode of", s, err)
		}
	}
	if p.root, err = os.OpenRoot(dir); err != nil {
		return nil, errors.Join(describe("opening", s, err), t.unmake(p))
	}
	err = t.own(s)
	if err == nil {
		err = t.distinct(p)
	}
	if err != nil {
		return nil, errors.Join(describe("opening", s, err), t.unmake(p))
	}
	return p, nil
}

// distinct makes sure that links on the way do not make two places one.
func (t *tree) distinct(p *place) error {
	info, err := p.root.Stat(".")
	if err != nil {
		return err
	}
	for _, other := range t.places() {
		o, err := other.root.Stat(".")
		if err != nil {
			return err
		}
		if os.SameFile(info, o) {
			return fmt.Errorf("it is the same directory as %s", other.dir)
		}
	}
	return nil
}

// unmake takes back what open did.
func (t *tree) unmake(p *place) error {
	if p.root != nil {
		_ = p.root.Close() // it was for names only
	}
	if !p.made {
		return nil
	}
	if err := t.changing("remove", spot{p, "."}); err != nil {
		return err
	}
	return os.Remove(p.dir)
}

// makeDir makes a directory. Parents that are missing belong to us, and others
// may pass through them, since the owner of what is below must.
func (t *tree) makeDir(dir string) error {
	s := spot{&place{dir: dir}, "."}
	up := filepath.Dir(dir)
	for missing := dir; ; missing = filepath.Dir(missing) {
		if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) || missing == filepath.Dir(missing) {
			break
		}
		t.outer = append(t.outer, filepath.Dir(missing))
	}
	if err := os.MkdirAll(up, 0o755); err != nil {
		return describe("making", s, err)
	}
	if err := t.changing("mkdir", s); err != nil {
		return err
	}
	if err := os.Mkdir(dir, dirMode); err != nil {
		return describe("making", s, err)
	}
	return nil
}

// places returns the data directory and the tablespaces' locations.
func (t *tree) places() []*place {
	var all []*place
	if t.data != nil {
		all = append(all, t.data)
	}
	for _, p := range t.tablespaces {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// close frees the directories.
func (t *tree) close() {
	for _, p := range t.places() {
		_ = p.root.Close() // it was for names only
	}
}

// discard removes everything again, pg_control first: at no moment is there a
// directory that lacks files and has it.
func (t *tree) discard() error {
	var errs []error
	if t.data != nil {
		s := spot{t.data, controlName}
		err := t.changing("remove", s)
		if err == nil {
			err = t.data.root.Remove(controlName)
		}
		if err == nil {
			err = t.sync(spot{t.data, parent(controlName)})
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return err
		}
	}
	for _, p := range t.places() {
		errs = append(errs, t.empty(p))
		if p.made {
			errs = append(errs, t.unmake(p))
		}
	}
	return errors.Join(errs...)
}

// empty removes what is in a place: it was empty before.
func (t *tree) empty(p *place) error {
	d, err := p.root.Open(".")
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	errs := []error{err, d.Close()}
	for _, name := range names {
		if err := t.changing("remove", spot{p, name}); err != nil {
			return err
		}
		errs = append(errs, p.root.RemoveAll(name))
	}
	return errors.Join(errs...)
}
