package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/walferry/walferry/archive/objstore"
)

// Get implements objstore.Store. A directory keeps no checksums: Info has none.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, objstore.Info, error) {
	f, info, err := s.open(ctx, key)
	if err != nil {
		return nil, objstore.Info{}, wrap("get", key, err)
	}
	return &reader{f: f, key: key, left: info.Size}, info, nil
}

// GetRange implements objstore.Store.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, objstore.Info, error) {
	if err := objstore.CheckRange(offset, length); err != nil {
		return nil, objstore.Info{}, wrap("get-range", key, err)
	}
	f, info, err := s.open(ctx, key)
	if err != nil {
		return nil, objstore.Info{}, wrap("get-range", key, err)
	}
	if offset+length > info.Size {
		err := fmt.Errorf("bytes %d to %d of an object of %d", offset, offset+length, info.Size)
		return nil, objstore.Info{}, wrap("get-range", key, errors.Join(err, f.Close()))
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, objstore.Info{}, wrap("get-range", key, errors.Join(err, f.Close()))
	}
	return &reader{f: f, key: key, left: length}, info, nil
}

func (s *Store) open(ctx context.Context, key string) (*os.File, objstore.Info, error) {
	if err := objstore.CheckKey(key); err != nil {
		return nil, objstore.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return nil, objstore.Info{}, err
	}
	root, err := s.enter()
	if err != nil {
		return nil, objstore.Info{}, err
	}
	f, info, err := s.openInside(key)
	if cerr := root.Close(); err == nil && cerr != nil {
		return nil, objstore.Info{}, errors.Join(cerr, f.Close())
	}
	return f, info, err
}

func (s *Store) openInside(key string) (*os.File, objstore.Info, error) {
	// Without O_NONBLOCK the open of a named pipe would wait for its writer.
	f, err := os.OpenFile(s.file(key), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case noSuchFile(err):
		return nil, objstore.Info{}, s.absent(key)
	case err != nil:
		return nil, objstore.Info{}, err
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case st.IsDir():
		err = objstore.ErrNotFound // there are keys below it, none that is it
	case !st.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", s.file(key))
	}
	if err != nil {
		return nil, objstore.Info{}, errors.Join(err, f.Close())
	}
	return f, objstore.Info{Key: key, Size: st.Size()}, nil
}

// reader gives exactly left bytes: a file that became shorter meanwhile ends
// in io.ErrUnexpectedEOF.
type reader struct {
	f    *os.File
	key  string
	left int64
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.f.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF):
		return n, fmt.Errorf("read %s: %d bytes are missing at its end: %w", r.key, r.left, io.ErrUnexpectedEOF)
	case err != nil:
		return n, fmt.Errorf("read %s: %w", r.key, err)
	}
	return n, nil
}

func (r *reader) Close() error { return r.f.Close() }
