package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// receiveSettings is what receive was told, checked.
type receiveSettings struct {
	Server         *replication.Config
	Database       string // for what only an ordinary connection can ask
	Store          storeSettings
	SingleReceiver bool

	Slot          string
	SpoolDir      string
	SpoolLimit    int64 // bytes; 0: the spool's own default
	Hold          int64 // bytes; 0: no hold
	Compress      codec.Method
	ShutdownGrace time.Duration
	EndPos        segment.LSN // 0: none
	NoLoop        bool

	Log *slog.Logger
}

// receiveCommand is "walferry receive".
func receiveCommand(p *program) *cli.Command {
	flags := settingFlags("slot", "spool", "spool-limit", "ack", "hold", "compress", "shutdown-grace", "endpos", "no-loop", "store", "single-receiver")
	flags = append(flags, connectionFlags()...)
	flags = append(flags, settingFlags("dbname")...)
	return &cli.Command{
		Name:  "receive",
		Usage: "stream WAL into the archive",
		Description: `Connects as a standby would, and keeps every byte on this host's disk (the spool)
and then in the archive. Goes on for ever: after a failure it connects again, after
a restart it resumes where the archive and the spool end. SIGTERM or SIGINT stops it.`,
		Flags: append(flags, generalFlags()...),
		Action: p.action(func(ctx context.Context, c *call) error {
			s, err := c.receiveSettings()
			if err != nil {
				return err
			}
			if s.Store.create {
				s.Log.Info(fmt.Sprintf("no store given: the archive is %s, the spool is %s", s.Store.dir, s.SpoolDir))
			}
			return runReceive(ctx, s)
		}),
	}
}

// receiveSettings checks everything that receive is told. Nothing is touched.
func (c *call) receiveSettings() (receiveSettings, error) {
	s := receiveSettings{
		Database:       c.set.Text("dbname"),
		SingleReceiver: c.set.Bool("single-receiver"),
		Slot:           c.set.Text("slot"),
		SpoolDir:       c.set.Text("spool"),
		SpoolLimit:     c.set.Bytes("spool-limit"),
		Hold:           c.set.Bytes("hold"),
		ShutdownGrace:  c.set.Duration("shutdown-grace"),
		NoLoop:         c.set.Bool("no-loop"),
		Log:            c.log,
	}
	if v := c.set.Value("endpos"); v.IsSet() {
		var err error
		if s.EndPos, err = segment.ParseLSN(v.Text); err != nil {
			return s, withExit(exitUsage, err, "")
		}
	}
	if s.SpoolDir == "" {
		home, err := c.set.HomeDir(c.userHome())
		if err != nil {
			return s, withExit(exitUsage, err, "")
		}
		s.SpoolDir = filepath.Join(home, "spool")
	}
	var err error
	if s.Compress, err = findCompression(c.set); err != nil {
		return s, err
	}
	if s.Store, err = c.findStore(c.set, true); err != nil {
		return s, err
	}
	s.Server, err = c.connection()
	return s, err
}

// runReceive receives until ctx ends, the end position is reached, or
// something forbids to go on.
func runReceive(context.Context, receiveSettings) error {
	return errors.New("receive is not wired yet")
}
