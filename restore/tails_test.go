package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// TestTails goes through what tail objects, partials and the histories in
// pg_wal can be to each other, in both modes.
func TestTails(t *testing.T) {
	const page = segment.PageSize
	seg := name(1, 5)
	full := wal(seg, int(testSize))
	partialKey := seg.String() + ".partial.lz4"
	// other is WAL of another history from the byte at from on.
	other := func(from int) []byte {
		b := bytes.Clone(full)
		for i := from; i < len(b); i++ {
			if i%page >= 40 {
				b[i] ^= 0x55
			}
		}
		return b
	}
	// chain stores full's bytes up to the last end in several objects.
	chain := func(f *fixture, ends ...int) (keys []string) {
		at := 0
		for _, end := range ends {
			keys = append(keys, f.archive.tail(seg, full, at, end))
			at = end
		}
		return keys
	}
	forks := func(f *fixture) { f.history(2, "1:0/50A068") } // 5 pages and 104 bytes
	const fork = 5*page + 104
	for _, c := range []struct {
		what    string
		file    string // default: seg
		set     func(f *fixture)
		want    outcome
		used    int    // bytes in front of the zeros, in both modes
		standby int    // other than that in a standby
		says    string // in the error
		once    bool   // no other attempt: the outcome is final
	}{
		{what: "a chain", want: delivered, used: 3*page + 1000, set: func(f *fixture) { chain(f, page, 2*page+77, 3*page+1000) }},
		{what: "an end further on", want: delivered, used: 40*page + 100, set: func(f *fixture) { chain(f, 33*page, 40*page+100) }},
		{what: "an end at a page's end", want: delivered, used: 2 * page, set: func(f *fixture) { chain(f, 10, 2*page) }},
		{what: "an end in a page's header", want: delivered, used: 2 * page, set: func(f *fixture) { chain(f, 10, 2*page+23) }},
		{what: "an end behind a page's header", want: delivered, used: 2*page + 24, set: func(f *fixture) { chain(f, 10, 2*page+24) }},
		{what: "the first header and nothing else", want: delivered, used: 40, set: func(f *fixture) { chain(f, 40) }},
		{what: "less than the first header", want: absent, once: true, set: func(f *fixture) { chain(f, 39) }},
		{what: "a whole segment", want: delivered, used: int(testSize), set: func(f *fixture) {
			chain(f, page, int(testSize))
			f.put(name(1, 6).String()+".lz4", nil)
		}},
		{what: "a segment that was switched early", want: delivered, used: 3 * page, set: func(f *fixture) {
			b := wal(seg, 3*page)
			f.archive.tail(seg, b, 0, 2*page)
			f.archive.tail(seg, b, 2*page, int(testSize))
		}},
		{what: "behind the sealed one", want: delivered, used: int(testSize), set: func(f *fixture) {
			chain(f, page)
			f.put(seg.String()+".zst", full)
		}},
		{what: "with a damaged sealed one", want: failed, says: "damaged", set: func(f *fixture) {
			chain(f, int(testSize))
			f.put(seg.String()+".lz4", full)
			f.archive.damage(seg.String() + ".lz4")
		}},
		{what: "no data directory to compare with", want: delivered, used: page, set: func(f *fixture) {
			f.options.Place.DataDir = filepath.Join(f.dir, "global")
			chain(f, page)
		}},
		{what: "a lost identity", want: delivered, used: page, set: func(f *fixture) {
			chain(f, page)
			f.archive.unclaim()
			f.put(name(1, 4).String()+".lz4", wal(name(1, 4), int(testSize)))
		}},
		{what: "a lost identity, and nothing that tells the segment size", want: failed, says: "size of its segments", set: func(f *fixture) {
			chain(f, page)
			f.archive.unclaim()
			f.put(name(1, 4).String()+".lz4", nil)
		}},
		{what: "the next segment, with nothing sealed yet", file: name(1, 6).String(), want: absent, once: true,
			set: func(f *fixture) { chain(f, page) }},
		{what: "the history of timeline 2, with nothing sealed yet", file: "00000002.history", want: absent, once: true,
			set: func(f *fixture) { chain(f, page) }},
		{what: "none, in an archive of WAL-G's that tells nothing", want: absent, once: true, set: func(f *fixture) {
			f.options.Place.DataDir = filepath.Join(f.dir, "global")
			f.archive.unclaim()
			f.put(name(1, 4).String()+".lz4", nil)
		}},
		{what: "only sealed ones wanted", want: absent, once: true, set: func(f *fixture) {
			chain(f, page)
			f.archive.tail(name(1, 6), full, 0, page)
			f.options.SealedOnly = true
		}},

		{what: "a hole", want: failed, says: "0/502000 to 0/504000 is missing in front of wal_tail_005/000000010000000000000005/00004000-00006000-",
			set: func(f *fixture) { chain(f, page); f.archive.tail(seg, full, 2*page, 3*page) }},
		{what: "a hole that is wanted as the end", want: delivered, used: page, set: func(f *fixture) {
			chain(f, page)
			f.archive.tail(seg, full, 2*page, 3*page)
			f.options.StopAtGap = true
		}},
		{what: "a hole at the front", want: failed, says: "hole", set: func(f *fixture) { f.archive.tail(seg, full, page, 3*page) }},
		{what: "a hole at the front that is wanted as the end", want: absent, once: true, set: func(f *fixture) {
			f.archive.tail(seg, full, page, 3*page)
			f.options.StopAtGap = true
		}},
		{what: "damaged in the middle", want: failed, says: "/00002000-00004000-", set: func(f *fixture) {
			f.archive.damageAt(chain(f, page, 2*page, 3*page)[1])
		}},
		{what: "damaged in the middle, wanted as the end", want: delivered, used: page, set: func(f *fixture) {
			f.archive.damageAt(chain(f, page, 2*page, 3*page)[1])
			f.options.StopAtGap = true
		}},
		{what: "damaged, and not needed", want: delivered, used: 3 * page, set: func(f *fixture) {
			f.archive.damageAt(chain(f, page, 2*page, 3*page)[1])
			f.archive.tail(seg, full, 10, 2*page)
		}},
		{what: "another history", want: failed, says: "conflict with the archive: wal_tail_005/", set: func(f *fixture) {
			chain(f, page, 3*page)
			f.archive.tail(seg, other(page+50), 0, 2*page)
		}},
		{what: "another history does not end anything", want: failed, says: "conflict", set: func(f *fixture) {
			chain(f, page, 3*page)
			f.archive.tail(seg, other(page+50), 0, 2*page)
			f.options.StopAtGap = true
		}},
		{what: "a form that cannot be read", want: failed, says: ".lz4.age: cannot be decoded", set: func(f *fixture) {
			key := chain(f, page, 2*page)[1]
			if err := errors.Join(f.archive.store.Delete(t.Context(), key), f.archive.store.Put(t.Context(), key+".age", objstore.Bytes(nil))); err != nil {
				t.Fatal(err)
			}
		}},
		{what: "a page that does not belong there", want: failed, says: "invalid WAL page", set: func(f *fixture) {
			b := bytes.Clone(full)
			copy(b[page:], full[2*page:3*page])
			f.archive.tail(seg, b, 0, 3*page)
		}},
		{what: "a first page that does not belong there", want: failed, says: "invalid WAL page", set: func(f *fixture) {
			f.archive.tail(seg, wal(name(1, 6), 3*page), 0, 3*page)
		}},
		{what: "a foreign one", want: failed, says: "another cluster", once: true, set: func(f *fixture) {
			f.archive.tail(seg, walOf(seg, 1, foreign, 3*page), 0, 3*page)
		}},
		{what: "a store that breaks off", want: failed, says: "connection reset", set: func(f *fixture) {
			f.archive.store.broken[chain(f, page)[0]] = errNetwork
		}},
		{what: "a store that cannot be reached", want: failed, says: "connection reset", set: func(f *fixture) {
			f.archive.fail["AssembleTails"] = errNetwork
		}},
		{what: "a refused listing", want: failed, says: "access denied", set: func(f *fixture) {
			f.archive.fail["AssembleTails"] = objstore.ErrDenied
		}},
		{what: "a refused listing, the identity being lost", want: failed, says: "access denied", set: func(f *fixture) {
			f.archive.unclaim()
			f.put(name(1, 4).String()+".lz4", wal(name(1, 4), int(testSize)))
			f.archive.fail["Tails"] = objstore.ErrDenied
		}},
		{what: "a refused identity", want: failed, says: "access denied", set: func(f *fixture) {
			f.archive.fail["Identity"] = objstore.ErrDenied
		}},
		{what: "a refused listing of later ones", want: failed, says: "access denied", set: func(f *fixture) {
			f.archive.fail["NextTail"] = objstore.ErrDenied
		}},
		{what: "a refused listing of a timeline's", file: "00000002.history", want: failed, says: "access denied",
			set: func(f *fixture) { f.archive.fail["NextTail"] = objstore.ErrDenied }},
		{what: "removed while they are read", want: failed, says: "removed while", set: func(f *fixture) {
			f.archive.fail["AssembleTails"] = archive.ErrVanished
		}},
		{what: "a disk without room for them", want: failed, says: "no space left", set: func(f *fixture) {
			chain(f, page)
			f.files = &failingFiles{failAt: 1, err: syscall.ENOSPC}
		}},
		{what: "a disk that becomes full with them", want: failed, says: "no space left", set: func(f *fixture) {
			chain(f, page)
			f.files = &failingFiles{failAt: 3, err: syscall.ENOSPC}
		}},
		{what: "a disk that becomes full behind them", want: failed, says: "no space left", set: func(f *fixture) {
			chain(f, page)
			f.files = &failingFiles{failAt: 6, err: syscall.ENOSPC}
		}},

		{what: "a later segment is sealed", want: outcome{255, 0}, standby: page, says: name(1, 6).String(), set: func(f *fixture) {
			chain(f, page)
			f.put(name(1, 6).String()+".lz4", nil)
		}},
		{what: "a later segment has some", want: outcome{255, 0}, standby: page, says: name(1, 7).String(), set: func(f *fixture) {
			chain(f, page)
			f.archive.tail(name(1, 7), full, 0, page)
		}},
		{what: "it ends at a recorded gap", want: outcome{255, 0}, standby: page, says: "WAL from 0/502000 to 0/900000 on timeline 1 is lost", set: func(f *fixture) {
			chain(f, page)
			f.archive.gap(1, 0x502000, 0x900000)
		}},
		{what: "it ends at a recorded gap, and the end is wanted", want: delivered, used: page, set: func(f *fixture) {
			chain(f, page)
			f.archive.gap(1, 0x502000, 0x900000)
			f.options.StopAtGap = true
		}},
		{what: "a later segment has some, and the end is wanted", want: delivered, used: page, set: func(f *fixture) {
			chain(f, page)
			f.archive.tail(name(1, 7), full, 0, page)
			f.options.StopAtGap = true
		}},
		{what: "it cannot be told whether a later segment has some", want: outcome{255, 0}, standby: page, says: "access denied", set: func(f *fixture) {
			chain(f, page)
			f.archive.fail["NextTail"] = objstore.ErrDenied
		}},
		{what: "missing, a later segment has some", want: failed, says: name(1, 7).String(), set: func(f *fixture) {
			f.archive.tail(name(1, 7), full, 0, page)
		}},
		{what: "missing, an heir has some", want: failed, says: name(2, 6).String(), set: func(f *fixture) {
			f.history(2, "1:0/60A068")
			f.archive.tail(name(2, 6), full, 0, page)
		}},
		{what: "missing, only a timeline that does not matter has some", want: absent, once: true, set: func(f *fixture) {
			f.archive.tail(name(2, 6), full, 0, page)
		}},
		{what: "missing, a later segment has some behind the fork", want: absent, once: true, set: func(f *fixture) {
			forks(f)
			f.archive.tail(name(1, 6), full, 0, page)
		}},
		{what: "the missing history of a timeline that has some", file: "00000002.history", want: failed, says: "hole", set: func(f *fixture) {
			f.archive.tail(name(2, 6), full, 0, page)
		}},
		{what: "a partial, a later segment is sealed", want: outcome{255, 0}, standby: page, says: name(1, 6).String(), set: func(f *fixture) {
			f.put(partialKey, wal(seg, page))
			f.put(name(1, 6).String()+".lz4", nil)
		}},

		{what: "beyond the fork", want: delivered, used: fork, set: func(f *fixture) {
			forks(f)
			chain(f, 3*page, 9*page)
			f.archive.tail(name(1, 6), full, 0, page)
			f.put(name(1, 6).String()+".lz4", nil)
		}},
		{what: "a segment behind the fork", want: absent, once: true, set: func(f *fixture) {
			f.history(2, "1:0/4FFF00")
			chain(f, 3*page, 9*page)
		}},
		{what: "a segment behind the fork, and no proof", want: failed, says: "connection reset", set: func(f *fixture) {
			f.history(2, "1:0/4FFF00")
			chain(f, 3*page, 9*page)
			f.archive.fail["Recognise"] = errNetwork
		}},
		{what: "histories that disagree", want: failed, says: "disagree", set: func(f *fixture) {
			forks(f)
			f.history(3, "1:0/504000")
			chain(f, 9*page)
		}},
		{what: "histories that disagree, and nothing there", want: absent, once: true, set: func(f *fixture) {
			forks(f)
			f.history(3, "1:0/504000")
		}},
		{what: "a hole behind the fork", want: delivered, used: fork, set: func(f *fixture) {
			forks(f)
			chain(f, 6*page)
			f.archive.tail(seg, full, 7*page, 8*page)
		}},
		{what: "damaged behind the fork", want: delivered, used: fork, set: func(f *fixture) {
			forks(f)
			f.archive.damageAt(chain(f, 6*page, 7*page, 8*page)[1])
		}},
		{what: "a hole in front of the fork", want: failed, says: "hole", set: func(f *fixture) {
			forks(f)
			chain(f, 2*page)
			f.archive.tail(seg, full, 3*page, 8*page)
		}},

		{what: "ending before the fork", want: delivered, used: 2*page + 99, set: nil},
		{what: "ending before the fork, and a partial", want: delivered, used: fork, set: func(f *fixture) {
			forks(f)
			chain(f, 2*page+99)
			f.put(partialKey, wal(seg, fork))
		}},
		{what: "ending before the fork, and a partial of the server's own", want: delivered, used: fork, set: func(f *fixture) {
			forks(f)
			chain(f, 2*page+99)
			f.put(partialKey, full)
		}},
		{what: "ending before the fork, and a damaged partial", want: failed, says: ".partial.lz4", set: func(f *fixture) {
			forks(f)
			chain(f, 2*page+99)
			f.put(partialKey, wal(seg, fork))
			f.archive.damage(partialKey)
		}},
		{what: "ending before the fork, and a partial that is short", want: failed, says: "16000 bytes", set: func(f *fixture) {
			forks(f)
			chain(f, 2*page+99)
			f.put(partialKey, full[:16000])
		}},
		{what: "ending before the fork, and a damaged partial in one of two forms", want: delivered, used: fork, set: func(f *fixture) {
			forks(f)
			chain(f, 2*page+99)
			f.put(partialKey, wal(seg, fork))
			f.archive.damage(partialKey)
			f.put(seg.String()+".partial.zst", wal(seg, fork))
		}},
		{what: "ending before the fork, and a partial of another fork, before it", want: delivered, used: 2*page + 99, set: func(f *fixture) {
			forks(f)
			chain(f, 2*page+99)
			f.put(partialKey, wal(seg, page+555))
		}},
		{what: "ending before the fork, and a partial of another history", want: failed, says: ".partial.lz4 holds other WAL: the first difference is at 0/502057", set: func(f *fixture) {
			forks(f)
			chain(f, 2*page+99)
			f.put(partialKey, other(page+0x57))
		}},
		{what: "ending before the fork, and a partial of another history, further on", want: failed, says: "the first difference is at 0/544057", set: func(f *fixture) {
			f.history(2, "1:0/580000")
			chain(f, 40*page+99)
			f.put(partialKey, other(34*page+0x57))
		}},
		{what: "ending before the fork, and a partial with nothing in the middle", want: failed, says: ".partial.lz4 holds other WAL", set: func(f *fixture) {
			forks(f)
			chain(f, 2*page+99)
			b := bytes.Clone(full)
			clear(b[page+555 : 2*page+99])
			f.put(partialKey, b)
		}},
		{what: "a hole before the fork, and a partial", want: delivered, used: fork, set: func(f *fixture) {
			forks(f)
			chain(f, 2*page+99)
			f.archive.tail(seg, full, 3*page, 4*page)
			f.put(partialKey, wal(seg, fork))
		}},
		{what: "beyond the fork, and a partial that cannot be read", want: delivered, used: fork, set: func(f *fixture) {
			forks(f)
			chain(f, 9*page)
			f.put(partialKey, nil)
		}},

		{what: "a partial that reaches further, of a fork that is not followed", want: delivered, used: fork, standby: 2*page + 99, set: func(f *fixture) {
			chain(f, 2*page+99)
			f.put(partialKey, wal(seg, fork))
		}},
		{what: "a hole, and a partial of a fork that is not followed", want: failed, says: "hole", set: func(f *fixture) {
			chain(f, 2*page+99)
			f.archive.tail(seg, full, 8*page, 9*page)
			f.put(partialKey, wal(seg, fork))
		}},
		{what: "a partial that reaches less far", want: delivered, used: 7*page + 99, set: func(f *fixture) {
			chain(f, 7*page+99)
			f.put(partialKey, wal(seg, fork))
		}},
		{what: "a partial that holds something else behind its end", want: delivered, used: 7*page + 99, set: func(f *fixture) {
			chain(f, 7*page+99)
			f.put(partialKey, other(fork))
		}},
		{what: "a partial that differs where a page begins", want: delivered, used: 7 * page, set: func(f *fixture) {
			chain(f, 7*page+9)
			b := bytes.Clone(full)
			b[7*page+1] ^= 1
			f.put(partialKey, b)
		}},
		{what: "a partial with old content behind its end", want: delivered, used: 6 * page, standby: 2*page + 99, set: func(f *fixture) {
			chain(f, 2*page+99)
			b := bytes.Clone(full)
			copy(b[6*page:], wal(name(1, 2), int(testSize))[6*page:])
			f.put(partialKey, b)
		}},
		{what: "an end in a page's header that a partial completes", want: delivered, used: 3 * page, standby: 2 * page, set: func(f *fixture) {
			chain(f, 2*page+9)
			f.put(partialKey, wal(seg, 3*page))
		}},
		{what: "an end in the header of a page that the partial has from before", want: delivered, used: 2 * page, set: func(f *fixture) {
			chain(f, 2*page+8)
			b := bytes.Clone(full)
			copy(b[2*page:], wal(name(1, 2), int(testSize))[2*page:])
			f.put(partialKey, b)
		}},
		{what: "less than the first header, and a partial", want: delivered, used: 3 * page, set: func(f *fixture) {
			chain(f, 20)
			f.put(partialKey, wal(seg, 3*page))
		}},
	} {
		if c.set == nil {
			c.set = func(f *fixture) { forks(f); chain(f, 2*page+99) }
		}
		for _, mode := range []Mode{Recovery, Standby} {
			t.Run(c.what+"/"+mode.String(), func(t *testing.T) {
				f := newFixture(t, mode)
				c.set(f)
				file, used, want := c.file, c.used, c.want.recovery
				if file == "" {
					file = seg.String()
				}
				if mode == Standby {
					want = c.want.standby
					if c.standby > 0 {
						used = c.standby
					}
				}
				synctest.Test(t, func(t *testing.T) {
					begin := time.Now()
					err := f.fetch(t.Context(), file)
					if got := mode.ExitCode(err); got != want {
						t.Fatalf("exit code %d, want %d: %v", got, want, err)
					}
					if (c.want == absent) != errors.Is(err, ErrAbsent) {
						t.Errorf("absence proved or not: %v", err)
					}
					if err != nil && !strings.Contains(err.Error(), c.says) {
						t.Errorf("error %q does not say %q", err, c.says)
					}
					if want == 0 && !bytes.Equal(f.content(), wal(seg, used)) {
						t.Errorf("other bytes than wanted: %s", difference(f.content(), wal(seg, used)))
					}
					if want != 0 && f.content() != nil {
						t.Error("a file at the target")
					}
					if tried := time.Since(begin) > 0; err != nil && tried == (c.once || c.want == absent) {
						t.Errorf("tried again: %v", tried)
					}
				})
				if left := f.leftovers(); len(left) > 0 {
					t.Errorf("left over: %v", left)
				}
			})
		}
	}
}

