package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/walferry/walferry/segment"
)

// ErrSentinel: a backup's sentinel is there and cannot be understood.
var ErrSentinel = errors.New("invalid sentinel of a base backup")

// Sentinel is what a backup's sentinel says, in WAL-G's words (WAL-G:
// BackupSentinelDtoV2 in internal/databases/postgres/backup_sentinel_dto.go).
// It is JSON with WAL-G's keys; when it is read their case does not matter,
// unknown ones are passed over, and zero values are those that it does not say.
type Sentinel struct {
	LSN              segment.LSN // where replay begins
	FinishLSN        segment.LSN // where the backup is consistent
	SystemIdentifier uint64
	PgVersion        int             // 150018
	UncompressedSize int64           // bytes
	CompressedSize   int64           // bytes
	Spec             *TablespaceSpec // nil: no tablespaces
	StartTime        time.Time       // UTC, in microseconds
	FinishTime       time.Time       // UTC, in microseconds
	Hostname         string
	DataDir          string
	IsPermanent      bool
	UserData         json.RawMessage // nil: none
	// FilesMetadataDisabled: there is no files_metadata.json to be read.
	FilesMetadataDisabled bool

	// Of WAL-G's deltas; we write none.
	DeltaLSN      segment.LSN
	DeltaFrom     string // name of the parent
	DeltaFullName string // name of the full backup
	DeltaCount    int    // deltas since then
}

// TablespaceSpec says where the tablespaces were.
type TablespaceSpec struct {
	BasePrefix string            // the data directory
	Locations  map[uint32]string // by OID
}

const (
	// dateFormat is what WAL-G says of its times, in Python's language.
	dateFormat = "%Y-%m-%dT%H:%M:%S.%fZ"
	// timeLayout is the same in Go's.
	timeLayout = "2006-01-02T15:04:05.000000Z"
	// sentinelVersion is that of WAL-G's BackupSentinelDtoV2.
	sentinelVersion = 2
)

// sentinelFile has the keys of the sentinel in WAL-G's order.
type sentinelFile struct {
	LSN                   *uint64
	DeltaLSN              *uint64 `json:",omitempty"`
	DeltaFrom             *string `json:",omitempty"`
	DeltaFullName         *string `json:",omitempty"`
	DeltaCount            *int    `json:",omitempty"`
	PgVersion             int
	FinishLSN             *uint64
	SystemIdentifier      *uint64
	UncompressedSize      int64
	CompressedSize        int64
	Spec                  *TablespaceSpec
	UserData              json.RawMessage `json:",omitempty"`
	FilesMetadataDisabled bool            `json:",omitempty"`
	ChkpNum               *uint32
	Version               int
	StartTime             wallTime
	FinishTime            wallTime
	DateFmt               string
	Hostname              string
	DataDir               string
	IsPermanent           bool
}

// wallTime is a time as WAL-G writes it. What older versions left out is zero.
type wallTime struct{ time.Time }

