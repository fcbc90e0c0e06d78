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

// errNoDecoder: the object exists in a form that cannot be read.
var errNoDecoder = errors.New("cannot be decoded")

// proof shows that a file is absent. A GET for each of its forms has been
// answered "no such key" when it begins; only what is left to show is asked.
// Each step is a fact of the moment in which it was answered, and a segment
// that was absent at one moment was so at the end of the archive then:
// segments are never removed behind the newest.
type proof struct {
	archive  Archive
	wanted   wanted
	cluster  cluster
	partials bool // unfinished segments would have been delivered, too
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
	if p.partials {
		names = append(names, partialOf(p.wanted))
	}
	for _, name := range names {
		keys, err := p.archive.Forms(ctx, name)
		if err != nil {
			return fmt.Errorf("listing the forms of %s in %s: %w", name, p.archive, err)
		}
		for _, key := range keys {
			if !decodable(key, name) {
				return fmt.Errorf("%s in %s: %w: want one of the extensions %s", key, p.archive, errNoDecoder, readable())
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
	first, found, err := p.archive.NextSegment(ctx, segment.Name{Timeline: t})
	if err != nil {
		return fmt.Errorf("looking for WAL of timeline %d in %s: %w", t, p.archive, err)
	}
	if found {
		return fmt.Errorf("%w: %s is missing in %s, which has the timeline's WAL (%s)", ErrHole, p.wanted, p.archive, first)
	}
	return nil
}

// nothingBehind shows that a missing segment is not in the middle: the same
// timeline has none behind it, but for what lies behind the switchpoint at
// which the recovery leaves it, and, where the timeline went on for longer
// than that segment, its heirs have none. size is zero when unknown.
func (p *proof) nothingBehind(ctx context.Context, size segment.Size) error {
	n := p.wanted.segment
	first, last, ended := p.cluster.end(n.Timeline)
	ended = ended && size != 0
	if size != 0 {
		if own := p.cluster.history(n.Timeline); own != nil && n.End(size) <= own.Begin() {
			return nil // before the timeline began
		}
		if ended && n.Start(size) >= last {
			return nil // after it ended
		}
	}
	next, found, err := p.archive.NextSegment(ctx, n)
	if err != nil {
		return fmt.Errorf("looking for WAL behind %s in %s: %w", n, p.archive, err)
	}
	if found && (!ended || next.Start(size) < last) {
		return fmt.Errorf("%w: %s is missing in %s, which goes on with %s", ErrHole, n, p.archive, next)
	}
	if ended && n.End(size) <= first {
		for _, t := range p.cluster.heirs(n.Timeline, n.End(size)) {
			next, found, err := p.archive.NextSegment(ctx, segment.Name{Timeline: t})
			if err != nil {
				return fmt.Errorf("looking for WAL of timeline %d in %s: %w", t, p.archive, err)
			}
			if found {
				return fmt.Errorf("%w: %s is missing in %s, which goes on with %s", ErrHole, n, p.archive, next)
			}
		}
	}
	return nil
}
