package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore/s3"
	"github.com/walferry/walferry/cmd/internal/settings"
	"github.com/walferry/walferry/restore/recovery"
	"github.com/walferry/walferry/restore/unpack"
)

// account is who the restored files belong to.
type account struct {
	uid, gid int
	name     string
	home     string // "": not known
	other    bool   // than the user of this process
}

// unpack is the owner as the restore wants it: nil where files simply are ours.
func (a account) unpack() *unpack.Owner {
	if !a.other {
		return nil
	}
	return &unpack.Owner{UID: a.uid, GID: a.gid}
}

// findOwner says who the restored directory belongs to: its owner of before,
// else its parent's, else postgres. PostgreSQL does not run as root, so root is
// never the answer. Only root can give files away.
func (r *restoring) findOwner() (account, error) {
	if os.Geteuid() != 0 {
		return accountOf(os.Geteuid(), os.Getegid(), false), nil
	}
	for _, dir := range []string{r.dir, filepath.Dir(r.dir)} {
		st, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return account{}, withExit(exitFailed, fmt.Errorf("looking at the target directory: %w", err), "")
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 {
			return accountOf(int(sys.Uid), int(sys.Gid), true), nil
		}
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return account{}, withExit(exitFailed, fmt.Errorf("root cannot own a data directory, and there is no user postgres: %w", err), "make the directory, owned by the user whose server it will be, or run as that user")
	}
	uid, uerr := strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	if err := errors.Join(uerr, gerr); err != nil {
		return account{}, fmt.Errorf("looking up the user postgres: %w", err)
	}
	return accountOf(uid, gid, true), nil
}

// accountOf is the account of a user ID, with what is known of it.
func accountOf(uid, gid int, other bool) account {
	a := account{uid: uid, gid: gid, name: strconv.Itoa(uid), other: other}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		a.name, a.home = u.Username, u.HomeDir
	}
	return a
}

// serverCommand is what the restored server runs to get its WAL.
type serverCommand struct {
	text   string // with %f and %p
	bucket bool   // the archive is in S3
}

// settingsFile is where the settings of a restored server's fetch lie: beside
// the data directory, where no base backup takes it along.
func (r *restoring) settingsFile() string { return r.dir + ".walferry.yaml" }

// writeCommand writes the settings of the restored server's fetch, durably, and
// returns the command. The file has mode 0600, is the owner's, and holds no
// secret: where the keys are, not what they are.
func (r *restoring) writeCommand(ctx context.Context, where storeSettings, owner account) (serverCommand, error) {
	program, err := os.Executable()
	if err != nil {
		return serverCommand{}, fmt.Errorf("finding this program's own file: %w", err)
	}
	url, err := r.storeURL(ctx, where, owner)
	if err != nil {
		return serverCommand{}, err
	}
	line, err := settings.Line("store", url)
	if err != nil {
		return serverCommand{}, fmt.Errorf("writing the settings of fetch: %w", err)
	}
	file := r.settingsFile()
	head := fmt.Sprintf("# The archive from which the server in %s gets its WAL: its restore_command is\n# %s fetch --config THIS-FILE \"%%f\" \"%%p\"\n", r.dir, program)
	if err := writeOwned(file, head+line, owner); err != nil {
		return serverCommand{}, fmt.Errorf("writing the settings of fetch: %w", err)
	}
	// The command stands in a setting, where % has a meaning, and is run by a shell.
	quoted := func(path string) string { return strings.ReplaceAll(quoteShell(path), "%", "%%") }
	gap := ""
	if r.plan.StopAtGap {
		gap = " --stop-at-gap" // the server ends its recovery where the plan does
	}
	return serverCommand{text: quoted(program) + " fetch" + gap + " --config " + quoted(file) + ` "%f" "%p"`, bucket: where.s3 != nil}, nil
}

