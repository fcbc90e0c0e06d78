package archive

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// NamesTakenError: every name that a backup with this start LSN can have is
// that of objects in the archive already. One of them must be deleted (a backup,
// or what an attempt left), or the server must come to another start LSN.
type NamesTakenError struct {
	Start segment.Position
	Names []BackupName
}

func (e *NamesTakenError) Error() string {
	names := make([]string, len(e.Names))
	for i, n := range e.Names {
		names[i] = n.String()
	}
	return fmt.Sprintf("all %d names of a base backup that starts at %s are taken: %s", len(e.Names), e.Start, strings.Join(names, ", "))
}

// BackupWriter stores the objects of one backup that is under way. It is safe
// for concurrent use for different objects. Objects of a backup that was given
// up are removed by DeleteBackup of its name.
type BackupWriter struct {
	archive *Archive
	name    BackupName
	start   segment.Position
	size    segment.Size
}

// attemptFile is attempt.json: the name is taken. Nobody reads more in it than
// whether it is the own one.
type attemptFile struct {
	Version int      `json:"version"`
	Begun   wallTime `json:"begun"` // by this host's clock
	ID      string   `json:"id"`
}

// NewBackup takes a name for a backup that starts at start: the first of the
// second form under which the archive holds no object. *NamesTakenError when
// there is none.
//
// It takes the name by an object of its own, so that no two attempts ever write
// into one folder, and so that whoever removes old WAL sees from the beginning
// that a backup needs it.
func (a *Archive) NewBackup(ctx context.Context, start segment.Position, size segment.Size) (*BackupWriter, error) {
	if err := size.Check(); err != nil {
		return nil, err
	}
	if start.Timeline == 0 || start.LSN == 0 || start.LSN%attempts != 0 {
		return nil, fmt.Errorf("no base backup starts at %s", start)
	}
	content, err := json.Marshal(attemptFile{1, wallTime{time.Now()}, rand.Text()})
	if err != nil {
		return nil, fmt.Errorf("taking a name for a base backup: %w", err)
	}
	taken := &NamesTakenError{Start: start}
	for i := range attempts {
		n := nameBackup(start, size, i)
		ok, err := a.takeName(ctx, n, content)
		if err != nil {
			return nil, fmt.Errorf("taking the name %s for a base backup: %w", n, err)
		}
		if ok {
			return &BackupWriter{a, n, start, size}, nil
		}
		taken.Names = append(taken.Names, n)
	}
	return nil, taken
}

// takeName takes a name unless there is any object of it.
func (a *Archive) takeName(ctx context.Context, n BackupName, content []byte) (bool, error) {
	for _, err := range a.store.List(ctx, objstore.ListOptions{Prefix: basesDir + n.text, Limit: 1}) {
		return false, err
	}
	err := a.putSmall(ctx, n.folder()+attemptName, objstore.Bytes(content))
	if errors.Is(err, ErrConflict) {
		return false, nil
	}
	return err == nil, err
}

// Name returns the backup's name.
func (w *BackupWriter) Name() BackupName { return w.name }

// BeginPart begins the upload of a part by its name in tar_partitions/. The
// caller ends it as objstore.Upload says.
func (w *BackupWriter) BeginPart(ctx context.Context, name string) (objstore.Upload, error) {
	if err := checkPartName(name); err != nil {
		return nil, err
	}
	u, err := w.archive.store.BeginUpload(ctx, w.name.folder()+partsDir+name)
	return u, wrap("storing part "+name, err)
}

// Put stores a small object by its name in the folder: "backup_manifest",
// "tar_partitions/part_000.tar.lz4". On nil an object with this content is
// durable and readable; one that was there already, such as our own whose answer
// was lost, is success when its content is equal, else a *ConflictError.
func (w *BackupWriter) Put(ctx context.Context, name string, body objstore.Body) error {
	part, inParts := strings.CutPrefix(name, partsDir)
	switch {
	case inParts:
		if err := checkPartName(part); err != nil {
			return err
		}
	case name != manifestName:
		return fmt.Errorf("%.80q is no object of a base backup", name)
	}
	return w.archive.putSmall(ctx, w.name.folder()+name, body)
}

// putSmall is put of an object that is stored as it is.
func (a *Archive) putSmall(ctx context.Context, key string, body objstore.Body) error {
	for range 3 {
		err := a.store.PutIfAbsent(ctx, key, body)
		if err == nil {
			return nil
		}
		same := a.compareSmall(ctx, key, body)
		switch {
		case same == nil, errors.Is(same, ErrConflict):
			return same
		case !errors.Is(err, objstore.ErrExists):
			return fmt.Errorf("storing %s: %w", key, err)
		case !errors.Is(same, objstore.ErrNotFound):
			return fmt.Errorf("comparing with the stored %s: %w", key, same)
		}
	}
	return fmt.Errorf("storing %s: the store says that it exists, and that it does not", key)
}

// compareSmall returns nil when the object holds body's bytes, a
// *ConflictError when it does not.
func (a *Archive) compareSmall(ctx context.Context, key string, want objstore.Body) error {
	body, info, err := a.store.Get(ctx, key)
	if err != nil {
		return err
	}
	defer discard(body)
	if info.HasCRC && info.Size == want.Size() && info.CRC32C == want.CRC32C() {
		return nil
	}
	if info.Size != want.Size() {
		return &ConflictError{Key: key}
	}
	conflict, err := expectation{plain: want, equal: want.Size(), size: want.Size()}.check(body)
	switch {
	case err != nil:
		return err
	case conflict != nil:
		conflict.Key = key
		return conflict
	}
	return nil
}

