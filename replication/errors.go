package replication

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/segment"
)

// What a caller decides on. All of them are found with errors.Is in the
// errors of this package; a *ServerError stands beside them where the server
// said it.
var (
	// ErrWALRemoved: the server no longer has the WAL that was asked for.
	ErrWALRemoved = errors.New("the WAL asked for has already been removed")
	// ErrAhead: the position asked for lies beyond the server's own WAL.
	ErrAhead = errors.New("the position asked for is ahead of the server")
	// ErrNotInHistory: the timeline, or the position on it, is not part of
	// the server's history.
	ErrNotInHistory = errors.New("the position asked for is not in this server's history")
	// ErrNoHistory: the server has no history file of the timeline.
	ErrNoHistory = errors.New("the server has no such timeline history file")
	// ErrShutdown: the server ended the stream in good order because it is
	// being shut down, after it had sent everything that it has.
	ErrShutdown = errors.New("the server is shutting down")
	// ErrSlotExists: a slot of this name exists already.
	ErrSlotExists = errors.New("the replication slot exists already")
	// ErrSlotMissing: there is no slot of this name.
	ErrSlotMissing = errors.New("the replication slot does not exist")
	// ErrSlotActive: another connection uses the slot.
	ErrSlotActive = errors.New("the replication slot is in use")
	// ErrSlotLost: the slot was invalidated, its WAL may be gone.
	ErrSlotLost = errors.New("the replication slot is lost")
	// ErrSlotLogical: the slot is a logical one and cannot be streamed from.
	ErrSlotLogical = errors.New("the replication slot is not a physical one")
	// ErrNoFreeSlot: max_replication_slots are in use.
	ErrNoFreeSlot = errors.New("no replication slot is free")
	// ErrUnsupported: this server version does not know the command.
	ErrUnsupported = errors.New("not supported by this server version")
	// ErrNoCompression: the server cannot compress a base backup as asked for:
	// it is older than PostgreSQL 15, or was built without the library.
	ErrNoCompression = errors.New("the server cannot compress a base backup in this way")
	// ErrNoPassword: the server wants a password, and none was found.
	ErrNoPassword = errors.New("no password was given")
	// ErrProtocol: the server sent what the protocol does not allow.
	ErrProtocol = errors.New("protocol violation")
	// ErrClosed: the connection or stream was closed by its owner.
	ErrClosed = errors.New("the connection is closed")
)

// ServerError is an error that the server reported (PostgreSQL documentation,
// "Error and Notice Message Fields").
type ServerError struct {
	Severity string // ERROR, FATAL or PANIC, not localised
	SQLSTATE string
	Message  string
	Detail   string
	Hint     string
	Routine  string // the function in the server's source, never localised
}

// Error returns one line: severity, message, detail and SQLSTATE.
func (e *ServerError) Error() string {
	var b strings.Builder
	b.WriteString(e.Severity)
	b.WriteString(": ")
	b.WriteString(oneLine(e.Message))
	if e.Detail != "" {
		b.WriteString(" (")
		b.WriteString(oneLine(e.Detail))
		b.WriteByte(')')
	}
	b.WriteString(" (SQLSTATE ")
	b.WriteString(e.SQLSTATE)
	b.WriteByte(')')
	return b.String()
}

// serverError copies a received message: its strings are its own already.
func serverError(m *pgproto3.ErrorResponse) *ServerError {
	sev := m.SeverityUnlocalized
	if sev == "" {
		sev = m.Severity
	}
	return &ServerError{Severity: sev, SQLSTATE: m.Code, Message: m.Message, Detail: m.Detail, Hint: m.Hint, Routine: m.Routine}
}

// EndOfTimeline is how a stream of a timeline ends when the server went on to
// another one: the timeline that was streamed ended at At, and Next begins
// there.
type EndOfTimeline struct {
	Timeline segment.Timeline // the one that was streamed
	Next     segment.Timeline
	At       segment.LSN
}

// Error returns one line with both timelines and the switchpoint.
func (e *EndOfTimeline) Error() string {
	return fmt.Sprintf("timeline %d ended at %s, timeline %d follows", e.Timeline, e.At, e.Next)
}

// Position is where the next timeline begins.
func (e *EndOfTimeline) Position() segment.Position {
	return segment.Position{Timeline: e.Next, LSN: e.At}
}

// streamError puts the sentinel beside an error that the server gave to
// START_REPLICATION. copying tells whether CopyBothResponse came first.
//
// Messages may be translated (lc_messages), so the decision rests on the
// SQLSTATE and on the name of the server's routine, which is never localised.
// The messages without an SQLSTATE of their own (XX000) are: in
// StartReplication, before CopyBothResponse, "requested starting point … is
// not in this server's history", and behind it "requested starting point … is
// ahead of the WAL flush position of this server"; in tliSwitchPoint
// "requested timeline … is not in this server's history" (PostgreSQL 14 to 18,
// src/backend/replication/walsender.c, src/backend/access/transam/timeline.c).
func streamError(e *ServerError, copying bool) error {
	switch e.SQLSTATE {
	case "58P01":
		return &taggedError{ErrWALRemoved, e}
	case "55006":
		return &taggedError{ErrSlotActive, e}
	case "42704":
		return &taggedError{ErrSlotMissing, e}
	case "55000":
		switch {
		case strings.HasPrefix(e.Routine, "ReplicationSlot"): // 18: "can no longer access replication slot"
			return &taggedError{ErrSlotLost, e}
		case e.Routine == "StartReplication": // "cannot use a logical replication slot for physical replication"
			return &taggedError{ErrSlotLogical, e}
		}
	case "XX000":
		switch {
		case e.Routine == "CheckXLogRemoved": // no file was looked for, so that errno gives no SQLSTATE
			return &taggedError{ErrWALRemoved, e}
		case e.Routine == "tliSwitchPoint":
			return &taggedError{ErrNotInHistory, e}
		case e.Routine == "StartReplication" && !copying:
			return &taggedError{ErrNotInHistory, e}
		case e.Routine == "StartReplication":
			return &taggedError{ErrAhead, e}
		}
	}
	return e
}

// taggedError is what the server said, matchable both as the sentinel and as
// the *ServerError. Its text is the server's alone: the sentinel adds nothing
// that a person would miss.
type taggedError struct {
	sentinel error
	server   *ServerError
}

func (e *taggedError) Error() string   { return e.server.Error() }
func (e *taggedError) Unwrap() []error { return []error{e.sentinel, e.server} }

// oneLine makes a text that a server or library sent safe for one line.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' || r == '\t' }), " ")
}
