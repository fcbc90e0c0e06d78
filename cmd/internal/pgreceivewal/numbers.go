package pgreceivewal

import (
	"math"
	"strings"

	"github.com/walferry/walferry/segment"
)

// spaces is isspace in the C locale.
const spaces = " \t\n\v\f\r"

// strtol reads a decimal number at the beginning of s as C's strtol does: white
// space, a sign, digits. The number ends at the limits of its type instead of
// beyond them. rest is what follows; all of s when there is no digit.
func strtol(s string) (n int64, rest string) {
	digits, negative := sign(strings.TrimLeft(s, spaces))
	rest = strings.TrimLeft(digits, "0123456789")
	if len(rest) == len(digits) {
		return 0, s
	}
	for _, c := range digits[:len(digits)-len(rest)] {
		d := int64(c - '0')
		switch {
		case negative && n < (math.MinInt64+d)/10:
			return math.MinInt64, rest
		case negative:
			n = n*10 - d
		case n > (math.MaxInt64-d)/10:
			return math.MaxInt64, rest
		default:
			n = n*10 + d
		}
	}
	return n, rest
}

// sign cuts off a sign.
func sign(s string) (rest string, negative bool) {
	if s != "" && (s[0] == '-' || s[0] == '+') {
		return s[1:], s[0] == '-'
	}
	return s, false
}

// integer reads a whole text as a number with white space around it, as
// PostgreSQL's programs read the value of an option (option_parse_int in
// src/fe_utils/option_utils.c): nothing at all is 0.
func integer(s string) (n int64, ok bool) {
	n, rest := strtol(s)
	return n, strings.Trim(rest, spaces) == ""
}

// scanLSN reads an LSN as sscanf reads "%X/%X", which is how the original reads
// -E: each number may have white space in front, a sign and 0x, and what
// follows the second one is not looked at. segment.ParseLSN is stricter.
func scanLSN(s string) (segment.LSN, bool) {
	high, rest, ok := scanHex(s)
	if !ok || rest == "" || rest[0] != '/' {
		return 0, false
	}
	low, _, ok := scanHex(rest[1:])
	return segment.LSN(high)<<32 | segment.LSN(low), ok
}

// scanHex reads a number as scanf's %X does into an unsigned int, of which a
// number that is too large for it leaves the lower half, or all ones when it
// is too large for the unsigned long that strtoul makes of it. "0x" without a
// digit behind it is no number (glibc takes it for 0 before 2.42).
func scanHex(s string) (n uint32, rest string, ok bool) {
	s, negative := sign(strings.TrimLeft(s, spaces))
	if len(s) > 1 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X') {
		s = s[2:]
	}
	rest = strings.TrimLeft(s, "0123456789abcdefABCDEF")
	digits := s[:len(s)-len(rest)]
	var wide uint64
	for _, c := range strings.ToLower(digits) {
		if wide >= 1<<60 {
			return math.MaxUint32, rest, true
		}
		wide = wide<<4 | uint64(strings.IndexRune("0123456789abcdef", c))
	}
	if negative {
		wide = -wide
	}
	return uint32(wide), rest, digits != ""
}
