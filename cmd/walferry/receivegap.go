package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/receiver"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

const (
	// cutPatience is how long the archive may take to tell what a gap cuts: the
	// message goes out without it, too.
	cutPatience = 20 * time.Second
	// cutNames is how many base backups are named.
	cutNames = 3
)

// eachHost connects to each host of the settings.
func eachHost(c *replication.Config) []func(context.Context) (*replication.Conn, error) {
	var all []func(context.Context) (*replication.Conn, error)
	for _, one := range c.Each() {
		all = append(all, func(ctx context.Context) (*replication.Conn, error) { return replication.Connect(ctx, one) })
	}
	return all
}

// gapError gives a gap at which receive stops its exit code, and says what it
// cuts and which ways on there are.
func gapError(ctx context.Context, err error, gap *receiver.GapError, ar *archive.Archive) error {
	return withExit(exitSafety, err, cutByGap(ctx, ar, gap)+"; ways on: "+
		"put the missing segments into the archive if anybody has them (an archive_command's directory, a standby's pg_wal), and start again; "+
		"or go on behind the gap with --on-gap record, and take a base backup at once; "+
		"or begin a new archive with another --store and another --spool, and take a base backup")
}

// cutByGap says which recovery windows end at a gap.
func cutByGap(ctx context.Context, ar *archive.Archive, gap *receiver.GapError) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cutPatience)
	defer cancel()
	list, err := askBackups(ctx, ar)
	if err != nil {
		return "which backups it cuts is not known: " + oneLine(err.Error())
	}
	return cutText(list, gap)
}

// cutText names the backups whose windows would have gone on behind a gap,
// newest first: those that reach as far as any does, and begin before it.
func cutText(list backupList, gap *receiver.GapError) string {
	held := gap.Held().LSN
	var furthest segment.LSN
	for _, b := range list.Backups {
		if b.restorable() && b.stop.LSN <= held {
			furthest = max(furthest, b.reach.LSN)
		}
	}
	var cut []string
	for _, b := range slices.Backward(list.Backups) {
		if b.restorable() && b.stop.LSN <= held && b.reach.LSN == furthest {
			cut = append(cut, b.Name)
		}
	}
	switch n := len(cut); {
	case n == 0:
		return "it cuts the recovery window of no base backup, since there is none in front of it that can be restored"
	case n == 1:
		return fmt.Sprintf("base backup %s restores up to %s and no further", cut[0], held)
	case n > cutNames:
		return fmt.Sprintf("base backups %s and %d older ones restore up to %s and no further", strings.Join(cut[:cutNames], ", "), n-cutNames, held)
	}
	return fmt.Sprintf("base backups %s restore up to %s and no further", strings.Join(cut, ", "), held)
}
