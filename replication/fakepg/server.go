package fakepg

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// Options describe a server. Zero values are a usual PostgreSQL 15 with an
// empty log of 16 MB segments.
type Options struct {
	SystemIdentifier uint64           // default 7300000000000000001
	SegmentSize      segment.Size     // default 16 MB
	Version          string           // default "15.18"
	Seed             uint64           // of the WAL's bytes
	WAL              *WAL             // an existing log: a standby of another server, or a restored one
	Timeline         segment.Timeline // the current one; default the WAL's newest
	InRecovery       bool
	Password         string        // asked for in clear text when set
	SenderTimeout    time.Duration // wal_sender_timeout; default 60 s
	// Archiving is archive_mode: at its promotion the server renames the last
	// segment of the timeline that ends to .partial, and cannot send it any more.
	Archiving bool
}

// Server is a scripted PostgreSQL. Its methods are safe for concurrent use.
type Server struct {
	options Options
	wal     *WAL

	mu            sync.Mutex
	timeline      segment.Timeline
	settings      map[string]string
	slots         map[string]*slot
	removed       segment.LSN // WAL before it is gone
	scripts       []func(*Walsender) error
	backup        *Backup
	backupScripts []func(*BackupSender) error
	onCommand     func(sql string) error
	onQuery       func(database, sql string) (Rows, error)
	startupErr    *replication.ServerError
	down          bool
	shutdown      bool
	closeAfter    int // messages until the connection of a stream or backup is cut; < 0: never
	conns         map[*conn]struct{}
	statuses      []replication.Status
	commands      []string
	startups      []map[string]string
	changed       chan struct{} // closed and replaced when something above changes
	closed        bool
	listeners     []net.Listener
	wg            sync.WaitGroup
}

type slot struct {
	restart segment.LSN
	active  bool
	owner   *conn // of a temporary slot; nil: a lasting one
}

// Rows is the answer to an ordinary query.
type Rows struct {
	Columns []string
	Rows    [][]string
}

// ErrDrop, returned by a hook, cuts the connection without a word.
var ErrDrop = errors.New("fakepg: drop the connection")

// New starts a server. Close ends it.
func New(o Options) *Server {
	if o.SystemIdentifier == 0 {
		o.SystemIdentifier = 7300000000000000001
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = segment.DefaultSize
	}
	if o.Version == "" {
		o.Version = "15.18"
	}
	if o.SenderTimeout == 0 {
		o.SenderTimeout = time.Minute
	}
	if o.WAL == nil {
		o.WAL = NewWAL(o.SystemIdentifier, o.SegmentSize, o.Seed)
	}
	if o.Timeline == 0 {
		o.Timeline = o.WAL.Newest()
	}
	return &Server{
		options:  o,
		wal:      o.WAL,
		timeline: o.Timeline,
		settings: map[string]string{
			"wal_segment_size":          o.WAL.Size().String(),
			"wal_level":                 "replica",
			"max_slot_wal_keep_size":    "-1",
			"synchronous_standby_names": "",
			"wal_sender_timeout":        fmt.Sprintf("%dms", o.SenderTimeout.Milliseconds()),
			"data_directory_mode":       "0700",
		},
		slots:      map[string]*slot{},
		closeAfter: -1,
		conns:      map[*conn]struct{}{},
		changed:    make(chan struct{}),
	}
}

// WAL returns the server's log.
func (s *Server) WAL() *WAL { return s.wal }

// Append adds a record with n bytes of payload to the current timeline and
// returns the new end of the WAL.
func (s *Server) Append(n int) segment.LSN { return s.wal.Append(s.Timeline(), n) }

// FillTo adds records to the current timeline up to an LSN at least.
func (s *Server) FillTo(to segment.LSN) segment.LSN { return s.wal.FillTo(s.Timeline(), to) }

// End returns the end of the current timeline's WAL.
func (s *Server) End() segment.LSN { return s.wal.End(s.Timeline()) }

// Timeline returns the current timeline.
func (s *Server) Timeline() segment.Timeline {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.timeline
}

