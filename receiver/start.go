package receiver

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// pageSize is XLOG_BLCKSZ as every packaged PostgreSQL is built.
const pageSize = 8192

// claimPatience is how long a start that already has WAL in its spool waits
// for the archive before it goes on without having asked it.
const claimPatience = 10 * time.Second

// server is what a connection told about the server.
type server struct {
	version    replication.Version
	system     replication.System
	size       segment.Size
	inRecovery bool
	timeout    time.Duration // wal_sender_timeout; 0: none
}

// attempt is one connection's life, from connecting to the end of its stream.
// nil means that Run's work is done.
func (r *Receiver) attempt(ctx context.Context) error {
	conn, err := r.o.Connect(ctx)
	if err != nil {
		if !replication.Passing(err) && ctx.Err() == nil {
			return fmt.Errorf("%w: %w", ErrServer, err)
		}
		return err
	}
	defer func() {
		// The good-bye of a connection that is no longer needed.
		_ = conn.Close(context.WithoutCancel(ctx))
	}()

	srv, err := r.inspect(ctx, conn)
	if err != nil {
		return err
	}
	r.reached, r.serverName = conn.Config(), conn.String()
	r.publishServer(conn.String(), srv)
	if err := r.admit(ctx, srv); err != nil {
		return err
	}
	histories, err := r.learnHistory(ctx, conn, srv)
	if err != nil {
		return err
	}
	slot, err := r.readSlot(ctx, conn)
	if err != nil {
		return err
	}
	if err := r.resolve(ctx, conn, srv, &slot); err != nil {
		return err
	}
	if err := r.lookAgain(ctx, conn, &srv); err != nil {
		return err
	}
	if err := r.checkContinuity(ctx, srv); err != nil {
		return err
	}
	if err := r.keepHistory(histories); err != nil {
		return err
	}
	if err := r.endPassed(ctx); err != nil {
		return err
	}
	r.descend()
	if r.o.EndPos != 0 && r.pos.LSN > r.o.EndPos {
		r.log.Info("the end position is behind what is held already", "endpos", r.o.EndPos.String(), "held", r.pos.String())
		r.tellFinished()
		return nil
	}
	if slot.empty && !r.fresh && !r.o.SlotMustExist {
		return r.replaceLost(ctx)
	}
	if !slot.exists && !r.o.SlotMustExist {
		// A slot for WAL that is gone would only fill the server's disk.
		if err := r.tryWithoutSlot(ctx, conn); err != nil {
			return err
		}
		again, err := r.o.Connect(ctx)
		if err != nil {
			return err
		}
		conn = again
		if err := r.createSlot(ctx, conn); err != nil {
			return err
		}
	}
	return r.stream(ctx, conn, srv, slot.restart)
}

// answering bounds what a server is asked before its stream begins: it answers
// all of that at once, or not at all, because it hangs, or is cut off. Then
// another one may have taken its place.
func answering(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, silence)
}

// inspect asks the server what it is.
func (r *Receiver) inspect(ctx context.Context, conn *replication.Conn) (server, error) {
	ctx, cancel := answering(ctx)
	defer cancel()
	s := server{version: conn.Version(), inRecovery: conn.InRecovery()}
	switch major := s.version.Major(); {
	case major < 14:
		return s, fmt.Errorf("%w: it is PostgreSQL %s, and walferry streams from 14 on", ErrServer, s.version)
	case major > 18:
		r.log.Warn("this PostgreSQL is newer than any that walferry was tested with (14 to 18)", "version", s.version.String())
	}
	var err error
	if s.system, err = conn.IdentifySystem(ctx); err != nil {
		return s, err
	}
	sizeText, err := conn.Show(ctx, "wal_segment_size")
	if err != nil {
		return s, err
	}
	if s.size, err = segment.ParseSize(sizeText); err != nil {
		return s, fmt.Errorf("%w: SHOW wal_segment_size: %w", ErrServer, err)
	}
	level, err := conn.Show(ctx, "wal_level")
	if err != nil {
		return s, err
	}
	if level != "replica" && level != "logical" {
		return s, fmt.Errorf("%w: its wal_level is %q; it must be replica or logical", ErrServer, level)
	}
	timeout, err := conn.Show(ctx, "wal_sender_timeout")
	if err != nil {
		return s, err
	}
	if s.timeout, err = parseSetting(timeout); err != nil {
		return s, fmt.Errorf("SHOW wal_sender_timeout: %w", err)
	}
	if !r.toldKeep && r.o.Slot != "" && !r.o.SlotMustExist {
		keep, err := conn.Show(ctx, "max_slot_wal_keep_size")
		if err != nil {
			return s, err
		}
		if r.toldKeep = true; keep == "-1" {
			r.log.Warn("max_slot_wal_keep_size is -1 on the server: if walferry stays away, its slot retains WAL until the disk is full; "+
				"set a limit that the disk has room for", "slot", r.o.Slot)
		}
	}
	names, err := conn.Show(ctx, "synchronous_standby_names")
	if err != nil {
		return s, err
	}
	r.watch.saw(names)
	r.watch.follow(conn.Config())
	r.server = s.system.Flush // what this server has announced
	return s, nil
}

