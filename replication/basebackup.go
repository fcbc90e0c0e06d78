package replication

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/segment"
)

// BackupOptions say how the server takes a base backup. What is not here is
// always so: with a tablespace map instead of symbolic links, with a manifest
// of CRC32C checksums, with estimates of the sizes, with page checksums
// verified, and without the server waiting for its own archiver.
type BackupOptions struct {
	// Label goes into backup_label: one line of UTF-8, at most 1023 bytes.
	// Without one it is the server's own.
	Label string
	// Fast asks for the checkpoint at once, not spread over time.
	Fast bool
	// MaxRate bounds what the server sends, in kB (1024 bytes) a second:
	// 32 to 1048576, or 0 for no bound.
	MaxRate int
	// Compression is how the server compresses every archive: "lz4", "zstd",
	// or "" for not at all. The manifest is never compressed.
	Compression string
	// Level of the compression, 1 to 12 for lz4, 1 to 22 for zstd; 0 is the
	// server's choice.
	Level int
}

// extension is what a server that compresses so appends to the names of its
// archives, highest the highest level that it takes.
func extension(compression string) (ext string, highest int, ok bool) {
	switch compression {
	case "":
		return "", 0, true
	case "lz4":
		return ".lz4", 12, true
	case "zstd":
		return ".zst", 22, true
	}
	return "", 0, false
}

// check says what the server would refuse, and what it would take to the harm
// of the backup.
func (o BackupOptions) check() error {
	// The server writes the label as one line of backup_label and reads back
	// at most 1023 bytes of it (read_backup_label in xlogrecovery.c): what is
	// longer, or holds a line's end, would be taken for the lines that follow.
	if len(o.Label) > 1023 || !utf8.ValidString(o.Label) || strings.ContainsFunc(o.Label, func(r rune) bool { return r < ' ' || r == 0x7F }) {
		return fmt.Errorf("invalid backup label %q: want one line of UTF-8, 1023 bytes at most", o.Label)
	}
	if o.MaxRate != 0 && (o.MaxRate < 32 || o.MaxRate > 1<<20) {
		return fmt.Errorf("invalid rate of %d kB a second: want 32 to 1048576, or 0 for no limit", o.MaxRate)
	}
	_, highest, ok := extension(o.Compression)
	if !ok {
		return fmt.Errorf("invalid compression %q on the server: want lz4 or zstd", o.Compression)
	}
	if o.Level < 0 || o.Level > highest {
		return fmt.Errorf("invalid level %d of compression %q on the server: want 0 to %d", o.Level, o.Compression, highest)
	}
	return nil
}

// command is the BASE_BACKUP of these options, for a server of that version:
// PostgreSQL 15 has another grammar than those before it, and neither takes
// the other's (src/backend/replication/repl_gram.y).
func (o BackupOptions) command(v Version) string {
	var words []string
	add := func(s string) { words = append(words, s) }
	if o.Label != "" {
		add("LABEL " + quote(o.Label))
	}
	add("PROGRESS")
	if v.Major() < 15 {
		if o.Fast {
			add("FAST")
		}
		add("NOWAIT")
	} else {
		if o.Fast {
			add("CHECKPOINT 'fast'")
		}
		add("WAIT 0")
	}
	if o.MaxRate != 0 {
		add("MAX_RATE " + strconv.Itoa(o.MaxRate))
	}
	add("TABLESPACE_MAP")
	add("MANIFEST 'yes'")
	add("MANIFEST_CHECKSUMS 'CRC32C'")
	if v.Major() < 15 {
		return "BASE_BACKUP " + strings.Join(words, " ")
	}
	if o.Compression != "" {
		add("COMPRESSION " + quote(o.Compression))
		if o.Level != 0 {
			add("COMPRESSION_DETAIL " + quote("level="+strconv.Itoa(o.Level)))
		}
	}
	return "BASE_BACKUP (" + strings.Join(words, ", ") + ")"
}

// quote makes a string of the walsender's grammar. Its scanner knows quotes
// that are doubled and no other escape: a backslash is a backslash, whatever
// standard_conforming_strings says (xqdouble and xqinside in repl_scanner.l).
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// Tablespace is a part of the cluster that is sent as an archive of its own.
type Tablespace struct {
	OID      uint32 // 0: the data directory
	Location string // the directory on the server; "" for the data directory, relative for a tablespace inside it
	Size     int64  // the server's estimate in bytes; -1: it gave none
}

