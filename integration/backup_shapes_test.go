package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/restore/instance"
)

// inTablespaces makes two tablespaces with a table each, at places of whose
// names one has every character that is special somewhere on the way.
func (s *scene) inTablespaces() (places []string) {
	s.t.Helper()
	for n, name := range []string{"space", `odd space = "1", 100 % \here`} {
		place := filepath.Join(s.dir, name)
		if err := theLab.account.MkdirAll(place); err != nil {
			s.t.Fatal(err)
		}
		s.sql(fmt.Sprintf("CREATE TABLESPACE ts%d LOCATION '%s'", n, place))
		s.sql(fmt.Sprintf("CREATE TABLE in_ts%d TABLESPACE ts%[1]d AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, 5000) AS g", n))
		s.sql(fmt.Sprintf("CREATE INDEX ON in_ts%d (id) TABLESPACE ts%[1]d", n))
		places = append(places, place)
	}
	return places
}

const inBoth = "SELECT (SELECT count(*) FROM in_ts0 WHERE v = md5(id::text)) || ' ' || (SELECT count(*) FROM in_ts1 WHERE v = md5(id::text))"

// mapped are the flags that put tablespaces from places to others.
func mapped(from, to []string) (flags []string) {
	escape := strings.NewReplacer("=", `\=`)
	for n := range from {
		flags = append(flags, "--tablespace-mapping", escape.Replace(from[n])+"="+escape.Replace(to[n]))
	}
	return flags
}

// Tablespaces are restored to where they are told to be while the original,
// which still uses the old places, runs on and is not touched; without being
// told, a place that is in use is refused.
func TestRestoreTablespaces(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		s.slotSegment()
		places := s.inTablespaces()
		o := s.operator()
		name := o.backup()
		if o.checkLayout(name).sentinel.text(t, "DataDir") != s.pg.DataDir() {
			t.Errorf("the sentinel does not name the data directory %s", s.pg.DataDir())
		}
		b := o.show(name)
		var got []string
		for _, place := range b.Tablespaces {
			got = append(got, place)
		}
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(places))) {
			t.Errorf("the tablespaces are said to be at %q, and are at %q", got, places)
		}
		// Behind the backup a table more, which replay brings.
		s.sql("CREATE TABLE later TABLESPACE ts1 AS SELECT 1 AS id")
		s.sql("CHECKPOINT")
		o.awaitShipped()
		r.stop()
		before := slices.Concat(tree(t, places[0]), tree(t, places[1]))

		refused := filepath.Join(s.home, "new")
		o.restore(refused).failed(1, `not empty`)
		absent(t, refused)
		p := o.restore(refused, "--tablespace-mapping", places[0]+"x="+s.home+"/elsewhere")
		p.failed(2, "has no tablespace at")
		o.restore(refused, mapped(places[:1], []string{filepath.Join(s.home, "elsewhere")})...).failed(1, `not empty`)
		absent(t, refused)
		absent(t, filepath.Join(s.home, "elsewhere"))

		moved := []string{filepath.Join(s.home, "moved"), filepath.Join(s.home, `moved = "too", 1 % \\ more`)}
		pg := o.restored("restored", mapped(places, moved)...)
		o.verify(pg.DataDir(), false, "--ignore=tablespace_map")
		for n := range moved {
			info, err := os.Stat(moved[n])
			if err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%s: %v, %v, want mode 0700", moved[n], info, err)
			}
		}
		o.recovers(pg)
		if v := o.asked(pg, inBoth); v != "5000 5000" {
			t.Errorf("of 5000 rows in each tablespace there are %s", v)
		}
		if v := o.asked(pg, "SELECT id FROM later"); v != "1" {
			t.Errorf("a table from behind the backup has %s", v)
		}
		for n := range moved {
			if v := o.asked(pg, fmt.Sprintf("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'ts%d'", n)); v != moved[n] {
				t.Errorf("tablespace %d is at %s, want %s", n, v, moved[n])
			}
		}
		o.asked(pg, "INSERT INTO in_ts0 VALUES (0, 'new'); INSERT INTO in_ts1 VALUES (0, 'new'); CHECKPOINT")
		o.amcheck(pg)
		// A start later nothing is put back.
		if err := pg.Stop(o.ctx(), instance.Fast); err != nil {
			t.Fatal(err)
		}
		o.recovers(pg)
		if v := o.asked(pg, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'ts1'"); v != moved[1] {
			t.Errorf("after another start a tablespace is at %s, want %s", v, moved[1])
		}
		if v := s.sql(inBoth); v != "5000 5000" {
			t.Errorf("the original has %s", v)
		}
		if after := slices.Concat(tree(t, places[0]), tree(t, places[1])); !slices.Equal(before, after) {
			t.Errorf("the original's tablespaces hold\n%s\nand before\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}

		// What is refused removes nothing, also where replacing was allowed.
		if err := pg.Stop(o.ctx(), instance.Fast); err != nil {
			t.Fatal(err)
		}
		o.restore(pg.DataDir(), append(mapped(places, moved), "--force")...).failed(1, `not empty`)
		o.recovers(pg)

		// With the original gone they go to their old places.
		if err := s.pg.Kill(s.ctx()); err != nil {
			t.Fatal(err)
		}
		for _, place := range places {
			if err := os.RemoveAll(place); err != nil {
				t.Fatal(err)
			}
		}
		// The account may not make them in the scene's directory: there and empty
		// is as good.
		for _, place := range places {
			if err := theLab.account.MkdirAll(place); err != nil {
				t.Fatal(err)
			}
		}
		pg = o.restored("back")
		o.verify(pg.DataDir(), false)
		o.recovers(pg)
		if v := o.asked(pg, inBoth); v != "5000 5000" {
			t.Errorf("back at the old places, of 5000 rows in each tablespace there are %s", v)
		}
	})
}

