package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/walferry/walferry/cmd/internal/pgreceivewal"
	"github.com/walferry/walferry/receiver"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/waldir"
)

// info prints a line that --verbose asks for.
func (d *dropIn) info(format string, args ...any) {
	if d.Verbose {
		d.line(format, args...)
	}
}

// line prints a line as pg_receivewal does.
func (d *dropIn) line(format string, args ...any) {
	// When stderr is gone nobody is left to be told.
	_, _ = fmt.Fprintf(d.stderr, dropInName+": "+format+"\n", args...)
}

// Starting implements receiver.Events; the words here and below are the
// original's (src/bin/pg_basebackup/pg_receivewal.c and receivelog.c).
func (d *dropIn) Starting(from segment.Position) {
	d.began = from
	d.info("starting log streaming at %s (timeline %d)", from.LSN, from.Timeline)
}

// Sealed implements receiver.Events.
func (d *dropIn) Sealed(n segment.Name, end segment.LSN) {
	d.info("finished segment at %s (timeline %d)", end, n.Timeline)
}

// Switched implements receiver.Events.
func (d *dropIn) Switched(to segment.Position) {
	d.info("switched to timeline %d at %s", to.Timeline, to.LSN)
}

// Stopping implements receiver.Events. The original says it once more when all
// is done, unless there was nothing to do.
func (d *dropIn) Stopping(at segment.Position, finished bool) {
	text := "received interrupt signal, exiting"
	if finished {
		text = fmt.Sprintf("stopped log streaming at %s (timeline %d)", at.LSN, at.Timeline)
	}
	d.info("%s", text)
	if !finished || at.LSN != d.began.LSN {
		d.again = text
	}
}

// finish says again what Stopping has said.
func (d *dropIn) finish() {
	if d.again != "" {
		d.info("%s", d.again)
	}
}

// Left implements receiver.Events.
func (d *dropIn) Left(n segment.Name) {
	d.line("not renaming \"%s%s.partial\", segment is not complete", n, d.suffix())
}

// suffix is what the compression adds to a file's name.
func (d *dropIn) suffix() string {
	switch d.Compression.Method {
	case pgreceivewal.Gzip:
		return ".gz"
	case pgreceivewal.LZ4:
		return ".lz4"
	}
	return ""
}

// Disconnected implements receiver.Events. The original always waits for five
// seconds.
func (d *dropIn) Disconnected(err error, wait time.Duration) {
	d.printError(err)
	d.line("disconnected; waiting %.0f seconds to try again", max(wait.Seconds(), 1))
}

// printError prints the error of an attempt or of the run, in the original's
// words where it has any.
func (d *dropIn) printError(err error) {
	var usage *pgreceivewal.Error
	if errors.As(err, &usage) {
		usage.Print(d.stderr, dropInName)
		return
	}
	d.line("error: %s", dropInWords(err))
	var e *exitError
	if hint := dropInHint(err); hint != "" {
		d.line("hint: %s", hint)
	} else if errors.As(err, &e) && e.hint != "" {
		d.line("hint: %s", oneLine(e.hint))
	}
}

// dropInWords words an error as the original would.
func dropInWords(err error) string {
	var connect *replication.ConnectError
	var server *replication.ServerError
	var command *commandFailure
	var file *waldir.FileError
	switch {
	case errors.As(err, &connect):
		return connectWords(connect)
	case errors.As(err, &command):
		return command.Error()
	case errors.As(err, &file):
		return oneLine(file.Error())
	case errors.Is(err, replication.ErrSlotMissing) && !errors.As(err, &server):
		return oneLine(strings.TrimSuffix(err.Error(), ": "+replication.ErrSlotMissing.Error()))
	case errors.Is(err, replication.ErrShutdown):
		return "replication stream was terminated before stop point"
	case errors.Is(err, replication.ErrWALRemoved), errors.Is(err, replication.ErrAhead):
		if receiver.Final(err) || !errors.As(err, &server) {
			return oneLine(err.Error())
		}
		return "unexpected termination of replication stream: " + serverWords(server)
	case receiver.Final(err):
		return oneLine(err.Error())
	case errors.As(err, &server):
		return fmt.Sprintf("could not send replication command %q: %s", "START_REPLICATION", serverWords(server))
	}
	return oneLine(err.Error())
}

// dropInHint says what can be done about an error that ends the run for
// safety's sake.
func dropInHint(err error) string {
	for _, h := range []struct {
		is   error
		hint string
	}{
		{receiver.ErrGap, "WAL is missing here from now on: put the missing segments into the directory if anybody has them, or begin with an empty directory, and take a base backup"},
		{segment.ErrForeignCluster, "a directory holds the WAL of one cluster: give this one a directory of its own, or see whether -h and -p name the right server"},
		{receiver.ErrConflict, "the server was set back to an earlier state, or is another copy of the cluster: give its WAL a directory of its own"},
		{receiver.ErrSetBack, "it was probably restored to an earlier point: give its new WAL a directory of its own"},
		{receiver.ErrDemoted, "it is probably an old primary that another one has replaced: connect to the current primary"},
		{receiver.ErrForked, "connect to the primary whose history contains this WAL, or give the WAL of this one a directory of its own"},
	} {
		if errors.Is(err, h.is) {
			return h.hint
		}
	}
	return ""
}

