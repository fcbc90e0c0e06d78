package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore/dir"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/waltest"
)

const (
	fetchSystem  = 7710923324468496309
	fetchSegment = "000000010000000000000003"
	fetchAbsent  = "000000010000000000000004"
	fetchHole    = "000000010000000000000001"
)

// buildWalferry builds the program as it is released, with further arguments
// of go build.
func buildWalferry(t *testing.T, args ...string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "walferry")
	cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"build", "-o", binary}, args...), ".")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return binary
}

// fetchArchive is an archive that holds fetchSegment and the one before it.
type fetchArchive struct {
	url string
	wal []byte // of fetchSegment
}

func newFetchArchive(t *testing.T) *fetchArchive {
	t.Helper()
	root := t.TempDir()
	store, err := dir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	a := archive.New(store, archive.Options{})
	if _, err := a.Claim(t.Context(), archive.Identity{SystemIdentifier: fetchSystem, SegmentSize: segment.MinSize}); err != nil {
		t.Fatal(err)
	}
	f := &fetchArchive{url: "file://" + root}
	for _, file := range []string{"000000010000000000000002", fetchSegment} {
		name, err := segment.ParseName(file)
		if err != nil {
			t.Fatal(err)
		}
		log := waltest.New(fetchSystem, segment.MinSize, name.Start(segment.MinSize))
		log.Fill(name.End(segment.MinSize))
		f.wal = log.Segment(name.Start(segment.MinSize))[:segment.MinSize]
		m := codec.Method{Name: codec.LZ4}
		frame, err := m.Encode(f.wal)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.PutSegment(t.Context(), name, m, frame, bytes.NewReader(f.wal), segment.MinSize); err != nil {
			t.Fatal(err)
		}
		frame.Release()
	}
	return f
}

// fetchRun is a data directory in which restore_command is called.
type fetchRun struct {
	*fetchArchive
	binary string
	data   string
}

func newFetchRun(t *testing.T, binary string, a *fetchArchive, signalFile string) *fetchRun {
	t.Helper()
	r := &fetchRun{fetchArchive: a, binary: binary, data: t.TempDir()}
	for _, sub := range []string{"pg_wal", "global"} {
		if err := os.Mkdir(filepath.Join(r.data, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	control := binary64(fetchSystem)
	control = append(control, 0x14, 0x05, 0, 0) // 1300, as on every little-endian host
	files := map[string][]byte{"PG_VERSION": []byte("15\n"), "global/pg_control": control}
	if signalFile != "" {
		files[signalFile] = nil
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(r.data, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func binary64(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }

// command makes a call, as a shell would. $STORE in the arguments is the
// archive's URL.
func (r *fetchRun) command(ctx context.Context, args ...string) *exec.Cmd {
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "$STORE", r.url)
	}
	cmd := exec.CommandContext(ctx, r.binary, args...)
	cmd.Dir = r.data
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.data}
	return cmd
}

// exitCode runs a call to its end; stderr is what it said.
func (r *fetchRun) exitCode(t *testing.T, args ...string) (code int, stderr string) {
	t.Helper()
	cmd := r.command(t.Context(), args...)
	var text strings.Builder
	cmd.Stderr = &text
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), text.String()
}

func (r *fetchRun) delivered(t *testing.T) bool {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(r.data, "pg_wal/RECOVERYXLOG"))
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content, r.wal) {
		t.Error("other bytes than in the archive")
	}
	return true
}

