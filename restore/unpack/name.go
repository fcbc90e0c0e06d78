package unpack

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/walferry/walferry/segment"
)

// Names in a data directory that are more than files.
const (
	controlName    = "global/pg_control"
	labelName      = "backup_label"
	mapName        = "tablespace_map"
	manifestName   = "backup_manifest"
	walDir         = "pg_wal"
	statusDir      = "pg_wal/archive_status"
	tablespacesDir = "pg_tblspc"

	// hiddenControl is pg_control's name until everything else is there.
	hiddenControl = controlName + ".unpack"
)

// cleanName returns the path below the data directory that an entry of a tar
// stands for; "" is the data directory itself. Servers write one entry with a
// leading "./" (PostgreSQL: sendDir in src/backend/backup/basebackup.c, of
// pg_wal/archive_status), WAL-G on the database's host a leading "/". What
// could lead out of the directory is an error.
func cleanName(name string) (string, error) {
	s := strings.TrimPrefix(name, "/")
	s = strings.TrimPrefix(s, "./")
	s = strings.TrimSuffix(s, "/")
	if s == "" || s == "." {
		return "", nil
	}
	if strings.Contains(s, "\x00") {
		return "", fmt.Errorf("%w: an entry is called %q", ErrDamaged, name)
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("%w: an entry is called %q, which leads out of the data directory", ErrDamaged, name)
		}
	}
	return s, nil
}

// tablespaceOf splits pg_tblspc/<oid>/<rest>. ok is false for a name that is
// in no tablespace's folder; rest is "" for the folder itself.
func tablespaceOf(name string) (oid uint32, rest string, ok bool) {
	s, ok := strings.CutPrefix(name, tablespacesDir+"/")
	if !ok {
		return 0, "", false
	}
	s, rest, _ = strings.Cut(s, "/")
	n, err := parseOID(s)
	return n, rest, err == nil
}

// parseOID reads an OID as PostgreSQL writes it.
func parseOID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, fmt.Errorf("invalid OID %q", s)
	}
	return uint32(n), nil
}

// isWAL tells what a backup may carry in pg_wal besides what its manifest
// lists: segments, history files, and the marks that they are archived.
func isWAL(name string) bool {
	s, ok := strings.CutPrefix(name, walDir+"/")
	if !ok {
		return false
	}
	if status, ok := strings.CutPrefix(name, statusDir+"/"); ok {
		if s, ok = strings.CutSuffix(status, ".done"); !ok {
			return false
		}
	}
	if _, err := segment.ParseName(s); err == nil {
		return true
	}
	_, err := segment.ParseHistoryName(s)
	return err == nil
}
