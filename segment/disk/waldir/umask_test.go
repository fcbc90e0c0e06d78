//go:build unix

package waldir_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/waldir"
	"github.com/walferry/walferry/segment/spool"
)

// Files get the mode that the spool passes, whatever the umask is; one that is
// written anew keeps the old one's.
func TestModes(t *testing.T) {
	log := twoSegments()
	defer syscall.Umask(syscall.Umask(0o077))
	for group, want := range map[bool]fs.FileMode{false: 0o600, true: 0o640} {
		dir := t.TempDir()
		check(t, os.Chmod(dir, 0o711))
		for _, m := range methods {
			s, err := spool.Open(waldir.New(disk.OS{}, dir, waldir.Options{Method: m}), dir, spool.Options{GroupAccess: group})
			check(t, err)
			check(t, s.Bind(cluster))
			check(t, s.PutHistory(2, history2))
			g, err := s.Begin(first)
			check(t, err)
			check(t, g.WriteAt(log.Bytes(base, base+50000), base))
			g.Advance(base + 50000)
			_, err = g.Sync()
			check(t, errors.Join(err, s.Close()))
			for _, file := range []string{"00000002.history", first.String() + suffix(m) + ".partial"} {
				fi, err := os.Stat(filepath.Join(dir, file))
				check(t, err)
				if fi.Mode().Perm() != want {
					t.Errorf("%s has mode %v, want %v", file, fi.Mode(), want)
				}
			}
		}
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o711 {
			t.Errorf("the directory has mode %v, %v", fi.Mode(), err)
		}
	}
}
