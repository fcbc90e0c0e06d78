package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/segment"
)

// errStoredMeanwhile: an object that was not there appeared while its absence
// was being proved. The next attempt finds it.
var errStoredMeanwhile = errors.New("stored in this very moment")

// proof shows that a file is absent. A GET for each of its forms has been
// answered "no such key" when it begins, and a LIST has shown no tail object
// with WAL of it; only what is left to show is asked.
// Each step is a fact of the moment in which it was answered, and a segment
// that was absent at one moment was so at the end of the archive then:
// segments are never removed behind the newest.
type proof struct {
	archive  Archive
	wanted   wanted
	cluster  cluster
	unsealed bool // what there is of segments that were never completed would have been delivered, too
}

// absent returns an error that matches ErrAbsent when the proof holds, and
// the reason why it does not otherwise. It never returns nil.
func (p *proof) absent(ctx context.Context) error {
	if err := p.noOtherForm(ctx); err != nil {
		return err
	}
	id, _, err := p.archive.Recognise(ctx)
	if err != nil {
		return fmt.Errorf("not found, which proves nothing: %w", err)
	}
	if err := p.cluster.checkIdentity(id, p.archive); err != nil {
		return err
	}
	if p.wanted.isHistory() {
		err = p.noWALOf(ctx, p.wanted.history)
	} else {
		err = p.nothingBehind(ctx, id.SegmentSize)
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w %s", ErrAbsent, p.archive)
}

// noOtherForm shows that no object of the name exists that would have to be
// read in another way.
func (p *proof) noOtherForm(ctx context.Context) error {
	names := []string{p.wanted.String()}
	if p.unsealed {
		names = append(names, partialOf(p.wanted))
	}
	for _, name := range names {
		keys, err := p.archive.Forms(ctx, name)
		if err != nil {
			return fmt.Errorf("listing the forms of %s in %s: %w", name, p.archive, err)
		}
		for _, key := range keys {
			if !decodable(key, name) {
				return fmt.Errorf("%s in %s: %w: want one of the extensions %s", key, p.archive, archive.ErrNoDecoder, readable())
			}
		}
		if len(keys) > 0 {
			return fmt.Errorf("%s: %w", keys[0], errStoredMeanwhile)
		}
	}
	return nil
}

// readable lists the extensions that can be read, for messages.
func readable() string {
	return strings.Join(slices.DeleteFunc(codec.Readable(), func(ext string) bool { return ext == "" }), " ") + " or none"
}

// decodable tells whether a key is the object's name with an extension that
// can be read.
func decodable(key, name string) bool {
	_, ext, ok := strings.Cut(key, name)
	return ok && codec.CanRead(ext)
}

// checkIdentity compares an archive's identity with the cluster's.
func (c cluster) checkIdentity(id archive.Identity, a Archive) error {
	if c.systemIdentifier != 0 && id.SystemIdentifier != 0 && id.SystemIdentifier != c.systemIdentifier {
		return fmt.Errorf("%s: %w: its system identifier is %d, the data directory's is %d; check the store's prefix", a, segment.ErrForeignCluster, id.SystemIdentifier, c.systemIdentifier)
	}
	if c.systemIdentifier != 0 && id.SystemIdentifier == 0 {
		return fmt.Errorf("%s does not tell whose archive it is", a)
	}
	return nil
}

// noWALOf shows that timeline t, whose history file is missing, has no WAL
// either. Timeline 1 has no history.
func (p *proof) noWALOf(ctx context.Context, t segment.Timeline) error {
	if t == 1 {
		return nil
	}
	for _, look := range []lookup{p.archive.NextSegment, p.archive.NextTail} {
		first, found, err := p.behindOn(ctx, look, segment.Name{Timeline: t})
		if err != nil {
			return err
		}
		if found {
			return fmt.Errorf("%w: %s is missing in %s, which has the timeline's WAL (%s)", ErrHole, p.wanted, p.archive, first)
		}
	}
	return nil
}

// lookup finds the first segment behind another on the same timeline.
type lookup func(ctx context.Context, after segment.Name) (segment.Name, bool, error)

func (p *proof) behindOn(ctx context.Context, look lookup, after segment.Name) (next segment.Name, found bool, err error) {
	next, found, err = look(ctx, after)
	if err != nil {
		return segment.Name{}, false, fmt.Errorf("looking for WAL behind %s in %s: %w", after, p.archive, err)
	}
	return next, found, nil
}

// nothingBehind shows that a missing segment is not in the middle. size is
// zero when unknown.
func (p *proof) nothingBehind(ctx context.Context, size segment.Size) error {
	next, found, err := p.behind(ctx, size)
	if err == nil && found {
		err = fmt.Errorf("%w: %s is missing in %s, which goes on with %s", ErrHole, p.wanted, p.archive, next)
	}
	return err
}

// behind looks for WAL that follows the wanted segment: on the same timeline,
// but for what lies behind the switchpoint at which the recovery leaves it,
// and, where the timeline went on for longer than that segment, on its heirs.
// Tail objects count where they would have been delivered, too, and so do
// recorded gaps, behind which the server had WAL. size is zero when unknown.
func (p *proof) behind(ctx context.Context, size segment.Size) (next segment.Name, found bool, err error) {
	n := p.wanted.segment
	first, last, ended := p.cluster.end(n.Timeline)
	ended = ended && size != 0
	if size != 0 {
		if own := p.cluster.history(n.Timeline); own != nil && n.End(size) <= own.Begin() {
			return segment.Name{}, false, nil // before the timeline began
		}
		if ended && n.Start(size) >= last {
			return segment.Name{}, false, nil // after it ended
		}
	}
	lookups := []lookup{p.archive.NextSegment}
	if p.unsealed {
		lookups = append(lookups, p.archive.NextTail)
	}
	var heirs []segment.Timeline
	if ended && n.End(size) <= first {
		heirs = p.cluster.heirs(n.Timeline, n.End(size))
	}
	for _, look := range lookups {
		next, found, err := p.behindOn(ctx, look, n)
		if err != nil || found && (!ended || next.Start(size) < last) {
			return next, found, err
		}
		for _, t := range heirs {
			next, found, err := p.behindOn(ctx, look, segment.Name{Timeline: t})
			if err != nil || found {
				return next, found, err
			}
		}
	}
	if size == 0 {
		return segment.Name{}, false, nil
	}
	return p.behindGap(ctx, size, last, ended, heirs)
}

// behindGap looks for a recorded gap in which the wanted segment lies, or that
// lies behind it: the server had WAL behind it, though the archive may have none
// yet. It is sought where WAL is.
func (p *proof) behindGap(ctx context.Context, size segment.Size, last segment.LSN, ended bool, heirs []segment.Timeline) (next segment.Name, found bool, err error) {
	gaps, err := p.archive.Gaps(ctx)
	if err != nil {
		return segment.Name{}, false, fmt.Errorf("looking for recorded gaps in %s: %w", p.archive, err)
	}
	n := p.wanted.segment
	for _, g := range gaps {
		own := g.Timeline == n.Timeline && g.End > n.Start(size) && (!ended || g.Start < last)
		if own || slices.Contains(heirs, g.Timeline) {
			return size.Name(g.Timeline, g.End), true, nil
		}
	}
	return segment.Name{}, false, nil
}
