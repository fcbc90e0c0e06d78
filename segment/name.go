package segment

import (
	"cmp"
	"fmt"
	"strings"
)

// Timeline is a timeline ID. Timelines begin at 1; zero is none.
type Timeline uint32

// HistoryName returns the name of the timeline's history file,
// "0000000A.history" (PostgreSQL: TLHistoryFileName in
// src/include/access/xlog_internal.h).
func (t Timeline) HistoryName() string { return fmt.Sprintf("%08X.history", uint32(t)) }

// ParseHistoryName reads the name of a timeline history file: eight
// upper-case hexadecimal digits and ".history".
func ParseHistoryName(s string) (Timeline, error) {
	digits, ok := strings.CutSuffix(s, ".history")
	if ok {
		if v, ok := parseUpperHex8(digits); ok && v != 0 {
			return Timeline(v), nil
		}
	}
	return 0, fmt.Errorf("invalid timeline history file name %q: want eight digits 0-9 A-F and .history", s)
}

// Name is the name of a WAL segment: the timeline, the upper 32 bits of its
// LSN, and the number of the segment within these 4 GiB (PostgreSQL:
// XLogFileName in src/include/access/xlog_internal.h). It is comparable; how
// many bytes it names depends on the cluster's Size.
type Name struct {
	Timeline Timeline
	Log      uint32
	Seg      uint32
}

// String returns the 24 upper-case hexadecimal digits.
func (n Name) String() string {
	return fmt.Sprintf("%08X%08X%08X", uint32(n.Timeline), n.Log, n.Seg)
}

// ParseName reads 24 upper-case hexadecimal digits and nothing else. Timeline
// zero is refused. Whether the last eight digits are possible depends on the
// segment size: see Name.Check.
func ParseName(s string) (Name, error) {
	if len(s) == 24 {
		t, ok1 := parseUpperHex8(s[:8])
		l, ok2 := parseUpperHex8(s[8:16])
		g, ok3 := parseUpperHex8(s[16:])
		if ok1 && ok2 && ok3 && t != 0 {
			return Name{Timeline(t), l, g}, nil
		}
	}
	return Name{}, fmt.Errorf("invalid WAL segment name %q: want 24 digits 0-9 A-F", s)
}

// Check returns an error when no cluster of segment size s has a segment of
// this name: with 64 MB, say, the last eight digits end at 0000003F.
func (n Name) Check(s Size) error {
	if uint64(n.Seg) >= (1<<32)/uint64(s) {
		return fmt.Errorf("WAL segment name %s is not possible with a segment size of %s", n, s)
	}
	return nil
}

// Start returns the LSN of the segment's first byte.
func (n Name) Start(s Size) LSN { return LSN(n.Log)<<32 + LSN(n.Seg)*LSN(s) }

// End returns the LSN behind the segment's last byte.
func (n Name) End(s Size) LSN { return n.Start(s) + LSN(s) }

// Next returns the following segment on the same timeline.
func (n Name) Next(s Size) Name { return s.Name(n.Timeline, n.End(s)) }

// Compare orders names by timeline, then by LSN: the order of their texts.
func (n Name) Compare(o Name) int {
	return cmp.Or(cmp.Compare(n.Timeline, o.Timeline), cmp.Compare(n.Log, o.Log), cmp.Compare(n.Seg, o.Seg))
}
