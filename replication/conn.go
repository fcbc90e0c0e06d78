package replication

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/segment"
)

// Conn is an idle replication connection. It takes one command at a time and
// is not safe for concurrent use. When a command's context ends before the
// server has answered, or the server breaks the protocol, the connection is
// of no further use: every later call returns ErrClosed. Its owner closes it;
// StartReplication hands it over to the Stream.
type Conn struct {
	wire    *wire
	params  map[string]string
	version Version
	server  string // host:port and user, for errors
	pid     uint32
	config  *Config // for this server alone
	dead    bool

	identified bool // IDENTIFY_SYSTEM was run, which START_REPLICATION of 14 asks for
}

// newConn takes over a connection that has been started up.
func newConn(w *wire, params map[string]string, pid uint32, server string) (*Conn, error) {
	v, err := parseVersion(params["server_version"])
	if err != nil {
		return nil, err
	}
	return &Conn{wire: w, params: params, version: v, pid: pid, server: server}, nil
}

// Version returns the server's version.
func (c *Conn) Version() Version { return c.version }

// PID returns the process ID of the server's walsender.
func (c *Conn) PID() uint32 { return c.pid }

// String returns the server's host and port and our user there.
func (c *Conn) String() string { return c.server }

// Parameter returns a parameter that the server reported when we connected,
// such as in_hot_standby, or "".
func (c *Conn) Parameter(name string) string { return c.params[name] }

// Config returns settings that lead to this very server, for further
// connections to it.
func (c *Conn) Config() *Config { return c.config }

// InRecovery tells whether the server was a standby when we connected. It is
// known from PostgreSQL 14 on.
func (c *Conn) InRecovery() bool { return c.params["in_hot_standby"] == "on" }

// RemoteAddr returns the network address of the server.
func (c *Conn) RemoteAddr() net.Addr { return c.wire.conn.RemoteAddr() }

// Close says good-bye to the server and closes the connection. It waits for
// nothing but the good-bye, no longer than ctx and one second. The error is
// always nil: nothing hangs on how an idle connection ends.
func (c *Conn) Close(ctx context.Context) error {
	if !c.dead {
		c.dead = true
		if err := c.wire.conn.SetDeadline(time.Now().Add(time.Second)); err == nil {
			// The server also understands a connection that just ends.
			_ = whileContext(ctx, c.wire.conn, func() error { return c.wire.send(&pgproto3.Terminate{}) })
		}
	}
	_ = c.wire.conn.Close() // TLS would tell that the server is gone already
	return nil
}

// result is the answer to one command: rows of text or bytes, nil for null.
type result struct {
	rows [][][]byte
}

// simple sends one command and reads its answer up to ReadyForQuery. An error
// that the server reports is a *ServerError, wrapped with what was asked.
func (c *Conn) simple(ctx context.Context, sql string) (result, error) {
	var res result
	if c.dead {
		return res, fmt.Errorf("%s: %w", sql, ErrClosed)
	}
	var reported *ServerError
	err := whileContext(ctx, c.wire.conn, func() error {
		if err := c.wire.send(&pgproto3.Query{String: sql}); err != nil {
			return err
		}
		for {
			kind, body, err := c.wire.next()
			if err != nil {
				if reported != nil {
					return nil // a FATAL error, and then the end: the error says more
				}
				return err
			}
			switch kind {
			case 'D':
				row, err := dataRow(body)
				if err != nil {
					return err
				}
				res.rows = append(res.rows, row)
			case 'E':
				if reported, err = decodeError(body); err != nil {
					return err
				}
			case 'Z':
				return nil
			case 'T', 'C', 'N', 'S', 'A', 'I':
			default:
				return fmt.Errorf("%w: unexpected message of type %q", ErrProtocol, kind)
			}
		}
	})
	if err != nil {
		c.dead = true
		return res, fmt.Errorf("%s on %s: %w", sql, c.server, err)
	}
	if reported != nil {
		if reported.Severity != "ERROR" {
			c.dead = true // FATAL and PANIC end the connection
		}
		return res, reported
	}
	return res, nil
}

// one sends a command whose answer is one row of at least cols columns.
func (c *Conn) one(ctx context.Context, sql string, cols int) ([][]byte, error) {
	res, err := c.simple(ctx, sql)
	if err != nil {
		var se *ServerError
		if errors.As(err, &se) {
			return nil, c.failed(sql, err)
		}
		return nil, err
	}
	if len(res.rows) != 1 || len(res.rows[0]) < cols {
		return nil, c.failed(sql, fmt.Errorf("%w: %d rows where one of %d columns was expected", ErrProtocol, len(res.rows), cols))
	}
	return res.rows[0], nil
}

