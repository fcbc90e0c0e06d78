package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// Identity says whose archive it is and how its WAL is stored. It is one
// object, written once by the first receiver.
type Identity struct {
	SystemIdentifier uint64       // of the cluster; zero: not known
	SegmentSize      segment.Size // of its WAL; zero: not known
	WALCodec         string       // a codec.Method's name; empty: not known
}

// identityFile is the identity object. Further fields may come; readers pass
// over those that they do not know. The system identifier is a text, since
// many JSON readers round 64-bit numbers.
type identityFile struct {
	Version          int    `json:"version"`
	SystemIdentifier uint64 `json:"system_identifier,string"`
	SegmentSize      uint64 `json:"wal_segment_size"` // bytes
	WALCodec         string `json:"wal_codec"`
}

const (
	identityVersion = 1
	maxIdentity     = 64 << 10 // bytes
)

// ErrIdentity: an identity object that cannot be understood. It is no reason
// to write another.
var ErrIdentity = errors.New("invalid identity object")

func encodeIdentity(id Identity) ([]byte, error) {
	b, err := json.MarshalIndent(identityFile{identityVersion, id.SystemIdentifier, uint64(id.SegmentSize), id.WALCodec}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the identity: %w", err)
	}
	return append(b, '\n'), nil
}

func decodeIdentity(content []byte) (Identity, error) {
	var f identityFile
	if err := json.Unmarshal(content, &f); err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	id := Identity{f.SystemIdentifier, segment.Size(f.SegmentSize), f.WALCodec}
	if f.Version != identityVersion {
		return Identity{}, fmt.Errorf("%w: version %d, this walferry knows %d", ErrIdentity, f.Version, identityVersion)
	}
	if err := id.check(); err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	return id, nil
}

func (id Identity) check() error {
	if id.SystemIdentifier == 0 {
		return errors.New("no system identifier")
	}
	if err := id.SegmentSize.Check(); err != nil {
		return err
	}
	m, err := codec.Parse(id.WALCodec)
	if err == nil && m.Level != 0 {
		err = fmt.Errorf("%q is a codec with a level", id.WALCodec)
	}
	return err
}

// Identity reads the identity object. ErrNotFound when the store answered that
// there is none.
func (a *Archive) Identity(ctx context.Context) (Identity, error) {
	if id := a.identity.Load(); id != nil {
		return *id, nil
	}
	id, _, err := a.readIdentity(ctx)
	return id, err
}

// readIdentity also returns the object's bytes.
func (a *Archive) readIdentity(ctx context.Context) (id Identity, stored []byte, err error) {
	if stored, err = a.readWhole(ctx, identityKey, maxIdentity); err != nil {
		return Identity{}, nil, err
	}
	id, err = decodeIdentity(stored)
	if err != nil {
		return Identity{}, nil, fmt.Errorf("%s: %w", identityKey, err)
	}
	a.identity.Store(&id)
	return id, stored, nil
}

// Claim makes sure that the archive is want's, and returns the identity as it
// is stored. It must have succeeded before anything else is put.
//
// An archive without identity object gets one, durable on return: want with
// lz4 where want has no codec. When it holds anything already (WAL-G wrote it),
// its newest base backup's sentinel and its newest segment's first page must
// be of the same cluster, one of them at least must say so, and the newest
// segment's extension fixes the codec. An identity object that exists must be
// equal; an empty want.WALCodec takes the one that is there.
//
// Then the store is probed: the identity, put a second time, must be refused,
// else it is objstore.ErrConditionIgnored (unless there is a single receiver).
// The probe puts the very bytes that are there, so that a store which takes
// them loses nothing.
//
// ErrForeignCluster: system identifier or segment size differ. ErrCodec: the
// codec differs. ErrUnrecognised: there is WAL or a backup, and nothing that
// says whose. All of them are answers, and final. Every other error is the
// store's.
func (a *Archive) Claim(ctx context.Context, want Identity) (Identity, error) {
	id, err := a.claim(ctx, want)
	if err != nil {
		return Identity{}, fmt.Errorf("claiming the archive %s: %w", a, err)
	}
	return id, nil
}

