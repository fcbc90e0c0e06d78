package uploader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

const (
	// mergeWidth is how many neighbours of one level become one of the next:
	// no byte is written more often than there are levels, and a reader of
	// the chain opens dozens of objects, not thousands.
	mergeWidth = 32
	// supersededFor is how long a superseded object stays: a reader that has
	// seen its name in a listing has read it by then.
	supersededFor = 10 * time.Minute
	// renewAfter is how old an object may get that nothing else stands for, so
	// that a lifecycle rule of 30 days never removes it (DESIGN, invariant 10).
	renewAfter = 7 * 24 * time.Hour
	// firstLevel is that of an object that begins a chain in mid-segment; it
	// is as large as all before it, and is merged no more.
	firstLevel = 1 << 16
)

// chain is what this run has stored of one open segment: objects that follow
// each other from the segment's first byte. u.mu guards it.
type chain struct {
	seg   *spool.Segment
	to    segment.LSN // bytes in front of it may be stored
	end   segment.LSN // and in front of it are
	crc   uint32      // CRC32C of the segment's bytes up to end
	links []link      // from the segment's start to end, without a gap
	found bool        // the segment is older than this run: so may be objects of it
	fails error       // it cannot be read any more
	done  chan struct{}
}

// link is one stored object.
type link struct {
	archive.Tail
	level  int
	stored time.Time
}

// superseded is a tail object that others stand for, or, where name is set,
// all that there are of a segment that is stored whole.
type superseded struct {
	tail  archive.Tail
	name  segment.Name
	since time.Time
}

// Offer tells that the bytes of g in front of an LSN are right, and as durable
// as they have to be for a tail object. hurry says that a commit waits for
// them; otherwise they go with the next interval. It does not wait, does not
// allocate but once a segment, and may be called as often as anything moves.
func (u *Uploader) Offer(g *spool.Segment, to segment.LSN, hurry bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := u.chainOf(g)
	if c == nil {
		if to <= g.Start() || u.frontSet && u.front.Timeline == g.Name().Timeline && g.End() <= u.front.LSN {
			return
		}
		from, vouched := g.Vouched()
		_, chained := u.tails[g.Name()]
		c = &chain{seg: g, end: g.Start(), found: vouched > from || chained, done: make(chan struct{})}
		u.chains = append(u.chains, c)
	}
	if to <= c.to && hurry == u.hurry {
		return
	}
	due := c.to > c.end // and so looked at by the clock
	c.to, u.hurry = max(c.to, to), hurry
	if hurry || !due {
		u.kickTails()
	}
}

// chainOf returns the chain of a segment that was offered. u.mu is held.
func (u *Uploader) chainOf(g *spool.Segment) *chain {
	for _, c := range slices.Backward(u.chains) {
		if c.seg == g {
			return c
		}
	}
	return nil
}

func (u *Uploader) kickTails() {
	select {
	case u.tailNews <- struct{}{}:
	default:
	}
}

// workTails stores tail objects until ctx ends. A non-nil error ends the whole
// uploader.
func (u *Uploader) workTails(ctx context.Context) error {
	if err := u.offerHeld(ctx); err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := time.Now().Add(-u.o.ShipInterval)
	for {
		c, renew, wait := u.nextTail(time.Now(), last)
		if c == nil {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return nil
			case <-u.tailNews:
			case <-timer.C:
			}
			continue
		}
		last = time.Now()
		err := u.shipTail(ctx, c, renew)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, archive.ErrConflict):
			u.stop(err)
			<-ctx.Done()
			return nil
		case final(err):
			return err
		default:
			// The segment is stored whole by now, or was given up.
			u.log.Debug("tail object not stored", "segment", c.seg.Name().String(), "error", err.Error())
		}
	}
}

// offerHeld offers what a run before this one has left in the spool: of a
// primary that is gone for good, that is all there will ever be. What follows
// the last record that verifies may be torn.
func (u *Uploader) offerHeld(ctx context.Context) error {
	for _, g := range u.spool.Segments() {
		if whole(g) || !u.knows(g.Name().Timeline) {
			continue
		}
		from, to := g.Vouched()
		if from != g.Start() {
			var err error
			if to, err = u.vouchBeginning(ctx, g); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				if final(err) {
					return err
				}
				if g.Err() != nil {
					continue // dropped: the archive has it
				}
				u.log.Warn("the beginning of a segment cannot be checked: it waits for the server", "segment", g.Name().String(), "error", err.Error())
				continue
			}
		}
		u.Offer(g, to, false)
	}
	return nil
}

