package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/waltest"
)

const spoolDir = "/var/lib/spool"

// promises is what a spool said is durable, and what it may have forgotten.
type promises struct {
	bound     bool
	histories map[segment.Timeline]bool
	synced    map[segment.Name]segment.LSN
	sealed    map[segment.Name]bool
	dropped   map[segment.Name]bool // Drop was called
}

// story is a receiver's life with a spool, told up to the first failure or
// through it.
type story struct {
	fs   *crashfs.FS
	s    *Spool
	log  *waltest.Log // timeline 1
	next *waltest.Log // timeline 2, which takes over in the second segment
	promises
}

// Histories as a server sends them.
var (
	history2 = []byte("1\t0/3160000\tno recovery target specified\n")
	history3 = []byte("1\t0/3160000\tno recovery target specified\n2\t0/3200000\tbefore\n")
)

const turn = segment.LSN(0x3160000) // where timeline 1 ended, in its second segment

// logs makes the WAL of both timelines once: every story reads it only.
func logs() (log, next *waltest.Log) {
	log = waltest.New(sysid, size, base)
	log.Fill(base + 2*segment.LSN(size))
	next = waltest.New(sysid, size, base+segment.LSN(size))
	next.Timeline = 2
	next.Fill(base + 2*segment.LSN(size))
	return log, next
}

func newStory(seed uint64, log, next *waltest.Log) *story {
	return &story{fs: crashfs.New(seed), log: log, next: next, promises: promises{
		histories: make(map[segment.Timeline]bool), synced: make(map[segment.Name]segment.LSN),
		sealed: make(map[segment.Name]bool), dropped: make(map[segment.Name]bool),
	}}
}

func (y *story) wal(n segment.Name) *waltest.Log {
	if n.Timeline == 2 {
		return y.next
	}
	return y.log
}

var (
	first  = size.Name(1, base)
	second = size.Name(1, base+segment.LSN(size))
	third  = size.Name(2, base+segment.LSN(size))
)

// tell is the story, step by step. try is given each step and decides what a
// failure means; a step can be done again.
func (y *story) tell(try func(step func() error) error) error {
	for _, step := range []func() error{
		func() error { return y.bind() },
		func() error { return y.stream(first, base+300_000) },
		func() error { return y.stream(first, first.End(size)) },
		func() error { return y.seal(first) },
		func() error { return y.stream(second, second.Start(size)+100_000) },
		func() error { return y.history(2, history2) },
		func() error { return y.drop(first) },
		func() error { return y.stream(second, turn+5000) },
		func() error { return y.finish(second, turn) },
		func() error { return y.stream(third, third.Start(size)+400_000) },
		func() error { return y.history(3, history3) },
		func() error { return y.drop(second) },
		func() error { return y.stream(third, third.End(size)) },
		func() error { return y.seal(third) },
	} {
		if err := try(step); err != nil {
			return err
		}
	}
	return nil
}

func (y *story) open() (err error) {
	if y.s == nil {
		y.s, err = Open(y.fs, spoolDir, Options{})
	}
	return err
}

func (y *story) bind() error {
	if err := y.open(); err != nil {
		return err
	}
	if err := y.s.Bind(cluster); err != nil {
		return err
	}
	y.bound = true
	return nil
}

func (y *story) history(t segment.Timeline, content []byte) error {
	if err := y.open(); err != nil {
		return err
	}
	if err := y.s.PutHistory(t, content); err != nil {
		return err
	}
	y.histories[t] = true
	return nil
}

// begin returns the segment for writing, nil when it needs none any more.
func (y *story) begin(n segment.Name) (*Segment, error) {
	if err := y.open(); err != nil {
		return nil, err
	}
	for _, g := range y.s.Segments() {
		if _, finished := g.Finished(); g.Name() == n && (g.Sealed() || finished) {
			return nil, nil
		}
	}
	return y.s.Begin(n)
}

// stream does as a receiver does: it takes the segment from its start, writes
// in messages, large ones and a small one, and syncs behind every second one.
func (y *story) stream(n segment.Name, to segment.LSN) error {
	g, err := y.begin(n)
	if err != nil || g == nil {
		return err
	}
	err = y.streamInto(g, to)
	if err != nil {
		g.Abandon()
	}
	return err
}

