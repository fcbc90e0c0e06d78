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
	// Sealed: a segment is whole and durable.
	Sealed(n segment.Name)
	// Switched: the timeline that was streamed has ended; to is where the next
	// one goes on.
	Switched(to segment.Position)
	// Stopping: the stream is ended from here, since EndPos was passed
	// (finished) or ctx has ended. at is the end of what was received.
	Stopping(at segment.Position, finished bool)
	// Left: a stream has ended in the middle of a segment, which stays a
	// partial.
	Left(n segment.Name)
	// Disconnected: an attempt has failed, and the next is made after wait.
	Disconnected(err error, wait time.Duration)
}

// noEvents is for those who need not be told.
type noEvents struct{}

func (noEvents) Starting(segment.Position)         {}
func (noEvents) Sealed(segment.Name)               {}
func (noEvents) Switched(segment.Position)         {}
func (noEvents) Stopping(segment.Position, bool)   {}
func (noEvents) Left(segment.Name)                 {}
func (noEvents) Disconnected(error, time.Duration) {}
