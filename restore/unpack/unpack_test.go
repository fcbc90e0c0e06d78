package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
)

// want is what newBackup must become.
func want(b *backup, one, two string) map[string]string {
	all := map[string]string{
		".": "dir 700", "base": "dir 700", "base/1": "dir 700", "global": "dir 700", "pg_replslot": "dir 700", "pg_tblspc": "dir 700",
		"pg_wal": "dir 700", "pg_wal/archive_status": "dir 700",
		"pg_tblspc/16384": "link " + one, "pg_tblspc/16385": "link " + two,
	}
	for name, content := range b.files() {
		if !strings.HasPrefix(name, "pg_tblspc/") {
			all[name] = content
		}
	}
	for _, i := range b.parts["part_wal.tar"] {
		all[i.name] = i.content
	}
	all["backup_manifest"] = string(manifestOf(b.manifest))
	return all
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	b := newBackup(t, dir)
	name, src := b.build()
	data := filepath.Join(dir, "not", "there", "data")
	var last Progress
	finished := false
	o := Options{Dir: data, Progress: func(p Progress) {
		if p.Phase == last.Phase && p.Done < last.Done || p.Phase != last.Phase && last.Done != last.Total || p.Done > p.Total {
			t.Errorf("progress %+v after %+v", p, last)
		}
		last = p
	}, Finish: func(context.Context) error {
		finished = true
		if exists(filepath.Join(data, "global/pg_control")) || !exists(filepath.Join(data, "base/1/112")) {
			t.Error("Finish was called too late, or too early")
		}
		return nil
	}}
	if err := Unpack(t.Context(), src, name, o); err != nil {
		t.Fatal(err)
	}
	if !finished || last.Phase != "syncing" || last.Done != last.Total || last.Total == 0 {
		t.Errorf("finished %t, %+v", finished, last)
	}
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	sameTree(t, data, want(b, one, two))
	sameTree(t, one, map[string]string{".": "dir 700", "PG_15": "dir 700", "PG_15/5": "dir 700", "PG_15/5/1": content(4, 8192)})
	sameTree(t, two, map[string]string{".": "dir 700", "PG_15": "dir 700", "PG_15/5": "dir 700", "PG_15/5/2": content(5, 16384)})
	for file, mode := range map[string]fs.FileMode{"base/1/112": 0o600, "base/1/caf\xe9": 0o640, "backup_manifest": 0o600, "global/pg_control": 0o600} {
		if info, err := os.Lstat(filepath.Join(data, file)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", file, info.Mode(), err, mode)
		}
	}
}