// BackupKind tells what a BackupMessage is.
type BackupKind uint8

const (
	// BackupArchive begins an archive: Name and Tablespace say which.
	BackupArchive BackupKind = iota + 1
	// BackupData is content of the archive or manifest that began last.
	BackupData
	// BackupManifest begins the manifest. It comes once, behind all archives.
	BackupManifest
	// BackupProgress tells how far the server is.
	BackupProgress
	// BackupWarning is a notice of the server's.
	BackupWarning
)

// BackupMessage is one message of a base backup.
type BackupMessage struct {
	Kind       BackupKind
	Name       string     // BackupArchive: "base.tar" or "16384.tar", with ".lz4" or ".zst" when the server compresses
	Tablespace Tablespace // BackupArchive: which one is inside
	Data       []byte     // BackupData: never empty; borrowed until the next call
	Done       int64      // BackupProgress: bytes of all archives so far, before compression
	Text       string     // BackupWarning: what the server says, one line
	Severity   string     // BackupWarning: "WARNING", "NOTICE" and so on, not localised
	// Suspect marks a BackupWarning about a page or file whose checksum is
	// wrong or could not be verified. If any was wrong, BaseBackup.Suspect
	// says so in the end; the server names five pages of a file.
	Suspect bool
}

// BaseBackup is a connection over which a base backup flows (PostgreSQL
// documentation, "Streaming Replication Protocol", BASE_BACKUP; server side
// src/backend/backup/basebackup.c and basebackup_copy.c, before 15
// src/backend/replication/basebackup.c). Whatever the server's version, its
// owner sees the same: archives one after the other, each a whole tar file
// with its end; the manifest; io.EOF.
//
// It has no goroutine, and holds one buffer that grows to the largest message.
// Its methods are for one caller at a time; Close alone may run beside a Next,
// which then fails.
type BaseBackup struct {
	wire   *wire
	leash  leash
	server string
	state  backupState
	err    error // of the Next that ended it; final

	closed sync.Once
	ending chan struct{} // closed by Close
}

// BaseBackup asks for a base backup and waits for the checkpoint that begins
// it. On success the connection belongs to the BaseBackup and must not be used
// again.
//
// ErrNoCompression can be matched: the connection stays usable, and another
// attempt without compression makes sense. It also stays usable after every
// other refusal of the server's (*ServerError) and of ours. ErrUnsupported is
// a server before PostgreSQL 14. When ctx ends first the server notices no
// sooner than its checkpoint is done.
func (c *Conn) BaseBackup(ctx context.Context, o BackupOptions) (*BaseBackup, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	const sql = "BASE_BACKUP" // in errors: the whole is long, and tells nothing more
	switch {
	case c.dead:
		return nil, fmt.Errorf("%s: %w", sql, ErrClosed)
	case c.version.Major() < 14:
		return nil, c.failed(sql, fmt.Errorf("%w (%s, needs 14)", ErrUnsupported, c.version))
	case c.version.Major() < 15 && o.Compression != "":
		return nil, c.failed(sql, fmt.Errorf("%w (%s, needs 15)", ErrNoCompression, c.version))
	}
	ext, _, _ := extension(o.Compression)
	b := &BaseBackup{wire: c.wire, leash: leash{conn: c.wire.conn}, server: c.server, ending: make(chan struct{})}
	b.state = backupState{typed: c.version.Major() >= 15, extension: ext}
	var reported *ServerError
	err := whileContext(ctx, c.wire.conn, func() error {
		if err := c.wire.send(&pgproto3.Query{String: o.command(c.version)}); err != nil {
			return err
		}
		for !b.state.copying {
			kind, body, err := c.wire.next()
			if err != nil {
				if reported != nil {
					c.dead = true
					return nil // the error says more than the end that it led to
				}
				return err
			}
			switch {
			case kind == 'E':
				if reported, err = decodeError(body); err != nil {
					return err
				}
			case reported == nil:
				if err := b.state.begin(kind, body); err != nil {
					return err
				}
			case kind == 'Z':
				return nil
			}
		}
		return nil
	})
	switch {
	case err != nil:
		c.dead = true
		return nil, c.failed(sql, err)
	case reported != nil:
		if reported.Severity != "ERROR" {
			c.dead = true
		}
		return nil, c.failed(sql, backupError(reported, o))
	}
	c.dead = true // the backup's from here on
	streams(b.wire.conn)
	b.wire.reserve(backupBuffer)
	return b, nil
}

