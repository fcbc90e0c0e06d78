// Package uploader carries WAL from the spool into the archive.
//
// A fixed number of workers each take one segment, the oldest first, compress
// it while it still fills, and store it put-if-absent once it is whole. Stores
// may finish in any order; two things happen in order: a segment leaves the
// spool only when all before it are stored, so that the spool is always one
// gapless run, and the shipped position moves only over a gapless run of
// stored segments. The first store of a run is that of the oldest segment, and
// the younger ones wait for it: an archive that has nothing yet would begin
// with whichever came first, and show no hole where the older one is missing.
// A timeline's history is stored before any of its WAL (DESIGN, invariant 4).
//
// # Tail objects
//
// What is in the open segment goes up every ship interval as a tail object
// (DESIGN, section 4), or at once while a commit waits for it. The objects of
// one segment follow each other without a gap, each stored before the next is
// begun, and the first behind all older segments: shipped moves over them as
// over whole segments, and each is stored to be restored. They only ever stand
// for a segment that is not stored yet: what supersedes them is durable before
// they are removed.
//
// In front of a gap they stand for ever: the rest of that segment is lost. They
// are not swept, since the archive has not got it whole, and are renewed as those
// of an open segment are.
//
// # What a crash leaves
//
//	operation        crash point                     state left                        who mends it
//	store a history  before or after the PUT         the spool still has it            the next run stores it again: equal content is success
//	store a segment  before the PUT                  sealed file in the spool          the next run takes it again
//	store a segment  after the PUT, before the drop  object and sealed file            the next run stores it again: equal content is success, then drops it
//	drop a segment   after the unlink                object only; maybe a file of the  the next run: as above
//	                                                 same content comes back
//	store a tail     before the PUT                  the spool's bytes                 the next run's first tail covers them all
//	store a tail     after the PUT                   the object                        counted by whoever reads the chain; the next run's first tail
//	                                                                                   begins at 0 again and stands for it
//	merge, renew     after the PUT                   new and old objects               readers take the longer one; removed with the segment's rest
//	remove a tail    before or after the DELETE      objects of a sealed segment       ten minutes into the next run; else the lifecycle rule
package uploader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/internal/patience"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// Spool is where the WAL comes from.
type Spool interface {
	Take(ctx context.Context) (*spool.Segment, error)
	Drop(*spool.Segment) error
	Segments() []*spool.Segment
	Histories() []segment.Timeline
	History(segment.Timeline) ([]byte, error)
	Before(n segment.Name, size segment.Size) segment.Name
	Identity() (spool.Identity, bool)
}

// Archive is where it goes. Each call stores put-if-absent and returns nil
// only when an object with the given decoded content is durable;
// archive.ErrConflict when one with other content is there.
type Archive interface {
	PutSegment(ctx context.Context, n segment.Name, m codec.Method, frame objstore.Body, plain io.ReaderAt, size segment.Size) error
	PutPartial(ctx context.Context, n segment.Name, w segment.LSN, m codec.Method, frame objstore.Body, plain io.ReaderAt, size segment.Size) error
	PutHistory(ctx context.Context, t segment.Timeline, m codec.Method, content []byte) error
	Claim(ctx context.Context, id archive.Identity) (archive.Identity, error)
	// Identity returns the identity object, or archive.ErrNotFound.
	Identity(ctx context.Context) (archive.Identity, error)
	Open(ctx context.Context, name string) (*archive.Object, error)

	PutTail(ctx context.Context, t archive.Tail, m codec.Method, frame objstore.Body) error
	RenewTail(ctx context.Context, t archive.Tail, m codec.Method, frame objstore.Body) error
	DeleteTail(ctx context.Context, t archive.Tail, m codec.Method) error
	Tails(ctx context.Context, n segment.Name) ([]archive.StoredTail, error)
	TailSegments(ctx context.Context, t segment.Timeline) ([]segment.Name, error)
	DeleteStoredTail(ctx context.Context, t archive.StoredTail) error
	RenewStoredTail(ctx context.Context, t archive.StoredTail, through archive.Buffer) error
	Gaps(ctx context.Context) (segment.Gaps, error)
}

