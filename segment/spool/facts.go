package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"

	"github.com/walferry/walferry/segment"
)

const (
	identityName = "walferry.identity.json"
	maxFact      = 1 << 20 // bytes in an identity or history file
)

// Identity is the cluster whose WAL a spool holds.
type Identity struct {
	SystemIdentifier uint64
	SegmentSize      segment.Size
}

// identityFile is the identity as it is written. The system identifier is
// text, since many readers of JSON keep 53 bits of a number.
type identityFile struct {
	SystemIdentifier string `json:"system_identifier"`
	SegmentSize      uint64 `json:"wal_segment_size"`
}

// Identity returns what the spool was bound to, false when to nothing yet.
func (s *Spool) Identity() (Identity, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.identity == nil {
		return Identity{}, false
	}
	return *s.identity, true
}

// Bind ties the spool to a cluster. The first time it is written, and durable
// on return. Later the same identity is nil, and another one
// segment.ErrForeignCluster. ErrLimit when the limit is less than a segment.
func (s *Spool) Bind(id Identity) error {
	if err := id.SegmentSize.Check(); err != nil {
		return fmt.Errorf("binding the spool: %w", err)
	}
	s.put.Lock()
	defer s.put.Unlock()
	s.mu.Lock()
	have, closed := s.identity, s.closed
	var limitErr error
	if have == nil {
		limitErr = s.fitLimit(id.SegmentSize)
	}
	s.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case limitErr != nil:
		return limitErr
	case have != nil && *have == id:
		return nil
	case have != nil:
		return fmt.Errorf("the spool %s: %w: it holds system identifier %d with %s segments, not %d with %s", s.dir,
			segment.ErrForeignCluster, have.SystemIdentifier, have.SegmentSize, id.SystemIdentifier, id.SegmentSize)
	}
	b, err := json.Marshal(identityFile{strconv.FormatUint(id.SystemIdentifier, 10), uint64(id.SegmentSize)})
	if err != nil {
		return fmt.Errorf("binding the spool: %w", err)
	}
	if err := s.writeFile(identityName, append(b, '\n')); err != nil {
		return fmt.Errorf("binding the spool: %w", err)
	}
	s.mu.Lock()
	s.identity = &id
	s.mu.Unlock()
	return nil
}

// loadIdentity reads the identity file, if there is one.
func (s *Spool) loadIdentity() error {
	b, err := s.readFile(identityName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	var f identityFile
	if err := d.Decode(&f); err != nil {
		return fmt.Errorf("%s is damaged: %w", identityName, err)
	}
	sysid, err := strconv.ParseUint(f.SystemIdentifier, 10, 64)
	if err != nil {
		return fmt.Errorf("%s is damaged: system identifier %q", identityName, f.SystemIdentifier)
	}
	id := Identity{sysid, segment.Size(f.SegmentSize)}
	if err := id.SegmentSize.Check(); err != nil {
		return fmt.Errorf("%s is damaged: %w", identityName, err)
	}
	s.identity = &id
	return nil
}

// PutHistory stores timeline t's history file as the server sent it, durable
// on return. The same content again is nil, other content ErrConflict.
func (s *Spool) PutHistory(t segment.Timeline, content []byte) error {
	s.put.Lock()
	defer s.put.Unlock()
	s.mu.Lock()
	have, held := s.histories[t]
	closed := s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case held && bytes.Equal(have, content):
		return nil
	case held:
		return fmt.Errorf("storing %s: %w: the spool holds another file of that name", t.HistoryName(), ErrConflict)
	case t == 0:
		return errors.New("storing a history file: timeline 0 does not exist")
	case len(content) > maxFact:
		return fmt.Errorf("storing %s: %d bytes are no history file", t.HistoryName(), len(content))
	}
	if err := s.writeFile(t.HistoryName(), content); err != nil {
		return fmt.Errorf("storing %s: %w", t.HistoryName(), err)
	}
	s.mu.Lock()
	s.histories[t] = bytes.Clone(content)
	s.mu.Unlock()
	return nil
}

// History returns the content of timeline t's history file, the caller's to
// keep. fs.ErrNotExist when it is not held.
func (s *Spool) History(t segment.Timeline) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.histories[t]
	if !ok {
		return nil, &fs.PathError{Op: "read", Path: s.path(t.HistoryName()), Err: fs.ErrNotExist}
	}
	return bytes.Clone(b), nil
}

// Before returns the name of the segment in front of n: of n's timeline, or of
// the ancestor that the byte in front of n belongs to. Where the history file
// is not held, or says nothing, it is n's timeline.
func (s *Spool) Before(n segment.Name, size segment.Size) segment.Name {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.before(n, size)
}

// before is Before; s.mu is held.
func (s *Spool) before(n segment.Name, size segment.Size) segment.Name {
	last := n.Start(size) - 1
	if h, err := segment.ParseHistory(n.Timeline, s.histories[n.Timeline]); err == nil {
		return size.Name(h.Owner(last), last)
	}
	return size.Name(n.Timeline, last)
}

// Histories returns the timelines whose history files are held, ascending.
func (s *Spool) Histories() []segment.Timeline {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.histories))
}

// writeFile makes a new file of that name whose content is durable before the
// name appears, and whose name is durable on return. put is held.
func (s *Spool) writeFile(name string, content []byte) error {
	tmp := s.path(name + tmpSuffix)
	err := s.writeNew(tmp, content)
	if errors.Is(err, fs.ErrExist) { // of an attempt whose clean-up failed too
		if err = s.fs.Remove(tmp); err == nil {
			err = s.writeNew(tmp, content)
		}
	}
	if err == nil {
		err = s.fs.Rename(tmp, s.path(name))
	}
	if err != nil {
		if e := s.fs.Remove(tmp); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
		return err
	}
	return s.syncDir()
}

// writeNew makes a file that must not exist and syncs its content.
func (s *Spool) writeNew(path string, content []byte) error {
	f, err := s.fs.Create(path, s.filePerm)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir makes the names in the spool's directory durable. After a failure
// nothing is known of them any more, and no later success would prove
// anything: it stays failed. put is held.
func (s *Spool) syncDir() error {
	if s.dirErr == nil {
		if err := s.fs.SyncDir(s.dir); err != nil {
			s.dirErr = fmt.Errorf("syncing the spool directory %s: %w", s.dir, err)
		}
	}
	return s.dirErr
}

// syncNames is syncDir for those who do not hold put.
func (s *Spool) syncNames() error {
	s.put.Lock()
	defer s.put.Unlock()
	return s.syncDir()
}

// Failed returns the failed sync of the directory after which nothing is
// promised any more until the spool has been closed and opened again; nil
// while all is well.
func (s *Spool) Failed() error {
	s.put.Lock()
	defer s.put.Unlock()
	return s.dirErr
}

// readFile returns the content of a small file.
func (s *Spool) readFile(name string) ([]byte, error) {
	f, err := s.fs.Open(s.path(name), false)
	if err != nil {
		return nil, err
	}
	n, err := f.Size()
	if err == nil && n > maxFact {
		err = fmt.Errorf("%s has %d bytes: it is not what its name says", name, n)
	}
	var b []byte
	if err == nil {
		b = make([]byte, n)
		err = readFull(f, b, 0)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return b, nil
}
