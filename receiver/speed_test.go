package receiver

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/spool"
)

// hotPath is the stream's loop between a batch and the spool, without a server.
type hotPath struct {
	tb    testing.TB
	sp    *spool.Spool
	st    *streaming
	batch replication.Batch
	data  []byte // of all messages of a batch, one behind the other
	size  int    // of one message
}

// newHotPath takes batches of count messages of size bytes.
func newHotPath(tb testing.TB, count, size int) *hotPath {
	tb.Helper()
	sp, err := spool.Open(disk.OS{}, tb.TempDir(), spool.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := sp.Close(); err != nil {
			tb.Error(err)
		}
	})
	if err := sp.Bind(spool.Identity{SystemIdentifier: 1, SegmentSize: segment.DefaultSize}); err != nil {
		tb.Fatal(err)
	}
	r := New(sp, nil, nil, Options{})
	r.size = segment.DefaultSize
	r.pos = segment.Position{Timeline: 1, LSN: segment.LSN(segment.DefaultSize)}
	h := &hotPath{tb: tb, sp: sp, data: make([]byte, count*size), size: size,
		st: &streaming{r: r, cursor: r.pos.LSN, flows: true, disk: &syncer{}}}
	h.batch.Messages = make([]replication.Message, count)
	return h
}

// take works on one batch that goes on where the last one ended.
func (h *hotPath) take() {
	at := h.st.cursor
	h.head(at)
	for i := range h.batch.Messages {
		end := at + segment.LSN(h.size)
		h.batch.Messages[i] = replication.Message{Kind: replication.WALData, Start: at, ServerEnd: end, Data: h.data[i*h.size:][:h.size]}
		at = end
	}
	h.st.batch, h.st.message, h.st.rest = &h.batch, 0, nil
	messages := h.batch.Messages
	if done, err := h.st.consume(h.tb.Context()); done || err != nil || h.st.batch != nil {
		h.tb.Fatalf("consume: done %v, paused %v, %v", done, h.st.batch != nil, err)
	}
	h.batch.Messages = messages // given back, and ours again
}

// head puts the headers of pages into the data that begins at an LSN.
func (h *hotPath) head(at segment.LSN) {
	le := binary.LittleEndian
	clear(h.data[:min(len(h.data), 2*pageSize)])
	for place := -int(at % pageSize); place < len(h.data); place += pageSize {
		var header [40]byte
		page := at + segment.LSN(place)
		le.PutUint16(header[0:], 0xD110)
		le.PutUint32(header[4:], 1)
		le.PutUint64(header[8:], uint64(page))
		if segment.DefaultSize.Offset(page) == 0 {
			header[2] = 2 // XLP_LONG_HEADER
			le.PutUint32(header[32:], uint32(segment.DefaultSize))
			le.PutUint32(header[36:], pageSize)
		}
		n := 24
		if header[2] != 0 {
			n = 40
		}
		for i := max(0, -place); i < n && place+i < len(h.data); i++ {
			h.data[place+i] = header[i]
		}
	}
}

// clear does what syncer and uploader do with segments that are whole.
func (h *hotPath) clear() {
	for _, g := range h.st.disk.queue {
		taken, err := h.sp.Take(h.tb.Context())
		if err := errors.Join(err, g.Seal(), h.sp.Drop(taken)); err != nil {
			h.tb.Fatal(err)
		}
	}
	h.st.disk.queue = h.st.disk.queue[:0]
}

// TestNoAllocationPerMessage: between a batch and the file nothing is
// allocated, however small the messages are.
func TestNoAllocationPerMessage(t *testing.T) {
	h := newHotPath(t, 50, 100)
	h.take() // opens the segment
	if n := testing.AllocsPerRun(200, h.take); n != 0 {
		t.Errorf("%v allocations for a batch of 50 messages", n)
	}
}

// BenchmarkConsume is reception behind the connection: checks, one write into
// the file, the positions. What a segment costs once is in it.
func BenchmarkConsume(b *testing.B) {
	for _, c := range []struct {
		name        string
		count, size int
	}{{"small", 1000, 128}, {"page", 16, 8 << 10}, {"large", 1, 128 << 10}} {
		b.Run(c.name, func(b *testing.B) {
			h := newHotPath(b, c.count, c.size)
			b.SetBytes(int64(c.count * c.size))
			b.ReportAllocs()
			for b.Loop() {
				h.take()
				h.clear()
			}
		})
	}
}