// Promote forks the WAL at an LSN (the end of a record) and goes on with the
// new timeline, which it returns. Streams of the old one end there.
func (s *Server) Promote(at segment.LSN) segment.Timeline {
	t := s.wal.Fork(s.Timeline(), at)
	s.update(func() { s.timeline = t })
	return t
}

// Follow goes on with a timeline that the log has already.
func (s *Server) Follow(t segment.Timeline) { s.update(func() { s.timeline = t }) }

// update changes the server's state and wakes everybody who waits for it.
func (s *Server) update(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Set sets what SHOW answers.
func (s *Server) Set(name, value string) { s.update(func() { s.settings[name] = value }) }

// Script replaces the walsender's behaviour for the next START_REPLICATION;
// several calls queue up. The script's connection is closed when it returns an
// error, and takes further commands when it returns nil. CopyBothResponse has
// not been sent: see Walsender.Begin.
func (s *Server) Script(f func(*Walsender) error) {
	s.update(func() { s.scripts = append(s.scripts, f) })
}

// OnCommand is asked before every replication command: nil goes on, a
// *replication.ServerError is the answer, ErrDrop cuts the connection.
func (s *Server) OnCommand(f func(sql string) error) { s.update(func() { s.onCommand = f }) }

// OnQuery answers the queries of ordinary connections.
func (s *Server) OnQuery(f func(database, sql string) (Rows, error)) {
	s.update(func() { s.onQuery = f })
}

// RefuseStartup answers every new connection with an error; nil ends that.
func (s *Server) RefuseStartup(e *replication.ServerError) { s.update(func() { s.startupErr = e }) }

// RemoveWALBefore makes WAL before an LSN unavailable, in whole segments.
func (s *Server) RemoveWALBefore(l segment.LSN) {
	s.update(func() { s.removed = s.wal.Size().Start(l) })
}

// CloseAfter cuts the connection of every stream and base backup after n
// messages of it, in the place of the next one; a negative n ends that.
func (s *Server) CloseAfter(n int) { s.update(func() { s.closeAfter = n }) }

// SetSlot makes or moves a slot.
func (s *Server) SetSlot(name string, restart segment.LSN) {
	s.update(func() { s.slots[name] = &slot{restart: restart} })
}

// Slot returns a slot's restart_lsn.
func (s *Server) Slot(name string) (segment.LSN, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl, ok := s.slots[name]
	if !ok {
		return 0, false
	}
	return sl.restart, true
}

// Statuses returns every status that any client has sent, in order.
func (s *Server) Statuses() []replication.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.statuses)
}

// Commands returns every replication command and query received, in order.
func (s *Server) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.commands)
}

// Startups returns the start-up parameters of every connection, in order.
func (s *Server) Startups() []map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.startups)
}

// Shutdown begins what a fast shutdown is for walsenders: each sends the rest,
// waits until the client has flushed (or, when it reports no flush LSN,
// written) all of it, and ends with COPY 0. New connections are refused.
func (s *Server) Shutdown() {
	s.update(func() {
		s.shutdown, s.startupErr = true, &replication.ServerError{Severity: "FATAL", SQLSTATE: "57P03", Message: "the database system is shutting down"}
	})
}

// Stop cuts all connections without a word and refuses new ones.
func (s *Server) Stop() {
	s.update(func() { s.down = true })
	s.cut()
}

// Cut cuts all connections without a word.
func (s *Server) Cut() { s.cut() }

// Start undoes Stop and Shutdown.
func (s *Server) Start() {
	s.update(func() { s.down, s.shutdown, s.startupErr = false, false, nil })
}

func (s *Server) cut() {
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.close()
	}
}

// Close ends the server and waits for its goroutines.
func (s *Server) Close() {
	s.update(func() { s.down, s.closed = true, true })
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close() // what it listens for ends here anyway
	}
	s.cut()
	s.wg.Wait()
}

// Dial connects over a pipe, whatever the address says: it fits
// replication.Config.DialFunc.
func (s *Server) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	client, server := net.Pipe()
	if !s.serve(server) {
		_ = client.Close() // a pipe's Close cannot fail
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	return client, nil
}

