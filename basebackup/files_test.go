package basebackup

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/walferry/walferry/archive/manifest"
)

// many are the manifest and the files of a cluster with so many files.
func many(n int) (spaces []space, all []file) {
	for i := range n {
		all = append(all, file{name: fmt.Sprintf("base/%d/%d", i/1000, i), content: fmt.Append(nil, i)})
	}
	return []space{{files: all}}, all
}

func seeing(t *testing.T, files []file) *seen {
	t.Helper()
	s := newSeen(t.TempDir())
	t.Cleanup(s.release)
	for _, f := range files {
		if err := s.add(f.name, int64(len(f.content)), crcOf(f.content)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// The order is the server's affair, and long lists go to a file.
func TestCompare(t *testing.T) {
	spaces, files := many(60_000)
	content := manifestOf(spaces, testStart, testStop)
	for _, shuffled := range []bool{false, true} {
		if shuffled {
			rnd := rand.New(rand.NewPCG(1, 2))
			rnd.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
		}
		s := seeing(t, files)
		m, err := s.compare(bytes.NewReader(content))
		if err != nil || m.Files != len(files) {
			t.Errorf("%d files, %v", m.Files, err)
		}
		if s.frame.Size() < keptInMemory {
			t.Errorf("the list has %d bytes: it is not long enough for this test", s.frame.Size())
		}
	}
	// The same with one file changed, wherever it stands.
	spaces, files = many(3)
	content = manifestOf(spaces, testStart, testStop)
	for i := range files {
		for what, change := range map[string]func([]file) []file{
			"missing":   func(f []file) []file { return append(f[:i:i], f[i+1:]...) },
			"twice":     func(f []file) []file { return append(f[:len(f):len(f)], f[i]) },
			"too many":  func(f []file) []file { return append(f[:len(f):len(f)], file{name: "x"}) },
			"otherwise": func(f []file) []file { f = append([]file(nil), f...); f[i].content = []byte("y"); return f },
			"larger":    func(f []file) []file { f = append([]file(nil), f...); f[i].content = make([]byte, 9); return f },
		} {
			for range 3 {
				changed := change(files)
				if _, err := seeing(t, changed).compare(bytes.NewReader(content)); !errors.Is(err, ErrMismatch) {
					t.Errorf("file %d %s: %v", i, what, err)
				}
				changed = append([]file(nil), changed...)
				rand.Shuffle(len(changed), func(i, j int) { changed[i], changed[j] = changed[j], changed[i] })
				if _, err := seeing(t, changed).compare(bytes.NewReader(content)); !errors.Is(err, ErrMismatch) {
					t.Errorf("file %d %s, in another order: %v", i, what, err)
				}
			}
		}
	}
	twice := reseal(func(b []byte) []byte {
		line := b[bytes.Index(b, []byte("{ \"Path\"")):]
		line = line[:bytes.IndexByte(line, '\n')]
		return bytes.Replace(b, line, append(append([]byte(nil), line...), line...), 1)
	})(content)
	if _, err := seeing(t, files).compare(bytes.NewReader(twice)); !errors.Is(err, ErrMismatch) && !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("a file that is listed twice: %v", err)
	}
}

// A directory that cannot be written to is an error, not a short list.
func TestSeenNoDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	s := newSeen(dir)
	defer s.release()
	name := strings.Repeat("n", 90)
	var err error
	for i := 0; err == nil && i < 40_000; i++ {
		err = s.add(name, 1, 1)
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
