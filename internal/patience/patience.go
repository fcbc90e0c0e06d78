// Package patience is the one rule by which walferry waits for what may pass:
// try again for ever, 1 s doubling to 30 s, each wait varied by 20 %; say so
// in one line when it begins, when the reason changes, once an hour, and in
// one line when it is over (DESIGN, section 7).
package patience

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// The waits between attempts, before they are varied by a fifth either way.
const (
	First   = 1 * time.Second
	Longest = 30 * time.Second
	// Reminder is how often a trouble that goes on is told again.
	Reminder = time.Hour
)

// Trouble is one thing that keeps failing, and how it is told. The zero value
// is not usable: see New. Its methods may be called concurrently: several
// workers that fail for the same reason are one trouble.
type Trouble struct {
	log  *slog.Logger
	what string

	mu       sync.Mutex
	failing  int       // attempts since it last worked
	failed   time.Time // the last of them
	since    time.Time
	told     time.Time
	reason   string // as it was told
	last     string // of the last attempt
	lastWait time.Duration
	doubled  time.Time     // when lastWait last grew
	over     chan struct{} // closed by Over, which wakes those who wait
}

// New returns a trouble that has not begun. what completes the sentences
// "cannot <what>" and "can <what> again".
func New(log *slog.Logger, what string) *Trouble {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Trouble{log: log, what: what, over: make(chan struct{})}
}

// Failed records a failed attempt, tells it if it is time, and returns how
// long to wait before the next.
func (t *Trouble) Failed(err error) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.failing == 0 {
		t.since, t.lastWait = now, 0
	}
	t.failing++
	t.failed = now
	reason := err.Error()
	t.last = reason
	if t.failing == 1 || reason != t.reason && now.Sub(t.told) >= Longest || now.Sub(t.told) >= Reminder {
		t.reason, t.told = reason, now
		if t.failing == 1 {
			t.log.Warn("cannot "+t.what+"; trying again until it works", "error", reason)
		} else {
			t.log.Warn("still cannot "+t.what, "error", reason, "for", now.Sub(t.since).Round(time.Second).String(), "attempts", t.failing)
		}
	}
	switch {
	case t.lastWait == 0:
		t.lastWait, t.doubled = First, now
	case now.Sub(t.doubled) >= t.lastWait*4/5:
		// Several workers that fail at the same time are one failure.
		t.lastWait, t.doubled = min(2*t.lastWait, Longest), now
	}
	return time.Duration(float64(t.lastWait) * (0.8 + 0.4*rand.Float64()))
}

// Wait records a failed attempt like Failed and sleeps until the next is due.
// It returns the context's error when that ends the wait.
func (t *Trouble) Wait(ctx context.Context, err error) error {
	return t.Sleep(ctx, t.Failed(err))
}

// Sleep waits for the given time, or until the trouble is over for somebody
// else who has it, or until ctx ends (then its error).
func (t *Trouble) Sleep(ctx context.Context, wait time.Duration) error {
	t.mu.Lock()
	over := t.over
	t.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-over:
		return nil
	case <-timer.C:
		return nil
	}
}

// Worked records that an attempt that was begun at a time has worked: the
// trouble is over, unless another attempt has failed since then. Where several
// are under way at once, the last good answer of before comes behind the first
// bad one.
func (t *Trouble) Worked(begun time.Time) {
	t.mu.Lock()
	stale := t.failing > 0 && t.failed.After(begun)
	t.mu.Unlock()
	if !stale {
		t.Over()
	}
}

// Over records that it works (again), and tells it if the failure was told.
func (t *Trouble) Over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failing > 0 {
		t.log.Info("can "+t.what+" again", "after", time.Since(t.since).Round(time.Second).String())
		close(t.over)
		t.over = make(chan struct{})
	}
	t.failing, t.reason, t.last = 0, "", ""
}

// Failing reports whether the last attempt failed.
func (t *Trouble) Failing() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failing > 0
}
