package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/internal/patience"
	"github.com/walferry/walferry/segment"
)

// ErrAbsent: the archive does not have the file, and that was proved. It is
// the only error that may tell PostgreSQL that its WAL has ended.
var ErrAbsent = errors.New("not in the archive")

// ErrHole: the file is missing although the archive goes on behind it.
var ErrHole = errors.New("hole in the archive")

// SettingError is something that a person got wrong: an argument, a setting,
// a file that is named by one. Trying again would not help.
type SettingError struct{ Err error }

func (e *SettingError) Error() string { return e.Err.Error() }
func (e *SettingError) Unwrap() error { return e.Err }

// Archive is what a Fetcher reads from: archive.Archive. Names are those of
// objects below wal_005/ without extension.
type Archive interface {
	// Open opens the object of that name under the first extension that is
	// there; archive.ErrNotFound when a GET for each was told "no such key".
	Open(ctx context.Context, name string) (*archive.Object, error)
	// OpenKey opens one object by its key.
	OpenKey(ctx context.Context, key string) (*archive.Object, error)
	// Forms lists the keys of all objects of that very name, whatever their
	// extension.
	Forms(ctx context.Context, name string) ([]string, error)
	// NextSegment returns the first segment of the same timeline behind after.
	NextSegment(ctx context.Context, after segment.Name) (segment.Name, bool, error)
	// NextTail is NextSegment of those that have tail objects.
	NextTail(ctx context.Context, after segment.Name) (segment.Name, bool, error)
	// Gaps lists the recorded gaps, and ReadGap reads one.
	Gaps(ctx context.Context) (segment.Gaps, error)
	ReadGap(ctx context.Context, g segment.Gap) (archive.RecordedGap, error)
	// Tails lists a segment's tail objects.
	Tails(ctx context.Context, n segment.Name) ([]archive.StoredTail, error)
	// AssembleTails puts a segment's first bytes together from its tail objects.
	AssembleTails(ctx context.Context, n segment.Name, size segment.Size, into archive.Patch) (end, crc uint32, err error)
	// Identity returns the identity object; archive.ErrNotFound without one.
	Identity(ctx context.Context) (archive.Identity, error)
	// Recognise returns the identity of an archive that may be WAL-G's own;
	// archive.ErrUnrecognised when nothing says that it is an archive.
	Recognise(ctx context.Context) (archive.Identity, bool, error)
	// String names the archive for messages.
	String() string
}

// Options say how to fetch.
type Options struct {
	// Open yields the archive. It is called until it succeeds, then no more.
	// An error that matches *SettingError is final.
	Open func(ctx context.Context) (Archive, error)
	// Place is where the server's data directory lies.
	Place Place
	// Budget is how long a file may be tried for. Zero: Place.Mode.Budget.
	Budget time.Duration
	// StopAtGap takes a hole in the archive for its end.
	StopAtGap bool
	// SealedOnly leaves segments out that were never completed.
	SealedOnly bool
	// Log is told what goes wrong, a line each; nil: nobody. Its messages are
	// whole sentences and need no attributes.
	Log *slog.Logger
}

// Fetcher fetches files for one call of restore_command. It is not safe for
// concurrent use, but for Discard.
type Fetcher struct {
	o       Options
	log     *slog.Logger
	files   files
	archive Archive // nil until opened

	mu        sync.Mutex
	temporary string // the unfinished file; guarded by mu
}

// NewFetcher returns a Fetcher.
func NewFetcher(o Options) *Fetcher {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if o.Budget <= 0 {
		o.Budget = o.Place.Mode.Budget()
	}
	return &Fetcher{o: o, log: log, files: osFiles{}}
}

// Fetch brings the file called name, %f, to target, %p (relative to the
// working directory of the process). On nil it is there, whole, checked and
// durable. Otherwise target was not touched, unless the last step failed, the
// fsync of its directory.
//
// The error matches ErrAbsent when the file's absence was proved. *SettingError
// and segment.ErrForeignCluster (the archive is another cluster's) are final
// at once; everything else was tried again until the budget was used up. A
// failure under Standby is remembered in the data directory for a moment, so
// that the calls that follow do not hold the server up as well. A history
// file is tried without end while a standby starts: told "absent" there, the
// server would follow the wrong timeline for good.
func (f *Fetcher) Fetch(ctx context.Context, name, target string) error {
	w, err := parseWanted(name)
	if err != nil {
		return &SettingError{err}
	}
	if err := checkTarget(target); err != nil {
		return &SettingError{err}
	}
	if w.history == 1 {
		return fmt.Errorf("%s: %w: timeline 1 never has a history", w, ErrAbsent)
	}
	if f.o.Place.Mode == Standby && !f.patient(w) {
		if err := f.o.Place.recallFailure(w.String(), time.Now()); err != nil {
			return fmt.Errorf("%s: %w", w, err)
		}
	}
	if f.o.Place.needsNone(name) {
		// The server waits between two timelines for what it can do without.
		f.o.Budget = min(f.o.Budget, Standby.Budget())
	}
	err = f.retry(ctx, w, target)
	if err != nil {
		err = fmt.Errorf("%s: %w", w, err)
		f.sweep(target)
	}
	if f.o.Place.Mode == Standby && !final(err) && ctx.Err() == nil {
		if err := f.o.Place.rememberFailure(w.String(), err, time.Now()); err != nil {
			f.log.Debug(fmt.Sprintf("the failure cannot be remembered: %v", err))
		}
	}
	return err
}

