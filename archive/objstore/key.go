package objstore

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ErrBadKey: the string cannot be the key of an object. It is a mistake of
// the caller; no store was asked.
var ErrBadKey = errors.New("not a key")

// MaxKey is the longest key in bytes. S3 takes 1024 with the prefix of the
// store in front.
const MaxKey = 768

// CheckKey tells whether key can name an object in every kind of store:
// UTF-8 without control characters, parts divided by single slashes, none of
// them "." or "..", at most MaxKey bytes and 255 a part (what file systems take).
func CheckKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: it is empty", ErrBadKey)
	case len(key) > MaxKey:
		return fmt.Errorf("%w: %d bytes, at most %d", ErrBadKey, len(key), MaxKey)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: %q is not UTF-8", ErrBadKey, key)
	}
	for _, r := range key {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("%w: %q holds a control character", ErrBadKey, key)
		}
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part == "." || part == ".." || len(part) > 255 {
			return fmt.Errorf("%w: %q", ErrBadKey, key)
		}
	}
	return nil
}

// CheckRange tells whether GetRange can be asked for so many bytes from
// offset on: at least one, at no negative place.
func CheckRange(offset, length int64) error {
	if offset < 0 || length <= 0 || offset+length < 0 {
		return fmt.Errorf("no range of %d bytes at %d can be read", length, offset)
	}
	return nil
}
