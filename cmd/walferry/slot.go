package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/replication"
)

// slotCommand is "walferry slot".
func slotCommand(p *program) *cli.Command {
	flags := append(append(connectionFlags(), settingFlags("dbname")...), generalFlags()...)
	with := func(own ...cli.Flag) []cli.Flag { return append(own, flags...) }
	return &cli.Command{
		Name:  "slot",
		Usage: "replication slots: what makes the server keep WAL",
		Subcommands: []*cli.Command{
			{
				Name: "create", ArgsUsage: "NAME", Usage: "make a slot that holds WAL from now on",
				Description: "The server keeps all WAL from now on until a receiver has taken it: with nobody\nreading, until its disk is full or max_slot_wal_keep_size is reached.",
				Flags:       with(&cli.BoolFlag{Name: "if-not-exists", Usage: "a physical slot of this name that exists already is right, too"}),
				Action:      p.action(createSlot),
			},
			{
				Name: "drop", ArgsUsage: "NAME", Usage: "remove a slot: the server keeps no WAL for it any more",
				Flags:  with(),
				Action: p.action(dropSlot),
			},
			{
				Name: "list", Usage: "every slot and what it holds",
				Description: "Needs an ordinary connection to --dbname. Where that is refused, only the slot\nthat --slot names is shown, as far as the replication protocol tells.",
				Flags:       with(append([]cli.Flag{&cli.BoolFlag{Name: "json", Usage: "machine-readable"}}, settingFlags("slot")...)...),
				Action:      p.action(listSlots),
			},
		},
	}
}

// createSlot is "walferry slot create NAME".
func createSlot(ctx context.Context, c *call) (err error) {
	name, server, conn, err := c.slotConnection(ctx)
	if err != nil {
		return err
	}
	defer c.closing(ctx, conn)

	err = conn.CreateSlot(ctx, name)
	switch {
	case errors.Is(err, replication.ErrSlotExists):
		return c.slotExists(ctx, server, conn, name)
	case errors.Is(err, replication.ErrNoFreeSlot):
		limit := ""
		if n, serr := conn.Show(ctx, "max_replication_slots"); serr == nil {
			limit = " (max_replication_slots is " + n + ")"
		}
		return withExit(exitFailed, fmt.Errorf("creating slot %q: all replication slots of the server are in use%s", name, limit),
			"drop one that nobody needs (walferry slot list shows them), or raise max_replication_slots and restart the server")
	case err != nil:
		return withExit(exitFailed, err, "")
	}
	from := ""
	if s, rerr := conn.ReadSlot(ctx, name); rerr == nil && s.RestartLSN != 0 {
		from = " from " + s.RestartLSN.String()
	}
	return c.say("created slot %q: the server keeps WAL%s on until a receiver has taken it\n%s\n", name, from, c.unread(ctx, conn, name))
}

// unread says what happens when nobody reads a slot.
func (c *call) unread(ctx context.Context, conn *replication.Conn, name string) string {
	keep, err := conn.Show(ctx, "max_slot_wal_keep_size")
	until := "until its disk is full"
	switch {
	case err != nil:
		until += " or max_slot_wal_keep_size is reached"
	case keep == "-1":
		until += " (max_slot_wal_keep_size is -1)"
	default:
		until = "up to " + keep + " (max_slot_wal_keep_size), then the slot is lost"
	}
	return fmt.Sprintf("with nobody reading it, it keeps WAL %s; walferry slot drop %s ends that", until, name)
}

// slotExists answers a wish for a slot of which there is one already: right
// with --if-not-exists, unless it is of no use.
func (c *call) slotExists(ctx context.Context, server *replication.Config, conn *replication.Conn, name string) error {
	s := c.describeSlot(ctx, server, conn, name)
	const again = "drop it and create it again: what it held is gone from it in any case"
	switch {
	case s.Type != nil && *s.Type != "physical":
		return withExit(exitFailed, fmt.Errorf("creating slot %q: it exists already, and it is a %s slot", name, *s.Type), "choose another name: WAL is streamed from physical slots")
	case s.lost():
		return withExit(exitFailed, fmt.Errorf("creating slot %q: it exists already, and it is lost: the server removed WAL that it held", name), again)
	case c.flags.Bool("if-not-exists") && s.Type != nil && s.RestartLSN == nil:
		return withExit(exitFailed, fmt.Errorf("creating slot %q: it exists already, and it holds no WAL: it is lost, or was made without reserving any", name), again)
	case c.flags.Bool("if-not-exists"):
		return c.say("slot %q exists already%s\n", name, s.state())
	}
	return withExit(exitFailed, fmt.Errorf("creating slot %q: it exists already%s", name, s.state()), "--if-not-exists takes that for success")
}

// dropSlot is "walferry slot drop NAME".
func dropSlot(ctx context.Context, c *call) error {
	name, server, conn, err := c.slotConnection(ctx)
	if err != nil {
		return err
	}
	defer c.closing(ctx, conn)

	held := ""
	if s, rerr := conn.ReadSlot(ctx, name); rerr == nil && s.RestartLSN != 0 {
		held = ", which was kept from " + s.RestartLSN.String() + " on"
	}
	err = conn.DropSlot(ctx, name)
	switch {
	case errors.Is(err, replication.ErrSlotMissing):
		return withExit(exitFailed, fmt.Errorf("dropping slot %q: there is no slot of this name", name), "walferry slot list shows those that there are")
	case errors.Is(err, replication.ErrSlotActive):
		s := c.describeSlot(ctx, server, conn, name)
		if s.reader() == "" { // the server's own words name the process at least
			return withExit(exitFailed, fmt.Errorf("dropping slot %q: it is in use: %w", name, err), "stop the receiver that uses it first")
		}
		return withExit(exitFailed, fmt.Errorf("dropping slot %q: it is in use by %s", name, s.reader()), "stop that receiver first")
	case err != nil:
		return withExit(exitFailed, err, "")
	}
	return c.say("dropped slot %q: the server keeps no WAL for it any more%s\n", name, held)
}

// slotConnection checks the slot's name and the settings, and connects.
func (c *call) slotConnection(ctx context.Context) (name string, server *replication.Config, conn *replication.Conn, err error) {
	name = c.words[0]
	if err := replication.CheckSlotName(name); err != nil {
		return "", nil, nil, withExit(exitUsage, err, "")
	}
	if server, err = c.connection(defaultApplication); err != nil {
		return "", nil, nil, err
	}
	if conn, err = replication.Connect(ctx, server); err != nil {
		return "", nil, nil, withExit(exitFailed, err, "")
	}
	return name, server, conn, nil
}

// closing closes a connection whose work is done: what goes wrong then
// changes nothing.
func (c *call) closing(ctx context.Context, conn *replication.Conn) {
	if err := conn.Close(ctx); err != nil {
		c.log.Debug("the connection did not end well", slog.Any("error", err))
	}
}

// say prints the outcome of a command.
func (c *call) say(format string, args ...any) error {
	if _, err := fmt.Fprintf(c.stdout, format, args...); err != nil {
		return fmt.Errorf("printing the outcome: %w", err)
	}
	return nil
}
