package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore"
)

// What a caller decides by.
var (
	// ErrDamaged: the backup is not what it says of itself: a part or a file is
	// missing, altered, there twice, or would leave the directory.
	ErrDamaged = errors.New("the base backup is damaged")
	// ErrNotEmpty: the data directory, or a tablespace's place, holds something.
	ErrNotEmpty = errors.New("not empty")
)

// Source is where a backup is read from; *archive.Archive is one. It is used
// concurrently.
type Source interface {
	BackupObjects(ctx context.Context, n archive.BackupName) ([]objstore.Info, error)
	ReadBackupRange(ctx context.Context, n archive.BackupName, name string, offset, length int64) (io.ReadCloser, error)
}

// Options of Unpack. Dir is required.
type Options struct {
	// Dir is the data directory, absolute. It is made, with mode 0700, or
	// empty.
	Dir string
	// Mapping says new places for tablespaces, by their old ones; all absolute.
	Mapping map[string]string
	// Owner gets all that is made; nil: it is this process's user's.
	Owner *Owner
	// Parallel is how many parts are decoded, and how many files are written,
	// at a time; 0: 4. Each takes some 12 MiB of memory.
	Parallel int
	// Patience is how long the store may fail for one piece before the restore
	// fails; 0: 5 minutes.
	Patience time.Duration
	// Finish is called when everything is in its place and durable but
	// pg_control, so that no server starts in Dir yet: for what must be there
	// before one does (recovery settings). What it writes it makes durable. Its
	// error ends Unpack. nil: nothing.
	Finish func(ctx context.Context) error
	Log    *slog.Logger // nil: nothing is logged
	// Progress is told how far it is, often, never by two goroutines at a
	// time, and must not wait for anything; nil: nobody.
	Progress func(Progress)
}

// Progress is how far Unpack is.
type Progress struct {
	// Phase is "unpacking", counted in stored bytes, then "syncing", counted in
	// files and directories.
	Phase       string
	Done, Total int64
}

const (
	defaultParallel = 4
	defaultPatience = 5 * time.Minute
)

// Unpack brings the backup b into o.Dir, and its tablespaces to their places.
//
// On nil all of it was checked (against the server's manifest where the backup
// has one) and is durable. global/pg_control got its name last of all, so that
// no server starts in what a crash leaves. On an error everything that was
// made is removed again, as far as the disk allows it; what was there before is
// left as it was.
//
// Errors: ErrDamaged, ErrNotEmpty, those of the store and of the disk.
func Unpack(ctx context.Context, src Source, b archive.Backup, o Options) error {
	return unpack(ctx, src, b, o, seams{rangeSize: rangeSize})
}

// seams are what tests replace.
type seams struct {
	step      func(op, name string) error // see tree.step
	rangeSize int64
}

func unpack(ctx context.Context, src Source, b archive.Backup, o Options, with seams) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	if err := check(b, o); err != nil {
		return fmt.Errorf("unpacking base backup %s: %w", b.Name, err)
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	u := &unpacker{o: o, backup: b, log: o.Log, fail: fail}
	u.downloads = newDownloads(src, b.Name, 2*o.Parallel, with.rangeSize, o.Patience, o.Log, u.count)
	u.tree = &tree{owner: o.Owner, step: with.step, tablespaces: map[uint32]*place{}, dirs: map[string]*spot{}}
	defer u.tree.close()
	err := u.run(ctx, src)
	if err != nil {
		err = fmt.Errorf("unpacking base backup %s: %w", b.Name, err)
		if err := u.tree.discard(); err != nil {
			o.Log.Warn("what was unpacked could not all be removed", "dir", o.Dir, "error", err.Error())
		}
	}
	return err
}

// check refuses what can be told beforehand.
func check(b archive.Backup, o Options) error {
	switch {
	case !filepath.IsAbs(o.Dir):
		return fmt.Errorf("the data directory %q is not an absolute path", o.Dir)
	case b.Err != nil:
		return b.Err
	case b.FactsErr != nil:
		return b.FactsErr
	case b.Name.IsDelta(), b.Sentinel.DeltaFrom != "":
		return fmt.Errorf("it is a delta backup of WAL-G's, to %s: restore it with wal-g, or choose a full one", b.Sentinel.DeltaFrom)
	}
	return nil
}