func (y *story) streamInto(g *Segment, to segment.LSN) error {
	log := y.wal(g.Name())
	for i, at := 0, g.Start(); at < to; i++ {
		end := min(to, at+130_003)
		if i == 2 {
			end = min(to, at+1000)
		}
		if err := g.WriteAt(log.Bytes(at, end), at); err != nil {
			return err
		}
		g.Advance(end)
		if i%2 == 1 && end != g.End() || end == to && to != g.End() { // the end is Seal's to sync
			synced, err := g.Sync()
			if err != nil {
				return err
			}
			if synced < end { // more when the segment was streamed before
				return fmt.Errorf("synced up to %s instead of %s", synced, end)
			}
			y.synced[g.Name()] = max(y.synced[g.Name()], synced)
		}
		at = end
	}
	return nil
}

func (y *story) seal(n segment.Name) error {
	if err := y.stream(n, n.End(size)); err != nil { // again, when it was given up
		return err
	}
	g, err := y.begin(n)
	if err != nil || g == nil {
		return err
	}
	if err := g.Seal(); err != nil {
		g.Abandon()
		return err
	}
	y.sealed[n] = true
	return nil
}

func (y *story) finish(n segment.Name, at segment.LSN) error {
	if err := y.stream(n, at); err != nil {
		return err
	}
	g, err := y.begin(n)
	if err != nil || g == nil {
		return err
	}
	if err := g.Finish(at); err != nil {
		g.Abandon()
		return err
	}
	return nil
}

func (y *story) drop(n segment.Name) error {
	if err := y.open(); err != nil {
		return err
	}
	for _, g := range y.s.Segments() {
		if g.Name() != n {
			continue
		}
		if _, finished := g.Finished(); !g.Sealed() && !finished {
			if err := y.finish(n, turn); err != nil { // it was reopened meanwhile
				return err
			}
		}
		y.dropped[n] = true
		return y.s.Drop(g)
	}
	return nil
}

// kept checks what is in the spool, as it is now open, against the promises.
func (y *story) kept() error {
	id, ok := y.s.Identity()
	if y.bound && !ok || ok && id != cluster {
		return fmt.Errorf("the identity is %v, %v", id, ok)
	}
	for t, want := range map[segment.Timeline][]byte{2: history2, 3: history3} {
		got, err := y.s.History(t)
		if y.histories[t] && err != nil || err == nil && !bytes.Equal(got, want) {
			return fmt.Errorf("%s is %q, %v", t.HistoryName(), got, err)
		}
	}
	held := make(map[segment.Name]*Segment)
	for _, g := range y.s.Segments() {
		held[g.Name()] = g
		log := y.wal(g.Name())
		whole := log.Segment(g.Start())
		start, end := g.Vouched()
		have := make([]byte, end-start)
		if err := g.ReadAt(have, start); err != nil {
			return err
		}
		if !bytes.Equal(have, whole[start-g.Start():end-g.Start()]) {
			return fmt.Errorf("%s is vouched for from %s to %s, and has other bytes", g.Name(), start, end)
		}
		if g.Sealed() && (start != g.Start() || end != g.End()) {
			return fmt.Errorf("%s is sealed, and vouched for from %s to %s", g.Name(), start, end)
		}
		_, least, err := segment.VerifiedRecords(bytes.NewReader(whole), int64(max(y.synced[g.Name()], g.Start())-g.Start()), segment.PageRules{Name: g.Name(), Size: size})
		if err != nil {
			return err
		}
		if end < least {
			return fmt.Errorf("%s is vouched for up to %s; the records that were synced go to %s", g.Name(), end, least)
		}
	}
	for n, to := range y.synced {
		g := held[n]
		if g == nil {
			if y.dropped[n] {
				continue
			}
			return fmt.Errorf("%s was synced up to %s and is gone", n, to)
		}
		have := make([]byte, to-g.Start())
		if err := g.ReadAt(have, g.Start()); err != nil {
			return err
		}
		if !bytes.Equal(have, y.wal(n).Bytes(g.Start(), to)) {
			return fmt.Errorf("%s was synced up to %s and has other bytes", n, to)
		}
	}
	for n := range y.sealed {
		if held[n] == nil && !y.dropped[n] || held[n] != nil && !held[n].Sealed() {
			return fmt.Errorf("%s was sealed and is not", n)
		}
	}
	return nil
}

// end takes the power away, and looks.
func (y *story) end() error {
	y.fs.Crash()
	y.s = nil
	if err := y.open(); err != nil {
		return fmt.Errorf("after the crash: %w", err)
	}
	return y.kept()
}

