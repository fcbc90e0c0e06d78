package waldir_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/disk/waldir"
	"github.com/walferry/walferry/segment/spool"
	"github.com/walferry/walferry/segment/waltest"
)

// story is a receiver's life with a directory, told up to a failure or through
// it, by runs of different methods.
type story struct {
	fs      *crashfs.FS
	seen    disk.FS // fs, or what is put in front of it
	log     *waltest.Log
	o       waldir.Options
	s       *spool.Spool
	synced  map[segment.Name]segment.LSN
	sealed  map[segment.Name]bool
	history bool
}

func newStory(seed uint64, log *waltest.Log, o waldir.Options) *story {
	f := crashfs.New(seed)
	y := &story{fs: f, seen: f, log: log, o: o, synced: make(map[segment.Name]segment.LSN), sealed: make(map[segment.Name]bool)}
	if err := y.fs.Mkdir(dir, 0o700); err != nil {
		panic(err)
	}
	if err := errors.Join(y.fs.SyncDir("/wal"), y.fs.SyncDir("/")); err != nil {
		panic(err)
	}
	return y
}

func (y *story) tell(try func(step func() error) error) error {
	for _, step := range []func() error{
		func() error { return y.stream(first, base+170_000) },
		func() error { return y.seal(first) },
		func() error { return y.putHistory() },
		func() error { return y.stream(second, second.Start(size)+130_000) },
		func() error { return y.again() },
		func() error { return y.stream(second, second.Start(size)+200_000) },
	} {
		if err := try(step); err != nil {
			return err
		}
	}
	return nil
}

func (y *story) open() (err error) {
	if y.s != nil {
		return nil
	}
	if y.s, err = spool.Open(waldir.New(y.seen, dir, y.o), dir, spool.Options{}); err != nil {
		y.s = nil
		return err
	}
	return y.s.Bind(cluster)
}

// again gives the open segment up.
func (y *story) again() error {
	if err := y.open(); err != nil {
		return err
	}
	for _, g := range y.s.Segments() {
		g.Abandon()
	}
	return nil
}

func (y *story) putHistory() error {
	if err := y.open(); err != nil {
		return err
	}
	err := y.s.PutHistory(2, history2)
	y.history = y.history || err == nil
	return err
}

// begin returns the segment for writing, nil when it is sealed.
func (y *story) begin(n segment.Name) (*spool.Segment, error) {
	if err := y.open(); err != nil {
		return nil, err
	}
	for _, g := range y.s.Segments() {
		if g.Name() == n && g.Sealed() {
			return nil, nil
		}
	}
	return y.s.Begin(n)
}

// stream does as a receiver does: from the segment's start, in messages, with
// a sync behind every second one, and one in the middle of a message.
func (y *story) stream(n segment.Name, to segment.LSN) error {
	g, err := y.begin(n)
	if err != nil || g == nil {
		return err
	}
	for i, at := 0, g.Start(); at < to && err == nil; i++ {
		end := min(to, at+60_001)
		if i == 1 {
			end = min(to, at+1000)
		}
		if err = g.WriteAt(y.log.Bytes(at, end), at); err != nil {
			break
		}
		g.Advance(end)
		if i == 2 {
			g.Advance(end - 100)
		}
		if i < 4 && i%2 == 1 || end == to && to != g.End() {
			var synced segment.LSN
			if synced, err = g.Sync(); err == nil {
				y.synced[n] = max(y.synced[n], synced)
			}
		}
		at = end
	}
	if err != nil {
		g.Abandon()
	}
	return err
}

