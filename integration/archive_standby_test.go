package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/restore/instance"
)

// A standby with no connection to the primary, made by the commands of
// docs/archive-standby.md, sees each row soon after it was committed; it goes on
// after an outage of the storage, and promoted in the midst of one it has what
// it has.
func TestStandbyFedFromTheArchive(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry(nil, "receive")
	s.slotSegment()
	s.sql("CREATE TABLE rows (id int PRIMARY KEY, v text)")
	g := &guide{scene: s.scene, s3: s.s3, vars: map[string][]string{walferryHost: {
		"PATH=" + filepath.Dir(s.binary) + ":" + s.pg.Installation().Bin + ":/usr/local/bin:/usr/bin:/bin", fmt.Sprint("PGPORT=", s.pg.Port()),
		"GORACE=atexit_sleep_ms=0", // as in quickCommand
	}}}
	home := filepath.Join(s.home, "standby")
	blocks := readBlocks(t, "../docs/archive-standby.md")
	if len(blocks) != 3 {
		t.Fatalf("the page has %d blocks", len(blocks))
	}
	make, look, promote := blocks[0], blocks[1], blocks[2]
	for old, own := range map[string]string{
		"s3://acme-wal/db1?region=eu-central-1": fmt.Sprintf("s3://%s/%s?region=us-east-1&path_style=true&endpoint=%s",
			bucket, prefix, s.proxy.URL),
		"-p 5433": fmt.Sprintf("-p 5433 -h '' -k '%s'", home),
	} {
		make.text = replace(t, make, old, own)
	}
	s.ferry(nil, "backup", "create").exits(0)
	g.run(walferryHost, make.text)
	g.stopLater(home)
	look.text = replace(t, look, "psql ", "psql -h '"+home+"' ")
	g.onWalferryHost(look)

	ask := func(what string) string {
		t.Helper()
		v, err := query(s.ctx(), fmt.Sprintf("host='%s' port=5433 user=postgres dbname=postgres", home), what)
		if err != nil {
			t.Fatalf("the standby does not answer: %v", err)
		}
		return v
	}
	n := 0
	commit := func() {
		t.Helper()
		n++
		s.sql(fmt.Sprintf("INSERT INTO rows VALUES (%d, repeat('x', %d))", n, random.IntN(100_000)))
	}
	const newest = "SELECT coalesce(max(id), 0) FROM rows"
	seen := func() {
		t.Helper()
		want := strconv.Itoa(n)
		eventually(t, "the standby to have row "+want, func() bool { return ask(newest) == want })
	}
	eventually(t, "the standby to have the table", func() bool { return ask("SELECT to_regclass('rows') IS NOT NULL") == "t" })

	var lags []time.Duration
	for range rounds(4, 100) {
		time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond) // at any moment of the intervals
		commit()
		begin := time.Now()
		seen()
		lags = append(lags, time.Since(begin).Round(time.Millisecond))
	}
	slices.Sort(lags)
	t.Logf("rows were seen after %s to %s, half of them after %s: %v", lags[0], lags[len(lags)-1], lags[len(lags)/2], lags)
	s.switchWAL()
	commit()
	seen()
	if v := ask("SELECT pg_is_in_recovery() AND (SELECT count(*) FROM pg_stat_wal_receiver) = 0"); v != "t" {
		t.Fatal("it is no standby, or has a connection to the primary")
	}
	s.proxy.ResetCounts()
	time.Sleep(2 * time.Second)
	t.Logf("the requests of 2 s in which nothing was committed: %v", s.proxy.Counts())

	away := func() (before string) {
		s.proxy.Inject(s3server.BlackHole, "GET", 2)
		s.proxy.Inject(s3server.Reset, "GET", 2)
		s.proxy.Inject(s3server.Unavailable, "", -1)
		before = strconv.Itoa(n)
		commit()
		return before
	}
	for range rounds(1, 10) {
		before := away()
		if random.IntN(2) == 0 {
			s.switchWAL()
		}
		commit()
		time.Sleep(time.Duration(2000+random.IntN(3000)) * time.Millisecond)
		if v := ask(newest); v != before {
			t.Errorf("while the storage is away the standby has row %s, not %s", v, before)
		}
		s.proxy.Heal()
		seen()
	}

	before := away()
	g.run(walferryHost, promote.text)
	if v := ask(newest); v != before {
		t.Errorf("promoted while the storage is away, the standby has row %s, not %s", v, before)
	}
	if v := ask("INSERT INTO rows VALUES (0, 'of the new timeline'); SELECT pg_is_in_recovery()"); v != "f" {
		t.Error("it was not promoted")
	}
	s.proxy.Heal()
	r.stop()
	if strings.Contains(r.log(), "conflict") {
		t.Error("the receiver is disturbed")
	}
}

// A standby is promoted although its restore_command fails. When its signal
// files are gone already, the server asks for one more file, its timeline's
// history, and would go down in the middle of the promotion if it were told of
// a failure as a recovery is.
func TestPromotionWhileStorageIsAway(t *testing.T) {
	onVersions(t, func(t *testing.T, i instance.Installation) {
		s := newScene(t, options{pg: i})
		h := s.hand()
		s.table()
		s.fill(100)
		h.ship(s.flushed(), seeded(t))
		away := func() {
			if err := os.Rename(s.archive, s.archive+".away"); err != nil {
				t.Fatal(err)
			}
		}
		back := func() {
			if err := os.Rename(s.archive+".away", s.archive); err != nil {
				t.Fatal(err)
			}
		}
		good := s.quickCommand() + " --budget 1s"
		pg := s.recovery("standby", "standby.signal", good)
		for _, c := range []struct {
			timeline string // the one that it is promoted to
			spoil    func()
			mend     func()
		}{
			{"2", away, back},
			{"3", away, back},
			{"4", func() {
				if err := errors.Join(pg.Configure(map[string]string{"restore_command": good + " --bugdet 1s"}), pg.Reload()); err != nil {
					t.Fatal(err)
				}
			}, func() {
				if err := pg.Configure(map[string]string{"restore_command": good}); err != nil {
					t.Fatal(err)
				}
			}},
		} {
			if err := pg.Start(s.ctx()); err != nil {
				t.Fatal(err)
			}
			s.catchesUp(pg, 100)
			c.spoil()
			if err := pg.Promote(s.ctx()); err != nil {
				t.Fatalf("to timeline %s: %v", c.timeline, err)
			}
			if got := rows(s.ctx(), pg); got != 100 {
				t.Errorf("promoted to timeline %s it has %d rows, want 100", c.timeline, got)
			}
			got, err := query(s.ctx(), pg.DSN("postgres"), "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 8, 1)")
			if err != nil || got != c.timeline {
				t.Errorf("it is on timeline %s (%v), want %s", got, err, c.timeline)
			}
			// And once more, as a standby on that timeline.
			if err := pg.Stop(s.ctx(), instance.Fast); err != nil {
				t.Fatal(err)
			}
			c.mend()
			signal := filepath.Join(pg.DataDir(), "standby.signal")
			if err := errors.Join(os.WriteFile(signal, nil, 0o600), theLab.account.Own(signal)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
