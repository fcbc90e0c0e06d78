package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/segment"
)

const testSystem = 7710923324468496309

// fakeArchive is what an archive says. WAL is there in ranges, by timeline.
type fakeArchive struct {
	backups   []archive.Backup
	histories map[segment.Timeline]string // content of the files; timeline 1 has none
	wal       map[segment.Timeline][][2]segment.LSN
	identity  archive.Identity
	gaps      segment.Gaps
	recorded  time.Time // of all gaps; zero: their objects cannot be understood
	unknown   bool      // it is not recognised
	err       map[string]error
}

func (a *fakeArchive) Backups(context.Context) ([]archive.Backup, error) {
	return a.backups, a.err["Backups"]
}

func (a *fakeArchive) Timelines(context.Context) ([]archive.FoundTimeline, error) {
	var all []archive.FoundTimeline
	for t := segment.Timeline(1); t < 20; t++ {
		_, history := a.histories[t]
		if wal := len(a.wal[t]) > 0; wal || history {
			all = append(all, archive.FoundTimeline{Timeline: t, History: history, WAL: wal})
		}
	}
	return all, a.err["Timelines"]
}

func (a *fakeArchive) HistoryOf(_ context.Context, t segment.Timeline) (segment.History, error) {
	if err := a.err["HistoryOf"]; err != nil {
		return segment.History{}, err
	}
	none := segment.History{Timeline: t}
	text, ok := a.histories[t]
	if t == 1 {
		return none, nil
	}
	if !ok {
		return none, fmt.Errorf("%s: %w", t.HistoryName(), archive.ErrNotFound)
	}
	h, err := segment.ParseHistory(t, []byte(text))
	if err != nil {
		return none, fmt.Errorf("%w: %w", archive.ErrHistory, err)
	}
	return h, nil
}

func (a *fakeArchive) Recognise(context.Context) (archive.Identity, bool, error) {
	if a.unknown {
		return archive.Identity{}, false, archive.ErrUnrecognised
	}
	return a.identity, true, a.err["Recognise"]
}

// ReachFrom walks along h as far as ranges of WAL go on.
func (a *fakeArchive) ReachFrom(_ context.Context, h segment.History, size segment.Size, from segment.LSN) (sealed, reach segment.Position, err error) {
	if err := a.err["ReachFrom"]; err != nil {
		return sealed, reach, err
	}
	at := size.Start(from)
	for {
		owner := h.Owner(at)
		end := at
		for _, r := range a.wal[owner] {
			if r[0] <= at && at < r[1] {
				end = r[1]
			}
		}
		if s, ok := h.Switchpoint(owner); ok {
			end = min(end, s)
		}
		if end == at {
			p := segment.Position{Timeline: h.Owner(max(at, 1) - 1), LSN: at}
			return p, p, nil
		}
		at = end
	}
}

// NextSegment looks for a range of WAL that holds a later segment.
func (a *fakeArchive) NextSegment(_ context.Context, after segment.Name) (segment.Name, bool, error) {
	if err := a.err["NextSegment"]; err != nil {
		return segment.Name{}, false, err
	}
	for _, r := range a.wal[after.Timeline] {
		first := r[0]
		if after.Log != 0 || after.Seg != 0 {
			first = max(first, after.End(segment.DefaultSize))
		}
		if first+segment.LSN(segment.DefaultSize) <= r[1] {
			return segment.DefaultSize.Name(after.Timeline, first), true, nil
		}
	}
	return segment.Name{}, false, nil
}

func (a *fakeArchive) Gaps(context.Context) (segment.Gaps, error) { return a.gaps, a.err["Gaps"] }

func (a *fakeArchive) ReadGap(_ context.Context, g segment.Gap) (archive.RecordedGap, error) {
	r := archive.RecordedGap{Gap: g, RecordedAt: a.recorded}
	if r.RecordedAt.IsZero() {
		r.Err = archive.ErrGapObject
	}
	return r, a.err["ReadGap"]
}

// NextTail is the same for a segment that is not whole.
func (a *fakeArchive) NextTail(_ context.Context, after segment.Name) (segment.Name, bool, error) {
	if err := a.err["NextTail"]; err != nil {
		return segment.Name{}, false, err
	}
	for _, r := range a.wal[after.Timeline] {
		if n := segment.DefaultSize.Name(after.Timeline, r[1]); segment.DefaultSize.Offset(r[1]) > 0 && n.Compare(after) > 0 {
			return n, true, nil
		}
	}
	return segment.Name{}, false, nil
}

const seg = segment.LSN(segment.DefaultSize)