func (y *story) seal(n segment.Name) error {
	if err := y.stream(n, n.End(size)); err != nil {
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

// end takes the power away, and looks with a run of another method.
func (y *story) end(m waldir.Method) error {
	y.fs.Crash()
	y.s = nil
	y.o.Method = m
	if err := y.open(); err != nil {
		return fmt.Errorf("after the crash: %w", err)
	}
	return y.kept()
}

// kept checks what is there against what was promised.
func (y *story) kept() error {
	held := make(map[segment.Name]*spool.Segment)
	for _, g := range y.s.Segments() {
		held[g.Name()] = g
		start, end := g.Vouched()
		have := make([]byte, end-start)
		if err := g.ReadAt(have, start); err != nil {
			return err
		}
		if !bytes.Equal(have, y.log.Bytes(start, end)) {
			return fmt.Errorf("%s is vouched for from %s to %s, and has other bytes", g.Name(), start, end)
		}
	}
	for n, to := range y.synced {
		g := held[n]
		if g == nil {
			return fmt.Errorf("%s was synced up to %s and is gone", n, to)
		}
		have := make([]byte, to-g.Start())
		if err := g.ReadAt(have, g.Start()); err != nil {
			return err
		}
		if !bytes.Equal(have, y.log.Bytes(g.Start(), to)) {
			return fmt.Errorf("%s was synced up to %s and has other bytes", n, to)
		}
	}
	for n := range y.sealed {
		if held[n] == nil || !held[n].Sealed() {
			return fmt.Errorf("%s was sealed and is not", n)
		}
	}
	if got, err := y.s.History(2); y.history && (err != nil || !bytes.Equal(got, history2)) {
		return fmt.Errorf("the history is %q, %v", got, err)
	}
	return y.tidy()
}

// tidy checks that the directory has nothing but what pg_receivewal would
// leave there, and of each segment one file.
func (y *story) tidy() error {
	entries, err := y.fs.ReadDir(dir)
	if err != nil {
		return err
	}
	seen := make(map[string]string)
	for _, e := range entries {
		file := e.Name()
		whole := strings.TrimSuffix(file, ".partial")
		whole = strings.TrimSuffix(strings.TrimSuffix(whole, ".gz"), ".lz4")
		if _, err := segment.ParseName(whole); err != nil && file != "00000002.history" {
			return fmt.Errorf("there is a file %q", file)
		}
		if seen[whole] != "" {
			return fmt.Errorf("there are %q and %q", seen[whole], file)
		}
		seen[whole] = file
	}
	return nil
}

func full() bool { return os.Getenv("WALFERRY_FULL") != "" }

// luck is how many seeds are tried: a third of n in a short run.
func luck(n int) int {
	if full() {
		return n
	}
	return n/3 + 1
}

var methods = []waldir.Method{waldir.None, waldir.Gzip, waldir.LZ4}

// eachChange calls f for a run's method and the next's.
func eachChange(t *testing.T, f func(t *testing.T, was, is waldir.Method)) {
	for _, was := range methods {
		for _, is := range methods {
			t.Run(fmt.Sprintf("%d-%d", was, is), func(t *testing.T) {
				t.Parallel()
				f(t, was, is)
			})
		}
	}
}

func level(m waldir.Method) int {
	if m == waldir.Gzip {
		return 1
	}
	return 0
}

// The power goes at every operation in turn (at every ninth of each change of
// methods, unless WALFERRY_FULL is set). A run of another method finds what was
// promised, goes on to the story's end, and the power goes again.
func TestPowerGoesAtEveryOperation(t *testing.T) {
	log := twoSegments()
	once := func(step func() error) error { return step() }
	eachChange(t, func(t *testing.T, was, is waldir.Method) {
		stride := 9
		if full() {
			stride = 1
		}
		for n, last := 1+(3*int(was)+int(is))%stride, false; !last; n += stride {
			y := newStory(uint64(n), log, waldir.Options{Method: was, Level: level(was)})
			y.fs.StopAt(n)
			err := y.tell(once)
			if last = err == nil; last && n < 50 {
				t.Fatalf("the story has %d operations only", n)
			}
			if err != nil && !errors.Is(err, crashfs.ErrCrashed) {
				t.Fatalf("operation %d: %v", n, err)
			}
			y.o.Level = level(is)
			if err := y.end(is); err != nil {
				t.Fatalf("power gone at operation %d: %v", n, err)
			}
			if err := y.tell(once); err != nil {
				t.Fatalf("going on after operation %d: %v", n, err)
			}
			if err := y.end(was); err != nil {
				t.Fatalf("operation %d, at the end: %v", n, err)
			}
		}
	})
}

// The same for every operation of the run that finds the other's partial.
func TestPowerGoesWhileAPartialIsTakenOver(t *testing.T) {
	log := twoSegments()
	eachChange(t, func(t *testing.T, was, is waldir.Method) {
		for n := 1; ; n++ {
			y := newStory(uint64(n)<<8, log, waldir.Options{Method: was})
			check(t, y.stream(second, second.Start(size)+100_000))
			if n%2 == 0 {
				check(t, y.end(was)) // the partial is one of a power failure
			}
			check(t, y.s.Close())
			y.s, y.o.Method = nil, is
			y.fs.StopAt(n)
			err := y.stream(second, second.Start(size)+130_000)
			if err == nil {
				break
			}
			if !errors.Is(err, crashfs.ErrCrashed) {
				t.Fatalf("operation %d: %v", n, err)
			}
			if err := y.end(methods[n%3]); err != nil {
				t.Fatalf("power gone at operation %d: %v", n, err)
			}
			check(t, y.stream(second, second.Start(size)+140_000))
			if err := y.end(was); err != nil {
				t.Fatalf("operation %d, at the end: %v", n, err)
			}
		}
	})
}

// Every operation fails in turn, once, and the receiver tries again, in the
// same process or in another.
func TestEveryOperationFails(t *testing.T) {
	log := twoSegments()
	for _, m := range methods {
		t.Run(fmt.Sprint(m), func(t *testing.T) {
			t.Parallel()
			stride := 2
			if full() {
				stride = 1
			}
			for n := 1; ; n += stride {
				y := newStory(uint64(n), log, waldir.Options{Method: m, Level: level(m)})
				y.fs.FailAt(n, syscall.EIO)
				err := y.tell(func(step func() error) error {
					err := step()
					for i := 0; err != nil && i < 3; i++ {
						if !errors.Is(err, syscall.EIO) {
							return err
						}
						if y.s != nil && (n/2%2 == 0 || y.s.Failed() != nil) {
							if err := y.s.Close(); err != nil && !errors.Is(err, syscall.EIO) {
								return err
							}
							y.s = nil
						}
						err = step()
					}
					return err
				})
				if err != nil {
					t.Fatalf("operation %d fails: %v", n, err)
				}
				told := y.fs.Ops()
				y.fs.FailAt(0, nil)
				if err := y.end(m); err != nil {
					t.Fatalf("operation %d failed, power gone at the end: %v", n, err)
				}
				if n > told {
					break
				}
			}
		})
	}
}

// A full disk while a partial is taken over leaves the old one.
func TestFullDiskWhileAPartialIsTakenOver(t *testing.T) {
	log := twoSegments()
	y := newStory(1, log, waldir.Options{})
	check(t, y.stream(second, second.Start(size)+100_000))
	check(t, y.s.Close())
	y.s, y.o.Method = nil, waldir.Gzip
	y.fs.SetSpace(int64(size) + 10_000)
	if err := y.stream(second, second.Start(size)+110_000); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a full disk: %v", err)
	}
	check(t, y.s.Close())
	if _, err := y.fs.Stat(dir + "/" + second.String() + ".gz.partial"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the new partial: %v", err)
	}
	check(t, y.end(waldir.None))
	y.fs.SetSpace(1 << 40)
	check(t, y.stream(second, second.Start(size)+110_000))
	check(t, y.end(waldir.Gzip))
}

// marking notes which operations change names, or make them durable.
type marking struct {
	disk.FS
	fs *crashfs.FS
	at []int
}

func (m *marking) mark() { m.at = append(m.at, m.fs.Ops()+1) }

func (m *marking) Rename(from, to string) error {
	m.mark()
	return m.FS.Rename(from, to)
}

func (m *marking) Remove(name string) error {
	m.mark()
	return m.FS.Remove(name)
}

func (m *marking) SyncDir(name string) error {
	m.mark()
	return m.FS.SyncDir(name)
}

// What an earlier run synced is there at every moment of the taking over, and
// what this one synced behind it, whatever the crash makes of the names: with
// the old partial gone and the new one's name lost, or with the old one back
// beside one that has gone on.
func TestNamesAfterAPartialWasTakenOver(t *testing.T) {
	log := waltest.New(sysid, size, base-1)
	log.Fill(base + segment.LSN(size))
	remains := bytes.Clone(log.Bytes(base, base+200_000))
	for i := 120_000; i < len(remains); i++ {
		remains[i] ^= 0x55
	}
	clear(remains[190_000:]) // a plain file does not show where they end
	start := func(seed uint64, was, is waldir.Method) *story {
		y := newStory(seed, log, waldir.Options{Method: is, Level: level(is)})
		old := padded(remains, len(remains))
		if was != waldir.None {
			old = flushed(was, remains)
		}
		fill(t, y.fs, map[string][]byte{name(1, 47).String(): log.Segment(log.Start()), first.String() + suffix(was) + ".partial": old})
		y.synced[first] = base + 110_000
		return y
	}
	eachChange(t, func(t *testing.T, was, is waldir.Method) {
		y := start(0, was, is)
		m := &marking{FS: y.fs, fs: y.fs}
		y.seen = m
		before := y.fs.Ops()
		_, err := y.begin(first)
		check(t, err)
		for seed := range uint64(luck(10) * len(m.at)) { // with different luck
			y := start(seed, was, is)
			y.fs.StopAt(m.at[seed%uint64(len(m.at))] - before)
			if _, err := y.begin(first); err != nil && !errors.Is(err, crashfs.ErrCrashed) {
				t.Fatal(err)
			}
			if err := y.end(methods[seed%3]); err != nil {
				t.Fatalf("seed %d, in the taking over: %v", seed, err)
			}
		}
		for seed := range uint64(8) {
			y := start(seed, was, is)
			g, err := y.begin(first)
			check(t, err)
			check(t, g.WriteAt(log.Bytes(base, base+150_000), base))
			g.Advance(base + 150_000)
			y.synced[first], err = g.Sync()
			check(t, err)
			if err := y.end(methods[seed%3]); err != nil {
				t.Fatalf("seed %d, behind it: %v", seed, err)
			}
		}
	})
}

// The power goes while a full segment waits for its seal and the next one has
// begun. Whatever is left of the two, the first is gone on from: nobody else
// would ask for what it lacks. So it is when the power goes again.
func TestPowerGoesWhileASegmentWaitsForItsSeal(t *testing.T) {
	log := twoSegments()
	alone := 0
	for _, m := range methods {
		for seed := range uint64(luck(40)) {
			y := newStory(seed, log, waldir.Options{Method: m})
			check(t, y.open())
			for _, to := range []segment.LSN{first.End(size), second.Start(size) + 100_000} {
				g, err := y.s.Begin(size.Name(1, to-1))
				check(t, err)
				check(t, g.WriteAt(log.Bytes(g.Start(), to), g.Start()))
				g.Advance(to)
			}
			for range 3 {
				y.fs.Crash()
				d := waldir.New(y.fs, dir, waldir.Options{Method: m})
				w, err := d.Scan()
				check(t, err)
				if w.Found && (w.Name != first || w.Complete) {
					t.Fatalf("method %d, seed %d: goes on from %+v; there are %q", m, seed, w, names(t, y.fs))
				}
				s, err := spool.Open(d, dir, spool.Options{Keep: true})
				check(t, err)
				if got := names(t, y.fs); len(got) == 1 && strings.HasPrefix(got[0], second.String()) {
					t.Fatalf("method %d, seed %d: %q is left alone", m, seed, got)
				} else if len(got) == 2 && len(s.Segments()) == 0 {
					alone++ // the first is empty
				}
			}
		}
	}
	if alone == 0 {
		t.Error("at no time was the first one empty and the second not")
	}
}
