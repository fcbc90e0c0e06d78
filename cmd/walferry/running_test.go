package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/cmd/internal/status"
	p "github.com/walferry/walferry/internal/patience"
	"github.com/walferry/walferry/receiver"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/spool"
	"github.com/walferry/walferry/uploader"
)

// fakeParts are a receiver and an uploader that say what they are told.
type fakeParts struct {
	mu sync.Mutex
	r  receiver.Status
	u  uploader.Status
}

type fakeReceiver struct{ *fakeParts }
type fakeUploader struct{ *fakeParts }

func (f fakeReceiver) Status() receiver.Status       { f.mu.Lock(); defer f.mu.Unlock(); return f.r }
func (f fakeReceiver) Lag(segment.LSN) time.Duration { return 1500 * time.Millisecond }
func (f fakeUploader) Status() uploader.Status       { f.mu.Lock(); defer f.mu.Unlock(); return f.u }

func (f *fakeParts) set(change func()) { f.mu.Lock(); defer f.mu.Unlock(); change() }

func (f *fakeParts) running(s receiveSettings) running {
	return running{receiver: fakeReceiver{f}, uploader: fakeUploader{f}, settings: s, archive: "file:///srv/archive", started: time.Now()}
}

// What the parts say becomes the document; what they do not know is null.
func TestProcessDocument(t *testing.T) {
	f := &fakeParts{}
	sp, err := spool.Open(disk.OS{}, t.TempDir(), spool.Options{Limit: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sp.Close(); err != nil {
			t.Error(err)
		}
	})
	run := f.running(receiveSettings{Hold: 32 << 20, SpoolDir: "/spool"})
	f.r = receiver.Status{State: receiver.Connecting, Slot: "walferry"}
	d := run.document()
	if d.PID != os.Getpid() || d.Version == "" || d.State != "connecting" || d.Slot != "walferry" || d.Archive != "file:///srv/archive" {
		t.Errorf("%+v", d)
	}
	if d.Server != nil || d.SystemIdentifier != nil || d.SegmentSize != nil || d.Positions != (status.Positions{}) || d.Reported != (status.Reported{}) ||
		d.LastObject != nil || d.ShippingStopped != nil || d.Spool != nil || d.WaitingFor == nil || len(d.WaitingFor) != 0 {
		t.Errorf("what is not known: %+v", d)
	}

	run.spool = sp
	at := func(l segment.LSN) segment.Position { return segment.Position{Timeline: 2, LSN: l} }
	since := time.Now()
	f.r = receiver.Status{
		State: receiver.Full, Since: since, SystemIdentifier: 7, SegmentSize: 16 << 20, Server: "db as user w", Version: "15.18", Timeline: 2,
		Received: at(0x5000), Spooled: at(0x4000), ServerEnd: 0x5000, Write: 0x5000, Flush: 0x3000, Slot: "walferry", CommitWaits: true, Hold: true, Ack: receiver.AckArchive,
		Troubles: []p.Report{{What: "receive from the server", Reason: "two\nlines", Since: since, Attempts: 3}},
	}
	f.u = uploader.Status{Shipped: at(0x6000), Sealed: at(0x2000), Pending: 2, Stopped: errors.New("conflict"),
		Troubles: []p.Report{{What: "write to the archive", Reason: "503", Since: since, Attempts: 1}},
		Last:     uploader.Object{Name: "o.lz4", Size: 9, Stored: since}}
	d = run.document()
	// As it is read by others.
	text, err := json.Marshal(d)
	if err == nil {
		d = status.Process{}
		err = json.Unmarshal(text, &d)
	}
	if err != nil {
		t.Fatal(err)
	}
	if *d.SystemIdentifier != "7" || *d.SegmentSize != 16<<20 || d.Server.Address != "db as user w" || d.Server.Version != "15.18" || d.Server.Timeline != 2 || *d.Server.End != "0/5000" {
		t.Errorf("server: %s", text)
	}
	for _, c := range []struct {
		name    string
		got     *status.Lagging
		lsn     string
		bytes   uint64
		seconds float64
	}{
		{"received", d.Positions.Received, "0/5000", 0, 0},
		{"spooled", d.Positions.Spooled, "0/4000", 0x1000, 1.5},
		{"shipped", d.Positions.Shipped, "0/6000", 0, 0}, // another receiver's
		{"sealed", d.Positions.Sealed, "0/2000", 0x3000, 1.5},
	} {
		if c.got == nil || c.got.Timeline != 2 || c.got.LSN != c.lsn || *c.got.LagBytes != c.bytes || *c.got.LagSeconds != c.seconds {
			t.Errorf("%s: %+v in %s", c.name, c.got, text)
		}
	}
	if *d.Reported.Write != "0/5000" || *d.Reported.Flush != "0/3000" || d.Ack != "archive" || !d.CommitWaits || !d.Hold.InForce || d.Hold.LimitBytes != 32<<20 {
		t.Errorf("what is reported: %s", text)
	}
	if d.State != "waiting for room in the spool" || len(d.WaitingFor) != 3 || d.WaitingFor[0].Error != "two lines" || d.WaitingFor[1].What != "write to the archive" ||
		d.WaitingFor[2].Error != "the spool is full" || *d.ShippingStopped != "conflict" {
		t.Errorf("what is waited for: %s", text)
	}
	if *d.Spool != (status.Spool{Directory: "/spool", LimitBytes: 64 << 20}) || d.UploadsPending != 2 || d.LastObject.Name != "o.lz4" || d.LastObject.Bytes != 9 {
		t.Errorf("spool and uploads: %s", text)
	}

	// Where the server's end is not known, nor is how far anything is behind.
	f.r.ServerEnd = 0
	if d = run.document(); d.Server.End != nil || d.Positions.Spooled.LagBytes != nil || d.Positions.Spooled.LagSeconds != nil {
		t.Errorf("%+v", d.Positions.Spooled)
	}
}

