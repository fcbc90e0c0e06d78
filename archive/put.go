package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// compareBuffer is how many bytes are decoded and compared at a time.
const compareBuffer = 128 << 10

// PutSegment stores a whole segment. frame holds it encoded by m, plain its
// decoded bytes, size of them. On nil an object with this content is durable
// and readable: it was stored now, or was there before with equal decoded
// content. An object with other content is a *ConflictError.
func (a *Archive) PutSegment(ctx context.Context, n segment.Name, m codec.Method, frame objstore.Body, plain io.ReaderAt, size segment.Size) error {
	if err := n.Check(size); err != nil {
		return err
	}
	return a.put(ctx, walDir+n.String()+m.Ext(), m, frame, expectation{
		plain: plain, equal: int64(size), size: int64(size), start: n.Start(size), lsn: true,
	})
}

// PutPartial stores the last segment of a timeline that ended at w inside it.
// frame and plain are those of a whole segment, with zeros from w on. It is
// PutSegment otherwise; of an object that exists only the bytes before w are
// compared, since PostgreSQL's own archiver writes the same name with
// whatever its file held behind.
func (a *Archive) PutPartial(ctx context.Context, n segment.Name, w segment.LSN, m codec.Method, frame objstore.Body, plain io.ReaderAt, size segment.Size) error {
	if err := n.Check(size); err != nil {
		return err
	}
	if w < n.Start(size) || w > n.End(size) {
		return fmt.Errorf("timeline %d did not end at %s in segment %s", n.Timeline, w, n)
	}
	return a.put(ctx, walDir+n.String()+partialSuffix+m.Ext(), m, frame, expectation{
		plain: plain, equal: int64(w - n.Start(size)), start: n.Start(size), lsn: true,
	})
}

// PutHistory stores timeline t's history file, encoded by m. Durability and
// conflicts are PutSegment's.
func (a *Archive) PutHistory(ctx context.Context, t segment.Timeline, m codec.Method, content []byte) error {
	if _, err := segment.ParseHistory(t, content); err != nil {
		return fmt.Errorf("refusing to store a history file: %w", err)
	}
	frame, err := m.Encode(content)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", t.HistoryName(), err)
	}
	defer frame.Release()
	return a.put(ctx, walDir+t.HistoryName()+m.Ext(), m, frame, expectation{
		plain: bytes.NewReader(content), equal: int64(len(content)), size: int64(len(content)),
	})
}

// expectation is what a stored object's decoded content must be.
type expectation struct {
	plain io.ReaderAt
	equal int64       // so many bytes must be plain's
	size  int64       // and so many there must be in all; 0: equal or more
	start segment.LSN // of the first byte
	lsn   bool        // the bytes have LSNs
}

// put stores frame under key, or proves that what is there is as good.
func (a *Archive) put(ctx context.Context, key string, m codec.Method, frame objstore.Body, want expectation) error {
	// An object that exists and is gone when it is read was removed by someone
	// (a prune, a lifecycle rule): then it is put again. That is no way to
	// live, so it ends.
	for range 3 {
		err := a.store.PutIfAbsent(ctx, key, frame)
		if err == nil {
			return nil
		}
		if !errors.Is(err, objstore.ErrExists) {
			return fmt.Errorf("storing %s: %w", key, err)
		}
		err = a.compare(ctx, key, m, frame, want)
		if !errors.Is(err, objstore.ErrNotFound) {
			return err
		}
	}
	return fmt.Errorf("storing %s: the store says that it exists, and that it does not", key)
}

// compare returns nil when the object under key holds what is wanted, a
// *ConflictError when it does not, and every other error when it is not known.
func (a *Archive) compare(ctx context.Context, key string, m codec.Method, frame objstore.Body, want expectation) error {
	body, info, err := a.store.Get(ctx, key)
	if err != nil {
		return fmt.Errorf("comparing with the stored %s: %w", key, err)
	}
	defer discard(body)
	if info.HasCRC && info.Size == frame.Size() && info.CRC32C == frame.CRC32C() {
		return nil
	}
	content, err := codec.NewReader(body, m.Ext())
	if err != nil {
		return fmt.Errorf("comparing with the stored %s: %w", key, err)
	}
	defer discard(content)
	conflict, err := want.check(content)
	switch {
	case errors.Is(err, codec.ErrDamaged):
		conflict.Damaged = err
	case err != nil:
		return fmt.Errorf("comparing with the stored %s: %w", key, err)
	case conflict == nil:
		return nil
	}
	conflict.Key = key
	return conflict
}

// check reads content to its end. A difference alone does not say whether the
// stored bytes are another history or damaged: the checksums at the end do. A
// conflict is returned with every error that is codec.ErrDamaged.
func (e expectation) check(content io.Reader) (*ConflictError, error) {
	var conflict *ConflictError
	have, want := make([]byte, compareBuffer), make([]byte, compareBuffer)
	at := int64(0)
	for end := false; !end; {
		n, err := fill(content, have)
		if c := min(int64(n), e.equal-at); conflict == nil && c > 0 {
			if m, err := e.plain.ReadAt(want[:c], at); int64(m) < c {
				return nil, fmt.Errorf("reading our own bytes: %w", err)
			}
			if i := firstDifference(have[:c], want[:c]); i >= 0 {
				conflict = &ConflictError{LSN: e.start + segment.LSN(at+int64(i)), HasLSN: e.lsn}
			}
		}
		at += int64(n)
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			end = true
		case conflict == nil:
			return &ConflictError{}, err
		default:
			return conflict, err
		}
	}
	if at >= e.equal && (e.size == 0 || at == e.size) {
		return conflict, nil
	}
	if conflict == nil {
		conflict = &ConflictError{}
	}
	if !e.lsn {
		return conflict, nil
	}
	return conflict, fmt.Errorf("%w: it decodes to %d bytes, a segment has %d", codec.ErrDamaged, at, max(e.size, e.equal))
}

// fill is io.ReadFull without its io.ErrUnexpectedEOF, which is also what a
// store's body says that ended too early: io.EOF is the end, whatever n is.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// firstDifference returns the index of the first byte in which two slices of
// one length differ, or -1.
func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
