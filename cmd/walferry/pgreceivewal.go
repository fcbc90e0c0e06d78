package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/cmd/internal/pgreceivewal"
	"github.com/walferry/walferry/cmd/internal/settings"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// dropInName is the name under which this program is PostgreSQL's
// pg_receivewal.
const dropInName = "pg_receivewal"

// dropInArguments returns the arguments of pg_receivewal, and what it was called
// as, when this program was called under that name, or with it as its first word.
func dropInArguments(argv0 string, args []string) (as string, rest []string, ok bool) {
	switch {
	case filepath.Base(argv0) == dropInName:
		return argv0, args, true
	case len(args) > 0 && args[0] == dropInName:
		return dropInName, args[1:], true
	}
	return "", nil, false
}

// dropInCommand is the line of pg_receivewal among the commands. As the first
// word it never comes here, and its help is its own.
func dropInCommand() *cli.Command {
	return &cli.Command{
		Name:  dropInName,
		Usage: "be PostgreSQL's pg_receivewal, as this program also is under that name",
		Action: func(*cli.Context) error {
			return usageError("%s takes its own flags only: want walferry %s ..., without anything in between", dropInName, dropInName)
		},
	}
}

// dropIn is one run as pg_receivewal: the same receiver and the same spool, in
// a directory that looks as pg_receivewal would leave it.
type dropIn struct {
	*program
	pgreceivewal.Settings
	log    *slog.Logger
	store  *storeSettings // nil: WAL goes into the directory alone
	server *replication.Config

	// Of Events: what has been told.
	began segment.Position
	again string // the line that comes once more at the end

	streams bool // an error is the stream's, and no longer one of the way there
}

// runDropIn runs as pg_receivewal, and returns its exit code: 0 or 1.
func (p *program) runDropIn(argv0 string, args []string) int {
	d := &dropIn{program: p}
	var err error
	if d.Settings, err = pgreceivewal.Parse(argv0, args, p.lookup); err == nil {
		err = d.do()
	}
	if err == nil {
		return 0
	}
	d.printError(err)
	if d.disconnects(err) {
		d.printError(errors.New("disconnected"))
	}
	return 1
}

// do does what the command line asks for.
func (d *dropIn) do() error {
	switch {
	case d.Help:
		_, err := fmt.Fprint(d.stdout, pgreceivewal.Help(dropInName))
		return err
	case d.Settings.Version:
		version, _, _ := buildVersion()
		_, err := fmt.Fprint(d.stdout, pgreceivewal.Version(version))
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal changes nothing, as with the original.
	if !d.CreateSlot && !d.DropSlot {
		if err := openDirectory(d.Directory); err != nil {
			return err
		}
	}
	var set *settings.Set
	if d.Store != "" || d.variable("WALFERRY_STORE") != "" {
		var err error
		if set, err = d.storeSettings(); err != nil {
			return err
		}
	}
	level := slog.LevelWarn
	if d.Verbose && set != nil {
		level = slog.LevelInfo
	}
	d.log = slog.New(pgreceivewal.NewHandler(d.stderr, dropInName, level))
	if err := d.findServer(); err != nil {
		return err
	}
	for _, notice := range d.server.Notices() {
		d.log.Warn(notice)
	}
	if d.CreateSlot || d.DropSlot {
		return d.slotAction(ctx)
	}
	if d.HasSlot && replication.CheckSlotName(d.Slot) != nil {
		return commandError("START_REPLICATION", slotNameError(d.Slot, replication.CheckSlotName(d.Slot)))
	}
	return d.receive(ctx, set)
}

// openDirectory finds out what pg_receivewal finds out before it connects.
func openDirectory(name string) error {
	f, err := os.Open(name)
	if err == nil {
		_, err = f.ReadDir(1)
		if err = errors.Join(ignoreEOF(err), f.Close()); err == nil {
			return nil
		}
	}
	return pgreceivewal.DirectoryError(name, err)
}

// storeSettings loads the settings that go with a store.
func (d *dropIn) storeSettings() (*settings.Set, error) {
	var given []settings.Given
	if d.Store != "" {
		given = []settings.Given{{Name: "store", Value: d.Store}}
	}
	set, err := d.load("", given)
	if err != nil {
		return nil, err
	}
	s, err := d.findStore(set, false)
	if err != nil {
		return nil, err
	}
	d.store = &s
	return set, nil
}

// findServer finds out how the server is reached.
func (d *dropIn) findServer() error {
	if err := d.CheckConnection(); err != nil {
		return err
	}
	params := replication.Params{
		DSN: d.ConnString, Host: d.Host, Port: d.Port, User: d.User,
		ApplicationName: dropInName, NoPassword: d.NoPassword,
	}
	askForPassword(&params, d.AskPassword)
	server, err := replication.ParseConfig(params)
	if err != nil {
		return err
	}
	d.server = server
	return nil
}

// slotAction is --create-slot or --drop-slot.
func (d *dropIn) slotAction(ctx context.Context) error {
	conn, err := replication.Connect(ctx, d.server)
	if err != nil {
		return err
	}
	defer func() {
		// The answer was heard: nothing hangs on the good-bye.
		_ = conn.Close(ctx)
	}()
	quoted := `"` + d.Slot + `"`
	if d.DropSlot {
		d.info("dropping replication slot %s", quoted)
		return commandError("DROP_REPLICATION_SLOT "+quoted, slotNameError(d.Slot, conn.DropSlot(ctx, d.Slot)))
	}
	d.info("creating replication slot %s", quoted)
	err = conn.CreateIdleSlot(ctx, d.Slot)
	if d.IfNotExists && errors.Is(err, replication.ErrSlotExists) {
		return nil
	}
	return commandError("CREATE_REPLICATION_SLOT "+quoted+" PHYSICAL", slotNameError(d.Slot, err))
}