// disconnects reports whether an error ended a connection that is not made
// again only because of --no-loop.
func (d *dropIn) disconnects(err error) bool {
	return d.NoLoop && d.streams && !receiver.Final(err) && !errors.As(err, new(*directoryFailure))
}

// commandError is the failure of a command.
func commandError(command string, err error) error {
	var server *replication.ServerError
	if errors.As(err, &server) {
		return &commandFailure{command, server}
	}
	return err
}

// commandFailure is a command that the server refused, worded as the original
// does.
type commandFailure struct {
	command string
	why     *replication.ServerError
}

func (e *commandFailure) Error() string {
	return fmt.Sprintf("could not send replication command \"%s\": %s", e.command, serverWords(e.why))
}

func (e *commandFailure) Unwrap() error { return e.why }

// directoryFailure is a directory that cannot be taken up. No connection ends by
// it.
type directoryFailure struct {
	dir string
	err error
}

func (e *directoryFailure) Error() string {
	if errors.Is(e.err, disk.ErrLocked) {
		return fmt.Sprintf("directory \"%s\" is being written to by another process", e.dir)
	}
	return fmt.Sprintf("could not take up directory \"%s\": %v", e.dir, e.err)
}

func (e *directoryFailure) Unwrap() error { return e.err }

// slotNameError is err, unless the slot's name is one that no server takes: then
// it is what a server would have said, which was not asked
// (ReplicationSlotValidateName in src/backend/replication/slot.c).
func slotNameError(name string, err error) error {
	if replication.CheckSlotName(name) == nil {
		return err
	}
	e := &replication.ServerError{Severity: "ERROR", SQLSTATE: "42602", Message: fmt.Sprintf(`replication slot name "%s" `, name)}
	switch {
	case name == "":
		e.Message += "is too short"
	case len(name) > 63:
		e.SQLSTATE = "42622"
		e.Message += "is too long"
	default:
		e.Message += "contains invalid character"
		e.Hint = "Replication slot names may only contain lower case letters, numbers, and the underscore character."
	}
	return e
}

// serverWords is an error of the server as libpq prints it.
func serverWords(e *replication.ServerError) string {
	s := e.Severity + ":  " + e.Message
	if e.Detail != "" {
		s += "\nDETAIL:  " + e.Detail
	}
	if e.Hint != "" {
		s += "\nHINT:  " + e.Hint
	}
	return s
}

// connectWords is a failure to connect as libpq prints it, a line for each
// reason.
func connectWords(e *replication.ConnectError) string {
	var lines []string
	for _, a := range e.Attempts {
		for _, r := range a.Reasons {
			lines = append(lines, attemptWords(a.Host, r))
		}
	}
	return strings.Join(lines, "\n")
}

// attemptWords words why one address of a host could not be connected to.
func attemptWords(host string, reason error) string {
	var dns *net.DNSError
	if errors.As(reason, &dns) {
		return fmt.Sprintf("could not translate host name %q to address: Name or service not known", dns.Name)
	}
	where := fmt.Sprintf("connection to server on socket %q failed: ", host)
	hint := "\n\tIs the server running locally and accepting connections on that socket?"
	if !strings.HasPrefix(host, "/") {
		where = tcpWords(host, reason)
		hint = "\n\tIs the server running on that host and accepting TCP/IP connections?"
	}
	if errors.Is(reason, replication.ErrNoPassword) {
		return where + "fe_sendauth: no password supplied"
	}
	var server *replication.ServerError
	if errors.As(reason, &server) {
		return where + serverWords(server)
	}
	var errno syscall.Errno
	if errors.As(reason, &errno) {
		if errno != syscall.ECONNREFUSED && errno != syscall.ENOENT {
			hint = ""
		}
		return where + pgreceivewal.Reason(errno) + hint
	}
	return where + oneLine(reason.Error())
}

// tcpWords names a host, the address that it was found at, and the port.
func tcpWords(host string, reason error) string {
	name, addr, _ := strings.Cut(strings.TrimSuffix(host, ")"), " (")
	name, port, err := net.SplitHostPort(name)
	if err != nil {
		return fmt.Sprintf("connection to server at %q failed: ", host)
	}
	var op *net.OpError
	if errors.As(reason, &op) && op.Addr != nil {
		if at, _, err := net.SplitHostPort(op.Addr.String()); err == nil {
			addr = at
		}
	}
	if addr != "" && addr != name {
		return fmt.Sprintf("connection to server at %q (%s), port %s failed: ", name, addr, port)
	}
	return fmt.Sprintf("connection to server at %q, port %s failed: ", name, port)
}

// mayPass reports whether a server that could not be connected to may be there
// in a moment. What it says about our name and password, and a host that
// nobody knows, does not pass by itself.
func mayPass(err error) bool {
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return false
	}
	var server *replication.ServerError
	if errors.As(err, &server) && strings.HasPrefix(server.SQLSTATE, "28") {
		return false
	}
	return replication.Passing(err)
}

// ignoreEOF is err unless it is io.EOF, which is an empty directory's.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

var _ receiver.Events = (*dropIn)(nil)
