package archive

import (
	"context"
	"errors"
	"fmt"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// Overview is what the archive holds, as far as names tell: no segment is read.
// While somebody writes, its parts may be of different moments.
type Overview struct {
	Identity  Identity // zero values are not known
	Timelines []FoundTimeline

	// History is that of the newest timeline, along which a restore goes by
	// default; zero while there is none. Without it, because it is missing or
	// cannot be understood, HistoryErr says so, and History has no ancestors.
	History    segment.History
	HistoryErr error

	// Sealed is the end of the gapless run of whole segments along History, as
	// RunEnd finds it but for recorded gaps: a restore does not get over them.
	// Reach is up to where a restore gets: Sealed, or what an
	// unfinished segment behind it adds. Zero when there is no such WAL.
	Sealed, Reach segment.Position
	// Last is the newest object of the segments that Reach counts; its Key is
	// empty when there is none.
	Last objstore.Info
	// Gaps are those that were recorded, by timeline and LSN.
	Gaps []RecordedGap
	// Behind is the newest whole segment when it lies behind a hole, out of a
	// restore's reach: the segment at Sealed is missing, and no tail objects
	// reach over it. Zero when there is no hole. (Workers store in any order: for
	// a moment there may be one.)
	Behind segment.Name
}

// FoundTimeline is a timeline that the archive knows of.
type FoundTimeline struct {
	Timeline segment.Timeline
	History  bool // its history file is there
	WAL      bool // a segment of it is there, whole or partial
}

// Overview asks for everything that it tells. ErrUnrecognised when nothing
// there says that it is an archive. It costs two listings or three for each
// timeline, those of RunEnd, and a few more.
func (a *Archive) Overview(ctx context.Context) (Overview, error) {
	o, err := a.overview(ctx)
	return o, wrap("looking at the archive "+a.String(), err)
}

func (a *Archive) overview(ctx context.Context) (o Overview, err error) {
	if o.Identity, _, err = a.Recognise(ctx); err != nil {
		return Overview{}, err
	}
	if o.Gaps, err = a.RecordedGaps(ctx); err != nil {
		return Overview{}, err
	}
	if o.Timelines, err = a.Timelines(ctx); err != nil || len(o.Timelines) == 0 {
		return o, err
	}
	latest := o.Timelines[len(o.Timelines)-1]
	if o.History, o.HistoryErr, err = a.historyOf(ctx, latest.Timeline); err != nil {
		return Overview{}, err
	}
	size := o.Identity.SegmentSize
	if size.Check() != nil {
		return o, nil // nobody said it: then no name tells where it ends
	}
	key, _, err := a.newestSegment(ctx)
	if err != nil {
		return Overview{}, err
	}
	last, _, _ := walKey(key) // zero: there is none
	from, ok, err := a.runStart(ctx, o.History, size, last.Start(size))
	if err != nil {
		return Overview{}, err
	}
	var end segment.Position
	if ok {
		number, err := a.firstMissing(ctx, stretches(o.History, size), size, from)
		if err != nil {
			return Overview{}, err
		}
		end.LSN = segment.LSN(number * uint64(size))
		end.Timeline = o.History.Owner(end.LSN)
		o.Sealed, o.Reach = end, end
		if end.LSN != 0 {
			whole, err := a.lastWhole(ctx, o.History, size, end.LSN)
			if err != nil {
				return o, err
			}
			o.Last = newest(o.Last, whole...)
		}
	} else if end, ok, err = a.firstTail(ctx, o.History, size); err != nil || !ok {
		return o, err
	}
	reach, object, err := a.reach(ctx, o.History, size, end.LSN)
	if err != nil {
		return o, err
	}
	if reach.LSN != 0 {
		o.Reach, o.Last = reach, newest(o.Last, object)
	}
	if at := last.Start(size); o.Sealed.LSN != 0 && at >= o.Reach.LSN && last.Timeline == o.History.Owner(at) {
		o.Behind = last
	}
	return o, nil
}

// NewestTimeline returns the highest timeline that the archive knows of: its
// history or WAL of it is there. 0 when there is none.
func (a *Archive) NewestTimeline(ctx context.Context) (segment.Timeline, error) {
	all, err := a.Timelines(ctx)
	if err != nil || len(all) == 0 {
		return 0, err
	}
	return all[len(all)-1].Timeline, nil
}

// Timelines returns the timelines that the archive knows of, ascending, without
// listing their WAL: two LISTs or three for each.
func (a *Archive) Timelines(ctx context.Context) ([]FoundTimeline, error) {
	var all []FoundTimeline
	startAfter := walDir
	for {
		t, err := a.nextTimeline(ctx, walDir, startAfter)
		if err != nil {
			return nil, err
		}
		if t == 0 {
			break
		}
		found := FoundTimeline{Timeline: t}
		prefix := fmt.Sprintf("%s%08X", walDir, uint32(t))
		// A history file sorts before its timeline's WAL.
		for info, err := range a.keys(ctx, t, prefix, probe) {
			if err != nil {
				return nil, fmt.Errorf("listing timeline %d: %w", t, err)
			}
			if isHistoryKey(info.Key) {
				found.History = true
			} else if _, _, k := walKey(info.Key); k != other {
				found.WAL = true
				break
			}
		}
		all = append(all, found)
		startAfter = prefix + behindName
	}
	if len(all) > 0 {
		return all, nil
	}
	// A new archive has tail objects first. (A later timeline has its history.)
	t, err := a.nextTimeline(ctx, tailDir, tailDir)
	if err != nil || t == 0 {
		return nil, err
	}
	return []FoundTimeline{{Timeline: t, WAL: true}}, nil
}

// nextTimeline returns the timeline of the first key in dir behind startAfter
// that has one; 0 when there is none.
func (a *Archive) nextTimeline(ctx context.Context, dir, startAfter string) (segment.Timeline, error) {
	for {
		n := 0
		for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: dir, StartAfter: startAfter, Limit: probe}) {
			if err != nil {
				return 0, fmt.Errorf("listing %s: %w", dir, err)
			}
			n++
			startAfter = info.Key
			if t, ok := timelineOf(info.Key); ok {
				return t, nil
			}
		}
		if n < probe {
			return 0, nil
		}
	}
}

