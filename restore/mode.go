package restore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/walferry/walferry/segment"
)

// Mode is how a server recovers. It decides what a failure may cost.
type Mode int

const (
	// Recovery: up to a target or to the end of the archive (recovery.signal,
	// or no signal file at all). A wrong "absent" ends it too early, for good.
	Recovery Mode = iota
	// Standby: for ever (standby.signal, which wins over recovery.signal). A
	// status above 125 takes the server down.
	Standby
)

// String returns the name of the file that says so.
func (m Mode) String() string {
	if m == Standby {
		return "standby.signal"
	}
	return "recovery.signal"
}

// Budget returns how long a fetch may try before it fails, unless it is told
// otherwise. A standby can neither stream nor be promoted while it waits.
func (m Mode) Budget() time.Duration {
	if m == Standby {
		return 5 * time.Second
	}
	return 5 * time.Minute
}

// ExitCode returns the exit status that says the outcome err of a fetch to
// PostgreSQL: 0 delivered, 1 proved absent; for any failure 255 in Recovery
// (the server stops) and 1 in Standby (it asks again).
func (m Mode) ExitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrAbsent), m == Standby:
		return 1
	}
	return 255
}

// ExitCode is Mode.ExitCode for the file called name, %f. It differs for the
// question that a server asks at the very end: when it has ended its recovery,
// promoted or at the archive's end, and has removed its signal files, it wants
// the history file of the timeline that it leaves, to copy it into that of the
// new one. A status above 125 would take it down then, between two timelines
// (seen on 15 and 18); told that there is no such file it reads its own copy in
// pg_wal (PostgreSQL: writeTimeLineHistory in
// src/backend/access/transam/timeline.c). So whatever the failure is, the
// answer is 1 where it has that copy. Timeline 1 has no history file.
func (p Place) ExitCode(name string, err error) int {
	if err != nil && p.needsNone(name) {
		return 1
	}
	return p.Mode.ExitCode(err)
}

// needsNone tells whether name is a history file that a server asks for at the
// end of its recovery, and can do without.
func (p Place) needsNone(name string) bool {
	t, err := segment.ParseHistoryName(name)
	if err != nil || !p.isDataDir() {
		return false
	}
	for _, signal := range []string{"standby.signal", "recovery.signal"} {
		if _, err := os.Stat(p.path(signal)); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	if t == 1 {
		return true
	}
	content, err := os.ReadFile(p.path(walDir, name))
	if err == nil {
		_, err = segment.ParseHistory(t, content)
	}
	return err == nil
}

// Place is the data directory that a file is fetched for, and its mode.
type Place struct {
	DataDir string // absolute when FindPlace was given an absolute cwd
	Mode    Mode
}

// FindPlace tells the data directory and mode of a call of restore_command
// with working directory cwd and target %p. The server runs it in its data
// directory with a relative %p; pg_rewind runs it where it was started itself
// and puts its -D in front of pg_wal. A signal file that cannot be seen is
// not there: Recovery is the mode that loses nothing.
func FindPlace(cwd, target string) Place {
	p := Place{DataDir: cwd}
	path := filepath.Clean(target)
	if !filepath.IsAbs(path) {
		path = filepath.Join(cwd, path)
	}
	for dir := filepath.Dir(path); dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if filepath.Base(dir) == walDir {
			p.DataDir = filepath.Dir(dir)
			break
		}
	}
	if _, err := os.Stat(filepath.Join(p.DataDir, "standby.signal")); err == nil {
		p.Mode = Standby
	}
	return p
}

// walDir is where a data directory has its WAL.
const walDir = "pg_wal"

func (p Place) path(name ...string) string {
	return filepath.Join(append([]string{p.DataDir}, name...)...)
}

// filePerm returns the mode of a file in the data directory: the group may
// read when it may read the directory (initdb --allow-group-access;
// PostgreSQL: GetDataDirectoryCreatePerm in src/common/file_perm.c).
func (p Place) filePerm() fs.FileMode {
	if info, err := os.Stat(p.DataDir); err == nil && info.Mode().Perm()&0o050 == 0o050 && p.isDataDir() {
		return 0o640
	}
	return 0o600
}

// isDataDir tells a data directory from any other working directory.
func (p Place) isDataDir() bool {
	_, err := os.Stat(p.path("PG_VERSION"))
	return err == nil
}
