package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/segment"
)

// ErrNoBackup: the archive holds no base backup that could be restored, or none
// of that name.
var ErrNoBackup = errors.New("no such base backup")

// UnreachableError: the archive cannot bring a server to the target.
type UnreachableError struct {
	Reason   string   // in a sentence
	Possible []string // what can be reached instead, a line each
}

func (e *UnreachableError) Error() string {
	if len(e.Possible) == 0 {
		return e.Reason
	}
	return e.Reason + "; possible: " + strings.Join(e.Possible, "; ")
}

// LatestBackup, as Options.Backup, is the same as "".
const LatestBackup = "LATEST"

// Archive is what a plan is made from; *archive.Archive is one.
type Archive interface {
	Backups(ctx context.Context) ([]archive.Backup, error)
	Timelines(ctx context.Context) ([]archive.FoundTimeline, error)
	HistoryOf(ctx context.Context, t segment.Timeline) (segment.History, error)
	Recognise(ctx context.Context) (id archive.Identity, present bool, err error)
	ReachFrom(ctx context.Context, h segment.History, size segment.Size, from segment.LSN) (sealed, reach segment.Position, err error)
	NextSegment(ctx context.Context, after segment.Name) (n segment.Name, ok bool, err error)
	NextTail(ctx context.Context, after segment.Name) (n segment.Name, ok bool, err error)
	Gaps(ctx context.Context) (segment.Gaps, error)
	ReadGap(ctx context.Context, g segment.Gap) (archive.RecordedGap, error)
}

// Options say what is wanted.
type Options struct {
	// Backup is the name of the base backup, or LatestBackup or "": the newest
	// that serves the target.
	Backup  string
	Target  Target
	Standby bool // the server is to go on as a standby
	// StopAtGap takes a hole in the WAL for its end, as fetch does when it is
	// told so. Else a restore to the end of the archive, which lies behind the
	// hole, is refused.
	StopAtGap bool
	// Now is the present; it only serves to note that a target lies in the
	// future. Zero: nothing is noted.
	Now time.Time
}

// Plan is how a cluster is restored.
type Plan struct {
	Backup  archive.Backup
	Target  Target
	Standby bool
	// History is that of the timeline along which WAL is replayed.
	History segment.History
	Size    segment.Size // of WAL segments
	// Reach is how far the archive's WAL goes along History; the backup's stop
	// when there is none behind it.
	Reach segment.Position
	// Behind is WAL that the archive holds behind a hole at Reach, or that the
	// server had behind a recorded gap; zero when there is none.
	Behind segment.Name
	// StopAtGap: fetch is to take the hole for the end of the archive. The server
	// may need the rest of a segment in front of it to get to its target, and
	// does not end its recovery before that (PostgreSQL: "recovery ended before
	// configured recovery target was reached").
	StopAtGap bool
	Notes     []string // what else is to be known, a sentence each
}

// MakePlan chooses backup and timeline, and makes sure that WAL leads from the
// one to the target. For a time or an LSN it takes the newest backup that was
// consistent before; else the newest of all. "Newest" goes by what backups
// hold, along the timeline that is restored.
//
// Only listings are read, and sentinels. Errors: ErrNoBackup,
// *UnreachableError, those of Target.Check, of Recognise and of the store.
func MakePlan(ctx context.Context, a Archive, o Options) (*Plan, error) {
	if err := o.Target.Check(); err != nil {
		return nil, err
	}
	p := &planner{archive: a, o: o, plan: &Plan{Target: o.Target, Standby: o.Standby}}
	if err := p.make(ctx); err != nil {
		return nil, err
	}
	return p.plan, nil
}

// planner makes one plan.
type planner struct {
	archive   Archive
	o         Options
	plan      *Plan
	usable    []archive.Backup // oldest first
	named     *archive.Backup  // what o.Backup names
	timelines []segment.Timeline
	gaps      segment.Gaps // recorded ones
}

func (p *planner) note(format string, args ...any) {
	p.plan.Notes = append(p.plan.Notes, fmt.Sprintf(format, args...))
}

