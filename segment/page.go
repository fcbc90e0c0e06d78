package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// PageSize is the size of a WAL page in bytes: XLOG_BLCKSZ of every packaged
// PostgreSQL. Servers built with another size are refused.
const PageSize = 8192

// What PageChecker and VerifiedRecords find, for errors.Is.
var (
	// ErrForeignCluster: the system identifier is another cluster's.
	ErrForeignCluster = errors.New("WAL of another cluster")
	// ErrSegmentSize: the cluster has, or the file has, another segment size.
	ErrSegmentSize = errors.New("wrong WAL segment size")
	// ErrPage: a page is not the one that belongs there.
	ErrPage = errors.New("invalid WAL page")
)

// Lengths of the page headers in bytes, their xlp_info bits, and the magic
// numbers (PostgreSQL: src/include/access/xlog_internal.h). The magic is
// 0xD106 in 13, D10D in 14, D110 in 15, D113 in 16, D116 in 17, D118 in 18.
const (
	shortHeader = 24
	longHeader  = 40

	infoContRecord  = 0x0001 // the page begins with the rest of a record
	infoLong        = 0x0002 // the header is a long one
	infoOverwritten = 0x0008 // the record that should go on here never did
	infoAll         = 0x000F

	magicFamily = 0xD100 // all versions so far differ in the lower byte only
	newestMagic = 0xD118
)

// pageHeader is XLogPageHeaderData.
type pageHeader struct {
	Magic     uint16
	Info      uint16
	Timeline  Timeline
	PageAddr  LSN
	Remaining uint32 // bytes of a record that began on an earlier page
}

func parsePageHeader(b []byte) pageHeader {
	le := binary.LittleEndian
	return pageHeader{le.Uint16(b), le.Uint16(b[2:]), Timeline(le.Uint32(b[4:])), LSN(le.Uint64(b[8:])), le.Uint32(b[16:])}
}

// LongHeader is the header of a segment's first page, XLogLongPageHeaderData.
type LongHeader struct {
	Magic            uint16
	Info             uint16
	Timeline         Timeline // of the page: an ancestor's when the segment holds the switchpoint
	PageAddr         LSN      // of the segment's first byte
	Remaining        uint32   // bytes at the front that belong to a record of an earlier segment
	SystemIdentifier uint64
	SegmentSize      Size
	BlockSize        uint32
}

// ParseLongHeader reads the header of a segment's first page from the first
// 40 bytes, or more, of the segment. It checks what must be so in every
// cluster: magic number, the mark of a long header, segment and page size.
// Errors match ErrPage. WAL is in the server's byte order; only little-endian
// servers are supported.
func ParseLongHeader(page []byte) (LongHeader, error) {
	if len(page) < longHeader {
		return LongHeader{}, fmt.Errorf("%w: %d bytes are less than a header", ErrPage, len(page))
	}
	p := parsePageHeader(page)
	le := binary.LittleEndian
	h := LongHeader{
		Magic: p.Magic, Info: p.Info, Timeline: p.Timeline, PageAddr: p.PageAddr, Remaining: p.Remaining,
		SystemIdentifier: le.Uint64(page[24:]), SegmentSize: Size(le.Uint32(page[32:])), BlockSize: le.Uint32(page[36:]),
	}
	switch {
	case h.Magic&0xFF == magicFamily>>8 && h.Magic&0xFF00 != magicFamily:
		return LongHeader{}, fmt.Errorf("%w: written by a big-endian server", ErrPage)
	case h.Magic&0xFF00 != magicFamily:
		return LongHeader{}, fmt.Errorf("%w: magic number %04X is not that of a WAL page", ErrPage, h.Magic)
	case h.Info&infoLong == 0:
		return LongHeader{}, fmt.Errorf("%w: xlp_info %04X is not that of a segment's first page", ErrPage, h.Info)
	case h.SegmentSize.Check() != nil:
		return LongHeader{}, fmt.Errorf("%w: %w", ErrPage, h.SegmentSize.Check())
	case h.BlockSize != PageSize:
		return LongHeader{}, fmt.Errorf("%w: WAL page size %d, only %d is supported", ErrPage, h.BlockSize, PageSize)
	}
	return h, nil
}

// PageRules says which segment the pages must belong to.
type PageRules struct {
	Name             Name
	Size             Size
	SystemIdentifier uint64 // zero: not checked
	// History is that of Name.Timeline. nil: a page's timeline must only be
	// one that can be an ancestor. Else it must be the timeline itself, or an
	// ancestor in front of its switchpoint.
	History *History
}

// pageRun checks the headers of a segment's pages one after the other.
type pageRun struct {
	PageRules
	magic    uint16   // of the segment's first page
	timeline Timeline // of the page before
}

// first checks a segment's first page, of which b holds the header.
func (r *pageRun) first(b []byte, at LSN) (pageHeader, error) {
	h, err := ParseLongHeader(b)
	if err != nil {
		return pageHeader{}, fmt.Errorf("page at %s: %w", at, err)
	}
	if r.SystemIdentifier != 0 && h.SystemIdentifier != r.SystemIdentifier {
		return pageHeader{}, fmt.Errorf("page at %s: %w: system identifier %d, expected %d", at, ErrForeignCluster, h.SystemIdentifier, r.SystemIdentifier)
	}
	if h.SegmentSize != r.Size {
		return pageHeader{}, fmt.Errorf("page at %s: %w: %s, expected %s", at, ErrSegmentSize, h.SegmentSize, r.Size)
	}
	r.magic = h.Magic
	return r.check(parsePageHeader(b), at)
}

