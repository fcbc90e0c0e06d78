package archive

import (
	"context"
	"errors"
	"slices"

	"github.com/walferry/walferry/segment"
)

// byStart lists the backups, newest last: by timeline, then by the segment that
// they start in. It reads no sentinel: the name is what fixes which WAL a backup
// needs.
func (a *Archive) byStart(ctx context.Context) ([]BackupName, error) {
	all, err := a.sentinels(ctx)
	if err != nil {
		return nil, err
	}
	names := make([]BackupName, len(all))
	for i, b := range all {
		names[i] = b.Name
	}
	slices.SortStableFunc(names, func(x, y BackupName) int { return x.segment.Compare(y.segment) })
	return names, nil
}

// newestBase returns the start LSN of the newest backup that lies on h, from
// its start to where it is consistent. A sentinel that cannot be understood is
// passed over: the run must then be gapless from an older backup on, which asks
// for more.
func (a *Archive) newestBase(ctx context.Context, h segment.History, size segment.Size) (start segment.LSN, ok bool, err error) {
	all, err := a.byStart(ctx)
	if err != nil {
		return 0, false, err
	}
	for _, name := range slices.Backward(all) {
		n := name.segment
		if n.Check(size) != nil || !h.Contains(segment.Position{Timeline: n.Timeline, LSN: n.Start(size)}) {
			continue
		}
		s, err := a.readSentinel(ctx, name)
		switch {
		case errors.Is(err, ErrSentinel), errors.Is(err, ErrNotFound):
			a.log.Warn("a base backup's sentinel is passed over", "key", name.sentinelKey(), "error", err.Error())
			continue
		case err != nil:
			return 0, false, err
		}
		start := n.Start(size)
		if size.Name(n.Timeline, s.LSN) == n {
			start = s.LSN
		}
		if h.Contains(segment.Position{Timeline: n.Timeline, LSN: max(start, s.FinishLSN)}) {
			return start, true, nil
		}
	}
	return 0, false, nil
}