func (p *planner) make(ctx context.Context) error {
	if err := p.findBackups(ctx); err != nil {
		return err
	}
	if err := p.findTimelines(ctx); err != nil {
		return err
	}
	var err error
	if p.gaps, err = p.archive.Gaps(ctx); err != nil {
		return err
	}
	if err := p.chooseHistory(ctx); err != nil {
		return err
	}
	if err := p.chooseBackup(ctx); err != nil {
		return err
	}
	if err := p.findReach(ctx); err != nil {
		return err
	}
	p.explain()
	return nil
}

// findBackups reads what backups there are, and which of them can be restored.
func (p *planner) findBackups(ctx context.Context) error {
	all, err := p.archive.Backups(ctx)
	if err != nil {
		return err
	}
	wanted := p.o.Backup
	if wanted == LatestBackup {
		wanted = ""
	}
	passed := map[string][]string{} // names of backups by why they are passed over
	for _, b := range all {
		why := unusable(b)
		switch {
		case wanted != "" && b.Name.String() != wanted:
		case why != nil && wanted != "":
			return fmt.Errorf("base backup %s: %w", b.Name, why)
		case why != nil:
			passed[why.Error()] = append(passed[why.Error()], b.Name.String())
		default:
			p.usable = append(p.usable, b)
		}
	}
	for _, why := range slices.Sorted(maps.Keys(passed)) {
		p.note("%s passed over: %s", several(passed[why]), why)
	}
	switch {
	case len(p.usable) > 0 && wanted != "":
		p.named = &p.usable[0]
		return nil
	case len(p.usable) > 0:
		return nil
	case wanted != "":
		return fmt.Errorf("%w: %s%s", ErrNoBackup, wanted, otherBackups(all))
	case len(all) > 0:
		return fmt.Errorf("%w: none of the %d in the archive can be restored: %s", ErrNoBackup, len(all), strings.Join(p.plan.Notes, "; "))
	}
	return fmt.Errorf("%w: there is none in the archive", ErrNoBackup)
}

// several names one base backup, or counts them.
func several(names []string) string {
	if len(names) == 1 {
		return "base backup " + names[0] + " is"
	}
	return fmt.Sprintf("%d base backups (%s to %s) are", len(names), names[0], names[len(names)-1])
}

// otherBackups names the backups that there are instead.
func otherBackups(all []archive.Backup) string {
	if len(all) == 0 {
		return ": there is none in the archive"
	}
	return fmt.Sprintf(": the newest of %d is %s", len(all), all[len(all)-1].Name)
}

// unusable says why a backup cannot be restored.
func unusable(b archive.Backup) error {
	switch {
	case b.Err != nil:
		return b.Err
	case b.FactsErr != nil:
		return b.FactsErr
	case b.Name.IsDelta(), b.Sentinel.DeltaFrom != "":
		return errors.New("it is a delta backup of WAL-G's: wal-g restores it")
	case b.Stop.LSN == 0:
		return errors.New("its sentinel does not say where it is consistent")
	}
	return nil
}

// findTimelines lists the timelines that the archive knows, newest first:
// those of its WAL and of its backups.
func (p *planner) findTimelines(ctx context.Context) error {
	found, err := p.archive.Timelines(ctx)
	if err != nil {
		return err
	}
	for _, f := range found {
		p.timelines = append(p.timelines, f.Timeline)
	}
	for _, b := range p.usable {
		p.timelines = append(p.timelines, b.Start.Timeline, b.Stop.Timeline)
	}
	slices.SortFunc(p.timelines, func(x, y segment.Timeline) int { return cmp.Compare(y, x) })
	p.timelines = slices.Compact(p.timelines)
	return nil
}

