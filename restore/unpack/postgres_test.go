package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/manifest"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/dir"
	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/restore/recovery"
	"github.com/walferry/walferry/restore/unpack"
	"github.com/walferry/walferry/segment"
)

// scene is a place that servers can reach.
type scene struct {
	t       *testing.T
	ctx     context.Context
	dir     string
	account instance.Account
	owner   *unpack.Owner
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{t: t}
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute)
	t.Cleanup(cancel)
	var err error
	if s.dir, err = os.MkdirTemp("", "walferry-unpack-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(s.dir); err != nil {
			t.Error(err)
		}
	})
	s.must(os.Chmod(s.dir, 0o755))
	s.account, err = instance.Unprivileged()
	s.must(err)
	if s.account.Other() {
		u, err := user.Lookup(s.account.Name)
		s.must(err)
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		s.must(errors.Join(err1, err2))
		s.owner = &unpack.Owner{UID: uid, GID: gid}
	}
	return s
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) path(name ...string) string {
	return filepath.Join(append([]string{s.dir}, name...)...)
}

// installations are those that this test can use, PostgreSQL 15 first.
func installations(t *testing.T, programs ...string) []instance.Installation {
	t.Helper()
	found, err := instance.Find(t.Context(), filepath.SplitList(os.Getenv("WALFERRY_TEST_PG")))
	if errors.Is(err, instance.ErrNoPostgreSQL) {
		t.Skip("NOT TESTED: no PostgreSQL server on this machine")
	}
	if err != nil {
		t.Fatal(err)
	}
	var all []instance.Installation
	for _, i := range found {
		lacks := ""
		for _, p := range programs {
			if !i.Has(p) {
				lacks = p
			}
		}
		switch {
		case lacks != "":
			t.Logf("NOT TESTED: %s has no %s", i, lacks)
		case i.Major == 15:
			all = append([]instance.Installation{i}, all...)
		case i.Major >= 14:
			all = append(all, i)
		}
	}
	if len(all) == 0 {
		t.Skipf("NOT TESTED: no PostgreSQL server here has %v", programs)
	}
	if len(all) > 2 && os.Getenv("WALFERRY_FULL") == "" {
		t.Logf("tested on %s and %s; on the others with WALFERRY_FULL=1", all[0], all[1])
		all = all[:2] // 15 and the newest are what a commit can wait for
	}
	return all
}

func (s *scene) server(o instance.Options, fill func(string) error) *instance.Server {
	s.t.Helper()
	o.Account = &s.account
	var pg *instance.Server
	var err error
	if fill == nil {
		pg, err = instance.Create(s.ctx, o)
	} else {
		pg, err = instance.Adopt(s.ctx, o, fill)
	}
	s.must(err)
	s.t.Cleanup(func() {
		if err := pg.Remove(context.WithoutCancel(s.ctx)); err != nil {
			s.t.Error(err)
		}
	})
	return pg
}

func (s *scene) run(program string, args ...string) (string, error) {
	out, err := s.account.Command(s.ctx, program, args...).CombinedOutput()
	return string(out), err
}

func (s *scene) query(pg *instance.Server, sql string) string {
	s.t.Helper()
	c, err := pgx.Connect(s.ctx, pg.DSN("postgres"))
	s.must(err)
	defer func() { _ = c.Close(s.ctx) }()
	var text []string
	rows, err := c.Query(s.ctx, sql, pgx.QueryExecModeSimpleProtocol)
	s.must(err)
	for rows.Next() {
		values, err := rows.Values()
		s.must(err)
		for _, v := range values {
			text = append(text, fmt.Sprint(v))
		}
	}
	s.must(rows.Err())
	return strings.Join(text, ",")
}

func (s *scene) archive(root string) *archive.Archive {
	s.t.Helper()
	store, err := dir.Open(root)
	s.must(err)
	return archive.New(store, archive.Options{})
}