// unpacker is one restore.
type unpacker struct {
	o         Options
	backup    archive.Backup
	log       *slog.Logger
	fail      context.CancelCauseFunc
	downloads *downloads
	tree      *tree
	writers   *writers
	inventory inventory

	progress sync.Mutex
	phase    string
	total    int64
	done     atomic.Int64
}

func (u *unpacker) run(ctx context.Context, src Source) error {
	dir := filepath.Clean(u.o.Dir)
	tablespaces, err := Tablespaces(u.backup, dir, u.o.Mapping)
	if err != nil {
		return err
	}
	var objects []objstore.Info
	err = u.downloads.again(ctx, func() (err error) {
		objects, err = src.BackupObjects(ctx, u.backup.Name)
		return err
	})
	if err != nil {
		return err
	}
	found, err := find(u.backup, objects)
	if err != nil {
		return err
	}
	u.begin("unpacking", found.bytes())
	if err := u.readInventory(ctx, found); err != nil {
		return err
	}
	if err := u.prepare(dir, tablespaces); err != nil {
		return err
	}
	if err := u.extractAll(ctx, found); err != nil {
		return err
	}
	if err := u.tree.rewriteMap(tablespaces); err != nil {
		return err
	}
	for _, name := range []string{walDir, statusDir} {
		if err := u.tree.mkdir(name, 0); err != nil {
			return err
		}
	}
	if err := u.syncAll(ctx); err != nil {
		return err
	}
	if u.o.Finish != nil {
		if err := u.o.Finish(ctx); err != nil {
			return err
		}
	}
	return u.tree.rename(hiddenControl, controlName)
}

// readInventory reads what the backup says of its files.
func (u *unpacker) readInventory(ctx context.Context, c contents) error {
	var p part
	var read func(io.Reader) error
	switch {
	case c.manifest != nil:
		p, read = *c.manifest, func(r io.Reader) error {
			l, err := readManifest(r, u.backup.Sentinel.SystemIdentifier)
			u.inventory = l
			return err
		}
	case c.metadata != nil:
		p, read = *c.metadata, func(r io.Reader) error {
			s, err := readMetadata(r)
			u.inventory = s
			return err
		}
	default:
		u.log.Warn("the backup does not say which files it holds: one that is missing cannot be told", "backup", u.backup.Name.String())
		u.inventory = newSeen()
		return nil
	}
	in := u.downloads.open(ctx, p.object, p.size)
	defer in.Close()
	err := read(in)
	if in.failed != nil {
		err = in.failed // whatever was made of it
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", p.object, err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("reading %s: %w", p.object, err)
	}
	return in.verify(p)
}

// prepare makes the data directory and the tablespaces' places, all of them
// empty, and the links. Nothing is made before all were looked at.
func (u *unpacker) prepare(dir string, tablespaces []Tablespace) error {
	places := []string{dir}
	for _, t := range tablespaces {
		if !t.inPlace() {
			places = append(places, t.To)
		}
	}
	for _, p := range places {
		if err := vacant(p); err != nil {
			return err
		}
	}
	p, err := u.tree.open(dir)
	if err != nil {
		return err
	}
	u.tree.data = p
	for _, t := range tablespaces {
		u.tree.tablespaces[t.OID] = nil
		if t.inPlace() {
			continue
		}
		p, err := u.tree.open(t.To)
		if err != nil {
			return fmt.Errorf("tablespace %d: %w", t.OID, err)
		}
		u.tree.tablespaces[t.OID] = p
		if err := u.tree.link(t.OID, t.To); err != nil {
			return err
		}
	}
	return nil
}

// vacant tells whether a directory is absent or empty.
func vacant(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is %w: it holds %s", dir, ErrNotEmpty, entries[0].Name())
	}
	return nil
}