// chooseHistory decides on the timeline. Latest is the newest that a backup
// leads to: a server that was promoted by mistake, and of which nobody took a
// backup that it descends from, cannot be restored.
func (p *planner) chooseHistory(ctx context.Context) error {
	word, number, err := p.o.Target.timeline()
	switch {
	case err != nil:
		return err
	case word == Current:
		return p.ownHistory(ctx)
	case word == Latest:
		return p.latestHistory(ctx)
	case !slices.Contains(p.timelines, number):
		return &UnreachableError{Reason: fmt.Sprintf("the archive knows of no timeline %d", number), Possible: []string{"timelines " + p.timelineNames()}}
	}
	h, why, err := p.history(ctx, number)
	if err != nil {
		return err
	}
	if why != nil {
		return &UnreachableError{Reason: fmt.Sprintf("timeline %d cannot be restored: %v", number, why)}
	}
	if len(p.on(h)) == 0 {
		return &UnreachableError{Reason: p.offHistory(h), Possible: p.backupPlaces()}
	}
	p.plan.History = h
	return nil
}

// ownHistory takes the timeline on which the backup ended: the newest backup's
// where none is named.
func (p *planner) ownHistory(ctx context.Context) error {
	t := p.usable[len(p.usable)-1].Stop.Timeline
	h, why, err := p.history(ctx, t)
	if err != nil {
		return err
	}
	if why != nil {
		return &UnreachableError{Reason: fmt.Sprintf("timeline %d cannot be restored: %v", t, why)}
	}
	p.plan.History = h
	return nil
}

func (p *planner) latestHistory(ctx context.Context) error {
	for _, t := range p.timelines {
		h, why, err := p.history(ctx, t)
		if err != nil {
			return err
		}
		switch {
		case why != nil:
			p.note("timeline %d is passed over: %v", t, why)
		case len(p.on(h)) == 0:
			p.note("timeline %d is passed over: %s", t, p.offHistory(h))
		default:
			p.plan.History = h
			return nil
		}
	}
	return &UnreachableError{Reason: "no timeline can be restored: " + strings.Join(p.plan.Notes, "; ")}
}

// history reads what a timeline descends from. why says that the archive cannot
// tell it.
func (p *planner) history(ctx context.Context, t segment.Timeline) (h segment.History, why, err error) {
	h, err = p.archive.HistoryOf(ctx, t)
	if errors.Is(err, archive.ErrNotFound) && p.carried(t) {
		// What the timeline descends from matters before the backup's start only,
		// and the server finds the file in pg_wal.
		return segment.History{Timeline: t}, nil, nil
	}
	if errors.Is(err, archive.ErrNotFound) {
		return h, fmt.Errorf("its history file %s is not in the archive", t.HistoryName()), nil
	}
	if errors.Is(err, archive.ErrHistory) {
		return h, err, nil
	}
	return h, nil, err
}

// carried tells whether a backup that carries its WAL, and with it the history
// file, lies on a timeline.
func (p *planner) carried(t segment.Timeline) bool {
	return slices.ContainsFunc(p.usable, func(b archive.Backup) bool {
		return included(b) && b.Start.Timeline == t && b.Stop.Timeline == t
	})
}

// on returns the backups from which h can be followed.
func (p *planner) on(h segment.History) []archive.Backup {
	var all []archive.Backup
	for _, b := range p.usable {
		if h.Contains(b.Start) && h.Contains(b.Stop) {
			all = append(all, b)
		}
	}
	slices.SortStableFunc(all, func(x, y archive.Backup) int { return cmp.Compare(x.Stop.LSN, y.Stop.LSN) })
	return all
}

// offHistory says why no backup leads to h.
func (p *planner) offHistory(h segment.History) string {
	who := "no base backup"
	if p.named != nil {
		who = fmt.Sprintf("base backup %s, which ends at %s, does not lie", p.named.Name, p.named.Stop)
	} else {
		who += " lies"
	}
	if n := len(h.Ancestors); n > 0 {
		last := h.Ancestors[n-1]
		return fmt.Sprintf("%s on timeline %d, which left timeline %d at %s", who, h.Timeline, last.Timeline, last.At)
	}
	return fmt.Sprintf("%s on timeline %d", who, h.Timeline)
}

func (p *planner) timelineNames() string {
	var names []string
	for _, t := range slices.Backward(p.timelines) {
		names = append(names, strconv.FormatUint(uint64(t), 10))
	}
	return strings.Join(names, ", ")
}