// seeds returns how many times a sweep is done, each with other luck.
func seeds() uint64 {
	if os.Getenv("WALFERRY_FULL") != "" {
		return 5
	}
	return 1
}

// The power goes at every operation in turn. What was promised is there; and
// the receiver goes on from there to the story's end, where the power goes
// again.
func TestPowerGoesAtEveryOperation(t *testing.T) {
	t.Parallel()
	log, next := logs()
	once := func(step func() error) error { return step() }
	for seed := range seeds() {
		for n := 1; ; n++ {
			y := newStory(seed<<32|uint64(n), log, next)
			y.fs.StopAt(n)
			err := y.tell(once)
			if err == nil {
				if n < 100 {
					t.Fatalf("the story has %d operations only", n)
				}
				break
			}
			if !errors.Is(err, crashfs.ErrCrashed) {
				t.Fatalf("seed %d, operation %d: %v", seed, n, err)
			}
			if err := y.end(); err != nil {
				t.Fatalf("seed %d, power gone at operation %d: %v", seed, n, err)
			}
			if err := y.tell(once); err != nil {
				t.Fatalf("seed %d, going on after operation %d: %v", seed, n, err)
			}
			if err := y.end(); err != nil {
				t.Fatalf("seed %d, operation %d, at the end: %v", seed, n, err)
			}
		}
	}
}

// Every operation fails in turn, once, and the receiver tries again: within
// the process when n is odd, with the spool closed and opened when n is
// even. At the end the power goes.
func TestEveryOperationFails(t *testing.T) {
	t.Parallel()
	log, next := logs()
	failures := []error{syscall.EIO}
	if seeds() > 1 {
		failures = append(failures, syscall.ENOSPC)
	}
	for seed := range seeds() {
		for _, failure := range failures {
			for n := 1; ; n++ {
				y := newStory(seed<<32|uint64(n), log, next)
				y.fs.FailAt(n, failure)
				err := y.tell(func(step func() error) error {
					err := step()
					for i := 0; err != nil && i < 3; i++ {
						if !errors.Is(err, failure) {
							return err
						}
						if y.s != nil && (n%2 == 0 || y.s.Failed() != nil) {
							if err := y.s.Close(); err != nil && !errors.Is(err, failure) {
								return err
							}
							y.s = nil
						}
						err = step()
					}
					return err
				})
				if err != nil {
					t.Fatalf("seed %d, operation %d fails: %v", seed, n, err)
				}
				told := y.fs.Ops()
				y.fs.FailAt(0, nil)
				if err := y.kept(); err != nil {
					t.Fatalf("seed %d, operation %d failed: %v", seed, n, err)
				}
				if err := y.end(); err != nil {
					t.Fatalf("seed %d, operation %d failed, power gone at the end: %v", seed, n, err)
				}
				if n > told {
					break
				}
			}
		}
	}
}

