package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

var methods = []Method{{LZ4, 0}, {LZ4, 2}, {LZ4, 3}, {LZ4, 12}, {Zstd, 0}, {Zstd, 1}, {Zstd, 9}, {Zstd, 19}, {None, 0}}

// walLike returns n bytes that compress as WAL does: runs of zeros, repeated
// and random pieces.
func walLike(n int, seed uint64) []byte {
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	rnd := rand.New(source)
	b := make([]byte, 0, n+10_000)
	for len(b) < n {
		m := len(b)
		switch rnd.IntN(4) {
		case 0:
			b = b[:m+rnd.IntN(9000)]
		case 1:
			b = b[:m+rnd.IntN(5000)]
			if _, err := source.Read(b[m:]); err != nil {
				panic(err) // it never fails
			}
		default:
			if m > 100 {
				at := rnd.IntN(m - 50)
				b = append(b, b[at:min(m, at+rnd.IntN(3000))]...)
			}
		}
	}
	return b[:n]
}

// sizes that a method has reasons to be tried with: the edges of its blocks.
func sizes(m Method) []int {
	if m.Name == Zstd {
		return []int{0, 1, 8192, 1<<17 - 1, 1 << 17, 1<<17 + 1, 300_000}
	}
	return []int{0, 1, 8192, 1<<20 - 1, 1 << 20, 1<<20 + 1, 2<<20 + 77}
}

