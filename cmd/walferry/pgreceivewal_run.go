package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/cmd/internal/settings"
	"github.com/walferry/walferry/internal/patience"
	"github.com/walferry/walferry/receiver"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/waldir"
	"github.com/walferry/walferry/segment/spool"
	"github.com/walferry/walferry/uploader"
)

// receive streams until it is told to stop, or the end position is reached. set
// is nil where WAL goes into the directory alone.
func (d *dropIn) receive(ctx context.Context, set *settings.Set) (err error) {
	group, err := d.contact(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	umask := 0o077
	if group {
		umask = 0o027
	}
	unix.Umask(umask)
	o := waldir.Options{Method: waldir.Method(d.Compression.Method), Level: d.Compression.Level, NoSync: d.NoSync, Log: d.log}
	var ar *archive.Archive
	if set != nil {
		store, err := d.store.open(ctx)
		if err != nil {
			return err
		}
		ar = archive.New(store, archive.Options{Log: d.log, SingleReceiver: set.Bool("single-receiver")})
		o.All, o.Hide = true, archivedAlready(ctx, ar, d.log)
	}
	dir := waldir.New(disk.OS{}, d.Directory, o)
	sp, err := spool.Open(dir, d.Directory, spool.Options{Limit: math.MaxInt64 / 4, Log: d.log, GroupAccess: group, Keep: true})
	if err != nil {
		return &directoryFailure{d.Directory, err}
	}
	defer func() {
		if closeErr := sp.Close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("closing the directory: %w", closeErr))
		}
	}()
	if err = d.stream(ctx, dir, sp, ar, set); err == nil {
		d.finish()
	}
	return err
}

// contact waits for the server's first answer, and returns whether its data
// directory, and so ours, may be read by its group. What may pass is waited
// for, unless nothing is to be waited for; what a server says about us, and a
// host that nobody knows, is an error.
func (d *dropIn) contact(ctx context.Context) (group bool, err error) {
	trouble := patience.New(nil, "")
	for {
		group, err = d.askGroupAccess(ctx)
		if err == nil || ctx.Err() != nil {
			return group, nil
		}
		if d.NoLoop || !mayPass(err) {
			return false, err
		}
		wait := trouble.Failed(err)
		d.Disconnected(err, wait)
		if trouble.Sleep(ctx, wait) != nil {
			return false, nil
		}
	}
}

// askGroupAccess asks a server that has just been connected to.
func (d *dropIn) askGroupAccess(ctx context.Context) (group bool, err error) {
	conn, err := replication.Connect(ctx, d.server)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	text, err := conn.Show(ctx, "data_directory_mode")
	if err != nil {
		return false, err
	}
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil {
		return false, fmt.Errorf("group access flag could not be parsed: %s", text)
	}
	return mode&0o050 == 0o050, nil // RetrieveDataDirCreatePerm in streamutil.c
}

// stream joins the receiver with the uploader, or with what stands in for it.
func (d *dropIn) stream(ctx context.Context, dir *waldir.FS, sp *spool.Spool, ar *archive.Archive, set *settings.Set) error {
	d.streams = true
	o := receiver.Options{
		Connect: func(ctx context.Context) (*replication.Conn, error) { return replication.Connect(ctx, d.server) },
		Slot:    d.Slot, SlotMustExist: true, ApplicationName: d.server.ApplicationName(),
		EndPos: d.EndPos, NoLoop: d.NoLoop,
		NoFlush: d.Slot == "" && !d.Synchronous, Lazy: !d.Synchronous,
		StatusInterval: d.StatusInterval, ShutdownGrace: shutdownGrace,
		Begin:  func(size segment.Size) (segment.Position, bool) { return whereToGoOn(dir.Newest(), size) },
		Hosts:  eachHost(d.server),
		Events: d, Log: d.log,
	}
	if o.StatusInterval == 0 {
		o.StatusInterval = -1
	}
	if d.Synchronous {
		o.Synchronous = receiver.SynchronousOn
	}
	nothing := func(context.Context, *sync.WaitGroup) {}
	if ar == nil {
		k := newKeeper(sp)
		return join(ctx, receiver.New(sp, noArchive{}, k, o), k, d.log, nothing)
	}
	method, err := findCompression(set)
	if err != nil {
		return err
	}
	if set.Text("ack") == "archive" {
		o.Ack = receiver.AckArchive
	}
	if !d.Synchronous {
		if o.Synchronous, err = parseSynchronous(set.Text("synchronous")); err != nil {
			return err
		}
	}
	o.Hold, o.ShutdownGrace, o.WatchInterval = set.Bytes("hold"), set.Duration("shutdown-grace"), watchInterval
	up := uploader.New(sp, ar, uploader.Options{
		Method: method, Follow: !compressionGiven(set), ShipInterval: set.Duration("ship-interval"),
		Buffers: codec.NewBuffers(frameMemory, d.Directory), Log: d.log.With("archive", ar.String()),
	})
	fits := func(segment.Size) error { return nil }
	return join(ctx, receiver.New(sp, archiveView{ar, up, fits, d.log}, up, o), up, d.log, nothing)
}

// whereToGoOn is where pg_receivewal goes on from the newest file.
func whereToGoOn(w waldir.Newest, size segment.Size) (p segment.Position, ok bool) {
	if !w.Found || w.Name.Check(size) != nil {
		return p, false
	}
	p = segment.Position{Timeline: w.Name.Timeline, LSN: w.Name.Start(size)}
	if w.Complete {
		p.LSN = w.Name.End(size)
	}
	return p, true
}

// shutdownGrace is how long a stopping server may wait for us.
const shutdownGrace = 30 * time.Second

// listAtOnce is how far archivedAlready lists at a time, in the middle eight
// digits of names, which count 4 GiB of WAL each.
const listAtOnce = 16

// archivedAlready returns a function that says whether the archive has a
// segment: what it has need not be compared with it at each start. It is asked
// for the newest first, and lists the archive by the piece. What cannot be listed
// is taken not to be there.
func archivedAlready(ctx context.Context, ar *archive.Archive, log *slog.Logger) func(segment.Name) bool {
	have := map[segment.Name]bool{}
	lowest := map[segment.Timeline]segment.Name{} // from where on it was listed
	return func(n segment.Name) bool {
		before, listed := lowest[n.Timeline]
		if listed && n.Compare(before) >= 0 {
			return have[n]
		}
		from := segment.Name{Timeline: n.Timeline, Log: n.Log - min(n.Log, listAtOnce-1)}
		lowest[n.Timeline] = from
		for found, err := range ar.Segments(ctx, from) {
			if err != nil {
				log.Warn("the archive cannot be asked what it has: what is in the directory is compared with it", "error", err.Error())
				break
			}
			if listed && found.Compare(before) >= 0 {
				break
			}
			have[found] = true
		}
		return have[n]
	}
}
