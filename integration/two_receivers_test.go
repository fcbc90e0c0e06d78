package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// peer is one of several receivers of a scene's cluster that share its archive
// and nothing else.
type peer struct {
	scene  // with a spool of its own
	slot   string
	more   []string // flags
	run    *process
	before segment.LSN // its slot's restart_lsn, when last looked at
}

// peer makes one. It does not run.
func (s *scene) peer(slot string, more ...string) *peer {
	s.t.Helper()
	p := &peer{scene: *s, slot: slot, more: more}
	p.spool = filepath.Join(s.dir, "spool-"+slot)
	if err := theLab.account.MkdirAll(p.spool); err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (p *peer) begin() {
	p.t.Helper()
	p.run = p.receive(append([]string{"--slot", p.slot}, p.more...)...)
}

// lsn asks for a position of the peer's slot or of its walsender: 0 while
// there is none.
func (p *peer) lsn(query string) segment.LSN {
	p.t.Helper()
	lsn, err := segment.ParseLSN(p.sql("SELECT coalesce((" + fmt.Sprintf(query, "'"+p.slot+"'") + ")::text, '0/0')"))
	if err != nil {
		p.t.Fatal(err)
	}
	return lsn
}

const (
	restartOf = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = %s"
	writtenOf = "SELECT write_lsn FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = %s"
)

// reserved waits for the peer's slot and returns the segment that it holds.
func (p *peer) reserved() segment.Name {
	p.t.Helper()
	eventually(p.t, "the slot "+p.slot+" to reserve WAL", func() bool { return p.lsn(restartOf) != 0 })
	p.before = p.lsn(restartOf)
	return p.size.Name(1, p.before)
}

// die kills the peer, and holds what its slot has let go of against what the
// archive and the peer's own spool have.
func (p *peer) die(first segment.Name) {
	p.t.Helper()
	if !p.run.running() {
		p.t.Fatalf("the receiver of slot %s ended by itself: %v", p.slot, p.run.err)
	}
	p.run.kill9()
	eventually(p.t, "the server to notice that the receiver is gone", func() bool {
		return p.sql("SELECT count(*) FROM pg_replication_slots WHERE active AND slot_name = '"+p.slot+"'") == "0"
	})
	restart := p.lsn(restartOf)
	if restart < p.before {
		p.t.Errorf("the restart_lsn of slot %s went back from %s to %s", p.slot, p.before, restart)
	}
	p.before = restart
	p.held(first, restart)
}

var archivedUpTo = regexp.MustCompile(`archived up to ([0-9A-F/]+) on timeline 1`)

// finish waits until the peer has received and shipped everything up to the
// end of last, and stops it. What it says of that must be so.
func (p *peer) finish(last segment.Name) {
	p.t.Helper()
	end := last.End(p.size)
	eventually(p.t, "slot "+p.slot+" to have received "+end.String(), func() bool { return p.lsn(writtenOf) >= end })
	eventually(p.t, "the spool of "+p.slot+" to be shipped", func() bool { return len(spooled(p.t, p.spool)) <= 1 })
	p.run.stop()
	said := archivedUpTo.FindStringSubmatch(p.run.lastLine())
	if said == nil {
		p.t.Fatalf("slot %s: the last line does not say how far it is archived: %s", p.slot, p.run.lastLine())
	}
	if at, err := segment.ParseLSN(said[1]); err != nil || at < end {
		p.t.Errorf("slot %s: archived up to %s (%v), want %s or later", p.slot, said[1], err, end)
	}
	if restart := p.lsn(restartOf); restart < p.before || restart > end+segment.LSN(p.size) {
		p.t.Errorf("slot %s: restart_lsn is %s; it was %s, and %s is archived", p.slot, restart, p.before, end)
	}
}

// peaceful wants nothing in the peer's log that speaks of another.
func (p *peer) peaceful() {
	p.t.Helper()
	if found := regexp.MustCompile(`(?i).*(conflict|differs|damaged|shipping has stopped|cannot).*`).FindString(p.run.log()); found != "" {
		p.t.Errorf("slot %s is disturbed: %s", p.slot, found)
	}
}

// Two receivers on one archive, from the first claim on: no coordination, no
// conflict, and either or both may die at any moment.
func TestTwoReceivers(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	s := newScene(t, options{settings: map[string]string{"wal_keep_size": "32GB", "max_wal_size": "32GB"}})
	pair := []*peer{s.peer("left"), s.peer("right", "--hold", "0")}
	for _, p := range pair {
		p.begin()
	}
	first := pair[0].reserved()
	if other := pair[1].reserved(); other.Compare(first) < 0 {
		first = other
	}
	l := s.pgbench()
	for round := range rounds(2, 20) {
		before := len(s.sealed())
		s.sql("CHECKPOINT") // behind it every page goes into the WAL whole: more of it
		eventually(t, "more in the archive", func() bool { return len(s.sealed()) >= before+1+random.IntN(3) })
		time.Sleep(time.Duration(random.Int64N(int64(300 * time.Millisecond)))) // no other clock decides at which instruction it is hit
		victims := [][]*peer{pair[:1], pair[1:], pair}[random.IntN(3)]
		for _, p := range victims {
			p.die(first)
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
		for _, p := range victims {
			p.peaceful()
			p.begin()
		}
	}
	l.stop()
	last := s.switchWAL()
	s.awaitSealed(first, last)
	for _, p := range pair {
		p.finish(last)
		p.peaceful()
	}
	s.checkArchive(first, last)
}

// A second receiver that was told another compression is refused, in words
// that say what to do, and leaves nothing behind; without being told it follows.
func TestTwoCompressions(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	lz4, other := s.peer("left"), s.peer("right", "--compress", "zstd")
	lz4.begin()
	first := lz4.reserved()
	s.table()
	s.fill(500)
	s.awaitSealed(first, s.switchWAL())
	other.begin()
	other.run.exits(2)
	var lines []string
	for line := range strings.Lines(other.run.log()) {
		if strings.Contains(line, "error:") || strings.Contains(line, "hint:") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	said := strings.Join(lines, "\n")
	for _, want := range []string{"lz4", "zstd", "go on with lz4", "hint: leave --compress"} {
		if len(lines) != 2 || !strings.Contains(said, want) {
			t.Errorf("want an error and a hint that say %q: %s", want, said)
		}
	}
	if n := s.sql("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'right'"); n != "0" {
		t.Error("the refused receiver left a slot, which would fill the server's disk")
	}
	if files := spooled(t, other.spool); len(files) > 0 {
		t.Errorf("the refused receiver has %v in its spool", files)
	}
	other.more = nil
	other.begin()
	other.reserved()
	s.fill(500)
	last := s.switchWAL()
	s.awaitSealed(first, last)
	for _, p := range []*peer{lz4, other} {
		p.finish(last)
		p.peaceful()
	}
	for n, ext := range s.sealed() {
		if ext != "lz4" {
			t.Errorf("segment %s is stored as %q", n, ext)
		}
	}
	s.checkArchive(first, last)
}

// archiver is an archive_command that writes what walferry writes, under the
// same names, with the lz4 tool, in place, over whatever is there.
type archiver struct {
	s   *scene
	dir string // of its switches
}

// archiver makes the script; the server has to be told of it.
func (s *scene) archiver() *archiver {
	s.t.Helper()
	a := &archiver{s: s, dir: filepath.Join(s.dir, "archiver")}
	if err := theLab.account.MkdirAll(a.dir); err != nil {
		s.t.Fatal(err)
	}
	tool, err := exec.LookPath("lz4")
	if err != nil {
		s.t.Logf("there is no lz4 tool (%v): a program of ours stands in for it", err)
		tool = filepath.Join(a.dir, "lz4")
		cmd := exec.CommandContext(s.t.Context(), "go", "build", "-o", tool, "./testdata/lz4put")
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	} else {
		tool += " -q -f"
	}
	script := fmt.Sprintf(`#!/bin/sh -e
cd %q
while [ -e wait ]; do sleep 0.05; done
mkdir -p %[2]q/wal_005
to=%[2]q/wal_005/$2.lz4
[ ! -e "$to" ] || echo "$2" >> over
if [ -e half ]; then
	%[3]s "$1" whole.lz4
	{ dd bs=%[4]d count=1 status=none; while [ -e half ]; do sleep 0.05; done; cat; } < whole.lz4 > "$to"
else
	%[3]s "$1" "$to"
fi
`, a.dir, s.archive, tool, halfAFile)
	path := filepath.Join(a.dir, "archive.sh")
	if err := errors.Join(os.WriteFile(path, []byte(script), 0o755), theLab.account.Own(a.dir)); err != nil {
		s.t.Fatal(err)
	}
	return a
}

// command is what the server is to run.
func (a *archiver) command() string { return filepath.Join(a.dir, "archive.sh") + " $PWD/%p %f" }

// halfAFile is how many bytes it writes before it waits in the middle.
const halfAFile = 3000

// on and off set one of its switches: with "wait" it does nothing, with "half"
// it waits in the middle of a file.
func (a *archiver) on(name string) {
	a.s.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), nil, 0o644); err != nil {
		a.s.t.Fatal(err)
	}
}

func (a *archiver) off(name string) {
	a.s.t.Helper()
	if err := os.Remove(filepath.Join(a.dir, name)); err != nil {
		a.s.t.Fatal(err)
	}
}

// await waits until the server counts a segment as archived.
func (a *archiver) await(n segment.Name) {
	a.s.t.Helper()
	eventually(a.s.t, "the archive_command to have archived "+n.String(), func() bool {
		return a.s.sql("SELECT coalesce(last_archived_wal, '') >= '"+n.String()+"' FROM pg_stat_archiver") == "t"
	})
}

// overwrote tells how many segments of a range it found there, and wrote all
// the same.
func (a *archiver) overwrote(first, last segment.Name) (n int) {
	a.s.t.Helper()
	names, err := os.ReadFile(filepath.Join(a.dir, "over"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.s.t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(names)) {
		if name >= first.String() && name <= last.String() {
			n++
		}
	}
	return n
}

// Beside an archive_command that writes the same names and overwrites: whoever
// is first, and however slowly it writes in place, no harm is done.
func TestBesideAnArchiveCommand(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	a := s.archiver()
	if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
		t.Fatal(err)
	}
	if err := s.pg.Configure(map[string]string{"archive_mode": "on", "archive_command": a.command()}); err != nil {
		t.Fatal(err)
	}
	p := s.peer("ferry")
	a.on("wait")
	s.startServer()
	p.begin()
	first := p.reserved()
	s.table()
	fill := func() (last segment.Name) {
		for range 3 {
			s.fill(400)
			last = s.switchWAL()
		}
		return last
	}

	// walferry is first, and is overwritten.
	last := fill()
	s.awaitSealed(first, last)
	a.off("wait")
	a.await(last)
	if a.overwrote(first, last) < 3 {
		t.Error("the archive_command has not overwritten what was there")
	}
	s.checkArchive(first, last)

	// The archive_command is first; walferry finds what it wants to store.
	next := last.Next(s.size)
	p.run.signal(syscall.SIGSTOP)
	last = fill()
	a.await(last)
	if n := a.overwrote(next, last); n > 0 {
		t.Errorf("walferry has stored %d segments while it was stopped", n)
	}
	p.run.signal(syscall.SIGCONT)

	// Both at a time.
	l := s.pgbench()
	sealed := len(s.sealed())
	eventually(t, "more in the archive", func() bool { return len(s.sealed()) >= sealed+5 })
	l.stop()

	// It is slow: walferry finds the half of a file.
	a.await(s.switchWAL())
	p.run.signal(syscall.SIGSTOP)
	a.on("half")
	s.fill(100)
	last = s.switchWAL()
	eventually(t, "the half of a file", func() bool {
		f, err := os.Stat(filepath.Join(s.archive, "wal_005", last.String()+".lz4"))
		return err == nil && f.Size() == halfAFile
	})
	p.run.signal(syscall.SIGCONT)
	p.run.awaitLog(`cannot write to the archive.*` + last.String() + `.*damaged`)
	a.off("half")
	a.await(last)
	p.run.awaitLog(`can write to the archive again`)
	p.finish(last)
	s.checkArchive(first, last)
	if strings.Contains(p.run.log(), "shipping has stopped") {
		t.Error("the half of a file was taken for a conflict")
	}
}

// careless passes requests to an S3 server without their If-None-Match, signed
// anew, as if it had never heard of that header.
func careless(t *testing.T, s *bucketScene) (endpoint string) {
	t.Helper()
	target, err := url.Parse(s.s3.URL)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: resigned{aws.Credentials{AccessKeyID: s.s3.Root.AccessKey, SecretAccessKey: s.s3.Root.SecretKey}},
	})
	t.Cleanup(server.Close)
	return server.URL
}

