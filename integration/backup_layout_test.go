package integration

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// stated is what a backup's files say of it, read with nothing of ours.
type stated struct {
	t        *testing.T
	name     string
	sentinel document
	metadata document
	facts    document
	objects  map[string][]byte // in the folder, by their names there
	entries  map[string]entry  // of all parts
}

// entry is what a part holds under one name.
type entry struct {
	part   string
	header tar.Header
	crc    uint32 // CRC32C of the content
}

// What servers call two directories in their tar files (PostgreSQL: sendDir in
// src/backend/backup/basebackup.c); the second from 17 on.
const (
	serverStatus    = "./pg_wal/archive_status/"
	serverSummaries = "./pg_wal/summaries/"
)

// document is a JSON object whose members are not looked at yet.
type document map[string]json.RawMessage

func readDocument(t *testing.T, content []byte) document {
	t.Helper()
	d := document{}
	if err := json.Unmarshal(content, &d); err != nil {
		t.Fatalf("%v in %q", err, content)
	}
	return d
}

// has wants the members to be there, and no others.
func (d document) has(t *testing.T, what string, names ...string) {
	t.Helper()
	if got := slices.Sorted(maps.Keys(d)); !slices.Equal(got, slices.Sorted(slices.Values(names))) {
		t.Errorf("%s has the keys %v, want %v", what, got, names)
	}
}

// number is a member that must be a decimal integer as it stands.
func (d document) number(t *testing.T, name string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(string(d[name]), 10, 64)
	if err != nil {
		t.Errorf("%s is %s, want an integer", name, d[name])
	}
	return n
}

func (d document) text(t *testing.T, name string) (v string) {
	t.Helper()
	if err := json.Unmarshal(d[name], &v); err != nil {
		t.Errorf("%s is %s, want a text", name, d[name])
	}
	return v
}

