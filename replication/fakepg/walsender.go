package fakepg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// maxSend is how much WAL the server puts into one message.
const maxSend = 16 * pageSize

// Walsender is the server's side of one START_REPLICATION. It belongs to the
// script that was given it. Every method that returns an error does so when
// the connection ended; a script returns that.
type Walsender struct {
	Slot string // "" for none
	From segment.Position
	Sent segment.LSN // end of what was sent: where Send goes on

	conn     *conn
	last     replication.Status
	messages int
	begun    bool
	copyDone bool // ours was sent
	theirs   bool // theirs was received
	failed   bool
}

// startReplication parses the command and plays the next script, or Stream.
func (c *conn) startReplication(rest string) error {
	s := c.server
	w := &Walsender{conn: c}
	words := strings.Fields(rest)
	if len(words) >= 2 && words[0] == "SLOT" {
		w.Slot = strings.Trim(words[1], `"`)
		words = words[2:]
	}
	if len(words) > 0 && words[0] == "PHYSICAL" {
		words = words[1:]
	}
	if len(words) != 3 || words[1] != "TIMELINE" {
		return c.fail("42601", "replication_yyerror", "syntax error")
	}
	lsn, err := segment.ParseLSN(words[0])
	if err != nil {
		return c.fail("42601", "replication_yyerror", "syntax error")
	}
	w.From.LSN, w.Sent = lsn, lsn
	if _, err := fmt.Sscan(words[2], &w.From.Timeline); err != nil {
		return c.fail("42601", "replication_yyerror", "syntax error")
	}
	script := (*Walsender).Stream
	s.update(func() {
		if len(s.scripts) > 0 {
			script, s.scripts = s.scripts[0], s.scripts[1:]
		}
	})
	if w.Slot != "" {
		exists, taken := false, false
		s.update(func() {
			if sl, ok := s.slots[w.Slot]; ok {
				exists, taken = true, sl.taken(c)
				sl.active = sl.active || !taken
			}
		})
		if !exists {
			return c.fail("42704", "ReplicationSlotAcquire", "replication slot %q does not exist", w.Slot)
		}
		if taken {
			return c.fail("55006", "ReplicationSlotAcquire", "replication slot %q is active for PID 1", w.Slot)
		}
		defer s.update(func() {
			if sl, ok := s.slots[w.Slot]; ok {
				sl.active = false
			}
		})
	}
	return script(w)
}

// Server returns the server.
func (w *Walsender) Server() *Server { return w.conn.server }

// Begin sends CopyBothResponse. The sending methods do it when it was not done.
func (w *Walsender) Begin() error {
	if w.begun {
		return nil
	}
	w.begun = true
	return w.conn.send(&pgproto3.CopyBothResponse{})
}

// SendWAL sends data as it is, whatever the server's WAL says.
func (w *Walsender) SendWAL(start segment.LSN, data []byte) error {
	b := []byte{'w'}
	b = binary.BigEndian.AppendUint64(b, uint64(start))
	b = binary.BigEndian.AppendUint64(b, uint64(w.Server().End()))
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixMicro()-epoch))
	w.Sent = start + segment.LSN(len(data))
	return w.copyData(append(b, data...))
}

// Send sends the server's WAL from Sent up to an LSN, in messages as a server
// cuts them: 128 kB at most, ending at page boundaries.
func (w *Walsender) Send(to segment.LSN) error {
	for w.Sent < to {
		end := min(to, w.Sent+maxSend)
		if end < to {
			end -= end % pageSize
		}
		data := w.Server().wal.Bytes(w.From.Timeline, w.Sent, end)
		if len(data) == 0 {
			return fmt.Errorf("fakepg: no WAL at %s on timeline %d", w.Sent, w.From.Timeline)
		}
		if err := w.SendWAL(w.Sent, data); err != nil {
			return err
		}
	}
	return nil
}

// Keepalive sends a keepalive with the given end of WAL.
func (w *Walsender) Keepalive(end segment.LSN, reply bool) error {
	b := []byte{'k'}
	b = binary.BigEndian.AppendUint64(b, uint64(end))
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixMicro()-epoch))
	if reply {
		return w.copyData(append(b, 1))
	}
	return w.copyData(append(b, 0))
}

// copyData sends one message of the stream, or cuts the connection when
// CloseAfter says so.
func (w *Walsender) copyData(b []byte) error {
	if err := w.Begin(); err != nil {
		return err
	}
	s := w.Server()
	s.mu.Lock()
	limit := s.closeAfter
	s.mu.Unlock()
	if limit >= 0 && w.messages >= limit {
		return ErrDrop
	}
	w.messages++
	return w.conn.send(&pgproto3.CopyData{Data: b})
}

