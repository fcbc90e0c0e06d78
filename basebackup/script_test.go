package basebackup

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

func packed(content []byte, method string) []byte {
	switch method {
	case "":
		return content
	case codec.LZ4:
		return serverLZ4(content)
	}
	var b bytes.Buffer
	w, err := codec.NewEncoders(codec.Method{Name: method}).NewStream(&b)
	must(err)
	_, err = w.Write(content)
	must(err)
	must(w.Close())
	return b.Bytes()
}

// script is a server that sends a backup. The zero value of everything but
// spaces is a good server's.
type script struct {
	spaces      []space // the data directory last
	start, stop segment.Position
	system      uint64
	major       int // below 15 it does not compress
	standby     bool
	local       bool // reached by a Unix socket
	piece       int  // bytes of a data message
	dataDir     error
	settings    map[string]string // what SHOW answers

	// Changes to what is sent.
	alterTar      func(oid uint32, tar []byte) []byte
	alterPacked   func(oid uint32, packed []byte) []byte
	alterManifest func([]byte) []byte
	alterMessages func([]replication.BackupMessage) []replication.BackupMessage
	suspect       error
	refuse        error // BASE_BACKUP
	unsized       bool

	// before runs before every message, with its number.
	before func(ctx context.Context, n int) error

	mu       sync.Mutex
	asked    []replication.BackupOptions
	closed   bool
	messages []replication.BackupMessage
	sent     int
	scratch  []byte // a message's data, which is overwritten by the next
}

// good is a server of a small cluster with a tablespace.
func good() *script { return &script{spaces: goodSpaces()} }

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

func (s *script) IdentifySystem(ctx context.Context) (replication.System, error) {
	return replication.System{SystemIdentifier: or(s.system, testSystem), Timeline: s.Start().Timeline, Flush: s.Start().LSN}, ctx.Err()
}

func (s *script) Show(ctx context.Context, name string) (string, error) {
	switch name {
	case "wal_segment_size":
		return testSize.String(), ctx.Err()
	case "data_directory":
		if s.dataDir != nil {
			return "", s.dataDir
		}
		return "/srv/data", ctx.Err()
	}
	if v, ok := s.settings[name]; ok {
		return v, ctx.Err()
	}
	return "", &replication.ServerError{Severity: "ERROR", SQLSTATE: "42704", Message: "unrecognized configuration parameter"}
}

func (s *script) Version() replication.Version {
	return replication.Version{Num: 150018, Text: testVersion}
}
func (s *script) InRecovery() bool { return s.standby }
func (s *script) Local() bool      { return s.local }

func (s *script) BaseBackup(ctx context.Context, o replication.BackupOptions) (stream, error) {
	s.asked = append(s.asked, o)
	if o.Compression != "" && or(s.major, 15) < 15 {
		return nil, fmt.Errorf("BASE_BACKUP: %w", replication.ErrNoCompression)
	}
	if s.refuse != nil {
		return nil, s.refuse
	}
	s.build(o.Compression)
	return s, ctx.Err()
}

// build makes the messages.
func (s *script) build(method string) {
	ext := (codec.Method{Name: method}).Ext()
	add := func(m replication.BackupMessage) { s.messages = append(s.messages, m) }
	data := func(b []byte) {
		for len(b) > 0 {
			n := min(len(b), or(s.piece, 32<<10))
			add(replication.BackupMessage{Kind: replication.BackupData, Data: b[:n]})
			b = b[n:]
		}
	}
	done := int64(0)
	for _, sp := range s.spaces {
		content := sp.tar()
		if s.alterTar != nil {
			content = s.alterTar(sp.oid, content)
		}
		done += int64(len(content))
		b := packed(content, method)
		if s.alterPacked != nil {
			b = s.alterPacked(sp.oid, b)
		}
		name := "base.tar"
		if sp.oid != 0 {
			name = fmt.Sprintf("%d.tar", sp.oid)
		}
		size := int64(len(content))
		if s.unsized {
			size = -1
		}
		add(replication.BackupMessage{Kind: replication.BackupArchive, Name: name + ext, Tablespace: replication.Tablespace{OID: sp.oid, Location: sp.location, Size: size}})
		data(b)
		add(replication.BackupMessage{Kind: replication.BackupProgress, Done: done})
	}
	add(replication.BackupMessage{Kind: replication.BackupManifest})
	m := manifestOf(s.spaces, s.Start(), or(s.stop, testStop))
	if s.alterManifest != nil {
		m = s.alterManifest(m)
	}
	data(m)
	if s.alterMessages != nil {
		s.messages = s.alterMessages(s.messages)
	}
}

func (s *script) Start() segment.Position { return or(s.start, testStart) }
func (s *script) Stop() segment.Position  { return or(s.stop, testStop) }
func (s *script) Suspect() error          { return s.suspect }

func (s *script) Tablespaces() []replication.Tablespace {
	var all []replication.Tablespace
	for _, sp := range s.spaces {
		size := int64(-1)
		if !s.unsized {
			size = int64(len(sp.tar()))
		}
		all = append(all, replication.Tablespace{OID: sp.oid, Location: sp.location, Size: size})
	}
	return all
}

// Next lends the data: what was lent before is overwritten.
func (s *script) Next(ctx context.Context) (replication.BackupMessage, error) {
	n := s.sent
	s.sent++
	if s.before != nil {
		if err := s.before(ctx, n); err != nil {
			return replication.BackupMessage{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return replication.BackupMessage{}, err
	}
	if n >= len(s.messages) {
		return replication.BackupMessage{}, io.EOF
	}
	m := s.messages[n]
	if m.Kind == replication.BackupData {
		for i := range s.scratch {
			s.scratch[i] = 0xDD
		}
		s.scratch = append(s.scratch[:0], m.Data...)
		m.Data = s.scratch
	}
	return m, nil
}

// conn and stream are one.
type scriptConn struct{ *script }

func (c scriptConn) Close(context.Context) error { return c.script.Close() }

func (s *script) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

var _ server = scriptConn{}

// arrived is an archive in which all WAL is.
type arrived struct{ *archive.Archive }

func (arrived) ReachFrom(context.Context, segment.History, segment.Size, segment.LSN) (sealed, reach segment.Position, err error) {
	return testStop, testStop, nil
}

func testLog(t testing.TB) *logged { return &logged{t: t} }

// logged keeps what is logged.
type logged struct {
	t  testing.TB
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
