package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// A base backup that was taken under load and restored elsewhere is the
// server's own files, and starts as a server that has every acknowledged row,
// also those behind the backup, up to the end of the archive.
func TestBackup(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		underLoad(s.operator(), r)
	})
}

// The same in a bucket, as an S3 user with exactly the three actions. The
// sentinel is the last thing that is stored, and when it is, the WAL that the
// backup needs is there.
func TestBackupIntoBucket(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	var mu sync.Mutex
	var keys []string       // of the base backups, as they were stored
	var reached segment.LSN // of the WAL when the sentinel came
	wal := &stored{whole: map[string]map[segment.Name]bool{}, parts: map[string]map[segment.Name][]part{}}
	var first segment.Name // set before a backup is taken
	s.proxy.Watch(func(r *http.Request, status int) {
		if status != http.StatusOK || r.Method != http.MethodPut && r.Method != http.MethodPost {
			return
		}
		if _, key, ok := strings.Cut(r.URL.Path, "/basebackups_005/"); ok {
			mu.Lock()
			defer mu.Unlock()
			keys = append(keys, key)
			if strings.HasSuffix(key, "_backup_stop_sentinel.json") {
				reached, _ = wal.end(prefix, first, s.size)
			}
			return
		}
		wal.put(r.URL.Path)
	})
	r := s.ferry(nil, "receive")
	mu.Lock()
	first = s.slotSegment()
	mu.Unlock()
	o := s.operator()
	name := underLoad(o, r)
	mu.Lock()
	defer mu.Unlock()
	if last := keys[len(keys)-1]; last != name+"_backup_stop_sentinel.json" {
		t.Errorf("%s was stored last, behind the sentinel", last)
	}
	if stop := o.show(name).Stop.LSN.LSN; reached < stop {
		t.Errorf("when the sentinel was stored the archive's WAL ended at %s, and the backup ends at %s", reached, stop)
	}
	for key := range s.proxy.Counts() {
		if strings.HasPrefix(key, "DELETE") {
			t.Errorf("there was a request %q", key)
		}
	}
}

// underLoad takes a base backup while rows are committed, restores it when all
// WAL is in the archive and the primary is gone, and returns its name.
func underLoad(o *operator, r *process, more ...string) string {
	t := o.t
	t.Helper()
	random := seeded(t)
	o.slotSegment()
	o.sql("CREATE TABLE ledger (id bigint PRIMARY KEY, v text, sum text)")
	busy := o.pgbench()
	l := o.ledger(random, writing{first: 1, clients: 2, pace: 20 * time.Millisecond})
	commits := func(n int) {
		t.Helper()
		acked, _ := l.acknowledged()
		have := len(acked)
		eventually(t, "more commits", func() bool {
			if err := l.broken(); err != nil {
				t.Fatalf("a client ended: %v", err)
			}
			acked, _ := l.acknowledged()
			return len(acked) >= have+n
		})
	}
	commits(20)
	label := fmt.Sprintf(`it's "load" \ %d`, random.IntN(1000))
	name := o.backup(append([]string{"--label", label}, more...)...)
	commits(20)
	busy.stop()
	l.stop()
	o.awaitShipped()
	acked, _ := l.acknowledged()

	list := o.list()
	if !slices.Equal(list.names(), []string{name}) || list.Latest == nil || *list.Latest != name {
		t.Errorf("the list is %v, want %s alone", list.names(), name)
	}
	o.checkListed(o.show("LATEST"), name, label)
	o.checkLayout(name)
	r.stop()
	if err := o.pg.Kill(o.ctx()); err != nil {
		t.Fatal(err)
	}

	pg := o.restored("restored")
	o.verify(pg.DataDir(), false)
	o.recovers(pg)
	o.hasLedger(pg, acked)
	if v := o.asked(pg, "SELECT timeline_id FROM pg_control_checkpoint()"); v == "1" {
		o.asked(pg, "CHECKPOINT") // the promotion's own is still to come
		if v := o.asked(pg, "SELECT timeline_id FROM pg_control_checkpoint()"); v != "2" {
			t.Errorf("the restored server is on timeline %s, want one of its own", v)
		}
	}
	if o.pg.Installation().Has("pgbench") {
		if v := o.asked(pg, `SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)
			AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)`); v != "t" {
			t.Error("pgbench's sums do not agree")
		}
	}
	o.amcheck(pg)
	t.Logf("%d acknowledged rows are there", len(acked))
	return name
}

