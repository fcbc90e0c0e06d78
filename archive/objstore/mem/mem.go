// Package mem is an object store in memory, for tests: what it does is the
// contract and nothing else, and it can be told to misbehave in the ways that
// real stores do.
package mem

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/walferry/walferry/archive/objstore"
)

// Op names a call of the store.
type Op string

// The calls of objstore.Store and of its uploads.
const (
	PutIfAbsent Op = "put-if-absent"
	Put         Op = "put"
	Get         Op = "get"
	GetRange    Op = "get-range"
	List        Op = "list" // its key is the prefix
	Delete      Op = "delete"

	BeginUpload    Op = "begin-upload"
	UploadPart     Op = "upload-part"
	CompleteUpload Op = "complete-upload"
	AbortUpload    Op = "abort-upload"
	AbortUploads   Op = "abort-uploads" // its key is the prefix
)

// Options make a store misbehave. The hooks run in the caller's goroutine,
// concurrently when calls are, without a lock of the store held: they may
// call the store, and block until ctx ends.
type Options struct {
	// Before runs before a call does anything; its error becomes the call's.
	Before func(ctx context.Context, op Op, key string) error
	// After runs when a call succeeded (for List: before the first entry);
	// its error becomes the call's although the object was stored: an answer
	// that was lost.
	After func(ctx context.Context, op Op, key string) error
	// IgnoreCondition makes PutIfAbsent overwrite, as a store does that does
	// not know If-None-Match.
	IgnoreCondition bool
	// NoCRC makes Get tell no checksum.
	NoCRC bool
}

// Store is an object store in memory. It is safe for concurrent use.
type Store struct {
	o Options

	mu      sync.RWMutex
	objects map[string]object // guarded by mu
	uploads map[*upload]bool  // under way; guarded by mu
}

type object struct {
	data   []byte // never written to after it was stored
	crc    uint32
	stored time.Time
}

var _ objstore.Store = (*Store)(nil)

// New makes an empty store.
func New() *Store { return NewWith(Options{}) }

// NewWith makes an empty store that behaves as o says.
func NewWith(o Options) *Store {
	return &Store{o: o, objects: map[string]object{}, uploads: map[*upload]bool{}}
}

// String names the store.
func (s *Store) String() string { return "mem://" }

func (s *Store) before(ctx context.Context, op Op, key string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %s: %w", op, key, err)
	}
	if s.o.Before != nil {
		return s.o.Before(ctx, op, key)
	}
	return nil
}

func (s *Store) after(ctx context.Context, op Op, key string) error {
	if s.o.After != nil {
		return s.o.After(ctx, op, key)
	}
	return nil
}

// PutIfAbsent implements objstore.Store.
func (s *Store) PutIfAbsent(ctx context.Context, key string, body objstore.Body) error {
	return s.put(ctx, PutIfAbsent, key, body)
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, body objstore.Body) error {
	return s.put(ctx, Put, key, body)
}

func (s *Store) put(ctx context.Context, op Op, key string, body objstore.Body) error {
	if err := objstore.CheckKey(key); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := s.before(ctx, op, key); err != nil {
		return err
	}
	data, crc, err := read(body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", op, key, err)
	}
	s.mu.Lock()
	_, taken := s.objects[key]
	if taken = taken && op == PutIfAbsent && !s.o.IgnoreCondition; !taken {
		s.objects[key] = object{data: data, crc: crc, stored: time.Now()}
	}
	s.mu.Unlock()
	if taken {
		return fmt.Errorf("%s %s: %w", op, key, objstore.ErrExists)
	}
	return s.after(ctx, op, key)
}

