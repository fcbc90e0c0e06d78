package basebackup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/manifest"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// options are those of the tests.
func options(t *testing.T, text string) Options {
	t.Helper()
	c, err := ParseCompression(text)
	if err != nil {
		t.Fatal(err)
	}
	return Options{Compress: c, Label: "nightly", TempDir: t.TempDir(), Hostname: "backup.example"}
}

// stored is a backup as somebody finds it in the archive.
type stored struct {
	backup  archive.Backup
	objects map[string][]byte // by name in the folder
	entries map[string]*tar.Header
	content map[string][]byte
	parts   map[string]string // the part that an entry is in
}

// read reads everything of a backup, as a restore does.
func read(t *testing.T, a *archive.Archive, n archive.BackupName) stored {
	t.Helper()
	b, err := a.Backup(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if b.FactsErr != nil {
		t.Fatal(b.FactsErr)
	}
	s := stored{backup: b, objects: map[string][]byte{}, entries: map[string]*tar.Header{}, content: map[string][]byte{}, parts: map[string]string{}}
	infos, err := a.BackupObjects(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		body, _, err := a.OpenBackupObject(t.Context(), n, info.Key)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		s.objects[info.Key] = content
		if part, ok := strings.CutPrefix(info.Key, partsDir); ok {
			s.untar(t, part, content)
		}
	}
	return s
}

func (s stored) untar(t *testing.T, part string, content []byte) {
	t.Helper()
	ext := path.Ext(part)
	if ext == ".tar" {
		ext = ""
	}
	plain, err := codec.NewReader(bytes.NewReader(content), ext)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", part, err)
		}
		if other, twice := s.parts[h.Name]; twice {
			t.Errorf("%s is in %s and in %s", h.Name, other, part)
		}
		s.entries[h.Name], s.parts[h.Name] = h, part
		if s.content[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatalf("%s: %s: %v", part, h.Name, err)
		}
	}
	if _, err := io.Copy(io.Discard, plain); err != nil {
		t.Errorf("%s: behind the tar file: %v", part, err)
	}
}

// check makes sure that a stored backup holds what the server sent, as
// WAL-G's layout wants it.
func (s stored) check(t *testing.T, server *script) {
	t.Helper()
	want := map[string]bool{"/": true}
	for _, sp := range server.spaces {
		for _, f := range sp.files {
			name := sp.path(f)
			if f.dir {
				name += "/"
			}
			want[name] = true
			h := s.entries[name]
			if h == nil {
				t.Errorf("%s is missing", name)
				continue
			}
			if f.dir != (h.Typeflag == tar.TypeDir) || !bytes.Equal(s.content[name], f.content) {
				t.Errorf("%s: %c, %d bytes, or other content", name, h.Typeflag, len(s.content[name]))
			}
			if h.Uid != 1001 || h.Gid != 1002 || h.ModTime.Unix() != 1_700_000_000 || h.Uname != "postgres" {
				t.Errorf("%s: the header was changed: %+v", name, h)
			}
		}
	}
	for name := range s.entries {
		if !want[name] && !strings.HasPrefix(name, "pg_wal/") {
			t.Errorf("%s was not sent", name)
		}
	}
	if root := s.entries["/"]; root == nil || root.Typeflag != tar.TypeDir || root.Mode != 0o700 {
		t.Errorf("the root entry is %+v", root)
	}
	if got := s.objects[manifestName]; !bytes.Equal(got, manifestOf(server.spaces, server.Start(), server.Stop())) {
		t.Errorf("the manifest is not the server's:\n%s", got)
	}
	s.checkFacts(t)
}

