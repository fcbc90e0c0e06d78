package receiver

import (
	"sync"
	"time"

	"github.com/walferry/walferry/internal/patience"
	"github.com/walferry/walferry/segment"
)

// State is what a Receiver is about, in words.
type State string

// The states, in the order in which a run goes through them.
const (
	Connecting State = "connecting"
	// Starting: connected. Server, archive and spool are asked where to go on.
	Starting State = "starting"
	// Comparing: what is held of the first segment, with what the server sends.
	Comparing State = "comparing"
	Streaming State = "streaming"
	// Full: as Streaming, but nothing is taken from the server.
	Full State = "waiting for room in the spool"
	// Waiting: for the next attempt; Status.Troubles tells why.
	Waiting State = "waiting"
	Stopped State = "stopped"
)

// Status is what a Receiver is doing: a copy, for those who watch.
type Status struct {
	State State
	Since time.Time // when the state began

	// What the server said when it was last connected to; zero before.
	SystemIdentifier uint64
	SegmentSize      segment.Size
	Server           string // address and user, without secrets
	Version          string
	Timeline         segment.Timeline

	Received segment.Position // zero: it is not known yet where to go on
	Spooled  segment.Position
	// ServerEnd is the highest end of WAL that the server has announced.
	ServerEnd segment.LSN
	// Write and Flush were reported last; zero: nothing was, or "unknown" was.
	Write, Flush segment.LSN

	Slot        string
	Ack         Ack
	CommitWaits bool // a commit may wait for us: we are a synchronous standby
	Hold        bool // the hold lasts: what the archive has is reported

	// Troubles are what is waited for, with the server, with the archive at a
	// start and at a gap, and with the spool's disk. They last until it has worked, through
	// further attempts.
	Troubles []patience.Report
}

// Status may be called at any time, concurrently. It waits for nothing.
func (r *Receiver) Status() Status {
	r.shown.mu.Lock()
	s := r.shown.status
	r.shown.mu.Unlock()
	s.Slot, s.Ack = r.o.Slot, r.o.Ack
	if s.Spooled.Timeline != 0 {
		// What was shipped since counts as spooled: the archive has it.
		if p, ok := r.uploader.Shipped(); ok && p.Timeline == s.Spooled.Timeline {
			s.Spooled.LSN = min(max(s.Spooled.LSN, p.LSN), s.Received.LSN)
		}
	}
	for _, t := range []*patience.Trouble{r.trouble, r.asking, r.noting, r.writing} {
		if report, ok := t.Report(); ok {
			s.Troubles = append(s.Troubles, report)
		}
	}
	return s
}

// Lag returns for how long the server has had WAL behind l, as far as we know
// of it; 0 when it has none. It may be called at any time.
func (r *Receiver) Lag(l segment.LSN) time.Duration {
	now := time.Since(r.heart.epoch)
	r.shown.mu.Lock()
	defer r.shown.mu.Unlock()
	return r.shown.growth.lag(l, now)
}

// shown is what others may see of the receiver's own state.
type shown struct {
	mu     sync.Mutex
	status Status // guarded by mu; without what Status adds
	growth growth // guarded by mu
}

// publish shows others where we are. It is called once a turn of the stream's
// loop, so it copies a few words and allocates nothing.
func (r *Receiver) publish(state State) { r.show(state, nil) }

// publish as well, of a stream.
func (st *streaming) publish() {
	state := Streaming
	switch {
	case st.full:
		state = Full
	case st.cursor < st.r.pos.LSN || st.behindUnproved():
		state = Comparing
	}
	st.r.show(state, st)
}

func (r *Receiver) show(state State, st *streaming) {
	hold := st != nil && st.holding()
	waits := r.watch != nil && r.watch.waiting()
	since := time.Since(r.heart.epoch)
	r.shown.mu.Lock()
	defer r.shown.mu.Unlock()
	s := &r.shown.status
	if s.State != state {
		s.State, s.Since = state, time.Now()
	}
	s.SystemIdentifier, s.SegmentSize = r.system, r.size
	if r.resolved {
		s.Received = r.pos
		s.Spooled = segment.Position{Timeline: r.pos.Timeline, LSN: r.spooled}
	}
	s.ServerEnd, s.CommitWaits, s.Hold = r.server, waits, hold
	if st != nil && st.feedback.sent {
		s.Write, s.Flush = st.feedback.last.Write, st.feedback.last.Flush
	}
	r.shown.growth.reached(r.server, since)
}

// publishServer shows others which server was reached.
func (r *Receiver) publishServer(name string, srv server) {
	r.shown.mu.Lock()
	s := &r.shown.status
	s.Server, s.Version, s.Timeline = name, srv.version.String(), srv.system.Timeline
	r.shown.mu.Unlock()
	r.publish(Starting)
}
