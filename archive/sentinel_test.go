package archive

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/archive/objstore/dir"
	"github.com/walferry/walferry/segment"
)

// walgArchive was written by WAL-G itself from a PostgreSQL 15. It is too large
// for this repository and lies beside a checkout.
const walgArchive = "../../shared/fixtures/walg-archive"

// example is a sentinel as WAL-G 3.0.9 wrote it, of a backup with a tablespace.
const example = `{"LSN":201326632,"PgVersion":150018,"FinishLSN":201326848,"SystemIdentifier":7710923324468496309,"UncompressedSize":76409344,` +
	`"CompressedSize":19765325,"Spec":{"16384":{"loc":"/srv/tbs1","link":"pg_tblspc/16384"},"base_prefix":"/srv/data",` +
	`"tablespaces":["16384"]},"ChkpNum":null,"Version":2,"StartTime":"2026-11-22T09:22:28.451757Z",` +
	`"FinishTime":"2026-11-22T09:22:29.320664Z","DateFmt":"%Y-%m-%dT%H:%M:%S.%fZ","Hostname":"vm","DataDir":"/srv/data","IsPermanent":false}`

func exampleSentinel() Sentinel {
	return Sentinel{
		LSN: 0xC000028, FinishLSN: 0xC000100, SystemIdentifier: 7710923324468496309, PgVersion: 150018,
		UncompressedSize: 76409344, CompressedSize: 19765325,
		Spec:       &TablespaceSpec{BasePrefix: "/srv/data", Locations: map[uint32]string{16384: "/srv/tbs1"}},
		StartTime:  time.Date(2026, 11, 22, 9, 22, 28, 451757000, time.UTC),
		FinishTime: time.Date(2026, 11, 22, 9, 22, 29, 320664000, time.UTC),
		Hostname:   "vm", DataDir: "/srv/data",
	}
}

// sameJSON compares two texts as JSON, numbers by their digits.
func sameJSON(t *testing.T, what string, got, want []byte) {
	t.Helper()
	parse := func(text []byte) (v any) {
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			t.Fatalf("%s: %v in %s", what, err, text)
		}
		return v
	}
	if !reflect.DeepEqual(parse(got), parse(want)) {
		t.Errorf("%s is\n%s\nwant\n%s", what, got, want)
	}
}

func TestSentinel(t *testing.T) {
	var got Sentinel
	if err := json.Unmarshal([]byte(example), &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, exampleSentinel()) {
		t.Errorf("%+v\nwant\n%+v", got, exampleSentinel())
	}
	again, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	sameJSON(t, "the sentinel written again", again, []byte(example))

	// Whatever their case, and with all that other versions know.
	lower := `{"lsn":5,"finishlsn":6,"SYSTEMIDENTIFIER":7,"files":{"a":{}},"DataCatalogSize":9,"Unknown":[1]}`
	got = Sentinel{}
	if err := json.Unmarshal([]byte(lower), &got); err != nil || got.LSN != 5 || got.FinishLSN != 6 || got.SystemIdentifier != 7 || got.Spec != nil || !got.StartTime.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}

	// All that it can say survives.
	full := exampleSentinel()
	full.IsPermanent, full.FilesMetadataDisabled, full.UserData = true, true, json.RawMessage(`{"a":[1,2]}`)
	full.SystemIdentifier = 1<<64 - 1
	full.DeltaLSN, full.DeltaFrom, full.DeltaFullName, full.DeltaCount = 1, "base_000000010000000000000002", "base_000000010000000000000001", 2
	full.Spec.Locations[4294967295] = `/a "b" <c>`
	text, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	got = Sentinel{}
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("%+v, %v\nwant\n%+v", got, err, full)
	}
	for _, absent := range []string{`"Delta`, `"UserData"`, `"FilesMetadataDisabled"`} {
		if strings.Contains(string(again), absent) {
			t.Errorf("a plain sentinel has %s: %s", absent, again)
		}
	}

	for _, bad := range []string{
		``, `[]`, `"x"`, `{"LSN":-1}`, `{"LSN":"0/5"}`, `{"LSN":1.5}`, `{"SystemIdentifier":18446744073709551616}`,
		`{"StartTime":"yesterday"}`, `{"Spec":[]}`, `{"Spec":{"tablespaces":["16384"]}}`, `{"Spec":{"tablespaces":["0"],"0":{"loc":"/a"}}}`,
		`{"Spec":{"tablespaces":["016384"],"016384":{"loc":"/a"}}}`, `{"Spec":{"tablespaces":["../x"],"../x":{"loc":"/a"}}}`,
		`{"Spec":{"tablespaces":["4294967296"],"4294967296":{"loc":"/a"}}}`, `{"Spec":{"tablespaces":["1"],"1":{"loc":""}}}`, `{"Spec":{"tablespaces":1}}`, `{"Spec":{"base_prefix":1}}`,
	} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s is read as %+v", bad, got)
		}
	}
}

