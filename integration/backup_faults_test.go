package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
)

// passing is trouble with the storage that passes.
type passing struct {
	name  string
	begin func(p *s3server.Proxy, verbs ...string)
}

// troubles are what a store and the way to it do now and then.
func troubles() []passing {
	each := func(f s3server.Fault, n int) func(p *s3server.Proxy, verbs ...string) {
		return func(p *s3server.Proxy, verbs ...string) {
			for _, verb := range verbs {
				p.Inject(f, verb+" basebackups_005", n)
			}
		}
	}
	all := []passing{
		{"503", each(s3server.Unavailable, 2)},
		{"reset in mid-body", each(s3server.Reset, 2)},
		{"answers lost", each(s3server.LostAnswer, 1)},
		{"answers cut", each(s3server.Truncate, 2)},
		{"slow", func(p *s3server.Proxy, _ ...string) { p.Slow(300 * time.Millisecond) }},
		{"everything, one after the other", func(p *s3server.Proxy, verbs ...string) {
			for _, verb := range verbs {
				for _, f := range []s3server.Fault{s3server.Unavailable, s3server.Reset, s3server.LostAnswer} {
					p.Inject(f, verb+" basebackups_005", 1)
				}
			}
		}},
	}
	if theLab.full {
		// It takes half a minute to be known for what it is.
		all = append(all, passing{"black hole", each(s3server.BlackHole, 1)})
	}
	return all
}

// The storage fails in each way that passes while a base backup is taken, and
// while one is restored: both do what they should, and nothing of it is other
// than the server's own.
func TestBackupStorageFaults(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry(nil, "receive")
	s.slotSegment()
	s.table()
	s.fill(500)
	o := s.operator()
	all := troubles()
	if !theLab.full {
		random := seeded(t)
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:2]
	}
	for n, f := range all {
		f.begin(s.proxy, "LIST", "PUT", "POST")
		p := o.create()
		p.exits(0)
		s.proxy.Heal()
		name := strings.TrimSpace(p.stdout.String())
		o.checkLayout(name)
		if got := o.list().names(); got[len(got)-1] != name || len(got) != n+1 {
			t.Errorf("%s: the backups are %v, want %s as the last of %d", f.name, got, name, n+1)
		}
		f.begin(s.proxy, "LIST", "GET")
		dir := filepath.Join(s.home, fmt.Sprint("new", n))
		o.restore(dir, "--backup", name).exits(0)
		s.proxy.Heal()
		o.verify(dir, false)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("with %s", f.name)
		}
	}
	s.awaitShipped()
	r.stop()
	pg := o.restored("restored")
	o.recovers(pg)
	if got := rows(s.ctx(), pg); got != 500 {
		t.Errorf("%d rows were restored, want 500", got)
	}
}

// Storage that refuses ends a backup and a restore at once with one line that
// says what it is, and leaves no backup and nothing restored.
func TestBackupStorageRefuses(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry(nil, "receive")
	s.slotSegment()
	o := s.operator()
	known := []string{o.backup()}
	nothing := func() {}
	read := []string{"s3:GetObject", "s3:ListBucket"}
	policy := func(actions ...string) func() { return func() { s.s3.SetPolicy(t, bucket, s.user, actions...) } }
	endless := func(f s3server.Fault, match string) func() { return func() { s.proxy.Inject(f, match, -1) } }
	elsewhere := []string{"WALE_S3_PREFIX=s3://elsewhere/" + prefix}
	wrongKeys := []string{"AWS_ACCESS_KEY_ID=" + s.user.AccessKey, "AWS_SECRET_ACCESS_KEY=not-the-secret"}
	for _, c := range []struct {
		name       string
		begin, end func()
		says       string
		create     bool // else a restore
		vars       []string
	}{
		{"denied", policy(read...), policy(append(read, "s3:PutObject")...), `(?s)denied.*s3:PutObject`, true, nil},
		{"missing bucket", nothing, nothing, `no such store|NoSuchBucket`, true, elsewhere},
		{"wrong keys", nothing, nothing, `denied|SignatureDoesNotMatch`, true, wrongKeys},
		{"503 for everything", endless(s3server.Unavailable, ""), s.proxy.Heal, `SlowDown`, true, nil},
		{"missing bucket", nothing, nothing, `no such store|NoSuchBucket`, false, elsewhere},
		{"wrong prefix", nothing, nothing, `there is none in the archive: s3://` + bucket + `/wrong`, false, []string{"WALE_S3_PREFIX=s3://" + bucket + "/wrong"}},
		{"wrong keys", nothing, nothing, `denied|SignatureDoesNotMatch`, false, wrongKeys},
		{"503 for everything", endless(s3server.Unavailable, ""), s.proxy.Heal, `SlowDown`, false, nil},
		{"answers that end early", endless(s3server.Truncate, "GET basebackups_005"), s.proxy.Heal, `unexpected EOF`, false, nil},
	} {
		what := map[bool]string{true: "create: ", false: "restore: "}[c.create] + c.name
		dir := filepath.Join(s.home, "new")
		c.begin()
		var p *process
		if c.create {
			p = o.with(c.vars...).create()
		} else {
			p = o.with(c.vars...).restore(dir)
		}
		p.failed(1, c.says)
		if strings.Contains(p.log(), "not-the-secret") {
			t.Errorf("%s: the secret is in what it says", what)
		}
		c.end()
		if now := o.unfinished(what, known); !slices.Equal(now, known) {
			t.Errorf("%s: the backups are %v", what, now)
		}
		absent(t, dir)
		if t.Failed() {
			t.Fatal(what)
		}
	}
	known = append(known, o.backup())
	if now := o.list().names(); !slices.Equal(now, known) {
		t.Errorf("the backups are %v, want %v", now, known)
	}
	r.stop()
}

