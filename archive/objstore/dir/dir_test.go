package dir

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objstore.Store {
		s := open(t, t.TempDir())
		t.Cleanup(func() {
			if left := temps(t, s); len(left) != 0 {
				t.Errorf("temporary files were left: %v", left)
			}
		})
		return s
	})
}

func open(t *testing.T, path string, opts ...Option) *Store {
	t.Helper()
	s, err := Open(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func temps(t *testing.T, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.file(tempFolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func put(t *testing.T, s *Store, key, content string) {
	t.Helper()
	if err := s.PutIfAbsent(t.Context(), key, objstore.Bytes([]byte(content))); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, s *Store, opts objstore.ListOptions) ([]string, error) {
	t.Helper()
	var found []string
	for info, err := range s.List(t.Context(), opts) {
		if err != nil {
			return found, err
		}
		found = append(found, info.Key)
	}
	return found, nil
}

func TestOpen(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(base, "nowhere"), file, filepath.Join(file, "below")} {
		if _, err := Open(path); err == nil || (path != filepath.Join(file, "below") && !errors.Is(err, objstore.ErrNoStore)) {
			t.Errorf("open %s: %v, want %q", path, err, objstore.ErrNoStore)
		}
	}
	if _, err := Open(""); err == nil {
		t.Error("an empty path was opened")
	}
	made := filepath.Join(base, "a", "b")
	put(t, open(t, made, Create), "k", "v")
	if s := open(t, made); s.String() != "file://"+made {
		t.Errorf("the store is called %q", s)
	}
	t.Chdir(base)
	if s := open(t, "a/b"); s.String() != "file://"+made {
		t.Errorf("a relative path is called %q", s)
	}
}

// TestOpenWritesNothing: a reader may have no right to write.
func TestOpenWritesNothing(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	if _, _, err := s.Get(t.Context(), "wal_005/x"); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if _, err := list(t, s, objstore.ListOptions{}); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("reading left %v, %v", entries, err)
	}
}

// TestRootReplaced stands for an unmounted file system: there is a directory
// of the same name, and it is empty.
func TestRootReplaced(t *testing.T) {
	root := filepath.Join(t.TempDir(), "mnt")
	s := open(t, root, Create)
	put(t, s, "wal_005/a", "content")
	away := root + ".away"
	for _, state := range []struct {
		name   string
		change func() error
	}{
		{"empty mount point", func() error { return errors.Join(os.Rename(root, away), os.Mkdir(root, 0o700)) }},
		{"other store", func() error { return os.MkdirAll(filepath.Join(root, ownFolder), 0o700) }},
		{"nothing", func() error { return os.RemoveAll(root) }},
	} {
		if err := state.change(); err != nil {
			t.Fatal(err)
		}
		_, _, getErr := s.Get(t.Context(), "wal_005/a")
		_, _, rangeErr := s.GetRange(t.Context(), "wal_005/a", 0, 1)
		_, listErr := list(t, s, objstore.ListOptions{})
		for what, err := range map[string]error{
			"get": getErr, "range": rangeErr, "list": listErr,
			"put-if-absent": s.PutIfAbsent(t.Context(), "wal_005/b", objstore.Bytes(nil)),
			"put":           s.Put(t.Context(), "wal_005/b", objstore.Bytes(nil)),
			"delete":        s.Delete(t.Context(), "wal_005/a"),
		} {
			if !errors.Is(err, objstore.ErrNoStore) || errors.Is(err, objstore.ErrNotFound) {
				t.Errorf("%s, %s: %v, want %q", state.name, what, err, objstore.ErrNoStore)
			}
		}
	}
	if err := os.Rename(away, root); err != nil {
		t.Fatal(err)
	}
	if got, err := list(t, s, objstore.ListOptions{}); err != nil || len(got) != 1 {
		t.Errorf("after the root came back: %q, %v", got, err)
	}
}

// TestRootReplacedDuringAPut: the file system is unmounted, lazily, between two
// steps of a put: its mount point is not written to, and the error says what it
// is.
func TestRootReplacedDuringAPut(t *testing.T) {
	for _, first := range []bool{true, false} {
		root := filepath.Join(t.TempDir(), "mnt")
		s := open(t, root, Create)
		if !first {
			put(t, s, "wal_005/a", "content")
		}
		body := swapping{Body: objstore.Bytes([]byte("more")), swap: func() {
			if err := os.Rename(root, root+".away"); err == nil {
				if err := os.Mkdir(root, 0o700); err != nil {
					t.Error(err)
				}
			}
		}}
		err := s.PutIfAbsent(t.Context(), "wal_005/b", body)
		if !errors.Is(err, objstore.ErrNoStore) {
			t.Errorf("a put in whose middle the root was replaced: %v", err)
		}
		if entries, err := os.ReadDir(root); err != nil || len(entries) > 0 {
			t.Errorf("the mount point has %v (%v)", entries, err)
		}
	}
}

// swapping is a body in whose middle something happens.
type swapping struct {
	objstore.Body
	swap func()
}

func (b swapping) ReadAt(p []byte, off int64) (int, error) {
	b.swap()
	return b.Body.ReadAt(p, off)
}

// TestMountedAgain: the device number may change with a mount.
func TestMountedAgain(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "a", "1")
	if _, err := list(t, s, objstore.ListOptions{}); err != nil { // sees walferry_005
		t.Fatal(err)
	}
	s.id.dev++
	if _, err := list(t, s, objstore.ListOptions{}); err != nil {
		t.Errorf("the same directories under another device number: %v", err)
	}
	s.id.dev++
	s.id.own++
	if _, err := list(t, s, objstore.ListOptions{}); !errors.Is(err, objstore.ErrNoStore) {
		t.Errorf("another walferry_005 under another device number: %v", err)
	}
}

// TestDanglingLink: a folder that is a link to a file system that is not
// mounted holds nothing, which says nothing.
func TestDanglingLink(t *testing.T) {
	root, other := t.TempDir(), t.TempDir()
	wal := filepath.Join(other, "wal")
	if err := errors.Join(os.Mkdir(wal, 0o700), os.Symlink(wal, filepath.Join(root, "wal_005"))); err != nil {
		t.Fatal(err)
	}
	s := open(t, root)
	put(t, s, "wal_005/a", "1")
	if got, err := list(t, s, objstore.ListOptions{}); err != nil || len(got) != 1 || got[0] != "wal_005/a" {
		t.Errorf("a folder behind a link lists %q, %v", got, err)
	}
	if err := os.RemoveAll(wal); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Get(t.Context(), "wal_005/a")
	_, listErr := list(t, s, objstore.ListOptions{})
	_, prefixErr := list(t, s, objstore.ListOptions{Prefix: "wal_005/"})
	for _, err := range []error{err, listErr, prefixErr} {
		if !errors.Is(err, objstore.ErrNoStore) || errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("behind a dangling link: %v, want %q", err, objstore.ErrNoStore)
		}
	}
}

