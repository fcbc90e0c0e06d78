package main

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/walferry/walferry/cmd/internal/status"
	"github.com/walferry/walferry/receiver"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
	"github.com/walferry/walferry/uploader"
)

// positionsInterval is how often at most the log says where everything is.
const positionsInterval = time.Minute

// running is a receive that runs, as seen by those who watch it. Nothing here
// changes what it does.
type running struct {
	receiver interface {
		Status() receiver.Status
		Lag(segment.LSN) time.Duration
	}
	uploader interface{ Status() uploader.Status }
	spool    *spool.Spool // nil: there is none
	settings receiveSettings
	archive  string
	started  time.Time
}

// show answers "walferry status" and logs the positions until ctx ends.
func (p running) show(ctx context.Context, beside *sync.WaitGroup) {
	beside.Go(func() { p.logPositions(ctx) })
	if p.spool == nil {
		return
	}
	failed := func(err error) {
		p.settings.Log.Warn("walferry status cannot ask this process, which works all the same", "error", err.Error())
	}
	socket, err := status.Listen(p.settings.SpoolDir)
	if err != nil {
		failed(err)
		return
	}
	beside.Go(func() { socket.Serve(ctx, p.document, failed) })
}

// document is what "walferry status" is answered.
func (p running) document() status.Process {
	// The uploader first: the receiver's positions are not behind its then.
	u := p.uploader.Status()
	r := p.receiver.Status()
	version, _, _ := buildVersion()
	d := status.Process{
		At: status.Time{Time: time.Now()}, PID: os.Getpid(), Version: version, Started: status.Time{Time: p.started},
		State: string(r.State), StateSince: status.Time{Time: r.Since}, WaitingFor: []status.Trouble{},
		Reported: status.Reported{Write: lsnText(r.Write), Flush: lsnText(r.Flush)},
		Slot:     r.Slot, Ack: ackText(r.Ack), CommitWaits: r.CommitWaits,
		Hold:    status.Hold{LimitBytes: p.settings.Hold, InForce: r.Hold},
		Archive: p.archive, UploadsPending: u.Pending,
	}
	if r.SystemIdentifier != 0 {
		d.SystemIdentifier = new(strconv.FormatUint(r.SystemIdentifier, 10))
		d.SegmentSize = new(uint64(r.SegmentSize))
	}
	if r.Server != "" {
		d.Server = &status.Server{Address: r.Server, Version: r.Version, Timeline: uint32(r.Timeline), End: lsnText(r.ServerEnd)}
	}
	for _, t := range append(r.Troubles, u.Troubles...) {
		d.WaitingFor = append(d.WaitingFor, status.Trouble{What: t.What, Error: oneLine(t.Reason), Since: status.Time{Time: t.Since}, Attempts: t.Attempts})
	}
	if r.State == receiver.Full {
		d.WaitingFor = append(d.WaitingFor, status.Trouble{What: "take more WAL from the server", Error: "the spool is full", Since: d.StateSince})
	}
	if u.Stopped != nil {
		d.ShippingStopped = new(oneLine(u.Stopped.Error()))
	}
	lagging := func(at segment.Position) *status.Lagging {
		if at.Timeline == 0 {
			return nil
		}
		l := &status.Lagging{Position: position(at)}
		if r.ServerEnd != 0 {
			l.LagBytes = new(uint64(r.ServerEnd - min(at.LSN, r.ServerEnd)))
			l.LagSeconds = new(0.0)
			if *l.LagBytes > 0 {
				*l.LagSeconds = status.Seconds(p.receiver.Lag(at.LSN))
			}
		}
		return l
	}
	d.Positions.Received, d.Positions.Spooled = lagging(r.Received), lagging(r.Spooled)
	d.Positions.Shipped, d.Positions.Sealed = lagging(u.Shipped), lagging(u.Sealed)
	if p.spool != nil {
		used, limit := p.spool.Used()
		d.Spool = &status.Spool{Directory: p.settings.SpoolDir, UsedBytes: used, LimitBytes: limit}
	}
	if u.Last.Name != "" {
		d.LastObject = &status.Object{Name: u.Last.Name, Bytes: u.Last.Size, Stored: status.Time{Time: u.Last.Stored}}
	}
	return d
}

func ackText(a receiver.Ack) string {
	if a == receiver.AckArchive {
		return "archive"
	}
	return "spool"
}

func position(p segment.Position) status.Position {
	return status.Position{Timeline: uint32(p.Timeline), LSN: p.LSN.String()}
}

func lsnText(l segment.LSN) *string {
	if l == 0 {
		return nil
	}
	return new(l.String())
}

// positions is where everything is at one moment.
type positions struct{ received, spooled, shipped, sealed, server segment.LSN }

// logPositions says where everything is, when something has moved since it said
// so last.
func (p running) logPositions(ctx context.Context) {
	ticker := time.NewTicker(positionsInterval)
	defer ticker.Stop()
	var said positions
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		u, r := p.uploader.Status(), p.receiver.Status()
		now := positions{r.Received.LSN, r.Spooled.LSN, u.Shipped.LSN, u.Sealed.LSN, r.ServerEnd}
		if p.settings.SpoolDir == noSpool {
			now.spooled = now.shipped // what is in memory alone is not
		}
		if now == said {
			continue
		}
		said = now
		p.settings.Log.Info("positions", slog.Any("received", now.received), slog.Any("spooled", now.spooled),
			slog.Any("shipped", now.shipped), slog.Any("sealed", now.sealed), slog.Any("server", now.server))
	}
}
