// Package receiver follows one cluster's WAL stream into the spool. It is the
// only owner of every LSN that is reported to the server.
//
// The core is a loop over attempts. An attempt connects, makes sure that the
// server is the cluster that the spool and the archive belong to and that its
// history contains what we hold, starts the stream at the beginning of the
// segment that holds the resume position, compares what it holds with what
// comes, and then writes, syncs, seals and reports until something ends it.
// What may pass leads to the next attempt; what must not be papered over ends
// Run with one of the errors below, and a person decides.
//
// # Order
//
//   - A history file is in the spool before anything of its timeline is
//     reported.
//   - Bytes are reported as flushed only after a Sync or Seal that began after
//     they were written has returned, or after the archive has them.
//   - Nothing is reported until everything we hold of the first segment was
//     found equal to what the server sends.
//   - Nothing behind a gap is reported until the archive has everything in front
//     of it, and the record of the gap.
//
// # What a crash leaves
//
//	operation                 crash point                          state left                          who mends it
//	write into the partial    before the sync                      bytes that nobody was told of       the next start: whole records are compared, the rest is streamed again
//	sync                      before the status                    more on disk than the server knows  the next start reports it after the comparison
//	seal                      before the rename is durable         SEG.partial, whole                  the next start compares it and seals it
//	seal                      after                                SEG                                 the uploader ships it
//	next timeline             after the history, before the        history file; old partial           the next start streams the rest of the old timeline, or
//	                          first byte of the new timeline                                           finds it ended and begins the new one
//	slot                      after it was made, before the first  a slot that retains WAL             the next start uses it; the log line of its making names it
//	                          status
//	record a gap              before its record, or before all of  tail objects up to the gap; the     the next start meets the gap again; records that are there
//	                          them, where timelines changed in it  open partial in front of it         already are success
//	record a gap              after it, before the partial in      the record; that partial, which     the next start resumes behind the gap, and removes the
//	                          front of the gap is gone             the archive has in tail objects     partial, or uploads what the archive lacks of it
//	record a gap              after that, before the first byte    the record                          the next start resumes behind the gap; where the server has
//	                          behind it, with or without a slot                                        removed more meanwhile, it meets a further gap
package receiver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/walferry/walferry/internal/patience"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// Why Run stops for good. Every one of them means that going on could hide a
// loss; a person must decide.
var (
	// ErrGap: the server no longer has WAL that follows what we hold, nor has
	// any other that could be asked. The error is a *GapError.
	ErrGap = errors.New("a gap: WAL that follows what we hold is gone from the server")
	// ErrConflict: the server sends other bytes than those we hold, at the
	// same LSN of the same timeline.
	ErrConflict = errors.New("conflict: the server's WAL differs from what we hold")
	// ErrSetBack: a primary is behind what it has sent us before.
	ErrSetBack = errors.New("the primary is behind the WAL that we hold of its own timeline")
	// ErrDemoted: a primary is on an older timeline than what we hold.
	ErrDemoted = errors.New("the primary is on an older timeline than the WAL that we hold")
	// ErrForked: what we hold is on a timeline that is no ancestor of the
	// server's.
	ErrForked = errors.New("the WAL that we hold is not part of the server's history")
	// ErrServer: this server cannot be streamed from (version, wal_level).
	ErrServer = errors.New("this server cannot be used")
	// ErrRefused: the archive must not be written by us.
	ErrRefused = errors.New("the archive is refused")
	// ErrSpoolFailed: the spool's directory could not be made durable; only a
	// new start can tell what it holds.
	ErrSpoolFailed = errors.New("the spool has failed")
	// ErrSpoolStuck: the spool is full and cannot drain, since shipping has
	// stopped for good.
	ErrSpoolStuck = errors.New("the spool is full and shipping has stopped")
)

// ErrNotArchived: the archive has no such segment.
var ErrNotArchived = errors.New("not in the archive")