func TestStaleTemporaryFiles(t *testing.T) {
	root := t.TempDir()
	tmp := filepath.Join(root, filepath.FromSlash(tempFolder))
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	old, young := filepath.Join(tmp, "1-old"), filepath.Join(tmp, "1-young")
	for _, name := range []string{old, young} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	then := time.Now().Add(-staleAfter - time.Minute)
	if err := os.Chtimes(old, then, then); err != nil {
		t.Fatal(err)
	}
	s := open(t, root)
	put(t, s, "a", "1")
	if got := temps(t, s); len(got) != 1 || got[0] != "1-young" {
		t.Errorf("temporary files after a put: %q, want the young one alone", got)
	}
	for _, prefix := range []string{"", ownFolder, ownFolder + "/", tempFolder, tempFolder + "/", tempFolder + "/1"} {
		got, err := list(t, s, objstore.ListOptions{Prefix: prefix})
		if err != nil || strings.Contains(strings.Join(got, " "), "young") {
			t.Errorf("list %q gives %q, %v", prefix, got, err)
		}
	}
	if err := s.Put(t.Context(), tempFolder+"/x", objstore.Bytes(nil)); !errors.Is(err, objstore.ErrBadKey) {
		t.Errorf("put among the temporary files: %v", err)
	}
}