// checkFacts holds walferry.json and the sentinel against the objects.
func (s stored) checkFacts(t *testing.T) {
	t.Helper()
	f := s.backup.Facts
	if f == nil {
		t.Fatal("no walferry.json")
	}
	named := map[string]bool{manifestName: true, "attempt.json": true, "walferry.json": true, "metadata.json": true}
	compressed, uncompressed, files := int64(0), int64(0), 0
	for _, p := range append(slices.Clone(f.Parts), f.Manifest) {
		key := p.Name
		if p.Name != manifestName {
			key = partsDir + p.Name
			compressed += p.Size
			uncompressed += p.Uncompressed
			if !strings.HasPrefix(p.Name, "part_wal") {
				files += p.Files
			}
		}
		named[key] = true
		content := s.objects[key]
		if int64(len(content)) != p.Size || crc32.Checksum(content, castagnoli) != p.CRC32C {
			t.Errorf("%s: %d bytes with %08X; walferry.json says %d with %08X", key, len(content), crc32.Checksum(content, castagnoli), p.Size, p.CRC32C)
		}
		if key == p.Name {
			continue
		}
		ext := path.Ext(p.Name)
		if ext == ".tar" {
			ext = ""
		}
		plain, err := codec.NewReader(bytes.NewReader(content), ext)
		must(err)
		if n, err := io.Copy(io.Discard, plain); err != nil || n != p.Uncompressed {
			t.Errorf("%s: %d bytes of tar, %v; walferry.json says %d", key, n, err, p.Uncompressed)
		}
	}
	for key := range s.objects {
		if !named[key] {
			t.Errorf("%s is in the folder", key)
		}
	}
	if files != f.Manifest.Files {
		t.Errorf("%d files in the parts, %d in the manifest", files, f.Manifest.Files)
	}
	if b := s.backup.Sentinel; b.CompressedSize != compressed || b.UncompressedSize != uncompressed || !b.FilesMetadataDisabled {
		t.Errorf("the sentinel says %+v; the parts have %d bytes, %d of tar", b, compressed, uncompressed)
	}
}

// Every way to compress, of a server that can and of one that cannot, in
// messages that divide everything everywhere.
func TestTake(t *testing.T) {
	for _, c := range []struct {
		text, took string
		major      int
		piece      int
		asSent     bool
		local      bool
	}{
		{"server-lz4", "server-lz4", 15, 0, true, false},
		{"server-lz4", "server-lz4", 15, 7777, true, true},
		{"server-lz4", "client-lz4", 14, 0, false, false},
		{"server-lz4", "client-lz4", 14, 0, false, true},
		{"server-zstd", "server-zstd", 15, 0, true, false},
		{"server-zstd:5", "client-zstd:5", 14, 511, false, true},
		{"client-lz4", "client-lz4", 15, 513, false, false},
		{"client-lz4", "client-lz4", 15, 513, false, true},
		{"client-lz4:9", "client-lz4:9", 15, 0, false, false},
		{"client-lz4:9", "client-lz4:9", 15, 1 << 20, false, true},
		{"client-zstd", "client-zstd", 15, 1 << 20, false, false},
		{"none", "none", 15, 1000, true, true},
		{"none", "none", 14, 0, true, false},
	} {
		t.Run(fmt.Sprintf("%s %d %d %v", c.text, c.major, c.piece, c.local), func(t *testing.T) {
			server := good()
			server.major, server.piece, server.local = c.major, c.piece, c.local
			log := testLog(t)
			o := options(t, c.text)
			o.Log = slog.New(slog.NewTextHandler(log, nil))
			a := archive.New(mem.New(), archive.Options{})
			before := time.Now()
			b, err := take(t.Context(), scriptConn{server}, nil, arrived{a}, o)
			if err != nil {
				t.Fatal(err)
			}
			if b.Name.String() != "base_000000010000000000000003_00000028" {
				t.Errorf("it is called %s", b.Name)
			}
			s := read(t, a, b.Name)
			s.check(t, server)
			if !reflect.DeepEqual(b.Facts, s.backup.Facts) {
				t.Errorf("returned\n%+v\nstored\n%+v", b.Facts, s.backup.Facts)
			}
			f, sn := s.backup.Facts, s.backup.Sentinel
			if f.Compression != c.took || f.Label != "nightly" || f.WAL != archive.WALInArchive || f.Server != testVersion || f.Standby || len(f.SuspectPages) > 0 ||
				f.StartLSN != testStart.LSN.String() || f.StopLSN != testStop.LSN.String() || f.StartTimeline != 1 || f.StopTimeline != 1 || f.SegmentSize != uint64(testSize) {
				t.Errorf("walferry.json says %+v", f)
			}
			if sn.SystemIdentifier != testSystem || sn.PgVersion != 150018 || sn.Hostname != "backup.example" || sn.DataDir != "/srv/data" || sn.StartTime.Before(before.Truncate(time.Microsecond)) || sn.FinishTime.Before(sn.StartTime) {
				t.Errorf("the sentinel says %+v", sn)
			}
			if want := (&archive.TablespaceSpec{BasePrefix: "/srv/data", Locations: map[uint32]string{16384: "/srv/tbs1"}}); !reflect.DeepEqual(sn.Spec, want) {
				t.Errorf("the tablespaces are %+v", sn.Spec)
			}
			var names []string
			for _, p := range f.Parts {
				names = append(names, fmt.Sprintf("%s %d", p.Name, p.Tablespace))
			}
			ext := c.took[strings.IndexByte(c.took, '-')+1:]
			ext = map[string]string{"lz4": ".lz4", "lz4:9": ".lz4", "zstd": ".zst", "zstd:5": ".zst", "none": ""}[ext]
			if want := []string{"part_000.tar" + ext + " 0", "part_001.tar" + ext + " 16384", "part_002.tar" + ext + " 0"}; !slices.Equal(names, want) {
				t.Errorf("the parts are %v, want %v", names, want)
			}
			sent := packed(server.spaces[1].tar(), server.asked[len(server.asked)-1].Compression)
			if got := s.objects[partsDir+"part_002.tar"+ext]; bytes.Equal(got, sent) != c.asSent {
				t.Errorf("base.tar is stored as it was sent: %v, want %v", !c.asSent, c.asSent)
			}
			if fellBack := strings.Contains(log.String(), "cannot compress"); fellBack != (c.text != c.took) || len(server.asked) > 2 {
				t.Errorf("asked for %+v; log:\n%s", server.asked, log)
			}
			if !server.closed {
				t.Error("the connection is open")
			}
		})
	}
}

