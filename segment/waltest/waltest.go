// Package waltest makes write-ahead log for tests: pages and records with the
// headers, chains and checksums that PostgreSQL would write (see package
// segment for the sources), of any length and the same at every run.
package waltest

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"

	"github.com/walferry/walferry/segment"
)

// Log is a write-ahead log that grows in memory. Set the fields before the
// first record; Timeline may be changed between records, as a promotion does.
// It is not safe for concurrent use.
type Log struct {
	SystemIdentifier uint64
	Size             segment.Size
	Timeline         segment.Timeline
	Magic            uint16 // of the pages; zero: PostgreSQL 15's

	start segment.LSN
	buf   []byte
	prev  segment.LSN
	rng   *rand.Rand
}

// New returns an empty log of timeline 1 that begins at a segment's start.
func New(sysid uint64, size segment.Size, start segment.LSN) *Log {
	return &Log{SystemIdentifier: sysid, Size: size, Timeline: 1, start: size.Start(start), rng: rand.New(rand.NewPCG(sysid, uint64(start)))}
}

// Start returns the LSN of the first byte.
func (l *Log) Start() segment.LSN { return l.start }

// End returns the LSN behind the last byte.
func (l *Log) End() segment.LSN { return l.start + segment.LSN(len(l.buf)) }

// Bytes returns [from, to) of the log. They must not be changed.
func (l *Log) Bytes(from, to segment.LSN) []byte { return l.buf[from-l.start : to-l.start] }

// Segment returns the segment that begins at an LSN, with zeros behind the
// log's end. It is the caller's.
func (l *Log) Segment(at segment.LSN) []byte {
	b := make([]byte, l.Size)
	copy(b, l.buf[at-l.start:])
	return b
}

// Record appends a record with n bytes of data and returns its LSN.
func (l *Log) Record(n int) segment.LSN {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(l.rng.Uint32())
	}
	return l.append(10, 0, data) // RM_HEAP_ID
}

// Fill appends records of 0 to 20,000 bytes until the log reaches an LSN.
func (l *Log) Fill(to segment.LSN) {
	for l.End() < to {
		n := l.rng.IntN(400)
		if l.rng.IntN(20) == 0 {
			n = l.rng.IntN(20000)
		}
		l.Record(n)
	}
}

// Switch appends a segment switch: its record, and zeros to the segment's end.
// It returns the record's LSN.
func (l *Log) Switch() segment.LSN {
	at := l.append(0, 0x40, nil)
	if rest := l.Size.Offset(l.End()); rest != 0 {
		l.buf = append(l.buf, make([]byte, uint64(l.Size)-rest)...)
	}
	return at
}

// Abort appends the first part of a record that is longer than a page, up to
// the end of the page on which it begins, and then, on the next page, what a
// server writes that crashed in the middle of it: the mark that the record
// never went on, and the record that says so. It returns the LSN of the record
// that was given up.
func (l *Log) Abort() segment.LSN {
	prev := l.prev
	at := l.Record(segment.PageSize)
	page := (at | (segment.PageSize - 1)) + 1
	l.buf = l.buf[:page-l.start]
	l.prev = prev
	l.page(0, 0x0008)
	l.append(0, 0xD0, make([]byte, 16)) // XLOG_OVERWRITE_CONTRECORD
	return at
}

func (l *Log) append(rmgr, info byte, data []byte) segment.LSN {
	for len(l.buf)%8 != 0 {
		l.buf = append(l.buf, 0)
	}
	if len(l.buf)%segment.PageSize == 0 {
		l.page(0, 0)
	}
	at := l.End()
	le := binary.LittleEndian
	var h [24]byte
	le.PutUint32(h[0:], uint32(len(h)+len(data)))
	le.PutUint32(h[4:], 700)
	le.PutUint64(h[8:], uint64(l.prev))
	h[16], h[17] = info, rmgr
	table := crc32.MakeTable(crc32.Castagnoli)
	le.PutUint32(h[20:], crc32.Update(crc32.Update(0, table, data), table, h[:20]))
	rec := append(h[:], data...)
	for len(rec) > 0 {
		if len(l.buf)%segment.PageSize == 0 {
			l.page(uint32(len(rec)), 0x0001)
		}
		n := min(len(rec), segment.PageSize-len(l.buf)%segment.PageSize)
		l.buf, rec = append(l.buf, rec[:n]...), rec[n:]
	}
	l.prev = at
	return at
}

// page appends a page header.
func (l *Log) page(remaining uint32, info uint16) {
	le := binary.LittleEndian
	at := l.End()
	var h [40]byte
	magic := l.Magic
	if magic == 0 {
		magic = 0xD110
	}
	size := 24
	if l.Size.Offset(at) == 0 {
		size, info = 40, info|0x0002
		le.PutUint64(h[24:], l.SystemIdentifier)
		le.PutUint32(h[32:], uint32(l.Size))
		le.PutUint32(h[36:], segment.PageSize)
	}
	le.PutUint16(h[0:], magic)
	le.PutUint16(h[2:], info)
	le.PutUint32(h[4:], uint32(l.Timeline))
	le.PutUint64(h[8:], uint64(at))
	le.PutUint32(h[16:], remaining)
	l.buf = append(l.buf, h[:size]...)
}