// parseSetting reads a time as SHOW prints it: an integer and a unit, "1min",
// "60s", "0" (PostgreSQL: convert_int_from_base_unit in guc.c).
func parseSetting(s string) (time.Duration, error) {
	text := s
	for _, unit := range []struct{ pg, goUnit string }{{"min", "m"}, {"d", "d"}} {
		if n, ok := strings.CutSuffix(text, unit.pg); ok {
			text = n + unit.goUnit
			break
		}
	}
	if n, ok := strings.CutSuffix(text, "d"); ok {
		d, err := time.ParseDuration(n + "h")
		return 24 * d, err
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("unexpected time %q", s)
	}
	return d, nil
}

// admit makes sure that spool, archive and server are one cluster's.
func (r *Receiver) admit(ctx context.Context, s server) error {
	if r.system != 0 && (r.system != s.system.SystemIdentifier || r.size != s.size) {
		return fmt.Errorf("%w: the server's system identifier is %d, and this run began with %d", segment.ErrForeignCluster, s.system.SystemIdentifier, r.system)
	}
	id := spool.Identity{SystemIdentifier: s.system.SystemIdentifier, SegmentSize: s.size}
	if have, bound := r.spool.Identity(); bound && have != id {
		return fmt.Errorf("%w: the spool belongs to the cluster with system identifier %d and segment size %s, the server has %d and %s",
			segment.ErrForeignCluster, have.SystemIdentifier, have.SegmentSize, id.SystemIdentifier, id.SegmentSize)
	}
	if err := r.claim(ctx, id); err != nil {
		return err
	}
	if err := r.spool.Bind(id); err != nil {
		return err
	}
	r.system, r.size = s.system.SystemIdentifier, s.size
	return nil
}

// claim asks the archive whether it is this cluster's. With WAL in the spool
// an archive that cannot be reached does not hold up the reception: that is
// what the spool is for, and the uploader claims before it writes.
func (r *Receiver) claim(ctx context.Context, id spool.Identity) error {
	if len(r.held) == 0 && !r.resolved {
		if err := r.archive.Claim(ctx, id); err != nil {
			return &archiveError{err}
		}
		r.asking.Over()
		return nil
	}
	short, cancel := context.WithTimeout(ctx, claimPatience)
	defer cancel()
	err := r.archive.Claim(short, id)
	if err == nil || Final(err) {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.log.Debug("the archive cannot be asked now; receiving into the spool", "error", err.Error())
	return nil
}

// lookAgain asks the server once more where its WAL ends, when that was before
// what we hold: the archive was read behind the first answer, and another
// receiver may have shipped more meanwhile.
func (r *Receiver) lookAgain(ctx context.Context, conn *replication.Conn, s *server) error {
	if r.fresh || r.pos.Timeline < s.system.Timeline || r.pos.Timeline == s.system.Timeline && r.pos.LSN <= s.system.Flush {
		return nil
	}
	ctx, cancel := answering(ctx)
	defer cancel()
	now, err := conn.IdentifySystem(ctx)
	if err != nil {
		return err
	}
	if now.Timeline != s.system.Timeline {
		return fmt.Errorf("the server went on to timeline %d meanwhile: %w", now.Timeline, errNextStart)
	}
	s.system.Flush = now.Flush
	r.server = max(r.server, now.Flush)
	return nil
}

// checkContinuity makes sure that what we hold is part of the server's history
// and not beyond it.
func (r *Receiver) checkContinuity(ctx context.Context, s server) error {
	if r.fresh {
		return nil
	}
	t, flush := s.system.Timeline, s.system.Flush
	switch {
	case r.pos.Timeline > t && s.inRecovery:
		return fmt.Errorf("the server is a standby on timeline %d, and we hold WAL up to %s: waiting for it to follow", t, r.pos)
	case r.pos.Timeline > t:
		return fmt.Errorf("%w: it is on timeline %d, we hold WAL up to %s", ErrDemoted, t, r.pos)
	case r.pos.Timeline == t && flush < r.pos.LSN && s.inRecovery:
		return fmt.Errorf("the server is a standby at %s, and we hold WAL up to %s: waiting for it to catch up", flush, r.pos)
	case r.pos.Timeline == t && flush < r.pos.LSN:
		return fmt.Errorf("%w: its WAL ends at %s, we hold WAL up to %s", ErrSetBack, flush, r.pos)
	case r.pos.Timeline == t:
		return nil
	}
	at, ancestor := r.history.Switchpoint(r.pos.Timeline)
	if !ancestor {
		return fmt.Errorf("%w: we hold WAL up to %s, the server's timeline %d does not descend from it", ErrForked, r.pos, t)
	}
	if r.pos.LSN < at || r.pos.LSN == at && r.size.Offset(at) == 0 {
		return nil // the rest of the old timeline comes first, or its last page, to be compared
	}
	child := r.history.Owner(at)
	if err := r.seed(ctx, r.size.Name(r.pos.Timeline, at), at, r.size.Name(child, at)); err != nil {
		return err
	}
	return r.endTimeline(ctx, at, child)
}