// What the server is asked for.
func TestTakeAsks(t *testing.T) {
	server := good()
	o := options(t, "server-zstd:7")
	o.Fast, o.MaxRate = true, 4096
	if _, err := take(t.Context(), scriptConn{server}, nil, arrived{archive.New(mem.New(), archive.Options{})}, o); err != nil {
		t.Fatal(err)
	}
	want := []replication.BackupOptions{{Label: "nightly", Fast: true, MaxRate: 4096, Compression: "zstd", Level: 7}}
	if !reflect.DeepEqual(server.asked, want) {
		t.Errorf("asked for %+v", server.asked)
	}
}

// That the server archives its WAL is kept, and what its command says is not.
func TestTakeNotesTheArchiver(t *testing.T) {
	for _, c := range []struct {
		settings map[string]string
		want     string
	}{
		{nil, ""},
		{map[string]string{"archive_mode": "off", "archive_command": "true"}, ""},
		{map[string]string{"archive_mode": "on", "archive_command": "(disabled)"}, ""},
		{map[string]string{"archive_mode": "on", "archive_command": "SECRET=hush wal-g wal-push %p"}, "archive_command"},
		{map[string]string{"archive_mode": "always", "archive_library": "basic_archive", "archive_command": ""}, "archive_library"},
	} {
		server := good()
		server.settings = c.settings
		store := mem.New()
		a := archive.New(store, archive.Options{})
		b, err := take(t.Context(), scriptConn{server}, nil, arrived{a}, options(t, "server-lz4"))
		if err != nil {
			t.Fatal(err)
		}
		s := read(t, a, b.Name)
		if s.backup.Facts.Archiver != c.want {
			t.Errorf("%v: the archiver is %q, want %q", c.settings, s.backup.Facts.Archiver, c.want)
		}
		for _, name := range []string{"walferry.json", "metadata.json"} {
			body, _, err := a.OpenBackupObject(t.Context(), b.Name, name)
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(body)
			if err := errors.Join(err, body.Close()); err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(content, []byte("hush")) {
				t.Errorf("%s holds the command: %s", name, content)
			}
		}
	}
}

func TestTakeStandby(t *testing.T) {
	server := good()
	server.standby = true
	server.start, server.stop = segment.Position{Timeline: 3, LSN: 0x300028}, segment.Position{Timeline: 4, LSN: 0x500100}
	// Without the right to know the data directory.
	server.dataDir = &replication.ServerError{Severity: "ERROR", SQLSTATE: "42501"}
	a := archive.New(mem.New(), archive.Options{})
	b, err := take(t.Context(), scriptConn{server}, nil, timeless{arrived{a}}, options(t, "server-lz4"))
	if err != nil {
		t.Fatal(err)
	}
	s := read(t, a, b.Name)
	s.check(t, server)
	if f := s.backup.Facts; !f.Standby || s.backup.Start != server.start || s.backup.Stop != server.stop || s.backup.Sentinel.DataDir != "" {
		t.Errorf("%+v", s.backup)
	}
}

