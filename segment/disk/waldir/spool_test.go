package waldir_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/pierrec/lz4/v4"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/disk/waldir"
	"github.com/walferry/walferry/segment/spool"
	"github.com/walferry/walferry/segment/waltest"
)

func suffix(m waldir.Method) string { return []string{"", ".gz", ".lz4"}[m] }

// listed returns the names in a directory of the host.
func listed(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// Everything that a receiver does with a spool, on a real disk, by every
// method and level: names, content, modes, and that nothing else is there.
func TestSpool(t *testing.T) {
	log := twoSegments()
	for _, o := range []waldir.Options{
		{}, {NoSync: true}, {Method: waldir.Gzip}, {Method: waldir.Gzip, Level: 1}, {Method: waldir.Gzip, Level: 9},
		{Method: waldir.Gzip, NoSync: true}, {Method: waldir.LZ4}, {Method: waldir.LZ4, Level: 1}, {Method: waldir.LZ4, Level: 3}, {Method: waldir.LZ4, Level: 12},
	} {
		t.Run(fmt.Sprintf("%d-%d-%v", o.Method, o.Level, o.NoSync), func(t *testing.T) {
			dir := t.TempDir()
			s, err := spool.Open(waldir.New(disk.OS{}, dir, o), dir, spool.Options{GroupAccess: true})
			check(t, err)
			check(t, s.Bind(cluster))
			if got := listed(t, dir); len(got) != 0 {
				t.Errorf("a new directory has %q", got)
			}
			check(t, s.PutHistory(2, history2))
			g, err := s.Begin(first)
			check(t, err)
			var reader sync.WaitGroup
			reader.Go(func() { // as the uploader does
				b, err := io.ReadAll(g.Follow(t.Context()))
				if err != nil || !bytes.Equal(b, log.Bytes(base, g.End())) {
					t.Errorf("%d bytes were followed, %v", len(b), err)
				}
			})
			for at := base; at < g.End(); at += 8192 * 4 {
				check(t, g.WriteAt(log.Bytes(at, at+8192*4), at))
				g.Advance(at + 8192*4)
				if at%7 == 0 {
					if _, err := g.Sync(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got, want := listed(t, dir), []string{first.String() + suffix(o.Method) + ".partial", "00000002.history"}; !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
			check(t, g.Seal())
			reader.Wait()
			h, err := s.Begin(second)
			check(t, err)
			check(t, h.WriteAt(log.Bytes(second.Start(size), second.Start(size)+50000), second.Start(size)))
			h.Advance(second.Start(size) + 50000)
			check(t, h.Finish(second.Start(size)+40000))
			check(t, s.Drop(g))
			check(t, s.Close())
			want := []string{first.String() + suffix(o.Method), second.String() + suffix(o.Method) + ".partial", "00000002.history"}
			if got := listed(t, dir); !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
			for _, file := range want {
				fi, err := os.Stat(filepath.Join(dir, file))
				check(t, err)
				if fi.Mode().Perm() != 0o640 {
					t.Errorf("%s has mode %v", file, fi.Mode())
				}
			}
			readable(t, filepath.Join(dir, want[0]), o.Method, log.Bytes(base, base+segment.LSN(size)))

			s, err = spool.Open(waldir.New(disk.OS{}, dir, o), dir, spool.Options{})
			check(t, err)
			defer func() { check(t, s.Close()) }()
			all := s.Segments()
			if len(all) != 2 || !all[0].Sealed() || all[1].Name() != second {
				t.Fatalf("%d segments", len(all))
			}
			// A record that began in the first segment goes on in the second.
			if start, end := all[1].Vouched(); start != second.Start(size) || end < start+20000 || end > start+50000 {
				t.Errorf("vouched for from %s to %s", start, end)
			}
		})
	}
}

// readable checks that others read what was written.
func readable(t *testing.T, path string, m waldir.Method, want []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	var r io.Reader = bytes.NewReader(b)
	tool := ""
	switch m {
	case waldir.Gzip:
		tool = "gzip"
		z, err := stdgzip.NewReader(r)
		check(t, err)
		r = z
	case waldir.LZ4:
		tool = "lz4"
		r = lz4.NewReader(r)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, %v", path, len(got), err)
	}
	if tool == "" {
		return
	}
	if _, err := exec.LookPath(tool); err != nil {
		t.Logf("SKIPPED: %s -t: %v", tool, err)
		return
	}
	if out, err := exec.Command(tool, "-t", path).CombinedOutput(); err != nil {
		t.Errorf("%s -t: %v: %s", tool, err, out)
	}
}

// What is synced can be decoded from the file, without the file's end.
func TestSyncedBytesAreInTheFile(t *testing.T) {
	log := twoSegments()
	for _, m := range []waldir.Method{waldir.Gzip, waldir.LZ4} {
		dir := t.TempDir()
		s, err := spool.Open(waldir.New(disk.OS{}, dir, waldir.Options{Method: m}), dir, spool.Options{})
		check(t, err)
		check(t, s.Bind(cluster))
		g, err := s.Begin(first)
		check(t, err)
		for at := base; at < base+300_000; {
			check(t, g.WriteAt(log.Bytes(at, at+5000), at)) // with zeros ahead
			g.Advance(at + 4000)
			to, err := g.Sync()
			check(t, err)
			b, err := os.ReadFile(filepath.Join(dir, first.String()+suffix(m)+".partial"))
			check(t, err)
			var r io.Reader = lz4.NewReader(bytes.NewReader(b))
			if m == waldir.Gzip {
				r, err = stdgzip.NewReader(bytes.NewReader(b))
				check(t, err)
			}
			got, _ := io.ReadAll(r)
			if !bytes.Equal(got, log.Bytes(base, to)) {
				t.Fatalf("synced up to %s, and the file has %d bytes", to, len(got))
			}
			at = to
		}
		check(t, s.Close())
	}
}

// Bytes behind what is vouched for may turn out to be others. They are then
// others in the file, too.
func TestRemainsThatChange(t *testing.T) {
	log := twoSegments()
	b := bytes.Clone(log.Bytes(base, base+200_000))
	for i := 120_000; i < len(b); i++ {
		b[i] ^= 0x55
	}
	for _, m := range []waldir.Method{waldir.Gzip, waldir.LZ4} {
		fsys := crashfs.New(1)
		fill(t, fsys, map[string][]byte{name(1, 47).String(): wal(1, 47), first.String() + suffix(m) + ".partial": flushed(m, b)})
		s, err := spool.Open(waldir.New(fsys, dir, waldir.Options{Method: m}), dir, spool.Options{})
		check(t, err)
		g, err := s.Begin(first)
		check(t, err)
		_, vouched := g.Vouched()
		if vouched < base+100_000 || vouched > base+120_000 {
			t.Fatalf("vouched for up to %s", vouched)
		}
		check(t, g.WriteAt(log.Bytes(base, base+150_000), base))
		g.Advance(base + 150_000)
		if _, err := g.Sync(); err != nil {
			t.Fatal(err)
		}
		// The rest of the remains is still there, as in a plain file.
		have := make([]byte, 200_000)
		check(t, s.Close())
		s, err = spool.Open(waldir.New(fsys, dir, waldir.Options{Method: m}), dir, spool.Options{})
		check(t, err)
		g = s.Segments()[1]
		check(t, g.ReadAt(have, base))
		if !bytes.Equal(have[:150_000], log.Bytes(base, base+150_000)) || !bytes.Equal(have[150_000:], b[150_000:]) {
			t.Error("the partial has other bytes than were written and remained")
		}
		g, err = s.Begin(first)
		check(t, err)
		check(t, g.WriteAt(log.Bytes(base, g.End()), base))
		g.Advance(g.End())
		check(t, g.Seal())
		check(t, s.Close())
		s, err = spool.Open(waldir.New(fsys, dir, waldir.Options{}), dir, spool.Options{})
		check(t, err)
		have = make([]byte, size)
		check(t, s.Segments()[1].ReadAt(have, base))
		if !bytes.Equal(have, log.Bytes(base, base+segment.LSN(size))) {
			t.Error("the segment has other bytes")
		}
		check(t, s.Close())
	}
}

// The lock is on the directory, and one of two runs gets it.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	s, err := spool.Open(waldir.New(disk.OS{}, dir, waldir.Options{}), dir, spool.Options{})
	check(t, err)
	if _, err := spool.Open(waldir.New(disk.OS{}, dir, waldir.Options{}), dir, spool.Options{}); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("a second run: %v", err)
	}
	check(t, s.Close())
	s, err = spool.Open(waldir.New(disk.OS{}, dir, waldir.Options{}), dir, spool.Options{})
	check(t, err)
	check(t, s.Close())
	if got := listed(t, dir); len(got) != 0 {
		t.Errorf("the directory has %q", got)
	}
}

// unlockable is a file system without locks for directories.
type unlockable struct{ disk.FS }

func (unlockable) Lock(path string) (io.Closer, error) {
	return nil, &fs.PathError{Op: "lock", Path: path, Err: syscall.EBADF}
}

func TestNoLockThere(t *testing.T) {
	fsys := crashfs.New(1)
	fill(t, fsys, nil)
	log, said := text()
	s, err := spool.Open(waldir.New(unlockable{fsys}, dir, waldir.Options{Log: log}), dir, spool.Options{})
	check(t, err)
	check(t, s.Close())
	if !strings.Contains(said.String(), "cannot be locked") {
		t.Errorf("said %q", said)
	}
}

// A directory that is not there is not made.
func TestNoDirectory(t *testing.T) {
	fsys := crashfs.New(1)
	if _, err := spool.Open(waldir.New(fsys, dir, waldir.Options{}), dir, spool.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := fsys.Stat("/wal"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its parent: %v", err)
	}
}

// The plain bytes of a large segment are in no file that has a name, and not
// in memory.
func TestLargeSegment(t *testing.T) {
	const large = segment.Size(128 << 20)
	at := segment.LSN(3 * large)
	log := waltest.New(sysid, large, at)
	log.Fill(at + 300_000)
	log.Switch()
	dir := t.TempDir()
	fsys := waldir.New(disk.OS{}, dir, waldir.Options{Method: waldir.LZ4})
	s, err := spool.Open(fsys, dir, spool.Options{})
	check(t, err)
	check(t, s.Bind(spool.Identity{SystemIdentifier: sysid, SegmentSize: large}))
	g, err := s.Begin(large.Name(1, at))
	check(t, err)
	for from := at; from < g.End(); from += 1 << 20 {
		check(t, g.WriteAt(log.Bytes(from, from+1<<20), from))
		g.Advance(from + 1<<20)
	}
	file := g.Name().String() + ".lz4"
	if got := listed(t, dir); !slices.Equal(got, []string{file + ".partial"}) {
		t.Errorf("the directory has %q", got)
	}
	have := make([]byte, 300_000)
	check(t, g.ReadAt(have, at))
	check(t, g.Seal())
	check(t, s.Close())
	s, err = spool.Open(waldir.New(disk.OS{}, dir, waldir.Options{}), dir, spool.Options{})
	check(t, err)
	again := make([]byte, 300_000)
	check(t, s.Segments()[0].ReadAt(again, at))
	if !bytes.Equal(have, log.Bytes(at, at+300_000)) || !bytes.Equal(again, have) {
		t.Error("other bytes are read than were written")
	}
	check(t, s.Close())
	if got := listed(t, dir); !slices.Equal(got, []string{file}) {
		t.Errorf("the directory has %q", got)
	}
}

// Many reads of a compressed segment decode it once; none of its files stays
// open.
func TestReadsAreNotDecodedAgain(t *testing.T) {
	fsys := crashfs.New(1)
	fill(t, fsys, map[string][]byte{name(1, 47).String() + ".gz": gz(wal(1, 47)), name(1, 48).String() + ".lz4": lz(wal(1, 48))})
	s, err := spool.Open(waldir.New(fsys, dir, waldir.Options{}), dir, spool.Options{})
	check(t, err)
	page := make([]byte, segment.PageSize)
	for _, g := range s.Segments() {
		content := wal(1, int(g.Start()/segment.LSN(size)))
		check(t, g.ReadAt(page, g.Start()))
		before := fsys.Ops()
		for at := g.Start(); at < g.End(); at += segment.PageSize {
			check(t, g.ReadAt(page, at))
			if !bytes.Equal(page, content[at-g.Start():][:segment.PageSize]) {
				t.Fatalf("%s has other bytes at %s", g.Name(), at)
			}
		}
		if n := fsys.Ops() - before; n > 40 {
			t.Errorf("%d operations for the pages of %s", n, g.Name())
		}
	}
	if n := fsys.OpenFiles(); n != 0 {
		t.Errorf("%d files are open", n)
	}
	check(t, s.Close())
}

// The lz4 library that PostgreSQL uses links its blocks: they refer to those
// before them.
func TestLinkedBlocks(t *testing.T) {
	tool, err := exec.LookPath("lz4")
	if err != nil {
		t.Skipf("SKIPPED: no lz4 that writes them: %v", err)
	}
	linked := func(b []byte) []byte {
		c := exec.Command(tool, "-c", "-BD", "-B4", "--no-frame-crc")
		c.Stdin = bytes.NewReader(b)
		out, err := c.Output()
		check(t, err)
		return out
	}
	a, b := wal(1, 48), wal(1, 49)
	for i := range b[40:] { // repeated, so that there is something to refer to
		b[40+i] = b[40+i%5000]
	}
	cut := linked(b)
	fsys := crashfs.New(1)
	fill(t, fsys, map[string][]byte{name(1, 48).String() + ".lz4": linked(a), name(1, 49).String() + ".lz4.partial": cut[:len(cut)-10]})
	d := waldir.New(fsys, dir, waldir.Options{Method: waldir.LZ4})
	s, err := spool.Open(d, dir, spool.Options{})
	check(t, err)
	have := make([]byte, size)
	check(t, s.Segments()[0].ReadAt(have, name(1, 48).Start(size)))
	if !bytes.Equal(have, a) {
		t.Error("the segment has other bytes")
	}
	part := make([]byte, 900_000)
	check(t, s.Segments()[1].ReadAt(part, name(1, 49).Start(size)))
	if !bytes.Equal(part, b[:900_000]) {
		t.Error("the partial has other bytes")
	}
	check(t, s.Close())
}

// Sync runs beside the writer and readers, also while bytes behind it change
// that the file has already.
func TestSyncBesideWrites(t *testing.T) {
	log := twoSegments()
	remains := bytes.Clone(log.Bytes(base, base+900_000))
	for i := 50_000; i < len(remains); i += 3000 {
		remains[i] ^= 0x55
	}
	for _, m := range []waldir.Method{waldir.Gzip, waldir.LZ4} {
		fsys := crashfs.New(1)
		fill(t, fsys, map[string][]byte{name(1, 47).String(): wal(1, 47), first.String() + suffix(m) + ".partial": flushed(m, remains)})
		s, err := spool.Open(waldir.New(fsys, dir, waldir.Options{Method: m, Level: 1}), dir, spool.Options{})
		check(t, err)
		g, err := s.Begin(first)
		check(t, err)
		var others sync.WaitGroup
		others.Go(func() {
			for to := base; to < g.End(); {
				var err error
				if to, err = g.Sync(); err != nil {
					t.Error(err)
					return
				}
			}
		})
		others.Go(func() {
			b, err := io.ReadAll(g.Follow(t.Context()))
			if err != nil || !bytes.Equal(b, log.Bytes(base, g.End())) {
				t.Errorf("%d bytes were followed, %v", len(b), err)
			}
		})
		for at := base; at < g.End(); at += 4096 {
			check(t, g.WriteAt(log.Bytes(at, at+4096), at))
			g.Advance(at + 4096)
		}
		others.Wait()
		check(t, g.Seal())
		check(t, s.Close())
		fsys.Crash()
		s, err = spool.Open(waldir.New(fsys, dir, waldir.Options{}), dir, spool.Options{})
		check(t, err)
		have := make([]byte, size)
		check(t, s.Segments()[1].ReadAt(have, base))
		if !bytes.Equal(have, log.Bytes(base, base+segment.LSN(size))) {
			t.Error("the segment has other bytes")
		}
		check(t, s.Close())
	}
}

// Who reads a partial of an earlier run, as the uploader does, may go on while
// the receiver begins it again, which writes what it has once more.
func TestReadsBesideBegin(t *testing.T) {
	log := twoSegments()
	for _, m := range []waldir.Method{waldir.Gzip, waldir.LZ4} {
		dir := t.TempDir()
		open := func() *spool.Spool {
			s, err := spool.Open(waldir.New(disk.OS{}, dir, waldir.Options{Method: m}), dir, spool.Options{Keep: true})
			check(t, err)
			return s
		}
		s := open()
		check(t, s.Bind(cluster))
		g, err := s.Begin(first)
		check(t, err)
		end := first.Start(size) + 500_000
		check(t, g.WriteAt(log.Bytes(g.Start(), end), g.Start()))
		g.Advance(end)
		_, err = g.Sync()
		check(t, err)
		check(t, s.Close())

		s = open()
		held := s.Segments()[0]
		_, vouched := held.Vouched()
		var reading sync.WaitGroup
		reading.Go(func() {
			got := make([]byte, vouched-held.Start())
			for range 20 {
				if err := held.ReadAt(got, held.Start()); err != nil || !bytes.Equal(got, log.Bytes(held.Start(), vouched)) {
					t.Errorf("method %d: read %v", m, err)
				}
			}
		})
		_, err = s.Begin(first)
		check(t, err)
		reading.Wait()
		check(t, s.Close())
	}
}
