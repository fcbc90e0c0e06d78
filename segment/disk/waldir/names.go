package waldir

import (
	"strings"

	"github.com/walferry/walferry/segment"
)

// Method is how segments are compressed.
type Method uint8

// The methods that pg_receivewal has.
const (
	None Method = iota
	Gzip
	LZ4
)

// suffix is what a compressed segment's file name has behind the segment's.
func (m Method) suffix() string {
	switch m {
	case Gzip:
		return ".gz"
	case LZ4:
		return ".lz4"
	}
	return ""
}

const (
	segmentDigits = 24
	partialSuffix = ".partial"
	tmpSuffix     = ".tmp"
	imageName     = "walferry.image.tmp" // unlinked as soon as it is open
	framePrefix   = "walferry-frame-"    // of the uploader's, likewise (codec.NewBuffers)

	// The names that package spool gives to files that this directory has not.
	lockName     = "walferry.lock"
	identityName = "walferry.identity.json"
)

// form is a way in which a segment lies in the directory.
type form struct {
	method  Method
	partial bool
}

// name returns the name of n's file in this form.
func (f form) name(n segment.Name) string {
	name := n.String() + f.method.suffix()
	if f.partial {
		name += partialSuffix
	}
	return name
}

func (f form) bit() forms {
	b := forms(1) << f.method
	if f.partial {
		b <<= 3
	}
	return b
}

// forms is a set of them: those in which one segment is there.
type forms uint8

// these returns the complete forms of the set, or its partial ones.
func (s forms) these(partial bool) []form {
	var out []form
	for m := None; m <= LZ4; m++ {
		if f := (form{m, partial}); s&f.bit() != 0 {
			out = append(out, f)
		}
	}
	return out
}

// parseFile reads the name of a segment's file in the directory.
func parseFile(file string) (n segment.Name, f form, ok bool) {
	if len(file) < segmentDigits {
		return n, f, false
	}
	n, err := segment.ParseName(file[:segmentDigits])
	if err != nil {
		return n, f, false
	}
	rest, partial := strings.CutSuffix(file[segmentDigits:], partialSuffix)
	for m := None; m <= LZ4; m++ {
		if rest == m.suffix() {
			return n, form{m, partial}, true
		}
	}
	return n, f, false
}

// parseView reads the name under which the view has a segment.
func parseView(file string) (n segment.Name, partial, ok bool) {
	n, f, ok := parseFile(file)
	return n, f.partial, ok && f.method == None
}

// ownTemporary reports whether a file is one that a crash of ours left.
func ownTemporary(file string) bool {
	if file == imageName || strings.HasPrefix(file, framePrefix) && strings.HasSuffix(file, tmpSuffix) {
		return true
	}
	whole, tmp := strings.CutSuffix(file, tmpSuffix)
	_, f, ok := parseFile(whole)
	return tmp && ok && f.partial
}
