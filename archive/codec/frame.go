package codec

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"github.com/walferry/walferry/internal/tempfile"
)

// blockSize is the unit in which memory is pooled.
const blockSize = 256 << 10

type block [blockSize]byte

// Buffers makes frames and uses their memory again. It is safe for concurrent
// use.
type Buffers struct {
	limit int64
	dir   string
	pool  sync.Pool // of *block
	table *crc32.Table
}

// NewBuffers returns buffers whose frames hold up to memoryPerFrame bytes
// each in memory and the rest in a temporary file in dir. The file has no name:
// a crash leaves nothing (where the file system cannot make such a file, and the
// crash hits between two calls, an empty file "walferry-frame-….tmp"). With an
// empty dir a frame is held in memory, however long it grows.
func NewBuffers(memoryPerFrame int64, dir string) *Buffers {
	return &Buffers{limit: memoryPerFrame, dir: dir, table: crc32.MakeTable(crc32.Castagnoli)}
}

// New returns an empty frame. Its owner releases it.
func (b *Buffers) New() *Frame { return &Frame{buffers: b} }

func (b *Buffers) block() *block {
	if p, ok := b.pool.Get().(*block); ok {
		return p
	}
	return new(block)
}

// Frame is an object's bytes: written once from front to back by one writer,
// then read as often as the store's attempts need (it is an objstore.Body).
// ReadAt may run concurrently with everything, also with Release: a transport
// can still read from a body after its request has failed.
type Frame struct {
	buffers *Buffers

	mu       sync.RWMutex // the lock is for the blocks' reuse; bytes once written do not change
	blocks   []*block
	inMemory int64 // bytes in blocks
	file     *os.File
	size     int64
	crc      uint32
	released bool
}

var errReleased = errors.New("the frame was released")

// Write appends p. An error (the disk of the temporary file) is final for the
// frame.
func (f *Frame) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released {
		return 0, errReleased
	}
	written := 0
	for len(p) > 0 && f.file == nil && f.mayGrow() {
		at := f.inMemory % blockSize
		if at == 0 {
			f.blocks = append(f.blocks, f.buffers.block())
		}
		n := copy(f.blocks[len(f.blocks)-1][at:], p)
		f.account(p[:n])
		f.inMemory += int64(n)
		written += n
		p = p[n:]
	}
	if len(p) == 0 {
		return written, nil
	}
	if f.file == nil {
		file, err := unnamed(f.buffers.dir)
		if err != nil {
			return written, err
		}
		f.file = file
	}
	n, err := f.file.WriteAt(p, f.size-f.inMemory)
	if err != nil {
		return written + n, fmt.Errorf("writing to a temporary file in %s: %w", f.buffers.dir, err)
	}
	f.account(p)
	return written + n, nil
}

// mayGrow reports whether the next bytes go to memory: into the block that is
// begun, or a further one within the limit.
func (f *Frame) mayGrow() bool {
	return f.buffers.dir == "" || f.inMemory%blockSize != 0 || f.inMemory+blockSize <= f.buffers.limit
}

func (f *Frame) account(p []byte) {
	f.crc = crc32.Update(f.crc, f.buffers.table, p)
	f.size += int64(len(p))
}

// unnamed opens a temporary file in dir without a name, or takes its name away,
// so that the space comes back whatever happens to the process.
func unnamed(dir string) (*os.File, error) {
	if file, err := tempfile.Unnamed(dir, 0o600); err == nil {
		return file, nil
	} else if !errors.Is(err, errors.ErrUnsupported) {
		return nil, fmt.Errorf("making a temporary file for a frame: %w", err)
	}
	file, err := os.CreateTemp(dir, "walferry-frame-*.tmp")
	if err != nil {
		return nil, fmt.Errorf("making a temporary file for a frame: %w", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("unlinking a temporary file: %w", err), file.Close())
	}
	return file, nil
}

// Size returns the bytes written so far.
func (f *Frame) Size() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.size
}

// CRC32C returns the Castagnoli checksum of the bytes written so far.
func (f *Frame) CRC32C() uint32 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.crc
}

// ReadAt is io.ReaderAt. It fails after Release.
func (f *Frame) ReadAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.released {
		return 0, errReleased
	}
	if off < 0 {
		return 0, fmt.Errorf("reading a frame at %d", off)
	}
	n := 0
	for n < len(p) && off < f.inMemory {
		at := off % blockSize
		from := f.blocks[off/blockSize][at:min(blockSize, at+f.inMemory-off)]
		c := copy(p[n:], from)
		n += c
		off += int64(c)
	}
	if n == len(p) {
		return n, nil
	}
	if f.file == nil {
		return n, io.EOF
	}
	m, err := f.file.ReadAt(p[n:], off-f.inMemory)
	return n + m, err
}

// Lend implements objstore.Lender. Writing and Release wait for it.
func (f *Frame) Lend(show func(piece []byte) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.released {
		return errReleased
	}
	for i, b := range f.blocks {
		if err := show(b[:min(blockSize, f.inMemory-int64(i)*blockSize)]); err != nil {
			return err
		}
	}
	if f.file == nil {
		return nil
	}
	buf := make([]byte, min(blockSize, f.size-f.inMemory))
	for at := f.inMemory; at < f.size; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), f.size-at)]
		if n, err := f.file.ReadAt(buf, at-f.inMemory); n < len(buf) {
			return fmt.Errorf("reading a temporary file of %s: %w", f.buffers.dir, err)
		}
		if err := show(buf); err != nil {
			return err
		}
	}
	return nil
}

// Release gives memory and temporary file back. It may be called again.
func (f *Frame) Release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released {
		return
	}
	f.released = true
	for _, b := range f.blocks {
		f.buffers.pool.Put(b)
	}
	f.blocks = nil
	if f.file != nil {
		// Nothing is lost by a failed close: the file has no name, and what it
		// held is stored or will be encoded again.
		_ = f.file.Close()
		f.file = nil
	}
}