// read takes a copy of body's bytes, which must have the checksum that it says.
func read(body objstore.Body) (data []byte, crc uint32, err error) {
	data = make([]byte, body.Size())
	if n, err := body.ReadAt(data, 0); n < len(data) {
		return nil, 0, fmt.Errorf("read the body: %w", err)
	}
	crc = crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
	if crc != body.CRC32C() {
		return nil, 0, fmt.Errorf("the body has checksum %08X, not %08X as it says", crc, body.CRC32C())
	}
	return data, crc, nil
}

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, objstore.Info, error) {
	o, info, err := s.open(ctx, Get, key)
	if err != nil {
		return nil, objstore.Info{}, err
	}
	return io.NopCloser(bytes.NewReader(o.data)), info, nil
}

// GetRange implements objstore.Store.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, objstore.Info, error) {
	if err := objstore.CheckRange(offset, length); err != nil {
		return nil, objstore.Info{}, fmt.Errorf("%s %s: %w", GetRange, key, err)
	}
	o, info, err := s.open(ctx, GetRange, key)
	if err != nil {
		return nil, objstore.Info{}, err
	}
	if offset+length > info.Size {
		return nil, objstore.Info{}, fmt.Errorf("%s %s: bytes %d to %d of an object of %d", GetRange, key, offset, offset+length, info.Size)
	}
	return io.NopCloser(bytes.NewReader(o.data[offset : offset+length])), info, nil
}

func (s *Store) open(ctx context.Context, op Op, key string) (object, objstore.Info, error) {
	if err := objstore.CheckKey(key); err != nil {
		return object{}, objstore.Info{}, fmt.Errorf("%s: %w", op, err)
	}
	if err := s.before(ctx, op, key); err != nil {
		return object{}, objstore.Info{}, err
	}
	s.mu.RLock()
	o, ok := s.objects[key]
	s.mu.RUnlock()
	if !ok {
		return object{}, objstore.Info{}, fmt.Errorf("%s %s: %w", op, key, objstore.ErrNotFound)
	}
	if err := s.after(ctx, op, key); err != nil {
		return object{}, objstore.Info{}, err
	}
	info := objstore.Info{Key: key, Size: int64(len(o.data)), CRC32C: o.crc, HasCRC: true}
	if s.o.NoCRC {
		info.CRC32C, info.HasCRC = 0, false
	}
	return o, info, nil
}

// List implements objstore.Store. It yields what there was when it began.
func (s *Store) List(ctx context.Context, opts objstore.ListOptions) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		err := s.before(ctx, List, opts.Prefix)
		if err == nil {
			err = s.after(ctx, List, opts.Prefix)
		}
		if err != nil {
			yield(objstore.Info{}, err)
			return
		}
		for i, info := range s.snapshot(opts) {
			if opts.Limit > 0 && i == opts.Limit {
				return
			}
			if err := ctx.Err(); err != nil {
				yield(objstore.Info{}, fmt.Errorf("%s %s: %w", List, opts.Prefix, err))
				return
			}
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (s *Store) snapshot(opts objstore.ListOptions) []objstore.Info {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []objstore.Info
	rolled := map[string]bool{}
	for key, o := range s.objects {
		rest, ok := strings.CutPrefix(key, opts.Prefix)
		if !ok {
			continue
		}
		info := objstore.Info{Key: key, Size: int64(len(o.data)), Modified: o.stored}
		if opts.Delimiter != "" {
			if part, _, more := strings.Cut(rest, opts.Delimiter); more {
				info = objstore.Info{Key: opts.Prefix + part + opts.Delimiter}
			}
		}
		if info.Key <= opts.StartAfter || rolled[info.Key] {
			continue
		}
		rolled[info.Key] = true
		found = append(found, info)
	}
	slices.SortFunc(found, func(a, b objstore.Info) int { return strings.Compare(a.Key, b.Key) })
	return found
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := objstore.CheckKey(key); err != nil {
		return fmt.Errorf("%s: %w", Delete, err)
	}
	if err := s.before(ctx, Delete, key); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.objects, key)
	s.mu.Unlock()
	return s.after(ctx, Delete, key)
}
