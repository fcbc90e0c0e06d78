package basebackup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/internal/patience"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// What a caller decides by.
var (
	// ErrNoWAL: the archive shows no WAL of this timeline at or after the start
	// of the backup: nobody ships it. A *NoWALError.
	ErrNoWAL = errors.New("no WAL of the backup arrives in the archive")
	// ErrForeignCluster: the archive is another cluster's.
	ErrForeignCluster = archive.ErrForeignCluster
)

// NoWALError says what was waited for. It matches ErrNoWAL.
type NoWALError struct {
	Start segment.Position // of the backup
	Reach segment.Position // how far the archive reaches from there
	Wait  time.Duration    // how long it was waited for
}

// Error says it in one line.
func (e *NoWALError) Error() string {
	return fmt.Sprintf("%v: the backup starts at %s, and within %s nothing came behind %s", ErrNoWAL, e.Start, e.Wait, e.Reach.LSN)
}

// Unwrap makes errors.Is match ErrNoWAL.
func (e *NoWALError) Unwrap() error { return ErrNoWAL }

// Options say how a backup is taken.
type Options struct {
	Label    string // one line, in backup_label and in walferry.json
	Fast     bool   // the checkpoint at once, not spread over time
	MaxRate  int    // kB a second, 32 to 1048576; 0: no limit
	Compress Compression

	// IncludeWAL puts the WAL from start to stop into the backup, over a
	// second connection, which Again opens. Without it the archive must have
	// that WAL, from receive: Take waits until it does.
	IncludeWAL bool
	Again      func(ctx context.Context) (*replication.Conn, error)
	// WALWait is how long the archive may show no WAL at or after the start
	// before the backup is given up; 0: 30 s.
	WALWait time.Duration

	MaxParts   int    // of one object: 10000 (0) or fewer
	MemoryPart int64  // parts of up to so many bytes are held in memory; 0: 32 MiB
	TempDir    string // where larger ones go, in files without a name

	Hostname string         // for the sentinel
	Log      *slog.Logger   // nil: nothing is logged
	Progress func(Progress) // called often, from Take's own goroutine; nil: nobody
}

// Progress is how far a backup is.
type Progress struct {
	Phase   Phase
	Done    int64  // bytes that the server has sent, before compression
	Total   int64  // of them that are expected, by the server's estimate; -1: not known
	Stored  int64  // bytes that are in the store
	Archive string // the server's name of the archive that comes
}

// Phase is what a backup waits for.
type Phase string

// The phases of a backup, in their order.
const (
	PhaseCheckpoint Phase = "checkpoint" // the server begins
	PhaseCopy       Phase = "copy"       // archives come
	PhaseWAL        Phase = "wal"        // WAL up to the stop LSN
	PhaseCommit     Phase = "commit"     // sentinel
	PhaseDone       Phase = "done"
)

const (
	partsDir     = "tar_partitions/"
	manifestName = "backup_manifest"

	defaultWALWait    = 30 * time.Second
	defaultMemoryPart = 32 << 20 // bytes
	// storePatience is how long a store may fail before a backup is given up.
	// Nothing is lost meanwhile but time: the server waits.
	storePatience = 10 * time.Minute
	// staleUpload is how old an upload is that no backup can be at any more.
	staleUpload = 7 * 24 * time.Hour
	// abortPatience bounds the cleaning up behind a backup that was given up.
	abortPatience = 30 * time.Second
)