type resigned struct{ keys aws.Credentials }

func (r resigned) RoundTrip(req *http.Request) (*http.Response, error) {
	for _, name := range []string{"If-None-Match", "Authorization", "X-Amz-Date", "X-Amz-Security-Token"} {
		req.Header.Del(name)
	}
	req.Host = req.URL.Host
	err := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).
		SignHTTP(context.WithoutCancel(req.Context()), r.keys, req, req.Header.Get("X-Amz-Content-Sha256"), "s3", "us-east-1", time.Now())
	if err != nil {
		return nil, err
	}
	return http.DefaultTransport.RoundTrip(req)
}

// Where the store does not honour put-if-absent two receivers would overwrite
// each other: refused with 3, unless told that there is one.
func TestStoreIgnoresTheCondition(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	endpoint := "AWS_ENDPOINT=" + careless(t, s)
	for range 2 { // with an empty archive, and with one that has an identity
		r := s.ferry([]string{endpoint}, "receive")
		r.exits(3)
		for _, want := range []string{"does not honour put-if-absent", "hint: ", "If-None-Match", "--single-receiver"} {
			if !strings.Contains(r.log(), want) {
				t.Errorf("the refusal does not say %q", want)
			}
		}
		if n := s.sql("SELECT count(*) FROM pg_replication_slots"); n != "0" {
			t.Error("the refused receiver left a slot, which would fill the server's disk")
		}
		if files := spooled(t, s.spool); len(files)+len(s.sealed()) > 0 {
			t.Errorf("the refused receiver has stored something: %v, %v", files, s.sealed())
		}
	}
	r := s.ferry([]string{endpoint}, "receive", "--single-receiver")
	first := s.slotSegment()
	s.table()
	s.fill(1500)
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.awaitLog(`does not honour put-if-absent`)
	r.stop()
	// The same archive through a store that does is open to all.
	r = s.ferry(nil, "receive")
	s.fill(500)
	last = s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
}
