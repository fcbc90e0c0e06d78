package instance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What a caller decides by.
var (
	// ErrExited: the server process ended while it was expected to run.
	ErrExited = errors.New("the server ended")
	// ErrNotRunning: there is no server process.
	ErrNotRunning = errors.New("the server is not running")
)

const (
	// killTimeout bounds how long killed processes may take to vanish.
	killTimeout = 30 * time.Second
	// portAttempts is how often a start is tried with another port, when
	// somebody took the free one between our look and the server's bind.
	portAttempts = 5
	// socketPathMax is the longest path of a Unix socket that every system
	// takes (sockaddr_un: 104 bytes on BSD, 108 on Linux, with the final NUL).
	socketPathMax = 103
	// socketPort numbers the socket of a server that does not listen on TCP:
	// it is alone in its socket directory.
	socketPort = 5432
)

// Options describe a server. Installation and Dir are required.
type Options struct {
	Installation Installation
	// Dir holds everything of the server. It is made; it must not exist or be
	// empty. It must be reachable for the account, and stays private to it.
	Dir string
	// Account is the user to run as; nil means Unprivileged.
	Account *Account
	// Settings are lines of postgresql.conf, over those that make the server
	// private (socket, port, no archiving).
	Settings map[string]string
	// Listen makes the server listen on a free TCP port of 127.0.0.1 besides
	// its socket. HBA are lines of pg_hba.conf behind the two that let in
	// everybody who can reach the socket: without one nobody enters by TCP.
	Listen bool
	HBA    []string
	// InitArgs are further arguments of initdb (Create only): --wal-segsize=1.
	InitArgs []string
	// Env are variables for the server, and so for its restore_command,
	// besides PATH, HOME, USER and LC_ALL, or instead of them.
	Env []string
	// Log is told what happens; nil: nobody.
	Log *slog.Logger
}

// Server is one private server, running or not.
type Server struct {
	o       Options
	account Account
	sock    string // directory of the socket
	port    int
	log     *slog.Logger

	proc *process // the last one started, or nil
}

// process is one run of the server.
type process struct {
	pid  int
	done chan struct{} // closed when it was waited for
	err  error         // how it ended; valid behind done
	shm  sharedMemory
	// logStart is the size of the log when the run began, in bytes.
	logStart int64
}

func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Create makes a new cluster with initdb (superuser postgres, C locale,
// UTF-8). The server is not started. On an error nothing is left.
func Create(ctx context.Context, o Options) (*Server, error) {
	s, err := prepare(o)
	if err != nil {
		return nil, err
	}
	args := append([]string{"-D", s.DataDir(), "-U", "postgres", "--auth=trust", "--no-sync",
		"--locale=C", "--encoding=UTF8"}, o.InitArgs...)
	cmd := s.account.Command(ctx, o.Installation.Program("initdb"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		err = fmt.Errorf("running %s as %s: %w: %s", cmd.Path, s.account.Name, err, lastLines(out))
		return nil, errors.Join(err, s.Remove(ctx))
	}
	return s, nil
}

// Adopt makes a server of a data directory that exists: fill is called with
// the path of <Dir>/data, which is not there yet, and makes it; what it makes
// is given to the account. The server is not started. On an error nothing is
// left.
func Adopt(ctx context.Context, o Options, fill func(dataDir string) error) (*Server, error) {
	s, err := prepare(o)
	if err != nil {
		return nil, err
	}
	if err := s.adopt(fill); err != nil {
		return nil, errors.Join(err, s.Remove(ctx))
	}
	return s, nil
}

func (s *Server) adopt(fill func(string) error) error {
	if err := fill(s.DataDir()); err != nil {
		return fmt.Errorf("filling data directory %s: %w", s.DataDir(), err)
	}
	if err := s.account.Own(s.DataDir()); err != nil {
		return fmt.Errorf("giving the data directory to %s: %w", s.account.Name, err)
	}
	return nil
}

// prepare makes the directories and the configuration.
func prepare(o Options) (*Server, error) {
	s := &Server{o: o, log: o.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.o.Settings = maps.Clone(o.Settings)
	if s.o.Settings == nil {
		s.o.Settings = make(map[string]string)
	}
	if o.Account != nil {
		s.account = *o.Account
	} else {
		a, err := Unprivileged()
		if err != nil {
			return nil, err
		}
		s.account = a
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	s.o.Dir = dir
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("making a server in %s: the directory is not empty", dir)
	}
	if err := s.account.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("making a server in %s: %w", dir, err)
	}
	if err := s.prepareSocket(); err != nil {
		return nil, fmt.Errorf("making a server in %s: %w", dir, err)
	}
	return s, s.choosePort()
}

// prepareSocket makes the directory of the socket: Dir/sock, or one with a
// short path where that is too long for a socket's address.
func (s *Server) prepareSocket() error {
	s.sock = s.path("sock")
	if len(filepath.Join(s.sock, ".s.PGSQL.65535")) > socketPathMax {
		short, err := os.MkdirTemp("/tmp", "walferry-pg-")
		if err != nil {
			return err
		}
		s.sock = short
	}
	return s.account.MkdirAll(s.sock)
}

func (s *Server) choosePort() error {
	s.port = socketPort
	if s.o.Listen {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("looking for a free port: %w", err)
		}
		s.port = l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return fmt.Errorf("looking for a free port: %w", err)
		}
	}
	return s.writeConfig()
}