// Options of an Uploader.
type Options struct {
	Workers int            // segments in hand at once; default 4
	Method  codec.Method   // how WAL is compressed
	Follow  bool           // Method is for a new archive only: one that has a codec keeps it
	Buffers *codec.Buffers // where frames are built
	// ShipInterval is how often the open segment's new bytes become a tail
	// object; 0: only while a commit waits for them.
	ShipInterval time.Duration
	Log          *slog.Logger // optional
}

// Uploader ships segments. Its methods may be called concurrently.
type Uploader struct {
	spool    Spool
	archive  *noting
	o        Options
	log      *slog.Logger
	trouble  *patience.Trouble
	removing *patience.Trouble // of what is stored from the spool
	changed  chan struct{}     // capacity 1: something a caller may wait for has changed
	news     chan struct{}     // capacity 1: there may be a history that is not stored
	stuck    chan struct{}     // capacity 1: there is something in undropped

	tailNews  chan struct{} // capacity 1: there may be a tail object to store
	mergeNews chan struct{} // capacity 1: or several to be merged
	dropNews  chan struct{} // capacity 1: or one to be removed

	blocks sync.Pool // of *[blockSize]byte

	taking turn // one Take at a time, so that queue is in the spool's order

	claiming turn // one claim at a time; guards what follows
	claimed  bool
	coder    *codec.Encoders // set by the claim

	sending   turn // one history at a time; guards what follows
	histories map[segment.Timeline]bool

	mu         sync.Mutex
	queue      []*item          // taken and not yet dropped, in the spool's order
	undropped  []*item          // stored, and still in the spool, which could not remove them
	base       segment.Position // end of the archive's run when it was asked
	baseSet    bool
	front      segment.Position
	frontSet   bool
	shipped    segment.Position             // front, and what tails cover behind it
	sweepTo    segment.Position             // the first front of this run
	tails      map[segment.Name]segment.LSN // how far tail objects reach, of segments that front has not passed
	chains     []*chain                     // of the segments that were offered, in order
	hurry      bool                         // a commit waits for what is offered
	superseded []superseded                 // in the order of their time
	keepTails  bool                         // nothing may be removed
	stored     map[segment.Name]segment.LSN // stored ends that front has not passed yet
	switches   map[segment.Timeline]switchpoint
	anchored   bool          // this run has stored a segment
	moved      chan struct{} // closed, and made anew, when a segment has been stored or given up
	stopped    error         // why shipping stopped for good
	size       segment.Size
}

// turn is a lock whose wait ends with a context: what it guards may wait for a
// store for a long time. Its capacity is 1.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }

type item struct {
	seg    *spool.Segment
	stored bool
}

type switchpoint struct {
	at    segment.LSN
	child segment.Timeline
}

