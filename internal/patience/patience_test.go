package patience

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTroubleIsToldOnceAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		tr := New(slog.New(slog.NewTextHandler(&out, nil)), "reach the server")
		var longest time.Duration
		for begin := time.Now(); time.Since(begin) < 2*time.Hour+time.Minute; {
			before := time.Now()
			if err := tr.Wait(context.Background(), errors.New("connection refused")); err != nil {
				t.Fatal(err)
			}
			longest = max(longest, time.Since(before))
		}
		if longest > 36*time.Second || longest < 20*time.Second {
			t.Errorf("the longest wait was %v; want 30 s ± 20 %%", longest)
		}
		if !tr.Failing() {
			t.Error("not failing")
		}
		tr.Over()
		tr.Over()
		if tr.Failing() {
			t.Error("still failing")
		}
		if n := strings.Count(out.String(), "\n"); n != 4 {
			t.Errorf("%d lines, want 4 (begin, two reminders, end):\n%s", n, out.String())
		}
	})
}

func TestTroubleTellsANewReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		tr := New(slog.New(slog.NewTextHandler(&out, nil)), "reach the server")
		tr.Failed(errors.New("connection refused"))
		tr.Failed(errors.New("wrong password"))
		if strings.Contains(out.String(), "password") {
			t.Error("a reason that flickers is told at once: two reasons in turn would fill the log")
		}
		time.Sleep(time.Minute)
		tr.Failed(errors.New("wrong password"))
		if !strings.Contains(out.String(), "password") {
			t.Errorf("the new reason is not told:\n%s", out.String())
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(nil, "x").Wait(ctx, errors.New("y")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestWorkersWithOneTroubleWaitTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(nil, "store")
		for range 4 {
			if d := tr.Failed(errors.New("x")); d > 1200*time.Millisecond {
				t.Errorf("four failures at one instant wait %v", d)
			}
		}
		done := make(chan error)
		begin := time.Now()
		go func() { done <- tr.Sleep(context.Background(), time.Hour) }()
		synctest.Wait()
		tr.Over()
		if err := <-done; err != nil || time.Since(begin) != 0 {
			t.Errorf("Over did not wake who waits: %v after %v", err, time.Since(begin))
		}
	})
}

// TestALateSuccessIsNoEnd: of several attempts under way at once, one that was
// begun before the failure says nothing about what came behind it.
func TestALateSuccessIsNoEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(nil, "reach the server")
		begun := time.Now()
		time.Sleep(time.Second)
		tr.Failed(errors.New("503"))
		time.Sleep(time.Second)
		tr.Worked(begun)
		if !tr.Failing() {
			t.Error("a success of before the failure ended it")
		}
		tr.Worked(time.Now())
		if tr.Failing() {
			t.Error("a success of behind the failure did not end it")
		}
	})
}
