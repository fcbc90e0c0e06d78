package basebackup

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
)

// castagnoli is the table of CRC32C. It is never written to.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// zeros are never written to.
var zeros [64 << 10]byte

const (
	smallestPart = 8 << 20 // bytes
	// slot is the unit in which the memory of parts is counted, and slots is
	// how many of them an object has: 64 MiB, or four parts at once. A part
	// that goes through a file takes one too, which bounds the files.
	slot  = 16 << 20
	slots = 4
)

// sizing says how large the parts of an object are.
type sizing struct {
	first int64 // bytes
	parts int   // how many there may be
}

// newSizing plans the parts of an object of which expected bytes are expected,
// so that three quarters of them would do. Negative: nobody knows.
func newSizing(expected int64, parts int) sizing {
	const unit = 1 << 20
	first := expected / max(1, int64(parts)*3/4)
	return sizing{first: min(max((first+unit-1)/unit*unit, smallestPart), objstore.MaxPart), parts: parts}
}

// size returns the size of part number, 1 and following. The parts are alike,
// which some stores want, up to the three quarters. An object that is larger
// than was thought gets parts of twice the size after every sixty-fourth of
// the parts that follow: thousands of times what was planned, more than any
// store takes for an object.
func (s sizing) size(number int) (int64, error) {
	if number > s.parts {
		return 0, fmt.Errorf("an object of more than %d parts", s.parts)
	}
	if number == s.parts {
		return objstore.MaxPart, nil
	}
	size := s.first
	step := max(1, s.parts/64)
	for n := s.parts * 3 / 4; n < number && size < objstore.MaxPart; n += step {
		size *= 2
	}
	return min(size, objstore.MaxPart), nil
}

// part is a piece of a byte stream: written from front to back by one
// goroutine while others may read what is there already.
type part struct {
	frame  *codec.Frame
	number int   // 1 and following
	at     int64 // its place in the stream, bytes
	size   int64 // what it has when it is full; the last one may end before
	whole  chan struct{}
	users  atomic.Int32 // who reads it still
	free   func()
}

// release is called by each of its users once. The last one's gives back what
// the part held.
func (p *part) release() {
	if p.users.Add(-1) == 0 {
		p.frame.Release()
		p.free()
	}
}

// cutter is an io.Writer that cuts a byte stream into parts, each of which is
// read by those who asked for it: one that follows while it grows, one that
// gets it when it is whole. Writing waits while too many parts are held by
// them. It has one owner.
type cutter struct {
	ctx   context.Context // ends every wait; its cause is the error
	size  func(number int) (int64, error)
	frame func(size int64) *codec.Frame
	slots chan struct{} // held by parts
	cost  func(size int64) int

	follower *follower         // nil: nobody follows
	store    func(*part) error // nil: nobody stores

	current *part
	number  int
	written int64  // bytes of the stream
	crc     uint32 // of the parts that are whole
}

// Write implements io.Writer. p is copied.
func (c *cutter) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		if c.current == nil {
			if err := c.begin(); err != nil {
				return 0, err
			}
		}
		now := p[:min(int64(len(p)), c.current.at+c.current.size-c.written)]
		if _, err := c.current.frame.Write(now); err != nil {
			return 0, err
		}
		c.written += int64(len(now))
		p = p[len(now):]
		if c.written == c.current.at+c.current.size {
			if err := c.handOver(); err != nil {
				return 0, err
			}
			continue
		}
		if c.follower != nil && c.written/wakeEvery != (c.written-int64(len(now)))/wakeEvery {
			c.follower.wake()
		}
	}
	return written, nil
}