// Archive is what the receiver asks of the archive: once per start, and when it
// meets a gap; never while it streams.
type Archive interface {
	// Claim makes sure that the archive is this cluster's. An error that
	// matches ErrRefused does not pass.
	Claim(ctx context.Context, id spool.Identity) error
	// RunEnd returns the end of the archive's gapless run of segments along
	// h; ok is false when it holds no WAL.
	RunEnd(ctx context.Context, h segment.History, size segment.Size, near segment.LSN) (p segment.Position, ok bool, err error)
	// Histories returns what the archive's history files say of the timelines
	// above one. A file that cannot be understood says nothing.
	Histories(ctx context.Context, above segment.Timeline) ([]segment.History, error)
	// Segment opens the decoded bytes of an archived segment, or says that
	// there is none (ErrNotArchived).
	Segment(ctx context.Context, n segment.Name) (io.ReadCloser, error)
	// TailEnd returns how many bytes of a segment its tail objects say that
	// they have, without a gap from its start. Zero: none.
	TailEnd(ctx context.Context, n segment.Name) (bytes uint32, err error)
	// AssembleTails puts those bytes together, checked, and returns how many.
	AssembleTails(ctx context.Context, n segment.Name, size segment.Size, into Patch) (bytes uint32, err error)
	// TailSegments returns the segments of a timeline that have tail objects,
	// ascending.
	TailSegments(ctx context.Context, t segment.Timeline) ([]segment.Name, error)
	// Gaps returns the recorded gaps. RunEnd goes on behind them.
	Gaps(ctx context.Context) (segment.Gaps, error)
	// PutGap records one, durable on return; that it is there already is
	// success. An error that matches ErrRefused does not pass.
	PutGap(ctx context.Context, g segment.Gap, f GapFacts) error
}

// Patch is where a segment is put together, by the places in it.
type Patch interface {
	io.ReaderAt
	io.WriterAt
}

// Uploader is the other end of the spool.
type Uploader interface {
	Base(segment.Position)
	Chained(n segment.Name, to segment.LSN)
	Offer(g *spool.Segment, to segment.LSN, hurry bool)
	Sealed() (segment.Position, bool)
	Switch(t segment.Timeline, at segment.LSN, child segment.Timeline)
	Shipped() (segment.Position, bool)
	Failing() bool
	Stopped() error
	Changed() <-chan struct{}
}

// Ack is what a reported flush LSN promises.
type Ack int

const (
	// AckSpool: the WAL before it is durable on this host or in the archive.
	AckSpool Ack = iota
	// AckArchive: it is in the archive.
	AckArchive
)

// Synchronous says whether commits wait for us.
type Synchronous int

const (
	// SynchronousAuto asks the server's synchronous_standby_names.
	SynchronousAuto Synchronous = iota
	// SynchronousOn takes it for granted.
	SynchronousOn
	// SynchronousOff takes it that none does.
	SynchronousOff
)

// Options of a Receiver.
type Options struct {
	// Connect opens a replication connection to the cluster.
	Connect func(ctx context.Context) (*replication.Conn, error)
	// Hosts connect to each of the hosts that the connection settings name,
	// whatever kind of server it is: where the one that Connect chose has removed
	// WAL that follows what we hold, another may have it. Optional.
	Hosts []func(ctx context.Context) (*replication.Conn, error)
	// OnGap says what to do when none has. Recorded, where it is set, is told of
	// each gap that was recorded, before anything behind it is reported.
	OnGap    OnGap
	Recorded func(ctx context.Context, gap *GapError)
	// SlotPosition asks an ordinary connection for a slot's restart_lsn: only
	// PostgreSQL 14 needs it. ok is false when there is no such slot. Optional.
	SlotPosition func(ctx context.Context, slot string) (restart segment.LSN, ok bool, err error)

	Slot            string      // "": none, and nothing is retained for us
	SlotMustExist   bool        // a slot that is missing or lost is not made: it is waited for
	ApplicationName string      // ours, as synchronous_standby_names would name it
	EndPos          segment.LSN // stop behind it; 0: never
	NoLoop          bool        // end with the first attempt
	Ack             Ack
	Synchronous     Synchronous
	NoSpool         bool  // the spool does not outlive the process: nothing in it is reported; with AckArchive only
	NoFlush         bool  // flush is reported as 0: no slot moves, and no commit is released
	Lazy            bool  // while no commit waits, an fsync may come a second later
	Hold            int64 // bytes, with AckSpool; 0 turns the hold off
	// Begin says where the directory goes on whose files outlive the spool
	// (spool.Options.Keep), by their names alone: it may be more than the spool was
	// shown. ok is false when there are none. Optional.
	Begin func(segment.Size) (p segment.Position, ok bool)
	// StatusInterval is how often a status goes out that nobody has asked for;
	// 0: every 10 s, below 0: never.
	StatusInterval time.Duration
	ShutdownGrace  time.Duration
	// WatchInterval is how often a second, short connection asks whether we
	// are a synchronous standby; 0: never.
	WatchInterval time.Duration
	Log           *slog.Logger // optional
	// Events, where it is set, is told of the stream's life, and of the troubles
	// that Log is told of otherwise.
	Events Events
}