func difference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("the first difference is at %X", i)
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}

// TestPadded: whatever it begins with, it ends with the segment.
func TestPadded(t *testing.T) {
	f := newFixture(t, Recovery)
	d := &delivery{Fetcher: NewFetcher(f.options), target: f.target}
	want := wal(name(1, 5), 3*segment.PageSize)
	for _, end := range []int{100, segment.PageSize, segment.PageSize + 23, segment.PageSize + 24} {
		s := &tails{scratch: scratch{open: d.openScratch}, end: uint32(end), size: testSize}
		defer s.close()
		if _, err := s.WriteAt(want, 0); err != nil { // more than to end
			t.Fatal(err)
		}
		kept := end
		if end == segment.PageSize+23 {
			kept = segment.PageSize
		}
		for _, from := range []int{0, 99, end - 1, end, int(testSize)} {
			b, err := io.ReadAll(s.padded(int64(from)))
			if err != nil || len(b) != int(testSize)-from {
				t.Fatalf("%d bytes from %d on: %d, %v", end, from, len(b), err)
			}
			whole := bytes.Clone(want)
			clear(whole[kept:])
			if !bytes.Equal(b, whole[from:]) {
				t.Errorf("%d bytes from %d on: other bytes than wanted", end, from)
			}
		}
	}
}

