package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
)

const (
	system    = 7710923324468496309
	ourName   = "base_000000010000000000000002_00000028"
	walgName  = "base_000000010000000000000002"
	startLSN  = 0x2000028
	finishLSN = 0x2000100
)

// fakeSource holds the objects of one backup.
type fakeSource struct {
	mu      sync.Mutex
	objects map[string][]byte
	// fault is asked before each call; it may also return a reader to be given
	// instead of the object.
	fault func(name string, offset int64) (io.Reader, error)
	calls int
}

func (s *fakeSource) BackupObjects(context.Context, archive.BackupName) ([]objstore.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.fault != nil {
		if _, err := s.fault("", 0); err != nil {
			return nil, err
		}
	}
	var all []objstore.Info
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		all = append(all, objstore.Info{Key: key, Size: int64(len(s.objects[key]))})
	}
	return all, nil
}

func (s *fakeSource) ReadBackupRange(ctx context.Context, _ archive.BackupName, name string, offset, length int64) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.fault != nil {
		if r, err := s.fault(name, offset); err != nil || r != nil {
			return io.NopCloser(r), err
		}
	}
	b, ok := s.objects[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, archive.ErrNotFound)
	}
	if offset+length > int64(len(b)) {
		return nil, errors.New("a range behind the end")
	}
	return io.NopCloser(bytes.NewReader(b[offset : offset+length])), nil
}

// put stores an object in pieces of what a store may give at a time.
func (s *fakeSource) put(name string, content []byte) { s.objects[name] = content }

// item is an entry of a tar.
type item struct {
	name    string
	content string
	kind    byte // 0: a file, or a directory when the name ends in a slash
	mode    int64
	link    string
}

