package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A bar on a terminal: drawn now and then, never wider than the terminal, and
// gone at the end.
func TestProgressBar(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1000, 0)
	p := &progress{terminal: &out, width: func() int { return 90 }, now: func() time.Time { return now }}
	p.at("copying", 0, 1<<30)
	if out.Len() > 0 {
		t.Errorf("it draws before anything was done: %q", out.String())
	}
	now = now.Add(time.Second)
	p.at("copying", 256<<20, 1<<30)
	if want := "\rcopying  [=======                       ] 25 %, 256 MB of 1024 MB, 256 MB/s, 3.0 s left\x1b[K"; out.String() != want {
		t.Errorf("it draws %q, want %q", out.String(), want)
	}
	out.Reset()
	now = now.Add(barEvery / 2)
	p.at("copying", 300<<20, 1<<30)
	if out.Len() > 0 {
		t.Errorf("it draws again at once: %q", out.String())
	}
	p.width = func() int { return 20 }
	now = now.Add(barEvery)
	p.at("copying", 512<<20, 1<<30)
	if line := strings.TrimSuffix(strings.TrimPrefix(out.String(), "\r"), "\x1b[K"); len(line) != 19 {
		t.Errorf("on 20 columns it draws %d: %q", len(line), line)
	}
	out.Reset()
	p.end()
	p.end()
	if out.String() != "\r\x1b[K" {
		t.Errorf("the end draws %q", out.String())
	}
}

// Lines where nobody looks on: one in ten seconds, with an estimate that may be
// too small, or none.
func TestProgressLines(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1000, 0)
	p := &progress{log: slog.New(&lineHandler{out: &out, level: slog.LevelInfo}), now: func() time.Time { return now }}
	for second := range 25 {
		p.at("copying", int64(second)<<20, 10<<20)
		now = now.Add(time.Second)
	}
	p.end()
	want := "walferry: copying: 100 %, 10 MB of 10 MB, 1024 kB/s\nwalferry: copying: 100 %, 20 MB of 20 MB, 1024 kB/s\n"
	if out.String() != want {
		t.Errorf("it says\n%swant\n%s", out.String(), want)
	}
	out.Reset()
	now = now.Add(lineEvery)
	p.at("copying", 30<<20, -1)
	if got := out.String(); !strings.HasPrefix(got, "walferry: copying: 30 MB, ") || strings.Contains(got, "left") {
		t.Errorf("without a total it says %q", got)
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]int{"32": 32, "64k": 64, "50M": 50 << 10, "50MB": 50 << 10, "1.5M": 1536, "1GB": 1 << 20, "100 kB": 100} {
		if got, err := parseRate(text); err != nil || got != want {
			t.Errorf("%s is %d (%v), want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "31", "1025M", "M", "-5M", "50m", "50MB/s", "Inf", "NaN"} {
		if got, err := parseRate(text); err == nil {
			t.Errorf("%q is taken for %d kB/s", text, got)
		}
	}
}
