package replication

import (
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hasUserTimeout: Linux knows TCP_USER_TIMEOUT.
const hasUserTimeout = true

// setUserTimeout sets how long sent bytes may stay unacknowledged.
func setUserTimeout(d time.Duration) func(network, address string, c syscall.RawConn) error {
	if d <= 0 {
		return nil
	}
	return func(network, _ string, c syscall.RawConn) error {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		})
		if err != nil {
			return err
		}
		return failed
	}
}
