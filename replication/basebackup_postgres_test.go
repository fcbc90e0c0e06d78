package replication_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// received is a whole base backup as its owner saw it.
type received struct {
	archives []receivedArchive
	manifest []byte
	warnings []replication.BackupMessage
	progress []int64
	largest  int // message of content, in bytes
}

type receivedArchive struct {
	name    string
	space   replication.Tablespace
	content []byte
}

// receive takes a backup to its end. err is nil for io.EOF.
func receive(t *testing.T, b *replication.BaseBackup) (r received, err error) {
	t.Helper()
	var to *[]byte
	for {
		m, err := b.Next(t.Context())
		if err != nil {
			again, err2 := b.Next(t.Context())
			if again.Kind != 0 || err2.Error() != err.Error() {
				t.Errorf("Next after its end is %+v, %v; it was %v", again, err2, err)
			}
			if !errors.Is(err, io.EOF) {
				return r, err
			}
			if err.Error() != "EOF" { // the bare one is the success
				t.Errorf("an error that reads as the end: %v", err)
			}
			return r, nil
		}
		switch m.Kind {
		case replication.BackupArchive:
			r.archives = append(r.archives, receivedArchive{name: m.Name, space: m.Tablespace})
			to = &r.archives[len(r.archives)-1].content
		case replication.BackupManifest:
			to = &r.manifest
		case replication.BackupData:
			if len(m.Data) == 0 || to == nil {
				t.Errorf("content of %d bytes, belonging to %v", len(m.Data), to)
				continue
			}
			r.largest = max(r.largest, len(m.Data))
			*to = append(*to, m.Data...)
		case replication.BackupProgress:
			r.progress = append(r.progress, m.Done)
		case replication.BackupWarning:
			r.warnings = append(r.warnings, m)
		default:
			t.Errorf("message %+v", m)
		}
	}
}

// plain undoes what the server compressed.
func plain(t *testing.T, a receivedArchive) []byte {
	t.Helper()
	switch {
	case strings.HasSuffix(a.name, ".lz4"):
		b, err := io.ReadAll(lz4.NewReader(bytes.NewReader(a.content)))
		if err != nil {
			t.Fatalf("%s: %v", a.name, err)
		}
		return b
	case strings.HasSuffix(a.name, ".zst"):
		d, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		b, err := d.DecodeAll(a.content, nil)
		if err != nil {
			t.Fatalf("%s: %v", a.name, err)
		}
		return b
	}
	return a.content
}

// files unpacks all archives: content by the names that the manifest uses.
// tarBytes is how long the tar files are.
func (r received) files(t *testing.T) (files map[string][]byte, tarBytes int64) {
	t.Helper()
	files = map[string][]byte{}
	for _, a := range r.archives {
		content := plain(t, a)
		tarBytes += int64(len(content))
		if len(content)%512 != 0 || len(content) < 1024 || !bytes.Equal(content[len(content)-1024:], make([]byte, 1024)) {
			t.Errorf("%s, %d bytes, has not the end of a tar file", a.name, len(content))
		}
		prefix := ""
		if a.space.OID != 0 {
			prefix = fmt.Sprintf("pg_tblspc/%d/", a.space.OID)
		}
		for in := tar.NewReader(bytes.NewReader(content)); ; {
			h, err := in.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", a.name, err)
			}
			switch h.Typeflag {
			case tar.TypeDir:
			case tar.TypeReg:
				b, err := io.ReadAll(in)
				if err != nil {
					t.Fatalf("%s, %s: %v", a.name, h.Name, err)
				}
				if _, twice := files[prefix+h.Name]; twice {
					t.Errorf("%s%s comes twice", prefix, h.Name)
				}
				files[prefix+h.Name] = b
			default:
				t.Errorf("%s: %s is a %q", a.name, h.Name, h.Typeflag)
			}
		}
	}
	return files, tarBytes
}

// hold compares all files with the manifest.
func (r received) hold(t *testing.T) (files map[string][]byte) {
	t.Helper()
	files, tarBytes := r.files(t)
	if n := len(r.progress); n == 0 || r.progress[n-1] != tarBytes {
		t.Errorf("progress %v; the archives have %d bytes", r.progress, tarBytes)
	}
	var m struct {
		Files []struct {
			Path              string
			Size              int
			ChecksumAlgorithm string `json:"Checksum-Algorithm"`
			Checksum          string
		}
	}
	if err := json.Unmarshal(r.manifest, &m); err != nil {
		t.Fatalf("the manifest: %v", err)
	}
	for _, f := range m.Files {
		b, ok := files[f.Path]
		sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
		if want := fmt.Sprintf("%02x%02x%02x%02x", byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)); !ok || len(b) != f.Size || f.ChecksumAlgorithm != "CRC32C" || f.Checksum != want {
			t.Errorf("%s: present %v, %d bytes, %s; the manifest says %+v", f.Path, ok, len(b), want, f)
		}
	}
	if len(m.Files) != len(files) || len(files) < 500 {
		t.Errorf("%d files, %d in the manifest", len(files), len(m.Files))
	}
	return files
}

