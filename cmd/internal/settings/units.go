package settings

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	errSize     = errors.New("want a size with its unit, such as 512kB, 32MB, 20GB or 1TB")
	errDuration = errors.New("want a time with its unit, such as 500ms, 30s, 5min or 1h")
)

// ParseSize reads a size as postgresql.conf spells it: an integer and one of
// B, kB, MB, GB, TB (powers of 1024), space between them allowed. 0 needs no
// unit. The result is in bytes.
func ParseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "BkMGT ")
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return 0, errSize
	}
	shift := 0
	switch strings.TrimLeft(text[len(digits):], " ") {
	case "":
		if n != 0 || len(digits) != len(text) {
			return 0, errSize
		}
	case "B":
	case "kB":
		shift = 10
	case "MB":
		shift = 20
	case "GB":
		shift = 30
	case "TB":
		shift = 40
	default:
		return 0, errSize
	}
	if n > 1<<62>>shift {
		return 0, errors.New("too large")
	}
	return int64(n << shift), nil
}

// CheckSize is the Check of a size.
func CheckSize(text string) error {
	_, err := ParseSize(text)
	return err
}

// ParseDuration reads a time as Go spells it (1m30s, 500ms), or as
// postgresql.conf does: an integer and one of us, ms, s, min, h, d. 0 needs
// no unit; less than 0 is refused.
func ParseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		m := pgDuration.FindStringSubmatch(text)
		if m == nil {
			return 0, errDuration
		}
		unit := map[string]time.Duration{"us": time.Microsecond, "ms": time.Millisecond, "s": time.Second, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[m[2]]
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil || n > int64((1<<63-1)/unit) {
			return 0, errors.New("too long")
		}
		d = time.Duration(n) * unit
	}
	if d < 0 {
		return 0, errDuration
	}
	return d, nil
}

// pgDuration is guc.c's time_unit_conversion_table in PostgreSQL.
var pgDuration = regexp.MustCompile(`^([0-9]+) *(us|ms|s|min|h|d)$`)

// CheckDuration is the Check of a time.
func CheckDuration(text string) error {
	_, err := ParseDuration(text)
	return err
}
