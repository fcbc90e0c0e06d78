package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

const m16 = segment.Size(16 << 20)

// startOf is where the backups of these tests start.
var startOf = segment.Position{Timeline: 1, LSN: 0xC000028}

// contents of a backup's objects, by their names in the folder. part_001 is
// stored in parts, of which it has one.
func contents() map[string]string {
	return map[string]string{
		"tar_partitions/part_000.tar.lz4": "the root",
		"tar_partitions/part_001.tar.lz4": "the data directory",
		"backup_manifest":                 "{}\n",
	}
}

func factsOf(objects map[string]string) BackupFacts {
	f := BackupFacts{
		Version: 1, Label: "nightly", Server: "15.18", StartLSN: "0/C000028", StartTimeline: 1, StopLSN: "0/C000100", StopTimeline: 1,
		SegmentSize: uint64(m16), Compression: "server-lz4", WAL: WALInArchive,
	}
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		body := objstore.Bytes([]byte(objects[name]))
		part := BackupPart{Name: strings.TrimPrefix(name, partsDir), Size: body.Size(), CRC32C: body.CRC32C()}
		if name == manifestName {
			f.Manifest = part
			continue
		}
		part.Uncompressed, part.Files, part.Tablespace = 1<<33, 3, 16384
		f.Parts = append(f.Parts, part)
	}
	return f
}

// write stores the objects of a backup, as a writer does that tries again what
// may be tried again.
func write(ctx context.Context, w *BackupWriter) error {
	objects := contents()
	for _, name := range []string{"tar_partitions/part_000.tar.lz4", manifestName} {
		if err := w.Put(ctx, name, objstore.Bytes([]byte(objects[name]))); err != nil {
			return err
		}
	}
	u, err := w.BeginPart(ctx, "part_001.tar.lz4")
	if err != nil {
		return err
	}
	if err := u.Part(ctx, 1, 0, objstore.Bytes([]byte(objects["tar_partitions/part_001.tar.lz4"]))); err != nil {
		return errors.Join(err, u.Abort(ctx))
	}
	if err := u.Complete(ctx); err != nil {
		return errors.Join(err, u.Abort(ctx))
	}
	return nil
}

func take(ctx context.Context, a *Archive) (Backup, error) {
	w, err := a.NewBackup(ctx, startOf, m16)
	if err != nil {
		return Backup{}, err
	}
	if err := write(ctx, w); err != nil {
		return Backup{}, err
	}
	return w.Commit(ctx, exampleSentinel(), factsOf(contents()))
}

