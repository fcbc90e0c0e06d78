package receiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// stopPatience bounds the good-bye of a stream that was asked to end, once what
// was received is durable, and shipPatience the part of it that waits for the
// archive.
const (
	stopPatience = 5 * time.Second
	shipPatience = 3 * time.Second
)

const (
	// lazySync is how long bytes may wait for their fsync while the hold
	// lasts. What is reported then is what the archive has, and a segment that
	// is shipped within this time never has to reach the disk at all.
	lazySync = time.Second
	// lazyBytes is how much may wait so, in full segments; one is always let.
	lazyBytes = 64 << 20
	// sealsWaiting is how many full segments more may wait before reception
	// pauses: the disk is slower than the server.
	sealsWaiting = 2
)

// lazySeals is how many full segments may wait for their fsync in the hold.
func (r *Receiver) lazySeals() int { return max(1, lazyBytes/int(r.size)) }

const (
	// fullReminder is how often a spool that fills again and again is told.
	fullReminder = 10 * time.Minute
	// fullRetry is how often a full disk is tried again: nobody says that it has
	// room.
	fullRetry = 5 * time.Second
)

// streaming is one stream's state. Who has the turn works on it, and on the
// receiver's: the loop, and beside it nobody but direct. So there is one at a
// time that writes into the spool, and one that speaks to the server.
type streaming struct {
	turn   sync.Mutex
	kick   chan struct{} // gives the loop a turn
	failed error         // in direct: the loop ends with it

	r      *Receiver
	s      *replication.Stream
	disk   *syncer
	srv    server
	cursor segment.LSN          // next byte expected from the server
	page   tailPage             // what is expected before the boundary; no bytes when nothing is compared
	behind *lastRecord          // what the first record must follow, when no page could be compared
	pages  *segment.PageChecker // of the open segment

	ancestors []ended          // that are filled with the first segment's bytes
	switches  []segment.Switch // of the first segment, where it has several that are still to be passed

	batch   *replication.Batch // being worked on
	message int                // index of the message in it
	rest    []byte             // of that message's data

	name     string    // of the server, for messages
	flows    bool      // everything held was compared, and something came behind it
	full     bool      // the spool has no room for the next segment
	dirty    bool      // bytes were written since the last sync began
	syncBy   time.Time // when they are synced at the latest
	clean    time.Time // when bytes were last not dirty any more
	feedback feedback
	scratch  []byte
}

// stream starts replication and works until it ends. nil means that Run's
// work is done: ctx ended, or EndPos was passed.
func (r *Receiver) stream(ctx context.Context, conn *replication.Conn, srv server, restart segment.LSN) (err error) {
	from, withPage := r.startPosition()
	st := &streaming{r: r, srv: srv, cursor: from.LSN}
	if withPage {
		st.page, err = r.lastPage(ctx, from)
		from.LSN = st.page.at
	} else if (r.skipPage || r.crowded(from.LSN) != nil) && r.size.Offset(r.pos.LSN) == 0 && !r.fresh {
		st.behind, err = r.lastHeldRecord(ctx)
	}
	if r.takenAway(err) {
		from, err = r.pos, nil
	}
	if err != nil {
		return err
	}
	st.cursor = from.LSN
	if st.ancestors, err = r.fillAncestors(ctx); err != nil {
		return err
	}
	st.switches = r.crowded(r.pos.LSN)
	r.tellStarting()
	slot := r.o.Slot
	if r.until != 0 {
		slot = ""
	}
	ask, cancel := answering(ctx)
	st.s, err = conn.StartReplication(ask, slot, from)
	cancel()
	if err != nil {
		return r.startFailed(ctx, err, from)
	}
	defer func() {
		// Everything that matters was said before; the connection may be gone.
		_ = st.s.Close()
	}()
	r.slotSeen = r.slotSeen || slot != ""
	st.name = conn.String()
	st.kick = make(chan struct{}, 1)
	st.disk = startSyncer()
	defer func() { err = errors.Join(err, st.shutDisk()) }()
	st.feedback = newFeedback(r, srv, restart)
	return st.run(ctx)
}