func (p *planner) backupPlaces() []string {
	var all []string
	for _, b := range p.usable {
		all = append(all, fmt.Sprintf("base backup %s ends at %s", b.Name, b.Stop))
	}
	return all
}

// chooseBackup takes the newest backup that was consistent before the target.
func (p *planner) chooseBackup(ctx context.Context) error {
	all := p.on(p.plan.History)
	for _, b := range slices.Backward(all) {
		if p.before(b) {
			p.plan.Backup = b
			return p.measure(ctx)
		}
	}
	// All end behind it. What they make possible needs the segment size.
	p.plan.Backup = all[0]
	if err := p.measure(ctx); err != nil {
		return err
	}
	reason := fmt.Sprintf("%s lies before the end of the oldest base backup %s (%s%s)", p.o.Target, all[0].Name, all[0].Stop, finishText(all[0]))
	if p.named != nil {
		reason = fmt.Sprintf("%s lies before the end of base backup %s (%s%s)", p.o.Target, p.named.Name, p.named.Stop, finishText(*p.named))
	}
	return p.unreachable(ctx, reason)
}

// before tells whether a backup is consistent before the target. Where the
// sentinel does not say when it was, the store's clock does: it is later.
func (p *planner) before(b archive.Backup) bool {
	switch t := p.o.Target; {
	case t.LSN != nil:
		return b.Stop.LSN <= *t.LSN
	case t.Time != nil:
		finish := finishTime(b)
		return !finish.IsZero() && finish.Before(*t.Time)
	}
	return true
}

func finishTime(b archive.Backup) time.Time {
	if b.Sentinel.FinishTime.IsZero() {
		return b.StoredAt
	}
	return b.Sentinel.FinishTime
}

// finishText is when a backup ended, behind other words.
func finishText(b archive.Backup) string {
	if t := finishTime(b); !t.IsZero() {
		return ", " + formatTime(t)
	}
	return ""
}

// measure finds the segment size out.
func (p *planner) measure(ctx context.Context) error {
	id, _, err := p.archive.Recognise(ctx)
	if err != nil && !errors.Is(err, archive.ErrUnrecognised) {
		return err
	}
	if s := p.plan.Backup.Sentinel.SystemIdentifier; id.SystemIdentifier != 0 && s != 0 && s != id.SystemIdentifier {
		return fmt.Errorf("%w: base backup %s is of system %d, the archive's WAL of %d", archive.ErrForeignCluster, p.plan.Backup.Name, s, id.SystemIdentifier)
	}
	p.plan.Size = id.SegmentSize
	if f := p.plan.Backup.Facts; f != nil {
		if p.plan.Size != 0 && p.plan.Size != segment.Size(f.SegmentSize) {
			return fmt.Errorf("%w: base backup %s has segments of %s, the archive of %s", segment.ErrSegmentSize, p.plan.Backup.Name, segment.Size(f.SegmentSize), p.plan.Size)
		}
		p.plan.Size = segment.Size(f.SegmentSize)
	}
	if p.plan.Size.Check() != nil {
		return fmt.Errorf("%w: no WAL segment there says how long segments are, and base backup %s carries no WAL", archive.ErrUnrecognised, p.plan.Backup.Name)
	}
	return nil
}

// included tells whether a backup carries the WAL that makes it consistent.
func included(b archive.Backup) bool { return b.Facts != nil && b.Facts.WAL == archive.WALIncluded }

// reachOf returns how far WAL goes without a gap from a backup on. whole is
// false when it does not make the backup consistent: then reach is where it
// ends.
func (p *planner) reachOf(ctx context.Context, b archive.Backup) (reach segment.Position, whole bool, err error) {
	h, size := p.plan.History, p.plan.Size
	_, reach, err = p.archive.ReachFrom(ctx, h, size, b.Start.LSN)
	if err != nil || reach.LSN >= b.Stop.LSN {
		return reach, err == nil, err
	}
	if !included(b) {
		return reach, false, nil
	}
	// The archive may lack what the backup carries, and hold what follows: from
	// the segment on in which the backup ends.
	_, reach, err = p.archive.ReachFrom(ctx, h, size, b.Stop.LSN)
	if reach.LSN < b.Stop.LSN {
		reach = segment.Position{Timeline: b.Stop.Timeline, LSN: b.Stop.LSN}
	}
	return reach, err == nil, err
}

