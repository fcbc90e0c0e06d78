package receiver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// OnGap is what is done when WAL that follows what we hold is gone for good.
type OnGap int

const (
	// StopAtGap ends Run with a *GapError.
	StopAtGap OnGap = iota
	// RecordGap records the gap in the archive, and goes on behind it.
	RecordGap
)

// GapFacts are recorded beside a gap.
type GapFacts struct {
	SystemIdentifier uint64
	Slot             string
	Reason           string
}

// GapError is ErrGap with what is missing.
type GapError struct {
	Missing segment.Gaps // a gap for each timeline, oldest first; one at least
	Asked   []string     // the servers that do not have it either
	Cause   error        // what the server said
}

// Error returns one line.
func (e *GapError) Error() string {
	var what []string
	for _, g := range e.Missing {
		what = append(what, g.String())
	}
	asked := ""
	if len(e.Asked) > 0 {
		asked = fmt.Sprintf(" (nor has %s)", strings.Join(e.Asked, ", nor "))
	}
	return fmt.Sprintf("%v: we hold everything before %s, and the server begins at %s; missing is %s%s: %v",
		ErrGap, e.Held(), e.End(), strings.Join(what, ", and "), asked, e.Cause)
}

// Unwrap makes errors.Is match ErrGap and what the server said.
func (e *GapError) Unwrap() []error { return []error{ErrGap, e.Cause} }

// Held is the end of what we hold.
func (e *GapError) Held() segment.Position {
	return segment.Position{Timeline: e.Missing[0].Timeline, LSN: e.Missing[0].Start}
}

// End is where the server's WAL begins.
func (e *GapError) End() segment.LSN { return e.Missing[len(e.Missing)-1].End }

// removedError: the server has removed the WAL that follows what we hold. Run
// finds out what that means.
type removedError struct{ err error }

func (e *removedError) Error() string { return e.err.Error() }
func (e *removedError) Unwrap() error { return e.err }

// meetGap goes on where an attempt has ended because the server has removed the
// WAL that follows what we hold, as it said itself, whatever the slot says of
// it. It is streamed from another host that has it. Where none has, it is a gap:
// it ends Run, or is recorded. An error that matches errNextStart says that
// another attempt may begin.
func (r *Receiver) meetGap(ctx context.Context, gone error) error {
	end, err := r.serverBegin(ctx)
	if err != nil {
		return err
	}
	asked, err := r.askOthers(ctx, end)
	if err != nil {
		return err
	}
	gap := &GapError{Asked: asked, Cause: gone}
	if r.o.OnGap != RecordGap {
		gap.Missing = segment.Missing(r.history, r.pos.LSN, end)
		return gap
	}
	r.log.Warn("WAL that follows what we hold is gone for good, and the gap will be recorded: first everything in front of it goes to the archive", "held", r.pos.String())
	front, err := r.shipFront(ctx)
	if err != nil {
		return err
	}
	// It may have taken long.
	if end, err = r.serverBegin(ctx); err != nil {
		return err
	}
	gap.Missing = segment.Missing(r.history, front, end)
	return r.recordGap(ctx, gap)
}

// reconnect connects to the server that was reached last.
func (r *Receiver) reconnect(ctx context.Context) (*replication.Conn, error) {
	return replication.Connect(ctx, r.reached)
}

// serverBegin finds the first segment that the server still has. What it keeps
// is without a hole up to its end, since it removes from the oldest on: so the
// place is found by halving, a connection for each question.
func (r *Receiver) serverBegin(ctx context.Context) (segment.LSN, error) {
	conn, err := r.reconnect(ctx)
	if err != nil {
		return 0, err
	}
	ask, cancel := answering(ctx)
	system, err := conn.IdentifySystem(ask)
	cancel()
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return 0, err
	}
	switch {
	case system.SystemIdentifier != r.system:
		return 0, fmt.Errorf("%s is another cluster now: %w", r.reached, errNextStart)
	case system.Timeline != r.history.Timeline:
		return 0, fmt.Errorf("the server went on to timeline %d meanwhile: %w", system.Timeline, errNextStart)
	}
	// The segment that it writes is there; the one that we need is not.
	gone, there := uint64(r.pos.LSN)/uint64(r.size), uint64(system.Flush)/uint64(r.size)
	if there <= gone {
		return 0, fmt.Errorf("the server says that it has removed the WAL at %s, and that its WAL ends at %s", r.pos, system.Flush)
	}
	for there-gone > 1 {
		r.heart.expect(attemptLimit)
		middle := gone + (there-gone)/2
		at := segment.LSN(middle * uint64(r.size))
		conn, err := r.reconnect(ctx)
		if err == nil {
			err = stillHas(ctx, conn, segment.Position{Timeline: r.history.Owner(at), LSN: at})
		}
		switch {
		case err == nil:
			there = middle
		case errors.Is(err, replication.ErrWALRemoved):
			gone = middle
		default:
			return 0, fmt.Errorf("asking the server where its WAL begins: %w", err)
		}
	}
	return segment.LSN(there * uint64(r.size)), nil
}

