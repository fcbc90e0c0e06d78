package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore"
)

// unfinishedAge is from which age on nobody works on a backup without a
// sentinel any more.
const unfinishedAge = 48 * time.Hour

// deleteBackup is "walferry backup delete NAME".
func deleteBackup(ctx context.Context, c *call) error {
	name, err := archive.ParseBackupName(c.words[0])
	if err != nil {
		return usageError("%q is no name of a base backup: want one that walferry backup list shows", c.words[0])
	}
	ar, _, err := c.openArchive(ctx)
	if err != nil {
		return err
	}
	list, err := askBackups(ctx, ar)
	if err != nil {
		return archiveError(err)
	}
	if !c.flags.Bool("force") {
		if err := c.mayDelete(ctx, ar, name, list); err != nil {
			return err
		}
	}
	err = ar.DeleteBackup(ctx, name)
	switch {
	case errors.Is(err, archive.ErrNotFound):
		return withExit(exitFailed, fmt.Errorf("there is no base backup %s in %s, and nothing left of one", name, list.Archive), "walferry backup list shows those that there are")
	case errors.Is(err, objstore.ErrDenied):
		return withExit(exitFailed, err, "deleting needs s3:DeleteObject on basebackups_005/ (walferry needs it for nothing else there)")
	case err != nil:
		return withExit(exitFailed, err, "run the same command again: what it has left is no backup any more")
	}
	return c.say("removed base backup %s; its WAL is still there\n", name)
}

// mayDelete refuses to delete what somebody still needs.
func (c *call) mayDelete(ctx context.Context, ar *archive.Archive, name archive.BackupName, list backupList) error {
	const force = "--force deletes it all the same"
	i := slices.IndexFunc(list.Backups, func(b backupInfo) bool { return b.Name == name.String() })
	if i < 0 {
		return c.mayDeleteUnfinished(ctx, ar, name)
	}
	b := list.Backups[i]
	if b.Permanent {
		return withExit(exitFailed, fmt.Errorf("base backup %s is marked as permanent", b.Name), force)
	}
	others := 0
	for _, o := range list.Backups {
		if o.DependsOn != nil && *o.DependsOn == b.Name {
			return withExit(exitFailed, fmt.Errorf("base backup %s is needed by its delta %s", b.Name, o.Name), "delete the delta first; "+force)
		}
		if o.Name != b.Name && o.restorable() {
			others++
		}
	}
	if b.restorable() && others == 0 {
		return withExit(exitFailed, fmt.Errorf("base backup %s is the last one in %s that can be restored: without it the WAL there is worth nothing", b.Name, list.Archive), "take another one first; "+force)
	}
	return nil
}

// mayDeleteUnfinished refuses to delete under the hands of a backup that is
// being taken.
func (c *call) mayDeleteUnfinished(ctx context.Context, ar *archive.Archive, name archive.BackupName) error {
	objects, err := ar.BackupObjects(ctx, name)
	if err != nil {
		return archiveError(err)
	}
	for _, o := range objects {
		// The store's clock against ours: a day more or less does not matter.
		if time.Since(o.Modified) < unfinishedAge {
			return withExit(exitFailed, fmt.Errorf("%s is no backup yet, and may be one that is being taken: its newest object is younger than two days", name),
				"if no backup create runs, --force removes it")
		}
	}
	return nil
}