// New returns an uploader that has not started.
func New(sp Spool, ar Archive, o Options) *Uploader {
	if o.Workers <= 0 {
		o.Workers = 4
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Uploader{
		spool: sp, archive: &noting{Archive: ar}, o: o, log: o.Log,
		trouble:   patience.New(o.Log, "write to the archive"),
		removing:  patience.New(o.Log, "remove shipped segments from the spool"),
		changed:   make(chan struct{}, 1),
		news:      make(chan struct{}, 1),
		stuck:     make(chan struct{}, 1),
		taking:    make(turn, 1),
		claiming:  make(turn, 1),
		sending:   make(turn, 1),
		histories: map[segment.Timeline]bool{},
		stored:    map[segment.Name]segment.LSN{},
		switches:  map[segment.Timeline]switchpoint{},
		tails:     map[segment.Name]segment.LSN{},
		tailNews:  make(chan struct{}, 1),
		mergeNews: make(chan struct{}, 1),
		dropNews:  make(chan struct{}, 1),
		moved:     make(chan struct{}),
	}
}

// Run ships until ctx ends, and returns when all workers are still. It returns
// an error, at once, only when this archive must not be written at all
// (foreign cluster, other codec, no put-if-absent). A conflict with one object
// stops the shipping, but Run goes on waiting: reception continues into the
// spool (DESIGN, invariant 2); Stopped tells why.
func (u *Uploader) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range u.o.Workers {
		wg.Go(func() {
			if err := u.work(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Go(func() {
		if err := u.workHistories(ctx); err != nil {
			cancel(err)
		}
	})
	wg.Go(func() { u.workDrops(ctx) })
	wg.Go(func() {
		if err := u.workTails(ctx); err != nil {
			cancel(err)
		}
	})
	wg.Go(func() { u.workMerges(ctx) })
	wg.Go(func() { u.workSuperseded(ctx) })
	wg.Go(func() { u.sweepTails(ctx) })
	wg.Go(func() { u.workFronts(ctx) })
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Claim makes sure that the archive is this cluster's, writing its identity
// object when there is none. It asks the archive until that succeeded once and
// answers from memory after: the identity object never changes.
func (u *Uploader) Claim(ctx context.Context, id spool.Identity) error {
	if err := u.claiming.take(ctx); err != nil {
		return err
	}
	defer u.claiming.give()
	if u.claimed {
		return nil
	}
	method := u.o.Method
	if u.o.Follow {
		have, err := u.archive.Identity(ctx)
		switch {
		case err == nil && have.WALCodec != method.Name:
			if method, err = codec.Parse(have.WALCodec); err != nil {
				return fmt.Errorf("the archive's codec: %w", err)
			}
		case err != nil && !errors.Is(err, archive.ErrNotFound):
			return err
		}
	}
	_, err := u.archive.Claim(ctx, archive.Identity{
		SystemIdentifier: id.SystemIdentifier,
		SegmentSize:      id.SegmentSize,
		WALCodec:         method.Name,
	})
	if err != nil {
		return err
	}
	u.claimed, u.coder = true, codec.NewEncoders(method)
	return nil
}

// claim asks until the archive is known to be this cluster's, and returns how
// its WAL is compressed.
func (u *Uploader) claim(ctx context.Context) (*codec.Encoders, error) {
	err := u.ask(ctx, "open the archive", func() error {
		id, _ := u.spool.Identity()
		return u.Claim(ctx, id)
	})
	if err == nil {
		err = u.claiming.take(ctx)
	}
	if err != nil {
		return nil, err
	}
	defer u.claiming.give()
	return u.coder, nil
}

// Base tells that the archive has segments without a gap up to p: the shipped
// position counts from there. Called by whoever found it, on each start. What
// the spool still holds before p counts only when it was compared: an object
// of the right name may hold other WAL.
func (u *Uploader) Base(p segment.Position) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.base, u.baseSet = p, true
	u.advance()
}

// Switch tells that timeline t ended at LSN at and child goes on there.
func (u *Uploader) Switch(t segment.Timeline, at segment.LSN, child segment.Timeline) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.switches[t] = switchpoint{at, child}
	u.advance()
	select {
	case u.news <- struct{}{}: // the child's history is in the spool
	default:
	}
}

// Chained tells that the archive's tail objects of segment n reach up to an
// LSN, found as Base was.
func (u *Uploader) Chained(n segment.Name, to segment.LSN) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tails[n] = max(u.tails[n], to)
	u.advance()
}

// Shipped returns up to where everything can be read from the archive, in
// whole segments or in tail objects that follow each other; ok is false while
// it is not known where that begins.
func (u *Uploader) Shipped() (p segment.Position, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.shipped, u.frontSet
}

// Sealed returns the end of the archive's gapless run of whole segments; ok as
// for Shipped.
func (u *Uploader) Sealed() (p segment.Position, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.front, u.frontSet
}

// Failing reports whether the last attempt to write to the archive failed.
func (u *Uploader) Failing() bool { return u.trouble.Failing() }

// Stopped returns why shipping has stopped for good, or nil: an error that
// matches archive.ErrConflict.
func (u *Uploader) Stopped() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.stopped
}

// Changed is sent to when Shipped, Failing or Stopped may have changed. One
// consumer; changes that come together are told once.
func (u *Uploader) Changed() <-chan struct{} { return u.changed }

// Pending returns how many segments are in hand, the open one included.
func (u *Uploader) Pending() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.queue)
}