// timeless is an archive that knows every history.
type timeless struct{ arrived }

func (timeless) HistoryOf(_ context.Context, t segment.Timeline) (segment.History, error) {
	return segment.History{Timeline: t}, nil
}

// A backup that the server calls suspect is kept, and says so.
func TestSuspect(t *testing.T) {
	warnings := func(messages []replication.BackupMessage) []replication.BackupMessage {
		return slices.Insert(messages, len(messages)-3,
			replication.BackupMessage{Kind: replication.BackupWarning, Severity: "WARNING", Text: "checksum verification failed in file \"./base/1/113\", block 7", Suspect: true},
			replication.BackupMessage{Kind: replication.BackupWarning, Severity: "WARNING", Text: "something else"})
	}
	xx001 := &replication.ServerError{Severity: "ERROR", SQLSTATE: "XX001", Message: "checksum verification failure during base backup"}
	for _, c := range []struct {
		alter func([]replication.BackupMessage) []replication.BackupMessage
		end   error
		want  []string
	}{
		{warnings, xx001, []string{"checksum verification failed in file \"./base/1/113\", block 7"}},
		{warnings, nil, []string{"checksum verification failed in file \"./base/1/113\", block 7"}},
		{nil, xx001, []string{xx001.Error()}},
	} {
		server := good()
		server.alterMessages, server.suspect = c.alter, c.end
		a := archive.New(mem.New(), archive.Options{})
		log := testLog(t)
		o := options(t, "server-lz4")
		o.Log = slog.New(slog.NewTextHandler(log, nil))
		b, err := take(t.Context(), scriptConn{server}, nil, arrived{a}, o)
		if err != nil {
			t.Fatal(err)
		}
		if s := read(t, a, b.Name); !slices.Equal(s.backup.Facts.SuspectPages, c.want) || !s.backup.Suspect() {
			t.Errorf("suspect are %q, want %q", s.backup.Facts.SuspectPages, c.want)
		}
		if c.alter != nil && (!strings.Contains(log.String(), "block 7") || !strings.Contains(log.String(), "something else")) {
			t.Errorf("the log does not say it:\n%s", log)
		}
	}
}

// inBase changes base.tar.
func inBase(change func([]byte) []byte) func(uint32, []byte) []byte {
	return func(oid uint32, b []byte) []byte {
		if oid != 0 {
			return b
		}
		return change(b)
	}
}

// entryAt returns where the header of an entry is.
func entryAt(b []byte, name string) int {
	at := bytes.Index(b, append([]byte(name), 0))
	if at < 0 || at%blockSize != 0 {
		panic("no entry " + name)
	}
	return at
}

// header edits a header and mends its checksum.
func editHeader(name string, change func(h []byte)) func([]byte) []byte {
	return func(b []byte) []byte {
		b = bytes.Clone(b)
		h := b[entryAt(b, name):][:blockSize]
		change(h)
		copy(h[sumAt:], fmt.Sprintf("%06o\x00 ", headerSum(h)))
		return b
	}
}