// Raw sends bytes as they are.
func (w *Walsender) Raw(b []byte) error {
	_, err := w.conn.net.Write(b)
	return err
}

// Deaf makes the server read nothing of this connection any more (one message
// that is under way is still taken), or read again.
func (w *Walsender) Deaf(deaf bool) { w.conn.inbox.update(func() { w.conn.inbox.deaf = deaf }) }

// Status waits for the next status. The client's CopyDone is ErrCopyDone.
func (w *Walsender) Status() (replication.Status, error) {
	m, err := w.conn.inbox.next(w.conn.done)
	if err != nil {
		return replication.Status{}, err
	}
	return w.heard(m)
}

// ErrCopyDone: the client ended the stream.
var ErrCopyDone = errors.New("fakepg: the client sent CopyDone")

func (w *Walsender) heard(m message) (replication.Status, error) {
	switch m.kind {
	case 'r':
		w.last = m.status
		s := w.Server()
		if m.status.Flush != 0 {
			s.update(func() {
				if sl, ok := s.slots[w.Slot]; ok {
					sl.restart = m.status.Flush // also backwards, as PostgreSQL does
				}
			})
		}
		return m.status, nil
	case 'c':
		w.theirs = true
		return w.last, ErrCopyDone
	case 'X':
		return w.last, ErrDrop
	}
	return w.last, fmt.Errorf("fakepg: unexpected message %q %s in a stream", m.kind, m.text)
}

// Await waits until a status fulfils a condition; the last one counts.
func (w *Walsender) Await(f func(replication.Status) bool) error {
	for !f(w.last) {
		if _, err := w.Status(); err != nil {
			return err
		}
	}
	return nil
}

// CopyDone ends the streamed timeline: CopyDone, the client's CopyDone, the
// row with the next timeline. The connection takes commands again.
func (w *Walsender) CopyDone(next segment.Timeline, at segment.LSN) error {
	if err := w.Begin(); err != nil {
		return err
	}
	if !w.copyDone {
		w.copyDone = true
		if err := w.conn.send(&pgproto3.CopyDone{}); err != nil {
			return err
		}
	}
	for !w.theirs {
		if _, err := w.Status(); err != nil && !errors.Is(err, ErrCopyDone) {
			return err
		}
	}
	return w.ResultSet(next, at)
}

// ResultSet sends the row with the next timeline and completes the command:
// before Begin it is the answer to a start at the switchpoint.
func (w *Walsender) ResultSet(next segment.Timeline, at segment.LSN) error {
	if next != 0 {
		w.conn.backend.Send(&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{
			{Name: []byte("next_tli"), DataTypeOID: 20, DataTypeSize: 8, TypeModifier: -1},
			{Name: []byte("next_tli_startpos"), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1},
		}})
		w.conn.backend.Send(&pgproto3.DataRow{Values: [][]byte{fmt.Append(nil, next), fmt.Append(nil, at)}})
	}
	return w.conn.send(&pgproto3.CommandComplete{CommandTag: []byte("START_STREAMING")}, &pgproto3.CommandComplete{CommandTag: []byte("START_REPLICATION")}, &ready)
}

// CopyZero ends as a controlled shutdown does: CommandComplete "COPY 0",
// no CopyDone, and the end of the connection.
func (w *Walsender) CopyZero() error {
	return errors.Join(w.conn.send(&pgproto3.CommandComplete{CommandTag: []byte("COPY 0")}), ErrDrop)
}

// Fail sends an error: the connection takes commands again, or ends when the
// severity is FATAL.
func (w *Walsender) Fail(e *replication.ServerError) error {
	w.failed = true
	if e.Severity == "" {
		e.Severity = "ERROR"
	}
	w.conn.dropTemporary()
	if e.Severity != "ERROR" {
		return errors.Join(w.conn.send(errorResponse(e)), ErrDrop)
	}
	return w.conn.send(errorResponse(e), &ready)
}

// Drop cuts the connection.
func (w *Walsender) Drop() error { return ErrDrop }

// Removed is what the server says of WAL that it no longer has.
func (w *Walsender) Removed(at segment.LSN) *replication.ServerError {
	name := w.Server().wal.Size().Name(w.From.Timeline, at)
	return &replication.ServerError{Severity: "ERROR", SQLSTATE: "58P01", Routine: "WalSndSegmentOpen", Message: fmt.Sprintf("requested WAL segment %s has already been removed", name)}
}