// Commit stores walferry.json, metadata.json and last of all the sentinel: on
// nil the backup exists. Before that it makes sure that every object that f names
// is there with its size, and nothing else in tar_partitions/, where wal-g would
// untar it. It sets f.Version, and s.FilesMetadataDisabled, since it writes no
// files_metadata.json, and cuts times to microseconds. The returned backup's
// StoredAt is not known.
//
// ErrForeignCluster: the archive is another cluster's (it may have been claimed
// since the backup began). An answer that was lost is found out: equal content is
// success. On an error the backup does not exist, unless the store did not answer
// to the sentinel nor to the question for it; Commit may be called again with
// the same s and f.
func (w *BackupWriter) Commit(ctx context.Context, s Sentinel, f BackupFacts) (Backup, error) {
	f.Version, s.FilesMetadataDisabled = factsVersion, true
	s.StartTime, s.FinishTime = asStored(s.StartTime), asStored(s.FinishTime)
	err := w.commit(ctx, s, f)
	if err != nil {
		return Backup{}, fmt.Errorf("completing base backup %s: %w", w.name, err)
	}
	b := Backup{Name: w.name}
	b.fill(s, &f)
	return b, nil
}

func (w *BackupWriter) commit(ctx context.Context, s Sentinel, f BackupFacts) error {
	if err := f.check(); err != nil {
		return err
	}
	if err := errors.Join(f.agree(w.name, s), w.checkSentinel(s)); err != nil {
		return err
	}
	if err := w.complete(ctx, f); err != nil {
		return err
	}
	if err := w.archive.isOf(ctx, s.SystemIdentifier, w.size); err != nil {
		return err
	}
	facts, err1 := json.MarshalIndent(f, "", "  ")
	metadata, err2 := s.metadata()
	sentinel, err3 := json.Marshal(s)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	for _, o := range []struct {
		key     string
		content []byte
	}{
		{w.name.folder() + factsName, append(facts, '\n')},
		{w.name.folder() + metadataName, metadata},
		{w.name.sentinelKey(), sentinel},
	} {
		if err := w.archive.putSmall(ctx, o.key, objstore.Bytes(o.content)); err != nil {
			return err
		}
	}
	return nil
}

func (w *BackupWriter) checkSentinel(s Sentinel) error {
	switch {
	case s.LSN != w.start.LSN:
		return fmt.Errorf("it started at %s, not at %s", w.start.LSN, s.LSN)
	case s.FinishLSN < s.LSN:
		return fmt.Errorf("it stops at %s, before its start %s", s.FinishLSN, s.LSN)
	case s.SystemIdentifier == 0 || s.PgVersion == 0 || s.StartTime.IsZero() || s.FinishTime.IsZero():
		return errors.New("the sentinel does not say of which system it is, or when it was taken")
	}
	return nil
}

// complete makes sure that what is stored is what f names.
func (w *BackupWriter) complete(ctx context.Context, f BackupFacts) error {
	stored, err := w.archive.BackupObjects(ctx, w.name)
	if err != nil {
		return err
	}
	sizes := map[string]int64{manifestName: f.Manifest.Size}
	for _, p := range f.Parts {
		sizes[partsDir+p.Name] = p.Size
	}
	for _, o := range stored {
		want, named := sizes[o.Key]
		switch {
		case named && o.Size != want:
			return fmt.Errorf("%s has %d bytes, want %d", o.Key, o.Size, want)
		case !named && strings.HasPrefix(o.Key, partsDir):
			return fmt.Errorf("%s is none of its parts", o.Key)
		}
		delete(sizes, o.Key)
	}
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		return fmt.Errorf("%s is not there", name)
	}
	return nil
}

// isOf refuses a backup of another cluster than that whose receiver claimed the
// archive, perhaps since the backup began.
func (a *Archive) isOf(ctx context.Context, systemIdentifier uint64, size segment.Size) error {
	id, err := a.Identity(ctx)
	if errors.Is(err, ErrNotFound) {
		return nil // nobody did; a backup never does
	}
	if err != nil {
		return err
	}
	return id.matches(Identity{SystemIdentifier: systemIdentifier, SegmentSize: size})
}

// SweepBackupUploads gives up the uploads of parts of backups that are older
// than age: those that killed processes left. It says how many.
// objstore.ErrDenied where that is not allowed.
func (a *Archive) SweepBackupUploads(ctx context.Context, age time.Duration) (int, error) {
	n, err := a.store.AbortUploads(ctx, basesDir, time.Now().Add(-age))
	return n, wrap("giving up old uploads of base backups", err)
}

// DeleteBackup removes a backup, or what an attempt at one left: the sentinel
// first, then everything else. After a crash in between there is no backup, and
// a later call removes the rest. ErrNotFound when there is no object at all;
// objstore.ErrDenied where that is not allowed.
func (a *Archive) DeleteBackup(ctx context.Context, n BackupName) error {
	return wrap("deleting base backup "+n.text, a.deleteBackup(ctx, n))
}

func (a *Archive) deleteBackup(ctx context.Context, n BackupName) error {
	found := false
	for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: n.sentinelKey()}) {
		if err != nil {
			return err
		}
		found = found || info.Key == n.sentinelKey()
	}
	objects, err := a.BackupObjects(ctx, n)
	if err != nil {
		return err
	}
	if !found && len(objects) == 0 {
		return ErrNotFound
	}
	if err := a.store.Delete(ctx, n.sentinelKey()); err != nil {
		return err
	}
	// attempt.json goes last: as long as anything is left the name is taken.
	slices.SortStableFunc(objects, func(x, y objstore.Info) int {
		switch {
		case (x.Key == attemptName) == (y.Key == attemptName):
			return 0
		case x.Key == attemptName:
			return 1
		}
		return -1
	})
	for _, o := range objects {
		if err := a.store.Delete(ctx, n.folder()+o.Key); err != nil {
			return err
		}
	}
	return nil
}
