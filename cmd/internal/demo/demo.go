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
	"path/filepath"
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
	s.say("A database server dies together with its disk. What is left?")
	s.say("")
	if err := s.createPrimary(ctx); err != nil {
		return fmt.Errorf("starting a throw-away PostgreSQL: %w", err)
	}
	s.step("A throw-away PostgreSQL %s runs in %s. Nothing else on this host is touched.", s.installation.Version, s.dir)
	s.step("A copy of its data directory was put aside while it was still empty: the base of the recovery.")
	if err := s.receive(ctx); err != nil {
		return fmt.Errorf("receiving: %w", err)
	}
	s.step("\"walferry receive\" streams its write-ahead log (WAL) into an archive: here a directory, else s3://bucket/prefix.")
	w, err := s.write(ctx)
	if err != nil {
		return fmt.Errorf("committing rows: %w", err)
	}
	s.step("%s rows were committed one by one in %.1f s, and each acknowledgement was written down. A commit waits until", number(w.acked), w.took.Seconds())
	s.more("walferry has it on its own disk: the server was told synchronous_standby_names = 'walferry'.")
	whole, err := s.awaitShipped(ctx, w.lastWhole)
	if err != nil {
		return fmt.Errorf("waiting for the archive: %w", err)
	}
	if err := s.loseTheServer(ctx); err != nil {
		return fmt.Errorf("killing the server: %w", err)
	}
	s.step("kill -9. The server is dead with all its processes, and its data directory has been deleted.")
	if err := s.stopReceiver(); err != nil {
		return err
	}
	s.step("What is left: the empty copy, %d whole WAL segments in the archive, and in the spool of walferry, which", whole)
	s.more("lives on another host, the segment that was being written (walferry ships a segment when it is whole).")
	if err := s.recover(ctx, w); err != nil {
		return err
	}
	s.say("")
	s.say("All of it is removed again. It took %.0f s.", time.Since(s.began).Seconds())
	return nil
}

// recover recovers twice, from the archive alone and with the spool, and
// counts.
func (s *stage) recover(ctx context.Context, w written) error {
	alone, err := s.recovered(ctx, "archive-alone", "")
	if err != nil {
		return fmt.Errorf("recovering from the archive: %w", err)
	}
	s.step("PostgreSQL recovers the copy with restore_command = 'walferry fetch %%f %%p'.")
	missing := w.acked - alone
	s.step("From the archive alone: %s of %s acknowledged rows. Missing: %s, all of them from the last %.1f s,", number(alone), number(w.acked), number(missing), w.openFor.Seconds())
	s.more("when the unfinished segment was being written.")
	if alone < w.inWhole {
		return fmt.Errorf("%w: %d rows were in whole segments, and %d were recovered from the archive", ErrRowsLost, w.inWhole, alone)
	}
	open, err := s.unfinished()
	if err != nil {
		return fmt.Errorf("looking for the unfinished segment: %w", err)
	}
	all, err := s.recovered(ctx, "with-spool", open)
	if err != nil {
		return fmt.Errorf("recovering with the spool: %w", err)
	}
	s.step("With %s from the spool laid into pg_wal: %s of %s. Missing: %s.", filepath.Base(open), number(all), number(w.acked), number(w.acked-all))
	if all < w.acked {
		return fmt.Errorf("%w: %d were acknowledged, and %d were recovered", ErrRowsLost, w.acked, all)
	}
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
