package basebackup

import (
	"context"
	"io"
)

const (
	// pieceSize is how much is encoded at a time, in bytes: a block of the lz4
	// frames that we write, so that each is encoded where it lies.
	pieceSize = 1 << 20
	// maxPieces bounds what waits to be encoded, with the piece that is being
	// filled and the one that is encoded.
	maxPieces = 4
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

	lent []byte // the reader's: what next has given out
	rest []byte // the reader's: what Read has left of it
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

// next lends the next piece, which may be changed, until the call after it. The
// error is io.EOF at the archive's end.
func (p *pipe) next() ([]byte, error) {
	if p.lent != nil {
		p.pieces.free <- p.lent[:0] // there is room for all there are
		p.lent = nil
	}
	select {
	case piece, ok := <-p.full:
		if !ok {
			return nil, io.EOF
		}
		p.lent = piece
		return piece, nil
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
}

// Read implements io.Reader, for those who decode what is received. It must not
// be mixed with next.
func (p *pipe) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if len(p.rest) == 0 {
		var err error
		if p.rest, err = p.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