// TestOwner: all of it belongs to whom it was given.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: only root can give files away")
	}
	dir := t.TempDir()
	b, src := newBackup(t, dir).build()
	if err := Unpack(t.Context(), src, b, Options{Dir: filepath.Join(dir, "above", "data"), Owner: &Owner{UID: 65534, GID: 65533}}); err != nil {
		t.Fatal(err)
	}
	for _, top := range []string{"above/data", "one", "two"} {
		err := filepath.Walk(filepath.Join(dir, top), func(path string, info fs.FileInfo, err error) error {
			if err != nil {
				return err
			}
			if s := info.Sys().(*syscall.Stat_t); s.Uid != 65534 || s.Gid != 65533 {
				t.Errorf("%s belongs to %d:%d", path, s.Uid, s.Gid)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// Its new parent is ours, and open to pass through.
	info, err := os.Stat(filepath.Join(dir, "above"))
	if err != nil || info.Mode().Perm() != 0o755 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// A cluster whose group may read keeps that.
func TestGroupAccess(t *testing.T) {
	dir := t.TempDir()
	b := newBackup(t, dir)
	b.edit("part_000.tar.lz4", "/", func(i *item) { i.mode = 0o777 })
	b.edit("part_001.tar.lz4", "base/", func(i *item) { i.mode = 0o750 })
	name, src := b.build()
	data := filepath.Join(dir, "data")
	if err := Unpack(t.Context(), src, name, Options{Dir: data}); err != nil {
		t.Fatal(err)
	}
	tree := readTree(t, data)
	if tree["."] != "dir 750" || tree["base"] != "dir 750" || tree["base/1"] != "dir 700" {
		t.Errorf("%s, %s, %s", tree["."], tree["base"], tree["base/1"])
	}
}

// An empty directory is as good as none, and a mapping moves a tablespace and
// its line in tablespace_map.
func TestMapping(t *testing.T) {
	dir := t.TempDir()
	b := newBackup(t, dir)
	name, src := b.build()
	data, moved := filepath.Join(dir, "data"), filepath.Join(dir, "moved")
	for _, d := range []string{data, moved} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	if err := Unpack(t.Context(), src, name, Options{Dir: data, Mapping: map[string]string{one + "/": moved + "/"}}); err != nil {
		t.Fatal(err)
	}
	all := want(b, moved, two)
	all["tablespace_map"] = "16384 " + moved + "\n16385 " + two + "\n"
	sameTree(t, data, all)
	sameTree(t, moved, map[string]string{".": "dir 700", "PG_15": "dir 700", "PG_15/5": "dir 700", "PG_15/5/1": content(4, 8192)})
	if exists(one) {
		t.Error("the old place was made, too")
	}
}

// A tablespace that is a directory of pg_tblspc itself.
func TestInPlaceTablespace(t *testing.T) {
	dir := t.TempDir()
	b := newBackup(t, dir)
	b.spec[16385] = "pg_tblspc/16385"
	b.edit("part_001.tar.lz4", "tablespace_map", func(i *item) { i.content = "16384 " + filepath.Join(dir, "one") + "\n" })
	name, src := b.build()
	data := filepath.Join(dir, "data")
	if err := Unpack(t.Context(), src, name, Options{Dir: data}); err != nil {
		t.Fatal(err)
	}
	if got := readTree(t, data)["pg_tblspc/16385/PG_15/5/2"]; got != content(5, 16384) {
		t.Errorf("%.20q", got)
	}
}

// damages are backups that must not be restored, and why.
var damages = []struct {
	name   string
	change func(*backup)
	want   string
}{
	{"a part is missing", func(b *backup) {
		b.stored = func(o map[string][]byte) { delete(o, "tar_partitions/part_002.tar.lz4") }
	}, "tar_partitions/part_002.tar.lz4 is missing"},
	{"a part is shorter", func(b *backup) {
		b.stored = func(o map[string][]byte) { cut(o, "tar_partitions/part_001.tar.lz4", 1) }
	}, "bytes instead of"},
	{"a part is shorter, and walferry.json says so", func(b *backup) {
		b.facts = func(f *archive.BackupFacts) { f.Parts[1].Size-- }
		b.stored = func(o map[string][]byte) { cut(o, "tar_partitions/part_001.tar.lz4", 1) }
	}, "damaged object"},
	{"a plain part is cut", func(b *backup) {
		b.facts = func(f *archive.BackupFacts) { f.Parts[4].Size -= 5000 }
		b.stored = func(o map[string][]byte) { cut(o, "tar_partitions/part_wal.tar", 5000) }
	}, "unexpected EOF"},
	{"a part is empty", func(b *backup) {
		b.facts = func(f *archive.BackupFacts) { f.Parts[0].Size = 0 }
		b.stored = func(o map[string][]byte) { o["tar_partitions/part_000.tar.lz4"] = nil }
	}, "is empty"},
	{"a bit of a part", func(b *backup) {
		b.stored = func(o map[string][]byte) { flip(o, "tar_partitions/part_003.tar.zst", -5) }
	}, "part_003"},
	{"a bit of a plain part", func(b *backup) {
		b.stored = func(o map[string][]byte) { flip(o, "tar_partitions/part_wal.tar", 5000) }
	}, "CRC32C"},
	{"another part than the one that was stored", func(b *backup) {
		b.facts = func(f *archive.BackupFacts) { f.Parts[0].CRC32C++ }
	}, "part_000.tar.lz4 has CRC32C"},
	{"no manifest", func(b *backup) {
		b.stored = func(o map[string][]byte) { delete(o, "backup_manifest") }
	}, "backup_manifest is missing"},
	{"a bit of the manifest", func(b *backup) {
		b.stored = func(o map[string][]byte) { flip(o, "backup_manifest", 200) }
	}, "backup_manifest"},
	{"another manifest", func(b *backup) {
		b.facts = func(f *archive.BackupFacts) { f.Manifest.CRC32C++ }
	}, "backup_manifest has CRC32C"},
	{"a file has other bytes", func(b *backup) {
		b.manifest = b.files()
		b.manifest["base/1/112"] = content(77, 3*bufferSize+5)
	}, "base/1/112"},
	{"a file is shorter", func(b *backup) {
		b.manifest = b.files()
		b.manifest["base/1/112"] += "x"
	}, "base/1/112 has 786437 bytes, and 786438 by its manifest"},
	{"a file is missing", func(b *backup) {
		b.manifest = b.files()
		b.manifest["base/1/114"] = ""
	}, "its parts lack base/1/114"},
	{"many files are missing", func(b *backup) {
		b.manifest = b.files()
		for i := range 9 {
			b.manifest[fmt.Sprintf("base/1/20%d", i)] = ""
		}
	}, "lack base/1/200, base/1/201, base/1/202 and 6 more"},
	{"a file too many", func(b *backup) {
		b.manifest = b.files()
		delete(b.manifest, "base/1/113")
	}, "base/1/113 is in it, but not in its manifest"},
	{"the manifest lists no pg_control", func(b *backup) {
		b.manifest = b.files()
		delete(b.manifest, "global/pg_control")
	}, "lists no global/pg_control"},
	{"the manifest lists no backup_label", func(b *backup) {
		b.manifest = b.files()
		delete(b.manifest, "backup_label")
	}, "lists no backup_label"},
	{"a file twice", func(b *backup) {
		b.add("part_002.tar.lz4", item{name: "base/1/113"})
	}, "base/1/113 is in it twice"},
	{"WAL twice", func(b *backup) {
		b.add("part_002.tar.lz4", item{name: "pg_wal/000000010000000000000002"})
	}, "is in it twice"},
	{"pg_control twice", func(b *backup) {
		b.add("part_002.tar.lz4", item{name: "global/pg_control", content: content(3, 8192)})
	}, "global/pg_control is in it twice"},
	{"a manifest in a part", func(b *backup) {
		b.manifest = b.files()
		b.add("part_002.tar.lz4", item{name: "backup_manifest"})
	}, "backup_manifest is in it, but not in its manifest"},
	{"something else in pg_wal", func(b *backup) {
		b.add("part_wal.tar", item{name: "pg_wal/xlogtemp.1"})
	}, "pg_wal/xlogtemp.1 is in it"},
	{"something else in archive_status", func(b *backup) {
		b.add("part_wal.tar", item{name: "pg_wal/archive_status/000000010000000000000002.ready"})
	}, ".ready is in it"},
	{"an unknown tablespace", func(b *backup) {
		b.add("part_002.tar.lz4", item{name: "pg_tblspc/16400/PG_15/1/1"})
	}, "a tablespace that the backup does not describe"},
	{"an unknown tablespace's folder", func(b *backup) {
		b.add("part_002.tar.lz4", item{name: "pg_tblspc/16400/"})
	}, "a tablespace that the backup does not describe"},
	{"tablespace_map names another tablespace", func(b *backup) {
		b.edit("part_001.tar.lz4", "tablespace_map", func(i *item) { i.content += "16400 /srv/three\n" })
	}, "16400 /srv/three"},
	{"tablespace_map is none", func(b *backup) {
		b.edit("part_001.tar.lz4", "tablespace_map", func(i *item) { i.content = "nonsense" })
	}, "nonsense"},
	{"a tablespace is nowhere", func(b *backup) { b.spec[16385] = "somewhere" }, "which is no place"},
	{"an entry leads out", func(b *backup) { b.add("part_002.tar.lz4", item{name: "../evil", content: "x"}) }, "leads out of"},
	{"an entry leads out in the middle", func(b *backup) { b.add("part_002.tar.lz4", item{name: "base/../../evil", content: "x"}) }, "leads out of"},
	{"a directory leads out", func(b *backup) { b.add("part_002.tar.lz4", item{name: "../evil/"}) }, "leads out of"},
	{"an entry leads out of a tablespace", func(b *backup) { b.add("part_002.tar.lz4", item{name: "pg_tblspc/16384/../../../evil"}) }, "leads out of"},
	{"a symbolic link", func(b *backup) {
		b.add("part_002.tar.lz4", item{name: "base/2", kind: tar.TypeSymlink, link: "/"}, item{name: "base/2/evil", content: "x"})
	}, "neither a file nor a directory"},
	{"a hard link", func(b *backup) {
		b.add("part_002.tar.lz4", item{name: "base/2", kind: tar.TypeLink, link: "base/1/112"})
	}, "neither a file nor a directory"},
	{"a device", func(b *backup) { b.add("part_002.tar.lz4", item{name: "base/2", kind: tar.TypeBlock}) }, "neither a file nor a directory"},
	{"a pipe", func(b *backup) { b.add("part_002.tar.lz4", item{name: "base/2", kind: tar.TypeFifo}) }, "neither a file nor a directory"},
	{"something behind the end of a tar", func(b *backup) {
		b.facts = func(f *archive.BackupFacts) { f.Parts[4].Size += 512 }
		b.stored = func(o map[string][]byte) {
			o["tar_partitions/part_wal.tar"] = append(o["tar_partitions/part_wal.tar"], make([]byte, 512)...)
			flip(o, "tar_partitions/part_wal.tar", -1)
		}
	}, "bytes behind its end"},
	{"another cluster's manifest", func(b *backup) { b.system = system + 1 }, "its manifest is of the cluster"},
	{"an encoding that nobody knows", func(b *backup) {
		b.facts = func(f *archive.BackupFacts) { f.Parts[0].Name = "part_000.tar.age" }
		b.stored = func(o map[string][]byte) {
			o["tar_partitions/part_000.tar.age"] = o["tar_partitions/part_000.tar.lz4"]
		}
	}, `nothing here decodes ".age"`},
}

func cut(o map[string][]byte, name string, n int) { o[name] = o[name][:len(o[name])-n] }

func flip(o map[string][]byte, name string, at int) {
	if at < 0 {
		at += len(o[name])
	}
	b := []byte(string(o[name]))
	b[at] ^= 1
	o[name] = b
}

// TestDamaged: no damage is ever a success, and nothing of it is left.
func TestDamaged(t *testing.T) {
	t.Parallel() // most of it waits for the disk
	for _, c := range damages {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			b := newBackup(t, dir)
			c.change(b)
			name, src := b.build()
			err := Unpack(t.Context(), src, name, Options{Dir: filepath.Join(dir, "data")})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v; want %q", err, c.want)
			}
			if !errors.Is(err, ErrDamaged) && !strings.Contains(c.want, "decodes") {
				t.Errorf("%v is not ErrDamaged", err)
			}
			sameTree(t, dir, map[string]string{".": "dir 755"})
		})
	}
}

// TestManifest: what its own checksum cannot tell.
func TestManifest(t *testing.T) {
	sound := map[string]string{"global/pg_control": "", "backup_label": ""}
	for _, c := range []struct {
		path   string
		system uint64
		want   string
	}{
		{"base/1", 0, ""},
		{"base/1", system, ""},
		{"base/1", system + 1, "of the cluster"},
		{"../x", 0, "leads out of"},
		{"/etc/passwd", 0, "names the file"},
		{"base/", 0, "names the file"},
		{"./base", 0, "names the file"},
	} {
		files := maps.Clone(sound)
		files[c.path] = ""
		l, err := readManifest(bytes.NewReader(manifestFor(c.system, files)), system)
		if c.want == "" {
			if err != nil || len(l.files) != 3 {
				t.Errorf("%s, %d: %v", c.path, c.system, err)
			}
		} else if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %d: %v; want %q", c.path, c.system, err, c.want)
		}
	}
	twice := manifestFor(0, sound, "backup_label")
	if _, err := readManifest(bytes.NewReader(twice), system); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "lists backup_label twice") {
		t.Errorf("a file twice: %v", err)
	}
}