// Whatever is not as it should be is no backup.
func TestRefused(t *testing.T) {
	byteOf := func(name string, at int) func([]byte) []byte {
		return func(b []byte) []byte {
			b = bytes.Clone(b)
			b[entryAt(b, name)+blockSize+at] ^= 1
			return b
		}
	}
	without := func(name string) func([]byte) []byte {
		return func(b []byte) []byte {
			at := entryAt(b, name)
			size, _ := parseNumber(b[at+sizeAt : at+sizeAt+sizeSize])
			return slices.Delete(bytes.Clone(b), at, at+blockSize+int(size+blockSize-1)/blockSize*blockSize)
		}
	}
	again := func(name string) func([]byte) []byte {
		return func(b []byte) []byte {
			at := entryAt(b, name)
			size, _ := parseNumber(b[at+sizeAt : at+sizeAt+sizeSize])
			whole := bytes.Clone(b[at : at+blockSize+int(size+blockSize-1)/blockSize*blockSize])
			return slices.Insert(bytes.Clone(b), at, whole...)
		}
	}
	for _, c := range []struct {
		what   string
		change func(*script)
		want   error
		says   string
	}{
		{"a bit of a file", func(s *script) { s.alterTar = inBase(byteOf("base/1/113", 1_234_567)) }, ErrMismatch, "base/1/113"},
		{"the last byte of a file", func(s *script) { s.alterTar = inBase(byteOf("base/1/112", 8191)) }, ErrMismatch, "base/1/112"},
		{"a bit of a tablespace's file", func(s *script) {
			s.alterTar = func(oid uint32, b []byte) []byte {
				if oid == 0 {
					return b
				}
				return byteOf("PG_15_202209061/5/16385", 17)(b)
			}
		}, ErrMismatch, "pg_tblspc/16384/PG_15_202209061/5/16385"},
		{"a file missing", func(s *script) { s.alterTar = inBase(without("base/1/112")) }, ErrMismatch, "base/1/112"},
		{"an empty file missing", func(s *script) { s.alterTar = inBase(without("base/1/114")) }, ErrMismatch, "base/1/114"},
		{"the last file missing", func(s *script) { s.alterTar = inBase(without("global/pg_control")) }, ErrMismatch, "global/pg_control"},
		{"a file twice", func(s *script) { s.alterTar = inBase(again("base/1/112")) }, ErrMismatch, "base/1/112"},
		{"the last file twice", func(s *script) { s.alterTar = inBase(again("global/pg_control")) }, ErrMismatch, "global/pg_control"},
		{"a file of another name", func(s *script) { s.alterTar = inBase(editHeader("base/1/112", func(h []byte) { h[7] = '9' })) }, ErrMismatch, ""},
		{"a file too many in the manifest", func(s *script) {
			s.alterManifest = reseal(edit("\n],\n\"WAL", ",\n{ \"Path\": \"base/1/99\", \"Size\": 0, \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00000000\" }\n],\n\"WAL"))
		}, ErrMismatch, "base/1/99"},
		{"another size in the manifest", func(s *script) { s.alterManifest = reseal(edit("\"Size\": 2500000", "\"Size\": 2500001")) }, ErrMismatch, "base/1/113"},
		{"a file without a checksum", func(s *script) {
			s.alterManifest = reseal(edit("\"Path\": \"base/1/114\", \"Size\": 0, \"Last-Modified\": \"2026-11-26 11:11:55 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00000000\"", "\"Path\": \"base/1/114\", \"Size\": 0"))
		}, manifest.ErrInvalid, "base/1/114"},
		{"the manifest's own checksum", func(s *script) { s.alterManifest = edit("GMT", "UTC") }, manifest.ErrInvalid, "checksum"},
		{"half a manifest", func(s *script) { s.alterManifest = func(b []byte) []byte { return b[:len(b)/2] } }, manifest.ErrInvalid, ""},
		{"another backup's manifest", func(s *script) {
			s.alterManifest = reseal(edit("\"Start-LSN\": \"0/300028\"", "\"Start-LSN\": \"0/200028\""))
		}, manifest.ErrInvalid, "0/300028"},
		{"another end in the manifest", func(s *script) {
			s.alterManifest = reseal(edit("\"End-LSN\": \"0/500100\"", "\"End-LSN\": \"0/500200\""))
		}, manifest.ErrInvalid, "0/500100"},
		{"another system's manifest", func(s *script) {
			s.alterManifest = reseal(edit("Version\": 1,", "Version\": 2,\n\"System-Identifier\": 7710923324468496310,"))
		}, manifest.ErrInvalid, "7710923324468496310"},
		{"no manifest", func(s *script) {
			s.alterMessages = func(m []replication.BackupMessage) []replication.BackupMessage { return m[:len(m)-2] }
		}, replication.ErrProtocol, "manifest"},
		{"content before an archive", func(s *script) {
			s.alterMessages = func(m []replication.BackupMessage) []replication.BackupMessage { return m[1:] }
		}, replication.ErrProtocol, "archive"},
		{"an archive that is not compressed as asked", func(s *script) {
			s.alterMessages = func(m []replication.BackupMessage) []replication.BackupMessage {
				m[0].Name = "16384.tar.gz"
				return m
			}
		}, replication.ErrProtocol, "16384.tar.gz"},
		{"a symbolic link", func(s *script) {
			s.alterTar = inBase(editHeader("base/1/114", func(h []byte) { h[typeAt] = '2' }))
		}, errTar, "base/1/114"},
		{"a device", func(s *script) {
			s.alterTar = inBase(editHeader("base/1/114", func(h []byte) { h[typeAt] = '3' }))
		}, errTar, "base/1/114"},
		{"a pax header", func(s *script) {
			s.alterTar = inBase(editHeader("base/1/114", func(h []byte) { h[typeAt] = 'x' }))
		}, errTar, ""},
		{"a way out", func(s *script) {
			s.alterTar = inBase(editHeader("base/1/114", func(h []byte) { copy(h, "../etc/pwd") }))
		}, errTar, "../etc/pwd"},
		{"an absolute name", func(s *script) {
			s.alterTar = inBase(editHeader("base/1/114", func(h []byte) { copy(h, "/etc/passw") }))
		}, errTar, "/etc/passw"},
		{"a header's checksum", func(s *script) {
			s.alterTar = inBase(func(b []byte) []byte { b = bytes.Clone(b); b[entryAt(b, "base/1/114")+300] ^= 1; return b })
		}, errTar, "checksum"},
		{"a size that is none", func(s *script) {
			s.alterTar = inBase(editHeader("base/1/114", func(h []byte) { copy(h[sizeAt:], "0000000x000") }))
		}, errTar, "base/1/114"},
		{"no end of the tar file", func(s *script) {
			s.alterTar = inBase(func(b []byte) []byte { return b[:len(b)-1024] })
		}, errTar, "end"},
		{"a tar file cut in a file", func(s *script) {
			s.alterTar = inBase(func(b []byte) []byte { return b[:entryAt(b, "base/1/113")+blockSize*100] })
		}, errTar, "end"},
		{"a tar file cut in a block", func(s *script) {
			s.alterTar = inBase(func(b []byte) []byte { return b[:len(b)-1] })
		}, errTar, "block"},
		{"a file behind the end", func(s *script) {
			s.alterTar = inBase(func(b []byte) []byte { return append(bytes.Clone(b), b[:blockSize]...) })
		}, errTar, "end"},
		{"a frame without its end", func(s *script) {
			s.alterPacked = inBase(func(b []byte) []byte { return b[:len(b)-4] })
		}, codec.ErrDamaged, ""},
		{"a cut frame", func(s *script) {
			s.alterPacked = inBase(func(b []byte) []byte { return b[:len(b)/2] })
		}, codec.ErrDamaged, ""},
		{"a byte behind the frame", func(s *script) {
			s.alterPacked = inBase(func(b []byte) []byte { return append(bytes.Clone(b), 'x') })
		}, codec.ErrDamaged, ""},
		{"a tablespace's cut frame", func(s *script) {
			s.alterPacked = func(oid uint32, b []byte) []byte { return b[:len(b)-oidCut(oid)] }
		}, codec.ErrDamaged, "tablespace 16384"},
		{"BASE_BACKUP refused", func(s *script) {
			s.refuse = &replication.ServerError{Severity: "ERROR", SQLSTATE: "55000", Message: "wal_level"}
		}, nil, "wal_level"},
	} {
		for _, text := range []string{"server-lz4", "client-zstd", "none", "client-lz4"} {
			server := good()
			server.local = text == "client-lz4" // the receiver encodes
			c.change(server)
			if text != "server-lz4" && (errors.Is(c.want, codec.ErrDamaged) || strings.Contains(c.what, "as asked")) {
				continue
			}
			if text != "server-lz4" && !server.local && os.Getenv("WALFERRY_FULL") == "" && rand.IntN(4) > 0 {
				continue // each kind once in every run
			}
			t.Run(c.what+" "+text, func(t *testing.T) {
				store := mem.New()
				a := archive.New(store, archive.Options{})
				_, err := take(t.Context(), scriptConn{server}, nil, arrived{a}, options(t, text))
				if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v; want %v that says %q", err, c.want, c.says)
				}
				nothing(t, a, store)
				if !server.closed {
					t.Error("the connection is open")
				}
			})
		}
	}
}

