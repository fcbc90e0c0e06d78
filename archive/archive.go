package archive

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// What a caller decides by.
var (
	// ErrNotFound: the store holds no object of this name in any form that
	// can be read.
	ErrNotFound = errors.New("not in the archive")
	// ErrConflict: an object of this name exists and holds something else, or
	// cannot be decoded. Nothing was changed. The error is a *ConflictError.
	ErrConflict = errors.New("conflict with the archive")
	// ErrForeignCluster: the archive is another cluster's.
	ErrForeignCluster = segment.ErrForeignCluster
	// ErrCodec: the archive's WAL is stored with another method.
	ErrCodec = errors.New("the archive has another WAL codec")
	// ErrUnrecognised: nothing in the store says that it is an archive, or
	// whose.
	ErrUnrecognised = errors.New("not recognised as an archive")
)

// ConflictError says how a stored object differs. It matches ErrConflict, and
// codec.ErrDamaged when the stored object is damaged.
type ConflictError struct {
	Key string
	// LSN of the first byte that differs, and whether it is known: it is not
	// when the object's size is wrong, and for history files.
	LSN    segment.LSN
	HasLSN bool
	// Chain: it is a tail object, and its checksum is not that of the bytes
	// that the others give up to its end.
	Chain bool
	// Damaged is why the stored object cannot be decoded; nil when it is
	// sound and differs.
	Damaged error
}

func (e *ConflictError) Error() string {
	switch {
	case e.Damaged != nil:
		return fmt.Sprintf("%v: the stored object %s is damaged: %v", ErrConflict, e.Key, e.Damaged)
	case e.HasLSN:
		return fmt.Sprintf("%v: %s holds other WAL: the first difference is at %s", ErrConflict, e.Key, e.LSN)
	case e.Chain:
		return fmt.Sprintf("%v: %s belongs to another history than the tail objects beside it", ErrConflict, e.Key)
	}
	return fmt.Sprintf("%v: %s holds something else", ErrConflict, e.Key)
}

// Unwrap makes errors.Is match ErrConflict and the damage.
func (e *ConflictError) Unwrap() []error {
	if e.Damaged == nil {
		return []error{ErrConflict}
	}
	return []error{ErrConflict, e.Damaged}
}

// Options of an Archive.
type Options struct {
	Log *slog.Logger // nil: nothing is logged
	// SingleReceiver says that nobody else writes to the archive, so that a
	// store may be used that does not honour put-if-absent.
	SingleReceiver bool
}

// Archive is one cluster's archive. It is safe for concurrent use; it keeps no
// state but the identity object, which never changes.
type Archive struct {
	store    objstore.Store
	log      *slog.Logger
	single   bool
	identity atomic.Pointer[Identity] // as stored, once it was read
}

// New returns the archive in store. Nothing is asked yet.
func New(store objstore.Store, o Options) *Archive {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Archive{store: store, log: o.Log, single: o.SingleReceiver}
}

// String names the archive for messages: the store's URL without secrets.
func (a *Archive) String() string { return a.store.String() }

// discard closes the body of an object that was read far enough. Nothing is
// learnt from its error: what was read was checked.
func discard(body io.Closer) { _ = body.Close() }
