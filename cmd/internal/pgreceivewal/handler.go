package pgreceivewal

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
)

// NewHandler returns a slog.Handler whose records look like the original's
// messages:
//
//	pg_receivewal: error: message (key=value, ...)
//	pg_receivewal: warning: message
//	pg_receivewal: message
//
// The last form is everything below a warning: the original's -v lines look as
// its ordinary ones do, so level alone says which there are. An attribute
// "detail" or "hint" gets a line of its own behind the message, with its key in
// the place of "error". Nothing else breaks a line: the lines of a text are
// joined. A record is one call of w.Write, and one at a time: the handler, and
// those that its WithAttrs and WithGroup return, are safe for concurrent use.
func NewHandler(w io.Writer, program string, level slog.Leveler) slog.Handler {
	return &handler{mu: &sync.Mutex{}, w: w, program: program, level: level}
}

// handler does not change, but for what mu guards: w.
type handler struct {
	mu      *sync.Mutex
	w       io.Writer
	program string
	level   slog.Leveler
	with    attributes // of WithAttrs
	group   string     // "name." of WithGroup
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	all := h.with
	r.Attrs(func(a slog.Attr) bool {
		all = all.add(h.group, a)
		return true
	})
	kind := ""
	switch {
	case r.Level >= slog.LevelError:
		kind = "error: "
	case r.Level >= slog.LevelWarn:
		kind = "warning: "
	}
	var b strings.Builder
	b.WriteString(h.program + ": " + kind + oneLine(r.Message))
	if all.pairs != "" {
		b.WriteString(" (" + all.pairs + ")")
	}
	b.WriteByte('\n')
	if all.detail != "" {
		b.WriteString(h.program + ": detail: " + all.detail + "\n")
	}
	if all.hint != "" {
		b.WriteString(h.program + ": hint: " + all.hint + "\n")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.w, b.String())
	return err
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	more := *h
	for _, a := range attrs {
		more.with = more.with.add(h.group, a)
	}
	return &more
}

func (h *handler) WithGroup(name string) slog.Handler {
	more := *h
	if name != "" {
		more.group += name + "."
	}
	return &more
}

// attributes are a record's attributes, ready to be printed.
type attributes struct {
	pairs        string // "key=value, key=value"
	detail, hint string
}

// add returns the attributes with one more. A later detail or hint replaces
// an earlier one.
func (as attributes) add(group string, a slog.Attr) attributes {
	v := a.Value.Resolve()
	switch {
	case v.Kind() == slog.KindGroup:
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range v.Group() {
			as = as.add(group, inner)
		}
	case a.Key == "":
	case group == "" && a.Key == "detail":
		as.detail = oneLine(v.String())
	case group == "" && a.Key == "hint":
		as.hint = oneLine(v.String())
	default:
		if as.pairs != "" {
			as.pairs += ", "
		}
		as.pairs += group + a.Key + "=" + word(v)
	}
	return as
}

// word returns a value, quoted where it would not end where it ends.
func word(v slog.Value) string {
	text := v.String()
	if v.Kind() == slog.KindDuration {
		text = v.Duration().Round(time.Millisecond).String()
	}
	if text == "" || strings.ContainsAny(text, " \t\r\n\",=()") {
		return strconv.Quote(text)
	}
	return text
}

// oneLine joins the lines of a text.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}