// tablespace makes a tablespace and a table inside it, and returns its OID.
func (pg *cluster) tablespace(name, folder string) (oid, location string) {
	pg.t.Helper()
	location = filepath.Join(pg.home, folder)
	if err := os.Mkdir(location, 0o700); err != nil {
		pg.t.Fatal(err)
	}
	if pg.attr != nil {
		if err := os.Chown(location, int(pg.attr.Credential.Uid), int(pg.attr.Credential.Gid)); err != nil {
			pg.t.Fatal(err)
		}
	}
	return pg.tablespaceAt(name, location), location
}

func (pg *cluster) tablespaceAt(name, location string) (oid string) {
	pg.t.Helper()
	pg.sql(fmt.Sprintf("CREATE TABLESPACE %s LOCATION '%s'", name, location))
	pg.sql(fmt.Sprintf("CREATE TABLE in_%s TABLESPACE %s AS SELECT g, repeat('x', 500) FROM generate_series(1, 2000) g", name, name))
	return pg.sql(fmt.Sprintf("SELECT oid FROM pg_tablespace WHERE spcname = '%s'", name))
}

func TestPostgresBaseBackup(t *testing.T) {
	eachServer(t, func(t *testing.T, pg *cluster) {
		pg.sql("CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 40000) g")
		oid, location := pg.tablespace("space", "space")
		for _, o := range []replication.BackupOptions{
			{Fast: true, Label: `it's "quoted" \ \' \n, ''twice'', größer 日本 🐘`},
			{Fast: true, Compression: "lz4", Label: `'`},
			{Fast: true, Compression: "lz4", Level: 1, Label: `\`},
			{Fast: true, Compression: "zstd", Level: 1, Label: strings.Repeat("ä", 511)},
			{Fast: true, MaxRate: 1 << 20},
		} {
			t.Run(fmt.Sprintf("%s-%d", o.Compression, o.Level), func(t *testing.T) {
				conn := pg.connect()
				b, err := conn.BaseBackup(t.Context(), o)
				if errors.Is(err, replication.ErrNoCompression) {
					t.Logf("NOT TESTED: %v", err)
					if replication.Passing(err) {
						t.Error("a server that cannot compress is said to pass")
					}
					o.Compression, o.Level = "", 0
					b, err = conn.BaseBackup(t.Context(), o)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = b.Close() }()
				spaces := b.Tablespaces()
				if len(spaces) != 2 || fmt.Sprint(spaces[0].OID) != oid || spaces[0].Location != location || spaces[0].Size < 1<<20 ||
					spaces[1].OID != 0 || spaces[1].Location != "" || spaces[1].Size < 20<<20 {
					t.Errorf("tablespaces %+v", spaces)
				}
				if b.Stop() != (segment.Position{}) {
					t.Errorf("Stop is %v before the end", b.Stop())
				}
				began := time.Now()
				r, err := receive(t, b)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%v; largest message %d bytes", time.Since(began), r.largest)
				if b.Start().Timeline != 1 || b.Stop().Timeline != 1 || b.Stop().LSN <= b.Start().LSN || b.Suspect() != nil || len(r.warnings) > 0 {
					t.Errorf("from %v to %v, suspect %v, warnings %+v", b.Start(), b.Stop(), b.Suspect(), r.warnings)
				}
				ext := map[string]string{"": ".tar", "lz4": ".tar.lz4", "zstd": ".tar.zst"}[o.Compression]
				if len(r.archives) != 2 || r.archives[0].name != oid+ext || r.archives[0].space != spaces[0] || r.archives[1].name != "base"+ext || r.archives[1].space != spaces[1] {
					t.Fatalf("archives %+v", r.archives)
				}
				files := r.hold(t)
				label := string(files["backup_label"])
				want := o.Label
				if want == "" {
					want = "base backup"
				}
				if !strings.Contains(label, "\nLABEL: "+want+"\n") || !strings.Contains(label, "START WAL LOCATION: "+b.Start().LSN.String()+" ") || !strings.Contains(label, "\nSTART TIMELINE: 1\n") {
					t.Errorf("label %q: backup_label is %q", o.Label, label)
				}
				if got := string(files["tablespace_map"]); got != oid+" "+location+"\n" {
					t.Errorf("tablespace_map is %q", got)
				}
			})
		}

		// What we refuse leaves the connection as it was.
		conn := pg.connect()
		for range 2 {
			if _, err := conn.BaseBackup(t.Context(), replication.BackupOptions{Label: "x\nSTART TIMELINE: 9"}); err == nil {
				t.Error("a label of two lines was taken")
			}
			if _, err := conn.IdentifySystem(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// Several tablespaces, in places with unusual names, and (from 15 on, for
// developers) inside the data directory: 15 sends that one with the data
// directory, later ones as an archive of its own.
func TestPostgresTablespaces(t *testing.T) {
	eachServer(t, func(t *testing.T, pg *cluster) {
		places := map[string]string{}
		for name, folder := range map[string]string{"a": "spa ce", "b": `back\slash "größer"`, "c": "c"} {
			oid, location := pg.tablespace(name, folder)
			places[oid] = location
		}
		conn := pg.connect()
		if conn.Version().Major() >= 15 {
			pg.sql("ALTER ROLE postgres SET allow_in_place_tablespaces = on")
			if oid := pg.tablespaceAt("d", ""); conn.Version().Major() >= 16 {
				places[oid] = "pg_tblspc/" + oid
			}
		}
		b, err := conn.BaseBackup(t.Context(), replication.BackupOptions{Fast: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = b.Close() }()
		for _, s := range b.Tablespaces() {
			if location, ok := places[fmt.Sprint(s.OID)]; s.OID != 0 && (!ok || s.Location != location) {
				t.Errorf("tablespace %+v; want %q", s, location)
			}
		}
		r, err := receive(t, b)
		if err != nil || len(r.archives) != len(places)+1 {
			t.Fatalf("%d archives, %v", len(r.archives), err)
		}
		r.hold(t)
	})
}

// damage makes the pages of a table wrong, and adds what is no whole page to
// another's file. The server is stopped meanwhile.
func (pg *cluster) damage(pages int) (damaged, odd string) {
	pg.t.Helper()
	pg.sql("CREATE TABLE damaged AS SELECT g, repeat('x', 500) FROM generate_series(1, 1000) g; CREATE TABLE odd AS SELECT 1")
	damaged, odd = pg.sql("SELECT pg_relation_filepath('damaged')"), pg.sql("SELECT pg_relation_filepath('odd')")
	pg.stop("fast")
	change := func(name string, f func(*os.File) error) {
		file, err := os.OpenFile(filepath.Join(pg.data, name), os.O_RDWR, 0)
		if err != nil {
			pg.t.Fatal(err)
		}
		if err := errors.Join(f(file), file.Close()); err != nil {
			pg.t.Fatal(err)
		}
	}
	change(damaged, func(f *os.File) error {
		for page := range pages {
			if _, err := f.WriteAt([]byte("damage"), int64(page)*8192+4096); err != nil {
				return err
			}
		}
		return nil
	})
	change(odd, func(f *os.File) error {
		_, err := f.WriteAt([]byte("odd"), 8192)
		return err
	})
	pg.start()
	return damaged, odd
}

// Pages whose checksums are wrong are named, file by file, and the backup is
// whole all the same.
func TestPostgresSuspect(t *testing.T) {
	eachServer(t, func(t *testing.T, pg *cluster) {
		damaged, odd := pg.damage(7)
		if err := syscall.Mkfifo(filepath.Join(pg.data, "special"), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := pg.connect().BaseBackup(t.Context(), replication.BackupOptions{Fast: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = b.Close() }()
		r, err := receive(t, b)
		if err != nil {
			t.Fatal(err)
		}
		var se *replication.ServerError
		if !errors.As(b.Suspect(), &se) || se.SQLSTATE != "XX001" || b.Stop().LSN <= b.Start().LSN {
			t.Errorf("suspect %v, stop %v", b.Suspect(), b.Stop())
		}
		r.hold(t)
		suspect := map[string]int{}
		for _, w := range r.warnings {
			t.Logf("%+v", w)
			if w.Severity != "WARNING" || strings.Contains(w.Text, "\n") {
				t.Errorf("%+v", w)
			}
			which := "other"
			for name, file := range map[string]string{"damaged": damaged, "odd": odd, "special": "special"} {
				if strings.Contains(w.Text, file+`"`) {
					which = name
				}
			}
			suspect[fmt.Sprintf("%s %v", which, w.Suspect)]++
		}
		// Five pages, that no more of the file are named, and how many it were;
		// the special file was already met when sizes were estimated, before
		// the copy; how many there were in all is of no file.
		if suspect["damaged true"] != 7 || suspect["odd true"] != 1 || suspect["special false"] != 2 || suspect["other false"] != 1 || len(suspect) != 4 {
			t.Errorf("%v", suspect)
		}
	})
}

