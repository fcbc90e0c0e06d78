package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/cmd/internal/notify"
	"github.com/walferry/walferry/receiver"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/spool"
	"github.com/walferry/walferry/uploader"
)

// receiveSettings is what receive was told, checked.
type receiveSettings struct {
	Server         *replication.Config
	Database       string // for what only an ordinary connection can ask
	Store          storeSettings
	SingleReceiver bool

	Slot          string
	SpoolDir      string // noSpool: none
	SpoolLimit    int64  // bytes; 0: the spool's own default
	Memory        int64  // bytes, when there is no spool
	Ack           receiver.Ack
	Synchronous   receiver.Synchronous
	ShipInterval  time.Duration // 0: no tail objects but for commits that wait
	Hold          int64         // bytes; 0: no hold
	OnGap         receiver.OnGap
	Compress      codec.Method
	CompressGiven bool // else the archive's own codec wins
	ShutdownGrace time.Duration
	EndPos        segment.LSN // 0: none
	NoLoop        bool

	Log *slog.Logger
}

// receiveCommand is "walferry receive".
func receiveCommand(p *program) *cli.Command {
	flags := settingFlags("slot", "spool", "spool-limit", "memory", "ack", "hold", "synchronous", "ship-interval", "compress", "on-gap", "shutdown-grace", "endpos", "no-loop", "store", "single-receiver")
	flags = append(flags, connectionFlags()...)
	flags = append(flags, settingFlags("dbname")...)
	return &cli.Command{
		Name:  "receive",
		Usage: "stream WAL into the archive",
		Description: `Connects as a standby would, and keeps every byte on this host's disk (the spool)
and then in the archive. Goes on for ever: after a failure it connects again, after
a restart it resumes where the archive and the spool end. SIGTERM or SIGINT stops it.

With --spool none no disk is needed: the server keeps all WAL until it is in the
archive (--ack archive is implied), and --memory bounds what is on its way.`,
		Flags: append(flags, generalFlags()...),
		Action: p.action(func(ctx context.Context, c *call) error {
			s, err := c.receiveSettings()
			if err != nil {
				return err
			}
			if s.Store.create {
				s.Log.Info(fmt.Sprintf("no store given: the archive is %s, the spool is %s", s.Store.dir, s.spoolName()))
			}
			manager, err := notify.New(c.environ, os.Getpid())
			if err != nil {
				s.Log.Warn("the service manager is not told how it goes", "error", err.Error())
			}
			if err := notify.Unset(); err != nil {
				return err
			}
			return runReceive(ctx, s, manager)
		}),
	}
}

// receiveSettings checks everything that receive is told. Nothing is touched.
func (c *call) receiveSettings() (receiveSettings, error) {
	s := receiveSettings{
		Database:       c.set.Text("dbname"),
		SingleReceiver: c.set.Bool("single-receiver"),
		Slot:           c.set.Text("slot"),
		SpoolLimit:     c.set.Bytes("spool-limit"),
		Memory:         c.set.Bytes("memory"),
		Hold:           c.set.Bytes("hold"),
		ShipInterval:   c.set.Duration("ship-interval"),
		ShutdownGrace:  c.set.Duration("shutdown-grace"),
		NoLoop:         c.set.Bool("no-loop"),
		Log:            c.log,
	}
	err := checkNoSpool(c.set)
	if err != nil {
		return s, err
	}
	if s.SpoolDir, err = c.spoolDir(); err != nil { // first: others hang on it
		return s, err
	}
	if c.set.Text("ack") == "archive" {
		s.Ack = receiver.AckArchive
	}
	if c.set.Text("on-gap") == "record" {
		s.OnGap = receiver.RecordGap
	}
	if s.SpoolDir == noSpool {
		s.Ack, s.Hold = receiver.AckArchive, 0
	}
	if s.Synchronous, err = parseSynchronous(c.set.Text("synchronous")); err != nil {
		return s, withExit(exitUsage, err, "")
	}
	if v := c.set.Value("endpos"); v.IsSet() {
		if s.EndPos, err = segment.ParseLSN(v.Text); err != nil {
			return s, withExit(exitUsage, err, "")
		}
	}
	if s.Compress, err = findCompression(c.set); err != nil {
		return s, err
	}
	s.CompressGiven = compressionGiven(c.set)
	if s.Store, err = c.findStore(c.set, true); err != nil {
		return s, err
	}
	s.Server, err = c.daemonConnection()
	return s, err
}

