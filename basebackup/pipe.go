package basebackup

import (
	"context"
	"io"

	"github.com/walferry/walferry/archive/codec"
)

const (
	// pieceSize is how much is encoded at a time, in bytes, where it lies.
	pieceSize = codec.Piece
	// shortPiece is that where the receiver encodes: a Unix socket holds some
	// 200 kB, which the server writes in less than 0.1 ms, and then it waits
	// until somebody reads.
	shortPiece = 128 << 10
	// maxPieces bounds what waits to be encoded, with the piece that is being
	// filled, the one that is checked, and those that are encoded.
	maxPieces = 3 + encodeAtOnce
)

// pieces is the memory in which one archive after the other is collected.
type pieces struct {
	size int // of each, bytes
	free chan []byte
	made int // the writers'
}

func newPieces(size int) *pieces { return &pieces{size: size, free: make(chan []byte, maxPieces)} }

// back takes back a piece that deliver has got. Any goroutine may call it.
func (p *pieces) back(piece []byte) {
	p.free <- piece[:0] // there is room for all there are
}

// packer is an io.Writer that collects messages in pieces. It has one owner.
type packer struct {
	ctx     context.Context // ends every wait; its cause is the error
	pieces  *pieces
	deliver func(piece []byte) error // the piece is whoever's it goes to, until it goes back to pieces

	filled []byte // a piece, as far as it is filled; nil: none
}

// Write implements io.Writer. b is copied.
func (p *packer) Write(b []byte) (written int, err error) {
	for written < len(b) {
		if p.filled == nil {
			if err := p.begin(); err != nil {
				return written, err
			}
		}
		n := min(len(b)-written, p.pieces.size-len(p.filled))
		p.filled = append(p.filled, b[written:written+n]...)
		written += n
		if len(p.filled) == p.pieces.size {
			if err := p.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

// flush delivers what is filled.
func (p *packer) flush() error {
	piece := p.filled
	if piece == nil {
		return nil
	}
	p.filled = nil
	return p.deliver(piece)
}

// begin takes an empty piece.
func (p *packer) begin() error {
	select {
	case p.filled = <-p.pieces.free:
		return nil
	default:
	}
	if p.pieces.made < maxPieces {
		p.pieces.made++
		p.filled = make([]byte, 0, p.pieces.size)
		return nil
	}
	select {
	case p.filled = <-p.pieces.free:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

// pipe carries an archive from the goroutine that receives it to the one that
// encodes it. The one is woken once in a piece and not with every message, and
// nothing is copied on the way out.
type pipe struct {
	packer // the writer's
	full   chan []byte

	read []byte // the reader's: the piece that Read reads; nil: none
	rest []byte // the reader's: what is left of it
}

func newPipe(ctx context.Context, p *pieces) *pipe {
	full := make(chan []byte, maxPieces)
	return &pipe{full: full, packer: packer{ctx: ctx, pieces: p, deliver: func(piece []byte) error {
		full <- piece // there is room for all there are
		return nil
	}}}
}

// end ends the archive: what is filled is the last piece.
func (p *pipe) end() error {
	err := p.flush()
	close(p.full)
	return err
}

// next returns the next piece, which is the reader's, to change it too, until he
// gives it back. The error is io.EOF at the archive's end.
func (p *pipe) next() ([]byte, error) {
	select {
	case piece, ok := <-p.full:
		if !ok {
			return nil, io.EOF
		}
		return piece, nil
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
}

// back takes back what next has given. Any goroutine may call it.
func (p *pipe) back(piece []byte) { p.pieces.back(piece) }

// Read implements io.Reader, for those who decode what is received. It must not
// be mixed with next.
func (p *pipe) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if len(p.rest) == 0 {
		if p.read != nil {
			p.back(p.read)
			p.read = nil
		}
		piece, err := p.next()
		if err != nil {
			return 0, err
		}
		p.read, p.rest = piece, piece
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
