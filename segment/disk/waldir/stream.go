package waldir

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/pierrec/lz4/v4"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
)

// encoder is what the libraries' writers have in common.
type encoder interface {
	io.Writer
	Flush() error // what was written can be decoded from what came out
	Close() error
	Reset(io.Writer)
}

func (d *FS) newEncoder(w io.Writer) (encoder, error) {
	if e, ok := d.encoders.Get().(encoder); ok {
		e.Reset(w)
		return e, nil
	}
	if d.o.Method == Gzip {
		level := d.o.Level
		if level == 0 {
			level = gzip.DefaultCompression
		}
		return gzip.NewWriterLevel(w, level)
	}
	z := lz4.NewWriter(w)
	// Small blocks: each sync ends one, and most are small anyway.
	err := z.Apply(lz4.BlockSizeOption(lz4.Block256Kb), lz4.ConcurrencyOption(1), lz4.CompressionLevelOption(lz4Level(d.o.Level)))
	return z, err
}

// lz4Level is the library's level for one of the lz4 tools, 1 to 12: of these 1
// and 2 are the fast ones.
func lz4Level(level int) lz4.CompressionLevel {
	if level <= 2 {
		return lz4.Fast
	}
	return lz4.Level1 << min(level-3, 8)
}

// appender writes to the end of a file.
type appender struct {
	f  disk.File
	at int64
}

func (a *appender) Write(p []byte) (int, error) {
	n, err := a.f.WriteAt(p, a.at)
	a.at += int64(n)
	return n, err
}

// stream is a compressed segment that is being written: an image of its plain
// bytes, which takes them as they come, and the file, which gets those that
// are final. It is a disk.InOrder.
type stream struct {
	d    *FS
	n    segment.Name
	perm fs.FileMode
	c    *decoded // the image

	// syncing is held by what changes the file: one at a time.
	syncing sync.Mutex
	f       disk.File
	enc     encoder
	out     *bufio.Writer
	unsaved bool  // something went into enc since the last sync
	ended   bool  // the file is a whole one
	err     error // final: what is in the file is not known

	mu    sync.Mutex
	to    int64 // bytes that the file has, or will have with the next sync
	stale bool  // some of them have changed since: the file must be written anew
}

var _ disk.InOrder = (*stream)(nil)

func (d *FS) form() form                           { return form{d.o.Method, true} }
func (s *stream) file() string                     { return s.d.form().name(s.n) }
func (s *stream) path() string                     { return s.d.path(s.file()) }
func (s *stream) wrong(op string, err error) error { return fmt.Errorf("%s %s: %w", op, s.file(), err) }

// emptyStream returns a stream that has no file yet.
func (d *FS) emptyStream(n segment.Name, perm fs.FileMode) (*stream, error) {
	size, err := d.segmentSize()
	if err != nil {
		return nil, err
	}
	img, err := d.newImage(int64(size))
	if err != nil {
		return nil, err
	}
	c := &decoded{file: d.form().name(n), img: img, size: int64(size), have: int64(size), end: io.EOF, refs: 1}
	return &stream{d: d, n: n, perm: perm, c: c}, nil
}

// newStream makes the compressed partial of a segment.
func (d *FS) newStream(n segment.Name, perm fs.FileMode) (disk.File, error) {
	s, err := d.emptyStream(n, perm)
	if err != nil {
		return nil, err
	}
	f, err := d.createNamed(s.path(), perm)
	if err != nil {
		return nil, errors.Join(err, s.discard())
	}
	if err := s.begin(f); err != nil {
		return nil, errors.Join(err, f.Close(), d.fs.Remove(s.path()), s.discard())
	}
	s.enter()
	return s, nil
}

// begin starts the stream in a new file.
func (s *stream) begin(f disk.File) (err error) {
	s.out = bufio.NewWriterSize(&appender{f: f}, 64<<10)
	if s.enc, err = s.d.newEncoder(s.out); err == nil {
		s.f, s.unsaved = f, true
	}
	return err
}

// enter makes the stream the one that writes its segment, and its image what
// readers of its file get.
func (s *stream) enter() {
	d := s.d
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams[s.n] = s
	d.shown[form{None, true}.name(s.n)] = d.form()
	d.forget(s.c.file)
	d.open[s.c.file] = s.c
}

// discard gives up the image of a stream that nobody has seen.
func (s *stream) discard() error {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	return s.d.free(s.c)
}

// ReadAt implements disk.File.
func (s *stream) ReadAt(p []byte, off int64) (int, error) { return s.c.img.ReadAt(p, off) }

// WriteAt implements disk.File. Nothing goes to the file before SyncTo.
func (s *stream) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > s.c.size {
		return 0, &fs.PathError{Op: "write", Path: s.file(), Err: fs.ErrInvalid}
	}
	s.mu.Lock()
	if off >= s.to {
		s.mu.Unlock()
		return s.c.img.WriteAt(p, off)
	}
	defer s.mu.Unlock() // renew reads these bytes
	if !s.stale {
		err := same(s.c.img, p[:min(int64(len(p)), s.to-off)], off)
		if err != nil && !errors.Is(err, errDiffers) {
			return 0, err
		}
		s.stale = err != nil
	}
	return s.c.img.WriteAt(p, off)
}

