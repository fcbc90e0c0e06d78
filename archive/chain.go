package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// What a reader of tail objects decides by.
var (
	// ErrTailHole: a tail object begins behind what the others give.
	ErrTailHole = errors.New("hole in the tail objects")
	// ErrVanished: objects that a listing showed were gone when they were
	// read, again and again. Most likely the sealed segment is there by now.
	ErrVanished = errors.New("removed while it was read")
	// ErrNoDecoder: an object that is needed is stored in a form that cannot
	// be read.
	ErrNoDecoder = errors.New("cannot be decoded")
)

// errPatch marks failures of the place where a segment is put together: the
// caller's, and nothing that the store could mend.
var errPatch = errors.New("putting the segment together")

const (
	assembleTries = 4       // listings before a hole or a removal is believed
	objectTries   = 4       // reads of one object whose body breaks off
	tailsAhead    = 8       // downloads at one time
	smallTail     = 1 << 20 // bytes; larger objects are not downloaded ahead
	assembleBlock = 128 << 10
)

// Patch is where a segment is put together: bytes by their place in the segment.
type Patch interface {
	io.ReaderAt
	io.WriterAt
}

// AssembleTails puts the bytes [0, end) of segment n together from its tail
// objects. crc is the CRC32C of these bytes. Without tail objects end is 0, and
// that is no error. Names that no segment of this size has are none.
//
// From what it has, it always takes the object that reaches furthest. Each was
// decoded to its end, has exactly the bytes that its name says, agrees with
// what is there already, and its checksum is that of everything up to its end.
// An object that was not needed must have the checksum of its place, too. into
// is only written to from here on its way up; behind end it may hold anything.
//
// With these errors end and crc still say how far it got, and the bytes there
// are good:
//
//	ErrConflict (*ConflictError)  an object is of another history than those that reach further
//	codec.ErrDamaged              an object cannot be read, and nothing else gets past it
//	ErrNoDecoder                  the same, for want of a decoder
//	ErrTailHole                   the next object begins further on
//
// Each names the object. ErrVanished has its meaning above. A hole is believed
// when two listings agree in it: one of a directory that changes may show the
// younger object alone. Every other error is the store's, or that of into.
//
// One LIST; up to 8 small objects are downloaded at a time and wait in memory
// in their stored form, larger ones pass through.
func (a *Archive) AssembleTails(ctx context.Context, n segment.Name, size segment.Size, into Patch) (end uint32, crc uint32, err error) {
	if err := errors.Join(size.Check(), n.Check(size)); err != nil {
		return 0, 0, err
	}
	var c *chain
	for try := 1; ; try++ {
		objects, err := a.Tails(ctx, n)
		if err != nil {
			return 0, 0, err
		}
		last := try == assembleTries || c != nil && slices.Equal(c.listed, objects)
		c = newChain(a, n, size, into, objects)
		if !last && c.broken() {
			continue
		}
		err = c.assemble(ctx)
		if errors.Is(err, ErrVanished) && !last {
			continue
		}
		return c.reach.at, c.reach.crc, wrap("putting "+n.String()+" together from tail objects", err)
	}
}

// TailEnd returns how far the chain of n's tail objects reaches by their names
// alone: one LIST, no GET. What the objects hold is not known.
func (a *Archive) TailEnd(ctx context.Context, n segment.Name) (end uint32, err error) {
	objects, err := a.Tails(ctx, n)
	if err != nil {
		return 0, err
	}
	for _, t := range objects {
		if t.Start <= end {
			end = max(end, t.End)
		}
	}
	return end, nil
}

// chain puts one segment together from one listing.
type chain struct {
	archive *Archive
	name    segment.Name
	size    segment.Size
	into    Patch
	listed  []StoredTail // as they were listed
	objects []StoredTail // those that a segment of this size can have, by start

	reach   reach
	ends    []uint32 // of all objects, ascending
	crcs    []uint32 // of the bytes up to each of ends that was reached
	damaged map[StoredTail]error
	buf     []byte // for what is decoded
	held    []byte // for what is there already
}

// reach is how far the chain has come.
type reach struct {
	at   uint32 // bytes
	crc  uint32 // of them
	mark int    // the first of ends that lies behind
}

// castagnoli is the table of CRC32C. It is never written to.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func newChain(a *Archive, n segment.Name, size segment.Size, into Patch, listed []StoredTail) *chain {
	c := &chain{archive: a, name: n, size: size, into: into, listed: listed, damaged: map[StoredTail]error{}}
	for _, t := range listed {
		if uint64(t.End) <= uint64(size) {
			c.objects = append(c.objects, t)
			c.ends = append(c.ends, t.End)
		}
	}
	slices.Sort(c.ends)
	c.ends = slices.Compact(c.ends)
	c.crcs = make([]uint32, len(c.ends))
	return c
}