// spoolDir is where the spool is.
func (c *call) spoolDir() (string, error) {
	if dir := c.set.Text("spool"); dir != "" {
		return dir, nil
	}
	home, err := c.set.HomeDir(c.userHome())
	if err != nil {
		return "", withExit(exitUsage, err, "")
	}
	return filepath.Join(home, "spool"), nil
}

// frameMemory is how much of one compressed segment is held in memory; the
// rest of a large one goes to an unlinked file in the spool's directory.
const frameMemory = 8 << 20

// lastTail is how long a clean stop waits for what was just received to be
// shipped.
const lastTail = 3 * time.Second

// watchInterval is how often the server is asked whether commits wait for us.
const watchInterval = 10 * time.Second

// runReceive receives until ctx ends, the end position is reached, or
// something forbids to go on.
func runReceive(ctx context.Context, s receiveSettings, manager *notify.Notifier) (err error) {
	store, err := s.Store.open(ctx)
	if err != nil {
		return err
	}
	sp, buffers, err := s.openSpool()
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := sp.Close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("closing the spool: %w", closeErr))
		}
	}()

	ar := archive.New(store, archive.Options{Log: s.Log, SingleReceiver: s.SingleReceiver})
	up := uploader.New(sp, ar, uploader.Options{
		Method: s.Compress, Follow: !s.CompressGiven, ShipInterval: s.ShipInterval,
		Buffers: buffers, Log: s.Log.With("archive", ar.String()),
	})
	rec := receiver.New(sp, archiveView{ar, up, s.fits, s.Log}, up, receiver.Options{
		Connect: func(ctx context.Context) (*replication.Conn, error) { return replication.Connect(ctx, s.Server) },
		SlotPosition: func(ctx context.Context, slot string) (segment.LSN, bool, error) {
			return slotPosition(ctx, s.Server, s.Database, slot)
		},
		Hosts: eachHost(s.Server), OnGap: s.OnGap,
		Recorded: func(ctx context.Context, gap *receiver.GapError) {
			s.Log.Warn("what the gap cuts: " + cutByGap(ctx, ar, gap))
		},
		Slot: s.Slot, ApplicationName: s.Server.ApplicationName(),
		EndPos: s.EndPos, NoLoop: s.NoLoop, Ack: s.Ack, Synchronous: s.Synchronous, NoSpool: s.SpoolDir == noSpool, Hold: s.Hold,
		ShutdownGrace: s.ShutdownGrace, WatchInterval: watchInterval, Log: s.Log,
	})
	for _, notice := range s.Server.Notices() {
		s.Log.Warn(notice)
	}
	s.Log.Info("starting", "archive", ar.String(), "spool", s.spoolName(), "slot", s.Slot, "server", s.Server.String())

	shown := sp
	if s.SpoolDir == noSpool {
		shown = nil
	}
	err = join(ctx, rec, up, s.Log, func(work context.Context, beside *sync.WaitGroup) {
		running{rec, up, shown, s, ar.String(), time.Now()}.show(work, beside)
		// Ready without a server: a unit must start while the server is away.
		beside.Go(func() {
			manager.Run(work, rec.Alive, func(err error) { s.Log.Warn(err.Error()) })
		})
	})
	sayGoodbye(s, rec.Summary(), up)
	if gap := (*receiver.GapError)(nil); errors.As(err, &gap) {
		return gapError(ctx, err, gap, ar)
	}
	return receiveError(err, s)
}

// shipper is the other end of the spool, as join runs it.
type shipper interface {
	Run(ctx context.Context) error
	Drain(ctx context.Context) error
	Failing() bool
}

