package replication

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/walferry/walferry/segment"
)

// backupBuffer is how much of a base backup is read at once, in bytes.
const backupBuffer = 512 << 10

// progressEvery is how many bytes lie between two progress messages that are
// made up for a server before 15, which sends none.
const progressEvery = 16 << 20

// backupState follows the order in which a base backup comes over the wire:
//
//	row of the start; rows of the tablespaces; copy phase; row of the end;
//	CommandComplete BASE_BACKUP
//
// The copy phase is one CopyOut from PostgreSQL 15 on, in which a type byte
// tells what a message is; before that, one CopyOut for each tablespace and
// one for the manifest, of bare content. What does not fit is ErrProtocol.
type backupState struct {
	typed     bool   // framing of 15 and later
	extension string // of the archives' names

	results int // result sets that have come
	start   segment.Position
	spaces  []Tablespace
	names   []string // of the archives of spaces
	begun   []bool   // which of them have begun
	left    int      // how many have not

	section  BackupKind // what content belongs to: BackupArchive, BackupManifest, or 0
	copying  bool       // inside a CopyOut
	copied   bool       // the copy phase is over
	stop     segment.Position
	suspect  error
	complete bool

	// Messages that are handed over before anything else is read; those before
	// taken were.
	pending []BackupMessage
	taken   int

	// Before 15.
	done int64         // content of archives so far
	told int64         // done of the last progress
	tail [2 * 512]byte // the end of a tar file, which these servers leave out
}

// queue puts messages behind those that wait.
func (s *backupState) queue(m ...BackupMessage) { s.pending = append(s.pending, m...) }

// queued returns the message that waits longest, if one does.
func (s *backupState) queued() (BackupMessage, bool) {
	if s.taken == len(s.pending) {
		s.pending, s.taken = s.pending[:0], 0
		return BackupMessage{}, false
	}
	s.taken++
	return s.pending[s.taken-1], true
}

// violation is a message that does not belong where it came.
func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// begin takes a message up to the first CopyOutResponse.
func (s *backupState) begin(kind byte, body []byte) error {
	switch {
	case kind == 'T' || kind == 'S' || kind == 'A':
		return nil
	case kind == 'N':
		m, err := notice(body)
		s.queue(m)
		return err
	case kind == 'D' && s.results == 0 && s.start == segment.Position{}:
		at, err := position(body)
		s.start = at
		return err
	case kind == 'D' && s.results == 1:
		return s.tablespace(body)
	case kind == 'C' && s.results == 0 && s.start != segment.Position{}:
		s.results++
		return nil
	case kind == 'C' && s.results == 1 && len(s.spaces) > 0 && s.spaces[len(s.spaces)-1].OID == 0:
		s.results++
		return nil
	case kind == 'H' && s.results == 2:
		return s.copyOut()
	}
	return violation("unexpected message of type %q before a base backup", kind)
}

// position reads a row of an LSN and a timeline.
func position(body []byte) (segment.Position, error) {
	row, err := dataRow(body)
	if err != nil {
		return segment.Position{}, err
	}
	if len(row) < 2 {
		return segment.Position{}, violation("a position in %d columns", len(row))
	}
	lsn, err := segment.ParseLSN(string(row[0]))
	if err != nil || lsn == 0 {
		return segment.Position{}, violation("a base backup's LSN %q", row[0])
	}
	t, err := parseTimeline(row[1])
	return segment.Position{Timeline: t, LSN: lsn}, err
}

// tablespace reads a row of the list of tablespaces: OID and location, both
// null for the data directory, and the size in kB.
func (s *backupState) tablespace(body []byte) error {
	row, err := dataRow(body)
	if err != nil {
		return err
	}
	if len(row) < 3 || (row[0] == nil) != (row[1] == nil) {
		return violation("a tablespace in %d columns", len(row))
	}
	space, name := Tablespace{Size: -1}, "base"
	if row[0] != nil {
		oid, err := strconv.ParseUint(string(row[0]), 10, 32)
		if err != nil || oid == 0 || len(row[1]) == 0 {
			return violation("tablespace %q in %q", row[0], row[1])
		}
		space.OID, space.Location = uint32(oid), string(row[1])
		name = strconv.FormatUint(oid, 10)
	}
	if row[2] != nil {
		kb, err := strconv.ParseInt(string(row[2]), 10, 64)
		if err != nil || kb < 0 || kb > math.MaxInt64/1024 {
			return violation("a tablespace of %q kB", row[2])
		}
		space.Size = kb * 1024
	}
	name += ".tar" + s.extension
	if slices.Contains(s.names, name) {
		return violation("tablespace %q a second time", row[0])
	}
	s.spaces, s.names, s.begun = append(s.spaces, space), append(s.names, name), append(s.begun, false)
	s.left++
	return nil
}

