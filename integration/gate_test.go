package integration

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// gate is an address behind which a server can be exchanged for another, and
// which knows what WAL went through.
type gate struct {
	listener net.Listener
	all      sync.WaitGroup

	mu      sync.Mutex
	to      string // the server's socket
	open    map[net.Conn]bool
	streams []stream
	highest segment.LSN // the end of the WAL that went through
}

// stream is the WAL of one connection.
type stream struct {
	start segment.LSN
	bytes segment.LSN
}

// gate opens one in front of the scene's server. It closes with the test.
func (s *scene) gate() *gate {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	g := &gate{listener: l, open: map[net.Conn]bool{}}
	g.lead(s.pg)
	g.all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			g.all.Go(func() { g.pass(c) })
		}
	})
	s.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			s.t.Error(err)
		}
		g.cut()
		g.all.Wait()
	})
	return g
}

// env leads a client to the gate.
func (g *gate) env() []string {
	return []string{"PGHOST=127.0.0.1", fmt.Sprint("PGPORT=", g.listener.Addr().(*net.TCPAddr).Port)}
}

// lead lets the connections that come from now on get to another server.
func (g *gate) lead(pg *instance.Server) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.to = filepath.Join(pg.SocketDir(), fmt.Sprint(".s.PGSQL.", pg.Port()))
}

// cut ends all connections.
func (g *gate) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.open {
		_ = c.Close() // it may be closed already
	}
}

// seen returns the streams that there were, and the end of the WAL in them.
func (g *gate) seen() (streams []stream, end segment.LSN) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]stream(nil), g.streams...), g.highest
}

// pass serves a client's connection to its end.
func (g *gate) pass(client net.Conn) {
	g.mu.Lock()
	to := g.to
	g.open[client] = true
	g.mu.Unlock()
	server, err := net.Dial("unix", to)
	if err == nil {
		g.mu.Lock()
		g.open[server] = true
		g.mu.Unlock()
		g.all.Go(func() {
			_, _ = io.Copy(server, client) // to the end of either
			_ = server.Close()
		})
		_ = g.count(client, server) // likewise
		_ = server.Close()
	}
	_ = client.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, client)
	delete(g.open, server)
}

// errNotFramed: what a server says is a byte, a length, and so much less four
// (PostgreSQL: Message Formats); but for the answer to a request for TLS,
// which nobody must make here.
var errNotFramed = errors.New("not the protocol's framing")

// count passes on what the server says, and counts the WAL in it.
func (g *gate) count(client io.Writer, server io.Reader) error {
	in := bufio.NewReaderSize(server, 1<<17)
	out := bufio.NewWriterSize(client, 1<<17)
	number := -1
	var body []byte
	for {
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
		var head [5]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return errors.Join(err, out.Flush())
		}
		n := int(binary.BigEndian.Uint32(head[1:])) - 4
		if n < 0 || n > 1<<24 {
			return errNotFramed
		}
		if cap(body) < n {
			body = make([]byte, n)
		}
		body = body[:n]
		if _, err := io.ReadFull(in, body); err != nil {
			return errors.Join(err, out.Flush())
		}
		// XLogData: 'w', start, end of the server's WAL, its clock, the bytes
		// (PostgreSQL: Streaming Replication Protocol).
		if head[0] == 'd' && n > 25 && body[0] == 'w' {
			number = g.wal(number, segment.LSN(binary.BigEndian.Uint64(body[1:])), segment.LSN(n-25))
		}
		if _, err := out.Write(append(head[:], body...)); err != nil {
			return err
		}
	}
}

// wal notes WAL of a connection, whose stream has the number, -1 for none yet.
func (g *gate) wal(number int, start, n segment.LSN) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if number < 0 {
		number = len(g.streams)
		g.streams = append(g.streams, stream{start: start})
	}
	g.streams[number].bytes += n
	g.highest = max(g.highest, start+n)
	return number
}

func TestGateCounts(t *testing.T) {
	t.Parallel()
	message := func(kind byte, body ...byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4)), body...)
	}
	wal := func(start segment.LSN, n int) []byte {
		body := binary.BigEndian.AppendUint64([]byte{'w'}, uint64(start))
		return message('d', append(body, make([]byte, 16+n)...)...)
	}
	keepalive := message('d', append([]byte{'k'}, make([]byte, 17)...)...)
	g := &gate{open: map[net.Conn]bool{}}
	for _, said := range [][]byte{
		bytes.Join([][]byte{message('R', 0, 0, 0, 0), message('W', 0, 0, 0), keepalive, wal(0x1000, 100), keepalive, wal(0x1064, 50), message('c')}, nil),
		message('R', 0, 0, 0, 0), // the other connection, which asks for a setting
		bytes.Join([][]byte{wal(0x1000, 20), wal(0x1014, 1)[:20]}, nil),
	} {
		var passed bytes.Buffer
		if err := g.count(&passed, bytes.NewReader(said)); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
		if !bytes.HasPrefix(said, passed.Bytes()) || passed.Len() < len(said)-20 {
			t.Errorf("the server said %q, and %q was passed on", said, passed.Bytes())
		}
	}
	streams, end := g.seen()
	if len(streams) != 2 || streams[0] != (stream{0x1000, 150}) || streams[1] != (stream{0x1000, 20}) || end != 0x1096 {
		t.Errorf("the gate saw %v up to %s", streams, end)
	}
	if err := g.count(io.Discard, strings.NewReader("N\xff\xff\xff\xff")); !errors.Is(err, errNotFramed) {
		t.Errorf("what is no message: %v", err)
	}
}