// TestTailsAreAllocated: a file with a hole would end in a PANIC on a full disk
// one day.
func TestTailsAreAllocated(t *testing.T) {
	seg := name(1, 5)
	f := newFixture(t, Recovery)
	f.archive.tail(seg, wal(seg, 100), 0, 100)
	if err := f.fetch(t.Context(), seg.String()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(f.target)
	if err != nil {
		t.Fatal(err)
	}
	if blocks := info.Sys().(*syscall.Stat_t).Blocks * 512; blocks < int64(testSize) || info.Size() != int64(testSize) {
		t.Errorf("%d bytes, %d allocated, of %d", info.Size(), blocks, testSize)
	}
}

// TestSealedMeanwhile: when the tail objects vanish because the segment was
// sealed, that is delivered at once.
func TestSealedMeanwhile(t *testing.T) {
	seg := name(1, 5)
	f := newFixture(t, Standby)
	sealing := &sealingArchive{fakeArchive: f.archive, seal: func() {
		f.put(seg.String()+".lz4", wal(seg, int(testSize)))
	}}
	f.options.Open = func(context.Context) (Archive, error) { return sealing, nil }
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		if err := f.fetch(t.Context(), seg.String()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("it waited for %s", took)
		}
	})
	if !bytes.Equal(f.content(), wal(seg, int(testSize))) {
		t.Error("not the sealed segment")
	}
}

