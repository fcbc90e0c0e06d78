package basebackup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/walferry/walferry/segment"
)

const (
	testSystem  = 7710923324468496309
	testSize    = segment.MinSize
	testVersion = "15.18 (Debian 15.18-0+deb12u1)"
)

var (
	testStart = segment.Position{Timeline: 1, LSN: 0x300028}
	testStop  = segment.Position{Timeline: 1, LSN: 0x500100}
)

// file is one of a scripted data directory, or of a tablespace.
type file struct {
	name    string // as the server's tar file has it
	content []byte
	dir     bool
}

// space is an archive: the data directory's, with OID 0, or a tablespace's.
type space struct {
	oid      uint32
	location string
	files    []file
}

// path is a file's in the manifest.
func (s space) path(f file) string {
	if s.oid == 0 {
		return f.name
	}
	return fmt.Sprintf("pg_tblspc/%d/%s", s.oid, f.name)
}

// tar makes the archive as PostgreSQL does: ustar, and the tar file's end.
func (s space) tar() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range s.files {
		h := &tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.content)), Mode: 0o600, ModTime: time.Unix(1_700_000_000, 0), Uname: "postgres", Gname: "postgres", Uid: 1001, Gid: 1002}
		if f.dir {
			h.Typeflag, h.Name, h.Mode = tar.TypeDir, f.name+"/", 0o700
		}
		must(w.WriteHeader(h))
		_, err := w.Write(f.content)
		must(err)
	}
	must(w.Close())
	return b.Bytes()
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// manifestOf writes the manifest as the server does.
func manifestOf(spaces []space, start, stop segment.Position) []byte {
	var b bytes.Buffer
	b.WriteString("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [")
	sep := "\n"
	for _, s := range spaces {
		for _, f := range s.files {
			if f.dir {
				continue
			}
			crc := binary.LittleEndian.AppendUint32(nil, crc32.Checksum(f.content, castagnoli))
			fmt.Fprintf(&b, "%s{ \"Path\": %q, \"Size\": %d, \"Last-Modified\": \"2026-11-26 11:11:55 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"%x\" }", sep, s.path(f), len(f.content), crc)
			sep = ",\n"
		}
	}
	// A standby's backup may have come to another timeline (AddWALInfoToBackupManifest
	// in src/backend/backup/backup_manifest.c): newest first.
	b.WriteString("\n],\n\"WAL-Ranges\": [\n")
	for tl := stop.Timeline; tl > start.Timeline; tl-- {
		from := segment.LSN(0x400000)
		fmt.Fprintf(&b, "{ \"Timeline\": %d, \"Start-LSN\": %q, \"End-LSN\": %q },\n", tl, from, stop.LSN)
		stop.LSN = from
	}
	fmt.Fprintf(&b, "{ \"Timeline\": %d, \"Start-LSN\": %q, \"End-LSN\": %q }\n],\n", start.Timeline, start.LSN, stop.LSN)
	return sealManifest(b.Bytes())
}

// sealManifest puts the checksum of all before it at the end.
func sealManifest(b []byte) []byte {
	return fmt.Appendf(b, "\"Manifest-Checksum\": \"%x\"}\n", sha256.Sum256(b))
}

// serverLZ4 compresses as PostgreSQL's server does: one frame of linked blocks
// of 256 kB, without content size and checksum (bbsink_lz4_new in
// src/backend/backup/basebackup_lz4.c). The header is one that it wrote; that
// no block of ours refers to the one before it is within the format.
func serverLZ4(content []byte) []byte {
	out := []byte{0x04, 0x22, 0x4d, 0x18, 0x40, 0x50, 0x77}
	var c lz4.Compressor
	for len(content) > 0 {
		block := content[:min(len(content), 256<<10)]
		content = content[len(block):]
		packed := make([]byte, lz4.CompressBlockBound(len(block)))
		n, err := c.CompressBlock(block, packed)
		must(err)
		if n == 0 || n >= len(block) {
			out = binary.LittleEndian.AppendUint32(out, uint32(len(block))|1<<31)
			out = append(out, block...)
			continue
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(n))
		out = append(out, packed[:n]...)
	}
	return binary.LittleEndian.AppendUint32(out, 0)
}

// goodSpaces are a small cluster with a tablespace.
func goodSpaces() []space {
	long := strings.Repeat("d", 70) + "/" + strings.Repeat("f", 25)
	return []space{
		{oid: 16384, location: "/srv/tbs1", files: []file{
			{name: "PG_15_202209061", dir: true},
			{name: "PG_15_202209061/5", dir: true},
			{name: "PG_15_202209061/5/16385", content: pages(300_000, 1)},
			{name: "PG_15_202209061/5/16386"},
			{name: "PG_15_202209061/" + long[:60], content: pages(511, 2)},
			{name: "PG_15_202209061/5/" + strings.Repeat("x", 70), dir: true},
			{name: "PG_15_202209061/5/" + strings.Repeat("y", 80), content: pages(512, 3)},
		}},
		{files: []file{
			{name: "backup_label", content: []byte("START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n")},
			{name: "tablespace_map", content: []byte("16384 /srv/tbs1\n")},
			{name: "pg_wal", dir: true},
			{name: "./pg_wal/archive_status", dir: true},
			{name: "base", dir: true},
			{name: "base/1", dir: true},
			{name: "base/1/112", content: pages(8192, 4)},
			{name: "base/1/113", content: pages(2_500_000, 5)},
			{name: "base/1/114"},
			{name: "base/1/" + long[:80], content: pages(513, 6)},
			{name: "global", dir: true},
			{name: "global/pg_control", content: pages(8192, 7)},
		}},
	}
}

// pages are n bytes that compress as a heap does.
func pages(n int, seed byte) []byte {
	b := make([]byte, n)
	state := uint32(seed) + 1
	for i := 0; i < n; i += 64 {
		for j := i; j < min(i+24, n); j++ {
			state = state*1664525 + 1013904223
			b[j] = byte(state >> 24)
		}
	}
	return b
}

// edit replaces text in a tar file or manifest.
func edit(from, to string) func([]byte) []byte {
	return func(b []byte) []byte {
		if !bytes.Contains(b, []byte(from)) {
			panic("nothing to edit: " + from)
		}
		return bytes.ReplaceAll(b, []byte(from), []byte(to))
	}
}

// reseal edits a manifest and mends its checksum.
func reseal(change func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		b = change(b)
		return sealManifest(b[:bytes.LastIndex(b, []byte("\"Manifest-Checksum\""))])
	}
}