// knows reports whether the spool has a history file that tells of a timeline: it
// must be in the archive before any of its WAL (DESIGN, invariant 4), and a
// receiver that was killed early may have left WAL alone.
func (u *Uploader) knows(t segment.Timeline) bool {
	for _, child := range u.spool.Histories() {
		content, err := u.spool.History(child)
		if err != nil {
			continue
		}
		h, err := segment.ParseHistory(child, content)
		if _, ancestor := h.Switchpoint(t); err == nil && (ancestor || child == t) {
			return true
		}
	}
	return t == 1
}

// vouchBeginning checks the record that goes on from the segment before, which
// the archive has: of the same timeline or, where that began in g, of its
// parent.
func (u *Uploader) vouchBeginning(ctx context.Context, g *spool.Segment) (segment.LSN, error) {
	if _, err := u.claim(ctx); err != nil {
		return 0, err
	}
	before := u.spool.Before(g.Name(), u.sizeOf())
	to := g.Start()
	var reason error // why it cannot be checked, although the archive answers
	err := u.ask(ctx, "read segment "+before.String(), func() error {
		o, err := u.archive.Open(ctx, before.String())
		if errors.Is(err, archive.ErrNotFound) {
			return nil // not stored: the server will tell
		}
		if err != nil {
			return err
		}
		to, err = g.VouchBeginning(segment.Forward(o))
		if errors.Is(err, codec.ErrDamaged) || errors.Is(err, segment.ErrPage) || g.Err() != nil {
			reason, err = err, nil
		}
		return errors.Join(err, o.Close())
	})
	return to, cmp.Or(err, reason)
}

// nextTail returns the chain that has something to be stored now, or how long
// to wait for one. last is when the one before began.
func (u *Uploader) nextTail(now, last time.Time) (c *chain, renew bool, wait time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	wait = time.Hour
	if u.stopped != nil {
		return nil, false, wait
	}
	u.chains = slices.DeleteFunc(u.chains, func(c *chain) bool { return isClosed(c.done) })
	for _, c := range u.chains {
		if c.fails != nil || u.whole(c) {
			continue
		}
		if len(c.links) > 0 {
			left := c.links[0].stored.Add(renewAfter).Sub(now)
			for _, p := range c.links {
				left = min(left, p.stored.Add(renewAfter).Sub(now))
			}
			if left <= 0 {
				return c, true, 0
			}
			wait = min(wait, left)
		}
		if c.to <= c.end {
			continue
		}
		if u.waitsForOlder(c) {
			continue // told when one is stored
		}
		due := last.Add(u.o.ShipInterval).Sub(now)
		switch {
		case u.hurry || due <= 0 && u.o.ShipInterval > 0:
			return c, false, 0
		case u.o.ShipInterval > 0:
			wait = min(wait, due)
		}
	}
	return nil, false, wait
}

// waitsForOlder reports whether the archive has an older segment, which is
// whole, in no form: behind it nothing could be restored, and a restore would
// stop at the hole instead of ending there; in a new archive the tail object
// would be taken for its beginning. Of a timeline that has ended only that
// beginning waits: the child's first segment repeats its last one's bytes. u.mu
// is held.
func (u *Uploader) waitsForOlder(c *chain) bool {
	for _, g := range u.spool.Segments() {
		if g.Start() >= c.seg.Start() || !whole(g) {
			continue
		}
		n := g.Name()
		if _, ended := g.Finished(); ended && u.anchored {
			continue
		}
		_, stored := u.stored[n]
		if !stored && !(u.frontSet && g.End() <= u.front.LSN) && u.tails[n] < g.End() {
			return true
		}
	}
	return false
}

