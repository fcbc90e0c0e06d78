package receiver

import (
	"time"

	"github.com/walferry/walferry/segment"
)

// Events is told what Run does, for a program that has to say so in words of
// its own. Its methods are called from Run's goroutine, one at a time and in
// order, and hold up reception until they return. Nothing hangs on them.
type Events interface {
	// Starting: a stream is about to be asked for. from is where the segment
	// begins that holds the next byte.
	Starting(from segment.Position)
	// Sealed: a segment is whole and durable, in the spool or in the archive, which
	// may be faster; end is where it ends.
	Sealed(n segment.Name, end segment.LSN)
	// Switched: the timeline that was streamed has ended; to is where the next
	// one goes on.
	Switched(to segment.Position)
	// Stopping: the stream is ended from here, since EndPos was passed
	// (finished) or ctx has ended. at is the end of what was received, and is
	// durable.
	Stopping(at segment.Position, finished bool)
	// Left: a stream has ended in the middle of a segment, which stays a
	// partial.
	Left(n segment.Name)
	// Disconnected: an attempt has failed, and the next is made after wait.
	Disconnected(err error, wait time.Duration)
}

// tellStarting tells of a stream that is about to be asked for.
func (r *Receiver) tellStarting() {
	at := r.size.Start(r.pos.LSN)
	t := r.pos.Timeline
	if at < r.pos.LSN {
		t = r.history.Owner(at)
	}
	r.o.Events.Starting(segment.Position{Timeline: t, LSN: at})
}

// tellFinished tells of a run that has nothing to do, as if it streamed the
// segment once more that EndPos lies in.
func (r *Receiver) tellFinished() {
	r.tellStarting()
	at := r.size.Start(r.pos.LSN)
	if r.o.EndPos < at || at == r.pos.LSN {
		r.o.Events.Stopping(segment.Position{Timeline: r.pos.Timeline, LSN: at}, true)
		return
	}
	r.o.Events.Stopping(r.pos, true)
	r.o.Events.Left(r.size.Name(r.pos.Timeline, r.pos.LSN))
}

// noEvents is for those who need not be told.
type noEvents struct{}

func (noEvents) Starting(segment.Position)         {}
func (noEvents) Sealed(segment.Name, segment.LSN)  {}
func (noEvents) Switched(segment.Position)         {}
func (noEvents) Stopping(segment.Position, bool)   {}
func (noEvents) Left(segment.Name)                 {}
func (noEvents) Disconnected(error, time.Duration) {}
