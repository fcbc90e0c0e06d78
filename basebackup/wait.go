package basebackup

import (
	"context"
	"errors"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/segment"
)

const (
	// lookInterval is how often the archive is looked at for WAL: as often as
	// tail objects come.
	lookInterval = time.Second
	// tellInterval is how often it is told how far it is.
	tellInterval = 10 * time.Second
)

// watchWAL fails when the archive shows no WAL of the backup in time, so that
// nobody copies for hours what cannot be restored. The time in which the store
// does not answer does not count: it proves nothing.
func (t *taking) watchWAL(start segment.Position) error {
	since := time.Now()
	for {
		reach, err := t.reach(start.Timeline, start)
		switch {
		case err != nil:
			if err := t.storeFailed(since, err); err != nil {
				return err
			}
			since = time.Now()
			continue
		case reach.LSN > start.LSN:
			return nil
		case time.Since(since) >= t.o.WALWait:
			return &NoWALError{Start: start, Reach: reach, Wait: t.o.WALWait}
		}
		if err := t.sleep(min(lookInterval, t.o.WALWait-time.Since(since))); err != nil {
			return nil // ended by something else, or no longer of use
		}
	}
}

// awaitWAL returns when the archive has the WAL from start to stop.
func (t *taking) awaitWAL(start, stop segment.Position) error {
	begun := time.Now()
	told := begun
	failing := time.Time{}
	for {
		reach, err := t.reach(stop.Timeline, start)
		switch {
		case err != nil:
			if failing.IsZero() {
				failing = time.Now()
			}
			if err := t.storeFailed(failing, err); err != nil {
				return err
			}
			continue
		case reach.LSN >= stop.LSN:
			return nil
		}
		failing = time.Time{}
		if time.Since(told) >= tellInterval {
			told = time.Now()
			t.o.Log.Info("the base backup is copied and waits for its WAL in the archive",
				"backup", t.writer.Name().String(), "reach", reach.String(), "stop", stop.String(), "for", time.Since(begun).Round(time.Second).String())
		}
		t.report(PhaseWAL)
		if err := t.sleep(lookInterval); err != nil {
			return err
		}
	}
}

// reach returns how far the archive's WAL goes from start on along the history
// of timeline tl. As long as the archive does not know that history, that is
// nowhere.
func (t *taking) reach(tl segment.Timeline, start segment.Position) (segment.Position, error) {
	attempt := time.Now()
	h, err := t.archive.HistoryOf(t.ctx, tl)
	if errors.Is(err, archive.ErrNotFound) {
		return segment.Position{Timeline: start.Timeline, LSN: t.size.Start(start.LSN)}, nil
	}
	if err != nil {
		return segment.Position{}, err
	}
	_, reach, err := t.archive.ReachFrom(t.ctx, h, t.size, start.LSN)
	if err == nil {
		t.trouble.Worked(attempt)
	}
	return reach, err
}

// storeFailed waits for the next attempt, or says that it is enough.
func (t *taking) storeFailed(since time.Time, err error) error {
	if cause := context.Cause(t.ctx); cause != nil {
		return cause
	}
	if final(err) || time.Since(since) >= storePatience {
		return err
	}
	if t.trouble.Wait(t.ctx, err) != nil {
		return context.Cause(t.ctx)
	}
	return nil
}

// sleep waits, no longer than the backup's context.
func (t *taking) sleep(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
}
