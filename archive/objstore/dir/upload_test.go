package dir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive/objstore"
)

func begin(t *testing.T, s *Store, key string) *upload {
	t.Helper()
	u, err := s.BeginUpload(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return u.(*upload)
}

func part(t *testing.T, u objstore.Upload, number int, at int64, content string) {
	t.Helper()
	if err := u.Part(t.Context(), number, at, objstore.Bytes([]byte(content))); err != nil {
		t.Fatal(err)
	}
}

// TestPartsTakeTurns: one part is written at a time; one that waits can be given
// up, and put again.
func TestPartsTakeTurns(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		u := begin(t, open(t, root), "wal_005/a")
		u.turn <- struct{}{} // another part is being written
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- u.Part(ctx, 1, 0, objstore.Bytes([]byte("content"))) }()
		synctest.Wait()
		if len(done) > 0 {
			t.Fatalf("two parts are written at a time: %v", <-done)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Part = %v", err)
		}
		<-u.turn
		part(t, u, 1, 0, "content")
		if err := u.Complete(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestUploadLeftBehind: what a dead process leaves is no object, and is removed
// by a later writer when it is a day old.
func TestUploadLeftBehind(t *testing.T) {
	root := t.TempDir()
	u := begin(t, open(t, root), "wal_005/a")
	part(t, u, 1, 0, "content")
	s := open(t, root) // another process
	if got, err := list(t, s, objstore.ListOptions{}); err != nil || len(got) != 0 {
		t.Errorf("the store lists %q, %v", got, err)
	}
	put(t, s, "wal_005/b", "1")
	if got := temps(t, s); len(got) != 1 {
		t.Errorf("temporary files are %q: an upload that may be under way was removed", got)
	}
	if n, err := s.AbortUploads(t.Context(), "", time.Now().Add(time.Hour)); n != 0 || err != nil {
		t.Errorf("%d uploads were given up, %v", n, err)
	}
	then := time.Now().Add(-staleAfter - time.Minute)
	if err := os.Chtimes(u.temp, then, then); err != nil {
		t.Fatal(err)
	}
	put(t, open(t, root), "wal_005/c", "1")
	if got := temps(t, s); len(got) != 0 {
		t.Errorf("temporary files are left: %q", got)
	}
	// The process was not dead, but asleep.
	if err := u.Complete(t.Context()); !errors.Is(err, objstore.ErrUploadLost) {
		t.Errorf("complete what was swept: %v", err)
	}
	if err := u.Abort(t.Context()); err != nil {
		t.Error(err)
	}
	if got, err := list(t, s, objstore.ListOptions{}); err != nil || len(got) != 2 {
		t.Errorf("the store lists %q, %v", got, err)
	}
}

// TestUploadRootReplaced: the file system is unmounted in the middle of an
// upload, and comes back.
func TestUploadRootReplaced(t *testing.T) {
	root := filepath.Join(t.TempDir(), "mnt")
	s := open(t, root, Create)
	u := begin(t, s, "wal_005/a")
	part(t, u, 1, 0, "content")
	away := root + ".away"
	if err := errors.Join(os.Rename(root, away), os.Mkdir(root, 0o700)); err != nil {
		t.Fatal(err)
	}
	_, beginErr := s.BeginUpload(t.Context(), "wal_005/b")
	_, sweepErr := s.AbortUploads(t.Context(), "", time.Now())
	for what, err := range map[string]error{"begin": beginErr, "complete": u.Complete(t.Context()), "sweep": sweepErr} {
		if !errors.Is(err, objstore.ErrNoStore) || errors.Is(err, objstore.ErrUploadLost) {
			t.Errorf("%s: %v, want %q", what, err, objstore.ErrNoStore)
		}
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("the mount point has %v (%v)", entries, err)
	}
	if err := errors.Join(os.Remove(root), os.Rename(away, root)); err != nil {
		t.Fatal(err)
	}
	if err := u.Complete(t.Context()); err != nil {
		t.Errorf("after the root came back: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "wal_005/a")); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestUploadFailedPart: a part that failed half-way is missing, though its
// bytes, some of them new, are in the file.
func TestUploadFailedPart(t *testing.T) {
	s := open(t, t.TempDir())
	broken := errors.New("broken")
	large := objstore.Bytes(make([]byte, 900<<10))
	u := begin(t, s, "a")
	part(t, u, 1, 0, strings.Repeat("x", 900<<10))
	if err := u.Part(t.Context(), 1, 0, failing{large, broken}); !errors.Is(err, broken) {
		t.Errorf("a part whose body breaks: %v", err)
	}
	if err := u.Complete(t.Context()); err == nil || errors.Is(err, objstore.ErrUploadLost) {
		t.Errorf("complete without that part: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := u.Part(ctx, 1, 0, cancelling{large, cancel}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while it was written: %v", err)
	}
	part(t, u, 1, 0, "shorter")
	if err := u.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(s.file("a")); err != nil || string(b) != "shorter" {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if got := temps(t, s); len(got) != 0 {
		t.Errorf("temporary files are left: %q", got)
	}
}

// TestUploadSharedPlace: two calls never write the same bytes at one time.
func TestUploadSharedPlace(t *testing.T) {
	u := begin(t, open(t, t.TempDir()), "a")
	tried := map[string]error{}
	body := swapping{Body: objstore.Bytes(make([]byte, 100)), swap: func() {
		tried["being put"] = u.Part(t.Context(), 1, 0, objstore.Bytes([]byte("x")))
		tried["overlaps part 1"] = u.Part(t.Context(), 2, 99, objstore.Bytes([]byte("x")))
	}}
	if err := u.Part(t.Context(), 1, 0, body); err != nil {
		t.Fatal(err)
	}
	for want, err := range tried {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if len(tried) != 2 {
		t.Error("nothing was tried")
	}
	part(t, u, 2, 100, "beside it")
	if err := u.Abort(t.Context()); err != nil {
		t.Error(err)
	}
}
