package replication

import (
	"context"
	"net"
	"time"
)

// keepalive is what the keywords keepalives* and tcp_user_timeout ask for.
// A server that vanished without a word is noticed by it, or by whoever waits
// for its keepalive messages.
type keepalive struct {
	off                   bool
	set                   bool // some keyword was given
	idle, interval, count int  // seconds, seconds, probes; 0: the system's default
	userTimeout           time.Duration
}

// dialer opens connections accordingly. Without any keyword Go's defaults
// hold (a probe after 15 s, then every 15 s, nine of them): the system's would
// notice a dead peer after two hours.
func (k keepalive) dialer() DialFunc {
	d := &net.Dialer{Control: setUserTimeout(k.userTimeout)}
	switch {
	case k.off:
		d.KeepAlive = -1
	case k.set:
		orDefault := func(n int) int {
			if n <= 0 {
				return -1 // leave it as the system has it
			}
			return n
		}
		d.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Count: orDefault(k.count)}
		d.KeepAliveConfig.Idle, d.KeepAliveConfig.Interval = -1, -1
		if k.idle > 0 {
			d.KeepAliveConfig.Idle = time.Duration(k.idle) * time.Second
		}
		if k.interval > 0 {
			d.KeepAliveConfig.Interval = time.Duration(k.interval) * time.Second
		}
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return d.DialContext(ctx, network, address)
	}
}
