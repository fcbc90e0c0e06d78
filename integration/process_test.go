package integration

import (
	"bytes"
	"context"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for something that must happen. No test
// depends on how long it takes; a machine that needs longer is broken.
const patience = 90 * time.Second

// eventually waits until what is true. It fails the test at the deadline.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	for !is() {
		if t.Failed() {
			t.FailNow()
		}
		if time.Now().After(end) {
			t.Fatalf("waited %s in vain: %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// output collects what a process prints.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// process is a child of the test: walferry, or one of PostgreSQL's programs.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout output
	both   output // standard output and error in the order in which they came
	done   chan struct{}
	err    error // of Wait; valid behind done
}

type tee struct{ a, b *output }

func (w tee) Write(p []byte) (int, error) {
	if _, err := w.a.Write(p); err != nil {
		return 0, err
	}
	return w.b.Write(p)
}

// start runs a program as the lab's account with nothing but env. It is killed
// at the end of the test if it still runs; what it printed is shown when the
// test has failed.
func start(t *testing.T, env []string, program string, args ...string) *process {
	t.Helper()
	cmd := theLab.account.Command(context.WithoutCancel(t.Context()), program, args...)
	cmd.Env = append(cmd.Env, env...)
	return run(t, cmd)
}

// run starts a command that was prepared.
func run(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = tee{&p.stdout, &p.both}, &p.both
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill9()
		if strings.Contains(p.log(), "WARNING: DATA RACE") {
			t.Error("the race detector found something")
		}
		if t.Failed() {
			t.Logf("%s (%v) printed:\n%s", strings.Join(p.cmd.Args, " "), p.err, p.log())
		}
	})
	return p
}

func (p *process) log() string { return p.both.String() }

// lastLine is the last line that was printed.
func (p *process) lastLine() string {
	lines := strings.Split(strings.TrimSpace(p.log()), "\n")
	return lines[len(lines)-1]
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// awaitLog waits until the pattern is in the log; a process that ends first
// fails the test.
func (p *process) awaitLog(pattern string) {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	eventually(p.t, "the log of "+p.cmd.Args[1]+" to say "+pattern, func() bool {
		ended := !p.running() // looked at first: the log is complete then
		if re.MatchString(p.log()) {
			return true
		}
		if ended {
			p.t.Fatalf("ended (%v) without saying %s", p.err, pattern)
		}
		return false
	})
}

// wait waits for the end and returns the exit code, -1 for a signal.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s does not end", strings.Join(p.cmd.Args, " "))
	}
	return p.cmd.ProcessState.ExitCode()
}

// exits waits for the end and wants the code.
func (p *process) exits(code int) {
	p.t.Helper()
	if got := p.wait(); got != code {
		p.t.Fatalf("%s ended with %d, want %d", strings.Join(p.cmd.Args, " "), got, code)
	}
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// stop sends SIGTERM and wants a clean end.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	p.exits(0)
}

// kill9 kills the process if it runs, and waits for it.
func (p *process) kill9() {
	if p.running() {
		// A process that ended in between is as dead as we want it.
		_ = p.cmd.Process.Kill()
	}
	<-p.done
}