// whole reports whether a chain gets no more objects, since its segment is
// whole and goes up as such. Where a commit waits, a chain that has begun runs
// to the segment's end first. u.mu is held.
func (u *Uploader) whole(c *chain) bool {
	if _, ended := c.seg.Finished(); ended {
		return true
	}
	return whole(c.seg) && !(u.hurry && len(c.links) > 0 && c.end < c.seg.End())
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// shipTail stores the next object of a chain, or, to renew it, all of it as
// one.
func (u *Uploader) shipTail(ctx context.Context, c *chain, renew bool) error {
	u.mu.Lock()
	from, to, crc, first := c.end, c.to, c.crc, len(c.links) == 0
	u.mu.Unlock()
	if renew {
		from, to, crc = c.seg.Start(), from, 0
	}
	// Of a segment that an earlier run has begun, nobody here knows how old its
	// objects are: the first one stands for them all, and is as new as it can be.
	whole := renew || first && c.found
	p, err := u.storeTail(ctx, c, from, to, crc, whole)
	if err != nil {
		return err
	}
	if whole {
		p.level = firstLevel
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if renew {
		for _, old := range c.links {
			if old.Tail != p.Tail {
				u.supersede(superseded{tail: old.Tail, since: p.stored})
			}
		}
		c.links = nil
	}
	c.links = append(c.links, p)
	c.end, c.crc = max(c.end, to), p.CRC
	u.tails[c.seg.Name()] = max(u.tails[c.seg.Name()], c.end)
	u.advance()
	u.notify()
	if u.mergeable(c) >= 0 {
		select {
		case u.mergeNews <- struct{}{}:
		default:
		}
	}
	return nil
}

// storeTail stores the bytes [from, to) of a chain's segment, crc being that
// of all before them. It ends early when the segment is stored whole.
func (u *Uploader) storeTail(ctx context.Context, c *chain, from, to segment.LSN, crc uint32, again bool) (link, error) {
	ctx, end := whileOpen(ctx, c.done)
	defer end()
	coder, err := u.claim(ctx)
	if err != nil {
		return link{}, err
	}
	method := coder.Method()
	if err := u.shipHistories(ctx, c.seg.Name().Timeline, method); err != nil {
		return link{}, err
	}
	frame := u.o.Buffers.New()
	defer func() { frame.Release() }()
	for {
		sum, err := u.encodeRange(frame, c.seg, from, to, crc, coder)
		if err == nil {
			crc = sum
			break
		}
		if errors.As(err, new(*readError)) {
			u.mu.Lock()
			c.fails = err
			u.mu.Unlock()
			return link{}, err
		}
		// The disk that takes large frames is full.
		frame.Release()
		frame = u.o.Buffers.New()
		if err := u.pause(ctx, fmt.Errorf("compressing the open segment %s: %w", c.seg.Name(), err)); err != nil {
			return link{}, err
		}
	}
	start := c.seg.Start()
	t := archive.Tail{Segment: c.seg.Name(), Start: uint32(from - start), End: uint32(to - start), CRC: crc}
	put := u.archive.PutTail
	if again {
		put = u.archive.RenewTail
	}
	if err := u.insist(ctx, "store the tail of "+t.Segment.String(), func() error { return put(ctx, t, method, frame) }); err != nil {
		return link{}, err
	}
	return link{Tail: t, stored: time.Now()}, nil
}

// whileOpen returns a context that ends when done is closed. end frees what it
// holds.
func whileOpen(ctx context.Context, done <-chan struct{}) (open context.Context, end func()) {
	open, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-done:
			cancel()
		case <-open.Done():
		}
	})
	return open, func() {
		cancel()
		wg.Wait()
	}
}

// encodeRange encodes the bytes [from, to) of a segment into frame and returns
// the checksum of all up to there.
func (u *Uploader) encodeRange(frame *codec.Frame, g *spool.Segment, from, to segment.LSN, crc uint32, coder *codec.Encoders) (uint32, error) {
	w, err := coder.NewWriter(frame, int64(to-from))
	if err != nil {
		return 0, err
	}
	buf := u.block()
	defer u.blocks.Put(buf)
	for at := from; at < to && err == nil; {
		part := buf[:min(to-at, blockSize)]
		if err = g.ReadAt(part, at); err != nil {
			err = &readError{err}
			break
		}
		crc = crc32.Update(crc, castagnoli, part)
		at += segment.LSN(len(part))
		_, err = w.Write(part)
	}
	return crc, errors.Join(err, w.Close())
}

// workMerges makes one object of many neighbours, beside the tails.
func (u *Uploader) workMerges(ctx context.Context) {
	for {
		c, old := u.nextMerge()
		if c == nil {
			select {
			case <-ctx.Done():
				return
			case <-u.mergeNews:
			}
			continue
		}
		err := u.merge(ctx, c, old)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !isClosed(c.done) {
			u.mu.Lock()
			c.fails = cmp.Or(c.fails, err) // no more of this chain: the whole segment will follow
			u.mu.Unlock()
			u.log.Error("no more tail objects of this segment", "segment", c.seg.Name().String(), "error", err.Error())
		}
	}
}