// join runs the receiver with the uploader until ctx ends, the end position is
// reached, or something forbids to go on, and what start starts beside them.
// Nothing runs any more on return.
//
// The uploader starts first and needs no server: what a receiver's disk holds
// goes up even when the primary is gone for good. It also ends last, since the
// last report may be of what it ships.
func join(ctx context.Context, rec *receiver.Receiver, up shipper, log *slog.Logger, start func(work context.Context, beside *sync.WaitGroup)) error {
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	shipping, stopShipping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopShipping()
	var beside sync.WaitGroup
	beside.Go(func() {
		if err := up.Run(shipping); err != nil {
			cancel(err)
		}
	})
	start(work, &beside)
	err := rec.Run(work)
	if cause := context.Cause(work); cause != nil && ctx.Err() == nil {
		err = cause
	}
	if err == nil && ctx.Err() == nil {
		// The end position: done means that it is in the archive.
		if err = up.Drain(work); ctx.Err() != nil {
			err = nil // told to stop while waiting
		}
	}
	if (ctx.Err() != nil && err == nil || errors.Is(err, receiver.ErrGap)) && !up.Failing() {
		// What is in the spool goes up with the next start, too.
		last, done := context.WithTimeout(shipping, lastTail)
		if err := up.Drain(last); err != nil {
			log.Debug("stopped before everything in the spool was shipped", "error", err.Error())
		}
		done()
	}
	cancel(nil)
	stopShipping()
	beside.Wait()
	return err
}

// sayGoodbye says what is left on the server, and how to be rid of it.
func sayGoodbye(s receiveSettings, sum receiver.Summary, up *uploader.Uploader) {
	if sum.ServerEnd == 0 || !sum.SlotExists {
		s.Log.Info("stopped before anything was received")
		return
	}
	retained := "all WAL from its restart_lsn on"
	if sum.Flush != 0 {
		retained = fmt.Sprintf("WAL from %s on, %s so far", sum.Flush, formatBytes(int64(sum.ServerEnd-min(sum.Flush, sum.ServerEnd))))
	}
	archived := "nothing is archived yet"
	if p, ok := up.Shipped(); ok {
		archived = "archived up to " + p.String()
	}
	s.Log.Info(fmt.Sprintf("stopped at %s (%s); slot %q on the server retains %s, and grows until walferry is back; to give it up: walferry slot drop %s",
		sum.Position, archived, s.Slot, retained, s.Slot))
}

// archiveView is the archive as the receiver sees it.
type archiveView struct {
	*archive.Archive
	up   *uploader.Uploader
	fits func(segment.Size) error
	log  *slog.Logger
}

// Claim claims through the uploader, which remembers that it was done. It is
// where the segment size is first known: when that makes this run impossible,
// the archive is left alone.
func (v archiveView) Claim(ctx context.Context, id spool.Identity) error {
	if err := v.fits(id.SegmentSize); err != nil {
		return err
	}
	err := v.up.Claim(ctx, id)
	if uploader.Final(err) {
		return fmt.Errorf("%w: %w", receiver.ErrRefused, err)
	}
	return err
}

