package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/segment"
)

// storageFault is one way in which storage fails for a while.
type storageFault struct {
	name       string
	begin, end func()
	stored     bool // what comes while it lasts is stored all the same
	// says is what an operator must be told: what it is, and what to look at.
	// Empty: nothing is to be told.
	says  string
	after time.Duration // it takes so long to be known
}

func (s *bucketScene) storageFaults() []storageFault {
	// Nothing begins or ends in a request's middle.
	between := func(do func()) func() { return func() { s.proxy.Between(do) } }
	inject := func(f s3server.Fault, match string) func() { return between(func() { s.proxy.Inject(f, match, -1) }) }
	policy := func(actions ...string) func() {
		return between(func() { s.s3.SetPolicy(s.t, bucket, s.user, actions...) })
	}
	healed := between(s.proxy.Heal)
	there, away := filepath.Join(s.s3.Dir, bucket), s.s3.Dir+".away"
	hole := storageFault{name: "black hole", begin: inject(s3server.BlackHole, ""), end: s.proxy.Heal}
	if theLab.full {
		// Four attempts, each of which waits for half a minute.
		hole.says, hole.after = `no answer from http://127\.0\.0\.1:\d+: nothing moved on the connection for too long`, 2*time.Minute
	}
	return []storageFault{
		{name: "slow", begin: between(func() { s.proxy.Slow(1500 * time.Millisecond) }), end: healed, stored: true},
		{name: "503", begin: inject(s3server.Unavailable, ""), end: healed, says: `SlowDown: Please reduce your request rate\. \(status 503`},
		{name: "reset in mid-body", begin: inject(s3server.Reset, "PUT"), end: healed, says: `no answer from http://127\.0\.0\.1:\d+: (.*connection reset by peer|.*broken pipe|the connection was closed)`},
		// The next attempt finds an object of that name: our own, no conflict.
		{name: "answers lost", begin: inject(s3server.LostAnswer, "PUT"), end: healed, stored: true},
		hole,
		{name: "clock", begin: inject(s3server.ClockSkew, ""), end: healed, says: `RequestTimeTooSkewed: this host's clock is 1h0m0s behind the store's: set it`},
		{name: "denied", begin: policy("s3:GetObject", "s3:ListBucket"), end: policy("s3:GetObject", "s3:PutObject", "s3:ListBucket"),
			says: `access denied: AccessDenied: .* in bucket ` + bucket},
		{name: "bucket gone", begin: between(func() { s.move(there, away) }), end: between(func() { s.move(away, there) }),
			says: `no such store: NoSuchBucket: there is no bucket ` + bucket},
	}
}

// Storage fails in each way that it has, one after the other, under load.
// While it does the receiver goes on, and the server need not keep what cannot
// be stored; one line tells it when it begins and one when it ends; and in the
// end nothing is missing and nothing is different.
func TestStorageFaults(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	// With so large a hold the slot moves only when it is known what fails.
	r := s.ferry([]string{"WALFERRY_HOLD=4GB"}, "receive")
	first := s.slotSegment()
	l := s.pgbench()
	s.awaitSealed(first, first)
	for _, f := range s.storageFaults() {
		s.whileItFails(r, f)
	}
	l.stop()
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	if strings.Contains(r.log(), "walferry: error:") {
		t.Error("it takes for final what passes")
	}
	r.stop()
}

// whileItFails lets a fault come and go.
func (s *bucketScene) whileItFails(r *process, f storageFault) {
	t := s.t
	t.Helper()
	mark, some := len(r.log()), rounds(3, 20)
	told := func() []string { return aboutArchive(r.log()[mark:]) }
	f.begin()
	before, from := len(s.sealed()), s.written()
	s.sql("CHECKPOINT") // behind it every page goes into the WAL whole: more of it
	eventually(t, f.name+": the receiver to go on", func() bool { return s.written() >= from+segment.LSN(some)*segment.LSN(s.size) })
	if f.stored {
		eventually(t, f.name+": segments in the archive all the same", func() bool { return len(s.sealed()) >= before+some })
	}
	if f.says != "" {
		time.Sleep(f.after)
		eventually(t, f.name+": a line that tells it", func() bool { return len(told()) > 0 })
		eventually(t, f.name+": the slot to move all the same", func() bool { return s.restartLSN() >= from })
	}
	if !r.running() {
		t.Fatalf("%s: the receiver has ended: %v", f.name, r.err)
	}
	f.end()
	stored := len(s.sealed())
	// A few say it: how much there is to be stored hangs on the machine.
	eventually(t, f.name+": segments in the archive again", func() bool { return len(s.sealed()) > stored+3 })
	if f.says == "" {
		if lines := told(); len(lines) > 0 {
			t.Errorf("%s: there was nothing to tell, and it told %q", f.name, lines)
		}
		return
	}
	eventually(t, f.name+": a line that says that it is over", func() bool { return len(told()) > 1 })
	lines := told()
	t.Logf("%s: %s", f.name, lines[0])
	if len(lines) != 2 || !strings.Contains(lines[0], "cannot write to the archive; trying again until it works") ||
		!regexp.MustCompile(f.says).MatchString(lines[0]) || !strings.Contains(lines[1], "can write to the archive again") {
		t.Errorf("%s: it was told by %q, want a line that says %s and one that says that it is over", f.name, lines, f.says)
	}
}