// Receiver streams one cluster's WAL into one spool.
type Receiver struct {
	spool    *spool.Spool
	archive  Archive
	uploader Uploader
	o        Options
	log      *slog.Logger
	trouble  *patience.Trouble // with the server
	asking   *patience.Trouble // with the archive, before the stream begins
	writing  *patience.Trouble // with the spool's disk
	noting   *patience.Trouble // with the record of a gap

	// What Run's goroutine knows between attempts.
	held     []*spool.Segment // the spool as it was found
	resolved bool             // pos is known
	fresh    bool             // neither spool nor archive held anything: pos is where we begin, not what we hold
	pos      segment.Position // received: everything before it is held
	begin    segment.LSN      // where a new archive began in this run; 0: it did not
	spooled  segment.LSN      // durable on this host, on pos.Timeline
	size     segment.Size
	system   uint64
	// Of the server that was reached last:
	reached    *replication.Config
	serverName string
	history    segment.History  // of the server's timeline at the last connect
	seg        *spool.Segment   // open for writing; nil between segments
	tail       tailPage         // of the segment before pos, when pos is a boundary
	unsealed   segment.Name     // ends at pos, durable, and was given up before its seal; asked for again
	skipPage   bool             // the server has no page before pos any more
	reported   segment.LSN      // highest flush LSN reported on pos.Timeline
	server     segment.LSN      // highest end of WAL that the server announced
	created    bool             // this run made the slot, and has not reported anything yet
	slotSeen   bool             // the slot was there when last used
	toldKeep   bool             // max_slot_wal_keep_size was warned of
	gaps       segment.Gaps     // recorded in the archive, as it was asked last
	gapEnd     segment.LSN      // of a recorded gap: nothing that lies before is held; 0: none is known
	until      segment.LSN      // where the stream of another host ends, which is read without a slot; 0: there is none
	unasked    bool             // pos is the spool's end, since the archive could not be asked for its own
	passed     []segment.Switch // behind which something is held that the next start ends; see passSwitches
	ahead      segment.Position // of a directory that is to be without a gap: where the archive ends, when that is further

	fullSince time.Time // when it was last told that the spool is full
	toldFull  bool      // and not yet that it has room again

	watch *watcher
	heart heartbeat
	shown shown
}

// tailPage is the last WAL page of a segment that we hold that is not empty.
// Behind it there is nothing but zeros up to the segment's end.
type tailPage struct {
	at    segment.LSN // where it begins
	end   segment.LSN // of the segment
	bytes []byte
}

// New returns a receiver that has not started. It looks at what the spool
// holds, so it must be made before anything drains the spool.
func New(sp *spool.Spool, ar Archive, up Uploader, o Options) *Receiver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.StatusInterval == 0 {
		o.StatusInterval = 10 * time.Second
	}
	troubles := o.Log
	if o.Events == nil {
		o.Events = noEvents{}
	} else {
		troubles = slog.New(slog.DiscardHandler)
	}
	return &Receiver{
		spool: sp, archive: ar, uploader: up, o: o, log: o.Log,
		trouble: patience.New(troubles, "receive from the server"),
		asking:  patience.New(troubles, "ask the archive where it ends, without which nothing can be received"),
		writing: patience.New(troubles, "write to the spool"),
		noting:  patience.New(troubles, "record a gap in the archive, before which nothing more can be received"),
		held:    sp.Segments(),
		heart:   heartbeat{epoch: time.Now()},
	}
}

// Summary is what a stopped receiver leaves behind on the server.
type Summary struct {
	Slot string
	// Flush is the last position reported as flushed, which is where the slot
	// retains WAL from; ServerEnd is where the server's WAL ended when last
	// heard of. Zero when nothing was ever reported or heard.
	Flush     segment.LSN
	ServerEnd segment.LSN
	Position  segment.Position // everything before it is held
	// SlotExists says that the slot was seen on the server, and was not dropped
	// again by this run.
	SlotExists bool
}

// Summary may be called after Run has returned.
func (r *Receiver) Summary() Summary {
	return Summary{Slot: r.o.Slot, Flush: r.reported, ServerEnd: r.server, Position: r.pos, SlotExists: r.slotSeen}
}