func oidCut(oid uint32) int {
	if oid == 0 {
		return 0
	}
	return 4
}

// nothing makes sure that no list shows a backup and no upload is under way.
func nothing(t *testing.T, a *archive.Archive, store *mem.Store) {
	t.Helper()
	all, err := a.Backups(context.WithoutCancel(t.Context()))
	if err != nil || len(all) > 0 {
		t.Errorf("backups are listed: %v, %v", all, err)
	}
	if up := store.Uploads(); len(up) > 0 {
		t.Errorf("uploads are under way: %q", up)
	}
}

// Two archives of one cluster, or of another.
func TestForeign(t *testing.T) {
	for _, c := range []struct {
		id   archive.Identity
		want error
	}{
		{archive.Identity{SystemIdentifier: testSystem, SegmentSize: testSize, WALCodec: "zstd"}, nil},
		{archive.Identity{SystemIdentifier: testSystem + 1, SegmentSize: testSize}, ErrForeignCluster},
		{archive.Identity{SystemIdentifier: testSystem, SegmentSize: 2 * testSize}, ErrForeignCluster},
	} {
		store := mem.New()
		a := archive.New(store, archive.Options{})
		if _, err := a.Claim(t.Context(), c.id); err != nil {
			t.Fatal(err)
		}
		server := good()
		_, err := take(t.Context(), scriptConn{server}, nil, arrived{archive.New(store, archive.Options{})}, options(t, "server-lz4"))
		if !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c.id, err)
		}
		if err != nil {
			nothing(t, a, store)
			if len(server.asked) > 0 {
				t.Error("the server was asked for a backup all the same")
			}
		}
	}
}

