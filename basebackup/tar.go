package basebackup

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// blockSize is a tar file's unit in bytes. Headers are one block; contents
// begin at a block's beginning.
const blockSize = 512

// The places of a header's fields (POSIX, ustar interchange format; PostgreSQL
// writes it in tarCreateHeader, src/port/tar.c).
const (
	nameAt, nameSize     = 0, 100
	sizeAt, sizeSize     = 124, 12
	sumAt, sumSize       = 148, 8
	typeAt               = 156
	magicAt, magic       = 257, "ustar\x0000"
	prefixAt, prefixSize = 345, 155
)

// errTar: what the server sent is not the tar file that a PostgreSQL server
// writes.
var errTar = errors.New("invalid tar file")

// entry is what a header says.
type entry struct {
	name string // without a ./ before it and the slash that ends a directory's
	dir  bool
	size int64 // of the content, bytes
}

// parseHeader reads a header block. Regular files and directories only: with
// a tablespace map the server sends nothing else, and a backup that held
// anything else would not be a backup that WAL-G restores.
func parseHeader(h []byte) (entry, error) {
	if string(h[magicAt:magicAt+len(magic)]) != magic {
		return entry{}, fmt.Errorf("%w: a block that is no header where one is due", errTar)
	}
	sum, ok := parseNumber(h[sumAt : sumAt+sumSize])
	if !ok || sum != headerSum(h) {
		return entry{}, fmt.Errorf("%w: a header with a wrong checksum", errTar)
	}
	var e entry
	e.name = field(h[nameAt : nameAt+nameSize])
	if prefix := field(h[prefixAt : prefixAt+prefixSize]); prefix != "" {
		e.name = prefix + "/" + e.name
	}
	switch kind := h[typeAt]; kind {
	case '0', 0:
	case '5':
		e.dir = true
		e.name = strings.TrimSuffix(e.name, "/")
	default:
		return entry{}, fmt.Errorf("%w: %q is neither a file nor a directory (type %q)", errTar, e.name, kind)
	}
	// The server calls one of its entries "./pg_wal/archive_status" (sendDir in
	// src/backend/backup/basebackup.c).
	e.name = strings.TrimPrefix(e.name, "./")
	for part := range strings.SplitSeq(e.name, "/") {
		if part == "" || part == "." || part == ".." {
			return entry{}, fmt.Errorf("%w: an entry is called %q", errTar, e.name)
		}
	}
	if e.size, ok = parseNumber(h[sizeAt : sizeAt+sizeSize]); !ok || e.dir && e.size != 0 {
		return entry{}, fmt.Errorf("%w: %q has no valid size", errTar, e.name)
	}
	return e, nil
}