// next checks a page that is not the first.
func (r *pageRun) next(b []byte, at LSN) (pageHeader, error) {
	h := parsePageHeader(b)
	switch {
	case h.Magic != r.magic:
		return pageHeader{}, fmt.Errorf("page at %s: %w: magic number %04X, the segment's first page has %04X", at, ErrPage, h.Magic, r.magic)
	case h.Info&infoLong != 0:
		return pageHeader{}, fmt.Errorf("page at %s: %w: header of a segment's first page", at, ErrPage)
	}
	return r.check(h, at)
}

// check holds a page's header against its address, and its timeline against
// the page before and the history.
func (r *pageRun) check(h pageHeader, at LSN) (pageHeader, error) {
	switch {
	case h.PageAddr != at:
		return h, fmt.Errorf("page at %s: %w: page address %s", at, ErrPage, h.PageAddr)
	case h.Info&^infoAll != 0 && h.Magic <= newestMagic: // a later version may have further bits
		return h, fmt.Errorf("page at %s: %w: xlp_info %04X", at, ErrPage, h.Info)
	case h.Timeline == 0 || h.Timeline > r.Name.Timeline:
		return h, fmt.Errorf("page at %s: %w: timeline %d in a segment of timeline %d", at, ErrPage, h.Timeline, r.Name.Timeline)
	case h.Timeline < r.timeline:
		return h, fmt.Errorf("page at %s: %w: timeline %d behind a page of timeline %d", at, ErrPage, h.Timeline, r.timeline)
	}
	if r.History != nil && h.Timeline != r.Name.Timeline {
		end, ok := r.History.Switchpoint(h.Timeline)
		switch {
		case !ok:
			return h, fmt.Errorf("page at %s: %w: timeline %d is no ancestor of timeline %d", at, ErrPage, h.Timeline, r.Name.Timeline)
		case at >= end:
			return h, fmt.Errorf("page at %s: %w: timeline %d, which ended at %s", at, ErrPage, h.Timeline, end)
		}
	}
	r.timeline = h.Timeline
	return h, nil
}

// PageChecker checks the WAL pages of one whole segment as its bytes flow by:
// every page's header, and that the segment has its full size. Pages of zeros
// are legal behind the last used one, up to the segment's end, as a segment
// switch and padding leave them (PostgreSQL: CopyXLogRecordToWAL in
// src/backend/access/transam/xlog.c clears also the headers of such pages).
// What a page holds behind its header is not looked at.
//
// It is an io.WriteCloser, and not safe for concurrent use. It keeps nothing
// of what it is given, and does not allocate while pages are right.
type PageChecker struct {
	run    pageRun
	done   uint64 // bytes seen
	zeros  bool   // in the tail of zeros
	header [longHeader]byte
	err    error
}

// NewPageChecker returns a checker for the segment that r describes.
func NewPageChecker(r PageRules) *PageChecker { return &PageChecker{run: pageRun{PageRules: r}} }

// Write checks the next bytes of the segment. The error names the first page
// that is wrong, by its LSN, and matches ErrForeignCluster, ErrSegmentSize
// (also for more bytes than a segment has) or ErrPage; it is final. Before the
// end of a page's header has come, nothing is said of the page.
func (c *PageChecker) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) && c.err == nil {
		if c.done == uint64(c.run.Size) {
			c.err = fmt.Errorf("segment %s: %w: more than %d bytes", c.run.Name, ErrSegmentSize, uint64(c.run.Size))
			break
		}
		n += c.step(p[n:])
	}
	return n, c.err
}

// step checks the bytes of p that belong to the current page's header, or the
// others of the page, and returns how many these were.
func (c *PageChecker) step(p []byte) int {
	inPage := int(c.done % PageSize)
	size := shortHeader
	if c.done < PageSize {
		size = longHeader
	}
	at := c.run.Name.Start(c.run.Size) + LSN(c.done)
	if c.zeros {
		p = p[:min(len(p), PageSize-inPage)]
		if !allZero(p) {
			c.err = fmt.Errorf("page at %s: %w: not empty, behind an empty one", at-LSN(inPage), ErrPage)
			return 0
		}
		c.done += uint64(len(p))
		return len(p)
	}
	if inPage >= size {
		n := min(len(p), PageSize-inPage)
		c.done += uint64(n)
		return n
	}
	n := copy(c.header[inPage:size], p)
	c.done += uint64(n)
	if inPage+n < size {
		return n
	}
	header, at := c.header[:size], at-LSN(inPage)
	switch {
	case at == c.run.Name.Start(c.run.Size):
		_, c.err = c.run.first(header, at)
	case allZero(header):
		c.zeros = true
	default:
		_, c.err = c.run.next(header, at)
	}
	return n
}

// Close returns an error, matching ErrSegmentSize, unless exactly a segment's
// bytes were seen, or the error that Write returned.
func (c *PageChecker) Close() error {
	if c.err == nil && c.done != uint64(c.run.Size) {
		c.err = fmt.Errorf("segment %s: %w: %d bytes, expected %d", c.run.Name, ErrSegmentSize, c.done, uint64(c.run.Size))
	}
	return c.err
}

// allZero reports whether b holds nothing but zeros.
func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
