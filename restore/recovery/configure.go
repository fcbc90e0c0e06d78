package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Settings say how the server finds its WAL, and what it may do.
type Settings struct {
	RestoreCommand string // as PostgreSQL runs it, with %f and %p
	// Clone: the server is to live beside the original and must not write into
	// its archive.
	Clone bool
}

// Names in a data directory.
const (
	autoConf       = "postgresql.auto.conf"
	mainConf       = "postgresql.conf"
	recoverySignal = "recovery.signal"
	standbySignal  = "standby.signal"
)

// What becomes of settings that the original had. The empty value is the
// server's default for all of them.
var (
	// Of an earlier recovery, or of the original's archive.
	oldRecovery = [...]string{
		"recovery_target", "recovery_target_time", "recovery_target_lsn", "recovery_target_xid", "recovery_target_name",
		"recovery_end_command", "archive_cleanup_command",
	}
	// Of a standby: kept for one.
	oldStandby = [...]string{"primary_conninfo", "primary_slot_name", "recovery_min_apply_delay"}
	// Gone in PostgreSQL 16: nothing is written unless it was there.
	oldTrigger = [...]string{"promote_trigger_file"}
)

// Configure makes an unpacked data directory follow the plan at its next start:
// it writes recovery.signal or standby.signal, and into postgresql.auto.conf
// the restore_command and the target, in place of what the original had there.
// What the original would do as a server, and a copy must not, is turned off:
//
//   - synchronous_standby_names always: the first commit would hang, since
//     nobody answers;
//   - old recovery targets and commands, and for other servers than standbys
//     primary_conninfo, primary_slot_name and recovery_min_apply_delay;
//   - with Clone, the archiver.
//
// A standby asks for new WAL each second, and archives no WAL that it only
// fetched (archive_mode always becomes on).
//
// Settings are looked for in postgresql.conf and what it includes, and in
// postgresql.auto.conf, which the server reads last. Where the directory has no
// postgresql.conf, because it is kept elsewhere, all are overridden.
//
// On nil everything is durable, and belongs to the directory's owner. The lines
// returned say what was changed beyond the plan, and what should be looked at,
// one fact each. Configure may be called again. Until it has returned, no
// server may start in the directory: unpack.Options.Finish is the place for it.
func Configure(dir string, p *Plan, s Settings) ([]string, error) {
	c := &configurer{dir: dir, plan: p, s: s, set: map[string]string{}}
	if err := c.run(); err != nil {
		return nil, fmt.Errorf("setting up the recovery in %s: %w", dir, err)
	}
	return c.said, nil
}

type configurer struct {
	dir  string
	plan *Plan
	s    Settings
	// main is what postgresql.conf sets, hasMain whether there is one; auto what
	// postgresql.auto.conf sets.
	main, auto map[string]setting
	hasMain    bool
	set        map[string]string // what we set
	said       []string
}

func (c *configurer) say(format string, args ...any) {
	c.said = append(c.said, fmt.Sprintf(format, args...))
}

func (c *configurer) run() error {
	if err := c.read(); err != nil {
		return err
	}
	c.recovery()
	c.clear()
	c.archiver()
	c.elsewhere()
	if err := c.writeSignal(); err != nil {
		return err
	}
	return c.writeAuto()
}

