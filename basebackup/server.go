package basebackup

import (
	"context"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// Archive is where the backup goes: *archive.Archive.
type Archive interface {
	Recognise(ctx context.Context) (id archive.Identity, present bool, err error)
	NewBackup(ctx context.Context, start segment.Position, size segment.Size) (*archive.BackupWriter, error)
	HistoryOf(ctx context.Context, t segment.Timeline) (segment.History, error)
	ReachFrom(ctx context.Context, h segment.History, size segment.Size, from segment.LSN) (sealed, reach segment.Position, err error)
	SweepBackupUploads(ctx context.Context, age time.Duration) (int, error)
}

var _ Archive = (*archive.Archive)(nil)

// server is what is asked of the connection that the backup comes over.
type server interface {
	IdentifySystem(ctx context.Context) (replication.System, error)
	Show(ctx context.Context, name string) (string, error)
	Version() replication.Version
	InRecovery() bool
	Local() bool // it works on our own processors: it is reached by a Unix socket
	BaseBackup(ctx context.Context, o replication.BackupOptions) (stream, error)
	Close(ctx context.Context) error
}

// stream is a base backup as it comes: *replication.BaseBackup.
type stream interface {
	Start() segment.Position
	Tablespaces() []replication.Tablespace
	Next(ctx context.Context) (replication.BackupMessage, error)
	Stop() segment.Position
	Suspect() error
	Close() error
}

// walServer is what is asked of the connection that the WAL comes over.
type walServer interface {
	IdentifySystem(ctx context.Context) (replication.System, error)
	PID() uint32
	CreateTemporarySlot(ctx context.Context, name string) error
	TimelineHistory(ctx context.Context, t segment.Timeline) ([]byte, error)
	StartReplication(ctx context.Context, slot string, from segment.Position) (walStream, error)
	Close(ctx context.Context) error
}

// walStream is WAL as it comes: *replication.Stream.
type walStream interface {
	Batches() <-chan *replication.Batch
	Err() error
	SendStatus(st replication.Status) error
	Close() error
}

// postgres is a real server.
type postgres struct{ *replication.Conn }

func (p postgres) Local() bool { return p.RemoteAddr().Network() == "unix" }

func (p postgres) BaseBackup(ctx context.Context, o replication.BackupOptions) (stream, error) {
	b, err := p.Conn.BaseBackup(ctx, o)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (p postgres) StartReplication(ctx context.Context, slot string, from segment.Position) (walStream, error) {
	s, err := p.Conn.StartReplication(ctx, slot, from)
	if err != nil {
		return nil, err
	}
	return s, nil
}