func (o Options) withDefaults() (Options, error) {
	if o.WALWait == 0 {
		o.WALWait = defaultWALWait
	}
	if o.MaxParts == 0 {
		o.MaxParts = objstore.MaxParts
	}
	if o.MemoryPart == 0 {
		o.MemoryPart = defaultMemoryPart
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	switch {
	case o.WALWait < 0 || o.MemoryPart < 0:
		return o, errors.New("a base backup that waits for less than no time, or holds less than no memory")
	case o.MaxParts < 2 || o.MaxParts > objstore.MaxParts:
		return o, fmt.Errorf("objects of at most %d parts: want 2 to %d", o.MaxParts, objstore.MaxParts)
	case o.TempDir == "":
		return o, errors.New("a base backup needs a directory for temporary files")
	case o.IncludeWAL && o.Again == nil:
		return o, errors.New("WAL can be included only over a second connection")
	}
	return o, nil
}

// Take takes a base backup over conn, which is Take's from then on and closed
// on return, and returns when the backup exists: its sentinel and everything
// before it is stored, durable, and was checked.
//
// What the package documentation says holds whenever it fails: nothing that a
// list shows was left. Uploads that were under way are aborted; a log line
// names the backup when objects of it are left.
//
// ErrNoWAL, ErrMismatch, ErrForeignCluster, *archive.NamesTakenError,
// manifest.ErrInvalid, codec.ErrDamaged, the errors of package replication and
// those of the store can be matched. A backup that the server calls suspect
// (pages with wrong checksums) is taken all the same: its facts say so.
//
// What may pass in the store is tried again for ten minutes. On the server's
// side nothing is: a base backup cannot be resumed.
func Take(ctx context.Context, conn *replication.Conn, a Archive, o Options) (archive.Backup, error) {
	again := func(ctx context.Context) (walServer, error) {
		c, err := o.Again(ctx)
		if err != nil {
			return nil, err
		}
		return postgres{c}, nil
	}
	return take(ctx, postgres{conn}, again, a, o)
}

// take is Take with servers that tests can script.
func take(ctx context.Context, s server, again func(context.Context) (walServer, error), a Archive, o Options) (archive.Backup, error) {
	// Nothing hangs on how a connection ends that is no longer needed.
	defer func() { _ = s.Close(ctx) }()
	o, err := o.withDefaults()
	if err != nil {
		return archive.Backup{}, err
	}
	running, cancel := context.WithCancelCause(ctx)
	t := &taking{
		o: o, ctx: running, archive: a, server: s, again: again,
		crew:    crew{cancel: cancel},
		trouble: patience.New(o.Log, "store the base backup"),
		asked:   o.Compress,
		seen:    newSeen(o.TempDir),
		// Which of the two a part's memory comes from is decided by its size.
		inMemory: codec.NewBuffers(0, ""),
		onDisk:   codec.NewBuffers(0, o.TempDir),
		manifest: codec.NewBuffers(keptInMemory, o.TempDir).New(),
		progress: Progress{Phase: PhaseCheckpoint, Total: -1},
	}
	b, err := t.take()
	if err != nil {
		// What failed first says more than what failed because of it.
		if cause := context.Cause(running); cause != nil && ctx.Err() == nil {
			err = cause
		}
		t.crew.cancel(err) // which ends what the encoder's goroutines wait for
		if t.current != nil {
			t.current.abandon()
		}
		t.crew.stop(err)
		t.abandon(ctx)
		return archive.Backup{}, fmt.Errorf("taking a base backup: %w", err)
	}
	t.crew.stop(nil)
	t.release()
	return b, nil
}

// taking is one backup that is being taken. Its fields are set before the
// goroutines start that read them, or belong to the goroutine of Take.
type taking struct {
	o       Options
	ctx     context.Context // ends when anything fails; its cause is the failure
	crew    crew
	archive Archive
	server  server
	again   func(context.Context) (walServer, error)
	trouble *patience.Trouble
	writer  *archive.BackupWriter

	system   replication.System
	size     segment.Size // of the WAL segments
	dataDir  string       // "" when the role may not know it
	archiver string       // the setting by which the server archives its WAL; "": it does not
	asked    Compression
	encoders *codec.Encoders
	stream   stream
	begun    time.Time
	wal      *walPart // nil: the archive has it

	inMemory, onDisk *codec.Buffers
	seen             *seen
	manifest         *codec.Frame
	buffer           []byte // of the one archive that is received
	pieces           *pieces
	archives         int // that have begun
	parts            []archive.BackupPart
	suspect          []string
	progress         Progress
	objects          []*object
	current          *inflow      // nil: none is received
	stored           atomic.Int64 // bytes
}

// checkBuffer and encodeBuffer return the memory in which an archive is
// checked. There is never more than one.
func (t *taking) checkBuffer() []byte  { return t.workBuffer(checkBuffer) }
func (t *taking) encodeBuffer() []byte { return t.workBuffer(pieceSize) }

func (t *taking) workBuffer(size int) []byte {
	if len(t.buffer) < size {
		t.buffer = make([]byte, size)
	}
	return t.buffer[:size]
}

// take does everything in its order.
func (t *taking) take() (archive.Backup, error) {
	if err := t.identify(); err != nil {
		return archive.Backup{}, err
	}
	t.sweep()
	if err := t.start(); err != nil {
		return archive.Backup{}, err
	}
	if err := t.receive(); err != nil {
		return archive.Backup{}, err
	}
	finished := time.Now()
	stored, err := t.storeManifest()
	if err != nil {
		return archive.Backup{}, err
	}
	t.report(PhaseWAL)
	if err := t.finishWAL(); err != nil {
		return archive.Backup{}, err
	}
	t.report(PhaseCommit)
	s, f := t.sentinel(finished), t.facts(stored)
	var b archive.Backup
	err = t.persist(0, func() (err error) {
		b, err = t.writer.Commit(t.ctx, s, f)
		return err
	})
	if err != nil {
		return archive.Backup{}, err
	}
	t.report(PhaseDone)
	return b, nil
}

// identify asks the server who it is, and compares.
func (t *taking) identify() error {
	var err error
	if t.system, err = t.server.IdentifySystem(t.ctx); err != nil {
		return err
	}
	show, err := t.server.Show(t.ctx, "wal_segment_size")
	if err != nil {
		return err
	}
	if t.size, err = segment.ParseSize(show); err != nil {
		return fmt.Errorf("%w: %w", replication.ErrProtocol, err)
	}
	// Only members of pg_read_all_settings may know it. It is for people, and
	// in WAL-G's description of the tablespaces.
	var denied *replication.ServerError
	if t.dataDir, err = t.server.Show(t.ctx, "data_directory"); err != nil && !errors.As(err, &denied) {
		return err
	}
	if t.archiver, err = t.findArchiver(); err != nil {
		return err
	}
	id, _, err := t.archive.Recognise(t.ctx)
	switch {
	case errors.Is(err, archive.ErrUnrecognised):
		return nil // a new one
	case err != nil:
		return err
	case id.SystemIdentifier != 0 && id.SystemIdentifier != t.system.SystemIdentifier:
		return fmt.Errorf("%w: the archive is that of system identifier %d, the server's is %d", ErrForeignCluster, id.SystemIdentifier, t.system.SystemIdentifier)
	case id.SegmentSize != 0 && id.SegmentSize != t.size:
		return fmt.Errorf("%w: the archive's WAL segments have %s, the server's %s", ErrForeignCluster, id.SegmentSize, t.size)
	}
	return nil
}

// findArchiver tells by which setting the server archives its WAL: whoever
// restores the backup wants to know that the copy would do so, too. What the
// setting says stays on the server, since a command may hold secrets.
func (t *taking) findArchiver() (string, error) {
	show := func(name string) (string, error) {
		v, err := t.server.Show(t.ctx, name)
		if errors.As(err, new(*replication.ServerError)) {
			return "", nil // there is none in this version, or the role may not know it
		}
		return v, err
	}
	mode, err := show("archive_mode")
	if err != nil || mode == "off" || mode == "" {
		return "", err
	}
	for _, name := range []string{"archive_library", "archive_command"} {
		v, err := show(name)
		if err != nil {
			return "", err
		}
		if v != "" && v != "(disabled)" {
			return name, nil
		}
	}
	return "", nil
}

// sweep gives up the uploads that killed backups have left. A store that does
// not let us keeps them, and whoever pays for it must know.
func (t *taking) sweep() {
	n, err := t.archive.SweepBackupUploads(t.ctx, staleUpload)
	if n > 0 {
		t.o.Log.Info("uploads that earlier base backups had left were given up", "uploads", n)
	}
	if err != nil {
		t.o.Log.Info("whether earlier base backups have left uploads is not known: a lifecycle rule that aborts incomplete multipart uploads removes them", "reason", err.Error())
	}
}

// start has the server begin, and takes a name.
func (t *taking) start() error {
	t.report(PhaseCheckpoint)
	if t.o.IncludeWAL {
		// Before the backup begins, so that the slot holds WAL from its start on.
		w, err := t.openWAL()
		if err != nil {
			return fmt.Errorf("a second connection for the WAL: %w", err)
		}
		t.wal = w
	}
	var err error
	if t.stream, err = t.baseBackup(); err != nil {
		return err
	}
	t.begun = time.Now()
	// Without a checksum of the content, as the server's own frames: every file
	// is checked against the manifest, and every part's checksum is recorded.
	t.encoders = codec.NewParallelEncoders(t.asked.how(), min(encodeAtOnce, runtime.GOMAXPROCS(0)))
	t.pieces = newPieces(pieceSize)
	if t.receiverEncodes() {
		t.pieces = newPieces(shortPiece)
	}
	start := t.stream.Start()
	err = t.persist(0, func() (err error) {
		t.writer, err = t.archive.NewBackup(t.ctx, start, t.size)
		return err
	})
	if err != nil {
		return err
	}
	t.o.Log.Info("base backup begins", "backup", t.writer.Name().String(), "start", start.String(), "compression", t.asked.String())
	if t.wal != nil {
		return t.wal.begin(start)
	}
	t.crew.start(func() error { return t.watchWAL(start) })
	return nil
}

// baseBackup asks for the backup, and when the server cannot compress, again.
func (t *taking) baseBackup() (stream, error) {
	o := replication.BackupOptions{Label: t.o.Label, Fast: t.o.Fast, MaxRate: t.o.MaxRate}
	o.Compression, o.Level = t.asked.server()
	s, err := t.server.BaseBackup(t.ctx, o)
	if !errors.Is(err, replication.ErrNoCompression) {
		return s, err
	}
	t.o.Log.Info("the server cannot compress the backup: it is compressed here", "asked", t.asked.String(), "reason", err.Error())
	t.asked = t.asked.byClient()
	o.Compression, o.Level = "", 0
	return t.server.BaseBackup(t.ctx, o)
}

// receive takes what the server sends to its end.
func (t *taking) receive() error {
	t.progress.Total = 0
	for _, space := range t.stream.Tablespaces() {
		if space.Size < 0 {
			t.progress.Total = -1
			break
		}
		t.progress.Total += space.Size
	}
	if err := t.storeRoot(); err != nil {
		return err
	}
	inManifest := false
	for {
		m, err := t.stream.Next(t.ctx)
		if err != nil {
			return t.ended(err, inManifest)
		}
		switch m.Kind {
		case replication.BackupArchive:
			if err := t.finishArchive(); err != nil {
				return err
			}
			if t.current, err = t.begin(m); err != nil {
				return err
			}
			t.progress.Archive = m.Name
			t.report(PhaseCopy)
		case replication.BackupManifest:
			if err := t.finishArchive(); err != nil {
				return err
			}
			inManifest = true
		case replication.BackupData:
			switch {
			case inManifest:
				_, err = t.manifest.Write(m.Data)
			case t.current != nil:
				_, err = t.current.Write(m.Data)
			default:
				err = fmt.Errorf("%w: content before an archive", replication.ErrProtocol)
			}
			if err != nil {
				return err
			}
		case replication.BackupProgress:
			t.progress.Done = m.Done
			t.report(PhaseCopy)
		case replication.BackupWarning:
			t.warned(m)
		}
	}
}

// ended is reached when the stream has no more: at its end, or not.
func (t *taking) ended(err error, complete bool) error {
	if !isEOF(err) {
		return err
	}
	if !complete {
		return fmt.Errorf("%w: a base backup without a manifest", replication.ErrProtocol)
	}
	if err := t.stream.Suspect(); err != nil {
		t.o.Log.Warn("the server calls the base backup suspect: pages of it have wrong checksums", "reason", err.Error())
		if len(t.suspect) == 0 {
			t.suspect = append(t.suspect, err.Error())
		}
	}
	// The server need not keep a process for us while we wait for WAL.
	return t.stream.Close()
}

// maxWarnings bounds what is kept of the server's warnings, which are one for
// each of the first pages of a file.
const maxWarnings = 10_000

func (t *taking) warned(m replication.BackupMessage) {
	t.o.Log.Warn("the server says of the base backup", "severity", m.Severity, "message", m.Text)
	if m.Suspect && len(t.suspect) < maxWarnings {
		t.suspect = append(t.suspect, m.Text)
	}
}

// finishArchive ends the archive that is received, if one is.
func (t *taking) finishArchive() error {
	f := t.current
	if f == nil {
		return nil
	}
	part, err := f.finish(t.ctx)
	if err != nil {
		return err
	}
	t.current = nil
	t.parts = append(t.parts, part)
	return nil
}

// storeRoot stores the part that holds nothing but the data directory's own
// entry: PostgreSQL refuses a restored directory whose mode is that of the
// restoring user's mask.
func (t *taking) storeRoot() error {
	tar, err := rootEntry(t.begun)
	if err != nil {
		return err
	}
	frame, err := t.asked.how().Encode(tar)
	if err != nil {
		return fmt.Errorf("encoding the root entry: %w", err)
	}
	defer frame.Release()
	part := archive.BackupPart{
		Name: "part_000.tar" + t.asked.how().Ext(), Size: frame.Size(), CRC32C: frame.CRC32C(), Uncompressed: int64(len(tar)),
	}
	if err := t.persist(frame.Size(), func() error { return t.writer.Put(t.ctx, partsDir+part.Name, frame) }); err != nil {
		return err
	}
	t.parts = append(t.parts, part)
	return nil
}

// report tells how far the backup is.
func (t *taking) report(p Phase) {
	t.progress.Phase, t.progress.Stored = p, t.stored.Load()
	t.o.Progress(t.progress)
}

// persist tries until the store has done it, which stores size bytes, or it
// cannot pass, or for too long.
func (t *taking) persist(size int64, try func() error) error {
	for begun := time.Now(); ; {
		attempt := time.Now()
		err := try()
		if err == nil {
			t.trouble.Worked(attempt)
			t.stored.Add(size)
			return nil
		}
		if cause := context.Cause(t.ctx); cause != nil {
			return cause
		}
		if final(err) || time.Since(begun) >= storePatience {
			return err
		}
		if t.trouble.Wait(t.ctx, err) != nil {
			return context.Cause(t.ctx)
		}
	}
}

// release gives back what is held to the end.
func (t *taking) release() {
	t.seen.release()
	t.manifest.Release()
}

// abandon frees what a backup that failed has left, here and in the store.
// Nothing works on it any more.
func (t *taking) abandon(ctx context.Context) {
	if t.stream != nil {
		_ = t.stream.Close() // it is given up
	}
	if t.wal != nil {
		t.wal.close()
	}
	t.release()
	// The uploads end although the caller's context may have.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortPatience)
	defer cancel()
	for _, o := range t.objects {
		if err := o.abandon(ctx); err != nil {
			t.o.Log.Warn("an upload of a base backup that was given up could not be aborted; it takes space until it is swept",
				"backup", t.writer.Name().String(), "part", o.name, "error", err.Error())
		}
	}
	if t.writer != nil {
		t.o.Log.Warn("the base backup was given up; objects of it may be left, which no list shows and which can be deleted by its name", "backup", t.writer.Name().String())
	}
}