func (u *Uploader) notify() {
	select {
	case u.changed <- struct{}{}:
	default:
	}
}

// Drain waits until everything in the spool is in the archive, the open
// segment as tail objects where those are made. It returns ctx's error when
// that ends first, and the conflict that stopped the shipping. The receiver
// must have stopped.
func (u *Uploader) Drain(ctx context.Context) error {
	for {
		if err := u.Stopped(); err != nil {
			return err
		}
		if !u.waiting() && !u.tailWaiting() {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-u.changed:
		}
	}
}

// waiting reports whether the spool has a segment that is whole.
func (u *Uploader) waiting() bool {
	return slices.ContainsFunc(u.spool.Segments(), whole)
}

// tailWaiting reports whether something was offered that is not stored, and
// lets it go at once.
func (u *Uploader) tailWaiting() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.o.ShipInterval == 0 && !u.hurry {
		return false
	}
	for _, c := range u.chains {
		if c.to > c.end && c.fails == nil && !isClosed(c.done) && !u.whole(c) {
			u.hurry = true
			u.kickTails()
			return true
		}
	}
	return false
}

// Final reports whether err says that this archive must not be written at all.
func Final(err error) bool { return final(err) }

func final(err error) bool {
	return errors.Is(err, archive.ErrForeignCluster) || errors.Is(err, archive.ErrCodec) ||
		errors.Is(err, archive.ErrUnrecognised) || errors.Is(err, archive.ErrIdentity) || errors.Is(err, objstore.ErrConditionIgnored)
}

// work is one worker: segments one after the other until ctx ends. A non-nil
// error ends the whole uploader.
func (u *Uploader) work(ctx context.Context) error {
	for ctx.Err() == nil {
		it, err := u.take(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("taking a segment from the spool: %w", err)
		}
		err = u.ship(ctx, it)
		switch {
		case err == nil:
			u.finish(it)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, archive.ErrConflict):
			u.stop(err)
			<-ctx.Done()
			return nil
		case final(err):
			return err
		default:
			// The segment was given up by its writer (a failed fsync). It comes
			// back under the same name when it has been streamed again.
			u.log.Debug("segment not shipped", "segment", it.seg.Name().String(), "error", err.Error())
			u.forget(it)
		}
	}
	return nil
}

// workHistories stores history files as soon as they are known: a standby that
// is fed from the archive follows a promotion only when it finds its history,
// and the first whole segment may be long in coming.
func (u *Uploader) workHistories(ctx context.Context) error {
	for {
		if _, bound := u.spool.Identity(); bound && len(u.spool.Histories()) > 0 {
			err := u.storeHistories(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, archive.ErrConflict):
				u.stop(err)
			case err != nil && final(err):
				return err
			case err != nil:
				u.log.Error("cannot store a timeline history", "error", err.Error())
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-u.news:
		}
	}
}

func (u *Uploader) storeHistories(ctx context.Context) error {
	coder, err := u.claim(ctx)
	if err != nil {
		return err
	}
	return u.shipHistories(ctx, segment.Timeline(math.MaxUint32), coder.Method())
}

func (u *Uploader) take(ctx context.Context) (*item, error) {
	if err := u.taking.take(ctx); err != nil {
		return nil, err
	}
	defer u.taking.give()
	if err := u.waitWhileStopped(ctx); err != nil {
		return nil, err
	}
	seg, err := u.spool.Take(ctx)
	if err != nil {
		return nil, err
	}
	id, ok := u.spool.Identity()
	if !ok {
		return nil, errors.New("the spool has a segment but no identity")
	}
	it := &item{seg: seg}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.size = id.SegmentSize
	u.queue = append(u.queue, it)
	return it, nil
}

