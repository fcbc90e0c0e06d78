package mem

import (
	"context"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/walferry/walferry/archive/objstore"
)

// upload is an object whose parts come one by one.
type upload struct {
	store *Store
	key   string
	begun time.Time

	parts     map[int]memPart // guarded by store.mu
	completed bool            // guarded by store.mu
}

type memPart struct {
	at   int64
	data []byte // never written to after it was stored
}

// BeginUpload implements objstore.Store.
func (s *Store) BeginUpload(ctx context.Context, key string) (objstore.Upload, error) {
	if err := objstore.CheckKey(key); err != nil {
		return nil, fmt.Errorf("%s: %w", BeginUpload, err)
	}
	if err := s.before(ctx, BeginUpload, key); err != nil {
		return nil, err
	}
	u := &upload{store: s, key: key, begun: time.Now(), parts: map[int]memPart{}}
	s.mu.Lock()
	s.uploads[u] = true
	s.mu.Unlock()
	if err := s.after(ctx, BeginUpload, key); err != nil {
		return nil, err
	}
	return u, nil
}

// Uploads returns the keys of the uploads that were begun and not ended,
// sorted.
func (s *Store) Uploads() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var keys []string
	for u := range s.uploads {
		keys = append(keys, u.key)
	}
	slices.Sort(keys)
	return keys
}

// AbortUploads implements objstore.Store.
func (s *Store) AbortUploads(ctx context.Context, prefix string, before time.Time) (int, error) {
	if err := s.before(ctx, AbortUploads, prefix); err != nil {
		return 0, err
	}
	s.mu.Lock()
	given := len(s.uploads)
	maps.DeleteFunc(s.uploads, func(u *upload, _ bool) bool {
		return strings.HasPrefix(u.key, prefix) && u.begun.Before(before)
	})
	given -= len(s.uploads)
	s.mu.Unlock()
	return given, s.after(ctx, AbortUploads, prefix)
}

// Part implements objstore.Upload.
func (u *upload) Part(ctx context.Context, number int, at int64, body objstore.Body) error {
	if err := objstore.CheckPart(number, objstore.Extent{At: at, Size: body.Size()}); err != nil {
		return fmt.Errorf("%s %s: %w", UploadPart, u.key, err)
	}
	// Until the call succeeds the part is missing, also where it was before.
	u.setPart(number, nil)
	if err := u.store.before(ctx, UploadPart, u.key); err != nil {
		return err
	}
	data, _, err := read(body)
	if err != nil {
		return fmt.Errorf("%s %s, part %d: %w", UploadPart, u.key, number, err)
	}
	if !u.setPart(number, &memPart{at, data}) {
		return fmt.Errorf("%s %s, part %d: %w", UploadPart, u.key, number, objstore.ErrUploadLost)
	}
	if err := u.store.after(ctx, UploadPart, u.key); err != nil {
		u.setPart(number, nil)
		return err
	}
	return nil
}

// setPart stores a part, or makes it be missing. false: the upload is over.
func (u *upload) setPart(number int, part *memPart) bool {
	u.store.mu.Lock()
	defer u.store.mu.Unlock()
	if !u.store.uploads[u] {
		return false
	}
	delete(u.parts, number)
	if part != nil {
		u.parts[number] = *part
	}
	return true
}

// Complete implements objstore.Upload.
func (u *upload) Complete(ctx context.Context) error {
	if err := u.store.before(ctx, CompleteUpload, u.key); err != nil {
		return err
	}
	if err := u.complete(); err != nil {
		return fmt.Errorf("%s %s: %w", CompleteUpload, u.key, err)
	}
	return u.store.after(ctx, CompleteUpload, u.key)
}

func (u *upload) complete() error {
	s := u.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.completed {
		return nil
	}
	if !s.uploads[u] {
		return objstore.ErrUploadLost
	}
	extents := map[int]objstore.Extent{}
	for number, part := range u.parts {
		extents[number] = objstore.Extent{At: part.at, Size: int64(len(part.data))}
	}
	size, err := objstore.CheckParts(extents)
	if err != nil {
		return err
	}
	delete(s.uploads, u)
	if _, taken := s.objects[u.key]; taken && !s.o.IgnoreCondition {
		return objstore.ErrExists
	}
	data := make([]byte, 0, size)
	for number := 1; number <= len(u.parts); number++ {
		data = append(data, u.parts[number].data...)
	}
	crc := crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
	s.objects[u.key] = object{data: data, crc: crc, stored: time.Now()}
	u.completed, u.parts = true, nil
	return nil
}

// Abort implements objstore.Upload.
func (u *upload) Abort(ctx context.Context) error {
	if err := u.store.before(ctx, AbortUpload, u.key); err != nil {
		return err
	}
	u.store.mu.Lock()
	delete(u.store.uploads, u)
	u.store.mu.Unlock()
	return u.store.after(ctx, AbortUpload, u.key)
}