func (s *Server) path(name string) string { return filepath.Join(s.o.Dir, name) }

// DataDir returns the path of the data directory.
func (s *Server) DataDir() string { return s.path("data") }

// SocketDir returns the directory of the Unix socket: libpq's host.
func (s *Server) SocketDir() string { return s.sock }

// Port returns the port, of the socket's name and of 127.0.0.1. It is settled
// when Start has returned.
func (s *Server) Port() int { return s.port }

// DSN returns a libpq connection string: by the socket, as postgres, to a
// database.
func (s *Server) DSN(database string) string {
	return fmt.Sprintf("host='%s' port=%d user=postgres dbname='%s' sslmode=disable", s.sock, s.port, database)
}

// Account returns the user that the server runs as.
func (s *Server) Account() Account { return s.account }

// Installation returns the programs that it runs.
func (s *Server) Installation() Installation { return s.o.Installation }

// Log returns what the server printed since it was last started.
func (s *Server) Log() (string, error) {
	b, err := os.ReadFile(s.path("server.log"))
	if err != nil {
		return "", err
	}
	if s.proc != nil && s.proc.logStart <= int64(len(b)) {
		b = b[s.proc.logStart:]
	}
	return string(b), nil
}

// Configure changes settings in postgresql.conf; an empty value takes a
// setting out. They hold from the next start or Reload on.
func (s *Server) Configure(settings map[string]string) error {
	for name, value := range settings {
		if value == "" {
			delete(s.o.Settings, name)
			continue
		}
		s.o.Settings[name] = value
	}
	return s.writeConfig()
}

// Reload makes a running server read its configuration again. It does not
// wait for the effect.
func (s *Server) Reload() error { return s.signal(syscall.SIGHUP) }

// Start starts the server and waits until it accepts connections (in recovery:
// as soon as it is consistent). When it ends instead, the error is ErrExited
// with the last lines of its log; whatever goes wrong, nothing runs on.
func (s *Server) Start(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		if err := s.Launch(ctx); err != nil {
			return err
		}
		err := s.AwaitReady(ctx)
		if err == nil {
			return nil
		}
		if kill := s.Kill(ctx); kill != nil {
			return errors.Join(err, kill)
		}
		if attempt == portAttempts || !s.o.Listen || !s.portTaken() {
			return err
		}
		if err := s.choosePort(); err != nil {
			return err
		}
	}
}

func (s *Server) portTaken() bool {
	text, err := s.Log()
	return err == nil && strings.Contains(text, "could not bind")
}