// TestFetchExitCodes runs the program as PostgreSQL does. Never does it end
// with 2, and with 1 in a recovery only when absence was proved.
func TestFetchExitCodes(t *testing.T) {
	program, a := buildWalferry(t), newFetchArchive(t)
	const p = "pg_wal/RECOVERYXLOG"
	for _, c := range []struct {
		what              string
		args              []string
		recovery, standby int
		says              string // in the only line on stderr; empty: nothing is said
	}{
		{"flags before the word", []string{"--store", "$STORE", "--verbose=false", "fetch", fetchSegment, p}, 0, 0, ""},
		{"flags before the arguments", []string{"fetch", "--store=$STORE", "--budget", "1s", fetchSegment, p}, 0, 0, ""},
		{"flags between the arguments", []string{"fetch", fetchSegment, "--store", "$STORE", "--sealed-only", p}, 0, 0, ""},
		{"flags behind the arguments", []string{"fetch", fetchSegment, p, "--stop-at-gap", "--budget=1s", "--store", "$STORE"}, 0, 0, ""},
		{"verbose", []string{"fetch", "-v", fetchAbsent, p, "--store", "$STORE"}, 1, 1, "not in the archive"},
		{"absent", []string{"fetch", "--store", "$STORE", fetchAbsent, p}, 1, 1, ""},
		{"absent history", []string{"fetch", "--store", "$STORE", "00000002.history", p}, 1, 1, ""},
		{"a hole taken for the end", []string{"fetch", "--store", "$STORE", "--stop-at-gap", fetchHole, p}, 1, 1, "--stop-at-gap"},
		{"a hole", []string{"fetch", "--store", "$STORE", "--budget=500ms", fetchHole, p}, 255, 1, "or --stop-at-gap)"},
		{"a wrong prefix", []string{"fetch", "--store", "$STORE/wal_005", "--budget=500ms", fetchAbsent, p}, 255, 1, "check the store's prefix"},
		{"a root that is not there", []string{"fetch", "--store", "$STORE/nowhere", "--budget=500ms", fetchSegment, p}, 255, 1, "nowhere"},

		{"no store", []string{"fetch", fetchSegment, p}, 255, 1, "--store"},
		{"no arguments", []string{"fetch", "--store", "$STORE"}, 255, 1, "%f is missing"},
		{"one argument", []string{"fetch", "--store", "$STORE", fetchSegment}, 255, 1, "%p is missing"},
		{"three arguments", []string{"fetch", "--store", "$STORE", fetchSegment, p, "more"}, 255, 1, "more"},
		{"no WAL file's name", []string{"fetch", "--store", "$STORE", "PG_VERSION", p}, 255, 1, "PG_VERSION"},
		{"arguments in the wrong order", []string{"fetch", "--store", "$STORE", p, fetchSegment}, 255, 1, "in this order"},
		{"a target without directory", []string{"fetch", "--store", "$STORE", fetchSegment, "nowhere/RECOVERYXLOG"}, 255, 1, "nowhere"},
		{"a target that is a directory", []string{"fetch", "--store", "$STORE", fetchSegment, "pg_wal"}, 255, 1, "is a directory"},
		{"a misspelt flag", []string{"fetch", "--store", "$STORE", "--bugdet", "5m", fetchSegment, p}, 255, 1, "did you mean --budget?"},
		{"a flag of another command", []string{"fetch", "--store", "$STORE", "--slot", "x", fetchSegment, p}, 255, 1, "--slot"},
		{"a flag without its value", []string{"fetch", fetchSegment, p, "--store"}, 255, 1, "--store needs a value"},
		{"a wrong budget", []string{"fetch", "--store", "$STORE", "--budget", "5", fetchSegment, p}, 255, 1, "--budget=5 (flag)"},
		{"no budget", []string{"fetch", "--store", "$STORE", "--budget", "0", fetchSegment, p}, 255, 1, "--budget=0 (flag)"},
		{"a wrong scheme", []string{"fetch", "--store", "ftp://x/y", fetchSegment, p}, 255, 1, "s3://"},
		{"a missing settings file", []string{"fetch", "--store", "$STORE", "--config", "nowhere.yaml", fetchSegment, p}, 255, 1, "nowhere.yaml"},
		{"a key that nobody knows", []string{"fetch", "--config", "wrong.yaml", fetchSegment, p}, 255, 1, "wrong.yaml:1"},
		{"help among the arguments", []string{"fetch", "--help", fetchSegment, p}, 255, 1, "--help"},
		{"version among the arguments", []string{"fetch", "-V", fetchSegment, p}, 255, 1, "--version"},
	} {
		for file, want := range map[string]int{"recovery.signal": c.recovery, "standby.signal": c.standby, "": c.recovery} {
			t.Run(c.what+"/"+file, func(t *testing.T) {
				r := newFetchRun(t, program, a, file)
				if err := os.WriteFile(filepath.Join(r.data, "wrong.yaml"), []byte("stroe: "+r.url+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				code, stderr := r.exitCode(t, append([]string{}, c.args...)...)
				if code != want {
					t.Errorf("exit code %d, want %d: %s", code, want, stderr)
				}
				if r.delivered(t) != (want == 0) {
					t.Errorf("delivered or not: %s", stderr)
				}
				if c.says == "" && stderr != "" || !strings.Contains(stderr, c.says) {
					t.Errorf("said %q", stderr)
				}
				for line := range strings.Lines(stderr) {
					if !strings.HasPrefix(line, "walferry fetch: ") {
						t.Errorf("line %q", line)
					}
				}
				if n := strings.Count(stderr, "\n"); c.says != "" && n != 1 {
					t.Errorf("%d lines: %s", n, stderr)
				}
			})
		}
	}
	t.Run("help", func(t *testing.T) {
		r := newFetchRun(t, program, a, "")
		for _, arg := range []string{"--help", "-?", "-h", "help"} {
			out, err := r.command(t.Context(), "fetch", arg).Output()
			if err != nil || !strings.Contains(string(out), "%f %p") {
				t.Errorf("%s: %v, %q", arg, err, out)
			}
		}
	})
	t.Run("the mode of an absolute target", func(t *testing.T) {
		r := newFetchRun(t, program, a, "standby.signal")
		elsewhere := t.TempDir()
		for _, args := range [][]string{{"--stroe", "x"}, {"--store", r.url + "/nowhere", "--budget", "1ms"}} {
			cmd := r.command(t.Context(), append([]string{"fetch", fetchSegment, filepath.Join(r.data, "pg_wal/RECOVERYXLOG")}, args...)...)
			cmd.Dir = elsewhere
			if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("%v: %v", args, err)
			}
		}
	})
	t.Run("nobody reads the messages", func(t *testing.T) {
		r := newFetchRun(t, program, a, "standby.signal")
		cmd := r.command(t.Context(), "fetch", "--stroe", "x", fetchSegment, p)
		reader, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = writer
		if err := errors.Join(reader.Close(), cmd.Start(), writer.Close()); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("signals", func(t *testing.T) { fetchSignals(t, program, a) })
}

// fetchSignals kills a call that waits for its store: it must die by the
// signal, and leave no temporary file.
func fetchSignals(t *testing.T, program string, a *fetchArchive) {
	for sent, want := range map[syscall.Signal]syscall.Signal{
		syscall.SIGTERM: syscall.SIGTERM, syscall.SIGINT: syscall.SIGINT, syscall.SIGQUIT: syscall.SIGKILL,
	} {
		t.Run(sent.String(), func(t *testing.T) {
			r := newFetchRun(t, program, a, "recovery.signal")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := r.command(ctx, "fetch", "--store", "$STORE/nowhere", fetchSegment, "pg_wal/RECOVERYXLOG")
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			said := make([]byte, 1)
			if _, err := io.ReadFull(stderr, said); err != nil { // "trying again": it is in the middle of it
				t.Fatal(err)
			}
			if err := cmd.Process.Signal(sent); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(stderr)
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Fatal("it went on")
			}
			status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !ok || !status.Signaled() || status.Signal() != want {
				t.Errorf("ended with %v", cmd.ProcessState)
			}
			if bytes.Contains(rest, []byte("goroutine")) {
				t.Errorf("said %s", rest)
			}
		})
	}
}

// TestFetchPanics: a bug ends in an abort, which stops the server, and not in
// Go's own exit code for it, 2, on which PostgreSQL would promote. The bugs
// are put into an overlay of the sources; the program has no switch for them.
func TestFetchPanics(t *testing.T) {
	source, err := os.ReadFile("fetch.go")
	if err != nil {
		t.Fatal(err)
	}
	const before, bugs = "	f := restore.NewFetcher(", `	switch os.Getenv("BUG") {
	case "panic":
		panic("a bug")
	case "panic in a goroutine":
		go func() { panic("a bug") }()
		select {}
	case "fatal error":
		new(sync.Mutex).Unlock()
	}
`
	if !bytes.Contains(source, []byte(before)) {
		t.Fatalf("fetch.go has no line %q", before)
	}
	changed := strings.Replace(string(source), before, bugs+before, 1)
	changed = strings.Replace(changed, "import (", "import (\n\t\"sync\"", 1)
	replacement, list := filepath.Join(t.TempDir(), "fetch.go"), filepath.Join(t.TempDir(), "overlay.json")
	original, err := filepath.Abs("fetch.go")
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: replacement}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(replacement, []byte(changed), 0o600), os.WriteFile(list, overlay, 0o600)); err != nil {
		t.Fatal(err)
	}
	program, a := buildWalferry(t, "-overlay", list), newFetchArchive(t)
	for bug, want := range map[string]int{
		"": 0, "panic": 134, "panic in a goroutine": 134, "fatal error": 134, // 128 + SIGABRT
	} {
		t.Run(bug, func(t *testing.T) {
			r := newFetchRun(t, program, a, "standby.signal")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			sh := r.command(ctx, "fetch", "--store", "$STORE", fetchSegment, "pg_wal/RECOVERYXLOG")
			sh.Env = append(sh.Env, "BUG="+bug)
			// As PostgreSQL runs it, by system(3), and what a shell makes of it.
			sh.Args = append([]string{"sh", "-c", `ulimit -c 0; "$0" "$@"; exit $?`}, sh.Args...)
			if sh.Path, err = exec.LookPath("sh"); err != nil {
				t.Fatal(err)
			}
			out, err := sh.CombinedOutput()
			if sh.ProcessState.ExitCode() != want {
				t.Errorf("ended with %v: %s", err, out)
			}
		})
	}
}
