package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// mark is a row with what its transaction can be known by.
type mark struct {
	id     int
	xid    string
	at     string      // when it was committed, as PostgreSQL writes it
	commit segment.LSN // where its commit record begins
	behind segment.LSN // and where WAL ended when it was committed
}

// history is an archive with two base backups and marks behind each.
type history struct {
	*operator
	marks  []mark // mark n is marks[n-1]
	a, b   string // the base backups: before mark 1, and between 5 and 6
	points map[string]int
}

// marked are settings with which the server tells when a transaction was
// committed.
func marked() map[string]string { return map[string]string{"track_commit_timestamp": "on"} }

// newHistory makes one, of ten marks. Nothing else is written meanwhile.
func newHistory(t *testing.T, i instance.Installation) (*history, *process) {
	t.Helper()
	s := newScene(t, options{pg: i, settings: marked()})
	r := s.receive()
	s.slotSegment()
	h := &history{operator: s.operator(), points: map[string]int{}}
	h.sql("CREATE TABLE marks (id int PRIMARY KEY, v text)")
	h.a = h.backup("--label", "a")
	h.mark(3)
	h.point("early")
	h.mark(2)
	h.b = h.backup("--label", "b")
	h.mark(3)
	h.point("late")
	h.mark(2)
	h.awaitShipped()
	return h, r
}

// mark commits some more.
func (h *history) mark(n int) {
	h.t.Helper()
	for range n {
		m := mark{id: len(h.marks) + 1}
		c, err := pgconn.Connect(h.ctx(), h.pg.DSN("postgres"))
		if err != nil {
			h.t.Fatal(err)
		}
		results, err := c.Exec(h.ctx(), fmt.Sprintf(`BEGIN; INSERT INTO marks VALUES (%d, repeat('x', 100)); SELECT pg_current_xact_id();
			SELECT pg_current_wal_insert_lsn(); COMMIT; SELECT pg_current_wal_insert_lsn()`, m.id)).ReadAll()
		if err := errors.Join(err, c.Close(h.ctx())); err != nil {
			h.t.Fatal(err)
		}
		value := func(n int) string { return string(results[n].Rows[0][0]) }
		m.xid = value(2)
		m.at = h.sql("SELECT pg_xact_commit_timestamp('" + m.xid + "'::xid)")
		var err2 error
		m.commit, err = segment.ParseLSN(value(3))
		m.behind, err2 = segment.ParseLSN(value(5))
		if err := errors.Join(err, err2); err != nil {
			h.t.Fatal(err)
		}
		h.marks = append(h.marks, m)
	}
}

// point makes a restore point behind the marks that there are.
func (h *history) point(name string) {
	h.t.Helper()
	h.sql("SELECT pg_create_restore_point('" + name + "')")
	h.points[name] = len(h.marks)
}

// tight picks the mark, from one to another, behind whose last row nothing was
// written but the commit: a record of the server's own may come at any time.
func (h *history) tight(from, to int) mark {
	return slices.MinFunc(h.marks[from-1:to], func(a, b mark) int { return int(a.behind-a.commit) - int(b.behind-b.commit) })
}

// upTo is what the marks up to n look like in the table.
func upTo(n int) string {
	var ids []string
	for id := range n {
		ids = append(ids, fmt.Sprint(id+1))
	}
	return strings.Join(ids, ",")
}

const theMarks = "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM marks"

// pitr is a restore to a moment.
type pitr struct {
	name   string
	args   []string
	want   int    // marks
	from   string // the base backup
	seldom bool   // in a full run only
}