// final tells outcomes that another attempt cannot change.
func final(err error) bool {
	var setting *SettingError
	return err == nil || errors.Is(err, ErrAbsent) || errors.As(err, &setting) || errors.Is(err, segment.ErrForeignCluster)
}

// patient tells whether w must be tried without end.
func (f *Fetcher) patient(w wanted) bool {
	if !w.isHistory() || f.o.Place.Mode != Standby {
		return false
	}
	_, status := f.o.Place.postmaster()
	return status == "starting"
}

const (
	// reminder is how often a failure that goes on is told.
	reminder = 30 * time.Second
	// shortestWait is the least time between two attempts; with less of the
	// budget left, there is no other attempt.
	shortestWait = 250 * time.Millisecond
)

// retry attempts until the outcome is final or the budget is used up.
func (f *Fetcher) retry(ctx context.Context, w wanted, target string) error {
	begin := time.Now()
	deadline := begin.Add(f.o.Budget)
	bounded, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	waits := patience.New(nil, "")
	server, _ := f.o.Place.postmaster()
	var last error // the latest that says more than that time ran out
	var told time.Time
	for {
		attempt := bounded
		if f.patient(w) {
			attempt = ctx
		}
		err := f.attempt(attempt, w, target)
		if final(err) {
			return err
		}
		if last == nil || !errors.Is(err, context.DeadlineExceeded) || bounded.Err() == nil {
			last = err
		}
		wait, until := waits.Failed(last), "as long as the server starts"
		if now, _ := f.o.Place.postmaster(); now != server || !f.patient(w) {
			left := time.Until(deadline)
			// Nearer the end the waits become shorter: a budget is used up.
			wait, until = max(min(wait, left/2), shortestWait), "for "+f.o.Budget.String()
			if left < 2*shortestWait {
				return fmt.Errorf("gave up after %s: %w", time.Since(begin).Round(time.Second), last)
			}
		}
		switch {
		case told.IsZero():
			f.log.Warn(fmt.Sprintf("%s: %v; trying again %s", w, last, until))
			told = time.Now()
		case time.Since(told) >= reminder:
			f.log.Warn(fmt.Sprintf("%s: still trying after %s: %v", w, time.Since(begin).Round(time.Second), last))
			told = time.Now()
		}
		if err := waits.Sleep(ctx, wait); err != nil {
			return fmt.Errorf("stopped: %w, after: %w", err, last)
		}
	}
}

// attempt tries once: the whole segment or history file, then what there is
// of a segment that was never completed, then the proof that there is nothing.
// Tail objects that vanish while they are read were most likely removed
// because the whole segment is there by now: it is looked for again at once.
func (f *Fetcher) attempt(ctx context.Context, w wanted, target string) error {
	if f.archive == nil {
		a, err := f.o.Open(ctx)
		if err != nil {
			return err
		}
		f.archive = a
	}
	c, err := f.o.Place.readCluster()
	if err != nil {
		return err
	}
	var found bool
	for range 2 {
		d := &delivery{Fetcher: f, wanted: w, cluster: c, target: target}
		found, err = d.serve(ctx, w.String())
		if !found && f.takesUnsealed(w) {
			found, err = d.unfinished(ctx)
		}
		if !errors.Is(err, archive.ErrVanished) {
			break
		}
	}
	if !found {
		p := &proof{archive: f.archive, wanted: w, cluster: c, unsealed: f.takesUnsealed(w)}
		err = p.absent(ctx)
	}
	if errors.Is(err, ErrHole) && !w.isHistory() {
		switch own, oerr := f.o.Place.holds(w.segment, c); {
		case oerr != nil:
			return fmt.Errorf("%w; %w", err, oerr)
		case own:
			return fmt.Errorf("%w %s, and whole in pg_wal, where the server takes it from", ErrAbsent, f.archive)
		}
		err = f.explainGap(ctx, w.segment, err)
	}
	if errors.Is(err, ErrHole) && f.o.StopAtGap {
		f.log.Warn(fmt.Sprintf("%s: %v; taken for the end of the archive (--stop-at-gap)", w, err))
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return err
}

// explainGap adds to a hole that a receiver has recorded it, and when, where one
// has: then nobody need look for the WAL.
func (f *Fetcher) explainGap(ctx context.Context, n segment.Name, hole error) error {
	id, err := f.archive.Identity(ctx)
	if err != nil || id.SegmentSize.Check() != nil || n.Check(id.SegmentSize) != nil {
		return hole
	}
	gaps, err := f.archive.Gaps(ctx)
	if err != nil {
		return hole
	}
	for _, g := range gaps {
		if !g.Touches(n, id.SegmentSize) {
			continue
		}
		when := ""
		if recorded, err := f.archive.ReadGap(ctx, g); err == nil && recorded.Err == nil {
			when = " at " + recorded.RecordedAt.UTC().Format(time.RFC3339)
		}
		return fmt.Errorf("%w: WAL from %s is lost, as was recorded%s", hole, g, when)
	}
	return hole
}

func (f *Fetcher) takesUnsealed(w wanted) bool { return !w.isHistory() && !f.o.SealedOnly }

// partialOf is the name under which the last segment of a timeline that ended
// in mid-segment is stored, as PostgreSQL names it.
func partialOf(w wanted) string { return w.segment.String() + ".partial" }