// message takes a message behind the first CopyOutResponse, once nothing is
// queued any more. What it returns is to be handed over when its Kind is not
// zero, before what it has queued. Its Data aliases body.
func (s *backupState) message(kind byte, body []byte) (BackupMessage, error) {
	switch {
	case kind == 'd' && s.copying && s.typed:
		return s.content(body)
	case kind == 'd' && s.copying:
		return s.bare(body), nil
	case kind == 'c' && s.copying:
		return BackupMessage{}, s.copyDone()
	case kind == 'H' && !s.copying && !s.copied:
		return BackupMessage{}, s.copyOut()
	case kind == 'N':
		return notice(body)
	case kind == 'S' || kind == 'A':
		return BackupMessage{}, nil
	case kind == 'E':
		return BackupMessage{}, s.failed(body)
	case kind == 'T' && s.copied:
		return BackupMessage{}, nil
	case kind == 'D' && s.copied && s.stop == segment.Position{}:
		at, err := position(body)
		if err != nil {
			return BackupMessage{}, err
		}
		if at.Timeline < s.start.Timeline || at.LSN < s.start.LSN {
			return BackupMessage{}, violation("the backup from %s ends at %s", s.start, at)
		}
		s.stop = at
		return BackupMessage{}, nil
	case kind == 'C' && s.stop != segment.Position{}:
		// One for the row, the other for the command: nothing that could
		// fail comes behind it.
		s.complete = string(body) == "BASE_BACKUP\x00"
		return BackupMessage{}, nil
	}
	return BackupMessage{}, violation("unexpected message of type %q in a base backup", kind)
}

// failed is the server's error. A page whose checksum is wrong lets the server
// end the backup with one when it has told the end already
// (perform_base_backup in basebackup.c): everything has come.
func (s *backupState) failed(body []byte) error {
	se, err := decodeError(body)
	if err != nil {
		return err
	}
	if s.stop != (segment.Position{}) && se.SQLSTATE == "XX001" && se.Severity == "ERROR" {
		s.suspect, s.complete = se, true
		return nil
	}
	return se
}

// copyOut begins the copy phase, or before 15 the next part of it.
func (s *backupState) copyOut() error {
	s.copying = true
	switch {
	case s.typed:
	case s.left > 0:
		s.queue(s.archive(len(s.spaces) - s.left))
	default:
		s.section = BackupManifest
		s.queue(BackupMessage{Kind: BackupManifest})
	}
	return nil
}

// copyDone ends the copy phase, or before 15 a part of it.
func (s *backupState) copyDone() error {
	s.copying = false
	if s.section == BackupManifest {
		s.copied = true
		return nil
	}
	if s.typed {
		return violation("the base backup ends without a manifest")
	}
	s.done += int64(len(s.tail))
	s.told = s.done
	s.queue(BackupMessage{Kind: BackupData, Data: s.tail[:]}, BackupMessage{Kind: BackupProgress, Done: s.done})
	return nil
}

// archive begins the archive of a tablespace.
func (s *backupState) archive(i int) BackupMessage {
	s.begun[i] = true
	s.left--
	s.section = BackupArchive
	return BackupMessage{Kind: BackupArchive, Name: s.names[i], Tablespace: s.spaces[i]}
}

