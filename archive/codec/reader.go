package codec

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// ErrDamaged: the stored bytes are not what an encoder wrote. They were all
// read; reading them again gives the same answer.
var ErrDamaged = errors.New("damaged object")

// maxWindow bounds the history that a frame may ask a decoder to keep, in
// bytes: what the zstd tool accepts without being told to (windowLog 27).
const maxWindow = 128 << 20

// NewReader returns a reader of the content of an object whose key ends in
// ext, one of Readable; r gives the stored bytes. See the package
// documentation for what io.EOF proves. Content that cannot be decoded,
// stored bytes that end too early or go on too long are errors that match
// ErrDamaged; an error of r itself is passed on instead and says nothing about
// the object. Close frees the decoder and leaves r alone.
//
// lz4: independent and linked blocks, several frames, skippable frames and
// legacy frames. Block checksums, content checksums and content sizes are
// checked wherever they are there. zstd and gzip: likewise several frames or
// members.
func NewReader(r io.Reader, ext string) (io.ReadCloser, error) {
	src := &source{r: r}
	buf := bufio.NewReaderSize(src, 64<<10)
	if ext == ".lz4" {
		buf = bufio.NewReaderSize(src, 4<<10) // linkedReader wants no more
	}
	d := &decoder{src: src, ext: ext}
	if ext != "" {
		// Every format has a header. An empty object, which some of the
		// libraries take for empty content, is what a broken upload leaves.
		if _, err := buf.Peek(1); err != nil {
			return d.failed(io.ErrUnexpectedEOF), nil
		}
	}
	switch ext {
	case "":
		d.content = src
	case ".lz4":
		linked, err := newLinkedReader(buf)
		if err != nil {
			return d.failed(err), nil
		}
		if linked != nil {
			d.content = linked
			break
		}
		buf = bufio.NewReaderSize(buf, 64<<10)
		z, err := newLZ4Reader(buf)
		if err != nil {
			return nil, err
		}
		d.content, d.free = z, func() { z.Reset(nil) }
	case ".zst":
		z, err := zstd.NewReader(buf, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return d.failed(err), nil
		}
		d.content, d.free = z, z.Close
	case ".gz":
		z, err := gzip.NewReader(buf)
		if err != nil {
			return d.failed(err), nil
		}
		d.content = z
	case ".br":
		d.content = brotli.NewReader(buf)
	case ".lzma":
		z, err := lzma.ReaderConfig{DictCap: maxWindow}.NewReader(buf)
		if err != nil {
			return d.failed(err), nil
		}
		d.content = z
	default:
		return nil, fmt.Errorf("no decoder for objects that end in %q", ext)
	}
	d.rest = buf
	return d, nil
}

// newLZ4Reader returns the library's. It is read through Read alone: WriteTo
// has another way to the end.
func newLZ4Reader(r io.Reader) (*lz4.Reader, error) {
	z := lz4.NewReader(r)
	if err := z.Apply(lz4.ConcurrencyOption(1)); err != nil {
		return nil, fmt.Errorf("making an lz4 decoder: %w", err)
	}
	return z, nil
}

// source remembers that the stored bytes could not be read, so that this is
// not taken for damage: decoders wrap, replace or swallow what they read from.
type source struct {
	r   io.Reader
	err error // sticky; nil at io.EOF
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
	default:
		s.err = err
	}
	return n, err
}

type decoder struct {
	src     *source
	ext     string
	content io.Reader
	rest    *bufio.Reader // what the format did not take
	free    func()
	err     error // sticky
}

// failed makes a decoder of which every read fails.
func (d *decoder) failed(err error) *decoder {
	d.err = d.verdict(err)
	return d
}

// verdict tells the errors of the source from those of the format.
func (d *decoder) verdict(err error) error {
	if d.src.err != nil {
		return d.src.err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %s: %w", ErrDamaged, d.format(), err)
}

func (d *decoder) format() string {
	if d.ext == "" {
		return "plain"
	}
	return d.ext[1:]
}

func (d *decoder) Read(p []byte) (n int, err error) {
	if d.err != nil {
		return 0, d.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err = d.content.Read(p)
	switch {
	case err == nil:
	case err == io.EOF: // itself: a wrapped one is no clean end
		d.err = d.end()
	default:
		d.err = d.verdict(err)
	}
	return n, d.err
}

// end is reached when the format is complete: nothing may follow.
func (d *decoder) end() error {
	if d.ext == "" && d.src.err == nil {
		return io.EOF
	}
	if _, err := d.rest.Peek(1); err == nil {
		return d.verdict(errors.New("bytes behind the end"))
	}
	if d.src.err != nil {
		return d.src.err
	}
	return io.EOF
}

func (d *decoder) Close() error {
	if d.free != nil {
		d.free()
		d.free = nil
	}
	if d.err == nil {
		d.err = errors.New("read after close")
	}
	return nil
}
