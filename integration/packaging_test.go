package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/waltest"
)

// instruction is a line of a Dockerfile.
type instruction struct {
	line      int
	name, arg string
}

// readDockerfile returns the instructions of each stage.
func readDockerfile(t *testing.T, path string) (stages [][]instruction) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(content), "\n")
	for i := 0; i < len(lines); i++ {
		text := strings.TrimSpace(lines[i])
		if text == "" || text[0] == '#' {
			continue
		}
		line := i + 1
		for strings.HasSuffix(text, "\\") && i+1 < len(lines) {
			i++
			text = strings.TrimSuffix(text, "\\") + strings.TrimSpace(lines[i])
		}
		name, arg, _ := strings.Cut(text, " ")
		if name == "FROM" {
			stages = append(stages, nil)
		}
		if len(stages) == 0 {
			t.Fatalf("%s:%d: %s in front of FROM", path, line, name)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], instruction{line, name, arg})
	}
	return stages
}

// image is what the last stage of a Dockerfile makes.
type image struct {
	root       string
	env        []string
	uid, gid   uint32
	entrypoint []string
	cmd        []string
}

// command prepares the entry point in the image's root, as the user of the
// image or as root.
func (i *image) command(t *testing.T, asRoot bool, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), i.entrypoint[0], append(i.entrypoint[1:], args...)...)
	cmd.Env = i.env
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: i.root, Credential: &syscall.Credential{}}
	if !asRoot {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: i.uid, Gid: i.gid, Groups: []uint32{i.gid}}
	}
	return cmd
}

// buildImage does what the Dockerfile says, without docker: what its first
// stage runs is run here, on this machine, with /image in a temporary
// directory, and what its second one copies out of there makes the root.
func buildImage(t *testing.T, path string) *image {
	t.Helper()
	stages := readDockerfile(t, path)
	if len(stages) != 2 || stages[1][0].arg != "scratch" {
		t.Fatalf("%s: want a stage that builds, and one from scratch", path)
	}
	work := t.TempDir()
	// The user of the image has to get into it.
	for dir := work; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	built := filepath.Join(work, "image")
	for _, in := range stages[0] {
		switch {
		case in.name == "RUN" && in.arg == "go mod download": // this machine has them
		case in.name == "RUN":
			cmd := exec.CommandContext(t.Context(), "/bin/sh", "-ec", strings.ReplaceAll(in.arg, "/image", built))
			cmd.Dir = ".."
			// A checkout of another user's: docker's copy is root's own.
			cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s:%d: %v\n%s", path, in.line, err, out)
			}
		case in.name == "FROM":
			want := goVersion(t)
			if got := regexp.MustCompile(`^golang:(\d+\.\d+) AS build$`).FindStringSubmatch(in.arg); got == nil || got[1] != want {
				t.Errorf("%s:%d: FROM %s; go.mod wants Go %s", path, in.line, in.arg, want)
			}
		case in.name == "WORKDIR", in.name == "COPY": // the module is here
		default:
			t.Fatalf("%s:%d: this test does not know %s", path, in.line, in.name)
		}
	}
	img := &image{root: filepath.Join(work, "root")}
	if err := os.Mkdir(img.root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, in := range stages[1][1:] {
		switch in.name {
		case "COPY":
			m := regexp.MustCompile(`^--from=build (?:--chown=(\d+):(\d+) )?/image(/\S+) (/\S+)$`).FindStringSubmatch(in.arg)
			if m == nil {
				t.Fatalf("%s:%d: this test does not know COPY %s", path, in.line, in.arg)
			}
			// A number that is not there is root's 0.
			uid, _ := strconv.Atoi(m[1])
			gid, _ := strconv.Atoi(m[2])
			copyInto(t, filepath.Join(built, m[3]), filepath.Join(img.root, m[4]), uid, gid)
		case "ENV":
			img.env = append(img.env, in.arg)
		case "USER":
			if _, err := fmt.Sscanf(in.arg, "%d:%d", &img.uid, &img.gid); err != nil {
				t.Fatalf("%s:%d: want numbers: there is nobody to look names up: %v", path, in.line, err)
			}
		case "ENTRYPOINT":
			if err := json.Unmarshal([]byte(in.arg), &img.entrypoint); err != nil {
				t.Fatalf("%s:%d: %v", path, in.line, err)
			}
		case "CMD":
			if err := json.Unmarshal([]byte(in.arg), &img.cmd); err != nil {
				t.Fatalf("%s:%d: %v", path, in.line, err)
			}
		case "VOLUME":
			if info, err := os.Stat(filepath.Join(img.root, in.arg)); err != nil || info.Sys().(*syscall.Stat_t).Uid != img.uid {
				t.Errorf("%s:%d: the volume is not a directory of the user's: %v", path, in.line, err)
			}
		default:
			t.Fatalf("%s:%d: this test does not know %s", path, in.line, in.name)
		}
	}
	return img
}

