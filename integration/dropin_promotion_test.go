package integration

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// follower makes a running standby of the scene's server.
func (s *scene) follower() *instance.Server {
	s.t.Helper()
	standby := s.recovery("standby", "standby.signal", "")
	if err := standby.Configure(map[string]string{"primary_conninfo": s.pg.DSN("postgres"), "wal_keep_size": "4GB", "max_wal_size": "4GB"}); err != nil {
		s.t.Fatal(err)
	}
	if err := standby.Start(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
	return standby
}

// promote promotes it, and returns the name and the content of its history.
func (s *scene) promote(standby *instance.Server) (name string, history segment.History) {
	s.t.Helper()
	if err := standby.Promote(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
	name = segment.Timeline(2).HistoryName()
	text, err := os.ReadFile(filepath.Join(standby.DataDir(), "pg_wal", name))
	if err != nil {
		s.t.Fatal(err)
	}
	if history, err = segment.ParseHistory(2, text); err != nil {
		s.t.Fatal(err)
	}
	return name, history
}

// A standby that both stream from is promoted in the middle of a segment. Both
// leave the same: the old timeline's last segment as a partial, the new one's
// files, and the history under its plain name.
func TestDropInPromotion(t *testing.T) {
	for _, method := range []string{"none", "lz4"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			our := ours(t)
			s := newScene(t, options{})
			original := originalFor(t, s.pg.Installation())
			s.table()
			s.fill(100)
			standby := s.follower()
			dirs := map[string]receivewal{s.directory("ours"): our, s.directory("theirs"): original}
			running := map[string]*process{}
			for dir, r := range dirs {
				running[dir] = s.keep(r, standby, dir, "-v", "-Z", method, "-s", "1")
				running[dir].awaitLog(`starting log streaming`)
			}
			last := s.switchWAL()
			for dir := range dirs {
				s.awaitComplete(dir, last)
			}
			s.fill(100)
			upTo := s.gonePast()
			await(t, standby, "SELECT pg_last_wal_replay_lsn() >= '"+upTo+"'")
			history, h := s.promote(standby)
			at := h.Begin()
			if _, err := query(s.ctx(), standby.DSN("postgres"), "INSERT INTO rows (v) VALUES ('new'); SELECT pg_switch_wal()"); err != nil {
				t.Fatal(err)
			}
			switched := s.size.Name(2, at)
			for dir, p := range running {
				s.awaitComplete(dir, switched)
				p.interrupt()
			}
			left := map[string][]string{}
			for dir, r := range dirs {
				files := readDirectory(t, dir)
				left[r.name] = slices.Sorted(maps.Keys(files))
				for name, f := range files {
					n, partial, ok := segmentOf(name)
					switch {
					case ok && !partial && f.err != nil:
						t.Errorf("%s: %s: %v", r.name, name, f.err)
					case ok && n.Timeline == 2 && !partial:
						want, err := os.ReadFile(filepath.Join(standby.DataDir(), "pg_wal", n.String()))
						if err != nil || string(want) != string(f.content) {
							t.Errorf("%s: %s is not the server's (%v)", r.name, name, err)
						}
					}
				}
			}
			// The original's way with a history when it compresses is a weakness.
			theirs := slices.Clone(left[original.name])
			for i, name := range theirs {
				theirs[i] = strings.TrimSuffix(name, ".history."+method)
				if theirs[i] != name {
					theirs[i] += ".history"
				}
			}
			slices.Sort(theirs)
			slices.Sort(left["ours"])
			if !slices.Equal(left["ours"], theirs) {
				t.Errorf("ours has %q, the original %q", left["ours"], left[original.name])
			}
			partial := s.size.Name(1, at).String() + map[string]string{"lz4": ".lz4"}[method] + ".partial"
			for _, name := range []string{history, partial} {
				if !slices.Contains(left["ours"], name) {
					t.Errorf("ours has no %s: %q", name, left["ours"])
				}
			}
		})
	}
}

// await waits until a question is answered with "t".
func await(t *testing.T, pg *instance.Server, question string) {
	t.Helper()
	eventually(t, question, func() bool {
		v, err := query(t.Context(), pg.DSN("postgres"), question)
		return err == nil && v == "t"
	})
}

// The timeline ends exactly at a segment's end, where both have stopped: ours
// goes on with the next timeline, and the original asks again for ever.
func TestDropInPromotionAtASegmentsEnd(t *testing.T) {
	t.Parallel()
	our := ours(t)
	s := newScene(t, options{})
	original := originalFor(t, s.pg.Installation())
	s.table()
	s.fill(100)
	standby := s.follower()
	dirs := map[string]receivewal{s.directory("ours"): our, s.directory("theirs"): original}
	running := map[string]*process{}
	for dir, r := range dirs {
		running[dir] = s.keep(r, standby, dir, "-v")
		running[dir].awaitLog(`starting log streaming`)
	}
	s.fill(50)
	// What the server writes by itself every 15 seconds may come behind the
	// switch: then the end is not where it is meant to be, and is made again.
	var last segment.Name
	eventually(t, "the standby to end at a segment's end", func() bool {
		s.sql("SELECT txid_current()")
		var err error
		if last, err = segment.ParseName(s.sql("SELECT pg_walfile_name(pg_switch_wal())")); err != nil { // no commit comes behind it
			t.Fatal(err)
		}
		for dir := range dirs {
			s.awaitComplete(dir, last)
		}
		if err := s.pg.Kill(s.ctx()); err != nil {
			t.Fatal(err)
		}
		v, err := query(s.ctx(), standby.DSN("postgres"), "SELECT pg_last_wal_replay_lsn()")
		if err != nil {
			t.Fatal(err)
		}
		if v == last.End(s.size).String() {
			return true
		}
		s.startServer()
		return false
	})
	for dir, p := range running {
		p.signal(2)
		if p.wait() != 0 {
			t.Errorf("%s: it ended with %v", dir, p.err)
		}
	}
	history, h := s.promote(standby)
	if h.Begin() != last.End(s.size) {
		t.Fatalf("the timeline ended at %s, not at the end of %s", h.Begin(), last)
	}
	// What is empty and was begun behind the end is of neither timeline.
	for dir := range dirs {
		for name := range readDirectory(t, dir) {
			if n, partial, ok := segmentOf(name); ok && partial && n.Compare(last) > 0 {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for dir, r := range dirs {
		running[dir] = s.keep(r, standby, dir, "-v")
	}
	if _, err := query(s.ctx(), standby.DSN("postgres"), "INSERT INTO rows (v) VALUES ('new'); SELECT pg_switch_wal()"); err != nil {
		t.Fatal(err)
	}
	for dir, r := range dirs {
		if r.major != 0 {
			running[dir].awaitLog(`pg_receivewal: error: could not send replication command "START_REPLICATION": \n`)
			continue
		}
		s.awaitComplete(dir, s.size.Name(2, h.Begin()))
		running[dir].awaitLog(`pg_receivewal: switched to timeline 2 at |pg_receivewal: starting log streaming at \S+ \(timeline 2\)`)
		running[dir].interrupt()
		if files := readDirectory(t, dir); files[history].size == 0 {
			t.Errorf("ours has no %s", history)
		}
	}
}