// A restore to a moment ends exactly there, with it or before it, and begins
// with the base backup that is right for it.
func TestPITR(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		h, r := newHistory(t, i)
		r.stop()
		if err := h.pg.Kill(h.ctx()); err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse("2006-01-02 15:04:05.999999-07", h.marks[8].at)
		if err != nil {
			t.Fatal(err)
		}
		lsn := h.tight(2, 4)
		const before = "--target-inclusive=false"
		cases := []pitr{
			{"time", []string{"--target-time", h.marks[3].at}, 4, h.a, false},
			{"before a time", []string{"--target-time", h.marks[3].at, before}, 3, h.a, true},
			{"time as in RFC 3339, of another zone", []string{"--target-time", at.In(time.FixedZone("", 5*3600+1800)).Format(time.RFC3339Nano)}, 9, h.b, false},
			{"LSN", []string{"--target-lsn", lsn.commit.String()}, lsn.id, h.a, false},
			{"before an LSN", []string{"--target-lsn", lsn.commit.String(), before}, lsn.id - 1, h.a, false},
			{"xid", []string{"--target-xid", h.marks[8].xid}, 9, h.b, false},
			{"before an xid", []string{"--target-xid", h.marks[8].xid, before}, 8, h.b, false},
			{"xid before the newest backup", []string{"--target-xid", h.marks[1].xid, "--backup", h.a}, 2, h.a, true},
			{"name", []string{"--target-name", "late"}, h.points["late"], h.b, false},
			{"name before the newest backup", []string{"--target-name", "early", "--backup", h.a}, h.points["early"], h.a, true},
			{"immediate", []string{"--target-immediate"}, 5, h.b, false},
			{"immediate of an old backup", []string{"--target-immediate", "--backup", h.a}, 0, h.a, true},
			{"none", nil, 10, h.b, false},
			{"none of LATEST", []string{"--backup", "LATEST"}, 10, h.b, true},
			{"none of an old backup", []string{"--backup", h.a}, 10, h.a, false},
		}
		if !theLab.full && i == theLab.main {
			cases = slices.DeleteFunc(cases, func(c pitr) bool { return c.seldom })
		}
		if !theLab.full && i != theLab.main {
			// One of a kind: time, LSN, xid, name.
			cases = []pitr{cases[0], cases[4], cases[5], cases[8]}
		}
		for n, c := range cases {
			args := c.args
			if len(args) > 0 && strings.HasPrefix(args[0], "--target") {
				args = append(args, "--target-action", "promote")
			}
			pg := h.restored(fmt.Sprint("restored", n), args...)
			if label, err := os.ReadFile(filepath.Join(pg.DataDir(), "backup_label")); err != nil || !strings.Contains(string(label), "\nLABEL: "+map[string]string{h.a: "a", h.b: "b"}[c.from]+"\n") {
				t.Errorf("%s: the backup was another one than %s:\n%s", c.name, c.from, label)
			}
			h.recovers(pg)
			if got := h.asked(pg, theMarks); got != upTo(c.want) {
				t.Errorf("%s: the marks are %s, want %s", c.name, got, upTo(c.want))
			}
			if err := pg.Remove(h.ctx()); err != nil {
				t.Fatal(err)
			}
			if t.Failed() {
				return
			}
		}
	})
}

// At its target the server does what it was told to: it waits to be looked at,
// becomes a primary, or stops, and goes on from there when it is told so.
func TestTargetAction(t *testing.T) {
	t.Parallel()
	h, r := newHistory(t, theLabs(t))
	r.stop()
	for action, args := range map[string][]string{"nothing said": nil, "pause": {"--target-action", "pause"}} {
		pg := h.restored(strings.ReplaceAll(action, " ", "-"), append([]string{"--target-name", "late"}, args...)...)
		if err := pg.Start(h.ctx()); err != nil {
			t.Fatal(err)
		}
		eventually(t, action+": the server to wait at the target", func() bool { return h.asked(pg, "SELECT pg_get_wal_replay_pause_state()") == "paused" })
		if got := h.asked(pg, theMarks); got != upTo(8) {
			t.Errorf("%s: the marks are %s, want %s", action, got, upTo(8))
		}
		h.asked(pg, "SELECT pg_wal_replay_resume()")
		if err := pg.AwaitPrimary(h.ctx()); err != nil {
			t.Fatal(err)
		}
		if got := h.asked(pg, theMarks); got != upTo(8) {
			t.Errorf("%s: behind the pause the marks are %s, want %s", action, got, upTo(8))
		}
	}
	pg := h.restored("shutdown", "--target-name", "late", "--target-action", "shutdown")
	if err := pg.Launch(h.ctx()); err != nil {
		t.Fatal(err)
	}
	// pg_control says of a server that was backed up that it is a primary, until
	// recovery has begun.
	err := pg.AwaitReady(h.ctx())
	if err == nil {
		err = pg.AwaitPrimary(h.ctx())
	}
	if !errors.Is(err, instance.ErrExited) {
		t.Errorf("the server did not stop at the target: %v", err)
	}
	if _, err := os.Stat(filepath.Join(pg.DataDir(), "pg_wal", "00000002.history")); err == nil {
		t.Error("the server has become a primary")
	}
	if text, err := pg.Log(); err != nil || !strings.Contains(text, "shutdown at recovery target") {
		t.Errorf("the server's log does not say why it stopped (%v):\n%s", err, text)
	}
}