// stillHas asks, without a slot, whether a server has the WAL at from, which
// must lie before its end. replication.ErrWALRemoved: it has not. The connection
// is used up.
func stillHas(ctx context.Context, conn *replication.Conn, from segment.Position) error {
	ctx, cancel := answering(ctx)
	defer cancel()
	s, err := conn.StartReplication(ctx, "", from)
	if err != nil {
		err = errors.Join(err, conn.Close(ctx))
		if errors.As(err, new(*replication.EndOfTimeline)) {
			return nil
		}
		return err
	}
	defer func() {
		// It was only tried.
		_ = s.Close()
	}()
	// "Removed" comes after CopyBoth; data or a keepalive says that it is there.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case b, ok := <-s.Batches():
		if !ok {
			return s.Err()
		}
		b.Release()
		return nil
	}
}

// askOthers looks for the missing WAL on the other hosts that the connection
// settings name, also on those that the settings would not choose: a standby may
// still have what the primary has removed. From the first that has it all up to
// the server's begin is streamed, or as much as there is; then the error matches
// errNextStart. Else it returns who was asked.
func (r *Receiver) askOthers(ctx context.Context, end segment.LSN) (asked []string, err error) {
	if len(r.o.Hosts) < 2 {
		return nil, nil
	}
	for _, connect := range r.o.Hosts {
		conn, err := connect(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			r.log.Warn("another host that may have the missing WAL cannot be asked", "error", err.Error())
			continue
		}
		name := conn.String()
		if name == r.serverName {
			if err := conn.Close(ctx); err != nil {
				return nil, err
			}
			continue
		}
		before := r.pos
		err = r.streamFrom(ctx, conn, end)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil, r.pos != before, errors.Is(err, errNextStart), errors.As(err, new(*replication.EndOfTimeline)):
			return nil, fmt.Errorf("%s had WAL that the server has removed (%w): %w", name, errOr(err), errNextStart)
		case errors.As(err, new(*spoolError)), errors.Is(err, ErrSpoolStuck):
			return nil, err
		}
		r.log.Warn("another host does not have the missing WAL either", "host", name, "error", err.Error())
		asked = append(asked, name)
	}
	return asked, nil
}

// errDone stands for the absence of an error in a text.
var errDone = errors.New("streamed from there")

func errOr(err error) error {
	if err == nil {
		return errDone
	}
	return err
}

// streamFrom streams what follows from another server of the cluster, without a
// slot, up to an LSN or its own end. The connection is used up.
func (r *Receiver) streamFrom(ctx context.Context, conn *replication.Conn, to segment.LSN) error {
	defer func() {
		// The good-bye of a connection that is no longer needed.
		_ = conn.Close(context.WithoutCancel(ctx))
	}()
	srv, err := r.inspectOther(ctx, conn)
	if err != nil {
		return err
	}
	if srv.system.Flush <= r.pos.LSN {
		return fmt.Errorf("its WAL ends at %s", srv.system.Flush)
	}
	r.until = min(to, srv.system.Flush)
	server := r.server
	r.server = srv.system.Flush // what this server has announced
	defer func() { r.until, r.server = 0, server }()
	r.log.Warn("the server has removed WAL that follows what we hold: asking another host for it", "host", conn.String(), "from", r.pos.String(), "to", r.until.String())
	return r.stream(ctx, conn, srv, 0)
}