// startFailed makes sense of a refused START_REPLICATION.
func (r *Receiver) startFailed(ctx context.Context, err error, from segment.Position) error {
	if end, ok := replication.IsEndOfTimeline(err); ok {
		if switchErr := r.switchTo(ctx, end.At, end.Next); switchErr != nil {
			return switchErr
		}
		return end
	}
	if errors.Is(err, replication.ErrSlotLost) && !r.fresh && !r.o.SlotMustExist {
		return r.replaceLost(ctx)
	}
	if errors.Is(err, replication.ErrSlotMissing) {
		// PostgreSQL 14 where no ordinary connection could ask: now it is known.
		r.slotSeen = false
	}
	return r.gapOr(err, from)
}

// run is the loop. It keeps the turn when it returns: what is read from then
// on waits in Batches, and a sync of direct's that is under way leaves its
// result with the disk.
func (st *streaming) run(ctx context.Context) error {
	r := st.r
	timer := time.NewTimer(0)
	defer timer.Stop()
	st.turn.Lock()
	st.s.Direct(func(b *replication.Batch) bool { return st.direct(ctx, b) })
	for {
		r.heart.expect(turnLimit)
		room := r.spool.RoomChanged() // asked for before consume looks for room
		if st.batch != nil {
			if done, err := st.consume(ctx); done || err != nil {
				return err
			}
		}
		if st.full && r.watch.shuttingDown() {
			// It cannot stop before we have read what it sent, and we have
			// no room for it. Its slot keeps it.
			return errors.New("the server is shutting down while the spool is full; letting go of it")
		}
		st.sync()
		st.offer()
		if st.batch != nil {
			st.feedback.heard = time.Now() // it may be saying something that is not read now
		} else if st.feedback.silent(time.Now()) {
			return fmt.Errorf("nothing was heard of the server for %v: giving the connection up", silence)
		}
		if err := st.feedback.send(st, time.Now()); err != nil {
			return st.gone(err)
		}
		st.publish()
		next := st.nextSync(st.feedback.next(time.Now()))
		if retry := time.Now().Add(fullRetry); st.full && retry.Before(next) {
			next = retry
		}
		timer.Reset(time.Until(next))

		batches := st.s.Batches()
		if st.batch != nil {
			batches = nil // paused: the one in hand comes first
		}
		var stopped, ended, synced, uploaded bool
		var batch *replication.Batch
		var res syncResult
		st.turn.Unlock()
		select {
		case <-ctx.Done():
			stopped = true
		case b, ok := <-batches:
			batch, ended = b, !ok
		case res = <-st.disk.done:
			synced = true
		case <-r.uploader.Changed():
			uploaded = true
		case <-r.watch.changed:
			uploaded = true
		case <-st.kick:
		case <-room:
		case <-timer.C:
		}
		st.turn.Lock()
		switch {
		case st.failed != nil:
			return st.failed // before any other end: it is the reason
		case stopped:
			return st.stop(ctx)
		case ended:
			return r.gapOr(st.s.Err(), segment.Position{Timeline: st.s.Timeline(), LSN: st.cursor})
		case batch != nil:
			st.batch, st.message, st.rest = batch, 0, nil
			st.feedback.heard = time.Now()
		case synced:
			if err := st.synced(res); err != nil {
				return err
			}
		case uploaded:
			st.feedback.moved = true
			if err := r.uploader.Stopped(); err != nil && st.full {
				return fmt.Errorf("%w: %w", ErrSpoolStuck, err)
			}
		}
	}
}

// gone prefers what the server said over the failure to speak to it.
func (st *streaming) gone(sendErr error) error {
	select {
	case b, ok := <-st.s.Batches():
		if !ok && st.s.Err() != nil {
			return st.s.Err()
		}
		if ok {
			b.Release()
		}
	default:
	}
	return sendErr
}