// Segments of 64 MB: names, and places in them, are other ones.
func TestBackupSegmentSizes(t *testing.T) {
	for _, wal := range []string{"archive", "include"} {
		t.Run(wal, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, options{segmentSize: 64, settings: map[string]string{"min_wal_size": "128MB"}})
			o := s.operator()
			var r *process
			if wal == "archive" {
				r = s.receive()
				s.slotSegment()
			}
			s.table()
			s.fill(3000)
			for range 2 {
				s.switchWAL()
			}
			name := o.backup("--wal", wal)
			o.checkLayout(name)
			want := 3000
			if r != nil {
				s.fill(1000)
				want += 1000
				o.awaitShipped()
				r.stop()
			}
			pg := o.restored("restored")
			o.verify(pg.DataDir(), r == nil)
			o.recovers(pg)
			if got := rows(s.ctx(), pg); got != want {
				t.Errorf("%d rows were restored, want %d", got, want)
			}
		})
	}
}

// What else lies in data directories: tables that are not logged, names of full
// length, files that are nobody's, with names that are no text, and directories
// that are empty.
func TestBackupShapes(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		s.slotSegment()
		long := strings.Repeat("n", 63)
		s.sql("CREATE DATABASE " + long)
		s.sql("CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY)")
		s.sql("INSERT INTO unlogged SELECT generate_series(1, 10000)")
		s.sql("CREATE TABLE " + long + " AS SELECT 1 AS id")
		s.sql("CREATE TABLE empty ()")
		s.sql("SELECT lo_from_bytea(0, 'large')")
		// For developers: a tablespace that is a directory of pg_tblspc itself.
		// Until 15 the server leaves those out of what it sends with a map.
		inPlace := i.Major >= 16
		if inPlace {
			s.sqlEach("SET allow_in_place_tablespaces = on", "CREATE TABLESPACE inplace LOCATION ''",
				"CREATE TABLE in_place TABLESPACE inplace AS SELECT generate_series(1, 1000) AS id")
		}
		data := s.pg.DataDir()
		for _, dir := range []string{"empty", "of somebody/else", "of somebody/" + strings.Repeat("d", 60)} {
			path := data
			for part := range strings.SplitSeq(dir, "/") {
				path = filepath.Join(path, part)
				if err := theLab.account.MkdirAll(path); err != nil && !errors.Is(err, os.ErrExist) {
					t.Fatal(err)
				}
			}
		}
		files := map[string]string{
			"of somebody/name":                       "content",
			"of somebody/nothing":                    "",
			"of somebody/no\xfftext":                 "not UTF-8",
			"of somebody/new\nline":                  "a line",
			"of somebody/ space, quote ' and \" \\ ": "special",
			"of somebody/else/512":                   strings.Repeat("x", 512),
			"of somebody/else/large":                 strings.Repeat("y", 3<<20+7),
			// The longest that PostgreSQL's tar takes.
			"of somebody/" + strings.Repeat("d", 60) + "/" + strings.Repeat("f", 99-73): "long",
		}
		for name, content := range files {
			path := filepath.Join(data, name)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := theLab.account.Own(path); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("/nowhere", filepath.Join(data, "of somebody", "link")); err != nil {
			t.Fatal(err)
		}
		o := s.operator()
		name := o.backup()
		o.checkLayout(name)
		o.awaitShipped()
		r.stop()
		pg := o.restored("restored")
		o.verify(pg.DataDir(), false)
		for name, content := range files {
			got, err := os.ReadFile(filepath.Join(pg.DataDir(), name))
			if err != nil || !bytes.Equal(got, []byte(content)) {
				t.Errorf("%q has %d bytes, want %d (%v)", name, len(got), len(content), err)
			}
		}
		for _, dir := range []string{"empty", "of somebody/else", "pg_wal", "pg_wal/archive_status", "pg_twophase", "pg_replslot", "pg_tblspc", "pg_stat_tmp", "pg_notify", "pg_dynshmem"} {
			if info, err := os.Lstat(filepath.Join(pg.DataDir(), dir)); err != nil || !info.IsDir() {
				t.Errorf("%s is not there as a directory (%v)", dir, err)
			}
		}
		absent(t, filepath.Join(pg.DataDir(), "of somebody", "link"))
		if inPlace {
			// A server that does not know of them stops at their directories.
			if err := pg.Configure(map[string]string{"allow_in_place_tablespaces": "on"}); err != nil {
				t.Fatal(err)
			}
		}
		o.recovers(pg)
		if v := o.asked(pg, "SELECT count(*) FROM unlogged"); v != "0" {
			t.Errorf("a table that is not logged has %s rows", v)
		}
		o.asked(pg, "INSERT INTO unlogged VALUES (1)")
		if inPlace {
			if v := o.asked(pg, "SELECT count(*) FROM in_place"); v != "1000" {
				t.Errorf("a tablespace in place has %s rows", v)
			}
		}
		if v := o.asked(pg, "SELECT id FROM "+long); v != "1" {
			t.Errorf("the table with a long name has %s", v)
		}
		if v := o.asked(pg, "SELECT count(*) FROM pg_database WHERE datname = '"+long+"'"); v != "1" {
			t.Error("the database with a long name is missing")
		}
		o.amcheck(pg)
	})
}