// inspectOther makes sure that another server is of the cluster, and on the very
// timeline of the one that we stream from: what it sends is then that one's
// history.
func (r *Receiver) inspectOther(ctx context.Context, conn *replication.Conn) (server, error) {
	ctx, cancel := answering(ctx)
	defer cancel()
	s := server{version: conn.Version(), inRecovery: conn.InRecovery(), size: r.size}
	var err error
	if s.system, err = conn.IdentifySystem(ctx); err != nil {
		return s, err
	}
	if s.system.SystemIdentifier != r.system {
		return s, fmt.Errorf("it is of another cluster: its system identifier is %d", s.system.SystemIdentifier)
	}
	if s.system.Timeline != r.history.Timeline {
		return s, fmt.Errorf("it is on timeline %d, and the server on %d", s.system.Timeline, r.history.Timeline)
	}
	if s.system.Timeline > 1 {
		content, err := conn.TimelineHistory(ctx, s.system.Timeline)
		if err != nil {
			return s, err
		}
		h, err := segment.ParseHistory(s.system.Timeline, content)
		if err != nil {
			return s, err
		}
		if !slices.EqualFunc(h.Ancestors, r.history.Ancestors, func(a, b segment.Switch) bool { return a.Timeline == b.Timeline && a.At == b.At }) {
			return s, fmt.Errorf("its timeline %d is another than the server's", s.system.Timeline)
		}
	}
	timeout, err := conn.Show(ctx, "wal_sender_timeout")
	if err != nil {
		return s, err
	}
	s.timeout, err = parseSetting(timeout)
	return s, err
}

// enough reports whether a stream may end: behind the end position, or where
// another host was only asked for what the server has removed.
func (r *Receiver) enough(at segment.LSN) bool {
	return r.o.EndPos != 0 && at > r.o.EndPos || r.until != 0 && at >= r.until
}

// shipFront waits until the archive has everything that we hold, the open
// segment in tail objects, and returns its end: the start of the gap. It waits
// for as long as the store is away; nothing is reported meanwhile.
func (r *Receiver) shipFront(ctx context.Context) (segment.LSN, error) {
	g, open := r.openSegment()
	front := r.pos.LSN
	r.publish(Waiting)
	if open && g.Written() < front {
		// A record of the segment before goes on in it, which it cannot check
		// by itself.
		if err := r.vouchFront(ctx, g); err != nil {
			return 0, err
		}
		if front = min(front, g.Written()); front < r.pos.LSN {
			r.log.Warn("the last segment in front of the gap cannot be checked from its beginning on: what cannot does not count, and stays in the spool",
				"segment", g.Name().String(), "up_to", front.String())
		}
	}
	for {
		r.heart.expect(turnLimit)
		if open {
			r.uploader.Offer(g, front, true)
		}
		if shipped, ok := r.shippedHere(); ok && shipped >= front {
			return front, nil
		}
		if err := r.uploader.Stopped(); err != nil {
			return 0, fmt.Errorf("%w, and a gap cannot be recorded: %w", ErrSpoolStuck, err)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-r.uploader.Changed():
		case <-time.After(time.Second):
		}
	}
}

// vouchFront lets a segment of an earlier run be checked with the one before
// it, which the archive has, or nobody.
func (r *Receiver) vouchFront(ctx context.Context, g *spool.Segment) error {
	body, err := r.archive.Segment(ctx, r.spool.Before(g.Name(), r.size))
	if errors.Is(err, ErrNotArchived) {
		return nil
	}
	if err != nil {
		return &archiveError{err}
	}
	_, err = g.VouchBeginning(segment.Forward(body))
	if err = errors.Join(err, body.Close()); err != nil && !errors.Is(err, segment.ErrPage) {
		return &archiveError{fmt.Errorf("checking the last segment in front of the gap: %w", err)}
	}
	return nil
}

// openSegment returns the segment of the spool in which what we hold ends.
func (r *Receiver) openSegment() (g *spool.Segment, ok bool) {
	if r.size.Offset(r.pos.LSN) == 0 {
		return nil, false
	}
	g, ok = r.find(r.size.Name(r.pos.Timeline, r.pos.LSN))
	return g, ok && !g.Sealed()
}

// recordGap records the gap, and moves every position behind it. The part on
// the youngest timeline comes first: until the oldest is there, which begins
// where the archive ends, no start takes the rest for more than a note.
func (r *Receiver) recordGap(ctx context.Context, gap *GapError) error {
	facts := GapFacts{SystemIdentifier: r.system, Slot: r.o.Slot, Reason: gap.Cause.Error()}
	for _, g := range slices.Backward(gap.Missing) {
		if err := r.archive.PutGap(ctx, g, facts); err != nil {
			return &recordError{err}
		}
	}
	r.noting.Over()
	r.gaps = append(r.gaps, gap.Missing...)
	r.log.Warn("a gap was recorded, and reception goes on behind it: no backup that was taken before can be restored to a moment behind the gap; take a base backup now: walferry backup create",
		"missing_from", gap.Held().String(), "to", gap.End().String(), "reason", facts.Reason)
	if r.o.Recorded != nil {
		r.o.Recorded(ctx, gap)
	}
	if err := r.leaveFront(gap.Missing, gap.Held().LSN); err != nil {
		return err
	}
	r.passGap(gap.End())
	return fmt.Errorf("the gap to %s was recorded: %w", r.pos, errNextStart)
}

