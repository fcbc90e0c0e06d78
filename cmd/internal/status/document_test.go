package status

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// at is a time as others have it: elsewhere, and finer.
func at(second int) Time {
	return Time{time.Date(2026, 11, 22, 17, 44, second, 123456789, time.FixedZone("", 2*3600))}
}

func full() Report {
	server := "0/5000060"
	lagging := func(lsn string, bytes uint64, seconds float64) *Lagging {
		return &Lagging{Position{2, lsn}, &bytes, &seconds}
	}
	return Report{
		Process: &Process{
			At: at(40), PID: 4711, Version: "v0.2.0", Started: at(1),
			SystemIdentifier: new("7300000000000000001"), SegmentSize: new(uint64(16 << 20)),
			Server: &Server{"db1.example.com:5432 as user walferry", "15.18", 2, &server},
			State:  "streaming", StateSince: at(2),
			WaitingFor:      []Trouble{{"write to the archive", "store segment 000000020000000000000004: 503 Slow Down", at(30), 4}},
			ShippingStopped: new("conflict with the archive"),
			Positions: Positions{
				lagging(server, 0, 0), lagging("0/5000000", 0x60, Seconds(1500*time.Microsecond)),
				lagging("0/4000000", 0x1000060, Seconds(10*time.Second+1)), lagging("0/3000000", 0x2000060, 100.25),
			},
			Reported: Reported{&server, new("0/5000000")}, Slot: "walferry", Ack: "spool", CommitWaits: true,
			Hold: Hold{32 << 20, true}, Spool: &Spool{"/var/lib/walferry/spool", 32 << 20, 10 << 30},
			Archive: "s3://acme-wal/db1", UploadsPending: 2, LastObject: &Object{"000000020000000000000003.lz4", 2211971, at(29)},
		},
		Archive: &Archive{
			Store: "s3://acme-wal/db1", SystemIdentifier: new("7300000000000000001"), SegmentSize: new(uint64(16 << 20)), WALCodec: new("lz4"),
			Timelines:    []Timeline{{1, false, true, new("0/2500000")}, {2, true, true, nil}},
			HistoryError: new("not in the archive"),
			Sealed:       &Position{2, "0/4000000"}, Restorable: &Position{2, "0/4000100"},
			BehindGap: new("000000020000000000000009"), Missing: new("000000020000000000000004"),
			LastObject: &Object{"000000020000000000000004/00000000-00000100-12345678.lz4", 200, at(31)},
			Gaps: []Gap{
				{1, "0/1800000", "0/2000000", new(at(5)), new("requested WAL segment has already been removed"), new("walferry"), nil},
				{2, "0/4000100", "0/9000000", nil, nil, nil, new("invalid gap object")},
			},
			Backups: []Backup{
				{"base_000000010000000000000002", nil, new(at(3)), new(int64(700 << 20)), &Position{1, "0/2000100"}, &Position{2, "0/4000100"}},
				{"base_000000010000000000000009", new("invalid sentinel"), nil, nil, nil, nil},
			},
			Windows:      []Window{{"base_000000010000000000000002", Position{1, "0/2000100"}, new(at(3)), Position{2, "0/4000100"}}},
			BackupsError: new("denied"),
		},
	}
}

// The document is a contract: a change of these files that is no addition
// breaks somebody's program.
func TestDocument(t *testing.T) {
	for name, r := range map[string]Report{
		"full.json": full(),
		"none.json": {NoProcess: new("nobody listens"), NoArchive: new("no store given")},
		"begin.json": {Process: &Process{At: at(1), PID: 1, Version: "devel", Started: at(1), State: "connecting", StateSince: at(1),
			WaitingFor: []Trouble{}, Slot: "walferry", Ack: "archive", Archive: "file:///srv/archive"},
			Archive: &Archive{Store: "file:///srv/archive", Timelines: []Timeline{}, Gaps: []Gap{}}},
	} {
		got, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(append(got, '\n'), want) {
			t.Errorf("%s: the document is now\n%s", name, got)
		}
		// It can be read again by a program that knows more or fewer fields.
		var again Report
		if err := json.Unmarshal(bytes.Replace(want, []byte(`"pid"`), []byte(`"of_later": {"x": 1}, "pid"`), 1), &again); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if back, err := json.MarshalIndent(again, "", "  "); err != nil || !bytes.Equal(back, got) {
			t.Errorf("%s: read and written again it is\n%s (%v)", name, back, err)
		}
	}
}
