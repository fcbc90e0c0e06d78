package basebackup

import (
	"context"
	"io"

	"github.com/walferry/walferry/archive/codec"
)

const (
	// pieceSize is how much is encoded at a time, in bytes, where it lies.
	pieceSize = codec.Piece
	// maxPieces bounds what waits to be encoded, with the piece that is being
	// filled, the one that is checked, and those that are encoded.
	maxPieces = 3 + encodeAtOnce
)

// pieces is the memory of one pipe after the other.
type pieces struct {
	free chan []byte
	made int // the writers'
}

func newPieces() *pieces { return &pieces{free: make(chan []byte, maxPieces)} }

// pipe carries an archive from the goroutine that receives it to the one that
// encodes it, in pieces. The one is woken once in a piece and not with every
// message, and nothing is copied on the way out.
type pipe struct {
	ctx    context.Context // ends every wait; its cause is the error
	pieces *pieces
	full   chan []byte

	filled []byte // the writer's: a piece, as far as it is filled; nil: none

	read []byte // the reader's: the piece that Read reads; nil: none
	rest []byte // the reader's: what is left of it
}

func newPipe(ctx context.Context, p *pieces) *pipe {
	return &pipe{ctx: ctx, pieces: p, full: make(chan []byte, maxPieces)}
}

// Write implements io.Writer. b is copied.
func (p *pipe) Write(b []byte) (written int, err error) {
	for written < len(b) {
		if p.filled == nil {
			if err := p.begin(); err != nil {
				return written, err
			}
		}
		n := min(len(b)-written, pieceSize-len(p.filled))
		p.filled = append(p.filled, b[written:written+n]...)
		written += n
		if len(p.filled) == pieceSize {
			p.full <- p.filled // there is room for all there are
			p.filled = nil
		}
	}
	return written, nil
}

// begin takes an empty piece.
func (p *pipe) begin() error {
	select {
	case p.filled = <-p.pieces.free:
		return nil
	default:
	}
	if p.pieces.made < maxPieces {
		p.pieces.made++
		p.filled = make([]byte, 0, pieceSize)
		return nil
	}
	select {
	case p.filled = <-p.pieces.free:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

// end ends the archive: what is filled is the last piece.
func (p *pipe) end() error {
	if p.filled != nil {
		p.full <- p.filled
		p.filled = nil
	}
	close(p.full)
	return nil
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
func (p *pipe) back(piece []byte) {
	p.pieces.free <- piece[:0] // there is room for all there are
}

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