// Storage that is away for a while in the middle of a backup, or of a restore,
// is waited for, and that is told. What is interrupted meanwhile ends at once.
func TestBackupWaitsForStorage(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry(nil, "receive")
	s.slotSegment()
	o := s.operator()
	away := time.Duration(rounds(5, 60)) * time.Second
	for _, interrupted := range []bool{true, false} {
		s.proxy.Inject(s3server.Unavailable, "PUT basebackups_005", -1)
		p := o.create()
		p.awaitLog(`cannot store the base backup; trying again .*SlowDown`)
		if interrupted {
			p.signal(syscall.SIGINT)
			p.failed(1, `interrupted`)
			s.proxy.Heal()
			continue
		}
		time.Sleep(away)
		if !p.running() {
			t.Fatalf("it did not wait: %v", p.err)
		}
		s.proxy.Heal()
		p.exits(0)
		p.awaitLog(`can store the base backup again`)
		o.checkLayout(strings.TrimSpace(p.stdout.String()))
	}
	if got := o.list().names(); len(got) != 1 {
		t.Errorf("the backups are %v", got)
	}
	dir := filepath.Join(s.home, "new")
	s.proxy.ResetCounts()
	o.restore(dir).exits(0)
	requests := s.proxy.Counts()["GET basebackups_005"]
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for _, interrupted := range []bool{true, false} {
		// The last of its requests are those of the parts.
		caught := s.proxy.Catch(s3server.Withhold, "GET basebackups_005", requests)
		p := o.restore(dir)
		select {
		case <-caught:
		case <-p.done:
			t.Fatal("it has ended before its last request")
		}
		s.proxy.Heal() // gives that one up
		s.proxy.Inject(s3server.Unavailable, "GET basebackups_005", -1)
		p.awaitLog(`SlowDown`)
		if interrupted {
			p.signal(syscall.SIGINT)
			p.failed(1, `interrupted`)
			s.proxy.Heal()
			absent(t, filepath.Join(dir, "global", "pg_control"))
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			continue
		}
		time.Sleep(away)
		if !p.running() {
			t.Fatalf("it did not wait: %v", p.err)
		}
		s.proxy.Heal()
		p.exits(0)
		o.verify(dir, false)
	}
	r.stop()
}