// begin makes the next part when there is room for it.
func (c *cutter) begin() error {
	size, err := c.size(c.number + 1)
	if err != nil {
		return err
	}
	cost := c.cost(size)
	for range cost {
		select {
		case c.slots <- struct{}{}:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
	c.number++
	p := &part{frame: c.frame(size), number: c.number, at: c.written, size: size, whole: make(chan struct{}), free: func() {
		for range cost {
			<-c.slots
		}
	}}
	if c.store != nil {
		p.users.Add(1)
	}
	if c.follower != nil {
		p.users.Add(1)
		select {
		case c.follower.parts <- p:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
	c.current = p
	return nil
}

// handOver ends the current part.
func (c *cutter) handOver() error {
	p := c.current
	c.current = nil
	c.crc = joinCRC(c.crc, p.frame.CRC32C(), c.written-p.at)
	close(p.whole)
	if c.store == nil {
		return nil
	}
	return c.store(p)
}

// end ends the stream: the last part is what it is, and the follower reads
// io.EOF behind it.
func (c *cutter) end() error {
	var err error
	if c.current != nil {
		err = c.handOver()
	}
	if c.follower != nil && err == nil {
		close(c.follower.parts)
	}
	return err
}

// free gives back what parts hold that nobody will use.
func (c *cutter) free() {
	drop := func(p *part) {
		if p != nil {
			p.frame.Release()
		}
	}
	drop(c.current)
	if c.follower == nil {
		return
	}
	drop(c.follower.current)
	for {
		select {
		case p := <-c.follower.parts:
			if p == nil {
				return // closed
			}
			drop(p)
		default:
			return
		}
	}
}

// joinCRC returns the CRC32C of two pieces together, of the first's and the
// second's, which has n bytes: that of the first times x^8n, modulo the
// polynomial, and the second's on top (zlib: crc32_combine). So no byte is
// summed up twice.
func joinCRC(first, second uint32, n int64) uint32 {
	for power := uint32(1 << 23); n > 0; n >>= 1 { // x^8, x^16, …
		if n&1 != 0 {
			first = timesCRC(first, power)
		}
		power = timesCRC(power, power)
	}
	return first ^ second
}

// timesCRC multiplies two polynomials. The highest bit is the coefficient of
// x^0, as in the sums.
func timesCRC(a, b uint32) uint32 {
	product := uint32(0)
	for ; a != 0; a <<= 1 {
		if a&(1<<31) != 0 {
			product ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.Castagnoli
		} else {
			b >>= 1
		}
	}
	return product
}

// wakeEvery is after how many bytes at the latest the follower is woken. A
// message of the server's is a thirtieth of that or less, and to wake a thread
// costs what a dozen messages cost; the parts, of 8 MiB and more, wake it at
// their ends.
const wakeEvery = 1 << 20

// follower is an io.Reader of the stream that a cutter cuts, while it is cut.
type follower struct {
	ctx   context.Context // ends every wait; its cause is the error
	parts chan *part
	grown chan struct{} // of one element: there may be more of the current part

	current *part
	read    int64 // bytes of the current part
}

func newFollower(ctx context.Context) *follower {
	// There are never more parts than slots.
	return &follower{ctx: ctx, parts: make(chan *part, slots), grown: make(chan struct{}, 1)}
}

func (f *follower) wake() {
	select {
	case f.grown <- struct{}{}:
	default:
	}
}

// Read implements io.Reader.
func (f *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if f.current == nil {
			if err := f.next(); err != nil {
				return 0, err
			}
		}
		// Whether it is whole is asked before it is read: what was written
		// before it became whole is then among what is read.
		whole := false
		select {
		case <-f.current.whole:
			whole = true
		default:
		}
		n, err := f.current.frame.ReadAt(p, f.read)
		f.read += int64(n)
		switch {
		case n > 0:
			return n, nil
		case err != nil && !errors.Is(err, io.EOF):
			return 0, err
		case whole:
			f.current.release()
			f.current, f.read = nil, 0
			continue
		}
		select {
		case <-f.grown:
		case <-f.current.whole:
		case <-f.ctx.Done():
			return 0, context.Cause(f.ctx)
		}
	}
}

// next waits for the part that follows.
func (f *follower) next() error {
	select {
	case p, ok := <-f.parts:
		if !ok {
			return io.EOF
		}
		f.current = p
		return nil
	case <-f.ctx.Done():
		return context.Cause(f.ctx)
	}
}
