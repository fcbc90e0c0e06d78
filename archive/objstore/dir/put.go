package dir

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/walferry/walferry/archive/objstore"
)

// staleAfter is the age at which a temporary file belongs to nobody: a writer
// changes its file all the time, and puts none aside for a day. Process ids
// would say less, since writers may be on several hosts.
const staleAfter = 24 * time.Hour

// PutIfAbsent implements objstore.Store.
func (s *Store) PutIfAbsent(ctx context.Context, key string, body objstore.Body) error {
	return wrap("put-if-absent", key, s.put(ctx, key, body, s.link))
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, body objstore.Body) error {
	return wrap("put", key, s.put(ctx, key, body, s.rename))
}

func wrap(op, key string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, objstore.ErrBadKey) { // which tells it, quoted
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s %s: %w", op, key, classify(err))
}

// put writes body to a temporary file and has place give it its name.
func (s *Store) put(ctx context.Context, key string, body objstore.Body, place func(temp, key string) error) error {
	return s.inside(ctx, key, func() error { return s.putInside(ctx, key, body, place) })
}

// inside runs what writes an object of that key, while the root is held open.
func (s *Store) inside(ctx context.Context, key string, write func() error) error {
	if err := checkWritable(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	root, err := s.enter()
	if err != nil {
		return err
	}
	err = write()
	if noSuchFile(err) {
		if gone := s.check(); gone != nil {
			err = gone // unmounted in its middle
		}
	}
	if cerr := root.Close(); err == nil {
		err = cerr
	}
	return err
}

func (s *Store) putInside(ctx context.Context, key string, body objstore.Body, place func(temp, key string) error) error {
	if err := s.prepareTemp(); err != nil {
		return err
	}
	temp, err := s.writeTemp(ctx, body)
	if err != nil {
		return err
	}
	err = s.inDir(path.Dir(key), func() error { return place(temp, key) })
	// After a rename it is gone; what cannot be removed is swept in a day, and
	// takes nothing away from the object, which is stored or is not.
	if rerr := os.Remove(temp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) && err == nil {
		return fmt.Errorf("remove the temporary file: %w", rerr)
	}
	return err
}

// prepareTemp makes the folder of temporary files, and sweeps it once.
func (s *Store) prepareTemp() error {
	if err := s.makeDir(tempFolder); err != nil {
		return err
	}
	s.sweep.Do(func() { s.removeStale(time.Now()) })
	return nil
}

func (s *Store) createTemp() (*os.File, error) {
	name := filepath.Join(s.file(tempFolder), fmt.Sprintf("%d-%016x", os.Getpid(), rand.Uint64()))
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, filePerm)
}

func checkWritable(key string) error {
	if err := objstore.CheckKey(key); err != nil {
		return err
	}
	if hidden(key) || strings.HasPrefix(key, tempFolder+"/") {
		return fmt.Errorf("%w: %s is where temporary files are", objstore.ErrBadKey, tempFolder)
	}
	return nil
}

// writeTemp writes body to a new temporary file and syncs it. The file is
// removed again on an error.
func (s *Store) writeTemp(ctx context.Context, body objstore.Body) (string, error) {
	f, err := s.createTemp()
	if err != nil {
		return "", err
	}
	name := f.Name()
	err = copyBody(ctx, f, body)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return "", errors.Join(err, f.Close(), os.Remove(name))
	}
	if err := f.Close(); err != nil {
		return "", errors.Join(err, os.Remove(name))
	}
	return name, nil
}

// copyBody writes the bytes of body, and checks that they are what body says
// they are: the last moment at which a mix-up of buffers can be noticed.
func copyBody(ctx context.Context, w io.Writer, body objstore.Body) error {
	var (
		table = crc32.MakeTable(crc32.Castagnoli)
		crc   uint32
		size  int64
	)
	take := func(piece []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		crc = crc32.Update(crc, table, piece)
		size += int64(len(piece))
		_, err := w.Write(piece)
		return err
	}
	if err := show(body, take); err != nil {
		return err
	}
	if size != body.Size() || crc != body.CRC32C() {
		return fmt.Errorf("the body has %d bytes with checksum %08X, not %d with %08X as it says", size, crc, body.Size(), body.CRC32C())
	}
	return nil
}

