package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// statusDocument is what a program of somebody else's reads of the answer.
type statusDocument struct {
	Process *struct {
		PID         int    `json:"pid"`
		SystemID    string `json:"system_identifier"`
		SegmentSize uint64 `json:"wal_segment_size"`
		Server      *struct {
			End lsnField `json:"end"`
		} `json:"server"`
		State      string `json:"state"`
		WaitingFor []struct {
			What     string `json:"what"`
			Error    string `json:"error"`
			Attempts int    `json:"attempts"`
		} `json:"waiting_for"`
		Positions struct{ Received, Spooled, Shipped, Sealed laggingField } `json:"positions"`
		Reported  struct {
			Flush lsnField `json:"flush"`
		} `json:"reported"`
		LastObject *struct {
			Name string `json:"name"`
		} `json:"last_object"`
	} `json:"process"`
	NoProcess *string `json:"no_process"`
	Archive   *struct {
		SystemID   string         `json:"system_identifier"`
		Sealed     *laggingField  `json:"sealed"`
		Restorable *laggingField  `json:"restorable"`
		Timelines  []struct{}     `json:"timelines"`
		LastObject map[string]any `json:"last_object"`
	} `json:"archive"`
	NoArchive *string `json:"no_archive"`
}

type laggingField struct {
	Timeline   uint32   `json:"timeline"`
	LSN        lsnField `json:"lsn"`
	LagBytes   uint64   `json:"lag_bytes"`
	LagSeconds float64  `json:"lag_seconds"`
}

// lsnField is an LSN as PostgreSQL spells it; null is 0.
type lsnField struct{ segment.LSN }

func (l *lsnField) UnmarshalJSON(b []byte) error {
	var text *string
	if err := json.Unmarshal(b, &text); err != nil || text == nil {
		return err
	}
	var err error
	l.LSN, err = segment.ParseLSN(*text)
	return err
}

// status asks, and wants an answer.
func (s *bucketScene) status() statusDocument {
	s.t.Helper()
	// The race detector waits a second at the end of each process, for
	// goroutines that it has left; here are none.
	p := s.ferry([]string{"GORACE=atexit_sleep_ms=0"}, "status", "--json")
	p.exits(0)
	var d statusDocument
	if err := json.Unmarshal([]byte(p.stdout.String()), &d); err != nil {
		s.t.Fatalf("%v in\n%s", err, p.log())
	}
	if (d.Process == nil) == (d.NoProcess == nil) || (d.Archive == nil) == (d.NoArchive == nil) {
		s.t.Fatalf("neither an answer nor a reason, or both, in\n%s", p.log())
	}
	return d
}

func (s *bucketScene) waitsFor(d statusDocument, what string) (reason string) {
	for _, w := range d.Process.WaitingFor {
		if w.What == what {
			return w.Error
		}
	}
	return ""
}

