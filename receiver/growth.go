package receiver

import (
	"sort"
	"time"

	"github.com/walferry/walferry/segment"
)

const (
	// growthSteps bounds what is kept, 16 bytes each.
	growthSteps = 4096
	// growthStep is the shortest step: what the server announces within it is
	// one.
	growthStep = 100 * time.Millisecond
	// growthFine is how much finer than their age steps are kept: 64 parts of
	// it. A year of steps without a pause then takes about two thirds of them.
	growthFine = 64
)

// growth remembers how the end of the server's WAL grew: by when the server had
// WAL behind an LSN. When it is full, neighbouring steps become one, the older
// the more of them, so that it goes back for as long as there is anything to
// tell, the coarser the longer ago.
type growth struct {
	steps [growthSteps]step
	n     int
}

// step: the end came to end in this step, which began at since.
type step struct {
	end   segment.LSN
	since time.Duration
}

// reached notes where the server's WAL ends now. Zero is not known.
func (g *growth) reached(end segment.LSN, now time.Duration) {
	if end == 0 {
		return
	}
	since := now
	for g.n > 0 && g.steps[g.n-1].end > end {
		// Another server, or one that was set back: what lies behind its end
		// is not there any more. What lies before was there already.
		g.n--
		since = g.steps[g.n].since
	}
	if g.n > 0 {
		last := &g.steps[g.n-1]
		if last.end == end {
			return
		}
		if now-last.since < growthStep {
			last.end = end
			return
		}
	}
	if g.n == growthSteps {
		for fine := growthFine; g.n > growthSteps*3/4; fine /= 2 {
			g.thin(now, time.Duration(fine))
		}
	}
	g.steps[g.n] = step{end, since}
	g.n++
}

// thin makes one step of neighbours that together are shorter than a fine-th of
// their age; with 0 of all but the last. What is said of WAL in such a step is
// too much by that part at most, since it is counted from the step's beginning,
// and later by a smaller part.
func (g *growth) thin(now, fine time.Duration) {
	n := 0
	for i := 1; i < g.n; i++ {
		next := now // where step i ends
		if i+1 < g.n {
			next = g.steps[i+1].since
		}
		if (next-g.steps[n].since)*fine <= now-next && i+1 < g.n {
			g.steps[n].end = g.steps[i].end
			continue
		}
		n++
		g.steps[n] = g.steps[i]
	}
	g.n = n + 1
}

// lag returns how long ago the server first had WAL behind l; 0: it has none.
func (g *growth) lag(l segment.LSN, now time.Duration) time.Duration {
	i := sort.Search(g.n, func(i int) bool { return g.steps[i].end > l })
	if i == g.n {
		return 0
	}
	return now - g.steps[i].since
}