// Run streams until ctx ends or EndPos is passed (nil), or something happens
// that a person must decide (one of the errors above), or, with NoLoop, the
// first attempt ends. On return everything received is durable in the spool
// where the disk allows it, and nothing runs any more.
func (r *Receiver) Run(ctx context.Context) error {
	stopWatch := r.startWatch(ctx)
	defer stopWatch()
	defer r.heart.rest()
	defer r.publish(Stopped)
	for {
		r.heart.expect(attemptLimit)
		r.publish(Connecting)
		err := r.attempt(ctx)
		if gone := (*removedError)(nil); errors.As(err, &gone) && !errors.As(err, new(*spoolError)) {
			err = r.meetGap(ctx, gone.err)
		}
		r.heart.expect(attemptLimit) // waits of patience are much shorter
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && !Final(err):
			if !errors.Is(err, context.Canceled) {
				r.log.Warn("stopped in the middle of trouble; what was not yet durable is streamed again by the next start", "error", err.Error())
			}
			return nil
		case errors.Is(err, errCopyDone):
			r.publish(Waiting)
			if !leaveAlone(ctx) {
				return nil
			}
			continue
		case errors.As(err, new(*replication.EndOfTimeline)), errors.Is(err, errNextStart):
			continue // at once
		case r.spool.Failed() != nil:
			return fmt.Errorf("%w: %w", ErrSpoolFailed, r.spool.Failed())
		case Final(err):
			return errors.Join(err, r.dropCreatedSlot(ctx, err))
		case r.o.NoLoop:
			return err
		}
		if errors.Is(err, replication.ErrShutdown) {
			r.log.Info("the server is shutting down; waiting for it to come back")
		}
		trouble := r.trouble
		switch {
		case errors.As(err, new(*archiveError)):
			trouble = r.asking
		case errors.As(err, new(*spoolError)):
			trouble = r.writing
		case errors.As(err, new(*recordError)):
			trouble = r.noting
		}
		r.publish(Waiting)
		wait := trouble.Failed(err)
		r.o.Events.Disconnected(err, wait)
		if waitErr := trouble.Sleep(ctx, wait); waitErr != nil {
			return nil
		}
	}
}

// errCopyDone: the server ended the stream of a timeline.
var errCopyDone = errors.New("the server ended the stream")

// afterCopyDone is how long a server is left alone that has ended a stream. It
// may be about to shut down, or to end its recovery: who comes back at once,
// again and again, keeps it from that.
const afterCopyDone = time.Second

// leaveAlone waits for that long; false: ctx has ended.
func leaveAlone(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(afterCopyDone):
		return true
	}
}

// archiveError is a failure to ask the archive, as against one of the server.
type archiveError struct{ err error }

func (e *archiveError) Error() string { return e.err.Error() }
func (e *archiveError) Unwrap() error { return e.err }

// recordError is a failure to record a gap, as against one to ask the archive.
type recordError struct{ err error }

func (e *recordError) Error() string { return e.err.Error() }
func (e *recordError) Unwrap() error { return e.err }

// spoolError is a failure of the spool's disk, as against one of the server.
// What was received and is not durable is streamed again.
type spoolError struct{ err error }

func (e *spoolError) Error() string { return e.err.Error() }
func (e *spoolError) Unwrap() error { return e.err }

// Final reports whether err must not be answered by trying again.
func Final(err error) bool {
	for _, e := range []error{ErrGap, ErrConflict, ErrSetBack, ErrDemoted, ErrForked, ErrServer, ErrRefused, ErrSpoolStuck, ErrSpoolFailed,
		segment.ErrForeignCluster, spool.ErrConflict, spool.ErrLimit} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// dropCreatedSlot removes the slot that this run made when the run refuses to
// begin: a slot that nobody reads fills the primary's disk. A run that ends
// later leaves it: it retains the WAL that follows what we hold. On a foreign
// cluster a slot of that name is not the one that was made.
func (r *Receiver) dropCreatedSlot(ctx context.Context, why error) error {
	if !r.created || errors.Is(why, segment.ErrForeignCluster) {
		return nil
	}
	if err := r.dropSlot(ctx); err != nil {
		r.log.Error("cannot drop the slot that this run made: drop it by hand, or it retains WAL on the server", "slot", r.o.Slot, "error", err.Error())
		return nil
	}
	r.created, r.slotSeen = false, false
	r.log.Info("dropped the replication slot that this run had made", "slot", r.o.Slot)
	return nil
}

// dropSlot drops our slot on a connection of its own. The server may need a
// moment to notice that the stream which used it has ended.
func (r *Receiver) dropSlot(ctx context.Context) error {
	conn, err := r.o.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() {
		// The good-bye of a connection that is no longer needed.
		_ = conn.Close(ctx)
	}()
	ctx, cancel := answering(ctx)
	defer cancel()
	for range 10 {
		if err = conn.DropSlot(ctx, r.o.Slot); !errors.Is(err, replication.ErrSlotActive) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return err
}
