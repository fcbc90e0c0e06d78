package waldir

import (
	"errors"
	"io/fs"
	"slices"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
)

// takeOver opens for writing a partial that an earlier run, or one that was
// given up, has left. One that is plain, and is to be, is opened as it is. Any
// other is written anew in the method's form, with all its bytes that can be
// decoded: a compressed stream cannot be gone on with.
func (d *FS) takeOver(n segment.Name, path string) (disk.File, error) {
	size, err := d.segmentSize()
	if err != nil {
		return nil, err
	}
	there, err := d.partials(n)
	if err != nil {
		return nil, err
	}
	all := there.these(true)
	if len(all) == 0 {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	if (there & form{None, true}.bit()) != 0 {
		if err := d.checkPlain(n, size); err != nil {
			return nil, err
		}
	}
	f := all[0]
	if len(all) == 1 && f == (form{None, true}) && d.o.Method == None {
		file, err := d.fs.Open(d.path(f.name(n)), true)
		if err != nil {
			return nil, err
		}
		d.show(n, f)
		return d.wrap(file), nil
	}
	if f, err = d.best(n, all, size); err != nil {
		return nil, err
	}
	return d.convert(n, f, all, size)
}

// convert writes the partial of form f anew in the method's form, and removes
// the others of all: those that have no other bytes. What f has is durable
// under one name or the other at every moment.
func (d *FS) convert(n segment.Name, f form, all []form, size segment.Size) (disk.File, error) {
	fi, err := d.fs.Stat(d.path(f.name(n)))
	if err != nil {
		return nil, err
	}
	old, err := d.content(n, f, size)
	if err != nil {
		return nil, err
	}
	have, err := old.extent()
	if err == nil && f != d.form() && slices.Contains(all, d.form()) {
		err = d.warnOfReplaced(n, old, f.name(n), size)
	}
	var file disk.File
	if err == nil {
		if d.o.Method == None {
			file, err = d.convertToPlain(n, old, have, fi.Mode().Perm(), size)
		} else {
			file, err = d.convertToStream(n, old, have, fi.Mode().Perm())
		}
	}
	if err = errors.Join(err, old.Close()); err != nil {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
		return nil, err
	}
	d.show(n, d.form())
	if err := d.removeOthers(n, f, all, file, size); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// warnOfReplaced tells of a partial in the method's form that is replaced by a
// longer one, c, and has other bytes. The original goes on in the file of its
// method, whatever the other is.
func (d *FS) warnOfReplaced(n segment.Name, c content, by string, size segment.Size) error {
	held, err := d.isPrefix(n, d.form(), c, size)
	if err == nil && !held {
		d.log.Warn("a partial is replaced by a longer one that has other bytes", "file", d.form().name(n), "other", by)
	}
	return err
}

// removeOthers removes the forms of a partial that was taken over from f, and
// is durable in file. The removal is durable, too: were it undone when file has
// more bytes, or others, both might look the same.
func (d *FS) removeOthers(n segment.Name, f form, all []form, file disk.File, size segment.Size) error {
	removed := false
	for _, p := range all {
		if p == d.form() {
			continue // it was replaced
		}
		removed = true
		err := error(nil)
		if p == f {
			err = d.remove(p.name(n))
		} else {
			_, err = d.removeIfHeld(n, p, file, d.form().name(n), size)
		}
		if err != nil {
			return err
		}
	}
	if !removed {
		return nil
	}
	return d.SyncDir(d.dir)
}

func (d *FS) convertToPlain(n segment.Name, old content, have int64, perm fs.FileMode, size segment.Size) (disk.File, error) {
	path := d.path(d.form().name(n))
	tmp := path + tmpSuffix
	file, err := d.createAnew(tmp, perm)
	if err != nil {
		return nil, err
	}
	if err = file.Allocate(int64(size)); err == nil {
		err = eachPart(old, 0, have, func(part []byte, at int64) error {
			_, err := file.WriteAt(part, at)
			return err
		})
	}
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = d.fs.Rename(tmp, path)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close(), d.fs.Remove(tmp))
	}
	return file, d.SyncDir(d.dir)
}

func (d *FS) convertToStream(n segment.Name, old content, have int64, perm fs.FileMode) (disk.File, error) {
	s, err := d.emptyStream(n, perm)
	if err != nil {
		return nil, err
	}
	err = eachPart(old, 0, have, func(part []byte, at int64) error {
		_, err := s.c.img.WriteAt(part, at)
		return err
	})
	if err == nil {
		err = s.renew(have)
	}
	if err != nil {
		if s.f != nil { // it has its name, which may not be durable
			err = errors.Join(err, s.f.Close())
		}
		return nil, errors.Join(err, s.discard())
	}
	s.enter()
	return s, nil
}