// hole returns WAL along the history that lies behind a place at which WAL
// ends: on the timeline that owns the place, before that ends, or on those that
// follow it. Behind a recorded gap there was WAL, whether or not any of it has
// been stored since.
func (p *planner) hole(ctx context.Context, at segment.LSN) (behind segment.Name, found bool, err error) {
	h, size := p.plan.History, p.plan.Size
	owner := h.Owner(at)
	after := size.Name(owner, at)
	for _, t := range append(ancestors(h, owner), h.Timeline) {
		end, ended := h.Switchpoint(t)
		for _, look := range []func(context.Context, segment.Name) (segment.Name, bool, error){p.archive.NextSegment, p.archive.NextTail} {
			n, ok, err := look(ctx, after)
			if err != nil {
				return segment.Name{}, false, err
			}
			if ok && (!ended || n.Start(size) < end) {
				return n, true, nil
			}
		}
		after = segment.Name{} // any of the next timeline
		if i := slices.IndexFunc(h.Ancestors, func(s segment.Switch) bool { return s.Timeline > t }); i >= 0 {
			after.Timeline = h.Ancestors[i].Timeline
		} else {
			after.Timeline = h.Timeline
		}
	}
	for _, g := range p.gaps.Along(h) {
		if g.End > at {
			return size.Name(h.Owner(g.End), g.End), true, nil
		}
	}
	return segment.Name{}, false, nil
}

// lost says, behind other words, that WAL which ends at a place ends at a
// recorded gap.
func (p *planner) lost(at segment.LSN) string {
	if g, ok := p.gapAt(at); ok {
		return fmt.Sprintf(" (WAL from %s is lost: a gap was recorded there)", g)
	}
	return ""
}

// gapAt returns the recorded gap at which WAL ends that ends at a place.
func (p *planner) gapAt(at segment.LSN) (segment.Gap, bool) {
	h, size := p.plan.History, p.plan.Size
	for _, g := range p.gaps.Along(h) {
		if g.Start < size.Start(at)+segment.LSN(size) && at < g.End {
			return g, true
		}
	}
	return segment.Gap{}, false
}

// ancestors returns those of h from a timeline on, oldest first.
func ancestors(h segment.History, from segment.Timeline) []segment.Timeline {
	var all []segment.Timeline
	for _, s := range h.Ancestors {
		if s.Timeline >= from {
			all = append(all, s.Timeline)
		}
	}
	return all
}

// findReach proves that WAL leads to the target.
func (p *planner) findReach(ctx context.Context) error {
	b, t, h := p.plan.Backup, p.o.Target, p.plan.History
	reach, whole, err := p.reachOf(ctx, b)
	if err != nil {
		return err
	}
	if !whole {
		missing := fmt.Sprintf("base backup %s needs WAL from %s to %s, and the archive has none of it", b.Name, b.Start, b.Stop)
		if reach.LSN > b.Start.LSN {
			missing = fmt.Sprintf("base backup %s needs WAL from %s to %s, and the archive's ends at %s", b.Name, b.Start, b.Stop, reach)
		}
		return p.unreachable(ctx, missing)
	}
	p.plan.Reach = reach
	if t.LSN != nil && *t.LSN >= reach.LSN {
		// The server stops at a record that begins there or behind.
		return p.unreachable(ctx, fmt.Sprintf("%s is not reached: from base backup %s on the archive's WAL ends at %s%s", t, b.Name, reach, p.lost(reach.LSN)))
	}
	inside := t.LSN != nil || t.Immediate
	if !inside && reach.LSN < h.Begin() {
		// The server would end on a timeline that it has not reached, and begin
		// one whose history is not true.
		return p.unreachable(ctx, fmt.Sprintf("from base backup %s on the archive's WAL ends at %s, before timeline %d begins at %s%s", b.Name, reach, h.Timeline, h.Begin(), p.lost(reach.LSN)))
	}
	behind, found, err := p.hole(ctx, reach.LSN)
	if err != nil || !found {
		return err
	}
	p.plan.Behind, p.plan.StopAtGap = behind, !t.none() && !p.o.Standby
	if inside {
		return nil
	}
	where := fmt.Sprintf("the archive's WAL has a hole: from base backup %s on it ends at %s, and goes on in segment %s%s", b.Name, reach, behind, p.lost(reach.LSN))
	if t.none() && !p.o.StopAtGap {
		return p.unreachable(ctx, where)
	}
	if t.Time != nil {
		recorded, found, err := p.recorded(ctx, reach.LSN)
		if err != nil {
			return err
		}
		if found && !t.Time.Before(recorded) {
			return p.unreachable(ctx, fmt.Sprintf("%s lies behind WAL that was lost by %s, by the receiver's clock: %s", t, formatTime(recorded), where))
		}
	}
	p.note("%s", where)
	return nil
}