// extractAll unpacks all parts, keeps the manifest, and makes sure that nothing
// is missing.
func (u *unpacker) extractAll(ctx context.Context, c contents) error {
	if err := u.stage(ctx, c.first, func(p part) error { return u.extract(ctx, p, false) }); err != nil {
		return err
	}
	// Their files win, so all before them are on the disk.
	for _, p := range c.last {
		if err := u.stage(ctx, []part{p}, func(p part) error { return u.extract(ctx, p, true) }); err != nil {
			return err
		}
	}
	if c.manifest != nil {
		if err := u.stage(ctx, []part{*c.manifest}, func(p part) error { return u.keep(ctx, p) }); err != nil {
			return err
		}
	}
	return u.inventory.missing()
}

// stage calls f for every part, some at a time, and returns when all that they
// handed to the writers is written.
func (u *unpacker) stage(ctx context.Context, parts []part, f func(part) error) error {
	u.writers = newWriters(u.tree, u.o.Parallel, u.fail, u.written)
	u.each(ctx, parts, f)
	u.writers.wait()
	return context.Cause(ctx)
}

// each calls f for every part, some at a time, until one fails.
func (u *unpacker) each(ctx context.Context, parts []part, f func(part) error) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(u.o.Parallel, len(parts)) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(parts) {
					return
				}
				if err := f(parts[i]); err != nil {
					u.fail(err)
				}
			}
		})
	}
	wg.Wait()
}

// written is told of a file that is on its way to the disk.
func (u *unpacker) written(f *file) error {
	name := f.name
	switch name {
	case manifestName:
		return nil // it is its own
	case hiddenControl:
		name = controlName
	}
	return u.inventory.arrived(name, f.got, f.crc)
}

// keep puts the server's manifest into the data directory, as pg_verifybackup
// wants it.
func (u *unpacker) keep(ctx context.Context, p part) error {
	in := u.downloads.open(ctx, p.object, p.size)
	defer in.Close()
	f := &file{name: manifestName, mode: fileMode, size: p.size}
	if err := u.writers.begin(f); err != nil {
		return err
	}
	if err := u.copy(in, f); err != nil {
		return fmt.Errorf("reading %s: %w", p.object, err)
	}
	return in.verify(p)
}

// syncAll makes everything durable: files first, then the names.
func (u *unpacker) syncAll(ctx context.Context) error {
	t := u.tree
	dirs := make([]spot, 0, len(t.dirs))
	for _, p := range t.places() {
		dirs = append(dirs, spot{p, "."})
	}
	for _, s := range t.dirs {
		if s.rel != "." {
			dirs = append(dirs, *s)
		}
	}
	u.begin("syncing", int64(len(t.files)+len(dirs)))
	for _, all := range [][]spot{t.files, dirs} {
		if err := u.syncSome(ctx, all); err != nil {
			return err
		}
	}
	for _, dir := range t.outer {
		if err := t.syncOuter(dir); err != nil {
			return err
		}
	}
	u.progress.Lock()
	defer u.progress.Unlock()
	u.tell()
	return nil
}

func (u *unpacker) syncSome(ctx context.Context, all []spot) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(2*u.o.Parallel, len(all)) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(all) {
					return
				}
				if err := u.tree.sync(all[i]); err != nil {
					u.fail(err)
				}
				u.count(1)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// begin starts a phase of the work.
func (u *unpacker) begin(phase string, total int64) {
	u.progress.Lock()
	defer u.progress.Unlock()
	if u.phase != "" {
		u.tell() // the end of the one before
	}
	u.phase, u.total = phase, total
	u.done.Store(0)
	u.tell()
}

// count says that n more of the phase is done. Who finds another telling it
// goes on: the next one tells more.
func (u *unpacker) count(n int) {
	u.done.Add(int64(n))
	if u.progress.TryLock() {
		defer u.progress.Unlock()
		u.tell()
	}
}

// tell needs the lock.
func (u *unpacker) tell() {
	if u.o.Progress != nil {
		u.o.Progress(Progress{Phase: u.phase, Done: u.done.Load(), Total: u.total})
	}
}
