package archive

import (
	"fmt"
	"strings"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/segment"
)

// The folders, and the names in them that are not computed.
const (
	walDir      = "wal_005/"
	basesDir    = "basebackups_005/"
	identityKey = "walferry_005/identity.json"

	partialSuffix  = ".partial"
	sentinelSuffix = "_backup_stop_sentinel.json"
)

// behindName, put behind a name, sorts behind every key that begins with the
// name and an extension, and before the next name.
const behindName = "~"

// kind is what an object in wal_005/ is.
type kind int

const (
	other   kind = iota // history, backup label, or nothing of ours
	whole               // a whole segment
	partial             // the last segment of a timeline that ended in it
)

// walKey takes a key in wal_005/ apart. ext is what follows the name, with its
// dot: one of codec.Readable, or unknown, or empty.
func walKey(key string) (n segment.Name, ext string, k kind) {
	text, ok := strings.CutPrefix(key, walDir)
	if !ok || len(text) < 24 {
		return segment.Name{}, "", other
	}
	n, err := segment.ParseName(text[:24])
	if err != nil {
		return segment.Name{}, "", other
	}
	ext = text[24:]
	if rest, ok := cutPartial(ext); ok {
		return n, rest, partial
	}
	if ext != "" && ext[0] != '.' || isBackupLabel(ext) {
		return segment.Name{}, "", other
	}
	return n, ext, whole
}

// cutPartial removes ".partial" where it is a part of its own.
func cutPartial(ext string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(ext, partialSuffix)
	return rest, ok && (rest == "" || rest[0] == '.')
}

// isBackupLabel tells backup history files, which PostgreSQL's own archiver
// leaves beside a segment: ".00000028.backup" (PostgreSQL:
// IsBackupHistoryFileName in src/include/access/xlog_internal.h).
func isBackupLabel(ext string) bool {
	return len(ext) >= 16 && ext[9:16] == ".backup" && strings.Trim(ext[1:9], "0123456789ABCDEF") == ""
}

// readable tells a whole segment that can be decoded.
func readable(ext string, k kind) bool { return k == whole && codec.CanRead(ext) }

// checkName refuses what cannot be an object's name in wal_005/.
func checkName(name string) error {
	if name == "" || strings.ContainsAny(name, "/\\\x00") || name == "." || name == ".." {
		return fmt.Errorf("invalid name %q of a WAL object", name)
	}
	return nil
}
