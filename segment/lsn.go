package segment

import (
	"fmt"
	"strings"
)

// LSN is a log sequence number: the address of a byte in the write-ahead log,
// counted in bytes from the beginning of the cluster's log. Zero is
// InvalidXLogRecPtr (PostgreSQL: src/include/access/xlogdefs.h).
type LSN uint64

// String returns PostgreSQL's spelling, two upper-case hexadecimal numbers
// without leading zeros: 16/B374D848.
func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}

// ParseLSN reads PostgreSQL's spelling of an LSN: one to eight hexadecimal
// digits, a slash, one to eight hexadecimal digits, and nothing else
// (PostgreSQL: pg_lsn_in_internal in src/backend/utils/adt/pg_lsn.c). Both
// letter cases are taken.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if ok {
		h, okHi := parseHex(hi)
		l, okLo := parseHex(lo)
		if okHi && okLo {
			return LSN(h)<<32 | LSN(l), nil
		}
	}
	return 0, fmt.Errorf("invalid LSN %q: want two hexadecimal numbers as in 16/B374D848", s)
}

// Position is a place in the history of a cluster. An LSN alone does not name
// a byte once a cluster has been promoted: two timelines hold different bytes
// at the same LSN behind their switchpoint.
type Position struct {
	Timeline Timeline
	LSN      LSN
}

// String returns the position as "16/B374D848 on timeline 1".
func (p Position) String() string {
	return fmt.Sprintf("%s on timeline %d", p.LSN, p.Timeline)
}

// parseHex reads one to eight hexadecimal digits of either case.
func parseHex(s string) (uint32, bool) {
	if len(s) == 0 || len(s) > 8 {
		return 0, false
	}
	var v uint32
	for i := 0; i < len(s); i++ {
		d, ok := hexDigit(s[i])
		if !ok {
			return 0, false
		}
		v = v<<4 | uint32(d)
	}
	return v, true
}

// parseUpperHex8 reads exactly eight upper-case hexadecimal digits, the form
// in which PostgreSQL writes the parts of file names.
func parseUpperHex8(s string) (uint32, bool) {
	if len(s) != 8 {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		if s[i] >= 'a' && s[i] <= 'f' {
			return 0, false
		}
	}
	return parseHex(s)
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
