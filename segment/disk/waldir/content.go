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

	"github.com/walferry/walferry/segment/disk"
)

const (
	// inMemory is how large a segment is at most whose plain bytes are kept in
	// memory while it is open. Those of a larger one are in an unlinked file.
	inMemory = 64 << 20
	// step is how many bytes are decoded, copied or compared in one go.
	step = 256 << 10
)

// errLonger: the stream goes on behind a segment's last byte.
var errLonger = errors.New("it has more bytes than a segment")

// content is the plain bytes of a segment's file, whatever its form.
type content interface {
	io.ReaderAt
	io.Closer
	// extent returns how many bytes there are: of a plain file, which is
	// allocated in full, up to the last that is not zero.
	extent() (int64, error)
}

// plain is the content of a file that is not compressed.
type plain struct{ disk.File }

func (p plain) extent() (int64, error) {
	end, err := p.Size()
	if err != nil {
		return 0, err
	}
	for buf := make([]byte, step); end > 0; {
		part := buf[:min(end, step)]
		if err := readFull(p, part, end-int64(len(part))); err != nil {
			return 0, err
		}
		for i := len(part); i > 0; i-- {
			if part[i-1] != 0 {
				return end - int64(len(part)-i), nil
			}
		}
		end -= int64(len(part))
	}
	return 0, nil
}

// readFull reads len(p) bytes, all or an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// eachPart reads n bytes of r from a place on, in order.
func eachPart(r io.ReaderAt, from, n int64, f func(part []byte, at int64) error) error {
	buf := make([]byte, min(n, step))
	for at := from; at < from+n; {
		part := buf[:min(from+n-at, step)]
		if err := readFull(r, part, at); err != nil {
			return err
		}
		if err := f(part, at); err != nil {
			return err
		}
		at += int64(len(part))
	}
	return nil
}

// image is a segment's plain bytes while its compressed file is open.
type image struct {
	mem  []byte
	file disk.File // in place of mem
}

