package pgreceivewal

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestHandler(t *testing.T) {
	for _, c := range []struct {
		log  func(*slog.Logger)
		want string
	}{
		{func(l *slog.Logger) { l.Error("could not") }, "pg_receivewal: error: could not\n"},
		{func(l *slog.Logger) { l.Warn("skipping") }, "pg_receivewal: warning: skipping\n"},
		{func(l *slog.Logger) { l.Info("disconnected") }, "pg_receivewal: disconnected\n"},
		{func(l *slog.Logger) { l.Debug("finished segment at 0/3000000 (timeline 1)") }, "pg_receivewal: finished segment at 0/3000000 (timeline 1)\n"},
		{func(l *slog.Logger) { l.Log(t.Context(), slog.LevelDebug-1, "too much") }, ""},
		{func(l *slog.Logger) { l.Info("m", "lsn", "0/1", "n", 3, "wait", 1500*time.Millisecond) }, "pg_receivewal: m (lsn=0/1, n=3, wait=1.5s)\n"},
		{func(l *slog.Logger) { l.Info("m", "err", errors.New("a, b"), "empty", "") }, "pg_receivewal: m (err=\"a, b\", empty=\"\")\n"},
		{func(l *slog.Logger) { l.Error("m", "hint", "Try it.", "detail", "It is so.", "k", "v") }, "pg_receivewal: error: m (k=v)\npg_receivewal: detail: It is so.\npg_receivewal: hint: Try it.\n"},
		{func(l *slog.Logger) { l.Info("two\nlines\r\n", "k", "x\ny", "hint", "a\nb") }, "pg_receivewal: two lines (k=\"x\\ny\")\npg_receivewal: hint: a b\n"},
		{func(l *slog.Logger) { l.With("a", 1).WithGroup("g").With("b", 2).Info("m", "c", 3, "hint", 4) }, "pg_receivewal: m (a=1, g.b=2, g.c=3, g.hint=4)\n"},
		{func(l *slog.Logger) { l.Info("m", slog.Group("g", "a", 1), slog.Group("", "b", 2), slog.Attr{}) }, "pg_receivewal: m (g.a=1, b=2)\n"},
	} {
		var b bytes.Buffer
		c.log(slog.New(NewHandler(&b, "pg_receivewal", slog.LevelDebug)))
		if b.String() != c.want {
			t.Errorf("got %q; want %q", b.String(), c.want)
		}
	}
}

// The level may change while the program runs.
func TestHandlerLevel(t *testing.T) {
	var b bytes.Buffer
	var level slog.LevelVar
	log := slog.New(NewHandler(&b, "p", &level))
	log.Debug("one")
	level.Set(slog.LevelDebug)
	log.Debug("two")
	if b.String() != "p: two\n" {
		t.Errorf("got %q; want the second line only", b.String())
	}
}

// Two handlers of one NewHandler write to a buffer that is not safe for
// concurrent use: the race detector, or a torn line, says when they do it at once.
func TestHandlerIsSafe(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(NewHandler(&b, "p", slog.LevelInfo))
	with := log.With("k", "v")
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { log.Info("one", "hint", "h") })
		all.Go(func() { with.Warn("two") })
	}
	all.Wait()
	if rest := strings.NewReplacer("p: one\np: hint: h\n", "", "p: warning: two (k=v)\n", "").Replace(b.String()); rest != "" || strings.Count(b.String(), "\n") != 150 {
		t.Errorf("left over: %q", rest)
	}
}
