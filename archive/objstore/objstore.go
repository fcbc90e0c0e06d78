// Package objstore is the contract between the archive and the places that
// can hold it: a flat map from keys to immutable byte strings. The folders
// below implement it (s3, dir, mem); package storetest holds the one suite
// that all of them pass.
//
// Small objects are put in one call, large ones in parts: see Upload. Both are
// put-if-absent, and of neither can anything be seen before it is whole.
//
// Keys are relative to the store's root, UTF-8, with "/" between parts, never
// beginning or ending with it. A store is safe for concurrent use.
package objstore

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// What a caller decides by. Every other error means "not known": the network,
// the store or its answer failed, and nothing may be concluded from it, least
// of all that an object is absent.
var (
	// ErrNotFound: the store answered that it exists and that it holds no
	// object of this key. A missing bucket or root is ErrNoStore instead.
	ErrNotFound = errors.New("no such object")
	// ErrExists: PutIfAbsent found an object of this key. It may be the
	// caller's own, stored by an attempt whose answer was lost.
	ErrExists = errors.New("object exists already")
	// ErrNoStore: the bucket does not exist, or the root directory is not
	// there (not mounted, misspelt).
	ErrNoStore = errors.New("no such store")
	// ErrDenied: the store refused the credentials or the action.
	ErrDenied = errors.New("access denied")
	// ErrConditionIgnored: the store does not honour put-if-absent.
	ErrConditionIgnored = errors.New("the store does not honour put-if-absent")
)

// Body is the content of an object to be stored: its bytes can be read as
// often as an attempt needs them, and their checksum is known beforehand.
type Body interface {
	io.ReaderAt
	Size() int64    // bytes
	CRC32C() uint32 // of all bytes (Castagnoli)
}

// Lender is a Body that can show its bytes where they lie. Lend calls show with
// one piece after the other, from the first byte to the last, and ends with
// show's error. A piece must not be changed, or used when show has returned.
type Lender interface {
	Body
	Lend(show func(piece []byte) error) error
}

// Info describes a stored object.
type Info struct {
	Key  string
	Size int64 // bytes
	// CRC32C is the checksum of the stored bytes where the store keeps one
	// and told it; HasCRC says so. Listings never tell it.
	CRC32C uint32
	HasCRC bool
	// Modified is when it was stored, by the store's clock. Only listings
	// tell it; it is for people, since nothing compares two hosts' clocks.
	Modified time.Time
}

// ListOptions narrow a listing.
type ListOptions struct {
	Prefix     string // only keys that begin with it
	StartAfter string // only keys that sort behind it, bytewise
	// Delimiter, "" or "/": with "/", keys that hold one behind Prefix are
	// rolled up into one entry per common prefix: Key ends with "/", Size is 0.
	Delimiter string
	Limit     int // stop after so many entries; 0 means all
}

// Store holds objects.
//
// Every call ends within a bound of its own, whatever the network does: a
// black hole becomes an error. Passing failures are retried inside a few
// times; who wants more patience calls again.
type Store interface {
	// PutIfAbsent stores body under key unless an object of that key exists
	// (ErrExists; it is left as it is). On nil the whole object is durable
	// and readable, with the checksum verified by the store where it can. On
	// any other error it may or may not have been stored, but never in part.
	PutIfAbsent(ctx context.Context, key string, body Body) error

	// Put stores body under key, over whatever is there. Same durability.
	Put(ctx context.Context, key string, body Body) error

	// Get opens an object. The caller closes the reader. A body that ends
	// early is an error of Read (io.ErrUnexpectedEOF), never a clean EOF.
	Get(ctx context.Context, key string) (io.ReadCloser, Info, error)

	// GetRange opens length bytes of an object from offset on; a range that
	// reaches behind the object's end is an error. Info.Size is the object's.
	GetRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, Info, error)

	// BeginUpload begins to store an object in parts under key.
	BeginUpload(ctx context.Context, key string) (Upload, error)

	// AbortUploads gives up the uploads of keys that begin with prefix and that
	// were begun before the given moment by the store's clock: those that dead
	// processes left. It says how many, also with an error. ErrDenied where that
	// is not allowed. A store whose uploads carry no key gives up none here, and
	// sweeps them by itself.
	AbortUploads(ctx context.Context, prefix string, before time.Time) (int, error)

	// List yields the objects in bytewise order of their keys. An error ends
	// the sequence. An empty listing of a store that is not there is
	// ErrNoStore.
	List(ctx context.Context, opts ListOptions) iter.Seq2[Info, error]

	// Delete removes an object; one that is absent is no error.
	Delete(ctx context.Context, key string) error

	// String names the store for messages, as a URL without secrets.
	String() string
}
