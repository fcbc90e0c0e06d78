package recovery

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// TestServer shows the settings to PostgreSQL itself: it must take them, with
// whatever the original had set before, and see what the plan says.
func TestServer(t *testing.T) {
	found, err := instance.Find(t.Context(), filepath.SplitList(os.Getenv("WALFERRY_TEST_PG")))
	if errors.Is(err, instance.ErrNoPostgreSQL) {
		t.Skip("NOT TESTED: no PostgreSQL server on this machine")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range found {
		t.Run(strconv.Itoa(i.Major), func(t *testing.T) { testServer(t, i) })
	}
}

func testServer(t *testing.T, i instance.Installation) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	t.Cleanup(cancel)
	top, err := os.MkdirTemp("", "walferry-recovery-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(top); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	pg, err := instance.Create(ctx, instance.Options{Installation: i, Dir: filepath.Join(top, "pg")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Remove(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	dir, account := pg.DataDir(), pg.Account()
	main := read(t, filepath.Join(dir, mainConf))
	at := time.Date(2026, 11, 22, 15, 45, 5, 276797000, time.UTC)
	lsn := segment.LSN(0x1600000028)
	command := `/usr/bin/walferry fetch --config '/srv/it''s \ here.yaml' "%f" "%p"`
	trigger := ""
	if i.Major < 16 {
		trigger = "promote_trigger_file = '/x'\n"
	}
	old := map[string]string{
		"nothing": "",
		"another target": "recovery_target_xid = '5'\nrecovery_target_inclusive = off\nrecovery_target_action = shutdown\nrecovery_target_timeline = 7\n" +
			"recovery_end_command = 'x'\narchive_cleanup_command = 'y'\nprimary_conninfo = 'host=a'\nprimary_slot_name = 'b'\nrecovery_min_apply_delay = 1h\n" +
			"synchronous_standby_names = 'c'\narchive_mode = always\narchive_command = 'cp %p /old/%f'\n" + trigger,
	}
	for name, text := range old {
		for _, where := range []string{mainConf, autoConf} {
			for goal, target := range map[string]Target{
				"": {}, "time": {Time: &at}, "lsn": {LSN: &lsn, Exclusive: true}, "xid": {XID: ptr(uint64(1 << 33))}, "name": {Name: "it's"}, "immediate": {Immediate: true, Action: "promote"},
			} {
				for _, standby := range []bool{false, true} {
					files := map[string]string{mainConf: main, autoConf: header}
					files[where] += text
					for name, content := range files {
						if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
							t.Fatal(err)
						}
						if err := account.Own(filepath.Join(dir, name)); err != nil {
							t.Fatal(err)
						}
					}
					if _, err := Configure(dir, &Plan{Target: target, Standby: standby, History: segment.History{Timeline: 3}}, Settings{RestoreCommand: command}); err != nil {
						t.Fatal(err)
					}
					want := map[string]string{
						"restore_command": command, "synchronous_standby_names": "", "recovery_target_timeline": "3", "recovery_end_command": "", "archive_cleanup_command": "",
						"recovery_target": "", "recovery_target_time": "", "recovery_target_lsn": "", "recovery_target_xid": "", "recovery_target_name": "",
						"recovery_target_inclusive": "on", "recovery_target_action": "pause",
						"primary_conninfo": "", "primary_slot_name": "", "recovery_min_apply_delay": "0", "archive_mode": "off", "wal_retrieve_retry_interval": "5000",
					}
					if text != "" {
						want["archive_mode"] = "always"
					}
					if i.Major < 16 {
						want["promote_trigger_file"] = ""
					}
					switch goal {
					case "time":
						want["recovery_target_time"] = "2026-11-22 15:45:05.276797+00"
					case "lsn":
						want["recovery_target_lsn"], want["recovery_target_inclusive"] = "16/28", "off"
					case "xid":
						want["recovery_target_xid"] = "8589934592"
					case "name":
						want["recovery_target_name"] = "it's"
					case "immediate":
						want["recovery_target"], want["recovery_target_action"] = "immediate", "promote"
					}
					if standby {
						want["recovery_target_timeline"], want["wal_retrieve_retry_interval"] = "latest", "1000"
						if text != "" {
							want["archive_mode"], want["primary_conninfo"], want["primary_slot_name"], want["recovery_min_apply_delay"] = "on", "host=a", "b", "3600000"
						}
					}
					for setting, value := range want {
						// A server that takes them at all is seen by any of them.
						if goal != "time" && setting != "recovery_target_xid" {
							continue
						}
						out, err := account.Command(ctx, i.Program("postgres"), "-D", dir, "-C", setting).CombinedOutput()
						if got := strings.TrimSuffix(string(out), "\n"); err != nil || plain(got) != value {
							t.Fatalf("%s in %s, target %q, standby %t: %s = %q, %v; want %q\n%s", name, where, goal, standby, setting, got, err, value, read(t, filepath.Join(dir, autoConf)))
						}
					}
				}
			}
		}
	}
}

// plain takes the unit off a time.
func plain(v string) string {
	if n, ok := strings.CutSuffix(v, "ms"); ok {
		return n
	}
	if v == "1h" {
		return "3600000"
	}
	if n, ok := strings.CutSuffix(v, "s"); ok {
		if _, err := strconv.Atoi(n); err == nil {
			return n + "000"
		}
	}
	return v
}
