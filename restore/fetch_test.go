package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	"github.com/walferry/walferry/segment/waltest"
)

// outcome is a row of the table of what fetch may answer.
type outcome struct {
	recovery, standby int
}

var (
	delivered = outcome{0, 0}
	absent    = outcome{1, 1}
	failed    = outcome{255, 1}
)

// switched is a segment that was switched, with records that are right.
func switched(n segment.Name) []byte {
	l := waltest.New(testSystem, testSize, n.Start(testSize))
	l.Fill(n.Start(testSize) + 5*segment.PageSize)
	l.Switch()
	return l.Segment(n.Start(testSize))
}

// TestOutcomes goes through every row of the outcome table, in both modes.
func TestOutcomes(t *testing.T) {
	seg := name(1, 5)
	for _, c := range []struct {
		what string
		file string // default: seg
		set  func(f *fixture)
		want outcome
		says string // in the error
		once bool   // no other attempt: the outcome is final
	}{
		{what: "a sealed segment", want: delivered,
			set: func(f *fixture) { f.put(seg.String()+".lz4", wal(seg, int(testSize))) }},
		{what: "a segment that was switched early", want: delivered,
			set: func(f *fixture) { f.put(seg.String()+".zst", wal(seg, 3*segment.PageSize)) }},
		{what: "a history file", file: "00000002.history", want: delivered,
			set: func(f *fixture) { f.put("00000002.history.lz4", historyOf("1:0/500000")) }},
		{what: "a partial", want: delivered,
			set: func(f *fixture) { f.put(seg.String()+".partial.lz4", wal(seg, 5*segment.PageSize)) }},
		{what: "an archive of WAL-G's", want: delivered,
			set: func(f *fixture) { f.archive.unclaim(); f.put(seg.String(), wal(seg, int(testSize))) }},
		{what: "a history file of WAL-G's", file: "00000002.history", want: delivered,
			set: func(f *fixture) {
				f.archive.unclaim()
				f.put("00000002.history.zst", historyOf("1:0/500000"))
				f.put(seg.String()+".lz4", wal(seg, int(testSize)))
			}},
		{what: "no data directory to compare with", want: delivered,
			set: func(f *fixture) {
				f.options.Place.DataDir = filepath.Join(f.dir, "global")
				f.put(seg.String()+".lz4", wal(seg, int(testSize)))
			}},

		{what: "a segment behind the newest", want: absent, once: true,
			set: func(f *fixture) { f.put(name(1, 4).String()+".lz4", nil) }},
		{what: "a history file that never was", file: "00000002.history", want: absent, once: true,
			set: func(f *fixture) { f.put(name(1, 4).String()+".lz4", nil) }},
		{what: "the history of timeline 1", file: "00000001.history", want: absent, once: true,
			set: func(f *fixture) { f.put(name(1, 4).String()+".lz4", nil) }},
		{what: "the history of timeline 1, whatever the store says", file: "00000001.history", want: absent, once: true,
			set: func(f *fixture) { f.archive.fail["Open"] = errNetwork }},
		{what: "a hole that is wanted as the end", want: absent, once: true,
			set: func(f *fixture) { f.put(name(1, 6).String()+".lz4", nil); f.options.StopAtGap = true }},
		{what: "a partial, only sealed ones wanted", want: absent, once: true,
			set: func(f *fixture) {
				f.put(seg.String()+".partial.lz4", wal(seg, 5*segment.PageSize))
				f.options.SealedOnly = true
			}},

		{what: "a store that cannot be reached", want: failed, says: "connection reset",
			set: func(f *fixture) { f.archive.fail["Open"] = errNetwork }},
		{what: "a store that cannot be opened", want: failed, says: "connection reset",
			set: func(f *fixture) {
				f.options.Open = func(context.Context) (Archive, error) { return nil, errNetwork }
			}},
		{what: "a missing bucket or root", want: failed, says: "no such store",
			set: func(f *fixture) { f.archive.fail["Open"] = objstore.ErrNoStore }},
		{what: "a refusal", want: failed, says: "access denied",
			set: func(f *fixture) { f.archive.fail["Open"] = objstore.ErrDenied }},
		{what: "a refused listing", want: failed, says: "access denied",
			set: func(f *fixture) { f.archive.fail["Forms"] = objstore.ErrDenied }},
		{what: "a refused listing of later segments", want: failed, says: "access denied",
			set: func(f *fixture) { f.archive.fail["NextSegment"] = objstore.ErrDenied }},
		{what: "a refused listing of a timeline's WAL", file: "00000002.history", want: failed, says: "access denied",
			set: func(f *fixture) { f.archive.fail["NextSegment"] = objstore.ErrDenied }},
		{what: "a wrong prefix", want: failed, says: archive.ErrUnrecognised.Error(),
			set: func(f *fixture) { f.archive.unclaim() }},
		{what: "an archive that does not say whose it is", want: failed, says: "whose",
			set: func(f *fixture) { f.archive.mute = true }},
		{what: "a hole", want: failed, says: name(1, 6).String(),
			set: func(f *fixture) { f.put(name(1, 6).String()+".lz4", nil) }},
		{what: "a recorded gap", want: failed, says: "WAL from 0/500000 to 0/600000 on timeline 1 is lost, as was recorded at 2026-11-18T11:06:40Z",
			set: func(f *fixture) {
				f.put(name(1, 6).String()+".lz4", nil)
				f.archive.gap(1, 0x500000, 0x600000)
			}},
		{what: "a recorded gap, with nothing behind it yet", want: failed, says: "is lost, as was recorded at",
			set: func(f *fixture) { f.put(name(1, 4).String()+".lz4", nil); f.archive.gap(1, 0x480000, 0x900000) }},
		{what: "in front of a recorded gap, with nothing behind it yet", want: failed, says: "hole",
			set: func(f *fixture) { f.put(name(1, 4).String()+".lz4", nil); f.archive.gap(1, 0x680000, 0x900000) }},
		{what: "a recorded gap that is wanted as the end", want: absent, once: true,
			set: func(f *fixture) {
				f.put(name(1, 4).String()+".lz4", nil)
				f.archive.gap(1, 0x480000, 0x900000)
				f.options.StopAtGap = true
			}},
		{what: "a segment that turned up in a recorded gap", want: delivered,
			set: func(f *fixture) {
				f.put(seg.String()+".lz4", wal(seg, int(testSize)))
				f.archive.gap(1, 0x480000, 0x900000)
			}},
		{what: "behind a recorded gap", want: absent, once: true,
			set: func(f *fixture) { f.put(name(1, 4).String()+".lz4", nil); f.archive.gap(1, 0x380000, 0x500000) }},
		{what: "another timeline's recorded gap", want: absent, once: true,
			set: func(f *fixture) { f.put(name(1, 4).String()+".lz4", nil); f.archive.gap(2, 0x480000, 0x900000) }},
		{what: "a recorded gap behind the fork", want: absent, once: true,
			set: func(f *fixture) {
				f.put(name(1, 4).String()+".lz4", nil)
				f.write("pg_wal/00000002.history", historyOf("1:0/580000"))
				f.archive.gap(1, 0x680000, 0x900000)
			}},
		{what: "a recorded gap of the heir", want: failed, says: "hole",
			set: func(f *fixture) {
				f.put(name(1, 4).String()+".lz4", nil)
				f.write("pg_wal/00000002.history", historyOf("1:0/680000"))
				f.archive.gap(2, 0x680000, 0x900000)
			}},
		{what: "a refused listing of the recorded gaps", want: failed, says: "access denied",
			set: func(f *fixture) {
				f.put(name(1, 4).String()+".lz4", nil)
				f.archive.fail["Gaps"] = objstore.ErrDenied
			}},
		{what: "a hole in the archive alone: the server has the segment, from its base backup", want: absent, once: true,
			set: func(f *fixture) {
				f.put(name(1, 6).String()+".lz4", nil)
				f.write("pg_wal/"+seg.String(), wal(seg, int(testSize)))
			}},
		{what: "a hole in the archive alone: the server has the segment up to a switch", want: absent, once: true,
			set: func(f *fixture) {
				f.put(name(1, 6).String()+".lz4", nil)
				f.write("pg_wal/"+seg.String(), switched(seg))
			}},
		{what: "a hole, and the server has a part of the segment", want: failed, says: "hole",
			set: func(f *fixture) {
				f.put(name(1, 6).String()+".lz4", nil)
				f.write("pg_wal/"+seg.String(), wal(seg, 5*segment.PageSize))
			}},
		{what: "a hole, and the server has a segment that was renamed for later use", want: failed, says: "hole",
			set: func(f *fixture) {
				f.put(name(1, 6).String()+".lz4", nil)
				f.write("pg_wal/"+seg.String(), wal(name(1, 3), int(testSize)))
			}},
		{what: "a hole, and the server has the beginning of the segment before an old one's pages", want: failed, says: "hole",
			set: func(f *fixture) {
				f.put(name(1, 6).String()+".lz4", nil)
				f.write("pg_wal/"+seg.String(), append(wal(seg, int(testSize))[:testSize/2:testSize/2], wal(name(1, 3), int(testSize))[testSize/2:]...))
			}},
		{what: "a hole, and the server has another cluster's segment", want: failed, says: "hole",
			set: func(f *fixture) {
				f.put(name(1, 6).String()+".lz4", nil)
				f.write("pg_wal/"+seg.String(), walOf(seg, 1, foreign, int(testSize)))
			}},
		{what: "a hole, and the server has a file that is too short", want: failed, says: "hole",
			set: func(f *fixture) {
				f.put(name(1, 6).String()+".lz4", nil)
				f.write("pg_wal/"+seg.String(), wal(seg, int(testSize))[:testSize-segment.PageSize])
			}},
		{what: "a hole, and what the server has is no file", want: failed, says: "hole",
			set: func(f *fixture) {
				f.put(name(1, 6).String()+".lz4", nil)
				f.mkdir("pg_wal/" + seg.String())
			}},
		{what: "a hole further on, in a form that cannot be read", want: failed, says: "goes on with",
			set: func(f *fixture) { f.put(name(1, 9).String()+".foo", nil) }},
		{what: "the missing history of a timeline with WAL", file: "00000002.history", want: failed, says: "hole",
			set: func(f *fixture) { f.put(name(2, 6).String()+".lz4", nil) }},
		{what: "a form that cannot be read", want: failed, says: seg.String() + ".lz4.age",
			set: func(f *fixture) { f.put(seg.String()+".lz4.age", nil) }},
		{what: "a partial in a form that cannot be read", want: failed, says: ".partial.xz",
			set: func(f *fixture) { f.put(seg.String()+".partial.xz", nil) }},
		{what: "a damaged frame", want: failed, says: "damaged",
			set: func(f *fixture) {
				f.put(seg.String()+".lz4", wal(seg, int(testSize)))
				f.archive.damage(seg.String() + ".lz4")
			}},
		{what: "a damaged frame beside a partial", want: failed, says: "damaged",
			set: func(f *fixture) {
				f.put(seg.String()+".lz4", wal(seg, int(testSize)))
				f.archive.damage(seg.String() + ".lz4")
				f.put(seg.String()+".partial.lz4", wal(seg, int(testSize)))
			}},
		{what: "a damaged frame whose other form is gone when it is read", want: failed, says: "damaged",
			set: func(f *fixture) {
				f.put(seg.String()+".lz4", wal(seg, int(testSize)))
				f.archive.damage(seg.String() + ".lz4")
				f.put(seg.String()+".zst", wal(seg, int(testSize)))
				f.put(seg.String()+".partial.lz4", wal(seg, segment.PageSize))
				f.archive.fail["OpenKey"] = archive.ErrNotFound
			}},
		{what: "damage in every form", want: failed, says: ".zst",
			set: func(f *fixture) {
				for _, ext := range []string{".lz4", ".zst"} {
					f.put(seg.String()+ext, wal(seg, int(testSize)))
					f.archive.damage(seg.String() + ext)
				}
			}},
		{what: "a connection that breaks in the body", want: failed, says: "connection reset",
			set: func(f *fixture) {
				f.put(seg.String(), wal(seg, int(testSize)))
				f.archive.store.broken["wal_005/"+seg.String()] = errNetwork
			}},
		{what: "an empty object", want: failed, says: "damaged",
			set: func(f *fixture) { f.archive.putRaw(seg.String()+".lz4", objstore.Bytes(nil)) }},
		{what: "an object without content", want: failed, says: "invalid WAL page",
			set: func(f *fixture) { f.put(seg.String()+".lz4", nil) }},
		{what: "an empty plain object", want: failed, says: "invalid WAL page",
			set: func(f *fixture) { f.put(seg.String(), nil) }},
		{what: "a short object", want: failed, says: "wrong WAL segment size",
			set: func(f *fixture) { f.put(seg.String()+".lz4", wal(seg, int(testSize))[:testSize-1]) }},
		{what: "a long object", want: failed, says: "wrong WAL segment size",
			set: func(f *fixture) { f.put(seg.String()+".lz4", append(wal(seg, int(testSize)), 0)) }},
		{what: "another segment under the name", want: failed, says: "invalid WAL page",
			set: func(f *fixture) { f.put(seg.String()+".lz4", wal(name(1, 6), int(testSize))) }},
		{what: "a page of another segment", want: failed, says: "invalid WAL page",
			set: func(f *fixture) {
				b := wal(seg, int(testSize))
				copy(b[4*segment.PageSize:], b[5*segment.PageSize:6*segment.PageSize])
				f.put(seg.String()+".lz4", b)
			}},
		{what: "a damaged history file", file: "00000002.history", want: failed, says: "invalid timeline history file",
			set: func(f *fixture) { f.put("00000002.history.lz4", []byte("not a history\n")) }},
		{what: "an empty history file", file: "00000002.history", want: failed, says: "invalid timeline history file",
			set: func(f *fixture) { f.put("00000002.history.lz4", nil) }},
		{what: "an endless history file", file: "00000002.history", want: failed, says: "invalid timeline history file",
			set: func(f *fixture) { f.put("00000002.history.lz4", bytes.Repeat([]byte("#\n"), maxHistory)) }},
		{what: "a history file of an archive that cannot be asked", file: "00000002.history", want: failed, says: "access denied",
			set: func(f *fixture) {
				f.put("00000002.history.lz4", historyOf("1:0/500000"))
				f.archive.fail["Identity"] = objstore.ErrDenied
			}},
		{what: "a history file in pg_wal that cannot be read", want: failed, says: "where timelines ended",
			set: func(f *fixture) {
				f.put(seg.String()+".lz4", wal(seg, int(testSize)))
				f.write("pg_wal/00000002.history", []byte("rubbish\n"))
			}},
		{what: "a full disk", want: failed, says: "no space left",
			set: func(f *fixture) {
				f.put(seg.String()+".lz4", wal(seg, int(testSize)))
				f.files = &failingFiles{failAt: 3, err: syscall.ENOSPC}
			}},

		{what: "a foreign segment", want: failed, says: "another cluster", once: true,
			set: func(f *fixture) { f.put(seg.String()+".lz4", walOf(seg, 1, foreign, int(testSize))) }},
		{what: "a foreign archive without the segment", want: failed, says: "another cluster", once: true,
			set: func(f *fixture) { f.archive.claim(foreign) }},
		{what: "a history file of a foreign archive", file: "00000002.history", want: failed, says: "another cluster", once: true,
			set: func(f *fixture) {
				f.archive.claim(foreign)
				f.put("00000002.history.lz4", historyOf("1:0/500000"))
			}},
		{what: "a segment that is foreign to the archive, no data directory", want: failed, says: "another cluster", once: true,
			set: func(f *fixture) {
				f.options.Place.DataDir = filepath.Join(f.dir, "global")
				f.put(seg.String()+".lz4", walOf(seg, 1, foreign, int(testSize)))
			}},

		{what: "no WAL file's name", file: "postgresql.conf", want: failed, says: "%f %p", once: true, set: func(*fixture) {}},
		{what: "arguments in the wrong order", file: "pg_wal/RECOVERYXLOG", want: failed, says: "%f %p", once: true, set: func(*fixture) {}},
		{what: "a lower-case name", file: "00000001000000000000000a", want: failed, says: "A-F", once: true, set: func(*fixture) {}},
		{what: "a target without directory", want: failed, says: "no such file", once: true,
			set: func(f *fixture) { f.target = filepath.Join(f.dir, "nowhere", "RECOVERYXLOG") }},
		{what: "a wrong setting that shows when the store is opened", want: failed, says: "no such profile", once: true,
			set: func(f *fixture) {
				f.options.Open = func(context.Context) (Archive, error) {
					return nil, &SettingError{errors.New("no such profile")}
				}
			}},
	} {
		for _, mode := range []Mode{Recovery, Standby} {
			t.Run(c.what+"/"+mode.String(), func(t *testing.T) {
				f := newFixture(t, mode)
				c.set(f)
				file := c.file
				if file == "" {
					file = seg.String()
				}
				synctest.Test(t, func(t *testing.T) {
					begin := time.Now()
					err := f.fetch(t.Context(), file)
					want := c.want.recovery
					if mode == Standby {
						want = c.want.standby
					}
					if got := mode.ExitCode(err); got != want {
						t.Fatalf("exit code %d, want %d: %v", got, want, err)
					}
					if (c.want == absent) != errors.Is(err, ErrAbsent) {
						t.Errorf("absence proved or not: %v", err)
					}
					if err != nil && !strings.Contains(err.Error(), c.says) {
						t.Errorf("error %q does not say %q", err, c.says)
					}
					if (c.want == delivered) != (f.content() != nil) {
						t.Errorf("a file of %d bytes at the target", len(f.content()))
					}
					if tried := time.Since(begin) > 0; c.want == failed && tried == c.once {
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

func TestDeliveredBytes(t *testing.T) {
	seg := name(1, 5)
	f := newFixture(t, Recovery)
	want := wal(seg, int(testSize)/2)
	f.put(seg.String()+".lz4", want)
	if err := f.fetch(t.Context(), seg.String()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.content(), want) {
		t.Error("other bytes than in the archive")
	}
	info, err := os.Stat(f.target)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	// A file with a hole would end in a PANIC on a full disk one day.
	if blocks := info.Sys().(*syscall.Stat_t).Blocks * 512; blocks < int64(testSize) {
		t.Errorf("%d bytes allocated of %d", blocks, testSize)
	}
}

func TestGroupAccess(t *testing.T) {
	seg := name(1, 5)
	f := newFixture(t, Recovery)
	if err := os.Chmod(f.dir, 0o750); err != nil {
		t.Fatal(err)
	}
	f.put(seg.String()+".lz4", wal(seg, int(testSize)))
	if err := f.fetch(t.Context(), seg.String()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(f.target); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestDamagedForm: what is damaged in one form is taken in another.
func TestDamagedForm(t *testing.T) {
	seg := name(1, 5)
	f := newFixture(t, Recovery)
	f.put(seg.String()+".lz4", wal(seg, int(testSize)))
	f.archive.damage(seg.String() + ".lz4")
	f.put(seg.String()+".foo", nil)
	f.put(seg.String()+".zst", wal(seg, int(testSize)))
	f.put(seg.String()+".partial.lz4", nil)
	if err := f.fetch(t.Context(), seg.String()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.content(), wal(seg, int(testSize))) {
		t.Error("other bytes than in the archive")
	}
	if !strings.Contains(f.log.String(), ".zst was taken instead") {
		t.Errorf("not told: %s", f.log)
	}
}

// TestPartial: an unfinished segment is padded with zeros, wherever its use ends.
func TestPartial(t *testing.T) {
	seg := name(1, 5)
	key := seg.String() + ".partial.lz4"
	recycled := wal(seg, 7*segment.PageSize)
	copy(recycled[4*segment.PageSize:], wal(name(1, 2), int(testSize))[4*segment.PageSize:])
	cut := wal(seg, 7*segment.PageSize)
	clear(cut[5*segment.PageSize+104:])
	for _, c := range []struct {
		what   string
		stored []byte
		ended  string // switchpoint in pg_wal
		want   []byte
	}{
		{"as it was stored", wal(seg, 3*segment.PageSize), "", wal(seg, 3*segment.PageSize)},
		{"old content behind its end", recycled, "", wal(seg, 4*segment.PageSize)},
		{"cut at the switchpoint", wal(seg, 7*segment.PageSize), "0/50A068", cut},
		{"old content behind the switchpoint", recycled, "0/508000", wal(seg, 4*segment.PageSize)},
		{"a switchpoint further on", wal(seg, 3*segment.PageSize), "0/700000", wal(seg, 3*segment.PageSize)},
	} {
		t.Run(c.what, func(t *testing.T) {
			f := newFixture(t, Recovery)
			if c.ended != "" {
				f.history(2, "1:"+c.ended)
			}
			f.put(key, bytes.Clone(c.stored))
			if err := f.fetch(t.Context(), seg.String()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(f.content(), c.want) {
				t.Error("other bytes than wanted")
			}
		})
	}
	for what, stored := range map[string][]byte{
		"first page wrong":                  wal(name(1, 2), int(testSize)),
		"short":                             wal(seg, int(testSize))[:testSize/2],
		"short, old content behind its end": recycled[:testSize/2],
	} {
		t.Run(what, func(t *testing.T) {
			f := newFixture(t, Standby)
			f.put(key, stored)
			synctest.Test(t, func(t *testing.T) {
				if err := f.fetch(t.Context(), seg.String()); !damaged(err) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
	t.Run("behind the sealed one", func(t *testing.T) {
		f := newFixture(t, Recovery)
		f.put(key, wal(seg, segment.PageSize))
		f.put(seg.String()+".lz4", wal(seg, int(testSize)))
		if err := f.fetch(t.Context(), seg.String()); err != nil || !bytes.Equal(f.content(), wal(seg, int(testSize))) {
			t.Errorf("not the sealed one: %v", err)
		}
	})
}

// TestFork: nothing of a timeline is delivered behind the switchpoint at
// which the recovery leaves it, and what is missing there is no hole.
func TestFork(t *testing.T) {
	for _, c := range []struct {
		what    string
		ask     segment.Name
		pgWAL   map[segment.Timeline][]string
		archive []segment.Name
		want    error // nil: delivered
		used    int   // bytes before the zeros
	}{
		{what: "in front of the switchpoint", ask: name(1, 4), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}},
			archive: []segment.Name{name(1, 4)}, used: int(testSize)},
		{what: "the segment of the switchpoint", ask: name(1, 5), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}},
			archive: []segment.Name{name(1, 5), name(1, 6)}, used: 4 * segment.PageSize},
		{what: "behind the switchpoint", ask: name(1, 6), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}},
			archive: []segment.Name{name(1, 5), name(1, 6), name(1, 7)}, want: ErrAbsent},
		{what: "behind a switchpoint at a segment's end", ask: name(1, 6), pgWAL: map[segment.Timeline][]string{2: {"1:0/600000"}},
			archive: []segment.Name{name(1, 6)}, want: ErrAbsent},
		{what: "missing behind the switchpoint", ask: name(1, 6), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}},
			archive: []segment.Name{name(1, 7)}, want: ErrAbsent},
		{what: "the segment of the switchpoint is missing", ask: name(1, 5), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}},
			archive: []segment.Name{name(1, 6), name(1, 7)}, want: ErrAbsent},
		{what: "a hole in front of the switchpoint", ask: name(1, 3), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}},
			archive: []segment.Name{name(1, 4)}, want: ErrHole},
		{what: "a hole that only the next timeline shows", ask: name(1, 4), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}},
			archive: []segment.Name{name(1, 3), name(2, 5)}, want: ErrHole},
		{what: "a hole that only a later timeline shows", ask: name(1, 4), pgWAL: map[segment.Timeline][]string{4: {"1:0/508000", "2:0/608000"}},
			archive: []segment.Name{name(1, 3), name(4, 6)}, want: ErrHole},
		{what: "a history without WAL", ask: name(1, 4), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}},
			archive: []segment.Name{name(1, 3)}, want: ErrAbsent},
		{what: "before the timeline began", ask: name(2, 4), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}},
			archive: []segment.Name{name(2, 5)}, want: ErrAbsent},
		{what: "the first segment of a timeline is missing", ask: name(2, 5), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}},
			archive: []segment.Name{name(2, 6)}, want: ErrHole},
		{what: "histories that disagree, where it does not matter", ask: name(1, 3), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}, 3: {"1:0/408000"}},
			archive: []segment.Name{name(1, 3)}, used: int(testSize)},
		{what: "histories that disagree", ask: name(1, 4), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}, 3: {"1:0/408000"}},
			archive: []segment.Name{name(1, 4)}, want: errDisputed},
		{what: "behind the end in all histories", ask: name(1, 6), pgWAL: map[segment.Timeline][]string{2: {"1:0/508000"}, 3: {"1:0/408000"}},
			archive: []segment.Name{name(1, 6)}, want: ErrAbsent},
		{what: "a history that does not concern the timeline", ask: name(2, 6), pgWAL: map[segment.Timeline][]string{3: {"1:0/408000"}},
			archive: []segment.Name{name(2, 6)}, used: int(testSize)},
	} {
		t.Run(c.what, func(t *testing.T) {
			f := newFixture(t, Standby)
			for tl, ancestors := range c.pgWAL {
				f.history(tl, ancestors...)
			}
			for _, n := range c.archive {
				f.put(n.String()+".lz4", wal(n, int(testSize)))
			}
			synctest.Test(t, func(t *testing.T) {
				err := f.fetch(t.Context(), c.ask.String())
				if !errors.Is(err, c.want) {
					t.Fatalf("got %v, want %v", err, c.want)
				}
				if c.want == nil && !bytes.Equal(f.content(), wal(c.ask, c.used)) {
					t.Error("other bytes than wanted")
				}
			})
		})
	}
}

