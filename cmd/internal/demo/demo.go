// Package demo is "walferry demo": a database server dies with its disk, and
// what it had acknowledged is counted after the recovery. Everything is real
// (a PostgreSQL, a receiver, an archive, a recovery) and thrown away.
//
// The story claims nothing that was not counted: the rows are known by the
// server's acknowledgements, and the recovered ones by asking the recovered
// server.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/walferry/walferry/restore/instance"
)

const (
	// timeLimit ends a demonstration that hangs. A good one takes a quarter
	// of a minute.
	timeLimit = 5 * time.Minute
	// rounds is how many WAL segments are ended on purpose, each behind
	// roundTime of commits. The last commits, of half a round, stay in a
	// segment that is not ended.
	rounds    = 4
	roundTime = time.Second
)

// Options say what the demonstration works with.
type Options struct {
	Executable string    // this program's own file
	Out        io.Writer // the story
	Log        *slog.Logger
}

// ErrInterrupted: the story was ended before its end.
var ErrInterrupted = errors.New("interrupted; everything is removed again")

// ErrRowsLost: rows that the server had acknowledged are gone. It is what must
// not happen.
var ErrRowsLost = errors.New("acknowledged rows are missing")

// Run tells the story. Whatever happens, nothing runs on and nothing is left
// when it returns. instance.ErrNoPostgreSQL when there is no server to be had.
//
// The story ends early with ctx: ErrInterrupted.
func Run(ctx context.Context, o Options) (err error) {
	outer := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, timeLimit, fmt.Errorf("the demonstration took longer than %s", timeLimit))
	defer cancel()
	found, err := instance.Find(ctx, nil)
	if err != nil {
		return err
	}
	account, err := instance.Unprivileged()
	if err != nil {
		return err
	}
	s, err := newStage(o, found[0], account)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && outer.Err() != nil {
			err = ErrInterrupted // whatever broke off first
		}
		err = errors.Join(err, s.clear(ctx))
	}()
	return s.play(ctx)
}

// play is the story from its beginning to its end.
func (s *stage) play(ctx context.Context) error {
	s.began = time.Now()
	s.say("A database server and walferry's own host die at one instant, with their disks. What is left?")
	s.say("")
	if err := s.createPrimary(ctx); err != nil {
		return fmt.Errorf("starting a throw-away PostgreSQL: %w", err)
	}
	s.step("A throw-away PostgreSQL %s runs in %s. Nothing else on this host is touched.", s.installation.Version, s.dir)
	if err := s.receive(ctx); err != nil {
		return fmt.Errorf("receiving: %w", err)
	}
	s.step("\"walferry receive --ack archive\" streams its write-ahead log (WAL) into an archive: here a directory, else")
	s.more("s3://bucket/prefix. A commit waits until it is there: synchronous_standby_names = 'walferry'.")
	backup, err := s.backup(ctx)
	if err != nil {
		return fmt.Errorf("taking a base backup: %w", err)
	}
	s.step("\"walferry backup create\" has taken a base backup into the same archive: %s.", backup)
	w, err := s.write(ctx)
	if err != nil {
		return fmt.Errorf("committing rows: %w", err)
	}
	if err := s.loseBoth(ctx); err != nil {
		return fmt.Errorf("killing the server and the receiver: %w", err)
	}
	s.step("%s rows were committed one by one in %.1f s, and each acknowledgement was written down.", number(w.acked), w.took.Seconds())
	s.step("kill -9. The server is dead with all its processes, and so is walferry; both their directories have been deleted.")
	whole, tails, err := s.archived()
	if err != nil {
		return fmt.Errorf("looking into the archive: %w", err)
	}
	s.step("What is left is the archive: the base backup, %d whole WAL segments, and %d tail objects, which hold what", whole, tails)
	s.more("was new in the segment that was being written.")
	s.step("\"walferry restore -D DIR\" unpacks the backup, and PostgreSQL, started there, fetches the WAL behind it.")
	rows, err := s.recovered(ctx)
	if err != nil {
		return fmt.Errorf("recovering from the archive: %w", err)
	}
	s.step("Recovered: %s of %s acknowledged rows. Missing: %s.", number(min(rows, w.acked)), number(w.acked), number(max(0, w.acked-rows)))
	if rows < w.acked {
		return fmt.Errorf("%w: %d were acknowledged, and %d were recovered", ErrRowsLost, w.acked, rows)
	}
	s.say("")
	s.say("All of it is removed again. It took %.0f s.", time.Since(s.began).Seconds())
	return nil
}

// say prints a line of the story.
func (s *stage) say(format string, args ...any) {
	// Who closed our output does not want to read on; the work is undone all
	// the same.
	_, _ = fmt.Fprintf(s.o.Out, format+"\n", args...)
}

// step prints a numbered line, more what goes on below it.
func (s *stage) step(format string, args ...any) {
	s.steps++
	s.say("%2d. "+format, append([]any{s.steps}, args...)...)
}

func (s *stage) more(format string, args ...any) { s.say("    "+format, args...) }

// number writes a number with its thousands apart: 12,345.
func number(n int) string {
	if n < 0 {
		return "-" + number(-n)
	}
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", number(n/1000), n%1000)
}

// removeAll removes a directory; what is not there is removed.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	return nil
}
