package waldir_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/pierrec/lz4/v4"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/disk/waldir"
	"github.com/walferry/walferry/segment/spool"
	"github.com/walferry/walferry/segment/waltest"
)

// wal returns the segment of that timeline and number: real-looking WAL.
func wal(t segment.Timeline, number int) []byte {
	at := segment.LSN(number) * segment.LSN(size)
	log := waltest.New(sysid, size, at)
	log.Timeline = t
	log.Fill(at + segment.LSN(size))
	return log.Segment(at)
}

// name is its name.
func name(t segment.Timeline, number int) segment.Name {
	return size.Name(t, segment.LSN(number)*segment.LSN(size))
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	return written(w, &out, b)
}

func lz(b []byte) []byte {
	var out bytes.Buffer
	return written(lz4.NewWriter(&out), &out, b)
}

func written(w interface {
	Write([]byte) (int, error)
	Close() error
}, out *bytes.Buffer, b []byte) []byte {
	_, err := w.Write(b)
	if err := errors.Join(err, w.Close()); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// flushed is b compressed up to a sync point, as a killed process leaves it.
func flushed(m waldir.Method, b []byte) []byte {
	var out bytes.Buffer
	var w interface {
		Write([]byte) (int, error)
		Flush() error
	} = gzip.NewWriter(&out)
	if m == waldir.LZ4 {
		w = lz4.NewWriter(&out)
	}
	_, err := w.Write(b)
	if err := errors.Join(err, w.Flush()); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// padded is a plain partial of which n bytes were written.
func padded(b []byte, n int) []byte {
	out := make([]byte, size)
	copy(out, b[:n])
	return out
}

// lying ends in the length of a segment, and is none.
func lying(b []byte) []byte {
	out := bytes.Clone(b)
	binary.LittleEndian.PutUint32(out[len(out)-4:], uint32(size))
	return out
}

// fill makes the directory with these files.
func fill(t testing.TB, fsys disk.FS, files map[string][]byte) {
	t.Helper()
	check(t, fsys.Mkdir(dir, 0o700))
	for file, b := range files {
		f, err := fsys.Create(dir+"/"+file, 0o600)
		check(t, err)
		_, err = f.WriteAt(b, 0)
		check(t, errors.Join(err, f.Sync(), f.Close()))
	}
	for _, d := range []string{dir, "/wal", "/"} {
		check(t, fsys.SyncDir(d))
	}
}

// names returns the files in the directory.
func names(t testing.TB, fsys disk.FS) []string {
	t.Helper()
	entries, err := fsys.ReadDir(dir)
	check(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// text is what a logger was told.
func text() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

func TestScan(t *testing.T) {
	t.Parallel()
	a, b := wal(1, 48), wal(1, 49)
	sa, sb, sc := name(1, 48).String(), name(1, 49).String(), name(1, 50).String()
	complete := func(n segment.Name) waldir.Newest { return waldir.Newest{Found: true, Name: n, Complete: true} }
	partial := func(n segment.Name) waldir.Newest { return waldir.Newest{Found: true, Name: n} }
	torn := gz(b)
	torn[len(torn)-6] ^= 1
	foreign := bytes.Clone(a)
	foreign[8] ^= 0xFF // another address
	for what, c := range map[string]struct {
		files map[string][]byte
		want  waldir.Newest
		say   string // in the log
		err   string
	}{
		"an empty directory": {},
		"a plain segment":    {files: map[string][]byte{sa: a}, want: complete(name(1, 48))},
		"a gzip segment":     {files: map[string][]byte{sa: a, sb + ".gz": gz(b)}, want: complete(name(1, 49))},
		"an lz4 segment":     {files: map[string][]byte{sa: a, sb + ".lz4": lz(b)}, want: complete(name(1, 49))},
		"a partial above":    {files: map[string][]byte{sa: a, sb + ".partial": padded(b, 1000)}, want: partial(name(1, 49))},
		"a gzip partial":     {files: map[string][]byte{sa: a, sb + ".gz.partial": flushed(waldir.Gzip, b[:9000])}, want: partial(name(1, 49))},
		"an lz4 partial":     {files: map[string][]byte{sa: a, sb + ".lz4.partial": flushed(waldir.LZ4, b[:9000])}, want: partial(name(1, 49))},
		"an empty partial":   {files: map[string][]byte{sa: a, sb + ".partial": nil}, want: partial(name(1, 49))},
		"nothing else":       {files: map[string][]byte{sb + ".gz.partial": nil}, want: partial(name(1, 49))},
		"complete over partial": {files: map[string][]byte{sb + ".gz": gz(b), sb + ".partial": padded(b, 1000)},
			want: complete(name(1, 49))},
		"the higher timeline": {files: map[string][]byte{sa: a, name(2, 48).String() + ".partial": padded(wal(2, 48), 9000)},
			want: partial(name(2, 48))},
		"the higher segment": {files: map[string][]byte{sb: b, name(2, 48).String(): wal(2, 48)}, want: complete(name(1, 49))},
		"a short segment": {files: map[string][]byte{sa: a, sb: b[:5000]}, want: complete(name(1, 48)),
			say: `segment file \"` + sb + `\" has incorrect size 5000, skipping`},
		"a segment of another size": {files: map[string][]byte{sa: a, sb: append(bytes.Clone(b), b...)}, want: complete(name(1, 48)),
			say: `has incorrect size 2097152, skipping`},
		"a short gzip segment that lies": {files: map[string][]byte{sa: a, sb + ".gz": lying(gz(b[:70000]))}, want: complete(name(1, 48)),
			say: `compressed segment file \"` + sb + `.gz\" has incorrect uncompressed size 70000, skipping`},
		"a short lz4 segment": {files: map[string][]byte{sa: a, sb + ".lz4": lz(b[:70000])}, want: complete(name(1, 48)),
			say: `compressed segment file \"` + sb + `.lz4\" has incorrect uncompressed size 70000, skipping`},
		"an lz4 segment cut off": {files: map[string][]byte{sa: a, sb + ".lz4": flushed(waldir.LZ4, b[:70000])}, want: complete(name(1, 48)),
			say: `has incorrect uncompressed size 70000, skipping`},
		"a gzip segment that is not decodable": {files: map[string][]byte{sa: a, sb + ".gz": []byte("no gzip at all")}, want: complete(name(1, 48)),
			say: `has incorrect uncompressed size 0, skipping`},
		"a gzip segment with a wrong checksum": {files: map[string][]byte{sa: a, sb + ".gz": torn}, want: complete(name(1, 48)),
			say: `compressed segment file \"` + sb + `.gz\" is damaged, skipping`},
		"a gzip segment with garbage behind it": {files: map[string][]byte{sb + ".gz": append(gz(b), gz(b)[500:9000]...)},
			want: complete(name(1, 49))},
		"a gzip segment that is too short": {files: map[string][]byte{sa: a, sb + ".gz": {1, 2, 3}}, err: `could not seek in compressed file "` + dir + "/" + sb + `.gz": Invalid argument`},
		"an lz4 segment of garbage":        {files: map[string][]byte{sa: a, sb + ".lz4": []byte("not an lz4 frame")}, err: `could not decompress file "` + dir + "/" + sb + `.lz4": `},
		"a segment of zeros":               {files: map[string][]byte{sa: a, sb: make([]byte, size)}, err: "invalid WAL page"},
		"a gzip segment of zeros":          {files: map[string][]byte{sa: a, sb + ".gz": gz(make([]byte, size))}, err: "invalid WAL page"},
		"another segment's content":        {files: map[string][]byte{sb: foreign}, err: "invalid WAL page"},
		"segment zero":                     {files: map[string][]byte{name(1, 0).String(): wal(1, 0)}},
		"a plain one where the other form is bad": {files: map[string][]byte{sa + ".gz": gz(a[:500]), sa: a},
			want: complete(name(1, 48))},
		"other files": {files: map[string][]byte{
			sa: a, sc + ".zst": b, sc + ".gz.part": b, strings.ToLower("0000000100000000000000AA"): b, sc + "0": b,
			"00000007.history": history2, sc + ".00000028.backup": b, sc + ".tmp": b, "walferry.lock": nil,
		}, want: complete(name(1, 48))},
	} {
		fsys := crashfs.New(1)
		fill(t, fsys, c.files)
		check(t, fsys.Mkdir(dir+"/"+name(1, 99).String(), 0o700))
		log, said := text()
		got, err := waldir.New(fsys, dir, waldir.Options{Log: log}).Scan()
		switch {
		case c.err == "" && err != nil, c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want %q", what, err, c.err)
		case got != c.want:
			t.Errorf("%s: %+v, want %+v", what, got, c.want)
		case c.say == "" && said.Len() > 0 && c.err == "", !strings.Contains(said.String(), c.say):
			t.Errorf("%s: said %q, want %q", what, said, c.say)
		}
		if len(names(t, fsys)) != len(c.files)+1 {
			t.Errorf("%s: the directory has %q", what, names(t, fsys))
		}
	}
}

// What the spool sees, and which cluster's it is.
func TestView(t *testing.T) {
	t.Parallel()
	file := func(tl segment.Timeline, number int, suffix string) string { return name(tl, number).String() + suffix }
	files := map[string][]byte{
		file(1, 42, ""):            wal(1, 42), // behind it is a gap
		file(1, 44, ""):            wal(1, 44),
		file(1, 45, ".gz"):         gz(wal(1, 45)),
		file(1, 46, ".lz4"):        lz(wal(1, 46)),
		file(1, 47, ".gz"):         lying(gz(wal(1, 47)[:500])),
		file(1, 47, ".partial"):    padded(wal(1, 47), 9000), // where timeline 1 ended
		file(2, 47, ""):            wal(2, 47),
		file(2, 48, ".lz4"):        lz(wal(2, 48)),
		file(2, 49, ".gz.partial"): flushed(waldir.Gzip, wal(2, 49)[:40000]), // timeline 2
		file(3, 49, ""):            wal(3, 49),
		file(3, 50, ".partial"):    padded(wal(3, 50), 30000),
		file(3, 46, ".partial"):    padded(wal(3, 46), 30000), // neither the newest nor a timeline's end
		"00000002.history":         history2,
		"notes.txt":                nil,
	}
	all := []string{file(1, 44, ""), file(1, 45, ""), file(1, 46, ""), file(2, 47, ""), file(2, 48, ""), file(3, 49, "")}
	partials := []string{file(2, 49, ".partial"), file(3, 50, ".partial")}
	for what, c := range map[string]struct {
		o    waldir.Options
		want []string
	}{
		"what it goes on from": {want: append([]string{file(3, 49, "")}, partials...)},
		"all":                  {waldir.Options{All: true}, append(slices.Clone(all), partials...)},
		"all that are not hidden": {waldir.Options{All: true, Hide: func(n segment.Name) bool { return n.Timeline < 3 }},
			append([]string{file(3, 49, "")}, partials...)},
	} {
		fsys := crashfs.New(1)
		fill(t, fsys, files)
		d := waldir.New(fsys, dir, c.o)
		entries, err := d.ReadDir(dir)
		check(t, err)
		var got []string
		for _, e := range entries {
			if fi, err := e.Info(); err != nil || e.Name() != "00000002.history" && (fi.Size() != int64(size) || fi.Name() != e.Name()) {
				t.Errorf("%s: %s is %v, %v", what, e.Name(), fi, err)
			}
			got = append(got, e.Name())
		}
		want := append(slices.Clone(c.want), "00000002.history")
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n%q, want\n%q", what, got, want)
		}
		s, err := spool.Open(d, dir, spool.Options{})
		check(t, err)
		if w := d.Newest(); w != (waldir.Newest{Found: true, Name: name(3, 50)}) {
			t.Errorf("%s: the newest is %+v", what, w)
		}
		if id, ok := s.Identity(); !ok || id != cluster {
			t.Errorf("%s: the identity is %v, %v", what, id, ok)
		}
		for _, g := range s.Segments() {
			content := files[g.Name().String()]
			if g.Sealed() && content != nil {
				have := make([]byte, size)
				check(t, g.ReadAt(have, g.Start()))
				if !bytes.Equal(have, content) {
					t.Errorf("%s: %s has other bytes", what, g.Name())
				}
			}
			if _, end := g.Vouched(); !g.Sealed() && end < g.Start()+20000 {
				t.Errorf("%s: %s is vouched for up to %s", what, g.Name(), end)
			}
		}
		check(t, s.Close())
		if got := names(t, fsys); len(got) != len(files) {
			t.Errorf("%s: the directory has %q", what, got)
		}
	}
}

// A damaged file that was believed is an error when it is read.
func TestDamageThatTheViewDoesNotSee(t *testing.T) {
	fsys := crashfs.New(1)
	fill(t, fsys, map[string][]byte{
		name(1, 45).String() + ".gz":  lying(gz(wal(1, 45)[:70000])),
		name(1, 46).String() + ".lz4": lz(wal(1, 46)[:70000]),
		name(1, 47).String():          wal(1, 47),
		name(1, 48).String():          wal(1, 48),
	})
	s, err := spool.Open(waldir.New(fsys, dir, waldir.Options{All: true}), dir, spool.Options{})
	check(t, err)
	if len(s.Segments()) != 4 {
		t.Fatalf("%d segments", len(s.Segments()))
	}
	for _, g := range s.Segments() {
		err := g.ReadAt(make([]byte, size), g.Start())
		if want := g.Start() >= name(1, 47).Start(size); (err == nil) != want {
			t.Errorf("%s: %v", g.Name(), err)
		}
	}
	check(t, s.Close())
}

// Where the newest is an empty partial, an older file says whose WAL it is.
// Where nothing says it, nothing is shown, and the partial is taken up all the
// same.
func TestIdentityOfAnEmptyPartial(t *testing.T) {
	fsys := crashfs.New(1)
	empty := name(1, 49).String() + ".partial"
	fill(t, fsys, map[string][]byte{empty: make([]byte, size), name(1, 30).String() + ".gz": gz(wal(1, 30))})
	d := waldir.New(fsys, dir, waldir.Options{})
	s, err := spool.Open(d, dir, spool.Options{})
	check(t, err)
	if id, ok := s.Identity(); !ok || id != cluster {
		t.Errorf("the identity is %v, %v", id, ok)
	}
	err = s.Bind(spool.Identity{SystemIdentifier: sysid + 1, SegmentSize: size})
	if !errors.Is(err, segment.ErrForeignCluster) {
		t.Errorf("another cluster: %v", err)
	}
	check(t, s.Close())

	fsys = crashfs.New(1)
	fill(t, fsys, map[string][]byte{empty: make([]byte, size)})
	d = waldir.New(fsys, dir, waldir.Options{Method: waldir.Gzip})
	s, err = spool.Open(d, dir, spool.Options{})
	check(t, err)
	if _, ok := s.Identity(); ok || len(s.Segments()) != 0 {
		t.Error("an empty partial says whose it is")
	}
	check(t, s.Bind(cluster))
	g, err := s.Begin(name(1, 49))
	check(t, err)
	check(t, g.WriteAt(wal(1, 49), g.Start()))
	g.Advance(g.End())
	check(t, g.Seal())
	check(t, s.Close())
	if got := names(t, fsys); !slices.Equal(got, []string{name(1, 49).String() + ".gz"}) {
		t.Errorf("the directory has %q", got)
	}
}

// Partials that another file makes needless go; those with other bytes stay.
func TestNeedlessPartials(t *testing.T) {
	a, b := wal(1, 48), wal(1, 49)
	sa, sb, sc := name(1, 48).String(), name(1, 49).String(), name(1, 50).String()
	other := bytes.Clone(a)
	other[3000] ^= 1
	for what, c := range map[string]struct {
		files map[string][]byte
		want  []string
	}{
		"of a complete segment":  {map[string][]byte{sa + ".gz": gz(a), sa + ".partial": padded(a, 20000)}, []string{sa + ".gz"}},
		"in every form":          {map[string][]byte{sa: a, sa + ".gz.partial": flushed(waldir.Gzip, a[:5000]), sa + ".lz4.partial": flushed(waldir.LZ4, a[:7000])}, []string{sa}},
		"with other bytes":       {map[string][]byte{sa + ".gz": gz(a), sa + ".partial": padded(other, 20000)}, []string{sa + ".gz", sa + ".partial"}},
		"of a segment with more": {map[string][]byte{sa: a, sb + ".partial": padded(b, 20000), sb + ".lz4.partial": flushed(waldir.LZ4, b[:30000])}, []string{sa, sb + ".lz4.partial"}},
		"of a damaged segment":   {map[string][]byte{sa: a, sb + ".gz": gz(b[:5000]), sb + ".partial": padded(b, 20000)}, []string{sa, sb + ".gz", sb + ".partial"}},
		"of a crash": {map[string][]byte{sa: a, sc + ".gz.partial.tmp": b, sc + ".partial.tmp": b, "walferry.image.tmp": b, "walferry-frame-123.tmp": nil,
			sc + ".tmp": b, "notes.tmp": b}, []string{sa, sc + ".tmp", "notes.tmp"}},
	} {
		fsys := crashfs.New(1)
		fill(t, fsys, c.files)
		s, err := spool.Open(waldir.New(fsys, dir, waldir.Options{}), dir, spool.Options{})
		check(t, err)
		check(t, s.Close())
		slices.Sort(c.want)
		if got := names(t, fsys); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

// Of two partials with different bytes the longer is gone on with, and it is
// said that they differ.
func TestPartialsThatDiffer(t *testing.T) {
	b := wal(1, 49)
	other := bytes.Clone(b)
	other[5000] ^= 1
	for _, m := range methods {
		fsys := crashfs.New(1)
		fill(t, fsys, map[string][]byte{name(1, 49).String() + ".partial": padded(b, 60000), name(1, 49).String() + ".gz.partial": flushed(waldir.Gzip, other[:20000])})
		log, said := text()
		s, err := spool.Open(waldir.New(fsys, dir, waldir.Options{Method: m, Log: log}), dir, spool.Options{})
		check(t, err)
		g, err := s.Begin(name(1, 49))
		check(t, err)
		have := make([]byte, 60000)
		check(t, g.ReadAt(have, g.Start()))
		if !bytes.Equal(have, b[:60000]) {
			t.Errorf("method %d: the shorter one was taken", m)
		}
		if want := map[bool]string{true: "is replaced by a longer one", false: "is left alone"}[m == waldir.Gzip]; !strings.Contains(said.String(), want) {
			t.Errorf("method %d: said %q, want %q", m, said, want)
		}
		check(t, s.Close())
	}
}

// A plain partial has the size of a segment, or none; what a crash of ours
// leaves is shorter and begins as it must.
func TestSizeOfAPartial(t *testing.T) {
	b := wal(1, 49)
	for what, c := range map[string]struct {
		content []byte
		err     string
	}{
		"empty":             {nil, ""},
		"short, of zeros":   {make([]byte, 12345), ""},
		"short":             {b[:12345], ""},
		"short, of garbage": {bytes.Repeat([]byte{7}, 100), fmt.Sprintf(`write-ahead log file "%s.partial" has 100 bytes, should be 0 or 1048576`, name(1, 49))},
		"long":              {append(bytes.Clone(b), 1), fmt.Sprintf(`write-ahead log file "%s.partial" has 1048577 bytes, should be 0 or 1048576`, name(1, 49))},
	} {
		fsys := crashfs.New(1)
		fill(t, fsys, map[string][]byte{name(1, 48).String(): wal(1, 48), name(1, 49).String() + ".partial": c.content})
		s, err := spool.Open(waldir.New(fsys, dir, waldir.Options{}), dir, spool.Options{})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		check(t, err)
		g, err := s.Begin(name(1, 49))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		check(t, g.WriteAt(b, g.Start()))
		g.Advance(g.End())
		check(t, errors.Join(g.Seal(), s.Close()))
	}
}

// counting counts what is asked of the files in a directory that has many
// names.
type counting struct {
	disk.FS
	many  []fs.DirEntry
	calls int
}

func (c *counting) ReadDir(string) ([]fs.DirEntry, error) {
	entries, err := c.FS.ReadDir(dir)
	return append(slices.Clone(c.many), entries...), err
}

func (c *counting) Stat(path string) (fs.FileInfo, error) {
	c.calls++
	return c.FS.Stat(path)
}

func (c *counting) Open(path string, write bool) (disk.File, error) {
	c.calls++
	return c.FS.Open(path, write)
}

type dirEntry string

func (e dirEntry) Name() string               { return string(e) }
func (e dirEntry) IsDir() bool                { return false }
func (e dirEntry) Type() fs.FileMode          { return 0 }
func (e dirEntry) Info() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }

// Of 100,000 files few are looked at.
func TestManyFiles(t *testing.T) {
	fsys := crashfs.New(1)
	last := name(2, 200_000)
	before := name(2, 199_999)
	fill(t, fsys, map[string][]byte{last.String() + ".gz.partial": flushed(waldir.Gzip, wal(2, 200_000)[:50000]), before.String() + ".lz4": lz(wal(2, 199_999))})
	for _, all := range []bool{false, true} {
		c := &counting{FS: fsys}
		for i := range 100_000 {
			c.many = append(c.many, dirEntry(name(segment.Timeline(1+i/60_000), 1+i).String()+[]string{"", ".gz", ".lz4"}[i%3]))
		}
		d := waldir.New(c, dir, waldir.Options{All: all, Hide: func(n segment.Name) bool { return n != before }})
		entries, err := d.ReadDir(dir)
		check(t, err)
		if len(entries) != 2 {
			t.Errorf("%d entries, want 2", len(entries))
		}
		if c.calls > 8 {
			t.Errorf("%d files were looked at", c.calls)
		}
		w, err := d.Scan()
		if err != nil || w != (waldir.Newest{Found: true, Name: last}) {
			t.Errorf("%+v, %v", w, err)
		}
	}
}