// Launch starts the server and does not wait for it.
func (s *Server) Launch(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.proc.running() {
		return fmt.Errorf("starting the server in %s: it is running", s.o.Dir)
	}
	out, err := os.OpenFile(s.path("server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	info, err := out.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("starting the server: %w", err), out.Close())
	}
	// The server outlives this call, so its command is bound to no context:
	// Stop and Kill end it.
	cmd := exec.Command(s.o.Installation.Program("postgres"), "-D", s.DataDir(),
		"-c", "config_file="+s.path("postgresql.conf"), "-c", "hba_file="+s.path("pg_hba.conf"))
	s.account.prepare(cmd)
	cmd.Dir = s.o.Dir
	cmd.Env = append(cmd.Env, s.o.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Start()
	if cerr := out.Close(); err == nil {
		err = cerr // the server has its own descriptor; ours said nothing was lost
	}
	if err != nil {
		return fmt.Errorf("starting %s as %s: %w", cmd.Path, s.account.Name, err)
	}
	p := &process{pid: cmd.Process.Pid, done: make(chan struct{}), logStart: info.Size()}
	s.proc = p
	s.log.Debug("server started", "pid", p.pid, "dir", s.o.Dir)
	go func() { // ends with the server; Stop, Kill and Remove wait for it
		p.err = cmd.Wait()
		close(p.done)
	}()
	return nil
}

// AwaitReady waits until the launched server accepts connections. ErrExited
// when it ended first. When ctx ends, the server runs on.
func (s *Server) AwaitReady(ctx context.Context) error {
	return s.await(ctx, func() (bool, error) {
		status, shm, ok := s.lockFile()
		if ok {
			s.proc.shm = shm
		}
		// PostgreSQL: PM_STATUS_READY in src/include/utils/pidfile.h, padded
		// to a fixed length. "standby" is a recovery with hot_standby off.
		return ok && (status == "ready" || status == "standby"), nil
	})
}

// await polls while the server runs.
func (s *Server) await(ctx context.Context, done func() (bool, error)) error {
	if s.proc == nil {
		return ErrNotRunning
	}
	err := poll(ctx, func() (bool, error) {
		if !s.proc.running() {
			return false, s.exitError()
		}
		return done()
	})
	if err != nil && !errors.Is(err, ErrExited) {
		return fmt.Errorf("waiting for the server in %s: %w", s.o.Dir, err)
	}
	return err
}

func (s *Server) exitError() error {
	how := "exit status 0"
	if s.proc.err != nil {
		how = s.proc.err.Error()
	}
	text, err := s.Log()
	if err != nil {
		text = err.Error()
	}
	return fmt.Errorf("%w: %s: %s", ErrExited, how, lastLines([]byte(text)))
}

// lockFile reads postmaster.pid when it is the running server's (PostgreSQL:
// src/include/utils/pidfile.h). ok is false while it is not there or not
// written to the end.
func (s *Server) lockFile() (status string, shm sharedMemory, ok bool) {
	b, err := os.ReadFile(filepath.Join(s.DataDir(), "postmaster.pid"))
	if err != nil {
		return "", sharedMemory{}, false
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) < 8 || lines[0] != strconv.Itoa(s.proc.pid) {
		return "", sharedMemory{}, false
	}
	shm, ok = parseSharedMemory(lines[6])
	return strings.TrimSpace(lines[7]), shm, ok
}

// Done is closed when the server that was last started has ended. It may be
// used beside any other method, as long as no new start begins. Nil (never)
// before the first start.
func (s *Server) Done() <-chan struct{} {
	if s.proc == nil {
		return nil
	}
	return s.proc.done
}

// Running tells whether the server process exists.
func (s *Server) Running() bool { return s.proc.running() }

// Pid returns the number of the server process, 0 when it does not run.
func (s *Server) Pid() int {
	if !s.proc.running() {
		return 0
	}
	return s.proc.pid
}

// Mode is a way of shutting down, as pg_ctl names them.
type Mode int

// The modes.
const (
	Fast      Mode = iota // end the sessions, write a checkpoint, send all WAL to receivers
	Smart                 // wait for the sessions to end first
	Immediate             // no checkpoint: the next start recovers
)

// Stop shuts the server down and waits until it has ended. When ctx ends
// first, the server goes on shutting down. A server that does not run is
// ErrNotRunning.
func (s *Server) Stop(ctx context.Context, m Mode) error {
	sig := map[Mode]syscall.Signal{Fast: syscall.SIGINT, Smart: syscall.SIGTERM, Immediate: syscall.SIGQUIT}[m]
	if err := s.signal(sig); err != nil {
		return err
	}
	select {
	case <-s.proc.done:
	case <-ctx.Done():
		return fmt.Errorf("waiting for the server in %s to stop: %w", s.o.Dir, ctx.Err())
	}
	// After an immediate shutdown, and a failed one, PostgreSQL leaves no
	// shared memory behind; the status says whether the rest went well.
	if m != Immediate && s.proc.err != nil {
		return s.exitError()
	}
	return nil
}

func (s *Server) signal(sig syscall.Signal) error {
	if !s.proc.running() {
		return ErrNotRunning
	}
	return signal(s.proc.pid, sig)
}

// Kill ends the server and every process below it with SIGKILL, as the loss
// of power would, and returns when all are gone. The end of ctx does not stop
// it: a server that is half killed helps nobody. A server that does not run is
// no error.
func (s *Server) Kill(ctx context.Context) error {
	if !s.proc.running() {
		return nil
	}
	if _, shm, ok := s.lockFile(); ok {
		s.proc.shm = shm
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if err := killTree(ctx, s.proc.pid); err != nil {
		return fmt.Errorf("killing the server in %s: %w", s.o.Dir, err)
	}
	select {
	case <-s.proc.done:
	case <-ctx.Done():
		return fmt.Errorf("killing the server in %s: %w", s.o.Dir, ctx.Err())
	}
	if s.proc.shm != (sharedMemory{}) {
		return s.proc.shm.remove()
	}
	return nil
}

// Promote ends the recovery of a running standby and waits until it is a
// primary.
func (s *Server) Promote(ctx context.Context) error {
	if !s.proc.running() {
		return ErrNotRunning
	}
	// As pg_ctl does it (do_promote in src/bin/pg_ctl/pg_ctl.c). The file gets
	// its name when it has its owner: any signal between two of the server's
	// processes lets it look for the file, and take it away.
	trigger := filepath.Join(s.DataDir(), "promote")
	made := trigger + ".new"
	if err := os.WriteFile(made, nil, 0o600); err != nil {
		return fmt.Errorf("promoting the server: %w", err)
	}
	if err := s.account.own(made); err != nil {
		return fmt.Errorf("promoting the server: %w", err)
	}
	if err := os.Rename(made, trigger); err != nil {
		return fmt.Errorf("promoting the server: %w", err)
	}
	if err := s.signal(syscall.SIGUSR1); err != nil {
		return fmt.Errorf("promoting the server: %w", err)
	}
	return s.AwaitPrimary(ctx)
}

// AwaitPrimary waits until the running server is in production: its recovery,
// if there was any, has ended. ErrExited when the server ended instead.
func (s *Server) AwaitPrimary(ctx context.Context) error {
	return s.await(ctx, func() (bool, error) {
		c, err := ReadControl(s.DataDir())
		return c.State == StateInProduction, err
	})
}

// Control is what pg_control begins with.
type Control struct {
	SystemIdentifier uint64
	State            uint32
}

// StateInProduction is the state of a primary that runs, or was killed
// (PostgreSQL: DB_IN_PRODUCTION in src/include/catalog/pg_control.h).
const StateInProduction = 6

// ReadControl reads a cluster's pg_control (PostgreSQL: ControlFileData in
// src/include/catalog/pg_control.h; these fields are where they are in all
// versions, in the byte order of the host).
func ReadControl(dataDir string) (Control, error) {
	f, err := os.Open(filepath.Join(dataDir, "global", "pg_control"))
	if err != nil {
		return Control{}, err
	}
	var head [20]byte
	_, err = f.ReadAt(head[:], 0)
	if err := errors.Join(err, f.Close()); err != nil {
		return Control{}, fmt.Errorf("reading pg_control: %w", err)
	}
	return Control{
		SystemIdentifier: binary.NativeEndian.Uint64(head[0:]),
		State:            binary.NativeEndian.Uint32(head[16:]),
	}, nil
}

// Remove kills the server if it runs and removes everything of it. It may be
// called again after an error, and after it succeeded.
func (s *Server) Remove(ctx context.Context) error {
	if err := s.Kill(ctx); err != nil {
		return err
	}
	var errs []error
	for _, dir := range []string{s.sock, s.o.Dir} {
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// lastLines returns the end of a program's output for an error message.
func lastLines(out []byte) string {
	const keep = 8
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-keep):], []byte("\n")))
}