// Files grow, shrink, come and vanish while they are copied: tables and
// databases are made, cut to nothing and dropped all the time that a backup
// takes, which is made to be long.
func TestBackupWhileFilesChange(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		r := s.receive()
		s.slotSegment()
		s.sql("CREATE TABLE kept (id int PRIMARY KEY, v text); CREATE TABLE cut (v text); CREATE TABLE large (v text)")
		s.sql("INSERT INTO large SELECT repeat(md5(g::text), 60) FROM generate_series(1, 8000) AS g")
		stop := make(chan struct{})
		rounds := make(chan int)
		var failed error
		go func() {
			n := 0
			defer func() { rounds <- n }()
			for failed == nil {
				select {
				case <-stop:
					return
				default:
				}
				n++
				failed = s.changeFiles(n)
				time.Sleep(50 * time.Millisecond) // or it is the WAL alone that takes long
			}
		}()
		o := s.operator()
		name := o.backup(slowly(8)...)
		close(stop)
		n := <-rounds
		if failed != nil {
			t.Fatal(failed)
		}
		if n < 10 {
			t.Errorf("files were changed %d times while the backup was taken", n)
		}
		if took := o.show(name).DurationSeconds; took == nil || *took < 2 {
			t.Error("the backup was not throttled")
		}
		o.checkLayout(name)
		o.awaitShipped()
		r.stop()
		if err := s.pg.Kill(s.ctx()); err != nil {
			t.Fatal(err)
		}
		pg := o.restored("restored")
		o.verify(pg.DataDir(), false)
		o.recovers(pg)
		if v := o.asked(pg, "SELECT count(*) || ' ' || max(id) FROM kept"); v != fmt.Sprint(n, " ", n) {
			t.Errorf("of %d rounds the rows and the last of them are %s", n, v)
		}
		if v := o.asked(pg, "SELECT count(*) FROM large WHERE v = repeat(substr(v, 1, 32), 60)"); v != "8000" {
			t.Errorf("the large table has %s sound rows", v)
		}
		o.amcheck(pg)
		t.Logf("files were changed %d times", n)
	})
}

// sqlEach runs statements in one session, each a transaction of its own.
func (s *scene) sqlEach(statements ...string) {
	s.t.Helper()
	if err := s.session(statements...); err != nil {
		s.t.Fatal(err)
	}
}

// changeFiles is one round of it.
func (s *scene) changeFiles(n int) error {
	return s.session(
		fmt.Sprintf("INSERT INTO kept VALUES (%d, repeat('x', 2000))", n),
		"INSERT INTO cut SELECT repeat('x', 1000) FROM generate_series(1, 300)",
		fmt.Sprintf("CREATE TABLE passing%d AS SELECT repeat('x', 1000) FROM generate_series(1, 200)", n),
		"CHECKPOINT", // so that the files are there
		"TRUNCATE cut",
		fmt.Sprintf("DROP TABLE passing%d", n),
		"CHECKPOINT", // and gone
	)
}

