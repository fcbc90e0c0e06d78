package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/cmd/internal/settings"
	"github.com/walferry/walferry/receiver"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// setting is a line of the table of settings: what can be said by a flag, by
// a variable and in the settings file.
type setting struct {
	settings.Spec
	short    string // the flag's letter
	value    string // what stands for the value in the help text
	usage    string
	category string
}

const (
	categoryConnection = "Connection"
	categoryArchive    = "Archive"
	categoryGeneral    = "General"
)

// settingTable is every setting of every command.
func settingTable() []setting {
	type s = settings.Spec
	return []setting{
		{s{Name: "dsn", Mask: settings.MaskDSN}, "d", "CONNSTR", "connection string, as psql takes it", categoryConnection},
		{s{Name: "host"}, "h", "HOST", "database server host or socket directory", categoryConnection},
		{s{Name: "port", Check: checkPort}, "p", "PORT", "database server port", categoryConnection},
		{s{Name: "username"}, "U", "NAME", "user name", categoryConnection},
		{s{Name: "no-password", Bool: true}, "w", "", "never ask for a password", categoryConnection},
		{s{Name: "dbname", Default: "postgres"}, "", "NAME", "database for what the replication protocol cannot answer", categoryConnection},

		{s{Name: "store", Mask: settings.MaskURL}, "", "URL", "the archive: s3://BUCKET/PREFIX or file:///DIR", categoryArchive},
		{s{Name: "single-receiver", Bool: true}, "", "", "accept a store that ignores put-if-absent: no other receiver writes there", categoryArchive},

		{s{Name: "slot", Default: "walferry", Check: checkSlotName}, "", "NAME", "replication slot; made when it is missing", ""},
		{s{Name: "spool", Check: checkSpool}, "", "DIR|none", "where WAL lies until it is in the archive (default spool/ in WALFERRY_HOME)", ""},
		{s{Name: "spool-limit", Check: checkLimit}, "", "SIZE", "stop receiving when the spool holds so much (default 80% of the file system)", ""},
		{s{Name: "memory", Default: "256MB", Check: checkMemory}, "", "SIZE", "with --spool none: how much memory WAL on its way may take", ""},
		{s{Name: "ack", Default: "spool", Check: checkAck}, "", "spool|archive", "what flushed means to the server: on this host's disk, or in the archive", ""},
		{s{Name: "hold", Default: "32MB", Check: settings.CheckSize}, "", "SIZE", "let the server keep so much until it is in the archive, too; 0 is off", ""},
		{s{Name: "synchronous", Default: "auto", Check: checkSynchronous}, "", "auto|on|off", "whether commits wait for us: auto asks the server's synchronous_standby_names", ""},
		{s{Name: "ship-interval", Default: "1s", Check: settings.CheckDuration}, "", "TIME", "how often what is new in the unfinished segment goes to the archive; 0 is off", ""},
		{s{Name: "compress", Default: "lz4", Check: checkAnyCompress}, "", "METHOD[:LEVEL]", "lz4, zstd or none", ""},
		{s{Name: "on-gap", Default: "stop", Check: oneOf("stop", "record")}, "", "stop|record", "when WAL that follows what we hold is gone for good: stop, or record that in the archive and go on behind it", ""},
		{s{Name: "shutdown-grace", Default: "30s", Check: settings.CheckDuration}, "", "TIME", "how long a stopping server may wait for us", ""},
		{s{Name: "endpos", Check: checkLSN}, "", "LSN", "stop when everything up to it was received", ""},
		{s{Name: "no-loop", Bool: true}, "n", "", "do not connect again after a failure", ""},

		{s{Name: "label", Default: "walferry base backup", Check: checkLabel}, "", "TEXT", "label of the base backup", ""},
		{s{Name: "checkpoint", Default: "fast", Check: oneOf("fast", "spread")}, "", "fast|spread", "the checkpoint that a backup begins with: at once, or spread over some minutes to spare the server's disk", ""},
		{s{Name: "max-rate", Check: checkRate}, "", "RATE", "read no faster, in kB a second, or such as 50MB", ""},
		{s{Name: "wal", Default: "archive", Check: oneOf("archive", "include")}, "", "archive|include", "where the WAL that makes the backup consistent is kept: in the archive, by walferry receive, or inside the backup", ""},
		{s{Name: "max-parts", Default: "10000", Check: checkParts}, "", "N", "how many parts the store takes for one object", ""},

		{s{Name: "budget", Check: settings.CheckDuration}, "", "TIME", "how long to try (default 5min in recovery, 5s on a standby)", ""},
		{s{Name: "stop-at-gap", Bool: true}, "", "", "take a hole in the archive for its end", ""},
		{s{Name: "sealed-only", Bool: true}, "", "", "whole segments only, no partial ones", ""},

		{s{Name: "verbose", Bool: true}, "v", "", "say more", categoryGeneral},
	}
}