// A sync that fails takes the bytes for clean. A process that is then killed
// leaves them to the next one, which can read them, and would lose them.
func TestBytesOfAFailedSyncAreWrittenAgain(t *testing.T) {
	log, next := logs()
	for seed := range uint64(20) {
		y := newStory(seed, log, next)
		check(t, y.bind())
		g, err := y.s.Begin(first)
		check(t, err)
		check(t, g.WriteAt(log.Bytes(base, base+400_000), base))
		g.Advance(base + 400_000)
		y.fs.FailAt(1, syscall.EIO)
		if _, err := g.Sync(); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		if _, err := g.Sync(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("a second sync says %v", err)
		}
		if err := g.WriteAt(log.Bytes(base, base+1), base); !errors.Is(err, syscall.EIO) {
			t.Fatalf("a write after a failed sync says %v", err)
		}
		if _, err := io.ReadAll(g.Follow(t.Context())); !errors.Is(err, syscall.EIO) {
			t.Fatalf("a reader after a failed sync gets %v", err)
		}
		if seed%2 == 0 {
			g.Abandon()
		} else {
			check(t, y.s.Close())
			y.s = nil
		}
		check(t, y.stream(first, base+400_000))
		if err := y.end(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// A failed sync of the directory is final for the whole spool.
func TestFailedSyncOfTheDirectory(t *testing.T) {
	log, next := logs()
	y := newStory(1, log, next)
	check(t, y.bind())
	g, err := y.s.Begin(first)
	check(t, err)
	check(t, g.WriteAt(log.Bytes(base, base+1000), base))
	g.Advance(base + 1000)
	y.fs.FailAt(2, syscall.EIO) // the first is the file's
	if _, err := g.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	g.Abandon()
	if _, err := y.s.Begin(first); !errors.Is(err, syscall.EIO) {
		t.Errorf("Begin: %v", err)
	}
	if err := y.s.PutHistory(2, history2); !errors.Is(err, syscall.EIO) {
		t.Errorf("PutHistory: %v", err)
	}
	check(t, y.s.Close())
	y.s = nil
	check(t, y.stream(first, base+1000))
	if err := y.end(); err != nil {
		t.Error(err)
	}
}

// Finish promises what Advance let go, without a Sync of the caller's.
func TestFinishIsDurable(t *testing.T) {
	log, next := logs()
	for seed := range uint64(20) {
		y := newStory(seed, log, next)
		check(t, y.bind())
		g, err := y.s.Begin(second)
		check(t, err)
		check(t, g.WriteAt(log.Bytes(g.Start(), turn), g.Start()))
		g.Advance(turn)
		check(t, g.Finish(turn))
		y.synced[second] = turn
		if err := y.end(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// A crash may leave a partial shorter than it was allocated.
func TestShortPartial(t *testing.T) {
	log, next := logs()
	y := newStory(1, log, next)
	check(t, y.bind())
	check(t, y.s.Close())
	name := spoolDir + "/" + first.String() + ".partial"
	h, err := y.fs.Create(name, 0o600)
	check(t, err)
	_, err = h.WriteAt(log.Bytes(base, base+100_000), 0)
	check(t, errors.Join(err, h.Close()))
	y.s = nil
	check(t, y.open())
	g, err := y.s.Begin(first)
	check(t, err)
	if start, end := g.Vouched(); start != base || end < base+70_000 || end > base+100_000 {
		t.Errorf("vouched for from %s to %s", start, end)
	}
	if fi, err := y.fs.Stat(name); err != nil || fi.Size() != int64(size) {
		t.Errorf("the file is %v, %v", fi, err)
	}
	check(t, y.seal(first))
	if err := y.end(); err != nil {
		t.Error(err)
	}
}

// A full disk shows at Begin, and leaves nothing behind.
func TestFullDisk(t *testing.T) {
	log, next := logs()
	y := newStory(1, log, next)
	y.fs.SetSpace(int64(size) + int64(size)/2)
	check(t, y.bind())
	check(t, y.stream(first, first.End(size)))
	check(t, y.seal(first))
	if _, err := y.s.Begin(second); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Begin on a full disk: %v", err)
	}
	if len(y.s.Segments()) != 1 {
		t.Fatal("a segment that was not begun is held")
	}
	if _, err := y.fs.Stat(spoolDir + "/" + second.String() + ".partial"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the file that could not be allocated: %v", err)
	}
	// What is in it must get out: a full disk keeps no spool from being opened.
	check(t, y.s.Close())
	y.s = nil
	y.fs.SetSpace(int64(size) + 1000)
	check(t, y.open())
	check(t, y.drop(first))
	if !y.s.Room() {
		t.Error("an empty spool on a small disk has no room")
	}
	check(t, y.stream(second, second.Start(size)+1000))
	if err := y.end(); err != nil {
		t.Error(err)
	}
}

// Of a backlog of any length few files are open.
func TestFewFilesAreOpen(t *testing.T) {
	f := crashfs.New(1)
	s, err := Open(f, spoolDir, Options{Limit: 1 << 40})
	check(t, err)
	check(t, s.Bind(cluster))
	log := waltest.New(sysid, size, base)
	log.Fill(base + 6*segment.LSN(size))
	for i := range segment.LSN(6) {
		g, err := s.Begin(size.Name(1, base+i*segment.LSN(size)))
		check(t, err)
		check(t, g.WriteAt(log.Bytes(g.Start(), g.End()), g.Start()))
		g.Advance(g.End())
		if i < 2 { // two are being read
			if _, err := g.Follow(t.Context()).Read(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
		}
		check(t, g.Seal())
		check(t, g.ReadAt(make([]byte, 100), g.Start()))
	}
	if n := f.OpenFiles(); n != 2 {
		t.Errorf("%d files are open; want the 2 that are read", n)
	}
	for _, g := range s.Segments() {
		check(t, s.Drop(g))
	}
	if n := f.OpenFiles(); n != 0 {
		t.Errorf("%d files are open of segments that were dropped", n)
	}
	check(t, s.Close())
}

// Whatever lies in the directory, opening gives an error or a spool, and
// changes no file that is not its own.
func TestOpenDamaged(t *testing.T) {
	for what, c := range map[string]struct {
		file string
		size int64
		text string
	}{
		"short sealed segment":    {first.String(), int64(size) - 1, first.String() + " has 1048575 bytes"},
		"long sealed segment":     {first.String(), int64(size) + 1, first.String() + " has 1048577 bytes"},
		"long partial":            {first.String() + ".partial", int64(size) + 1, first.String() + ".partial has"},
		"impossible segment name": {"0000000100000000FFFFFFFF", int64(size), "0000000100000000FFFFFFFF"},
		"long history":            {"00000005.history", 2 << 20, "00000005.history has"},
		"identity of zeros":       {identityName, 20, identityName + " is damaged"},
	} {
		f := crashfs.New(1)
		s, err := Open(f, spoolDir, Options{})
		check(t, err)
		if c.file != identityName {
			check(t, s.Bind(cluster))
		}
		check(t, s.Close())
		h, err := f.Create(spoolDir+"/"+c.file, 0o600)
		check(t, err)
		check(t, h.Allocate(c.size))
		check(t, h.Close())
		if _, err := Open(f, spoolDir, Options{}); err == nil || !bytes.Contains([]byte(err.Error()), []byte(c.text)) {
			t.Errorf("%s: %v; want %q", what, err, c.text)
		}
		if fi, err := f.Stat(spoolDir + "/" + c.file); err != nil || fi.Size() != c.size {
			t.Errorf("%s: the file is %v, %v", what, fi, err)
		}
		if _, err := f.Lock(spoolDir + "/" + lockName); err != nil {
			t.Errorf("%s: the lock is still held: %v", what, err)
		}
	}
}

// A spool with segments and no identity says which file it cannot place.
func TestOpenWithoutIdentity(t *testing.T) {
	f := crashfs.New(1)
	check(t, f.Mkdir(spoolDir, 0o700))
	h, err := f.Create(spoolDir+"/"+first.String(), 0o600)
	check(t, err)
	check(t, errors.Join(h.Allocate(int64(size)), h.Close()))
	if _, err := Open(f, spoolDir, Options{}); err == nil || !bytes.Contains([]byte(err.Error()), []byte(first.String())) {
		t.Error(err)
	}
}

// Two files of one segment: the sealed one counts, the other is left alone.
func TestSealedAndPartial(t *testing.T) {
	log, next := logs()
	y := newStory(1, log, next)
	check(t, y.bind())
	check(t, y.seal(first))
	check(t, y.s.Close())
	partial := spoolDir + "/" + first.String() + ".partial"
	h, err := y.fs.Create(partial, 0o600)
	check(t, err)
	_, err = h.WriteAt([]byte("remains"), 0)
	check(t, errors.Join(err, h.Close()))
	if err := y.end(); err != nil {
		t.Fatal(err)
	}
	if all := y.s.Segments(); len(all) != 1 || !all[0].Sealed() {
		t.Errorf("%d segments are held", len(all))
	}
}

// Remains that mean nothing are removed, files of others are not.
func TestOpenTidiesUp(t *testing.T) {
	f := crashfs.New(1)
	s, err := Open(f, spoolDir, Options{})
	check(t, err)
	check(t, s.Bind(cluster))
	check(t, s.Close())
	gone := []string{"00000002.history.tmp", identityName + ".tmp", first.String() + ".partial", second.String() + ".partial"}
	stay := []string{"notes.tmp", "00000002.HISTORY", first.String() + ".gz", first.String() + ".partial.tmp", "archive_status"}
	for i, name := range append(gone, stay...) {
		h, err := f.Create(spoolDir+"/"+name, 0o600)
		check(t, err)
		check(t, errors.Join(h.Allocate(int64(i*i*i*i*i)), h.Close())) // also empty and short ones
	}
	s, err = Open(f, spoolDir, Options{})
	check(t, err)
	if len(s.Segments()) != 0 {
		t.Errorf("%d segments", len(s.Segments()))
	}
	for _, name := range gone {
		if _, err := f.Stat(spoolDir + "/" + name); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	for _, name := range stay {
		if _, err := f.Stat(spoolDir + "/" + name); err != nil {
			t.Error(strconv.Quote(name), err)
		}
	}
	check(t, s.Close())
}