// timelineOf returns the timeline whose WAL or history an object is.
func timelineOf(key string) (segment.Timeline, bool) {
	if n, _, k := walKey(key); k != other {
		return n.Timeline, true
	}
	if t, _, ok := tailKey(key); ok {
		return t.Segment.Timeline, true
	}
	if isHistoryKey(key) {
		t, err := segment.ParseHistoryName(key[len(walDir) : len(walDir)+len("00000000.history")])
		return t, err == nil
	}
	return 0, false
}

// isHistoryKey tells a timeline's history file that can be decoded.
func isHistoryKey(key string) bool {
	const end = len(walDir) + len("00000000.history")
	if len(key) < end {
		return false
	}
	_, err := segment.ParseHistoryName(key[len(walDir):end])
	return err == nil && codec.CanRead(key[end:])
}

// ErrHistory: a timeline's history file is there and cannot be understood.
var ErrHistory = errors.New("invalid timeline history")

// HistoryOf returns what timeline t descends from, as its history file in the
// archive says; timeline 1 has none, and needs none. ErrNotFound: there is no
// file, in no form. codec.ErrDamaged: it cannot be decoded. ErrHistory: it
// cannot be understood. With these three the history returned is t without
// ancestors; every other error is the store's.
func (a *Archive) HistoryOf(ctx context.Context, t segment.Timeline) (segment.History, error) {
	h := segment.History{Timeline: t}
	if t == 1 {
		return h, nil
	}
	content, err := a.History(ctx, t)
	if err != nil {
		return h, err
	}
	parsed, err := segment.ParseHistory(t, content)
	if err != nil {
		return h, fmt.Errorf("%w: %w", ErrHistory, err)
	}
	return parsed, nil
}

// historyOf is HistoryOf with two errors: unknown is why the archive does not
// say; err is the store's failure.
func (a *Archive) historyOf(ctx context.Context, t segment.Timeline) (h segment.History, unknown, err error) {
	h, err = a.HistoryOf(ctx, t)
	for _, known := range []error{ErrNotFound, codec.ErrDamaged, ErrHistory} {
		if errors.Is(err, known) {
			return h, err, nil
		}
	}
	return h, nil, err
}

// Histories returns what the history files say of all timelines above one, in
// ascending order: one GET for each, and one LIST more than that. A file that
// cannot be decoded or understood is told, and left out.
func (a *Archive) Histories(ctx context.Context, above segment.Timeline) ([]segment.History, error) {
	var all []segment.History
	for {
		t, err := a.nextTimeline(ctx, walDir, fmt.Sprintf("%s%08X%s", walDir, uint32(above), behindName))
		if err != nil || t == 0 {
			return all, err
		}
		h, unknown, err := a.historyOf(ctx, t)
		switch {
		case err != nil:
			return nil, err
		case unknown == nil:
			all = append(all, h)
		default:
			a.log.Warn("what a timeline descends from is not known", "timeline", uint32(t), "error", unknown.Error())
		}
		above = t
	}
}

// firstTail returns the beginning of the first segment along h that has a tail
// object: where an archive begins that has no whole segment yet.
func (a *Archive) firstTail(ctx context.Context, h segment.History, size segment.Size) (segment.Position, bool, error) {
	for _, t := range timelinesOf(h) {
		prefix := fmt.Sprintf("%s%08X", tailDir, uint32(t))
		for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: prefix}) {
			if err != nil {
				return segment.Position{}, false, fmt.Errorf("listing %s: %w", prefix, err)
			}
			if tail, _, ok := tailKey(info.Key); ok && tail.Segment.Check(size) == nil {
				return segment.Position{Timeline: t, LSN: tail.Segment.Start(size)}, true, nil
			}
		}
	}
	return segment.Position{}, false, nil
}

