package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// Gaps are recorded below gapsDir, one object each, whose name says all that a
// reader decides by.
const (
	gapsDir   = "walferry_005/gaps/"
	gapSuffix = ".json"

	gapVersion = 1
	maxGap     = 64 << 10 // bytes
)

// ErrGapObject: the object of a recorded gap that cannot be understood.
var ErrGapObject = errors.New("invalid gap object")

// RecordedGap is a gap, and the facts of its recording.
type RecordedGap struct {
	segment.Gap
	RecordedAt       time.Time // by the receiver's clock
	Reason           string    // why, in the receiver's or the server's words
	Slot             string    // whose reader lost the WAL
	SystemIdentifier uint64
	// Err is why the object does not tell these facts. The gap is one all the
	// same: its name says it.
	Err error
}

// gapFile is the object. Further fields may come; readers pass over those that
// they do not know. Numbers that a JSON reader could round are texts.
type gapFile struct {
	Version          int    `json:"version"`
	SystemIdentifier uint64 `json:"system_identifier,string"`
	Timeline         uint32 `json:"timeline"`
	Start            string `json:"start"` // LSN of the first byte that is missing
	End              string `json:"end"`   // LSN at which reception went on
	RecordedAt       string `json:"recorded_at"`
	Reason           string `json:"reason"`
	Slot             string `json:"slot"`
}

func gapKey(g segment.Gap) string { return gapsDir + g.Name() + gapSuffix }

// PutGap records a gap. On nil it is durable and seen by every reader; a record
// of the same gap that is there already is success, whoever made it, and stays
// as it is. *ConflictError: an object of its name holds something else.
func (a *Archive) PutGap(ctx context.Context, g RecordedGap) error {
	return wrap("recording the gap from "+g.String(), a.putGap(ctx, g))
}

func (a *Archive) putGap(ctx context.Context, g RecordedGap) error {
	if err := g.Check(); err != nil {
		return err
	}
	content, err := json.MarshalIndent(gapFile{
		gapVersion, g.SystemIdentifier, uint32(g.Timeline), g.Start.String(), g.End.String(),
		g.RecordedAt.UTC().Format(time.RFC3339), g.Reason, g.Slot,
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding it: %w", err)
	}
	key := gapKey(g.Gap)
	err = a.store.PutIfAbsent(ctx, key, objstore.Bytes(append(content, '\n')))
	if !errors.Is(err, objstore.ErrExists) {
		return wrap("storing "+key, err)
	}
	stored, err := a.ReadGap(ctx, g.Gap)
	if err != nil {
		return err
	}
	if stored.Err != nil || stored.SystemIdentifier != g.SystemIdentifier {
		return &ConflictError{Key: key}
	}
	return nil
}

// Gaps lists the recorded gaps, by their names: one LIST for each thousand, no
// GET. They are in no order that matters, and may overlap.
func (a *Archive) Gaps(ctx context.Context) (segment.Gaps, error) {
	var all segment.Gaps
	for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: gapsDir}) {
		if err != nil {
			return nil, fmt.Errorf("listing the recorded gaps: %w", err)
		}
		name, ok := strings.CutSuffix(strings.TrimPrefix(info.Key, gapsDir), gapSuffix)
		if g, err := segment.ParseGap(name); ok && err == nil {
			all = append(all, g)
		}
	}
	return all, nil
}

// RecordedGaps reads them: Gaps, and a GET for each. They come by timeline and
// LSN.
func (a *Archive) RecordedGaps(ctx context.Context) ([]RecordedGap, error) {
	names, err := a.Gaps(ctx)
	if err != nil {
		return nil, err
	}
	var all []RecordedGap
	for _, g := range slices.SortedFunc(slices.Values(names), segment.Gap.Compare) {
		found, err := a.ReadGap(ctx, g)
		if errors.Is(err, ErrNotFound) {
			continue // removed by hand since
		}
		if err != nil {
			return nil, err
		}
		all = append(all, found)
	}
	return all, nil
}

// ReadGap reads the record of a gap that Gaps returned: one GET. An object that
// cannot be understood is no error of it, but RecordedGap.Err. ErrNotFound: it is
// there no more.
func (a *Archive) ReadGap(ctx context.Context, g segment.Gap) (RecordedGap, error) {
	content, err := a.readWhole(ctx, gapKey(g), maxGap)
	if err != nil {
		return RecordedGap{}, err
	}
	found, err := decodeGap(content, g)
	if err != nil {
		return RecordedGap{Gap: g, Err: fmt.Errorf("%s: %w: %w", gapKey(g), ErrGapObject, err)}, nil
	}
	return found, nil
}

// decodeGap reads the object of a gap, which must say what its name says.
func decodeGap(content []byte, g segment.Gap) (RecordedGap, error) {
	var f gapFile
	if err := json.Unmarshal(content, &f); err != nil {
		return RecordedGap{}, err
	}
	if f.Version < gapVersion {
		return RecordedGap{}, fmt.Errorf("version %d", f.Version)
	}
	start, err := segment.ParseLSN(f.Start)
	if err != nil {
		return RecordedGap{}, err
	}
	end, err := segment.ParseLSN(f.End)
	if err != nil {
		return RecordedGap{}, err
	}
	if said := (segment.Gap{Timeline: segment.Timeline(f.Timeline), Start: start, End: end}); said != g {
		return RecordedGap{}, fmt.Errorf("it tells of %s", said)
	}
	at, err := time.Parse(time.RFC3339, f.RecordedAt)
	if err != nil {
		return RecordedGap{}, fmt.Errorf("recorded_at: %w", err)
	}
	return RecordedGap{Gap: g, RecordedAt: at, Reason: f.Reason, Slot: f.Slot, SystemIdentifier: f.SystemIdentifier}, nil
}