func (a *Archive) claim(ctx context.Context, want Identity) (Identity, error) {
	id, stored, err := a.readIdentity(ctx)
	if errors.Is(err, ErrNotFound) {
		id, stored, err = a.firstClaim(ctx, want)
	}
	if err != nil {
		return Identity{}, err
	}
	if err := id.matches(want); err != nil {
		return Identity{}, err
	}
	err = a.store.PutIfAbsent(ctx, identityKey, objstore.Bytes(stored))
	switch {
	case errors.Is(err, objstore.ErrExists):
	case err != nil:
		return Identity{}, fmt.Errorf("probing put-if-absent: %w", err)
	case a.single:
		a.log.Warn("the store does not honour put-if-absent: nothing keeps a second receiver from overwriting this archive", "store", a.String())
	default:
		return Identity{}, fmt.Errorf("probing put-if-absent: %w", objstore.ErrConditionIgnored)
	}
	return id, nil
}

// firstClaim writes the identity, and returns what is stored: where two
// receivers claim at once, the first one's.
func (a *Archive) firstClaim(ctx context.Context, want Identity) (Identity, []byte, error) {
	found, err := a.survey(ctx, a.newestSegment)
	switch {
	case errors.Is(err, errEmpty):
	case err != nil:
		return Identity{}, nil, err
	default:
		if want, err = found.adopt(want); err != nil {
			return Identity{}, nil, err
		}
	}
	if want.WALCodec == "" {
		want.WALCodec = codec.LZ4
	}
	if err := want.check(); err != nil {
		return Identity{}, nil, err
	}
	content, err := encodeIdentity(want)
	if err != nil {
		return Identity{}, nil, err
	}
	err = a.store.PutIfAbsent(ctx, identityKey, objstore.Bytes(content))
	if err != nil && !errors.Is(err, objstore.ErrExists) {
		return Identity{}, nil, fmt.Errorf("storing %s: %w", identityKey, err)
	}
	return a.readIdentity(ctx)
}

// matches compares a stored identity with the cluster's.
func (id Identity) matches(want Identity) error {
	switch {
	case id.SystemIdentifier != 0 && id.SystemIdentifier != want.SystemIdentifier:
		return fmt.Errorf("%w: the archive is that of system identifier %d, the server's is %d", ErrForeignCluster, id.SystemIdentifier, want.SystemIdentifier)
	case id.SegmentSize != 0 && id.SegmentSize != want.SegmentSize:
		return fmt.Errorf("%w: the archive's WAL segments have %s, the server's %s", ErrForeignCluster, id.SegmentSize, want.SegmentSize)
	case id.WALCodec != "" && want.WALCodec != "" && id.WALCodec != want.WALCodec:
		return fmt.Errorf("%w: its WAL is stored with %s, %s was asked for: go on with %s, or begin a new archive under another prefix", ErrCodec, id.WALCodec, want.WALCodec, id.WALCodec)
	}
	return nil
}

// Recognise tells whose archive this is without writing. With an identity
// object (present is true) it is what that says; in an archive of WAL-G's the
// newest sentinel and a segment's first page tell it, as far as they do: zero
// values are not known. ErrUnrecognised when there is neither identity nor any
// WAL or base backup, such as under a wrong prefix.
func (a *Archive) Recognise(ctx context.Context) (id Identity, present bool, err error) {
	id, err = a.Identity(ctx)
	if err == nil {
		return id, true, nil
	}
	if errors.Is(err, ErrNotFound) {
		var s survey
		if s, err = a.survey(ctx, a.anySegment); err == nil {
			return s.identity(), false, nil
		}
	}
	if errors.Is(err, errEmpty) {
		err = fmt.Errorf("%w: no identity, no WAL and no base backup", ErrUnrecognised)
	}
	return Identity{}, false, fmt.Errorf("recognising the archive %s: %w", a, err)
}
