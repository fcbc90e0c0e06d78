package basebackup

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/manifest"
)

// ErrMismatch: what was received is not what the server's manifest says: a
// file is missing, too many, or has another size or checksum. The backup was
// not kept.
var ErrMismatch = errors.New("the files that were received are not those of the manifest")

// seen remembers what files were in the archives until the manifest says what
// files there should be. It is written to by one goroutine at a time. A file
// takes some 40 bytes; beyond keptInMemory they go to a temporary file.
type seen struct {
	frame *codec.Frame
	buf   []byte
	files int
}

// keptInMemory is how much of what is only kept for a while, such as the list
// of the files and the manifest, is held in memory, in bytes.
const keptInMemory = 1 << 20

func newSeen(tempDir string) *seen {
	return &seen{frame: codec.NewBuffers(keptInMemory, tempDir).New()}
}

// facts are what is compared of a file.
type facts struct {
	size int64
	crc  uint32
}

func (f facts) String() string { return fmt.Sprintf("%d bytes with CRC32C %08x", f.size, f.crc) }

// add records a file.
func (s *seen) add(path string, size int64, crc uint32) error {
	s.buf = binary.AppendUvarint(s.buf, uint64(len(path)))
	s.buf = append(s.buf, path...)
	s.buf = binary.AppendUvarint(s.buf, uint64(size))
	s.buf = binary.LittleEndian.AppendUint32(s.buf, crc)
	s.files++
	if len(s.buf) < 32<<10 {
		return nil
	}
	return s.flush()
}

func (s *seen) flush() error {
	_, err := s.frame.Write(s.buf)
	s.buf = s.buf[:0]
	return err
}

func (s *seen) release() { s.frame.Release() }

// compare reads the manifest and returns it when its files are the very files
// that were seen, with their sizes and checksums; else ErrMismatch, or
// manifest.ErrInvalid.
//
// The server writes the manifest in the order in which it sends the files
// (AddFileToBackupManifest in src/backend/backup/backup_manifest.c), so both
// are read beside each other. Were that order another, the same would come
// out, and only memory would be used.
func (s *seen) compare(r io.Reader) (manifest.Manifest, error) {
	if err := s.flush(); err != nil {
		return manifest.Manifest{}, err
	}
	archives := bufio.NewReader(io.NewSectionReader(s.frame, 0, s.frame.Size()))
	left := s.files
	early, late := map[string]facts{}, map[string]facts{} // seen and not yet listed; listed and not yet seen
	m, err := manifest.Read(r, func(f manifest.File) error {
		crc, ok := f.CRC32C()
		if !ok {
			return fmt.Errorf("%w: %q has no CRC32C", manifest.ErrInvalid, f.Path)
		}
		if _, twice := late[f.Path]; twice {
			return fmt.Errorf("%w: %q is listed twice", manifest.ErrInvalid, f.Path)
		}
		late[f.Path] = facts{f.Size, crc}
		if left > 0 {
			left--
			path, found, err := readFile(archives)
			if err != nil {
				return err
			}
			if err := settle(late, early, path, found); err != nil {
				return err
			}
		}
		found, ok := early[f.Path]
		if !ok {
			return nil
		}
		delete(early, f.Path)
		return settle(late, early, f.Path, found)
	})
	if err != nil {
		return manifest.Manifest{}, err
	}
	for ; left > 0; left-- {
		path, found, err := readFile(archives)
		if err == nil {
			err = settle(late, early, path, found)
		}
		if err != nil {
			return manifest.Manifest{}, err
		}
	}
	for path, found := range early {
		return manifest.Manifest{}, fmt.Errorf("%w: %q was received (%v) and is not listed", ErrMismatch, path, found)
	}
	for path, want := range late {
		return manifest.Manifest{}, fmt.Errorf("%w: %q is listed (%v) and was not received", ErrMismatch, path, want)
	}
	return m, nil
}

// settle compares a file that was seen with what is listed of it, now or
// later.
func settle(late, early map[string]facts, path string, found facts) error {
	want, ok := late[path]
	if !ok {
		if _, twice := early[path]; twice {
			return fmt.Errorf("%w: %q was received twice", ErrMismatch, path)
		}
		early[path] = found
		return nil
	}
	delete(late, path)
	if found != want {
		return fmt.Errorf("%w: %q was received with %v, and is listed with %v", ErrMismatch, path, found, want)
	}
	return nil
}

func readFile(r *bufio.Reader) (path string, f facts, err error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return "", facts{}, fmt.Errorf("reading the list of the files: %w", err)
	}
	name := make([]byte, n)
	_, err = io.ReadFull(r, name)
	size, err1 := binary.ReadUvarint(r)
	var crc [4]byte
	_, err2 := io.ReadFull(r, crc[:])
	if err := errors.Join(err, err1, err2); err != nil {
		return "", facts{}, fmt.Errorf("reading the list of the files: %w", err)
	}
	return string(name), facts{int64(size), binary.LittleEndian.Uint32(crc[:])}, nil
}