// asStored returns t as it is read again.
func asStored(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

func (t wallTime) MarshalJSON() ([]byte, error) {
	return json.Marshal(t.UTC().Format(timeLayout))
}

// MarshalJSON writes what WAL-G reads.
func (s Sentinel) MarshalJSON() ([]byte, error) {
	f := sentinelFile{
		LSN: (*uint64)(&s.LSN), FinishLSN: (*uint64)(&s.FinishLSN), SystemIdentifier: &s.SystemIdentifier,
		PgVersion: s.PgVersion, UncompressedSize: s.UncompressedSize, CompressedSize: s.CompressedSize,
		Spec: s.Spec, UserData: s.UserData, FilesMetadataDisabled: s.FilesMetadataDisabled,
		Version: sentinelVersion, StartTime: wallTime{s.StartTime}, FinishTime: wallTime{s.FinishTime}, DateFmt: dateFormat,
		Hostname: s.Hostname, DataDir: s.DataDir, IsPermanent: s.IsPermanent,
	}
	if s.DeltaFrom != "" {
		f.DeltaLSN, f.DeltaFrom, f.DeltaFullName, f.DeltaCount = (*uint64)(&s.DeltaLSN), &s.DeltaFrom, &s.DeltaFullName, &s.DeltaCount
	}
	return json.Marshal(f)
}

// UnmarshalJSON reads what WAL-G or we wrote.
func (s *Sentinel) UnmarshalJSON(b []byte) error {
	var f sentinelFile
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	*s = Sentinel{
		LSN: segment.LSN(or(f.LSN)), FinishLSN: segment.LSN(or(f.FinishLSN)), SystemIdentifier: or(f.SystemIdentifier),
		PgVersion: f.PgVersion, UncompressedSize: f.UncompressedSize, CompressedSize: f.CompressedSize,
		Spec: f.Spec, FilesMetadataDisabled: f.FilesMetadataDisabled,
		StartTime: f.StartTime.UTC(), FinishTime: f.FinishTime.UTC(),
		Hostname: f.Hostname, DataDir: f.DataDir, IsPermanent: f.IsPermanent,
		DeltaLSN: segment.LSN(or(f.DeltaLSN)), DeltaFrom: or(f.DeltaFrom), DeltaFullName: or(f.DeltaFullName), DeltaCount: or(f.DeltaCount),
	}
	if !bytes.Equal(f.UserData, []byte("null")) {
		s.UserData = f.UserData
	}
	return nil
}

// or returns what p points at, or the zero value.
func or[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// MarshalJSON writes WAL-G's form: a member for each tablespace, and two more
// (WAL-G: TablespaceSpec in internal/databases/postgres/tablespace_spec.go).
func (t TablespaceSpec) MarshalJSON() ([]byte, error) {
	type location struct {
		Loc  string `json:"loc"`
		Link string `json:"link"`
	}
	names := make([]string, 0, len(t.Locations))
	all := map[string]any{"base_prefix": t.BasePrefix}
	for _, oid := range slices.Sorted(maps.Keys(t.Locations)) {
		name := strconv.FormatUint(uint64(oid), 10)
		names = append(names, name)
		all[name] = location{t.Locations[oid], "pg_tblspc/" + name}
	}
	all["tablespaces"] = names
	return json.Marshal(all)
}

// UnmarshalJSON reads WAL-G's form. Every tablespace that it names must have
// its location.
func (t *TablespaceSpec) UnmarshalJSON(b []byte) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	spec := TablespaceSpec{Locations: map[uint32]string{}}
	if text, ok := all["base_prefix"]; ok {
		if err := json.Unmarshal(text, &spec.BasePrefix); err != nil {
			return fmt.Errorf("base_prefix: %w", err)
		}
	}
	var names []string
	if text, ok := all["tablespaces"]; ok {
		if err := json.Unmarshal(text, &names); err != nil {
			return fmt.Errorf("tablespaces: %w", err)
		}
	}
	for _, name := range names {
		oid, err := strconv.ParseUint(name, 10, 32)
		if err != nil || oid == 0 || strconv.FormatUint(oid, 10) != name {
			return fmt.Errorf("%.40q is no tablespace", name)
		}
		var at struct{ Loc string }
		if err := json.Unmarshal(all[name], &at); err != nil || at.Loc == "" {
			return fmt.Errorf("tablespace %s has no location", name)
		}
		spec.Locations[uint32(oid)] = at.Loc
	}
	*t = spec
	return nil
}

// metadataFile is metadata.json: the same once more, as wal-g's own listings
// want it (WAL-G: ExtendedMetadataDto).
type metadataFile struct {
	StartTime        wallTime        `json:"start_time"`
	FinishTime       wallTime        `json:"finish_time"`
	DateFmt          string          `json:"date_fmt"`
	Hostname         string          `json:"hostname"`
	DataDir          string          `json:"data_dir"`
	PgVersion        int             `json:"pg_version"`
	StartLSN         uint64          `json:"start_lsn"`
	FinishLSN        uint64          `json:"finish_lsn"`
	IsPermanent      bool            `json:"is_permanent"`
	SystemIdentifier uint64          `json:"system_identifier"`
	UncompressedSize int64           `json:"uncompressed_size"`
	CompressedSize   int64           `json:"compressed_size"`
	UserData         json.RawMessage `json:"user_data,omitempty"`
}

// metadata returns the content of metadata.json.
func (s Sentinel) metadata() ([]byte, error) {
	return json.Marshal(metadataFile{
		StartTime: wallTime{s.StartTime}, FinishTime: wallTime{s.FinishTime}, DateFmt: dateFormat,
		Hostname: s.Hostname, DataDir: s.DataDir, PgVersion: s.PgVersion,
		StartLSN: uint64(s.LSN), FinishLSN: uint64(s.FinishLSN), IsPermanent: s.IsPermanent,
		SystemIdentifier: s.SystemIdentifier, UncompressedSize: s.UncompressedSize, CompressedSize: s.CompressedSize,
		UserData: s.UserData,
	})
}
