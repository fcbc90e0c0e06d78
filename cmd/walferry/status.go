package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/cmd/internal/status"
	"github.com/walferry/walferry/segment"
)

// statusCommand is "walferry status".
func statusCommand(p *program) *cli.Command {
	flags := append([]cli.Flag{&cli.BoolFlag{Name: "json", Usage: "machine-readable"}}, settingFlags("spool", "store")...)
	return &cli.Command{
		Name:  "status",
		Usage: "where everything is, and how far a restore would get",
		Description: `Asks the walferry receive that works on the spool where it is and what it waits
for, and the archive how far a restore would get right now. One of them is enough:
the archive tells its part also when walferry is gone.`,
		Flags:  append(flags, generalFlags()...),
		Action: p.action(showStatus),
	}
}

const (
	// reachPatience is how long the archive may take for its first answer.
	reachPatience = 20 * time.Second
	// lookPatience is how long it may take for all.
	lookPatience = 2 * time.Minute
)

// showStatus is "walferry status".
func showStatus(ctx context.Context, c *call) error {
	report, err := c.statusReport(ctx)
	if err != nil {
		return err
	}
	if c.flags.Bool("json") {
		enc := json.NewEncoder(c.stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(report); err != nil {
			return fmt.Errorf("printing the status: %w", err)
		}
		return nil
	}
	return c.say("%s", statusText(report, time.Now()))
}

// statusReport asks the process and the archive. An error says that neither has
// anything to show.
func (c *call) statusReport(ctx context.Context) (r status.Report, err error) {
	dir, err := c.spoolDir()
	if err != nil {
		return r, err
	}
	store, given, err := c.storeToShow()
	if err != nil {
		return r, err
	}
	var process status.Process
	err = errNoSpool
	if dir != noSpool {
		process, err = status.Ask(ctx, dir)
	}
	switch {
	case err == nil:
		r.Process = &process
	case ctx.Err() != nil:
		return r, withExit(exitFailed, errInterrupted, "")
	default:
		r.NoProcess = new(noProcess(err, dir))
	}
	if !given {
		if r.Process == nil {
			return r, usageError("no store given, and %s: want --store s3://BUCKET/PREFIX or file:///DIR (or WALFERRY_STORE, or store in the file of --config)", *r.NoProcess)
		}
		r.NoArchive = new("no store given")
		return r, nil
	}
	found, err := c.lookAtArchive(ctx, store)
	if ctx.Err() != nil {
		return r, withExit(exitFailed, errInterrupted, "") // whatever it was, or how much of it
	}
	if err == nil {
		r.Archive = &found
		return r, nil
	}
	if r.Process == nil {
		return r, statusError(err, r.NoProcess)
	}
	r.NoArchive = new(oneLine(err.Error()))
	return r, nil
}

// errInterrupted: nobody waits for the answer any more.
var errInterrupted = errors.New("interrupted")

// errNoSpool: a process that has no spool has no place for a socket either.
var errNoSpool = errors.New("there is no spool")

// noProcess says why no process answers.
func noProcess(err error, dir string) string {
	why := status.Reason(err)
	switch {
	case errors.Is(err, errNoSpool):
		return "a walferry receive without a spool cannot be asked (its log tells where it is)"
	case errors.Is(err, status.ErrNotRunning):
		return fmt.Sprintf("no walferry receive runs on the spool %s (%s)", dir, why)
	case errors.Is(err, os.ErrPermission):
		return fmt.Sprintf("the walferry receive on the spool %s cannot be asked: %s: run as its owner", dir, why)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("the walferry receive on the spool %s does not answer", dir)
	}
	return fmt.Sprintf("the walferry receive on the spool %s cannot be asked: %s", dir, oneLine(why))
}

// statusError is the error of a status that has nothing to show.
func statusError(err error, noProcess *string) error {
	code, hint := exitFailed, ""
	var e *exitError
	switch {
	case errors.As(err, &e):
		code, hint = e.code, e.hint
	case errors.Is(err, archive.ErrUnrecognised):
		hint = "see whether --store names the archive, with its whole prefix"
	}
	if noProcess != nil {
		err = fmt.Errorf("%s, and %w", *noProcess, err)
	}
	return withExit(code, err, hint)
}

// storeToShow finds the archive that is meant. The default one, which receive
// makes, counts as given where it is there.
func (c *call) storeToShow() (s storeSettings, given bool, err error) {
	if s, err = c.findStore(c.set, true); err != nil || !s.create {
		return s, err == nil, err
	}
	s.create = false
	st, err := os.Stat(s.dir)
	return s, err == nil && st.IsDir(), nil
}

// lookAtArchive asks the archive what it holds.
func (c *call) lookAtArchive(ctx context.Context, s storeSettings) (status.Archive, error) {
	store, err := s.open(ctx)
	if err != nil {
		return status.Archive{}, err
	}
	ar := archive.New(store, archive.Options{Log: c.log})
	bounded, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	first, cancelFirst := context.WithTimeout(bounded, reachPatience)
	defer cancelFirst()
	if _, _, err := ar.Recognise(first); err != nil {
		return status.Archive{}, err
	}
	o, err := ar.Overview(bounded)
	if err != nil {
		return status.Archive{}, err
	}
	d := archiveDocument(ar.String(), o)
	list, err := askBackups(bounded, ar)
	if err != nil {
		d.BackupsError = new(oneLine(err.Error())) // the WAL is told all the same
		return d, nil
	}
	d.Backups, d.Windows = backupsDocument(list)
	return d, nil
}

// backupsDocument is what the document says of base backups. Backups whose WAL
// ends at one place open one window.
func backupsDocument(list backupList) (backups []status.Backup, windows []status.Window) {
	backups, windows = []status.Backup{}, []status.Window{}
	for _, b := range list.Backups {
		one := status.Backup{Name: b.Name, Error: b.Error, Bytes: b.StoredBytes, Stop: place(b.stop), Restorable: place(b.reach)}
		if !b.finish.IsZero() {
			one.Finished = &status.Time{Time: b.finish}
		}
		backups = append(backups, one)
		known := slices.ContainsFunc(windows, func(w status.Window) bool { return w.To == position(b.reach) })
		if b.restorable() && !known {
			windows = append(windows, status.Window{Backup: b.Name, From: position(b.stop), Finished: one.Finished, To: position(b.reach)})
		}
	}
	return backups, windows
}

// archiveDocument is what the document says of an archive.
func archiveDocument(store string, o archive.Overview) status.Archive {
	d := status.Archive{Store: store, Timelines: []status.Timeline{}, Gaps: []status.Gap{}}
	size := o.Identity.SegmentSize
	if o.Identity.SystemIdentifier != 0 {
		d.SystemIdentifier = new(strconv.FormatUint(o.Identity.SystemIdentifier, 10))
	}
	if size != 0 {
		d.SegmentSize = new(uint64(size))
	}
	if o.Identity.WALCodec != "" {
		d.WALCodec = &o.Identity.WALCodec
	}
	for _, t := range o.Timelines {
		one := status.Timeline{Timeline: uint32(t.Timeline), History: t.History, WAL: t.WAL}
		if at, ok := o.History.Switchpoint(t.Timeline); ok {
			one.Ended = new(at.String())
		}
		d.Timelines = append(d.Timelines, one)
	}
	for _, g := range o.Gaps {
		d.Gaps = append(d.Gaps, gapDocument(g))
	}
	if o.HistoryErr != nil {
		d.HistoryError = new(oneLine(o.HistoryErr.Error()))
	}
	d.Sealed, d.Restorable = place(o.Sealed), place(o.Reach)
	if o.Behind != (segment.Name{}) {
		d.BehindGap = new(o.Behind.String())
		// On the timeline that has it whole.
		d.Missing = new(size.Name(o.History.Owner(o.Sealed.LSN+segment.LSN(size)-1), o.Sealed.LSN).String())
	}
	if o.Last.Key != "" {
		_, name, _ := strings.Cut(o.Last.Key, "/")
		d.LastObject = &status.Object{Name: name, Bytes: o.Last.Size, Stored: status.Time{Time: o.Last.Modified}}
	}
	return d
}

func gapDocument(g archive.RecordedGap) status.Gap {
	d := status.Gap{Timeline: uint32(g.Timeline), Start: g.Start.String(), End: g.End.String()}
	if g.Err != nil {
		d.Error = new(oneLine(g.Err.Error()))
		return d
	}
	d.RecordedAt, d.Reason, d.Slot = &status.Time{Time: g.RecordedAt}, &g.Reason, &g.Slot
	return d
}

func place(p segment.Position) *status.Position {
	if p == (segment.Position{}) {
		return nil
	}
	at := position(p)
	return &at
}
