package unpack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/walferry/walferry/archive/manifest"
)

// inventory is what a backup says of its files. It is told of every file as
// it comes, and says at the end what has not come. Safe for concurrent use.
type inventory interface {
	// admit is asked before a file of that size is written. skip says that it
	// belongs to no restored directory.
	admit(name string, size int64) (skip bool, err error)
	// arrived is told of a file that is complete, with its CRC32C.
	arrived(name string, size int64, crc uint32) error
	// missing is called when all parts were read.
	missing() error
}

// listed are the files of a backup manifest.
type listed struct {
	mu    sync.Mutex
	files map[string]entry
	wal   map[string]bool
}

// entry is kept for each of perhaps millions of files.
type entry struct {
	size  int64
	crc   uint32
	known bool // crc is
	began bool
	done  bool
}

// readManifest reads a server's manifest of the cluster.
func readManifest(r io.Reader, system uint64) (*listed, error) {
	l := &listed{files: map[string]entry{}, wal: map[string]bool{}}
	m, err := manifest.Read(r, func(f manifest.File) error {
		name, err := cleanName(f.Path)
		if err != nil {
			return err
		}
		if name != f.Path {
			return fmt.Errorf("%w: its manifest names the file %q", ErrDamaged, f.Path)
		}
		if _, twice := l.files[name]; twice {
			return fmt.Errorf("%w: its manifest lists %s twice", ErrDamaged, name)
		}
		e := entry{size: f.Size}
		e.crc, e.known = f.CRC32C()
		l.files[name] = e
		return nil
	})
	if errors.Is(err, manifest.ErrInvalid) {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	if m.SystemIdentifier != 0 && m.SystemIdentifier != system {
		return nil, fmt.Errorf("%w: its manifest is of the cluster %d, the backup of %d", ErrDamaged, m.SystemIdentifier, system)
	}
	for _, name := range []string{controlName, labelName} {
		if _, ok := l.files[name]; !ok {
			return nil, fmt.Errorf("%w: its manifest lists no %s", ErrDamaged, name)
		}
	}
	return l, nil
}

func (l *listed) admit(name string, size int64) (skip bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.files[name]
	switch {
	case !ok && isWAL(name):
		if l.wal[name] {
			return false, fmt.Errorf("%w: %s is in it twice", ErrDamaged, name)
		}
		l.wal[name] = true
		return false, nil
	case !ok:
		return false, fmt.Errorf("%w: %s is in it, but not in its manifest", ErrDamaged, name)
	case e.began:
		return false, fmt.Errorf("%w: %s is in it twice", ErrDamaged, name)
	case e.size != size:
		return false, fmt.Errorf("%w: %s has %d bytes, and %d by its manifest", ErrDamaged, name, size, e.size)
	}
	e.began = true
	l.files[name] = e
	return false, nil
}

func (l *listed) arrived(name string, size int64, crc uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.files[name]
	if !ok {
		return nil // WAL: its part's checksum speaks for it, and its own when it is replayed
	}
	if e.size != size || e.known && e.crc != crc {
		return fmt.Errorf("%w: %s has %d bytes with CRC32C %08X, and %d with %08X by its manifest", ErrDamaged, name, size, crc, e.size, e.crc)
	}
	e.done = true
	l.files[name] = e
	return nil
}

func (l *listed) missing() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name, e := range l.files {
		if !e.done {
			names = append(names, name)
		}
	}
	return lacking(names)
}

// lacking says which files have not come.
func lacking(names []string) error {
	const told = 3
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	text := strings.Join(names[:min(told, len(names))], ", ")
	if n := len(names) - told; n > 0 {
		text = fmt.Sprintf("%s and %d more", text, n)
	}
	return fmt.Errorf("%w: its parts lack %s", ErrDamaged, text)
}

// seen are the files of a backup of WAL-G's. With its files_metadata.json they
// are known beforehand; without, only their number tells anything.
type seen struct {
	mu sync.Mutex
	// want maps names to whether they must come; nil: nobody says it.
	want  map[string]bool
	began map[string]bool
	done  map[string]bool
}

func newSeen() *seen { return &seen{began: map[string]bool{}, done: map[string]bool{}} }

// readMetadata reads a files_metadata.json (WAL-G: FilesMetadataDto).
func readMetadata(r io.Reader) (*seen, error) {
	var m struct {
		Files map[string]struct{ IsIncremented, IsSkipped bool }
	}
	d := json.NewDecoder(r)
	if err := d.Decode(&m); err != nil {
		var syntax *json.SyntaxError
		var kind *json.UnmarshalTypeError
		if errors.As(err, &syntax) || errors.As(err, &kind) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return nil, err
	}
	s := newSeen()
	s.want = map[string]bool{}
	for key, f := range m.Files {
		name, err := cleanName(key)
		if err != nil {
			return nil, err
		}
		if f.IsIncremented {
			return nil, fmt.Errorf("%s is a file's changes only: this is a delta backup: restore it with wal-g", name)
		}
		s.want[name] = !f.IsSkipped
	}
	return s, nil
}

func (s *seen) admit(name string, _ int64) (skip bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.want != nil {
		if _, ok := s.want[name]; !ok && !special(name) {
			return true, nil // as wal-g does
		}
	}
	if s.began[name] && !special(name) {
		return false, fmt.Errorf("%w: %s is in it twice", ErrDamaged, name)
	}
	s.began[name] = true
	return false, nil
}

// special are the files that may be in parts of their own, and in others
// before them.
func special(name string) bool {
	return name == controlName || name == labelName || name == mapName
}

func (s *seen) arrived(name string, _ int64, _ uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done[name] = true
	return nil
}

func (s *seen) missing() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := maps.Clone(s.want)
	if want == nil {
		want = map[string]bool{}
	}
	want[controlName], want[labelName] = true, true
	var names []string
	for name, must := range want {
		if must && !s.done[name] {
			names = append(names, name)
		}
	}
	return lacking(names)
}
