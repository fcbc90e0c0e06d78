package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/walferry/walferry/segment"
)

// FuzzCopyData holds the parser against the documentation's words (PostgreSQL
// documentation, Streaming Replication Protocol): XLogData is 'w', three
// 8-byte numbers, and WAL to the end; a keepalive is 'k', two of them, and a byte.
func FuzzCopyData(f *testing.F) {
	f.Add(walData(0x1000000, []byte("data"))[headerSize:])
	f.Add(walData(0, nil)[headerSize:])
	f.Add(walData(1<<64-4, []byte("data"))[headerSize:])
	f.Add(walData(1<<64-5, []byte("data"))[headerSize:])
	for _, n := range []int{0, 1, 17, 18, 19, 24, 25, 26} {
		f.Add(append([]byte{'w'}, make([]byte, n)...))
		f.Add(append([]byte{'k'}, bytes.Repeat([]byte{1}, n)...))
		f.Add(append([]byte{'s'}, make([]byte, n)...))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		// Behind the body stands the next message: it must stay as it is.
		buf := append(slices.Clone(body), "next"...)
		number := func(at int) uint64 { return binary.BigEndian.Uint64(body[at:]) }
		want := Message{}
		switch {
		case len(body) >= 25 && body[0] == 'w' && number(1)+uint64(len(body)-25) >= number(1):
			want = Message{Kind: WALData, Start: segment.LSN(number(1)), ServerEnd: segment.LSN(number(9)), Data: body[25:]}
		case len(body) == 18 && body[0] == 'k':
			want = Message{Kind: Keepalive, ServerEnd: segment.LSN(number(1)), ReplyRequested: body[17] != 0}
		}
		var m Message
		err := parseCopyData(buf[:len(body)], &m)
		if want.Kind == 0 {
			if !errors.Is(err, ErrProtocol) || m.Kind != 0 {
				t.Errorf("%q: %+v, %v", body, m, err)
			}
			return
		}
		if err != nil || m.Kind != want.Kind || m.Start != want.Start || m.ServerEnd != want.ServerEnd ||
			m.ReplyRequested != want.ReplyRequested || !bytes.Equal(m.Data, want.Data) {
			t.Errorf("%q: %+v, %v, want %+v", body, m, err, want)
		}
		if m.Kind == WALData && append(m.Data, 'x') != nil && string(buf[len(body):]) != "next" {
			t.Error("the data's room reaches into the next message")
		}
	})
}

// FuzzStreamMessages holds what a stream hands over against the same bytes read
// in one go: whatever the pieces in which they come, and however long a batch
// is kept, every message up to the first that is wrong, and nothing behind it.
func FuzzStreamMessages(f *testing.F) {
	good := append(walData(0x1000000, bytes.Repeat([]byte("wal"), 100)), message('k', make([]byte, 17)...)...)
	large := append(walData(0x2000000, make([]byte, batchSize)), walData(0x2000000+batchSize, []byte("behind"))...)
	var row []byte
	for i := range 50 {
		row = append(row, walData(segment.LSN(0x1000000+i*8), bytes.Repeat([]byte{byte(i)}, i*i*20))...)
	}
	for _, size := range []int{100, 1000, 10_000, 70_000} {
		f.Add(row, size)
	}
	f.Add(good, 1)
	f.Add(append(slices.Clone(good), good[:40]...), 7)
	f.Add(append(large, good...), 100_000)
	f.Add(append(slices.Clone(good), append(message('d', 'x'), good...)...), 64)
	f.Add(append(slices.Clone(good), append(message('c'), message('C', 0)...)...), 5)
	f.Add(append(slices.Clone(good), append([]byte{'d', 0, 0, 0, 3}, good...)...), 1000)
	f.Add(append(slices.Clone(good), append(message('N', 'x'), good...)...), 6)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		s := pieceStream(slices.Clone(in), max(size, 1))
		var kept []*Batch
		var got []Message
		look := func() { // at the oldest batch, as late as we can afford
			for _, m := range kept[0].Messages {
				m.Data = slices.Clone(m.Data)
				got = append(got, m)
			}
			kept[0].Release()
			kept = kept[1:]
		}
		for b := range s.Batches() {
			if kept = append(kept, b); len(kept) > 8 {
				look()
			}
		}
		for len(kept) > 0 {
			look()
		}
		want, wrong := inOneGo(in)
		if len(got) != len(want) {
			t.Fatalf("%d messages, want %d", len(got), len(want))
		}
		for i, w := range want {
			if g := got[i]; g.Kind != w.Kind || g.Start != w.Start || g.ServerEnd != w.ServerEnd || g.ReplyRequested != w.ReplyRequested || !bytes.Equal(g.Data, w.Data) {
				t.Errorf("message %d is %+v, want %+v", i, g, w)
			}
		}
		if wrong != nil && !errors.Is(s.Err(), wrong) {
			t.Errorf("the stream ended by %v, want %v", s.Err(), wrong)
		}
	})
}

// inOneGo reads messages up to the server's CopyDone, the end of the bytes, or
// the first that is wrong. wrong is why, nil where other tests know it better.
func inOneGo(in []byte) (all []Message, wrong error) {
	for {
		if len(in) < 5 {
			return all, io.ErrUnexpectedEOF
		}
		length := int(binary.BigEndian.Uint32(in[1:]))
		if length < 4 || length > 4+16<<20 {
			return all, ErrProtocol
		}
		if len(in) < 1+length {
			return all, io.ErrUnexpectedEOF
		}
		kind, body := in[0], in[5:1+length]
		in = in[1+length:]
		switch kind {
		case 'd':
			var m Message
			if err := parseCopyData(body, &m); err != nil {
				return all, ErrProtocol
			}
			all = append(all, m)
		case 'c':
			return append(all, Message{Kind: CopyDone}), nil
		case 'N', 'S', 'A':
		case 'C', 'E':
			return all, nil
		default:
			return all, ErrProtocol
		}
	}
}