// plan returns the objects to read from here on: always the one that reaches
// furthest, and of those that do the shortest.
func (c *chain) plan() []StoredTail {
	var plan []StoredTail
	var best StoredTail
	have, i := c.reach.at, 0
	for {
		for ; i < len(c.objects) && c.objects[i].Start <= have; i++ {
			t := c.objects[i]
			if c.usable(t) && t.End > have && t.End >= best.End {
				best = t
			}
		}
		if best.End <= have {
			return plan
		}
		plan = append(plan, best)
		have = best.End
	}
}

func (c *chain) usable(t StoredTail) bool { return c.damaged[t] == nil && codec.CanRead(t.Ext) }

// broken tells by the names alone that there is a hole.
func (c *chain) broken() bool {
	end := uint32(0)
	for _, t := range c.objects {
		if t.Start > end {
			return true
		}
		end = max(end, t.End)
	}
	return false
}

func (c *chain) lsn(at uint32) segment.LSN { return c.name.Start(c.size) + segment.LSN(at) }

// assemble goes as far as the objects allow, then tells whether that is as far
// as they should reach.
func (c *chain) assemble(ctx context.Context) error {
	for plan := c.plan(); len(plan) > 0; plan = c.plan() {
		if err := c.follow(ctx, plan); err != nil {
			return err
		}
	}
	return c.judge()
}

// judge compares what was put together with what the objects' names say.
func (c *chain) judge() error {
	for _, t := range c.objects {
		if i, _ := slices.BinarySearch(c.ends, t.End); i < c.reach.mark && c.crcs[i] != t.CRC {
			return &ConflictError{Key: t.storedKey(), Chain: true}
		}
	}
	var damage, foreign, hole error
	for _, t := range c.objects {
		switch err := c.damaged[t]; {
		case t.End <= c.reach.at:
			if err != nil {
				c.archive.log.Warn("a damaged tail object was not needed", "error", err.Error())
			}
		case err != nil && damage == nil:
			damage = err
		case err != nil:
			damage = fmt.Errorf("%w; %w", damage, err)
		case t.Start > c.reach.at && hole == nil:
			hole = fmt.Errorf("%w: %s to %s is missing in front of %s", ErrTailHole, c.lsn(c.reach.at), c.lsn(t.Start), t.storedKey())
		case t.Start <= c.reach.at && foreign == nil:
			foreign = fmt.Errorf("%s: %w: want one of the extensions %s", t.storedKey(), ErrNoDecoder, readableExts())
		}
	}
	// The hole is what the others make, where there are others.
	for _, err := range []error{damage, foreign, hole} {
		if err != nil {
			return err
		}
	}
	return nil
}

func readableExts() string {
	return strings.Join(slices.DeleteFunc(codec.Readable(), func(ext string) bool { return ext == "" }), " ") + " or none"
}

// download is an object's stored bytes, or why they are not there.
type download struct {
	stored []byte
	err    error // errLarge: it is to be read in turn
}

var errLarge = errors.New("too large to wait in memory")

