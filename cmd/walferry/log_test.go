package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestLogger(t *testing.T) {
	var b bytes.Buffer
	p := &program{stderr: &b, environ: []string{"JOURNAL_STREAM=8:1"}}
	log := p.newLogger(false).With("slot", "w").WithGroup("g").With("a", 1)
	log.Debug("not shown")
	log.Info("two\nlines", "text", `with "quotes" and space`, "empty", "", "time", 1500*time.Millisecond)
	log.Warn("careful", slog.Group("in", "x", errors.New("y")))
	want := "walferry: two lines slot=w g.a=1 g.text=\"with \\\"quotes\\\" and space\" g.empty=\"\" g.time=1.5s\n" +
		"walferry: warning: careful slot=w g.a=1 g.in.x=y\n"
	if b.String() != want {
		t.Errorf("got  %q\nwant %q", b.String(), want)
	}

	b.Reset()
	p.environ = nil
	p.newLogger(true).Debug("shown")
	if got := b.String(); !strings.HasSuffix(got, "Z walferry: debug: shown\n") || len(got) < len("2006-01-02T15:04:05.000Z walferry: ") {
		t.Errorf("got %q", got)
	}
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		text string
	}{
		{nil, 0, ""},
		{errors.New("broken"), exitFailed, "walferry: error: broken\n"},
		{usageError("no %s", "such"), exitUsage, "walferry: error: no such\n"},
		{withExit(exitSafety, errors.New("two\nlines"), "decide"), exitSafety, "walferry: error: two lines\nwalferry: hint: decide\n"},
		{fmt.Errorf("outer: %w", withExit(exitSafety, errors.New("inner"), "")), exitSafety, "walferry: error: outer: inner\n"},
		{withExit(exitUsage, nil, "x"), 0, ""},
	} {
		var b bytes.Buffer
		if got := (&program{stderr: &b}).report(c.err); got != c.code || b.String() != c.text {
			t.Errorf("%v: got %d, %q; want %d, %q", c.err, got, b.String(), c.code, c.text)
		}
	}
}
