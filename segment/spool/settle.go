package spool

import "github.com/walferry/walferry/segment"

// Settle says that the bytes in front of an LSN, all of them written, are
// right, and that nothing behind it is: it counts as not written. They are
// vouched for from now on, and readers have them. It is for bytes that came
// from the archive, checked there; to must not lie in front of Advance. Nothing
// is durable on return.
func (g *Segment) Settle(to segment.LSN) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != open || to < g.advanced || to > g.written {
		return
	}
	g.vouchStart, g.vouchEnd = g.Start(), to
	g.written, g.advanced = to, to
	g.wake()
}
