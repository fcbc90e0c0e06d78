package archive

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// Names in a backup's folder.
const (
	partsDir     = "tar_partitions/"
	manifestName = "backup_manifest"
	factsName    = "walferry.json"
	metadataName = "metadata.json"
	attemptName  = "attempt.json"
)

const (
	// maxSentinel bounds a sentinel, in bytes: those of old WAL-G versions
	// list every file.
	maxSentinel = 256 << 20
	maxFacts    = 64 << 20 // bytes of walferry.json: some hundred a part
	// readers is how many backups are looked at at one time.
	readers = 8
)

// Backup is a base backup that exists: its sentinel does.
type Backup struct {
	Name     BackupName
	StoredAt time.Time // of the sentinel, by the store's clock; zero: not known

	// Err is why the sentinel cannot be understood (ErrSentinel); all below is
	// zero then. Such a backup is no backup that could be restored, and is not
	// hidden either.
	Err error

	Sentinel Sentinel
	// Facts is what walferry.json says; nil where there is none: it is
	// WAL-G's. FactsErr is why one that is there cannot be understood
	// (ErrFacts): then it is ours, and must not be taken for WAL-G's.
	Facts    *BackupFacts
	FactsErr error

	Start segment.Position // where replay begins
	// Stop is where it is consistent. WAL-G does not tell its timeline: it is
	// the start's, since PostgreSQL ends a backup during which the server was
	// promoted with an error (do_pg_backup_stop in
	// src/backend/access/transam/xlog.c).
	Stop segment.Position
}

// Suspect reports whether the server found pages whose checksums are wrong.
func (b Backup) Suspect() bool { return b.Facts != nil && len(b.Facts.SuspectPages) > 0 }

// compareBackups orders them by what they hold, never by their age in the
// store. Those that cannot be understood come first: nobody takes them for the
// newest.
func compareBackups(x, y Backup) int {
	understood := func(b Backup) int {
		if b.Err != nil {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(understood(x), understood(y)),
		cmp.Compare(x.Stop.Timeline, y.Stop.Timeline),
		cmp.Compare(x.Stop.LSN, y.Stop.LSN),
		strings.Compare(x.Name.text, y.Name.text),
	)
}

// Backups returns the base backups, oldest first: by the timeline of their
// stop, their stop LSN, their name. Those whose sentinel cannot be understood
// come in front of them, with Err. One that is deleted meanwhile may be left out.
// One LIST for each thousand objects and folders, two GETs for each backup, a few
// at a time.
func (a *Archive) Backups(ctx context.Context) ([]Backup, error) {
	listed, err := a.sentinels(ctx)
	if err != nil {
		return nil, err
	}
	all, err := a.readBackups(ctx, listed)
	if err != nil {
		return nil, fmt.Errorf("reading the base backups: %w", err)
	}
	slices.SortFunc(all, compareBackups)
	return all, nil
}

// sentinels lists the backups: their names and times, and nothing else.
func (a *Archive) sentinels(ctx context.Context) ([]Backup, error) {
	var all []Backup
	for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: basesDir, Delimiter: "/"}) {
		if err != nil {
			return nil, fmt.Errorf("listing base backups: %w", err)
		}
		if n, ok := sentinelName(info.Key); ok {
			all = append(all, Backup{Name: n, StoredAt: info.Modified})
		}
	}
	return all, nil
}