// goVersion is the one of go.mod, as 1.26.
func goVersion(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(content)
	if m == nil {
		t.Fatal("go.mod names no version")
	}
	return string(m[1])
}

// copyInto copies a directory's content as COPY does. Directories above the
// target are root's.
func copyInto(t *testing.T, from, to string, uid, gid int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(p, from))
		if d.IsDir() {
			err = os.MkdirAll(target, 0o755)
		} else {
			err = copyFile(p, target)
		}
		return errors.Join(err, os.Chmod(target, info.Mode().Perm()), os.Chown(target, uid, gid))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// The image's root holds all that walferry needs: its program runs there with
// nothing else, as root and as the image's user, who can fetch and receive.
func TestImage(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED: -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: the image: chroot needs root")
	}
	if _, err := os.Stat("/etc/ssl/certs/ca-certificates.crt"); err != nil {
		t.Skipf("NOT TESTED: the image: this machine has no CA certificates to put in: %v", err)
	}
	t.Parallel()
	img := buildImage(t, "../Dockerfile")
	if img.uid == 0 || img.gid == 0 || !slices.Equal(img.cmd, []string{"receive"}) {
		t.Errorf("the image runs %q as %d:%d", img.cmd, img.uid, img.gid)
	}
	content, err := os.ReadFile(filepath.Join(img.root, "etc/passwd"))
	if home, _ := strings.CutPrefix(img.env[0], "HOME="); err != nil || !strings.Contains(string(content), fmt.Sprintf(":%d:%d:walferry:%s:", img.uid, img.gid, home)) {
		t.Errorf("/etc/passwd does not know the user and the home %s (%v):\n%s", home, err, content)
	}

	// A segment to fetch, and a place for it that both users can write.
	log := waltest.New(1, segment.MinSize, segment.LSN(segment.MinSize))
	log.Fill(2 * segment.LSN(segment.MinSize))
	data := string(log.Segment(log.Start()))
	name := segment.MinSize.Name(1, log.Start()).String()
	archive := filepath.Join(img.root, "archive/wal_005")
	place := filepath.Join(img.root, "data/pg_wal")
	for _, dir := range []string{archive, place} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(archive, name), []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"root", "the image's user"} {
		asRoot := who == "root"
		if !asRoot {
			if err := os.Chown(place, int(img.uid), int(img.gid)); err != nil {
				t.Fatal(err)
			}
		}
		for _, args := range [][]string{{"version"}, {"help"}} {
			out, err := img.command(t, asRoot, args...).CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), "walferry ") {
				t.Errorf("%q as %s: %v\n%s", args, who, err, out)
			}
		}
		cmd := img.command(t, asRoot, "fetch", "--budget", "30s", "--store", "file:///archive", name, "pg_wal/RECOVERYXLOG")
		cmd.Dir = "/data"
		out, err := cmd.CombinedOutput()
		got, readErr := os.ReadFile(filepath.Join(place, "RECOVERYXLOG"))
		if err != nil || readErr != nil || string(got) != data {
			t.Errorf("fetch as %s: %v, %v, %d bytes\n%s", who, err, readErr, len(got), out)
		}
		if err := os.Remove(filepath.Join(place, "RECOVERYXLOG")); err != nil {
			t.Fatal(err)
		}
	}

	// Its default place for spool and archive is there and its own. Nobody is
	// at the other end: the first attempt fails, behind the spool.
	cmd := img.command(t, false, "receive", "--no-loop", "-d", "host=127.0.0.1 port=1 user=walferry")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "refused") {
		t.Errorf("receive in the image: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(img.root, "var/lib/walferry/spool/walferry.lock")); err != nil {
		t.Error(err)
	}
}

