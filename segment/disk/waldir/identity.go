package waldir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"sync"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
)

// identity is the cluster whose WAL the directory holds.
type identity struct {
	system uint64
	size   segment.Size
}

// identityFile is what package spool writes (see spool.Identity).
type identityFile struct {
	SystemIdentifier string `json:"system_identifier"`
	SegmentSize      uint64 `json:"wal_segment_size"`
}

func (id identity) text() ([]byte, error) {
	return json.Marshal(identityFile{strconv.FormatUint(id.system, 10), uint64(id.size)})
}

func parseIdentity(text []byte) (identity, error) {
	var f identityFile
	if err := json.Unmarshal(text, &f); err != nil {
		return identity{}, fmt.Errorf("reading the identity that the spool wrote: %w", err)
	}
	system, err := strconv.ParseUint(f.SystemIdentifier, 10, 64)
	if err != nil {
		return identity{}, fmt.Errorf("reading the identity that the spool wrote: %w", err)
	}
	id := identity{system, segment.Size(f.SegmentSize)}
	return id, id.size.Check()
}

// openIdentity is the file of what is known of the cluster.
func (d *FS) openIdentity(path string, write bool) (disk.File, error) {
	d.mu.Lock()
	id := d.id
	d.mu.Unlock()
	if id == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	if write {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission}
	}
	text, err := id.text()
	return &note{text: text}, err
}

// createIdentity is the file that the spool writes the identity to before it
// gives it its name.
func (d *FS) createIdentity(path string) (disk.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.draft != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	d.draft = &note{}
	return d.draft, nil
}

// keepIdentity is the rename.
func (d *FS) keepIdentity(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.draft == nil {
		return &fs.PathError{Op: "rename", Path: path, Err: fs.ErrNotExist}
	}
	d.draft.mu.Lock()
	id, err := parseIdentity(d.draft.text)
	d.draft.mu.Unlock()
	if err == nil {
		d.id, d.draft = &id, nil
	}
	return err
}

func (d *FS) removeIdentity(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.draft == nil {
		return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
	}
	d.draft = nil
	return nil
}

// note is a small file in memory.
type note struct {
	mu   sync.Mutex
	text []byte
}

func (n *note) ReadAt(p []byte, off int64) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if off < 0 || off >= int64(len(n.text)) {
		return 0, io.EOF
	}
	k := copy(p, n.text[off:])
	if k < len(p) {
		return k, io.EOF
	}
	return k, nil
}

func (n *note) WriteAt(p []byte, off int64) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if off != int64(len(n.text)) {
		return 0, errors.ErrUnsupported // it is written once, from front to back
	}
	n.text = append(n.text, p...)
	return len(p), nil
}

func (n *note) Size() (int64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return int64(len(n.text)), nil
}

func (n *note) Allocate(int64) error { return nil }
func (n *note) Truncate(int64) error { return errors.ErrUnsupported }
func (n *note) Sync() error          { return nil }
func (n *note) Close() error         { return nil }
