package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/walferry/walferry/segment"
)

// debian is Debian's way of having clusters: their settings in /etc, and
// pg_ctlcluster, which starts a server with an environment of its own.
type debian struct {
	t       *testing.T
	version string
}

// cluster is one of them. It is dropped when the test ends.
type cluster struct {
	*debian
	name, data string
	port       int
}

// newDebian skips the test where there is no such thing.
func newDebian(t *testing.T) *debian {
	t.Helper()
	i := theLabs(t)
	m := regexp.MustCompile(`^/usr/lib/postgresql/(\d+)/bin$`).FindStringSubmatch(i.Bin)
	if m == nil || os.Geteuid() != 0 || theLab.account.Name != "postgres" {
		t.Skipf("NOT TESTED: clusters as Debian has them need root, the user postgres and Debian's own PostgreSQL; here it is %s, as %s", i, theLab.account.Name)
	}
	for _, program := range []string{"pg_createcluster", "pg_ctlcluster", "pg_dropcluster"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("NOT TESTED: this is no Debian with postgresql-common: %v", err)
		}
	}
	return &debian{t, m[1]}
}

// must runs one of Debian's programs as root, with nothing of the tests'
// environment.
func (d *debian) must(program string, args ...string) {
	d.t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(d.t.Context()), program, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

// create makes a cluster, which is not started.
func (d *debian) create(name, data string) *cluster {
	d.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatal(err)
	}
	c := &cluster{d, fmt.Sprint("walferry_", name, "_", os.Getpid()), data, l.Addr().(*net.TCPAddr).Port}
	if err := l.Close(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		// Also what a creation that failed has left.
		if _, err := os.Stat(c.etc("")); errors.Is(err, fs.ErrNotExist) {
			return
		}
		d.must("pg_dropcluster", "--stop", d.version, c.name)
	})
	d.must("pg_createcluster", "--port", strconv.Itoa(c.port), "--datadir", data, "--start-conf", "manual", "--locale", "C", d.version, c.name, "--", "--wal-segsize=1")
	return c
}

func (c *cluster) etc(file string) string {
	return filepath.Join("/etc/postgresql", c.version, c.name, file)
}

func (c *cluster) start() { c.t.Helper(); c.must("pg_ctlcluster", c.version, c.name, "start") }

// vars lead to it, as the user postgres.
func (c *cluster) vars() []string {
	return []string{"PGHOST=/var/run/postgresql", fmt.Sprint("PGPORT=", c.port), "PGUSER=postgres"}
}

