package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// scene is a test's own world: a cluster, a directory archive, a spool.
type scene struct {
	t       *testing.T
	dir     string
	binary  string
	home    string // of the children
	archive string // the directory of the archive
	spool   string
	base    string // cold copy of the data directory, made before the first start
	size    segment.Size
	pg      *instance.Server // running
}

// options change a scene.
type options struct {
	pg          instance.Installation // default: the lab's main one
	segmentSize int                   // MB; default 1, so that there are many
	initArgs    []string              // of initdb
	settings    map[string]string
	listen      bool
	hba         []string
}

// newScene makes a running cluster. The server keeps all of its WAL, so that
// what was archived can be compared with it.
func newScene(t *testing.T, o options) *scene {
	t.Helper()
	l := theLab
	if l.missing != "" {
		t.Skip("NOT TESTED: " + l.missing)
	}
	if o.pg == (instance.Installation{}) {
		o.pg = l.main
	}
	if o.segmentSize == 0 {
		o.segmentSize = 1
	}
	binary, err := l.binary()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(l.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s := &scene{t: t, dir: dir, binary: binary,
		home: filepath.Join(dir, "home"), archive: filepath.Join(dir, "archive"),
		spool: filepath.Join(dir, "spool"), base: filepath.Join(dir, "base"),
		size: segment.Size(o.segmentSize) << 20}
	for _, d := range []string{s.home, s.archive, s.spool} {
		if err := l.account.MkdirAll(d); err != nil {
			t.Fatal(err)
		}
	}
	s.pg = s.create("pg", o)
	if err := instance.CopyDataDir(s.base, s.pg.DataDir()); err != nil {
		t.Fatal(err)
	}
	s.startServer()
	return s
}

// create makes a cluster in the scene's directory and does not start it.
func (s *scene) create(name string, o options) *instance.Server {
	s.t.Helper()
	settings := map[string]string{"fsync": "off", "wal_keep_size": "4GB", "max_wal_size": "4GB", "autovacuum": "off"}
	maps.Copy(settings, o.settings)
	pg, err := instance.Create(s.ctx(), instance.Options{
		Installation: o.pg, Dir: filepath.Join(s.dir, name), Account: &theLab.account,
		InitArgs: append([]string{"--wal-segsize=" + strconv.Itoa(o.segmentSize)}, o.initArgs...),
		Settings: settings, Listen: o.listen, HBA: o.hba,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.removeAtEnd(pg)
	return pg
}

func (s *scene) removeAtEnd(pg *instance.Server) {
	s.t.Cleanup(func() {
		if text, err := pg.Log(); s.t.Failed() && !errors.Is(err, fs.ErrNotExist) {
			s.t.Logf("the server in %s printed (%v):\n%s", pg.DataDir(), err, text)
		}
		if err := pg.Remove(context.WithoutCancel(s.t.Context())); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *scene) startServer() {
	s.t.Helper()
	if err := s.pg.Start(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	s.t.Cleanup(cancel)
	return ctx
}

// env is the environment of the scene's children.
func (s *scene) env() []string { return []string{"HOME=" + s.home} }

// store is the URL of the scene's directory archive.
func (s *scene) store() string { return "file://" + s.archive }

// walferry starts the binary.
func (s *scene) walferry(args ...string) *process {
	s.t.Helper()
	return start(s.t, s.env(), s.binary, args...)
}

// receive starts a receiver with the scene's cluster, slot, spool and store;
// more flags come behind, so that they win.
func (s *scene) receive(more ...string) *process {
	s.t.Helper()
	return s.walferry(s.receiveArgs(more...)...)
}

func (s *scene) receiveArgs(more ...string) []string {
	args := []string{"receive", "-d", s.pg.DSN("postgres"), "--slot", "ferry", "--spool", s.spool, "--store", s.store()}
	for _, m := range more {
		// A flag given twice may be refused: the test's own replaces ours.
		for i, a := range args {
			if a == m && strings.HasPrefix(a, "-") {
				args = slices.Delete(args, i, i+2)
				break
			}
		}
	}
	return append(args, more...)
}

// fetch runs "walferry fetch" to its end.
func (s *scene) fetch(args ...string) *process {
	s.t.Helper()
	p := s.walferry(append([]string{"fetch"}, args...)...)
	p.wait()
	return p
}

// sql runs statements on the cluster and returns the first value of the last.
func (s *scene) sql(statements string) string {
	s.t.Helper()
	v, err := query(s.ctx(), s.pg.DSN("postgres"), statements)
	if err != nil {
		s.t.Fatalf("%s: %v", statements, err)
	}
	return v
}

func query(ctx context.Context, dsn, statements string) (string, error) {
	c, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	results, err := c.Exec(ctx, statements).ReadAll()
	if err := errors.Join(err, c.Close(ctx)); err != nil {
		return "", err
	}
	if n := len(results); n > 0 && len(results[n-1].Rows) > 0 {
		return string(results[n-1].Rows[0][0]), nil
	}
	return "", nil
}

// table makes the table that fill writes.
func (s *scene) table() {
	s.t.Helper()
	s.sql("CREATE TABLE rows (id bigserial PRIMARY KEY, v text)")
}

// fill commits n rows with about 1 kB of WAL each, in one transaction.
func (s *scene) fill(n int) {
	s.t.Helper()
	s.sql(fmt.Sprintf("INSERT INTO rows (v) SELECT string_agg(md5(random()::text), '') FROM generate_series(1, %d) g, generate_series(1, 32) GROUP BY g", n))
}

// switchWAL ends the segment that is being written and returns its name.
func (s *scene) switchWAL() segment.Name {
	s.t.Helper()
	// The function does nothing at a segment's start: write a record first.
	n, err := segment.ParseName(s.sql("SELECT txid_current(); SELECT pg_walfile_name(pg_switch_wal())"))
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// sealed lists the whole segments in the archive, with their extensions.
func (s *scene) sealed() map[segment.Name]string {
	s.t.Helper()
	m := make(map[segment.Name]string)
	entries, err := os.ReadDir(filepath.Join(s.archive, "wal_005"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		base, ext, _ := strings.Cut(e.Name(), ".")
		n, err := segment.ParseName(base)
		if err != nil || strings.Contains(ext, ".") || ext == "partial" {
			continue
		}
		if _, twice := m[n]; twice {
			s.t.Errorf("segment %s is in the archive in two forms", n)
		}
		m[n] = ext
	}
	return m
}

// awaitSealed waits until the archive holds the segments from first to last.
// (Several are uploaded at a time: the last may be there before others.)
func (s *scene) awaitSealed(first, last segment.Name) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("segments %s to %s to be in the archive", first, last), func() bool {
		sealed := s.sealed()
		for n := first; n.Compare(last) <= 0; n = n.Next(s.size) {
			if _, ok := sealed[n]; !ok {
				return false
			}
		}
		return true
	})
}

// checkArchive compares every segment from first to last, of which none may
// be missing, with the server's own file, and refuses others.
func (s *scene) checkArchive(first, last segment.Name) {
	s.t.Helper()
	sealed := s.sealed()
	n := 0
	for seg := first; seg.Compare(last) <= 0; seg = seg.Next(s.size) {
		ext, ok := sealed[seg]
		if !ok {
			s.t.Errorf("segment %s is missing in the archive: a gap", seg)
			continue
		}
		path := filepath.Join(s.archive, "wal_005", seg.String())
		if ext != "" {
			path += "." + ext
		}
		got, err := decode(path)
		if err != nil {
			s.t.Errorf("segment %s: %v", seg, err)
			continue
		}
		s.compareWithServer(seg, got)
		n++
	}
	for seg := range sealed {
		if seg.Compare(first) < 0 {
			s.t.Errorf("segment %s is in the archive, before the first one", seg)
		}
	}
	s.t.Logf("%d segments, from %s to %s, are the server's own bytes", n, first, last)
}

func (s *scene) compareWithServer(seg segment.Name, got []byte) {
	s.t.Helper()
	want, err := os.ReadFile(filepath.Join(s.pg.DataDir(), "pg_wal", seg.String()))
	if err != nil {
		s.t.Errorf("segment %s: %v", seg, err)
		return
	}
	if !bytes.Equal(got, want) {
		at := 0
		for at < len(got) && at < len(want) && got[at] == want[at] {
			at++
		}
		s.t.Errorf("segment %s: %d bytes, want %d; the first difference is at %s", seg, len(got), len(want), seg.Start(s.size)+segment.LSN(at))
	}
}

// decode reads an object of the archive with the libraries alone, by nothing
// of ours.
func decode(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decodeBytes(filepath.Ext(path), raw)
}

func decodeBytes(ext string, raw []byte) ([]byte, error) {
	switch ext {
	case ".lz4":
		return io.ReadAll(lz4.NewReader(bytes.NewReader(raw)))
	case ".zst":
		d, err := zstd.NewReader(nil)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.DecodeAll(raw, nil)
	default:
		return raw, nil
	}
}

// tree lists every file below dir with its size, to see whether anything
// changed there.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			files = append(files, fmt.Sprintf("%s %d %s", p, info.Size(), info.ModTime()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// whole is the tree of an archive without its tail objects, and without what is
// just being written: what a receiver holds goes up at its start, whatever the
// server then says.
func whole(t *testing.T, archive string) []string {
	t.Helper()
	return slices.DeleteFunc(tree(t, archive), func(file string) bool {
		return strings.Contains(file, "/wal_tail_005/") || strings.Contains(file, "/walferry_005/tmp/")
	})
}

// slotSegment is the segment of the slot's restart_lsn, once the slot exists.
func (s *scene) slotSegment() segment.Name {
	s.t.Helper()
	var v string
	eventually(s.t, "the slot to exist and to reserve WAL", func() bool {
		v = s.sql("SELECT coalesce((SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'ferry'), '')")
		return v != ""
	})
	lsn, err := segment.ParseLSN(v)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.size.Name(1, lsn)
}

// recovery makes a second server out of the cold copy, not started, in
// archive recovery (signal "recovery.signal" or "standby.signal").
func (s *scene) recovery(name, signal, restoreCommand string) *instance.Server {
	s.t.Helper()
	return s.recoveryWith(name, signal, restoreCommand, s.env())
}

// recoveryWith is recovery with other variables for the restore_command.
func (s *scene) recoveryWith(name, signal, restoreCommand string, env []string) *instance.Server {
	s.t.Helper()
	pg, err := instance.Adopt(s.ctx(), instance.Options{
		Installation: s.pg.Installation(), Dir: filepath.Join(s.dir, name), Account: &theLab.account,
		Settings: map[string]string{
			"fsync": "off", "restore_command": restoreCommand, "wal_retrieve_retry_interval": "100ms",
			"hot_standby": "on", "recovery_target_timeline": "latest",
		},
		Env: env,
	}, func(dir string) error {
		if err := instance.CopyDataDir(dir, s.base); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, signal), nil, 0o600)
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.removeAtEnd(pg)
	return pg
}

// rows counts the rows of a server; -1 while it cannot be asked.
func rows(ctx context.Context, pg *instance.Server) int {
	v, err := query(ctx, pg.DSN("postgres"), "SELECT count(*) FROM rows")
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return -1
	}
	return n
}
