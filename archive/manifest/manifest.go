// Package manifest reads the backup manifest: the list of a base backup's
// files with their sizes and checksums that the server sends behind them
// (PostgreSQL's documentation, chapter "Backup Manifest Format"; written by
// src/backend/backup/backup_manifest.c, read by
// src/common/parse_manifest.c).
//
// It is read as a stream: a cluster may have millions of files, and only the
// caller knows what of them must be kept.
//
// It is pure: no I/O but the reader that it is given, no state. It may be used
// concurrently.
package manifest

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/walferry/walferry/segment"
)

// ErrInvalid: what was read is no backup manifest, or not as the server wrote
// it. It was read to where it is wrong; reading it again gives the same answer.
var ErrInvalid = errors.New("invalid backup manifest")

// CRC32C is the checksum algorithm that we ask servers for, as File.Algorithm
// names it.
const CRC32C = "CRC32C"

// Manifest is what a manifest says beside its files.
type Manifest struct {
	Version          int    // 1 (up to PostgreSQL 16) or 2
	SystemIdentifier uint64 // of the cluster; 0 in version 1, which does not say it
	WAL              []Range
	Files            int // how many there were
}

// Range is WAL that must be replayed for the backup to be consistent,
// [Start, End) of a timeline.
type Range struct {
	Timeline   segment.Timeline
	Start, End segment.LSN
}

// File is one file of the backup.
type File struct {
	// Path is relative to the data directory, with slashes; the bytes are the
	// server's, perhaps not UTF-8. Files of a tablespace are in
	// pg_tblspc/<oid>/. It was not looked at otherwise: whoever makes a file
	// of that name makes sure first that it leads nowhere else.
	Path      string
	Size      int64  // bytes
	Algorithm string // CRC32C, SHA224, SHA256, SHA384, SHA512; "" when there is no checksum
	Checksum  []byte // as long as the algorithm's; nil when there is none
}

// CRC32C returns the file's Castagnoli checksum; ok is false when the manifest
// has another one, or none. It is written as the server has it in memory
// (PostgreSQL: pg_checksum_final in src/common/checksum_helper.c), and servers
// of the other byte order are not supported.
func (f File) CRC32C() (sum uint32, ok bool) {
	if f.Algorithm != CRC32C {
		return 0, false
	}
	return binary.LittleEndian.Uint32(f.Checksum), true
}