// waitWhileStopped returns nil unless shipping has stopped; then it waits for
// the end of ctx.
func (u *Uploader) waitWhileStopped(ctx context.Context) error {
	if u.Stopped() == nil {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// stop ends shipping for good: nothing is changed in the archive any more.
func (u *Uploader) stop(err error) {
	u.mu.Lock()
	first := u.stopped == nil
	if first {
		u.stopped = err
	}
	u.mu.Unlock()
	if first {
		u.log.Error("shipping has stopped: the archive holds other WAL under this name; reception goes on into the spool until it is full", "error", err.Error())
	}
	u.notify()
}

// finish records a stored segment, moves the shipped position, and drops from
// the spool what no longer waits for an older one.
func (u *Uploader) finish(it *item) {
	u.mu.Lock()
	it.stored = true
	n := it.seg.Name()
	end := n.End(u.size)
	if w, ended := it.seg.Finished(); ended {
		end = w
	}
	u.stored[n] = end
	u.anchored = true
	u.endChain(it.seg, end)
	u.wake()
	u.advance()
	drop := u.droppable()
	u.mu.Unlock()
	// Safe: the archive has answered that an object with this content and the
	// right checksum is there, and so for every older segment.
	if err := u.drop(drop); err != nil {
		u.removing.Failed(err)
		select {
		case u.stuck <- struct{}{}:
		default:
		}
	}
	u.dropped()
}

// drop removes segments from the spool. Those that cannot be removed are kept
// in mind, for workDrops.
func (u *Uploader) drop(items []*item) (failed error) {
	for _, it := range items {
		err := u.spool.Drop(it.seg)
		if err == nil || errors.Is(err, spool.ErrDropped) || errors.Is(err, spool.ErrClosed) {
			continue
		}
		failed = err
		u.mu.Lock()
		u.undropped = append(u.undropped, it)
		u.mu.Unlock()
	}
	return failed
}

// dropped takes account of what has left the spool: it no longer bounds the
// base.
func (u *Uploader) dropped() {
	u.mu.Lock()
	u.advance()
	u.mu.Unlock()
	u.notify()
}

// workDrops tries again what could not be removed from the spool: else it would
// stay full of what the archive has, and nothing more would come. Shipping does
// not wait for it.
func (u *Uploader) workDrops(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.stuck:
		}
		for wait := patience.First; ; {
			if u.removing.Sleep(ctx, wait) != nil {
				return
			}
			u.mu.Lock()
			again := u.undropped
			u.undropped = nil
			u.mu.Unlock()
			err := u.drop(again)
			if err == nil {
				break
			}
			wait = u.removing.Failed(err)
		}
		u.removing.Over()
		u.dropped()
	}
}

// droppable takes from the queue what is stored and has no older segment that
// is whole and not stored. An open one holds up nothing: it is either the
// newest, or the rest of a timeline that has ended. u.mu is held.
func (u *Uploader) droppable() (drop []*item) {
	for i := 0; i < len(u.queue); {
		it := u.queue[i]
		switch {
		case it.stored:
			drop = append(drop, it)
			u.queue = slices.Delete(u.queue, i, i+1)
		case whole(it.seg):
			return drop
		default:
			i++
		}
	}
	return drop
}

func (u *Uploader) forget(it *item) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.queue = slices.DeleteFunc(u.queue, func(o *item) bool { return o == it })
	u.wake()
}

// wake lets waitForOlder look again. u.mu is held.
func (u *Uploader) wake() {
	close(u.moved)
	u.moved = make(chan struct{})
}

// waitForOlder returns when it may be stored: this run has stored a segment,
// or none that is older waits to be.
func (u *Uploader) waitForOlder(ctx context.Context, it *item) error {
	for {
		u.mu.Lock()
		free, moved := u.anchored || u.oldest() == it, u.moved
		u.mu.Unlock()
		switch err := it.seg.Err(); {
		case errors.Is(err, spool.ErrAbandoned):
			return err // as the older one was: both come back
		case free:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		}
	}
}

// oldest returns the first segment in hand that is whole and not stored. u.mu
// is held.
func (u *Uploader) oldest() *item {
	for _, it := range u.queue {
		if !it.stored && whole(it.seg) {
			return it
		}
	}
	return nil
}