// Backups with one start LSN have names of their own, of which there are
// eight.
func TestNames(t *testing.T) {
	a := archive.New(mem.New(), archive.Options{})
	for i := range 8 {
		b, err := take(t.Context(), scriptConn{good()}, nil, arrived{a}, options(t, "server-lz4"))
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("base_000000010000000000000003_%08X", 0x28+i); b.Name.String() != want {
			t.Errorf("backup %d is called %s, want %s", i, b.Name, want)
		}
	}
	_, err := take(t.Context(), scriptConn{good()}, nil, arrived{a}, options(t, "server-lz4"))
	var taken *archive.NamesTakenError
	if !errors.As(err, &taken) || len(taken.Names) != 8 {
		t.Errorf("the ninth: %v", err)
	}
}

func TestOptions(t *testing.T) {
	for what, change := range map[string]func(*Options){
		"no directory":        func(o *Options) { o.TempDir = "" },
		"one part":            func(o *Options) { o.MaxParts = 1 },
		"too many parts":      func(o *Options) { o.MaxParts = 10001 },
		"negative memory":     func(o *Options) { o.MemoryPart = -1 },
		"negative wait":       func(o *Options) { o.WALWait = -1 },
		"no other connection": func(o *Options) { o.IncludeWAL = true },
	} {
		server := good()
		o := options(t, "none")
		change(&o)
		if _, err := take(t.Context(), scriptConn{server}, nil, arrived{archive.New(mem.New(), archive.Options{})}, o); err == nil {
			t.Errorf("%s: taken", what)
		}
		if !server.closed {
			t.Errorf("%s: the connection is open", what)
		}
	}
}

// Progress comes from one goroutine, goes forward, and ends at the end.
func TestProgress(t *testing.T) {
	for _, unsized := range []bool{false, true} {
		server := good()
		server.unsized = unsized
		o := options(t, "server-lz4")
		var all []Progress
		o.Progress = func(p Progress) { all = append(all, p) }
		b, err := take(t.Context(), scriptConn{server}, nil, arrived{archive.New(mem.New(), archive.Options{})}, o)
		if err != nil {
			t.Fatal(err)
		}
		total := int64(-1)
		if !unsized {
			total = int64(len(server.spaces[0].tar()) + len(server.spaces[1].tar()))
		}
		phases := []Phase{PhaseCheckpoint, PhaseCopy, PhaseWAL, PhaseCommit, PhaseDone}
		var seen []Phase
		var last Progress
		for _, p := range all {
			if p.Done < last.Done || p.Stored < last.Stored || p.Phase != PhaseCheckpoint && p.Total != total {
				t.Errorf("%+v follows %+v", p, last)
			}
			if p.Phase != last.Phase {
				seen = append(seen, p.Phase)
			}
			last = p
		}
		if !slices.Equal(seen, phases) {
			t.Errorf("the phases were %v", seen)
		}
		if want := b.Sentinel.CompressedSize + b.Facts.Manifest.Size; last.Stored != want || !unsized && last.Done != total || last.Archive != "base.tar.lz4" {
			t.Errorf("it ended with %+v; stored were %d", last, want)
		}
	}
}