// theLabs is the main installation; without any the test is skipped.
func theLabs(t *testing.T) instance.Installation {
	t.Helper()
	if theLab.missing != "" {
		t.Skip("NOT TESTED: " + theLab.missing)
	}
	return theLab.main
}

// What cannot be reached is refused before anything is written, and it is said
// what can.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	h, r := newHistory(t, theLabs(t))
	ended := h.switchWAL()
	h.mark(1)
	h.awaitSealed(ended, ended)
	h.awaitShipped()
	r.stop()
	a, b := h.show(h.a), h.show(h.b)
	reach := b.RestorableTo.LSN.LSN
	beyond := (reach + 1<<20).String()
	segmentOf := func(lsn segment.LSN) string { return h.size.Name(1, lsn).String() }
	began, err := time.Parse(time.RFC3339, *a.Started)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		says string // where what is possible is told
		hide string // a segment of which the archive has nothing meanwhile
	}{
		{"LSN before any backup's end", []string{"--target-lsn", a.Start.LSN.String()}, a.Stop.LSN.String(), ""},
		{"LSN before the end of the backup that is asked for", []string{"--target-lsn", h.marks[1].behind.String(), "--backup", h.b}, b.Stop.LSN.String(), ""},
		{"time before any backup's end", []string{"--target-time", began.Add(-time.Minute).Format(time.RFC3339)}, `\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`, ""},
		{"LSN beyond the archive", []string{"--target-lsn", beyond}, reach.String(), ""},
		{"unknown timeline", []string{"--target-timeline", "7"}, `timeline 7`, ""},
		{"unknown backup", []string{"--backup", "base_0000000100000000000000AA"}, `base_0000000100000000000000AA`, ""},
		{"LSN behind a hole", []string{"--target-lsn", h.marks[8].behind.String()}, h.size.Start(h.marks[8].commit).String(), segmentOf(h.marks[8].commit)},
		{"the end of an archive with a hole", nil, `hole|gap|missing`, segmentOf(b.Stop.LSN.LSN + 1<<20)},
		{"a backup without its WAL", []string{"--backup", h.a}, segmentOf(a.Start.LSN.LSN), segmentOf(a.Start.LSN.LSN)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.hide != "" {
				defer h.hide(c.hide)()
			}
			before := tree(t, h.archive)
			dir := filepath.Join(h.home, "new")
			h.restore(dir, c.args...).failed(1, c.says)
			absent(t, dir)
			absent(t, dir+".walferry.yaml")
			h.walferry(append([]string{"restore", "--preview"}, c.args...)...).failed(1, c.says)
			if after := tree(t, h.archive); !slices.Equal(before, after) {
				t.Error("the archive was changed")
			}
		})
	}

	// A directory that holds something is left as it is.
	dir := filepath.Join(h.home, "old")
	if err := theLab.account.MkdirAll(dir); err != nil {
		t.Fatal(err)
	}
	h.writeHome("old/mine", "precious")
	before := tree(t, dir)
	h.restore(dir).failed(1, `not empty`)
	h.restore(dir, "--force").failed(1, `no PostgreSQL data directory: it holds mine`)
	h.restore(h.pg.DataDir(), "--force").failed(1, `a server runs in`)
	if after := tree(t, dir); !slices.Equal(before, after) {
		t.Errorf("the directory holds %v", after)
	}
	if v := h.sql("SELECT 'still there'"); v != "still there" {
		t.Error(v)
	}
}

