package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// tailDir is where tail objects are. A lifecycle rule may clean it up.
const tailDir = "wal_tail_005/"

// Tail names a tail object: a part of a segment that is not whole yet. Every
// one is chained to all before it by the checksum in its name, so that the
// name fixes the bytes.
type Tail struct {
	Segment    segment.Name
	Start, End uint32 // the bytes [Start, End) of the segment
	CRC        uint32 // CRC32C of the segment's bytes [0, End)
}

// String returns the object's name below wal_tail_005/, without extension.
func (t Tail) String() string {
	return fmt.Sprintf("%s/%08X-%08X-%08X", t.Segment, t.Start, t.End, t.CRC)
}

func (t Tail) key(m codec.Method) string { return tailDir + t.String() + m.Ext() }

func (t Tail) check() error {
	if t.Start >= t.End {
		return fmt.Errorf("tail object %s holds nothing", t)
	}
	return nil
}

// tailKey takes a tail object's key apart; ok is false when it is none. ext is
// what follows the name, with its dot.
func tailKey(key string) (t Tail, ext string, ok bool) {
	text, ok := strings.CutPrefix(key, tailDir)
	const name = 24 + len("/") + 3*8 + 2*len("-")
	if !ok || len(text) < name || text[24] != '/' || text[33] != '-' || text[42] != '-' {
		return Tail{}, "", false
	}
	n, err := segment.ParseName(text[:24])
	if err != nil {
		return Tail{}, "", false
	}
	t.Segment = n
	for i, at := range []*uint32{&t.Start, &t.End, &t.CRC} {
		digits := text[25+9*i : 33+9*i]
		v, err := strconv.ParseUint(digits, 16, 32)
		if err != nil || strings.ToUpper(digits) != digits || strings.ContainsAny(digits, "+-_") {
			return Tail{}, "", false
		}
		*at = uint32(v)
	}
	ext = text[name:]
	return t, ext, t.check() == nil && (ext == "" || ext[0] == '.' && !strings.Contains(ext, "/"))
}

// PutTail stores a tail object whose bytes, encoded by m, are frame. On nil an
// object of that name is durable and readable; one that was there already is
// success, since the name fixes the bytes.
func (a *Archive) PutTail(ctx context.Context, t Tail, m codec.Method, frame objstore.Body) error {
	if err := t.check(); err != nil {
		return err
	}
	err := a.store.PutIfAbsent(ctx, t.key(m), frame)
	if errors.Is(err, objstore.ErrExists) {
		return nil
	}
	return wrap("storing tail object "+t.String(), err)
}

// RenewTail is PutTail over whatever is there, so that the object's age begins
// anew and no lifecycle rule removes what nothing else holds.
func (a *Archive) RenewTail(ctx context.Context, t Tail, m codec.Method, frame objstore.Body) error {
	if err := t.check(); err != nil {
		return err
	}
	return wrap("storing tail object "+t.String(), a.store.Put(ctx, t.key(m), frame))
}

// DeleteTail removes a tail object that m encoded and that is superseded; one
// that is absent is no error. objstore.ErrDenied where that is not allowed.
func (a *Archive) DeleteTail(ctx context.Context, t Tail, m codec.Method) error {
	return wrap("removing tail object "+t.String(), a.store.Delete(ctx, t.key(m)))
}

// StoredTail is a tail object as a listing shows it.
type StoredTail struct {
	Tail
	Ext string // with its dot, or ""
}

func (t StoredTail) storedKey() string { return tailDir + t.String() + t.Ext }

// DeleteStoredTail is DeleteTail of an object that a listing showed.
func (a *Archive) DeleteStoredTail(ctx context.Context, t StoredTail) error {
	return wrap("removing tail object "+t.String(), a.store.Delete(ctx, t.storedKey()))
}

// Buffer takes an object's bytes, and is then its body.
type Buffer interface {
	objstore.Body
	io.Writer
}

// RenewStoredTail is RenewTail of an object that a listing showed, with the very
// bytes that are there, which pass through an empty buffer. One that is there no
// more is no error.
func (a *Archive) RenewStoredTail(ctx context.Context, t StoredTail, through Buffer) error {
	return wrap("renewing tail object "+t.String(), a.renewStoredTail(ctx, t, through))
}

func (a *Archive) renewStoredTail(ctx context.Context, t StoredTail, through Buffer) error {
	body, _, err := a.store.Get(ctx, t.storedKey())
	if errors.Is(err, objstore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer discard(body)
	if _, err := io.Copy(through, body); err != nil {
		return err
	}
	return a.store.Put(ctx, t.storedKey(), through)
}

// Tails lists the tail objects of a segment in bytewise order of their keys:
// by start, end, checksum and extension. Names that are none of ours are
// passed over. One LIST for each thousand.
func (a *Archive) Tails(ctx context.Context, n segment.Name) ([]StoredTail, error) {
	var all []StoredTail
	for t, err := range a.tails(ctx, objstore.ListOptions{Prefix: tailDir + n.String() + "/"}) {
		if err != nil {
			return nil, fmt.Errorf("listing the tail objects of %s: %w", n, err)
		}
		all = append(all, t)
	}
	return all, nil
}

// TailSegments lists the segments of timeline t that have tail objects,
// ascending. Only folders are listed: one may hold nothing but names that are
// none of ours.
func (a *Archive) TailSegments(ctx context.Context, t segment.Timeline) ([]segment.Name, error) {
	var all []segment.Name
	opts := objstore.ListOptions{Prefix: fmt.Sprintf("%s%08X", tailDir, uint32(t)), Delimiter: "/"}
	for info, err := range a.store.List(ctx, opts) {
		if err != nil {
			return nil, fmt.Errorf("listing the segments of timeline %d that have tail objects: %w", t, err)
		}
		name, folder := strings.CutSuffix(strings.TrimPrefix(info.Key, tailDir), "/")
		if n, err := segment.ParseName(name); err == nil && folder {
			all = append(all, n)
		}
	}
	return all, nil
}

// NextTail returns the first segment behind after on the same timeline that
// has a tail object, whatever its extension: the proof that what is missing
// does not end the archive. ok is false when the store answered that there is
// none.
func (a *Archive) NextTail(ctx context.Context, after segment.Name) (n segment.Name, ok bool, err error) {
	opts := objstore.ListOptions{
		Prefix:     fmt.Sprintf("%s%08X", tailDir, uint32(after.Timeline)),
		StartAfter: tailDir + after.String() + behindName,
		Limit:      probe,
	}
	for t, err := range a.tails(ctx, opts) {
		if err != nil {
			return segment.Name{}, false, fmt.Errorf("looking for tail objects behind %s: %w", after, err)
		}
		return t.Segment, true, nil
	}
	return segment.Name{}, false, nil
}

// tails yields the tail objects of a listing. opts.Limit is how many entries
// the first answer holds.
func (a *Archive) tails(ctx context.Context, opts objstore.ListOptions) iter.Seq2[StoredTail, error] {
	return func(yield func(StoredTail, error) bool) {
		for info, err := range a.pages(ctx, opts) {
			if err != nil {
				yield(StoredTail{}, err)
				return
			}
			if t, ext, ok := tailKey(info.Key); ok && !yield(StoredTail{t, ext}, nil) {
				return
			}
		}
	}
}