// failed says which command failed where.
func (c *Conn) failed(sql string, err error) error {
	return fmt.Errorf("%s on %s: %w", sql, c.server, err)
}

// dataRow copies a row out of a borrowed body.
func dataRow(body []byte) ([][]byte, error) {
	var m pgproto3.DataRow
	if err := m.Decode(body); err != nil {
		return nil, malformed(err)
	}
	row := make([][]byte, len(m.Values))
	for i, v := range m.Values {
		if v != nil {
			row[i] = append([]byte{}, v...)
		}
	}
	return row, nil
}

// decodeError reads the body of an ErrorResponse.
func decodeError(body []byte) (*ServerError, error) {
	var m pgproto3.ErrorResponse
	if err := m.Decode(body); err != nil {
		return nil, malformed(err)
	}
	return serverError(&m), nil
}

// malformed is a message that cannot be decoded. Its decoder says so with
// io.EOF, which must not be taken for an end that was wanted.
func malformed(err error) error { return violation("%s", err) }

// System is a server's answer to IDENTIFY_SYSTEM.
type System struct {
	SystemIdentifier uint64
	Timeline         segment.Timeline
	Flush            segment.LSN // on a standby: the last replayed or received LSN
}

// IdentifySystem asks which cluster this is and where its WAL ends.
func (c *Conn) IdentifySystem(ctx context.Context) (System, error) {
	const sql = "IDENTIFY_SYSTEM"
	row, err := c.one(ctx, sql, 4)
	if err != nil {
		return System{}, err
	}
	id, err := strconv.ParseUint(string(row[0]), 10, 64)
	if err != nil {
		return System{}, c.failed(sql, fmt.Errorf("%w: system identifier %q", ErrProtocol, row[0]))
	}
	t, err := parseTimeline(row[1])
	if err != nil {
		return System{}, c.failed(sql, err)
	}
	flush, err := segment.ParseLSN(string(row[2]))
	if err != nil {
		return System{}, c.failed(sql, fmt.Errorf("%w: %w", ErrProtocol, err))
	}
	if row[3] != nil {
		return System{}, c.failed(sql, fmt.Errorf("%w: a connection to database %q where one for physical replication was asked for", ErrProtocol, row[3]))
	}
	c.identified = true
	return System{SystemIdentifier: id, Timeline: t, Flush: flush}, nil
}

func parseTimeline(b []byte) (segment.Timeline, error) {
	n, err := strconv.ParseUint(string(b), 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%w: timeline %q", ErrProtocol, b)
	}
	return segment.Timeline(n), nil
}

