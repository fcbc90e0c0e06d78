package codec

import (
	"encoding/binary"
	"io"
	"sync/atomic"

	"github.com/pierrec/lz4/v4"
)

const (
	// parallelHeader begins an lz4 frame of independent blocks of 1 MiB, without
	// content size and checksums. Its last byte is its own checksum.
	parallelHeader = "\x04\x22\x4d\x18\x60\x60\x51"
	// Piece is the size of such a block, in bytes. What is lent may make smaller
	// ones, from smallPiece on, below which more is lost with what the block
	// before has shown.
	Piece      = 1 << 20
	smallPiece = 64 << 10
	// acceleration is that of the default level: a fifth less work than the
	// reference implementation's own (1), for streams that are larger by a
	// thousandth of the content: 0.065 of pgbench's accounts for 0.064, 0.377 of
	// their index for 0.376. From 4 on an index grows by more.
	acceleration = 3
)

// parallelLZ4 writes a frame whose blocks are encoded by several goroutines. The
// library's writer can do that too; but it copies all content once more, and
// knows no acceleration. The blocks' encoders are the library's.
//
// Each block has a goroutine, which encodes it, waits until the block before it
// is written, and writes it. So blocks are in order, only one goroutine at a
// time writes, and none is left when the last block is done.
//
// A block behind one that got much smaller is encoded by the caller: of such
// content 128 KiB take some 30 µs, and to wake somebody else for it, perhaps on
// the caller's own processor, would gain nothing.
type parallelLZ4 struct {
	w     io.Writer
	idle  chan *blockEncoder // all but those that encode, and filling
	quick bool               // by its level: a block that gets much smaller takes little time
	easy  atomic.Bool        // the block that was encoded last got much smaller

	filling *blockEncoder // its content is not a whole block yet; nil: none
	last    chan struct{} // closed when all blocks that were begun are done
	// err is the target's first error, behind which nothing is written. It
	// belongs to the block whose turn it is, and behind last to the owner.
	err error
}

// blockEncoder encodes one block at a time.
type blockEncoder struct {
	compressor interface {
		CompressBlock(src, dst []byte) (int, error)
	}
	content []byte // what was written and not lent, up to Piece bytes
	packed  []byte // the word that says the block's size, and the block
}

// newParallelLZ4 returns an encoder of so many blocks at a time.
func newParallelLZ4(level, parallel int) *parallelLZ4 {
	e := &parallelLZ4{idle: make(chan *blockEncoder, parallel), quick: true}
	for range parallel {
		b := &blockEncoder{packed: make([]byte, lz4Word+Piece)}
		switch l := lz4Level(level); {
		case level == 0:
			b.compressor = &lz4.CompressorCCompat{Acceleration: acceleration}
		case l == lz4.CCompatFast:
			b.compressor = &lz4.CompressorCCompat{}
		case l == lz4.Fast:
			b.compressor = &lz4.Compressor{}
		default:
			b.compressor, e.quick = &lz4.CompressorHC{Level: l}, false
		}
		e.idle <- b
	}
	return e
}

// start implements encoder. That the header could not be written is told later,
// like any error of the target.
func (e *parallelLZ4) start(w io.Writer, _ int64) error {
	e.w, e.last = w, make(chan struct{})
	close(e.last)
	e.easy.Store(false)
	_, e.err = io.WriteString(w, parallelHeader)
	return nil
}

// Write implements io.Writer. p is copied.
func (e *parallelLZ4) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if e.filling == nil {
			e.filling = <-e.idle
			if e.filling.content == nil {
				e.filling.content = make([]byte, 0, Piece)
			}
		}
		b := e.filling
		n := min(len(rest), Piece-len(b.content))
		b.content, rest = append(b.content, rest[:n]...), rest[n:]
		if len(b.content) == Piece {
			e.filling = nil
			e.begin(b, b.content, nil)
		}
	}
	return len(p), nil
}

// lend implements lender.
func (e *parallelLZ4) lend(p []byte, back func([]byte)) error {
	if len(p) >= smallPiece && len(p) <= Piece && e.filling == nil {
		e.begin(<-e.idle, p, back)
		return nil
	}
	_, err := e.Write(p)
	back(p)
	return err
}

// begin has b encode content, which goes back, if it is to, when it is no
// longer read.
func (e *parallelLZ4) begin(b *blockEncoder, content []byte, back func([]byte)) {
	before, done := e.last, make(chan struct{})
	e.last = done
	encode := func() {
		size := b.encode(content)
		e.easy.Store(size > 0 && size < len(content)/3)
		<-before
		if e.err == nil {
			e.err = b.write(e.w, content, size)
		}
		if back != nil {
			back(content)
		}
		b.content = b.content[:0]
		e.idle <- b // there is room for all there are
		close(done)
	}
	if e.quick && e.easy.Load() {
		encode() // those before need nothing of the caller's to end
		return
	}
	go encode()
}

// encode makes a block of content in packed and returns its size; 0: it would
// not be smaller.
func (b *blockEncoder) encode(content []byte) int {
	n, err := b.compressor.CompressBlock(content, b.packed[lz4Word:][:len(content)])
	if err != nil {
		return 0 // it has no room, which is the one thing that can be wrong
	}
	return n
}

// write writes the block that encode has made.
func (b *blockEncoder) write(w io.Writer, content []byte, size int) error {
	if size > 0 {
		binary.LittleEndian.PutUint32(b.packed, uint32(size))
		_, err := w.Write(b.packed[:lz4Word+size])
		return err
	}
	binary.LittleEndian.PutUint32(b.packed, uint32(len(content))|lz4Stored)
	if _, err := w.Write(b.packed[:lz4Word]); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// Close writes what is left, and the end mark.
func (e *parallelLZ4) Close() error {
	if b := e.filling; b != nil {
		e.filling = nil
		e.begin(b, b.content, nil)
	}
	<-e.last
	if e.err != nil {
		return e.err
	}
	_, err := e.w.Write(make([]byte, lz4Word))
	return err
}

// giveUp implements encoder: it waits for the blocks under way, which the target
// refuses.
func (e *parallelLZ4) giveUp() { <-e.last }