// whole reports whether nothing more comes for g: its timeline ended in it, or
// its last byte is there.
func whole(g *spool.Segment) bool {
	_, ended := g.Finished()
	return ended || g.Sealed() || g.Advanced() == g.End()
}

// advance moves front up to the base as far as the spool holds nothing before
// it that was not compared, and over the stored segments that join it. u.mu is
// held.
func (u *Uploader) advance() {
	u.advanceFront()
	if !u.frontSet {
		return
	}
	if u.sweepTo.LSN == 0 {
		u.sweepTo = u.front
	}
	for n := range u.tails {
		if u.size != 0 && n.Timeline == u.front.Timeline && n.End(u.size) <= u.front.LSN {
			delete(u.tails, n)
		}
	}
	u.shipped = u.withTails(u.front)
}

func (u *Uploader) advanceFront() {
	if id, ok := u.spool.Identity(); ok && u.size == 0 {
		u.size = id.SegmentSize
	}
	if u.baseSet {
		limit := u.base
		for _, g := range u.spool.Segments() {
			if whole(g) && g.Start() < limit.LSN {
				limit = segment.Position{Timeline: g.Name().Timeline, LSN: g.Start()}
			}
		}
		if !u.frontSet || u.front.LSN < limit.LSN || u.front.LSN == limit.LSN && u.front.Timeline < limit.Timeline {
			u.front, u.frontSet = limit, true
		}
		u.baseSet = u.front.LSN < u.base.LSN
	}
	for u.frontSet && u.size != 0 {
		if s, ok := u.switches[u.front.Timeline]; ok && u.front.LSN >= s.at {
			u.front = segment.Position{Timeline: s.child, LSN: s.at}
			continue
		}
		n := u.size.Name(u.front.Timeline, u.front.LSN)
		end, ok := u.stored[n]
		if !ok || end <= u.front.LSN {
			if n, ok = u.standsFor(n); !ok {
				return
			}
			end = n.End(u.size)
		}
		delete(u.stored, n)
		u.front = segment.Position{Timeline: n.Timeline, LSN: end}
	}
}

// standsFor returns the segment of a descendant that is stored whole, and that
// repeats what segment n has of its timeline, which ended in it: the partial
// that n would have become may be missing. u.mu is held.
func (u *Uploader) standsFor(n segment.Name) (segment.Name, bool) {
	for t := n.Timeline; ; {
		s, ended := u.switches[t]
		if !ended || u.size.Start(s.at) != n.Start(u.size) {
			return segment.Name{}, false
		}
		t = s.child
		whole := u.size.Name(t, s.at)
		if u.stored[whole] == whole.End(u.size) {
			return whole, true
		}
	}
}

// ship compresses one segment as it fills and stores it, with what must be
// there before it. It retries what may pass until ctx ends.
func (u *Uploader) ship(ctx context.Context, it *item) error {
	n := it.seg.Name()
	size := u.segmentSize()
	coder, err := u.claim(ctx)
	if err != nil {
		return err
	}
	method := coder.Method()
	frame, err := u.encode(ctx, it.seg, size, coder)
	if errors.Is(err, spool.ErrFinished) {
		// Its timeline ended before what was read already: once more, up to there.
		frame, err = u.encode(ctx, it.seg, size, coder)
	}
	if err != nil {
		return err
	}
	defer frame.Release()
	plain := plainBytes{it.seg, n.Start(size)}
	if err := u.shipHistories(ctx, n.Timeline, method); err != nil {
		return err
	}
	if err := u.waitForOlder(ctx, it); err != nil {
		return err
	}
	w, ended := it.seg.Finished()
	if !ended {
		return u.insist(ctx, "store segment "+n.String(), func() error {
			return u.archive.PutSegment(ctx, n, method, frame, plain, size)
		})
	}
	if w > it.seg.Start() {
		err := u.insist(ctx, "store segment "+n.String(), func() error {
			return u.archive.PutPartial(ctx, n, w, method, frame, plain, size)
		})
		if err != nil {
			return err
		}
	}
	return u.shipBeyond(ctx, it.seg, w)
}

