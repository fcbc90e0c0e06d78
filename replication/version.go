package replication

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is a server's version.
type Version struct {
	Num  int    // as server_version_num: 150018 is 15.18
	Text string // as the server reports it: "15.18 (Debian 15.18-0+deb12u1)"
}

// Major returns the major version: 15 for 15.18.
func (v Version) Major() int { return v.Num / 10000 }

// String returns the server's own text.
func (v Version) String() string { return v.Text }

// parseVersion reads the parameter server_version. A version that is not
// released yet has no minor ("19devel", "18beta1").
func parseVersion(text string) (Version, error) {
	v := Version{Text: text}
	word, _, _ := strings.Cut(text, " ")
	digits := func(s string) int {
		n := 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		return n
	}
	n := digits(word)
	major, err := strconv.Atoi(word[:n])
	if err != nil || major > 9999 {
		return v, fmt.Errorf("%w: server version %q", ErrProtocol, text)
	}
	v.Num = major * 10000
	if rest, ok := strings.CutPrefix(word[n:], "."); ok {
		minor, err := strconv.Atoi(rest[:digits(rest)])
		if err != nil || minor > 9999 {
			return v, fmt.Errorf("%w: server version %q", ErrProtocol, text)
		}
		v.Num += minor
	}
	return v, nil
}
