package fakepg

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/walferry/walferry/segment"
)

const (
	pageSize       = 8192
	shortHeader    = 24
	longHeader     = 40
	recordHeader   = 24
	infoNoop       = 0x20 // XLOG_NOOP of resource manager XLOG
	infoSwitch     = 0x40 // XLOG_SWITCH
	firstIsContrec = 1
	longHeaderFlag = 2
)

// WAL is a cluster's write-ahead log in memory: timelines of sound pages and
// records with random payloads. It is safe for concurrent use.
type WAL struct {
	systemIdentifier uint64
	size             segment.Size
	magic            uint16

	mu      sync.Mutex
	rand    *rand.Rand
	lines   map[segment.Timeline]*line
	newest  segment.Timeline
	changed chan struct{}
}

// line is one timeline: its bytes from base on, ancestors' included.
type line struct {
	timeline segment.Timeline
	base     segment.LSN
	buf      []byte
	records  []segment.LSN // where each begins
	history  segment.History
}

// NewWAL makes the log of a fresh cluster: timeline 1, beginning at the
// cluster's second segment as initdb leaves it, with one record in it. Logs of
// different seeds hold different bytes.
func NewWAL(systemIdentifier uint64, size segment.Size, seed uint64) *WAL {
	w := &WAL{
		systemIdentifier: systemIdentifier,
		size:             size,
		magic:            0xD110,
		rand:             rand.New(rand.NewPCG(seed, 0)),
		lines:            map[segment.Timeline]*line{1: {timeline: 1, base: segment.LSN(size), history: segment.History{Timeline: 1}}},
		newest:           1,
		changed:          make(chan struct{}),
	}
	w.Append(1, 100)
	return w
}

// Size returns the segment size.
func (w *WAL) Size() segment.Size { return w.size }

// Append writes one record with a payload of n bytes on timeline t and returns
// the LSN behind it.
func (w *WAL) Append(t segment.Timeline, n int) segment.LSN {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.append(t, infoNoop, n)
}

// FillTo writes records on timeline t until its end is at or behind to.
func (w *WAL) FillTo(t segment.Timeline, to segment.LSN) segment.LSN {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.lines[t]
	end := l.end()
	if end < to {
		// Once, and not again and again: the race detector looks at each byte
		// that is moved.
		l.buf = slices.Grow(l.buf, int(to-end)+pageSize)
	}
	for end < to {
		end = w.append(t, infoNoop, w.rand.IntN(3000))
	}
	return end
}

// SwitchSegment ends the current segment of timeline t as pg_switch_wal does:
// a switch record, and zeros up to the segment's end, which is returned.
func (w *WAL) SwitchSegment(t segment.Timeline) segment.LSN {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.append(t, infoSwitch, -1)
	l := w.lines[t]
	if pad := w.size.Offset(l.end()); pad != 0 {
		l.buf = append(l.buf, make([]byte, uint64(w.size)-pad)...)
	}
	return l.end()
}

// Fork ends timeline t at an LSN, which must be a record's end, and begins the
// next one there. What t holds beyond stays t's.
func (w *WAL) Fork(t segment.Timeline, at segment.LSN) segment.Timeline {
	w.mu.Lock()
	defer w.mu.Unlock()
	parent := w.lines[t]
	w.newest++
	n, _ := slices.BinarySearch(parent.records, at)
	child := &line{
		timeline: w.newest,
		base:     parent.base,
		buf:      append([]byte{}, parent.buf[:at-parent.base]...),
		records:  slices.Clone(parent.records[:n]),
		history: segment.History{
			Timeline:  w.newest,
			Ancestors: append(append([]segment.Switch{}, parent.history.Ancestors...), segment.Switch{Timeline: t, At: at, Reason: "no recovery target specified"}),
		},
	}
	w.lines[w.newest] = child
	w.append(w.newest, infoNoop, 50) // where PostgreSQL has its end-of-recovery record
	return w.newest
}

// End returns where timeline t's WAL ends.
func (w *WAL) End(t segment.Timeline) segment.LSN {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines[t].end()
}

// Newest returns the newest timeline.
func (w *WAL) Newest() segment.Timeline {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.newest
}

// History returns what timeline t descends from.
func (w *WAL) History(t segment.Timeline) (segment.History, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ok := w.lines[t]
	if !ok {
		return segment.History{}, false
	}
	return l.history, true
}