// recorded returns when the gap was recorded at which WAL ends, rounded up from
// the record's seconds: all that is lost was written before. A record that does
// not say so tells nothing.
func (p *planner) recorded(ctx context.Context, at segment.LSN) (when time.Time, found bool, err error) {
	g, found := p.gapAt(at)
	if !found {
		return time.Time{}, false, nil
	}
	r, err := p.archive.ReadGap(ctx, g)
	if errors.Is(err, archive.ErrNotFound) {
		return time.Time{}, false, nil
	}
	return r.RecordedAt.Add(time.Second), err == nil && r.Err == nil, err
}

// unreachable refuses, with what the backups on this timeline lead to.
func (p *planner) unreachable(ctx context.Context, reason string) error {
	type window struct {
		oldest archive.Backup
		reach  segment.Position
	}
	var all []window
	for _, b := range p.on(p.plan.History) {
		reach, whole, err := p.reachOf(ctx, b)
		if err != nil {
			return err
		}
		if whole && (len(all) == 0 || all[len(all)-1].reach != reach) {
			all = append(all, window{b, reach})
		}
	}
	e := &UnreachableError{Reason: reason}
	for _, w := range all {
		behind, found, err := p.hole(ctx, w.reach.LSN)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("from %s%s, the end of %s, to before %s", w.oldest.Stop, finishText(w.oldest), w.oldest.Name, w.reach)
		if w.reach.LSN == w.oldest.Stop.LSN {
			text = fmt.Sprintf("the end of %s itself (%s%s, target immediate)", w.oldest.Name, w.oldest.Stop, finishText(w.oldest))
		}
		switch {
		case found:
			text += fmt.Sprintf(", where WAL is missing up to segment %s", behind)
		case w.reach.LSN >= p.plan.History.Begin():
			text += ", or without a target to there"
		}
		e.Possible = append(e.Possible, text)
	}
	if len(all) == 0 {
		e.Possible = []string{"nothing on timeline " + strconv.FormatUint(uint64(p.plan.History.Timeline), 10) + " with these base backups"}
	}
	return e
}

// explain notes what a person should know.
func (p *planner) explain() {
	b, t := p.plan.Backup, p.o.Target
	if p.named == nil && (t.XID != nil || t.Name != "") {
		p.note("the newest base backup is taken, since nothing says where %s lies: if the server does not find it, name an older backup", t)
	}
	if t.Time != nil && !p.o.Now.IsZero() && t.Time.After(p.o.Now) {
		p.note("%s lies in the future: the server replays to the end of the archive, does not find the target, and stops", t)
	}
	if b.Suspect() {
		p.note("the server found %d pages with wrong checksums while this backup was taken: %s", len(b.Facts.SuspectPages), b.Facts.SuspectPages[0])
	}
	if p.plan.Reach == b.Stop && included(b) {
		p.note("there is no WAL behind the backup: it is restored to its own end")
	}
	if h := p.plan.History; len(h.Ancestors) > 0 && p.plan.Reach.LSN == h.Begin() {
		p.note("there is no WAL of timeline %d, which begins at %s", h.Timeline, h.Begin())
	}
}