// bare takes content as it came before 15.
func (s *backupState) bare(body []byte) BackupMessage {
	if len(body) == 0 {
		return BackupMessage{}
	}
	if s.section == BackupArchive {
		s.done += int64(len(body))
		if s.done-s.told >= progressEvery {
			s.told = s.done
			s.queue(BackupMessage{Kind: BackupProgress, Done: s.done})
		}
	}
	return BackupMessage{Kind: BackupData, Data: body}
}

// content takes a message of the copy phase from 15 on. Names are compared
// with those that the list of tablespaces leads to: no other can be taken for
// a file's.
func (s *backupState) content(body []byte) (BackupMessage, error) {
	t, err := parseTyped(body)
	if err != nil {
		return BackupMessage{}, err
	}
	switch t.kind {
	case 'n':
		i := slices.Index(s.names, string(t.name))
		switch {
		case i < 0:
			return BackupMessage{}, violation("archive %q is of none of the tablespaces", t.name)
		case s.begun[i]: // as it has behind the manifest
			return BackupMessage{}, violation("archive %q a second time", t.name)
		case string(t.path) != s.spaces[i].Location:
			return BackupMessage{}, violation("archive %q is of %q, not of %q", t.name, t.path, s.spaces[i].Location)
		}
		return s.archive(i), nil
	case 'm':
		switch {
		case s.section == BackupManifest:
			return BackupMessage{}, violation("a second manifest")
		case s.left > 0:
			return BackupMessage{}, violation("the manifest comes before %d of %d archives", s.left, len(s.names))
		}
		s.section = BackupManifest
		return BackupMessage{Kind: BackupManifest}, nil
	case 'p':
		return BackupMessage{Kind: BackupProgress, Done: t.done}, nil
	}
	if s.section == 0 {
		return BackupMessage{}, violation("content before an archive")
	}
	if len(t.data) == 0 {
		return BackupMessage{}, nil
	}
	return BackupMessage{Kind: BackupData, Data: t.data}, nil
}

// typedMessage is a CopyData message of a base backup from 15 on.
type typedMessage struct {
	kind       byte   // 'n', 'd', 'p' or 'm'
	name, path []byte // 'n': a new archive, and the tablespace's location
	data       []byte // 'd': content
	done       int64  // 'p': progress
}

// parseTyped reads the body of a CopyData message (PostgreSQL documentation,
// BASE_BACKUP: "new archive", "manifest", "archive or manifest data",
// "progress report"; server side bbsink_copystream in basebackup_copy.c). What
// it returns aliases body.
func parseTyped(body []byte) (typedMessage, error) {
	if len(body) == 0 {
		return typedMessage{}, violation("empty CopyData in a base backup")
	}
	t, rest := typedMessage{kind: body[0]}, body[1:]
	ok := false
	switch t.kind {
	case 'n':
		if t.name, rest, ok = bytes.Cut(rest, []byte{0}); ok {
			t.path, rest, ok = bytes.Cut(rest, []byte{0})
		}
		ok = ok && len(rest) == 0
	case 'd':
		t.data, ok = rest[:len(rest):len(rest)], true
	case 'm':
		ok = len(rest) == 0
	case 'p':
		if ok = len(rest) == 8; ok {
			t.done = int64(binary.BigEndian.Uint64(rest))
			ok = t.done >= 0
		}
	default:
		return typedMessage{}, violation("CopyData of unknown kind %q in a base backup", t.kind)
	}
	if !ok {
		return typedMessage{}, violation("CopyData of kind %q with %d bytes in a base backup", t.kind, len(body))
	}
	return t, nil
}

// notice reads a NoticeResponse. Messages may be localised; severity and
// routine never are.
func notice(body []byte) (BackupMessage, error) {
	e, err := decodeError(body) // the fields are the same
	if err != nil {
		return BackupMessage{}, err
	}
	m := BackupMessage{Kind: BackupWarning, Severity: e.Severity, Text: oneLine(e.Message)}
	if e.Detail != "" {
		m.Text += " (" + oneLine(e.Detail) + ")"
	}
	// All that these routines warn of are checksums: a page whose checksum is
	// wrong, how many of a file are, a file that has no whole pages.
	m.Suspect = e.Severity == "WARNING" && (e.Routine == "sendFile" || e.Routine == "read_file_data_into_buffer")
	return m, nil
}