// HistoryFile returns the content of timeline t's history file.
func (w *WAL) HistoryFile(t segment.Timeline) ([]byte, bool) {
	h, ok := w.History(t)
	if !ok || len(h.Ancestors) == 0 {
		return nil, false
	}
	var b []byte
	for _, s := range h.Ancestors {
		b = fmt.Appendf(b, "%d\t%s\t%s\n", s.Timeline, s.At, s.Reason)
	}
	return b, true
}

// Bytes returns a copy of timeline t's bytes [from, to), cut at the end of
// what there is.
func (w *WAL) Bytes(t segment.Timeline, from, to segment.LSN) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.lines[t]
	to = min(to, l.end())
	if from < l.base || from >= to {
		return nil
	}
	return append([]byte{}, l.buf[from-l.base:to-l.base]...)
}

// Segment returns the bytes of a segment, with zeros behind the end of the
// WAL: the file that a server would have.
func (w *WAL) Segment(n segment.Name) []byte {
	b := w.Bytes(n.Timeline, n.Start(w.size), n.End(w.size))
	return append(b, make([]byte, int(w.size)-len(b))...)
}

// Changed returns a channel that is closed when WAL is added.
func (w *WAL) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (l *line) end() segment.LSN { return l.base + segment.LSN(len(l.buf)) }

// append writes a record; n < 0 is one without a payload. It needs mu.
func (w *WAL) append(t segment.Timeline, info byte, n int) segment.LSN {
	rec := make([]byte, recordHeader, dataEnd(n))
	switch {
	case n < 0:
	case n <= 255:
		rec = append(rec, 255, byte(n)) // XLR_BLOCK_ID_DATA_SHORT
	default:
		rec = append(rec, 254) // XLR_BLOCK_ID_DATA_LONG
		rec = binary.LittleEndian.AppendUint32(rec, uint32(n))
	}
	for len(rec)+8 <= cap(rec) {
		rec = binary.LittleEndian.AppendUint64(rec, w.rand.Uint64())
	}
	for range dataEnd(n) - len(rec) {
		rec = append(rec, byte(w.rand.Uint32()))
	}
	l := w.lines[t]
	table := crc32.MakeTable(crc32.Castagnoli) // made once by the library
	binary.LittleEndian.PutUint32(rec, uint32(len(rec)))
	if n := len(l.records); n > 0 {
		binary.LittleEndian.PutUint64(rec[8:], uint64(l.records[n-1]))
	}
	rec[16] = info
	crc := crc32.Update(crc32.Checksum(rec[recordHeader:], table), table, rec[:20])
	binary.LittleEndian.PutUint32(rec[20:], crc)

	for first := true; len(rec) > 0; first = false {
		if l.end()%pageSize == 0 {
			rem := len(rec)
			if first {
				rem = 0
			}
			w.page(l, rem)
		}
		if first {
			l.records = append(l.records, l.end())
		}
		n := min(len(rec), int(pageSize-l.end()%pageSize))
		l.buf = append(l.buf, rec[:n]...)
		rec = rec[n:]
	}
	for l.end()%8 != 0 {
		l.buf = append(l.buf, 0)
	}
	close(w.changed)
	w.changed = make(chan struct{})
	return l.end()
}

// dataEnd is the length of a record with n bytes of payload.
func dataEnd(n int) int {
	switch {
	case n < 0:
		return recordHeader
	case n <= 255:
		return recordHeader + 2 + n
	}
	return recordHeader + 5 + n
}

// page writes a page header; rem bytes of a record go on behind it.
func (w *WAL) page(l *line, rem int) {
	at := l.end()
	h := make([]byte, shortHeader, longHeader)
	info := uint16(0)
	if rem > 0 {
		info |= firstIsContrec
	}
	if w.size.Offset(at) == 0 {
		info |= longHeaderFlag
	}
	binary.LittleEndian.PutUint16(h, w.magic)
	binary.LittleEndian.PutUint16(h[2:], info)
	binary.LittleEndian.PutUint32(h[4:], uint32(l.timeline))
	binary.LittleEndian.PutUint64(h[8:], uint64(at))
	binary.LittleEndian.PutUint32(h[16:], uint32(rem))
	if info&longHeaderFlag != 0 {
		h = binary.LittleEndian.AppendUint64(h, w.systemIdentifier)
		h = binary.LittleEndian.AppendUint32(h, uint32(w.size))
		h = binary.LittleEndian.AppendUint32(h, pageSize)
	}
	l.buf = append(l.buf, h...)
}