// hide takes a segment out of the archive, whole and in tail objects, until the
// function that it returns is called.
func (s *scene) hide(segment string) (unhide func()) {
	s.t.Helper()
	away := filepath.Join(s.dir, "hidden")
	whole, tails := filepath.Join(s.archive, "wal_005", segment+".lz4"), filepath.Join(s.archive, "wal_tail_005", segment)
	s.move(whole, away+".lz4")
	_, err := os.Stat(tails)
	if err == nil {
		s.move(tails, away)
	}
	return func() {
		s.move(away+".lz4", whole)
		if err == nil {
			s.move(away, tails)
		}
	}
}

// --preview tells what would be done, and does nothing.
func TestRestorePreview(t *testing.T) {
	t.Parallel()
	h, r := newHistory(t, theLabs(t))
	r.stop()
	before, home := tree(t, h.archive), everything(t, h.home)
	dir := filepath.Join(h.home, "new")
	for _, c := range []struct {
		args []string
		says []string
	}{
		{nil, []string{h.b, h.show("LATEST").RestorableTo.LSN.String()}},
		{[]string{"--target-xid", h.marks[8].xid}, []string{h.b, h.marks[8].xid}},
		{[]string{"--target-lsn", h.marks[2].behind.String()}, []string{h.a, h.marks[2].behind.String()}},
		{[]string{"--target-time", strings.Replace(h.marks[2].at, "+00", "", 1)}, []string{h.a, "UTC"}},
	} {
		for _, where := range [][]string{nil, {"-D", dir}} {
			p := h.with("TZ=UTC").walferry(append(append([]string{"restore", "--preview"}, where...), c.args...)...)
			p.exits(0)
			for _, says := range c.says {
				if !strings.Contains(p.stdout.String(), says) {
					t.Errorf("the plan for %v does not name %s:\n%s", c.args, says, p.stdout.String())
				}
			}
		}
	}
	absent(t, dir)
	absent(t, dir+".walferry.yaml")
	if after := tree(t, h.archive); !slices.Equal(before, after) {
		t.Error("the archive was changed")
	}
	if after := everything(t, h.home); !slices.Equal(home, after) {
		t.Errorf("there is %v, and before there was %v", after, home)
	}
}

// A time without a zone is one of the host on which it is said.
func TestTargetTimeZone(t *testing.T) {
	t.Parallel()
	h, r := newHistory(t, theLabs(t))
	r.stop()
	at, err := time.Parse("2006-01-02 15:04:05.999999-07", h.marks[3].at)
	if err != nil {
		t.Fatal(err)
	}
	// What tzset(3) takes without a database of zones: five hours west.
	elsewhere := time.FixedZone("", -5*3600)
	if _, err := time.LoadLocation("Etc/GMT+5"); err != nil {
		t.Skipf("NOT TESTED: there are no time zones here: %v", err)
	}
	pg := h.with("TZ=Etc/GMT+5").restored("restored", "--target-time", at.In(elsewhere).Format("2006-01-02 15:04:05.999999"), "--target-action", "promote")
	h.recovers(pg)
	if got := h.asked(pg, theMarks); got != upTo(4) {
		t.Errorf("the marks are %s, want %s", got, upTo(4))
	}
}