// hasLedger wants every acknowledged row to be there, and all rows to be intact.
func (o *operator) hasLedger(pg *instance.Server, acked []commit) {
	o.t.Helper()
	rows := rowsOfLedger(o.t, o.ctx(), pg)
	if lost := missing(acked, rows); len(lost) > 0 {
		o.t.Errorf("%d of %d acknowledged rows are missing, the first is row %d (%s or before)", len(lost), len(acked), lost[0].id, lost[0].lsn)
	}
}

// checkListed looks at what list and show say of a backup of a primary whose
// WAL is in the archive.
func (o *operator) checkListed(b listedBackup, name, label string) {
	t := o.t
	t.Helper()
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	is := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Errorf("backup %s: %s is wrong in %s", name, what, text)
		}
	}
	system, err := instance.ReadControl(o.pg.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	is("name", b.Name == name)
	is("by", b.By == "walferry")
	is("error", b.Error == nil)
	is("label", b.Label != nil && *b.Label == label)
	is("server", b.Server != nil && strings.HasPrefix(*b.Server, o.pg.Installation().Version))
	is("system_identifier", b.System != nil && *b.System == strconv.FormatUint(system.SystemIdentifier, 10))
	is("from_standby", b.FromStandby != nil && !*b.FromStandby)
	is("wal_included", !b.WALIncluded)
	is("wal_complete", b.WALComplete != nil && *b.WALComplete && b.WALMissing == nil)
	is("wal_sealed", b.WALSealed != nil)
	is("suspect", len(b.Suspect) == 0)
	is("permanent", !b.Permanent && b.DependsOn == nil)
	is("bytes", b.Bytes != nil && *b.Bytes > 10<<20)
	is("stored_bytes", b.StoredBytes != nil && *b.StoredBytes > 1<<20)
	is("duration_seconds", b.DurationSeconds != nil && *b.DurationSeconds > 0)
	for _, at := range []*string{b.Started, b.Finished} {
		if at == nil {
			is("its time", false)
			continue
		}
		when, err := time.Parse(time.RFC3339, *at)
		is("its time", err == nil && time.Since(when) < time.Hour && time.Since(when) > -time.Minute)
	}
	if b.Start == nil || b.Stop == nil || b.RestorableTo == nil {
		is("a position", false)
		return
	}
	is("start", o.size.Name(segment.Timeline(b.Start.Timeline), b.Start.LSN.LSN).String() == name[5:29])
	is("stop", b.Stop.LSN.LSN > b.Start.LSN.LSN && b.Stop.Timeline == b.Start.Timeline)
	is("restorable_to", b.RestorableTo.LSN.LSN >= b.Stop.LSN.LSN)
}

