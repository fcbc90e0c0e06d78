package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/walferry/walferry/segment"
)

// message builds a message of the protocol.
func message(kind byte, body ...byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))
	return append(b, body...)
}

// walData builds an XLogData message.
func walData(start segment.LSN, data []byte) []byte {
	body := []byte{'w'}
	body = binary.BigEndian.AppendUint64(body, uint64(start))
	body = binary.BigEndian.AppendUint64(body, uint64(start)+uint64(len(data)))
	body = binary.BigEndian.AppendUint64(body, 1)
	return message('d', append(body, data...)...)
}

// pieces is a connection from which what is read comes in pieces of a size.
type pieces struct {
	net.Conn
	data []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.data)
	p.data = p.data[n:]
	return n, nil
}

func (p *pieces) Close() error                { return nil }
func (p *pieces) SetDeadline(time.Time) error { return nil }

func pieceStream(data []byte, size int) *Stream {
	p := &pieces{data: data, size: size}
	return newStream(&wire{conn: p, r: p}, "test", 1)
}

// Whatever the pieces in which messages arrive, the same messages come out.
func TestStreamPieces(t *testing.T) {
	var in, want []byte
	at := segment.LSN(0x1000000)
	for i := range 40 {
		data := bytes.Repeat([]byte{byte(i)}, i*i*300)
		in = append(in, walData(at, data)...)
		want = append(want, data...)
		at += segment.LSN(len(data))
	}
	// One that no server with usual pages sends: larger than a batch.
	data := bytes.Repeat([]byte("x"), 3*batchSize)
	in = append(in, walData(at, data)...)
	want = append(want, data...)
	for _, size := range []int{1, 4, 5, 6, 1000, 8192, 100_000, batchSize, batchSize + 1, 1 << 30} {
		s := pieceStream(in, size)
		next := segment.LSN(0x1000000)
		var got []byte
		for b := range s.Batches() {
			for _, m := range b.Messages {
				if m.Start != next {
					t.Fatalf("pieces of %d: message at %v; want %v", size, m.Start, next)
				}
				next += segment.LSN(len(m.Data))
				got = append(got, m.Data...)
			}
			b.Release()
		}
		if !bytes.Equal(got, want) || !errors.Is(s.Err(), io.ErrUnexpectedEOF) {
			t.Errorf("pieces of %d: %d bytes of %d, then %v", size, len(got), len(want), s.Err())
		}
	}
}

// A body's room ends where the next message begins, and once everything was
// taken the whole buffer is read into.
func TestWireRoom(t *testing.T) {
	in := append(message('a', 1, 2, 3), message('b', 4)...)
	var asked []int
	w := &wire{r: readerOf(func(b []byte) (int, error) {
		asked = append(asked, len(b))
		return copy(b, in), nil
	})}
	for range 2 {
		_, body, err := w.next()
		if err != nil {
			t.Fatal(err)
		}
		_ = append(body, 0xFF) // a body is its reader's, what is behind it is not
		if kind, body, err := w.next(); kind != 'b' || len(body) != 1 || err != nil {
			t.Errorf("%q, %v, %v", kind, body, err)
		}
	}
	if len(asked) != 2 || asked[1] != len(w.buf) {
		t.Errorf("reads of %v bytes into %d", asked, len(w.buf))
	}
}

// FuzzStream feeds garbage: it must end in a clear error, never in a panic,
// and data must never lie outside the batch.
func FuzzStream(f *testing.F) {
	f.Add(walData(1, []byte("data")), 3)
	f.Add(append(walData(1<<63, make([]byte, 40)), message('k', make([]byte, 17)...)...), 1)
	f.Add(append(message('c'), message('D', 0, 2, 0, 0, 0, 1, '2', 0, 0, 0, 3, '0', '/', '1')...), 7)
	f.Add(append(message('c'), append(message('T', 0, 0), message('Z', 'I')...)...), 100)
	f.Add(message('E', 'S', 'E', 'R', 'R', 0, 'C', '5', '8', 'P', '0', '1', 0, 0), 2)
	f.Add(message('C', []byte("COPY 0\x00")...), 2)
	f.Add(message('d', 'w'), 1)
	f.Add([]byte{'d', 0xFF, 0xFF, 0xFF, 0xFF}, 1)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		s := pieceStream(in, max(size, 1))
		for b := range s.Batches() {
			for _, m := range b.Messages {
				if m.Kind == 0 || m.Start+segment.LSN(len(m.Data)) < m.Start {
					t.Errorf("message %+v", m)
				}
			}
			b.Release()
		}
		if s.Err() == nil && s.ended == nil && !bytes.Contains(in, []byte("Z")) {
			t.Error("the stream ended without a reason")
		}
	})
}

