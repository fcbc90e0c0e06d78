package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// newLogger returns the logger of the whole program: one line a record on w,
// "walferry: warning: text name=value". Lines have the time in front unless
// something else adds it (journald) or somebody is looking (a terminal).
func (p *program) newLogger(verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	stamp := p.variable("JOURNAL_STREAM") == "" && !isTerminal(p.stderr)
	return slog.New(&lineHandler{out: &lockedWriter{w: p.stderr}, level: level, stamp: stamp})
}

// variable returns a variable of the process's environment; "" when it is not set.
func (p *program) variable(name string) string {
	value, _ := p.lookup(name)
	return value
}

// lookup is variable, and says whether it is there.
func (p *program) lookup(name string) (value string, ok bool) {
	for _, e := range p.environ {
		if n, v, cut := strings.Cut(e, "="); cut && n == name {
			value, ok = v, true
		}
	}
	return value, ok
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// lockedWriter lets one line be written at a time.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// lineHandler is a slog.Handler. Safe for concurrent use: it does not change.
type lineHandler struct {
	out   io.Writer
	level slog.Level
	stamp bool
	attrs string // " name=value" of With, ready to be printed
	group string // "name." of WithGroup
}

func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if h.stamp && !r.Time.IsZero() {
		b.WriteString(r.Time.UTC().Format("2006-01-02T15:04:05.000Z "))
	}
	b.WriteString("walferry: ")
	switch {
	case r.Level >= slog.LevelError:
		b.WriteString("error: ")
	case r.Level >= slog.LevelWarn:
		b.WriteString("warning: ")
	case r.Level < slog.LevelInfo:
		b.WriteString("debug: ")
	}
	b.WriteString(oneLine(r.Message))
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(formatAttr(h.group, a))
		return true
	})
	b.WriteByte('\n')
	_, err := io.WriteString(h.out, b.String())
	return err
}

func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	for _, a := range attrs {
		with.attrs += formatAttr(h.group, a)
	}
	return &with
}

func (h *lineHandler) WithGroup(name string) slog.Handler {
	with := *h
	if name != "" {
		with.group += name + "."
	}
	return &with
}

// formatAttr returns " name=value", quoted where it would be more than a word.
func formatAttr(group string, a slog.Attr) string {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		var b strings.Builder
		for _, inner := range v.Group() {
			b.WriteString(formatAttr(group, inner))
		}
		return b.String()
	}
	if a.Key == "" {
		return ""
	}
	text := v.String()
	if v.Kind() == slog.KindDuration {
		text = v.Duration().Round(time.Millisecond).String()
	}
	if text == "" || strings.ContainsAny(text, " \t\r\n\"=") {
		text = strconv.Quote(text)
	}
	return fmt.Sprintf(" %s%s=%s", group, a.Key, text)
}
