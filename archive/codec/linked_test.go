package codec

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/pierrec/lz4/v4"
)

// The frames of PostgreSQL's server go another way than all others. Both ways
// must come to the same, however much is read at a time.
func TestLinked(t *testing.T) {
	for _, name := range []string{"server.lz4", "two-server.lz4"} {
		stored := golden(t, name)
		want, err := io.ReadAll(lz4.NewReader(bytes.NewReader(stored)))
		if err != nil {
			t.Fatal(err)
		}
		for _, piece := range []int{1, 1000, lz4History, linkedBlock - 1, linkedBlock, linkedBlock + 1, 1 << 20} {
			r, err := NewReader(bytes.NewReader(stored), ".lz4")
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := r.(*decoder).content.(*linkedReader); !ok {
				t.Fatalf("%s is read by %T", name, r.(*decoder).content)
			}
			var got []byte
			buf := make([]byte, piece)
			for err == nil {
				var n int
				n, err = r.Read(buf)
				got = append(got, buf[:n]...)
				// What was read is the reader's: it may change it.
				clear(buf)
			}
			if !errors.Is(err, io.EOF) || !bytes.Equal(got, want) {
				t.Errorf("%s, %d bytes at a time: %d bytes of %d, %v", name, piece, len(got), len(want), err)
			}
		}
		r, err := NewReader(iotest.OneByteReader(bytes.NewReader(stored)), ".lz4")
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The vector is worth something only if its second block refers to the first.
func TestLinkedBlocksAreLinked(t *testing.T) {
	r, err := newLinkedReader(bufio.NewReader(bytes.NewReader(golden(t, "server.lz4"))))
	if err != nil || r == nil {
		t.Fatal(err)
	}
	buf := make([]byte, linkedBlock)
	if n, err := r.Read(buf); n != linkedBlock || err != nil {
		t.Fatalf("the first block: %d bytes, %v", n, err)
	}
	clear(r.history)
	n, err := r.Read(buf)
	if err == nil && bytes.Equal(buf[:n], append(golden(t, "wal"), golden(t, "wal")...)[linkedBlock:]) {
		t.Error("the second block decodes without the first")
	}
}

// Blocks of all sizes, stored ones among them, and what no encoder writes.
func TestLinkedBlocks(t *testing.T) {
	frame := func(blocks ...[]byte) []byte {
		b := []byte(linkedHeader)
		for _, p := range blocks {
			b = binary.LittleEndian.AppendUint32(b, uint32(len(p))|lz4Stored)
			b = append(b, p...)
		}
		return binary.LittleEndian.AppendUint32(b, 0)
	}
	content := walLike(600_000, 20)
	for _, sizes := range [][]int{{600_000 % linkedBlock}, {1, 2, 3}, {lz4History - 1, 1, 1, lz4History}, {linkedBlock, linkedBlock}, {100, lz4History + 1, 7}} {
		var blocks [][]byte
		at := 0
		for _, n := range sizes {
			blocks = append(blocks, content[at:at+n])
			at += n
		}
		got, err := decode(frame(blocks...), ".lz4")
		if err != nil || !bytes.Equal(got, content[:at]) {
			t.Errorf("blocks of %v: %d bytes, %v", sizes, len(got), err)
		}
		r, err := newLinkedReader(bufio.NewReader(bytes.NewReader(frame(blocks...))))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.history, content[max(0, at-lz4History):at]) {
			t.Errorf("blocks of %v: %d bytes are remembered, or other ones", sizes, len(r.history))
		}
	}
	whole := frame(content[:1000])
	for what, bad := range map[string][]byte{
		"a block that is too large": append([]byte(linkedHeader), 1, 0, 4, 0x80),
		"garbage in a block":        append([]byte(linkedHeader), 3, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0),
		"a byte behind the end":     append(bytes.Clone(whole), 7),
		"no end mark":               whole[:len(whole)-4],
		"half an end mark":          whole[:len(whole)-2],
		"a cut block":               whole[:500],
		"a header alone":            []byte(linkedHeader),
		"half a header":             []byte(linkedHeader[:5]),
	} {
		if got, err := decode(bad, ".lz4"); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %d bytes, %v", what, len(got), err)
		}
	}
}
