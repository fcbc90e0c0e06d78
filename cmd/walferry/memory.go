package main

import (
	"fmt"
	"math"
	"path/filepath"
	"runtime/debug"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/cmd/internal/settings"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/memory"
	"github.com/walferry/walferry/segment/spool"
)

// noSpool is the --spool that is no directory: what was received and is not in
// the archive is in memory only, and the slot keeps it on the server.
const noSpool = "none"

// checkNoSpool returns an error for settings that say something of a spool
// that is none, or of the memory of one that is on a disk. Those that have a
// default count only when they are given.
func checkNoSpool(set *settings.Set) error {
	where := set.Value("spool")
	if where.Text != noSpool {
		if v := set.Value("memory"); v.IsSet() {
			return usageError("%s is for --spool none only: --spool-limit bounds a spool on a disk", v.Describe())
		}
		return nil
	}
	for _, no := range []struct{ name, why string }{
		{"spool-limit", "--memory bounds what is held"},
		{"hold", "the server keeps everything until it is in the archive"},
	} {
		if v := set.Value(no.name); v.IsSet() {
			return usageError("%s does not go with %s: %s", v.Describe(), where.Describe(), no.why)
		}
	}
	if v := set.Value("ack"); v.IsSet() && v.Text != "archive" {
		return usageError("%s does not go with %s: nothing survives on this host, so that only the archive can be acknowledged", v.Describe(), where.Describe())
	}
	return nil
}

// What receive needs beside the segments that it holds: encoders, and blocks
// that are read from a segment to be encoded, for each of the uploader's
// workers, its tail objects and their merging.
const (
	encoders       = 6
	encodedBlock   = 1 << 20
	encoderMemory  = 6 << 20  // of lz4, and of zstd up to level 5
	encoderMiddle  = 9 << 20  // of zstd up to level 9
	encoderHighest = 40 << 20 // of zstd above
)

// memoryFor is the memory that n segments in it need. Each may have its
// compressed frame beside it, which for WAL that does not compress has the same
// size; what tail objects are made of the open one comes to a segment more.
func memoryFor(n int64, size segment.Size, m codec.Method) int64 {
	encoder := int64(encoderMemory)
	switch {
	case m.Name == codec.Zstd && m.Level > 9:
		encoder = encoderHighest
	case m.Name == codec.Zstd && m.Level > 5:
		encoder = encoderMiddle
	}
	return (2*n+1)*int64(size) + encoders*(encodedBlock+encoder)
}

// leastMemory is what --memory must be for any cluster.
func leastMemory() int64 { return memoryFor(1, segment.MinSize, codec.Method{Name: codec.LZ4}) }

// memoryError says that --memory holds no segment. It is a spool.ErrLimit,
// whose text speaks of a spool.
type memoryError struct {
	size  segment.Size
	least int64
}

func (e *memoryError) Error() string {
	const unit = 1 << 20
	return fmt.Sprintf("the server's WAL segments have %s each, which takes --memory %dMB at least, or a --spool on a disk", e.size, (e.least+unit-1)/unit)
}

func (e *memoryError) Unwrap() error { return spool.ErrLimit }

// memoryLimit returns how many bytes of segments --memory allows; an error,
// which matches spool.ErrLimit, when not one.
func (s receiveSettings) memoryLimit(size segment.Size) (int64, error) {
	one := memoryFor(1, size, s.Compress)
	if s.Memory < one {
		return 0, &memoryError{size, one}
	}
	return int64(size) * (1 + (s.Memory-one)/(2*int64(size))), nil
}

// openSpool opens the spool, and says where compressed segments are built.
func (s receiveSettings) openSpool() (*spool.Spool, *codec.Buffers, error) {
	if s.SpoolDir != noSpool {
		sp, err := spool.Open(disk.OS{}, s.SpoolDir, spool.Options{Limit: s.SpoolLimit, Log: s.Log})
		if err != nil {
			return nil, nil, spoolError(err, s.SpoolDir)
		}
		return sp, codec.NewBuffers(frameMemory, s.SpoolDir), nil
	}
	if debug.SetMemoryLimit(-1) == math.MaxInt64 { // GOMEMLIMIT says nothing else
		debug.SetMemoryLimit(s.Memory)
	}
	sp, err := spool.Open(memory.New(), string(filepath.Separator)+"spool", spool.Options{LimitFor: s.memoryLimit, Log: s.Log})
	return sp, codec.NewBuffers(0, ""), err
}

// fits tells whether segments of that size can be held at all.
func (s receiveSettings) fits(size segment.Size) error {
	if s.SpoolDir != noSpool {
		return nil
	}
	_, err := s.memoryLimit(size)
	return err
}

// spoolName says where the spool is.
func (s receiveSettings) spoolName() string {
	if s.SpoolDir == noSpool {
		return fmt.Sprintf("none (%s of memory)", formatBytes(s.Memory))
	}
	return s.SpoolDir
}

// unshipped says where what was received and is not in the archive is.
func (s receiveSettings) unshipped() string {
	if s.SpoolDir == noSpool {
		return "what is not in the archive is still on the server, kept by the slot"
	}
	return "what was received is in the spool " + s.SpoolDir
}