// consume works on the batch in hand until it is used up (done false, batch
// nil), or has to pause (batch kept), or the stream is over.
func (st *streaming) consume(ctx context.Context) (done bool, err error) {
	r := st.r
	for st.message < len(st.batch.Messages) {
		m := &st.batch.Messages[st.message]
		r.server = max(r.server, m.ServerEnd)
		switch m.Kind {
		case replication.Keepalive:
			if m.ReplyRequested {
				st.feedback.asked(time.Now())
			}
		case replication.CopyDone:
			return true, st.timelineEnded(ctx)
		case replication.WALData:
			if st.rest == nil {
				if m.Start != st.cursor {
					return true, fmt.Errorf("%w: WAL at %s was sent where %s was expected", replication.ErrProtocol, m.Start, st.cursor)
				}
				st.rest = m.Data
			}
			r.server = max(r.server, m.Start+segment.LSN(len(m.Data)))
			for len(st.rest) > 0 {
				paused, err := st.take()
				if err != nil || paused {
					return err != nil, err
				}
			}
			st.rest = nil
			if st.cursor >= r.pos.LSN && r.enough(r.pos.LSN) {
				return true, st.stop(ctx)
			}
		}
		st.message++
		if !st.flows && st.cursor >= r.pos.LSN && !r.fresh {
			// Only now: a server that takes the command and then ends the
			// stream each time is still one trouble.
			st.flows, r.unasked = true, false
			r.trouble.Over()
			r.log.Info("streaming", "position", r.pos.String(), "server", st.name, "version", st.srv.version.String())
		}
	}
	st.batch.Release()
	st.batch = nil
	return false, nil
}

// take moves the next bytes of st.rest, at most to the end of their segment,
// into the spool, or compares them with what is there.
func (st *streaming) take() (paused bool, err error) {
	r := st.r
	if st.page.bytes != nil {
		return false, st.takePage()
	}
	if r.seg == nil {
		if paused, err := st.open(); paused || err != nil {
			return paused, err
		}
	}
	n := min(len(st.rest), int(r.seg.Name().End(r.size)-st.cursor))
	// A standby may send what was never WAL of this place: when it has
	// replayed a segment switch it takes the segment for complete, and sends
	// what its file holds behind, also where the file is a recycled one whose
	// rest its own receiver has not overwritten yet (PostgreSQL:
	// GetStandbyFlushRecPtr in src/backend/replication/walsender.c). Nothing of
	// it may be kept: once it is overwritten the server sends something else.
	if _, err := st.pages.Write(st.rest[:n]); err != nil {
		return false, fmt.Errorf("the server sent what is not WAL of this place, and nothing of it was kept: %w", err)
	}
	if err := st.fill(st.rest[:n]); err != nil {
		return false, err
	}
	if err := st.store(st.rest[:n]); err != nil {
		return false, err
	}
	st.rest = st.rest[n:]
	st.cursor += segment.LSN(n)
	r.seg.Advance(st.cursor)
	if st.cursor > r.pos.LSN {
		r.pos.LSN = st.cursor
	}
	r.fresh = false
	if st.behindUnproved() {
		if err := st.proveBehind(); err != nil {
			return false, err
		}
	}
	if st.cursor == r.seg.Name().End(r.size) {
		if err := st.close(); err != nil {
			return false, err
		}
		if r.crowded(st.cursor) != nil && st.cursor >= r.pos.LSN {
			return false, fmt.Errorf("several timelines ended in the segment at %s, which has to be asked for on the youngest: %w", st.cursor, errNextStart)
		}
	}
	if err := st.passSwitches(); err != nil {
		return false, err
	}
	return false, nil
}

// takePage compares the last page before a boundary, and the zeros behind it.
func (st *streaming) takePage() error {
	held := st.page.bytes
	if behind := int(st.cursor - st.page.at); behind < pageSize {
		held = held[behind:]
	} else {
		held = make([]byte, pageSize)
	}
	n := min(len(st.rest), len(held), int(st.page.end-st.cursor))
	if err := st.compare(held[:n], st.rest[:n], st.cursor); err != nil {
		return err
	}
	st.rest = st.rest[n:]
	st.cursor += segment.LSN(n)
	if st.cursor == st.page.end {
		st.page = tailPage{}
	}
	return nil
}

