package basebackup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore/dir"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/restore/instance"
)

// The tests of this file run against every real PostgreSQL that is found: in
// the directories of $WALFERRY_TEST_PG, else in the usual places.
func eachServer(t *testing.T, f func(t *testing.T, i instance.Installation)) {
	t.Helper()
	named := filepath.SplitList(os.Getenv("WALFERRY_TEST_PG"))
	found, err := instance.Find(t.Context(), named)
	if errors.Is(err, instance.ErrNoPostgreSQL) {
		t.Skip("NOT TESTED: no PostgreSQL server found in $WALFERRY_TEST_PG or the usual places")
	}
	if err != nil {
		t.Fatal(err)
	}
	for n, i := range found {
		if n > 0 && i.Major != 15 && os.Getenv("WALFERRY_FULL") == "" {
			t.Logf("not tested on %s without WALFERRY_FULL=1", i)
			continue // the newest and 15 are what a commit can wait for
		}
		t.Run(fmt.Sprintf("PostgreSQL_%d", i.Major), func(t *testing.T) { f(t, i) })
	}
}

// home is a directory that the servers' user can reach.
func home(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("/tmp", "walferry-take")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(d, 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

// running is a server that runs.
type running struct {
	*instance.Server
	t   *testing.T
	sql *pgx.Conn
}

func run(t *testing.T, s *instance.Server, err error) *running {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = s.Stop(ctx, instance.Immediate) // it may have ended
		if err := s.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := s.Start(t.Context()); err != nil {
		log, _ := s.Log()
		t.Fatalf("%v\n%s", err, log)
	}
	c, err := pgx.Connect(t.Context(), s.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return &running{s, t, c}
}

func (r *running) exec(sql string) {
	r.t.Helper()
	if _, err := r.sql.Exec(r.t.Context(), sql); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
}

func (r *running) value(sql string) string {
	r.t.Helper()
	var v string
	if err := r.sql.QueryRow(r.t.Context(), sql).Scan(&v); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func (r *running) connect(ctx context.Context) (*replication.Conn, error) {
	c, err := replication.ParseConfig(replication.Params{DSN: r.DSN("postgres"), ApplicationName: "walferry test"})
	if err != nil {
		return nil, err
	}
	return replication.Connect(ctx, c)
}

// put puts a backup into a directory, as an untar of all its parts does, its
// tablespaces beside it.
func (s stored) put(t *testing.T, data string) {
	t.Helper()
	for name, h := range s.entries {
		path := filepath.Join(data, name)
		if rest, ok := strings.CutPrefix(name, "pg_tblspc/"); ok && rest != "" {
			path = filepath.Join(data+"-tblspc", rest)
		}
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, s.content[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(data, manifestName), s.objects[manifestName], 0o600); err != nil {
		t.Fatal(err)
	}
	spec := s.backup.Sentinel.Spec
	if spec == nil {
		return
	}
	for oid := range spec.Locations {
		name := fmt.Sprint(oid)
		if err := os.Symlink(filepath.Join(data+"-tblspc", name), filepath.Join(data, "pg_tblspc", name)); err != nil {
			t.Fatal(err)
		}
	}
}

// A backup of a server at work, with a tablespace and its WAL inside, passes
// pg_verifybackup, starts without an archive, and has what was committed before
// it began.
func TestPostgres(t *testing.T) {
	eachServer(t, func(t *testing.T, i instance.Installation) {
		top := home(t)
		s, err := instance.Create(t.Context(), instance.Options{
			Installation: i, Dir: filepath.Join(top, "primary"),
			Settings: map[string]string{"wal_level": "replica", "fsync": "off", "max_wal_senders": "6", "max_replication_slots": "4"},
			InitArgs: []string{"--data-checksums", "--wal-segsize=1"},
		})
		pg := run(t, s, err)
		if err := pg.Account().MkdirAll(filepath.Join(top, "tbs")); err != nil {
			t.Fatal(err)
		}
		pg.exec("CREATE TABLESPACE elsewhere LOCATION '" + filepath.Join(top, "tbs") + "'")
		pg.exec("CREATE TABLE far (n int, t text) TABLESPACE elsewhere")
		pg.exec("CREATE TABLE near (n int, t text)")
		pg.exec("CREATE UNLOGGED TABLE loose (n int)")
		pg.exec("INSERT INTO far SELECT n, md5(n::text) FROM generate_series(1, 20000) n")
		pg.exec("INSERT INTO near SELECT n, md5(n::text) FROM generate_series(1, 50000) n")
		pg.exec("INSERT INTO loose SELECT 1")

		methods := []string{"server-lz4", "client-zstd", "none"}
		if i.Major >= 15 {
			methods = append(methods, "server-zstd", "client-lz4")
		}
		for _, text := range methods {
			t.Run(text, func(t *testing.T) {
				rows := pg.value("SELECT count(*)::text FROM near")
				stop := load(t, pg)
				defer stop()
				store, err := dir.Open(filepath.Join(top, "archive-"+text), dir.Create)
				if err != nil {
					t.Fatal(err)
				}
				a := archive.New(store, archive.Options{})
				conn, err := pg.connect(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if !(postgres{conn}).Local() {
					t.Error("a server that is reached by its socket is said to be on another host")
				}
				o := options(t, text)
				log := testLog(t)
				o.Log = slog.New(slog.NewTextHandler(log, nil))
				o.Fast, o.IncludeWAL, o.Again = true, true, pg.connect
				b, err := Take(t.Context(), conn, a, o)
				if err != nil {
					t.Fatal(err)
				}
				stop()
				// A temporary slot goes when the server notices that its connection has.
				left := func() string { return pg.value("SELECT count(*)::text FROM pg_replication_slots") }
				for deadline := time.Now().Add(time.Minute); left() != "0" && time.Now().Before(deadline); {
					time.Sleep(50 * time.Millisecond)
				}
				if n := left(); n != "0" {
					t.Errorf("%s slots are left", n)
				}
				got := read(t, a, b.Name)
				got.checkFacts(t)
				// Before 15, and in builds without the libraries.
				took := text
				if strings.Contains(log.String(), "the server cannot compress the backup") {
					took = strings.Replace(text, "server", "client", 1)
				} else if i.Major < 15 && strings.HasPrefix(text, "server") {
					t.Error("nothing was said of what the server cannot do")
				}
				f := got.backup.Facts
				if f.Compression != took || f.WAL != archive.WALIncluded || len(f.SuspectPages) > 0 || f.Standby || !strings.HasPrefix(f.Server, fmt.Sprint(i.Major)) || len(got.backup.Sentinel.Spec.Locations) != 1 {
					t.Errorf("%+v, %+v", f, got.backup.Sentinel)
				}
				if want := pg.value("SELECT setting FROM pg_settings WHERE name = 'data_directory'"); got.backup.Sentinel.DataDir != want {
					t.Errorf("the data directory is %q, not %q", want, got.backup.Sentinel.DataDir)
				}
				if got.entries["tablespace_map"] == nil || got.entries["backup_label"] == nil || !bytes.Contains(got.content["backup_label"], []byte("LABEL: nightly\n")) {
					t.Error("backup_label or tablespace_map are missing")
				}
				restore(t, pg, got, filepath.Join(top, "restored-"+text), rows)
			})
		}
	})
}

// load writes to the server until it is stopped: a megabyte of WAL a second, or
// two. As fast as it can the server would write more than the race detector lets
// us read, and the cluster would grow with every backup.
func load(t *testing.T, pg *running) (stop func()) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), pg.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		pace := time.NewTicker(10 * time.Millisecond)
		defer pace.Stop()
		for ; ctx.Err() == nil; <-pace.C {
			_, err := c.Exec(ctx, "INSERT INTO near SELECT n, md5(n::text) FROM generate_series(1, 100) n")
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
		_ = c.Close(context.Background())
	}
}

// restore verifies the backup and starts a server of it.
func restore(t *testing.T, pg *running, got stored, where, rows string) {
	t.Helper()
	i := pg.Installation()
	s, err := instance.Adopt(t.Context(), instance.Options{Installation: i, Dir: where, Settings: map[string]string{"fsync": "off"}}, func(data string) error {
		got.put(t, data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Account().Own(s.DataDir() + "-tblspc"); err != nil {
		t.Fatal(err)
	}
	verify(t, s)
	// PostgreSQL makes the links of tablespace_map itself, to the original
	// places: not while the primary runs.
	var lines []string
	for oid := range got.backup.Sentinel.Spec.Locations {
		lines = append(lines, fmt.Sprintf("%d %s\n", oid, filepath.Join(s.DataDir()+"-tblspc", fmt.Sprint(oid))))
	}
	slices.Sort(lines)
	if err := os.WriteFile(filepath.Join(s.DataDir(), "tablespace_map"), []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Account().Own(filepath.Join(s.DataDir(), "tablespace_map")); err != nil {
		t.Fatal(err)
	}
	restored := run(t, s, nil)
	for sql, want := range map[string]string{
		"SELECT (count(*) >= " + rows + " AND count(*) % 100 = 0)::text FROM near":                                   "true",
		"SELECT count(*)::text FROM far WHERE t = md5(n::text)":                                                      "20000",
		"SELECT count(*)::text FROM loose":                                                                           "0",
		"SELECT pg_is_in_recovery()::text":                                                                           "false",
		"SELECT count(*)::text FROM pg_tablespace WHERE spcname = 'elsewhere' AND pg_tablespace_location(oid) <> ''": "1",
	} {
		if got := restored.value(sql); got != want {
			t.Errorf("%s: %s, want %s", sql, got, want)
		}
	}
}

// verify runs the server's pg_verifybackup, or another one's, which then leaves
// the WAL alone.
func verify(t *testing.T, s *instance.Server) {
	t.Helper()
	all, err := instance.Find(t.Context(), []string{s.Installation().Bin})
	if err != nil {
		t.Fatal(err)
	}
	all = append([]instance.Installation{s.Installation()}, all...)
	n := slices.IndexFunc(all, func(i instance.Installation) bool { return i.Has("pg_verifybackup") })
	if n < 0 {
		t.Log("NOT TESTED: there is no pg_verifybackup")
		return
	}
	args := []string{s.DataDir()}
	if n > 0 {
		args = append(args, "--no-parse-wal")
	}
	cmd := s.Account().Command(t.Context(), all[n].Program("pg_verifybackup"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("pg_verifybackup of %s: %v\n%s", all[n], err, out)
	}
}

// Without anybody who ships WAL, and without the WAL inside, there is no
// backup.
func TestPostgresNoWAL(t *testing.T) {
	eachServer(t, func(t *testing.T, i instance.Installation) {
		top := home(t)
		s, err := instance.Create(t.Context(), instance.Options{
			Installation: i, Dir: filepath.Join(top, "primary"),
			Settings: map[string]string{"wal_level": "replica", "fsync": "off"}, InitArgs: []string{"--wal-segsize=1"},
		})
		pg := run(t, s, err)
		store, err := dir.Open(filepath.Join(top, "archive"), dir.Create)
		if err != nil {
			t.Fatal(err)
		}
		a := archive.New(store, archive.Options{})
		conn, err := pg.connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		o := options(t, "server-lz4")
		o.Fast, o.WALWait = true, time.Second
		_, err = Take(t.Context(), conn, a, o)
		if !errors.Is(err, ErrNoWAL) {
			t.Errorf("%v", err)
		}
		if all, err := a.Backups(t.Context()); err != nil || len(all) > 0 {
			t.Errorf("%v, %v", all, err)
		}
	})
}
