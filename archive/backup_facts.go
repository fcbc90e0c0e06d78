package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// ErrFacts: a backup's walferry.json is there and cannot be understood.
var ErrFacts = errors.New("invalid walferry.json of a base backup")

// Where a backup's WAL is, from its start LSN to its stop LSN.
const (
	WALInArchive = "archive" // in wal_005/
	WALIncluded  = "include" // in a part of its own
)

// BackupFacts is walferry.json: what WAL-G's files have no place for. It is a
// contract: fields are added, never changed.
type BackupFacts struct {
	Version       int    `json:"version"` // 1
	Label         string `json:"label"`
	Server        string `json:"server_version"` // as the server says it: "15.18 (Debian …)"
	StartLSN      string `json:"start_lsn"`      // where replay begins
	StartTimeline uint32 `json:"start_timeline"`
	StopLSN       string `json:"stop_lsn"` // where the backup is consistent
	StopTimeline  uint32 `json:"stop_timeline"`
	SegmentSize   uint64 `json:"wal_segment_size"` // bytes
	Compression   string `json:"compression"`      // "server-lz4", "client-zstd", "none", …
	WAL           string `json:"wal"`              // WALInArchive or WALIncluded
	Standby       bool   `json:"standby"`          // the server was a standby
	// Archiver is the setting by which the server archived its WAL,
	// archive_command or archive_library; "" when it did not, or did not say.
	Archiver string `json:"archiver,omitempty"`
	// Parts are the objects in tar_partitions/ in the order of their upload.
	Parts    []BackupPart `json:"parts"`
	Manifest BackupPart   `json:"manifest"` // backup_manifest
	// SuspectPages are the server's warnings about pages whose checksums are
	// wrong. With one the backup is suspect.
	SuspectPages []string `json:"suspect_pages,omitempty"`
}

// BackupPart is an object of a backup.
type BackupPart struct {
	Name         string // in its folder: "part_001.tar.lz4", "backup_manifest"
	Size         int64  // bytes, as stored
	CRC32C       uint32 // of the stored bytes
	Uncompressed int64  // bytes of tar; 0: not known
	Tablespace   uint32 // OID; 0: the data directory
	Files        int    // regular files in it
}

// partFile has a part's keys. The checksum is a text of 8 digits 0-9 A-F, as
// everywhere in names.
type partFile struct {
	Name         string `json:"name"`
	Size         int64  `json:"size"`
	CRC32C       string `json:"crc32c"`
	Uncompressed int64  `json:"uncompressed,omitempty"`
	Tablespace   uint32 `json:"tablespace,omitempty"`
	Files        int    `json:"files,omitempty"`
}

// MarshalJSON writes the part as walferry.json has it.
func (p BackupPart) MarshalJSON() ([]byte, error) {
	return json.Marshal(partFile{p.Name, p.Size, fmt.Sprintf("%08X", p.CRC32C), p.Uncompressed, p.Tablespace, p.Files})
}

// UnmarshalJSON reads it.
func (p *BackupPart) UnmarshalJSON(b []byte) error {
	var f partFile
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	crc, err := strconv.ParseUint(f.CRC32C, 16, 32)
	if err != nil || len(f.CRC32C) != 8 {
		return fmt.Errorf("invalid checksum %.20q of %.80q", f.CRC32C, f.Name)
	}
	*p = BackupPart{f.Name, f.Size, uint32(crc), f.Uncompressed, f.Tablespace, f.Files}
	return nil
}

const factsVersion = 1

func decodeFacts(content []byte) (BackupFacts, error) {
	var f BackupFacts
	if err := json.Unmarshal(content, &f); err != nil {
		return BackupFacts{}, fmt.Errorf("%w: %w", ErrFacts, err)
	}
	if err := f.check(); err != nil {
		return BackupFacts{}, fmt.Errorf("%w: %w", ErrFacts, err)
	}
	return f, nil
}

func (f BackupFacts) check() error {
	if f.Version != factsVersion {
		return fmt.Errorf("version %d, this walferry knows %d", f.Version, factsVersion)
	}
	if _, err := f.start(); err != nil {
		return err
	}
	if _, err := f.stop(); err != nil {
		return err
	}
	if err := segment.Size(f.SegmentSize).Check(); err != nil {
		return err
	}
	if f.WAL != WALInArchive && f.WAL != WALIncluded {
		return fmt.Errorf("WAL is %.40q, want %q or %q", f.WAL, WALInArchive, WALIncluded)
	}
	if f.Manifest.Name != manifestName {
		return fmt.Errorf("the manifest is called %.80q", f.Manifest.Name)
	}
	if len(f.Parts) == 0 {
		return errors.New("it names no parts")
	}
	seen := map[string]bool{}
	for _, p := range f.Parts {
		if err := checkPartName(p.Name); err != nil {
			return err
		}
		if seen[p.Name] {
			return fmt.Errorf("part %s is named twice", p.Name)
		}
		seen[p.Name] = true
	}
	return nil
}

func (f BackupFacts) start() (segment.Position, error) {
	return position("start", f.StartTimeline, f.StartLSN)
}

func (f BackupFacts) stop() (segment.Position, error) {
	return position("stop", f.StopTimeline, f.StopLSN)
}

func position(what string, timeline uint32, lsn string) (segment.Position, error) {
	l, err := segment.ParseLSN(lsn)
	if err == nil && timeline == 0 {
		err = errors.New("no timeline")
	}
	if err != nil {
		return segment.Position{}, fmt.Errorf("%s: %w", what, err)
	}
	return segment.Position{Timeline: segment.Timeline(timeline), LSN: l}, nil
}

// checkPartName refuses what cannot be the name of an object in
// tar_partitions/.
func checkPartName(name string) error {
	if strings.Contains(name, "/") || objstore.CheckKey(name) != nil {
		return fmt.Errorf("invalid name %.80q of a part", name)
	}
	return nil
}