// aboutArchive picks the lines that tell of trouble with the archive, but for
// the reminders of one that lasts.
func aboutArchive(log string) (lines []string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "write to the archive") && !strings.Contains(line, "still cannot") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// written is what the receiver has told that it received.
func (s *scene) written() segment.LSN {
	s.t.Helper()
	return s.lsn("SELECT coalesce(max(write_lsn), '0/0') FROM pg_stat_replication")
}

func (s *scene) lsn(statement string) segment.LSN {
	s.t.Helper()
	lsn, err := segment.ParseLSN(s.sql(statement))
	if err != nil {
		s.t.Fatal(err)
	}
	return lsn
}

// unsynced is how much a receiver that waits for its archive leaves out of the
// disk's reach at most.
const unsynced = 64 << 20

// Storage is away for long under load. All the time the slot holds back no
// more than the hold and a segment of what was received, and the receiver
// takes no more of its host than before: neither memory nor threads nor
// descriptors. Afterwards everything is there.
func TestLongOutage(t *testing.T) {
	t.Parallel()
	long, hold := 5*time.Second, segment.LSN(8<<20)
	if theLab.full {
		long, hold = 40*time.Second, 32<<20 // the default
	}
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry([]string{"WALFERRY_HOLD=" + strconv.Itoa(int(hold>>20)) + "MB"}, "receive")
	first := s.slotSegment()
	l := s.pgbench()
	s.awaitSealed(first, first)

	s.proxy.Inject(s3server.Unavailable, "", -1)
	begin, from := time.Now(), s.lsn("SELECT pg_current_wal_lsn()")
	var samples []sample
	failing := false
	for end := false; !end; {
		limit := hold + segment.LSN(s.size)
		if !failing {
			// The hold is measured from what is on the disk. Until it is known
			// that the storage fails, so much is not brought there at once.
			limit += unsynced
		}
		now := s.sample(r)
		if now.held() > limit {
			now = s.sample(r) // the server has the one position a moment before the other
		}
		if now.held() > limit {
			t.Fatalf("after %s the slot holds back %d kB of what was received: %+v", time.Since(begin), now.held()>>10, now)
		}
		// What was not on the disk when it became known has to get there once.
		failing = failing || len(aboutArchive(r.log())) > 0 && now.held() <= hold
		samples = append(samples, now)
		if len(samples)%20 == 0 {
			s.sql("CHECKPOINT") // behind it every page goes into the WAL whole: more of it
		}
		if time.Since(begin) > 2*patience {
			t.Fatalf("only %d bytes were received: that shows nothing", now.received-from)
		}
		end = time.Since(begin) >= long && now.received >= from+4*hold
	}
	if !failing {
		t.Error("the slot does not move while the storage fails")
	}
	s.proxy.Heal()
	l.stop()
	middle, end := most(samples[len(samples)/3:2*len(samples)/3]), most(samples[2*len(samples)/3:])
	t.Logf("in %s and %d samples %d MB were received, of which the slot held back at most %d kB; the first third %+v, the second %+v, the last %+v",
		time.Since(begin).Round(time.Second), len(samples), (samples[len(samples)-1].received-from)>>20, mostHeld(samples)>>10, most(samples[:len(samples)/3]).usage, middle.usage, end.usage)
	// What a collector of garbage leaves for later is no growth.
	if end.memory > middle.memory+16<<10 || end.threads > middle.threads+4 || end.descriptors > middle.descriptors+8 {
		t.Errorf("it takes more and more of its host: %+v, before %+v", end.usage, middle.usage)
	}
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
}

