package unpack

import (
	"fmt"
	"slices"
	"strings"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
)

// partsDir is where a backup's folder has its parts.
const partsDir = "tar_partitions/"

// The parts of WAL-G's that are read last and win over the others.
const (
	controlPart = "pg_control.tar"
	labelPart   = "backup_label.tar"
)

// part is a tar of the backup.
type part struct {
	object string // in the backup's folder
	ext    string // of the codec
	size   int64  // bytes, stored
	// crc is of the stored bytes; known says that the backup tells it.
	crc   uint32
	known bool
}

// contents are the objects of a backup that a restore reads.
type contents struct {
	// first are read side by side, then last, whose files win.
	first, last []part
	// manifest is the server's, metadata WAL-G's; neither: nobody says which
	// files there are.
	manifest, metadata *part
}

// bytes returns how many are read.
func (c contents) bytes() int64 {
	var n int64
	for _, p := range slices.Concat(c.first, c.last) {
		n += p.size
	}
	if c.manifest != nil {
		n += 2 * c.manifest.size // checked first, kept last
	}
	if c.metadata != nil {
		n += c.metadata.size
	}
	return n
}

// find takes a listing of the backup's folder apart. What the backup says of
// itself must be there.
func find(b archive.Backup, objects []objstore.Info) (contents, error) {
	sizes := map[string]int64{}
	for _, o := range objects {
		sizes[o.Key] = o.Size
	}
	if b.Facts != nil {
		return findOurs(*b.Facts, sizes)
	}
	return findWALG(b, sizes)
}

func findOurs(f archive.BackupFacts, sizes map[string]int64) (c contents, err error) {
	m, err := known(f.Manifest, f.Manifest.Name, sizes)
	if err != nil {
		return contents{}, err
	}
	c.manifest = &m
	for _, want := range f.Parts {
		p, err := known(want, partsDir+want.Name, sizes)
		if err != nil {
			return contents{}, err
		}
		if p.ext, err = extension(want.Name); err != nil {
			return contents{}, err
		}
		c.first = append(c.first, p)
	}
	return c, nil
}

// known returns an object that walferry.json describes.
func known(want archive.BackupPart, object string, sizes map[string]int64) (part, error) {
	size, ok := sizes[object]
	switch {
	case !ok:
		return part{}, fmt.Errorf("%w: %s is missing", ErrDamaged, object)
	case size != want.Size:
		return part{}, fmt.Errorf("%w: %s has %d bytes instead of %d", ErrDamaged, object, size, want.Size)
	}
	return part{object: object, size: size, crc: want.CRC32C, known: true}, nil
}

func findWALG(b archive.Backup, sizes map[string]int64) (c contents, err error) {
	hasControl, total := false, int64(0)
	for object, size := range sizes {
		name, ok := strings.CutPrefix(object, partsDir)
		if !ok {
			continue
		}
		p := part{object: object, size: size}
		if p.ext, err = extension(name); err != nil {
			return contents{}, err
		}
		total += size
		switch strings.TrimSuffix(name, p.ext) {
		case controlPart:
			hasControl = true
			c.last = append(c.last, p)
		case labelPart:
			c.last = append(c.last, p)
		default:
			c.first = append(c.first, p)
		}
	}
	byName := func(x, y part) int { return strings.Compare(x.object, y.object) }
	slices.SortFunc(c.first, byName)
	slices.SortFunc(c.last, byName)
	if !b.Name.HasOffset() && !hasControl {
		return contents{}, fmt.Errorf("%w: %s%s is missing", ErrDamaged, partsDir, controlPart)
	}
	if size, ok := sizes[manifestName]; ok {
		// Ours, whose walferry.json was lost: the server's manifest proves every
		// file all the same.
		c.manifest = &part{object: manifestName, size: size}
		return c, nil
	}
	if b.Sentinel.FilesMetadataDisabled {
		// Then only the sum of their sizes tells of a part that is missing.
		if total < b.Sentinel.CompressedSize {
			return contents{}, fmt.Errorf("%w: its parts have %d bytes together, and %d by its sentinel: a part is missing", ErrDamaged, total, b.Sentinel.CompressedSize)
		}
		return c, nil
	}
	const name = "files_metadata.json"
	size, ok := sizes[name]
	if !ok {
		return contents{}, fmt.Errorf("%w: %s is missing", ErrDamaged, name)
	}
	c.metadata = &part{object: name, size: size}
	return c, nil
}

// extension returns what follows ".tar" in a part's name.
func extension(name string) (string, error) {
	i := strings.LastIndex(name, ".tar")
	if i < 0 || strings.Contains(name, "/") {
		return "", fmt.Errorf("%s%s is no part of a base backup", partsDir, name)
	}
	ext := name[i+len(".tar"):]
	if !codec.CanRead(ext) {
		return "", fmt.Errorf("%s%s: nothing here decodes %q: wal-g may", partsDir, name, ext)
	}
	return ext, nil
}
