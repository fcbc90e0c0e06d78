package replication_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// The tests of this file run against every real PostgreSQL that is found: in
// the directories of $WALFERRY_TEST_PG (each holds initdb, pg_ctl and
// postgres), else in /usr/lib/postgresql/*/bin.

func serverDirs(t *testing.T) []string {
	t.Helper()
	dirs := filepath.SplitList(os.Getenv("WALFERRY_TEST_PG"))
	if len(dirs) == 0 {
		dirs, _ = filepath.Glob("/usr/lib/postgresql/*/bin")
	}
	var found []string
	for _, d := range dirs {
		if _, err := os.Stat(filepath.Join(d, "pg_ctl")); err == nil {
			found = append(found, d)
		}
	}
	if len(found) == 0 {
		t.Skip("NOT TESTED: no PostgreSQL server found in $WALFERRY_TEST_PG or /usr/lib/postgresql/*/bin")
	}
	return found
}

// eachServer runs f against a fresh cluster of every version found.
func eachServer(t *testing.T, f func(t *testing.T, pg *cluster)) {
	t.Helper()
	for _, dir := range serverDirs(t) {
		out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
		if err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		t.Run(strings.ReplaceAll(strings.TrimSpace(string(out)), " ", "_"), func(t *testing.T) {
			f(t, newCluster(t, dir))
		})
	}
}

// cluster is a throw-away server on a free loopback port.
type cluster struct {
	t    *testing.T
	bin  string
	home string // unprivileged user's directory: data and sockets
	data string
	port int
	attr *syscall.SysProcAttr
}

func newCluster(t *testing.T, bin string) *cluster {
	t.Helper()
	home, err := os.MkdirTemp("/tmp", "walferry-pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(home); err != nil {
			t.Errorf("removing the cluster: %v", err)
		}
	})
	pg := &cluster{t: t, bin: bin, home: home, data: filepath.Join(home, "data"), port: freePort(t)}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skip("NOT TESTED: PostgreSQL refuses to run as root and there is no user postgres")
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		pg.attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		if err := os.Chown(home, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	pg.run("initdb", "-D", pg.data, "-U", "postgres", "-A", "trust", "-k", "--no-sync", "--no-locale", "-E", "UTF8")
	pg.configure(fmt.Sprintf("listen_addresses='127.0.0.1'\nport=%d\nunix_socket_directories='%s'\nfsync=off\nmax_wal_senders=5\nmax_replication_slots=4\nwal_keep_size=0\nwal_level=logical\n", pg.port, home))
	pg.start()
	t.Cleanup(func() { _ = pg.command("pg_ctl", "-D", pg.data, "-m", "immediate", "-w", "stop").Run() })
	return pg
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // the number is all that is wanted
	return l.Addr().(*net.TCPAddr).Port
}

func (pg *cluster) command(tool string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(pg.bin, tool), args...)
	cmd.SysProcAttr = pg.attr
	cmd.Dir = pg.home
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + pg.home, "LC_ALL=C"}
	return cmd
}

func (pg *cluster) run(tool string, args ...string) {
	pg.t.Helper()
	if out, err := pg.command(tool, args...).CombinedOutput(); err != nil {
		pg.t.Fatalf("%s: %v\n%s", tool, err, out)
	}
}

func (pg *cluster) start() {
	pg.t.Helper()
	if out, err := pg.command("pg_ctl", "-D", pg.data, "-w", "-l", filepath.Join(pg.home, "log"), "start").CombinedOutput(); err != nil {
		log, readErr := os.ReadFile(filepath.Join(pg.home, "log"))
		pg.t.Fatalf("pg_ctl start: %v\n%s%s%v", err, out, log, readErr)
	}
}

func (pg *cluster) stop(mode string) {
	pg.t.Helper()
	pg.run("pg_ctl", "-D", pg.data, "-w", "-m", mode, "stop")
}