// TestRefused: what can be told beforehand changes nothing.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(dir string, b *archive.Backup, o *Options)
		want   string
		is     error
	}{
		{"a relative directory", func(_ string, _ *archive.Backup, o *Options) { o.Dir = "data" }, "not an absolute path", nil},
		{"a directory that holds something", func(dir string, _ *archive.Backup, o *Options) { o.Dir = filepath.Join(dir, "full") }, "full is not empty: it holds x", ErrNotEmpty},
		{"a directory below a file", func(dir string, _ *archive.Backup, o *Options) { o.Dir = filepath.Join(dir, "full", "x", "data") }, "not a directory", syscall.ENOTDIR},
		{"a tablespace's place that holds something", func(dir string, b *archive.Backup, _ *Options) {
			b.Sentinel.Spec.Locations[16385] = filepath.Join(dir, "full")
		}, "full is not empty", ErrNotEmpty},
		{"a mapping of nothing", func(dir string, _ *archive.Backup, o *Options) {
			o.Mapping = map[string]string{"/srv/three": "/srv/four"}
		}, "no tablespace there: it has", nil},
		{"a mapping of nothing at all", func(_ string, b *archive.Backup, o *Options) {
			b.Sentinel.Spec = nil
			o.Mapping = map[string]string{"/srv/three": "/srv/four"}
		}, "no tablespace there, and no other", nil},
		{"a mapping to a relative place", func(dir string, _ *archive.Backup, o *Options) {
			o.Mapping = map[string]string{filepath.Join(dir, "one"): "four"}
		}, "no absolute path", nil},
		{"a mapping that no path can be", func(dir string, _ *archive.Backup, o *Options) {
			o.Mapping = map[string]string{filepath.Join(dir, "one"): "/srv/a\x00b"}
		}, "no absolute path", nil},
		{"two tablespaces in one place", func(dir string, _ *archive.Backup, o *Options) {
			o.Mapping = map[string]string{filepath.Join(dir, "one"): filepath.Join(dir, "two")}
		}, "overlaps", nil},
		{"a tablespace in the data directory", func(dir string, _ *archive.Backup, o *Options) {
			o.Mapping = map[string]string{filepath.Join(dir, "one"): filepath.Join(dir, "data", "ts")}
		}, "overlaps", nil},
		{"the data directory in a tablespace", func(dir string, _ *archive.Backup, o *Options) {
			o.Mapping = map[string]string{filepath.Join(dir, "one"): dir}
		}, "overlaps", nil},
		{"a sentinel that is none", func(_ string, b *archive.Backup, _ *Options) { b.Err = archive.ErrSentinel }, "", archive.ErrSentinel},
		{"a walferry.json that is none", func(_ string, b *archive.Backup, _ *Options) { b.FactsErr = archive.ErrFacts }, "", archive.ErrFacts},
		{"a delta", func(_ string, b *archive.Backup, _ *Options) { b.Sentinel.DeltaFrom = walgName }, "delta backup of WAL-G's, to " + walgName, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "full"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "full", "x"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			b, src := newBackup(t, dir).build()
			o := Options{Dir: filepath.Join(dir, "data")}
			c.change(dir, &b, &o)
			err := Unpack(t.Context(), src, b, o)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v; want %q", err, c.want)
			}
			sameTree(t, dir, map[string]string{".": "dir 755", "full": "dir 700", "full/x": ""})
		})
	}
}

