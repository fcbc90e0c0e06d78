package receiver

import (
	"context"
	"errors"
	"fmt"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// slotState is what is known of our slot on the server.
type slotState struct {
	exists  bool
	restart segment.LSN // 0: unknown, or nothing reserved
	empty   bool        // it is known that it retains nothing
}

// readSlot asks for our slot.
func (r *Receiver) readSlot(ctx context.Context, conn *replication.Conn) (slotState, error) {
	if r.o.Slot == "" {
		return slotState{exists: true}, nil // nothing is to be made
	}
	ctx, cancel := answering(ctx)
	defer cancel()
	s, err := conn.ReadSlot(ctx, r.o.Slot)
	if errors.Is(err, replication.ErrUnsupported) {
		return r.readSlot14(ctx)
	}
	if err != nil {
		return slotState{}, err
	}
	if s.Exists && s.Type != "physical" {
		return slotState{}, fmt.Errorf("%w: replication slot %q is a %s slot; choose another name", ErrServer, r.o.Slot, s.Type)
	}
	r.slotSeen = s.Exists
	return slotState{exists: s.Exists, restart: s.RestartLSN, empty: s.Exists && s.RestartLSN == 0}, nil
}

// readSlot14 does without READ_REPLICATION_SLOT, which came with PostgreSQL
// 15: an ordinary connection is asked. Where that is refused the slot is taken
// to exist once this run has made or used it, and streaming says otherwise.
func (r *Receiver) readSlot14(ctx context.Context) (slotState, error) {
	if r.o.SlotPosition == nil {
		return slotState{exists: r.slotSeen || r.o.SlotMustExist}, nil
	}
	restart, ok, err := r.o.SlotPosition(ctx, r.o.Slot)
	if err != nil {
		r.log.Debug("an ordinary connection for the slot's position is refused", "error", err.Error())
		return slotState{exists: r.slotSeen}, nil
	}
	return slotState{exists: ok, restart: restart, empty: ok && restart == 0}, nil
}

// createSlot makes the slot with its WAL reserved, and says so.
func (r *Receiver) createSlot(ctx context.Context, conn *replication.Conn) error {
	ctx, cancel := answering(ctx)
	defer cancel()
	err := conn.CreateSlot(ctx, r.o.Slot)
	if errors.Is(err, replication.ErrSlotExists) {
		r.slotSeen = true
		return nil
	}
	if err != nil {
		return err
	}
	r.created, r.slotSeen = true, true
	r.log.Warn("created the replication slot; from now on the server keeps WAL until walferry has it: "+
		"if nobody reads the slot, that WAL fills the server's disk (drop it with: walferry slot drop "+r.o.Slot+")", "slot", r.o.Slot)
	return nil
}

// tryWithoutSlot makes sure that the server still has the WAL that follows
// what we hold, before a slot is made. The connection is used up.
func (r *Receiver) tryWithoutSlot(ctx context.Context, conn *replication.Conn) error {
	if r.fresh {
		return conn.Close(ctx)
	}
	from, _ := r.startPosition()
	if from.LSN >= r.server {
		return conn.Close(ctx) // the server's end: there is nothing yet that it could have removed
	}
	if err := stillHas(ctx, conn, from); err != nil {
		return r.gapOr(err, from)
	}
	return nil
}

// replaceLost makes the slot anew after the server has invalidated it. A lost
// slot is no proof that WAL is gone: only when the server still has what
// follows what we hold is it replaced; it retains nothing any more, so that
// nothing is given up by dropping it. (Before 18 the server streams from a lost
// slot as if nothing were the matter, and keeps no WAL for it.)
func (r *Receiver) replaceLost(ctx context.Context) error {
	conn, err := r.o.Connect(ctx)
	if err != nil {
		return err
	}
	if err := r.tryWithoutSlot(ctx, conn); err != nil {
		return err
	}
	r.log.Warn("the replication slot retains nothing, most likely since the server has invalidated it, and the server still has all WAL that follows what we hold: making the slot anew", "slot", r.o.Slot)
	if err := r.dropSlot(ctx); err != nil {
		return err
	}
	if conn, err = r.o.Connect(ctx); err != nil {
		return err
	}
	if err := errors.Join(r.createSlot(ctx, conn), conn.Close(ctx)); err != nil {
		return err
	}
	return fmt.Errorf("the slot was made anew: %w", errNextStart)
}

// gapOr turns the server's "already been removed" into a removedError, when that
// is what it means: at the page before a boundary it only means that the server
// does not keep the segment before any more.
func (r *Receiver) gapOr(err error, from segment.Position) error {
	if !errors.Is(err, replication.ErrWALRemoved) {
		return err
	}
	if from.LSN < r.pos.LSN && r.size.Offset(r.pos.LSN) == 0 && !r.skipPage {
		r.skipPage = true
		return fmt.Errorf("the server has no WAL before %s any more; beginning there: %w", r.pos, errNextStart)
	}
	if r.ahead.LSN > r.pos.LSN {
		r.log.Warn("the server has removed WAL that the directory lacks and the archive has: going on behind it; put the segments between into the directory where it must be without a gap",
			"gap_begins", r.pos.String(), "gap_ends", r.ahead.String())
		r.pos, r.ahead = r.ahead, segment.Position{}
		r.spooled, r.tail, r.unsealed, r.skipPage = r.pos.LSN, tailPage{}, segment.Name{}, false
		return errNextStart
	}
	if r.unasked {
		// The archive may know more than a spool that lost its end with the power.
		r.resolved = false
		return &archiveError{fmt.Errorf("the server has removed the WAL that follows the spool's end at %s, and whether the archive has it is not known: %w", r.pos, err)}
	}
	return &removedError{err}
}

// errNextStart ends an attempt whose start position has to be chosen again.
var errNextStart = errors.New("starting at another position")

// startPosition returns what to ask the server for: the start of the segment
// that holds the resume position, on the timeline that owns it; at an exact
// boundary one page before, so that there is something to compare. page says
// that the page before is included; see lastPage for one that is empty. A
// segment that is whole and was not sealed (a crash between the two) is asked
// for again as if it were not whole.
func (r *Receiver) startPosition() (from segment.Position, page bool) {
	if r.size.Offset(r.pos.LSN) != 0 {
		return segment.Position{Timeline: r.pos.Timeline, LSN: r.size.Start(r.pos.LSN)}, false
	}
	if r.crowded(r.pos.LSN) != nil || r.fresh || r.skipPage || r.pos.LSN == 0 || r.pos.LSN == r.gapEnd || r.pos.LSN == r.history.BeginOf(r.pos.Timeline) {
		return segment.Position{Timeline: r.pos.Timeline, LSN: r.pos.LSN}, false
	}
	before := segment.Position{Timeline: r.history.Owner(r.pos.LSN - 1), LSN: r.pos.LSN - pageSize}
	n := r.size.Name(before.Timeline, before.LSN)
	if g, held := r.find(n); held && !g.Sealed() || !held && n == r.unsealed {
		return segment.Position{Timeline: before.Timeline, LSN: n.Start(r.size)}, false
	}
	return before, true
}

// resolve finds the resume position, once: the spool's end where the spool
// joins the archive, else the end of the archive's gapless run; only when both
// are empty the slot's restart_lsn, else the server's own position.
func (r *Receiver) resolve(ctx context.Context, conn *replication.Conn, s server, slot *slotState) error {
	if r.resolved && !r.fresh {
		return nil
	}
	own, owned := r.own()
	if owned && own.Timeline > s.system.Timeline {
		r.pos = own
		return r.checkContinuity(ctx, s)
	}
	if err := r.checkLineage(s); err != nil {
		return err
	}
	first, end, held := r.heldRun()
	near := s.system.Flush
	if held {
		near = end.LSN
	}
	archived, ok, asked, err := r.archiveEnd(ctx, near, held)
	if err != nil {
		return err
	}
	if asked && held {
		first, end, held = r.heldRun() // the recorded gaps are known now
	}
	r.tellHole(end)
	r.unasked = held && !ok && !asked
	if asked {
		if err := r.checkArchivesLineage(ctx, s, held); err != nil {
			return err
		}
	}
	if held && ok {
		if ok, err = r.coversHeld(ctx, archived); err != nil {
			return err
		}
	}
	if asked && !ok && !held {
		// A new archive, whose first segment is not whole yet.
		if archived, ok, err = r.firstTail(ctx); err != nil {
			return err
		}
	}
	if held && ok && archived.LSN >= end.LSN {
		kept, err := r.keptInGap(ctx, *slot, end)
		if err != nil {
			return err
		}
		if kept {
			archived = first
		}
	}
	joined := archived
	if held {
		joined = first
	}
	if begin, missed, err := r.missedBefore(ctx, slot, joined, held || ok); err != nil || missed {
		if err == nil {
			r.beginAt(begin)
			r.log.Warn("neither the spool nor the archive has what the slot retains: streaming it again from there", "position", r.pos.String(), "slot", r.o.Slot)
		}
		return err
	}
	switch {
	case !held && !ok && owned:
		r.beginOwn(own)
		return nil
	case !held && !ok:
		return r.resolveFresh(ctx, conn, s, slot)
	case !held:
		r.pos = archived
		r.uploader.Base(archived)
	case !ok: // nothing archived yet, or the archive cannot be asked: the spool is one run by construction
		r.pos = end
		r.uploader.Base(first)
	case archived.LSN >= end.LSN:
		r.pos = archived
		r.uploader.Base(archived)
	case archived.LSN >= first.LSN:
		r.pos = end
		r.uploader.Base(archived)
	default:
		r.log.Warn("the spool does not join the archive: asking the server again for what lies between",
			"archive_ends", archived.String(), "spool_begins", first.String())
		r.pos = archived
		r.uploader.Base(archived)
	}
	if held {
		own = end
	}
	if r.spool.Keeps() && (held || owned) && own.LSN < r.pos.LSN && r.history.Contains(own) {
		// What the archive has and the directory has not is asked for again.
		r.ahead, r.pos = r.pos, own
	}
	if asked {
		if err := errors.Join(r.behindGap(ctx), r.settleFront(ctx)); err != nil {
			return err
		}
	}
	if err := r.settleOld(ctx); err != nil {
		return err
	}
	if err := r.dropRemains(ctx, archived); err != nil {
		return err
	}
	if asked && r.ahead.LSN == 0 {
		from := archived
		if !ok {
			from = first
		}
		if err := r.restoreTails(ctx, from); err != nil {
			return err
		}
	}
	r.standBefore()
	r.resolved, r.fresh = true, false
	// Both ends were durable before this run: the spool's files were read
	// back record by record, the archive's objects were stored whole.
	r.spooled = r.pos.LSN
	r.log.Info("resuming", "position", r.pos.String())
	return nil
}

// archiveEnd asks for the end of the archive's run. A spool that holds WAL can
// do without an answer for a while (asked is false then); an empty one cannot:
// to begin anywhere else would be a silent gap.
func (r *Receiver) archiveEnd(ctx context.Context, near segment.LSN, held bool) (p segment.Position, ok, asked bool, err error) {
	ask := func(ctx context.Context) (err error) {
		if r.gaps, err = r.archive.Gaps(ctx); err == nil {
			p, ok, err = r.archive.RunEnd(ctx, r.history, r.size, near)
		}
		return err
	}
	if !held {
		if err := ask(ctx); err != nil {
			return p, ok, false, &archiveError{err}
		}
		r.asking.Over()
		return p, ok, true, nil
	}
	short, cancel := context.WithTimeout(ctx, claimPatience)
	defer cancel()
	err = ask(short)
	if err != nil && !Final(err) && ctx.Err() == nil {
		r.log.Warn("the archive cannot be asked where it ends; going on from the end of the spool", "error", err.Error())
		return segment.Position{}, false, false, nil
	}
	return p, ok, true, err
}

// firstTail returns the start of the first segment along the history that has
// tail objects, where the archive has no whole one yet.
func (r *Receiver) firstTail(ctx context.Context) (p segment.Position, ok bool, err error) {
	timelines := []segment.Timeline{}
	for _, a := range r.history.Ancestors {
		timelines = append(timelines, a.Timeline)
	}
	for _, t := range append(timelines, r.history.Timeline) {
		names, err := r.archive.TailSegments(ctx, t)
		if err != nil {
			return segment.Position{}, false, &archiveError{err}
		}
		for _, n := range names {
			p := segment.Position{Timeline: t, LSN: n.Start(r.size)}
			if n.Check(r.size) == nil && (r.history.Contains(p) || t == r.history.Timeline) {
				return segment.Position{Timeline: r.history.Owner(p.LSN), LSN: p.LSN}, true, nil
			}
		}
	}
	return segment.Position{}, false, nil
}

// restoreTails puts into the spool what the archive's tail objects have behind
// its whole segments, which end at a boundary, and the spool has not: this host
// is another one, or has lost its disk. It moves the resume position behind it.
// The bytes are compared with the server's like everything that we hold; what
// fills its segment is sealed, and goes up whole.
func (r *Receiver) restoreTails(ctx context.Context, from segment.Position) error {
	at := r.size.Start(from.LSN)
	for t := r.history.Owner(at); ; {
		n := r.size.Name(t, at)
		end, err := r.restoreTail(ctx, n)
		if err != nil || end <= at {
			return err
		}
		w, ended := r.history.Switchpoint(t)
		if end > r.pos.LSN || end == r.pos.LSN && t > r.pos.Timeline {
			r.pos = segment.Position{Timeline: t, LSN: end}
		}
		switch {
		case ended && end == w:
			// Of its child the same segment may be there.
			if err := r.finishPartial(ctx, t, w); err != nil {
				return err
			}
			t = r.history.Owner(w)
			at = r.size.Start(w)
		case end == n.End(r.size):
			at = end
		default:
			return nil
		}
	}
}

// restoreTail restores one segment, unless the spool has as much of it, and
// returns up to where the spool has it then: not beyond its timeline's end.
func (r *Receiver) restoreTail(ctx context.Context, n segment.Name) (segment.LSN, error) {
	limit := n.End(r.size)
	if w, ended := r.history.Switchpoint(n.Timeline); ended {
		limit = min(limit, w)
	}
	g, held := r.find(n)
	if held && g.Sealed() {
		return limit, nil
	}
	bytes, err := r.archive.TailEnd(ctx, n)
	if err != nil {
		return 0, &archiveError{err}
	}
	start := n.Start(r.size)
	end := min(start+segment.LSN(bytes), limit)
	if held && r.heldUpTo(g) >= end || end == start {
		return end, nil
	}
	if g, err = r.spool.Begin(n); err != nil {
		return 0, &spoolError{err}
	}
	bytes, err = r.archive.AssembleTails(ctx, n, r.size, patch{segmentReader{g, r.size}})
	switch {
	case errors.Is(err, spool.ErrConflict), errors.Is(err, ErrConflict):
		return 0, fmt.Errorf("%w: the archive's tail objects of %s are of another history: %w", ErrConflict, n, err)
	case err != nil:
		g.Abandon()
		return 0, &archiveError{err}
	}
	end = min(end, start+segment.LSN(bytes))
	g.Settle(end)
	r.uploader.Chained(n, end)
	r.log.Info("the archive's tail objects have more of the open segment than the spool: taken from there", "segment", n.String(), "up_to", end.String())
	if end == g.End() {
		if err := g.Seal(); err != nil && !errors.Is(err, spool.ErrDropped) {
			return 0, &spoolError{err}
		}
	}
	return end, nil
}

// heldUpTo returns up to where a held segment has bytes, from its start on,
// that are known to be right.
func (r *Receiver) heldUpTo(g *spool.Segment) segment.LSN {
	if from, to := g.Vouched(); from == g.Start() {
		return to
	}
	return g.Start()
}

// patch is a segment of the spool that is put together by the places in it.
type patch struct{ segmentReader }

// WriteAt implements io.WriterAt.
func (p patch) WriteAt(b []byte, off int64) (int, error) {
	if err := p.g.WriteAt(b, p.g.Start()+segment.LSN(off)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// resolveFresh begins an archive: at the slot's restart_lsn where there is a
// slot, after making it where there is none.
func (r *Receiver) resolveFresh(ctx context.Context, conn *replication.Conn, s server, slot *slotState) error {
	if !slot.exists {
		if r.o.SlotMustExist {
			return fmt.Errorf("replication slot %q does not exist: %w", r.o.Slot, replication.ErrSlotMissing)
		}
		if err := r.createSlot(ctx, conn); err != nil {
			return err
		}
		made, err := r.readSlot(ctx, conn)
		if err != nil {
			return err
		}
		*slot = slotState{exists: true, restart: made.restart}
	}
	lsn := slot.restart
	if lsn == 0 {
		lsn = s.system.Flush
	}
	r.beginAt(r.size.Start(lsn))
	r.log.Info("beginning a new archive", "position", r.pos.String())
	return nil
}

// beginAt begins at the start of a segment before which nothing is held that
// could be compared.
func (r *Receiver) beginAt(lsn segment.LSN) {
	r.pos = segment.Position{Timeline: r.history.Owner(lsn), LSN: lsn}
	r.fresh, r.resolved = true, true
	r.spooled, r.begin = lsn, lsn
	r.uploader.Base(r.pos)
}

// standBefore stands at the end of the parent's WAL, not at the beginning of its
// child's, where the resume position is the switchpoint between two segments:
// what is held is the parent's, and its last page is compared before the child
// begins. Behind a gap there is no such page.
func (r *Receiver) standBefore() {
	if r.size.Offset(r.pos.LSN) == 0 && r.pos.Timeline > 1 && r.pos.LSN == r.history.BeginOf(r.pos.Timeline) && r.pos.LSN != r.gapEnd {
		r.pos.Timeline = r.history.Owner(r.pos.LSN - 1)
	}
}

// own returns where the directory goes on, where there is one that is kept.
func (r *Receiver) own() (p segment.Position, ok bool) {
	if r.o.Begin == nil {
		return p, false
	}
	return r.o.Begin(r.size)
}

// beginOwn begins where the directory goes on, though the spool has nothing of
// it that could be compared: a partial of which nothing verifies, or WAL that
// is not part of the server's history. checkContinuity judges the latter.
func (r *Receiver) beginOwn(own segment.Position) {
	if r.history.Contains(own) {
		r.beginAt(own.LSN)
		return
	}
	r.pos, r.spooled = own, own.LSN
	r.resolved, r.fresh = true, false
	r.uploader.Base(own)
}

// coversHeld reports whether the archive's run has every segment before its
// end that the spool holds unsealed. Workers store in any order: a new archive
// may have a younger segment first, and then its run begins behind what the
// spool still has to give it. (What is sealed is stored whatever this says,
// and counts only then: see Uploader.Base.)
func (r *Receiver) coversHeld(ctx context.Context, archived segment.Position) (bool, error) {
	for _, g := range r.held {
		if g.Sealed() || g.End() > archived.LSN || !r.along(g.Name()) || r.inGap(g.Name()) {
			continue
		}
		has, err := r.archiveHas(ctx, g.Name())
		if err != nil || !has {
			return false, err
		}
	}
	return true, nil
}

// along reports whether a segment is the one that the archive has whole of its
// place, in the server's history: where a timeline ended inside a segment, that
// is its child's.
func (r *Receiver) along(n segment.Name) bool { return r.history.Owner(n.End(r.size)-1) == n.Timeline }

// missedBefore reports whether the slot retains WAL that comes before all that
// is joined here and that the archive does not have: the power went before the
// first segments of a new archive were on the disk, and younger ones were.
// What lies before the slot's restart_lsn was reported as flushed, so that it
// is safe. begin is the start of the segment that holds restart_lsn.
func (r *Receiver) missedBefore(ctx context.Context, slot *slotState, joined segment.Position, any bool) (begin segment.LSN, missed bool, err error) {
	begin = r.size.Start(slot.restart)
	if !any || slot.restart == 0 || begin >= joined.LSN || r.spool.Keeps() { // a directory goes on from its newest file
		return begin, false, nil
	}
	has, err := r.archiveHas(ctx, r.size.Name(r.history.Owner(begin), begin))
	if err != nil && len(r.held) > 0 && ctx.Err() == nil {
		return begin, true, nil // it cannot be asked: to stream it again is always right
	}
	return begin, err == nil && !has, err
}

// archiveHas asks whether the archive has a segment.
func (r *Receiver) archiveHas(ctx context.Context, n segment.Name) (bool, error) {
	short, cancel := context.WithTimeout(ctx, claimPatience)
	defer cancel()
	body, err := r.archive.Segment(short, n)
	if errors.Is(err, ErrNotArchived) {
		return false, nil
	}
	if err != nil {
		return false, &archiveError{err}
	}
	if err := body.Close(); err != nil {
		return false, &archiveError{err}
	}
	return true, nil
}

// heldRun returns where the spool's gapless run begins and ends, behind the last
// recorded gap where it holds something on both sides; held is false when the spool has no
// WAL, but for the beginning of a segment in which no record verifies. Ends are
// those of whole records: what lies behind the last record that verifies may be
// torn.
func (r *Receiver) heldRun() (first, end segment.Position, held bool) {
	unsealed := false
	for _, g := range r.held {
		if !r.history.Contains(segment.Position{Timeline: g.Name().Timeline, LSN: g.Name().Start(r.size)}) {
			continue
		}
		start, stop := r.heldRange(g)
		if next, gap := r.gaps.Behind(r.history, r.size, end.LSN); held && gap && start.LSN >= next {
			unsealed, held = false, false // the run is the one behind the gap
		}
		if unsealed {
			// What follows a segment that was not sealed is compared when it
			// comes again: the stream begins with that one, and seals it.
			break
		}
		// A segment of a child that holds the switchpoint repeats its parent's
		// bytes: what the child holds counts from its begin, and only where the
		// run comes that far. A crash may have taken the parent's segment.
		if begin := r.history.BeginOf(g.Name().Timeline); begin > stop.LSN && begin < g.End() {
			if !held || end.LSN < begin {
				continue
			}
			stop.LSN = begin
		}
		at, ended := r.history.Switchpoint(g.Name().Timeline)
		unsealed = !g.Sealed() && !(ended && stop.LSN == at)
		if !held {
			first, end, held = start, stop, true
			continue
		}
		if start.LSN > end.LSN {
			break
		}
		end = stop
	}
	return first, end, held && end.LSN != first.LSN
}

// tellHole says where the spool's run has a hole behind it, if it has: segments
// that lie behind the one in which the run ends, and behind the next.
func (r *Receiver) tellHole(end segment.Position) {
	if end.LSN == 0 {
		return
	}
	next := r.size.Start(end.LSN-1) + segment.LSN(r.size)
	for _, g := range r.held {
		if g.Start() > next && r.history.Contains(segment.Position{Timeline: g.Name().Timeline, LSN: g.Start()}) {
			r.log.Warn("the spool has a hole; what lies behind it is compared when it comes again",
				"hole_begins", end.String(), "hole_ends", g.Start().String())
			return
		}
	}
}

// heldRange returns the range of a held segment as positions.
func (r *Receiver) heldRange(g *spool.Segment) (start, end segment.Position) {
	n := g.Name()
	start = segment.Position{Timeline: n.Timeline, LSN: n.Start(r.size)}
	if g.Sealed() {
		return start, segment.Position{Timeline: n.Timeline, LSN: n.End(r.size)}
	}
	end = start
	if _, stop := g.Vouched(); stop > end.LSN {
		end.LSN = stop
	}
	if at, ok := r.history.Switchpoint(n.Timeline); ok && end.LSN > at && start.LSN < at && r.childHeld(n.Timeline) {
		end.LSN = at
	}
	return start, end
}

// childHeld reports whether the spool holds WAL of a younger timeline: then
// the older one was ended, in order, before.
func (r *Receiver) childHeld(t segment.Timeline) bool {
	for _, g := range r.held {
		if g.Name().Timeline > t {
			return true
		}
	}
	return false
}

// dropRemains removes partials of segments that the archive has whole: remains
// of a segment that left the spool before it was sealed, when the power went
// before the removal was durable.
func (r *Receiver) dropRemains(ctx context.Context, archived segment.Position) error {
	if r.spool.Keeps() {
		return nil // they are gone on from
	}
	for _, g := range r.held {
		n := g.Name()
		if _, ended := g.Finished(); ended || g.Sealed() || g.End() > archived.LSN || !r.along(n) || r.inGap(n) {
			continue
		}
		body, err := r.archive.Segment(ctx, n)
		if errors.Is(err, ErrNotArchived) {
			continue
		}
		if err != nil {
			return &archiveError{err}
		}
		if err := body.Close(); err != nil {
			return &archiveError{err}
		}
		r.log.Info("removing what is left of a segment that the archive has", "segment", n.String())
		if err := r.spool.Drop(g); err != nil {
			return err
		}
	}
	return nil
}

// settleOld ends, in the spool, the timelines that ended before the resume
// position.
func (r *Receiver) settleOld(ctx context.Context) error { return r.settle(ctx, 0, r.pos.Timeline) }

// settle ends, in the spool, the ancestors between two timelines: their last
// segments go to the archive as partials, and what is held behind their ends goes
// there as well.
func (r *Receiver) settle(ctx context.Context, above, below segment.Timeline) error {
	for _, a := range r.history.Ancestors {
		if a.Timeline <= above || a.Timeline >= below {
			continue
		}
		if r.holdsBeyond(a.Timeline, a.At) {
			r.tellBeyond(segment.Position{Timeline: a.Timeline, LSN: r.heldUntil(a.Timeline)}, a.At, r.history.Owner(a.At))
		}
		if err := r.finishPartial(ctx, a.Timeline, a.At); err != nil {
			return err
		}
		if err := r.finishBeyond(ctx, a.Timeline, a.At); err != nil {
			return err
		}
	}
	return nil
}
