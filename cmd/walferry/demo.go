package main

import (
	"context"
	"errors"

	"github.com/urfave/cli/v2"
)

// demoCommand is "walferry demo".
func demoCommand(p *program) *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "the whole story on a throw-away cluster, in about a minute",
		Flags: generalFlags(),
		Action: p.action(func(ctx context.Context, c *call) error {
			return errors.New("demo is not wired yet")
		}),
	}
}