// readBackups reads what is to be known of listed backups, and leaves out those
// that are gone.
func (a *Archive) readBackups(ctx context.Context, listed []Backup) ([]Backup, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	gone := make([]bool, len(listed))
	slots := make(chan struct{}, readers)
	for i := range listed {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			err := a.readBackup(ctx, &listed[i])
			switch {
			case errors.Is(err, ErrNotFound):
				gone[i] = true
			case err != nil:
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	var all []Backup
	for i, b := range listed {
		if !gone[i] {
			all = append(all, b)
		}
	}
	return all, nil
}

// Backup returns the backup of that name. ErrNotFound when the store answered
// that its sentinel does not exist; ErrSentinel when that cannot be understood.
// StoredAt is not known.
func (a *Archive) Backup(ctx context.Context, n BackupName) (Backup, error) {
	b := Backup{Name: n}
	err := a.readBackup(ctx, &b)
	if err == nil {
		err = b.Err
	}
	if err != nil {
		return Backup{}, fmt.Errorf("base backup %s: %w", n, err)
	}
	return b, nil
}

// readBackup fills b in. ErrNotFound when it does not exist; what else it
// returns is the store's failure.
func (a *Archive) readBackup(ctx context.Context, b *Backup) error {
	s, err := a.readSentinel(ctx, b.Name)
	if err == nil && !canStart(b.Name.segment, s.LSN) {
		err = fmt.Errorf("%s: %w: its LSN %s is not in the segment that names it", b.Name.sentinelKey(), ErrSentinel, s.LSN)
	}
	if errors.Is(err, ErrSentinel) {
		b.Err = err
		return nil
	}
	if err != nil {
		return err
	}
	content, err := a.readWhole(ctx, b.Name.folder()+factsName, maxFacts)
	var facts *BackupFacts
	switch {
	case err == nil:
		f, err := decodeFacts(content)
		if err == nil {
			err = f.agree(b.Name, s)
		}
		if err != nil {
			b.FactsErr = fmt.Errorf("%s%s: %w", b.Name.folder(), factsName, err)
		} else {
			facts = &f
		}
	case !errors.Is(err, ErrNotFound):
		return err
	}
	b.fill(s, facts)
	return nil
}

// canStart tells whether an LSN is in a segment of that name, with some segment
// size: nothing but walferry.json says which it is.
func canStart(n segment.Name, at segment.LSN) bool {
	if at == 0 {
		return false
	}
	for size := segment.MinSize; size <= segment.MaxSize; size *= 2 {
		if size.Name(n.Timeline, at) == n {
			return true
		}
	}
	return false
}

// fill takes what is known of a backup.
func (b *Backup) fill(s Sentinel, f *BackupFacts) {
	b.Sentinel, b.Facts = s, f
	b.Start = segment.Position{Timeline: b.Name.segment.Timeline, LSN: s.LSN}
	b.Stop = segment.Position{Timeline: b.Start.Timeline, LSN: s.FinishLSN}
	if f != nil {
		b.Stop.Timeline = segment.Timeline(f.StopTimeline)
	}
}

// agree holds facts that were checked against the sentinel: both were written by
// one process.
func (f BackupFacts) agree(n BackupName, s Sentinel) error {
	start, err1 := f.start()
	stop, err2 := f.stop()
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("%w: %w", ErrFacts, err)
	}
	size := segment.Size(f.SegmentSize)
	switch {
	case size.Name(start.Timeline, start.LSN) != n.segment:
		return fmt.Errorf("%w: %s is not in segment %s", ErrFacts, start, n.segment)
	case start.LSN != s.LSN, stop.LSN != s.FinishLSN:
		return fmt.Errorf("%w: it says %s to %s, the sentinel %s to %s", ErrFacts, start.LSN, stop.LSN, s.LSN, s.FinishLSN)
	}
	return nil
}

// readSentinel reads a backup's sentinel. ErrNotFound: there is none.
// ErrSentinel: it cannot be understood.
func (a *Archive) readSentinel(ctx context.Context, n BackupName) (Sentinel, error) {
	content, err := a.readWhole(ctx, n.sentinelKey(), maxSentinel)
	if err != nil {
		return Sentinel{}, err
	}
	var s Sentinel
	if err := json.Unmarshal(content, &s); err != nil {
		return Sentinel{}, fmt.Errorf("%s: %w: %w", n.sentinelKey(), ErrSentinel, err)
	}
	return s, nil
}

// readWhole reads an object that is small. ErrNotFound: there is none. A body
// that breaks off is asked for again: the store's own attempts end with its
// first byte.
func (a *Archive) readWhole(ctx context.Context, key string, limit int64) ([]byte, error) {
	for try := 1; ; try++ {
		body, _, err := a.store.Get(ctx, key)
		if errors.Is(err, objstore.ErrNotFound) {
			return nil, fmt.Errorf("%s: %w", key, ErrNotFound)
		}
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", key, err)
		}
		content, err := io.ReadAll(io.LimitReader(body, limit))
		discard(body)
		if err == nil {
			return content, nil
		}
		if try == objectTries || ctx.Err() != nil {
			return nil, fmt.Errorf("reading %s: %w", key, err)
		}
		a.log.Debug("an object is read again", "key", key, "error", err.Error())
	}
}

// BackupObjects lists what is in the backup's folder, in bytewise order. Keys
// are relative to the folder, as OpenBackupObject takes them. The sentinel stands
// beside the folder, not in it. Nothing there is no error. One LIST for each
// thousand.
func (a *Archive) BackupObjects(ctx context.Context, n BackupName) ([]objstore.Info, error) {
	var all []objstore.Info
	for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: n.folder()}) {
		if err != nil {
			return nil, fmt.Errorf("listing the objects of %s: %w", n, err)
		}
		info.Key = strings.TrimPrefix(info.Key, n.folder())
		all = append(all, info)
	}
	return all, nil
}

// OpenBackupObject opens an object of a backup by its name in the folder:
// "backup_manifest", "tar_partitions/part_001.tar.lz4". Read gives the stored
// bytes; one that ends early is an error. The caller closes it. ErrNotFound when
// the store answered that there is none.
func (a *Archive) OpenBackupObject(ctx context.Context, n BackupName, name string) (io.ReadCloser, objstore.Info, error) {
	body, info, err := a.store.Get(ctx, n.folder()+name)
	if err != nil {
		return nil, objstore.Info{}, fmt.Errorf("opening %s%s: %w", n.folder(), name, notFound(err))
	}
	info.Key = name
	return body, info, nil
}

// ReadBackupRange opens length bytes of an object from offset on; a range that
// reaches behind its end is an error. It is OpenBackupObject otherwise.
func (a *Archive) ReadBackupRange(ctx context.Context, n BackupName, name string, offset, length int64) (io.ReadCloser, error) {
	body, _, err := a.store.GetRange(ctx, n.folder()+name, offset, length)
	if err != nil {
		return nil, fmt.Errorf("opening %s%s: %w", n.folder(), name, notFound(err))
	}
	return body, nil
}

// notFound adds this package's ErrNotFound to the store's.
func notFound(err error) error {
	if errors.Is(err, objstore.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