// shipBeyond stores what a segment holds behind the LSN at which its timeline
// ended, with all before it, as one tail object: the partial must be the same
// whoever writes it, and this is WAL that was acknowledged and that nothing else
// holds once the segment has left the spool.
func (u *Uploader) shipBeyond(ctx context.Context, g *spool.Segment, w segment.LSN) error {
	to := g.Beyond()
	if to <= w {
		return nil
	}
	alone := &chain{seg: g, done: make(chan struct{})}
	if _, err := u.storeTail(ctx, alone, g.Start(), to, 0, true); err != nil {
		return err
	}
	u.log.Warn("the archive has WAL that the timeline's child does not contain, as a tail object of its own timeline",
		"segment", g.Name().String(), "timeline_ended", w.String(), "up_to", to.String())
	return nil
}

func (u *Uploader) sizeOf() segment.Size {
	id, _ := u.spool.Identity()
	return id.SegmentSize
}

func (u *Uploader) segmentSize() segment.Size {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size
}

// insist repeats do, which writes to the archive, until it succeeds, or fails
// for a reason that does not pass, or ctx ends.
func (u *Uploader) insist(ctx context.Context, what string, do func() error) error {
	return u.repeat(ctx, what, true, do)
}

// ask is insist for what only reads, or answers from memory. That it succeeds is
// no sign that the archive can be written to, and ends no trouble but its own.
func (u *Uploader) ask(ctx context.Context, what string, do func() error) error {
	return u.repeat(ctx, what, false, do)
}

// repeat is insist and ask. sign: a success says that the archive can be written
// to.
func (u *Uploader) repeat(ctx context.Context, what string, sign bool, do func() error) error {
	var damaged time.Time // when the object was first found so
	for ; ; sign = true { // from the second attempt on it may end its own trouble
		if err := u.stoppedOr(ctx); err != nil {
			return err
		}
		begun := time.Now()
		err := do()
		if err == nil {
			if sign && u.trouble.Failing() {
				u.trouble.Worked(begun)
				u.notify()
			}
			return nil
		}
		err = fmt.Errorf("%s: %w", what, err)
		if unfinished(err) && damaged.IsZero() {
			damaged = time.Now()
		}
		settles := unfinished(err) && time.Since(damaged) < settling
		if errors.Is(err, archive.ErrConflict) && !settles || final(err) || ctx.Err() != nil {
			return err
		}
		if err := u.pause(ctx, err); err != nil {
			return err
		}
	}
}

// settling is how long an object may be damaged before that is a conflict: an
// archive_command that writes the same name in place is not at its end yet.
const settling = time.Minute

// unfinished reports whether err is a conflict with an object that cannot be
// decoded.
func unfinished(err error) bool {
	var conflict *archive.ConflictError
	return errors.As(err, &conflict) && conflict.Damaged != nil
}

// pause records a failure that may pass and waits until it is worth trying
// again.
func (u *Uploader) pause(ctx context.Context, err error) error {
	wait := u.trouble.Failed(err)
	u.notify()
	return u.trouble.Sleep(ctx, wait)
}

// stoppedOr returns the conflict that stopped the shipping, or ctx's error.
func (u *Uploader) stoppedOr(ctx context.Context) error {
	if err := u.Stopped(); err != nil {
		return err
	}
	return ctx.Err()
}

// shipHistories stores the history files that the spool has, up to timeline t.
func (u *Uploader) shipHistories(ctx context.Context, t segment.Timeline, method codec.Method) error {
	if err := u.sending.take(ctx); err != nil {
		return err
	}
	defer u.sending.give()
	for _, h := range u.spool.Histories() {
		if h > t || u.histories[h] {
			continue
		}
		content, err := u.spool.History(h)
		if err != nil {
			return fmt.Errorf("reading %s from the spool: %w", h.HistoryName(), err)
		}
		if err := u.insist(ctx, "store "+h.HistoryName(), func() error {
			return u.archive.PutHistory(ctx, h, method, content)
		}); err != nil {
			return err
		}
		u.histories[h] = true
	}
	return nil
}