// Listen serves a free loopback port and returns it.
func (s *Server) Listen() (port int, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	s.update(func() { s.listeners = append(s.listeners, l) })
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if !s.serve(c) {
				_ = c.Close() // the client sees the end either way
			}
		}
	})
	return l.Addr().(*net.TCPAddr).Port, nil
}

// serve takes a connection unless the server is down.
func (s *Server) serve(nc net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return false
	}
	c := &conn{server: s, net: nc, inbox: newInbox(), done: make(chan struct{})}
	s.conns[c] = struct{}{}
	s.wg.Go(func() {
		defer func() {
			c.close()
			c.dropTemporary()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		}()
		c.run()
	})
	return true
}

// conn is one client connection.
type conn struct {
	server  *Server
	net     net.Conn
	backend *pgproto3.Backend
	inbox   *inbox
	done    chan struct{}
	once    sync.Once
	replies bool // a replication connection
	db      string
}

func (c *conn) close() {
	c.once.Do(func() {
		close(c.done)
		_ = c.net.Close() // cutting is all that is asked for
	})
}

// run serves the connection until it ends.
func (c *conn) run() {
	c.backend = pgproto3.NewBackend(c.net, c.net)
	if err := c.startup(); err != nil {
		return
	}
	// From here on one goroutine reads: a client over a pipe cannot write
	// while nobody does.
	var reading sync.WaitGroup
	reading.Go(c.read)
	defer reading.Wait()
	defer c.close()
	for {
		m, err := c.inbox.next(c.done)
		if err != nil {
			return
		}
		switch m.kind {
		case 'X':
			return
		case 'Q':
			if err := c.command(m.text); err != nil {
				return
			}
		}
	}
}

// message is a client's message, copied.
type message struct {
	kind   byte
	text   string
	status replication.Status
}

func (c *conn) read() {
	defer c.inbox.end()
	for {
		m, err := c.backend.Receive()
		if err != nil {
			return
		}
		switch m := m.(type) {
		case *pgproto3.Query:
			c.inbox.put(message{kind: 'Q', text: m.String})
		case *pgproto3.Terminate:
			c.inbox.put(message{kind: 'X'})
		case *pgproto3.CopyDone:
			c.inbox.put(message{kind: 'c'})
		case *pgproto3.CopyData:
			st, err := parseStatus(m.Data)
			if err != nil {
				c.inbox.put(message{kind: '?', text: err.Error()})
				continue
			}
			c.server.record(st)
			c.inbox.put(message{kind: 'r', status: st})
		}
		c.inbox.waitHearing(c.done)
	}
}

func (s *Server) record(st replication.Status) {
	s.update(func() { s.statuses = append(s.statuses, st) })
}

// startup answers the start-up packet up to ReadyForQuery.
func (c *conn) startup() error {
	s := c.server
	for {
		m, err := c.backend.ReceiveStartupMessage()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *pgproto3.SSLRequest, *pgproto3.GSSEncRequest:
			if _, err := c.net.Write([]byte{'N'}); err != nil {
				return err
			}
			continue
		case *pgproto3.StartupMessage:
			c.replies = m.Parameters["replication"] == "true"
			c.db = m.Parameters["database"]
			s.update(func() { s.startups = append(s.startups, m.Parameters) })
		default:
			return ErrDrop // a cancel request is the end of a connection
		}
		break
	}
	s.mu.Lock()
	refusal := s.startupErr
	s.mu.Unlock()
	if refusal != nil {
		return errors.Join(c.send(errorResponse(refusal)), ErrDrop)
	}
	if s.options.Password != "" {
		if err := c.send(&pgproto3.AuthenticationCleartextPassword{}); err != nil {
			return err
		}
		if err := c.backend.SetAuthType(pgproto3.AuthTypeCleartextPassword); err != nil {
			return err
		}
		m, err := c.backend.Receive()
		if err != nil {
			return err
		}
		if p, ok := m.(*pgproto3.PasswordMessage); !ok || p.Password != s.options.Password {
			return errors.Join(c.send(errorResponse(&replication.ServerError{Severity: "FATAL", SQLSTATE: "28P01", Message: "password authentication failed"})), ErrDrop)
		}
	}
	hot := "off"
	if s.options.InRecovery {
		hot = "on"
	}
	return c.send(
		&pgproto3.AuthenticationOk{},
		&pgproto3.ParameterStatus{Name: "server_version", Value: s.options.Version},
		&pgproto3.ParameterStatus{Name: "in_hot_standby", Value: hot},
		&pgproto3.ParameterStatus{Name: "default_transaction_read_only", Value: "off"},
		&pgproto3.ParameterStatus{Name: "integer_datetimes", Value: "on"},
		&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}},
		&pgproto3.ReadyForQuery{TxStatus: 'I'},
	)
}