// What the original's settings would do to the restored server, or with it, is
// undone, and said.
func TestRestoredSettings(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i, settings: map[string]string{"archive_mode": "on", "archive_command": "true"}})
		r := s.receive()
		s.slotSegment()
		s.table()
		archived := filepath.Join(s.dir, "archived")
		if err := theLab.account.MkdirAll(archived); err != nil {
			t.Fatal(err)
		}
		// They hold for the original from its next start on, which does not come.
		for name, value := range map[string]string{
			"synchronous_standby_names": "nobody", "primary_conninfo": "host=/nowhere", "primary_slot_name": "nothing",
			"recovery_target_name": "old", "recovery_target_action": "shutdown", "restore_command": "false", "recovery_end_command": "false",
			"archive_cleanup_command": "false", "archive_mode": "always", "archive_command": "touch " + archived + "/%f",
		} {
			s.sql("ALTER SYSTEM SET " + name + " = '" + value + "'")
		}
		own, err := os.OpenFile(filepath.Join(s.pg.DataDir(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = own.WriteString("\nsynchronous_standby_names = 'somebody'\nrecovery_target_timeline = 'current'\nrecovery_target_xid = '7'\n")
		if err := errors.Join(err, own.Close()); err != nil {
			t.Fatal(err)
		}
		o := s.operator()
		name := o.backup()
		s.fill(10)
		o.awaitShipped()

		// setting is what a server in a directory would have, by its own files.
		setting := func(dir, name string) string {
			t.Helper()
			p := start(t, nil, i.Program("postgres"), "-D", dir, "-C", name)
			p.exits(0)
			return strings.TrimSpace(p.stdout.String())
		}
		for n, c := range []struct {
			args []string
			want map[string]string
			warn bool // of the archive_command
		}{
			{nil, map[string]string{"primary_conninfo": "", "primary_slot_name": "", "archive_mode": "always"}, true},
			{[]string{"--clone"}, map[string]string{"primary_conninfo": "", "primary_slot_name": "", "archive_mode": "off"}, false},
			{[]string{"--standby"}, map[string]string{"primary_conninfo": "host=/nowhere", "primary_slot_name": "nothing", "archive_mode": "on", "wal_retrieve_retry_interval": "1000"}, true},
		} {
			var p *process
			pg := o.restoredBy(fmt.Sprint("restored", n), func(dir string) error {
				p = o.restore(dir, c.args...)
				if code := p.wait(); code != 0 {
					return fmt.Errorf("restore ended with %d", code)
				}
				return nil
			})
			want := map[string]string{"synchronous_standby_names": "", "recovery_target_name": "", "recovery_target_xid": "", "recovery_target_timeline": "latest",
				"recovery_end_command": "", "archive_cleanup_command": ""}
			if !slices.Contains(c.args, "--standby") {
				want["recovery_target_timeline"] = "1" // that of the plan: a newer one is not to be followed
			}
			for name, value := range c.want {
				want[name] = value
			}
			for name, value := range want {
				if got := setting(pg.DataDir(), name); got != value {
					t.Errorf("%v: %s is %q, want %q", c.args, name, got, value)
				}
			}
			command := setting(pg.DataDir(), "restore_command")
			if !regexp.MustCompile(`^/\S+ fetch --config /\S+ "%f" "%p"$`).MatchString(command) {
				t.Errorf("%v: restore_command is %s", c.args, command)
			}
			info, err := os.Stat(pg.DataDir() + ".walferry.yaml")
			if err != nil || info.Mode() != 0o600 {
				t.Errorf("%v: the file of its settings: %v, %v", c.args, info, err)
			}
			if warned := strings.Contains(p.log(), "the restored server archives its WAL by archive_command"); warned != c.warn {
				t.Errorf("%v: it warned of the archive_command: %v\n%s", c.args, warned, p.log())
			}
			if strings.Contains(p.log(), archived) {
				t.Errorf("%v: it shows the command, in which there may be a secret:\n%s", c.args, p.log())
			}
			preview := o.walferry(append([]string{"restore", "--preview"}, c.args...)...)
			preview.exits(0)
			if warned := strings.Contains(preview.log(), "archived its WAL by archive_command"); warned != c.warn {
				t.Errorf("%v: the plan warned of the archive_command: %v\n%s", c.args, warned, preview.log())
			}
			for _, word := range []string{"synchronous_standby_names", "recovery_target"} {
				if !strings.Contains(p.log(), word) {
					t.Errorf("%v: it was not said that %s was cleared:\n%s", c.args, word, p.log())
				}
			}
			switch {
			case slices.Contains(c.args, "--standby"):
				follows(o, pg, r)
			case slices.Contains(c.args, "--clone"):
				o.recovers(pg)
				// A commit that waits for nobody, and WAL that nobody archives.
				o.asked(pg, "INSERT INTO rows (v) VALUES ('new'); SELECT pg_switch_wal(); CHECKPOINT")
				if files := everything(t, archived); len(files) > 0 {
					t.Errorf("the clone has archived %v", files)
				}
			}
		}
		if list := o.list().names(); !slices.Equal(list, []string{name}) {
			t.Errorf("the backups are %v", list)
		}
	})
}