func mustTake(t *testing.T, a *Archive) Backup {
	t.Helper()
	b, err := take(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mustBeWhole makes sure that all of a backup is there, byte for byte.
func mustBeWhole(t *testing.T, a *Archive, b Backup) {
	t.Helper()
	if b.Err != nil || b.FactsErr != nil || b.Facts == nil {
		t.Fatalf("%s: %v, %v", b.Name, b.Err, b.FactsErr)
	}
	want := contents()
	for _, p := range append([]BackupPart{b.Facts.Manifest}, b.Facts.Parts...) {
		name := p.Name
		if name != manifestName {
			name = partsDir + name
		}
		body, info, err := a.OpenBackupObject(t.Context(), b.Name, name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil || string(got) != want[name] || info.Size != p.Size || info.Key != name {
			t.Errorf("%s: %d bytes, %+v, %v", name, len(got), info, err)
		}
		if crc := objstore.Bytes(got).CRC32C(); crc != p.CRC32C {
			t.Errorf("%s has checksum %08X, walferry.json says %08X", name, crc, p.CRC32C)
		}
		delete(want, name)
	}
	if len(want) != 0 {
		t.Errorf("%s does not name %v", b.Name, slices.Sorted(maps.Keys(want)))
	}
}

func TestTakeBackup(t *testing.T) {
	store := mem.New()
	a := New(store, Options{})
	b := mustTake(t, a)
	if b.Name.String() != "base_00000001000000000000000C_00000028" || !b.StoredAt.IsZero() {
		t.Errorf("%+v", b)
	}
	folder := "basebackups_005/base_00000001000000000000000C_00000028"
	want := []string{
		folder + "/attempt.json", folder + "/backup_manifest", folder + "/metadata.json",
		folder + "/tar_partitions/part_000.tar.lz4", folder + "/tar_partitions/part_001.tar.lz4",
		folder + "/walferry.json", folder + "_backup_stop_sentinel.json",
	}
	if got := keysOf(t, store); !slices.Equal(got, want) {
		t.Errorf("keys\n%q\nwant\n%q", got, want)
	}
	sentinel := strings.Replace(example, `"Spec"`, `"FilesMetadataDisabled":true,"Spec"`, 1)
	sameJSON(t, "sentinel", stored(t, store, folder+sentinelSuffix), []byte(sentinel))
	sameJSON(t, "metadata.json", stored(t, store, folder+"/metadata.json"), []byte(`{"start_time":"2026-11-22T09:22:28.451757Z","finish_time":"2026-11-22T09:22:29.320664Z",
		"date_fmt":"%Y-%m-%dT%H:%M:%S.%fZ","hostname":"vm","data_dir":"/srv/data","pg_version":150018,"start_lsn":201326632,"finish_lsn":201326848,"is_permanent":false,
		"system_identifier":7710923324468496309,"uncompressed_size":76409344,"compressed_size":19765325}`))
	sameJSON(t, "walferry.json", stored(t, store, folder+"/walferry.json"), fmt.Appendf(nil, `{"version":1,"label":"nightly","server_version":"15.18",
		"start_lsn":"0/C000028","start_timeline":1,"stop_lsn":"0/C000100","stop_timeline":1,"wal_segment_size":16777216,"compression":"server-lz4","wal":"archive","standby":false,
		"parts":[{"name":"part_000.tar.lz4","size":8,"crc32c":"%08X","uncompressed":8589934592,"tablespace":16384,"files":3},
			{"name":"part_001.tar.lz4","size":18,"crc32c":"%08X","uncompressed":8589934592,"tablespace":16384,"files":3}],
		"manifest":{"name":"backup_manifest","size":3,"crc32c":"%08X"}}`, b.Facts.Parts[0].CRC32C, b.Facts.Parts[1].CRC32C, b.Facts.Manifest.CRC32C))
	mustBeWhole(t, a, b)

	// What was returned is what is read.
	again, err := a.Backup(t.Context(), b.Name)
	if err != nil || !reflect.DeepEqual(again, b) {
		t.Errorf("%+v, %v\nwant\n%+v", again, err, b)
	}
	all, err := a.Backups(t.Context())
	if err != nil || len(all) != 1 || time.Since(all[0].StoredAt) > time.Hour {
		t.Fatalf("%+v, %v", all, err)
	}
	all[0].StoredAt = time.Time{}
	if !reflect.DeepEqual(all[0], b) {
		t.Errorf("%+v\nwant\n%+v", all[0], b)
	}
	objects, err := a.BackupObjects(t.Context(), b.Name)
	if err != nil || len(objects) != 6 || objects[1].Key != "backup_manifest" || objects[1].Size != 3 {
		t.Errorf("%+v, %v", objects, err)
	}
	body, err := a.ReadBackupRange(t.Context(), b.Name, "tar_partitions/part_000.tar.lz4", 4, 3)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(body); err != nil || string(got) != "roo" {
		t.Errorf("%q, %v", got, err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
	if len(store.Uploads()) != 0 {
		t.Errorf("uploads are left: %q", store.Uploads())
	}

	// What is not there is not found, and that is an answer.
	none, err := ParseBackupName("base_00000001000000000000000C")
	if err != nil {
		t.Fatal(err)
	}
	_, backupErr := a.Backup(t.Context(), none)
	_, _, openErr := a.OpenBackupObject(t.Context(), b.Name, "nothing")
	_, rangeErr := a.ReadBackupRange(t.Context(), b.Name, "nothing", 0, 1)
	for what, err := range map[string]error{"backup": backupErr, "open": openErr, "range": rangeErr, "delete": a.DeleteBackup(t.Context(), none)} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if objects, err := a.BackupObjects(t.Context(), none); err != nil || len(objects) != 0 {
		t.Errorf("%v, %v", objects, err)
	}
}

// backupAs makes the objects of a backup without a writer.
type backupAs struct {
	name     string
	sentinel string
	facts    string // empty: none
}

func TestBackups(t *testing.T) {
	sentinel := func(lsn, finish segment.LSN) string { return string(sentinelJSON(testSystem, lsn, finish)) }
	facts := func(change string) string {
		f := factsOf(contents())
		text, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		old, new, _ := strings.Cut(change, "→")
		if !strings.Contains(string(text), old) {
			t.Fatalf("%q is not in %s", old, text)
		}
		return strings.Replace(string(text), old, new, 1)
	}
	store := mem.New()
	for _, b := range []backupAs{
		{"base_00000002000000000000000E", sentinel(0xE000028, 0xE000100), ""}, // of timeline 2, starts behind the next
		{"base_00000002000000000000000D_00000028", sentinel(0xD000028, 0xF000100), ""},
		{"base_000000010000000000000009_D_000000010000000000000004", sentinel(0x9000028, 0x9000100), ""},
		{"base_00000001000000000000000C_00000028", sentinel(0xC000028, 0xC000100), facts("nightly→nightly")},
		{"base_00000001000000000000000C_00000029", sentinel(0xC000028, 0xC000100), facts("stop_timeline\":1→stop_timeline\":2")},
		{"base_00000001000000000000000C_0000002A", sentinel(0xC000028, 0xC000100), facts(`"parts"→"suspect_pages":["page 5"],"unknown":1,"parts"`)},
		{"base_00000001000000000000000C_0000002B", sentinel(0xC000028, 0xC000100), "{"},
		{"base_00000001000000000000000C_0000002C", sentinel(0xC000028, 0xC000200), facts("nightly→other stop")},
		{"base_00000001000000000000000C_0000002D", sentinel(0xC000030, 0xC000100), facts("nightly→other start")},
		{"base_000000010000000000000002", sentinel(0x2000028, 0x2000100), ""},
		{"base_000000010000000000000008", "{", ""},
		{"base_000000010000000000000003", `{"LSN":1}`, ""},
		{"base_000000010000000000000004", `{}`, ""},
	} {
		put(t, store, basesDir+b.name+sentinelSuffix, []byte(b.sentinel))
		put(t, store, basesDir+b.name+"/metadata.json", []byte("{}"))
		if b.facts != "" {
			put(t, store, basesDir+b.name+"/walferry.json", []byte(b.facts))
		}
	}
	// No backups: no sentinel, or no name of one.
	put(t, store, basesDir+"base_00000001000000000000000A/metadata.json", []byte("{}"))
	put(t, store, basesDir+"base_00000001000000000000000g_backup_stop_sentinel.json", []byte("{}"))
	put(t, store, basesDir+"base_00000001000000000000000A_backup_stop_sentinel.json.old", []byte("{}"))

	a := New(store, Options{})
	all, err := a.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range all {
		line := strings.TrimPrefix(b.Name.String(), "base_")
		if b.Err != nil {
			if !errors.Is(b.Err, ErrSentinel) || b.Start.LSN != 0 {
				t.Errorf("%+v", b)
			}
			got = append(got, line+" damaged")
			continue
		}
		line += fmt.Sprintf(" %d/%X-%d/%X", b.Start.Timeline, uint64(b.Start.LSN), b.Stop.Timeline, uint64(b.Stop.LSN))
		if b.Facts != nil {
			line += " " + b.Facts.Label
		}
		if b.Suspect() {
			line += " suspect"
		}
		if b.FactsErr != nil {
			if !errors.Is(b.FactsErr, ErrFacts) || !strings.Contains(b.FactsErr.Error(), "walferry.json") || b.Facts != nil {
				t.Errorf("%+v", b)
			}
			line += " bad facts"
		}
		got = append(got, line)
	}
	want := []string{
		"000000010000000000000003 damaged",
		"000000010000000000000004 damaged",
		"000000010000000000000008 damaged",
		"000000010000000000000002 1/2000028-1/2000100",
		"000000010000000000000009_D_000000010000000000000004 1/9000028-1/9000100",
		"00000001000000000000000C_00000028 1/C000028-1/C000100 nightly",
		"00000001000000000000000C_0000002A 1/C000028-1/C000100 nightly suspect",
		"00000001000000000000000C_0000002B 1/C000028-1/C000100 bad facts",
		"00000001000000000000000C_0000002D 1/C000030-1/C000100 bad facts",
		"00000001000000000000000C_0000002C 1/C000028-1/C000200 bad facts",
		"00000001000000000000000C_00000029 1/C000028-2/C000100 nightly",
		"00000002000000000000000E 2/E000028-2/E000100",
		"00000002000000000000000D_00000028 2/D000028-2/F000100",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, b := range all {
		one, err := a.Backup(t.Context(), b.Name)
		if b.Err != nil {
			if !errors.Is(err, ErrSentinel) || !strings.Contains(err.Error(), b.Name.String()) {
				t.Errorf("%s: %v", b.Name, err)
			}
			continue
		}
		b.StoredAt = time.Time{}
		if err != nil || one.Name != b.Name || one.Stop != b.Stop || (one.Facts == nil) != (b.Facts == nil) {
			t.Errorf("%s: %+v, %v", b.Name, one, err)
		}
	}
}

// A store that does not answer is never taken for one that has no backup, or a
// worse one.
func TestBackupsNeedAnswers(t *testing.T) {
	down := errors.New("503")
	for fail := 1; ; fail++ {
		var mu sync.Mutex
		n, on := 0, false
		store := mem.NewWith(mem.Options{Before: func(context.Context, mem.Op, string) error {
			mu.Lock()
			defer mu.Unlock()
			if !on {
				return nil
			}
			if n++; n == fail {
				return down
			}
			return nil
		}})
		a := New(store, Options{})
		for i := range 20 {
			putBase(t, store, 1, m16, segment.LSN(i)*segment.LSN(m16)+0x28, 1<<40)
		}
		mu.Lock()
		on = true
		mu.Unlock()
		all, err := a.Backups(t.Context())
		if n < fail {
			if err != nil || len(all) != 20 || fail != 42 {
				t.Errorf("%d calls: %d backups, %v", n, len(all), err)
			}
			break
		}
		if !errors.Is(err, down) || all != nil {
			t.Errorf("call %d failed: %d backups, %v", fail, len(all), err)
		}
	}
}

// What breaks off while it is read is read again, a few times.
func TestBackupsAreReadAgain(t *testing.T) {
	reset := errors.New("connection reset by peer")
	for broken, want := range map[int]error{0: nil, 1: nil, objectTries - 1: nil, objectTries: reset, 1000: reset} {
		store := &failingBodies{Store: mem.New(), gets: map[string]int{}, fail: func(_ string, get int) error {
			if get <= broken {
				return reset
			}
			return nil
		}}
		putBase(t, store.Store, 1, m16, 0x1000028, 1<<40)
		all, err := New(store, Options{}).Backups(t.Context())
		if !errors.Is(err, want) || want == nil && (err != nil || len(all) != 1) {
			t.Errorf("broken off %d times: %d backups, %v, want %v", broken, len(all), err, want)
		}
	}
}

// A backup that is deleted while the backups are read is none, and no error.
func TestBackupsWhileOneIsDeleted(t *testing.T) {
	var store *mem.Store
	var once sync.Once
	store = mem.NewWith(mem.Options{Before: func(ctx context.Context, op mem.Op, key string) error {
		if op == mem.Get && strings.HasSuffix(key, sentinelSuffix) {
			var err error
			once.Do(func() { err = store.Delete(ctx, key) })
			return err
		}
		return nil
	}})
	for i := range 2 {
		put(t, store, fmt.Sprintf("%sbase_00000001000000000000000%d%s", basesDir, i+1, sentinelSuffix), sentinelJSON(testSystem, segment.LSN(i+1)<<24+0x28, 1<<40))
	}
	all, err := New(store, Options{}).Backups(t.Context())
	if err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
}
