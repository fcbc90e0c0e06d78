package integration

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/restore/instance"
)

// requiredMajor is the version that all scenarios run on; the core ones run on
// others as well, see onVersions.
const requiredMajor = 15

// lab is what all tests of one run share. It does not change once the tests
// run, but for the binaries, which are built when they are first asked for.
type lab struct {
	dir     string // everything is in here; other users can pass through
	account instance.Account
	found   []instance.Installation // newest first; empty: no tests
	main    instance.Installation   // the one of the scenarios
	core    []instance.Installation // those of the core scenarios, newest first
	full    bool                    // more rounds, more versions
	missing string                  // why nothing can run, or ""

	binary    func() (string, error)
	panicking func() (string, error)
}

var theLab *lab

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	ctx := context.Background()
	// The scenarios wait most of the time: more of them run at once than
	// there are processors. (-parallel by hand still wins.)
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		if err := p.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0))); err != nil {
			return 1, err
		}
	}
	l := &lab{}
	theLab = l
	if testing.Short() {
		l.missing = "-short"
		return m.Run(), nil
	}
	l.found, err = instance.Find(ctx, filepath.SplitList(os.Getenv("WALFERRY_TEST_PG")))
	if errors.Is(err, instance.ErrNoPostgreSQL) && os.Getenv("WALFERRY_TEST_PG") == "" {
		l.missing = err.Error()
		fmt.Fprintln(os.Stderr, "integration: NOTHING IS TESTED HERE:", err)
		return m.Run(), nil
	}
	if err != nil {
		return 1, err
	}
	l.main = l.found[0]
	for _, i := range l.found {
		if i.Major == requiredMajor {
			l.main = i
			break
		}
	}
	l.full = os.Getenv("WALFERRY_FULL") != ""
	l.core = coreVersions(l.found, l.main, l.full)
	fmt.Fprintf(os.Stderr, "integration: the scenarios run on %s; the core ones on", l.main)
	for _, i := range l.core {
		fmt.Fprintf(os.Stderr, " %s", i.Version)
	}
	fmt.Fprint(os.Stderr, "; all versions found:")
	for _, i := range l.found {
		fmt.Fprintf(os.Stderr, " %s", i.Version)
	}
	fmt.Fprintln(os.Stderr)
	if l.account, err = instance.Unprivileged(); err != nil {
		return 1, err
	}
	if l.dir, err = os.MkdirTemp("", "walferry-it-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(l.dir)) }()
	if err := os.Chmod(l.dir, 0o755); err != nil {
		return 1, err
	}
	l.endOnSignal()
	l.binary = sync.OnceValues(func() (string, error) { return l.build(ctx, "walferry") })
	l.panicking = sync.OnceValues(func() (string, error) { return l.buildPanicking(ctx) })
	return m.Run(), nil
}

// endOnSignal has an interrupt, or a polite end, leave nothing: Go ends a test's
// process at once then, and no cleanup runs.
func (l *lab) endOnSignal() {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		sig := <-caught
		signal.Ignore(syscall.SIGPIPE) // who read our output may have ended first
		fmt.Fprintf(os.Stderr, "integration: %s: ending what runs\n", sig)
		// What is killed may just have started something.
		for range 100 {
			if l.killAll() == 0 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err := os.RemoveAll(l.dir); err != nil {
			fmt.Fprintln(os.Stderr, "integration:", err)
		}
		os.Exit(1)
	}()
}

// killAll kills every process that works in our directory, or has a name in it
// on its command line, and returns how many there were. Nobody else's do: the
// directory's name is this run's.
func (l *lab) killAll() (killed int) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0
	}
	for _, proc := range all {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Either is empty of a process that is gone.
		line, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		work, _ := os.Readlink(filepath.Join(proc, "cwd"))
		if bytes.Contains(line, []byte(l.dir)) || strings.HasPrefix(work, l.dir) {
			if syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed++
			}
		}
	}
	return killed
}

// build builds cmd/walferry with the race detector. It takes minutes on a
// machine that never did, and seconds afterwards.
func (l *lab) build(ctx context.Context, name string, flags ...string) (string, error) {
	out := filepath.Join(l.dir, name)
	args := append([]string{"build", "-race", "-buildvcs=false", "-o", out}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "github.com/walferry/walferry/cmd/walferry")...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, text)
	}
	return out, os.Chmod(out, 0o755)
}

// What an interrupt ends: all that has to do with our directory, and nothing
// else.
func TestKillAll(t *testing.T) {
	if _, err := os.Stat("/proc/self/cwd"); err != nil {
		t.Skip("SKIPPED: there is no /proc")
	}
	l := &lab{dir: t.TempDir()}
	run := func(arg0, dir string) *exec.Cmd {
		cmd := exec.Command("sleep", "1000")
		cmd.Args[0], cmd.Dir = arg0, dir
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			// One that is dead is as dead as we want it.
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return cmd
	}
	ours := []*exec.Cmd{run("sleep", l.dir), run(filepath.Join(l.dir, "walferry"), "")}
	other := run("sleep", t.TempDir())
	if n := l.killAll(); n != len(ours) {
		t.Errorf("%d processes were killed, not %d", n, len(ours))
	}
	for _, cmd := range ours {
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() >= 0 {
			t.Errorf("%s: %v", cmd.Args[0], err)
		}
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a process of somebody else's: %v", err)
	}
}