// upload stores content as a part of a backup, encoded as its name says.
func (s *scene) upload(w *archive.BackupWriter, name string, content []byte) archive.BackupPart {
	s.t.Helper()
	var b bytes.Buffer
	z, err := codec.Method{Name: codec.LZ4}.NewWriter(&b, int64(len(content)))
	s.must(err)
	_, err = z.Write(content)
	s.must(errors.Join(err, z.Close()))
	body := objstore.Bytes(b.Bytes())
	u, err := w.BeginPart(s.ctx, name)
	s.must(err)
	s.must(u.Part(s.ctx, 1, 0, body))
	s.must(u.Complete(s.ctx))
	return archive.BackupPart{Name: name, Size: body.Size(), CRC32C: body.CRC32C(), Uncompressed: int64(len(content))}
}

// below puts the entries of a tablespace's tar into its folder.
func (s *scene) below(folder string, content []byte) []byte {
	s.t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for r := tar.NewReader(bytes.NewReader(content)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		s.must(err)
		h.Name = folder + "/" + h.Name
		s.must(w.WriteHeader(h))
		_, err = io.Copy(w, r)
		s.must(err)
	}
	s.must(w.Close())
	return b.Bytes()
}

// rootEntry is the tar that gives the data directory its mode.
func (s *scene) rootEntry() []byte {
	s.t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	s.must(w.WriteHeader(&tar.Header{Name: "/", Typeflag: tar.TypeDir, Mode: 0o700}))
	s.must(w.Close())
	return b.Bytes()
}

// store puts what pg_basebackup -Ft made into an archive.
func (s *scene) store(a *archive.Archive, made string, pg *instance.Server, locations map[uint32]string) archive.Backup {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(made, "backup_manifest"))
	s.must(err)
	m, err := manifest.Read(bytes.NewReader(text), func(manifest.File) error { return nil })
	s.must(err)
	control, err := instance.ReadControl(pg.DataDir())
	s.must(err)
	start := segment.Position{Timeline: m.WAL[0].Timeline, LSN: m.WAL[0].Start}
	w, err := a.NewBackup(s.ctx, start, segment.DefaultSize)
	s.must(err)
	facts := archive.BackupFacts{
		Label: "of pg_basebackup", Server: pg.Installation().Version, StartLSN: start.LSN.String(), StartTimeline: uint32(start.Timeline),
		StopLSN: m.WAL[0].End.String(), StopTimeline: uint32(start.Timeline), SegmentSize: uint64(segment.DefaultSize), Compression: "client-lz4", WAL: archive.WALInArchive,
		Manifest: archive.BackupPart{Name: "backup_manifest", Size: int64(len(text)), CRC32C: objstore.Bytes(text).CRC32C()},
	}
	facts.Parts = append(facts.Parts, s.upload(w, "part_000.tar.lz4", s.rootEntry()))
	base, err := os.ReadFile(filepath.Join(made, "base.tar"))
	s.must(err)
	facts.Parts = append(facts.Parts, s.upload(w, "part_001.tar.lz4", base))
	sentinel := archive.Sentinel{
		LSN: start.LSN, FinishLSN: m.WAL[0].End, SystemIdentifier: control.SystemIdentifier, PgVersion: pg.Installation().Major * 10000,
		StartTime: time.Now().Add(-time.Second), FinishTime: time.Now(), Spec: &archive.TablespaceSpec{BasePrefix: pg.DataDir(), Locations: locations},
	}
	for oid := range locations {
		content, err := os.ReadFile(filepath.Join(made, fmt.Sprintf("%d.tar", oid)))
		s.must(err)
		facts.Parts = append(facts.Parts, s.upload(w, fmt.Sprintf("part_%d.tar.lz4", oid), s.below(fmt.Sprintf("pg_tblspc/%d", oid), content)))
	}
	s.must(w.Put(s.ctx, "backup_manifest", objstore.Bytes(text)))
	b, err := w.Commit(s.ctx, sentinel, facts)
	s.must(err)
	return b
}