// field returns the text of a field that ends with its first NUL, or is full.
func field(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// parseNumber reads octal digits, with blanks before and blanks or NULs behind
// them, or the binary form that numbers too large for them have (PostgreSQL:
// print_tar_number in src/port/tar.c).
func parseNumber(b []byte) (int64, bool) {
	if b[0]&0x80 != 0 {
		n := int64(b[0] & 0x7F)
		for _, d := range b[1:] {
			if n >= 1<<55 {
				return 0, false
			}
			n = n<<8 | int64(d)
		}
		return n, true
	}
	b = bytes.TrimLeft(bytes.TrimRight(b, " \x00"), " ")
	n := int64(0)
	for _, d := range b {
		if d < '0' || d > '7' {
			return 0, false
		}
		n = n<<3 | int64(d-'0') // 12 digits at most
	}
	return n, len(b) > 0
}

// headerSum is a header's checksum: of its bytes, with blanks for the
// checksum itself.
func headerSum(h []byte) int64 {
	sum := int64(sumSize * ' ')
	for i, b := range h[:blockSize] {
		if i < sumAt || i >= sumAt+sumSize {
			sum += int64(b)
		}
	}
	return sum
}

// setName puts another name into a header: in front of it, as far as it does
// not fit into the name's field, goes into the prefix's.
func setName(h []byte, e entry) error {
	name, prefix := e.name, ""
	if e.dir {
		name += "/"
	}
	if len(name) > nameSize {
		// The first slash behind which the rest fits, and is more than the
		// slash that ends a directory.
		from := len(name) - nameSize - 1
		at := from + strings.IndexByte(name[from:len(name)-1], '/')
		if at < from || at == 0 || at > prefixSize {
			return fmt.Errorf("%w: the name %q is too long", errTar, e.name)
		}
		prefix, name = name[:at], name[at+1:]
	}
	clear(h[nameAt : nameAt+nameSize])
	copy(h[nameAt:], name)
	clear(h[prefixAt : prefixAt+prefixSize])
	copy(h[prefixAt:], prefix)
	copy(h[sumAt:sumAt+sumSize], fmt.Sprintf("%06o\x00 ", headerSum(h)))
	return nil
}

// scanner reads a tar file from front to back: it tells each file's size and
// checksum, and passes the bytes on where they go anywhere. Where it puts the
// names into a folder it changes the headers, and nothing else.
type scanner struct {
	folder string // "pg_tblspc/16384": put before every name; "": none
	file   func(path string, size int64, crc uint32) error
	pass   func(p []byte) error // p is no longer the scanner's; nil: nowhere

	bytes int64 // of the tar file so far
	files int

	current entry
	left    int64 // bytes of the current file's content that are still to come
	crc     uint32
	zeros   int // blocks of the end
}

// run reads r to its end, buf at a time: a multiple of 512 bytes. The end must
// be that of the tar file too.
func (s *scanner) run(r io.Reader, buf []byte) error {
	return s.all(func() ([]byte, error) {
		n, err := fill(r, buf)
		return buf[:n], err
	})
}

// all is run for bytes that next has: whole blocks each time, with io.EOF the
// last, or none.
func (s *scanner) all(next func() ([]byte, error)) error {
	for {
		p, err := next()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := s.next(p); err != nil {
			return err
		}
		if err != nil {
			return s.end()
		}
	}
}

// next reads p, whole blocks or what is left of a tar file that is cut, and
// passes it on.
func (s *scanner) next(p []byte) error {
	if len(p)%blockSize != 0 {
		return fmt.Errorf("%w: it ends within a block, after %d bytes", errTar, s.bytes+int64(len(p)))
	}
	if err := s.take(p); err != nil {
		return err
	}
	if s.pass == nil || len(p) == 0 {
		return nil
	}
	return s.pass(p)
}

// end tells whether what was read is a whole tar file.
func (s *scanner) end() error {
	if s.zeros < 2 {
		return fmt.Errorf("%w: it ends without its end, after %d bytes", errTar, s.bytes)
	}
	return nil
}

// fill reads until p is full or r ends. io.EOF alone is its end: a decoder's
// io.ErrUnexpectedEOF, which io.ReadFull would also return, is none.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// take reads whole blocks.
func (s *scanner) take(p []byte) error {
	s.bytes += int64(len(p))
	for len(p) > 0 {
		if s.left > 0 {
			n := min(int64(len(p)), s.left)
			s.crc = crc32.Update(s.crc, castagnoli, p[:n])
			if s.left -= n; s.left == 0 {
				if err := s.done(); err != nil {
					return err
				}
			}
			p = p[(n+blockSize-1)/blockSize*blockSize:] // and the padding
			continue
		}
		h := p[:blockSize]
		p = p[blockSize:]
		if isZero(h) {
			s.zeros++
			continue
		}
		if s.zeros > 0 {
			return fmt.Errorf("%w: something follows its end", errTar)
		}
		if err := s.header(h); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) header(h []byte) error {
	e, err := parseHeader(h)
	if err != nil {
		return err
	}
	if s.folder != "" {
		e.name = s.folder + "/" + e.name
		if err := setName(h, e); err != nil {
			return err
		}
	}
	s.current, s.left, s.crc = e, e.size, 0
	if e.size == 0 && !e.dir {
		return s.done()
	}
	return nil
}

func (s *scanner) done() error {
	s.files++
	return s.file(s.current.name, s.current.size, s.crc)
}

func isZero(block []byte) bool {
	return block[0] == 0 && bytes.Equal(block, zeros[:blockSize])
}