// reach returns up to where a restore along h gets by what there is of the
// segment that begins at start, which is not whole, and of those behind it.
// Workers store in any order: a segment that is there in tail objects to its end
// may have whole ones behind it. Zero: there is nothing. last is the newest object
// that counts.
func (a *Archive) reach(ctx context.Context, h segment.History, size segment.Size, start segment.LSN) (end segment.Position, last objstore.Info, err error) {
	for {
		to, object, err := a.unfinished(ctx, h, size, start)
		if err != nil || to.LSN == 0 {
			return end, last, err
		}
		end, last = to, newest(last, object)
		if start += segment.LSN(size); end.LSN < start {
			return end, last, nil
		}
		number, err := a.firstMissing(ctx, stretches(h, size), size, uint64(start)/uint64(size))
		if err != nil {
			return end, last, err
		}
		if lsn := segment.LSN(number * uint64(size)); lsn > start {
			start, end = lsn, segment.Position{Timeline: h.Owner(lsn), LSN: lsn}
			whole, err := a.lastWhole(ctx, h, size, lsn)
			if err != nil {
				return end, last, err
			}
			last = newest(last, whole...)
		}
	}
}

// lastWhole lists what is stored of the whole segment that ends at end.
func (a *Archive) lastWhole(ctx context.Context, h segment.History, size segment.Size, end segment.LSN) ([]objstore.Info, error) {
	// A segment is whole on the timeline that owns its last byte.
	return a.objects(ctx, size.Name(h.Owner(end-1), end-segment.LSN(size)))
}

// unfinished returns up to where a restore along h gets in the segment that
// begins at start and is not whole: by tail objects of one of the timelines
// that have a part in it, or by what is stored of one that ended in it. Zero:
// there is nothing. last is the newest object that counts.
func (a *Archive) unfinished(ctx context.Context, h segment.History, size segment.Size, start segment.LSN) (end segment.Position, last objstore.Info, err error) {
	stop := start + segment.LSN(size)
	for _, t := range timelinesOf(h) {
		limit, ended := h.Switchpoint(t)
		if h.BeginOf(t) >= stop || ended && limit <= start {
			continue
		}
		n := size.Name(t, start)
		to, found, err := a.tailOf(ctx, n)
		if err != nil {
			return segment.Position{}, objstore.Info{}, err
		}
		reached := min(start+segment.LSN(to), stop)
		if ended && limit < stop {
			// Nothing behind the switchpoint is part of h; what ends there is stored
			// as a partial, or whole where that server went on.
			reached = min(reached, limit)
			stored, err := a.objects(ctx, n)
			if err != nil {
				return segment.Position{}, objstore.Info{}, err
			}
			if len(stored) > 0 {
				reached = limit
			}
			found = append(found, stored...)
		}
		if reached > start {
			end = segment.Position{Timeline: t, LSN: reached}
		}
		last = newest(last, found...)
	}
	return end, last, nil
}

// objects lists what is stored of a segment, whole or partial, as far as it can
// be decoded.
func (a *Archive) objects(ctx context.Context, n segment.Name) ([]objstore.Info, error) {
	var all []objstore.Info
	for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: walDir + n.String()}) {
		if err != nil {
			return nil, fmt.Errorf("listing what is stored of %s: %w", n, err)
		}
		if _, ext, k := walKey(info.Key); k != other && codec.CanRead(ext) {
			all = append(all, info)
		}
	}
	return all, nil
}

// tailOf lists a segment's tail objects, as far as they can be decoded, and
// returns how many bytes they give by their names.
func (a *Archive) tailOf(ctx context.Context, n segment.Name) (end uint32, all []objstore.Info, err error) {
	for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: tailDir + n.String() + "/"}) {
		if err != nil {
			return 0, nil, fmt.Errorf("listing the tail objects of %s: %w", n, err)
		}
		t, ext, ok := tailKey(info.Key)
		if !ok || !codec.CanRead(ext) {
			continue
		}
		all = append(all, info)
		if t.Start <= end { // they come by their starts
			end = max(end, t.End)
		}
	}
	return end, all, nil
}

// newest returns the youngest of the objects; of those of one second the last.
func newest(last objstore.Info, others ...objstore.Info) objstore.Info {
	for _, o := range others {
		if last.Key == "" || !o.Modified.Before(last.Modified) {
			last = o
		}
	}
	return last
}

// timelinesOf returns the timelines of h, oldest first.
func timelinesOf(h segment.History) []segment.Timeline {
	var all []segment.Timeline
	for _, s := range h.Ancestors {
		all = append(all, s.Timeline)
	}
	return append(all, h.Timeline)
}