// sample is what is seen of a receiver at one moment.
type sample struct {
	sent, received, restart segment.LSN
	usage
}

// held is what the slot holds back of what was received.
func (s sample) held() segment.LSN { return s.received - min(s.restart, s.received) }

func (s *scene) sample(r *process) sample {
	s.t.Helper()
	var text [3]string
	line := s.sql(`SELECT concat_ws(' ', sent_lsn, coalesce(write_lsn, '0/0'), restart_lsn) FROM pg_stat_replication r
		JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE slot_name = 'ferry'`)
	if _, err := fmt.Sscan(line, &text[0], &text[1], &text[2]); err != nil {
		s.t.Fatalf("%q: %v", line, err)
	}
	var lsn [3]segment.LSN
	for i := range text {
		var err error
		if lsn[i], err = segment.ParseLSN(text[i]); err != nil {
			s.t.Fatal(err)
		}
	}
	return sample{lsn[0], lsn[1], lsn[2], usageOf(s.t, r)}
}

// most is the most that was used in any of the samples.
func most(samples []sample) (m sample) {
	for _, s := range samples {
		m.memory, m.threads, m.descriptors = max(m.memory, s.memory), max(m.threads, s.threads), max(m.descriptors, s.descriptors)
	}
	return m
}

func mostHeld(samples []sample) (m segment.LSN) {
	for _, s := range samples {
		m = max(m, s.held())
	}
	return m
}

// usage is what a process has of its host.
type usage struct {
	memory      int // resident, in kB
	threads     int
	descriptors int
}

func usageOf(t *testing.T, p *process) (u usage) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d", p.cmd.Process.Pid)
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch name {
		case "VmRSS":
			u.memory = n
		case "Threads":
			u.threads = n
		default:
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	open, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	u.descriptors = len(open)
	return u
}