// Every way of compressing makes a backup that is the server's own files.
func TestBackupCompression(t *testing.T) {
	t.Parallel()
	if theLab.missing != "" {
		t.Skip("NOT TESTED: " + theLab.missing)
	}
	versions := []instance.Installation{theLab.main}
	if theLab.full {
		versions = theLab.core
	}
	for _, i := range versions {
		t.Run(i.Version, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, options{pg: i})
			r := s.receive()
			s.slotSegment()
			s.table()
			s.fill(1000)
			o := s.operator()
			var names []string
			for n, method := range []string{"server-lz4", "server-zstd", "client-lz4", "client-zstd", "none"} {
				p := o.create("--compress", method)
				p.exits(0)
				name := strings.TrimSpace(p.stdout.String())
				names = append(names, name)
				o.checkLayout(name)
				want, ext := method, map[string]string{"lz4": ".lz4", "zstd": ".zst", "none": ""}[method[strings.LastIndex(method, "-")+1:]]
				got := *o.show(name).Compression
				if strings.HasPrefix(method, "server-") && got == "client-"+method[7:] {
					// Not every server can.
					want = got
					if !strings.Contains(p.log(), method[7:]) || !strings.Contains(p.log(), "compress") {
						t.Errorf("%s: the client compresses, and that was not said:\n%s", method, p.log())
					}
					if i == theLab.main {
						t.Errorf("%s: the client compresses, although %s can", method, i)
					}
				}
				if got != want {
					t.Errorf("it was compressed with %s, and is said to be with %s", method, got)
				}
				for _, part := range everything(t, filepath.Join(s.archive, "basebackups_005", name, "tar_partitions")) {
					if !strings.HasSuffix(part, ".tar"+ext) {
						t.Errorf("%s: there is a part %s", method, part)
					}
				}
				pg := o.restored(fmt.Sprint("restored", n), "--backup", name)
				o.verify(pg.DataDir(), false)
				if n == 0 || theLab.full {
					o.recovers(pg)
					if got := rows(s.ctx(), pg); got != 1000 {
						t.Errorf("%s: %d rows were restored, want 1000", method, got)
					}
				}
				if err := pg.Remove(s.ctx()); err != nil {
					t.Fatal(err)
				}
			}
			if got := o.list().names(); !slices.Equal(got, names) {
				t.Errorf("the list is %v, want %v: oldest first", got, names)
			}
			if latest := o.show("LATEST").Name; latest != names[len(names)-1] {
				t.Errorf("LATEST is %s, want %s", latest, names[len(names)-1])
			}
			r.stop()
		})
	}
}

// Pages whose checksums are wrong do not end a backup: it is kept, and marked.
// Everything else of it is as it should be, so that what can be saved is.
func TestBackupOfDamagedPages(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i, initArgs: []string{"--data-checksums"}})
		r := s.receive()
		s.slotSegment()
		s.table()
		s.fill(1000)
		file := filepath.Join(s.pg.DataDir(), s.sql("CHECKPOINT; SELECT pg_relation_filepath('rows')"))
		if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
			t.Fatal(err)
		}
		damagePages(t, file, 3, 5)
		s.startServer()
		o := s.operator()
		p := o.create()
		p.exits(0)
		name := strings.TrimSpace(p.stdout.String())
		if !strings.Contains(p.log(), "SUSPECT") {
			t.Errorf("it was not said that the backup is suspect:\n%s", p.log())
		}
		b := o.show(name)
		if len(b.Suspect) == 0 || !strings.Contains(strings.Join(b.Suspect, "\n"), filepath.Base(file)) {
			t.Errorf("the damaged pages are %q, want what names %s", b.Suspect, file)
		}
		o.checkLayout(name)
		r.stop()
		pg := o.restored("restored")
		o.verify(pg.DataDir(), false)
		got, err := os.ReadFile(filepath.Join(pg.DataDir(), strings.TrimPrefix(file, s.pg.DataDir())))
		if err != nil {
			t.Fatal(err)
		}
		if want, err := os.ReadFile(file); err != nil || string(got) != string(want) {
			t.Errorf("the damaged file is another one (%v)", err)
		}
	})
}

