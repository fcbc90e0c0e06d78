package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/walferry/walferry/receiver"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// noArchive is the archive of who has none: nothing is in it.
type noArchive struct{}

func (noArchive) Claim(context.Context, spool.Identity) error { return nil }

func (noArchive) RunEnd(context.Context, segment.History, segment.Size, segment.LSN) (p segment.Position, ok bool, err error) {
	return segment.Position{}, false, nil
}

func (noArchive) Segment(_ context.Context, n segment.Name) (io.ReadCloser, error) {
	return nil, fmt.Errorf("%s: %w", n, receiver.ErrNotArchived)
}

func (noArchive) Histories(context.Context, segment.Timeline) ([]segment.History, error) {
	return nil, nil
}

func (noArchive) TailEnd(context.Context, segment.Name) (uint32, error) { return 0, nil }

func (noArchive) AssembleTails(context.Context, segment.Name, segment.Size, receiver.Patch) (uint32, error) {
	return 0, nil
}

func (noArchive) TailSegments(context.Context, segment.Timeline) ([]segment.Name, error) {
	return nil, nil
}

func (noArchive) Gaps(context.Context) (segment.Gaps, error) { return nil, nil }

func (noArchive) PutGap(_ context.Context, g segment.Gap, _ receiver.GapFacts) error {
	return fmt.Errorf("%w: there is no archive to record %s in", receiver.ErrRefused, g)
}

// keeper is the uploader of a spool whose directory is the archive: it ships
// nothing, and lets go of the segments that nobody needs to look at any more.
type keeper struct{ spool *spool.Spool }

func newKeeper(sp *spool.Spool) *keeper { return &keeper{sp} }

// Run lets go of segments, all but the newest that is sealed: a connection that
// begins at its end is compared with it. Their files stay.
func (k *keeper) Run(ctx context.Context) error {
	for {
		if _, err := k.spool.Take(ctx); err != nil {
			return nil // ctx has ended, or the spool is closed
		}
		if err := k.release(); err != nil {
			return err
		}
	}
}

// release lets go of what is sealed by now. It is called when a segment is
// begun, so that few are held at any time.
func (k *keeper) release() error {
	var newest *spool.Segment
	for _, g := range k.spool.Segments() {
		if !g.Sealed() {
			continue
		}
		old := g
		if newest == nil || g.Start() >= newest.Start() { // of the youngest timeline that has it
			newest, old = g, newest
		}
		if old == nil {
			continue
		}
		if err := k.spool.Drop(old); err != nil && !errors.Is(err, spool.ErrDropped) && !errors.Is(err, spool.ErrClosed) {
			return fmt.Errorf("letting go of segment %s: %w", old.Name(), err)
		}
	}
	return nil
}

// Drain has nothing to wait for.
func (*keeper) Drain(context.Context) error { return nil }

// Failing is never so.
func (*keeper) Failing() bool { return false }

func (*keeper) Base(segment.Position)                                  {}
func (*keeper) Chained(segment.Name, segment.LSN)                      {}
func (*keeper) Offer(*spool.Segment, segment.LSN, bool)                {}
func (*keeper) Sealed() (segment.Position, bool)                       { return segment.Position{}, false }
func (*keeper) Switch(segment.Timeline, segment.LSN, segment.Timeline) {}
func (*keeper) Shipped() (segment.Position, bool)                      { return segment.Position{}, false }
func (*keeper) Stopped() error                                         { return nil }
func (*keeper) Changed() <-chan struct{}                               { return nil }
