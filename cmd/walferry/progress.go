package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// barEvery and lineEvery are how often a bar is drawn, and a line written.
	barEvery  = 200 * time.Millisecond
	lineEvery = 10 * time.Second
	// barWidth is the width of the bar itself, of the line where it is not known.
	barWidth, lineWidth = 30, 100
)

// progress tells how far a long copy is: a bar that is drawn again and again
// on a terminal, a line every ten seconds elsewhere. It belongs to one
// goroutine.
type progress struct {
	log      *slog.Logger
	terminal io.Writer // nil: lines
	width    func() int
	now      func() time.Time

	began, shown time.Time
	first        int64 // what was done when it began
	drawn        bool
}

// newProgress begins to measure when it is first told something.
func (c *call) newProgress() *progress {
	p := &progress{log: c.log, now: time.Now}
	if f, ok := c.stderr.(*os.File); ok && isTerminal(f) {
		p.terminal = f
		p.width = func() int {
			if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
				return int(size.Col)
			}
			return lineWidth
		}
	}
	return p
}

// at says that so many bytes of about so many are done; total below 0: nobody
// knows of how many.
func (p *progress) at(what string, done, total int64) {
	now := p.now()
	if p.began.IsZero() {
		p.began, p.shown, p.first = now, now, done
	}
	every := lineEvery
	if p.terminal != nil {
		every = barEvery
	}
	if now.Sub(p.shown) < every {
		return
	}
	p.shown = now
	text := p.text(done, total, now.Sub(p.began))
	if p.terminal == nil {
		p.log.Info(what + ": " + text)
		return
	}
	line := what + "  " + bar(done, total) + text
	// One column is left free: a full line would wrap on some terminals.
	if width := p.width() - 1; len(line) > width {
		line = line[:max(0, width)]
	}
	p.draw("\r" + line + "\x1b[K")
	p.drawn = true
}

// end takes the bar away, so that a line can follow.
func (p *progress) end() {
	if p.drawn {
		p.draw("\r\x1b[K")
		p.drawn = false
	}
}

// draw writes to the terminal. One that is gone shows nothing; the copy goes on.
func (p *progress) draw(text string) { _, _ = io.WriteString(p.terminal, text) }

// text is "43 %, 1.2 GB of 2.8 GB, 310 MB/s, 5 s left". The total is an
// estimate: what is done may come to more.
func (p *progress) text(done, total int64, took time.Duration) string {
	var parts []string
	if total > 0 {
		total = max(total, done)
		parts = append(parts, fmt.Sprintf("%d %%", done*100/total), formatBytes(done)+" of "+formatBytes(total))
	} else {
		parts = append(parts, formatBytes(done))
	}
	rate := 0.0
	if took > 0 {
		rate = float64(done-p.first) / took.Seconds()
	}
	if rate >= 1 {
		parts = append(parts, formatBytes(int64(rate))+"/s")
		if total > done {
			parts = append(parts, duration(time.Duration(float64(total-done)/rate*float64(time.Second)))+" left")
		}
	}
	return strings.Join(parts, ", ")
}

// bar is "[=======>          ] "; nothing when the total is not known.
func bar(done, total int64) string {
	if total <= 0 {
		return ""
	}
	n := int(min(done, total) * barWidth / total)
	return "[" + strings.Repeat("=", n) + strings.Repeat(" ", barWidth-n) + "] "
}
