package dir

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
)

var _ objstore.Lender = (*codec.Frame)(nil)

// lent is a body that shows pieces, and fails where one is empty.
type lent struct {
	objstore.Body
	pieces []string
	copied bool
}

var errLent = errors.New("away")

func (l *lent) ReadAt(p []byte, at int64) (int, error) {
	l.copied = true
	return l.Body.ReadAt(p, at)
}

func (l *lent) Lend(show func([]byte) error) error {
	for _, p := range l.pieces {
		if p == "" {
			return errLent
		}
		if err := show([]byte(p)); err != nil {
			return err
		}
	}
	return nil
}

// TestLentBody: what a body shows is stored uncopied, as long as it is what the
// body says it is.
func TestLentBody(t *testing.T) {
	s := open(t, t.TempDir())
	const content = "some bytes of WAL"
	body := func(pieces ...string) *lent {
		return &lent{Body: objstore.Bytes([]byte(content)), pieces: pieces}
	}
	for name, b := range map[string]*lent{
		"too few": body("some bytes"), "other": body("some bytes of wal"), "twice": body(content, content), "none": body(),
	} {
		if err := s.Put(t.Context(), "wal_005/a", b); err == nil || !strings.Contains(err.Error(), "as it says") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Put(t.Context(), "wal_005/a", body("some", "")); !errors.Is(err, errLent) {
		t.Errorf("a body that fails: %v", err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Put(over, "wal_005/a", body(content)); !errors.Is(err, context.Canceled) {
		t.Errorf("when it is over: %v", err)
	}
	sound := body("some ", "bytes of", " WAL")
	if err := s.PutIfAbsent(t.Context(), "wal_005/a", sound); err != nil || sound.copied {
		t.Errorf("copied %v, %v", sound.copied, err)
	}
	r, _, err := s.Get(t.Context(), "wal_005/a")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || string(got) != content {
		t.Errorf("stored %q, %v", got, err)
	}
}