// backupAt is a backup of ours from one LSN to another.
func backupAt(t *testing.T, tl segment.Timeline, start, stop segment.LSN, finish string, change ...func(*archive.Backup)) archive.Backup {
	t.Helper()
	n, err := archive.ParseBackupName(fmt.Sprintf("base_%s_%08X", segment.DefaultSize.Name(tl, start), segment.DefaultSize.Offset(start)))
	if err != nil {
		t.Fatal(err)
	}
	at := day(t, finish)
	b := archive.Backup{
		Name: n, Start: segment.Position{Timeline: tl, LSN: start}, Stop: segment.Position{Timeline: tl, LSN: stop},
		Sentinel: archive.Sentinel{LSN: start, FinishLSN: stop, SystemIdentifier: testSystem, PgVersion: 150018, StartTime: at.Add(-time.Minute), FinishTime: at},
		Facts:    &archive.BackupFacts{SegmentSize: uint64(segment.DefaultSize), WAL: archive.WALInArchive, Label: "nightly"},
	}
	for _, f := range change {
		f(&b)
	}
	return b
}

func day(t *testing.T, clock string) time.Time {
	t.Helper()
	at, err := time.Parse("2006-01-02 15:04", "2026-11-22 "+clock)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// threeBackups is an archive with two backups before a fork at 0/5800000, one
// on the branch that was left, and one behind it.
func threeBackups(t *testing.T) *fakeArchive {
	return &fakeArchive{
		backups: []archive.Backup{
			backupAt(t, 1, 0x2000028, 0x2000100, "01:00"),
			backupAt(t, 1, 0x4000028, 0x4000100, "02:00"),
			backupAt(t, 1, 0x6000028, 0x6000100, "03:00"),
			backupAt(t, 2, 0x7000028, 0x7000100, "04:00"),
		},
		histories: map[segment.Timeline]string{2: "1\t0/5800000\tfailover\n"},
		wal: map[segment.Timeline][][2]segment.LSN{
			1: {{1 * seg, 9 * seg}},
			2: {{5 * seg, 8*seg + 4711}},
		},
		identity: archive.Identity{SystemIdentifier: testSystem, SegmentSize: segment.DefaultSize},
	}
}

// earlyGap is a recorded one between the first two backups, on the parent.
func earlyGap(a *fakeArchive) {
	a.wal[1] = [][2]segment.LSN{{1 * seg, 2*seg + 0x9000}, {4 * seg, 9 * seg}}
	a.gaps = segment.Gaps{{Timeline: 1, Start: 2*seg + 0x9000, End: 4 * seg}}
}

// lateGap is one on the child, behind which nothing was stored yet.
func lateGap(a *fakeArchive) {
	a.wal[2] = [][2]segment.LSN{{5 * seg, 6*seg + 0x9000}}
	a.gaps = segment.Gaps{{Timeline: 2, Start: 6*seg + 0x9000, End: 7 * seg}}
}

func name(i int, a *fakeArchive) string { return a.backups[i].Name.String() }

func TestMakePlan(t *testing.T) {
	gap, late := earlyGap, lateGap
	lsn := func(l segment.LSN) Target { return Target{LSN: &l} }
	at := func(clock string) Target { v := day(t, clock); return Target{Time: &v} }
	on := func(tl string, x Target) Target { x.Timeline = tl; return x }
	type wanted struct {
		backup   int
		timeline segment.Timeline
		reach    segment.LSN
		note     string // in one of the notes; "": there is none
	}
	for _, c := range []struct {
		name   string
		o      Options
		change func(*fakeArchive)
		want   wanted
	}{
		{"no target: the newest", Options{}, nil, wanted{3, 2, 8*seg + 4711, ""}},
		{"LATEST", Options{Backup: LatestBackup}, nil, wanted{3, 2, 8*seg + 4711, ""}},
		{"a standby", Options{Standby: true}, nil, wanted{3, 2, 8*seg + 4711, ""}},
		{"an LSN before the fork", Options{Target: lsn(0x4000200)}, nil, wanted{1, 2, 8*seg + 4711, ""}},
		{"an LSN at the end of a backup", Options{Target: lsn(0x4000100)}, nil, wanted{1, 2, 8*seg + 4711, ""}},
		{"an LSN just before the end of a backup", Options{Target: lsn(0x40000FF)}, nil, wanted{0, 2, 8*seg + 4711, ""}},
		{"an LSN behind the fork: not by the backup of the branch that was left", Options{Target: lsn(0x6800000)}, nil, wanted{1, 2, 8*seg + 4711, ""}},
		{"the same on the branch that was left", Options{Target: on("1", lsn(0x6800000))}, nil, wanted{2, 1, 9 * seg, ""}},
		{"the last byte", Options{Target: lsn(8*seg + 4710)}, nil, wanted{3, 2, 8*seg + 4711, ""}},
		{"a time", Options{Target: at("02:30")}, nil, wanted{1, 2, 8*seg + 4711, ""}},
		{"the time at which a backup ended", Options{Target: at("02:00")}, nil, wanted{0, 2, 8*seg + 4711, ""}},
		{"a time behind all", Options{Target: at("23:00")}, nil, wanted{3, 2, 8*seg + 4711, ""}},
		{"a time in the future", Options{Target: at("23:00"), Now: day(t, "05:00")}, nil, wanted{3, 2, 8*seg + 4711, "in the future"}},
		{"a time in the past", Options{Target: at("04:30"), Now: day(t, "05:00")}, nil, wanted{3, 2, 8*seg + 4711, ""}},
		{"a transaction", Options{Target: Target{XID: ptr(uint64(700))}}, nil, wanted{3, 2, 8*seg + 4711, "the newest base backup is taken"}},
		{"a restore point", Options{Target: Target{Name: "x"}}, nil, wanted{3, 2, 8*seg + 4711, "the newest base backup is taken"}},
		{"at once", Options{Target: Target{Immediate: true}}, nil, wanted{3, 2, 8*seg + 4711, ""}},
		{"timeline 1", Options{Target: Target{Timeline: "1"}}, nil, wanted{2, 1, 9 * seg, ""}},
		{"current", Options{Target: Target{Timeline: Current}}, nil, wanted{3, 2, 8*seg + 4711, ""}},
		{"latest stops at no gap in their numbers", Options{}, func(a *fakeArchive) {
			a.histories[5] = "1\t0/5800000\tx\n2\t0/7800000\tx\n"
			a.wal[5] = [][2]segment.LSN{{7 * seg, 10 * seg}}
		}, wanted{3, 5, 10 * seg, ""}},
		{"latest leaves out a timeline to which no backup leads", Options{}, func(a *fakeArchive) {
			a.histories[3] = "1\t0/1800000\tby mistake\n"
		}, wanted{3, 2, 8*seg + 4711, "timeline 3 is passed over: no base backup lies on timeline 3, which left timeline 1 at 0/1800000"}},
		{"latest leaves out a timeline whose history is none", Options{}, func(a *fakeArchive) {
			a.histories[3] = "nonsense"
		}, wanted{3, 2, 8*seg + 4711, "timeline 3 is passed over: invalid timeline history"}},
		{"latest leaves out a timeline whose history is missing", Options{}, func(a *fakeArchive) {
			a.wal[3] = a.wal[2]
		}, wanted{3, 2, 8*seg + 4711, "00000003.history is not in the archive"}},
		{"a backup that carries its WAL, and with it the history that the archive lacks", Options{}, func(a *fakeArchive) {
			a.histories, a.wal = nil, nil
			a.backups[3].Facts.WAL = archive.WALIncluded
		}, wanted{3, 2, 0x7000100, "there is no WAL behind the backup"}},
		{"a new timeline without WAL of its own", Options{}, func(a *fakeArchive) {
			a.histories[3] = "1\t0/5800000\tx\n2\t0/8001000\tx\n"
		}, wanted{3, 3, 8*seg + 0x1000, "there is no WAL of timeline 3, which begins at 0/8001000"}},
		{"a hole, and a time that may lie before it", Options{Target: at("02:30")}, func(a *fakeArchive) {
			a.wal[2] = [][2]segment.LSN{{5 * seg, 6 * seg}, {7 * seg, 9 * seg}}
		}, wanted{1, 2, 6 * seg, "has a hole: from base backup base_000000010000000000000004_00000028 on it ends at 0/6000000 on timeline 2, and goes on in segment 000000020000000000000007"}},
		{"a hole, and the end of the backup", Options{Backup: "base_000000010000000000000004_00000028", Target: Target{Immediate: true}}, func(a *fakeArchive) {
			a.wal[2] = [][2]segment.LSN{{5 * seg, 6 * seg}, {7 * seg, 9 * seg}}
		}, wanted{1, 2, 6 * seg, ""}},
		{"a hole that is the end", Options{Backup: "base_000000010000000000000004_00000028", StopAtGap: true}, func(a *fakeArchive) {
			a.wal[2] = [][2]segment.LSN{{5 * seg, 6 * seg}, {7 * seg, 9 * seg}}
		}, wanted{1, 2, 6 * seg, "has a hole"}},
		{"a recorded gap behind the target", Options{Target: lsn(2*seg + 0x8000)}, gap, wanted{0, 2, 2*seg + 0x9000, ""}},
		{"a recorded gap, and a backup behind it", Options{}, gap, wanted{3, 2, 8*seg + 4711, ""}},
		{"a recorded gap, and a target behind it, with a backup there", Options{Target: lsn(4*seg + 0x8000)}, gap, wanted{1, 2, 8*seg + 4711, ""}},
		{"a recorded gap, and a time that may lie before it", Options{Backup: "base_000000010000000000000004_00000028", Target: at("02:30")}, late, wanted{1, 2, 6*seg + 0x9000, "(WAL from 0/6009000 to 0/7000000 on timeline 2 is lost: a gap was recorded there)"}},
		{"a recorded gap, and a time before its record", Options{Backup: "base_000000010000000000000004_00000028", Target: at("02:30")}, func(a *fakeArchive) {
			late(a)
			a.recorded = day(t, "02:30")
		}, wanted{1, 2, 6*seg + 0x9000, "a gap was recorded there"}},
		{"a recorded gap, and a time behind a backup that follows", Options{Target: at("03:30")}, func(a *fakeArchive) {
			gap(a)
			a.recorded = day(t, "01:30")
		}, wanted{1, 2, 8*seg + 4711, ""}},
		{"a recorded gap that is the end", Options{Backup: "base_000000010000000000000004_00000028", StopAtGap: true}, late, wanted{1, 2, 6*seg + 0x9000, "a gap was recorded there"}},
		{"a recorded gap of the branch that was left", Options{}, func(a *fakeArchive) {
			a.gaps = segment.Gaps{{Timeline: 1, Start: 9 * seg, End: 12 * seg}}
		}, wanted{3, 2, 8*seg + 4711, ""}},
		{"a recorded gap of which all was found", Options{Backup: "base_000000010000000000000002_00000028"}, func(a *fakeArchive) {
			a.gaps = segment.Gaps{{Timeline: 1, Start: 3 * seg, End: 4 * seg}}
		}, wanted{0, 2, 8*seg + 4711, ""}},
		{"WAL of the branch that was left is no hole", Options{Backup: "base_000000010000000000000004_00000028"}, func(a *fakeArchive) {
			a.wal[2] = [][2]segment.LSN{{5 * seg, 5*seg + 0x900000}}
		}, wanted{1, 2, 5*seg + 0x900000, ""}},
		{"a hole behind the target", Options{Target: lsn(0x2800000)}, func(a *fakeArchive) {
			a.wal[1] = [][2]segment.LSN{{1 * seg, 3 * seg}, {4 * seg, 9 * seg}}
		}, wanted{0, 2, 3 * seg, ""}},
		{"a hole before the backup", Options{}, func(a *fakeArchive) {
			a.wal[1] = [][2]segment.LSN{{1 * seg, 3 * seg}, {4 * seg, 9 * seg}}
		}, wanted{3, 2, 8*seg + 4711, ""}},
		{"a sentinel that cannot be read", Options{}, func(a *fakeArchive) {
			a.backups = append([]archive.Backup{{Name: a.backups[0].Name, Err: archive.ErrSentinel}}, a.backups...)
		}, wanted{4, 2, 8*seg + 4711, "is passed over: invalid sentinel"}},
		{"delta backups", Options{}, func(a *fakeArchive) {
			a.backups[2].Sentinel.DeltaFrom, a.backups[3].Sentinel.DeltaFrom = name(1, a), name(1, a)
		}, wanted{1, 2, 8*seg + 4711, "2 base backups (base_000000010000000000000006_00000028 to base_000000020000000000000007_00000028) are passed over: it is a delta"}},
		{"a walferry.json that cannot be read", Options{}, func(a *fakeArchive) {
			a.backups[3].Facts, a.backups[3].FactsErr = nil, archive.ErrFacts
		}, wanted{1, 2, 8*seg + 4711, "invalid walferry.json"}},
		{"suspect", Options{}, func(a *fakeArchive) {
			a.backups[3].Facts.SuspectPages = []string{"checksum verification failed in file x", "y"}
		}, wanted{3, 2, 8*seg + 4711, "2 pages with wrong checksums while this backup was taken: checksum verification failed in file x"}},
		{"WAL-G's, whose time only the store knows", Options{Target: at("03:30")}, func(a *fakeArchive) {
			for i := range a.backups {
				a.backups[i].StoredAt, a.backups[i].Sentinel.FinishTime, a.backups[i].Facts = a.backups[i].Sentinel.FinishTime, time.Time{}, nil
			}
		}, wanted{1, 2, 8*seg + 4711, ""}},
		{"WAL inside, none in the archive", Options{}, func(a *fakeArchive) {
			a.wal, a.unknown = nil, true
			a.backups[3].Facts.WAL = archive.WALIncluded
		}, wanted{3, 2, 0x7000100, "there is no WAL behind the backup"}},
		{"WAL inside, and what follows in the archive", Options{}, func(a *fakeArchive) {
			a.backups[3].Stop.LSN, a.backups[3].Facts.WAL = 0x8000100, archive.WALIncluded
			a.wal[2] = [][2]segment.LSN{{8 * seg, 8*seg + 4711}}
		}, wanted{3, 2, 8*seg + 4711, ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := threeBackups(t)
			if c.change != nil {
				c.change(a)
			}
			p, err := MakePlan(t.Context(), a, c.o)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Backup.Name.String(); got != name(c.want.backup, a) || p.History.Timeline != c.want.timeline || p.Reach.LSN != c.want.reach {
				t.Errorf("backup %s, timeline %d, reach %s; want %s, %d, %s", got, p.History.Timeline, p.Reach.LSN, name(c.want.backup, a), c.want.timeline, c.want.reach)
			}
			if notes := strings.Join(p.Notes, "\n"); c.want.note == "" && notes != "" || !strings.Contains(notes, c.want.note) {
				t.Errorf("notes: %q; want %q", notes, c.want.note)
			}
			if want := p.Behind != (segment.Name{}) && !c.o.Target.none(); p.StopAtGap != want {
				t.Errorf("StopAtGap is %v, behind a hole lies %s", p.StopAtGap, p.Behind)
			}
			if p.Size != segment.DefaultSize || p.Standby != c.o.Standby {
				t.Errorf("%+v", p)
			}
		})
	}
}

// TestNamed: a backup that is named is taken or refused, never another one.
func TestNamed(t *testing.T) {
	a := threeBackups(t)
	for i := range a.backups {
		p, err := MakePlan(t.Context(), a, Options{Backup: name(i, a)})
		if err != nil {
			t.Fatal(err)
		}
		want := segment.Timeline(2)
		if i == 2 {
			want = 1 // no later timeline comes from there
		}
		if p.Backup.Name != a.backups[i].Name || p.History.Timeline != want {
			t.Errorf("%d: %s on timeline %d", i, p.Backup.Name, p.History.Timeline)
		}
	}
	p, err := MakePlan(t.Context(), a, Options{Backup: name(0, a), Target: Target{Timeline: Current}})
	if err != nil || p.History.Timeline != 1 || p.Reach.LSN != 9*seg {
		t.Errorf("current: %+v, %v", p, err)
	}
	p, err = MakePlan(t.Context(), a, Options{Backup: name(0, a), Target: Target{XID: ptr(uint64(5))}})
	if err != nil || len(p.Notes) > 0 {
		t.Errorf("a transaction: %+v, %v", p, err)
	}
}

// TestRefused: what cannot be reached is said, with what can be.
func TestRefused(t *testing.T) {
	lsn := func(l segment.LSN) Target { return Target{LSN: &l} }
	at := func(clock string) Target { v := day(t, clock); return Target{Time: &v} }
	gap, late := earlyGap, lateGap
	hole := func(a *fakeArchive) { a.wal[1] = [][2]segment.LSN{{1 * seg, 3 * seg}, {4 * seg, 9 * seg}} }
	for _, c := range []struct {
		name     string
		o        Options
		change   func(*fakeArchive)
		reason   string
		possible []string // in this order, each in one line
	}{
		{"an LSN before all backups", Options{Target: lsn(0x2000050)}, nil,
			"the LSN 0/2000050 lies before the end of the oldest base backup base_000000010000000000000002_00000028 (0/2000100 on timeline 1, 2026-11-22 01:00:00 UTC)",
			[]string{"from 0/2000100 on timeline 1, 2026-11-22 01:00:00 UTC, the end of base_000000010000000000000002_00000028, to before 0/8001267 on timeline 2"}},
		{"a time before all backups", Options{Target: at("00:30")}, nil, "the time 2026-11-22 00:30:00 UTC lies before the end of the oldest base backup", []string{"from 0/2000100"}},
		{"an LSN before the named backup", Options{Backup: "base_000000010000000000000004_00000028", Target: lsn(0x3000000)}, nil,
			"the LSN 0/3000000 lies before the end of base backup base_000000010000000000000004_00000028", []string{"from 0/4000100"}},
		{"an LSN at the end of the WAL", Options{Target: lsn(8*seg + 4711)}, nil,
			"the LSN 0/8001267 is not reached: from base backup base_000000020000000000000007_00000028 on the archive's WAL ends at 0/8001267 on timeline 2", []string{"or without a target to there"}},
		{"an LSN behind it", Options{Target: lsn(9 * seg)}, nil, "is not reached", []string{"from 0/2000100"}},
		{"an LSN behind a hole", Options{Target: lsn(3*seg + 5)}, hole, "is not reached: from base backup base_000000010000000000000002_00000028 on the archive's WAL ends at 0/3000000 on timeline 1",
			[]string{"to before 0/3000000 on timeline 1", "from 0/4000100 on timeline 1"}},
		{"no WAL of the backup", Options{}, func(a *fakeArchive) { a.wal[2] = [][2]segment.LSN{{5 * seg, 7 * seg}} },
			"base backup base_000000020000000000000007_00000028 needs WAL from 0/7000028 on timeline 2 to 0/7000100 on timeline 2, and the archive has none of it", []string{"from 0/2000100"}},
		{"not all WAL of the backup", Options{}, func(a *fakeArchive) { a.wal[2] = [][2]segment.LSN{{5 * seg, 7*seg + 0x50}} },
			"and the archive's ends at 0/7000050 on timeline 2", []string{"from 0/2000100"}},
		{"a hole", Options{Backup: "base_000000010000000000000004_00000028"}, func(a *fakeArchive) {
			a.wal[2] = [][2]segment.LSN{{5 * seg, 6 * seg}, {7 * seg, 9 * seg}}
		}, "it ends at 0/6000000 on timeline 2, and goes on in segment 000000020000000000000007", []string{"to before 0/6000000 on timeline 2, where WAL is missing up to segment 000000020000000000000007"}},
		{"an LSN in a recorded gap", Options{Target: lsn(3 * seg)}, gap,
			"is not reached: from base backup base_000000010000000000000002_00000028 on the archive's WAL ends at 0/2009000 on timeline 1 (WAL from 0/2009000 to 0/4000000 on timeline 1 is lost: a gap was recorded there)",
			[]string{"to before 0/2009000 on timeline 1, where WAL is missing up to segment 000000010000000000000004", "from 0/4000100 on timeline 1"}},
		{"an LSN behind a recorded gap, with no backup there", Options{Backup: "base_000000010000000000000002_00000028", Target: lsn(5 * seg)}, gap, "a gap was recorded there", []string{"to before 0/2009000"}},
		{"a recorded gap, with nothing behind it yet", Options{Backup: "base_000000010000000000000004_00000028"}, late,
			"it ends at 0/6009000 on timeline 2, and goes on in segment 000000020000000000000007 (WAL from 0/6009000 to 0/7000000 on timeline 2 is lost: a gap was recorded there)", []string{"to before 0/6009000 on timeline 2, where WAL is missing up to segment 000000020000000000000007"}},
		{"a time behind a recorded gap", Options{Backup: "base_000000010000000000000004_00000028", Target: at("02:30")}, func(a *fakeArchive) {
			late(a)
			a.recorded = day(t, "02:30").Add(-time.Second)
		}, "the time 2026-11-22 02:30:00 UTC lies behind WAL that was lost by 2026-11-22 02:30:00 UTC, by the receiver's clock: the archive's WAL has a hole: from base backup base_000000010000000000000004_00000028 on it ends at 0/6009000 on timeline 2",
			[]string{"to before 0/6009000 on timeline 2, where WAL is missing"}},
		{"a recorded gap, and a standby", Options{Backup: "base_000000010000000000000004_00000028", Standby: true}, late, "a gap was recorded there", []string{""}},
		{"a recorded gap before the fork", Options{Backup: "base_000000010000000000000002_00000028"}, gap, "before timeline 2 begins at 0/5800000 (WAL from 0/2009000", []string{"to before 0/2009000"}},
		{"a hole before tail objects", Options{Backup: "base_000000010000000000000004_00000028", Standby: true}, func(a *fakeArchive) {
			a.wal[2] = [][2]segment.LSN{{5 * seg, 6 * seg}, {7 * seg, 7*seg + 100}}
		}, "it ends at 0/6000000 on timeline 2, and goes on in segment 000000020000000000000007", nil},
		{"a hole before the fork", Options{Backup: "base_000000010000000000000002_00000028"}, hole, "WAL ends at 0/3000000 on timeline 1, before timeline 2 begins at 0/5800000", []string{"to before 0/3000000 on timeline 1, where WAL is missing up to segment 000000010000000000000004"}},
		{"WAL that does not get to the fork", Options{Backup: "base_000000010000000000000002_00000028", Target: at("01:30")}, func(a *fakeArchive) {
			a.wal = map[segment.Timeline][][2]segment.LSN{1: {{1 * seg, 3 * seg}}}
		}, "WAL ends at 0/3000000 on timeline 1, before timeline 2 begins", []string{"to before 0/3000000 on timeline 1"}},
		{"no WAL at all", Options{}, func(a *fakeArchive) { a.wal = nil }, "and the archive has none of it", []string{"nothing on timeline 2"}},
		{"WAL inside, and a target behind", Options{Target: lsn(0x7000200)}, func(a *fakeArchive) {
			a.wal = nil
			a.backups[3].Facts.WAL = archive.WALIncluded
		}, "the archive's WAL ends at 0/7000100 on timeline 2", []string{"itself (0/7000100 on timeline 2"}},
		{"WAL inside, and not the segment that follows", Options{}, func(a *fakeArchive) {
			a.backups[3].Facts.WAL = archive.WALIncluded
			a.wal[2] = [][2]segment.LSN{{8 * seg, 8*seg + 4711}}
		}, "on it ends at 0/7000100 on timeline 2, and goes on in segment 000000020000000000000008", []string{"", "the end of base_000000020000000000000007_00000028 itself (0/7000100 on timeline 2, 2026-11-22 04:00:00 UTC, target immediate), where WAL is missing up to"}},
		{"an unknown timeline", Options{Target: Target{Timeline: "7"}}, nil, "the archive knows of no timeline 7", []string{"timelines 1, 2"}},
		{"a timeline without history", Options{Target: Target{Timeline: "3"}}, func(a *fakeArchive) { a.wal[3] = a.wal[2] }, "timeline 3 cannot be restored: its history file 00000003.history is not in the archive", nil},
		{"a timeline to which the named backup does not lead", Options{Backup: "base_000000010000000000000006_00000028", Target: Target{Timeline: "2"}}, nil,
			"base backup base_000000010000000000000006_00000028, which ends at 0/6000100 on timeline 1, does not lie on timeline 2, which left timeline 1 at 0/5800000", []string{"ends at 0/6000100 on timeline 1"}},
		{"a timeline that begins before all backups", Options{Target: Target{Timeline: "3"}}, func(a *fakeArchive) { a.histories[3] = "1\t0/1800000\tx\n" },
			"no base backup lies on timeline 3", []string{"base_000000010000000000000002_00000028 ends at", "", "", "base_000000020000000000000007_00000028 ends at"}},
		{"current, without history", Options{Target: Target{Timeline: Current}}, func(a *fakeArchive) { delete(a.histories, 2) }, "timeline 2 cannot be restored", nil},
		{"a history that is needed and missing", Options{Backup: "base_000000020000000000000007_00000028"}, func(a *fakeArchive) { delete(a.histories, 2) }, "no timeline can be restored: timeline 2 is passed over: its history file", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := threeBackups(t)
			if c.change != nil {
				c.change(a)
			}
			p, err := MakePlan(t.Context(), a, c.o)
			var e *UnreachableError
			if !errors.As(err, &e) || !strings.Contains(e.Reason, c.reason) {
				t.Fatalf("%+v, %v; want %q", p, err, c.reason)
			}
			for i, want := range c.possible {
				if i >= len(e.Possible) || !strings.Contains(e.Possible[i], want) {
					t.Errorf("possible: %q; want %q", e.Possible, c.possible)
				}
			}
			if len(c.possible) == 0 && len(e.Possible) > 0 && !c.o.Standby {
				t.Errorf("possible: %q", e.Possible)
			}
			for _, line := range e.Possible {
				if !strings.Contains(err.Error(), line) {
					t.Errorf("%q does not say %q", err, line)
				}
			}
		})
	}
}

