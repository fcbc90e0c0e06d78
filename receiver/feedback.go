package receiver

import (
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

const (
	// slowAnswer is how long an answer waits that would say nothing new. A
	// server that is shutting down asks again at once after each answer.
	slowAnswer = 100 * time.Millisecond
	// againSoon: a server that asks again so soon after an answer is waiting
	// for our flush LSN, which it only does when it shuts down (WalSndDone in
	// walsender.c).
	againSoon = time.Second
	// silence is how long a server may say nothing at all before the
	// connection is given up, as a standby's wal_receiver_timeout; after half
	// of it the server is asked for a sign of life.
	silence = time.Minute
	// never is the interval of statuses that only go out when asked for.
	never = 365 * 24 * time.Hour
)

// feedback decides when a status is sent and what it says.
type feedback struct {
	interval time.Duration
	grace    time.Duration
	restart  segment.LSN // the slot's restart_lsn at connect: never reported below

	due      bool // a status must go out now
	moved    bool // a position may have moved since the last status
	question bool // the server waits for an answer
	answerBy time.Time

	heard      time.Time // when the server last said something, or was not listened to
	lastSent   time.Time
	lastAnswer time.Time
	last       replication.Status
	sent       bool

	idleAsks      int       // questions in a row that came right after an answer that said nothing new
	drainingSince time.Time // zero unless the server seems to be shutting down
}

func newFeedback(r *Receiver, srv server, restart segment.LSN) feedback {
	interval := r.o.StatusInterval
	switch {
	case interval < 0:
		interval = never
	case srv.timeout > 0:
		interval = min(interval, srv.timeout/3)
	}
	return feedback{interval: interval, grace: r.o.ShutdownGrace, restart: restart, lastSent: time.Now(), heard: time.Now()}
}

// asked notes that the server wants an answer.
func (f *feedback) asked(now time.Time) {
	if !f.lastAnswer.IsZero() && now.Sub(f.lastAnswer) < againSoon {
		f.idleAsks++
		if f.idleAsks >= 2 && f.drainingSince.IsZero() {
			f.drainingSince = now
		}
	} else {
		f.idleAsks, f.drainingSince = 0, time.Time{}
	}
	if !f.question {
		f.question, f.answerBy = true, now.Add(slowAnswer)
	}
}

// draining reports whether the server seems to wait for us so that it can stop.
func (f *feedback) draining() bool { return !f.drainingSince.IsZero() }

// next returns when send has to be called again if nothing happens.
func (f *feedback) next(now time.Time) time.Time {
	next := f.lastSent.Add(f.interval)
	if f.question && f.answerBy.Before(next) {
		next = f.answerBy
	}
	if deadline := f.heard.Add(silence); deadline.Before(next) && f.interval < never {
		next = deadline
	}
	return next
}

// silent reports whether the server is to be given up. Where it is never asked
// for a sign of life, its silence says nothing.
func (f *feedback) silent(now time.Time) bool {
	return now.Sub(f.heard) >= silence && f.interval < never
}

// send sends a status if one is due. Failing to is final for the stream.
func (f *feedback) send(st *streaming, now time.Time) error {
	status := f.status(st, now)
	news := status.Write != f.last.Write || status.Flush != f.last.Flush
	switch {
	case f.due:
	case f.question && (news || !now.Before(f.answerBy)):
	case f.moved && news && (st.r.watch.waiting() || f.draining()):
		// A commit, or the server's shutdown, waits for exactly this.
	case now.Sub(f.lastSent) >= f.interval:
	default:
		f.moved = false
		return nil
	}
	status.Time = now
	status.ReplyRequested = now.Sub(f.heard) >= silence/2
	if err := st.s.SendStatus(status); err != nil {
		return err
	}
	if f.question {
		f.lastAnswer = now
	}
	if news {
		f.idleAsks = 0
	}
	f.due, f.moved, f.question = false, false, false
	f.last, f.lastSent, f.sent = status, now, true
	st.r.reported = max(st.r.reported, status.Flush)
	if status.Write != 0 {
		st.r.created = false // in use: what it retains from now on nobody else has
	}
	return nil
}

// status is what may be said now. Nothing is reported before everything held
// was found equal to what the server sends.
func (f *feedback) status(st *streaming, now time.Time) replication.Status {
	r := st.r
	if r.fresh || st.cursor < r.pos.LSN || st.behindUnproved() {
		return replication.Status{}
	}
	received := min(r.pos.LSN, r.server)
	s := replication.Status{Write: min(st.writeLSN(), received)}
	s.Flush = min(st.flushLSN(), s.Write)
	s.Flush = max(s.Flush, r.reported) // within a timeline it never decreases
	if s.Flush < f.restart {
		s.Flush = 0 // the slot is further: it is not moved back
	}
	if f.draining() && s.Flush != received && now.Sub(f.drainingSince) >= f.grace {
		// The server stops, its slot stays where it is, no commit is released.
		s.Write, s.Flush = received, 0
	}
	if r.o.NoFlush {
		s.Flush = 0
	}
	return s
}

// flushLSN is the position that survives: with AckArchive, shipped; else
// spooled, or, while the hold lasts, shipped, so that even the loss of this
// host leaves no gap.
func (st *streaming) flushLSN() segment.LSN {
	shipped, _ := st.r.shippedHere()
	if st.r.o.Ack == AckArchive || st.holding() {
		return shipped
	}
	return max(st.r.spooled, shipped)
}

// writeLSN is what synchronous_commit = remote_write waits for: with AckArchive
// this host's disk, where there is one; else received.
func (st *streaming) writeLSN() segment.LSN {
	r := st.r
	if r.o.Ack != AckArchive || r.o.NoSpool {
		return r.pos.LSN
	}
	shipped, _ := r.shippedHere()
	return max(r.spooled, shipped)
}

// hurried reports whether somebody waits for what we have received: a commit,
// or the server, which is shutting down.
func (st *streaming) hurried() bool {
	return st.r.watch.waiting() || st.r.watch.shuttingDown() || st.feedback.draining()
}

// lazy reports whether no fsync is waited for, because what is reported is what
// the archive has, or because nobody waits for what is reported.
func (st *streaming) lazy() bool {
	if st.r.o.Ack == AckArchive {
		return !st.r.o.NoSpool && !st.hurried()
	}
	return st.holding() || st.r.o.Lazy && !st.hurried()
}

// offer lets the uploader have the open segment as far as a tail object may
// hold it: with AckSpool what is durable here, so that the archive never knows
// more than the spool; else all that was received. Nothing goes out before all
// that we hold was found equal to what the server sends.
func (st *streaming) offer() {
	r := st.r
	if r.seg == nil || r.seg.Sealed() || r.fresh || st.cursor < r.pos.LSN || st.behindUnproved() {
		return
	}
	if r.o.Ack == AckArchive {
		r.uploader.Offer(r.seg, st.cursor, st.hurried())
		return
	}
	r.uploader.Offer(r.seg, min(r.spooled, st.cursor), false)
}

// holding reports whether the hold lasts: no commit waits for us, storage
// works, the server is not shutting down, and less than the hold is on this
// host alone.
func (st *streaming) holding() bool {
	r := st.r
	shipped, ok := r.shippedHere()
	return ok && r.o.Hold > 0 && max(r.spooled, shipped)-shipped < segment.LSN(r.o.Hold) &&
		!st.hurried() && !r.uploader.Failing() && r.uploader.Stopped() == nil
}

// shippedHere returns the shipped position on the current timeline: what is
// shipped of an ancestor counts up to where that ended.
func (r *Receiver) shippedHere() (segment.LSN, bool) {
	return r.here(r.uploader.Shipped())
}

// sealedHere is shippedHere for whole segments.
func (r *Receiver) sealedHere() (segment.LSN, bool) { return r.here(r.uploader.Sealed()) }

func (r *Receiver) here(p segment.Position, ok bool) (segment.LSN, bool) {
	if !ok {
		return 0, false
	}
	if p.Timeline == r.pos.Timeline {
		return min(p.LSN, r.pos.LSN), true
	}
	if at, ancestor := r.history.Switchpoint(p.Timeline); ancestor {
		return min(p.LSN, at, r.pos.LSN), true
	}
	return 0, false
}