// logText is a log that is read while it is written.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *logText) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// The log says where everything is once a minute, as long as something moves.
func TestPositionsInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &logText{}
		f := &fakeParts{}
		log := slog.New(&lineHandler{out: &lockedWriter{w: b}, level: slog.LevelInfo})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		f.running(receiveSettings{Log: log}).show(ctx, &wg)
		wait := func(d time.Duration) int {
			time.Sleep(d)
			synctest.Wait()
			return strings.Count(b.String(), "\n")
		}
		if n := wait(10 * time.Minute); n != 0 {
			t.Errorf("%d lines before anything is known:\n%s", n, b.String())
		}
		for i := range segment.LSN(100) { // a hundred moves, in 100 seconds
			f.set(func() { f.r.Received.LSN = 0x1000 + i; f.r.ServerEnd = 0x1000 + i })
			wait(time.Second)
		}
		if n := wait(time.Minute); n < 2 || n > 3 {
			t.Errorf("%d lines for 100 s of moves:\n%s", n, b.String())
		}
		f.set(func() {
			f.r.Spooled.LSN, f.u.Shipped.LSN, f.u.Sealed.LSN = 0x1010, 0x1000, 0x800
		})
		before := wait(0)
		if n := wait(time.Hour); n != before+1 {
			t.Errorf("%d lines for one move:\n%s", n-before, b.String())
		}
		if want := "walferry: positions received=0/1063 spooled=0/1010 shipped=0/1000 sealed=0/800 server=0/1063\n"; !strings.HasSuffix(b.String(), want) {
			t.Errorf("%q is not the last of\n%s", want, b.String())
		}
		for _, move := range []func(){
			func() { f.r.Received.LSN++ }, func() { f.r.Spooled.LSN++ }, func() { f.u.Shipped.LSN++ }, func() { f.u.Sealed.LSN++ }, func() { f.r.ServerEnd++ },
		} {
			before := wait(0)
			f.set(move)
			if n := wait(time.Hour); n != before+1 {
				t.Errorf("%d lines for one move:\n%s", n-before, b.String())
			}
		}
		cancel()
		wg.Wait()
	})
}

// A socket that cannot be made is one warning, and nothing else.
func TestSocketIsNoCondition(t *testing.T) {
	dir := t.TempDir()
	sp, err := spool.Open(disk.OS{}, dir, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, status.SocketName), 0o700); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	run := (&fakeParts{}).running(receiveSettings{Log: slog.New(&lineHandler{out: &lockedWriter{w: &b}}), SpoolDir: dir})
	run.spool = sp
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	run.show(ctx, &wg)
	cancel()
	wg.Wait()
	if err := sp.Close(); err != nil {
		t.Error(err)
	}
	if strings.Count(b.String(), "\n") != 1 || !strings.HasPrefix(b.String(), "walferry: warning: ") || !strings.Contains(b.String(), status.SocketName) {
		t.Errorf("it was told:\n%s", b.String())
	}
}
