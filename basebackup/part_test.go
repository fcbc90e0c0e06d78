package basebackup

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
)

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Parts are alike as long as the estimate holds, and no estimate bounds an
// object.
func TestSizing(t *testing.T) {
	const largest = 50 << 40 // bytes that S3 takes for an object
	for _, parts := range []int{100, 1000, objstore.MaxParts} {
		for _, expected := range []int64{-1, 0, 1, 1 << 20, 1 << 30, 100 << 30, 10 << 40} {
			s := newSizing(expected, parts)
			if s.first < smallestPart || s.first > objstore.MaxPart || s.first%(1<<20) != 0 {
				t.Errorf("%d bytes in %d parts: the first has %d", expected, parts, s.first)
			}
			sum, last := int64(0), int64(0)
			for n := 1; n <= parts; n++ {
				size, err := s.size(n)
				if err != nil || size < last || size > objstore.MaxPart || size != s.first && sum < expected && s.first < objstore.MaxPart {
					t.Fatalf("%d bytes in %d parts: part %d has %d behind %d, %v", expected, parts, n, size, last, err)
				}
				sum, last = sum+size, size
			}
			if want := min(largest, int64(parts)/8*objstore.MaxPart); sum < want {
				t.Errorf("%d bytes in %d parts: there is room for %d", expected, parts, sum)
			}
			if _, err := s.size(parts + 1); err == nil {
				t.Errorf("more than %d parts", parts)
			}
		}
	}
	// A terabyte is planned with parts that one can hold.
	if s := newSizing(1<<40/2, objstore.MaxParts); s.first > 80<<20 {
		t.Errorf("a terabyte begins with %d bytes", s.first)
	}
}

func TestJoinCRC(t *testing.T) {
	content := pages(100_000, 8)
	for _, at := range []int{0, 1, 7, 512, 65_536, 99_999, 100_000} {
		if got := joinCRC(crcOf(content[:at]), crcOf(content[at:]), int64(len(content)-at)); got != crcOf(content) {
			t.Errorf("%d and %d bytes: %08X, want %08X", at, len(content)-at, got, crcOf(content))
		}
	}
}

// What is written comes out, of the parts and of the follower, whatever the
// sizes of the pieces.
func TestCutter(t *testing.T) {
	content := pages(3_000_000, 3)
	for _, c := range []struct{ part, write, read int }{{100_000, 7_000, 9_000}, {1 << 20, 32 << 10, 64 << 10}, {3_000_000, 1 << 20, 1 << 20}, {1_500_000, 3_000_000, 100}, {999, 10_000, 1_000_000}, {4_000_000, 4_000_000, 4096}} {
		buffers := codec.NewBuffers(0, "")
		var mu sync.Mutex
		var stored bytes.Buffer
		numbers := 0
		cut := &cutter{
			ctx:      t.Context(),
			size:     func(int) (int64, error) { return int64(c.part), nil },
			frame:    func(int64) *codec.Frame { return buffers.New() },
			slots:    make(chan struct{}, slots),
			cost:     func(int64) int { return 1 },
			follower: newFollower(t.Context()),
		}
		cut.store = func(p *part) error {
			defer p.release()
			mu.Lock()
			defer mu.Unlock()
			numbers++
			if p.number != numbers || p.at != int64(stored.Len()) {
				t.Errorf("part %d at %d behind %d bytes", p.number, p.at, stored.Len())
			}
			_, err := io.Copy(&stored, io.NewSectionReader(p.frame, 0, p.frame.Size()))
			return err
		}
		followed := make(chan []byte)
		go func() {
			var got []byte
			buf := make([]byte, c.read)
			for {
				n, err := cut.follower.Read(buf)
				got = append(got, buf[:n]...)
				if err != nil {
					if !errors.Is(err, io.EOF) {
						t.Error(err)
					}
					followed <- got
					return
				}
			}
		}()
		for p := content; len(p) > 0; {
			n := min(len(p), 1+rand.IntN(c.write))
			if m, err := cut.Write(p[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			p = p[n:]
		}
		if err := cut.end(); err != nil {
			t.Fatal(err)
		}
		if got := <-followed; !bytes.Equal(got, content) {
			t.Errorf("%+v: the follower has %d bytes, or others", c, len(got))
		}
		if !bytes.Equal(stored.Bytes(), content) || cut.written != int64(len(content)) || cut.crc != crcOf(content) {
			t.Errorf("%+v: stored are %d bytes, or others", c, stored.Len())
		}
		if len(cut.slots) != 0 {
			t.Errorf("%+v: %d slots are held behind the end", c, len(cut.slots))
		}
	}
}

// A stream without a byte has no part, and ends.
func TestCutterEmpty(t *testing.T) {
	cut := &cutter{ctx: t.Context(), follower: newFollower(t.Context())}
	if err := cut.end(); err != nil {
		t.Fatal(err)
	}
	if n, err := cut.follower.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%d, %v", n, err)
	}
}

// Whoever waits is woken by the end of the backup, with its cause.
func TestCutterGivenUp(t *testing.T) { synctest.Test(t, givenUp) }

func givenUp(t *testing.T) {
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	buffers := codec.NewBuffers(0, "")
	cut := &cutter{
		ctx:      ctx,
		size:     func(int) (int64, error) { return 10, nil },
		frame:    func(int64) *codec.Frame { return buffers.New() },
		slots:    make(chan struct{}, 1),
		cost:     func(int64) int { return 1 },
		follower: newFollower(ctx),
	}
	wrote, read := make(chan error), make(chan error)
	go func() {
		_, err := cut.Write(make([]byte, 25)) // nobody follows: it waits for a slot
		wrote <- err
	}()
	idle := newFollower(ctx)
	go func() {
		_, err := idle.Read(make([]byte, 1))
		read <- err
	}()
	synctest.Wait()
	cancel(why)
	if err := <-wrote; !errors.Is(err, why) {
		t.Errorf("the writer: %v", err)
	}
	if err := <-read; !errors.Is(err, why) {
		t.Errorf("the reader: %v", err)
	}
	// What nobody will read is given back.
	p := <-cut.follower.parts
	cut.follower.parts <- p
	cut.free()
	if _, err := p.frame.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("a part is held")
	}
}
