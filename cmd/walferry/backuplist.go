package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// backupList is the answer of "walferry backup list", and one of its entries
// that of "backup show". Their JSON forms are a contract: fields are added,
// never changed; null is "not known" or "none".
type backupList struct {
	Archive string       `json:"archive"`
	Latest  *string      `json:"latest"` // the newest that can be restored
	Backups []backupInfo `json:"backups"`
}

// backupInfo is what is known of a base backup.
type backupInfo struct {
	Name            string            `json:"name"`
	By              string            `json:"by"`    // "walferry" or "wal-g"
	Error           *string           `json:"error"` // why its sentinel cannot be understood; most of the rest is null then
	Start           *backupPosition   `json:"start"`
	Stop            *backupPosition   `json:"stop"` // where it is consistent: no earlier target can be reached
	Started         *string           `json:"started"`
	Finished        *string           `json:"finished"`
	DurationSeconds *float64          `json:"duration_seconds"`
	Bytes           *int64            `json:"bytes"`        // of the tar files
	StoredBytes     *int64            `json:"stored_bytes"` // in the archive
	Server          *string           `json:"server"`       // PostgreSQL's version
	System          *string           `json:"system_identifier"`
	FromStandby     *bool             `json:"from_standby"`
	Label           *string           `json:"label"`
	Compression     *string           `json:"compression"`
	Permanent       bool              `json:"permanent"`   // as wal-g backup-mark says
	DependsOn       *string           `json:"depends_on"`  // WAL-G's deltas: the backup that it changes
	Tablespaces     map[string]string `json:"tablespaces"` // OID to location
	Suspect         []string          `json:"suspect"`     // the server's warnings about its pages
	FactsError      *string           `json:"facts_error"` // why walferry.json cannot be understood
	// WALIncluded: the backup holds the WAL that makes it consistent.
	WALIncluded bool `json:"wal_included"`
	// WALComplete: all WAL from start to stop is in the archive, or in the
	// backup. WALSealed: in whole segments, as wal-g needs it.
	WALComplete *bool   `json:"wal_complete"`
	WALSealed   *bool   `json:"wal_sealed"`
	WALMissing  *string `json:"wal_missing"` // the first segment that is missing
	// RestorableTo is the end of the recovery window, which begins at stop.
	RestorableTo *backupPosition `json:"restorable_to"`
	// Gap is the recorded gap at which the window ends; null: at none.
	Gap *backupGap `json:"gap"`

	stop, reach segment.Position // Stop and RestorableTo; zero where these are null
	finish      time.Time        // Finished
}

// backupGap is WAL that a receiver recorded as lost for good.
type backupGap struct {
	Timeline uint32 `json:"timeline"`
	Start    string `json:"start"` // the first LSN that is missing
	End      string `json:"end"`   // where WAL goes on
}

func (g backupGap) String() string {
	return fmt.Sprintf("%s to %s on timeline %d", g.Start, g.End, g.Timeline)
}

type backupPosition struct {
	LSN      string `json:"lsn"`
	Timeline uint32 `json:"timeline"`
}

func (p backupPosition) String() string { return fmt.Sprintf("%s on timeline %d", p.LSN, p.Timeline) }

func newBackupPosition(p segment.Position) *backupPosition {
	if p == (segment.Position{}) {
		return nil
	}
	return &backupPosition{p.LSN.String(), uint32(p.Timeline)}
}

// restorable tells whether a restore of it can come to a consistent server.
func (b backupInfo) restorable() bool {
	return b.Error == nil && b.WALComplete != nil && *b.WALComplete
}

// openArchive opens the archive of a command that needs one.
func (c *call) openArchive(ctx context.Context) (*archive.Archive, storeSettings, error) {
	where, given, err := c.storeToShow()
	if err != nil {
		return nil, where, err
	}
	if !given {
		return nil, where, usageError("no store given: want --store s3://BUCKET/PREFIX or file:///DIR (or WALFERRY_STORE, or store in the file of --config)")
	}
	store, err := where.open(ctx)
	if err != nil {
		return nil, where, err
	}
	return archive.New(store, archive.Options{Log: c.log}), where, nil
}

// listBackups is "walferry backup list".
func listBackups(ctx context.Context, c *call) error {
	ar, _, err := c.openArchive(ctx)
	if err != nil {
		return err
	}
	list, err := askBackups(ctx, ar)
	if err != nil {
		return archiveError(err)
	}
	if c.flags.Bool("json") {
		return c.sayJSON(list)
	}
	return c.printBackups(list)
}

// archiveError gives an error of looking into the archive its hint.
func archiveError(err error) error {
	switch {
	case errors.Is(err, archive.ErrUnrecognised), errors.Is(err, objstore.ErrNoStore):
		return withExit(exitFailed, err, "see whether --store names the archive, with its whole prefix")
	case errors.Is(err, objstore.ErrDenied):
		return withExit(exitFailed, err, "the keys need s3:GetObject and s3:ListBucket on the archive")
	}
	return withExit(exitFailed, err, "")
}

