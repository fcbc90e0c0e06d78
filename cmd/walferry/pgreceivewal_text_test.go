package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/receiver"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// The words are those of pg_receivewal 15 to 18 and its libpq.
func TestDropInWords(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, Err: syscall.ECONNREFUSED}
	connect := func(host string, reasons ...error) error {
		return &replication.ConnectError{User: "u", Attempts: []replication.Attempt{{Host: host, Reasons: reasons}}}
	}
	role := &replication.ServerError{Severity: "FATAL", SQLSTATE: "28000", Message: `role "nix" does not exist`}
	slot := &replication.ServerError{Severity: "ERROR", SQLSTATE: "42704", Message: `replication slot "s" does not exist`}
	gone := &replication.ServerError{Severity: "ERROR", Message: "requested WAL segment 000000010000000000000001 has already been removed"}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"refused": {connect("127.0.0.1:1", refused), `connection to server at "127.0.0.1", port 1 failed: Connection refused
	Is the server running on that host and accepting TCP/IP connections?`},
		"refused by name": {connect("localhost:1", refused), `connection to server at "localhost" (127.0.0.1), port 1 failed: Connection refused
	Is the server running on that host and accepting TCP/IP connections?`},
		"no socket": {connect("/run/.s.PGSQL.5432", &net.OpError{Err: syscall.ENOENT}), `connection to server on socket "/run/.s.PGSQL.5432" failed: No such file or directory
	Is the server running locally and accepting connections on that socket?`},
		"no such host": {connect("nohost.invalid:5432", &net.DNSError{Name: "nohost.invalid", IsNotFound: true}),
			`could not translate host name "nohost.invalid" to address: Name or service not known`},
		"no password": {connect("127.0.0.1:5432", fmt.Errorf("%w: %w", replication.ErrNoPassword, role)),
			`connection to server at "127.0.0.1", port 5432 failed: fe_sendauth: no password supplied`},
		"role":     {connect("127.0.0.1:5432", role), `connection to server at "127.0.0.1", port 5432 failed: FATAL:  role "nix" does not exist`},
		"slot":     {fmt.Errorf("START_REPLICATION on h: %w", errors.Join(replication.ErrSlotMissing, slot)), `could not send replication command "START_REPLICATION": ERROR:  replication slot "s" does not exist`},
		"shutdown": {fmt.Errorf("x: %w", replication.ErrShutdown), "replication stream was terminated before stop point"},
		"removed":  {errors.Join(replication.ErrWALRemoved, gone), "unexpected termination of replication stream: ERROR:  requested WAL segment 000000010000000000000001 has already been removed"},
		"other":    {errors.New("something\nelse"), "something else"},
	} {
		if got := dropInWords(c.err); got != c.want {
			t.Errorf("%s: %s\nwant: %s", name, got, c.want)
		}
	}
}

// What passes is waited for; what a server says about us, and a name that
// nobody knows, is told at once.
func TestMayPass(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"refused":      {&net.OpError{Err: syscall.ECONNREFUSED}, true},
		"starting":     {&replication.ServerError{SQLSTATE: "57P03"}, true},
		"too many":     {&replication.ServerError{SQLSTATE: "53300"}, true},
		"role":         {&replication.ServerError{SQLSTATE: "28000"}, false},
		"password":     {&replication.ServerError{SQLSTATE: "28P01"}, false},
		"no such host": {&net.DNSError{IsNotFound: true}, false},
		"DNS is away":  {&net.DNSError{IsTemporary: true}, true},
	} {
		err := &replication.ConnectError{Attempts: []replication.Attempt{{Host: "h:1", Reasons: []error{c.err}}}}
		if got := mayPass(err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestDropInEvents: the lines of a run, as the original has them, each where it
// has it.
func TestDropInEvents(t *testing.T) {
	at := func(l segment.LSN) segment.Position { return segment.Position{Timeline: 1, LSN: l} }
	n := segment.Size(16<<20).Name(1, 0x5000000)
	for name, c := range map[string]struct {
		quiet bool
		run   func(e receiver.Events)
		want  string
	}{
		"end position in a segment": {run: func(e receiver.Events) {
			e.Starting(at(0x4000000))
			e.Sealed(segment.Size(16<<20).Name(1, 0x4000000), 0x5000000)
			e.Stopping(at(0x500FAF8), true)
			e.Left(n)
		}, want: `starting log streaming at 0/4000000 (timeline 1)
finished segment at 0/5000000 (timeline 1)
stopped log streaming at 0/500FAF8 (timeline 1)
not renaming "000000010000000000000005.partial", segment is not complete
stopped log streaming at 0/500FAF8 (timeline 1)
`},
		"end position is behind": {run: func(e receiver.Events) {
			e.Starting(at(0x5000000))
			e.Stopping(at(0x5000000), true)
		}, want: `starting log streaming at 0/5000000 (timeline 1)
stopped log streaming at 0/5000000 (timeline 1)
`},
		"signal": {run: func(e receiver.Events) {
			e.Starting(at(0x5000000))
			e.Stopping(at(0x5000000), false)
		}, want: `starting log streaming at 0/5000000 (timeline 1)
received interrupt signal, exiting
received interrupt signal, exiting
`},
		"not verbose": {quiet: true, run: func(e receiver.Events) {
			e.Starting(at(0x5000000))
			e.Disconnected(replication.ErrShutdown, 900*time.Millisecond)
			e.Switched(segment.Position{Timeline: 2, LSN: 0x5000100})
			e.Left(n)
			e.Stopping(at(0x500FAF8), false)
		}, want: `error: replication stream was terminated before stop point
disconnected; waiting 1 seconds to try again
not renaming "000000010000000000000005.partial", segment is not complete
`},
	} {
		var out bytes.Buffer
		d := &dropIn{program: &program{stderr: &out}}
		d.Verbose = !c.quiet
		c.run(d)
		d.finish()
		want := ""
		for line := range strings.Lines(c.want) {
			want += "pg_receivewal: " + line
		}
		if out.String() != want {
			t.Errorf("%s:\n%s\nwant:\n%s", name, out.String(), want)
		}
	}
}