// Segment opens an archived segment.
func (v archiveView) Segment(ctx context.Context, n segment.Name) (io.ReadCloser, error) {
	o, err := v.Open(ctx, n.String())
	if errors.Is(err, archive.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", receiver.ErrNotArchived, err)
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

// AssembleTails puts a segment's tail objects together. What is damaged, or
// missing in the middle, ends it there: the server is asked for the rest.
func (v archiveView) AssembleTails(ctx context.Context, n segment.Name, size segment.Size, into receiver.Patch) (uint32, error) {
	end, _, err := v.Archive.AssembleTails(ctx, n, size, into)
	switch {
	case errors.Is(err, archive.ErrConflict):
		return 0, fmt.Errorf("%w: %w", receiver.ErrConflict, err)
	case errors.Is(err, archive.ErrTailHole), errors.Is(err, codec.ErrDamaged), errors.Is(err, archive.ErrNoDecoder):
		v.log.Warn("not all tail objects of the open segment can be read: asking the server for what they do not give", "error", err.Error())
		return end, nil
	}
	return end, err
}

// PutGap records a gap.
func (v archiveView) PutGap(ctx context.Context, g segment.Gap, f receiver.GapFacts) error {
	err := v.Archive.PutGap(ctx, archive.RecordedGap{
		Gap: g, RecordedAt: time.Now(), Reason: f.Reason, Slot: f.Slot, SystemIdentifier: f.SystemIdentifier,
	})
	if errors.Is(err, archive.ErrConflict) {
		return fmt.Errorf("%w: %w", receiver.ErrRefused, err)
	}
	return err
}

// slotPosition asks an ordinary connection where a slot is.
func slotPosition(ctx context.Context, config *replication.Config, dbname, slot string) (lsn segment.LSN, ok bool, err error) {
	conn, err := replication.ConnectSQL(ctx, config, dbname)
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	res := conn.ExecParams(ctx, "SELECT coalesce(restart_lsn::text, '0/0') FROM pg_replication_slots WHERE slot_name = $1",
		[][]byte{[]byte(slot)}, nil, nil, nil).Read()
	if res.Err != nil || len(res.Rows) == 0 {
		return 0, false, res.Err
	}
	lsn, err = segment.ParseLSN(string(res.Rows[0][0]))
	return lsn, err == nil, err
}

// spoolError explains why a spool could not be opened.
func spoolError(err error, dir string) error {
	switch {
	case errors.Is(err, disk.ErrLocked):
		return withExit(exitFailed, fmt.Errorf("opening the spool %s: %w", dir, err), "another walferry works there: stop it, or give this one a --spool of its own")
	case errors.Is(err, fs.ErrPermission):
		return withExit(exitFailed, fmt.Errorf("opening the spool: %w", err), "run as the owner of "+dir+", or say --spool")
	}
	return withExit(exitFailed, fmt.Errorf("opening the spool: %w", err), "")
}

// receiveError gives the error that ended receive its exit code and its hint.
func receiveError(err error, s receiveSettings) error {
	limitHint := "give --spool-limit room for several segments"
	if s.SpoolDir == noSpool {
		limitHint = "" // the error says all
	}
	for _, h := range []struct {
		is   error
		code int
		hint string
	}{
		{archive.ErrCodec, exitUsage, "leave --compress (or WALG_COMPRESSION_METHOD) out: the archive's own codec is then used"},
		{objstore.ErrConditionIgnored, exitSafety, "two receivers could overwrite each other there: use a store that honours If-None-Match, or say --single-receiver when nobody else writes to it"},
		{segment.ErrForeignCluster, exitSafety, "one archive and one spool belong to one cluster: give this cluster a --store and a --spool of its own, or see whether -h and -p name the right server"},
		{archive.ErrUnrecognised, exitSafety, "nothing there says whose WAL it is: give walferry an empty prefix, or one with a WAL-G backup of this cluster"},
		{archive.ErrIdentity, exitSafety, "walferry_005/identity.json cannot be read by this version: use the walferry that wrote it, or another --store"},
		{receiver.ErrConflict, exitSafety, "the server was set back to an earlier state, or is another copy of the cluster: archive it under another --store (and --spool)"},
		{spool.ErrConflict, exitSafety, "the server was set back to an earlier state, or is another copy of the cluster: archive it under another --store (and --spool)"},
		{archive.ErrConflict, exitSafety, "two clusters, or two histories of one, write to this archive: give one of them another --store; " + s.unshipped()},
		{receiver.ErrSetBack, exitSafety, "it was probably restored to an earlier point: archive it under another --store (and --spool), since its new WAL contradicts what is archived"},
		{receiver.ErrDemoted, exitSafety, "it is probably an old primary that another one has replaced: connect to the current primary; " +
			"or, where this is the right one, archive it under another --store (and --spool), since the history of the other is in this one"},
		{receiver.ErrForked, exitSafety, "connect to the primary whose history contains this WAL, or archive this one under another --store (and --spool)"},
		{receiver.ErrServer, exitFailed, ""},
		{receiver.ErrSpoolFailed, exitFailed, "see what is wrong with the disk of " + s.SpoolDir + ", and start again: what is in the spool is checked then"},
		{receiver.ErrSpoolStuck, exitSafety, "mend the archive's conflict, named above; the slot keeps the server's WAL meanwhile"},
		{spool.ErrLimit, exitUsage, limitHint},
		{fs.ErrPermission, exitFailed, ""},
	} {
		if errors.Is(err, h.is) {
			return withExit(h.code, err, h.hint)
		}
	}
	return withExit(exitFailed, err, "")
}
