package replication

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// ErrWrongServer: a server answered that target_session_attrs does not want.
var ErrWrongServer = errors.New("not the kind of server that target_session_attrs asks for")

// ConnectError is why no server could be connected to. It is one line that
// names hosts, ports, the user and the reasons, and wraps the reasons.
type ConnectError struct {
	User     string
	Attempts []Attempt
}

// Attempt is why one host could not be connected to.
type Attempt struct {
	Host    string  // with its port
	Reasons []error // different ones, of its addresses and TLS modes
}

// Error returns one line.
func (e *ConnectError) Error() string {
	var hosts []string
	for _, a := range e.Attempts {
		var reasons []string
		for _, r := range a.Reasons {
			reasons = append(reasons, oneLine(r.Error()))
		}
		hosts = append(hosts, a.Host+": "+strings.Join(reasons, "; "))
	}
	return fmt.Sprintf("connecting as user %s to %s", e.User, strings.Join(hosts, " | "))
}

// Unwrap returns all reasons.
func (e *ConnectError) Unwrap() []error {
	var all []error
	for _, a := range e.Attempts {
		all = append(all, a.Reasons...)
	}
	return all
}

// Connect opens a connection for physical replication to the first host that
// takes us and is of the kind that target_session_attrs asks for. Each address
// is given connect_timeout (30 s when nobody says); ctx bounds the whole. An
// error is a *ConnectError, or ctx's; Passing tells whether to try again.
func Connect(ctx context.Context, c *Config) (*Conn, error) {
	var conn *Conn
	err := c.asking(ctx, func(ctx context.Context, h host) (func(string) string, func(), error) {
		var err error
		conn, err = c.connectHost(ctx, h)
		if err != nil {
			return nil, nil, err
		}
		return conn.Parameter, func() { _ = conn.Close(ctx) }, nil // it is given up whatever Close says
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// ConnectSQL opens an ordinary connection to a database; "" is the one that
// the settings name, or postgres. Conn.Config leads to the server that a
// replication connection has reached. Errors are as Connect's.
func ConnectSQL(ctx context.Context, c *Config, dbname string) (*pgconn.PgConn, error) {
	if dbname == "" {
		dbname = c.database
	}
	var conn *pgconn.PgConn
	err := c.asking(ctx, func(ctx context.Context, h host) (func(string) string, func(), error) {
		pc, err := c.build(h)
		if err != nil {
			return nil, nil, err
		}
		pc.Database = dbname
		if pc.Password, err = c.passwordFor(ctx, h, dbname); err != nil {
			return nil, nil, err
		}
		if conn, err = pgconn.ConnectConfig(ctx, pc); err != nil {
			return nil, nil, c.explain(err, pc)
		}
		return conn.ParameterStatus, func() { _ = conn.Close(ctx) }, nil
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// asking is each, and once more with the password of whoever is asked for it,
// when a host wants one that nobody has given.
func (c *Config) asking(ctx context.Context, connect func(context.Context, host) (parameter func(string) string, giveUp func(), err error)) error {
	unasked := c.password.waits()
	err := c.each(ctx, connect)
	if !unasked || !errors.Is(err, ErrNoPassword) {
		return err
	}
	if _, err := c.password.get(ctx); err != nil {
		return err
	}
	return c.each(ctx, connect)
}

// each tries the hosts until one takes us and is of the right kind. connect
// returns the parameters that the server reported and a way to give it up.
func (c *Config) each(ctx context.Context, connect func(context.Context, host) (parameter func(string) string, giveUp func(), err error)) error {
	hosts := slices.Clone(c.hosts)
	if c.shuffle {
		rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	}
	kinds := []string{c.attrs}
	if c.attrs == "prefer-standby" {
		kinds = []string{"standby", "any"}
	}
	failed := &ConnectError{User: c.user}
	for _, kind := range kinds {
		failed.Attempts = nil
		for _, h := range hosts {
			parameter, giveUp, err := connect(ctx, h)
			if err == nil {
				if err = rightKind(kind, parameter); err == nil {
					return nil
				}
				giveUp()
			}
			if ctx.Err() != nil {
				return fmt.Errorf("connecting to %s as user %s: %w", h, c.user, ctx.Err())
			}
			reasons := []error{err}
			var several reasonList
			if errors.As(err, &several) {
				reasons = several
			}
			failed.Attempts = append(failed.Attempts, Attempt{Host: h.String(), Reasons: reasons})
			// As in libpq, a server's word about who we are ends the list.
			var se *ServerError
			if errors.As(err, &se) && strings.HasPrefix(se.SQLSTATE, "28") {
				return failed
			}
		}
	}
	return failed
}

// rightKind decides as libpq does, by what servers report at connect since
// PostgreSQL 14: no SHOW and no SELECT is needed.
func rightKind(kind string, parameter func(string) string) error {
	if kind == "any" {
		return nil
	}
	hot, readOnly := parameter("in_hot_standby"), parameter("default_transaction_read_only")
	if hot == "" || readOnly == "" {
		return fmt.Errorf("%w: the server does not tell what it is (PostgreSQL 14 and later do)", ErrWrongServer)
	}
	standby, writable := hot == "on", hot == "off" && readOnly == "off"
	is := "a primary"
	if standby {
		is = "a standby"
	}
	ok := false
	switch kind {
	case "primary":
		ok = !standby
	case "standby":
		ok = standby
	case "read-write":
		ok = writable
		if !standby {
			is += " with default_transaction_read_only"
		}
	case "read-only":
		ok = !writable
	}
	if !ok {
		return fmt.Errorf("%w: it is %s, wanted is %s", ErrWrongServer, is, kind)
	}
	return nil
}

// dialKey marks the context of our own dials.
type dialKey struct{}

// connectHost connects to one host.
func (c *Config) connectHost(ctx context.Context, h host) (*Conn, error) {
	pc, err := c.build(h)
	if err != nil {
		return nil, err
	}
	if pc.Password, err = c.passwordFor(ctx, h, "replication"); err != nil {
		return nil, err
	}
	pc.RuntimeParams["replication"] = "true"
	// pgconn answers a failed start-up by a cancel request, on another
	// connection and from a goroutine that nobody waits for. There is nothing
	// to cancel: it may not dial.
	dial := pc.DialFunc
	pc.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if ctx.Value(dialKey{}) == nil {
			return nil, ErrClosed
		}
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &socket{conn}, nil
	}
	// What pgconn reads through may hold bytes that are read ahead.
	var in io.Reader
	pc.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		in = r
		return pgproto3.NewFrontend(r, w)
	}
	pg, err := pgconn.ConnectConfig(context.WithValue(ctx, dialKey{}, true), pc)
	if err != nil {
		return nil, c.explain(err, pc)
	}
	hc, err := pg.Hijack()
	if err != nil {
		return nil, err
	}
	conn, err := c.takeOver(ctx, h, hc, in)
	if err != nil {
		_ = hc.Conn.Close() // it failed already
		return nil, err
	}
	return conn, nil
}

// takeOver makes a Conn of what pgconn has started up.
func (c *Config) takeOver(ctx context.Context, h host, hc *pgconn.HijackedConn, in io.Reader) (*Conn, error) {
	// A server that ends right after its greeting may have said so in the
	// same packet; then pgconn has read it already.
	err := whileContext(ctx, hc.Conn, func() error {
		for hc.Frontend.ReadBufferLen() > 0 {
			m, err := hc.Frontend.Receive()
			if err != nil {
				return readError(err)
			}
			if e, ok := m.(*pgproto3.ErrorResponse); ok {
				return serverError(e)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	conn, err := newConn(&wire{conn: hc.Conn, r: in}, hc.ParameterStatuses, hc.PID, h.String()+" as user "+c.user)
	if err != nil {
		return nil, err
	}
	conn.config = c.only(h)
	return conn, nil
}

// reasonList is several reasons for one failed host.
type reasonList []error

func (r reasonList) Error() string   { return errors.Join(r...).Error() }
func (r reasonList) Unwrap() []error { return r }

// explain takes pgconn's error apart: the different reasons, each without
// pgconn's prefixes, the server's words as a *ServerError.
func (c *Config) explain(err error, pc *pgconn.Config) error {
	var all reasonList
	refusedTLS := false
	var take func(error)
	take = func(err error) {
		var many interface{ Unwrap() []error }
		if errors.As(err, &many) {
			for _, e := range many.Unwrap() {
				take(e)
			}
			return
		}
		reason := c.reason(err, pc)
		if strings.Contains(reason.Error(), "server refused TLS connection") {
			refusedTLS = true
			return
		}
		if !slices.ContainsFunc(all, func(e error) bool { return e.Error() == reason.Error() }) {
			all = append(all, reason)
		}
	}
	var ce *pgconn.ConnectError
	if errors.As(err, &ce) {
		err = ce.Unwrap()
	}
	take(err)
	if len(all) == 0 && refusedTLS {
		all = reasonList{errors.New("the server does not offer TLS, and sslmode asks for it")}
	}
	return all
}

// reason is one attempt's error in our words.
func (c *Config) reason(err error, pc *pgconn.Config) error {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		sev := pe.SeverityUnlocalized
		if sev == "" {
			sev = pe.Severity
		}
		se := &ServerError{Severity: sev, SQLSTATE: pe.Code, Message: pe.Message, Detail: pe.Detail, Hint: pe.Hint, Routine: pe.Routine}
		if pe.Code == "28P01" && pc.Password == "" {
			return fmt.Errorf("%w (PGPASSWORD, -W, or a line for database %s in the password file): %w", ErrNoPassword, pc.Database, se)
		}
		return se
	}
	var dns *net.DNSError
	var op *net.OpError
	if cause := certificateError(err); cause != nil {
		return fmt.Errorf("the server's certificate is not accepted: %w", cause)
	}
	switch {
	case errors.As(err, &dns):
		return dns
	case pgconn.Timeout(err) && errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer within %s: %w", c.timeout, context.DeadlineExceeded)
	case errors.As(err, &op):
		return op
	}
	// What is left are pgconn's own words behind the address, which we name.
	if inner := errors.Unwrap(err); inner != nil {
		err = inner
	}
	return err
}

// certificateError returns why the server's certificate is not one that our
// settings accept; nil when it is not that.
func certificateError(err error) error {
	var verify *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &verify):
		return verify
	case errors.As(err, &authority):
		return authority
	case errors.As(err, &hostname):
		return hostname
	case errors.As(err, &invalid):
		return invalid
	}
	return nil
}
