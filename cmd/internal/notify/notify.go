// Package notify tells a service manager how a service is: the protocol of
// sd_notify(3), by which systemd knows that a unit of Type=notify has started,
// that it is stopping, and, with WatchdogSec, that it still works.
//
// A message is one datagram to the socket that NOTIFY_SOCKET names. Without
// that variable nothing is sent, so that the same program runs under any
// service manager, or none. Losing a message loses no WAL: its failure is the
// caller's to log, not a reason to stop.
package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The variables that a service manager sets for the process that it starts.
const (
	socketVariable   = "NOTIFY_SOCKET"
	intervalVariable = "WATCHDOG_USEC"
	processVariable  = "WATCHDOG_PID"
)

// sendPatience bounds a datagram whose reader does not read.
const sendPatience = 5 * time.Second

// Notifier sends messages to the service manager. It does not change; its
// methods may be called concurrently.
type Notifier struct {
	socket   string        // "" sends nothing; "@name" is an abstract one
	watchdog time.Duration // a ping must come within it; 0: none is wanted
}

// New reads the variables in environ ("NAME=value"). pid is the caller's: a
// watchdog that waits for another process is not ours. Variables that make no
// sense are an error, together with a Notifier that does what the others say.
func New(environ []string, pid int) (*Notifier, error) {
	value := map[string]string{}
	for _, e := range environ {
		name, v, _ := strings.Cut(e, "=")
		value[name] = v
	}
	n := &Notifier{}
	var wrong error
	if s := value[socketVariable]; filepath.IsAbs(s) || len(s) > 1 && s[0] == '@' {
		n.socket = s
	} else if s != "" {
		wrong = fmt.Errorf("%s=%s: want an absolute path or an abstract socket", socketVariable, s)
	}
	if v := value[intervalVariable]; v != "" && (value[processVariable] == "" || value[processVariable] == strconv.Itoa(pid)) {
		us, err := strconv.ParseInt(v, 10, 64)
		if err != nil || us <= 0 || us > int64(time.Duration(1<<63-1)/time.Microsecond) {
			wrong = errors.Join(wrong, fmt.Errorf("%s=%s: want a number of microseconds", intervalVariable, v))
		} else {
			n.watchdog = time.Duration(us) * time.Microsecond
		}
	}
	return n, wrong
}

// Unset takes the variables out of this process's environment: what it starts
// must not speak for it.
func Unset() error {
	var err error
	for _, name := range []string{socketVariable, intervalVariable, processVariable} {
		err = errors.Join(err, os.Unsetenv(name))
	}
	return err
}

// Run says that the service is ready, then pings the watchdog twice in each of
// its intervals for as long as alive says so, and says that it is stopping when
// ctx ends. A service that is not alive is not pinged: the manager ends it and
// starts it again. failed is told what could not be sent.
func (n *Notifier) Run(ctx context.Context, alive func() bool, failed func(error)) {
	send := func(lines ...string) {
		if err := n.send(lines...); err != nil {
			failed(err)
		}
	}
	send("READY=1", "STATUS=receiving")
	defer send("STOPPING=1", "STATUS=stopping")
	if n.socket == "" || n.watchdog == 0 {
		<-ctx.Done()
		return
	}
	ticker := time.NewTicker(max(n.watchdog/2, time.Nanosecond))
	defer ticker.Stop()
	stuck := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		switch is := alive(); {
		case is && stuck:
			send("WATCHDOG=1", "STATUS=receiving")
			stuck = false
		case is:
			send("WATCHDOG=1")
		case !stuck:
			send("STATUS=stuck: the watchdog is not pinged")
			stuck = true
		}
	}
}

// send sends one message of assignments.
func (n *Notifier) send(lines ...string) (err error) {
	if n.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling the service manager %s: %w", lines[0], err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetWriteDeadline(time.Now().Add(sendPatience)); err != nil {
		return fmt.Errorf("telling the service manager %s: %w", lines[0], err)
	}
	if _, err := conn.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("telling the service manager %s: %w", lines[0], err)
	}
	return nil
}
