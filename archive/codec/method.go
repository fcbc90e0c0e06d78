package codec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The names of the methods that are written.
const (
	LZ4  = "lz4"
	Zstd = "zstd"
	None = "none"
)

// Method is a way to compress. The zero Method is not valid.
type Method struct {
	Name  string // LZ4, Zstd or None
	Level int    // 1 to 12 for lz4, 1 to 22 for zstd; 0 is the method's default
}

// Levels are those of the formats' own tools; so is the default (lz4: 1).
const (
	defaultZstdLevel = 3
	maxLZ4Level      = 12
	maxZstdLevel     = 22
)

// Parse reads a method with an optional level, as PostgreSQL's tools spell it:
// "lz4", "lz4:9", "zstd:3", "none". The error is one line that says what would
// be right.
func Parse(s string) (Method, error) {
	name, level, hasLevel := strings.Cut(s, ":")
	m := Method{Name: name}
	limit := 0
	switch name {
	case LZ4:
		limit = maxLZ4Level
	case Zstd:
		limit = maxZstdLevel
	case None:
		if hasLevel {
			return Method{}, fmt.Errorf("invalid compression %q: none takes no level", s)
		}
		return m, nil
	case "gzip", "gz", "brotli", "br", "lzma", "xz":
		return Method{}, fmt.Errorf("compression %q is read but not written: want lz4, zstd or none", s)
	default:
		return Method{}, fmt.Errorf("invalid compression %q: want lz4, zstd or none, with a level as in lz4:9 or zstd:3", s)
	}
	if !hasLevel {
		return m, nil
	}
	n, err := strconv.ParseUint(level, 10, 8)
	if err != nil || n < 1 || int(n) > limit || level[0] == '0' {
		return Method{}, fmt.Errorf("invalid compression level in %q: want a number from 1 to %d for %s", s, limit, name)
	}
	m.Level = int(n)
	return m, nil
}

// String returns the method as Parse reads it.
func (m Method) String() string {
	if m.Level == 0 {
		return m.Name
	}
	return m.Name + ":" + strconv.Itoa(m.Level)
}

// Ext returns the ending of the keys of objects written with the method:
// ".lz4", ".zst", or nothing.
func (m Method) Ext() string {
	switch m.Name {
	case LZ4:
		return ".lz4"
	case Zstd:
		return ".zst"
	}
	return ""
}

// ByExt returns the method, at its default level, whose objects end in ext; ok
// is false for endings that are not written.
func ByExt(ext string) (m Method, ok bool) {
	for _, name := range []string{LZ4, Zstd, None} {
		if m := (Method{Name: name}); m.Ext() == ext {
			return m, true
		}
	}
	return Method{}, false
}

// Readable returns the endings that NewReader can decode, in the order in
// which a name is looked up.
func Readable() []string { return []string{".lz4", ".zst", "", ".gz", ".br", ".lzma"} }

// CanRead reports whether NewReader can decode objects that end in ext.
func CanRead(ext string) bool { return slices.Contains(Readable(), ext) }
