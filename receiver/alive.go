package receiver

import (
	"sync/atomic"
	"time"
)

const (
	// turnLimit is how long one turn of a stream's loop may take. It turns at
	// least once a status interval; what holds it up are the disk and the
	// server, which has a write time-out of its own.
	turnLimit = 2 * time.Minute
	// attemptLimit is how long an attempt may take until its stream begins: it
	// connects, asks the archive for its end, and reads back what is held.
	attemptLimit = 15 * time.Minute
)

// heartbeat is when the receiver's goroutine has to be heard of again. It holds
// a monotonic time, which no setting of the clock moves.
type heartbeat struct {
	epoch time.Time
	due   atomic.Int64 // nanoseconds behind epoch; 0: nothing is due
}

// expect says that the next beat comes within the limit.
func (h *heartbeat) expect(limit time.Duration) { h.due.Store(int64(time.Since(h.epoch) + limit)) }

// rest says that no beat has to come.
func (h *heartbeat) rest() { h.due.Store(0) }

func (h *heartbeat) alive() bool {
	due := h.due.Load()
	return due == 0 || int64(time.Since(h.epoch)) <= due
}

// Alive reports whether Run still gets on: false when one turn of its loop has
// taken longer than anything in it may. A server or a store that is away is no
// reason. Before and behind Run it is true. It may be called concurrently.
func (r *Receiver) Alive() bool { return r.heart.alive() }