// checkLayout holds a backup in the archive against the rules of WAL-G's layout,
// byte by byte, and against its own manifest.
func (o *operator) checkLayout(name string) *stated {
	t := o.t
	t.Helper()
	b := &stated{t: t, name: name, objects: map[string][]byte{}, entries: map[string]entry{}}
	folder := filepath.Join(o.archive, "basebackups_005", name)
	sentinel := folder + "_backup_stop_sentinel.json"
	written := func(info fs.FileInfo, err error) time.Time {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	committed := written(os.Stat(sentinel))
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if at := written(e.Info()); at.After(committed) {
			t.Errorf("%s was written at %s, the sentinel at %s", path, at, committed)
		}
		content, err := os.ReadFile(path)
		b.objects[strings.TrimPrefix(path, folder+"/")] = content
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(sentinel)
	if err != nil {
		t.Fatal(err)
	}
	b.sentinel = readDocument(t, content)
	b.metadata = readDocument(t, b.objects["metadata.json"])
	b.facts = readDocument(t, b.objects["walferry.json"])
	for object := range b.objects {
		if !regexp.MustCompile(`^(backup_manifest|walferry\.json|metadata\.json|attempt\.json|tar_partitions/[a-z0-9_]+\.tar(\.lz4|\.zst)?)$`).MatchString(object) {
			t.Errorf("backup %s has an object %s", name, object)
		}
	}
	start, _ := b.checkSentinel(o)
	b.checkName(o.size, start)
	b.checkMetadata()
	b.readParts()
	b.checkEntries()
	b.checkFacts()
	b.checkManifest(o)
	return b
}

// checkSentinel looks at WAL-G's keys and their types.
func (b *stated) checkSentinel(o *operator) (start, stop segment.LSN) {
	t, s := b.t, b.sentinel
	t.Helper()
	names := []string{"LSN", "PgVersion", "FinishLSN", "SystemIdentifier", "UncompressedSize", "CompressedSize", "Spec", "ChkpNum", "Version",
		"StartTime", "FinishTime", "DateFmt", "Hostname", "DataDir", "IsPermanent", "FilesMetadataDisabled"}
	s.has(t, "the sentinel", names...)
	start, stop = segment.LSN(s.number(t, "LSN")), segment.LSN(s.number(t, "FinishLSN"))
	if stop < start || start == 0 {
		t.Errorf("the backup is from %s to %s", start, stop)
	}
	control, err := instance.ReadControl(o.pg.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	if id := s.number(t, "SystemIdentifier"); id != control.SystemIdentifier {
		t.Errorf("SystemIdentifier is %d, want %d", id, control.SystemIdentifier)
	}
	major, minor, _ := strings.Cut(o.pg.Installation().Version, ".")
	minor = regexp.MustCompile(`^\d*`).FindString(minor)
	if v, want := s.number(t, "PgVersion"), major+fmt.Sprintf("%04s", minor); strconv.FormatUint(v, 10) != want {
		t.Errorf("PgVersion is %d, want %s", v, want)
	}
	var times []time.Time
	for _, name := range []string{"StartTime", "FinishTime"} {
		at, err := time.Parse("2006-01-02T15:04:05.000000Z", s.text(t, name))
		if err != nil || time.Since(at) > time.Hour || time.Since(at) < -time.Minute {
			t.Errorf("%s is %s (%v)", name, s[name], err)
		}
		times = append(times, at)
	}
	if times[1].Before(times[0]) {
		t.Errorf("it ended at %s, before it began at %s", times[1], times[0])
	}
	for name, want := range map[string]string{
		"ChkpNum": `null`, "Version": `2`, "DateFmt": `"%Y-%m-%dT%H:%M:%S.%fZ"`, "IsPermanent": `false`, "FilesMetadataDisabled": `true`,
	} {
		if string(s[name]) != want {
			t.Errorf("%s is %s, want %s", name, s[name], want)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	// A role that may replicate and nothing else is not told where the data is.
	if dir := s.text(t, "DataDir"); s.text(t, "Hostname") != host || !filepath.IsAbs(dir) && dir != "" {
		t.Errorf("Hostname is %s, DataDir is %s", s["Hostname"], s["DataDir"])
	}
	return start, stop
}

// checkName: the segment that holds the start LSN, and that LSN's place in it,
// whose low three bits number the attempts.
func (b *stated) checkName(size segment.Size, start segment.LSN) {
	b.t.Helper()
	m := regexp.MustCompile(`^base_([0-9A-F]{24})_([0-9A-F]{8})$`).FindStringSubmatch(b.name)
	if m == nil {
		b.t.Fatalf("%s is no name of the second form", b.name)
	}
	n, err := segment.ParseName(m[1])
	if err != nil {
		b.t.Fatal(err)
	}
	at, err := strconv.ParseUint(m[2], 16, 32)
	if err != nil {
		b.t.Fatal(err)
	}
	if n != size.Name(n.Timeline, start) || segment.LSN(at)&^7 != start-n.Start(size) {
		b.t.Errorf("the name %s is not that of a backup which starts at %s", b.name, start)
	}
}

func (b *stated) checkMetadata() {
	t, m, s := b.t, b.metadata, b.sentinel
	t.Helper()
	same := map[string]string{
		"start_time": "StartTime", "finish_time": "FinishTime", "date_fmt": "DateFmt", "hostname": "Hostname", "data_dir": "DataDir", "pg_version": "PgVersion",
		"start_lsn": "LSN", "finish_lsn": "FinishLSN", "is_permanent": "IsPermanent", "system_identifier": "SystemIdentifier",
		"uncompressed_size": "UncompressedSize", "compressed_size": "CompressedSize",
	}
	m.has(t, "metadata.json", slices.Collect(maps.Keys(same))...)
	for name, in := range same {
		if !bytes.Equal(m[name], s[in]) {
			t.Errorf("%s of metadata.json is %s, the sentinel's %s is %s", name, m[name], in, s[in])
		}
	}
}

// readParts unpacks every part with the libraries alone, and adds up sizes.
func (b *stated) readParts() {
	t := b.t
	t.Helper()
	var stored, plain uint64
	for object, content := range b.objects {
		part, ok := strings.CutPrefix(object, "tar_partitions/")
		if !ok {
			continue
		}
		stored += uint64(len(content))
		whole, err := decodeBytes(filepath.Ext(part), content)
		if err != nil {
			t.Errorf("part %s: %v", part, err)
			continue
		}
		plain += uint64(len(whole))
		if len(whole)%512 != 0 || len(whole) < 1024 || !bytes.Equal(whole[len(whole)-1024:], make([]byte, 1024)) {
			t.Errorf("part %s is no whole tar file: it has %d bytes, and must end in two blocks of zeros", part, len(whole))
		}
		b.readPart(part, whole)
	}
	if n := b.sentinel.number(t, "CompressedSize"); n != stored {
		t.Errorf("CompressedSize is %d, the parts have %d bytes", n, stored)
	}
	if n := b.sentinel.number(t, "UncompressedSize"); n != plain {
		t.Errorf("UncompressedSize is %d, the parts hold %d bytes of tar", n, plain)
	}
}

func (b *stated) readPart(part string, whole []byte) {
	t := b.t
	t.Helper()
	r := tar.NewReader(bytes.NewReader(whole))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Errorf("part %s: %v", part, err)
			return
		}
		crc := crc32.New(crc32.MakeTable(crc32.Castagnoli))
		if _, err := io.Copy(crc, r); err != nil {
			t.Errorf("part %s, file %s: %v", part, h.Name, err)
			return
		}
		if other, twice := b.entries[h.Name]; twice && (h.Typeflag != tar.TypeDir || other.part == part) {
			t.Errorf("%s is in part %s and in part %s", h.Name, other.part, part)
		}
		b.entries[h.Name] = entry{part, *h, crc.Sum32()}
	}
}

// checkEntries: what wal-g would untar is what it can untar.
func (b *stated) checkEntries() {
	t := b.t
	t.Helper()
	for name, e := range b.entries {
		h := e.header
		wrong := ""
		switch {
		case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir:
			wrong = fmt.Sprintf("it is of type %q", h.Typeflag)
		case name == "/":
			if h.Typeflag != tar.TypeDir || h.Mode&0o7777 != 0o700 || !strings.HasPrefix(e.part, "part_000.") {
				wrong = fmt.Sprintf("the root has type %q and mode %o", h.Typeflag, h.Mode)
			}
		case (name == serverStatus || name == serverSummaries) && h.Typeflag == tar.TypeDir: // the server calls them so
		case strings.HasPrefix(name, "/"), strings.HasPrefix(name, "./"), slices.Contains(strings.Split(name, "/"), ".."):
			wrong = "it does not begin in the data directory"
		case h.Typeflag == tar.TypeDir != strings.HasSuffix(name, "/"):
			wrong = "directories, and they alone, end in a slash"
		case h.Typeflag == tar.TypeReg && strings.HasPrefix(name, "pg_tblspc/") && !regexp.MustCompile(`^pg_tblspc/[1-9]\d*/PG_\d+_\d+/`).MatchString(name):
			wrong = "it is in no tablespace"
		case h.Typeflag == tar.TypeReg && h.Mode&0o137 != 0:
			wrong = fmt.Sprintf("its mode is %o", h.Mode)
		}
		if wrong != "" {
			t.Errorf("part %s has an entry %q: %s", e.part, name, wrong)
		}
	}
	for _, name := range []string{"/", "backup_label", "tablespace_map", "global/pg_control", "PG_VERSION", "pg_wal/", "pg_tblspc/", serverStatus} {
		if _, there := b.entries[name]; !there {
			t.Errorf("no part has %s", name)
		}
	}
	// The server sends standby.signal as any other file.
	for _, name := range []string{"postmaster.pid", "recovery.signal", "standby.signal", "backup_manifest"} {
		if e, there := b.entries[name]; there && (name != "standby.signal" || string(b.facts["standby"]) != "true") {
			t.Errorf("part %s has %s", e.part, name)
		}
	}
}

// checkFacts holds walferry.json against what is stored.
func (b *stated) checkFacts() {
	t := b.t
	t.Helper()
	type object struct {
		Name         string `json:"name"`
		Size         int    `json:"size"`
		CRC          string `json:"crc32c"`
		Uncompressed int    `json:"uncompressed"`
	}
	var parts []object
	var manifest object
	if err := errors.Join(json.Unmarshal(b.facts["parts"], &parts), json.Unmarshal(b.facts["manifest"], &manifest)); err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	check := func(key string, p object) {
		t.Helper()
		named[key] = true
		content, ok := b.objects[key]
		if crc := fmt.Sprintf("%08X", crc32.Checksum(content, crc32.MakeTable(crc32.Castagnoli))); !ok || len(content) != p.Size || crc != p.CRC {
			t.Errorf("%s has %d bytes and the checksum %s (there: %v), walferry.json says %+v", key, len(content), crc, ok, p)
		}
	}
	check("backup_manifest", manifest)
	for _, p := range parts {
		check("tar_partitions/"+p.Name, p)
	}
	for object := range b.objects {
		if strings.HasPrefix(object, "tar_partitions/") && !named[object] {
			t.Errorf("walferry.json does not name %s", object)
		}
	}
	if string(b.facts["version"]) != "1" {
		t.Errorf("the version of walferry.json is %s", b.facts["version"])
	}
}

// checkManifest: the manifest is the server's own bytes, and what it names is
// there, and nothing else.
func (b *stated) checkManifest(o *operator) {
	t := b.t
	t.Helper()
	content := b.objects["backup_manifest"]
	d := readDocument(t, content)
	at := bytes.Index(content, []byte(`"Manifest-Checksum"`))
	if at < 0 {
		t.Fatal("the manifest has no checksum")
	}
	if sum := sha256.Sum256(content[:at]); hex.EncodeToString(sum[:]) != d.text(t, "Manifest-Checksum") {
		t.Errorf("the manifest's checksum is %s, and should be %x", d["Manifest-Checksum"], sum)
	}
	var files []struct {
		Path      string
		Encoded   string `json:"Encoded-Path"`
		Size      int64
		Algorithm string `json:"Checksum-Algorithm"`
		Checksum  string
	}
	if err := json.Unmarshal(d["Files"], &files); err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, f := range files {
		if f.Encoded != "" {
			raw, err := hex.DecodeString(f.Encoded)
			if err != nil {
				t.Fatal(err)
			}
			f.Path = string(raw)
		}
		named[f.Path] = true
		e, ok := b.entries[f.Path]
		raw, err := hex.DecodeString(f.Checksum)
		if err != nil || f.Algorithm != "CRC32C" || len(raw) != 4 {
			t.Errorf("the manifest has the checksum %s %s of %s", f.Algorithm, f.Checksum, f.Path)
			continue
		}
		slices.Reverse(raw) // the server writes the integer as it lies in its memory
		if want := fmt.Sprintf("%x", raw); !ok || e.header.Size != f.Size || fmt.Sprintf("%08x", e.crc) != want {
			t.Errorf("the manifest names %s with %d bytes and checksum %s; the parts have %d bytes with %08x (there: %v)", f.Path, f.Size, want, e.header.Size, e.crc, ok)
		}
	}
	for name, e := range b.entries {
		if e.header.Typeflag == tar.TypeReg && !named[name] && !strings.HasPrefix(name, "pg_wal/") {
			t.Errorf("part %s has %s, which the manifest does not name", e.part, name)
		}
		if e.header.Typeflag == tar.TypeReg && strings.HasPrefix(name, "pg_wal/") && b.facts.text(t, "wal") != "include" {
			t.Errorf("part %s has %s", e.part, name)
		}
	}
	if len(named) < 100 {
		t.Errorf("the manifest of %s names %d files", o.pg.Installation(), len(named))
	}
}