// TestFailedPutLeavesNothing: neither an object nor a temporary file.
func TestFailedPutLeavesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	broken := errors.New("broken")
	for name, body := range map[string]objstore.Body{
		"read fails":   failing{objstore.Bytes(make([]byte, 600<<10)), broken},
		"body shorter": failing{objstore.Bytes(make([]byte, 600<<10)), io.EOF},
	} {
		if err := s.PutIfAbsent(t.Context(), "wal_005/a", body); err == nil {
			t.Errorf("%s: stored", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Put(ctx, "wal_005/a", cancelling{objstore.Bytes(make([]byte, 600<<10)), cancel}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while it was written: %v", err)
	}
	if got, err := list(t, s, objstore.ListOptions{}); err != nil || len(got) != 0 {
		t.Errorf("the store holds %q, %v", got, err)
	}
	if got := temps(t, s); len(got) != 0 {
		t.Errorf("temporary files are left: %q", got)
	}
}

// failing fails to read its second half.
type failing struct {
	objstore.Body
	err error
}

func (f failing) ReadAt(p []byte, at int64) (int, error) {
	if at > f.Size()/3 {
		return 0, f.err
	}
	return f.Body.ReadAt(p, at)
}

// cancelling ends the context when it is read first.
type cancelling struct {
	objstore.Body
	cancel context.CancelFunc
}

func (c cancelling) ReadAt(p []byte, at int64) (int, error) {
	c.cancel()
	return c.Body.ReadAt(p, at)
}

func TestTruncatedWhileRead(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "a", "0123456789")
	for _, get := range []func() (io.ReadCloser, objstore.Info, error){
		func() (io.ReadCloser, objstore.Info, error) { return s.Get(t.Context(), "a") },
		func() (io.ReadCloser, objstore.Info, error) { return s.GetRange(t.Context(), "a", 2, 8) },
	} {
		if err := os.WriteFile(s.file("a"), []byte("0123456789"), 0o600); err != nil {
			t.Fatal(err)
		}
		r, _, err := get()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(s.file("a"), 5); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read %q, %v, want %q", b, err, io.ErrUnexpectedEOF)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatIsNoObject(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	put(t, s, "a/b", "1")
	if err := errors.Join(
		syscall.Mkfifo(filepath.Join(root, "pipe"), 0o600),
		os.Mkdir(filepath.Join(root, "empty"), 0o700),
		os.Mkdir(filepath.Join(root, "lost+found"), 0),
	); err != nil {
		t.Fatal(err)
	}
	if got, err := list(t, s, objstore.ListOptions{Delimiter: "/"}); err != nil || len(got) != 1 || got[0] != "a/" {
		t.Errorf("list gives %q, %v, want a/ alone", got, err)
	}
	if _, _, err := s.Get(t.Context(), "pipe"); err == nil || errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("get of a named pipe: %v", err)
	}
}

// TestDirectoryRemoved: somebody else may clean up empty directories.
func TestDirectoryRemoved(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "a/b/c", "1")
	for _, dir := range []string{"a", ownFolder} {
		if err := os.RemoveAll(s.file(dir)); err != nil {
			t.Fatal(err)
		}
		err := s.PutIfAbsent(t.Context(), "a/b/c", objstore.Bytes(nil))
		if dir == "a" && err != nil || dir == ownFolder && err != nil && !errors.Is(err, objstore.ErrExists) {
			t.Errorf("put after %s was removed: %v", dir, err)
		}
	}
}

func TestDenied(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root is denied nothing: this test needs an unprivileged user")
	}
	s := open(t, t.TempDir())
	put(t, s, "wal_005/a", "1")
	if err := os.Chmod(s.file("wal_005"), 0); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Chmod(s.file("wal_005"), 0o700); err != nil {
			t.Error(err)
		}
	}()
	_, _, err := s.Get(t.Context(), "wal_005/a")
	_, listErr := list(t, s, objstore.ListOptions{})
	for _, err := range []error{err, listErr, s.Put(t.Context(), "wal_005/b", objstore.Bytes(nil))} {
		if !errors.Is(err, objstore.ErrDenied) {
			t.Errorf("%v, want %q", err, objstore.ErrDenied)
		}
	}
}

func TestPermissions(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "wal_005/a", "1")
	for key, wrong := range map[string]fs.FileMode{"wal_005": 0o027, "wal_005/a": 0o137} {
		st, err := os.Stat(s.file(key))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm()&wrong != 0 {
			t.Errorf("%s has mode %v", key, st.Mode())
		}
	}
}
