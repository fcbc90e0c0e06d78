package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// base is a base backup: its sentinel exists.
type base struct {
	key     string       // of the sentinel
	segment segment.Name // that holds the start LSN
	start   segment.LSN  // once the sentinel was read
}

// sentinel is what is read of a backup's sentinel (WAL-G:
// BackupSentinelDto). Keys are matched whatever their case.
type sentinel struct {
	LSN              *uint64 // where replay begins
	FinishLSN        *uint64 // where the backup is consistent
	SystemIdentifier *uint64
}

// maxSentinel bounds a sentinel: those of old WAL-G versions list every file.
const maxSentinel = 256 << 20

// errSentinel: a sentinel that is not one.
var errSentinel = errors.New("invalid sentinel")

// bases lists the backups, newest last: by timeline, then by start LSN. A
// backup is newest when its name is, not its time: the name is what fixes
// which WAL it needs.
func (a *Archive) bases(ctx context.Context) ([]base, error) {
	var all []base
	for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: basesDir, Delimiter: "/"}) {
		if err != nil {
			return nil, fmt.Errorf("listing base backups: %w", err)
		}
		if n, ok := sentinelSegment(info.Key); ok {
			all = append(all, base{key: info.Key, segment: n})
		}
	}
	slices.SortStableFunc(all, func(x, y base) int { return x.segment.Compare(y.segment) })
	return all, nil
}

// sentinelSegment reads a sentinel's key: base_<24>, base_<24>_<8>, or, for a
// delta backup, base_<24>_D_<24>. The first segment is the backup's own.
func sentinelSegment(key string) (segment.Name, bool) {
	name, ok1 := strings.CutPrefix(key, basesDir+"base_")
	name, ok2 := strings.CutSuffix(name, sentinelSuffix)
	if !ok1 || !ok2 || len(name) < 24 {
		return segment.Name{}, false
	}
	n, err := segment.ParseName(name[:24])
	if err != nil {
		return segment.Name{}, false
	}
	rest := name[24:]
	if parent, ok := strings.CutPrefix(rest, "_D_"); ok {
		_, err := segment.ParseName(parent)
		return n, err == nil
	}
	if rest == "" {
		return n, true
	}
	return n, len(rest) == 9 && rest[0] == '_' && strings.Trim(rest[1:], "0123456789ABCDEF") == ""
}

// newestBase returns the newest backup that lies on h, from its start to where
// it is consistent. A sentinel that cannot be understood is passed over: the
// run must then be gapless from an older backup on, which asks for more.
func (a *Archive) newestBase(ctx context.Context, h segment.History, size segment.Size) (base, bool, error) {
	all, err := a.bases(ctx)
	if err != nil {
		return base{}, false, err
	}
	for _, b := range slices.Backward(all) {
		n := b.segment
		if n.Check(size) != nil || !h.Contains(segment.Position{Timeline: n.Timeline, LSN: n.Start(size)}) {
			continue
		}
		s, err := a.readSentinel(ctx, b.key)
		switch {
		case errors.Is(err, errSentinel), errors.Is(err, objstore.ErrNotFound):
			a.log.Warn("a base backup's sentinel is passed over", "key", b.key, "error", err.Error())
			continue
		case err != nil:
			return base{}, false, err
		}
		b.start = n.Start(size)
		end := b.start
		if s.LSN != nil && size.Name(n.Timeline, segment.LSN(*s.LSN)) == n {
			b.start = segment.LSN(*s.LSN)
		}
		if s.FinishLSN != nil {
			end = segment.LSN(*s.FinishLSN)
		}
		if h.Contains(segment.Position{Timeline: n.Timeline, LSN: max(b.start, end)}) {
			return b, true, nil
		}
	}
	return base{}, false, nil
}

func (a *Archive) readSentinel(ctx context.Context, key string) (sentinel, error) {
	body, _, err := a.store.Get(ctx, key)
	if err != nil {
		return sentinel{}, fmt.Errorf("opening %s: %w", key, err)
	}
	defer discard(body)
	content, err := io.ReadAll(io.LimitReader(body, maxSentinel))
	if err != nil {
		return sentinel{}, fmt.Errorf("reading %s: %w", key, err)
	}
	var s sentinel
	if err := json.Unmarshal(content, &s); err != nil {
		return sentinel{}, fmt.Errorf("%s: %w: %w", key, errSentinel, err)
	}
	return s, nil
}