// open begins the segment at the cursor, unless the spool or its disk is full.
func (st *streaming) open() (paused bool, err error) {
	r := st.r
	if len(st.disk.queue) >= r.lazySeals()+sealsWaiting {
		return true, nil
	}
	n := r.size.Name(r.pos.Timeline, st.cursor)
	g, held := r.find(n)
	if !held && !r.spool.Room() {
		if err := r.uploader.Stopped(); err != nil {
			return false, fmt.Errorf("%w: %w", ErrSpoolStuck, err)
		}
		st.nowFull(nil)
		return true, nil
	}
	if !held || !g.Sealed() {
		g, err = r.spool.Begin(n)
	}
	if errors.Is(err, syscall.ENOSPC) {
		st.nowFull(err)
		return true, nil
	}
	if err != nil {
		return false, &spoolError{err}
	}
	if st.full {
		st.full = false
		if r.toldFull {
			r.toldFull = false
			r.log.Info(r.where() + " has room again; receiving")
		}
	}
	r.seg = g
	st.pages = segment.NewPageChecker(segment.PageRules{Name: n, Size: r.size, SystemIdentifier: r.system})
	return false, nil
}

// find returns a segment that the spool holds.
func (r *Receiver) find(n segment.Name) (*spool.Segment, bool) {
	for _, g := range r.spool.Segments() {
		if g.Name() == n {
			return g, true
		}
	}
	return nil, false
}

// where names what holds the WAL that is on its way.
func (r *Receiver) where() string {
	if r.o.NoSpool {
		return "the memory for WAL (--memory)"
	}
	if r.spool.Keeps() {
		return "the disk of the directory"
	}
	return "the spool"
}

// nowFull says once what reception waits for.
func (st *streaming) nowFull(err error) {
	if st.full {
		return
	}
	st.full = true
	r := st.r
	if time.Since(r.fullSince) < fullReminder {
		return // it fills as fast as it is emptied: told already
	}
	r.fullSince, r.toldFull = time.Now(), true
	used, limit := r.spool.Used()
	attrs := []any{"used", used, "limit", limit, "archive_failing", r.uploader.Failing()}
	if err != nil {
		attrs = append(attrs, "error", err.Error())
	}
	until := "segments are uploaded"
	if r.spool.Keeps() {
		until, attrs = "there is room", attrs[6:]
	}
	r.log.Warn(r.where()+" is full: reception waits until "+until+", and the server keeps its WAL until then; "+
		"nothing is lost as long as the server has room", attrs...)
}

// store puts p, which lies within one segment at the cursor, into place. Bytes
// that the spool vouches for are compared, the others written; of a segment
// that is sealed already all are compared.
func (st *streaming) store(p []byte) error {
	r, at := st.r, st.cursor
	if !r.seg.Sealed() {
		if !st.dirty {
			// Behind a quiet time at once: the tail object waits for it.
			now := time.Now()
			st.dirty, st.syncBy = true, now.Add(lazySync-min(now.Sub(st.clean), lazySync))
		}
		return st.write(r.seg, p)
	}
	if st.scratch == nil {
		st.scratch = make([]byte, maxScratch)
	}
	for len(p) > 0 {
		held := st.scratch[:min(len(p), maxScratch)]
		if err := r.seg.ReadAt(held, at); err != nil {
			return err
		}
		if err := st.compare(held, p[:len(held)], at); err != nil {
			return err
		}
		p, at = p[len(held):], at+segment.LSN(len(held))
	}
	return nil
}

// write puts p at the cursor into a segment, or compares it with what is
// vouched for there.
func (st *streaming) write(g *spool.Segment, p []byte) error {
	err := g.WriteAt(p, st.cursor)
	switch {
	case errors.Is(err, spool.ErrConflict):
		return fmt.Errorf("%w (we hold WAL up to %s): %w", ErrConflict, st.r.pos, err)
	case err != nil:
		return &spoolError{err}
	}
	return nil
}

// maxScratch bounds one comparison, in bytes.
const maxScratch = 64 << 10

// compare finds the first difference between what is held and what was sent
// at an LSN.
func (st *streaming) compare(held, sent []byte, at segment.LSN) error {
	if bytes.Equal(held, sent) {
		return nil
	}
	i := 0
	for held[i] == sent[i] {
		i++
	}
	return fmt.Errorf("%w: at %s on timeline %d (we hold WAL up to %s)",
		ErrConflict, at+segment.LSN(i), st.s.Timeline(), st.r.pos)
}

