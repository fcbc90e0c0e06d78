package integration

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"

	"github.com/walferry/walferry/restore/instance"
)

// walgArchive was written by WAL-G itself from a PostgreSQL 15: base backup and
// WAL. It is too large for this repository and lies beside a checkout.
const walgArchive = "../../shared/fixtures/walg-archive"

// A recovery from an archive that WAL-G wrote, which knows nothing of us.
func TestRecoverWALGArchive(t *testing.T) {
	if _, err := os.Stat(walgArchive); err != nil {
		t.Skipf("NOT TESTED: there is no archive of WAL-G's here: %v", err)
	}
	t.Parallel()
	s := newScene(t, options{})
	if s.pg.Installation().Major != 15 {
		t.Skip("NOT TESTED: WAL-G's archive is of PostgreSQL 15, which is not here")
	}
	if err := os.Remove(s.archive); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.archive, os.DirFS(walgArchive)); err != nil {
		t.Fatal(err)
	}
	if err := theLab.account.Own(s.archive); err != nil {
		t.Fatal(err)
	}
	tablespace := filepath.Join(s.dir, "tablespace")
	if err := theLab.account.MkdirAll(tablespace); err != nil {
		t.Fatal(err)
	}
	pg, err := instance.Adopt(s.ctx(), instance.Options{
		Installation: s.pg.Installation(), Dir: filepath.Join(s.dir, "recovered"), Account: &theLab.account,
		Settings: map[string]string{"fsync": "off", "restore_command": s.goodCommand()},
		Env:      s.env(),
	}, func(dir string) error {
		return unpackWALG(dir, tablespace, filepath.Join(s.archive, "basebackups_005", "base_000000010000000000000002", "tar_partitions"))
	})
	if err != nil {
		t.Fatal(err)
	}
	s.removeAtEnd(pg)
	if err := theLab.account.Own(tablespace); err != nil {
		t.Fatal(err)
	}
	before := tree(t, s.archive)
	if err := pg.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := pg.AwaitPrimary(s.ctx()); err != nil {
		t.Fatal(err)
	}
	for sql, want := range map[string]string{
		"SELECT string_agg(id::text, ',' ORDER BY id) FROM marks": "1,2,3",
		"SELECT count(*) FROM in_ts":                              "1000",
	} {
		if got, err := query(s.ctx(), pg.DSN("postgres"), sql); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %s", sql, got, err, want)
		}
	}
	if after := tree(t, s.archive); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Error("fetch has changed the archive")
	}
}

// "restore" does the same with a command: a base backup of WAL-G's, its tablespace
// where it is told to be, to the end of WAL-G's archive. A part that is missing
// or damaged is an error.
func TestRestoreWALGArchive(t *testing.T) {
	if _, err := os.Stat(walgArchive); err != nil {
		t.Skipf("NOT TESTED: there is no archive of WAL-G's here: %v", err)
	}
	t.Parallel()
	s := newScene(t, options{})
	if s.pg.Installation().Major != 15 {
		t.Skip("NOT TESTED: WAL-G's archive is of PostgreSQL 15, which is not here")
	}
	if err := os.Remove(s.archive); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.archive, os.DirFS(walgArchive)); err != nil {
		t.Fatal(err)
	}
	if err := theLab.account.Own(s.archive); err != nil {
		t.Fatal(err)
	}
	const name, place = "base_000000010000000000000002", "/srv/pg/tablespace1"
	o := s.operator()
	before := tree(t, s.archive)
	b := o.show("LATEST")
	if b.Name != name || b.By != "wal-g" || b.Tablespaces["16384"] != place || b.WALComplete == nil || !*b.WALComplete || *b.System != "7710929516611631544" {
		t.Errorf("the backup is said to be %+v", b)
	}
	moved := filepath.Join(s.home, "moved")
	pg := o.restored("restored", "--tablespace-mapping", place+"="+moved)
	o.recovers(pg)
	for _, ask := range [][2]string{ // in this order: one of them writes
		{"SELECT string_agg(id::text, ',' ORDER BY id) FROM marks", "1,2,3"},
		{"SELECT count(*) FROM in_ts", "1000"},
		{"SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE oid = 16384", moved},
		{"SELECT count(*) FROM pg_ls_dir('.') AS name WHERE name LIKE '%.tar%'", "0"},
		{"INSERT INTO in_ts SELECT * FROM in_ts; SELECT count(*) > 1000 FROM in_ts", "t"},
		{"SELECT setting FROM pg_settings WHERE name = 'synchronous_standby_names'", ""},
		{"SELECT system_identifier FROM pg_control_system()", "7710929516611631544"},
	} {
		if got := o.asked(pg, ask[0]); got != ask[1] {
			t.Errorf("%s is %q, want %q", ask[0], got, ask[1])
		}
	}
	o.amcheck(pg)
	if after := tree(t, s.archive); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Error("the archive was changed")
	}

	parts := filepath.Join(s.archive, "basebackups_005", name, "tar_partitions")
	for _, part := range everything(t, parts) {
		path := filepath.Join(parts, part)
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for how, content := range map[string][]byte{"missing": nil, "empty": {}, "cut": sound[:len(sound)*2/3]} {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if content != nil {
				err = os.WriteFile(path, content, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(s.home, "new")
			o.restore(dir, "--tablespace-mapping", place+"="+dir+".tablespace").failed(1, "")
			absent(t, filepath.Join(dir, "global", "pg_control"))
			if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(dir+".tablespace"), os.WriteFile(path, sound, 0o644)); err != nil {
				t.Fatal(err)
			}
			if t.Failed() {
				t.Fatalf("%s %s", part, how)
			}
		}
	}
}

// unpackWALG unpacks the parts of a backup with one tablespace.
func unpackWALG(dir, tablespace, parts string) error {
	const oid = "16384"
	if err := os.MkdirAll(filepath.Join(dir, "pg_tblspc"), 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	if err := os.Symlink(tablespace, filepath.Join(dir, "pg_tblspc", oid)); err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(parts, "*.tar.lz4"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := untar(dir, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	// Or the server would make the link to the original's place again.
	if err := os.WriteFile(filepath.Join(dir, "tablespace_map"), []byte(oid+" "+tablespace+"\n"), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "recovery.signal"), nil, 0o600)
}

func untar(dir, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	r := tar.NewReader(lz4.NewReader(f))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return f.Close()
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
		path := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o700)
		case tar.TypeReg:
			err = writeFrom(path, r)
		default:
			err = fmt.Errorf("%s: unexpected type %c", h.Name, h.Typeflag)
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
	}
}

func writeFrom(path string, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
