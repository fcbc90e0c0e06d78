package fakepg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// Backup is what BASE_BACKUP sends.
type Backup struct {
	Start, Stop segment.Position // default: the end of the server's WAL
	Archives    []Archive        // tablespaces first, the data directory last
	Manifest    []byte
	Piece       int                        // bytes of one message's content; default 32 kB
	Notices     []*replication.ServerError // sent in the middle of the copy
	End         *replication.ServerError   // sent in place of the last CommandComplete; nil: success
}

// Archive is one archive of a Backup.
type Archive struct {
	OID      uint32 // 0: the data directory
	Location string
	Size     int64 // the server's estimate in kB; < 0: none
	// Content is a tar file with its end, which is left out where the server
	// is one before 15; compressed already when a test asks for that.
	Content []byte
}

// SetBackup sets what BASE_BACKUP sends when it is not scripted. Without it
// the server refuses the command.
func (s *Server) SetBackup(b Backup) { s.update(func() { s.backup = &b }) }

// ScriptBackup replaces the walsender's behaviour for the next BASE_BACKUP;
// several calls queue up. The script's connection is closed when it returns an
// error, and takes further commands when it returns nil.
func (s *Server) ScriptBackup(f func(*BackupSender) error) {
	s.update(func() { s.backupScripts = append(s.backupScripts, f) })
}

// BackupSender is the server's side of one BASE_BACKUP. It belongs to the
// script that was given it. Every method that returns an error does so when
// the connection ended, or was cut after the messages that CloseAfter allows;
// a script returns that.
type BackupSender struct {
	Command     string // as received
	Compression string // as asked for: "", "lz4", "zstd"
	// Before is called before every message, when it is not nil.
	Before func() error

	conn     *conn
	typed    bool
	messages int
}

// baseBackup plays the next script, or sends the backup that was set.
func (c *conn) baseBackup(sql string) error {
	s := c.server
	var backup *Backup
	var script func(*BackupSender) error
	s.update(func() {
		backup = s.backup
		if len(s.backupScripts) > 0 {
			script, s.backupScripts = s.backupScripts[0], s.backupScripts[1:]
		}
	})
	b := &BackupSender{Command: sql, conn: c, typed: !strings.HasPrefix(s.options.Version, "14.")}
	if strings.HasPrefix(sql, "BASE_BACKUP (") != b.typed {
		return c.fail("42601", "replication_yyerror", "syntax error")
	}
	if _, rest, ok := strings.Cut(sql, "COMPRESSION '"); ok {
		b.Compression, _, _ = strings.Cut(rest, "'")
	}
	switch {
	case script != nil:
		return script(b)
	case backup == nil:
		return c.fail("XX000", "", "fakepg: no backup was set")
	}
	return b.Send(*backup)
}

// Server returns the server.
func (b *BackupSender) Server() *Server { return b.conn.server }

// Typed tells whether this server's framing is that of 15 and later.
func (b *BackupSender) Typed() bool { return b.typed }

// send sends messages, or cuts the connection when CloseAfter says so.
func (b *BackupSender) send(messages ...pgproto3.BackendMessage) error {
	s := b.Server()
	for _, m := range messages {
		s.mu.Lock()
		limit := s.closeAfter
		s.mu.Unlock()
		if limit >= 0 && b.messages >= limit {
			return ErrDrop
		}
		b.messages++
		if b.Before != nil {
			if err := b.Before(); err != nil {
				return err
			}
		}
		if err := b.conn.send(m); err != nil {
			return err
		}
	}
	return nil
}

// Messages returns how many messages were sent.
func (b *BackupSender) Messages() int { return b.messages }

// Raw sends bytes as they are.
func (b *BackupSender) Raw(p []byte) error {
	_, err := b.conn.net.Write(p)
	return err
}

// Position sends a result set with a position, which begins and ends a backup.
func (b *BackupSender) Position(at segment.Position) error {
	return b.send(
		columns("recptr", "tli"),
		&pgproto3.DataRow{Values: [][]byte{fmt.Append(nil, at.LSN), fmt.Append(nil, at.Timeline)}},
		&pgproto3.CommandComplete{CommandTag: []byte("SELECT")})
}

// Tablespaces sends the result set with the list of archives.
func (b *BackupSender) Tablespaces(archives []Archive) error {
	if err := b.send(columns("spcoid", "spclocation", "size")); err != nil {
		return err
	}
	for _, a := range archives {
		row := make([][]byte, 3)
		if a.OID != 0 {
			row[0], row[1] = fmt.Append(nil, a.OID), []byte(a.Location)
		}
		if a.Size >= 0 {
			row[2] = fmt.Append(nil, a.Size)
		}
		if err := b.Row(row...); err != nil {
			return err
		}
	}
	return b.CommandComplete("SELECT")
}

// CommandComplete ends a result set, or the command.
func (b *BackupSender) CommandComplete(tag string) error {
	return b.send(&pgproto3.CommandComplete{CommandTag: []byte(tag)})
}

// Ready sends ReadyForQuery.
func (b *BackupSender) Ready() error { return b.send(&ready) }