// leaveFront gives up the open segments in front of a gap: nothing more will
// come for them. One that the archive has, up to front, leaves the spool.
func (r *Receiver) leaveFront(gaps segment.Gaps, front segment.LSN) error {
	for _, g := range r.spool.Segments() {
		_, ended := g.Finished()
		if ended || g.Sealed() || !slices.ContainsFunc(gaps, func(gap segment.Gap) bool { return gap.Touches(g.Name(), r.size) }) {
			continue
		}
		_, end := g.Vouched()
		end = max(end, g.Advanced())
		g.Abandon()
		if end > front {
			continue
		}
		// Safe: the archive was found to have every byte of it that is known
		// to be right.
		if err := r.spool.Drop(g); err != nil && !errors.Is(err, spool.ErrDropped) {
			return &spoolError{err}
		}
	}
	return nil
}

// passGap moves every position to the end of a recorded gap.
func (r *Receiver) passGap(end segment.LSN) {
	r.pos = segment.Position{Timeline: r.history.Owner(end), LSN: end}
	r.spooled, r.gapEnd = end, end
	r.fresh, r.resolved, r.unasked, r.skipPage = false, true, false, false
	r.tail, r.unsealed, r.seg = tailPage{}, segment.Name{}, nil
	r.uploader.Base(r.pos)
}

// behindGap notes at a start whether the resume position is the end of a gap,
// with nothing in front of it that could be compared.
func (r *Receiver) behindGap(ctx context.Context) error {
	if r.size.Offset(r.pos.LSN) != 0 || !r.gaps.EndsAt(r.history, r.pos.LSN) {
		return nil
	}
	n := r.size.Name(r.history.Owner(r.pos.LSN-1), r.pos.LSN-1)
	if g, held := r.find(n); held && g.Sealed() {
		return nil
	}
	has, err := r.archiveHas(ctx, n)
	if err == nil && !has {
		r.gapEnd = r.pos.LSN
		r.log.Info("going on behind a recorded gap", "position", r.pos.String())
	}
	return err
}

// settleFront does what leaveFront does, for what an earlier run has left in
// the spool in front of a recorded gap. What the archive lacks of it stays: the
// uploader ships it, and the next start finds it there.
func (r *Receiver) settleFront(ctx context.Context) error {
	for _, g := range r.held {
		n := g.Name()
		_, ended := g.Finished()
		i := slices.IndexFunc(r.gaps, func(gap segment.Gap) bool { return gap.Touches(n, r.size) })
		if i < 0 || ended || g.Sealed() || g.Err() != nil || g.End() > r.pos.LSN {
			continue
		}
		bytes, err := r.archive.TailEnd(ctx, n)
		if err != nil {
			return &archiveError{err}
		}
		if _, end := g.Vouched(); end > g.Start()+segment.LSN(bytes) {
			r.log.Warn("the spool has more of the segment in front of a recorded gap than the archive: it is uploaded", "segment", n.String())
			continue
		}
		g.Abandon()
		if err := r.spool.Drop(g); err != nil && !errors.Is(err, spool.ErrDropped) {
			return &spoolError{err}
		}
	}
	return nil
}

// keptInGap reports whether the archive lacks what follows an LSN because it lies
// in a recorded gap, and the slot retains it: another receiver recorded the gap,
// whose server had less than ours. What is asked for from there on fills it.
func (r *Receiver) keptInGap(ctx context.Context, slot slotState, end segment.Position) (bool, error) {
	n := r.size.Name(r.history.Owner(end.LSN), end.LSN)
	if slot.restart == 0 || r.size.Start(slot.restart) > end.LSN || !r.inGap(n) {
		return false, nil
	}
	has, err := r.archiveHas(ctx, n)
	return err == nil && !has, err
}

// inGap reports whether a segment lies in a recorded gap, or in front of one:
// then nobody need have it whole.
func (r *Receiver) inGap(n segment.Name) bool {
	return slices.ContainsFunc(r.gaps, func(gap segment.Gap) bool { return gap.Touches(n, r.size) })
}
