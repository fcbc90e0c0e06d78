package codec

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Encoders makes writers of one method and uses the encoders again, each with
// its tables and buffers, when their writer is closed. It is safe for
// concurrent use; a writer is not. An encoder in use holds about 3 MiB for
// lz4, and 10 to 50 MiB for zstd, more with the level.
type Encoders struct {
	method   Method
	parallel int       // 0: streams are encoded like objects
	pool     sync.Pool // of encoder
	streams  sync.Pool // of *parallelLZ4
}

// encoder is what the libraries' writers have in common, made to start anew.
// A contentSize of unknownSize is not written into the frame. giveUp ends what
// the encoder has running; its target must refuse what is still written.
type encoder interface {
	io.WriteCloser
	start(w io.Writer, contentSize int64) error
	giveUp()
}

// lender is an encoder that need not copy what it is given: back gets it when it
// is no longer read.
type lender interface {
	lend(p []byte, back func([]byte)) error
}

const unknownSize = -1

// NewEncoders returns encoders of method m.
func NewEncoders(m Method) *Encoders { return &Encoders{method: m} }

// NewParallelEncoders is NewEncoders for streams of which so many blocks, one
// at least, are encoded at a time, where the method is lz4 (others' streams are
// the same). Each takes 1 to 2 MiB. Their frames have no checksum of the content,
// which is a tenth of the work: they are for content that is checked by other
// sums. Without a level they are encoded a little faster than objects are.
//
// A Write may return before all is encoded, so that an error of the target may
// come with a later one, or with Close; and the target is written to by other
// goroutines too, one at a time, until Close or GiveUp has returned.
func NewParallelEncoders(m Method, parallel int) *Encoders {
	return &Encoders{method: m, parallel: parallel}
}

// Method returns the method that the encoders write.
func (e *Encoders) Method() Method { return e.method }

// NewWriter returns a writer that encodes what is written to it, exactly
// contentSize bytes, into w: one frame with content size and checksum, or the
// bytes as they are. A Write beyond contentSize fails, and so does a Close
// before it: the frame then lacks its end and no reader takes it. Close does
// not close w, must be called on every way out, and gives the encoder back;
// the writer is dead after.
func (e *Encoders) NewWriter(w io.Writer, contentSize int64) (io.WriteCloser, error) {
	if contentSize < 0 {
		return nil, fmt.Errorf("encoding %s: negative content size %d", e.method, contentSize)
	}
	return e.newWriter(w, contentSize, &e.pool)
}

// NewStream is NewWriter for content whose size nobody knows beforehand: the
// frame says none. Its end mark tells a reader that it is whole all the same.
// So a stream that has failed is not closed but given up: what was written of
// it is then not taken for whole by anybody.
func (e *Encoders) NewStream(w io.Writer) (*Stream, error) {
	target, pool := &target{w: w}, &e.pool
	if e.parallel > 0 && e.method.Name == LZ4 {
		pool = &e.streams
	}
	enc, err := e.newWriter(target, unknownSize, pool)
	if err != nil {
		return nil, err
	}
	return &Stream{writer: enc, target: target}, nil
}

// Stream encodes content of a size that is not known. It has one owner, who
// calls Close or GiveUp in the end.
type Stream struct {
	*writer
	target *target
}

// Write implements io.Writer. p is copied.
func (s *Stream) Write(p []byte) (int, error) {
	s.look()
	return s.writer.Write(p)
}

// Lend is Write for memory that is lent: Piece bytes, or 64 KiB and more, are a
// block of their own, which is encoded where it lies. back gets p when it is no
// longer read: once, on every way, by any goroutine, and before Close or GiveUp
// has returned.
func (s *Stream) Lend(p []byte, back func([]byte)) error {
	s.look()
	if l, ok := s.enc.(lender); ok && s.err == nil {
		s.written += int64(len(p))
		return l.lend(p, back)
	}
	_, err := s.writer.Write(p)
	back(p)
	return err
}