func TestNoBackup(t *testing.T) {
	for _, c := range []struct {
		name   string
		o      Options
		change func(*fakeArchive)
		is     error
		want   string
	}{
		{"none", Options{}, func(a *fakeArchive) { a.backups = nil }, ErrNoBackup, "there is none in the archive"},
		{"not that one", Options{Backup: "base_x"}, func(*fakeArchive) {}, ErrNoBackup, "base_x: the newest of 4 is base_000000020000000000000007_00000028"},
		{"not that one, nor another", Options{Backup: "base_x"}, func(a *fakeArchive) { a.backups = nil }, ErrNoBackup, "there is none"},
		{"none that can be restored", Options{}, func(a *fakeArchive) {
			for i := range a.backups {
				a.backups[i].Stop.LSN = 0
			}
		}, ErrNoBackup, "none of the 4 in the archive can be restored: 4 base backups"},
		{"a named one whose sentinel is none", Options{Backup: "base_000000010000000000000004_00000028"}, func(a *fakeArchive) { a.backups[1].Err = archive.ErrSentinel }, archive.ErrSentinel, "base_000000010000000000000004_00000028"},
		{"a named delta", Options{Backup: "base_000000010000000000000004_00000028"}, func(a *fakeArchive) { a.backups[1].Sentinel.DeltaFrom = "x" }, nil, "wal-g restores it"},
		{"another cluster's", Options{}, func(a *fakeArchive) { a.backups[3].Sentinel.SystemIdentifier++ }, archive.ErrForeignCluster, "is of system"},
		{"another segment size", Options{}, func(a *fakeArchive) { a.backups[3].Facts.SegmentSize = 64 << 20 }, segment.ErrSegmentSize, "64MB"},
		{"no segment size", Options{}, func(a *fakeArchive) { a.unknown, a.backups[3].Facts = true, nil }, archive.ErrUnrecognised, "how long segments are"},
		{"two targets", Options{Target: Target{Name: "x", Immediate: true}}, func(*fakeArchive) {}, nil, "exclude each other"},
	} {
		a := threeBackups(t)
		c.change(a)
		p, err := MakePlan(t.Context(), a, c.o)
		if p != nil || err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v; want %q", c.name, p, err, c.want)
		}
	}
	// What the store cannot answer is its error, and no refusal.
	broken := errors.New("the storage is away")
	for _, call := range []string{"Backups", "Timelines", "HistoryOf", "Recognise", "ReachFrom", "NextSegment", "NextTail", "Gaps", "ReadGap"} {
		a, o := threeBackups(t), Options{}
		if call == "ReadGap" {
			at := day(t, "02:30")
			lateGap(a)
			o = Options{Backup: "base_000000010000000000000004_00000028", Target: Target{Time: &at}}
		}
		a.err = map[string]error{call: broken}
		_, err := MakePlan(t.Context(), a, o)
		var e *UnreachableError
		if !errors.Is(err, broken) || errors.As(err, &e) || errors.Is(err, ErrNoBackup) {
			t.Errorf("%s: %v", call, err)
		}
	}
}