// sayJSON prints a document.
func (c *call) sayJSON(v any) error {
	enc := json.NewEncoder(c.stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("printing the outcome: %w", err)
	}
	return nil
}

// askBackups finds every backup and how far each of them can be restored.
func askBackups(ctx context.Context, ar *archive.Archive) (backupList, error) {
	list := backupList{Archive: ar.String(), Backups: []backupInfo{}}
	id, _, err := ar.Recognise(ctx)
	if err != nil {
		return list, err
	}
	all, err := ar.Backups(ctx)
	if err != nil {
		return list, err
	}
	reaches := &reaches{ar: ar, size: id.SegmentSize}
	if reaches.gaps, err = ar.Gaps(ctx); err != nil {
		return list, err
	}
	for _, b := range all {
		info, err := describeBackup(ctx, b, reaches)
		if err != nil {
			return list, err
		}
		list.Backups = append(list.Backups, info)
		if info.restorable() {
			list.Latest = &info.Name
		}
	}
	return list, nil
}

// reaches finds out how far WAL goes from the starts of many backups: the run
// from an older start that passes a younger one has the younger one's end.
type reaches struct {
	ar        *archive.Archive
	size      segment.Size // zero: nothing in the archive says it
	gaps      segment.Gaps // recorded ones
	histories map[segment.Timeline]segment.History

	known         bool // of the run that was looked at last:
	history       segment.History
	begin         segment.LSN
	sealed, reach segment.Position
}

// from returns how far WAL goes from an LSN of b on: in whole segments, and at
// all. known is false when nothing says how large a segment is.
func (r *reaches) from(ctx context.Context, b archive.Backup, begin segment.LSN) (sealed, reach segment.Position, known bool, err error) {
	size := r.size
	if b.Facts != nil && b.Facts.SegmentSize != 0 {
		size = segment.Size(b.Facts.SegmentSize)
	}
	if size.Check() != nil {
		return sealed, reach, false, nil
	}
	h, err := r.historyFor(ctx, b.Stop)
	if err != nil {
		return sealed, reach, false, err
	}
	if r.known && r.history.Timeline == h.Timeline && r.begin <= begin && begin < r.sealed.LSN {
		return r.sealed, r.reach, true, nil
	}
	if r.sealed, r.reach, err = r.ar.ReachFrom(ctx, h, size, begin); err != nil {
		return sealed, reach, false, err
	}
	r.known, r.history, r.begin = true, h, begin
	return r.sealed, r.reach, true, nil
}

// historyFor returns the history along which a restore of a backup that ends at
// stop goes: the newest timeline's where it contains stop, else the backup's own.
func (r *reaches) historyFor(ctx context.Context, stop segment.Position) (segment.History, error) {
	newest, err := r.ar.NewestTimeline(ctx)
	if err != nil {
		return segment.History{}, err
	}
	for _, t := range []segment.Timeline{newest, stop.Timeline} {
		if t < stop.Timeline {
			continue
		}
		h, ok := r.histories[t]
		if !ok {
			h, err = r.ar.HistoryOf(ctx, t)
			if err != nil && !errors.Is(err, archive.ErrNotFound) && !errors.Is(err, archive.ErrHistory) && !errors.Is(err, codec.ErrDamaged) {
				return segment.History{}, err
			}
			if r.histories == nil {
				r.histories = map[segment.Timeline]segment.History{}
			}
			r.histories[t] = h
		}
		if h.Contains(stop) {
			return h, nil
		}
	}
	return segment.History{Timeline: stop.Timeline}, nil
}