// The unit is one that systemd takes, and the settings beside it are ones that
// walferry takes.
func TestUnit(t *testing.T) {
	unit, err := os.ReadFile("../packaging/walferry.service")
	if err != nil {
		t.Fatal(err)
	}
	const program = "/usr/local/bin/walferry"
	for _, want := range []string{"\nType=notify\n", "\nWatchdogSec=", "\nRestartPreventExitStatus=2 3\n", "\nExecStart=" + program + " receive\n",
		"\nEnvironment=WALFERRY_CONFIG=/etc/walferry/walferry.yaml\n"} {
		if !strings.Contains(string(unit), want) {
			t.Errorf("the unit has no line %q", strings.TrimSpace(want))
		}
	}
	if theLab.missing != "" {
		t.Skip("NOT TESTED: " + theLab.missing)
	}
	t.Parallel()
	binary, err := theLab.binary()
	if err != nil {
		t.Fatal(err)
	}
	settings, err := filepath.Abs("../packaging/walferry.yaml")
	if err != nil {
		t.Fatal(err)
	}
	readable := filepath.Join(t.TempDir(), "walferry.yaml")
	if err := copyFile(settings, readable); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "config", "print", "--config", readable)
	cmd.Env = []string{}
	if out, err := cmd.CombinedOutput(); err != nil || !regexp.MustCompile(`The archive is s3://acme-wal/db1\?region=eu-central-1 \(\S*walferry\.yaml:\d+\)`).Match(out) {
		t.Errorf("the settings file: %v\n%s", err, out)
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skipf("NOT TESTED: the unit: %v", err)
	}
	// The program need not be installed here: the one that was built stands in.
	mine := filepath.Join(t.TempDir(), "walferry.service")
	if err := os.WriteFile(mine, []byte(strings.Replace(string(unit), program, binary, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", mine).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// Older ones cannot look at a file that is not installed.
	help, err := exec.CommandContext(t.Context(), "systemd-analyze", "--help").CombinedOutput()
	if err != nil || !strings.Contains(string(help), "--threshold") {
		t.Logf("NOT TESTED: the unit's exposure (%v)", err)
		return
	}
	out, err = exec.CommandContext(t.Context(), "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", mine).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}

// A receiver under a service manager: ready while the server is away, pinging
// while it waits and while it streams, stopping at the signal.
func TestServiceNotifications(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	socket := filepath.Join(s.home, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	wants := func(want string) {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		for buf := make([]byte, 4096); ; {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("waiting for %s: %v", want, err)
			}
			lines := strings.Split(string(buf[:n]), "\n")
			if slices.Contains(lines, want) {
				return
			}
			if !slices.Contains(lines, "WATCHDOG=1") {
				t.Fatalf("got %q while waiting for %s", lines, want)
			}
		}
	}
	if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
		t.Fatal(err)
	}
	p := start(t, append(s.env(), "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=200000"), s.binary, s.receiveArgs()...)
	wants("READY=1")
	p.awaitLog("cannot receive from the server")
	wants("WATCHDOG=1")
	s.startServer()
	p.awaitLog("walferry: streaming ")
	wants("WATCHDOG=1")
	p.signal(syscall.SIGTERM)
	wants("STOPPING=1")
	p.exits(0)
}

// composeProject is what matters here of a compose file, as compose's own
// loader understands it.
type composeProject struct {
	Services map[string]struct {
		Image      string
		Command    []string
		Entrypoint []string
		// A variable without a value is the caller's.
		Environment map[string]*string
		Restart     string
	}
	Configs map[string]struct{ Content string }
}

// The compose file is one that compose takes, and what it says works: the
// script makes a role that may replicate, the S3 server starts as it is told
// and has the bucket, and walferry streams from the one to the other with the
// file's environment. Only addresses and directories are the test's own.
func TestCompose(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED: -short")
	}
	t.Parallel()
	file, err := filepath.Abs("../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	load := exec.CommandContext(t.Context(), "go", "run", ".", file)
	load.Dir = "tools/compose"
	text, err := load.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var project composeProject
	if err := json.Unmarshal(text, &project); err != nil {
		t.Fatal(err)
	}
	if len(project.Services) != 3 {
		t.Fatalf("%d services", len(project.Services))
	}
	postgres, gateway, ferry := project.Services["postgres"], project.Services["versitygw"], project.Services["walferry"]
	env := map[string]string{}
	for name, v := range ferry.Environment {
		if v == nil {
			t.Fatalf("%s of walferry has no value", name)
		}
		env[name] = *v
	}
	if postgres.Image == "" || len(gateway.Entrypoint) != 3 || len(ferry.Entrypoint)+len(ferry.Command) > 0 || !strings.HasPrefix(ferry.Restart, "on-failure") {
		t.Fatalf("the services have changed: %s", text)
	}

	// PostgreSQL's settings, which are the last of its command's words.
	settings := map[string]string{}
	for i, word := range postgres.Command {
		if word == "-c" {
			name, value, _ := strings.Cut(postgres.Command[i+1], "=")
			settings[name] = value
		}
	}
	s := newScene(t, options{listen: true, settings: settings})
	// The script, where the image has PGDATA; what it adds to pg_hba.conf is
	// for every address, the test's server listens on one.
	script := theLab.account.Command(s.ctx(), "/bin/sh", "-ec", project.Configs["replication-role"].Content)
	script.Env = append(script.Env, "PATH="+s.pg.Installation().Bin+":/usr/bin:/bin", "PGDATA="+filepath.Dir(s.pg.DataDir()),
		"PGHOST="+s.pg.SocketDir(), "PGPORT="+strconv.Itoa(s.pg.Port()), "PGDATABASE=postgres")
	if out, err := script.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.sql("SELECT pg_reload_conf()")

	program, err := s3server.Program()
	if err != nil {
		t.Skipf("NOT TESTED: the compose file's services: %v", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	shell := replaceAll(t, gateway.Entrypoint[2], "/data", s.archive, ":7070", address, "exec versitygw", "exec "+program)
	gw := exec.CommandContext(context.WithoutCancel(t.Context()), gateway.Entrypoint[0], gateway.Entrypoint[1], shell)
	gw.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + s.home}
	for name, v := range gateway.Environment {
		gw.Env = append(gw.Env, name+"="+*v)
	}
	run(t, gw)
	eventually(t, "the S3 server to answer", func() bool {
		c, err := net.Dial("tcp", address)
		return err == nil && c.Close() == nil
	})

	env["PGHOST"] = replaceAll(t, env["PGHOST"], "postgres", "127.0.0.1")
	env["PGPORT"] = strconv.Itoa(s.pg.Port())
	env["WALFERRY_STORE"] = replaceAll(t, env["WALFERRY_STORE"], "versitygw:7070", address)
	env["WALFERRY_HOME"] = filepath.Join(s.home, "state")
	vars := s.env()
	for name, v := range env {
		vars = append(vars, name+"="+v)
	}
	p := start(t, vars, s.binary, "receive")
	p.awaitLog("walferry: streaming ")
	s.sql("CREATE TABLE t (); SELECT pg_switch_wal()")
	eventually(t, "a segment to be in the bucket", func() bool {
		found, err := filepath.Glob(filepath.Join(s.archive, "wal/db1/wal_005/0*.lz4"))
		return err == nil && len(found) > 0
	})
	p.stop()
}

// replaceAll puts pairs of (old, new) into a text that must have the old ones.
func replaceAll(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%q is not in %q", pairs[i], text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}