// follows lets a restored standby follow the archive, and be promoted.
func follows(o *operator, pg *instance.Server, r *process) {
	t := o.t
	t.Helper()
	if err := pg.Start(o.ctx()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		o.fill(100)
		want := rows(o.ctx(), o.pg)
		eventually(t, "the standby to have the rows", func() bool {
			if !pg.Running() {
				t.Fatal("the standby went down")
			}
			return rows(o.ctx(), pg) == want
		})
	}
	if v := o.asked(pg, "SELECT pg_is_in_recovery()"); v != "t" {
		t.Error("the standby is in no recovery")
	}
	r.stop()
	if err := pg.Promote(o.ctx()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(o.ctx(), patience/2)
	defer cancel()
	if _, err := query(ctx, pg.DSN("postgres"), "INSERT INTO rows (v) VALUES ('new')"); err != nil {
		t.Errorf("the promoted server takes no commit: %v", err)
	}
}

// A restore to the past makes a timeline of its own. Both are in the archive
// then, and can be had.
func TestRestoreTimelines(t *testing.T) {
	t.Parallel()
	h, r := newHistory(t, theLabs(t))
	r.stop()
	if err := h.pg.Kill(h.ctx()); err != nil {
		t.Fatal(err)
	}
	past := h.restored("past", "--target-xid", h.marks[6].xid, "--target-action", "promote")
	h.recovers(past)
	old := h.operator
	h.operator, h.pg = old.at(past), past
	r = h.receive("--slot", "past", "--spool", filepath.Join(h.home, "spool-past"))
	eventually(t, "the new timeline in the archive", func() bool {
		_, err := os.Stat(filepath.Join(h.archive, "wal_005", "00000002.history.lz4"))
		return err == nil
	})
	h.sql("INSERT INTO marks VALUES (101, 'new'), (102, 'new')")
	c := h.backup("--label", "c")
	h.sql("INSERT INTO marks VALUES (103, 'new')")
	lsn := h.lsn("SELECT pg_current_wal_flush_lsn()")
	eventually(t, "the new rows in the archive", func() bool {
		return slices.ContainsFunc(h.tailObjects(), func(o tailObject) bool {
			return o.segment == h.size.Name(2, lsn-1) && o.end >= lsn
		})
	})
	r.stop()
	b := h.show("LATEST")
	if b.Name != c || b.Stop.Timeline != 2 {
		t.Errorf("LATEST is %s on timeline %d, want %s on timeline 2", b.Name, b.Stop.Timeline, c)
	}
	if err := past.Kill(h.ctx()); err != nil {
		t.Fatal(err)
	}
	lateOld := h.marks[9].behind
	for n, c := range []struct {
		name, want string
		args       []string
	}{
		{"latest", upTo(7) + ",101,102,103", nil},
		{"latest, from an old backup", upTo(7) + ",101,102,103", []string{"--backup", h.a}},
		{"the old timeline", upTo(10), []string{"--target-timeline", "1"}},
		{"the timeline of an old backup", upTo(10), []string{"--backup", h.b, "--target-timeline", "current"}},
		{"an LSN of the old timeline", upTo(9), []string{"--target-timeline", "1", "--target-lsn", h.marks[9].commit.String(), "--target-inclusive=false", "--target-action", "promote"}},
		{"a time on the new one's history", upTo(6), []string{"--target-time", h.marks[5].at, "--target-action", "promote"}},
	} {
		pg := h.restored(fmt.Sprint("restored", n), c.args...)
		h.recovers(pg)
		if got := h.asked(pg, theMarks); got != c.want {
			t.Errorf("%s: the marks are %s, want %s", c.name, got, c.want)
		}
		if err := pg.Remove(h.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	// What lies beyond the fork is on the old timeline alone.
	dir := filepath.Join(h.home, "new")
	h.restore(dir, "--backup", c, "--target-timeline", "1").failed(1, "timeline")
	absent(t, dir)
	if b.RestorableTo.LSN.LSN < lateOld {
		h.restore(dir, "--target-lsn", lateOld.String()).failed(1, b.RestorableTo.LSN.String())
		absent(t, dir)
	}
}
