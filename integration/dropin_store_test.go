package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/walferry/walferry/segment"
)

// dropInStore is a scene with an archive, and how a person names that.
type dropInStore struct {
	*scene
	env   []string // of pg_receivewal
	url   string
	puts  func() int // segments that were sent to the archive; nil: nobody counts
	fetch func(args ...string) *process
}

// One more flag makes it ship: the segments that are there, those that come,
// and the new bytes of the open one. The directory stays what it was.
func TestDropInStore(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, options{})
		dropInShips(t, dropInStore{scene: s, env: append(libpq(s.pg), s.env()...), url: s.store(),
			fetch: func(args ...string) *process { return s.fetch(append(args, "--store", s.store())...) }})
	})
	t.Run("S3", func(t *testing.T) {
		t.Parallel()
		s := newBucketScene(t, options{})
		s.credentials("default", s.user.AccessKey, s.user.SecretKey)
		// WAL-G's variables are no --store: they say nothing of this program.
		dropInShips(t, dropInStore{scene: s.scene, env: append(slices.Clone(s.vars), "PGDATABASE=postgres"), url: "s3://" + bucket + "/" + prefix,
			puts: func() int { return s.proxy.Counts()["PUT wal_005"] },
			fetch: func(args ...string) *process {
				p := s.ferry(nil, append([]string{"fetch"}, args...)...)
				p.wait()
				return p
			}})
	})
}

func dropInShips(t *testing.T, s dropInStore) {
	t.Helper()
	our := ours(t)
	dir := s.directory("wal")
	first := s.reserve()
	s.table()
	keep := func(args ...string) *process {
		return s.keepWith(s.env, our, dir, append([]string{"-S", "ferry", "-Z", "lz4"}, args...)...)
	}
	more := func(n int) (last segment.Name) {
		for range n {
			s.fill(200)
			last = s.switchWAL()
		}
		s.fill(20)
		return last
	}

	// Without a store nothing is archived.
	r := keep()
	last := more(4)
	s.awaitComplete(dir, last)
	r.interrupt()
	if len(s.sealed()) != 0 || len(s.tails(first)) != 0 {
		t.Fatal("something is in the archive without --store")
	}

	// With it what was there goes up, and what comes.
	r = keep("--store", s.url)
	s.awaitSealed(first, last)
	last = more(2)
	s.awaitSealed(first, last)
	s.awaitTail(last.Next(s.size))
	r.interrupt()
	s.checkArchive(first, last)
	s.checkDirectory(dir, first, last)
	s.fetchesOpen(last.Next(s.size))

	// A restart sends nothing again.
	before := whole(t, s.archive)
	sent := 0
	if s.puts != nil {
		sent = s.puts()
	}
	r = keep("--store", s.url)
	s.fill(20)
	open := last.Next(s.size)
	tails := len(s.tails(open))
	eventually(t, "another tail object", func() bool { s.fill(1); return len(s.tails(open)) > tails })
	if after := whole(t, s.archive); !slices.Equal(before, after) {
		t.Errorf("the restart has changed the archive from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if s.puts != nil && s.puts() != sent {
		t.Errorf("the restart sent %d segments again", s.puts()-sent)
	}

	// Killed, and started again by the variable alone.
	l := more(2)
	r.kill9()
	s.env = append(s.env, "WALFERRY_STORE="+s.url)
	r = keep()
	last = more(2)
	s.awaitSealed(first, last)
	s.awaitComplete(dir, l)
	r.stop()
	s.checkArchive(first, last)
	if partials := s.checkDirectory(dir, first, last); len(partials) != 1 {
		t.Errorf("the partials are %q", partials)
	}
}

// tails lists the tail objects of a segment.
func (s *scene) tails(n segment.Name) []string {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.archive, "wal_tail_005", n.String()))
	if err != nil {
		return nil // none was written yet
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func (s *scene) awaitTail(n segment.Name) {
	s.t.Helper()
	eventually(s.t, "a tail object of "+n.String(), func() bool { return len(s.tails(n)) > 0 })
}

// fetchesOpen wants "walferry fetch" to give the segment that is open.
func (s dropInStore) fetchesOpen(n segment.Name) {
	s.t.Helper()
	path := filepath.Join(s.directory("fetched"), n.String())
	s.fetch(n.String(), path).exits(0)
	got, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(s.pg.DataDir(), "pg_wal", n.String()))
	if err != nil {
		s.t.Fatal(err)
	}
	end := len(strings.TrimRight(string(got), "\x00"))
	if end == 0 || len(got) != len(want) || string(got[:end]) != string(want[:end]) {
		s.t.Errorf("%s was fetched with %d bytes, %d of them not zero, and they are not the server's", n, len(got), end)
	}
}