// Read reads a manifest to its end and calls each for every file, in the
// manifest's order; paths are not compared with each other. What each was told
// is true only when Read returns nil: the manifest's own checksum stands at
// its end. A mistake in the manifest matches ErrInvalid; errors of r and of
// each are passed on.
func Read(r io.Reader, each func(File) error) (Manifest, error) {
	p := &parser{sum: summer{hash: sha256.New()}, each: each}
	p.src.r = r
	p.dec = json.NewDecoder(io.TeeReader(&p.src, &p.sum))
	err := p.read()
	switch {
	case err == nil:
		return p.m, nil
	case p.src.err != nil:
		return Manifest{}, fmt.Errorf("reading the backup manifest: %w", p.src.err)
	case p.eachErr != nil:
		return Manifest{}, p.eachErr
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return Manifest{}, fmt.Errorf("%w: %w", ErrInvalid, err)
}

// source remembers why bytes could not be read, so that it is not taken for a
// mistake in the manifest.
type source struct {
	r   io.Reader
	err error // not io.EOF
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

type parser struct {
	src     source
	sum     summer
	dec     *json.Decoder
	each    func(File) error
	eachErr error
	m       Manifest
}

// The keys of the manifest. They are compared as they are; the ones of the
// objects below them by encoding/json.
const (
	keyVersion  = "PostgreSQL-Backup-Manifest-Version"
	keySystem   = "System-Identifier"
	keyFiles    = "Files"
	keyWAL      = "WAL-Ranges"
	keyChecksum = "Manifest-Checksum"
)

// read takes the manifest apart, key by key. As for the server's own tools the
// version comes first; all keys must be there, once.
func (p *parser) read() error {
	if err := p.delimiter('{'); err != nil {
		return err
	}
	var checksum string
	seen := map[string]bool{}
	for p.dec.More() {
		token, err := p.dec.Token()
		if err != nil {
			return err
		}
		key, _ := token.(string)
		if seen[key] {
			return fmt.Errorf("%q stands there twice", key)
		}
		if len(seen) == 0 && key != keyVersion {
			return fmt.Errorf("it begins with %q instead of its version", key)
		}
		seen[key] = true
		switch key {
		case keyVersion:
			err = p.version()
		case keySystem:
			err = p.dec.Decode(&p.m.SystemIdentifier)
		case keyFiles:
			err = p.list(p.file)
		case keyWAL:
			err = p.list(p.wal)
		case keyChecksum:
			err = p.dec.Decode(&checksum)
		default:
			return fmt.Errorf("unknown key %q", key)
		}
		if err != nil {
			return err
		}
	}
	if err := p.delimiter('}'); err != nil {
		return err
	}
	for _, key := range []string{keyFiles, keyWAL, keyChecksum} {
		if !seen[key] {
			return fmt.Errorf("no %q", key)
		}
	}
	if seen[keySystem] != (p.m.Version >= 2) {
		return fmt.Errorf("a system identifier belongs to version 2, and this is version %d", p.m.Version)
	}
	return p.end(checksum)
}

func (p *parser) version() error {
	if err := p.dec.Decode(&p.m.Version); err != nil {
		return err
	}
	if p.m.Version != 1 && p.m.Version != 2 {
		return fmt.Errorf("unknown version %d", p.m.Version)
	}
	return nil
}

func (p *parser) delimiter(want json.Delim) error {
	token, err := p.dec.Token()
	if err != nil {
		return err
	}
	if token != want {
		return fmt.Errorf("%v where %v is due", token, want)
	}
	return nil
}

// list reads an array whose elements item reads.
func (p *parser) list(item func() error) error {
	if err := p.delimiter('['); err != nil {
		return err
	}
	for p.dec.More() {
		if err := item(); err != nil {
			return err
		}
	}
	return p.delimiter(']')
}

func (p *parser) file() error {
	var entry struct {
		Path      *string
		Encoded   *string `json:"Encoded-Path"`
		Size      *int64
		Algorithm *string `json:"Checksum-Algorithm"`
		Checksum  *string
	}
	if err := p.dec.Decode(&entry); err != nil {
		return err
	}
	f := File{}
	switch {
	case entry.Path != nil && entry.Encoded == nil:
		f.Path = *entry.Path
	case entry.Path == nil && entry.Encoded != nil:
		path, err := hex.DecodeString(*entry.Encoded)
		if err != nil {
			return fmt.Errorf("encoded path %q: %w", *entry.Encoded, err)
		}
		f.Path = string(path)
	default:
		return fmt.Errorf("file %d has no path, or two", p.m.Files+1)
	}
	if f.Path == "" || strings.Contains(f.Path, "\x00") {
		return fmt.Errorf("file %d is called %q", p.m.Files+1, f.Path)
	}
	if entry.Size == nil || *entry.Size < 0 {
		return fmt.Errorf("%q has no size, or a negative one", f.Path)
	}
	f.Size = *entry.Size
	if (entry.Algorithm == nil) != (entry.Checksum == nil) {
		return fmt.Errorf("%q has one of checksum and checksum algorithm, and not the other", f.Path)
	}
	if entry.Algorithm != nil {
		f.Algorithm = *entry.Algorithm
		length, known := checksumLength(f.Algorithm)
		sum, err := hex.DecodeString(*entry.Checksum)
		if !known || err != nil || len(sum) != length {
			return fmt.Errorf("%q has the %s checksum %q", f.Path, f.Algorithm, *entry.Checksum)
		}
		f.Checksum = sum
	}
	p.m.Files++
	p.eachErr = p.each(f)
	return p.eachErr
}

// checksumLength returns the bytes of an algorithm's checksum (PostgreSQL:
// pg_checksum_parse_type in src/common/checksum_helper.c).
func checksumLength(algorithm string) (n int, ok bool) {
	switch algorithm {
	case CRC32C:
		return 4, true
	case "SHA224":
		return 28, true
	case "SHA256":
		return 32, true
	case "SHA384":
		return 48, true
	case "SHA512":
		return 64, true
	}
	return 0, false
}

func (p *parser) wal() error {
	var entry struct {
		Timeline segment.Timeline
		Start    string `json:"Start-LSN"`
		End      string `json:"End-LSN"`
	}
	if err := p.dec.Decode(&entry); err != nil {
		return err
	}
	start, err := segment.ParseLSN(entry.Start)
	if err != nil {
		return fmt.Errorf("WAL range: %w", err)
	}
	end, err := segment.ParseLSN(entry.End)
	if err != nil {
		return fmt.Errorf("WAL range: %w", err)
	}
	if entry.Timeline == 0 || end < start {
		return fmt.Errorf("WAL range from %s to %s on timeline %d", start, end, entry.Timeline)
	}
	p.m.WAL = append(p.m.WAL, Range{Timeline: entry.Timeline, Start: start, End: end})
	return nil
}

// end makes sure that nothing follows, and compares the checksum.
func (p *parser) end(checksum string) error {
	switch _, err := p.dec.Token(); {
	case err == nil:
		return errors.New("something follows behind its end")
	case !errors.Is(err, io.EOF):
		return err
	}
	want, err := hex.DecodeString(checksum)
	if err != nil {
		return fmt.Errorf("its checksum %q: %w", checksum, err)
	}
	got, err := p.sum.sum()
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(got, want) == 0 {
		return fmt.Errorf("its checksum is %x, and it says %s", got, checksum)
	}
	return nil
}

// maxLine bounds what is held of a line, in bytes: a path is shorter than 1024
// (PostgreSQL: MAXPGPATH), twice that in hexadecimal digits.
const maxLine = 64 << 10

// summer computes the checksum of every line but the last, the one in which
// it stands (PostgreSQL: verify_manifest_checksum in
// src/common/parse_manifest.c). Which line is the last is known at the end
// only, so the newest is held back.
type summer struct {
	hash hash.Hash
	held []byte
}

func (s *summer) Write(p []byte) (int, error) {
	n := len(p)
	if n == 0 {
		return 0, nil
	}
	// A newline ends a line that is not the last once a byte follows it.
	if l := len(s.held); l > 0 && s.held[l-1] == '\n' {
		s.flush()
	}
	if i := bytes.LastIndexByte(p[:n-1], '\n'); i >= 0 {
		s.flush()
		_, _ = s.hash.Write(p[:i+1]) // never fails (hash.Hash)
		p = p[i+1:]
	}
	if len(s.held)+len(p) > maxLine {
		return 0, fmt.Errorf("a line is longer than %d bytes", maxLine)
	}
	s.held = append(s.held, p...)
	return n, nil
}

func (s *summer) flush() {
	_, _ = s.hash.Write(s.held) // never fails (hash.Hash)
	s.held = s.held[:0]
}

func (s *summer) sum() ([]byte, error) {
	if l := len(s.held); l == 0 || s.held[l-1] != '\n' {
		return nil, errors.New("its last line does not end")
	}
	return s.hash.Sum(nil), nil
}