// close hands a full segment to the disk for sealing.
func (st *streaming) close() error {
	r := st.r
	g := r.seg
	r.rememberTail(g)
	if r.o.Ack == AckArchive {
		st.offer() // a commit that waits is served before the segment is stored whole
	}
	r.seg = nil
	if st.dirty {
		st.cleaned() // the seal syncs it
	}
	if g.Sealed() {
		// Before, or by an uploader that was as fast as this.
		r.spooled = max(r.spooled, g.Name().End(r.size))
		return nil
	}
	st.disk.queue = append(st.disk.queue, fullSegment{g, time.Now()})
	return nil
}

// sync gives the disk its next work, when it is due: a seal that waits, else,
// as soon as nothing more is queued, one fsync for all that was written.
func (st *streaming) sync() {
	st.forgetShipped()
	lazy := st.lazy()
	switch {
	case st.disk.busy:
	case len(st.disk.queue) > 0:
		first := st.disk.queue[0]
		if !lazy || len(st.disk.queue) > st.r.lazySeals() || time.Since(first.since) >= lazySync {
			st.disk.start(first.Segment, true)
		}
	case st.dirty && st.r.seg != nil && (lazy && !time.Now().Before(st.syncBy) ||
		!lazy && len(st.s.Batches()) == 0 && (st.batch == nil || st.full)):
		st.cleaned()
		st.disk.start(st.r.seg, false)
	}
}

// cleaned says that a sync or seal has what was written.
func (st *streaming) cleaned() { st.dirty, st.clean = false, time.Now() }

// nextSync returns when bytes that wait for their fsync have waited long
// enough; late when none do.
func (st *streaming) nextSync(late time.Time) time.Time {
	switch {
	case st.disk.busy:
		return late
	case len(st.disk.queue) > 0:
		return st.disk.queue[0].since.Add(lazySync)
	case st.dirty && st.r.seg != nil:
		return st.syncBy
	}
	return late
}

// forgetShipped takes those segments from the queue that the archive has
// already: they need no fsync.
func (st *streaming) forgetShipped() {
	sealed, ok := st.r.sealedHere()
	if !ok || st.disk.busy || st.r.spool.Keeps() {
		return // the one in work is the first of the queue
	}
	for len(st.disk.queue) > 0 && st.disk.queue[0].End() <= sealed && st.disk.queue[0].Name().Timeline == st.r.pos.Timeline {
		first := st.disk.queue[0]
		st.disk.queue = st.disk.queue[1:]
		st.r.spooled = max(st.r.spooled, sealed)
		st.r.o.Events.Sealed(first.Name(), first.End())
		st.feedback.due = true // a report at each segment's end
	}
}

// synced takes the result of a sync or seal.
func (st *streaming) synced(res syncResult) error {
	r := st.r
	st.disk.busy = false
	if res.err != nil {
		// The kernel may have dropped what was written: nothing of it is
		// believed. It is given up and streamed again from what is durable.
		st.giveUp()
		return &spoolError{fmt.Errorf("making segment %s durable: %w", res.seg.Name(), res.err)}
	}
	r.writing.Over()
	if res.sealed {
		st.disk.queue = st.disk.queue[1:]
		st.feedback.due = true // a report at each seal
		r.o.Events.Sealed(res.seg.Name(), res.seg.End())
		r.log.Debug("sealed", "segment", res.seg.Name().String())
	} else {
		st.disk.took = res.took
	}
	if res.seg.Name().Timeline == r.pos.Timeline {
		r.spooled = max(r.spooled, min(res.durable, r.pos.LSN))
	}
	st.feedback.moved = true
	return nil
}

// giveUp abandons every segment that is not durable, and goes back to the
// position that is.
func (st *streaming) giveUp() {
	r := st.r
	r.pos.LSN = min(r.pos.LSN, r.spooled)
	r.unsealed = segment.Name{}
	// The youngest first: none may be stored because an older one, which comes
	// back, no longer waits to be.
	if r.seg != nil {
		r.seg.Abandon()
	}
	for _, g := range slices.Backward(st.disk.queue) {
		if g.End() == r.pos.LSN {
			r.unsealed = g.Name()
		}
		g.Abandon()
	}
	st.disk.queue = nil
	r.seg = nil
	r.tail = tailPage{}
	r.fresh = r.pos.LSN == r.begin // nothing is held again
}