func TestText(t *testing.T) {
	a := threeBackups(t)
	a.backups[1].Sentinel.Spec = &archive.TablespaceSpec{Locations: map[uint32]string{16385: "/srv/b", 16384: "/srv/a"}}
	a.backups[1].Sentinel.UncompressedSize, a.backups[1].Sentinel.CompressedSize = 5<<30, 700<<20
	at := time.Date(2026, 11, 22, 3, 30, 0, 5000, time.FixedZone("", 3600))
	p, err := MakePlan(t.Context(), a, Options{Target: Target{Time: &at, Exclusive: true, Action: "promote"}, Now: at.Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	const want = `base backup  base_000000010000000000000004_00000028, PostgreSQL 15.18, "nightly"
taken        2026-11-22 01:59:00 UTC to 2026-11-22 02:00:00 UTC
holds        0/4000028 to 0/4000100 on timeline 1, 5.0 GB, 700.0 MB in the archive
tablespace   16384 at /srv/a
tablespace   16385 at /srv/b
WAL          up to 0/8001267 on timeline 2
timeline     1 to 0/5800000, then 2
target       the time 2026-11-22 02:30:00.000005 UTC, without it; then the server becomes a primary on a new timeline
note         the time 2026-11-22 02:30:00.000005 UTC, without it lies in the future: the server replays to the end of the archive, does not find the target, and stops
`
	if got := p.Text(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "target       the end of the archive; then the server becomes a primary on a new timeline\n"},
		{Options{Standby: true}, "target       none: a standby, which goes on with what is archived later\n"},
		{Options{Standby: true, Target: Target{Name: "x"}}, "target       the restore point \"x\", as a standby; then the server pauses"},
		{Options{Target: Target{Immediate: true, Action: "shutdown"}}, "target       the end of the backup; then the server shuts down\n"},
		{Options{Target: Target{Timeline: "1"}}, "timeline     1\n"},
	} {
		p, err := MakePlan(t.Context(), a, c.o)
		if err != nil || !strings.Contains(p.Text(), c.want) {
			t.Errorf("%v, %v; want %q", p.Text(), err, c.want)
		}
	}
	for n, want := range map[int64]string{0: "0 bytes", 1023: "1023 bytes", 1536: "1.5 kB", 1 << 20: "1.0 MB", 1 << 30: "1.0 GB", 1 << 42: "4.0 TB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s; want %s", n, got, want)
		}
	}
}

// The archive itself is one.
var _ Archive = (*archive.Archive)(nil)

func TestTimelinesAreSorted(t *testing.T) {
	a := threeBackups(t)
	p := &planner{archive: a, plan: &Plan{}}
	if err := p.findBackups(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.findTimelines(t.Context()); err != nil || !slices.Equal(p.timelines, []segment.Timeline{2, 1}) {
		t.Errorf("%v, %v", p.timelines, err)
	}
}