// A server that does not let us in ends a backup with its reason and without the
// password, and nothing is stored.
func TestBackupServerRefuses(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{listen: true, hba: []string{"host replication ferry 127.0.0.1/32 scram-sha-256", "host replication plain 127.0.0.1/32 trust"}})
	s.sql("CREATE ROLE ferry LOGIN REPLICATION PASSWORD 'the right one'")
	s.sql("CREATE ROLE plain LOGIN")
	o := s.operator().with("PGHOST=127.0.0.1")
	for _, c := range []struct {
		vars []string
		says string
	}{
		{[]string{"PGUSER=ferry", "PGPASSWORD=the wrong one"}, `password authentication failed`},
		{[]string{"PGUSER=plain"}, `(?i)permission denied|must be superuser or replication role|REPLICATION`},
		{[]string{"PGUSER=nobody"}, `no pg_hba\.conf entry`},
		{[]string{"PGUSER=ferry", "PGPORT=1"}, `connection refused`},
	} {
		p := o.with(c.vars...).create("--wal", "include")
		p.failed(1, c.says)
		if strings.Contains(p.log(), "the wrong one") {
			t.Error("the password is in what it says")
		}
	}
	if left := everything(t, s.archive); len(left) > 0 {
		t.Errorf("the archive holds %v", left)
	}
	// The least that it takes.
	name := o.with("PGUSER=ferry", "PGPASSWORD=the right one").backup("--wal", "include")
	o.checkLayout(name)
}

// A disk that is full is told, and a backup into a directory there waits for
// room as for any store; a restore ends with one line that says so, and leaves
// nothing. With room they work.
func TestBackupFullDisk(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	s.table()
	s.fill(500)
	full := filepath.Join(s.dir, "full")
	if err := theLab.account.MkdirAll(full); err != nil {
		t.Fatal(err)
	}
	mount(t, "tmpfs", full, "tmpfs", 0, "size=2m,mode=0700")
	if err := theLab.account.Own(full); err != nil {
		t.Fatal(err)
	}
	resize := func(size string) {
		t.Helper()
		if err := syscall.Mount("tmpfs", full, "", syscall.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
	o := s.operator().with("WALFERRY_STORE=file://" + full)
	o.archive = full
	p := o.create("--wal", "include", "--compress", "none")
	p.awaitLog(`cannot store the base backup; trying again .*no space left on device`)
	if files, err := filepath.Glob(filepath.Join(full, "basebackups_005", "*_backup_stop_sentinel.json")); err != nil || len(files) > 0 {
		t.Errorf("there is a backup: %v, %v", files, err)
	}
	resize("64m")
	p.exits(0)
	name := strings.TrimSpace(p.stdout.String())
	o.checkLayout(name)

	dir := filepath.Join(full, "new")
	resize("40m")
	o.restore(dir).failed(1, `(?s)no space left on device.*make room`)
	absent(t, dir)
	resize("100m")
	o.restore(dir).exits(0)
	o.verify(dir, true)
}

// What is damaged in the archive is never restored: a part that is missing, cut,
// or has other bytes, a manifest that is not the one, a list of the parts that is
// none.
func TestRestoreDamaged(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	s.table()
	s.fill(500)
	o := s.operator()
	name := o.backup("--wal", "include")
	folder := filepath.Join(s.archive, "basebackups_005", name)
	for _, file := range partsOf(t, s.archive) {
		file := strings.TrimPrefix(file, folder+"/")
		s.damage(o, name, folder, file)
	}
	for _, file := range []string{"backup_manifest", "walferry.json"} {
		s.damage(o, name, folder, file)
	}
	dir := filepath.Join(s.home, "new")
	o.restore(dir).exits(0)
	o.verify(dir, true)
}

// damage damages an object of a backup in each way, and wants it to be refused.
func (s *scene) damage(o *operator, name, folder, file string) {
	t := s.t
	t.Helper()
	path := filepath.Join(folder, file)
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(sound)
	flipped[len(flipped)/2] ^= 0x10
	ways := map[string][]byte{"missing": nil, "empty": {}, "cut": sound[:len(sound)*2/3], "longer": append(slices.Clone(sound), sound...), "flipped": flipped}
	if file == "walferry.json" {
		delete(ways, "flipped") // it may be in a label
	}
	for how, content := range ways {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if content != nil {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := theLab.account.Own(path); err != nil {
				t.Fatal(err)
			}
		}
		dir := filepath.Join(s.home, "new")
		p := o.restore(dir, "--backup", name)
		if code := p.wait(); code != 1 || strings.Count(p.log(), "walferry: error: ") != 1 {
			t.Errorf("%s %s: it ended with %d, want 1 and the reason:\n%s", file, how, code, p.log())
		}
		absent(t, filepath.Join(dir, "global", "pg_control"))
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, sound, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := theLab.account.Own(path); err != nil {
			t.Fatal(err)
		}
	}
}