func tarOf(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := &tar.Header{Name: i.name, Mode: i.mode, Size: int64(len(i.content)), Typeflag: i.kind, Linkname: i.link, Format: tar.FormatGNU}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(i.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o600
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o700
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(i.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compress(t testing.TB, method string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := codec.Method{Name: method}.NewWriter(&b, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// manifestOf writes a server's manifest of files.
func manifestOf(files map[string]string) []byte { return manifestFor(0, files) }

// manifestFor writes one of version 2 when there is a system identifier; files
// of which it is said come twice.
func manifestFor(system uint64, files map[string]string, again ...string) []byte {
	var b strings.Builder
	if system == 0 {
		b.WriteString("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n")
	} else {
		fmt.Fprintf(&b, "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": %d,\n\"Files\": [\n", system)
	}
	names := append(slices.Sorted(maps.Keys(files)), again...)
	for i, name := range names {
		sum := binary.LittleEndian.AppendUint32(nil, castagnoli([]byte(files[name])))
		fmt.Fprintf(&b, `{ "Encoded-Path": "%x", "Size": %d, "Last-Modified": "2026-11-26 11:07:36 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "%x" }`, name, len(files[name]), sum)
		if i < len(names)-1 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	b.WriteString("],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n")
	sum := sha256.Sum256([]byte(b.String()))
	return []byte(b.String() + `"Manifest-Checksum": "` + hex.EncodeToString(sum[:]) + "\"}\n")
}

// backup is a backup of ours in the making: change what it holds, then build.
type backup struct {
	t     testing.TB
	parts map[string][]item // by name in tar_partitions
	// manifest is what the server would list: the parts' files unless it is set.
	manifest map[string]string
	system   uint64 // that the manifest says; 0: none
	// facts and stored are changed last.
	facts  func(*archive.BackupFacts)
	stored func(map[string][]byte)
	spec   map[uint32]string
}

// content is a file of a few hundred buffers, different from byte to byte.
func content(seed byte, n int) string {
	b := make([]byte, 0, n+8)
	for x := uint64(seed) + 1; len(b) < n; {
		x = x*6364136223846793005 + 1442695040888963407
		b = binary.BigEndian.AppendUint64(b, x^x>>32)
	}
	return string(b[:n])
}

// newBackup is a sound backup: two tablespaces, one of which is mapped in some
// tests, WAL in a part of its own, a file of several buffers.
func newBackup(t testing.TB, tablespaces string) *backup {
	ts1, ts2 := filepath.Join(tablespaces, "one"), filepath.Join(tablespaces, "two")
	return &backup{
		t: t,
		parts: map[string][]item{
			"part_000.tar.lz4": {{name: "/"}},
			"part_001.tar.lz4": {
				{name: "backup_label", content: "START WAL LOCATION: 0/2000028\n"},
				{name: "tablespace_map", content: "16384 " + ts1 + "\n16385 " + ts2 + "\n"},
				{name: "pg_wal/"},
				{name: "./pg_wal/archive_status/"},
				{name: "base/"},
				{name: "base/1/"},
				{name: "base/1/112", content: content(1, 3*bufferSize+5)},
				{name: "base/1/113"},
				{name: "base/1/caf\xe9", content: "not UTF-8", mode: 0o4777},
				{name: "pg_replslot/"},
				{name: "global/"},
				{name: "global/1262", content: content(2, bufferSize)},
				{name: "global/pg_control", content: content(3, 8192)},
			},
			"part_002.tar.lz4": {{name: "pg_tblspc/16384/PG_15/"}, {name: "pg_tblspc/16384/PG_15/5/"}, {name: "pg_tblspc/16384/PG_15/5/1", content: content(4, 8192)}},
			"part_003.tar.zst": {{name: "pg_tblspc/16385/PG_15/"}, {name: "pg_tblspc/16385/PG_15/5/"}, {name: "pg_tblspc/16385/PG_15/5/2", content: content(5, 16384)}},
			"part_wal.tar":     {{name: "pg_wal/000000010000000000000002", content: content(6, 1<<20)}, {name: "pg_wal/archive_status/000000010000000000000002.done"}},
		},
		spec: map[uint32]string{16384: ts1, 16385: ts2},
	}
}

// edit changes the entry of that name in a part.
func (b *backup) edit(part, name string, change func(*item)) {
	b.t.Helper()
	for i := range b.parts[part] {
		if b.parts[part][i].name == name {
			change(&b.parts[part][i])
			return
		}
	}
	b.t.Fatalf("no %s in %s", name, part)
}

func (b *backup) add(part string, items ...item) { b.parts[part] = append(b.parts[part], items...) }

// files returns what the parts hold, as the manifest lists it.
func (b *backup) files() map[string]string {
	files := map[string]string{}
	for _, items := range b.parts {
		for _, i := range items {
			name := strings.TrimPrefix(i.name, "./")
			if !strings.HasSuffix(name, "/") && i.kind == 0 && !strings.HasPrefix(name, "pg_wal/") {
				files[name] = i.content
			}
		}
	}
	return files
}

func (b *backup) build() (archive.Backup, *fakeSource) {
	b.t.Helper()
	src := &fakeSource{objects: map[string][]byte{"attempt.json": []byte("{}"), "metadata.json": []byte("{}"), "walferry.json": []byte("{}")}}
	facts := archive.BackupFacts{Version: 1, StartLSN: "0/2000028", StartTimeline: 1, StopLSN: "0/2000100", StopTimeline: 1, SegmentSize: 16 << 20, WAL: archive.WALIncluded}
	for _, name := range slices.Sorted(maps.Keys(b.parts)) {
		method := codec.None
		switch filepath.Ext(name) {
		case ".lz4":
			method = codec.LZ4
		case ".zst":
			method = codec.Zstd
		}
		stored := compress(b.t, method, tarOf(b.t, b.parts[name]...))
		src.put(partsDir+name, stored)
		facts.Parts = append(facts.Parts, archive.BackupPart{Name: name, Size: int64(len(stored)), CRC32C: castagnoli(stored)})
	}
	if b.manifest == nil {
		b.manifest = b.files()
	}
	m := manifestFor(b.system, b.manifest)
	src.put("backup_manifest", m)
	facts.Manifest = archive.BackupPart{Name: "backup_manifest", Size: int64(len(m)), CRC32C: castagnoli(m)}
	if b.stored != nil {
		b.stored(src.objects)
	}
	if b.facts != nil {
		b.facts(&facts)
	}
	return archive.Backup{
		Name: backupName(b.t, ourName), Facts: &facts,
		Sentinel: archive.Sentinel{LSN: startLSN, FinishLSN: finishLSN, SystemIdentifier: system, PgVersion: 150018, Spec: spec(b.spec), FilesMetadataDisabled: true},
	}, src
}

func spec(locations map[uint32]string) *archive.TablespaceSpec {
	if locations == nil {
		return nil
	}
	return &archive.TablespaceSpec{BasePrefix: "/srv/data", Locations: locations}
}

func backupName(t testing.TB, s string) archive.BackupName {
	t.Helper()
	n, err := archive.ParseBackupName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// walg is a full backup as WAL-G writes it on the database's host.
type walg struct {
	t        testing.TB
	parts    map[string][]byte
	metadata map[string]map[string]bool // nil: there is none
	change   func(*archive.Backup)
}

func newWALG(t testing.TB) *walg {
	w := &walg{t: t, metadata: map[string]map[string]bool{}}
	w.parts = map[string][]byte{
		"part_001.tar.lz4":     compress(t, codec.LZ4, tarOf(t, item{name: "/"}, item{name: "/base/"}, item{name: "/base/1/112", content: content(1, 8192)}, item{name: "/backup_label", content: "of the server's last one\n"}, item{name: "/global/pg_control", content: content(9, 8192)})),
		"part_002.tar.lz4":     compress(t, codec.LZ4, tarOf(t, item{name: "/global/"}, item{name: "/global/1262", content: content(2, 8192)})),
		"pg_control.tar.lz4":   compress(t, codec.LZ4, tarOf(t, item{name: "/global/pg_control", content: content(3, 8192)})),
		"backup_label.tar.lz4": compress(t, codec.LZ4, tarOf(t, item{name: "backup_label", content: "START WAL LOCATION: 0/2000028\n"})),
	}
	for _, name := range []string{"/base/1/112", "/global/1262", "/global/pg_control"} {
		w.metadata[name] = map[string]bool{"IsIncremented": false, "IsSkipped": false}
	}
	w.metadata["/base/1/999"] = map[string]bool{"IsSkipped": true}
	return w
}

func (w *walg) build() (archive.Backup, *fakeSource) {
	src := &fakeSource{objects: map[string][]byte{"metadata.json": []byte("{}")}}
	b := archive.Backup{Name: backupName(w.t, walgName), Sentinel: archive.Sentinel{LSN: startLSN, FinishLSN: finishLSN, SystemIdentifier: system, PgVersion: 150018}}
	for name, stored := range w.parts {
		src.put(partsDir+name, stored)
		b.Sentinel.CompressedSize += int64(len(stored))
	}
	if w.metadata != nil {
		text, err := json.Marshal(map[string]any{"Files": w.metadata})
		if err != nil {
			w.t.Fatal(err)
		}
		src.put("files_metadata.json", text)
	} else {
		b.Sentinel.FilesMetadataDisabled = true
	}
	if w.change != nil {
		w.change(&b)
	}
	return b, src
}

// readTree returns what lies below dir: contents of files, "dir MODE" and
// "link TARGET".
func readTree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		switch {
		case info.IsDir():
			all[rel] = fmt.Sprintf("dir %o", info.Mode().Perm())
		case info.Mode()&os.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			all[rel] = "link " + to
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all[rel] = string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// sameTree compares what lies below dir.
func sameTree(t testing.TB, dir string, want map[string]string) {
	t.Helper()
	got := readTree(t, dir)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s: %.60q; want %.60q", name, got[name], want[name])
		}
		delete(got, name)
	}
	for name, what := range got {
		t.Errorf("%s: %.60q; want nothing", name, what)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