// look notices that the target has failed.
func (s *Stream) look() {
	if err := s.target.failure(); err != nil && s.enc != nil && s.err == nil {
		s.err = fmt.Errorf("encoding %s: %w", s.encoders.method, err)
	}
}

// Close ends the stream. One that has failed is given up.
func (s *Stream) Close() error {
	if s.err != nil && s.enc != nil {
		s.giveUp(s.err)
	}
	err := s.writer.Close()
	if err != nil {
		s.target.refuse(err)
	}
	return err
}

// GiveUp ends a stream without the end of its frame. After Close it does
// nothing.
func (s *Stream) GiveUp() {
	if s.enc != nil {
		s.giveUp(errGivenUp)
	}
}

// giveUp ends the encoder, whose target refuses everything from here on.
func (s *Stream) giveUp(why error) {
	s.target.refuse(why)
	s.enc.giveUp()
	s.enc, s.err = nil, why
}

var errGivenUp = errors.New("the stream was given up")

// target is where a stream writes to. After an error nothing more is written.
type target struct {
	w io.Writer

	mu  sync.Mutex
	err error
}

func (t *target) Write(p []byte) (int, error) {
	if err := t.failure(); err != nil {
		return 0, err
	}
	n, err := t.w.Write(p)
	if err != nil {
		t.refuse(err)
	}
	return n, err
}

func (t *target) failure() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

func (t *target) refuse(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
}

// newWriter returns a writer with an encoder of pool.
func (e *Encoders) newWriter(w io.Writer, contentSize int64, pool *sync.Pool) (*writer, error) {
	enc, _ := pool.Get().(encoder)
	if enc == nil {
		var err error
		if enc, err = e.newEncoder(pool); err != nil {
			return nil, err
		}
	}
	if err := enc.start(w, contentSize); err != nil {
		return nil, fmt.Errorf("encoding %s: %w", e.method, err)
	}
	return &writer{encoders: e, pool: pool, enc: enc, size: contentSize}, nil
}

// NewWriter is Encoders.NewWriter with an encoder of its own.
func (m Method) NewWriter(w io.Writer, contentSize int64) (io.WriteCloser, error) {
	return NewEncoders(m).NewWriter(w, contentSize)
}

// Encode returns content encoded, for objects that are small.
func (m Method) Encode(content []byte) (*Frame, error) {
	frame := NewBuffers(0, "").New()
	w, err := m.NewWriter(frame, int64(len(content)))
	if err != nil {
		return nil, err
	}
	_, err = w.Write(content)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	return frame, nil
}

func (e *Encoders) newEncoder(pool *sync.Pool) (encoder, error) {
	switch m := e.method; m.Name {
	case LZ4:
		if pool == &e.streams {
			return newParallelLZ4(m.Level, e.parallel), nil
		}
		return &lz4Encoder{Writer: lz4.NewWriter(nil), level: lz4Level(m.Level)}, nil
	case Zstd:
		return newZstdEncoder(m.Level)
	case None:
		return &plainEncoder{}, nil
	}
	return nil, fmt.Errorf("encoding: unknown method %q", e.method.Name)
}

// writer holds an encoder to the content size. It cuts nothing: the libraries
// check the size too, but only at the end, and zstd not at all when it is zero.
type writer struct {
	encoders *Encoders
	pool     *sync.Pool // of the encoders where enc is from
	enc      encoder    // nil when closed
	size     int64      // or unknownSize
	written  int64
	err      error
}

func (w *writer) Write(p []byte) (int, error) {
	switch {
	case w.enc == nil:
		return 0, fmt.Errorf("encoding %s: write after close", w.encoders.method)
	case w.err != nil:
		return 0, w.err
	case w.size != unknownSize && int64(len(p)) > w.size-w.written:
		w.err = fmt.Errorf("encoding %s: %d bytes or more written where %d were announced", w.encoders.method, w.written+int64(len(p)), w.size)
		return 0, w.err
	}
	n, err := w.enc.Write(p)
	w.written += int64(n)
	if err != nil {
		w.err = fmt.Errorf("encoding %s: %w", w.encoders.method, err)
	}
	return n, w.err
}

