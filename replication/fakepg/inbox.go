package fakepg

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// inbox holds a client's messages until somebody wants them. It never fills:
// a real server's socket takes statuses for a long time as well.
type inbox struct {
	mu      sync.Mutex
	items   []message
	ended   bool
	deaf    bool
	changed chan struct{}
}

func newInbox() *inbox { return &inbox{changed: make(chan struct{})} }

func (b *inbox) update(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *inbox) put(m message) { b.update(func() { b.items = append(b.items, m) }) }
func (b *inbox) end()          { b.update(func() { b.ended = true }) }

// take returns the next message if there is one, and else a channel that is
// closed when something changes. err is io.EOF behind the last message.
func (b *inbox) take() (m message, ok bool, changed <-chan struct{}, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.items) > 0 {
		m = b.items[0]
		b.items = b.items[1:]
		return m, true, b.changed, nil
	}
	if b.ended {
		err = io.EOF
	}
	return message{}, false, b.changed, err
}

// next waits for a message.
func (b *inbox) next(done <-chan struct{}) (message, error) {
	for {
		m, ok, changed, err := b.take()
		if ok || err != nil {
			return m, err
		}
		select {
		case <-changed:
		case <-done:
			return message{}, io.EOF
		}
	}
}

// waitHearing holds the reader while the server is deaf.
func (b *inbox) waitHearing(done <-chan struct{}) {
	for {
		b.mu.Lock()
		deaf, changed := b.deaf, b.changed
		b.mu.Unlock()
		if !deaf {
			return
		}
		select {
		case <-changed:
		case <-done:
			return
		}
	}
}

// epoch is the protocol's zero of time, in microseconds of the Unix clock.
const epoch = 946684800 * 1_000_000

func parseStatus(b []byte) (replication.Status, error) {
	if len(b) != 34 || b[0] != 'r' {
		return replication.Status{}, fmt.Errorf("fakepg: not a status: %d bytes %q", len(b), b)
	}
	lsn := func(i int) segment.LSN { return segment.LSN(binary.BigEndian.Uint64(b[i:])) }
	return replication.Status{
		Write: lsn(1), Flush: lsn(9), Apply: lsn(17),
		Time:           time.UnixMicro(int64(binary.BigEndian.Uint64(b[25:])) + epoch),
		ReplyRequested: b[33] != 0,
	}, nil
}