// How a backup ends when the server does, or its role, or our patience.
func TestPostgresBackupEnds(t *testing.T) {
	eachServer(t, func(t *testing.T, pg *cluster) {
		pg.sql("CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 60000) g")
		begin := func(o replication.BackupOptions) *replication.BaseBackup {
			t.Helper()
			o.Fast = true
			b, err := pg.connect().BaseBackup(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.Close() })
			if m, err := b.Next(t.Context()); err != nil || m.Kind != replication.BackupArchive {
				t.Fatalf("%+v, %v", m, err)
			}
			return b
		}
		var se *replication.ServerError

		// An administrator ends it.
		b := begin(replication.BackupOptions{MaxRate: 1024})
		pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
		if err := drainBackup(t.Context(), b); !errors.As(err, &se) || se.SQLSTATE != "57P01" || !replication.Passing(err) {
			t.Errorf("terminated: %v", err)
		}

		// We give it up: the server does, too.
		for name, end := range map[string]func(*replication.BaseBackup) error{
			"cancelled": func(b *replication.BaseBackup) error {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if err := drainBackup(ctx, b); !errors.Is(err, context.DeadlineExceeded) {
					return fmt.Errorf("not the end of our patience: %w", err)
				}
				return b.Close()
			},
			"closed": (*replication.BaseBackup).Close,
		} {
			if err := end(begin(replication.BackupOptions{MaxRate: 1024})); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			pg.until("SELECT count(*) = 0 FROM pg_stat_replication")
		}

		// A standby that is promoted before its backup ends.
		pg.stop("fast")
		if err := os.WriteFile(filepath.Join(pg.data, "standby.signal"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		pg.start()
		standby := begin(replication.BackupOptions{})
		if err := drainBackup(t.Context(), standby); err != nil || standby.Stop().LSN < standby.Start().LSN {
			t.Errorf("from a standby: %v, from %v to %v", err, standby.Start(), standby.Stop())
		}
		b = begin(replication.BackupOptions{})
		pg.run("pg_ctl", "-D", pg.data, "-w", "promote")
		if err := drainBackup(t.Context(), b); !errors.As(err, &se) || se.SQLSTATE != "55000" || !strings.Contains(se.Message, "promoted") {
			t.Errorf("promoted: %v", err)
		}

		// A shutdown, and a crash.
		for _, mode := range []string{"fast", "immediate"} {
			b := begin(replication.BackupOptions{MaxRate: 1024})
			pg.stop(mode)
			err := drainBackup(t.Context(), b)
			if !errors.As(err, &se) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) || !replication.Passing(err) {
				t.Errorf("%s: %v", mode, err)
			}
			t.Logf("%s: %v", mode, err)
			pg.start()
		}
	})
}

