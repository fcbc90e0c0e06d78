package archive

import (
	"fmt"
	"strings"

	"github.com/walferry/walferry/segment"
)

// BackupName is the name of a base backup. It is comparable; the zero value
// names none. Three forms exist, and no other suffix is legal (WAL-G restores
// nothing else):
//
//	base_<24>         24 digits: the segment that holds the start LSN
//	base_<24>_<8>     8 digits: the start LSN's offset in that segment
//	base_<24>_D_<24>  WAL-G's delta to a backup that begins in the second segment
//
// Every digit is one of 0-9 A-F. LSNs of records are multiples of 8, so the low
// three bits of the offset number the attempts that had one start LSN.
type BackupName struct {
	text    string
	segment segment.Name
}

const (
	backupPrefix = "base_"
	deltaInfix   = "_D_"
	// attempts is how many names there are for one start LSN.
	attempts = 8
)

// ParseBackupName reads a name and nothing else.
func ParseBackupName(s string) (BackupName, error) {
	rest, ok := strings.CutPrefix(s, backupPrefix)
	if ok && len(rest) >= 24 {
		n, err := segment.ParseName(rest[:24])
		if err == nil && isBackupSuffix(rest[24:]) {
			return BackupName{s, n}, nil
		}
	}
	return BackupName{}, fmt.Errorf("invalid name %q of a base backup: want base_ and 24 digits 0-9 A-F, perhaps _ and 8 more", s)
}

func isBackupSuffix(s string) bool {
	if parent, ok := strings.CutPrefix(s, deltaInfix); ok {
		_, err := segment.ParseName(parent)
		return err == nil
	}
	return s == "" || len(s) == 9 && s[0] == '_' && strings.Trim(s[1:], "0123456789ABCDEF") == ""
}

// nameBackup returns the name of the attempt of that number, 0 to 7, at a
// backup that starts at start.
func nameBackup(start segment.Position, size segment.Size, attempt int) BackupName {
	n := size.Name(start.Timeline, start.LSN)
	return BackupName{fmt.Sprintf("%s%s_%08X", backupPrefix, n, uint32(size.Offset(start.LSN))|uint32(attempt)), n}
}

// String returns the name as it stands in keys.
func (n BackupName) String() string { return n.text }

// Segment returns the segment that holds the start LSN: the first that a
// restore needs. Its timeline is the one that the backup started on.
func (n BackupName) Segment() segment.Name { return n.segment }

// HasOffset reports whether it is of the second form, whose pg_control is in
// one of the parts; backups of the others have a pg_control part of its own.
func (n BackupName) HasOffset() bool {
	return len(n.text) == len(backupPrefix)+24+9
}

// IsDelta reports whether it is a delta of WAL-G's.
func (n BackupName) IsDelta() bool { return strings.Contains(n.text, deltaInfix) }

// folder is where the backup's objects are, with a slash at its end.
func (n BackupName) folder() string { return basesDir + n.text + "/" }

// sentinelKey is where its sentinel is.
func (n BackupName) sentinelKey() string { return basesDir + n.text + sentinelSuffix }

// sentinelName reads the key of a sentinel.
func sentinelName(key string) (BackupName, bool) {
	text, ok1 := strings.CutPrefix(key, basesDir)
	text, ok2 := strings.CutSuffix(text, sentinelSuffix)
	if !ok1 || !ok2 {
		return BackupName{}, false
	}
	n, err := ParseBackupName(text)
	return n, err == nil
}
