package receiver

import (
	"context"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// directBytes is up to how much WAL a batch is that of a commit, or of some
// clients' at once. More is better written while the next is read.
const directBytes = 32 << 10

// directSync is up to how long an fsync may have taken for the next to be done
// before more is read.
const directSync = 5 * time.Millisecond

// direct takes a batch in the goroutine that has read it, when a commit waits
// for it: write, fsync and answer in a row, as pg_receivewal has them. On the
// way to the loop, to the disk and back to the loop three goroutines would have
// to be woken, which is a good part of what a small transaction waits for.
//
// Nothing is read until it returns, so all that could have to wait for
// something is left to the loop, and so is everything while an fsync takes
// long. It has the turn but for the fsync itself, during which the loop goes on
// answering the server: a disk that begins to hang holds up the commits, which
// wait for just that, and not the connection.
func (st *streaming) direct(ctx context.Context, b *replication.Batch) (taken bool) {
	if !st.turn.TryLock() {
		return false
	}
	g, taken := st.takeCommits(ctx, b)
	st.turn.Unlock()
	if g == nil {
		return taken
	}
	res := syncRequest{seg: g}.do()
	if !st.turn.TryLock() {
		st.disk.done <- res // the loop has the turn, and may be waiting for it
		return true
	}
	st.answerCommits(res)
	st.turn.Unlock()
	return true
}

// takeCommits writes a batch of nothing but a little WAL of the open segment,
// whose fsync is waited for, and returns the segment that is to be synced.
func (st *streaming) takeCommits(ctx context.Context, b *replication.Batch) (g *spool.Segment, taken bool) {
	r := st.r
	if r.o.Ack != AckSpool || !r.watch.waiting() {
		return nil, false // nobody waits for the disk
	}
	if st.failed != nil || st.batch != nil || !st.flows || r.seg == nil || r.seg.Sealed() || st.disk.busy || len(st.disk.queue) > 0 || st.disk.took > directSync {
		return nil, false
	}
	n := 0
	for i := range b.Messages {
		m := &b.Messages[i]
		if m.Kind == replication.CopyDone || m.ReplyRequested {
			return nil, false
		}
		n += len(m.Data)
	}
	end := st.cursor + segment.LSN(n)
	if n == 0 || n > directBytes || end >= r.seg.End() || r.enough(end) {
		return nil, false
	}
	st.batch, st.message, st.rest = b, 0, nil
	st.feedback.heard = time.Now()
	if _, err := st.consume(ctx); err != nil { // never done: what ends a stream was left to the loop
		st.fail(err)
		return nil, true
	}
	st.cleaned()
	st.disk.busy = true
	return r.seg, true
}

// answerCommits releases the commits whose WAL was synced.
func (st *streaming) answerCommits(res syncResult) {
	if err := st.synced(res); err != nil {
		st.fail(err)
		return
	}
	st.offer()
	if err := st.feedback.send(st, time.Now()); err != nil {
		st.feedback.due = true // the loop tries, and finds out why it cannot
		st.wake()
		return
	}
	st.publish()
}

// fail lets the loop end with an error.
func (st *streaming) fail(err error) {
	st.failed = err
	st.wake()
}

// wake gives the loop a turn.
func (st *streaming) wake() {
	select {
	case st.kick <- struct{}{}:
	default:
	}
}