// nextMerge returns neighbours that are to become one object.
func (u *Uploader) nextMerge() (*chain, []link) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range u.chains {
		if u.whole(c) || c.fails != nil || isClosed(c.done) {
			continue
		}
		if i := u.mergeable(c); i >= 0 {
			return c, slices.Clone(c.links[i : i+mergeWidth])
		}
	}
	return nil, nil
}

// mergeable returns where the first neighbours of one level begin that are
// enough, or -1. u.mu is held.
func (u *Uploader) mergeable(c *chain) int {
	for i, run := 0, 0; i < len(c.links); i++ {
		if run > 0 && c.links[i].level == c.links[i-1].level {
			run++
		} else {
			run = 1
		}
		if run == mergeWidth && c.links[i].level < firstLevel {
			return i - mergeWidth + 1
		}
	}
	return -1
}

func (u *Uploader) merge(ctx context.Context, c *chain, old []link) error {
	start := c.seg.Start()
	crc, ok := u.crcBefore(c, old[0])
	if !ok {
		return nil // renewed meanwhile
	}
	last := old[len(old)-1]
	p, err := u.storeTail(ctx, c, start+segment.LSN(old[0].Start), start+segment.LSN(last.End), crc, false)
	if err != nil {
		return err
	}
	if p.CRC != last.CRC {
		return fmt.Errorf("segment %s reads differently now: checksum %08X up to %08X, it was %08X", c.seg.Name(), p.CRC, last.End, last.CRC)
	}
	p.level = old[0].level + 1
	u.mu.Lock()
	defer u.mu.Unlock()
	i := slices.Index(c.links, old[0])
	if i < 0 || i+len(old) > len(c.links) || !slices.Equal(c.links[i:i+len(old)], old) {
		u.supersede(superseded{tail: p.Tail, since: p.stored}) // renewed meanwhile
		return nil
	}
	for _, o := range old {
		u.supersede(superseded{tail: o.Tail, since: p.stored})
	}
	c.links = slices.Replace(c.links, i, i+len(old), p)
	return nil
}

// crcBefore returns the checksum of the segment up to where a link begins.
func (u *Uploader) crcBefore(c *chain, p link) (crc uint32, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if p.Start == 0 {
		return 0, true
	}
	for _, o := range c.links {
		if o.End == p.Start {
			return o.CRC, true
		}
	}
	return 0, false
}

// supersede notes what is to be removed later. u.mu is held.
func (u *Uploader) supersede(s superseded) {
	if u.keepTails {
		return
	}
	u.superseded = append(u.superseded, s)
	select {
	case u.dropNews <- struct{}{}:
	default:
	}
}

// endChain is called when a segment is stored up to an LSN, its end or that of
// its timeline: what its chain has in front of that is not needed any more.
// u.mu is held.
func (u *Uploader) endChain(g *spool.Segment, stored segment.LSN) {
	n, now := g.Name(), time.Now()
	for _, c := range u.chains {
		if c.seg.Name() != n || isClosed(c.done) {
			continue
		}
		close(c.done)
		if c.end > stored || c.found && stored != g.End() {
			continue // WAL that nothing else holds, behind where the timeline ended
		}
		if c.found {
			u.supersede(superseded{name: n, since: now})
			continue
		}
		for _, p := range c.links {
			u.supersede(superseded{tail: p.Tail, since: now})
		}
	}
	u.kickTails()
}

// workSuperseded removes superseded tail objects when their time has come.
// Nothing depends on it: what stays is left to the store's lifecycle rule.
func (u *Uploader) workSuperseded(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s, wait := u.nextSuperseded(time.Now())
		if wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return
			case <-u.dropNews:
			case <-timer.C:
			}
			continue
		}
		err := u.removeSuperseded(ctx, s)
		u.mu.Lock()
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, objstore.ErrDenied):
			u.keepTails, u.superseded = true, nil
			u.log.Warn("superseded tail objects may not be removed: they are left to a lifecycle rule on wal_tail_005/ (30 days at least)", "error", err.Error())
		default:
			s.since = time.Now() // once more, as long after
			u.superseded = append(u.superseded, s)
			u.log.Debug("a superseded tail object was not removed", "error", err.Error())
		}
		u.mu.Unlock()
	}
}

