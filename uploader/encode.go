package uploader

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// blockSize is how much of a segment is read before it is encoded. It is the
// encoder's own block, which is then compressed where it lies, without another
// copy; the smallest segment has one.
const blockSize = 1 << 20

// frame is an encoded segment, ready to be stored as often as it takes.
type frame interface {
	objstore.Body
	Release()
}

// encode reads seg as it fills and returns its encoded form. It returns when
// the segment is whole, sealed or not, or has been finished at the end of its
// timeline: then zeros follow up to the segment size. Any error but ctx's
// means that the segment was given up.
func (u *Uploader) encode(ctx context.Context, seg *spool.Segment, size segment.Size, coder *codec.Encoders) (frame, error) {
	src := &padded{r: seg.FollowBlocks(ctx, blockSize), left: int64(size)}
	buf := u.block()
	defer u.blocks.Put(buf)
	if coder.Method().Name == "none" {
		// The segment file is its own frame: only the checksum is needed.
		b := &fileBody{plainBytes: plainBytes{seg, seg.Name().Start(size)}, size: int64(size), end: seg.Finished}
		if err := copyBlocks(b, src, buf[:]); err != nil {
			return nil, fmt.Errorf("reading segment %s: %w", seg.Name(), err)
		}
		return b, nil
	}
	for {
		f := u.o.Buffers.New()
		err := fill(f, coder, src, int64(size), buf[:])
		if err == nil {
			return f, nil
		}
		f.Release()
		if ctx.Err() != nil || errors.As(err, new(*readError)) {
			return nil, fmt.Errorf("reading segment %s: %w", seg.Name(), err)
		}
		// Building the frame failed: the disk that takes large frames is full.
		if err := u.pause(ctx, fmt.Errorf("compressing segment %s: %w", seg.Name(), err)); err != nil {
			return nil, err
		}
		src = &padded{r: seg.FollowBlocks(ctx, blockSize), left: int64(size)}
	}
}

func fill(f io.Writer, coder *codec.Encoders, src io.Reader, size int64, buf []byte) error {
	w, err := coder.NewWriter(f, size)
	if err != nil {
		return err
	}
	return errors.Join(copyBlocks(w, src, buf), w.Close())
}

// copyBlocks copies src to its end, in writes of len(buf) but the last. (Not
// by io.ReadFull, whose io.ErrUnexpectedEOF could also be a file's that lost
// its end.)
func copyBlocks(w io.Writer, src io.Reader, buf []byte) error {
	held := 0
	for {
		n, err := src.Read(buf[held:])
		held += n
		if held == len(buf) || err == io.EOF && held > 0 {
			if _, err := w.Write(buf[:held]); err != nil {
				return err
			}
			held = 0
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// block returns a buffer that is used again: one for each worker.
func (u *Uploader) block() *[blockSize]byte {
	if b, ok := u.blocks.Get().(*[blockSize]byte); ok {
		return b
	}
	return new([blockSize]byte)
}

// padded yields what r has and then zeros, left bytes in all.
type padded struct {
	r    io.Reader
	left int64
	eof  bool
}

// readError marks a failure to read the segment, as against one to encode it.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

func (p *padded) Read(b []byte) (int, error) {
	if p.left == 0 {
		if !p.eof {
			// The segment must end here, too.
			n, err := p.r.Read(make([]byte, 1))
			if err != io.EOF {
				return 0, &readError{fmt.Errorf("%d bytes behind the segment's end: %w", n, err)}
			}
			p.eof = true
		}
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), p.left)]
	if p.eof {
		clear(b)
		p.left -= int64(len(b))
		return len(b), nil
	}
	n, err := p.r.Read(b)
	p.left -= int64(n)
	switch {
	case err == io.EOF:
		p.eof = true
	case err != nil:
		return n, &readError{err}
	}
	return n, nil
}

// plainBytes gives the decoded bytes of a segment by their place in it.
type plainBytes struct {
	seg   *spool.Segment
	start segment.LSN
}

// ReadAt implements io.ReaderAt over the segment's file.
func (p plainBytes) ReadAt(b []byte, off int64) (int, error) {
	if err := p.seg.ReadAt(b, p.start+segment.LSN(off)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// fileBody is an uncompressed segment as an object's body.
type fileBody struct {
	plainBytes
	size int64
	crc  uint32
	end  func() (segment.LSN, bool)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Write adds to the checksum; the bytes are in the file already.
func (f *fileBody) Write(b []byte) (int, error) {
	f.crc = crc32.Update(f.crc, castagnoli, b)
	return len(b), nil
}

// ReadAt reads the file up to where the timeline ended, and zeros behind: what
// a receiver holds beyond the switchpoint is not part of the partial.
func (f *fileBody) ReadAt(b []byte, off int64) (int, error) {
	if off >= f.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(b)) > f.size-off {
		b, eof = b[:f.size-off], io.EOF
	}
	have := len(b)
	if w, ended := f.end(); ended {
		have = int(max(0, min(int64(len(b)), int64(w-f.start)-off)))
	}
	if have > 0 {
		if _, err := f.plainBytes.ReadAt(b[:have], off); err != nil {
			return 0, err
		}
	}
	clear(b[have:])
	return len(b), eof
}

func (f *fileBody) Size() int64    { return f.size }
func (f *fileBody) CRC32C() uint32 { return f.crc }
func (f *fileBody) Release()       {}