// describeBackup says what is known of a backup.
func describeBackup(ctx context.Context, b archive.Backup, r *reaches) (backupInfo, error) {
	info := backupInfo{Name: b.Name.String(), By: "wal-g", Tablespaces: map[string]string{}, Suspect: []string{}}
	if b.Err != nil {
		info.Error = new(oneLine(b.Err.Error()))
		return info, nil
	}
	s := b.Sentinel
	info.Start, info.Stop, info.stop = newBackupPosition(b.Start), newBackupPosition(b.Stop), b.Stop
	if !s.StartTime.IsZero() {
		info.Started = new(s.StartTime.UTC().Format(time.RFC3339))
	}
	if !s.FinishTime.IsZero() {
		info.finish = s.FinishTime
		info.Finished = new(s.FinishTime.UTC().Format(time.RFC3339))
		if !s.StartTime.IsZero() {
			info.DurationSeconds = new(s.FinishTime.Sub(s.StartTime).Seconds())
		}
	}
	if s.UncompressedSize > 0 {
		info.Bytes = new(s.UncompressedSize)
	}
	if s.CompressedSize > 0 {
		info.StoredBytes = new(s.CompressedSize)
	}
	if s.PgVersion > 0 {
		info.Server = new(versionText(s.PgVersion))
	}
	if s.SystemIdentifier != 0 {
		info.System = new(strconv.FormatUint(s.SystemIdentifier, 10))
	}
	info.Permanent = s.IsPermanent
	if s.DeltaFrom != "" {
		info.DependsOn = &s.DeltaFrom
	}
	if s.Spec != nil {
		for oid, at := range s.Spec.Locations {
			info.Tablespaces[strconv.FormatUint(uint64(oid), 10)] = at
		}
	}
	if b.FactsErr != nil {
		info.By, info.FactsError = "walferry", new(oneLine(b.FactsErr.Error()))
	}
	if f := b.Facts; f != nil {
		info.By, info.Server, info.Label, info.Compression = "walferry", &f.Server, &f.Label, &f.Compression
		info.FromStandby = &f.Standby
		info.WALIncluded = f.WAL == archive.WALIncluded
		info.Suspect = append(info.Suspect, f.SuspectPages...)
	}
	return info, r.window(ctx, b, &info)
}

// window says which WAL there is behind a backup.
func (r *reaches) window(ctx context.Context, b archive.Backup, info *backupInfo) error {
	sealed, reach, known, err := r.from(ctx, b, b.Start.LSN)
	if err != nil {
		return err
	}
	if known && info.WALIncluded && reach.LSN < b.Stop.LSN {
		// What it has itself the archive need not have, but what follows.
		if sealed, reach, _, err = r.from(ctx, b, b.Stop.LSN); err != nil {
			return err
		}
	}
	enough := known && reach.LSN >= b.Stop.LSN
	switch {
	case enough:
		info.WALComplete, info.WALSealed = new(true), new(sealed.LSN >= b.Stop.LSN)
		info.RestorableTo, info.reach = newBackupPosition(reach), reach
		info.Gap = r.gapAt(reach)
	case info.WALIncluded:
		info.WALComplete, info.WALSealed = new(true), new(true) // its own, as files
		info.RestorableTo, info.reach = info.Stop, b.Stop
	case known:
		info.WALComplete, info.WALSealed = new(false), new(false)
		info.WALMissing = new(r.missing(reach))
	}
	return nil
}

// gapAt returns the recorded gap at which WAL ends, in the segment in which it
// does, along the history that was looked at last.
func (r *reaches) gapAt(reach segment.Position) *backupGap {
	if r.size.Check() != nil {
		return nil
	}
	for _, g := range r.gaps.Along(r.history) {
		if g.Start <= r.size.Start(reach.LSN)+segment.LSN(r.size)-1 && reach.LSN < g.End {
			return &backupGap{uint32(g.Timeline), g.Start.String(), g.End.String()}
		}
	}
	return nil
}

// missing names the first segment that is not there whole.
func (r *reaches) missing(reach segment.Position) string {
	return r.size.Name(r.history.Owner(reach.LSN), reach.LSN).String()
}

// versionText spells a server_version_num: 150018 is 15.18.
func versionText(num int) string { return fmt.Sprintf("%d.%d", num/10000, num%10000) }

// find returns the entry of a backup by its name, or LATEST.
func (list backupList) find(name string) (backupInfo, error) {
	if name == "LATEST" {
		if list.Latest == nil {
			return backupInfo{}, withExit(exitFailed, fmt.Errorf("there is no base backup in %s that can be restored", list.Archive), "take one: walferry backup create")
		}
		name = *list.Latest
	}
	i := slices.IndexFunc(list.Backups, func(b backupInfo) bool { return b.Name == name })
	if i < 0 {
		return backupInfo{}, withExit(exitFailed, fmt.Errorf("there is no base backup %s in %s", name, list.Archive), "walferry backup list shows those that there are")
	}
	return list.Backups[i], nil
}

// checkBackupName wants the name of a backup, or LATEST.
func checkBackupName(name string) error {
	if name == "LATEST" {
		return nil
	}
	if _, err := archive.ParseBackupName(name); err != nil {
		return usageError("%q is no name of a base backup: want one that walferry backup list shows, or LATEST", name)
	}
	return nil
}

// showBackup is "walferry backup show NAME".
func showBackup(ctx context.Context, c *call) error {
	if err := checkBackupName(c.words[0]); err != nil {
		return err
	}
	ar, _, err := c.openArchive(ctx)
	if err != nil {
		return err
	}
	list, err := askBackups(ctx, ar)
	if err != nil {
		return archiveError(err)
	}
	b, err := list.find(c.words[0])
	if err != nil {
		return err
	}
	if c.flags.Bool("json") {
		return c.sayJSON(b)
	}
	return c.say("%s", backupText(b, list))
}
