package basebackup

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/manifest"
)

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

// storeManifest holds what was received against the manifest, and stores it as
// the server sent it.
func (t *taking) storeManifest() (archive.BackupPart, error) {
	m, err := t.seen.compare(io.NewSectionReader(t.manifest, 0, t.manifest.Size()))
	if err != nil {
		return archive.BackupPart{}, err
	}
	if err := t.checkManifest(m); err != nil {
		return archive.BackupPart{}, err
	}
	part := archive.BackupPart{Name: manifestName, Size: t.manifest.Size(), CRC32C: t.manifest.CRC32C(), Files: m.Files}
	return part, t.persist(part.Size, func() error { return t.writer.Put(t.ctx, manifestName, t.manifest) })
}

// checkManifest makes sure that it is this backup's.
func (t *taking) checkManifest(m manifest.Manifest) error {
	if m.SystemIdentifier != 0 && m.SystemIdentifier != t.system.SystemIdentifier {
		return fmt.Errorf("%w: it is that of system identifier %d, the server's is %d", manifest.ErrInvalid, m.SystemIdentifier, t.system.SystemIdentifier)
	}
	start, stop := t.stream.Start(), t.stream.Stop()
	starts, stops := false, false
	for _, r := range m.WAL {
		starts = starts || r.Start == start.LSN && r.Timeline == start.Timeline
		stops = stops || r.End == stop.LSN && r.Timeline == stop.Timeline
	}
	if !starts || !stops {
		return fmt.Errorf("%w: the WAL that it names is not that from %s to %s", manifest.ErrInvalid, start, stop)
	}
	return nil
}

// sentinel is what WAL-G is told.
func (t *taking) sentinel(finished time.Time) archive.Sentinel {
	s := archive.Sentinel{
		LSN: t.stream.Start().LSN, FinishLSN: t.stream.Stop().LSN,
		SystemIdentifier: t.system.SystemIdentifier, PgVersion: t.server.Version().Num,
		StartTime: wallClock(t.begun), FinishTime: wallClock(finished),
		Hostname: t.o.Hostname, DataDir: t.dataDir,
	}
	for _, p := range t.parts {
		s.UncompressedSize += p.Uncompressed
		s.CompressedSize += p.Size
	}
	locations := map[uint32]string{}
	for _, space := range t.stream.Tablespaces() {
		if space.OID != 0 {
			locations[space.OID] = space.Location
		}
	}
	if len(locations) > 0 {
		s.Spec = &archive.TablespaceSpec{BasePrefix: t.dataDir, Locations: locations}
	}
	return s
}

// wallClock is a time as the sentinel can hold it.
func wallClock(at time.Time) time.Time { return at.UTC().Truncate(time.Microsecond) }

// facts are what only we know.
func (t *taking) facts(stored archive.BackupPart) archive.BackupFacts {
	start, stop := t.stream.Start(), t.stream.Stop()
	f := archive.BackupFacts{
		Label: t.o.Label, Server: t.server.Version().Text,
		StartLSN: start.LSN.String(), StartTimeline: uint32(start.Timeline),
		StopLSN: stop.LSN.String(), StopTimeline: uint32(stop.Timeline),
		SegmentSize: uint64(t.size), Compression: t.asked.String(), WAL: archive.WALInArchive,
		Standby: t.server.InRecovery(), Archiver: t.archiver, Parts: t.parts, Manifest: stored, SuspectPages: t.suspect,
	}
	if t.wal != nil {
		f.WAL = archive.WALIncluded
	}
	return f
}

// rootEntry is a tar file with the entry of the data directory alone.
func rootEntry(at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := header("/", 0, at)
	h.Typeflag, h.Mode = tar.TypeDir, 0o700
	err := errors.Join(w.WriteHeader(h), w.Close())
	if err != nil {
		return nil, fmt.Errorf("making the root entry: %w", err)
	}
	return b.Bytes(), nil
}

// header is that of a file that we put into a tar file. Its owner is the one
// that the server's and pg_basebackup's own entries name (tarCreateHeader in
// src/port/tar.c; the numbers are those of src/bin/pg_basebackup/walmethods.c,
// 15).
func header(name string, size int64, at time.Time) *tar.Header {
	return &tar.Header{
		Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: at.Truncate(time.Second),
		Uid: 0o4000, Gid: 0o2000, Uname: "postgres", Gname: "postgres",
	}
}

// Where WAL is in a data directory.
func walPath(name string) string  { return "pg_wal/" + name }
func donePath(name string) string { return "pg_wal/archive_status/" + name + ".done" }

// finishWAL returns when the WAL up to the stop is where it belongs.
func (t *taking) finishWAL() error {
	stop := t.stream.Stop()
	if t.wal == nil {
		return t.awaitWAL(t.stream.Start(), stop)
	}
	part, err := t.wal.finish(stop)
	if err != nil {
		return err
	}
	t.parts = append(t.parts, part)
	return nil
}
