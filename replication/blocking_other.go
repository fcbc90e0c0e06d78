//go:build !linux

package replication

import "net"

// newBlocking leaves the connection to the runtime's poller.
func newBlocking(conn net.Conn) net.Conn { return conn }