// damagePages changes a byte in pages of a relation's file.
func damagePages(t *testing.T, file string, pages ...int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range pages {
		var b [1]byte
		at := n*8192 + 8000
		if _, err := f.ReadAt(b[:], at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 0xff
		if _, err := f.WriteAt(b[:], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// Two backups at one time do not hinder each other.
func TestTwoBackups(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	r := s.receive()
	s.slotSegment()
	s.table()
	s.fill(500)
	o := s.operator()
	var names []string
	for _, p := range []*process{o.create(slowly(8)...), o.create("--wal", "include")} {
		p.exits(0)
		names = append(names, strings.TrimSpace(p.stdout.String()))
	}
	if got := o.list().names(); len(got) != 2 || names[0] == names[1] || !slices.Contains(got, names[0]) || !slices.Contains(got, names[1]) {
		t.Errorf("the backups are %v, want %v", got, names)
	}
	s.awaitShipped()
	r.stop()
	for n, name := range names {
		o.checkLayout(name)
		pg := o.restored(fmt.Sprint("restored", n), "--backup", name)
		o.verify(pg.DataDir(), n == 1)
	}
	// A person sees the same.
	for _, args := range [][]string{{"list"}, {"show", names[0]}, {"show", "LATEST"}} {
		p := o.walferry(append([]string{"backup"}, args...)...)
		p.exits(0)
		if !strings.Contains(p.stdout.String(), "base_0") {
			t.Errorf("backup %v prints\n%s", args, p.stdout.String())
		}
	}
}

// The server is stopped, or dies, while a backup is taken: it does not wait for
// the backup, which fails, and leaves none. The next one is good.
func TestServerStopsDuringBackup(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{})
	s.table()
	s.fill(500)
	o := s.operator()
	for _, c := range []struct {
		name string
		stop func() error
	}{
		{"fast", func() error { return s.pg.Stop(s.ctx(), instance.Fast) }},
		{"killed", func() error { return s.pg.Kill(s.ctx()) }},
	} {
		p := o.create(append(slowly(4), "--wal", "include")...)
		eventually(t, "the backup to be under way", func() bool {
			return s.sql("SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 1000000") == "1" || !p.running()
		})
		if err := c.stop(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		p.failed(1, `(?i)(?:base backup from|the WAL of the backup ends at) .*(terminating connection|shutting down|EOF|reset by peer|closed|broken pipe)`)
		if files, err := filepath.Glob(filepath.Join(s.archive, "basebackups_005", "*_backup_stop_sentinel.json")); err != nil || len(files) > 0 {
			t.Errorf("%s: there is a backup: %v, %v", c.name, files, err)
		}
		s.startServer()
	}
	name := o.backup("--wal", "include")
	if got := o.list().names(); !slices.Equal(got, []string{name}) {
		t.Errorf("the backups are %v, want %s alone", got, name)
	}
	pg := o.restored("restored")
	o.recovers(pg)
	if got := rows(s.ctx(), pg); got != 500 {
		t.Errorf("%d rows were restored, want 500", got)
	}
}

// delete refuses what a restore would need, removes what it is told to, and
// leaves what is not allowed as it was.
func TestBackupDelete(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry(nil, "receive")
	s.slotSegment()
	o := s.operator()
	first, second := o.backup(), o.backup()
	before := tree(t, filepath.Join(s.archive, "basebackups_005"))
	unchanged := func(what string) {
		t.Helper()
		if after := tree(t, filepath.Join(s.archive, "basebackups_005")); !slices.Equal(before, after) {
			t.Errorf("%s: the archive holds\n%s\nand before\n%s", what, strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	}
	// The user of the documentation may not.
	o.walferry("backup", "delete", first).failed(1, `s3:DeleteObject`)
	unchanged("denied")
	if got := o.list().names(); !slices.Equal(got, []string{first, second}) {
		t.Errorf("the list is %v", got)
	}
	s.s3.SetPolicy(t, bucket, s.user, "s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:DeleteObject")
	o.walferry("backup", "delete", "base_0000000100000000000000AA").failed(1, "no base backup")
	unchanged("no such backup")
	o.walferry("backup", "delete", first).exits(0)
	if got := o.list().names(); !slices.Equal(got, []string{second}) {
		t.Errorf("the list is %v, want %s alone", got, second)
	}
	for _, name := range everything(t, filepath.Join(s.archive, "basebackups_005")) {
		if strings.HasPrefix(name, first) {
			t.Errorf("%s is left", name)
		}
	}
	before = tree(t, filepath.Join(s.archive, "basebackups_005"))
	o.walferry("backup", "delete", second).failed(1, `the last one .* that can be restored`)
	unchanged("the last one")
	o.walferry("backup", "delete", second, "--force").exits(0)
	if l := o.list(); len(l.Backups) != 0 || l.Latest != nil {
		t.Errorf("the list is %v", l.names())
	}
	o.walferry("backup", "show", "LATEST").failed(1, "no base backup")
	o.walferry("restore", "-D", filepath.Join(s.home, "new"), "--backup", second).failed(1, second)
	absent(t, filepath.Join(s.home, "new"))
	r.stop()
}
