package basebackup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
)

// What is written comes out, whatever the sizes of the writes and however it is
// read, from one pipe after the other with the same memory.
func TestPipe(t *testing.T) {
	shared := newPieces(pieceSize)
	for i, size := range []int{0, 1, pieceSize, pieceSize + 1, 7*pieceSize + 512, 3 * pieceSize} {
		content := pages(size, byte(i))
		p := newPipe(t.Context(), shared)
		read := make(chan []byte)
		go func() {
			var got []byte
			var err error
			if i%2 == 0 {
				got, err = io.ReadAll(p)
			} else {
				for {
					var piece []byte
					if piece, err = p.next(); err != nil {
						break
					}
					if len(piece) == 0 || len(piece) != pieceSize && len(got)+len(piece) != size {
						t.Errorf("a piece of %d bytes behind %d of %d", len(piece), len(got), size)
					}
					got = append(got, piece...)
					clear(piece) // the reader's until it goes back
					p.back(piece)
				}
			}
			if err != nil && !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			read <- got
		}()
		for rest := content; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(100_000))
			if m, err := p.Write(rest[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
		}
		if err := p.end(); err != nil {
			t.Fatal(err)
		}
		if got := <-read; !bytes.Equal(got, content) {
			t.Errorf("%d bytes were written; %d, or others, came out", size, len(got))
		}
		if shared.made > maxPieces || len(shared.free) != shared.made {
			t.Errorf("%d pieces were made, %d are free behind the end", shared.made, len(shared.free))
		}
	}
}

// Whoever waits is woken by the end of the backup, with its cause.
func TestPipeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		wrote, read := make(chan error), make(chan error)
		go func() {
			_, err := newPipe(ctx, newPieces(pieceSize)).Write(make([]byte, (maxPieces+1)*pieceSize)) // nobody reads
			wrote <- err
		}()
		go func() {
			_, err := newPipe(ctx, newPieces(pieceSize)).next()
			read <- err
		}()
		synctest.Wait()
		cancel(why)
		for _, c := range []chan error{wrote, read} {
			if err := <-c; !errors.Is(err, why) {
				t.Error(err)
			}
		}
	})
}

// Who receives encodes only what is to become lz4 here, over a Unix socket.
func TestReceiverEncodes(t *testing.T) {
	for _, c := range []struct {
		text  string
		local bool
		want  bool
	}{
		{"client-lz4", true, true}, {"client-lz4:9", true, true},
		{"client-lz4", false, false}, {"client-zstd", true, false}, {"none", true, false}, {"server-lz4", true, false},
	} {
		server := good()
		server.local = c.local
		asked, err := ParseCompression(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := (&taking{asked: asked, server: scriptConn{server}}).receiverEncodes(); got != c.want {
			t.Errorf("%s, a Unix socket %v: %v", c.text, c.local, got)
		}
	}
}