// show gives the bytes of body to take, uncopied where they can be lent.
func show(body objstore.Body, take func([]byte) error) error {
	if lender, ok := body.(objstore.Lender); ok {
		return lender.Lend(take)
	}
	buf := make([]byte, min(body.Size(), 256<<10))
	for at := int64(0); at < body.Size(); {
		part := buf[:min(int64(len(buf)), body.Size()-at)]
		if n, err := body.ReadAt(part, at); n < len(part) {
			return fmt.Errorf("read the body: %w", err)
		}
		if err := take(part); err != nil {
			return err
		}
		at += int64(len(part))
	}
	return nil
}

// link names the temporary file key unless something has the name, and makes
// the name durable.
func (s *Store) link(temp, key string) error {
	err := os.Link(temp, s.file(key))
	switch {
	case err == nil:
		return syncDir(filepath.Dir(s.file(key)))
	case errors.Is(err, fs.ErrExist):
		// Whoever made it may not have come to its fsync yet, and may never:
		// the caller takes the object for stored, so it must be durable.
		if err := syncFile(s.file(key)); err != nil {
			return fmt.Errorf("make the object that exists already durable: %w", err)
		}
		if err := syncDir(filepath.Dir(s.file(key))); err != nil {
			return fmt.Errorf("make the object that exists already durable: %w", err)
		}
		return objstore.ErrExists
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS):
		return fmt.Errorf("%w: its file system has no hard links (%v)", objstore.ErrConditionIgnored, errno(err))
	}
	return err
}

// rename names the temporary file key, whatever had the name, and makes that
// durable.
func (s *Store) rename(temp, key string) error {
	if err := os.Rename(temp, s.file(key)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.file(key)))
}

func errno(err error) error {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

func syncFile(name string) error {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// inDir makes the directory dir, runs place, and does both again once when
// somebody removed the directory in between.
func (s *Store) inDir(dir string, place func() error) error {
	if err := s.makeDir(dir); err != nil {
		return err
	}
	err := place()
	if errors.Is(err, fs.ErrNotExist) {
		s.mu.Lock()
		clear(s.synced)
		s.mu.Unlock()
		if err := s.makeDir(dir); err != nil {
			return err
		}
		err = place()
	}
	return err
}

// makeDir makes the directory rel below the root, with its parents. On nil
// their names are durable, whoever made them. The root is looked at once more:
// this is the one step of a put that could leave something in the mount point
// of a file system that was unmounted since.
func (s *Store) makeDir(rel string) error {
	if rel == "." {
		return nil
	}
	s.mu.Lock()
	done := s.synced[rel]
	s.mu.Unlock()
	if done {
		return nil
	}
	parent := path.Dir(rel)
	if err := s.makeDir(parent); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	if err := os.Mkdir(s.file(rel), dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncDir(s.file(parent)); err != nil {
		return err
	}
	s.mu.Lock()
	s.synced[rel] = true
	s.mu.Unlock()
	return nil
}

// removeStale removes temporary files that a writer left behind. What cannot
// be removed costs space and nothing else, so errors do not stop the put.
func (s *Store) removeStale(now time.Time) {
	entries, err := os.ReadDir(s.file(tempFolder))
	if err != nil {
		return
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || !st.Mode().IsRegular() || now.Sub(st.ModTime()) < staleAfter {
			continue
		}
		if err := os.Remove(filepath.Join(s.file(tempFolder), e.Name())); err != nil {
			continue // another process was first, or it is not ours to remove
		}
	}
}

// Delete implements objstore.Store. Directories stay, also empty ones: a
// writer may be about to use them.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := checkWritable(key); err != nil {
		return wrap("delete", key, err)
	}
	if err := ctx.Err(); err != nil {
		return wrap("delete", key, err)
	}
	root, err := s.enter()
	if err != nil {
		return wrap("delete", key, err)
	}
	err = s.remove(key)
	if cerr := root.Close(); err == nil {
		err = cerr
	}
	return wrap("delete", key, err)
}

func (s *Store) remove(key string) error {
	st, err := os.Lstat(s.file(key))
	if err == nil && st.IsDir() {
		return nil // no object has this key
	}
	if err == nil {
		err = os.Remove(s.file(key))
	}
	if noSuchFile(err) {
		if err := s.absent(key); !errors.Is(err, objstore.ErrNotFound) {
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.file(key)))
}