// Two names of one directory are one place.
func TestSamePlace(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	if err := os.Mkdir(one, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(one, two); err != nil {
		t.Fatal(err)
	}
	b, src := newBackup(t, dir).build()
	if err := Unpack(t.Context(), src, b, Options{Dir: filepath.Join(dir, "data")}); err == nil || !strings.Contains(err.Error(), "the same directory") {
		t.Error(err)
	}
	sameTree(t, dir, map[string]string{".": "dir 755", "one": "dir 700", "two": "link " + one})
}

// steps counts the changes of a restore, and makes them fail.
type steps struct {
	ops     []string // as they came
	failAt  int      // 1 is the first
	crash   bool     // what comes after it fails, too
	crashed bool
}

var errStep = errors.New("pulled the plug")

func (s *steps) step(op, name string) error {
	s.ops = append(s.ops, op+" "+name)
	if len(s.ops) == s.failAt || s.crashed {
		s.crashed = s.crash
		return fmt.Errorf("%s %s: %w", op, name, errStep)
	}
	return nil
}

// stepped is a restore whose steps are told one after another.
func stepped(t *testing.T, dir string, s *steps) error {
	k := newBackup(t, dir)
	delete(k.parts, "part_003.tar.zst")
	delete(k.parts, "part_wal.tar")
	delete(k.spec, 16385)
	k.edit("part_001.tar.lz4", "tablespace_map", func(i *item) { i.content = "16384 " + filepath.Join(dir, "one") + "\n" })
	b, src := k.build()
	var mu sync.Mutex
	return unpack(t.Context(), src, b, Options{
		Dir: filepath.Join(dir, "data"), Parallel: 1, Mapping: map[string]string{filepath.Join(dir, "one"): filepath.Join(dir, "moved")},
		Finish: func(context.Context) error { return s.step("finish", "") },
	}, seams{rangeSize: rangeSize, step: func(op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		return s.step(op, name)
	}})
}

// TestCrash interrupts a restore at each step. Without pg_control no server
// starts; with it everything is there.
func TestCrash(t *testing.T) {
	t.Parallel()
	all := &steps{}
	dir := t.TempDir()
	if err := stepped(t, dir, all); err != nil {
		t.Fatal(err)
	}
	whole := readTree(t, filepath.Join(dir, "data"))
	if len(all.ops) < 50 {
		t.Fatalf("%d steps", len(all.ops))
	}
	withControl := 0
	for n := 1; n <= len(all.ops); n++ {
		dir := t.TempDir()
		s := &steps{failAt: n, crash: true}
		if err := stepped(t, dir, s); !errors.Is(err, errStep) {
			t.Fatalf("step %d, %s: %v", n, all.ops[n-1], err)
		}
		data := filepath.Join(dir, "data")
		if !exists(filepath.Join(data, "global/pg_control")) {
			continue
		}
		withControl++
		if got := readTree(t, data); len(got) != len(whole) || got["base/1/112"] != whole["base/1/112"] {
			t.Errorf("step %d, %s: pg_control is there and %d of %d files are", n, all.ops[n-1], len(got), len(whole))
		}
	}
	// The one step behind the rename.
	if withControl != 1 {
		t.Errorf("after %d of %d steps there is a pg_control", withControl, len(all.ops))
	}
}

// TestFailure lets each step fail, and the next ones succeed: everything that
// was made is gone.
func TestFailure(t *testing.T) {
	t.Parallel()
	all := &steps{}
	if err := stepped(t, t.TempDir(), all); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= len(all.ops); n++ {
		dir := t.TempDir()
		if err := stepped(t, dir, &steps{failAt: n}); !errors.Is(err, errStep) {
			t.Fatalf("step %d, %s: %v", n, all.ops[n-1], err)
		}
		if got := readTree(t, dir); len(got) != 1 {
			t.Errorf("step %d, %s: left %v", n, all.ops[n-1], slices.Sorted(maps.Keys(got)))
		}
	}
}

// TestDurable: whatever was made or written is made durable before pg_control
// gets its name, and so is that name.
func TestDurable(t *testing.T) {
	s := &steps{}
	dir := t.TempDir()
	if err := stepped(t, dir, s); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	pending := map[string]bool{}
	finished, renamed := false, false
	for _, op := range s.ops {
		verb, name, _ := strings.Cut(op, " ")
		switch verb {
		case "mkdir", "create", "symlink":
			pending[filepath.Dir(name)] = true
			if verb != "symlink" {
				pending[name] = true
			}
		case "write", "chmod":
			pending[name] = true
		case "sync":
			delete(pending, name)
		case "finish":
			finished = true
			if len(pending) > 0 {
				t.Errorf("not durable at the end: %v", slices.Sorted(maps.Keys(pending)))
			}
		case "rename":
			renamed = true
			if !finished || name != filepath.Join(data, "global/pg_control") {
				t.Errorf("renamed %s, finished %t", name, finished)
			}
			pending[filepath.Dir(name)] = true
		default:
			t.Errorf("unknown step %q", op)
		}
	}
	if !renamed || len(pending) > 0 {
		t.Errorf("renamed %t, not durable: %v", renamed, slices.Sorted(maps.Keys(pending)))
	}
}

// TestDiskFull: the error says so, and where.
func TestDiskFull(t *testing.T) {
	for op, want := range map[string]string{"create": "making a file", "write": "writing", "mkdir": "making a directory"} {
		for errno, text := range map[syscall.Errno]string{syscall.ENOSPC: "the disk is full", syscall.EDQUOT: "the disk is full", syscall.EROFS: "the file system is read-only"} {
			s := spot{&place{dir: "/srv/data"}, "base/1/112"}
			err := describe(want, s, &fs.PathError{Op: op, Path: "112", Err: errno})
			if !errors.Is(err, errno) || !strings.HasPrefix(err.Error(), want+" /srv/data/base/1/112: "+text) {
				t.Errorf("%v", err)
			}
		}
	}
}

func TestWALG(t *testing.T) {
	restored := map[string]string{
		".": "dir 700", "base": "dir 700", "base/1": "dir 700", "global": "dir 700", "pg_wal": "dir 700", "pg_wal/archive_status": "dir 700",
		"base/1/112": content(1, 8192), "global/1262": content(2, 8192), "global/pg_control": content(3, 8192), "backup_label": "START WAL LOCATION: 0/2000028\n",
	}
	for _, c := range []struct {
		name   string
		change func(*walg)
		want   string // "" when it is restored
	}{
		{"as it is", func(*walg) {}, ""},
		{"without metadata", func(w *walg) { w.metadata = nil }, ""},
		{"a file that is not listed", func(w *walg) { delete(w.metadata, "/global/1262") }, "-"},
		{"other codecs", func(w *walg) {
			w.parts["part_003.tar"] = tarOf(t, item{name: "base/1/113", content: "x"})
			w.parts["part_004.tar.zst"] = compress(t, codec.Zstd, tarOf(t, item{name: "base/1/114", content: "x"}))
			w.metadata["base/1/113"], w.metadata["base/1/114"] = nil, nil
		}, "+"},
		{"no trailer", func(w *walg) {
			plain := tarOf(t, item{name: "/global/1262", content: content(2, 8192)})
			w.parts["part_002.tar.lz4"] = compress(t, codec.LZ4, plain[:len(plain)-1024])
		}, ""},
		{"a part is missing", func(w *walg) { delete(w.parts, "part_002.tar.lz4") }, "its parts lack global/1262"},
		{"a part is missing, without metadata", func(w *walg) {
			w.metadata = nil
			w.change = func(b *archive.Backup) { b.Sentinel.CompressedSize++ }
		}, "a part is missing"},
		{"no pg_control part", func(w *walg) { delete(w.parts, "pg_control.tar.lz4") }, "pg_control.tar is missing"},
		{"no pg_control part, the second form of name", func(w *walg) {
			delete(w.parts, "pg_control.tar.lz4")
			w.change = func(b *archive.Backup) { b.Name = backupName(t, ourName) }
		}, "9"},
		{"no backup_label", func(w *walg) {
			delete(w.parts, "backup_label.tar.lz4")
			w.parts["part_001.tar.lz4"] = compress(t, codec.LZ4, tarOf(t, item{name: "/base/1/112", content: content(1, 8192)}))
		}, "its parts lack backup_label"},
		{"a file in two parts", func(w *walg) {
			w.parts["part_003.tar"] = tarOf(t, item{name: "base/1/112"})
		}, "base/1/112 is in it twice"},
		{"a label in two parts", func(w *walg) {
			w.parts["part_003.tar"] = tarOf(t, item{name: "backup_label"})
		}, "backup_label is in it twice"},
		{"metadata that is none", func(w *walg) { w.metadata["../x"] = nil }, "leads out of"},
		{"a file's changes", func(w *walg) { w.metadata["/base/1/112"]["IsIncremented"] = true }, "delta backup"},
		{"a link", func(w *walg) {
			w.parts["part_003.tar"] = tarOf(t, item{name: "/base/2", kind: tar.TypeSymlink, link: "/etc"})
		}, "neither a file nor a directory"},
		{"an entry leads out", func(w *walg) {
			w.parts["part_003.tar"] = tarOf(t, item{name: "/../evil"})
		}, "leads out of"},
		{"a part that nobody can decode", func(w *walg) { w.parts["part_003.tar.gpg"] = []byte("x") }, "nothing here decodes"},
		{"something else among the parts", func(w *walg) { w.parts["readme.txt"] = []byte("x") }, "no part of a base backup"},
		{"an empty part", func(w *walg) { w.parts["part_003.tar.lz4"] = nil }, "is empty"},
		{"a cut part", func(w *walg) {
			w.parts["part_002.tar.lz4"] = w.parts["part_002.tar.lz4"][:len(w.parts["part_002.tar.lz4"])-8]
		}, "damaged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			w := newWALG(t)
			c.change(w)
			b, src := w.build()
			data := filepath.Join(dir, "data")
			err := Unpack(t.Context(), src, b, Options{Dir: data})
			all := maps.Clone(restored)
			switch c.want {
			case "":
			case "-":
				delete(all, "global/1262")
			case "+":
				all["base/1/113"], all["base/1/114"] = "x", "x"
			case "9":
				all["global/pg_control"] = content(9, 8192)
			default:
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("%v; want %q", err, c.want)
				}
				sameTree(t, dir, map[string]string{".": "dir 755"})
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sameTree(t, data, all)
		})
	}
}