func encode(t testing.TB, e *Encoders, content []byte, pieces func(left int) int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := e.NewWriter(&out, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	for p := content; len(p) > 0; {
		n := min(pieces(len(p)), len(p))
		if m, err := w.Write(p[:n]); err != nil || m != n {
			t.Fatalf("Write = %d, %v", m, err)
		}
		p = p[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func whole(left int) int { return left }

func decode(stored []byte, ext string) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(stored), ext)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(r)
	return content, errors.Join(err, r.Close())
}

func TestParse(t *testing.T) {
	for text, want := range map[string]Method{"lz4": {LZ4, 0}, "lz4:1": {LZ4, 1}, "lz4:12": {LZ4, 12}, "zstd": {Zstd, 0}, "zstd:3": {Zstd, 3}, "zstd:22": {Zstd, 22}, "none": {None, 0}} {
		m, err := Parse(text)
		if err != nil || m != want || m.String() != text {
			t.Errorf("Parse(%q) = %+v, %v", text, m, err)
		}
	}
	for _, bad := range []string{"", "lz4:", "lz4:0", "lz4:13", "lz4:-1", "lz4:+1", "lz4:01", "lz4:9x", "lz4:3:4", "zstd:23", "zstd:300", "none:1", "LZ4", "gzip", "gzip:5", " lz4", "snappy"} {
		m, err := Parse(bad)
		if err == nil {
			t.Errorf("Parse(%q) = %+v; want an error", bad, m)
			continue
		}
		if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "lz4") && !strings.Contains(err.Error(), "zstd") && !strings.Contains(err.Error(), "none") {
			t.Errorf("Parse(%q): %v does not say what would be right", bad, err)
		}
	}
}

func TestExt(t *testing.T) {
	for name, ext := range map[string]string{LZ4: ".lz4", Zstd: ".zst", None: ""} {
		m := Method{Name: name, Level: 1}
		if m.Ext() != ext || !CanRead(ext) {
			t.Errorf("%s: ext %q", name, m.Ext())
		}
		if back, ok := ByExt(ext); !ok || back.Name != name {
			t.Errorf("ByExt(%q) = %v, %v", ext, back, ok)
		}
	}
	for _, ext := range []string{".gz", ".br", ".lzma", ".age", ".LZ4", "lz4"} {
		if m, ok := ByExt(ext); ok {
			t.Errorf("ByExt(%q) = %v", ext, m)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, m := range methods {
		t.Run(m.String(), func(t *testing.T) {
			e := NewEncoders(m)
			for _, n := range sizes(m) {
				content := walLike(n, uint64(n))
				stored := encode(t, e, content, whole)
				got, err := decode(stored, m.Ext())
				if err != nil || !bytes.Equal(got, content) {
					t.Fatalf("%d bytes: %d bytes back, %v", n, len(got), err)
				}
				if n > 10_000 {
					continue
				}
				r, err := NewReader(iotest.OneByteReader(bytes.NewReader(stored)), m.Ext())
				if err != nil {
					t.Fatal(err)
				}
				if err := iotest.TestReader(r, content); err != nil {
					t.Errorf("%d bytes: %v", n, err)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// The same bytes give the same object, whatever the writes and whether the
// encoder is new: an object that a lost answer made us store again is equal.
func TestDeterministic(t *testing.T) {
	for _, m := range methods {
		t.Run(m.String(), func(t *testing.T) {
			content := walLike(1<<20+300_000, 7)
			if m.Name == Zstd {
				content = content[:300_000]
			}
			other := walLike(len(content)/2, 8)
			want := encode(t, NewEncoders(m), content, whole)
			e := NewEncoders(m)
			for i, pieces := range []func(int) int{
				func(int) int { return 8192 },
				func(int) int { return 1000 },
				func(int) int { return 256 << 10 },
				func(left int) int { return 1 + left%70001 },
				whole,
			} {
				if got := encode(t, e, content, pieces); !bytes.Equal(got, want) {
					t.Errorf("writes %d: another object, %d bytes instead of %d", i, len(got), len(want))
				}
				encode(t, e, other, whole) // leaves its traces in the tables
			}
		})
	}
}

func TestContentSizeIsHeldTo(t *testing.T) {
	for _, m := range methods {
		e := NewEncoders(m)
		for _, c := range []struct{ announced, written int }{{10, 9}, {10, 0}, {10, 11}, {0, 1}, {300_000, 200_000}, {200_000, 300_000}} {
			var out bytes.Buffer
			w, err := e.NewWriter(&out, int64(c.announced))
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.Write(walLike(c.written, 3))
			if (err != nil) != (c.written > c.announced) {
				t.Errorf("%s: writing %d of %d: %v", m, c.written, c.announced, err)
			}
			if err := w.Close(); err == nil {
				t.Errorf("%s: closed after %d of %d bytes", m, c.written, c.announced)
			}
			if m.Name == None {
				continue
			}
			if _, err := decode(out.Bytes(), m.Ext()); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: the unfinished frame decodes: %v", m, err)
			}
		}
		// The encoder that follows is not disturbed.
		content := walLike(100_000, 4)
		if got, err := decode(encode(t, e, content, whole), m.Ext()); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: after failures: %v", m, err)
		}
		if _, err := e.NewWriter(io.Discard, -1); err == nil {
			t.Errorf("%s: negative content size taken", m)
		}
	}
}

func TestWriterReportsItsTarget(t *testing.T) {
	broken := errors.New("disk full")
	for _, m := range methods {
		w, err := m.NewWriter(writerFunc(func([]byte) (int, error) { return 0, broken }), 2<<20)
		if err == nil {
			_, err = w.Write(walLike(2<<20, 5))
			err = errors.Join(err, w.Close())
		}
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", m, err)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Facts of the frame that other readers and WAL-G rely on (lz4 Frame Format
// Description 1.6, RFC 8878).
func TestFrameHeader(t *testing.T) {
	content := walLike(3<<20, 9)
	stored := encode(t, NewEncoders(Method{LZ4, 0}), content, whole)
	if magic := binary.LittleEndian.Uint32(stored); magic != 0x184D2204 {
		t.Errorf("lz4 magic %x", magic)
	}
	// version 01, independent blocks, no block checksum, content size, content checksum, no dictionary
	if stored[4] != 0b01_1_0_1_1_0_0 {
		t.Errorf("lz4 FLG %08b", stored[4])
	}
	if stored[5] != 6<<4 {
		t.Errorf("lz4 BD %08b: want 1 MiB blocks", stored[5])
	}
	if n := binary.LittleEndian.Uint64(stored[6:]); n != 3<<20 {
		t.Errorf("lz4 content size %d", n)
	}
	// The same of the smallest: the layout asks for blocks of 1 MiB at least
	// (a history file is one of WAL-G's objects).
	for _, n := range []int{0, 100, 64 << 10, 256 << 10} {
		if small := encode(t, NewEncoders(Method{LZ4, 0}), content[:n], whole); small[5] != 6<<4 {
			t.Errorf("lz4 BD %08b of %d bytes: want 1 MiB blocks", small[5], n)
		}
	}
	stored = encode(t, NewEncoders(Method{Zstd, 0}), content, whole)
	if magic := binary.LittleEndian.Uint32(stored); magic != 0xFD2FB528 {
		t.Errorf("zstd magic %x", magic)
	}
	if stored[4]&(1<<2) == 0 || stored[4]>>6 == 0 && stored[4]&(1<<5) == 0 {
		t.Errorf("zstd frame header descriptor %08b: want content checksum and content size", stored[4])
	}
}

// The lz4 tool, told to use the same blocks, writes the very same object.
func TestLZ4IsTheReference(t *testing.T) {
	got := encode(t, NewEncoders(Method{LZ4, 0}), longWAL(t), whole)
	if want := golden(t, "long.lz4"); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, and not the tool's %d", len(got), len(want))
	}
}

// Every object of ours is whole or known to be damaged: cut at each place (all
// block boundaries among them), with garbage behind, with one bit turned.
func TestDamage(t *testing.T) {
	for _, m := range []Method{{LZ4, 0}, {LZ4, 9}, {Zstd, 0}, {Zstd, 19}} {
		t.Run(m.String(), func(t *testing.T) {
			content := walLike(100_000, 10)
			if m.Name == LZ4 {
				content = slices.Concat(content, make([]byte, 1<<20), walLike(50_000, 11))
			}
			stored := encode(t, NewEncoders(m), content, whole)
			rnd := rand.New(rand.NewPCG(12, 12))
			cuts := []int{0, 1, 3, 4, 5, 14, 15, 16, len(stored) - 1, len(stored) - 3, len(stored) - 4, len(stored) - 5, len(stored) - 7, len(stored) - 8, len(stored) - 9}
			if m.Name == LZ4 {
				for at := 15; ; {
					size := int(binary.LittleEndian.Uint32(stored[at:]) & 0x7FFFFFFF)
					cuts = append(cuts, at, at+4)
					if size == 0 {
						break
					}
					at += 4 + size
				}
			}
			for range 15 {
				cuts = append(cuts, rnd.IntN(len(stored)))
			}
			for _, n := range cuts {
				if got, err := decode(stored[:n], m.Ext()); !errors.Is(err, ErrDamaged) {
					t.Errorf("cut to %d of %d bytes: %d bytes, %v", n, len(stored), len(got), err)
				}
			}
			for _, tail := range []string{"\x00", "\x04", "xx", "garbage behind", "\x04\x22\x4d\x18", "\x28\xb5\x2f\xfd", strings.Repeat("\x00", 512)} {
				if got, err := decode(append(bytes.Clone(stored), tail...), m.Ext()); !errors.Is(err, ErrDamaged) {
					t.Errorf("%q behind: %d bytes, %v", tail, len(got), err)
				}
			}
			for range 40 {
				bad := bytes.Clone(stored)
				at := rnd.IntN(len(bad))
				bad[at] ^= 1 << rnd.IntN(8)
				if got, err := decode(bad, m.Ext()); err == nil && !bytes.Equal(got, content) {
					t.Errorf("bit turned in byte %d: other content, no error", at)
				} else if err != nil && !errors.Is(err, ErrDamaged) {
					t.Errorf("bit turned in byte %d: %v", at, err)
				}
			}
			// A content size that is a lie, with the header's checksum mended by
			// writing the header with the library's own hand.
			short := encode(t, NewEncoders(m), content[:len(content)-1], whole)
			if m.Name == LZ4 {
				lie := append(bytes.Clone(short[:15]), stored[15:]...)
				if _, err := decode(lie, m.Ext()); !errors.Is(err, ErrDamaged) {
					t.Errorf("wrong content size: %v", err)
				}
			}
		})
	}
}

func TestEmptyObjectIsDamaged(t *testing.T) {
	for _, ext := range Readable() {
		got, err := decode(nil, ext)
		if ext == "" {
			if err != nil || len(got) != 0 {
				t.Errorf("plain: %v", err)
			}
		} else if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %d bytes, %v", ext, len(got), err)
		}
	}
}

// A store whose body ends early or breaks says nothing about the object.
func TestSourceErrorIsNotDamage(t *testing.T) {
	for _, ext := range Readable() {
		stored := golden(t, "wal"+ext)
		for _, cause := range []error{io.ErrUnexpectedEOF, errors.New("connection reset")} {
			for _, n := range []int{0, 1, 3, 10, len(stored) / 2, len(stored) - 1, len(stored)} {
				r, err := NewReader(io.MultiReader(bytes.NewReader(stored[:n]), iotest.ErrReader(cause)), ext)
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(r)
				if !errors.Is(err, cause) || errors.Is(err, ErrDamaged) {
					t.Errorf("%s: %v after %d bytes: %v", ext, cause, n, err)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				if _, err := r.Read(make([]byte, 1)); err == nil {
					t.Errorf("%s: read after close", ext)
				}
			}
		}
	}
}

// longWAL is more than a block of 1 MiB.
func longWAL(t testing.TB) []byte { return append(golden(t, "wal"), make([]byte, 1_100_000)...) }

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Vectors made by the formats' own tools: see testdata/README.
func TestGolden(t *testing.T) {
	content := golden(t, "wal")
	twice := append(bytes.Clone(content), content...)
	for name, want := range map[string][]byte{
		"wal.lz4": content, "long.lz4": longWAL(t), "wal.zst": content, "wal.gz": content, "wal.br": content, "wal.lzma": content, "wal": content,
		"linked.lz4": content, "hc.lz4": content, "blocksum.lz4": content, "bare.lz4": content, "legacy.lz4": content, "small-blocks.lz4": content,
		"two.lz4": twice, "skippable.lz4": content, "only-skippable-behind.lz4": content, "two-legacy.lz4": twice,
		"server.lz4": twice, "two-server.lz4": append(bytes.Clone(twice), content...),
		"bare.zst": content, "two.zst": twice, "skippable.zst": content, "ultra.zst": content,
		"two.gz": twice,
	} {
		t.Run(name, func(t *testing.T) {
			stored := golden(t, name)
			ext := filepath.Ext(name)
			got, err := decode(stored, ext)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes instead of %d, %v", len(got), len(want), err)
			}
			if ext == "" {
				return
			}
			for _, n := range cutsOf(len(stored)) {
				got, err := decode(stored[:n], ext)
				switch {
				case errors.Is(err, ErrDamaged):
				case err != nil:
					t.Fatalf("cut to %d: %v", n, err)
				case !bytes.HasPrefix(want, got) || !cutUnseen(name, n):
					t.Fatalf("cut to %d of %d: %d bytes of %d, no error", n, len(stored), len(got), len(want))
				}
			}
			if _, err := decode(append(bytes.Clone(stored), "garbage behind the end"...), ext); !errors.Is(err, ErrDamaged) {
				t.Errorf("garbage behind: %v", err)
			}
		})
	}
}

// cutsOf returns where to cut n bytes: near both ends and the middle each
// place, elsewhere a few.
func cutsOf(n int) []int {
	var cuts []int
	for i := range n {
		if i < 16 || n-i < 16 || i%1999 == 0 || i > n/2-5 && i < n/2+20 {
			cuts = append(cuts, i)
		}
	}
	return cuts
}

// cutUnseen: what the formats cannot tell. Between two frames nothing is
// missing; a legacy frame has no end mark.
func cutUnseen(name string, n int) bool {
	switch name {
	case "two.lz4":
		return n == fileSize("wal.lz4")
	case "two-server.lz4":
		return n == fileSize("server.lz4")
	case "only-skippable-behind.lz4":
		return n == fileSize("wal.lz4")
	case "two.zst":
		return n == fileSize("wal.zst")
	case "two.gz":
		return n == fileSize("wal.gz")
	case "skippable.lz4", "skippable.zst":
		return n == len("MAGCSIZEhello")
	case "legacy.lz4":
		return n == 4
	case "two-legacy.lz4":
		return n == 4 || n == fileSize("legacy.lz4") || n == fileSize("legacy.lz4")+4
	}
	return false
}

func fileSize(name string) int {
	fi, err := os.Stat(filepath.Join("testdata", name))
	if err != nil {
		return -1
	}
	return int(fi.Size())
}

func TestFrame(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		limit int64
		dir   string
		n     int
	}{
		{1 << 20, dir, 0}, {1 << 20, dir, 1}, {1 << 20, dir, 1 << 20}, {1 << 20, dir, 1<<20 + 1}, {1 << 20, dir, 3<<20 + 5},
		{0, dir, 100_000}, {100, dir, 600_000}, {0, "", 3<<20 + 5}, {300 << 10, dir, 2 << 20},
	} {
		t.Run(fmt.Sprintf("%d of %d", c.n, c.limit), func(t *testing.T) {
			b := NewBuffers(c.limit, c.dir)
			for round := range 2 {
				content := walLike(c.n, uint64(round))
				f := b.New()
				for p := content; len(p) > 0; {
					n := min(len(p), 77_777)
					if m, err := f.Write(p[:n]); err != nil || m != n {
						t.Fatalf("Write = %d, %v", m, err)
					}
					p = p[n:]
				}
				if f.Size() != int64(c.n) || f.CRC32C() != crc32.Checksum(content, crc32.MakeTable(crc32.Castagnoli)) {
					t.Fatalf("size %d, crc %x", f.Size(), f.CRC32C())
				}
				if c.dir != "" && f.inMemory > max(c.limit, 0) {
					t.Errorf("%d bytes in memory, the limit is %d", f.inMemory, c.limit)
				}
				for _, off := range []int{0, 1, blockSize - 1, blockSize, blockSize + 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, c.n - 1} {
					for _, n := range []int{1, 100, blockSize, c.n} {
						p := make([]byte, n)
						if off < 0 || off >= c.n {
							continue
						}
						m, err := f.ReadAt(p, int64(off))
						if m != min(n, c.n-off) || !bytes.Equal(p[:m], content[off:off+m]) || m < n && !errors.Is(err, io.EOF) || m == n && err != nil && !errors.Is(err, io.EOF) {
							t.Errorf("ReadAt(%d bytes, %d) = %d, %v, or other bytes", n, off, m, err)
						}
					}
				}
				var lent []byte
				if err := f.Lend(func(p []byte) error { lent = append(lent, p...); return nil }); err != nil || !bytes.Equal(lent, content) {
					t.Errorf("lent %d bytes, or others: %v", len(lent), err)
				}
				full := errors.New("full")
				if err := f.Lend(func([]byte) error { return full }); c.n > 0 && !errors.Is(err, full) {
					t.Errorf("Lend to one who fails: %v", err)
				}
				if n, err := f.ReadAt(make([]byte, 10), f.Size()); n != 0 || !errors.Is(err, io.EOF) {
					t.Errorf("ReadAt the end = %d, %v", n, err)
				}
				if n, err := f.ReadAt(make([]byte, 1), -1); n != 0 || err == nil {
					t.Errorf("ReadAt -1 = %d, %v", n, err)
				}
				if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
					t.Errorf("temporary files: %v, %v", names, err)
				}
				f.Release()
				f.Release()
				if _, err := f.ReadAt(make([]byte, 1), 0); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("ReadAt after Release: %v", err)
				}
				if _, err := f.Write([]byte("x")); err == nil {
					t.Error("Write after Release")
				}
				if err := f.Lend(func([]byte) error { t.Error("lent after Release"); return nil }); err == nil {
					t.Error("Lend after Release")
				}
			}
		})
	}
	f := NewBuffers(0, filepath.Join(dir, "missing")).New()
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("a temporary file in a directory that is not there")
	}
	f.Release()
}

// A transport may read from a body while its owner gives it up.
func TestFrameReleaseWhileRead(t *testing.T) {
	b := NewBuffers(1<<20, t.TempDir())
	f := b.New()
	if _, err := f.Write(bytes.Repeat([]byte{1}, 1<<20+100)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := make([]byte, 1<<20)
		for {
			n, err := f.ReadAt(p, 50)
			if err != nil {
				return
			}
			if i := bytes.IndexFunc(p[:n], func(r rune) bool { return r != 1 }); i >= 0 {
				t.Errorf("byte %d is another frame's", i)
			}
		}
	}()
	f.Release()
	g := b.New()
	defer g.Release()
	if _, err := g.Write(bytes.Repeat([]byte{2}, 1<<20)); err != nil {
		t.Error(err)
	}
	<-done
}

func TestEncode(t *testing.T) {
	for _, m := range methods {
		f, err := m.Encode([]byte("1\t0/3000000\tno recovery target specified\n"))
		if err != nil {
			t.Fatal(err)
		}
		stored := make([]byte, f.Size())
		if _, err := f.ReadAt(stored, 0); err != nil {
			t.Fatal(err)
		}
		f.Release()
		if got, err := decode(stored, m.Ext()); err != nil || string(got) != "1\t0/3000000\tno recovery target specified\n" {
			t.Errorf("%s: %q, %v", m, got, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	for i, ext := range Readable() {
		f.Add(golden(f, "wal"+ext)[:3000], i)
		small, err := Method{LZ4, 0}.Encode([]byte("small"))
		if err != nil {
			f.Fatal(err)
		}
		b := make([]byte, small.Size())
		if _, err := small.ReadAt(b, 0); err != nil {
			f.Fatal(err)
		}
		f.Add(b, i)
	}
	for _, name := range []string{"legacy.lz4", "linked.lz4", "skippable.lz4", "blocksum.lz4"} {
		f.Add(golden(f, name)[:3000], 0)
	}
	f.Fuzz(func(t *testing.T, stored []byte, which int) {
		exts := Readable()
		ext := exts[uint(which)%uint(len(exts))]
		r, err := NewReader(bytes.NewReader(stored), ext)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, io.LimitReader(r, 32<<20))
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: %v", ext, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("some content"), 3, 0)
	f.Add(walLike(200_000, 1), 4096, 3)
	f.Fuzz(func(t *testing.T, content []byte, piece, which int) {
		m := methods[uint(which)%uint(len(methods))]
		e := NewEncoders(m)
		n := 1 + int(uint(piece)%100_000)
		stored := encode(t, e, content, func(int) int { return n })
		if !bytes.Equal(stored, encode(t, e, content, whole)) {
			t.Fatal("not deterministic")
		}
		got, err := decode(stored, m.Ext())
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(content), err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	content := walLike(16<<20, 1)
	for _, m := range []Method{{LZ4, 0}, {Zstd, 1}, {Zstd, 0}} {
		b.Run(m.String(), func(b *testing.B) {
			e := NewEncoders(m)
			buffers := NewBuffers(32<<20, "")
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			for b.Loop() {
				f := buffers.New()
				w, err := e.NewWriter(f, int64(len(content)))
				if err != nil {
					b.Fatal(err)
				}
				for p := content; len(p) > 0; p = p[256<<10:] {
					if _, err := w.Write(p[:256<<10]); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
				f.Release()
			}
		})
	}
}

// A stream says no size, is read to its end, and is damaged wherever it is cut.
func TestStream(t *testing.T) {
	for _, m := range methods {
		t.Run(m.String(), func(t *testing.T) { testStream(t, m, NewEncoders(m)) })
		if m.Name == LZ4 {
			t.Run(m.String()+" in parallel", func(t *testing.T) { testStream(t, m, NewParallelEncoders(m, 3)) })
		}
	}
}

func testStream(t *testing.T, m Method, e *Encoders) {
	for _, n := range sizes(m) {
		if n > 5<<20 || m.Level > 9 && n > 8192 {
			continue // the same as below, and the race detector is slow
		}
		content := walLike(n, uint64(n))
		var out bytes.Buffer
		w, err := e.NewStream(&out)
		if err != nil {
			t.Fatal(err)
		}
		for p := content; len(p) > 0; {
			c := min(len(p), 77_777)
			if _, err := w.Write(p[:c]); err != nil {
				t.Fatal(err)
			}
			p = p[c:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := decode(out.Bytes(), m.Ext())
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes: %d bytes back, %v", n, len(got), err)
		}
		if m.Name == None || n > 1<<20 {
			continue
		}
		for _, cut := range cutsOf(out.Len()) {
			if got, err := decode(out.Bytes()[:cut], m.Ext()); !errors.Is(err, ErrDamaged) {
				t.Fatalf("%d bytes, cut to %d of %d: %d bytes, %v", n, cut, out.Len(), len(got), err)
			}
		}
		// The encoder goes back to those that are told the size.
		if got := encode(t, e, content, whole); !bytes.Equal(got, encode(t, NewEncoders(m), content, whole)) {
			t.Error("a used encoder writes another frame")
		}
	}
}

// A stream whose target fails, or that is given up, gets no end, whoever closes
// it, and nothing runs any more.
func TestStreamGivenUp(t *testing.T) {
	for _, m := range methods {
		if m.Name == None {
			continue
		}
		for _, parallel := range []int{0, 1, 3} {
			for _, giveUp := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %d %v", m, parallel, giveUp), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { // fails if a goroutine is left
						broken := errors.New("cancelled")
						var out bytes.Buffer
						w, err := NewParallelEncoders(m, parallel).NewStream(writerFunc(func(p []byte) (int, error) {
							if !giveUp && out.Len() > 100_000 {
								return 0, broken
							}
							return out.Write(p)
						}))
						if err != nil {
							t.Fatal(err)
						}
						_, err = w.Write(walLike(3<<20, 6))
						n := -1
						if giveUp {
							w.GiveUp()
							broken, n = errGivenUp, out.Len()
						}
						if err = errors.Join(err, w.Close()); !errors.Is(err, broken) {
							t.Error(err)
						}
						if giveUp && out.Len() != n {
							t.Errorf("%d bytes were written after it was given up", out.Len()-n)
						}
						if got, err := decode(out.Bytes(), m.Ext()); !errors.Is(err, ErrDamaged) {
							t.Errorf("what was written before decodes to %d bytes, %v", len(got), err)
						}
					})
				})
			}
		}
	}
}

// An error of the target is told by a Write that comes soon behind it, not only
// in the end.
func TestStreamTellsItsTargetsError(t *testing.T) {
	broken := errors.New("no space")
	w, err := NewParallelEncoders(Method{Name: LZ4}, 2).NewStream(writerFunc(func([]byte) (int, error) { return 0, broken }))
	if err != nil {
		t.Fatal(err)
	}
	defer w.GiveUp()
	block := walLike(1<<20, 7)
	for range 100 {
		if _, err = w.Write(block); err != nil {
			break
		}
	}
	if !errors.Is(err, broken) {
		t.Errorf("Write = %v", err)
	}
}