// same returns errDiffers unless r has the bytes p at off.
func same(r io.ReaderAt, p []byte, off int64) error {
	return eachPart(r, off, int64(len(p)), func(part []byte, at int64) error {
		if !bytes.Equal(part, p[at-off:][:len(part)]) {
			return errDiffers
		}
		return nil
	})
}

// Allocate implements disk.File. How much space the compressed bytes will take
// is not known: a full disk shows in SyncTo.
func (s *stream) Allocate(size int64) error {
	if size > s.c.size {
		return &fs.PathError{Op: "allocate", Path: s.file(), Err: fs.ErrInvalid}
	}
	return nil
}

// Truncate implements disk.File: it is refused.
func (s *stream) Truncate(int64) error {
	return &fs.PathError{Op: "truncate", Path: s.file(), Err: errors.ErrUnsupported}
}

// Size implements disk.File.
func (s *stream) Size() (int64, error) { return s.c.size, nil }

// Sync implements disk.File, for what the file has already.
func (s *stream) Sync() error { return s.SyncTo(0) }

// SyncTo implements disk.InOrder. With a segment's last byte the file is a
// whole one.
func (s *stream) SyncTo(end int64) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if s.err == nil {
		s.err = s.syncTo(end)
	}
	return s.err
}

// syncTo is SyncTo; syncing is held.
func (s *stream) syncTo(end int64) error {
	s.mu.Lock()
	from, stale := s.to, s.stale
	s.mu.Unlock()
	if stale {
		if err := s.renew(end); err != nil {
			return s.wrong("writing anew", err)
		}
		from = max(from, end)
	}
	if from < end {
		if err := s.encode(from, end); err != nil {
			return s.wrong("writing", err)
		}
		s.mu.Lock()
		s.to = end
		s.mu.Unlock()
	}
	if err := s.save(end == s.c.size); err != nil {
		return s.wrong("syncing", err)
	}
	return nil
}

// encode puts the bytes [from, to) of the image into the stream.
func (s *stream) encode(from, to int64) error {
	s.unsaved = true
	return eachPart(s.c.img, from, to-from, func(part []byte, _ int64) error {
		_, err := s.enc.Write(part)
		return err
	})
}

// save makes durable what went into the stream, and ends it when it is whole.
func (s *stream) save(whole bool) error {
	if s.ended || !s.unsaved && !whole {
		return nil
	}
	var err error
	if whole {
		err = s.enc.Close()
	} else {
		err = s.enc.Flush()
	}
	if err == nil {
		err = s.out.Flush()
	}
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		return err
	}
	s.unsaved, s.ended = false, whole
	if whole {
		s.d.encoders.Put(s.enc)
		s.enc = nil
	}
	return nil
}

// renew writes the stream anew, in a file that takes the place of the old one
// when it is durable: the bytes in front of end, and those behind it that the
// old one has. It may be the first.
func (s *stream) renew(end int64) error {
	d, tmp, old := s.d, s.path()+tmpSuffix, s.f
	f, err := d.createAnew(tmp, s.perm)
	if err != nil {
		return err
	}
	if err = s.begin(f); err == nil {
		err = s.encode(0, end)
	}
	if err == nil {
		err = s.encodeRest(end)
	}
	if err == nil {
		err = s.save(false)
	}
	if err == nil {
		err = d.fs.Rename(tmp, s.path())
	}
	if err != nil {
		s.f = old
		return errors.Join(err, f.Close(), d.fs.Remove(tmp))
	}
	if old != nil {
		_ = old.Close() // nothing in it is needed any more
	}
	return d.SyncDir(d.dir)
}

// encodeRest puts those bytes behind end into the stream that the file had
// before. They may change meanwhile.
func (s *stream) encodeRest(end int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale = false
	if s.to <= end {
		s.to = end
		return nil
	}
	return s.encode(end, s.to)
}

// seal ends the file, makes it durable, and gives it the segment's name.
func (s *stream) seal() error {
	if err := s.SyncTo(s.c.size); err != nil {
		return err
	}
	d, whole := s.d, form{s.d.o.Method, false}.name(s.n)
	if err := d.fs.Rename(s.path(), d.path(whole)); err != nil {
		return err
	}
	d.sealed(s.n)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(whole)
	if d.open[s.c.file] == s.c {
		delete(d.open, s.c.file)
	}
	s.c.file = whole
	d.open[whole] = s.c
	if d.streams[s.n] == s {
		delete(d.streams, s.n)
	}
	return nil
}

// Close implements disk.File. Bytes that no SyncTo had are gone, unless the
// segment was sealed.
func (s *stream) Close() error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if errors.Is(s.err, fs.ErrClosed) {
		return s.err
	}
	s.err = &fs.PathError{Op: "use", Path: s.file(), Err: fs.ErrClosed}
	d := s.d
	d.mu.Lock()
	if d.streams[s.n] == s {
		delete(d.streams, s.n)
	}
	if d.open[s.c.file] == s.c && s.c.file == s.file() {
		delete(d.open, s.c.file)
	}
	d.mu.Unlock()
	return errors.Join(s.f.Close(), d.release(s.c))
}
