package main

import (
	"context"
	"errors"

	"github.com/urfave/cli/v2"
)

// slotCommand is "walferry slot".
func slotCommand(p *program) *cli.Command {
	flags := append(connectionFlags(), generalFlags()...)
	return &cli.Command{
		Name:  "slot",
		Usage: "replication slots: what makes the server keep WAL",
		Subcommands: []*cli.Command{
			{
				Name: "create", ArgsUsage: "NAME", Usage: "make a slot that holds WAL from now on",
				Flags:  append([]cli.Flag{&cli.BoolFlag{Name: "if-not-exists", Usage: "one that exists already is right, too"}}, flags...),
				Action: p.action(func(context.Context, *call) error { return errors.New("slot create is not wired yet") }),
			},
			{
				Name: "drop", ArgsUsage: "NAME", Usage: "remove a slot: the server keeps no WAL for it any more",
				Flags:  flags,
				Action: p.action(func(context.Context, *call) error { return errors.New("slot drop is not wired yet") }),
			},
			{
				Name: "list", Usage: "every slot and what it holds",
				Flags:  append(append([]cli.Flag{&cli.BoolFlag{Name: "json", Usage: "machine-readable"}}, settingFlags("dbname")...), flags...),
				Action: p.action(func(context.Context, *call) error { return errors.New("slot list is not wired yet") }),
			},
		},
	}
}