// TestRestoreServer takes a server that archives and has a tablespace, and
// restores it to a restore point somewhere else.
func TestRestoreServer(t *testing.T) {
	for _, i := range installations(t, "pg_basebackup", "pg_verifybackup") {
		t.Run(strconv.Itoa(i.Major), func(t *testing.T) { restoreServer(t, i) })
	}
}

func restoreServer(t *testing.T, i instance.Installation) {
	s := newScene(t)
	root := s.path("archive")
	for _, d := range []string{root, s.path("ts"), s.path("moved"), s.path("made")} {
		s.must(s.account.MkdirAll(d))
	}
	s.must(s.account.MkdirAll(filepath.Join(root, "wal_005")))
	copyOut := fmt.Sprintf(`cp "%%p" "%s/wal_005/%%f"`, root)
	pg := s.server(instance.Options{Installation: i, Dir: s.path("source"), Settings: map[string]string{
		"fsync": "off", "archive_mode": "on", "archive_command": copyOut,
	}}, nil)
	s.must(pg.Start(s.ctx))
	s.query(pg, "CREATE TABLESPACE ts LOCATION '"+s.path("ts")+"'")
	s.query(pg, "CREATE TABLE there TABLESPACE ts AS SELECT g FROM generate_series(1, 1000) g")
	s.query(pg, "CREATE TABLE marks AS SELECT 1 AS id")
	s.query(pg, "ALTER SYSTEM SET primary_conninfo = 'host=nowhere'")
	var oid uint32
	_, err := fmt.Sscan(s.query(pg, "SELECT oid FROM pg_tablespace WHERE spcname = 'ts'"), &oid)
	s.must(err)
	if out, err := s.run(i.Program("pg_basebackup"), "-d", pg.DSN("postgres"), "-D", s.path("made"), "-Ft", "-X", "none", "-c", "fast", "--no-sync"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.query(pg, "INSERT INTO marks VALUES (2)")
	s.query(pg, "SELECT pg_create_restore_point('here')::text")
	s.query(pg, "INSERT INTO marks VALUES (3)")
	last := s.query(pg, "SELECT pg_walfile_name(pg_switch_wal())")
	for !exists(filepath.Join(root, "wal_005", last)) {
		select {
		case <-s.ctx.Done():
			t.Fatal(s.ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	s.must(pg.Stop(s.ctx, instance.Fast))
	a := s.archive(root)
	b := s.store(a, s.path("made"), pg, map[uint32]string{oid: s.path("ts")})

	// Where it was, it is what the server sent, to the last file.
	s.must(os.RemoveAll(s.path("ts")))
	s.must(unpack.Unpack(s.ctx, a, b, unpack.Options{Dir: s.path("plain"), Owner: s.owner}))
	if out, err := s.run(i.Program("pg_verifybackup"), "-n", s.path("plain")); err != nil {
		t.Errorf("%v: %s", err, out)
	}

	plan, err := recovery.MakePlan(s.ctx, a, recovery.Options{Target: recovery.Target{Name: "here", Action: "promote"}})
	s.must(err)
	if plan.Backup.Name != b.Name || plan.Reach.LSN < b.Stop.LSN {
		t.Errorf("%+v", plan)
	}
	said := ""
	restored := s.server(instance.Options{Installation: i, Dir: s.path("restored"), Settings: map[string]string{"fsync": "off"}}, func(data string) error {
		return unpack.Unpack(s.ctx, a, plan.Backup, unpack.Options{
			Dir: data, Mapping: map[string]string{s.path("ts"): s.path("moved")}, Owner: s.owner,
			Finish: func(context.Context) error {
				lines, err := recovery.Configure(data, plan, recovery.Settings{RestoreCommand: fmt.Sprintf(`cp "%s/wal_005/%%f" "%%p"`, root)})
				said = strings.Join(lines, "\n")
				refusesToStart(s, i, data)
				return err
			},
		})
	})
	if said != "cleared primary_conninfo" { // without what it says, which may be a password
		t.Errorf("said %q", said)
	}
	// The map was rewritten, as it must be; all else is as the server sent it.
	if out, err := s.run(i.Program("pg_verifybackup"), "-n", "-i", "tablespace_map", restored.DataDir()); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	s.must(restored.Start(s.ctx))
	s.must(restored.AwaitPrimary(s.ctx))
	for sql, want := range map[string]string{
		"SELECT string_agg(id::text, ',' ORDER BY id) FROM marks":                    "1,2",
		"SELECT count(*) FROM there":                                                 "1000",
		"SHOW primary_conninfo":                                                      "",
		"SHOW recovery_target_name":                                                  "here",
		"SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'ts'": s.path("moved"),
	} {
		if got := s.query(restored, sql); got != want {
			t.Errorf("%s = %q, want %q", sql, got, want)
		}
	}
	s.query(restored, "INSERT INTO marks VALUES (4)") // nobody waits for a standby
}

// refusesToStart: a directory whose pg_control has not got its name yet is none
// for a server.
func refusesToStart(s *scene, i instance.Installation, data string) {
	s.t.Helper()
	out, err := s.run(i.Program("postgres"), "-D", data)
	if err == nil || !strings.Contains(out, "global/pg_control") {
		s.t.Errorf("a server started without pg_control, or failed for another reason: %v, %s", err, out)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// walgArchive was written by WAL-G itself from a PostgreSQL 15. It is too large
// for this repository and lies beside a checkout.
const walgArchive = "../../../shared/fixtures/walg-archive"

// TestRestoreWALG restores it to its end.
func TestRestoreWALG(t *testing.T) {
	if _, err := os.Stat(walgArchive); err != nil {
		t.Skipf("NOT TESTED: there is no archive of WAL-G's here: %v", err)
	}
	i := installations(t)[0]
	if i.Major != 15 {
		t.Skip("NOT TESTED: WAL-G's archive is of PostgreSQL 15, which is not here")
	}
	s := newScene(t)
	root := s.path("archive")
	s.must(os.CopyFS(root, os.DirFS(walgArchive)))
	s.must(s.account.MkdirAll(s.path("wal")))
	a := s.archive(root)
	plan, err := recovery.MakePlan(s.ctx, a, recovery.Options{})
	s.must(err)
	if plan.Backup.Name.String() != "base_000000010000000000000002" || plan.Reach.LSN != 0x5000000 || len(plan.Notes) > 0 {
		t.Errorf("%+v", plan)
	}
	for n := plan.Backup.Name.Segment(); n.Start(segment.DefaultSize) < plan.Reach.LSN; n = n.Next(segment.DefaultSize) {
		o, err := a.Open(s.ctx, n.String())
		s.must(err)
		content, err := io.ReadAll(o)
		s.must(errors.Join(err, o.Close()))
		s.must(os.WriteFile(s.path("wal", n.String()), content, 0o644))
	}
	pg := s.server(instance.Options{Installation: i, Dir: s.path("restored"), Settings: map[string]string{"fsync": "off"}}, func(data string) error {
		return unpack.Unpack(s.ctx, a, plan.Backup, unpack.Options{
			Dir: data, Mapping: map[string]string{"/srv/pg/tablespace1": s.path("ts")}, Owner: s.owner,
			Finish: func(context.Context) error {
				_, err := recovery.Configure(data, plan, recovery.Settings{RestoreCommand: fmt.Sprintf(`cp "%s/%%f" "%%p"`, s.path("wal"))})
				return err
			},
		})
	})
	s.must(pg.Start(s.ctx))
	s.must(pg.AwaitPrimary(s.ctx))
	for sql, want := range map[string]string{
		"SELECT string_agg(id::text, ',' ORDER BY id) FROM marks": "1,2,3",
		"SELECT count(*) FROM in_ts":                              "1000",
	} {
		if got := s.query(pg, sql); got != want {
			t.Errorf("%s = %q, want %q", sql, got, want)
		}
	}
}
