package receiver

import (
	"context"
	"errors"
	"slices"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// endTimeline closes what we hold of the current timeline, which ended at LSN
// at, and moves every position to its child, bounded by at: beyond it nothing
// that we hold is part of the child's history.
func (r *Receiver) endTimeline(ctx context.Context, at segment.LSN, child segment.Timeline) error {
	old := r.pos
	r.tellBeyond(segment.Position{Timeline: old.Timeline, LSN: max(old.LSN, r.heldUntil(old.Timeline))}, at, child)
	if err := r.finishPartial(ctx, old.Timeline, at); err != nil {
		return err
	}
	r.seg = nil
	if err := r.finishBeyond(ctx, old.Timeline, at); err != nil {
		return err
	}
	// A timeline between of which nothing is part of this history ends here, too:
	// the primary was made again up to a point before its beginning. No stream
	// will come to its end.
	if err := r.settle(ctx, old.Timeline, child); err != nil {
		return err
	}
	r.uploader.Switch(old.Timeline, at, child)
	r.pos = segment.Position{Timeline: child, LSN: min(r.pos.LSN, at)}
	r.spooled = min(r.spooled, at)
	r.reported = min(r.reported, at)
	r.tail = tailPage{}
	return nil
}

// tellBeyond says that we hold WAL of a timeline up to a position behind its
// end, if we do.
func (r *Receiver) tellBeyond(held segment.Position, at segment.LSN, child segment.Timeline) {
	if held.LSN > at {
		r.log.Warn("we hold WAL that the server's new timeline does not contain: it stays on the old timeline",
			"held", held.String(), "switchpoint", at.String(), "new_timeline", uint32(child))
	}
}

// seed begins the child's first segment with what the parent's holds in front of
// the switchpoint at, which no server has compared in this run. The server's
// copy of that is compared then, and not believed: before it was found equal
// nothing of the child is reported or stored. Where the disk has no room for the
// segment it is left to the stream to wait for it.
func (r *Receiver) seed(ctx context.Context, parent segment.Name, at segment.LSN, child segment.Name) error {
	g, held := r.find(parent)
	if _, begun := r.find(child); !held || begun || r.size.Offset(at) == 0 {
		return nil
	}
	if err := r.vouchBeginning(ctx, g); err != nil {
		return err
	}
	if max(g.Written(), r.heldUpTo(g)) < at {
		return nil // finish says so
	}
	c, err := r.spool.Begin(child)
	if err != nil {
		r.log.Debug("the child's first segment is not begun yet", "segment", child.String(), "error", err.Error())
		return nil
	}
	b := make([]byte, min(seedBlock, int(at-g.Start())))
	for pos := g.Start(); pos < at && err == nil; pos += segment.LSN(len(b)) {
		b = b[:min(len(b), int(at-pos))]
		if err = g.ReadAt(b, pos); err == nil {
			err = c.WriteAt(b, pos)
		}
	}
	if errors.Is(err, spool.ErrDropped) {
		r.log.Debug("the parent's last segment is in the archive by now", "segment", g.Name().String())
		return nil
	}
	if err != nil {
		return &spoolError{err}
	}
	c.Settle(at)
	return nil
}

// seedBlock is how many bytes are copied at a time.
const seedBlock = 1 << 20

// heldUntil returns where the last WAL ends that the spool holds of a timeline.
func (r *Receiver) heldUntil(t segment.Timeline) (end segment.LSN) {
	for _, g := range r.spool.Segments() {
		if g.Name().Timeline == t {
			_, vouched := g.Vouched()
			end = max(end, g.Written(), vouched)
		}
	}
	return end
}

// finishPartial ends the old timeline's last segment in the spool, if the
// spool has it: its bytes up to at are made durable, and go to the archive as
// the timeline's partial.
func (r *Receiver) finishPartial(ctx context.Context, t segment.Timeline, at segment.LSN) error {
	if r.size.Offset(at) == 0 {
		return nil // a boundary: the last segment is whole
	}
	if g, held := r.find(r.size.Name(t, at)); held {
		return r.finish(ctx, g, at)
	}
	return nil
}

// finishBeyond ends the segments of a timeline that lie wholly behind its end:
// nothing more will come for them, and they go to the archive as far as they
// are held.
func (r *Receiver) finishBeyond(ctx context.Context, t segment.Timeline, at segment.LSN) error {
	for _, g := range r.spool.Segments() {
		if g.Name().Timeline != t || g.Start() < at {
			continue
		}
		if err := r.finish(ctx, g, g.Start()); err != nil {
			return err
		}
	}
	return nil
}

// holdsBeyond reports whether the spool has segments of a timeline that lie
// wholly behind its end and are still to be ended.
func (r *Receiver) holdsBeyond(t segment.Timeline, at segment.LSN) bool {
	return slices.ContainsFunc(r.spool.Segments(), func(g *spool.Segment) bool {
		_, ended := g.Finished()
		return g.Name().Timeline == t && g.Start() >= at && !ended && !g.Sealed()
	})
}

// finish ends a segment whose timeline ended at an LSN, unless it is whole.
func (r *Receiver) finish(ctx context.Context, g *spool.Segment, at segment.LSN) error {
	if _, ended := g.Finished(); ended || g.Sealed() {
		return nil
	}
	if err := r.vouchBeginning(ctx, g); err != nil {
		return err
	}
	g, err := r.spool.Begin(g.Name())
	if err != nil {
		return &spoolError{err}
	}
	_, vouched := g.Vouched()
	g.Advance(at) // never beyond what was written or vouched for
	if g.Advanced() < at || g.Written() < vouched {
		// Its beginning is the continuation of a record that nothing here
		// can verify. The child's first segment repeats the bytes before at.
		r.log.Warn("the last segment of the old timeline cannot be checked as far as the switchpoint: it stays in the spool",
			"segment", g.Name().String(), "switchpoint", at.String())
		g.Abandon()
		return nil
	}
	if err := g.Finish(at); err != nil {
		return &spoolError{err}
	}
	return nil
}

// vouchBeginning lets the segment before one of an earlier process vouch for the
// record that goes on at its front, wherever that segment is now. Where it is
// not to be had the front is not vouched for.
func (r *Receiver) vouchBeginning(ctx context.Context, g *spool.Segment) error {
	if from, to := g.Vouched(); from == g.Start() && to > from || g.Written() > g.Start() {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, claimPatience)
	defer cancel()
	before := r.spool.Before(g.Name(), r.size)
	prev, err := r.heldSegment(short, before)
	if err == nil {
		_, err = g.VouchBeginning(prev)
		err = errors.Join(err, prev.Close())
	}
	if err != nil && ctx.Err() == nil {
		r.log.Debug("the beginning of a segment cannot be checked with the one before", "segment", g.Name().String(), "before", before.String(), "error", err.Error())
		return nil
	}
	return err
}
