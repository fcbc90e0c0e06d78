package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/restore/instance"
)

const (
	slot = "walferry" // and the application_name: what the server waits for
	// pollInterval is the pause between two looks at the server or the archive.
	pollInterval = 50 * time.Millisecond
)

// stage is the directory in which everything happens, and what runs there.
type stage struct {
	o            Options
	installation instance.Installation
	account      instance.Account
	dir          string // open to pass through; what is in it is private
	began        time.Time
	steps        int

	primary  *instance.Server
	receiver *receiver
}

func newStage(o Options, i instance.Installation, a instance.Account) (*stage, error) {
	parent := os.TempDir()
	if a.Other() && !passable(parent) {
		parent = "/tmp" // root's own TMPDIR may be closed to the server's user
	}
	dir, err := os.MkdirTemp(parent, "walferry-demo-")
	if err != nil {
		return nil, err
	}
	s := &stage{o: o, installation: i, account: a, dir: dir}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("preparing %s: %w", dir, err), removeAll(dir))
	}
	return s, nil
}

// passable tells whether every user can pass through a directory and all above it.
func passable(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

func (s *stage) prepare() error {
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	for _, d := range []string{"archive", "spool", "home"} {
		if err := s.account.MkdirAll(s.path(d)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(s.path("bin"), 0o755); err != nil {
		return err
	}
	if !s.account.Other() {
		return os.Symlink(s.o.Executable, s.walferry())
	}
	// The server's user may not be let into the directory that we lie in.
	return copyFile(s.walferry(), s.o.Executable, 0o755)
}

func copyFile(dst, src string, perm os.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return errors.Join(err, in.Close())
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(perm), out.Close(), in.Close())
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }
func (s *stage) walferry() string        { return s.path("bin/walferry") }

// env are the variables of the receiver and of the recovering server, so that
// both can be written as short as in the documentation.
func (s *stage) env() []string {
	return []string{"HOME=" + s.path("home"), "PATH=" + s.path("bin") + ":/usr/bin:/bin", "WALFERRY_STORE=file://" + s.path("archive")}
}

// clear ends everything and removes it, also when ctx has ended.
func (s *stage) clear(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	if s.receiver != nil {
		errs = append(errs, s.receiver.kill())
	}
	if s.primary != nil {
		errs = append(errs, s.primary.Remove(ctx))
	}
	return errors.Join(append(errs, removeAll(s.dir))...)
}

// createPrimary makes a cluster and starts it. Its commits wait for
// the receiver from the beginning: a receiver looks at its start whether they
// do, and then only now and then.
func (s *stage) createPrimary(ctx context.Context) error {
	var err error
	s.primary, err = instance.Create(ctx, instance.Options{
		Installation: s.installation, Dir: s.path("server"), Account: &s.account, Log: s.o.Log,
		Settings: map[string]string{"synchronous_standby_names": slot},
	})
	if err != nil {
		return err
	}
	return s.primary.Start(ctx)
}

// receiver is a running "walferry receive".
type receiver struct {
	cmd  *exec.Cmd
	log  string // path
	done chan struct{}
	err  error // valid behind done
}

// receive starts the receiver, and waits until the server counts on it.
func (s *stage) receive(ctx context.Context) error {
	log, err := os.OpenFile(s.path("receive.log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	// It ends by a kill, not with ctx: at the end of a demonstration that is
	// interrupted, it is waited for all the same. The server names it as a
	// synchronous standby from the beginning.
	cmd := s.account.Command(context.WithoutCancel(ctx), s.walferry(), "receive", "-d", s.primary.DSN("postgres"),
		"--slot", slot, "--spool", s.path("spool"), "--ack", "archive", "--synchronous", "on")
	cmd.Env = append(cmd.Env, s.env()...)
	cmd.Dir = s.path("home")
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Start()
	if err := errors.Join(err, log.Close()); err != nil {
		return err
	}
	r := &receiver{cmd: cmd, log: log.Name(), done: make(chan struct{})}
	s.receiver = r
	go func() { // ends with the process; stop and kill wait for it
		r.err = cmd.Wait()
		close(r.done)
	}()
	c, err := s.connect(ctx, s.primary)
	if err != nil {
		return err
	}
	err = s.await(ctx, c, "SELECT count(*) FROM pg_stat_replication WHERE application_name = '"+slot+"' AND sync_state = 'sync'")
	return errors.Join(err, c.Close(ctx))
}

// backup takes a base backup and returns its name.
func (s *stage) backup(ctx context.Context) (name string, err error) {
	out, err := s.run(ctx, "backup", "create", "-d", s.primary.DSN("postgres"))
	return strings.TrimSpace(out), err
}

// run runs a command of this program to its end, as the server's account, and
// returns what it printed.
func (s *stage) run(ctx context.Context, args ...string) (string, error) {
	cmd := s.account.Command(ctx, s.walferry(), args...)
	cmd.Env = append(cmd.Env, s.env()...)
	cmd.Dir = s.path("home")
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("walferry %s: %w: %s", strings.Join(args[:min(2, len(args))], " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// await asks until the answer is 1, as long as the receiver lives.
func (s *stage) await(ctx context.Context, c *pgconn.PgConn, question string) error {
	return s.poll(ctx, func() (bool, error) {
		v, err := value(ctx, c, question)
		return v == "1", err
	})
}

// poll looks until done says so. It ends with an error when the receiver does.
func (s *stage) poll(ctx context.Context, done func() (bool, error)) error {
	t := time.NewTicker(pollInterval)
	defer t.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-s.receiver.done:
			return s.receiver.failed("ended by itself")
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

// failed says what became of the receiver, with its last lines.
func (r *receiver) failed(what string) error {
	text, err := os.ReadFile(r.log)
	if err != nil {
		text = []byte(err.Error())
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Errorf("walferry receive %s (%v): %s", what, r.err, strings.Join(lines[max(0, len(lines)-5):], "\n"))
}

func (r *receiver) kill() error {
	if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing the receiver: %w", err)
	}
	<-r.done
	return nil
}

// written is what was acknowledged.
type written struct {
	acked int           // rows 1 to acked
	took  time.Duration // all commits
}

// write commits rows, each in a transaction of its own.
func (s *stage) write(ctx context.Context) (written, error) {
	c, err := s.connect(ctx, s.primary)
	if err != nil {
		return written{}, err
	}
	w, err := writeRows(ctx, c)
	return w, errors.Join(err, c.Close(ctx))
}

func writeRows(ctx context.Context, c *pgconn.PgConn) (written, error) {
	var w written
	if _, err := value(ctx, c, "CREATE TABLE demo (id bigint PRIMARY KEY, v text)"); err != nil {
		return w, err
	}
	began := time.Now()
	for round := range rounds {
		for time.Since(began) < time.Duration(round+1)*roundTime {
			id := strconv.Itoa(w.acked + 1)
			if _, err := value(ctx, c, "INSERT INTO demo VALUES ("+id+", repeat(md5('"+id+"'), 8))"); err != nil {
				return w, err
			}
			w.acked++ // the server has acknowledged it
		}
		if round == rounds-1 {
			break // in the middle of a segment
		}
		if _, err := value(ctx, c, "SELECT pg_switch_wal()"); err != nil {
			return w, err
		}
	}
	w.took = time.Since(began)
	return w, nil
}

// loseBoth kills the server and the receiver, and deletes everything of them.
func (s *stage) loseBoth(ctx context.Context) error {
	err := errors.Join(s.primary.Kill(ctx), s.receiver.kill())
	return errors.Join(err, s.primary.Remove(ctx), removeAll(s.path("spool")))
}

// archived counts what the archive holds of the WAL.
func (s *stage) archived() (whole, tails int, err error) {
	err = filepath.WalkDir(s.path("archive"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		switch dir := filepath.Dir(path); {
		case filepath.Base(dir) == "wal_005":
			whole++
		case filepath.Base(filepath.Dir(dir)) == "wal_tail_005":
			tails++
		}
		return nil
	})
	return whole, tails, err
}

// recovered restores the backup, lets the server recover there, and returns how
// many of the rows are there, all of them whole.
func (s *stage) recovered(ctx context.Context) (n int, err error) {
	server, err := instance.Adopt(ctx, instance.Options{
		Installation: s.installation, Dir: s.path("recovered"), Account: &s.account, Log: s.o.Log,
	}, func(dataDir string) error {
		_, err := s.run(ctx, "restore", "-D", dataDir)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, server.Remove(ctx)) }()
	if err := server.Start(ctx); err != nil {
		return 0, err
	}
	if err := server.AwaitPrimary(ctx); err != nil {
		return 0, err
	}
	c, err := s.connect(ctx, server)
	if err != nil {
		return 0, err
	}
	v, err := value(ctx, c, "SELECT count(*) FROM demo WHERE v = repeat(md5(id::text), 8)")
	if err := errors.Join(err, c.Close(ctx)); err != nil {
		return 0, err
	}
	return strconv.Atoi(v)
}

func (s *stage) connect(ctx context.Context, server *instance.Server) (*pgconn.PgConn, error) {
	config, err := replication.ParseConfig(replication.Params{DSN: server.DSN("postgres"), ApplicationName: "walferry demo"})
	if err != nil {
		return nil, err
	}
	return replication.ConnectSQL(ctx, config, "postgres")
}

// value runs a statement and returns the first value of its answer, or "".
func value(ctx context.Context, c *pgconn.PgConn, statement string) (string, error) {
	results, err := c.Exec(ctx, statement).ReadAll()
	if err != nil {
		return "", err
	}
	if len(results) == 0 || len(results[0].Rows) == 0 {
		return "", nil
	}
	return string(results[0].Rows[0][0]), nil
}