// TestPromotedSegment: the first segment of a timeline begins with its parent's pages.
func TestPromotedSegment(t *testing.T) {
	seg := name(2, 5)
	content := walOf(seg, 2, testSystem, int(testSize))
	copy(content, walOf(seg, 1, testSystem, 4*segment.PageSize)[:4*segment.PageSize])
	for switchpoint, want := range map[string]error{"0/508000": nil, "0/506000": segment.ErrPage} {
		f := newFixture(t, Standby)
		f.history(2, "1:"+switchpoint)
		f.put(seg.String()+".lz4", content)
		synctest.Test(t, func(t *testing.T) {
			if err := f.fetch(t.Context(), seg.String()); !errors.Is(err, want) {
				t.Errorf("switchpoint %s: got %v, want %v", switchpoint, err, want)
			}
		})
	}
}

// TestBudget: attempts go on until the budget is used up, and the failure is
// told when it begins and twice a minute, not at each attempt.
func TestBudget(t *testing.T) {
	for _, c := range []struct {
		mode   Mode
		budget time.Duration
		want   time.Duration
	}{
		{Recovery, 0, 5 * time.Minute},
		{Standby, 0, 5 * time.Second},
		{Recovery, time.Second, time.Second},
		{Standby, time.Minute, time.Minute},
	} {
		t.Run(fmt.Sprintf("%s %s", c.mode, c.budget), func(t *testing.T) {
			f := newFixture(t, c.mode)
			f.options.Budget = c.budget
			f.archive.fail["Open"] = errNetwork
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				if err := f.fetch(t.Context(), name(1, 5).String()); !errors.Is(err, errNetwork) {
					t.Errorf("got %v", err)
				}
				if took := time.Since(begin); took > c.want || took < c.want-2*time.Second {
					t.Errorf("took %s of %s", took, c.want)
				}
			})
			if f.archive.calls < 3 && c.want > time.Second {
				t.Errorf("%d attempts", f.archive.calls)
			}
			if lines, most := strings.Count(f.log.String(), "level=WARN"), 1+int(c.want/reminder); lines < 1 || lines > most {
				t.Errorf("%d lines, want at most %d:\n%s", lines, most, f.log)
			}
		})
	}
}

