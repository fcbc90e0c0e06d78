package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// errEmpty: there is no object in wal_005/ or wal_tail_005/, and in
// basebackups_005/ nothing but attempts of ours.
var errEmpty = errors.New("empty")

// survey is what an archive without identity object says about itself.
type survey struct {
	sentinel uint64      // system identifier of the newest sentinel; 0: none
	key      string      // of a segment; empty: none
	ext      string      // of that key
	page     pageContent // of its first page; zero: not known
}

type pageContent struct {
	systemIdentifier uint64
	size             segment.Size
}

// survey reads the newest sentinel, and the first page of the segment that
// pick finds. errEmpty when there is nothing at all.
func (a *Archive) survey(ctx context.Context, pick func(context.Context) (string, bool, error)) (survey, error) {
	var s survey
	backups, err := a.byStart(ctx)
	if err != nil {
		return survey{}, err
	}
	if n := len(backups); n > 0 {
		newest := backups[n-1]
		found, err := a.readSentinel(ctx, newest)
		switch {
		case err == nil && found.SystemIdentifier != 0:
			s.sentinel = found.SystemIdentifier
		case err == nil, errors.Is(err, ErrSentinel), errors.Is(err, ErrNotFound):
			a.log.Warn("the newest base backup's sentinel does not say whose it is", "key", newest.sentinelKey())
		default:
			return survey{}, err
		}
	}
	key, ok, err := pick(ctx)
	if err != nil {
		return survey{}, err
	}
	if ok {
		s.key = key
		_, s.ext, _ = walKey(key)
		if s.page, err = a.readFirstPage(ctx, key, s.ext); err != nil {
			return survey{}, err
		}
		return s, nil
	}
	if len(backups) > 0 {
		return s, nil
	}
	for _, dir := range []string{walDir, tailDir} {
		for _, err := range a.store.List(ctx, objstore.ListOptions{Prefix: dir, Limit: 1}) {
			if err != nil {
				return survey{}, fmt.Errorf("listing %s: %w", dir, err)
			}
			return s, nil
		}
	}
	some, err := a.holdsForeignBackups(ctx)
	if err != nil {
		return survey{}, err
	}
	if !some {
		return survey{}, errEmpty
	}
	return s, nil
}

// holdsForeignBackups reports whether there is anything in basebackups_005/ but
// what our own attempts at base backups left, of which none became one: that
// is nobody's archive yet. (One that is still under way looks who claimed the
// archive before it becomes one.)
func (a *Archive) holdsForeignBackups(ctx context.Context) (bool, error) {
	for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: basesDir, Delimiter: "/"}) {
		if err != nil {
			return false, fmt.Errorf("listing %s: %w", basesDir, err)
		}
		text, folder := strings.CutSuffix(strings.TrimPrefix(info.Key, basesDir), "/")
		n, err := ParseBackupName(text)
		if err != nil || !folder {
			return true, nil
		}
		if _, err := a.readWhole(ctx, n.folder()+attemptName, maxIdentity); errors.Is(err, ErrNotFound) {
			return true, nil
		} else if err != nil {
			return false, err
		}
	}
	return false, nil
}

// readFirstPage returns what the page says; nothing when the segment cannot be
// decoded or is none.
func (a *Archive) readFirstPage(ctx context.Context, key, ext string) (pageContent, error) {
	if !codec.CanRead(ext) {
		return pageContent{}, nil
	}
	o, err := a.open(ctx, key, ext)
	if errors.Is(err, objstore.ErrNotFound) {
		return pageContent{}, nil
	}
	if err != nil {
		return pageContent{}, err
	}
	defer discard(o)
	page := make([]byte, segment.PageSize)
	n, err := fill(o, page)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, codec.ErrDamaged) {
		return pageContent{}, fmt.Errorf("reading %s: %w", key, err)
	}
	h, err := segment.ParseLongHeader(page[:n])
	if err != nil {
		a.log.Warn("a segment's first page does not say whose it is", "key", key, "error", err.Error())
		return pageContent{}, nil
	}
	return pageContent{h.SystemIdentifier, h.SegmentSize}, nil
}

// identity is what is known.
func (s survey) identity() Identity {
	id := Identity{SystemIdentifier: s.sentinel, SegmentSize: s.page.size}
	if id.SystemIdentifier == 0 {
		id.SystemIdentifier = s.page.systemIdentifier
	}
	if m, ok := codec.ByExt(s.ext); ok && s.key != "" {
		id.WALCodec = m.Name
	}
	return id
}

