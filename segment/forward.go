package segment

import (
	"errors"
	"fmt"
	"io"
)

// Forward reads a stream as an io.ReaderAt whose places never go back, so that
// a segment of any size passes by without being held in memory. What is read
// of a segment from its front to its back can be read so.
func Forward(r io.Reader) io.ReaderAt { return &forward{r: r} }

type forward struct {
	r  io.Reader
	at int64
}

// ReadAt implements io.ReaderAt for places behind all that was read.
func (f *forward) ReadAt(p []byte, off int64) (int, error) {
	if off < f.at {
		return 0, fmt.Errorf("reading at %d behind %d: the stream does not go back", off, f.at)
	}
	skipped, err := io.CopyN(io.Discard, f.r, off-f.at)
	f.at += skipped
	if err != nil {
		return 0, err
	}
	n, err := io.ReadFull(f.r, p)
	f.at += int64(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}
