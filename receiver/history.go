package receiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// historyFile is a timeline's, as the server has it.
type historyFile struct {
	timeline segment.Timeline
	content  []byte
}

// learnHistory fetches the history of the server's timeline, and its
// ancestors' own files where the server has them. Nothing of it is kept before
// the server is known to continue what we hold: of one that is refused the
// archive must not know, or a restore to the newest timeline would follow it.
// A file that says other things than the one that the spool has of that
// timeline is a conflict at once.
func (r *Receiver) learnHistory(ctx context.Context, conn *replication.Conn, s server) ([]historyFile, error) {
	ctx, cancel := answering(ctx)
	defer cancel()
	t := s.system.Timeline
	if t == 1 {
		r.history = segment.History{Timeline: 1}
		return nil, nil
	}
	content, err := conn.TimelineHistory(ctx, t)
	if err != nil {
		return nil, err
	}
	h, err := segment.ParseHistory(t, content)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrServer, err)
	}
	all := []historyFile{{t, content}}
	for _, a := range h.Ancestors {
		if a.Timeline == 1 {
			continue
		}
		content, err := conn.TimelineHistory(ctx, a.Timeline)
		if errors.Is(err, replication.ErrNoHistory) {
			continue // the child's file lists all ancestors: nothing is lost
		}
		if err != nil {
			return nil, err
		}
		all = append(all, historyFile{a.Timeline, content})
	}
	for _, f := range all {
		have, err := r.spool.History(f.timeline)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, &spoolError{err}
		case !bytes.Equal(have, f.content):
			return nil, fmt.Errorf("%w: the server's %s is not the one that we hold: two servers were promoted to timeline %d", spool.ErrConflict, f.timeline.HistoryName(), f.timeline)
		}
	}
	r.history = h
	return all, nil
}

// keepHistory makes what was learned durable in the spool, before anything of
// the timeline is received, and lets the uploader have it.
func (r *Receiver) keepHistory(all []historyFile) error {
	for _, f := range all {
		if err := r.spool.PutHistory(f.timeline, f.content); err != nil {
			return err
		}
	}
	for i, a := range r.history.Ancestors {
		child := r.history.Timeline
		if i+1 < len(r.history.Ancestors) {
			child = r.history.Ancestors[i+1].Timeline
		}
		r.uploader.Switch(a.Timeline, a.At, child)
	}
	return nil
}

// checkLineage makes sure, when it is not known yet what we hold, that nothing
// which the spool has speaks against the server: neither the history of a
// timeline that followed the server's, nor WAL of one that is no ancestor.
func (r *Receiver) checkLineage(s server) error {
	var known []segment.History
	for _, t := range r.spool.Histories() {
		content, err := r.spool.History(t)
		if err != nil {
			return &spoolError{err}
		}
		h, err := segment.ParseHistory(t, content)
		if err != nil {
			return fmt.Errorf("the spool: %w", err)
		}
		known = append(known, h)
	}
	if err := checkFollowed(known, s, "the spool"); err != nil {
		return err
	}
	t := s.system.Timeline
	for _, g := range r.held {
		_, ancestor := r.history.Switchpoint(g.Name().Timeline)
		switch {
		case ancestor || g.Name().Timeline == t:
		case g.Name().Timeline > t && s.inRecovery:
			return fmt.Errorf("the server is a standby on timeline %d, and the spool holds WAL of timeline %d: waiting for it to follow", t, g.Name().Timeline)
		default:
			return fmt.Errorf("%w: the spool holds %s, the server's timeline %d does not descend from timeline %d", ErrForked, g.Name(), t, g.Name().Timeline)
		}
	}
	return nil
}

// checkArchivesLineage does the same with the histories that the archive has,
// and looks whether the one of the server's timeline is the server's: another
// server may have been promoted to the same number. A spool that holds WAL can do
// without the answer: it knows the histories itself.
func (r *Receiver) checkArchivesLineage(ctx context.Context, s server, held bool) error {
	ask, cancel := ctx, func() {}
	if held {
		ask, cancel = context.WithTimeout(ctx, claimPatience)
	}
	defer cancel()
	known, err := r.archive.Histories(ask, max(s.system.Timeline, 2)-1) // the first has none
	switch {
	case err == nil:
		if err := r.checkSame(known); err != nil {
			return err
		}
		return checkFollowed(known, s, "the archive")
	case held && !Final(err) && ctx.Err() == nil:
		r.log.Warn("the archive cannot be asked for newer timelines; going on with what the spool knows of", "error", err.Error())
		return nil
	}
	return &archiveError{err}
}

// checkSame makes sure that what the archive says of the server's timeline is
// what the server says.
func (r *Receiver) checkSame(known []segment.History) error {
	for _, h := range known {
		if h.Timeline == r.history.Timeline && !slices.EqualFunc(h.Ancestors, r.history.Ancestors, func(a, b segment.Switch) bool {
			return a.Timeline == b.Timeline && a.At == b.At
		}) {
			return fmt.Errorf("%w: %s in the archive says that the timeline began at %s, the server's at %s: two servers were promoted to timeline %d",
				ErrConflict, h.Timeline.HistoryName(), h.Begin(), r.history.Begin(), h.Timeline)
		}
	}
	return nil
}

// checkFollowed makes sure that no timeline is known that followed the
// server's: then another server was promoted, and this one is what was left
// behind. A standby may still follow.
func checkFollowed(known []segment.History, s server, where string) error {
	t := s.system.Timeline
	for _, h := range known {
		at, followed := h.Switchpoint(t)
		switch {
		case h.Timeline <= t || !followed:
		case s.inRecovery:
			return fmt.Errorf("the server is a standby on timeline %d, which ended at %s as %s in %s says: waiting for it to follow to timeline %d",
				t, at, h.Timeline.HistoryName(), where, h.Timeline)
		default:
			return fmt.Errorf("%w: it is on timeline %d up to %s, which ended at %s as %s in %s says", ErrDemoted, t, s.system.Flush, at, h.Timeline.HistoryName(), where)
		}
	}
	return nil
}
