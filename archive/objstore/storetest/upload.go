package storetest

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/walferry/walferry/archive/objstore"
)

func mustBegin(t *testing.T, s objstore.Store, key string) objstore.Upload {
	t.Helper()
	u, err := s.BeginUpload(t.Context(), key)
	if err != nil {
		t.Fatalf("begin the upload of %s: %v", key, err)
	}
	return u
}

func mustPart(t *testing.T, u objstore.Upload, number int, at int64, content []byte) {
	t.Helper()
	if err := u.Part(t.Context(), number, at, objstore.Bytes(content)); err != nil {
		t.Fatalf("part %d: %v", number, err)
	}
}

func mustComplete(t *testing.T, u objstore.Upload) {
	t.Helper()
	if err := u.Complete(t.Context()); err != nil {
		t.Fatalf("complete: %v", err)
	}
}

func mustAbort(t *testing.T, u objstore.Upload) {
	t.Helper()
	if err := u.Abort(t.Context()); err != nil {
		t.Errorf("abort: %v", err)
	}
}

// mustNotBe makes sure that nothing of an object can be seen.
func mustNotBe(t *testing.T, s objstore.Store, key string) {
	t.Helper()
	_, _, err := s.Get(t.Context(), key)
	mustBe(t, "get what is not complete", err, objstore.ErrNotFound)
	_, _, err = s.GetRange(t.Context(), key, 0, 1)
	mustBe(t, "get-range of what is not complete", err, objstore.ErrNotFound)
	if slices.Contains(keys(t, s, objstore.ListOptions{}), key) {
		t.Errorf("%s is listed, and is not complete", key)
	}
}

func upload(t *testing.T, s objstore.Store) {
	const key = "basebackups_005/base/tar_partitions/part_001.tar.lz4"
	content := random(2*objstore.MinPart+70_000, 1)
	mustPut(t, s, "basebackups_005/base/other", []byte("x"))
	u := mustBegin(t, s, key)
	mustNotBe(t, s, key)
	// Side by side, the last one first; one of them again.
	var wg sync.WaitGroup
	for number := 3; number >= 1; number-- {
		wg.Go(func() {
			at := (number - 1) * objstore.MinPart
			part := content[at:min(at+objstore.MinPart, len(content))]
			if err := u.Part(t.Context(), number, int64(at), objstore.Bytes(part)); err != nil {
				t.Errorf("part %d: %v", number, err)
			}
		})
	}
	wg.Wait()
	mustPart(t, u, 2, objstore.MinPart, random(objstore.MinPart, 2)) // other bytes
	mustPart(t, u, 2, objstore.MinPart, content[objstore.MinPart:2*objstore.MinPart])
	mustNotBe(t, s, key)
	if t.Failed() {
		return
	}
	for range 2 {
		mustComplete(t, u)
	}
	mustHold(t, s, key, content)
	mustAbort(t, u) // does nothing now
	mustHold(t, s, key, content)
	if got := keys(t, s, objstore.ListOptions{}); !slices.Equal(got, []string{"basebackups_005/base/other", key}) {
		t.Errorf("the store lists %q", got)
	}
	body, info, err := s.GetRange(t.Context(), key, objstore.MinPart-5, 10)
	if err != nil || info.Size != int64(len(content)) {
		t.Fatalf("a range across two parts: %+v, %v", info, err)
	}
	got, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil || !bytes.Equal(got, content[objstore.MinPart-5:objstore.MinPart+5]) {
		t.Errorf("a range across two parts gives %d other bytes, %v", len(got), err)
	}
}

// uploadOne: an object of one part, which is the last, and may be small. Put
// again it may be shorter.
func uploadOne(t *testing.T, s objstore.Store) {
	u := mustBegin(t, s, "a/b")
	mustPart(t, u, 1, 0, random(9000, 1))
	mustPart(t, u, 1, 0, []byte("short"))
	mustComplete(t, u)
	mustHold(t, s, "a/b", []byte("short"))
}

func uploadExists(t *testing.T, s objstore.Store) {
	for key, before := range map[string]bool{"a": true, "b": false} {
		there := random(5000, 1)
		if before {
			mustPut(t, s, key, there)
		}
		u := mustBegin(t, s, key)
		mustPart(t, u, 1, 0, random(5000, 2)) // of the same size
		if !before {
			mustPut(t, s, key, there)
		}
		mustBe(t, "complete over an object", u.Complete(t.Context()), objstore.ErrExists)
		mustHold(t, s, key, there)
		// The upload was given up.
		mustBe(t, "complete what was given up", u.Complete(t.Context()), objstore.ErrUploadLost)
		mustBe(t, "a part of what was given up", u.Part(t.Context(), 1, 0, objstore.Bytes(there)), objstore.ErrUploadLost)
		mustAbort(t, u)
		mustHold(t, s, key, there)
	}
	// An upload does not stand in the way of a put.
	u := mustBegin(t, s, "c")
	mustPart(t, u, 1, 0, []byte("1"))
	mustPut(t, s, "c", []byte("2"))
	mustAbort(t, u)
	mustHold(t, s, "c", []byte("2"))
}

func uploadsRace(t *testing.T, s objstore.Store) {
	const writers = 6
	var (
		wg     sync.WaitGroup
		errs   [writers]error
		bodies [writers][]byte
	)
	for i := range writers {
		bodies[i] = random(50_000+i, uint64(i))
		u := mustBegin(t, s, "race/key")
		mustPart(t, u, 1, 0, bodies[i])
		wg.Go(func() { errs[i] = u.Complete(t.Context()) })
	}
	wg.Wait()
	got, _ := mustGet(t, s, "race/key")
	winners := 0
	for i, err := range errs {
		switch {
		case err == nil:
			winners++
			if !bytes.Equal(got, bodies[i]) {
				t.Errorf("writer %d was told that its object is stored, but another one is", i)
			}
		case !errors.Is(err, objstore.ErrExists):
			t.Errorf("writer %d: %v", i, err)
		}
	}
	if winners != 1 {
		t.Errorf("%d writers were told that their object is stored, want 1", winners)
	}
}

