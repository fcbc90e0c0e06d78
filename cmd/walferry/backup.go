package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/basebackup"
	"github.com/walferry/walferry/cmd/internal/settings"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// backupCommand is "walferry backup".
func backupCommand(p *program) *cli.Command {
	asJSON := &cli.BoolFlag{Name: "json", Usage: "machine-readable"}
	ofArchive := func(own ...cli.Flag) []cli.Flag {
		return append(append(own, settingFlags("store")...), generalFlags()...)
	}
	return &cli.Command{
		Name:  "backup",
		Usage: "base backups in the archive",
		Subcommands: []*cli.Command{
			createBackupCommand(p),
			{
				Name: "list", Usage: "every base backup, and what a restore of it can reach",
				Description: "Shows walferry's own base backups and WAL-G's, oldest first. The newest is the one\nthat ended last in the server's history, not the one that was stored last.",
				Flags:       ofArchive(asJSON),
				Action:      p.action(listBackups),
			},
			{
				Name: "show", ArgsUsage: "NAME", Usage: "everything that is known of a base backup",
				Description: "NAME is one that backup list shows, or LATEST.",
				Flags:       ofArchive(asJSON),
				Action:      p.action(showBackup),
			},
			{
				Name: "delete", ArgsUsage: "NAME", Usage: "remove a base backup, and no WAL",
				Description: "Removes the sentinel first, so that a deletion which is interrupted leaves no backup\nthat looks whole; the same call removes the rest. Needs a store that lets us delete.\nThe last backup that can be restored is refused without --force, and so is one that\nother backups need, or that is marked as permanent.",
				Flags:       ofArchive(&cli.BoolFlag{Name: "force", Usage: "remove it whatever hangs on it"}),
				Action:      p.action(deleteBackup),
			},
		},
	}
}

func createBackupCommand(p *program) *cli.Command {
	flags := settingFlags("label", "checkpoint", "max-rate", "wal", "max-parts", "store")
	flags = append([]cli.Flag{&cli.StringFlag{Name: "compress", Usage: "`METHOD` server-lz4, server-zstd, client-lz4, client-zstd or none (default server-lz4)"}}, flags...)
	flags = append(flags, connectionFlags()...)
	return &cli.Command{
		Name: "create", Usage: "take a base backup into the archive",
		Description: `Reads the whole cluster over a replication connection, from the primary or from a
standby, checks every file against the server's manifest on its way, and stores it.
The backup exists when this command ends with 0: everything that a restore needs is
in the archive then, the WAL up to the backup's end included. That WAL comes from a
walferry receive that runs into the same archive, or with --wal include from this
command itself.

--compress METHOD is server-lz4 (the default), server-zstd, client-lz4, client-zstd or
none; a plain lz4 or zstd is compressed by the server. Where the server cannot, the
client does it.`,
		Flags:  append(flags, generalFlags()...),
		Action: p.action(createBackup),
	}
}

// backupApplication is the application_name of a backup's connections: not
// that of receive, for which commits may wait.
const backupApplication = "walferry_backup"

// noWALPatience is how long the archive may show no WAL of the server's
// timeline before a backup that counts on it is given up.
const noWALPatience = 30 * time.Second

// partMemory is how much of one part of an object is held in memory, in bytes;
// what is more goes to an unlinked file.
const partMemory = 32 << 20

// createBackup is "walferry backup create".
func createBackup(ctx context.Context, c *call) error {
	where, err := c.findStore(c.set, true)
	if err != nil {
		return err
	}
	o, err := c.backupOptions()
	if err != nil {
		return err
	}
	server, err := c.connection(backupApplication)
	if err != nil {
		return err
	}
	if where.create {
		c.log.Info("no store given: the archive is " + where.dir)
	}
	store, err := where.open(ctx)
	if err != nil {
		return err
	}
	ar := archive.New(store, archive.Options{Log: c.log})
	conn, err := replication.Connect(ctx, server)
	if err != nil {
		return withExit(exitFailed, err, "")
	}
	// Further connections go to the server that this one has reached.
	reached := conn.Config()
	o.Again = func(ctx context.Context) (*replication.Conn, error) { return replication.Connect(ctx, reached) }
	bar := c.newProgress()
	phase := basebackup.Phase("")
	o.Progress = func(p basebackup.Progress) {
		if p.Phase != phase {
			phase = p.Phase
			bar.end()
			c.sayPhase(phase)
		}
		if phase == basebackup.PhaseCopy {
			bar.at("copying", p.Done, p.Total)
		}
	}
	b, err := basebackup.Take(ctx, conn, ar, o)
	bar.end()
	if err != nil {
		return backupError(ctx, err)
	}
	return c.sayBackup(b)
}

// sayPhase says what a backup waits for.
func (c *call) sayPhase(p basebackup.Phase) {
	switch p {
	case basebackup.PhaseCheckpoint:
		spread := ""
		if c.set.Text("checkpoint") == "spread" {
			spread = ", which is spread over some minutes (--checkpoint fast does not wait)"
		}
		c.log.Info("waiting for the server's checkpoint" + spread)
	case basebackup.PhaseWAL:
		c.log.Info("all files are stored; waiting for the WAL up to the backup's end to be in the archive")
	}
}

// backupOptions checks what backup create is told. Nothing is touched.
func (c *call) backupOptions() (basebackup.Options, error) {
	o := basebackup.Options{
		Label:      c.set.Text("label"),
		Fast:       c.set.Text("checkpoint") == "fast",
		IncludeWAL: c.set.Text("wal") == "include",
		WALWait:    noWALPatience,
		MemoryPart: partMemory,
		TempDir:    c.tempDir(),
		Log:        c.log,
	}
	var err error
	if o.Compress, err = findBackupCompression(c.set); err != nil {
		return o, err
	}
	if text := c.set.Text("max-rate"); text != "" {
		if o.MaxRate, err = parseRate(text); err != nil {
			return o, withExit(exitUsage, err, "")
		}
	}
	if o.MaxParts, err = strconv.Atoi(c.set.Text("max-parts")); err != nil {
		return o, withExit(exitUsage, err, "")
	}
	if o.Hostname, err = os.Hostname(); err != nil {
		return o, fmt.Errorf("asking for this host's name: %w", err)
	}
	return o, nil
}

// tempDir is where parts of a backup lie that are too large for memory: beside
// the spool, which has room, else where temporary files are.
func (c *call) tempDir() string {
	home, err := c.set.HomeDir(c.userHome())
	if err == nil {
		if unix.Access(home, unix.W_OK|unix.X_OK) == nil {
			return home
		}
	}
	return os.TempDir()
}

// findBackupCompression returns what --compress says to a base backup. What
// receive takes is taken, too, since both read one variable and one file.
func findBackupCompression(set *settings.Set) (basebackup.Compression, error) {
	v := set.Value("compress")
	if !v.IsSet() {
		return basebackup.Compression{}, nil // server-lz4
	}
	text, _, _ := strings.Cut(v.Text, ":")
	if text == "lz4" || text == "zstd" {
		return basebackup.ParseCompression("server-" + text)
	}
	m, err := basebackup.ParseCompression(text)
	if err != nil {
		return m, withExit(exitUsage, fmt.Errorf("invalid %s: %w", v.Describe(), err), "")
	}
	return m, nil
}

// sayBackup is the outcome: the name on stdout, for scripts, and what a person
// wants to know.
func (c *call) sayBackup(b archive.Backup) error {
	s := b.Sentinel
	c.log.Info(fmt.Sprintf("base backup %s: %s stored as %s in %s, from %s to %s", b.Name, formatBytes(s.UncompressedSize),
		formatBytes(s.CompressedSize), duration(s.FinishTime.Sub(s.StartTime)), b.Start, b.Stop))
	if b.Facts != nil && len(b.Facts.SuspectPages) > 0 {
		c.log.Warn(fmt.Sprintf("the backup is SUSPECT: the server found wrong checksums in its pages, listed above and by walferry backup show %s; it is kept: look at the server's disk, and at an older backup", b.Name))
	}
	return c.say("%s\n", b.Name)
}

// backupError gives the error that ended backup create its exit code and hint.
func backupError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return withExit(exitFailed, fmt.Errorf("interrupted: there is no backup: %w", err), "")
	}
	for _, h := range []struct {
		is   error
		code int
		hint string
	}{
		{basebackup.ErrNoWAL, exitFailed, "start walferry receive with this --store first (it brings the WAL without which no base backup can be restored), or say --wal include"},
		{segment.ErrForeignCluster, exitSafety, "one archive belongs to one cluster: give this cluster a --store of its own, or see whether -h and -p name the right server"},
		{archive.ErrUnrecognised, exitSafety, "nothing there says whose WAL it is: see whether --store names the archive, with its whole prefix"},
		{archive.ErrIdentity, exitSafety, "walferry_005/identity.json cannot be read by this version: use the walferry that wrote it, or another --store"},
		{objstore.ErrNoStore, exitFailed, "make the bucket or directory, or see whether --store names it rightly"},
		{objstore.ErrDenied, exitFailed, "the keys need s3:PutObject, s3:GetObject and s3:ListBucket on the archive"},
	} {
		if errors.Is(err, h.is) {
			return withExit(h.code, err, h.hint)
		}
	}
	var taken *archive.NamesTakenError
	if errors.As(err, &taken) {
		return withExit(exitFailed, err, "remove what unfinished attempts have left: walferry backup delete NAME")
	}
	return withExit(exitFailed, err, "")
}

// checkLabel wants what PostgreSQL takes for a label.
func checkLabel(text string) error {
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(text) > 1000 {
		return errors.New("want one line of at most 1000 bytes")
	}
	return nil
}

// oneOf returns a check for one of those words.
func oneOf(words ...string) func(string) error {
	return func(text string) error {
		for _, w := range words {
			if text == w {
				return nil
			}
		}
		return fmt.Errorf("want %s", strings.Join(words, " or "))
	}
}

// The bounds of --max-rate, in kB/s (PostgreSQL: MAX_RATE_LOWER and
// MAX_RATE_UPPER in src/include/backup/basebackup.h).
const (
	minRate = 32
	maxRate = 1 << 20
)

// parseRate reads a transfer rate as pg_basebackup does: kilobytes a second,
// or with a suffix k or M; PostgreSQL's kB, MB and GB are taken, too. It
// returns kB/s.
func parseRate(text string) (int, error) {
	number := strings.TrimRight(text, "kKmMgGbB ")
	factor := 1.0
	switch suffix := strings.TrimSpace(text[len(number):]); suffix {
	case "", "k", "kB":
	case "M", "MB":
		factor = 1 << 10
	case "GB":
		factor = 1 << 20
	default:
		return 0, errRate
	}
	n, err := strconv.ParseFloat(number, 64)
	if rate := n * factor; err == nil && rate >= minRate && rate <= maxRate {
		return int(rate), nil
	}
	return 0, errRate
}

var errRate = errors.New("want kilobytes a second, from 32kB to 1024MB, such as 50MB")

func checkRate(text string) error {
	_, err := parseRate(text)
	return err
}

func checkParts(text string) error {
	if n, err := strconv.Atoi(text); err != nil || n < 100 || n > objstore.MaxParts {
		return fmt.Errorf("want a number from 100 to %d", objstore.MaxParts)
	}
	return nil
}

// checkAnyCompress takes what receive takes, and what backup create takes: both
// read one variable and one key of the settings file.
func checkAnyCompress(text string) error {
	if _, err := basebackup.ParseCompression(text); err == nil {
		return nil
	}
	return checkCompress(text)
}