// writeOwned writes a file of mode 0600 that belongs to owner, whole or not at all.
func writeOwned(path, content string, owner account) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.WriteString(content)
	if err == nil && owner.other {
		err = f.Chown(owner.uid, owner.gid)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil // it can be written to and not be read: nothing can be synced
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// storeURL is the archive's URL with everything in it that this process knows
// from its environment and the restored server will not.
func (r *restoring) storeURL(ctx context.Context, where storeSettings, owner account) (string, error) {
	if where.s3 == nil {
		return "file://" + where.dir, nil
	}
	found, err := s3.Open(ctx, *where.s3)
	if err != nil {
		return "", err
	}
	defer func() { _ = found.Close() }() // it was not used
	c := found.Settings()
	if c.CredentialsFile == "" {
		c.CredentialsFile = r.credentialsFile(owner)
	}
	return c.URL(), nil
}

// credentialsFile is the file with the store's keys that the owner can read:
// the one that AWS_SHARED_CREDENTIALS_FILE names, the owner's own, or ours.
func (r *restoring) credentialsFile(owner account) string {
	var files []string
	if v := r.variable("AWS_SHARED_CREDENTIALS_FILE"); v != "" {
		files = append(files, v)
	}
	homes := []string{owner.home, r.userHome()}
	if !owner.other {
		homes = []string{r.userHome(), owner.home} // the keys that this restore was made with
	}
	for _, home := range homes {
		if home != "" {
			files = append(files, filepath.Join(home, ".aws", "credentials"))
		}
	}
	for _, f := range files {
		if abs, err := filepath.Abs(f); err == nil && owner.canRead(abs) {
			return abs
		}
	}
	return ""
}

// canRead tells whether the account may read a file: asked of the system, as
// that account, when it is another one.
func (a account) canRead(path string) bool {
	if !a.other {
		return unix.Access(path, unix.R_OK) == nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := a.command(ctx, "/", []string{"PATH=/usr/bin:/bin"}, "test", "-r", path)
	return cmd.Run() == nil
}

// command prepares a command of that account in an environment of its own.
func (a account) command(ctx context.Context, dir string, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, env
	// With all that it starts: a shell's own child holds its output open.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if a.other {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return cmd
}

// tryBudget is how long fetch may try in a trial, and tryPatience how long the
// trial may take: what is wrong with a setting is known at once.
const (
	tryBudget   = 20 * time.Second
	tryPatience = time.Minute
)

// tryCommand runs the restore_command as the server will: as things are, where it
// must deliver, and in an empty environment as the directory's owner, which is
// how service managers start a server.
func (r *restoring) tryCommand(ctx context.Context, command serverCommand, plan *recovery.Plan, owner account) error {
	included := plan.Backup.Facts != nil && plan.Backup.Facts.WAL == archive.WALIncluded
	if included && plan.Reach.LSN <= plan.Backup.Stop.LSN {
		return nil // its WAL is inside, and the archive may have none
	}
	// The first that the server asks for. On which timeline, it tries one after
	// the other; the backup's own has it.
	name := plan.Size.Name(plan.Backup.Start.Timeline, plan.Backup.Start.LSN).String()
	if included {
		// Of what it has inside, the archive has the last at least.
		name = plan.Size.Name(plan.Backup.Stop.Timeline, plan.Backup.Stop.LSN).String()
	}
	if said, err := r.tryOnce(ctx, command, name, account{uid: os.Geteuid(), gid: os.Getegid()}, r.environ); err != nil {
		if ctx.Err() != nil {
			return withExit(exitFailed, fmt.Errorf("interrupted: %s is restored, and its restore_command was not tried", r.dir), "")
		}
		return withExit(exitFailed, fmt.Errorf("%s is restored, but its restore_command does not bring %s: %s", r.dir, name, said),
			"mend that before the server is started; the command is "+command.text)
	}
	said, err := r.tryOnce(ctx, command, name, owner, []string{"PATH=/usr/bin:/bin"})
	if err == nil || ctx.Err() != nil {
		return nil
	}
	mend := "let that user read it"
	if command.bucket {
		mend = "put the store's keys into " + filepath.Join(orHome(owner.home), ".aws", "credentials") + ", readable by that user alone, and restore again, or give the service the variables"
	}
	r.log.Warn(fmt.Sprintf("a service that starts the server without your environment (as systemd and Debian's pg_ctlcluster do) cannot get WAL: as user %s, with no variables set, restore_command says: %s: %s",
		owner.name, said, mend))
	return nil
}

func orHome(home string) string {
	if home == "" {
		return "~"
	}
	return home
}

// tryOnce runs the command once and removes what it brought. said is the last
// line that it printed, or what else went wrong.
func (r *restoring) tryOnce(ctx context.Context, command serverCommand, name string, as account, env []string) (said string, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryPatience)
	defer cancel()
	// Beside the names that the server uses itself.
	target := "pg_wal/RECOVERYTRIAL"
	text := strings.NewReplacer("%f", name, "%p", target, "%%", "%").Replace(command.text)
	// In front, so that one of the user's own wins.
	env = append([]string{"WALFERRY_BUDGET=" + tryBudget.String()}, env...)
	out, err := as.command(ctx, r.dir, env, "sh", "-c", text).CombinedOutput()
	if rerr := os.Remove(filepath.Join(r.dir, target)); rerr != nil && err == nil {
		// Not there, though it succeeded; or it cannot be removed.
		err = rerr
	}
	if err == nil {
		return "", nil
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if said = lines[len(lines)-1]; said == "" {
		said = err.Error()
	}
	return said, err
}