// until waits for a query to answer t.
func (pg *cluster) until(query string) {
	pg.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); pg.sql(query) != "t"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			pg.t.Fatalf("still not: %s", query)
		}
	}
}

func TestPostgresTemporarySlot(t *testing.T) {
	eachServer(t, func(t *testing.T, pg *cluster) {
		ctx := t.Context()
		conn, other := pg.connect(), pg.connect()
		sys, err := conn.IdentifySystem(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.CreateTemporarySlot(ctx, "mine"); err != nil {
			t.Fatal(err)
		}
		if got := pg.sql("SELECT concat_ws(' ', slot_type, temporary, restart_lsn IS NOT NULL) FROM pg_replication_slots WHERE slot_name = 'mine'"); got != "physical t t" {
			t.Errorf("the slot is %q", got)
		}
		if err := other.CreateTemporarySlot(ctx, "mine"); !errors.Is(err, replication.ErrSlotExists) {
			t.Errorf("another's slot of that name: %v", err)
		}
		if _, err := other.StartReplication(ctx, "mine", segment.Position{Timeline: 1, LSN: sys.Flush}); !errors.Is(err, replication.ErrSlotActive) {
			t.Errorf("another's stream: %v", err)
		}
		from := segment.DefaultSize.Start(sys.Flush)
		st, err := conn.StartReplication(ctx, "mine", segment.Position{Timeline: 1, LSN: from})
		if err != nil {
			t.Fatal(err)
		}
		collect(t, st, from, sys.Flush)
		if err := st.SendStatus(replication.Status{Write: sys.Flush, Flush: sys.Flush, Time: time.Now()}); err != nil {
			t.Error(err)
		}
		pg.until(fmt.Sprintf("SELECT restart_lsn = '%s' FROM pg_replication_slots WHERE slot_name = 'mine'", sys.Flush))
		_ = st.Close()
		pg.until("SELECT count(*) = 0 FROM pg_replication_slots")

		// A command that fails takes it along.
		if err := other.CreateTemporarySlot(ctx, "mine"); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Show(ctx, "nothing"); err == nil {
			t.Error("SHOW nothing")
		}
		if got := pg.sql("SELECT count(*) FROM pg_replication_slots"); got != "0" {
			t.Errorf("%s slots after a failed command", got)
		}
	})
}
