package instance

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
	"syscall"
)

// programPath is the PATH of the programs that we start: theirs must not
// depend on the shell from which somebody started us.
const programPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// unprivileged are the users that a root process runs the server as, the
// first that exists.
var unprivileged = [...]string{"postgres", "_postgres", "nobody"}

// Account is the operating system user that a server and its programs run as.
type Account struct {
	Name string
	Home string
	uid  uint32
	gid  uint32
	// other: not the user of this process, so that children need its
	// credentials and files must be given to it.
	other bool
}

// Unprivileged returns the account to run a server as: the user of this
// process or, when that is root, the first of postgres and nobody that exists.
func Unprivileged() (Account, error) {
	if os.Geteuid() != 0 {
		u, err := user.Current()
		if err != nil {
			return Account{}, fmt.Errorf("looking up the user of this process: %w", err)
		}
		return account(u, false)
	}
	for _, name := range unprivileged {
		u, err := user.Lookup(name)
		var unknown user.UnknownUserError
		if errors.As(err, &unknown) {
			continue
		}
		if err != nil {
			return Account{}, fmt.Errorf("looking up user %s: %w", name, err)
		}
		return account(u, true)
	}
	return Account{}, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

func account(u *user.User, other bool) (Account, error) {
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return Account{}, fmt.Errorf("user %s: %w", u.Username, err)
	}
	return Account{Name: u.Username, Home: u.HomeDir, uid: uint32(uid), gid: uint32(gid), other: other}, nil
}

// Other tells whether the account is another one than that of this process.
func (a Account) Other() bool { return a.other }

// Command prepares a program to run as the account, in its own process group,
// in the root directory, with an environment that holds nothing but PATH,
// HOME, USER and LC_ALL. It is killed when ctx ends.
func (a Account) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	a.prepare(cmd)
	return cmd
}

func (a Account) prepare(cmd *exec.Cmd) {
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + programPath, "HOME=" + a.Home, "USER=" + a.Name, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a.other {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: []uint32{a.gid}}
	}
}

// MkdirAll makes a directory of mode 0700 that belongs to the account. Only
// the last part of the path is given to it: parents are ours.
func (a Account) MkdirAll(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return a.own(dir)
}

// Own gives a file, or a directory with everything in it, to the account.
// Symbolic links are given, not followed.
func (a Account) Own(path string) error {
	if !a.other {
		return nil
	}
	return filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return a.own(p)
	})
}

func (a Account) own(path string) error {
	if !a.other {
		return nil
	}
	return os.Lchown(path, int(a.uid), int(a.gid))
}