// nextSuperseded takes what is to be removed now, or returns how long to wait.
func (u *Uploader) nextSuperseded(now time.Time) (superseded, time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.superseded) == 0 {
		return superseded{}, time.Hour
	}
	s := u.superseded[0]
	if wait := s.since.Add(supersededFor).Sub(now); wait > 0 {
		return superseded{}, wait
	}
	u.superseded = u.superseded[1:]
	return s, 0
}

func (u *Uploader) removeSuperseded(ctx context.Context, s superseded) error {
	coder, err := u.claim(ctx)
	if err != nil {
		return err
	}
	if s.name == (segment.Name{}) {
		return u.archive.DeleteTail(ctx, s.tail, coder.Method())
	}
	all, err := u.archive.Tails(ctx, s.name)
	if err != nil {
		return err
	}
	for _, t := range all {
		if err := u.archive.DeleteStoredTail(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// sweepTails finds, once, what runs before this one have left of segments that
// the archive has whole.
func (u *Uploader) sweepTails(ctx context.Context) {
	timer := time.NewTimer(supersededFor)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-timer.C:
	}
	u.mu.Lock()
	size, sealed := u.size, u.sweepTo
	ends := map[segment.Timeline]segment.LSN{}
	for t, s := range u.switches {
		ends[t] = s.at
	}
	u.mu.Unlock()
	if size == 0 || sealed.LSN == 0 {
		return
	}
	if _, ended := ends[sealed.Timeline]; !ended {
		ends[sealed.Timeline] = sealed.LSN
	}
	for t, end := range ends {
		names, err := u.archive.TailSegments(ctx, t)
		if err != nil {
			u.log.Debug("old tail objects were not looked for", "error", err.Error())
			return
		}
		for _, n := range names {
			if n.Check(size) != nil || n.End(size) > min(end, sealed.LSN) {
				continue
			}
			// In front of a gap, or of a hole, they are all that there is.
			whole, err := u.hasWhole(ctx, n)
			if err != nil {
				u.log.Debug("old tail objects stay", "segment", n.String(), "error", err.Error())
			}
			if whole {
				u.mu.Lock()
				u.supersede(superseded{name: n, since: time.Now().Add(-supersededFor)})
				u.mu.Unlock()
			}
		}
	}
}

// hasWhole reports whether the archive has a segment whole.
func (u *Uploader) hasWhole(ctx context.Context, n segment.Name) (bool, error) {
	o, err := u.archive.Open(ctx, n.String())
	if errors.Is(err, archive.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, o.Close()
}

// workFronts renews what tail objects hold in front of recorded gaps, so that no
// lifecycle rule removes it: ten minutes into the run, and then as often as the
// chain of an open segment is.
func (u *Uploader) workFronts(ctx context.Context) {
	timer := time.NewTimer(supersededFor)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		next := renewAfter
		if err := u.renewFronts(ctx); err != nil && ctx.Err() == nil {
			u.log.Debug("what lies in front of a recorded gap was not renewed", "error", err.Error())
			next = time.Hour
		}
		timer.Reset(next)
	}
}

func (u *Uploader) renewFronts(ctx context.Context) error {
	size := u.sizeOf()
	if size == 0 {
		return errors.New("the cluster is not known yet")
	}
	gaps, err := u.archive.Gaps(ctx)
	if err != nil {
		return err
	}
	for _, g := range gaps {
		if size.Offset(g.Start) == 0 {
			continue
		}
		n := size.Name(g.Timeline, g.Start)
		if whole, err := u.hasWhole(ctx, n); whole || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		all, err := u.archive.Tails(ctx, n)
		if err != nil {
			return err
		}
		for _, t := range all {
			frame := u.o.Buffers.New()
			err := u.archive.RenewStoredTail(ctx, t, frame)
			frame.Release()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// withTails moves a position over what tail objects cover behind it. u.mu is
// held.
func (u *Uploader) withTails(p segment.Position) segment.Position {
	for u.size != 0 {
		if s, ended := u.switches[p.Timeline]; ended && p.LSN >= s.at {
			p = segment.Position{Timeline: s.child, LSN: s.at}
			continue
		}
		n := u.size.Name(p.Timeline, p.LSN)
		end := max(u.stored[n], u.tails[n])
		if end <= p.LSN {
			break
		}
		p.LSN = end
	}
	return p
}