// backupError puts the sentinel beside a server's refusal of BASE_BACKUP.
// Without the library, compression is an invalid specification (42601 in
// parse_basebackup_options), as every other bad option would be: asking again
// without compression shows which it was.
func backupError(e *ServerError, o BackupOptions) error {
	if o.Compression != "" && (e.SQLSTATE == "42601" || e.SQLSTATE == "0A000") {
		return &taggedError{ErrNoCompression, e}
	}
	return e
}

// Start is where the backup begins: recovery from it needs all WAL from here
// to Stop.
func (b *BaseBackup) Start() segment.Position { return b.state.start }

// Tablespaces are the archives that are to come, in the server's order: the
// data directory is the last.
func (b *BaseBackup) Tablespaces() []Tablespace { return slices.Clone(b.state.spaces) }

// Stop is where the backup ends, on a standby perhaps on another timeline than
// it began. It is known when Next has returned io.EOF, and zero before.
func (b *BaseBackup) Stop() segment.Position {
	if !b.state.complete {
		return segment.Position{}
	}
	return b.state.stop
}

// Suspect is not nil when the server ended the backup, behind its end
// position, with the *ServerError of SQLSTATE XX001: the backup is complete,
// but pages of it failed their checksums. It is known when Next has returned
// io.EOF.
func (b *BaseBackup) Suspect() error { return b.state.suspect }

// Next returns what comes next. The error is io.EOF when the server has said
// that the backup is complete, and never before: a connection that ends is
// io.ErrUnexpectedEOF. ErrProtocol, ErrClosed and *ServerError can be matched.
// Every error is final: later calls return it again.
//
// It waits no longer than ctx, with which the whole backup ends: in the call, or
// behind it as long as no other call has brought another context. A Next that
// comes after such an end has ErrClosed. No allocation is made for content, as
// long as the calls share one context.
func (b *BaseBackup) Next(ctx context.Context) (BackupMessage, error) {
	if b.err != nil {
		return BackupMessage{}, b.err
	}
	m, err := b.next(ctx)
	switch {
	case err != nil:
		b.err = fmt.Errorf("base backup from %s: %w", b.server, err)
	case b.state.complete:
		b.err = io.EOF
	default:
		return m, nil
	}
	b.leash.drop()
	return BackupMessage{}, b.err
}

// next reads until there is something to hand over, or the backup is complete.
func (b *BaseBackup) next(ctx context.Context) (BackupMessage, error) {
	for {
		select {
		case <-b.ending:
			return BackupMessage{}, ErrClosed
		default:
		}
		if err := ctx.Err(); err != nil {
			return BackupMessage{}, err
		}
		if !b.leash.hold(ctx) {
			return BackupMessage{}, ErrClosed
		}
		if m, ok := b.state.queued(); ok {
			return m, nil
		}
		kind, body, err := b.receive(ctx)
		if err != nil {
			return BackupMessage{}, err
		}
		m, err := b.state.message(kind, body)
		if err != nil || m.Kind != 0 || b.state.complete {
			return m, err
		}
	}
}

// receive returns the next message of the wire. body is borrowed until the
// next call.
func (b *BaseBackup) receive(ctx context.Context) (kind byte, body []byte, err error) {
	for {
		kind, body, ok, err := b.wire.take()
		if ok || err != nil {
			return kind, body, err
		}
		if err := b.wire.fill(); err != nil {
			select {
			case <-b.ending:
				return 0, nil, ErrClosed
			default:
			}
			if ctx.Err() != nil {
				return 0, nil, ctx.Err()
			}
			return 0, nil, err
		}
	}
}

// Close ends the connection, at any time, also again. A server that was not
// done gives the backup up. The error is always nil: what a backup is worth
// was said by Next.
func (b *BaseBackup) Close() error {
	b.closed.Do(func() {
		close(b.ending)
		b.leash.drop()
		if err := b.wire.conn.SetWriteDeadline(time.Now().Add(time.Second)); err == nil {
			// A server that is done waits for another command; one that is
			// not understands a connection that just ends.
			_ = b.wire.send(&pgproto3.Terminate{})
		}
		_ = b.wire.conn.Close() // TLS would tell that the server is gone already
	})
	return nil
}
