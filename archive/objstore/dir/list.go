package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/walferry/walferry/archive/objstore"
)

// List implements objstore.Store. Only directories that can hold a key that is
// asked for are read, one after another as the caller goes on.
//
// What cannot be read is an error and not left out, since a listing is a proof
// of absence to its reader. Left out are temporary files, lost+found, what is neither file
// nor directory, and files that vanish while they are listed.
func (s *Store) List(ctx context.Context, opts objstore.ListOptions) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		w := &walk{store: s, opts: opts, yield: yield}
		if err := s.list(ctx, w); err != nil && !w.stopped {
			what := opts.Prefix
			if what == "" {
				what = s.String()
			}
			yield(objstore.Info{}, fmt.Errorf("list %s: %w", what, classify(err)))
		}
	}
}

func (s *Store) list(ctx context.Context, w *walk) error {
	if w.opts.Delimiter != "" && w.opts.Delimiter != "/" {
		return fmt.Errorf("the delimiter %q is not supported", w.opts.Delimiter)
	}
	root, err := s.enter()
	if err != nil {
		return err
	}
	start, _ := path.Split(w.opts.Prefix)
	if canBegin(start) {
		err = w.dir(ctx, start)
	}
	if cerr := root.Close(); err == nil {
		err = cerr
	}
	if err != nil || w.stopped {
		return err
	}
	// What was not found counts only in the root that it was looked for in.
	return s.check()
}

// canBegin tells whether keys can begin with start, "" or a path that ends
// with "/".
func canBegin(start string) bool {
	if start == "" {
		return true
	}
	return objstore.CheckKey(strings.TrimSuffix(start, "/")) == nil && !strings.HasPrefix(start, tempFolder+"/")
}

// walk goes through a tree in bytewise order of the keys.
type walk struct {
	store   *Store
	opts    objstore.ListOptions
	yield   func(objstore.Info, error) bool
	count   int
	stopped bool // the caller has enough, or the limit is reached
}

// dir yields what is in the directory dir, "" or a path that ends with "/".
func (w *walk) dir(ctx context.Context, dir string) error {
	names, err := w.names(dir)
	if err != nil {
		return err
	}
	for _, key := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.entry(ctx, key); err != nil || w.stopped {
			return err
		}
	}
	return nil
}

func (w *walk) entry(ctx context.Context, key string) error {
	if !strings.HasSuffix(key, "/") {
		st, err := os.Stat(w.store.file(key))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed since the directory was read
		case err != nil:
			return err
		case st.Mode().IsRegular():
			w.give(objstore.Info{Key: key, Size: st.Size(), Modified: st.ModTime()})
		}
		return nil
	}
	if w.opts.Delimiter == "" || !strings.HasPrefix(key, w.opts.Prefix) {
		return w.dir(ctx, key)
	}
	some, err := w.holds(ctx, key)
	if err == nil && some {
		w.give(objstore.Info{Key: key})
	}
	return err
}

// holds tells whether there is an object below dir.
func (w *walk) holds(ctx context.Context, dir string) (bool, error) {
	found := false
	probe := &walk{store: w.store, opts: objstore.ListOptions{Prefix: dir, Limit: 1}}
	probe.yield = func(objstore.Info, error) bool { found = true; return false }
	err := probe.dir(ctx, dir)
	return found, err
}

func (w *walk) give(info objstore.Info) {
	w.count++
	w.stopped = !w.yield(info, nil) || w.count == w.opts.Limit
}

// names reads the directory dir and returns the keys of files and, with "/"
// at the end, of directories that are asked for, sorted. With the slash a
// directory stands where the keys below it belong: "a-b" before "a/b".
func (w *walk) names(dir string) ([]string, error) {
	d, err := os.Open(w.store.file(dir))
	if noSuchFile(err) {
		if err := w.store.absent(dir + "x"); !errors.Is(err, objstore.ErrNotFound) {
			return nil, err
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for {
		entries, err := d.ReadDir(1024)
		for _, e := range entries {
			key, ok, err := w.wanted(dir, e)
			if err != nil {
				return nil, errors.Join(err, d.Close())
			}
			if ok {
				names = append(names, key)
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ENOTDIR) { // ENOTDIR: it is an object
			break
		}
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	slices.Sort(names)
	return names, d.Close()
}

// wanted gives the key of a directory entry, and whether it or a key below
// it is asked for.
func (w *walk) wanted(dir string, e fs.DirEntry) (string, bool, error) {
	key := dir + e.Name()
	isDir := e.IsDir()
	switch {
	case hidden(key) || objstore.CheckKey(key) != nil:
		return "", false, nil
	case e.Type()&fs.ModeSymlink != 0:
		if err := dangling(w.store.file(key)); err != nil {
			return "", false, err
		}
		st, err := os.Stat(w.store.file(key))
		if err != nil {
			return "", false, err
		}
		isDir = st.IsDir()
	case !isDir && !e.Type().IsRegular():
		return "", false, nil
	}
	if !isDir {
		return key, strings.HasPrefix(key, w.opts.Prefix) && key > w.opts.StartAfter, nil
	}
	key += "/"
	prefix := strings.HasPrefix(key, w.opts.Prefix) || strings.HasPrefix(w.opts.Prefix, key)
	// Some key below it may sort behind StartAfter, unless the whole directory
	// sorts before it. Rolled up it is one entry, which itself must.
	after := key > w.opts.StartAfter
	if w.opts.Delimiter == "" || !strings.HasPrefix(key, w.opts.Prefix) {
		after = after || strings.HasPrefix(w.opts.StartAfter, key)
	}
	return key, prefix && after, nil
}

// hidden tells what is in the tree without being an object.
func hidden(key string) bool {
	return key == tempFolder || key == "lost+found"
}