// read finds out what the original had set. The last one of a name counts.
func (c *configurer) read() error {
	byName := func(all []setting) map[string]setting {
		m := map[string]setting{}
		for _, s := range all {
			m[s.name] = s
		}
		return m
	}
	auto, err := readSettings(filepath.Join(c.dir, autoConf), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c.auto = byName(auto)
	if _, err := os.Stat(filepath.Join(c.dir, mainConf)); errors.Is(err, fs.ErrNotExist) {
		c.say("the backup holds no %s: settings that the server reads from elsewhere were not looked at", mainConf)
		return nil
	}
	c.hasMain = true
	main, err := readSettings(filepath.Join(c.dir, mainConf), 0)
	if errors.Is(err, fs.ErrNotExist) {
		// An included file was kept elsewhere: what can be read counts for
		// nothing then.
		c.hasMain = false
		c.say("a file that %s includes is not in the backup, so its settings were not looked at: %v", mainConf, err)
		return nil
	}
	c.main = byName(main)
	return err
}

// effective returns what the server would take.
func (c *configurer) effective(name string) (setting, bool) {
	if s, ok := c.auto[name]; ok {
		return s, true
	}
	s, ok := c.main[name]
	return s, ok
}

// recovery sets what the plan says.
func (c *configurer) recovery() {
	t := c.plan.Target
	c.set["restore_command"] = c.s.RestoreCommand
	c.set["recovery_target_timeline"] = c.timeline()
	switch {
	case t.Time != nil:
		c.set["recovery_target_time"] = t.Time.UTC().Format("2006-01-02 15:04:05.999999") + "+00"
	case t.LSN != nil:
		c.set["recovery_target_lsn"] = t.LSN.String()
	case t.XID != nil:
		c.set["recovery_target_xid"] = strconv.FormatUint(*t.XID, 10)
	case t.Name != "":
		c.set["recovery_target_name"] = t.Name
	case t.Immediate:
		c.set["recovery_target"] = "immediate"
	}
	c.either("recovery_target_inclusive", t.Exclusive, "off", "on")
	c.either("recovery_target_action", t.Action != "", t.Action, "pause")
	if c.plan.Standby {
		c.set["wal_retrieve_retry_interval"] = "1s"
	}
}

// either sets a value when it is wanted, and the server's default when another
// may be set elsewhere.
func (c *configurer) either(name string, wanted bool, value, standard string) {
	if wanted {
		c.set[name] = value
	} else if _, ok := c.main[name]; ok || !c.hasMain {
		c.set[name] = standard
	}
}

// timeline is the number of the one that was planned: the server's own "latest"
// looks for it by counting, and may come to another one. A standby goes on to
// those that come later.
func (c *configurer) timeline() string {
	if word, _, err := c.plan.Target.timeline(); err == nil && word == Latest && c.plan.Standby {
		return Latest
	}
	return strconv.FormatUint(uint64(c.plan.History.Timeline), 10)
}

// clear turns off what was the original's.
func (c *configurer) clear() {
	names := oldRecovery[:]
	if !c.plan.Standby {
		names = slices.Concat(names, oldStandby[:])
	}
	for _, name := range slices.Concat(names, oldTrigger[:]) {
		s, found := c.effective(name)
		if found && s.value != "" {
			c.say("cleared %s", shown(s))
		}
		if _, ours := c.set[name]; ours {
			continue
		}
		// What stood in postgresql.auto.conf is left out; what stands elsewhere
		// is overridden.
		_, inMain := c.main[name]
		if inMain || !c.hasMain && !slices.Contains(oldTrigger[:], name) {
			c.set[name] = unset(name)
		}
	}
	const synchronous = "synchronous_standby_names"
	if s, found := c.effective(synchronous); found && s.value != "" {
		c.say("cleared %s = %s, or the first commit would wait for ever", synchronous, quote(s.value))
	}
	c.set[synchronous] = ""
}

// shown is a setting as it may be told: a connection string holds passwords, and
// many a command does.
func shown(s setting) string {
	if s.name == "primary_conninfo" || strings.HasSuffix(s.name, "_command") {
		return s.name
	}
	return s.name + " = " + quote(s.value)
}

// unset is the value that turns a setting off.
func unset(name string) string {
	if name == "recovery_min_apply_delay" {
		return "0"
	}
	return ""
}

// archiver keeps the server from archiving what it should not.
func (c *configurer) archiver() {
	const name = "archive_mode"
	mode, _ := c.effective(name)
	on := archives(mode.value)
	switch {
	case c.s.Clone:
		c.set[name] = "off"
		if on {
			c.say("turned %s off (it was %s)", name, mode.value)
		}
		return
	case c.plan.Standby && strings.EqualFold(mode.value, "always"):
		c.set[name] = "on"
		c.say("set %s to on (it was always): a standby does not archive again what it fetches", name)
	}
	if !on {
		return
	}
	for _, name := range []string{"archive_command", "archive_library"} {
		if s, found := c.effective(name); found && s.value != "" && s.value != "(disabled)" {
			c.say("warning: the restored server archives its WAL by %s (in %s), perhaps into the original's archive", shown(s), s.file)
		}
	}
}

// archives tells whether a value of archive_mode is not off: a boolean in any
// of its spellings and unique prefixes, or always.
func archives(value string) bool {
	v := strings.ToLower(value)
	if v == "" || v == "0" || v == "of" || v == "off" {
		return false
	}
	return !strings.HasPrefix("false", v) && !strings.HasPrefix("no", v)
}

// elsewhere names what would make the server use other files than those of the
// directory.
func (c *configurer) elsewhere() {
	for _, name := range []string{"data_directory", "hba_file", "ident_file", "external_pid_file"} {
		s, found := c.effective(name)
		if found && filepath.IsAbs(s.value) && filepath.Clean(s.value) != filepath.Clean(c.dir) {
			c.say("warning: %s is set to %s in %s", name, quote(s.value), s.file)
		}
	}
}

// writeSignal makes the one signal file, and removes the other, which a backup
// of a standby brings along. It comes before the settings: without a
// restore_command a server refuses to recover.
func (c *configurer) writeSignal() error {
	name, other := recoverySignal, standbySignal
	if c.plan.Standby {
		name, other = other, name
	}
	if err := os.Remove(filepath.Join(c.dir, other)); err == nil {
		c.say("removed %s", other)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return c.install(name, nil)
}

// writeAuto writes postgresql.auto.conf: its lines but those of what is set or
// cleared here, then ours.
func (c *configurer) writeAuto() error {
	content, err := os.ReadFile(filepath.Join(c.dir, autoConf))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var b strings.Builder
	for line := range strings.Lines(string(content)) {
		if name, _, ok := parseLine(line); ok && c.replaces(name) {
			continue
		}
		b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	// What is turned off comes first: a target that is emptied behind another
	// one that is set is taken for a second target (PostgreSQL:
	// error_multiple_recovery_targets).
	for _, empty := range []bool{true, false} {
		for _, name := range slices.Sorted(maps.Keys(c.set)) {
			if value := c.set[name]; (value == "") == empty {
				fmt.Fprintf(&b, "%s = %s\n", name, quote(value))
			}
		}
	}
	return c.install(autoConf, []byte(b.String()))
}

// replaces tells whether a line of postgresql.auto.conf gives way.
func (c *configurer) replaces(name string) bool {
	if _, ours := c.set[name]; ours {
		return true
	}
	if slices.Contains(oldRecovery[:], name) || slices.Contains(oldTrigger[:], name) {
		return true
	}
	if slices.Contains(oldStandby[:], name) {
		return !c.plan.Standby
	}
	return name == "restore_command" || strings.HasPrefix(name, "recovery_target")
}

// TemporaryPrefix begins the names of what Configure makes in the directory
// before it is whole, and of what a crash leaves. Base backups pass them by
// (PostgreSQL: PG_TEMP_FILE_PREFIX in sendDir, basebackup.c).
const TemporaryPrefix = "pgsql_tmp_walferry."

// install puts a file of that content into the directory, durably: whole or not
// at all. It belongs to the directory's owner, and its group may read it when
// it may read the directory.
func (c *configurer) install(name string, content []byte) (err error) {
	info, err := os.Stat(c.dir)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(c.dir, TemporaryPrefix+name+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error is told; what is left harms nobody
		}
	}()
	_, err = f.Write(content)
	if err == nil && info.Mode().Perm()&0o050 == 0o050 {
		err = f.Chmod(0o640)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && err == nil && os.Geteuid() == 0 {
		err = f.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(c.dir, name)); err != nil {
		return err
	}
	return syncDir(c.dir)
}

// syncDir makes the names in a directory durable. A file system that cannot do
// it and says so is taken at its word, as by PostgreSQL (fsync_fname in
// src/common/file_utils.c).
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EBADF) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
