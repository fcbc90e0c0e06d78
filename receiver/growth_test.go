package receiver

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/walferry/walferry/segment"
)

func TestGrowth(t *testing.T) {
	const s = time.Second
	var g growth
	want := func(now time.Duration, l segment.LSN, lag time.Duration) {
		t.Helper()
		if got := g.lag(l, now); got != lag {
			t.Errorf("after %v, at %s: %v behind; want %v", now, l, got, lag)
		}
	}
	want(s, 5, 0)
	g.reached(0, s) // not known yet
	want(2*s, 0, 0)
	g.reached(100, 10*s)
	want(15*s, 99, 5*s)
	want(15*s, 100, 0)
	want(15*s, 1000, 0)
	g.reached(100, 20*s) // it stands still
	want(21*s, 99, 11*s)
	want(21*s, 100, 0)
	if g.n != 1 {
		t.Errorf("a server that stands still makes %d steps", g.n)
	}
	g.reached(200, 30*s)
	g.reached(300, 30*s+growthStep-1) // within one step
	g.reached(400, 30*s+growthStep)
	want(40*s, 99, 30*s)
	want(40*s, 100, 10*s)
	want(40*s, 299, 10*s)
	want(40*s, 300, 10*s-growthStep)
	want(40*s, 400, 0)
	g.reached(0, 41*s) // it is not known now: what was known stays
	want(42*s, 300, 12*s-growthStep)

	// Another server, whose WAL ends before; then it grows.
	g.reached(250, 50*s)
	want(60*s, 200, 30*s)
	want(60*s, 250, 0)
	g.reached(500, 70*s)
	want(80*s, 249, 50*s)
	want(80*s, 250, 10*s)
	g.reached(50, 90*s)
	want(100*s, 49, 90*s)
	want(100*s, 50, 0)
}

// However long it goes on, the answer is never too small, and too large by no
// more than a step and a small part of itself.
func TestGrowthIsBounded(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var g growth
	type exact struct {
		end segment.LSN
		at  time.Duration
	}
	var all []exact
	var now time.Duration
	var end segment.LSN = 1
	for range 300_000 {
		now += time.Duration(r.ExpFloat64() * float64(2*time.Second))
		end += segment.LSN(1 + r.IntN(1000))
		g.reached(end, now)
		all = append(all, exact{end, now})
	}
	if g.n < growthSteps/4 {
		t.Errorf("%d steps are left: coarser than need be", g.n)
	}
	if end := all[len(all)-1].end; g.lag(end, now) != 0 {
		t.Error("behind its own end")
	}
	for range 10_000 {
		i := len(all) - 1 - min(int(r.ExpFloat64()*float64(len(all))/8), len(all)-2)
		right := now - all[i].at
		got := g.lag(all[i-1].end, now)
		if got < right || got > right+growthStep+right/growthFine {
			t.Fatalf("%v, right is %v", got, right)
		}
	}
}