func (c *conn) send(messages ...pgproto3.BackendMessage) error {
	for _, m := range messages {
		c.backend.Send(m)
	}
	return c.backend.Flush()
}

func errorResponse(e *replication.ServerError) *pgproto3.ErrorResponse {
	return &pgproto3.ErrorResponse{Severity: e.Severity, SeverityUnlocalized: e.Severity, Code: e.SQLSTATE, Message: e.Message, Detail: e.Detail, Hint: e.Hint, Routine: e.Routine}
}

// ready is the end of a command.
var ready = pgproto3.ReadyForQuery{TxStatus: 'I'}

// dropTemporary drops the connection's temporary slots, as the server does
// when a command fails and when the connection ends.
func (c *conn) dropTemporary() {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.slots, func(_ string, sl *slot) bool { return sl.owner == c })
}

// fail answers a command with an error.
func (c *conn) fail(code, routine, format string, args ...any) error {
	c.dropTemporary()
	return c.send(errorResponse(&replication.ServerError{Severity: "ERROR", SQLSTATE: code, Routine: routine, Message: fmt.Sprintf(format, args...)}), &ready)
}

// rows answers a command with one row; a nil column is null.
func (c *conn) row(tag string, columns []string, values ...[]byte) error {
	return c.rows(tag, columns, [][][]byte{values})
}

func (c *conn) rows(tag string, names []string, rows [][][]byte) error {
	c.backend.Send(columns(names...))
	for _, r := range rows {
		c.backend.Send(&pgproto3.DataRow{Values: r})
	}
	return c.send(&pgproto3.CommandComplete{CommandTag: []byte(tag)}, &ready)
}

// command answers one command. An error ends the connection.
func (c *conn) command(sql string) error {
	s := c.server
	var hook func(string) error
	s.update(func() { s.commands = append(s.commands, sql); hook = s.onCommand })
	if hook != nil {
		var se *replication.ServerError
		switch err := hook(sql); {
		case errors.As(err, &se):
			c.dropTemporary()
			if se.Severity != "ERROR" {
				return errors.Join(c.send(errorResponse(se)), ErrDrop)
			}
			return c.send(errorResponse(se), &ready)
		case err != nil:
			return err
		}
	}
	if !c.replies {
		return c.query(sql)
	}
	word, rest, _ := strings.Cut(sql, " ")
	switch word {
	case "IDENTIFY_SYSTEM":
		t := s.Timeline()
		return c.row("IDENTIFY_SYSTEM", []string{"systemid", "timeline", "xlogpos", "dbname"},
			fmt.Append(nil, s.options.SystemIdentifier), fmt.Append(nil, t), fmt.Append(nil, s.wal.End(t)), nil)
	case "SHOW":
		s.mu.Lock()
		v, ok := s.settings[rest]
		s.mu.Unlock()
		if !ok {
			return c.fail("42704", "find_option", "unrecognized configuration parameter %q", rest)
		}
		return c.row("SHOW", []string{rest}, []byte(v))
	case "TIMELINE_HISTORY":
		var t segment.Timeline
		if _, err := fmt.Sscan(rest, &t); err != nil {
			return c.fail("42601", "", "syntax error")
		}
		b, ok := s.wal.HistoryFile(t)
		if !ok {
			return c.fail("58P01", "SendTimeLineHistory", "could not open file \"pg_wal/%s\": No such file or directory", t.HistoryName())
		}
		return c.row("TIMELINE_HISTORY", []string{"filename", "content"}, []byte(t.HistoryName()), b)
	case "CREATE_REPLICATION_SLOT", "DROP_REPLICATION_SLOT", "READ_REPLICATION_SLOT":
		return c.slotCommand(word, rest)
	case "START_REPLICATION":
		return c.startReplication(rest)
	case "BASE_BACKUP":
		return c.baseBackup(sql)
	}
	return c.fail("42601", "replication_yyerror", "syntax error")
}

