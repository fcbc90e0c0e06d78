package unpack

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"sync"
)

// bufferSize is the unit in which file contents are handed to the writers.
const bufferSize = 256 << 10

// queued is how many buffers may wait for one writer.
const queued = 8

type buffer [bufferSize]byte

// writers write files beside the goroutines that decode parts. A file has one
// writer, so that its bytes keep their order; files that follow each other
// have different ones. Use: begin, write…, end of a file from one goroutine;
// any number of files at a time.
type writers struct {
	tree *tree
	crc  *crc32.Table
	// written is told of every file that is complete, by several goroutines.
	written func(f *file) error
	fail    context.CancelCauseFunc // an error ends the whole work

	pool   sync.Pool // of *buffer
	queues []chan job
	mu     sync.Mutex
	turn   int
	wg     sync.WaitGroup
}

// file is a file on its way to the disk. While it is being written it belongs
// to its writer, before that to who began it.
type file struct {
	name    string // from the data directory
	mode    fs.FileMode
	replace bool
	size    int64 // as its header says
	got     int64
	crc     uint32

	spot  spot
	queue chan job
	f     *os.File
	// broken: an error was found; what still comes is thrown away.
	broken bool
}

type job struct {
	f    *file
	data *buffer
	n    int // bytes of data
	last bool
	drop bool // nothing more comes, and the file is not whole
}

func newWriters(t *tree, n int, fail context.CancelCauseFunc, written func(*file) error) *writers {
	w := &writers{tree: t, crc: crc32.MakeTable(crc32.Castagnoli), written: written, fail: fail, queues: make([]chan job, n)}
	w.pool.New = func() any { return new(buffer) }
	for i := range w.queues {
		w.queues[i] = make(chan job, queued)
		w.wg.Go(func() {
			for j := range w.queues[i] {
				w.do(j)
			}
		})
	}
	return w
}

// buffer returns memory for the next bytes of a file.
func (w *writers) buffer() *buffer { return w.pool.Get().(*buffer) }

// begin assigns a file to a writer.
func (w *writers) begin(f *file) error {
	s, err := w.tree.at(f.name)
	if err != nil {
		return err
	}
	f.spot = s
	w.mu.Lock()
	defer w.mu.Unlock()
	f.queue = w.queues[w.turn]
	w.turn = (w.turn + 1) % len(w.queues)
	return nil
}

// write hands over the next n bytes, in a buffer that is the writers' from now
// on; last says that they complete the file. It waits while the writer has
// enough to do. A failure of the disk ends the whole work's context, not this
// call.
func (w *writers) write(f *file, data *buffer, n int, last bool) {
	f.queue <- job{f: f, data: data, n: n, last: last}
}

// drop gives a file up that was begun.
func (w *writers) drop(f *file) { f.queue <- job{f: f, drop: true} }

// wait ends the writers; nothing may be begun any more. On return all files
// are closed.
func (w *writers) wait() {
	for _, q := range w.queues {
		close(q)
	}
	w.wg.Wait()
}

// do is one step of a writer. It never waits for anybody.
func (w *writers) do(j job) {
	f := j.f
	if !f.broken && !j.drop {
		if err := w.step(j); err != nil {
			f.broken = true
			w.fail(err)
		}
	}
	if j.data != nil {
		w.pool.Put(j.data)
	}
	if (j.drop || f.broken) && f.f != nil {
		_ = f.f.Close() // the file is given up, for a reason that was told
		f.f = nil
	}
}

func (w *writers) step(j job) (err error) {
	f := j.f
	if f.f == nil {
		f.f, err = w.tree.create(f.spot, f.mode, f.replace)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: %s is in it twice", ErrDamaged, f.name)
		}
		if err != nil {
			return err
		}
	}
	if j.n > 0 {
		if err := w.tree.changing("write", f.spot); err != nil {
			return err
		}
		data := j.data[:j.n]
		if _, err := f.f.Write(data); err != nil {
			return describe("writing", f.spot, err)
		}
		f.crc = crc32.Update(f.crc, w.crc, data)
		f.got += int64(j.n)
	}
	if !j.last {
		return nil
	}
	flush(f.f)
	err = f.f.Close()
	f.f = nil
	if err != nil {
		return describe("writing", f.spot, err)
	}
	return w.written(f)
}