// Metadata that says it is there and is not, or is none.
func TestWALGMetadata(t *testing.T) {
	for text, want := range map[string]string{"": "EOF", "[": "EOF", `{"Files":{"a":5}}`: "cannot unmarshal", `x`: "invalid character"} {
		b, src := newWALG(t).build()
		src.put("files_metadata.json", []byte(text))
		if err := Unpack(t.Context(), src, b, Options{Dir: filepath.Join(t.TempDir(), "data")}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	b, src := newWALG(t).build()
	delete(src.objects, "files_metadata.json")
	if err := Unpack(t.Context(), src, b, Options{Dir: filepath.Join(t.TempDir(), "data")}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "files_metadata.json is missing") {
		t.Error(err)
	}
}

// A backup of ours whose walferry.json was lost is held against the manifest all
// the same: the whole one is restored, and one that lacks a part is not.
func TestLostFacts(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(objects map[string][]byte)
		want   string // of the error; "": none
	}{
		{"whole", func(map[string][]byte) {}, ""},
		{"without a part", func(o map[string][]byte) { delete(o, "tar_partitions/part_002.tar.lz4") }, "its parts lack pg_tblspc/16384/PG_15/5/1"},
		{"with another file", func(o map[string][]byte) {
			o["tar_partitions/part_002.tar.lz4"] = compress(t, codec.LZ4, tarOf(t, item{name: "pg_tblspc/16384/PG_15/5/1", content: content(7, 8192)}))
		}, "pg_tblspc/16384/PG_15/5/1 has 8192 bytes with CRC32C"},
	} {
		dir := t.TempDir()
		in := newBackup(t, dir)
		in.stored = func(o map[string][]byte) {
			delete(o, "walferry.json")
			c.change(o)
		}
		b, src := in.build()
		b.Facts = nil
		data := filepath.Join(dir, "data")
		err := Unpack(t.Context(), src, b, Options{Dir: data})
		switch {
		case c.want == "" && err == nil:
			sameTree(t, data, want(in, filepath.Join(dir, "one"), filepath.Join(dir, "two")))
		case c.want == "" || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		case exists(data):
			t.Errorf("%s: the directory was left", c.name)
		}
	}
}

func TestRemap(t *testing.T) {
	all := []Tablespace{{1, "/a", "/a"}, {2, "/b", "/moved"}, {3, "/c\nd", "/c\nd"}, {4, "pg_tblspc/4", "pg_tblspc/4"}, {6, "/e\\f", "/g\\h\ni\rj"}}
	for in, want := range map[string]string{
		"":                               "",
		"1 /a\n":                         "1 /a\n",
		"2 /b\n":                         "2 /moved\n",
		"2 /b":                           "2 /moved\n",
		"1 /a\n2 /b\n3 /c\\\nd\n":        "1 /a\n2 /moved\n3 /c\\\nd\n",
		"3 /c\\\nd\r\n2 /with a space\n": "3 /c\\\nd\r\n2 /moved\n",
		"1 /a\\\\\n2 /b\n":               "1 /a\\\\\n2 /moved\n",
		"6 /e\\\\f\n2 /b\n":              "6 /g\\\\h\\\ni\\\rj\n2 /moved\n",
	} {
		if got, err := remap([]byte(in), all); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"5 /a\n", "x /a\n", "1\n", "01 /a\n", " 1 /a\n", "1 /a\\"} {
		if got, err := remap([]byte(in), all[1:]); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{"/": "", "./": "", "": "", ".": "", "base/1/112": "base/1/112", "/base/1/112": "base/1/112", "./pg_wal/": "pg_wal", "a\\..\\b": "a\\..\\b", "..a/b..": "..a/b.."} {
		if got, err := cleanName(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"..", "../a", "a/..", "a/../b", "//a", "a//b", "/./../a", "././a", "a/./b", "a\x00b", "/..", "./.."} {
		if got, err := cleanName(in); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"/", "../a", "./pg_wal/", "pg_tblspc/1/x", "a//b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := cleanName(s)
		if err != nil {
			return
		}
		if got != "" && (!filepath.IsLocal(got) || filepath.Clean(got) != got) {
			t.Errorf("%q: %q", s, got)
		}
	})
}
