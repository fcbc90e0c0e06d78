package manifest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// golden returns a manifest that a server of that major version wrote.
func golden(t testing.TB, version string) []byte {
	t.Helper()
	f, err := os.Open("testdata/" + version + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func collect(r io.Reader) (Manifest, map[string]File, error) {
	files := map[string]File{}
	m, err := Read(r, func(f File) error {
		if _, ok := files[f.Path]; ok {
			return fmt.Errorf("%q twice", f.Path)
		}
		files[f.Path] = f
		return nil
	})
	return m, files, err
}

// TestServers reads what PostgreSQL 15 and 18 wrote, whatever the sizes of the
// pieces in which it comes.
func TestServers(t *testing.T) {
	for _, c := range []struct {
		version, tablespaceFile string
		want                    Manifest
		size                    int64
		crc                     uint32
	}{
		{"15", "pg_tblspc/16387/PG_15_202209061/5/16388", Manifest{Version: 1, WAL: []Range{{1, 0x2000028, 0x2000100}}}, 40960, 0xb4d3409d},
		{"18", "pg_tblspc/16387/PG_18_202506291/5/16388", Manifest{Version: 2, SystemIdentifier: 7712435221408980259, WAL: []Range{{1, 0x2000028, 0x2000120}}}, 65536, 0xad00dfb4},
	} {
		content := golden(t, c.version)
		for name, r := range map[string]io.Reader{
			"whole": bytes.NewReader(content),
			"bytes": iotest.OneByteReader(bytes.NewReader(content)),
			"half":  iotest.HalfReader(bytes.NewReader(content)),
			"data":  iotest.DataErrReader(bytes.NewReader(content)),
		} {
			m, files, err := collect(r)
			if err != nil {
				t.Errorf("%s, %s: %v", c.version, name, err)
				continue
			}
			want := c.want
			want.Files = strings.Count(string(content), `Path"`)
			if len(files) != want.Files || !reflect.DeepEqual(m, want) {
				t.Errorf("%s, %s: %d files, %+v; want %+v", c.version, name, len(files), m, want)
			}
			f := files[c.tablespaceFile]
			if crc, ok := f.CRC32C(); !ok || crc != c.crc || f.Size != c.size {
				t.Errorf("%s: %+v, CRC32C %x; want %d bytes, %x", c.version, f, crc, c.size, c.crc)
			}
			// CRC32C of "x", in a file whose name is not UTF-8.
			f = files["caf\xe9"]
			if crc, ok := f.CRC32C(); !ok || crc != 0xa93c5f93 || f.Size != 1 {
				t.Errorf("%s: %+v, CRC32C %x", c.version, f, crc)
			}
		}
	}
}

// TestEveryByte: whatever byte of the server's manifest is altered in front of
// its last line, or wherever it is cut, it is not accepted.
func TestEveryByte(t *testing.T) {
	content := short(1, nil)
	if _, _, err := collect(bytes.NewReader(content)); err != nil {
		t.Fatalf("the manifest itself: %v", err)
	}
	last := bytes.LastIndexByte(content[:len(content)-1], '\n')
	for i := range last + 1 {
		altered := bytes.Clone(content)
		altered[i] ^= 1
		if _, _, err := collect(bytes.NewReader(altered)); err == nil {
			t.Errorf("byte %d altered to %q: no error", i, altered[i])
		}
	}
	for i := range content {
		if _, _, err := collect(bytes.NewReader(content[:i])); !errors.Is(err, ErrInvalid) {
			t.Errorf("cut at byte %d: %v", i, err)
		}
	}
}

// short writes a manifest of a few lines with a right checksum, after change
// had its way with them.
func short(version int, change func([]string) []string) []byte {
	lines := []string{fmt.Sprintf(`{ "PostgreSQL-Backup-Manifest-Version": %d,`, version)}
	if version == 2 {
		lines = append(lines, `"System-Identifier": 18446744073709551615,`)
	}
	lines = append(lines,
		`"Files": [`,
		`{ "Path": "a/b", "Size": 3, "Last-Modified": "2026-11-26 11:07:36 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "01020304" },`,
		`{ "Encoded-Path": "ff2f", "Size": 0, "Last-Modified": "2026-11-26 11:07:36 GMT" }`,
		`],`,
		`"WAL-Ranges": [`,
		`{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/3000000" },`,
		`{ "Timeline": 2, "Start-LSN": "0/3000000", "End-LSN": "1/2000100" }`,
		`],`,
	)
	if change != nil {
		lines = change(lines)
	}
	body := strings.Join(lines, "\n") + "\n"
	sum := sha256.Sum256([]byte(body))
	return []byte(body + `"Manifest-Checksum": "` + hex.EncodeToString(sum[:]) + "\"}\n")
}

func TestContent(t *testing.T) {
	for _, version := range []int{1, 2} {
		m, files, err := collect(bytes.NewReader(short(version, nil)))
		if err != nil {
			t.Fatal(err)
		}
		want := Manifest{Version: version, Files: 2, WAL: []Range{{1, 0x2000028, 0x3000000}, {2, 0x3000000, 0x102000100}}}
		if version == 2 {
			want.SystemIdentifier = 1<<64 - 1
		}
		if !reflect.DeepEqual(m, want) {
			t.Errorf("version %d: %+v; want %+v", version, m, want)
		}
		if crc, ok := files["a/b"].CRC32C(); !ok || crc != 0x04030201 {
			t.Errorf("a/b: %x, %t", crc, ok)
		}
		if _, ok := files["\xff/"].CRC32C(); ok {
			t.Error("a file without checksum has one")
		}
	}
}

func TestInvalid(t *testing.T) {
	replace := func(old, new string) func([]string) []string {
		return func(lines []string) []string {
			text := strings.Join(lines, "\n")
			if !strings.Contains(text, old) {
				t.Fatalf("no %q in the manifest", old)
			}
			return strings.Split(strings.Replace(text, old, new, 1), "\n")
		}
	}
	for _, c := range []struct{ old, new, want string }{
		{"Version\": 1", "Version\": 3", "version 3"},
		{"Version\": 1", "Version\": 2", "system identifier"},
		{"PostgreSQL-Backup-Manifest-Version\": 1,", "Files\": [],", "instead of its version"},
		{`"WAL-Ranges": [`, `"WAL-Ranges": [], "WAL-Ranges": [`, "twice"},
		{`"WAL-Ranges": [`, `"New": 1, "WAL-Ranges": [`, "unknown key"},
		{`"WAL-Ranges": [`, `"System-Identifier": 5, "WAL-Ranges": [`, "version 2"},
		{`"Path": "a/b", `, ``, "no path"},
		{`"Path": "a/b", `, `"Path": "a/b", "Encoded-Path": "612f62", `, "no path, or two"},
		{`"ff2f"`, `"ff2"`, "odd length"},
		{`"ff2f"`, `"ff00"`, "called"},
		{`"a/b"`, `""`, "called"},
		{`"Size": 3, `, ``, "no size"},
		{`"Size": 3`, `"Size": -3`, "negative"},
		{`"Size": 3`, `"Size": 3.5`, "number"},
		{`, "Checksum": "01020304"`, ``, "not the other"},
		{`"Checksum-Algorithm": "CRC32C", `, ``, "not the other"},
		{`"01020304"`, `"010203"`, "checksum"},
		{`"01020304"`, `"0102030g"`, "checksum"},
		{`CRC32C`, `MD5`, "MD5"},
		{`0/2000028`, `0/x`, "LSN"},
		{`1/2000100`, `0/2`, "WAL range"},
		{`"Timeline": 2`, `"Timeline": 0`, "WAL range"},
		{`"a/b"`, `"` + strings.Repeat("a", 4*maxLine) + `"`, "longer than"},
		{`"Files": [`, `"Files": {`, "is due"},
	} {
		_, _, err := collect(bytes.NewReader(short(1, replace(c.old, c.new))))
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.99q instead of %q: %v; want %q", c.new, c.old, err, c.want)
		}
	}
	good := short(1, nil)
	for _, c := range []struct{ text, want string }{
		{string(good) + "{}", "follows"},
		{string(good) + "\n", "checksum"}, // the last line is another
		{strings.TrimSuffix(string(good), "\n"), "last line"},
		{"", "unexpected EOF"},
		{"[]", "is due"},
	} {
		if _, _, err := collect(strings.NewReader(c.text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.20q…: %v; want %q", c.text, err, c.want)
		}
	}
}

func TestAlgorithms(t *testing.T) {
	for name, length := range map[string]int{"SHA224": 28, "SHA256": 32, "SHA384": 48, "SHA512": 64} {
		sum := strings.Repeat("ab", length)
		content := short(1, func(lines []string) []string {
			return strings.Split(strings.Replace(strings.Join(lines, "\n"), `"CRC32C", "Checksum": "01020304"`, `"`+name+`", "Checksum": "`+sum+`"`, 1), "\n")
		})
		_, files, err := collect(bytes.NewReader(content))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f := files["a/b"]
		if _, ok := f.CRC32C(); ok || f.Algorithm != name || hex.EncodeToString(f.Checksum) != sum {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// TestPassedOn: errors that say nothing about the manifest are not called its.
func TestPassedOn(t *testing.T) {
	broken := errors.New("broken pipe")
	content := short(1, nil)
	for i := range content {
		r := io.MultiReader(bytes.NewReader(content[:i]), iotest.ErrReader(broken))
		if _, _, err := collect(r); !errors.Is(err, broken) || errors.Is(err, ErrInvalid) {
			t.Fatalf("at byte %d: %v", i, err)
		}
	}
	enough := errors.New("enough")
	if _, err := Read(bytes.NewReader(content), func(File) error { return enough }); !errors.Is(err, enough) || errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(short(1, nil))
	f.Add(short(2, nil))
	f.Add([]byte(`{"PostgreSQL-Backup-Manifest-Version": 1, "Files": [{}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		m, files, err := collect(bytes.NewReader(content))
		if err != nil {
			return
		}
		// What is accepted vouches for all of its bytes.
		last := bytes.LastIndexByte(content[:len(content)-1], '\n')
		sum := sha256.Sum256(content[:last+1])
		if !bytes.Contains(bytes.ToLower(content), []byte(hex.EncodeToString(sum[:]))) || len(files) != m.Files {
			t.Errorf("accepted: %q", content)
		}
	})
}