// settingFlags returns the flags of settings, in the order of their names.
func settingFlags(names ...string) []cli.Flag {
	table := map[string]setting{}
	for _, s := range settingTable() {
		table[s.Name] = s
	}
	flags := make([]cli.Flag, 0, len(names))
	for _, name := range names {
		s := table[name]
		var short []string
		if s.short != "" {
			short = []string{s.short}
		}
		if s.Bool {
			flags = append(flags, &cli.BoolFlag{Name: s.Name, Aliases: short, Usage: s.usage, Category: s.category})
			continue
		}
		usage := "`" + s.value + "` " + s.usage
		if s.Default != "" {
			usage += " (default " + s.Default + ")"
		}
		flags = append(flags, &cli.StringFlag{Name: s.Name, Aliases: short, Usage: usage, Category: s.category})
	}
	return flags
}

// connectionFlags are those of every command that talks to a server.
func connectionFlags() []cli.Flag {
	return append(settingFlags("dsn", "host", "port", "username", "no-password"),
		// No variable and no key: it asks a person.
		&cli.BoolFlag{Name: "password", Aliases: []string{"W"}, Usage: "ask for the password", Category: categoryConnection})
}

// generalFlags are those of every command.
func generalFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "`FILE` with settings (YAML, the same names)", Category: categoryGeneral},
	}, settingFlags("verbose")...)
}

// load finds every setting. flags are those of the command line.
func (p *program) load(config string, flags []settings.Given) (*settings.Set, error) {
	table := settingTable()
	specs := make([]settings.Spec, len(table))
	for i, s := range table {
		specs[i] = s.Spec
	}
	set, err := settings.Load(specs, settings.Input{
		Flags:   flags,
		Config:  config,
		Environ: p.environ,
		HomeDir: p.userHome(),
		// The last two belong to this project's own tests.
		Reserved: []string{"WALFERRY_HOME", "WALFERRY_TEST_", "WALFERRY_VERSITYGW", "WALFERRY_FULL"},
	})
	if err != nil {
		return nil, withExit(exitUsage, err, "")
	}
	// Before any goroutine exists: libraries read these from the environment.
	for name, value := range set.ForLibraries() {
		if err := os.Setenv(name, value); err != nil {
			return nil, fmt.Errorf("setting %s as %s says: %w", name, settings.WALGFileName, err)
		}
	}
	return set, nil
}

// userHome is the user's home directory. PostgreSQL on Debian is started
// without HOME, and restore_command with it.
func (p *program) userHome() string {
	if home := p.variable("HOME"); home != "" {
		return home
	}
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	return ""
}

// call is one run of a command.
type call struct {
	*program
	set   *settings.Set
	log   *slog.Logger
	words []string
	flags *cli.Context // for flags that are no settings
}

// action makes a command's function out of one that wants its settings.
func (p *program) action(do func(ctx context.Context, c *call) error) cli.ActionFunc {
	return func(cc *cli.Context) error {
		var flags []settings.Given
		for _, s := range settingTable() {
			switch {
			case !cc.IsSet(s.Name):
			case s.Bool:
				flags = append(flags, settings.Given{Name: s.Name, Value: strconv.FormatBool(cc.Bool(s.Name))})
			default:
				flags = append(flags, settings.Given{Name: s.Name, Value: cc.String(s.Name)})
			}
		}
		set, err := p.load(cc.String("config"), flags)
		if err != nil {
			return err
		}
		log := p.newLogger(set.Bool("verbose"))
		for _, w := range set.Warnings() {
			log.Warn(w)
		}
		return do(cc.Context, &call{program: p, set: set, log: log, words: cc.Args().Slice(), flags: cc})
	}
}

func checkPort(text string) error {
	for _, one := range strings.Split(text, ",") { // a port for each host
		if n, err := strconv.ParseUint(one, 10, 16); err != nil || n == 0 {
			return errors.New("want a port from 1 to 65535")
		}
	}
	return nil
}

func checkSpool(text string) error {
	if text == "" {
		return errors.New("want a directory, or none")
	}
	return nil
}

func checkMemory(text string) error {
	n, err := settings.ParseSize(text)
	if least := leastMemory(); err == nil && n < least {
		return fmt.Errorf("want %s at least, and more for larger WAL segments than 1MB", formatBytes(least))
	}
	return err
}

func checkLimit(text string) error {
	n, err := settings.ParseSize(text)
	if err == nil && n < 2*int64(segment.MinSize) {
		return errors.New("want room for two WAL segments at least, such as 64MB")
	}
	return err
}

func checkAck(text string) error {
	if text != "spool" && text != "archive" {
		return errors.New("want spool or archive")
	}
	return nil
}

// parseSynchronous reads a value of --synchronous.
func parseSynchronous(text string) (receiver.Synchronous, error) {
	switch text {
	case "auto":
		return receiver.SynchronousAuto, nil
	case "on":
		return receiver.SynchronousOn, nil
	case "off":
		return receiver.SynchronousOff, nil
	}
	return 0, errors.New("want auto, on or off")
}

func checkSynchronous(text string) error {
	_, err := parseSynchronous(text)
	return err
}

func checkSlotName(text string) error { return replication.CheckSlotName(text) }

func checkLSN(text string) error {
	if _, err := segment.ParseLSN(text); err != nil {
		return errors.New("want an LSN such as 16/B374D848")
	}
	return nil
}