// The spool's disk is full, of other people's files: the receiver says so
// once, waits, and goes on when there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{settings: map[string]string{"wal_sender_timeout": "3s"}})
	mount(t, "tmpfs", s.spool, "tmpfs", 0, "size=8m,mode=0700")
	if err := theLab.account.Own(s.spool); err != nil {
		t.Fatal(err)
	}
	r := s.receive()
	first := s.slotSegment()
	s.table()
	s.awaitSealed(first, s.switchWAL())
	ballast := filepath.Join(s.spool, "of somebody else")
	if err := os.WriteFile(ballast, make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.move(s.archive, s.archive+".away")
	for range 8 {
		s.fill(1000)
		s.switchWAL()
	}
	r.awaitLog(`the spool is full: reception waits .*no space left on device`)
	if n := len(spooled(t, s.spool)); n > 3 {
		t.Errorf("%d segments are where there is room for 3", n)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	r.awaitLog(`the spool has room again`)
	eventually(t, "reception to go on into the new room", func() bool { return len(spooled(t, s.spool)) > 4 })
	s.move(s.archive+".away", s.archive)
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
	if n := strings.Count(r.log(), "the spool is full"); n != 1 {
		t.Errorf("it was told %d times that the spool is full", n)
	}
}

// A spool that cannot be written is refused at the start, in one line that
// says what it is, and the server gets no slot.
func TestSpoolNotWritableAtStart(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	refused := func(says string) {
		t.Helper()
		r := s.receive()
		r.exits(1)
		if log := r.log(); strings.Count(log, "walferry: error:") != 1 || !strings.Contains(log, s.spool) || !strings.Contains(log, says) {
			t.Errorf("want one line that says %s", says)
		}
		if n := s.sql("SELECT count(*) FROM pg_replication_slots"); n != "0" {
			t.Errorf("the server has %s slots", n)
		}
	}
	if err := os.Chmod(s.spool, 0o500); err != nil {
		t.Fatal(err)
	}
	refused("permission denied")
	if err := os.Chmod(s.spool, 0o700); err != nil {
		t.Fatal(err)
	}
	readOnly(t, s.spool)
	refused("read-only file system")
}

// The spool becomes read-only in the run, as after an error of its disk. That
// is told as what it is, what the spool holds goes into the archive all the
// same, and what cannot be made durable is not reported and asked for again:
// when the spool can be written again nothing is missing.
func TestSpoolBecomesReadOnly(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive()
	first := s.slotSegment()
	s.table()
	s.fill(1000)
	s.awaitSealed(first, s.switchWAL())
	s.move(s.archive, s.archive+".away")
	s.fill(1000)
	held := s.switchWAL()
	eventually(t, "a segment in the spool", func() bool { return slices.Contains(spooled(t, s.spool), held.String()) })

	writable := readOnly(t, s.spool)
	for range 5 {
		s.fill(1000)
		s.switchWAL()
	}
	r.awaitLog(`cannot write to the spool; trying again until it works .*read-only file system`)
	s.move(s.archive+".away", s.archive)
	s.awaitSealed(first, held)
	r.awaitLog(`cannot remove shipped segments from the spool; trying again until it works .*read-only file system`)
	if restart := s.restartLSN(); restart > held.Next(s.size).End(s.size) {
		t.Errorf("restart_lsn is %s, and the spool cannot be written behind segment %s", restart, held)
	}
	writable()
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.awaitLog(`can write to the spool again`)
	r.awaitLog(`can remove shipped segments from the spool again`)
	if strings.Contains(r.log(), "receive from the server") {
		t.Error("it is told as trouble with the server")
	}
	r.stop()
	if files := spooled(t, s.spool); len(files) > 1 {
		t.Errorf("the spool holds %v, of which all but the last are in the archive", files)
	}
}

// The archive is a directory on a volume, and the volume is unmounted in the
// run: nothing is written into the mount point, and when the volume is mounted
// again everything comes there.
func TestArchiveUnmounted(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	point, volume := s.archive, filepath.Join(s.dir, "volume")
	if err := theLab.account.MkdirAll(volume); err != nil {
		t.Fatal(err)
	}
	unmount := mount(t, volume, point, "", syscall.MS_BIND, "")
	r := s.receive()
	first := s.slotSegment()
	l := s.pgbench()
	s.awaitSealed(first, first)
	for range rounds(2, 20) {
		mark := len(r.log())
		s.sql("CHECKPOINT")
		unmount()
		// The end of the trouble before may be told as late as now.
		trouble := func() []string {
			return slices.DeleteFunc(aboutArchive(r.log()[mark:]), func(line string) bool { return strings.Contains(line, "can write to the archive again") })
		}
		eventually(t, "a line that tells it", func() bool { return len(trouble()) > 0 })
		if line := trouble()[0]; !strings.Contains(line, "no such store") || !strings.Contains(line, point) || !strings.Contains(line, "was its file system unmounted?") {
			t.Errorf("the line does not say what is wrong: %s", line)
		}
		from := s.written()
		eventually(t, "the receiver to go on", func() bool { return s.written() >= from+3*segment.LSN(s.size) })
		if files := everything(t, point); len(files) > 0 {
			t.Errorf("the mount point was written to: %v", files)
		}
		unmount = mount(t, volume, point, "", syscall.MS_BIND, "")
		before := len(s.sealed())
		eventually(t, "segments in the archive again", func() bool { return len(s.sealed()) > before+3 })
	}
	l.stop()
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.stop()
	unmount()
	if files := everything(t, point); len(files) > 0 {
		t.Errorf("the mount point was written to: %v", files)
	}
}

// everything lists what is in a directory.
func everything(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// mount mounts something until the end of the test or until the function that
// it returns is called. Where that is not allowed the test is skipped.
func mount(t *testing.T, source, target, kind string, flags uintptr, data string) (unmount func()) {
	t.Helper()
	err := syscall.Mount(source, target, kind, flags, data)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		t.Skipf("NOT TESTED: mounting needs more rights: %v", err)
	}
	if err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
	mounted := true
	unmount = func() {
		t.Helper()
		if !mounted {
			return
		}
		mounted = false
		// Lazily: whoever has files open there keeps them.
		if err := syscall.Unmount(target, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	}
	t.Cleanup(unmount)
	return unmount
}

// readOnly makes a directory read-only for whoever opens, makes or removes a
// file in it from now on, until the function that it returns is called. (A file
// system with files that are open for writing cannot be made read-only by hand;
// so another view of it is put in its place.)
func readOnly(t *testing.T, dir string) (writable func()) {
	t.Helper()
	writable = mount(t, dir, dir, "", syscall.MS_BIND, "")
	if err := syscall.Mount("", dir, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatalf("remount %s read-only: %v", dir, err)
	}
	return writable
}