// TestWALGFixture holds parser and writer against what WAL-G itself wrote.
func TestWALGFixture(t *testing.T) {
	bases := filepath.Join(walgArchive, "basebackups_005")
	sentinel, err := os.ReadFile(filepath.Join(bases, "base_000000010000000000000002"+sentinelSuffix))
	if err != nil {
		t.Skipf("NOT TESTED: there is no archive of WAL-G's here: %v", err)
	}
	metadata, err := os.ReadFile(filepath.Join(bases, "base_000000010000000000000002", metadataName))
	if err != nil {
		t.Fatal(err)
	}
	var s Sentinel
	if err := json.Unmarshal(sentinel, &s); err != nil {
		t.Fatal(err)
	}
	if s.LSN != 0x2000028 || s.FinishLSN != 0x2000100 || s.SystemIdentifier != 7710929516611631544 || s.Spec.Locations[16384] != "/srv/pg/tablespace1" {
		t.Errorf("%+v", s)
	}
	again, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	sameJSON(t, "the sentinel written again", again, sentinel)
	ours, err := s.metadata()
	if err != nil {
		t.Fatal(err)
	}
	sameJSON(t, "metadata.json of that sentinel", ours, metadata)

	store, err := dir.Open(walgArchive)
	if err != nil {
		t.Fatal(err)
	}
	a := New(store, Options{})
	all, err := a.Backups(t.Context())
	if err != nil || len(all) != 1 || all[0].Err != nil || all[0].Facts != nil || all[0].FactsErr != nil || all[0].Name.HasOffset() || !reflect.DeepEqual(all[0].Sentinel, s) {
		t.Fatalf("%+v, %v", all, err)
	}
	objects, err := a.BackupObjects(t.Context(), all[0].Name)
	if err != nil || len(objects) != 5 || objects[4].Key != "tar_partitions/pg_control.tar.lz4" {
		t.Errorf("%+v, %v", objects, err)
	}
	sealed, reach, err := a.ReachFrom(t.Context(), segment.History{Timeline: 1}, m16, all[0].Start.LSN)
	if want := (segment.Position{Timeline: 1, LSN: 0x5000000}); err != nil || sealed != want || reach != want {
		t.Errorf("its WAL reaches to %s, %s, %v; want %s", sealed, reach, err, want)
	}
}

func FuzzSentinel(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte(`{"lsn":1,"Spec":{"tablespaces":["1"],"1":{"loc":"/a","link":"pg_tblspc/1"}},"UserData":null}`))
	f.Add([]byte(`{"DeltaFrom":"x","StartTime":"2026-11-22T09:22:28+03:00"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s, back Sentinel
		if json.Unmarshal(text, &s) != nil || s.StartTime.Year() < 0 || s.StartTime.Year() > 9999 || s.FinishTime.Year() < 0 || s.FinishTime.Year() > 9999 {
			return
		}
		s.StartTime, s.FinishTime = asStored(s.StartTime), asStored(s.FinishTime)
		first, err := json.Marshal(s)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if err := json.Unmarshal(first, &back); err != nil {
			t.Fatalf("%s -> %s: %v", text, first, err)
		}
		second, err := json.Marshal(back)
		if err != nil || string(first) != string(second) {
			t.Fatalf("%s -> %s -> %s, %v", text, first, second, err)
		}
	})
}

func TestBackupName(t *testing.T) {
	const seg = "00000002000000A0000000FF"
	for _, c := range []struct {
		text          string
		offset, delta bool
	}{
		{"base_" + seg, false, false},
		{"base_" + seg + "_00000028", true, false},
		{"base_" + seg + "_FFFFFFFF", true, false},
		{"base_" + seg + "_D_000000010000000000000002", false, true},
	} {
		n, err := ParseBackupName(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if n.String() != c.text || n.Segment().String() != seg || n.HasOffset() != c.offset || n.IsDelta() != c.delta {
			t.Errorf("%s: %s, segment %s, offset %v, delta %v", c.text, n, n.Segment(), n.HasOffset(), n.IsDelta())
		}
		if back, ok := sentinelName(n.sentinelKey()); !ok || back != n {
			t.Errorf("%s: its sentinel's key %s is that of %s", n, n.sentinelKey(), back)
		}
	}
	for _, text := range []string{
		"", "base_", seg, "base_" + seg[1:], "base_" + seg + "0", "Base_" + seg, "base_" + strings.ToLower(seg), "base_00000000" + seg[8:],
		"base_" + seg + "_", "base_" + seg + "_0000028", "base_" + seg + "_000000028", "base_" + seg + "_0000002a", "base_" + seg + "_0000:028",
		"base_" + seg + "_D_", "base_" + seg + "_D_00000001000000000000000", "base_" + seg + "_D_000000010000000000000002_00000028", "base_" + seg + "/", " base_" + seg, "LATEST",
	} {
		if n, err := ParseBackupName(text); err == nil {
			t.Errorf("%q is read as %s", text, n)
		}
	}
	at := segment.Position{Timeline: 2, LSN: 0xA0_FF123458}
	for size, want := range map[segment.Size]string{
		16 << 20: "base_00000002000000A0000000FF_0012345B", 64 << 20: "base_00000002000000A00000003F_0312345B", 1 << 20: "base_00000002000000A000000FF1_0002345B", 1 << 30: "base_00000002000000A000000003_3F12345B",
	} {
		n := nameBackup(at, size, 3)
		if back, err := ParseBackupName(n.String()); n.String() != want || err != nil || back != n {
			t.Errorf("attempt 3 with %s is %s (%v), want %s", size, n, err, want)
		}
	}
}

func FuzzFacts(f *testing.F) {
	text, err := json.Marshal(factsOf(contents()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"version":1,"parts":[{"name":"x","crc32c":"0000000g"}]}`))
	f.Add([]byte(`{"version":1,"start_lsn":"0/1","start_timeline":1,"stop_lsn":"0/2","stop_timeline":1,"wal_segment_size":1048576,"wal":"include","parts":[{"name":"..","crc32c":"00000000"}],"manifest":{"name":"backup_manifest","crc32c":"00000000"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		facts, err := decodeFacts(text)
		if err != nil {
			return
		}
		for _, p := range facts.Parts {
			if strings.ContainsAny(p.Name, "/\x00") || p.Name == ".." {
				t.Fatalf("%q is a part", p.Name)
			}
		}
		again, err := json.Marshal(facts)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeFacts(again)
		if err != nil || !reflect.DeepEqual(back, facts) {
			t.Fatalf("%s -> %s -> %+v, %v", text, again, back, err)
		}
	})
}
