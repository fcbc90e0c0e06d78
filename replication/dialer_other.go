//go:build !linux

package replication

import (
	"syscall"
	"time"
)

// hasUserTimeout: libpq ignores tcp_user_timeout where the system has no
// TCP_USER_TIMEOUT.
const hasUserTimeout = false

func setUserTimeout(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }
