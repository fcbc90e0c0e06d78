package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/restore/recovery"
	"github.com/walferry/walferry/restore/unpack"
	"github.com/walferry/walferry/segment"
)

// restoreCommand is "walferry restore". Its own flags are no settings: what is
// restored, and over what, is said on the command line, where it can be seen.
func restoreCommand(p *program) *cli.Command {
	text := func(name, value, usage string, short ...string) cli.Flag {
		return &cli.StringFlag{Name: name, Aliases: short, Usage: "`" + value + "` " + usage}
	}
	on := func(name, usage string) cli.Flag { return &cli.BoolFlag{Name: name, Usage: usage} }
	return &cli.Command{
		Name:  "restore",
		Usage: "a base backup into a directory, and the WAL behind it",
		Description: `Unpacks a base backup of walferry's or of WAL-G's, and prepares the directory so that
PostgreSQL, when it is started there, recovers up to the target, or without one up to
the end of the archive. Every file is checked on its way. --preview shows the plan and
touches nothing.

A time without a zone is this host's. Of --target-time, --target-lsn, --target-xid,
--target-name and --target-immediate one can be given.`,
		Flags: append(append([]cli.Flag{
			text("pgdata", "DIR", "the new data directory: missing, or empty", "D"),
			text("backup", "NAME", "the base backup to begin with, or LATEST (default: the one that the target needs)"),
			text("target-time", "TIME", "recover up to this time, such as '2026-11-22 15:45:00+01'"),
			text("target-lsn", "LSN", "recover up to this LSN"),
			text("target-xid", "XID", "recover up to this transaction"),
			text("target-name", "NAME", "recover up to this restore point (pg_create_restore_point)"),
			on("target-immediate", "end as soon as the server is consistent"),
			&cli.BoolFlag{Name: "target-inclusive", Usage: "with what happened exactly at the target (default true)", Value: true},
			text("target-timeline", "T", "a timeline's number, latest or current (default latest)"),
			text("target-action", "ACTION", "what the server does at the target: pause, promote or shutdown (default pause)"),
			&cli.StringSliceFlag{Name: "tablespace-mapping", Usage: "`OLD=NEW` put the tablespace at OLD into NEW; may be repeated"},
			on("standby", "a standby, which goes on following"),
			on("clone", "a copy beside the original: nothing is archived (archive_mode = off)"),
			on("preview", "show the plan, and do nothing"),
			on("force", "replace what is in DIR, if it is a data directory in which no server runs"),
		}, settingFlags("stop-at-gap", "store")...), generalFlags()...),
		Action: p.action(func(ctx context.Context, c *call) error {
			r, err := c.restoreOptions()
			if err != nil {
				return err
			}
			return r.run(ctx)
		}),
	}
}

// restoring is one run of restore.
type restoring struct {
	*call
	dir     string // absolute
	plan    recovery.Options
	mapping map[string]string
	standby bool
	clone   bool
	preview bool
	force   bool
}

// restoreOptions checks everything that restore is told. Nothing is touched.
func (c *call) restoreOptions() (*restoring, error) {
	f := c.flags
	r := &restoring{call: c, standby: f.Bool("standby"), clone: f.Bool("clone"), preview: f.Bool("preview"), force: f.Bool("force")}
	if f.String("pgdata") == "" && !r.preview {
		return nil, usageError("no directory given: want -D DIR (or --preview)")
	}
	var err error
	if dir := f.String("pgdata"); dir != "" {
		if r.dir, err = filepath.Abs(dir); err != nil {
			return nil, withExit(exitUsage, fmt.Errorf("-D %s: %w", dir, err), "")
		}
		if r.dir == "/" {
			return nil, usageError("invalid -D /: want a directory of its own")
		}
	}
	if name := f.String("backup"); name != "" {
		if err := checkBackupName(name); err != nil {
			return nil, err
		}
		r.plan.Backup = name
	}
	if r.plan.Target, err = c.target(); err != nil {
		return nil, err
	}
	r.plan.Standby, r.plan.StopAtGap = r.standby, c.set.Bool("stop-at-gap")
	if r.standby && r.clone {
		return nil, usageError("--standby and --clone exclude each other: a clone is a server of its own")
	}
	r.mapping, err = tablespaceMapping(f.StringSlice("tablespace-mapping"))
	return r, err
}

// target reads the recovery target.
func (c *call) target() (recovery.Target, error) {
	f := c.flags
	t := recovery.Target{Exclusive: !f.Bool("target-inclusive"), Timeline: recovery.Latest}
	var given []string
	for _, name := range []string{"target-time", "target-lsn", "target-xid", "target-name", "target-immediate"} {
		if f.IsSet(name) && (name != "target-immediate" || f.Bool(name)) {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 1 {
		return t, usageError("%s exclude each other: a recovery has one target", strings.Join(given, " and "))
	}
	if f.IsSet("target-inclusive") && (len(given) == 0 || given[0] == "--target-name" || given[0] == "--target-immediate") {
		return t, usageError("--target-inclusive goes with --target-time, --target-lsn or --target-xid")
	}
	if v := f.String("target-time"); f.IsSet("target-time") {
		at, err := recovery.ParseTime(v, time.Local)
		if err != nil {
			return t, usageError("invalid --target-time=%s (flag): %w", v, err)
		}
		t.Time = &at
	}
	if v := f.String("target-lsn"); f.IsSet("target-lsn") {
		lsn, err := segment.ParseLSN(v)
		if err != nil || lsn == 0 {
			return t, usageError("invalid --target-lsn=%s (flag): want an LSN such as 16/B374D848", v)
		}
		t.LSN = &lsn
	}
	if v := f.String("target-xid"); f.IsSet("target-xid") {
		// PostgreSQL takes what pg_current_xact_id shows, which has 64 bits.
		xid, err := strconv.ParseUint(v, 10, 64)
		if err != nil || xid < 3 {
			return t, usageError("invalid --target-xid=%s (flag): want a transaction ID such as 742", v)
		}
		t.XID = &xid
	}
	if t.Name = f.String("target-name"); f.IsSet("target-name") && (t.Name == "" || len(t.Name) > 63) {
		return t, usageError("invalid --target-name=%s (flag): want the name of a restore point, of 1 to 63 bytes", t.Name)
	}
	t.Immediate = f.Bool("target-immediate")
	if v := f.String("target-timeline"); f.IsSet("target-timeline") {
		if n, err := strconv.ParseUint(v, 0, 32); v != recovery.Latest && v != recovery.Current && (err != nil || n == 0) {
			return t, usageError("invalid --target-timeline=%s (flag): want a timeline's number, latest or current", v)
		}
		t.Timeline = v
	}
	if v := f.String("target-action"); f.IsSet("target-action") {
		if err := oneOf("pause", "promote", "shutdown")(v); err != nil {
			return t, usageError("invalid --target-action=%s (flag): %w", v, err)
		}
		if len(given) == 0 {
			return t, usageError("--target-action goes with a target: without one the server becomes a primary at the archive's end")
		}
		t.Action = v
	}
	return t, nil
}

// tablespaceMapping reads OLD=NEW; a = in a name is written \= (pg_basebackup:
// tablespace_list_append).
func tablespaceMapping(given []string) (map[string]string, error) {
	all := map[string]string{}
	for _, text := range given {
		var parts []string
		var part strings.Builder
		for i := 0; i < len(text); i++ {
			switch {
			case text[i] == '\\' && i+1 < len(text) && text[i+1] == '=':
				part.WriteByte('=')
				i++
			case text[i] == '=':
				parts = append(parts, part.String())
				part.Reset()
			default:
				part.WriteByte(text[i])
			}
		}
		parts = append(parts, part.String())
		if len(parts) != 2 || !filepath.IsAbs(parts[0]) || !filepath.IsAbs(parts[1]) {
			return nil, usageError("invalid --tablespace-mapping=%s (flag): want OLD=NEW, two absolute paths (a = in one of them is written \\=)", text)
		}
		old := filepath.Clean(parts[0])
		if _, twice := all[old]; twice {
			return nil, usageError("invalid --tablespace-mapping=%s (flag): %s is mapped twice", text, old)
		}
		all[old] = filepath.Clean(parts[1])
	}
	return all, nil
}

// run restores.
func (r *restoring) run(ctx context.Context) error {
	ar, where, err := r.openArchive(ctx)
	if err != nil {
		return err
	}
	r.plan.Now = time.Now()
	plan, err := recovery.MakePlan(ctx, ar, r.plan)
	if err != nil {
		return planError(err, ar)
	}
	r.plan.StopAtGap = r.plan.StopAtGap || plan.StopAtGap // for restore_command
	if err := checkMapped(r.mapping, plan.Backup); err != nil {
		return err
	}
	if r.preview {
		return r.showPlan(plan)
	}
	owner, err := r.findOwner()
	if err != nil {
		return err
	}
	for line := range strings.Lines(plan.Text()) {
		r.log.Info(strings.TrimSpace(line))
	}
	if err := r.checkPlaces(plan.Backup); err != nil {
		return err
	}
	if err := r.clearDir(); err != nil {
		return err
	}
	var command serverCommand
	var said []string
	const phase = "unpacking" // the one that is counted in bytes
	durable := false
	bar := r.newProgress()
	err = unpack.Unpack(ctx, ar, plan.Backup, unpack.Options{
		Dir: r.dir, Mapping: r.mapping, Owner: owner.unpack(), Log: r.log,
		Progress: func(p unpack.Progress) {
			if p.Phase == phase {
				bar.at(p.Phase, p.Done, p.Total)
			} else if !durable { // counted in files, and soon over
				durable = true
				bar.end()
				r.log.Info("making it durable")
			}
		},
		// No server starts there before its settings say what it is.
		Finish: func(ctx context.Context) (err error) {
			if command, err = r.writeCommand(ctx, where, owner); err != nil {
				return err
			}
			said, err = recovery.Configure(r.dir, plan, recovery.Settings{RestoreCommand: command.text, Clone: r.clone})
			return err
		},
	})
	bar.end()
	if err != nil {
		return r.unpackError(ctx, err)
	}
	for _, line := range said {
		if warning, ok := strings.CutPrefix(line, "warning: "); ok {
			r.log.Warn(warning)
		} else {
			r.log.Info(line)
		}
	}
	if err := r.tryCommand(ctx, command, plan, owner); err != nil {
		return err
	}
	return r.sayHow(plan)
}

// planError gives a refusal of the plan its hint.
func planError(err error, ar *archive.Archive) error {
	var out *recovery.UnreachableError
	switch {
	case errors.As(err, &out):
		hint := "walferry backup list shows from where to where each backup can be restored"
		if len(out.Possible) > 0 {
			hint = "possible: " + strings.Join(out.Possible, "; ")
		}
		return withExit(exitFailed, errors.New(out.Reason), hint)
	case errors.Is(err, recovery.ErrNoBackup):
		return withExit(exitFailed, fmt.Errorf("%w: %s", err, ar), "walferry backup list shows those that there are; if there should be some, see whether --store names the archive, with its whole prefix")
	}
	return archiveError(err)
}

// checkMapped refuses a mapping of a tablespace that the backup does not have:
// most likely a spelling, and then the right one would go where it was.
func checkMapped(mapping map[string]string, b archive.Backup) error {
	var have []string
	if b.Sentinel.Spec != nil {
		for _, at := range b.Sentinel.Spec.Locations {
			have = append(have, filepath.Clean(at))
		}
	}
	slices.Sort(have)
	for _, old := range sortedNames(mapping) {
		if !slices.Contains(have, old) {
			in := "it has no tablespaces"
			if len(have) > 0 {
				in = "its tablespaces are at " + strings.Join(have, ", ")
			}
			return usageError("--tablespace-mapping: base backup %s has no tablespace at %s: %s", b.Name, old, in)
		}
	}
	return nil
}

// checkPlaces refuses places of tablespaces that hold something, before --force
// removes anything.
func (r *restoring) checkPlaces(b archive.Backup) error {
	all, err := unpack.Tablespaces(b, r.dir, r.mapping)
	if err != nil {
		return withExit(exitFailed, err, "")
	}
	for _, t := range all {
		if !filepath.IsAbs(t.To) {
			continue // in the data directory
		}
		entries, err := os.ReadDir(t.To)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return withExit(exitFailed, fmt.Errorf("looking at the place of tablespace %d: %w", t.OID, err), "")
		case len(entries) > 0:
			return withExit(exitFailed, fmt.Errorf("the place %s of tablespace %d is not empty: it holds %s", t.To, t.OID, entries[0].Name()),
				"empty it by hand, or put the tablespace elsewhere: --tablespace-mapping "+quoteShell(strings.ReplaceAll(t.From, "=", `\=`)+"=NEW"))
		}
	}
	return nil
}

// showPlan is --preview.
func (r *restoring) showPlan(plan *recovery.Plan) error {
	if err := r.say("%s", plan.Text()); err != nil {
		return err
	}
	if f := plan.Backup.Facts; f != nil && f.Archiver != "" && !r.clone {
		return r.say("%-12s the original archived its WAL by %s, and the restored server would do so, too: --clone turns that off\n", "warning", f.Archiver)
	}
	return nil
}

// unpackError says what a restore that failed has left.
func (r *restoring) unpackError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	hint := "what was unpacked has been removed again"
	switch {
	case errors.Is(err, unpack.ErrNotEmpty):
		hint = "give the restore places that are missing or empty: -D DIR, and --tablespace-mapping OLD=NEW for tablespaces"
	case errors.Is(err, unpack.ErrDamaged):
		hint = "try an older backup (walferry backup list); " + hint
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		hint = "make room, or choose another directory; " + hint
	case errors.Is(err, fs.ErrPermission):
		hint = "run as the owner of the directory, or as root; " + hint
	}
	return withExit(exitFailed, err, hint)
}

// sayHow says how to go on.
func (r *restoring) sayHow(plan *recovery.Plan) error {
	what := "recovers to the target"
	switch {
	case r.standby:
		what = "follows the archive as a standby"
	case plan.Target == (recovery.Target{Timeline: plan.Target.Timeline}):
		what = "recovers to the end of the archive and becomes a primary"
	}
	major := plan.Backup.Sentinel.PgVersion / 10000
	if _, err := os.Stat(filepath.Join(r.dir, "postgresql.conf")); errors.Is(err, fs.ErrNotExist) {
		r.log.Warn(fmt.Sprintf("the backup holds no postgresql.conf and no pg_hba.conf: its server keeps them elsewhere (Debian: /etc/postgresql/%d/CLUSTER); "+
			"bring both, or make a cluster there whose data_directory is %s", major, r.dir))
		return r.say("restored to %s\nstart it on Debian, where /etc/postgresql/%d/CLUSTER/postgresql.conf says data_directory = '%s': pg_ctlcluster %d CLUSTER start\n"+
			"elsewhere: pg_ctl -D %s -o \"-c config_file=…/postgresql.conf -c hba_file=…/pg_hba.conf\" start\nit %s\n", r.dir, major, r.dir, major, quoteShell(r.dir), what)
	}
	return r.say("restored to %s\nstart it: pg_ctl -D %s start\nit %s\n", r.dir, quoteShell(r.dir), what)
}

