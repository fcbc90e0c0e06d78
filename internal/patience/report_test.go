package patience

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A report has the last reason, also where the log has not told it yet.
func TestReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(nil, "reach the server")
		if r, ok := tr.Report(); ok {
			t.Errorf("before anything failed: %+v", r)
		}
		begin := time.Now()
		tr.Failed(errors.New("connection refused"))
		time.Sleep(time.Second)
		tr.Failed(errors.New("wrong password"))
		want := Report{What: "reach the server", Reason: "wrong password", Since: begin, Attempts: 2}
		if r, ok := tr.Report(); !ok || r != want {
			t.Errorf("%+v, %v; want %+v", r, ok, want)
		}
		tr.Over()
		if r, ok := tr.Report(); ok {
			t.Errorf("when it is over: %+v", r)
		}
	})
}