func (pg *cluster) configure(lines string) {
	pg.t.Helper()
	f, err := os.OpenFile(filepath.Join(pg.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		pg.t.Fatal(err)
	}
	if _, err := f.WriteString(lines); err != nil {
		pg.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		pg.t.Fatal(err)
	}
}

func (pg *cluster) params() replication.Params {
	return replication.Params{DSN: "sslmode=disable", Host: "127.0.0.1", Port: strconv.Itoa(pg.port), User: "postgres", ApplicationName: "walferry-test"}
}

func (pg *cluster) connect() *replication.Conn {
	pg.t.Helper()
	c, err := replication.ParseConfig(pg.params())
	if err != nil {
		pg.t.Fatal(err)
	}
	conn, err := replication.Connect(pg.t.Context(), c)
	if err != nil {
		pg.t.Fatal(err)
	}
	pg.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// sql runs statements on an ordinary connection and returns the last value.
func (pg *cluster) sql(text string) string {
	pg.t.Helper()
	c, err := replication.ParseConfig(pg.params())
	if err != nil {
		pg.t.Fatal(err)
	}
	conn, err := replication.ConnectSQL(pg.t.Context(), c, "postgres")
	if err != nil {
		pg.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	res, err := conn.Exec(pg.t.Context(), text).ReadAll()
	if err != nil {
		pg.t.Fatalf("%s: %v", text, err)
	}
	last := res[len(res)-1]
	if len(last.Rows) == 0 {
		return ""
	}
	return string(last.Rows[0][0])
}

func TestPostgresCommands(t *testing.T) {
	eachServer(t, func(t *testing.T, pg *cluster) {
		ctx := t.Context()
		conn := pg.connect()
		if v := conn.Version(); strconv.Itoa(v.Num) != pg.sql("SHOW server_version_num") {
			t.Errorf("version %d (%s), the server says %s", v.Num, v, pg.sql("SHOW server_version_num"))
		}
		sys, err := conn.IdentifySystem(ctx)
		if err != nil || sys.Timeline != 1 || sys.Flush == 0 {
			t.Errorf("IdentifySystem = %+v, %v", sys, err)
		}
		if id := pg.sql("SELECT system_identifier FROM pg_control_system()"); id != strconv.FormatUint(sys.SystemIdentifier, 10) {
			t.Errorf("system identifier %d; want %s", sys.SystemIdentifier, id)
		}
		if v, err := conn.Show(ctx, "wal_segment_size"); err != nil || v != "16MB" {
			t.Errorf("wal_segment_size = %q, %v", v, err)
		}
		var se *replication.ServerError
		if _, err := conn.Show(ctx, "no_such_setting"); !errors.As(err, &se) || se.SQLSTATE != "42704" {
			t.Errorf("unknown setting: %v", err)
		}
		if _, err := conn.Show(ctx, "a; b"); err == nil {
			t.Error("a setting's name was not checked")
		}
		if conn.InRecovery() || conn.Parameter("integer_datetimes") != "on" {
			t.Errorf("parameters: in_hot_standby %q, integer_datetimes %q", conn.Parameter("in_hot_standby"), conn.Parameter("integer_datetimes"))
		}
		if _, err := conn.TimelineHistory(ctx, 7); !errors.Is(err, replication.ErrNoHistory) {
			t.Errorf("history of timeline 7: %v", err)
		}

		if err := conn.CreateSlot(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		if err := conn.CreateSlot(ctx, "one"); !errors.Is(err, replication.ErrSlotExists) {
			t.Errorf("the slot a second time: %v", err)
		}
		if conn.Version().Major() >= 15 {
			s, err := conn.ReadSlot(ctx, "one")
			if err != nil || !s.Exists || s.Type != "physical" || s.RestartLSN == 0 || s.RestartTimeline != 1 {
				t.Errorf("ReadSlot = %+v, %v", s, err)
			}
			if s, err := conn.ReadSlot(ctx, "two"); err != nil || s.Exists {
				t.Errorf("ReadSlot of no slot = %+v, %v", s, err)
			}
			pg.sql("SELECT pg_create_logical_replication_slot('logi', 'pgoutput')")
			if s, err := conn.ReadSlot(ctx, "logi"); err != nil || s.Type != "logical" {
				t.Errorf("ReadSlot of a logical slot = %+v, %v", s, err)
			}
			if _, err := conn.StartReplication(ctx, "logi", segment.Position{Timeline: 1, LSN: sys.Flush}); !errors.Is(err, replication.ErrSlotLogical) {
				t.Errorf("streaming from a logical slot: %v", err)
			}
			pg.sql("SELECT pg_drop_replication_slot('logi')")
		} else if _, err := conn.ReadSlot(ctx, "one"); !errors.Is(err, replication.ErrUnsupported) {
			t.Errorf("ReadSlot = %v", err)
		}
		for _, name := range []string{"two", "three", "four"} {
			if err := conn.CreateSlot(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.CreateSlot(ctx, "five"); !errors.Is(err, replication.ErrNoFreeSlot) {
			t.Errorf("a slot too many: %v", err)
		}
		if err := conn.DropSlot(ctx, "two"); err != nil {
			t.Error(err)
		}
		if err := conn.DropSlot(ctx, "two"); !errors.Is(err, replication.ErrSlotMissing) {
			t.Errorf("dropping no slot: %v", err)
		}

		// One connection streams with the slot, another wants it.
		stream, err := pg.connect().StartReplication(ctx, "one", segment.Position{Timeline: 1, LSN: sys.Flush})
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.DropSlot(ctx, "one"); !errors.Is(err, replication.ErrSlotActive) {
			t.Errorf("dropping an active slot: %v", err)
		}
		if _, err := conn.StartReplication(ctx, "one", segment.Position{Timeline: 1, LSN: sys.Flush}); !errors.Is(err, replication.ErrSlotActive) {
			t.Errorf("a second stream from the slot: %v", err)
		}
		if _, err := conn.StartReplication(ctx, "six", segment.Position{Timeline: 1, LSN: sys.Flush}); !errors.Is(err, replication.ErrSlotMissing) {
			t.Errorf("a stream from no slot: %v", err)
		}
		if _, err := conn.StartReplication(ctx, "", segment.Position{Timeline: 9, LSN: sys.Flush}); !errors.Is(err, replication.ErrNotInHistory) {
			t.Errorf("a stream of timeline 9: %v", err)
		}
		if err := stream.Stop(ctx); err != nil {
			t.Error(err)
		}
		if _, err := conn.IdentifySystem(ctx); err != nil {
			t.Errorf("the connection is not usable after refusals: %v", err)
		}
	})
}

// collect takes the stream's data until it holds everything up to the LSN.
func collect(t *testing.T, s *replication.Stream, from, to segment.LSN) []byte {
	t.Helper()
	var got []byte
	for b := range s.Batches() {
		for _, m := range b.Messages {
			if m.Kind != replication.WALData {
				continue
			}
			if m.Start != from+segment.LSN(len(got)) {
				t.Fatalf("data at %v; expected %v", m.Start, from+segment.LSN(len(got)))
			}
			got = append(got, m.Data...)
		}
		b.Release()
		if from+segment.LSN(len(got)) >= to {
			return got
		}
	}
	t.Fatalf("the stream ended at %v, before %v: %v", from+segment.LSN(len(got)), to, s.Err())
	return nil
}

func TestPostgresStream(t *testing.T) {
	eachServer(t, func(t *testing.T, pg *cluster) {
		ctx := t.Context()
		conn := pg.connect()
		if err := conn.CreateSlot(ctx, "s"); err != nil {
			t.Fatal(err)
		}
		pg.sql("CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 60000) g")
		pg.sql("SELECT pg_switch_wal()")
		sys, err := conn.IdentifySystem(ctx)
		if err != nil {
			t.Fatal(err)
		}
		start := segment.DefaultSize.Start(sys.Flush) - segment.LSN(segment.DefaultSize)
		stream, err := conn.StartReplication(ctx, "s", segment.Position{Timeline: 1, LSN: start})
		if err != nil {
			t.Fatal(err)
		}
		got := collect(t, stream, start, start+segment.LSN(segment.DefaultSize))
		want, err := os.ReadFile(filepath.Join(pg.data, "pg_wal", segment.DefaultSize.Name(1, start).String()))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(got, want) {
			t.Error("the stream's bytes are not the server's file")
		}

		// What we report arrives: each field where it belongs.
		end := start + segment.LSN(segment.DefaultSize)
		st := replication.Status{Write: end, Flush: start, Time: time.Now(), ReplyRequested: true}
		if err := stream.SendStatus(st); err != nil {
			t.Fatal(err)
		}
		keepalive := false
		for !keepalive {
			b := <-stream.Batches()
			for _, m := range b.Messages {
				keepalive = keepalive || m.Kind == replication.Keepalive
				if m.Kind == replication.Keepalive && time.Since(m.Time).Abs() > 24*time.Hour {
					t.Errorf("the server's clock: %v", m.Time)
				}
			}
			b.Release()
		}
		if row := pg.sql("SELECT concat_ws(' ', write_lsn, flush_lsn, replay_lsn) FROM pg_stat_replication"); row != fmt.Sprintf("%s %s", end, start) {
			t.Errorf("pg_stat_replication has %q; want write %s, flush %s, no replay", row, end, start)
		}
		if name := pg.sql("SELECT application_name FROM pg_stat_replication"); name != "walferry-test" {
			t.Errorf("application_name = %q", name)
		}
		if err := stream.Stop(ctx); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := stream.Err(); err != nil {
			t.Errorf("Err after Stop: %v", err)
		}
	})
}

func TestPostgresStreamEnds(t *testing.T) {
	eachServer(t, func(t *testing.T, pg *cluster) {
		ctx := t.Context()
		drain := func(s *replication.Stream) error {
			for b := range s.Batches() {
				b.Release()
			}
			return s.Err()
		}
		start := func(slot string, lsn segment.LSN) *replication.Stream {
			t.Helper()
			s, err := pg.connect().StartReplication(ctx, slot, segment.Position{Timeline: 1, LSN: lsn})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		}
		sys, err := pg.connect().IdentifySystem(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := drain(start("", sys.Flush+1<<30)); !errors.Is(err, replication.ErrAhead) {
			t.Errorf("ahead of the server: %v", err)
		}
		for range 3 {
			pg.sql("INSERT INTO pg_largeobject_metadata SELECT 1, 10 WHERE false; CREATE TABLE x(); DROP TABLE x; SELECT pg_switch_wal()")
		}
		pg.sql("CHECKPOINT")
		pg.sql("CHECKPOINT")
		if err := drain(start("", segment.DefaultSize.Start(sys.Flush))); !errors.Is(err, replication.ErrWALRemoved) {
			t.Errorf("removed WAL: %v", err)
		}

		// Terminated by an administrator: FATAL 57P01 inside the stream.
		sys, err = pg.connect().IdentifySystem(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s := start("", sys.Flush)
		pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
		var se *replication.ServerError
		if err := drain(s); !errors.As(err, &se) || se.SQLSTATE != "57P01" || !replication.Passing(err) {
			t.Errorf("terminated: %v", err)
		}

		// Shutdown: the server waits for our flush (here: zero, so write) to
		// reach what it sent, then ends with COPY 0.
		// One that has not begun to send yet is ended like any backend
		// (HandleWalSndInitStopping in walsender.c).
		s = start("", sys.Flush)
		for deadline := time.Now().Add(time.Minute); pg.sql("SELECT count(*)::text FROM pg_stat_replication WHERE state = 'streaming'") != "1"; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it does not stream")
			}
		}
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			pg.stop("fast")
		}()
		written := sys.Flush
		for b := range s.Batches() {
			for _, m := range b.Messages {
				if m.Kind == replication.WALData {
					written = m.Start + segment.LSN(len(m.Data))
				}
			}
			b.Release()
			if err := s.SendStatus(replication.Status{Write: written, Time: time.Now()}); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("SendStatus: %v", err)
			}
		}
		<-stopped
		if err := s.Err(); !errors.Is(err, replication.ErrShutdown) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("shutdown: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		c, err := replication.ParseConfig(pg.params())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := replication.Connect(ctx, c); !errors.Is(err, syscall.ECONNREFUSED) || !replication.Passing(err) {
			t.Errorf("no server: %v", err)
		}

		// Promote: timeline 2. At the switchpoint of timeline 1 the server
		// answers at once; before it, it streams and ends with CopyDone.
		if err := os.WriteFile(filepath.Join(pg.data, "standby.signal"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		pg.start()
		standby := pg.connect()
		if standby.Version().Major() >= 14 && !standby.InRecovery() {
			t.Error("a standby is not known as one")
		}
		sys, err = standby.IdentifySystem(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s = start("", segment.DefaultSize.Start(sys.Flush))
		pg.run("pg_ctl", "-D", pg.data, "-w", "promote")
		got := segment.DefaultSize.Start(sys.Flush)
		done := false
		for b := range s.Batches() {
			for _, m := range b.Messages {
				switch m.Kind {
				case replication.WALData:
					got = m.Start + segment.LSN(len(m.Data))
				case replication.CopyDone:
					done = true
				}
			}
			b.Release()
			if done {
				break
			}
		}
		next, err := s.FinishTimeline(ctx)
		if err != nil || next.Timeline != 2 || next.LSN != got {
			t.Fatalf("FinishTimeline = %v, %v; received up to %v", next, err, got)
		}
		end, ok := replication.IsEndOfTimeline(s.Err())
		if !ok || end.Position() != next || end.Timeline != 1 {
			t.Errorf("Err after FinishTimeline: %v", s.Err())
		}
		conn := pg.connect()
		_, err = conn.StartReplication(ctx, "", segment.Position{Timeline: 1, LSN: next.LSN})
		if end, ok := replication.IsEndOfTimeline(err); !ok || end.Position() != next {
			t.Errorf("a start at the switchpoint: %v", err)
		}
		if _, err := conn.StartReplication(ctx, "", segment.Position{Timeline: 1, LSN: next.LSN + 8}); !errors.Is(err, replication.ErrNotInHistory) {
			t.Errorf("a start behind the switchpoint: %v", err)
		}
		content, err := conn.TimelineHistory(ctx, 2)
		if err != nil {
			t.Fatal(err)
		}
		h, err := segment.ParseHistory(2, content)
		if at, ok := h.Switchpoint(1); err != nil || !ok || at != next.LSN {
			t.Errorf("history %q: %v", content, err)
		}

		// An immediate stop: whatever comes, it is an error and not silence.
		s = start2(t, conn, next)
		pg.stop("immediate")
		if err := drain(s); !errors.As(err, &se) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("immediate stop: %v", err)
		}
	})
}

func start2(t *testing.T, c *replication.Conn, from segment.Position) *replication.Stream {
	t.Helper()
	s, err := c.StartReplication(t.Context(), "", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// certificates are a CA and what it signed, written where the server and the
// tests can read them.
type certificates struct{ ca, serverCert, serverKey, clientCert, clientKey, foreign string }

func newCertificates(t *testing.T, pg *cluster) certificates {
	t.Helper()
	serial := int64(0)
	save := func(name, kind string, der []byte) string {
		path := filepath.Join(pg.home, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		if pg.attr != nil {
			if err := os.Chown(path, int(pg.attr.Credential.Uid), int(pg.attr.Credential.Gid)); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	sign := func(name string, template *x509.Certificate, parent *x509.Certificate, signer *ecdsa.PrivateKey) (cert *x509.Certificate, key *ecdsa.PrivateKey, certPath, keyPath string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		serial++
		template.SerialNumber = big.NewInt(serial)
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		if cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key, save(name+".crt", "CERTIFICATE", der), save(name+".key", "EC PRIVATE KEY", keyDER)
	}
	authority := func(name string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	var c certificates
	ca, caKey, path, _ := sign("ca", authority("test CA"), nil, nil)
	c.ca = path
	_, _, c.foreign, _ = sign("foreign", authority("another CA"), nil, nil)
	_, _, c.serverCert, c.serverKey = sign("server", &x509.Certificate{Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}}, ca, caKey)
	_, _, c.clientCert, c.clientKey = sign("client", &x509.Certificate{Subject: pkix.Name{CommonName: "cert"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca, caKey)
	return c
}

func TestPostgresSecurity(t *testing.T) {
	for _, name := range []string{"PGPASSWORD", "PGSSLMODE", "PGSERVICE", "PGHOST", "PGHOSTADDR"} {
		t.Setenv(name, "")
	}
	eachServer(t, func(t *testing.T, pg *cluster) {
		home := t.TempDir()
		t.Setenv("HOME", home)
		c := newCertificates(t, pg)
		pg.sql("SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN REPLICATION PASSWORD 'right'; SET password_encryption = 'md5'; CREATE ROLE md5 LOGIN REPLICATION PASSWORD 'right'; CREATE ROLE cert LOGIN REPLICATION; CREATE ROLE plain LOGIN")
		pg.configure(fmt.Sprintf("ssl=on\nssl_cert_file='%s'\nssl_key_file='%s'\nssl_ca_file='%s'\n", c.serverCert, c.serverKey, c.ca))
		hba := "local all,replication postgres trust\nlocal replication scram scram-sha-256\nhostssl replication cert all cert\nhost replication plain all trust\nhost replication md5 all md5\nhostssl replication scram all scram-sha-256\nhost all postgres all trust\n"
		if err := os.WriteFile(filepath.Join(pg.data, "pg_hba.conf"), []byte(hba), 0o600); err != nil {
			t.Fatal(err)
		}
		pg.stop("fast")
		pg.start()
		passfile := filepath.Join(home, ".pgpass")
		if err := os.WriteFile(passfile, fmt.Appendf(nil, "localhost:%d:replication:scram:right\n", pg.port), 0o600); err != nil {
			t.Fatal(err)
		}
		at := func(host string) string { return fmt.Sprintf("host=%s port=%d ", host, pg.port) }
		local := at("localhost") + "hostaddr=127.0.0.1 "
		for _, x := range []struct {
			dsn     string
			err     string // "" for success
			passing bool
		}{
			{local + "user=scram password=right sslmode=require", "", false},
			{local + "user=scram password=right sslmode=prefer", "", false},
			{local + "user=scram password=right sslmode=allow", "", false},
			{local + "user=scram password=right", "", false},
			{local + "user=scram sslmode=require", "", false}, // .pgpass
			{local + "user=scram sslmode=require passfile=/nonexistent", "no password was given", true},
			{local + "user=scram password=WRONG sslmode=require", "28P01", true},
			{local + "user=scram password=right sslmode=disable", "28000", true},
			{local + "user=scram password=right sslmode=verify-ca sslrootcert=" + c.ca, "", false},
			{local + "user=scram password=right sslmode=verify-full sslrootcert=" + c.ca, "", false},
			{local + "user=scram password=right sslmode=require sslrootcert=" + c.foreign, "certificate is not accepted", false},
			{local + "user=scram password=right sslmode=verify-ca sslrootcert=" + c.foreign, "certificate is not accepted", false},
			{local + "user=scram password=right sslmode=verify-full sslrootcert=" + c.foreign, "certificate is not accepted", false},
			{local + "user=scram password=right sslrootcert=system", "certificate is not accepted", false},
			{at("127.0.0.1") + "user=scram password=right sslmode=verify-ca sslrootcert=" + c.ca, "", false},
			{at("127.0.0.1") + "user=scram password=right sslmode=verify-full sslrootcert=" + c.ca, "certificate is not accepted", false},
			{local + "user=scram password=right sslmode=require channel_binding=require", "", false},
			{local + "user=scram password=right sslmode=require require_auth=scram-sha-256", "", false},
			{local + "user=scram password=right sslmode=require ssl_min_protocol_version=TLSv1.3", "", false},
			{local + "user=md5 password=right sslmode=disable", "", false},
			{local + "user=md5 password=right sslmode=require require_auth=scram-sha-256", "md5", true},
			{local + "user=md5 password=right sslmode=require channel_binding=require", "channel binding", true},
			{local + "user=cert sslmode=require sslcert=" + c.clientCert + " sslkey=" + c.clientKey, "", false},
			{local + "user=cert sslmode=require", "28000", true},
			{local + "user=plain sslmode=disable", "42501", true},
			{local + "user=nobody sslmode=disable", "28000", true},
			{at(pg.home) + "user=postgres options='-c no_such_setting=1'", "42704", false},
			{local + "user=postgres sslmode=disable", "28000", true}, // hba "all" is not replication
			{at(pg.home) + "user=postgres sslmode=require", "", false},
			{at(pg.home) + "user=scram password=right", "", false},
			{at(pg.home) + "user=scram", "", false}, // .pgpass: localhost
			{at(pg.home+"/none") + "user=postgres", "no such file", true},
			{at("localhost,"+pg.home) + "user=postgres target_session_attrs=primary hostaddr=127.0.0.1,", "28000", true},
			{fmt.Sprintf("postgresql://scram:right@localhost:%d/?sslmode=require&hostaddr=127.0.0.1&keepalives_idle=5&tcp_user_timeout=30000", pg.port), "", false},
			{fmt.Sprintf("host=127.0.0.1,%s port=1,%d user=postgres sslmode=disable", pg.home, pg.port), "", false},
		} {
			cfg, err := replication.ParseConfig(replication.Params{DSN: x.dsn})
			if err != nil {
				t.Errorf("%s: %v", x.dsn, err)
				continue
			}
			conn, err := replication.Connect(t.Context(), cfg)
			if err == nil {
				if _, err := conn.IdentifySystem(t.Context()); err != nil {
					t.Errorf("%s: %v", x.dsn, err)
				}
				if err := conn.Close(t.Context()); err != nil {
					t.Errorf("%s: %v", x.dsn, err)
				}
			}
			switch {
			case x.err == "" && err != nil, x.err != "" && err == nil:
				t.Errorf("%s: %v; want %q", x.dsn, err, x.err)
			case err != nil && (!strings.Contains(err.Error(), x.err) || replication.Passing(err) != x.passing):
				t.Errorf("%s: %v, passing %v; want %q, %v", x.dsn, err, replication.Passing(err), x.err, x.passing)
			}
			if err != nil && (strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "WRONG")) {
				t.Errorf("%s: %q", x.dsn, err)
			}
			if err != nil {
				t.Log(err)
			}
		}

		// WAL over TLS, statuses beside it.
		cfg, err := replication.ParseConfig(replication.Params{DSN: local + "user=scram password=right sslmode=verify-full sslrootcert=" + c.ca})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := replication.Connect(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		sys, err := conn.IdentifySystem(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		from := segment.DefaultSize.Start(sys.Flush)
		st := start2(t, conn, segment.Position{Timeline: 1, LSN: from})
		if got := collect(t, st, from, sys.Flush); len(got) < int(sys.Flush-from) {
			t.Errorf("%d bytes", len(got))
		}
		if err := st.SendStatus(replication.Status{Write: sys.Flush, Time: time.Now()}); err != nil {
			t.Error(err)
		}
		if err := st.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A slot whose WAL was given up: 18 refuses it by name, earlier ones only find
// the WAL gone. Neither is taken for something that passes.
func TestPostgresLostSlot(t *testing.T) {
	eachServer(t, func(t *testing.T, pg *cluster) {
		ctx := t.Context()
		pg.configure("max_slot_wal_keep_size=1MB\n")
		pg.stop("fast")
		pg.start()
		conn := pg.connect()
		sys, err := conn.IdentifySystem(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.CreateSlot(ctx, "lost"); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			pg.sql("CREATE TABLE x(); DROP TABLE x; SELECT pg_switch_wal()")
		}
		pg.sql("CHECKPOINT")
		if status := pg.sql("SELECT wal_status FROM pg_replication_slots"); status != "lost" {
			t.Fatalf("the slot is %s", status)
		}
		if conn.Version().Major() >= 15 {
			if s, err := conn.ReadSlot(ctx, "lost"); err != nil || !s.Exists || s.RestartLSN != 0 {
				t.Errorf("ReadSlot = %+v, %v", s, err)
			}
		}
		want := replication.ErrWALRemoved
		s, err := conn.StartReplication(ctx, "lost", segment.Position{Timeline: 1, LSN: segment.DefaultSize.Start(sys.Flush)})
		if conn.Version().Major() >= 18 {
			want = replication.ErrSlotLost
		} else if err == nil {
			for b := range s.Batches() {
				b.Release()
			}
			err = s.Err()
			_ = s.Close()
		}
		if !errors.Is(err, want) || replication.Passing(err) {
			t.Errorf("streaming from a lost slot: %v", err)
		}
	})
}