// Show returns a setting's value as SHOW prints it, with its unit. A setting
// that the server does not know, or hides from this role, is a *ServerError.
func (c *Conn) Show(ctx context.Context, name string) (string, error) {
	for i := 0; i < len(name); i++ {
		if b := name[i]; (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '_' && b != '.' {
			return "", fmt.Errorf("invalid name of a setting: %q", name)
		}
	}
	// Upper case: the walsender's own grammar knows no other spelling
	// (src/backend/replication/repl_scanner.l).
	row, err := c.one(ctx, "SHOW "+name, 1)
	if err != nil {
		return "", err
	}
	return string(row[0]), nil
}

// TimelineHistory returns the content of timeline t's history file as the
// server has it. A server without it is ErrNoHistory.
func (c *Conn) TimelineHistory(ctx context.Context, t segment.Timeline) ([]byte, error) {
	sql := fmt.Sprintf("TIMELINE_HISTORY %d", t)
	row, err := c.one(ctx, sql, 2)
	if err != nil {
		var se *ServerError
		if errors.As(err, &se) && se.SQLSTATE == "58P01" {
			return nil, c.failed(sql, &taggedError{ErrNoHistory, se})
		}
		return nil, err
	}
	if string(row[0]) != t.HistoryName() {
		return nil, c.failed(sql, fmt.Errorf("%w: the answer is %q", ErrProtocol, row[0]))
	}
	return row[1], nil
}

// CheckSlotName returns an error unless PostgreSQL takes name for a slot: one
// to 63 of a-z, 0-9 and the underscore (ReplicationSlotValidateName in
// src/backend/replication/slot.c).
func CheckSlotName(name string) error {
	ok := len(name) > 0 && len(name) <= 63
	for i := 0; ok && i < len(name); i++ {
		b := name[i]
		ok = b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '_'
	}
	if !ok {
		return fmt.Errorf("invalid slot name %q: want 1 to 63 of a-z, 0-9 and _", name)
	}
	return nil
}

// CreateSlot makes a physical slot that holds WAL from now on: its restart_lsn
// is set at once. The slot is durable on return. ErrSlotExists and
// ErrNoFreeSlot can be matched.
func (c *Conn) CreateSlot(ctx context.Context, name string) error {
	return c.createSlot(ctx, name, "")
}

// CreateIdleSlot makes a physical slot that holds no WAL until somebody has
// streamed with it, as pg_receivewal --create-slot does. Else it is CreateSlot.
func (c *Conn) CreateIdleSlot(ctx context.Context, name string) error {
	if err := CheckSlotName(name); err != nil {
		return err
	}
	sql := `CREATE_REPLICATION_SLOT "` + name + `" PHYSICAL`
	_, err := c.one(ctx, sql, 1)
	return c.tagSlot(sql, err)
}

// CreateTemporarySlot makes a physical slot that holds WAL from now on and
// belongs to this connection: nobody else can use it, a Stream that the
// connection becomes can, and the server drops it when the connection ends.
// It also drops it when a command on the connection fails
// (ReplicationSlotCleanup in WalSndErrorCleanup, walsender.c). ErrSlotExists
// and ErrNoFreeSlot can be matched.
func (c *Conn) CreateTemporarySlot(ctx context.Context, name string) error {
	return c.createSlot(ctx, name, "TEMPORARY ")
}

func (c *Conn) createSlot(ctx context.Context, name, kind string) error {
	if err := CheckSlotName(name); err != nil {
		return err
	}
	sql := `CREATE_REPLICATION_SLOT "` + name + `" ` + kind + `PHYSICAL RESERVE_WAL`
	if c.version.Major() >= 15 {
		sql = `CREATE_REPLICATION_SLOT "` + name + `" ` + kind + `PHYSICAL (RESERVE_WAL)`
	}
	_, err := c.one(ctx, sql, 1)
	return c.tagSlot(sql, err)
}

// DropSlot removes a slot. ErrSlotMissing and ErrSlotActive can be matched.
func (c *Conn) DropSlot(ctx context.Context, name string) error {
	if err := CheckSlotName(name); err != nil {
		return err
	}
	sql := `DROP_REPLICATION_SLOT "` + name + `"`
	_, err := c.simple(ctx, sql)
	return c.tagSlot(sql, err)
}

// tagSlot puts the sentinel beside an error of a slot command.
func (c *Conn) tagSlot(sql string, err error) error {
	var se *ServerError
	if !errors.As(err, &se) {
		return err
	}
	switch se.SQLSTATE {
	case "42710":
		return c.failed(sql, &taggedError{ErrSlotExists, se})
	case "42704":
		return c.failed(sql, &taggedError{ErrSlotMissing, se})
	case "55006":
		return c.failed(sql, &taggedError{ErrSlotActive, se})
	case "53400":
		return c.failed(sql, &taggedError{ErrNoFreeSlot, se})
	}
	return c.failed(sql, se)
}

// Slot is what READ_REPLICATION_SLOT tells of a slot.
type Slot struct {
	Exists bool
	Type   string // "physical" or "logical"
	// RestartLSN is the oldest LSN that the slot holds, zero when it holds
	// none: nothing was reserved yet, or the slot is lost.
	RestartLSN      segment.LSN
	RestartTimeline segment.Timeline // zero with a zero RestartLSN
}

// ReadSlot asks for a slot. A slot that does not exist is no error. Servers
// before PostgreSQL 15 do not know the command: ErrUnsupported. Of a logical
// slot only its type is known.
func (c *Conn) ReadSlot(ctx context.Context, name string) (Slot, error) {
	if err := CheckSlotName(name); err != nil {
		return Slot{}, err
	}
	sql := `READ_REPLICATION_SLOT "` + name + `"`
	if c.version.Major() < 15 {
		return Slot{}, c.failed(sql, fmt.Errorf("%w (%s, needs 15)", ErrUnsupported, c.version))
	}
	row, err := c.one(ctx, sql, 3)
	if err != nil {
		// The one refusal of the routine: "cannot use READ_REPLICATION_SLOT
		// with a logical replication slot".
		var se *ServerError
		if errors.As(err, &se) && se.Routine == "ReadReplicationSlot" && (se.SQLSTATE == "55000" || se.SQLSTATE == "0A000") {
			return Slot{Exists: true, Type: "logical"}, nil
		}
		return Slot{}, err
	}
	if row[0] == nil {
		return Slot{}, nil
	}
	s := Slot{Exists: true, Type: string(row[0])}
	if row[1] == nil {
		return s, nil
	}
	if s.RestartLSN, err = segment.ParseLSN(string(row[1])); err != nil {
		return Slot{}, c.failed(sql, fmt.Errorf("%w: %w", ErrProtocol, err))
	}
	if row[2] != nil {
		if s.RestartTimeline, err = parseTimeline(row[2]); err != nil {
			return Slot{}, c.failed(sql, err)
		}
	}
	return s, nil
}

// StartReplication asks for WAL from a position, with a slot or (slot "")
// without one. On success the connection belongs to the Stream and must not
// be used again.
//
// When the timeline asked for ended exactly there, the server answers at once
// with the next one: the error is an *EndOfTimeline and the connection stays
// usable. It also stays usable when the server refuses: ErrSlotMissing,
// ErrSlotActive, ErrSlotLost, ErrSlotLogical and ErrNotInHistory can be
// matched. ErrAhead and ErrWALRemoved come later, from the Stream: the server
// looks only after it has agreed.
func (c *Conn) StartReplication(ctx context.Context, slot string, from segment.Position) (*Stream, error) {
	var b strings.Builder
	b.WriteString("START_REPLICATION ")
	if slot != "" {
		if err := CheckSlotName(slot); err != nil {
			return nil, err
		}
		b.WriteString(`SLOT "` + slot + `" `)
	}
	fmt.Fprintf(&b, "PHYSICAL %s TIMELINE %d", from.LSN, from.Timeline)
	sql := b.String()
	if c.dead {
		return nil, fmt.Errorf("%s: %w", sql, ErrClosed)
	}
	if c.version.Major() < 15 && !c.identified {
		// "IDENTIFY_SYSTEM has not been run before START_REPLICATION":
		// StartReplication in walsender.c, 14.
		if _, err := c.IdentifySystem(ctx); err != nil {
			return nil, err
		}
	}

	var reported *ServerError
	var ended *EndOfTimeline
	copying := false
	err := whileContext(ctx, c.wire.conn, func() error {
		if err := c.wire.send(&pgproto3.Query{String: sql}); err != nil {
			return err
		}
		for {
			kind, body, err := c.wire.next()
			if err != nil {
				if reported != nil {
					return nil
				}
				return err
			}
			switch kind {
			case 'W':
				copying = true
				return nil
			case 'D':
				if ended, err = nextTimeline(body, from.Timeline); err != nil {
					return err
				}
			case 'E':
				if reported, err = decodeError(body); err != nil {
					return err
				}
			case 'Z':
				if reported == nil && ended == nil {
					return fmt.Errorf("%w: START_REPLICATION ended without a stream", ErrProtocol)
				}
				return nil
			case 'T', 'C', 'N', 'S', 'A':
			default:
				return fmt.Errorf("%w: unexpected message of type %q", ErrProtocol, kind)
			}
		}
	})
	switch {
	case err != nil:
		c.dead = true
		return nil, c.failed(sql, err)
	case reported != nil:
		if reported.Severity != "ERROR" {
			c.dead = true
		}
		return nil, c.failed(sql, streamError(reported, false))
	case copying:
		c.dead = true // the stream's from here on
		return newStream(c.wire, c.server, from.Timeline), nil
	default:
		return nil, c.failed(sql, ended)
	}
}

// nextTimeline reads the row that ends a timeline: the next timeline (int8)
// and where it begins (text).
func nextTimeline(body []byte, streamed segment.Timeline) (*EndOfTimeline, error) {
	row, err := dataRow(body)
	if err != nil {
		return nil, err
	}
	if len(row) < 2 {
		return nil, fmt.Errorf("%w: next timeline in %d columns", ErrProtocol, len(row))
	}
	next, err := parseTimeline(row[0])
	if err != nil {
		return nil, err
	}
	at, err := segment.ParseLSN(string(row[1]))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if next <= streamed {
		return nil, fmt.Errorf("%w: timeline %d is said to follow timeline %d", ErrProtocol, next, streamed)
	}
	return &EndOfTimeline{Timeline: streamed, Next: next, At: at}, nil
}