func (c *conn) query(sql string) error {
	s := c.server
	s.mu.Lock()
	hook := s.onQuery
	s.mu.Unlock()
	if hook == nil {
		return c.fail("42601", "", "fakepg: no answer was scripted to this query")
	}
	r, err := hook(c.db, sql)
	var se *replication.ServerError
	if errors.As(err, &se) {
		return c.send(errorResponse(se), &ready)
	}
	if err != nil {
		return err
	}
	rows := make([][][]byte, 0, len(r.Rows))
	for _, values := range r.Rows {
		row := make([][]byte, 0, len(values))
		for _, v := range values {
			row = append(row, []byte(v))
		}
		rows = append(rows, row)
	}
	return c.rows(fmt.Sprintf("SELECT %d", len(rows)), r.Columns, rows)
}

func (c *conn) slotCommand(word, rest string) error {
	s := c.server
	name, rest, _ := strings.Cut(rest, " ")
	name = strings.Trim(name, `"`)
	s.mu.Lock()
	sl := s.slots[name]
	s.mu.Unlock()
	switch word {
	case "CREATE_REPLICATION_SLOT":
		if sl != nil {
			return c.fail("42710", "ReplicationSlotCreate", "replication slot %q already exists", name)
		}
		kind, temporary := strings.CutPrefix(rest, "TEMPORARY ")
		if !strings.HasPrefix(kind, "PHYSICAL") {
			return c.fail("42601", "replication_yyerror", "syntax error")
		}
		at := segment.LSN(0)
		if strings.Contains(rest, "RESERVE_WAL") {
			at = s.End()
		}
		made := &slot{restart: at}
		if temporary {
			made.owner = c
		}
		s.update(func() { s.slots[name] = made })
		return c.row("CREATE_REPLICATION_SLOT", []string{"slot_name", "consistent_point", "snapshot_name", "output_plugin"}, []byte(name), []byte("0/0"), nil, nil)
	case "DROP_REPLICATION_SLOT":
		if sl == nil {
			return c.fail("42704", "ReplicationSlotAcquire", "replication slot %q does not exist", name)
		}
		if s.slotTaken(name, c) {
			return c.fail("55006", "ReplicationSlotAcquire", "replication slot %q is active for PID 1", name)
		}
		s.update(func() { delete(s.slots, name) })
		return c.send(&pgproto3.CommandComplete{CommandTag: []byte("DROP_REPLICATION_SLOT")}, &ready)
	}
	columns := []string{"slot_type", "restart_lsn", "restart_tli"}
	if sl == nil {
		return c.row("READ_REPLICATION_SLOT", columns, nil, nil, nil)
	}
	restart, _ := s.Slot(name)
	if restart == 0 {
		return c.row("READ_REPLICATION_SLOT", columns, []byte("physical"), nil, nil)
	}
	h, _ := s.wal.History(s.Timeline())
	return c.row("READ_REPLICATION_SLOT", columns, []byte("physical"), fmt.Append(nil, restart), fmt.Append(nil, h.Owner(restart)))
}

// slotTaken tells whether a slot is another's, or in use.
func (s *Server) slotTaken(name string, by *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl, ok := s.slots[name]
	return ok && sl.taken(by)
}

// taken needs the server's mu.
func (sl *slot) taken(by *conn) bool { return sl.active || sl.owner != nil && sl.owner != by }
