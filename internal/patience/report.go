package patience

import "time"

// Report is a trouble that goes on, for those who ask how it is.
type Report struct {
	What     string // completes the sentence "cannot <what>"
	Reason   string // of the last attempt
	Since    time.Time
	Attempts int // that failed since then
}

// Report returns what goes on; ok is false when the last attempt worked, or
// there was none.
func (t *Trouble) Report() (r Report, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Report{What: t.what, Reason: t.last, Since: t.since, Attempts: t.failing}, t.failing > 0
}