// clusterNames are what a data directory has at its top (PostgreSQL: initdb, and
// the files that servers and restores leave there).
func isClusterName(name string) bool {
	for _, own := range []string{"base", "global", "log", "tablespace_map", "backup_label", "backup_manifest", "current_logfiles",
		"standby.signal", "recovery.signal", "recovery.conf", "recovery.done", "postmaster.pid", "postmaster.opts", "PG_VERSION", "server.crt", "server.key", "root.crt"} {
		if name == own {
			return true
		}
	}
	return strings.HasPrefix(name, "pg_") || strings.HasSuffix(name, ".conf") || strings.HasPrefix(name, "backup_label.") ||
		strings.HasPrefix(name, "tablespace_map.") || strings.HasPrefix(name, "postgresql.auto.conf") ||
		strings.HasPrefix(name, recovery.TemporaryPrefix)
}

// clearDir makes room: it leaves a missing or empty directory alone, and empties
// a data directory under --force.
func (r *restoring) clearDir() error {
	entries, err := os.ReadDir(r.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return withExit(exitFailed, fmt.Errorf("looking into the target directory: %w", err), "")
	case len(entries) == 0:
		return nil
	case !r.force:
		return withExit(exitFailed, fmt.Errorf("the target directory %s is not empty", r.dir), "choose another; --force replaces a data directory in which no server runs")
	}
	for _, e := range entries {
		if !isClusterName(e.Name()) {
			return withExit(exitFailed, fmt.Errorf("the target directory %s is no PostgreSQL data directory: it holds %s", r.dir, e.Name()), "--force replaces data directories only: remove what is there by hand")
		}
	}
	if pid, ok := runningServer(r.dir); ok {
		return withExit(exitFailed, fmt.Errorf("a server runs in %s (process %d)", r.dir, pid), "stop it first, or choose another directory")
	}
	r.log.Info("removing what is in " + r.dir)
	// pg_control first: what an interruption leaves does not start.
	if err := os.Remove(filepath.Join(r.dir, "global", "pg_control")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return withExit(exitFailed, fmt.Errorf("emptying the target directory: %w", err), "")
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(r.dir, e.Name())); err != nil {
			return withExit(exitFailed, fmt.Errorf("emptying the target directory: %w", err), "")
		}
	}
	return nil
}

// runningServer tells whether a server works on a data directory: as
// postmaster.pid says, and, since that may be a leftover, only while the process
// is there.
func runningServer(dir string) (pid int, running bool) {
	text, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0, false
	}
	first, _, _ := strings.Cut(string(text), "\n")
	// A negative number is a standalone backend's.
	if pid, err = strconv.Atoi(strings.TrimLeft(strings.TrimSpace(first), "-")); err != nil || pid <= 1 {
		return 0, false
	}
	err = syscall.Kill(pid, 0)
	return pid, err == nil || errors.Is(err, syscall.EPERM)
}

// quoteShell writes a path for a person to copy into a shell.
func quoteShell(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
