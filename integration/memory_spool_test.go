package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/segment"
)

// A container without a volume: what was received is in memory, within a
// bound, until it is in the archive, and all that the server is told to have
// been flushed is there.
func TestNoSpool(t *testing.T) {
	t.Parallel()
	if theLab.missing != "" {
		t.Skip("NOT TESTED: " + theLab.missing)
	}
	t.Run("outage", func(t *testing.T) { t.Parallel(); noSpoolOutage(t) })
	t.Run("kills", func(t *testing.T) { t.Parallel(); noSpoolKills(t) })
	t.Run("nothing can be written", func(t *testing.T) { t.Parallel(); noSpoolNowhere(t) })
	t.Run("too little memory", func(t *testing.T) { t.Parallel(); noSpoolTooSmall(t) })
}

// without are the scene's variables for a receiver that has no disk.
func (s *bucketScene) without(more ...string) []string {
	env := slices.DeleteFunc(slices.Clone(s.vars), func(v string) bool {
		return strings.HasPrefix(v, "HOME=") || strings.HasPrefix(v, "WALFERRY_HOME=")
	})
	env = append(env, "WALFERRY_SPOOL=none", "AWS_ACCESS_KEY_ID="+s.user.AccessKey, "AWS_SECRET_ACCESS_KEY="+s.user.SecretKey)
	return append(env, more...)
}

// shipped is the end of what the archive holds without a gap from a segment's
// start on, in whole segments and tail objects.
func (s *scene) shipped(first segment.Name) segment.LSN {
	s.t.Helper()
	sealed := s.sealed()
	n := first
	for ; ; n = n.Next(s.size) {
		if _, ok := sealed[n]; !ok {
			break
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.archive, "wal_tail_005", n.String()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatal(err)
	}
	end := uint64(0)
	for _, e := range entries { // sorted: each begins where others end, or before
		var from, to uint64
		if _, err := fmt.Sscanf(e.Name(), "%08X-%08X-", &from, &to); err != nil {
			s.t.Fatalf("%s: %v", e.Name(), err)
		}
		if from <= end {
			end = max(end, to)
		}
	}
	return n.Start(s.size) + segment.LSN(end)
}

// high is the most memory that a process has had, in kB.
func high(t *testing.T, p *process) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "kB", 2)[0]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The storage is away while the server writes several times what --memory
// allows, of WAL that does not compress: the receiver takes no more than that
// and what any Go program of its size takes, and the slot keeps the rest. In
// the end nothing is missing.
func noSpoolOutage(t *testing.T) {
	const allowed, program = 64 << 10, 48 << 10 // kB
	s := newBucketScene(t, options{})
	// The race detector's memory is not to be measured.
	binary, err := theLab.build(s.ctx(), "walferry-alone", "-race=false")
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, s.without("WALFERRY_MEMORY=64MB"), binary, "receive")
	first := s.slotSegment()
	s.table()
	s.fill(8000)
	s.awaitSealed(first, first)
	before := high(t, r)

	s.proxy.Inject(s3server.Unavailable, "", -1)
	from := s.lsn("SELECT pg_current_wal_lsn()")
	for s.lsn("SELECT pg_current_wal_lsn()") < from+2*allowed<<10 {
		s.sql("INSERT INTO rows (v) SELECT v FROM rows LIMIT 8000")
	}
	var received segment.LSN
	eventually(t, "the receiver to be full", func() bool {
		was := received
		received = s.written()
		time.Sleep(500 * time.Millisecond)
		return was == received
	})
	shipped, restart := s.shipped(first), s.restartLSN()
	if restart > shipped {
		t.Errorf("restart_lsn is %s, the archive ends at %s", restart, shipped)
	}
	if held := received - shipped; held > allowed<<10/2 || held < 2<<20 {
		t.Errorf("%d kB were received beyond the archive: no bound, or no use of it", held>>10)
	}
	if !r.running() || !strings.Contains(r.log(), "the memory for WAL (--memory) is full") {
		t.Fatalf("the receiver has ended, or does not say what it waits for: %v", r.err)
	}
	full := high(t, r)
	s.proxy.Heal()
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	after := high(t, r)
	t.Logf("%d kB of memory before, %d while the storage was away, %d in the end; %d kB were received beyond the archive, of %d",
		before, full, after, (received-shipped)>>10, (s.lsn("SELECT pg_current_wal_lsn()")-from)>>10)
	if after > allowed+program {
		t.Errorf("it took %d kB of memory; %d are allowed, and %d for the program itself", after, allowed, program)
	}
	r.stop()
}