// TestBlackHole: a store that does not answer is given up with the budget,
// and the message says what was wrong before.
func TestBlackHole(t *testing.T) {
	f := newFixture(t, Recovery)
	f.options.Open = func(ctx context.Context) (Archive, error) {
		<-ctx.Done()
		return nil, fmt.Errorf("asking the store: %w", ctx.Err())
	}
	synctest.Test(t, func(t *testing.T) {
		if err := f.fetch(t.Context(), name(1, 5).String()); Recovery.ExitCode(err) != 255 || !strings.Contains(err.Error(), "asking the store") {
			t.Errorf("got %v", err)
		}
	})
}

// TestComesBack: a store that comes back within the budget delivers.
func TestComesBack(t *testing.T) {
	seg := name(1, 5)
	f := newFixture(t, Recovery)
	f.archive.fail["Open"] = errNetwork
	f.put(seg.String()+".lz4", wal(seg, int(testSize)))
	synctest.Test(t, func(t *testing.T) {
		time.AfterFunc(3*time.Minute, func() {
			f.archive.mend("Open")
		})
		if err := f.fetch(t.Context(), seg.String()); err != nil {
			t.Error(err)
		}
	})
}

// TestRemembered: after a failure a standby's calls fail at once for a while,
// so that it can stream, or be promoted.
func TestRemembered(t *testing.T) {
	t.Run("the store", func(t *testing.T) {
		f := newFixture(t, Standby)
		f.archive.fail["Open"] = errNetwork
		synctest.Test(t, func(t *testing.T) {
			if err := f.fetch(t.Context(), name(1, 5).String()); err == nil {
				t.Fatal("delivered")
			}
			for _, file := range []string{name(1, 5).String(), "00000002.history"} {
				calls, begin := f.archive.calls, time.Now()
				err := f.fetch(t.Context(), file)
				if Standby.ExitCode(err) != 1 || errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), errNetwork.Error()) {
					t.Errorf("%s: got %v", file, err)
				}
				if f.archive.calls != calls || !time.Now().Equal(begin) {
					t.Errorf("%s was tried", file)
				}
			}
			time.Sleep(memoryLasts)
			calls := f.archive.calls
			if err := f.fetch(t.Context(), name(1, 5).String()); err == nil || f.archive.calls == calls {
				t.Errorf("not tried again: %v", err)
			}
		})
	})
	t.Run("one object", func(t *testing.T) {
		f := newFixture(t, Standby)
		f.put(name(1, 5).String()+".lz4", nil)
		f.put(name(1, 4).String()+".lz4", wal(name(1, 4), int(testSize)))
		synctest.Test(t, func(t *testing.T) {
			if err := f.fetch(t.Context(), name(1, 5).String()); !damaged(err) {
				t.Fatalf("got %v", err)
			}
			calls := f.archive.calls
			if err := f.fetch(t.Context(), name(1, 5).String()); err == nil || f.archive.calls != calls {
				t.Errorf("tried again: %v", err)
			}
			if err := f.fetch(t.Context(), name(1, 4).String()); err != nil {
				t.Errorf("another file: %v", err)
			}
		})
	})
	t.Run("not in recovery", func(t *testing.T) {
		f := newFixture(t, Recovery)
		f.archive.fail["Open"] = errNetwork
		synctest.Test(t, func(t *testing.T) {
			if err := f.fetch(t.Context(), name(1, 5).String()); err == nil {
				t.Fatal("delivered")
			}
			calls := f.archive.calls
			if err := f.fetch(t.Context(), name(1, 5).String()); err == nil || f.archive.calls == calls {
				t.Errorf("not tried again: %v", err)
			}
		})
	})
	t.Run("absence is no failure", func(t *testing.T) {
		f := newFixture(t, Standby)
		for range 2 {
			calls := f.archive.calls
			if err := f.fetch(t.Context(), name(1, 5).String()); !errors.Is(err, ErrAbsent) || f.archive.calls == calls {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("a note that was cut", func(t *testing.T) {
		f := newFixture(t, Standby)
		f.write("pg_wal/"+memoryFile, []byte(`{"at":"`))
		f.put(name(1, 4).String()+".lz4", wal(name(1, 4), int(testSize)))
		if err := f.fetch(t.Context(), name(1, 4).String()); err != nil {
			t.Error(err)
		}
	})
}

// TestStarting: a standby that starts is not told about a history file what
// is not known: it would follow the wrong timeline for good.
func TestStarting(t *testing.T) {
	const file = "00000002.history"
	broken := func(t *testing.T) *fixture {
		f := newFixture(t, Standby)
		f.server("starting")
		f.put(file+".lz4", historyOf("1:0/500000"))
		f.archive.fail["Open"] = errNetwork
		return f
	}
	t.Run("without end", func(t *testing.T) {
		f := broken(t)
		synctest.Test(t, func(t *testing.T) {
			if err := f.options.Place.rememberFailure("", errNetwork, time.Now()); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(24*time.Hour, func() {
				f.archive.mend("Open")
			})
			if err := f.fetch(t.Context(), file); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("until it has started", func(t *testing.T) {
		f := broken(t)
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			time.AfterFunc(time.Hour, func() { f.server("standby") })
			if err := f.fetch(t.Context(), file); !errors.Is(err, errNetwork) || time.Since(begin) < time.Hour {
				t.Errorf("after %s: %v", time.Since(begin), err)
			}
		})
	})
	t.Run("until it is gone", func(t *testing.T) {
		f := broken(t)
		synctest.Test(t, func(t *testing.T) {
			time.AfterFunc(time.Hour, func() {
				if err := os.Remove(filepath.Join(f.dir, "postmaster.pid")); err != nil {
					t.Error(err)
				}
			})
			if err := f.fetch(t.Context(), file); !errors.Is(err, errNetwork) {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("not a segment", func(t *testing.T) {
		f := broken(t)
		synctest.Test(t, func(t *testing.T) {
			if err := f.fetch(t.Context(), name(1, 5).String()); !errors.Is(err, errNetwork) {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("not in recovery", func(t *testing.T) {
		f := broken(t)
		f.options.Place.Mode = Recovery
		synctest.Test(t, func(t *testing.T) {
			if err := f.fetch(t.Context(), file); Recovery.ExitCode(err) != 255 {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("absence is told", func(t *testing.T) {
		f := newFixture(t, Standby)
		f.server("starting")
		if err := f.fetch(t.Context(), file); !errors.Is(err, ErrAbsent) {
			t.Errorf("got %v", err)
		}
	})
}

// TestStopped: a caller that gives up is obeyed at once.
func TestStopped(t *testing.T) {
	f := newFixture(t, Standby)
	f.server("starting")
	f.archive.fail["Open"] = errNetwork
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := f.fetch(ctx, "00000002.history"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errNetwork) {
			t.Errorf("got %v", err)
		}
	})
}
