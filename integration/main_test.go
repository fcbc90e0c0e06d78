package integration

import (
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
// process at once then, and no cleanup runs. (Debian's pg_ctlcluster makes its
// servers nobody's children; TestDebianCluster's is the one that goes on.)
func (l *lab) endOnSignal() {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		sig := <-caught
		signal.Ignore(syscall.SIGPIPE) // who read our output may have ended first
		fmt.Fprintf(os.Stderr, "integration: %s: ending what runs\n", sig)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(instance.KillChildren(ctx, os.Getpid()), os.RemoveAll(l.dir)); err != nil {
			fmt.Fprintln(os.Stderr, "integration:", err)
		}
		os.Exit(1)
	}()
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