func (w *writer) Close() error {
	if w.enc == nil {
		return w.err
	}
	enc := w.enc
	w.enc = nil
	if w.err == nil && w.size != unknownSize && w.written != w.size {
		w.err = fmt.Errorf("encoding %s: %d bytes written where %d were announced", w.encoders.method, w.written, w.size)
	}
	if w.err != nil {
		// An encoder in the middle of a frame would have to write the rest of
		// it to be used again: it is dropped instead.
		return w.err
	}
	if err := enc.Close(); err != nil {
		w.err = fmt.Errorf("encoding %s: %w", w.encoders.method, err)
		return w.err
	}
	w.pool.Put(enc)
	return nil
}

type lz4Encoder struct {
	*lz4.Writer
	level lz4.CompressionLevel
}

// lz4Level maps the levels of the lz4 tool to the library's. Level 1 is the
// reference implementation's own method: on WAL it takes four fifths of the
// time of the library's (level 2) for objects that are 4 % larger, and its
// output is fixed by the reference, not by the library's version. 3 to 9 are
// the high-compression levels, of which there is none above 9.
func lz4Level(level int) lz4.CompressionLevel {
	switch {
	case level <= 1: // the default too
		return lz4.CCompatFast
	case level == 2:
		return lz4.Fast
	}
	return lz4.CompressionLevel(1 << (8 + min(level, 9)))
}

// start: blocks of 1 MiB, independent since the library writes no others, so
// that a reader may decode them in parallel. Concurrency 1 keeps the library
// from starting goroutines; who has several objects runs several encoders.
func (e *lz4Encoder) start(w io.Writer, contentSize int64) error {
	e.Reset(w)
	return e.Apply(
		lz4.BlockSizeOption(lz4.Block1Mb),
		lz4.ChecksumOption(true),
		lz4.SizeOption(uint64(max(contentSize, 0))), // 0: none is written
		lz4.CompressionLevelOption(e.level),
		lz4.ConcurrencyOption(1),
	)
}

// Write passes on, so that no ReadFrom of the library is seen by io.Copy.
func (e *lz4Encoder) Write(p []byte) (int, error) { return e.Writer.Write(p) }

func (e *lz4Encoder) Close() error {
	// An empty content gets a frame too: the library writes the header with
	// the first Write, even of nothing.
	if _, err := e.Writer.Write(nil); err != nil {
		return err
	}
	if err := e.Writer.Close(); err != nil {
		return err
	}
	e.Reset(nil)
	return nil
}

func (e *lz4Encoder) giveUp() { e.Reset(nil) }

type zstdEncoder struct{ *zstd.Encoder }

// zstdWindow bounds an encoder's and every decoder's memory.
const zstdWindow = 4 << 20

func newZstdEncoder(level int) (*zstdEncoder, error) {
	if level == 0 {
		level = defaultZstdLevel
	}
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
		zstd.WithWindowSize(zstdWindow),
		zstd.WithEncoderConcurrency(1),
		zstd.WithLowerEncoderMem(true),
		zstd.WithEncoderCRC(true),
		zstd.WithZeroFrames(true),
	)
	if err != nil {
		return nil, fmt.Errorf("making a zstd encoder of level %d: %w", level, err)
	}
	return &zstdEncoder{e}, nil
}

func (e *zstdEncoder) start(w io.Writer, contentSize int64) error {
	e.ResetContentSize(w, contentSize)
	return nil
}

func (e *zstdEncoder) Close() error {
	if err := e.Encoder.Close(); err != nil {
		return err
	}
	e.Reset(nil)
	return nil
}

func (e *zstdEncoder) giveUp() { e.Reset(nil) }

type plainEncoder struct{ w io.Writer }

func (e *plainEncoder) giveUp() { e.w = nil }

func (e *plainEncoder) start(w io.Writer, _ int64) error {
	e.w = w
	return nil
}
func (e *plainEncoder) Write(p []byte) (int, error) { return e.w.Write(p) }
func (e *plainEncoder) Close() error {
	e.w = nil
	return nil
}
