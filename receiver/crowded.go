package receiver

import (
	"context"
	"fmt"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// A server sends the last segment of a timeline that has ended out of the next
// timeline's file of the same number, which begins with the same bytes
// (PostgreSQL: WalSndSegmentOpen in src/backend/replication/walsender.c). Where
// that one ended in the same segment, too, its file may not be there any more:
// with archive_mode on it was renamed to .partial at its end. "Already been
// removed" would be no gap then. The youngest timeline's file has it all, so it
// is asked for from the segment's start, and the segments of its ancestors are
// filled, or compared, with the same bytes as far as each went.

// crowded returns the switches in the segment that holds an LSN, when there are
// several and the LSN lies before the last but one; else none.
func (r *Receiver) crowded(l segment.LSN) (ends []segment.Switch) {
	for _, a := range r.history.Ancestors {
		if r.size.Offset(a.At) != 0 && r.size.Start(a.At) == r.size.Start(l) {
			ends = append(ends, a)
		}
	}
	if len(ends) < 2 || l >= ends[len(ends)-2].At {
		return nil
	}
	return ends
}

// descend moves to the timeline whose file has all of such a segment. Where we
// stand changes with its name only.
func (r *Receiver) descend() {
	if ends := r.crowded(r.pos.LSN); ends != nil {
		r.pos.Timeline = r.history.Owner(r.size.Start(r.pos.LSN) + segment.LSN(r.size) - 1)
	}
}

// ended is a segment of a timeline that ended in it.
type ended struct {
	*spool.Segment
	at segment.LSN
}

// fillAncestors begins the segments of the timelines that ended in the one
// that is streamed from its start.
func (r *Receiver) fillAncestors(ctx context.Context) (all []ended, err error) {
	for _, a := range r.crowded(r.pos.LSN) {
		if r.history.BeginOf(a.Timeline) == a.At {
			continue // nothing of it is part of this history
		}
		n := r.size.Name(a.Timeline, a.At)
		if g, held := r.find(n); held {
			if _, done := g.Finished(); done || g.Sealed() {
				continue
			}
			if err := r.vouchBeginning(ctx, g); err != nil {
				return nil, err
			}
		}
		g, err := r.spool.Begin(n)
		if err != nil {
			return nil, &spoolError{err}
		}
		all = append(all, ended{g, a.At})
	}
	return all, nil
}

// passSwitches ends the stream when it has passed the switches of a segment with
// several, which no endTimeline follows, and the spool has more of those timelines
// behind their ends: the next start gives it to the archive, with the server's
// word for where they ended compared up to there.
func (st *streaming) passSwitches() error {
	if len(st.switches) == 0 || st.cursor < st.switches[len(st.switches)-1].At {
		return nil
	}
	passed := st.switches
	st.switches = nil
	for _, a := range passed {
		if st.r.holdsBeyond(a.Timeline, a.At) {
			st.r.passed = passed
			return fmt.Errorf("what is held of timeline %d behind its end goes to the archive: %w", a.Timeline, errNextStart)
		}
	}
	return nil
}

// endPassed ends what is held behind the switches that the stream before has
// passed. After a crash settleOld does it.
func (r *Receiver) endPassed(ctx context.Context) error {
	for _, a := range r.passed {
		r.tellBeyond(segment.Position{Timeline: a.Timeline, LSN: r.heldUntil(a.Timeline)}, a.At, r.history.Owner(a.At))
		if err := r.finishBeyond(ctx, a.Timeline, a.At); err != nil {
			return err
		}
	}
	r.passed = nil
	return nil
}

// fill gives the ancestors' segments what was sent at the cursor: what they
// hold is compared, the rest written.
func (st *streaming) fill(p []byte) error {
	for len(st.ancestors) > 0 && st.cursor >= st.ancestors[0].End() {
		st.ancestors = nil
	}
	for i, g := range st.ancestors {
		if st.cursor >= g.at {
			continue
		}
		part := p[:min(len(p), int(g.at-st.cursor))]
		if err := st.write(g.Segment, part); err != nil {
			return err
		}
		g.Advance(st.cursor + segment.LSN(len(part)))
		if g.Advanced() < g.at {
			continue
		}
		if err := g.Finish(g.at); err != nil {
			return &spoolError{fmt.Errorf("ending timeline %d: %w", g.Name().Timeline, err)}
		}
		st.r.log.Info("a timeline ended in a segment of which a younger one has the rest",
			"timeline", uint32(g.Name().Timeline), "switchpoint", st.ancestors[i].at.String())
	}
	return nil
}