// ask asks the server. It lets the user postgres in and nobody else, so that
// the question is psql's.
func (c *cluster) ask(sql string) (string, error) {
	cmd := theLab.account.Command(context.WithoutCancel(c.t.Context()), "psql", "--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "--command="+sql)
	cmd.Env = append(cmd.Env, append(c.vars(), "PGDATABASE=postgres")...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1], nil
}

func (c *cluster) sql(sql string) string {
	c.t.Helper()
	v, err := c.ask(sql)
	if err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// keysOf puts the keys into ~/.aws/credentials of the user postgres until the
// function that it returns is called; what was there before comes back.
func keysOf(t *testing.T, content string) (undo func()) {
	t.Helper()
	dir := filepath.Join(theLab.account.Home, ".aws")
	aside := dir + ".before-the-tests"
	had := false
	if _, err := os.Lstat(dir); err == nil {
		had = true
		if err := os.Rename(dir, aside); err != nil {
			t.Fatal(err)
		}
	}
	done := false
	undo = func() {
		t.Helper()
		if done {
			return
		}
		done = true
		err := os.RemoveAll(dir)
		if had {
			err = errors.Join(err, os.Rename(aside, dir))
		}
		if err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(undo)
	file := filepath.Join(dir, "credentials")
	if err := errors.Join(theLab.account.MkdirAll(dir), os.WriteFile(file, []byte(content), 0o600), theLab.account.Own(file)); err != nil {
		t.Fatal(err)
	}
	return undo
}

// A cluster as Debian makes it is backed up, and restored as root and as the
// user postgres; pg_ctlcluster, which gives a server no environment, starts it in
// another cluster. The keys are in the home directory of the user postgres.
func TestDebianCluster(t *testing.T) {
	d := newDebian(t) // not parallel: others look into that home directory, too
	s := newBucketScene(t, options{})
	original := d.create("original", filepath.Join(s.dir, "original"))
	original.start()
	undo := keysOf(t, fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s.user.AccessKey, s.user.SecretKey))
	vars := append(original.vars(), "HOME="+theLab.account.Home)
	r := s.ferry(vars, "receive")
	eventually(t, "the receiver to stream", func() bool {
		return original.sql("SELECT count(*) FROM pg_stat_replication") != "0"
	})
	original.sql("CREATE TABLE rows AS SELECT g AS id FROM generate_series(1, 1000) AS g")
	o := s.operator().with(vars...)
	name := o.backup()
	original.sql("INSERT INTO rows SELECT generate_series(1001, 1500)")
	lsn := original.sql("SELECT pg_current_wal_flush_lsn()")
	eventually(t, "the WAL in the archive", func() bool {
		b := o.show(name)
		return b.RestorableTo != nil && b.RestorableTo.LSN.LSN >= parseLSN(t, lsn)
	})
	r.stop()
	keys := s.user.Env()
	for _, c := range []struct {
		name   string
		asRoot bool
		vars   []string
	}{
		{"postgres", false, nil},
		{"root", true, append([]string{"HOME=/root"}, keys...)},
	} {
		parent := filepath.Join(s.dir, "as-"+c.name)
		if err := theLab.account.MkdirAll(parent); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(parent, "restored")
		args := []string{"restore", "-D", dir, "--backup", name}
		var p *process
		if c.asRoot {
			if err := os.Chown(parent, 0, 0); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(parent, 0o755); err != nil {
				t.Fatal(err)
			}
			p = runAsRoot(t, o.with(c.vars...).vars, o.binary, args...)
		} else {
			p = o.walferry(args...)
		}
		p.exits(0)
		// There is no postgresql.conf in it.
		if !strings.Contains(p.log(), "data_directory") || !strings.Contains(p.log(), "pg_ctlcluster "+d.version) {
			t.Errorf("as %s it does not say how to start it:\n%s", c.name, p.log())
		}
		if strings.Contains(p.log(), s.user.SecretKey) {
			t.Errorf("as %s the secret is in what it says", c.name)
		}
		if strings.Contains(p.log(), "without your environment") {
			t.Errorf("as %s it warns that a service cannot reach the archive, which one can:\n%s", c.name, p.log())
		}
		s.ownedBy(dir, dir+".walferry.yaml")
		content, err := os.ReadFile(dir + ".walferry.yaml")
		if err != nil || strings.Contains(string(content), s.user.SecretKey) {
			t.Errorf("as %s the file of the settings is (%v)\n%s", c.name, err, content)
		}
		other := d.create("as_"+c.name, filepath.Join(parent, "other"))
		conf, err := os.ReadFile(other.etc("postgresql.conf"))
		if err != nil {
			t.Fatal(err)
		}
		changed := replaceAll(t, string(conf), "'"+other.data+"'", "'"+dir+"'")
		if err := os.WriteFile(other.etc("postgresql.conf"), []byte(changed), 0o644); err != nil {
			t.Fatal(err)
		}
		other.start()
		eventually(t, "the end of the recovery as "+c.name, func() bool {
			v, err := other.ask("SELECT pg_is_in_recovery()")
			return err == nil && v == "f"
		})
		if v := other.sql("SELECT count(*) || ' ' || max(id) FROM rows"); v != "1500 1500" {
			t.Errorf("as %s the rows and the last of them are %s, want 1500", c.name, v)
		}
		if v := other.sql("SHOW data_directory"); v != dir {
			t.Errorf("the server works in %s", v)
		}
		d.must("pg_ctlcluster", d.version, other.name, "stop", "-m", "immediate")
		// So that what is dropped is the cluster's own directory.
		if err := os.WriteFile(other.etc("postgresql.conf"), conf, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	// What root restores belongs to whom the directory belonged before.
	given := filepath.Join(s.dir, "as-root", "given")
	if err := theLab.account.MkdirAll(given); err != nil {
		t.Fatal(err)
	}
	runAsRoot(t, o.with(append([]string{"HOME=/root"}, keys...)...).vars, o.binary, "restore", "-D", given, "--backup", name).exits(0)
	s.ownedBy(given, given+".walferry.yaml")

	// Without keys in that place root is warned.
	undo()
	dir := filepath.Join(s.dir, "as-root", "warned")
	p := runAsRoot(t, o.with(append([]string{"HOME=/root"}, keys...)...).vars, o.binary, "restore", "-D", dir, "--backup", name)
	p.exits(0)
	if !strings.Contains(p.log(), "without your environment") || !strings.Contains(p.log(), filepath.Join(theLab.account.Home, ".aws", "credentials")) {
		t.Errorf("it does not warn that a service cannot reach the archive:\n%s", p.log())
	}
}

// ownedBy wants everything to belong to the account, and to nobody else.
func (s *scene) ownedBy(paths ...string) {
	t := s.t
	t.Helper()
	mine := filepath.Join(s.dir, "mine")
	if err := theLab.account.MkdirAll(mine); err != nil {
		t.Fatal(err)
	}
	want := owner(t, mine)
	for _, path := range paths {
		err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err == nil && (owner(t, p) != want || info.Mode().Perm()&0o077 != 0) {
				t.Errorf("%s belongs to %d and has mode %s", p, owner(t, p), info.Mode())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// owner is who a path belongs to.
func owner(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

func parseLSN(t *testing.T, text string) segment.LSN {
	t.Helper()
	lsn, err := segment.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}
