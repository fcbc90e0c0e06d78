package codec

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

const (
	// linkedHeader begins every lz4 frame of a base backup that PostgreSQL's
	// server compresses: linked blocks of 256 kB, no content size, no
	// checksums (bbsink_lz4_begin_archive in
	// src/backend/backup/basebackup_lz4.c, 15 to 18).
	linkedHeader = "\x04\x22\x4d\x18\x40\x50\x77"
	linkedBlock  = 256 << 10
	lz4History   = 64 << 10 // how far back a block may refer
	lz4Stored    = 1 << 31  // of a block's size: it is not compressed
	lz4Word      = 4        // bytes of a block's size
)

// linkedReader decodes a frame of that kind. So does the library's reader,
// which allocates and copies each decoded byte once more for the blocks that
// follow: twice the time, and a heap that is twice as large between the
// collections. Where a reader asks for a block or more, it is decoded into its
// own memory. Each block is read together with the size of the next, so that it
// comes from under the small buffer of src, uncopied.
type linkedReader struct {
	src     *bufio.Reader
	word    [lz4Word]byte // the size of the next block, if it is known
	known   bool
	packed  []byte
	history []byte // the end of what was decoded, lz4History bytes at most
	plain   []byte // a block for a reader who asks for less
	left    []byte // of plain: what was not read yet
	rest    io.Reader
}

// newLinkedReader returns nil when src does not begin with such a frame.
func newLinkedReader(src *bufio.Reader) (*linkedReader, error) {
	header, err := src.Peek(len(linkedHeader))
	if err != nil || string(header) != linkedHeader {
		return nil, nil // whatever it is: the general reader says it
	}
	if _, err := src.Discard(len(linkedHeader)); err != nil {
		return nil, err
	}
	return &linkedReader{src: src, packed: make([]byte, linkedBlock+lz4Word), history: make([]byte, 0, lz4History)}, nil
}

// Read implements io.Reader. io.EOF comes behind the frame's end mark and what
// follows it, never before.
func (r *linkedReader) Read(p []byte) (int, error) {
	if r.rest != nil {
		return r.rest.Read(p)
	}
	if len(r.left) > 0 {
		n := copy(p, r.left)
		r.left = r.left[n:]
		return n, nil
	}
	dst := p
	if len(p) < linkedBlock {
		if r.plain == nil {
			r.plain = make([]byte, linkedBlock)
		}
		dst = r.plain
	}
	n, err := r.block(dst[:linkedBlock])
	if errors.Is(err, io.EOF) {
		// The end mark was read. Another frame may follow.
		if r.rest, err = newLZ4Reader(r.src); err != nil {
			return 0, err
		}
		return r.rest.Read(p)
	}
	if err != nil {
		return 0, err
	}
	r.remember(dst[:n])
	if len(p) < linkedBlock {
		r.left = dst[:n]
		return r.Read(p)
	}
	return n, nil
}

// block decodes the next block; io.EOF is the end mark.
func (r *linkedReader) block(dst []byte) (int, error) {
	if !r.known {
		if err := r.full(r.word[:]); err != nil {
			return 0, err
		}
	}
	r.known = false
	word := binary.LittleEndian.Uint32(r.word[:])
	if word == 0 {
		return 0, io.EOF
	}
	size := word &^ lz4Stored
	if size > linkedBlock {
		return 0, fmt.Errorf("lz4: a block of %d bytes in a frame of at most %d", size, linkedBlock)
	}
	if word&lz4Stored != 0 {
		return int(size), r.full(dst[:size])
	}
	// Behind a block is another, or the end mark.
	if err := r.full(r.packed[:size+lz4Word]); err != nil {
		return 0, err
	}
	r.known = copy(r.word[:], r.packed[size:size+lz4Word]) == lz4Word
	return lz4.UncompressBlockWithDict(r.packed[:size], dst, r.history)
}

// full reads what a frame must have still.
func (r *linkedReader) full(p []byte) error {
	_, err := io.ReadFull(r.src, p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// remember keeps what the next block may refer to. p may change afterwards.
func (r *linkedReader) remember(p []byte) {
	if len(p) >= lz4History {
		r.history = append(r.history[:0], p[len(p)-lz4History:]...)
		return
	}
	if over := len(r.history) + len(p) - lz4History; over > 0 {
		r.history = r.history[:copy(r.history, r.history[over:])]
	}
	r.history = append(r.history, p...)
}