func (s *scene) session(statements ...string) error {
	c, err := pgconn.Connect(s.t.Context(), s.pg.DSN("postgres"))
	if err != nil {
		return err
	}
	for _, sql := range statements {
		if _, err := c.Exec(s.t.Context(), sql).ReadAll(); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", sql, err), c.Close(s.t.Context()))
		}
	}
	return c.Close(s.t.Context())
}

// A relation of more than one file: each has 1 GiB, which is also more than what
// goes into one part of an upload.
func TestBackupLargeRelation(t *testing.T) {
	t.Parallel()
	if theLab.missing != "" || !theLab.full {
		t.Skip("NOT TESTED: the files are large: only in a full run")
	}
	s := newBucketScene(t, options{segmentSize: 64, settings: map[string]string{"min_wal_size": "128MB"}})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	// A row a page, so that there is little WAL; what no compression makes small.
	s.sql("CREATE TABLE large (id int, v text) WITH (fillfactor = 10)")
	s.sql("ALTER TABLE large ALTER v SET STORAGE PLAIN")
	s.sql("INSERT INTO large SELECT g, (SELECT string_agg(md5(random()::text || g || h), '') FROM generate_series(1, 24) AS h) FROM generate_series(1, 145000) AS g")
	sum := "SELECT count(*) || ' ' || md5(string_agg(md5(v), '' ORDER BY id)) FROM large"
	want := s.sql(sum)
	file := filepath.Join(s.pg.DataDir(), s.sql("CHECKPOINT; SELECT pg_relation_filepath('large')"))
	if info, err := os.Stat(file); err != nil || info.Size() != 1<<30 {
		t.Fatalf("the first file is not 1 GiB large: %v, %v", info, err)
	}
	if _, err := os.Stat(file + ".1"); err != nil {
		t.Fatal(err)
	}
	o := s.operator()
	// The race detector's memory is not to be measured.
	binary, err := theLab.build(s.ctx(), "walferry-large", "-race=false")
	if err != nil {
		t.Fatal(err)
	}
	s.binary = binary
	for n, method := range []string{"server-lz4", "client-lz4", "none"} {
		p := o.create("--wal", "include", "--compress", method)
		most := 0
		for p.running() {
			if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid)); err == nil && bytes.Contains(status, []byte("VmHWM")) {
				most = max(most, high(t, p))
			}
			time.Sleep(20 * time.Millisecond)
		}
		p.exits(0)
		name := strings.TrimSpace(p.stdout.String())
		t.Logf("%s: it took %d MB of memory", method, most>>10)
		if most >= 128<<10 {
			t.Errorf("%s: it took %d MB of memory, want less than 128", method, most>>10)
		}
		pg := o.restored(fmt.Sprint("restored", n), "--backup", name)
		o.verify(pg.DataDir(), true)
		o.recovers(pg)
		if got := o.asked(pg, sum); got != want {
			t.Errorf("the relation is %s, want %s", got, want)
		}
		if err := pg.Remove(s.ctx()); err != nil {
			t.Fatal(err)
		}
	}
}

// pg_wal is often a symbolic link to another disk, of a cluster that a group may
// read. A backup has it as the directory that it is, and a restore is of its
// owner alone.
func TestBackupWithWALElsewhere(t *testing.T) {
	t.Parallel()
	s := newScene(t, options{initArgs: []string{"--allow-group-access"}})
	wal := filepath.Join(s.pg.DataDir(), "pg_wal")
	if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(s.dir, "wal")
	s.move(wal, target)
	if err := errors.Join(os.Symlink(target, wal), theLab.account.Own(wal)); err != nil {
		t.Fatal(err)
	}
	s.startServer()
	r := s.receive()
	s.slotSegment()
	s.table()
	s.fill(100)
	o := s.operator()
	o.checkLayout(o.backup())
	o.awaitShipped()
	r.stop()
	pg := o.restored("restored")
	o.verify(pg.DataDir(), false)
	if info, err := os.Lstat(filepath.Join(pg.DataDir(), "pg_wal")); err != nil || !info.IsDir() {
		t.Errorf("pg_wal is %v (%v), want a directory", info, err)
	}
	o.recovers(pg)
	if got := rows(s.ctx(), pg); got != 100 {
		t.Errorf("%d rows were restored, want 100", got)
	}
}