// Killed at random moments, with its storage and without, it loses nothing:
// the server still has what the archive has not.
func noSpoolKills(t *testing.T) {
	random := seeded(t)
	s := newBucketScene(t, options{settings: map[string]string{"wal_keep_size": "16GB", "max_wal_size": "16GB"}})
	receive := func() *process { return s.ferry(s.without(), "receive") }
	r := receive()
	first := s.slotSegment()
	l := s.pgbench()
	before := s.restartLSN()
	moved := 0
	for round := range rounds(3, 50) {
		pause := func() { time.Sleep(time.Duration(random.Int64N(int64(time.Second)))) }
		pause()
		switch fault := random.IntN(6); {
		case round == 0:
			// A receiver with a disk would now acknowledge what is on it.
			s.proxy.Inject(s3server.Unavailable, "PUT", -1)
			from := s.lsn("SELECT pg_current_wal_lsn()")
			r.awaitLog("cannot write to the archive")
			eventually(t, "more than a segment to be received", func() bool { return s.written() > from+2*segment.LSN(s.size) })
		case fault < 3:
			s.proxy.Inject([]s3server.Fault{s3server.Unavailable, s3server.LostAnswer, s3server.BlackHole}[fault], "PUT", -1)
		}
		pause()
		if !r.running() {
			t.Fatalf("round %d: the receiver ended by itself: %v", round, r.err)
		}
		r.kill9()
		eventually(t, "the server to notice that the receiver is gone", func() bool {
			return s.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0"
		})
		s.proxy.Heal()
		restart, shipped := s.restartLSN(), s.shipped(first)
		if restart < before || restart > shipped {
			t.Fatalf("round %d: restart_lsn is %s, before it was %s, and the archive ends at %s", round, restart, before, shipped)
		}
		if restart > before {
			moved++
		}
		before = restart
		r = receive()
	}
	l.stop()
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
	if names := tree(t, s.home); len(names) > 0 {
		t.Errorf("there are files in the home directory: %q", names)
	}
	t.Logf("restart_lsn had moved in %d rounds", moved)
}

// As a user who can write nowhere, in a root directory that holds nothing but
// the program, without a home: it works, and leaves nothing.
func noSpoolNowhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: to make a root directory takes root")
	}
	img := buildImage(t, "../Dockerfile")
	root := *img
	root.root = t.TempDir()
	for dir := root.root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(root.root, root.entrypoint[0])
	if err := errors.Join(os.MkdirAll(filepath.Dir(program), 0o755), copyFile(filepath.Join(img.root, img.entrypoint[0]), program), os.Chmod(program, 0o555)); err != nil {
		t.Fatal(err)
	}
	s := newBucketScene(t, options{})
	before := tree(t, root.root)
	for range 2 {
		cmd := root.command(t, false, "receive")
		cmd.Env = s.without()
		r := run(t, cmd)
		first := s.slotSegment()
		s.sql("CREATE TABLE IF NOT EXISTS rows (id bigserial PRIMARY KEY, v text)")
		s.fill(3000)
		last := s.switchWAL()
		s.awaitSealed(first, last)
		s.checkArchive(s.size.Name(1, min(first.Start(s.size), s.oldest())), last)
		for _, open := range regular(t, r) {
			t.Errorf("it has a file open: %s", open)
		}
		r.stop()
		if log := r.log(); !strings.Contains(log, "none (256 MB of memory)") || strings.Contains(log, "error") {
			t.Error("its log does not say where WAL is kept, or tells of errors")
		}
	}
	if after := tree(t, root.root); !slices.Equal(before, after) {
		t.Errorf("before there was %q, and now %q", before, after)
	}
}

// oldest is the start of the first segment in the archive.
func (s *scene) oldest() segment.LSN {
	s.t.Helper()
	var all []segment.Name
	for n := range s.sealed() {
		all = append(all, n)
	}
	return slices.MinFunc(all, segment.Name.Compare).Start(s.size)
}

// regular returns the regular files that a process has open.
func regular(t *testing.T, p *process) (files []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid)
	open, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range open {
		name := filepath.Join(dir, e.Name())
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		to, err := os.Readlink(name)
		if info.Mode().IsRegular() && !strings.HasPrefix(to, "anon_inode:") {
			files = append(files, fmt.Sprint(to, " ", err))
		}
	}
	return files
}

// Memory that holds no segment of this server is wrong usage, told in a line
// that says how much it takes; neither archive nor server are touched.
func noSpoolTooSmall(t *testing.T) {
	s := newScene(t, options{segmentSize: 16})
	r := s.receive("--spool", "none", "--memory", "89MB")
	r.exits(2)
	if line := r.lastLine(); !strings.Contains(line, "error: the server's WAL segments have 16MB each, which takes --memory 90MB at least, or a --spool on a disk") {
		t.Errorf("it says %q", line)
	}
	if files := tree(t, s.archive); len(files) > 0 {
		t.Errorf("the archive has %q", files)
	}
	if n := s.sql("SELECT count(*) FROM pg_replication_slots"); n != "0" {
		t.Error("a slot was made")
	}
	r = s.receive("--spool", "none", "--memory", "90MB")
	first := s.slotSegment()
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.signal(syscall.SIGTERM)
	r.exits(0)
	if got, err := os.ReadDir(s.spool); err != nil || len(got) > 0 || bytes.Contains([]byte(r.log()), []byte(s.spool)) {
		t.Errorf("the directory for spools has %v, %v", got, err)
	}
}
