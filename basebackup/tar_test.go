package basebackup

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// written is a header as Go's own package writes it.
func written(t testing.TB, h tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()[:blockSize]
}

func TestNumber(t *testing.T) {
	for text, want := range map[string]int64{
		"00000000000\x00": 0, "00000017777\x00": 8191, "     644 \x00\x00\x00": 0o644, "77777777777\x00": 1<<33 - 1, "777777777777": 1<<36 - 1,
		"\x80\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00": 1 << 33,
		"\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff": 1<<63 - 1,
	} {
		if n, ok := parseNumber([]byte(text)); !ok || n != want {
			t.Errorf("%q is %d, %v; want %d", text, n, ok, want)
		}
	}
	for _, text := range []string{"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "            ", "0000000008\x00\x00", "-0000000001\x00", "0000 0000\x00\x00\x00", "\x80\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if n, ok := parseNumber([]byte(text)); ok {
			t.Errorf("%q is %d", text, n)
		}
	}
}

// A new name reads back, whatever its length, and nothing else is changed.
func TestSetName(t *testing.T) {
	folder := "pg_tblspc/4294967295/"
	deep := strings.Repeat("d", 70) + "/"
	for _, name := range []string{"PG_15_202209061", "PG_15_202209061/5/16385", "a", strings.Repeat("x", 99), strings.Repeat("x", 78), strings.Repeat("x", 79), strings.Repeat("x", 80), deep + strings.Repeat("y", 28), strings.Repeat("z/", 49) + "z"} {
		for _, kind := range []byte{tar.TypeReg, tar.TypeDir} {
			h := tar.Header{Format: tar.FormatUSTAR, Typeflag: kind, Name: name, Mode: 0o750, Uid: 7, Gid: 8, Uname: "postgres"}
			if kind == tar.TypeReg {
				h.Size = 12345
			} else {
				h.Name += "/"
			}
			if len(h.Name) > nameSize {
				continue
			}
			b := written(t, h)
			e, err := parseHeader(b)
			if err != nil || e.name != name || e.dir != (kind == tar.TypeDir) || e.size != h.Size {
				t.Fatalf("%+v is read as %+v, %v", h, e, err)
			}
			e.name = folder + name
			if err := setName(b, e); err != nil {
				t.Errorf("%d bytes: %v", len(name), err)
				continue
			}
			again, err := parseHeader(b)
			if err != nil || again != e {
				t.Errorf("%+v is read back as %+v, %v", e, again, err)
			}
			got, err := tar.NewReader(bytes.NewReader(b)).Next()
			if err != nil {
				t.Fatal(err)
			}
			h.Name = folder + h.Name
			if got.Name != h.Name || got.Mode != h.Mode || got.Uid != h.Uid || got.Gid != h.Gid || got.Uname != h.Uname || got.Size != h.Size || got.Typeflag != h.Typeflag {
				t.Errorf("Go reads %+v, want %+v", got, h)
			}
		}
	}
	b := written(t, tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: "x"})
	for _, name := range []string{strings.Repeat("x", 101), strings.Repeat("x", 200), strings.Repeat("p", 156) + "/" + strings.Repeat("x", 99), "/" + strings.Repeat("x", 100)} {
		if err := setName(b, entry{name: name}); !errors.Is(err, errTar) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Files that are larger than octal digits can say, and a tar file that is read
// in pieces of every kind.
func TestScanner(t *testing.T) {
	spaces := goodSpaces()
	for _, sp := range spaces {
		content := sp.tar()
		for what, r := range map[string]func() io.Reader{
			"whole": func() io.Reader { return bytes.NewReader(content) },
			"bytes": func() io.Reader { return iotest.OneByteReader(bytes.NewReader(content)) },
			"half":  func() io.Reader { return iotest.HalfReader(bytes.NewReader(content)) },
			"data":  func() io.Reader { return iotest.DataErrReader(bytes.NewReader(content)) },
		} {
			for _, buf := range []int{blockSize, 3 * blockSize, 256 << 10} {
				if what == "bytes" && buf == blockSize {
					continue
				}
				var got []string
				var out bytes.Buffer
				s := scanner{file: func(path string, size int64, crc uint32) error {
					got = append(got, fmt.Sprintf("%s %d %08x", path, size, crc))
					return nil
				}, pass: writeTo(&out)}
				if err := s.run(r(), make([]byte, buf)); err != nil {
					t.Fatalf("%s, %d: %v", what, buf, err)
				}
				var want []string
				for _, f := range sp.files {
					if !f.dir {
						want = append(want, fmt.Sprintf("%s %d %08x", f.name, len(f.content), crc32.Checksum(f.content, castagnoli)))
					}
				}
				if strings.Join(got, "\n") != strings.Join(want, "\n") || s.files != len(want) || s.bytes != int64(len(content)) || !bytes.Equal(out.Bytes(), content) {
					t.Errorf("%s, %d at a time: %q, %d files, %d bytes", what, buf, got, s.files, s.bytes)
				}
			}
		}
	}
	broken := errors.New("broken")
	s := scanner{file: func(string, int64, uint32) error { return broken }}
	if err := s.run(bytes.NewReader(spaces[1].tar()), make([]byte, blockSize)); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	s = scanner{file: func(string, int64, uint32) error { return nil }, pass: writeTo(&failing{broken})}
	if err := s.run(bytes.NewReader(spaces[1].tar()), make([]byte, blockSize)); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	s = scanner{file: func(string, int64, uint32) error { return nil }}
	if err := s.run(io.MultiReader(bytes.NewReader(spaces[1].tar()), iotest.ErrReader(io.ErrUnexpectedEOF)), make([]byte, blockSize)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a source that ended early: %v", err)
	}
}

type failing struct{ err error }

func (f *failing) Write([]byte) (int, error) { return 0, f.err }

// FuzzScanner holds the scanner against Go's own reader: what it takes, that one
// takes too, with the same files.
func FuzzScanner(f *testing.F) {
	for _, sp := range goodSpaces() {
		small := sp
		small.files = nil
		for _, file := range sp.files {
			if len(file.content) < 10_000 {
				small.files = append(small.files, file)
			}
		}
		f.Add(small.tar())
	}
	f.Add([]byte(nil))
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, content []byte) {
		var got []string
		s := scanner{file: func(path string, size int64, crc uint32) error {
			got = append(got, fmt.Sprintf("%s %d %08x", path, size, crc))
			return nil
		}}
		if err := s.run(bytes.NewReader(content), make([]byte, 4*blockSize)); err != nil {
			return
		}
		var want []string
		for r := tar.NewReader(bytes.NewReader(content)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("Go's reader: %v", err)
			}
			sum := crc32.New(castagnoli)
			n, err := io.Copy(sum, r)
			if err != nil {
				t.Fatalf("Go's reader: %v", err)
			}
			if h.Typeflag == tar.TypeReg {
				want = append(want, fmt.Sprintf("%s %d %08x", strings.TrimPrefix(h.Name, "./"), n, sum.Sum32()))
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("got %q; Go's reader has %q", got, want)
		}
	})
}

func writeTo(w io.Writer) func([]byte) error {
	return func(p []byte) error {
		_, err := w.Write(p)
		return err
	}
}