type sealingArchive struct {
	*fakeArchive
	seal func()
}

func (a *sealingArchive) AssembleTails(context.Context, segment.Name, segment.Size, archive.Patch) (end, crc uint32, err error) {
	a.seal()
	return 0, 0, fmt.Errorf("wal_tail_005/…: %w", archive.ErrVanished)
}

// TestTailsOfAPromotedSegment: the first segment of a timeline begins with its
// parent's pages, also as tail objects.
func TestTailsOfAPromotedSegment(t *testing.T) {
	seg := name(2, 5)
	content := walOf(seg, 2, testSystem, int(testSize))
	copy(content, walOf(seg, 1, testSystem, 4*segment.PageSize)[:4*segment.PageSize])
	for switchpoint, want := range map[string]error{"0/508000": nil, "0/506000": segment.ErrPage} {
		f := newFixture(t, Standby)
		f.history(2, "1:"+switchpoint)
		f.archive.tail(seg, content, 0, 6*segment.PageSize+100)
		synctest.Test(t, func(t *testing.T) {
			if err := f.fetch(t.Context(), seg.String()); !errors.Is(err, want) {
				t.Errorf("switchpoint %s: got %v, want %v", switchpoint, err, want)
			}
		})
	}
}

// TestTailFailuresConcernOneFile: a standby asks for others meanwhile.
func TestTailFailuresConcernOneFile(t *testing.T) {
	seg, before := name(1, 5), name(1, 4)
	for what, set := range map[string]func(f *fixture){
		"a hole":   func(f *fixture) { f.archive.tail(seg, wal(seg, 9000), 100, 9000) },
		"damage":   func(f *fixture) { f.archive.damageAt(f.archive.tail(seg, wal(seg, 9000), 0, 9000)) },
		"vanished": func(f *fixture) { f.archive.fail["AssembleTails"] = archive.ErrVanished },
		"conflict": func(f *fixture) { f.archive.fail["AssembleTails"] = archive.ErrConflict },
		"decoder":  func(f *fixture) { f.archive.fail["AssembleTails"] = archive.ErrNoDecoder },
	} {
		t.Run(what, func(t *testing.T) {
			f := newFixture(t, Standby)
			set(f)
			f.put(before.String()+".lz4", wal(before, int(testSize)))
			synctest.Test(t, func(t *testing.T) {
				if err := f.fetch(t.Context(), seg.String()); err == nil {
					t.Fatal("delivered")
				}
				calls := f.archive.calls
				if err := f.fetch(t.Context(), seg.String()); err == nil || f.archive.calls != calls {
					t.Errorf("tried again: %v", err)
				}
				if err := f.fetch(t.Context(), before.String()); err != nil {
					t.Errorf("another file: %v", err)
				}
			})
		})
	}
}

// TestTailsOfAnotherSegmentSize: no segment of that name exists there, and
// that is for the proof to say.
func TestTailsOfAnotherSegmentSize(t *testing.T) {
	seg := segment.Name{Timeline: 1, Seg: 0xFFF + 1}
	f := newFixture(t, Recovery)
	if err := f.fetch(t.Context(), seg.String()); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
}

// The sizes of the headers are those of segment's checks.
func TestLeastTail(t *testing.T) {
	b := wal(name(1, 5), segment.PageSize)
	if _, err := segment.ParseLongHeader(b[:leastTail]); err != nil {
		t.Error(err)
	}
	if _, err := segment.ParseLongHeader(b[:leastTail-1]); err == nil {
		t.Error("less is enough")
	}
}