// Stream behaves like a walsender until the stream ends.
func (w *Walsender) Stream() error {
	s := w.Server()
	history, _ := s.wal.History(s.Timeline())
	if !history.Contains(w.From) {
		return w.Fail(&replication.ServerError{SQLSTATE: "XX000", Routine: "StartReplication", Message: fmt.Sprintf("requested starting point %s on timeline %d is not in this server's history", w.From.LSN, w.From.Timeline)})
	}
	if at, ok := history.Switchpoint(w.From.Timeline); ok && at == w.From.LSN {
		return w.ResultSet(child(history, w.From.Timeline), at)
	}
	if err := w.Begin(); err != nil {
		return err
	}
	if end := s.wal.End(s.Timeline()); w.From.Timeline == s.Timeline() && end < w.From.LSN {
		return w.Fail(&replication.ServerError{SQLSTATE: "XX000", Routine: "StartReplication", Message: fmt.Sprintf("requested starting point %s is ahead of the WAL flush position of this server %s", w.From.LSN, end)})
	}
	return w.loop()
}

func child(h segment.History, parent segment.Timeline) segment.Timeline {
	for i, a := range h.Ancestors {
		if a.Timeline == parent && i+1 < len(h.Ancestors) {
			return h.Ancestors[i+1].Timeline
		}
	}
	return h.Timeline
}

// loop sends what there is and answers, as WalSndLoop does.
func (w *Walsender) loop() error {
	s := w.Server()
	heard := time.Now()
	pinged := false
	for {
		s.mu.Lock()
		stateChanged, shutdown, removed := s.changed, s.shutdown, s.removed
		s.mu.Unlock()
		walChanged := s.wal.Changed()
		inboxChanged := func() <-chan struct{} {
			w.conn.inbox.mu.Lock()
			defer w.conn.inbox.mu.Unlock()
			return w.conn.inbox.changed
		}()

		// What the client said.
		answered := false
		for {
			m, ok, _, err := w.conn.inbox.take()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			heard, pinged, answered = time.Now(), false, true
			st, err := w.heard(m)
			if errors.Is(err, ErrCopyDone) {
				return w.stop()
			}
			if err != nil {
				return err
			}
			if st.ReplyRequested {
				if err := w.Keepalive(w.Sent, false); err != nil {
					return err
				}
			}
		}

		// What there is to send.
		t := s.Timeline()
		history, _ := s.wal.History(t)
		end := s.wal.End(w.From.Timeline)
		at, historic := history.Switchpoint(w.From.Timeline)
		if historic {
			end = at
		}
		if w.Sent < end && w.Sent < removed {
			return w.Fail(w.Removed(w.Sent))
		}
		if historic && s.options.Archiving && w.Sent < at {
			// The switch's segment is read from the next timeline's file
			// (WalSndSegmentOpen), which is gone when that one ended in it, too.
			size := s.wal.Size()
			if next, ended := history.Switchpoint(child(history, w.From.Timeline)); ended && size.Start(next) == size.Start(at) {
				if err := w.Send(size.Start(at)); err != nil {
					return err
				}
				return w.Fail(w.Removed(at))
			}
		}
		if err := w.Send(end); err != nil {
			return err
		}
		if historic {
			return w.CopyDone(child(history, w.From.Timeline), at)
		}

		if shutdown {
			done := w.last.Flush
			if done == 0 {
				done = w.last.Write
			}
			if done == w.Sent {
				return w.CopyZero()
			}
			if answered || !pinged {
				pinged = true
				if err := w.Keepalive(w.Sent, true); err != nil {
					return err
				}
			}
		}

		// PostgreSQL pings after half of wal_sender_timeout without an
		// answer, and gives up, silently, after the whole of it. It also reads
		// while it cannot send: what came in meanwhile counts.
		select {
		case <-inboxChanged:
			continue
		default:
		}
		silent := time.Since(heard)
		if silent >= s.options.SenderTimeout {
			return ErrDrop
		}
		if silent >= s.options.SenderTimeout/2 && !pinged {
			pinged = true
			if err := w.Keepalive(w.Sent, true); err != nil {
				return err
			}
			continue
		}
		wait := s.options.SenderTimeout/2 - silent
		if pinged {
			wait = s.options.SenderTimeout - silent
		}
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-stateChanged:
		case <-walChanged:
		case <-inboxChanged:
		case <-timer.C:
		case <-w.conn.done:
			timer.Stop()
			return ErrDrop
		}
		timer.Stop()
	}
}

// stop answers the client's CopyDone.
func (w *Walsender) stop() error {
	if err := w.conn.send(&pgproto3.CopyDone{}); err != nil {
		return err
	}
	return w.ResultSet(0, 0)
}
