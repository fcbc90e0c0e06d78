package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// kernelBuffer is how much of a request may still be in the kernel when it
	// has been written (tcp_wmem, and what lies on the way).
	kernelBuffer = 4 << 20
	// slowest is the slowest line that is taken for one, in bytes a second.
	slowest = 64 << 10
)

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// prepare sets up a transport that no black hole can hold: see stallConn. It
// speaks HTTP/1.1 only, since over HTTP/2 one stalled stream hides behind the
// others on its connection.
func prepare(tr *http.Transport, dial dialFunc, connect, stall time.Duration) {
	tr.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, connect, fmt.Errorf("no connection within %v", connect))
		defer cancel()
		c, err := dial(ctx, network, address)
		if err != nil {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				err = &net.OpError{Op: "dial", Net: network, Err: context.Cause(ctx)}
			}
			return nil, err
		}
		return &stallConn{Conn: c, stall: stall}, nil
	}
	tr.TLSHandshakeTimeout = connect
	tr.ForceAttemptHTTP2 = false
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetHTTP1(true)
	// An idle connection is read from, so it stalls too: the pool must give it
	// up first, or a request could meet its end.
	tr.IdleConnTimeout = stall / 2
}

// stallConn is a connection on which something moves: a Read or Write that
// makes no progress within the stall time ends with os.ErrDeadlineExceeded.
//
// The transport has a Read pending while it writes a request. Every Write
// therefore pushes the deadline of reads, and the more so the more bytes were written
// since the last answer: on a slow line the kernel still sends them when the
// last Write has long returned.
type stallConn struct {
	net.Conn
	stall   time.Duration
	written atomic.Int64 // bytes since the last read ones
	until   atomic.Int64 // in nanoseconds of Unix time: reads may wait so long at least
}

// patiently lets whatever connection a request with this context gets wait so
// much longer for the answer. impatient ends that.
func patiently(ctx context.Context, longer time.Duration) (patient context.Context, impatient func()) {
	var mu sync.Mutex
	var ends []func()
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		c := got.Conn
		if secure, ok := c.(*tls.Conn); ok {
			c = secure.NetConn()
		}
		if stalling, ok := c.(*stallConn); ok {
			until := time.Now().Add(stalling.stall + longer).UnixNano()
			stalling.until.Store(until)
			mu.Lock()
			defer mu.Unlock()
			// Another request may have it by then, and be patient, too.
			ends = append(ends, func() { stalling.until.CompareAndSwap(until, 0) })
		}
	}}
	return httptrace.WithClientTrace(ctx, trace), func() {
		mu.Lock()
		defer mu.Unlock()
		for _, end := range ends {
			end()
		}
	}
}

func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.expectRead(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.written.Store(0)
	}
	return n, err
}

func (c *stallConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	if err == nil {
		err = c.expectRead()
	}
	return n, err
}

func (c *stallConn) expectRead() error {
	drain := time.Duration(min(c.written.Load(), kernelBuffer)) * time.Second / slowest
	deadline := time.Now().Add(c.stall + drain)
	if until := time.Unix(0, c.until.Load()); until.After(deadline) {
		deadline = until
	}
	return c.SetReadDeadline(deadline)
}
