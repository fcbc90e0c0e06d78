package pgreceivewal

import (
	"fmt"
	"strings"
)

// Method is how the files in the directory are compressed.
type Method int

// The methods, and the original's names for them.
const (
	None Method = iota // SEG
	Gzip               // SEG.gz
	LZ4                // SEG.lz4
	zstd               // known to the original, and refused by it
)

// methods is in the order of the constants.
var methods = [...]struct {
	name                   string
	least, most, byDefault int // levels; the default need not lie between the others
}{
	None: {"none", 0, 0, 0},
	Gzip: {"gzip", 1, 9, -1},
	LZ4:  {"lz4", 1, 12, 0},
	zstd: {"zstd", -131072, 22, 3},
}

// String returns the method as -Z calls it.
func (m Method) String() string { return methods[m].name }

// Compression is a checked -Z.
type Compression struct {
	Method Method
	Level  int // gzip 1 to 9, lz4 1 to 12; 0 is the method's default
}

// ParseCompression reads the value of -Z: METHOD, METHOD:DETAIL, or a number
// alone, which is gzip's level, and 0 (or nothing) for none. DETAIL is a level
// alone, or level=N, workers=N and long[=on], separated by commas; the last
// two exist and are refused by every method that there is. The rules and texts
// are those of PostgreSQL 18 (parse_compress_options,
// parse_compress_specification and validate_compress_specification in
// src/common/compression.c), but a number that does not fit in 32 bits is out
// of range, and does not wrap around. The only error is *Error.
func ParseCompression(text string) (Compression, error) {
	name, detail, hasDetail := strings.Cut(text, ":")
	if n, rest := strtol(text); rest == "" {
		name, detail, hasDetail = "gzip", text, true
		if n == 0 {
			name, hasDetail = "none", false
		}
	}
	method, ok := methodNamed(name)
	if !ok {
		return Compression{}, fatal(`unrecognized compression algorithm: "%s"`, name)
	}
	s := specification{method: method, level: int64(methods[method].byDefault)}
	if hasDetail {
		if wrong := s.parse(detail); wrong != "" {
			return Compression{}, fatal("invalid compression specification: %s", wrong)
		}
	}
	if wrong := s.check(); wrong != "" {
		return Compression{}, fatal("invalid compression specification: %s", wrong)
	}
	if method == zstd {
		return Compression{}, fatal("compression with ZSTD is not yet supported")
	}
	if s.level == int64(methods[method].byDefault) {
		return Compression{Method: method}, nil
	}
	return Compression{Method: method, Level: int(s.level)}, nil
}

func methodNamed(name string) (Method, bool) {
	for m := range methods {
		if methods[m].name == name {
			return Method(m), true
		}
	}
	return None, false
}

// specification is a DETAIL as it is read: not yet checked against what the
// method can do.
type specification struct {
	method  Method
	level   int64
	workers bool // was given
	long    bool // was given
}

// parse reads a DETAIL and returns what is wrong with its form, or "".
func (s *specification) parse(detail string) string {
	if n, rest := strtol(detail); rest == "" && detail != "" {
		s.level = n
		return ""
	}
	for _, item := range strings.Split(detail, ",") {
		key, value, hasValue := strings.Cut(item, "=")
		if wrong := s.set(key, value, hasValue); wrong != "" {
			return wrong
		}
	}
	return ""
}

// set takes one item of a DETAIL.
func (s *specification) set(key, value string, hasValue bool) (wrong string) {
	switch key {
	case "":
		return "found empty string where a compression option was expected"
	case "level", "workers":
		n, rest := strtol(value)
		switch {
		case !hasValue:
			return fmt.Sprintf(`compression option "%s" requires a value`, key)
		case value == "" || rest != "":
			return fmt.Sprintf(`value for compression option "%s" must be an integer`, key)
		case key == "level":
			s.level = n
		default:
			s.workers = true
		}
	case "long":
		if hasValue && !isBoolean(value) {
			return fmt.Sprintf(`value for compression option "%s" must be a Boolean value`, key)
		}
		s.long = true
	default:
		return fmt.Sprintf(`unrecognized compression option: "%s"`, key)
	}
	return ""
}

// isBoolean knows the six words that DETAIL has for yes and no, in either
// letter case. (true and false are none of them.)
func isBoolean(value string) bool {
	switch strings.ToLower(value) {
	case "yes", "on", "1", "no", "off", "0":
		return true
	}
	return false
}

// check returns what the method cannot do, or "".
func (s *specification) check() string {
	m := methods[s.method]
	ordinary := s.level == int64(m.byDefault)
	switch {
	case s.method == None && !ordinary:
		return fmt.Sprintf(`compression algorithm "%s" does not accept a compression level`, m.name)
	case !ordinary && (s.level < int64(m.least) || s.level > int64(m.most)):
		return fmt.Sprintf(`compression algorithm "%s" expects a compression level between %d and %d (default at %d)`, m.name, m.least, m.most, m.byDefault)
	case s.workers && s.method != zstd:
		return fmt.Sprintf(`compression algorithm "%s" does not accept a worker count`, m.name)
	case s.long && s.method != zstd:
		return fmt.Sprintf(`compression algorithm "%s" does not support long-distance mode`, m.name)
	}
	return ""
}