// Row sends one row; a nil column is null.
func (b *BackupSender) Row(values ...[]byte) error {
	return b.send(&pgproto3.DataRow{Values: values})
}

// CopyOut sends CopyOutResponse.
func (b *BackupSender) CopyOut() error { return b.send(&pgproto3.CopyOutResponse{}) }

// CopyDone ends what CopyOut began.
func (b *BackupSender) CopyDone() error { return b.send(&pgproto3.CopyDone{}) }

// CopyData sends a message of the copy phase as it is.
func (b *BackupSender) CopyData(body []byte) error { return b.send(&pgproto3.CopyData{Data: body}) }

// ArchiveBegins sends the typed message of a new archive.
func (b *BackupSender) ArchiveBegins(name, location string) error {
	return b.CopyData([]byte("n" + name + "\x00" + location + "\x00"))
}

// ManifestBegins sends the typed message that the manifest begins.
func (b *BackupSender) ManifestBegins() error { return b.CopyData([]byte("m")) }

// Progress sends the typed message of bytes done.
func (b *BackupSender) Progress(done int64) error {
	return b.CopyData(binary.BigEndian.AppendUint64([]byte("p"), uint64(done)))
}

// Content sends content in messages of the given size, typed where this
// server's framing is.
func (b *BackupSender) Content(content []byte, piece int) error {
	for len(content) > 0 {
		n := min(piece, len(content))
		body := content[:n:n]
		if b.typed {
			body = append([]byte("d"), body...)
		}
		if err := b.CopyData(body); err != nil {
			return err
		}
		content = content[n:]
	}
	return nil
}

// Notice sends a NoticeResponse.
func (b *BackupSender) Notice(e *replication.ServerError) error {
	n := pgproto3.NoticeResponse(*errorResponse(e))
	return b.send(&n)
}

// Complete ends the command.
func (b *BackupSender) Complete() error {
	if err := b.CommandComplete("BASE_BACKUP"); err != nil {
		return err
	}
	return b.Ready()
}

// Fail sends an error: the connection takes commands again, or ends when the
// severity is FATAL.
func (b *BackupSender) Fail(e *replication.ServerError) error {
	if e.Severity == "" {
		e.Severity = "ERROR"
	}
	b.conn.dropTemporary()
	if e.Severity != "ERROR" {
		return errors.Join(b.send(errorResponse(e)), ErrDrop)
	}
	return b.send(errorResponse(e), &ready)
}

// Begin sends what comes before the copy phase.
func (b *BackupSender) Begin(backup Backup) error {
	if err := b.Position(b.position(backup.Start)); err != nil {
		return err
	}
	return b.Tablespaces(backup.Archives)
}

func (b *BackupSender) position(p segment.Position) segment.Position {
	if p == (segment.Position{}) {
		return segment.Position{Timeline: b.Server().Timeline(), LSN: b.Server().End()}
	}
	return p
}

// Send sends a whole backup.
func (b *BackupSender) Send(backup Backup) error {
	if backup.Piece == 0 {
		backup.Piece = 32 << 10
	}
	if err := b.Begin(backup); err != nil {
		return err
	}
	if b.typed {
		if err := b.CopyOut(); err != nil {
			return err
		}
	}
	done := int64(0)
	for i, a := range backup.Archives {
		if err := b.archive(a, backup.Piece); err != nil {
			return err
		}
		done += int64(len(a.Content))
		if b.typed {
			if err := b.Progress(done); err != nil {
				return err
			}
		}
		if i > 0 {
			continue
		}
		for _, n := range backup.Notices {
			if err := b.Notice(n); err != nil {
				return err
			}
		}
	}
	begin := b.CopyOut
	if b.typed {
		begin = b.ManifestBegins
	}
	if err := begin(); err != nil {
		return err
	}
	if err := b.Content(backup.Manifest, backup.Piece); err != nil {
		return err
	}
	if err := b.CopyDone(); err != nil {
		return err
	}
	if err := b.Position(b.position(backup.Stop)); err != nil {
		return err
	}
	if backup.End != nil {
		return b.Fail(backup.End)
	}
	return b.Complete()
}

// tarEnd is how a tar file ends.
const tarEnd = 2 * 512

// archive sends one archive in this server's framing.
func (b *BackupSender) archive(a Archive, piece int) error {
	if !b.typed {
		if err := b.CopyOut(); err != nil {
			return err
		}
		if err := b.Content(a.Content[:max(len(a.Content)-tarEnd, 0)], piece); err != nil {
			return err
		}
		return b.CopyDone()
	}
	name := "base.tar"
	if a.OID != 0 {
		name = fmt.Sprintf("%d.tar", a.OID)
	}
	switch b.Compression {
	case "lz4":
		name += ".lz4"
	case "zstd":
		name += ".zst"
	}
	if err := b.ArchiveBegins(name, a.Location); err != nil {
		return err
	}
	return b.Content(a.Content, piece)
}

func columns(names ...string) *pgproto3.RowDescription {
	d := &pgproto3.RowDescription{}
	for _, name := range names {
		d.Fields = append(d.Fields, pgproto3.FieldDescription{Name: []byte(name), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1})
	}
	return d
}