// adopt returns want, with the archive's codec where it has none, when all
// that the archive says about itself agrees.
func (s survey) adopt(want Identity) (Identity, error) {
	if s.sentinel == 0 && s.page.systemIdentifier == 0 {
		return Identity{}, fmt.Errorf("%w: it holds WAL or a base backup, and neither a sentinel nor a first page of a segment says whose: begin under another prefix", ErrUnrecognised)
	}
	if err := (Identity{SystemIdentifier: s.sentinel}).matches(want); err != nil {
		return Identity{}, fmt.Errorf("by its newest base backup: %w", err)
	}
	if err := (Identity{SystemIdentifier: s.page.systemIdentifier, SegmentSize: s.page.size}).matches(want); err != nil {
		return Identity{}, fmt.Errorf("by %s: %w", s.key, err)
	}
	if s.key == "" {
		return want, nil
	}
	m, ok := codec.ByExt(s.ext)
	if !ok {
		return Identity{}, fmt.Errorf("%w: its newest segment is %s, and only lz4, zstd and none are written: begin a new archive under another prefix", ErrCodec, s.key)
	}
	if want.WALCodec != "" && want.WALCodec != m.Name {
		return Identity{}, fmt.Errorf("%w: its newest segment is %s, %s was asked for: go on with %s, or begin a new archive under another prefix", ErrCodec, s.key, want.WALCodec, m.Name)
	}
	want.WALCodec = m.Name
	return want, nil
}

// anySegment finds a whole segment of the newest timeline, the first.
func (a *Archive) anySegment(ctx context.Context) (key string, ok bool, err error) {
	key, _, ok, err = a.newestTimeline(ctx)
	return key, ok, err
}

// newestTimeline returns the first whole segment of the newest timeline that
// has one. One listing for each timeline.
func (a *Archive) newestTimeline(ctx context.Context) (key string, n segment.Name, ok bool, err error) {
	startAfter := walDir
	for {
		found := false
		for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: walDir, StartAfter: startAfter, Limit: listPage}) {
			if err != nil {
				return "", segment.Name{}, false, fmt.Errorf("listing %s: %w", walDir, err)
			}
			found = true
			startAfter = info.Key
			if name, _, k := walKey(info.Key); k == whole {
				key, n, ok = info.Key, name, true
				startAfter = fmt.Sprintf("%s%08X%s", walDir, uint32(n.Timeline), behindName)
				break
			}
		}
		if !found {
			return key, n, ok, nil
		}
	}
}

// newestSegment finds the last whole segment of the newest timeline, whatever
// its extension. The segment size is not known, so the search is over what
// every name has: first the highest log number that has a segment, by
// doubling and halving, then what that one holds (4096 segments at most).
func (a *Archive) newestSegment(ctx context.Context) (key string, ok bool, err error) {
	key, n, ok, err := a.newestTimeline(ctx)
	if err != nil || !ok {
		return "", false, err
	}
	low, high := uint64(n.Log), uint64(1)<<32 // there is one in low, none from high on
	for step := uint64(1); low+1 < high; step *= 2 {
		ask := min(low+step, low+(high-low)/2)
		found, some, err := a.firstInLogs(ctx, n.Timeline, uint32(ask), high)
		if err != nil {
			return "", false, err
		}
		if some {
			low = uint64(found)
		} else {
			high, step = ask, 1<<31
		}
	}
	from := fmt.Sprintf("%s%08X%08X", walDir, uint32(n.Timeline), uint32(low))
	for info, err := range a.keys(ctx, n.Timeline, from, listPage) {
		if err != nil {
			return "", false, fmt.Errorf("listing WAL of timeline %d: %w", n.Timeline, err)
		}
		if _, _, k := walKey(info.Key); k == whole {
			key = info.Key
		}
	}
	return key, true, nil
}

// firstInLogs returns the log number of timeline t's first whole segment from
// log on and before end.
func (a *Archive) firstInLogs(ctx context.Context, t segment.Timeline, log uint32, end uint64) (found uint32, ok bool, err error) {
	startAfter := fmt.Sprintf("%s%08X%08X", walDir, uint32(t), log)
	for info, err := range a.keys(ctx, t, startAfter, probe) {
		if err != nil {
			return 0, false, fmt.Errorf("listing WAL of timeline %d: %w", t, err)
		}
		if n, _, k := walKey(info.Key); k == whole {
			return n.Log, uint64(n.Log) < end, nil
		}
	}
	return 0, false, nil
}
