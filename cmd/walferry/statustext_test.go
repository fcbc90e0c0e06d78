package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/walferry/walferry/cmd/internal/status"
)

// What a person reads, in every state: testdata/status/*.txt.
func TestStatusText(t *testing.T) {
	now := time.Date(2026, 11, 22, 15, 44, 40, 0, time.UTC)
	ago := func(d time.Duration) status.Time { return status.Time{Time: now.Add(-d)} }
	lagging := func(timeline uint32, lsn string, bytes uint64, seconds float64) *status.Lagging {
		return &status.Lagging{Position: status.Position{Timeline: timeline, LSN: lsn}, LagBytes: &bytes, LagSeconds: &seconds}
	}
	process := func() *status.Process {
		return &status.Process{
			At: status.Time{Time: now}, PID: 4711, Version: "v0.2.0", Started: ago(3*time.Hour + 25*time.Minute),
			SystemIdentifier: new("7300000000000000001"), SegmentSize: new(uint64(16 << 20)),
			Server: &status.Server{Address: "db1.example.com:5432 as user walferry", Version: "15.18", Timeline: 1, End: new("0/50000A0")},
			State:  "streaming", StateSince: ago(3*time.Hour + 24*time.Minute), WaitingFor: []status.Trouble{},
			Positions: status.Positions{
				Received: lagging(1, "0/50000A0", 0, 0), Spooled: lagging(1, "0/5000040", 96, 0.012),
				Shipped: lagging(1, "0/4000000", 0x10000A0, 95.5), Sealed: lagging(1, "0/4000000", 0x10000A0, 95.5),
			},
			Reported: status.Reported{Write: new("0/50000A0"), Flush: new("0/4000000")}, Slot: "walferry", Ack: "spool",
			Hold: status.Hold{LimitBytes: 32 << 20, InForce: true}, Spool: &status.Spool{Directory: "/var/lib/walferry/spool", UsedBytes: 32 << 20, LimitBytes: 10 << 30},
			Archive: "s3://acme-wal/db1", UploadsPending: 1, LastObject: &status.Object{Name: "000000010000000000000003.lz4", Bytes: 2211971, Stored: ago(11 * time.Second)},
		}
	}
	archive := func() *status.Archive {
		return &status.Archive{
			Store: "s3://acme-wal/db1", SystemIdentifier: new("7300000000000000001"), SegmentSize: new(uint64(16 << 20)), WALCodec: new("lz4"),
			Timelines:  []status.Timeline{{Timeline: 1, WAL: true}},
			Sealed:     &status.Position{Timeline: 1, LSN: "0/4000000"},
			Restorable: &status.Position{Timeline: 1, LSN: "0/4000000"},
			LastObject: &status.Object{Name: "000000010000000000000003.lz4", Bytes: 2211971, Stored: ago(11 * time.Second)},
			Backups:    []status.Backup{{Name: "base_000000010000000000000002", Finished: new(ago(26 * time.Hour)), Stop: &status.Position{Timeline: 1, LSN: "0/2000100"}, Restorable: &status.Position{Timeline: 1, LSN: "0/4000000"}}},
			Windows:    []status.Window{{Backup: "base_000000010000000000000002", From: status.Position{Timeline: 1, LSN: "0/2000100"}, To: status.Position{Timeline: 1, LSN: "0/4000000"}}},
		}
	}
	full := status.Report{Process: process(), Archive: archive()}

	trouble := status.Report{Process: process(), NoArchive: new("the store does not answer")}
	trouble.Process.State, trouble.Process.StateSince = "waiting for room in the spool", ago(time.Minute)
	trouble.Process.WaitingFor = []status.Trouble{
		{What: "write to the archive", Error: "store segment 000000010000000000000004: 503 Slow Down", Since: ago(10 * time.Minute), Attempts: 25},
		{What: "take more WAL from the server", Error: "the spool is full", Since: ago(time.Minute)},
	}
	trouble.Process.ShippingStopped = new("conflict with the archive")
	trouble.Process.CommitWaits, trouble.Process.Hold.InForce = true, false
	trouble.Process.LastObject = nil

	begin := status.Report{Process: process(), Archive: archive()}
	*begin.Process = status.Process{At: status.Time{Time: now}, PID: 1, Version: "devel", Started: ago(0), State: "connecting", StateSince: ago(0),
		Slot: "walferry", Ack: "archive", Archive: "file:///srv/other"}
	begin.Archive = &status.Archive{Store: "s3://acme-wal/db1"}

	alone := status.Report{NoProcess: new("no walferry receive runs on the spool /x (no such file or directory)"), Archive: archive()}
	alone.Archive.Timelines = []status.Timeline{{Timeline: 1, WAL: true, Ended: new("0/2000028")}, {Timeline: 2, History: true, WAL: true}, {Timeline: 3, History: true, WAL: true}}
	alone.Archive.HistoryError = new("damaged")
	alone.Archive.Missing, alone.Archive.BehindGap = new("000000030000000000000004"), new("000000030000000000000009")
	alone.Archive.Gaps = []status.Gap{
		{Timeline: 3, Start: "0/4000100", End: "0/9000000", RecordedAt: new(ago(26 * time.Hour)), Reason: new("removed"), Slot: new("walferry")},
		{Timeline: 4, Start: "0/A000100", End: "0/B000000", Error: new("invalid gap object")},
	}
	alone.Archive.Backups = append(alone.Archive.Backups, status.Backup{Name: "base_000000030000000000000009"})
	alone.Archive.Windows = append(alone.Archive.Windows, status.Window{Backup: "base_000000020000000000000002", From: status.Position{Timeline: 2, LSN: "0/2000200"}, To: status.Position{Timeline: 3, LSN: "0/4000100"}})
	alone.Archive.Restorable = &status.Position{Timeline: 3, LSN: "0/4000100"}

	broken := status.Report{NoProcess: new("no walferry receive runs"), Archive: archive()}
	broken.Archive.Backups, broken.Archive.Windows = []status.Backup{{Name: "base_000000010000000000000002", Error: new("invalid sentinel")}}, nil

	denied := status.Report{NoProcess: new("no walferry receive runs"), Archive: archive()}
	denied.Archive.Backups, denied.Archive.Windows, denied.Archive.BackupsError = nil, nil, new("403 AccessDenied")

	unknown := status.Report{NoProcess: new("no walferry receive runs"), Archive: archive()}
	*unknown.Archive = status.Archive{Store: "file:///srv/walg", Timelines: []status.Timeline{{Timeline: 1, WAL: true}}}

	for name, r := range map[string]status.Report{"full": full, "trouble": trouble, "begin": begin, "alone": alone, "unknown": unknown, "broken": broken, "denied": denied} {
		path := filepath.Join("testdata", "status", name+".txt")
		want, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		if got := statusText(r, now); got != string(want) {
			t.Errorf("%s: it is now\n%s", path, got)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 0: "0 s", 12 * time.Millisecond: "12 ms", 1: "1 ms", 1500 * time.Millisecond: "1.5 s", 10 * time.Second: "10 s", 59 * time.Second: "59 s",
		time.Minute: "1 min 0 s", 3599 * time.Second: "59 min 59 s", time.Hour: "1 h 0 min", 47*time.Hour + 59*time.Minute: "47 h 59 min", 48 * time.Hour: "2 days",
	} {
		if got := duration(d); got != want {
			t.Errorf("%v: %q; want %q", d, got, want)
		}
	}
}
