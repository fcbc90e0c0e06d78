package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/walferry/walferry/replication/fakepg"
)

// terminal makes a pseudo-terminal: keys are typed at one end, and the other is
// a process's.
func terminal(t *testing.T) (keys, screen *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("*** no pseudo-terminals: %v: SKIPPED ***", err)
	}
	t.Cleanup(func() { _ = keys.Close() }) // nothing is in it that anybody needs
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return keys, screen
}

// echoes reports whether a terminal shows what is typed; either end knows.
func echoes(t *testing.T, keys *os.File) bool {
	t.Helper()
	flags, err := unix.IoctlGetTermios(int(keys.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return flags.Lflag&unix.ECHO != 0
}

// Somebody at a terminal is asked for the password that the server wants; a
// daemon asks nobody, and --no-password forbids it.
func TestPasswordPrompt(t *testing.T) {
	server := fakepg.New(fakepg.Options{Password: "secret"})
	t.Cleanup(server.Close)
	port, err := server.Listen()
	if err != nil {
		t.Fatal(err)
	}
	create := func(slot string, more ...string) []string {
		return append([]string{"slot", "create", slot}, more...)
	}
	const noPassword = "no password was given (PGPASSWORD, -W,"
	for _, c := range []struct {
		what  string
		args  []string
		keys  string // "": nobody is asked
		code  int
		says  string
		extra string // of the environment
	}{
		{what: "the right one", args: create("a"), keys: "secret\n", says: "created"},
		{what: "asked for, and wanted", args: create("b", "-W"), keys: "secret\n", says: "created"},
		{what: "a wrong one", args: create("b"), keys: "sesame\n", code: exitFailed, says: "password authentication failed"},
		{what: "the end of the input", args: create("b"), keys: "\x04", code: exitFailed, says: noPassword},
		{what: "an interrupt", args: create("b"), keys: "\x03", code: exitFailed, says: "asking for the password: interrupted"},
		{what: "forbidden", args: create("b", "-w"), code: exitFailed, says: noPassword},
		{what: "given", args: create("c"), says: "created", extra: "PGPASSWORD=secret"},
		{what: "a base backup", args: []string{"backup", "create"}, keys: "sesame\n", code: exitFailed, says: "password authentication failed"},
		{what: "a daemon", args: []string{"receive", "--no-loop"}, code: exitFailed, says: noPassword},
		{what: "a daemon that may", args: []string{"receive", "--no-loop", "-W"}, keys: "sesame\n", code: exitFailed, says: "password authentication failed"},
	} {
		t.Run(c.what, func(t *testing.T) {
			keys, screen := terminal(t)
			home := t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // one that hangs is ended
			defer cancel()
			cmd := exec.CommandContext(ctx, "walferry", append(c.args, "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-U", "walferry")...)
			cmd.Env = append(os.Environ(), "HOME="+home, "WALFERRY_HOME="+home, "PGSSLMODE=disable", "PGPASSWORD=", c.extra)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = screen, screen, screen
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// With ours closed, reading ends when all was read that the process,
			// which has the only one left, has written.
			if err := screen.Close(); err != nil {
				t.Fatal(err)
			}
			var all bytes.Buffer
			typed := false
			for b := make([]byte, 1024); ; {
				n, err := keys.Read(b)
				all.Write(b[:n])
				if errors.Is(err, syscall.EIO) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if typed || !strings.Contains(all.String(), "Password: ") {
					continue
				}
				if echoes(t, keys) {
					t.Error("what is typed is shown")
				}
				typed = true
				if _, err := io.WriteString(keys, c.keys); err != nil {
					t.Error(err)
				}
			}
			if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
				t.Error(err)
			}
			text := all.String()
			if got := cmd.ProcessState.ExitCode(); got != c.code || !strings.Contains(text, c.says) {
				t.Errorf("exit code %d, %q; want %d, %q", got, text, c.code, c.says)
			}
			if asked := strings.Count(text, "Password: "); asked != min(1, len(c.keys)) {
				t.Errorf("asked %d times: %q", asked, text)
			}
			if !echoes(t, keys) {
				t.Error("the terminal is left without an echo")
			}
			if strings.Contains(text, "secret") || strings.Contains(text, "sesame") {
				t.Errorf("the password is shown: %q", text)
			}
		})
	}
}