// stop ends the stream in good order: what was received is made durable and
// reported, and the server is told good-bye.
func (st *streaming) stop(ctx context.Context) error {
	r := st.r
	finished := ctx.Err() == nil
	ctx = context.WithoutCancel(ctx)
	// However long the disk takes, and a slow compressor: shutDisk would wait for
	// them as well, and nobody would be told of what they did.
	if err := st.flush(ctx); err != nil {
		return err
	}
	st.offer()
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	r.o.Events.Stopping(r.pos, finished)
	st.shipRest(ctx)
	st.feedback.due = true
	if err := st.feedback.send(st, time.Now()); err != nil {
		r.log.Debug("the last status could not be sent", "error", err.Error())
		return nil
	}
	if err := st.s.Stop(ctx); err != nil {
		r.log.Debug("the stream did not end in good order", "error", err.Error())
	}
	return nil
}

// shipRest gives the uploader a moment to ship what was received, so that the
// last report with AckArchive can be of all of it.
func (st *streaming) shipRest(ctx context.Context) {
	r := st.r
	if r.o.Ack != AckArchive || r.seg == nil || r.fresh || st.cursor < r.pos.LSN || st.behindUnproved() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, shipPatience)
	defer cancel()
	r.uploader.Offer(r.seg, st.cursor, true)
	for {
		shipped, ok := r.shippedHere()
		if !ok || shipped == r.pos.LSN || r.uploader.Failing() || r.uploader.Stopped() != nil {
			return
		}
		select {
		case <-r.uploader.Changed():
		case <-ctx.Done():
			return
		}
	}
}

// flush makes everything that was written durable.
func (st *streaming) flush(ctx context.Context) error {
	for {
		if !st.disk.busy && len(st.disk.queue) == 0 {
			if !st.dirty || st.r.seg == nil {
				return nil
			}
			st.cleaned()
			st.disk.start(st.r.seg, false)
		} else if !st.disk.busy {
			st.disk.start(st.disk.queue[0].Segment, true)
		}
		select {
		case res := <-st.disk.done:
			if err := st.synced(res); err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("making the spool durable: %w", ctx.Err())
		}
	}
}

// shutDisk waits for the disk. What is open stays in the spool, which knows
// what it holds of it when the next attempt begins it again.
func (st *streaming) shutDisk() error {
	if st.batch != nil {
		st.batch.Release()
		st.batch = nil
	}
	var err error
	if st.disk.busy {
		err = st.synced(<-st.disk.done)
	}
	for err == nil && len(st.disk.queue) > 0 {
		st.disk.start(st.disk.queue[0].Segment, true)
		err = st.synced(<-st.disk.done)
	}
	st.disk.stop()
	if g := st.r.seg; g != nil && !g.Sealed() {
		st.r.o.Events.Left(g.Name())
	}
	st.r.seg = nil
	return err
}

// timelineEnded follows the server to the next timeline.
func (st *streaming) timelineEnded(ctx context.Context) error {
	if err := st.flush(ctx); err != nil {
		return err
	}
	// The loop, which gives up a server that says nothing, does not turn now.
	patient, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	next, err := st.s.FinishTimeline(patient)
	if err != nil {
		return err
	}
	if next.LSN > st.cursor {
		return fmt.Errorf("%w: timeline %d is said to end at %s, and was sent up to %s", replication.ErrProtocol, st.s.Timeline(), next.LSN, st.cursor)
	}
	if err := st.r.switchTo(ctx, next.LSN, next.Timeline); err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errCopyDone, &replication.EndOfTimeline{Timeline: st.s.Timeline(), Next: next.Timeline, At: next.LSN})
}

// switchTo goes on behind the end of the current timeline.
func (r *Receiver) switchTo(ctx context.Context, at segment.LSN, child segment.Timeline) error {
	r.log.Info("the timeline ended; following the server to the next", "timeline", uint32(r.pos.Timeline), "switchpoint", at.String(), "next", uint32(child))
	if err := r.endTimeline(ctx, at, child); err != nil {
		return err
	}
	r.o.Events.Switched(r.pos)
	return nil
}