// A person looks on, through an outage of the storage and one of the server,
// and when walferry and the server are gone; and what they are told of a
// restore is what a restore then finds.
func TestStatus(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	system := s.sql("SELECT system_identifier FROM pg_control_system()")
	r := s.ferry(nil, "receive")
	s.slotSegment()
	s.table()

	// Everything moves, and arrives.
	for range 3 {
		s.fill(700)
		s.switchWAL()
		s.fill(100)
		at := s.lsn("SELECT pg_current_wal_flush_lsn()")
		var d statusDocument
		eventually(t, fmt.Sprintf("the positions to reach %s", at), func() bool {
			d = s.status()
			return d.Process != nil && d.Process.State == "streaming" && d.Process.Positions.Shipped.LSN.LSN >= at
		})
		p := d.Process
		order := []segment.LSN{p.Positions.Sealed.LSN.LSN, p.Positions.Shipped.LSN.LSN, p.Positions.Spooled.LSN.LSN, p.Positions.Received.LSN.LSN, p.Server.End.LSN}
		for i := range order[1:] {
			if order[i] > order[i+1] {
				t.Errorf("sealed, shipped, spooled, received and the server's end are %s", order)
			}
		}
		if p.PID != r.cmd.Process.Pid || p.SystemID != system || p.SegmentSize != uint64(s.size) || p.Positions.Received.Timeline != 1 || len(p.WaitingFor) != 0 {
			t.Errorf("%+v", p)
		}
		if lag := p.Positions.Shipped; lag.LagBytes != uint64(p.Server.End.LSN-lag.LSN.LSN) || (lag.LagBytes > 0) != (lag.LagSeconds > 0) {
			t.Errorf("shipped is %+v, the server's end %s", lag, p.Server.End)
		}
		if p.LastObject == nil || d.Archive == nil || d.Archive.LastObject == nil {
			t.Fatalf("the last object is missing in %+v", d)
		}
		// The archive says so itself. (It was asked a moment later.)
		if a := d.Archive; a.SystemID != system || a.Sealed.LSN.LSN < p.Positions.Sealed.LSN.LSN || a.Restorable.LSN.LSN < at || len(a.Timelines) != 1 {
			t.Errorf("of the archive: %+v, after %+v", a, p.Positions)
		}
	}

	// The storage is away: the process tells what it waits for, and for how long.
	s.proxy.Inject(s3server.Unavailable, "", -1)
	s.fill(100)
	var d statusDocument
	eventually(t, "the outage to be told", func() bool {
		d = s.status()
		return s.waitsFor(d, "write to the archive") != ""
	})
	if d.Archive != nil || !strings.Contains(*d.NoArchive, "503") || !strings.Contains(s.waitsFor(d, "write to the archive"), "503") {
		t.Errorf("while the storage is away: %+v", d)
	}
	if p := d.Process.Positions; p.Received.LagBytes != 0 || p.Shipped.LagBytes == 0 || p.Shipped.LagSeconds == 0 {
		t.Errorf("while the storage is away: %+v", p)
	}
	s.proxy.Heal()
	eventually(t, "the end of the outage", func() bool {
		d = s.status()
		return len(d.Process.WaitingFor) == 0 && d.Archive != nil && d.Process.Positions.Shipped.LagBytes == 0
	})

	// The server is away.
	if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server's absence to be told", func() bool {
		return s.waitsFor(s.status(), "receive from the server") != ""
	})
	s.startServer()
	eventually(t, "the server's return", func() bool {
		d = s.status()
		return d.Process.State == "streaming" && len(d.Process.WaitingFor) == 0
	})
	s.fill(50)
	const written = 3*800 + 100 + 50
	last := s.lsn("SELECT pg_current_wal_flush_lsn()")
	eventually(t, "the last rows to be shipped", func() bool {
		return s.status().Process.Positions.Shipped.LSN.LSN >= last
	})

	// walferry is gone, then the server is: the archive alone.
	r.stop()
	d = s.status()
	if d.Process != nil || !strings.Contains(*d.NoProcess, "no walferry receive runs") || d.Archive == nil || d.Archive.Restorable.LSN.LSN < last {
		t.Fatalf("when walferry is gone: %+v", d)
	}
	// Somebody has seen enough while the backups are asked for: that is no answer
	// of any kind.
	s.proxy.ResetCounts()
	s.status()
	caught := s.proxy.Catch(s3server.BlackHole, "LIST basebackups_005", s.proxy.Counts()["LIST basebackups_005"])
	enough := s.ferry(nil, "status")
	select {
	case <-caught:
	case <-time.After(patience):
		t.Fatalf("status does not ask for the backups:\n%s", enough.log())
	}
	enough.signal(syscall.SIGINT)
	enough.failed(1, "interrupted")
	if enough.stdout.String() != "" {
		t.Errorf("interrupted, status says\n%s", enough.log())
	}
	s.proxy.Heal()

	text := s.ferry(nil, "status")
	text.exits(0)
	if want := fmt.Sprintf("\nrestore    would get up to %s on timeline 1 right now\n", d.Archive.Restorable.LSN); !strings.HasSuffix(text.stdout.String(), want) {
		t.Errorf("a person reads\n%s", text.log())
	}
	if err := s.pg.Kill(s.ctx()); err != nil {
		t.Fatal(err)
	}
	pg := s.recoveryWith("recovered", "recovery.signal", s.binary+" fetch %f %p", s.vars)
	if err := pg.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := pg.AwaitPrimary(s.ctx()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the recovered server to answer", func() bool { return rows(s.ctx(), pg) >= 0 })
	if got := rows(s.ctx(), pg); got != written {
		t.Errorf("%d rows were recovered, want %d", got, written)
	}
	content, err := os.ReadFile(filepath.Join(pg.DataDir(), "pg_wal", "00000002.history"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := segment.ParseHistory(2, content)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := h.Begin(), d.Archive.Restorable.LSN.LSN; got > want || got < last {
		t.Errorf("the recovery ended at %s, status said that it would get up to %s", got, want)
	}
}