// follow takes the objects of plan one after the other, the next ones being
// downloaded meanwhile. It ends early, without an error, behind one that is
// damaged: another plan is needed then.
func (c *chain) follow(ctx context.Context, plan []StoredTail) error {
	ctx, cancel := context.WithCancel(ctx)
	var downloads sync.WaitGroup
	defer downloads.Wait()
	defer cancel()
	arrived := make([]chan download, len(plan))
	begun := 0
	for i, t := range plan {
		for ; begun < min(i+tailsAhead, len(plan)); begun++ {
			if next := plan[begun]; next.End-next.Start <= smallTail {
				ch := make(chan download, 1)
				arrived[begun] = ch
				downloads.Go(func() { ch <- c.archive.download(ctx, next.storedKey()) })
			}
		}
		first := download{err: errLarge}
		if arrived[i] != nil {
			first = <-arrived[i]
		}
		err := c.take(ctx, t, first)
		if errors.Is(err, codec.ErrDamaged) {
			c.damaged[t] = err
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// download reads a small object's stored bytes.
func (a *Archive) download(ctx context.Context, key string) download {
	body, info, err := a.store.Get(ctx, key)
	if err != nil {
		return download{err: err}
	}
	defer discard(body)
	if info.Size > 2*smallTail {
		return download{err: errLarge}
	}
	buf := bytes.NewBuffer(make([]byte, 0, info.Size+bytes.MinRead))
	_, err = buf.ReadFrom(body)
	return download{stored: buf.Bytes(), err: err}
}

// take adds an object to the chain. A body that breaks off is asked for again:
// with dozens of objects a segment would else be lost to one bad connection.
func (c *chain) take(ctx context.Context, t StoredTail, first download) error {
	for try := 1; ; try++ {
		err := first.err
		switch {
		case err == nil:
			err = c.add(t, bytes.NewReader(first.stored))
		case errors.Is(err, errLarge):
			err = c.stream(ctx, t)
		}
		var conflict *ConflictError
		switch {
		case err == nil, errors.As(err, &conflict):
			return err
		case errors.Is(err, objstore.ErrNotFound):
			return fmt.Errorf("%s: %w", t.storedKey(), ErrVanished)
		case try == objectTries, ctx.Err() != nil, errors.Is(err, codec.ErrDamaged), errors.Is(err, errPatch),
			errors.Is(err, objstore.ErrDenied), errors.Is(err, objstore.ErrNoStore):
			return fmt.Errorf("reading %s: %w", t.storedKey(), err)
		}
		c.archive.log.Debug("a tail object is read again", "key", t.storedKey(), "error", err.Error())
		first = download{err: errLarge}
	}
}

func (c *chain) stream(ctx context.Context, t StoredTail) error {
	body, _, err := c.archive.store.Get(ctx, t.storedKey())
	if err != nil {
		return err
	}
	defer discard(body)
	return c.add(t, body)
}

// add decodes an object and, when everything about it is right, moves reach to
// its end.
func (c *chain) add(t StoredTail, stored io.Reader) error {
	content, err := codec.NewReader(stored, t.Ext)
	if err != nil {
		return err
	}
	defer discard(content)
	if c.buf == nil {
		c.buf, c.held = make([]byte, assembleBlock), make([]byte, assembleBlock)
	}
	r, at := c.reach, t.Start
	// A difference alone does not say whether the object is of another history
	// or damaged: the checksums at its end do.
	var conflict *ConflictError
	for end := false; !end; {
		n, err := fill(content, c.buf)
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			end = true
		default:
			return err
		}
		if uint64(n) > uint64(t.End-at) {
			return fmt.Errorf("%w: it decodes to more than %d bytes", codec.ErrDamaged, t.End-t.Start)
		}
		fresh := c.buf[:n]
		if at < c.reach.at && conflict == nil {
			known := fresh[:min(uint32(n), c.reach.at-at)]
			if conflict, err = c.compare(t, known, at); err != nil {
				return err
			}
			fresh = fresh[len(known):]
		}
		if conflict == nil && len(fresh) > 0 {
			if _, err := c.into.WriteAt(fresh, int64(r.at)); err != nil {
				return fmt.Errorf("%w: %w", errPatch, err)
			}
			c.advance(&r, fresh)
		}
		at += uint32(n)
	}
	switch {
	case at != t.End:
		return fmt.Errorf("%w: it decodes to %d bytes, %d by its name", codec.ErrDamaged, at-t.Start, t.End-t.Start)
	case conflict != nil:
		return conflict
	case r.crc != t.CRC:
		return &ConflictError{Key: t.storedKey(), Chain: true}
	}
	c.reach = r
	return nil
}

// compare holds an object's bytes from at on against those that are there.
func (c *chain) compare(t StoredTail, b []byte, at uint32) (*ConflictError, error) {
	held := c.held[:len(b)]
	if n, err := c.into.ReadAt(held, int64(at)); n < len(held) {
		return nil, fmt.Errorf("%w: %w", errPatch, err)
	}
	if i := firstDifference(held, b); i >= 0 {
		return &ConflictError{Key: t.storedKey(), LSN: c.lsn(at + uint32(i)), HasLSN: true}, nil
	}
	return nil, nil
}

// advance moves r over b, and notes the checksum at each object's end on the way.
func (c *chain) advance(r *reach, b []byte) {
	for len(b) > 0 {
		part := b
		atEnd := false
		if r.mark < len(c.ends) && uint64(c.ends[r.mark]-r.at) <= uint64(len(b)) {
			part, atEnd = b[:c.ends[r.mark]-r.at], true
		}
		r.crc = crc32.Update(r.crc, castagnoli, part)
		r.at += uint32(len(part))
		if atEnd {
			c.crcs[r.mark] = r.crc
			r.mark++
		}
		b = b[len(part):]
	}
}
