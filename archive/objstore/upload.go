package objstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// ErrUploadLost: the upload's parts are no longer there, and no object was
// made of them (somebody swept it, or the store gave it up). It may be begun
// again.
var ErrUploadLost = errors.New("the upload is lost")

// The bounds of parts: S3's.
const (
	MinPart  = 5 << 20 // bytes, of all parts but the last
	MaxPart  = 5 << 30 // bytes
	MaxParts = 10_000  // of one object; some stores take fewer
)

// Upload is an object that is stored in parts. Nothing of it can be seen
// before Complete. Different parts may be put concurrently, and a part again: the
// last one counts. Complete comes after all calls of Part have returned, as Abort
// does. The caller ends every upload by Complete without an error, or by Abort;
// what neither ended, since the process died, takes space until AbortUploads.
type Upload interface {
	// Part stores part number (1, 2, …, at most MaxParts, without gaps by the
	// time of Complete), which begins at offset at (bytes) of the object and has
	// at least one byte, at most MaxPart; every part but the last has MinPart at
	// least. On nil the store has it whole, with the checksum verified where it
	// can; it need not be durable before Complete. On an error the part has to be
	// put again before Complete, also one that was there before. Parts that
	// overlap are an error of Part or of Complete.
	Part(ctx context.Context, number int, at int64, body Body) error

	// Complete makes the object from its parts. On nil it is durable and
	// readable; again, it does nothing then. Where an object of that key exists
	// it is ErrExists: that one is left as it is, and the upload is given up. An
	// answer that was lost is found out where the store can still tell. On
	// ErrUploadLost there is neither an object nor an upload. On any other error
	// it is not known whether the object was made: Complete may be called again,
	// and Abort then frees what there is without harming the object.
	Complete(ctx context.Context) error

	// Abort gives the upload up and frees what it holds. After Complete, and
	// again, it does nothing.
	Abort(ctx context.Context) error
}

// Extent is where a part lies in its object, in bytes.
type Extent struct{ At, Size int64 }

// CheckPart tells whether a part can be stored: what Upload.Part refuses.
func CheckPart(number int, part Extent) error {
	switch {
	case number < 1 || number > MaxParts:
		return fmt.Errorf("part %d: want 1 to %d", number, MaxParts)
	case part.Size < 1 || part.Size > MaxPart:
		return fmt.Errorf("part %d: %d bytes, want 1 to %d", number, part.Size, int64(MaxPart))
	case part.At < 0 || part.At+part.Size < part.At:
		return fmt.Errorf("part %d: no part begins at %d", number, part.At)
	}
	return nil
}

// CheckParts tells whether parts, by their numbers, make an object, and how
// many bytes it has: what Upload.Complete refuses.
func CheckParts(parts map[int]Extent) (size int64, err error) {
	if len(parts) == 0 {
		return 0, errors.New("no part was stored")
	}
	numbers := make([]int, 0, len(parts))
	for number := range parts {
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	for i, number := range numbers {
		part := parts[number]
		switch {
		case number != i+1:
			return 0, fmt.Errorf("part %d is missing", i+1)
		case part.At != size:
			return 0, fmt.Errorf("part %d begins at %d, the parts before it end at %d", number, part.At, size)
		case part.Size < MinPart && number != len(parts):
			return 0, fmt.Errorf("part %d has %d bytes, fewer than %d, and is not the last", number, part.Size, MinPart)
		}
		size += part.Size
	}
	return size, nil
}
