package codec

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/pierrec/lz4/v4"
)

// A stream that is encoded in parallel is, with a level, the library's own, byte
// for byte, and without one hardly larger.
func TestParallelIsTheLibrarys(t *testing.T) {
	for _, size := range []int{0, 1, Piece - 1, Piece, Piece + 1, 3*Piece + 77} {
		content := walLike(size, 3)
		random := rand.NewChaCha8([32]byte{4})
		_, _ = random.Read(content[size/2 : size/2+size/4]) // it never fails; blocks that do not get smaller
		for _, level := range []int{0, 1, 2, 9} {
			var want, got bytes.Buffer
			w := lz4.NewWriter(&want)
			if err := w.Apply(lz4.BlockSizeOption(lz4.Block1Mb), lz4.ChecksumOption(false), lz4.CompressionLevelOption(lz4Level(level))); err != nil {
				t.Fatal(err)
			}
			_, err := w.Write(content)
			if err := errors.Join(err, w.Close()); err != nil {
				t.Fatal(err)
			}
			s, err := NewParallelEncoders(Method{Name: LZ4, Level: level}, 2).NewStream(&got)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Write(content)
			if err := errors.Join(err, s.Close()); err != nil {
				t.Fatal(err)
			}
			switch {
			case level > 0 && !bytes.Equal(got.Bytes(), want.Bytes()):
				t.Errorf("level %d of %d bytes: %d bytes, or others, than the library's %d", level, size, got.Len(), want.Len())
			case level == 0 && got.Len() > want.Len()*102/100:
				t.Errorf("%d bytes: %d bytes, the library's %d", size, got.Len(), want.Len())
			}
		}
	}
}

// What is lent comes back once, when it was encoded, and may then be anything;
// whole pieces and others in turn.
func TestLend(t *testing.T) {
	content := walLike(9*Piece+333, 5)
	for _, e := range []*Encoders{
		NewParallelEncoders(Method{Name: LZ4}, 3), NewEncoders(Method{Name: LZ4}), NewEncoders(Method{Name: Zstd, Level: 1}), NewEncoders(Method{Name: None}),
	} {
		for _, sizes := range [][]int{{Piece}, {Piece, Piece, 10, Piece, Piece - 10}, {128 << 10}, {smallPiece, smallPiece - 1, Piece}} {
			var out bytes.Buffer
			s, err := e.NewStream(&out)
			if err != nil {
				t.Fatal(err)
			}
			lent := newLoan()
			rest := content
			for i := 0; len(rest) > 0; i++ {
				n := min(len(rest), sizes[i%len(sizes)])
				if err := s.Lend(lent.out(rest[:n]), lent.back); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			lent.allBack(t)
			if got, err := decode(out.Bytes(), e.Method().Ext()); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s of pieces of %d: %d bytes of %d, or others: %v", e.Method(), sizes, len(got), len(content), err)
			}
		}
	}
}

// A block behind one that got much smaller is encoded before Lend returns; one
// that takes long does not hold the caller, nor does any of a level that takes
// long with everything. (A caller who is held waits for himself, which the bubble
// tells.)
func TestWhoEncodes(t *testing.T) {
	const size = 128 << 10
	random := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{6}).Read(random) // it never fails
	for _, level := range []int{0, 1, 2, 9} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			gate := make(chan struct{}) // closed: the target takes something
			close(gate)
			s, err := NewParallelEncoders(Method{Name: LZ4, Level: level}, 3).NewStream(writerFunc(func(p []byte) (int, error) {
				<-gate
				return out.Write(p)
			}))
			if err != nil {
				t.Fatal(err)
			}
			var content []byte
			lend := func(p []byte) (isBack func() bool) {
				var back atomic.Bool
				content = append(content, p...)
				if err := s.Lend(p, func([]byte) { back.Store(true) }); err != nil {
					t.Fatal(err)
				}
				return back.Load
			}
			easy := make([]byte, size)
			first := lend(easy)
			synctest.Wait()
			if !first() {
				t.Fatalf("level %d: the first block is not encoded", level)
			}
			last := easy // of what takes long at this level, also behind what does not
			if level < 9 {
				if isBack := lend(easy); !isBack() {
					t.Errorf("level %d: what takes no time was not encoded by the caller", level)
				}
				if isBack := lend(random); !isBack() {
					t.Errorf("level %d: what follows what takes no time was not encoded by the caller", level)
				}
				last = random
			}
			gate = make(chan struct{})
			isBack := lend(last)
			if isBack() {
				t.Errorf("level %d: a block came back before it was written", level)
			}
			close(gate)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if got, err := decode(out.Bytes(), ".lz4"); err != nil || !bytes.Equal(got, content) {
				t.Errorf("level %d: %d bytes of %d, or others: %v", level, len(got), len(content), err)
			}
		})
	}
}

// It comes back from a stream that fails, is given up while blocks are under way,
// or is over, too.
func TestLendComesBack(t *testing.T) {
	broken := errors.New("no space")
	for _, c := range []struct {
		name string
		room int // bytes
		end  func(*Stream) error
		want error
	}{
		{"the target fails", 1000, (*Stream).Close, broken},
		{"the target fails, and it is given up", 1000, func(s *Stream) error { s.GiveUp(); return s.Close() }, broken},
		{"it is given up", 1 << 30, func(s *Stream) error { s.GiveUp(); return s.err }, errGivenUp},
	} {
		written := 0
		s, err := NewParallelEncoders(Method{Name: LZ4}, 3).NewStream(writerFunc(func(p []byte) (int, error) {
			if written += len(p); written > c.room {
				return 0, broken
			}
			return len(p), nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		lent := newLoan()
		for range 9 {
			err = errors.Join(err, s.Lend(lent.out(walLike(Piece, 8)), lent.back))
		}
		if err = errors.Join(err, c.end(s)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		lent.allBack(t) // now, not soon
		if err := s.Lend(lent.out(make([]byte, 5)), lent.back); err == nil {
			t.Errorf("%s: a stream that is over takes more", c.name)
		}
		lent.allBack(t)
	}
}

// loan counts what is lent, and spoils what comes back.
type loan struct {
	mu    sync.Mutex
	pairs map[*byte]int
}

func newLoan() *loan { return &loan{pairs: map[*byte]int{}} }

func (l *loan) out(p []byte) []byte {
	p = slices.Clone(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pairs[&p[0]]++
	return p
}

func (l *loan) back(p []byte) {
	for i := range p {
		p[i] = 0xAA
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pairs[&p[0]]--
}

func (l *loan) allBack(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.pairs {
		if n != 0 {
			t.Errorf("a piece came back %d times too few", n)
		}
	}
}