// FuzzCommand feeds garbage as the answer to a command.
func FuzzCommand(f *testing.F) {
	f.Add(append(message('D', 0, 1, 0, 0, 0, 1, 'x'), message('Z', 'I')...))
	f.Add(message('E', 'S', 'F', 'A', 'T', 'A', 'L', 0, 0))
	f.Add(message('W', 0, 0, 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, call := range []func(*Conn) error{
			func(c *Conn) error { _, err := c.IdentifySystem(t.Context()); return err },
			func(c *Conn) error { _, err := c.TimelineHistory(t.Context(), 2); return err },
			func(c *Conn) error { _, err := c.ReadSlot(t.Context(), "s"); return err },
			func(c *Conn) error {
				s, err := c.StartReplication(t.Context(), "s", segment.Position{Timeline: 1})
				if err == nil {
					return s.Close()
				}
				return err
			},
		} {
			p := &silent{pieces{data: in, size: 4096}}
			c := &Conn{wire: &wire{conn: p, r: p}, version: Version{Num: 150000}}
			_ = call(c) // what it says is all one, as long as it comes back
		}
	})
}

// silent takes what is written.
type silent struct{ pieces }

func (s *silent) Write(b []byte) (int, error) { return len(b), nil }

func TestAppendStatus(t *testing.T) {
	s := Status{Write: 1, Apply: 3}
	b := appendStatus(nil, s)
	if len(b) != statusSize {
		t.Fatalf("%d bytes", len(b))
	}
	kind, total, err := frame(b)
	if kind != 'd' || total != len(b) || err != nil {
		t.Errorf("frame = %q, %d, %v", kind, total, err)
	}
	if f := binary.BigEndian.Uint64(b[headerSize+9:]); f != 0 {
		t.Errorf("a flush LSN of zero went out as %d", f)
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]int{
		"15.18 (Debian 15.18-0+deb12u1)": 150018, "18beta1": 180000, "19devel": 190000, "17rc1": 170000, "14.2": 140002, "9.6.24": 90006,
	} {
		if v, err := parseVersion(text); err != nil || v.Num != want || v.String() != text || v.Major() != want/10000 {
			t.Errorf("parseVersion(%q) = %+v, %v; want %d", text, v, err, want)
		}
	}
	for _, bad := range []string{"", "x", ".5", "99999.1", "15."} {
		if v, err := parseVersion(bad); err == nil {
			t.Errorf("parseVersion(%q) = %+v", bad, v)
		}
	}
}

// endless is a server that sends the same messages for ever.
type endless struct {
	net.Conn
	data []byte
	at   int
}

func (e *endless) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m := copy(b[n:], e.data[e.at:])
		n += m
		e.at = (e.at + m) % len(e.data)
	}
	return n, nil
}

func (e *endless) Write(b []byte) (int, error)      { return len(b), nil }
func (e *endless) Close() error                     { return nil }
func (e *endless) SetWriteDeadline(time.Time) error { return nil }

// Reception allocates nothing for a message, be it small or large.
func BenchmarkStream(b *testing.B) {
	for name, size := range map[string]int{"small": 100, "page": 8192, "large": 128 << 10} {
		b.Run(name, func(b *testing.B) {
			e := &endless{data: walData(0, make([]byte, size))}
			s := newStream(&wire{conn: e, r: e}, "benchmark", 1)
			defer func() { _ = s.Close() }() // endless takes everything
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for n := 0; n < b.N; {
				batch := <-s.Batches()
				n += len(batch.Messages)
				batch.Release()
			}
		})
	}
}