func uploadAborted(t *testing.T, s objstore.Store) {
	u := mustBegin(t, s, "a")
	mustPart(t, u, 1, 0, []byte("1"))
	for range 2 {
		mustAbort(t, u)
	}
	mustNotBe(t, s, "a")
	mustBe(t, "a part of what was aborted", u.Part(t.Context(), 1, 0, objstore.Bytes([]byte("2"))), objstore.ErrUploadLost)
	mustBe(t, "complete what was aborted", u.Complete(t.Context()), objstore.ErrUploadLost)
	mustNotBe(t, s, "a")
	mustAbort(t, mustBegin(t, s, "empty"))
	mustNotBe(t, s, "empty")
	// Of two uploads of one key it is this one that was meant.
	first, second := mustBegin(t, s, "b"), mustBegin(t, s, "b")
	mustPart(t, first, 1, 0, []byte("first"))
	mustPart(t, second, 1, 0, []byte("second"))
	mustAbort(t, first)
	mustComplete(t, second)
	mustHold(t, s, "b", []byte("second"))
}

// uploadWrong: parts that cannot be, and parts that make no object. The upload
// survives both.
func uploadWrong(t *testing.T, s objstore.Store) {
	u := mustBegin(t, s, "a")
	one := []byte("1")
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s is no error", what)
		} else if errors.Is(err, objstore.ErrUploadLost) || errors.Is(err, objstore.ErrExists) {
			t.Errorf("%s: %v", what, err)
		}
		mustNotBe(t, s, "a")
	}
	refused("no part", u.Complete(t.Context()))
	refused("part 0", u.Part(t.Context(), 0, 0, objstore.Bytes(one)))
	refused("part 10001", u.Part(t.Context(), objstore.MaxParts+1, 0, objstore.Bytes(one)))
	refused("an empty part", u.Part(t.Context(), 1, 0, objstore.Bytes(nil)))
	refused("a part before the beginning", u.Part(t.Context(), 1, -1, objstore.Bytes(one)))
	refused("a part with a wrong checksum", u.Part(t.Context(), 1, 0, liar{objstore.Bytes(one)}))
	refused("no part that was stored", u.Complete(t.Context()))
	mustPart(t, u, 1, 0, one)
	refused("another part 1, with a wrong checksum", u.Part(t.Context(), 1, 0, liar{objstore.Bytes([]byte("2"))}))
	refused("a part that failed when it was put again", u.Complete(t.Context()))

	large := random(objstore.MinPart, 3)
	mustPart(t, u, 2, objstore.MinPart, one)
	refused("part 1 missing", u.Complete(t.Context()))
	mustPart(t, u, 1, 0, large[1:])
	refused("a small part in the middle", u.Complete(t.Context()))
	mustPart(t, u, 2, objstore.MinPart+1, one)
	mustPart(t, u, 1, 0, large)
	refused("a hole between parts", u.Complete(t.Context()))
	err := u.Part(t.Context(), 2, objstore.MinPart-1, objstore.Bytes(one))
	if err == nil { // not every store looks at the others before
		err = u.Complete(t.Context())
	}
	refused("parts that overlap", err)
	mustPart(t, u, 2, objstore.MinPart, one)
	mustComplete(t, u)
	mustHold(t, s, "a", append(large, one...))
}

// uploadsLeft: what dead processes left is given up by prefix and age. A store
// whose uploads carry no keys says that it gave up none, and leaves them alone.
func uploadsLeft(t *testing.T, s objstore.Store) {
	ours, other := mustBegin(t, s, "basebackups_005/a"), mustBegin(t, s, "wal_005/a")
	mustPart(t, ours, 1, 0, []byte("1"))
	mustPart(t, other, 1, 0, []byte("2"))
	sweep := func(prefix string, before time.Time) int {
		t.Helper()
		n, err := s.AbortUploads(t.Context(), prefix, before)
		if err != nil {
			t.Fatalf("abort uploads: %v", err)
		}
		return n
	}
	if n := sweep("basebackups_005/", time.Now().Add(-time.Hour)); n != 0 {
		t.Errorf("%d uploads were given up that are younger", n)
	}
	if n := sweep("nothing/", time.Now().Add(time.Hour)); n != 0 {
		t.Errorf("%d uploads were given up that have other keys", n)
	}
	n := sweep("basebackups_005/", time.Now().Add(time.Hour))
	err := ours.Complete(t.Context())
	switch {
	case n == 0 && err == nil:
		mustHold(t, s, "basebackups_005/a", []byte("1"))
	case n == 1:
		mustBe(t, "complete what was swept", err, objstore.ErrUploadLost)
		mustNotBe(t, s, "basebackups_005/a")
		mustBe(t, "a part of what was swept", ours.Part(t.Context(), 1, 0, objstore.Bytes([]byte("1"))), objstore.ErrUploadLost)
		mustAbort(t, ours)
	default:
		t.Errorf("%d uploads were given up, want the one, and %v", n, err)
	}
	mustComplete(t, other)
	mustHold(t, s, "wal_005/a", []byte("2"))
	if n := sweep("", time.Now().Add(time.Hour)); n != 0 {
		t.Errorf("%d uploads were given up, and there was none", n)
	}
}
