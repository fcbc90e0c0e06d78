package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
	"time"

	"github.com/walferry/walferry/archive/objstore"
)

// upload is a temporary file into which the parts are written where they
// belong. It gets the object's name when it is whole.
type upload struct {
	store *Store
	key   string
	temp  string // path of the file

	// turn is held by the one part that is written: the kernel lets one at a
	// time write into a file, and the others would turn on a processor
	// each (Linux: the inode's lock, a rwsem that spins).
	turn chan struct{}

	mu      sync.Mutex
	parts   map[int]objstore.Extent // that are there; guarded by mu
	writing map[int]objstore.Extent // that are on their way; guarded by mu
	file    *os.File                // nil: closed; guarded by mu
	state   state                   // guarded by mu
}

type state int

const (
	underWay  state = iota
	completed       // the object is there
	over            // given up
)

// BeginUpload implements objstore.Store.
func (s *Store) BeginUpload(ctx context.Context, key string) (objstore.Upload, error) {
	u := &upload{store: s, key: key, turn: make(chan struct{}, 1), parts: map[int]objstore.Extent{}, writing: map[int]objstore.Extent{}}
	err := s.inside(ctx, key, func() (err error) {
		if err := s.prepareTemp(); err != nil {
			return err
		}
		u.file, err = s.createTemp()
		return err
	})
	if err != nil {
		return nil, wrap("begin-upload", key, err)
	}
	u.temp = u.file.Name()
	return u, nil
}

// AbortUploads implements objstore.Store. Temporary files carry no keys: it
// gives up none. Those that dead processes left are removed by a later writer
// when they are a day old, as after any put.
func (s *Store) AbortUploads(ctx context.Context, prefix string, _ time.Time) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, wrap("abort-uploads", prefix, err)
	}
	return 0, wrap("abort-uploads", prefix, s.check())
}

// Part implements objstore.Upload.
func (u *upload) Part(ctx context.Context, number int, at int64, body objstore.Body) error {
	return wrap("upload-part", u.key, u.part(ctx, number, objstore.Extent{At: at, Size: body.Size()}, body))
}

func (u *upload) part(ctx context.Context, number int, extent objstore.Extent, body objstore.Body) error {
	if err := objstore.CheckPart(number, extent); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // and the part is as it was
	}
	file, err := u.beginPart(number, extent)
	if err != nil {
		return fmt.Errorf("part %d: %w", number, err)
	}
	err = u.write(ctx, file, extent, body)
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.writing, number)
	if err != nil {
		return fmt.Errorf("part %d: %w", number, err)
	}
	u.parts[number] = extent
	return nil
}

// write writes a part when it is its turn.
func (u *upload) write(ctx context.Context, file *os.File, extent objstore.Extent, body objstore.Body) error {
	select {
	case u.turn <- struct{}{}:
		defer func() { <-u.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := copyBody(ctx, &atOffset{file, extent.At}, body); err != nil {
		return err
	}
	beginWriting(file, extent.At, extent.Size)
	return nil
}

// beginPart takes the part's place in the file for its writer. Until the
// writer is done the part is not there, also where it was before: its bytes are
// no longer what they were.
func (u *upload) beginPart(number int, extent objstore.Extent) (*os.File, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.file == nil {
		return nil, objstore.ErrUploadLost
	}
	if _, busy := u.writing[number]; busy {
		return nil, errors.New("it is being put by another call")
	}
	for _, others := range []map[int]objstore.Extent{u.parts, u.writing} {
		for n, o := range others {
			if n != number && extent.At < o.At+o.Size && o.At < extent.At+extent.Size {
				return nil, fmt.Errorf("it overlaps part %d", n)
			}
		}
	}
	delete(u.parts, number)
	u.writing[number] = extent
	return u.file, nil
}

// atOffset writes one behind the other from a place in a file on.
type atOffset struct {
	file *os.File
	at   int64
}

func (w *atOffset) Write(p []byte) (int, error) {
	n, err := w.file.WriteAt(p, w.at)
	w.at += int64(n)
	return n, err
}

// Complete implements objstore.Upload. A failed fsync is final: the upload is
// given up then.
func (u *upload) Complete(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch u.state {
	case completed:
		return nil
	case over:
		return wrap("complete-upload", u.key, objstore.ErrUploadLost)
	}
	size, err := objstore.CheckParts(u.parts)
	if err != nil {
		return wrap("complete-upload", u.key, err)
	}
	return wrap("complete-upload", u.key, u.store.inside(ctx, u.key, func() error { return u.finish(size) }))
}

// finish is Complete. mu is held.
func (u *upload) finish(size int64) error {
	if u.file != nil {
		// A part that was put again may have been longer before.
		err := u.file.Truncate(size)
		if err == nil {
			err = u.file.Sync()
		}
		if err = errors.Join(err, u.file.Close()); err != nil {
			u.file, u.state = nil, over
			return errors.Join(err, removeTemp(u.temp))
		}
		u.file = nil
	}
	err := u.store.inDir(path.Dir(u.key), func() error { return u.store.link(u.temp, u.key) })
	switch {
	case err == nil:
		u.state = completed
		// The object is stored; what cannot be removed is swept in a day.
		_ = removeTemp(u.temp)
		return nil
	case errors.Is(err, objstore.ErrExists):
		u.state = over
		return errors.Join(err, removeTemp(u.temp))
	}
	if _, gone := os.Lstat(u.temp); errors.Is(gone, fs.ErrNotExist) {
		u.state = over
		return fmt.Errorf("%w: somebody removed %s", objstore.ErrUploadLost, u.temp)
	}
	return err
}

// Abort implements objstore.Upload.
func (u *upload) Abort(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state != underWay {
		return nil
	}
	var err error
	if u.file != nil {
		err = u.file.Close()
	}
	u.file, u.state = nil, over
	return wrap("abort-upload", u.key, errors.Join(err, removeTemp(u.temp)))
}

func removeTemp(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the temporary file: %w", err)
	}
	return nil
}
