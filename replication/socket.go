package replication

import (
	"crypto/tls"
	"net"
)

// socket is a connection below whatever encrypts it, so that a stream or a base
// backup, which read and do nothing else, can have it read in another way.
type socket struct{ net.Conn }

// streams says that from now on the connection is read for as long as it
// lasts, and that a read is ended by Close only. Nobody may be using it.
func streams(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if s, ok := conn.(*socket); ok {
		s.Conn = newBlocking(s.Conn)
	}
}