func (i *image) ReadAt(p []byte, off int64) (int, error) {
	if i.file != nil {
		return i.file.ReadAt(p, off)
	}
	if off < 0 || off > int64(len(i.mem)) {
		return 0, io.EOF
	}
	n := copy(p, i.mem[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (i *image) WriteAt(p []byte, off int64) (int, error) {
	if i.file != nil {
		return i.file.WriteAt(p, off)
	}
	if off < 0 || off+int64(len(p)) > int64(len(i.mem)) {
		return 0, fs.ErrInvalid // also after the memory was given back
	}
	if bytes.Equal(i.mem[off:][:len(p)], p) {
		// A spool writes again what it has read, to have it synced, and others
		// may be reading it, too: a file bears that.
		return len(p), nil
	}
	return copy(i.mem[off:], p), nil
}

// newImage returns size bytes of zeros.
func (d *FS) newImage(size int64) (*image, error) {
	if size > inMemory {
		f, err := d.unnamed()
		if err != nil {
			return nil, err
		}
		if err := f.Truncate(size); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return &image{file: f}, nil
	}
	d.mu.Lock()
	mem := d.spare
	d.spare = nil
	d.mu.Unlock()
	if int64(len(mem)) != size {
		return &image{mem: make([]byte, size)}, nil
	}
	clear(mem)
	return &image{mem: mem}, nil
}

// unnamed opens a temporary file without a name, or takes its name away.
func (d *FS) unnamed() (disk.File, error) {
	if u, ok := d.fs.(disk.Unnamer); ok {
		if f, err := u.Unnamed(d.path(""), 0o600); !errors.Is(err, errors.ErrUnsupported) {
			return f, err
		}
	}
	d.imaging.Lock()
	defer d.imaging.Unlock()
	path := d.path(imageName)
	f, err := d.createAnew(path, 0o600)
	if err != nil {
		return nil, err
	}
	if err := d.fs.Remove(path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// decoded is the plain bytes of one compressed file, shared by all who have it
// open: decoded once, as far as somebody has asked.
type decoded struct {
	file string // its name in the directory; guarded by FS.mu
	refs int    // guarded by FS.mu
	img  *image
	size int64 // of a segment

	mu   sync.Mutex
	f    disk.File // nil: it is read to its end
	src  *source
	r    io.Reader
	have int64 // bytes in img
	end  error // where there are no more: io.EOF, or what is wrong there
}

// source reads a file from its front, and remembers what kept it from being
// read: decoders wrap and replace that, and it is no damage.
type source struct {
	f   disk.File
	off int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.f.ReadAt(p, s.off)
	s.off += int64(n)
	switch {
	case n > 0:
		return n, nil
	case err == nil || errors.Is(err, io.EOF):
		return 0, io.EOF
	}
	s.err = err
	return 0, err
}

// newDecoder returns a reader of one gzip member, or of lz4 frames.
func newDecoder(m Method, r io.Reader) (io.Reader, error) {
	buf := bufio.NewReaderSize(r, 64<<10)
	if m == Gzip {
		z, err := gzip.NewReader(buf)
		if err != nil {
			return nil, err
		}
		z.Multistream(false) // behind it there may be what the original did not cut off
		return z, nil
	}
	z := lz4.NewReader(buf)
	return z, z.Apply(lz4.ConcurrencyOption(1))
}

// upTo decodes until there are so many bytes, or no more. Its error says that
// the file could not be read; what is wrong with its bytes is c.end. c.mu is
// held.
func (c *decoded) upTo(to int64) error {
	var buf []byte
	for c.end == nil && c.have < to {
		part := buf
		if c.img.file == nil {
			part = c.img.mem[c.have:min(c.have+step, c.size)]
		} else if part = buf; part == nil {
			buf = make([]byte, step)
			part = buf
		}
		part = part[:min(int64(len(part)), c.size-c.have)]
		n, err := c.next(part)
		if c.img.file != nil {
			if _, err := c.img.file.WriteAt(part[:n], c.have); err != nil {
				return err
			}
		}
		c.have += int64(n)
		if err != nil {
			return err
		}
	}
	if c.end == nil && c.have == c.size {
		n, err := c.next(make([]byte, 1))
		if n > 0 {
			c.end = errLonger
		}
		if err != nil {
			return err
		}
	}
	if c.end != nil && c.f != nil {
		f := c.f
		c.f, c.r, c.src = nil, nil, nil
		return f.Close()
	}
	return nil
}

// next reads from the decoder; where there is nothing more it sets c.end.
func (c *decoded) next(p []byte) (n int, err error) {
	n, err = c.r.Read(p)
	switch {
	case c.src.err != nil:
		return n, c.src.err
	case err != nil:
		c.end = err
	}
	return n, nil
}

// extent implements content.
func (c *decoded) extent() (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.upTo(c.size)
	return c.have, err
}

// whole decodes to the end and says how many bytes there are, and why there
// are no more: io.EOF when all is well.
func (c *decoded) whole() (n int64, end, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err = c.upTo(c.size)
	return c.have, c.end, err
}

// handle is a compressed file that is open for reading. Of a partial it shows
// what decodes, and zeros up to a segment's size, as a plain one has.
type handle struct {
	d       *FS
	c       *decoded
	name    string
	partial bool
	once    sync.Once
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= h.c.size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), h.c.size-off)
	h.c.mu.Lock()
	err := h.c.upTo(off + n)
	have, end := h.c.have, h.c.end
	h.c.mu.Unlock()
	if err == nil && off+n > have && !h.partial {
		err = fmt.Errorf("%d bytes of it can be decoded: %w", have, notEOF(end))
	}
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", h.name, err)
	}
	if n < int64(len(p)) {
		k, err := h.c.img.ReadAt(p[:n], off)
		if err == nil {
			err = io.EOF
		}
		return k, err
	}
	return h.c.img.ReadAt(p, off)
}

func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (h *handle) extent() (int64, error) { return h.c.extent() }

func (h *handle) refuse(what string) error {
	return &fs.PathError{Op: what, Path: h.name, Err: fs.ErrPermission}
}

func (h *handle) WriteAt([]byte, int64) (int, error) { return 0, h.refuse("write") }
func (h *handle) Allocate(int64) error               { return h.refuse("allocate") }
func (h *handle) Truncate(int64) error               { return h.refuse("truncate") }
func (h *handle) Size() (int64, error)               { return h.c.size, nil }
func (h *handle) Sync() error                        { return nil }

func (h *handle) Close() error {
	err := fs.ErrClosed
	h.once.Do(func() { err = h.d.release(h.c) })
	return err
}

// decode opens a compressed file for reading; the bytes that somebody has of it
// already are not decoded again.
func (d *FS) decode(file string, m Method, partial bool, size int64) (*handle, error) {
	d.mu.Lock()
	c := d.open[file]
	if c != nil && c.size == size {
		c.refs++
		if d.idle == c {
			d.idle = nil
		}
		d.mu.Unlock()
		return &handle{d: d, c: c, name: file, partial: partial}, nil
	}
	d.mu.Unlock()
	f, err := d.fs.Open(d.path(file), false)
	if err != nil {
		return nil, err
	}
	img, err := d.newImage(size)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c = &decoded{file: file, img: img, size: size, f: f, src: &source{f: f}, refs: 1}
	if c.r, err = newDecoder(m, c.src); err != nil {
		if c.src.err != nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			return nil, errors.Join(fmt.Errorf("reading %s: %w", file, c.src.err), d.free(c))
		}
		c.end = err // not even its header is right
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[file] == nil {
		d.open[file] = c
	}
	return &handle{d: d, c: c, name: file, partial: partial}, nil
}

// release gives up one use of c. The last file that was closed keeps its bytes:
// a spool opens a segment for each read of it.
func (d *FS) release(c *decoded) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.refs--; c.refs > 0 {
		return nil
	}
	if d.open[c.file] != c {
		return d.free(c)
	}
	if c.src != nil && c.src.err != nil { // the next one reads it again
		delete(d.open, c.file)
		return d.free(c)
	}
	old := d.idle
	d.idle = c
	if old == nil || old == c {
		return nil
	}
	delete(d.open, old.file)
	return d.free(old)
}

// forget lets go of what is known of a file's bytes, since it is gone or will
// have others; d.mu is held.
func (d *FS) forget(file string) {
	c := d.open[file]
	if c == nil {
		return
	}
	delete(d.open, file)
	if d.idle == c {
		d.idle = nil
		// What cannot be closed was only read.
		_ = d.free(c)
	}
}

// free gives c's memory back for the next segment. Nobody uses c; d.mu is held.
func (d *FS) free(c *decoded) error {
	var errs []error
	if c.f != nil {
		errs = append(errs, c.f.Close())
	}
	if c.img.file != nil {
		errs = append(errs, c.img.file.Close())
	}
	if c.img.mem != nil {
		d.spare, c.img.mem = c.img.mem, nil
	}
	return errors.Join(errs...)
}
