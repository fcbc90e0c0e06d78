package segment

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a cluster's WAL segment size in bytes: a power of two from 1 MiB to
// 1 GiB, fixed by initdb (PostgreSQL: IsValidWalSegSize in
// src/include/access/xlog_internal.h).
type Size uint64

// The bounds of a WAL segment size, and initdb's default, in bytes.
const (
	MinSize     Size = 1 << 20
	MaxSize     Size = 1 << 30
	DefaultSize Size = 16 << 20
)

// Check returns an error unless s is a WAL segment size that PostgreSQL
// accepts.
func (s Size) Check() error {
	if s < MinSize || s > MaxSize || s&(s-1) != 0 {
		return fmt.Errorf("invalid WAL segment size %d: want a power of two from 1 MB to 1 GB", uint64(s))
	}
	return nil
}

// ParseSize reads the server's answer to SHOW wal_segment_size: an integer
// with the unit MB or GB ("16MB").
func ParseSize(show string) (Size, error) {
	var unit Size
	digits := show
	switch {
	case strings.HasSuffix(show, "MB"):
		unit, digits = 1<<20, strings.TrimSuffix(show, "MB")
	case strings.HasSuffix(show, "GB"):
		unit, digits = 1<<30, strings.TrimSuffix(show, "GB")
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if unit == 0 || err != nil {
		return 0, fmt.Errorf("invalid WAL segment size %q: want an integer with the unit MB or GB", show)
	}
	s := Size(n) * unit
	return s, s.Check()
}

// String returns the size as SHOW wal_segment_size prints it.
func (s Size) String() string {
	if s >= 1<<30 && s%(1<<30) == 0 {
		return fmt.Sprintf("%dGB", s>>30)
	}
	return fmt.Sprintf("%dMB", s>>20)
}

// Start returns the LSN of the first byte of the segment that holds l.
func (s Size) Start(l LSN) LSN { return l &^ LSN(s-1) }

// Offset returns how far l lies behind its segment's first byte, in bytes.
func (s Size) Offset(l LSN) uint64 { return uint64(l) & uint64(s-1) }

// Name returns the name, on timeline t, of the segment that holds l.
func (s Size) Name(t Timeline, l LSN) Name {
	return Name{Timeline: t, Log: uint32(l >> 32), Seg: uint32((uint64(l) & 0xFFFFFFFF) / uint64(s))}
}
