package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNoPostgreSQL: no installation with initdb and postgres was found.
var ErrNoPostgreSQL = errors.New("no PostgreSQL server programs found")

// usualPlaces are patterns of the directories in which packages and
// PostgreSQL's own "make install" put the server programs.
var usualPlaces = [...]string{
	"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
	"/usr/pgsql-*/bin",          // the PGDG packages for Red Hat
	"/usr/local/pgsql/bin",      // make install
}

// Installation is the programs of one PostgreSQL.
type Installation struct {
	Bin     string // the directory of the programs, absolute, links resolved
	Major   int    // 15
	Version string // "15.18"
}

// String returns "PostgreSQL 15.18 in /usr/lib/postgresql/15/bin".
func (i Installation) String() string {
	return fmt.Sprintf("PostgreSQL %s in %s", i.Version, i.Bin)
}

// Program returns the path of one of its programs, whether it exists or not.
func (i Installation) Program(name string) string { return filepath.Join(i.Bin, name) }

// Has tells whether the installation has the program (pgbench and pg_waldump,
// say, are not everywhere).
func (i Installation) Has(name string) bool {
	info, err := os.Stat(i.Program(name))
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// Find returns the installations in dirs (directories of programs, or
// prefixes that have them in "bin"), then those in the usual places and on
// PATH, newest major version first; of several with one major version the
// first found comes first. An entry of dirs that holds none is an error:
// somebody asked for it. ErrNoPostgreSQL when there is none at all.
func Find(ctx context.Context, dirs []string) ([]Installation, error) {
	var found []Installation
	add := func(dir string) error {
		for _, bin := range []string{dir, filepath.Join(dir, "bin")} {
			i, err := inspect(ctx, bin)
			if errors.Is(err, ErrNoPostgreSQL) {
				continue
			}
			if err == nil && !slices.ContainsFunc(found, func(o Installation) bool { return o.Bin == i.Bin }) {
				found = append(found, i)
			}
			return err
		}
		return fmt.Errorf("looking for PostgreSQL in %s: %w", dir, ErrNoPostgreSQL)
	}
	for _, d := range dirs {
		if err := add(d); err != nil {
			return nil, err
		}
	}
	places, err := usual()
	if err != nil {
		return nil, err
	}
	for _, d := range places {
		// What lies about in the usual places need not work: a broken
		// installation there is passed over like one that is not there.
		if err := add(d); err != nil && ctx.Err() != nil {
			return nil, err
		}
	}
	if len(found) == 0 {
		return nil, ErrNoPostgreSQL
	}
	slices.SortStableFunc(found, func(a, b Installation) int { return cmp.Compare(b.Major, a.Major) })
	return found, nil
}

// usual lists the existing directories of the usual places and the directory
// of the initdb on PATH.
func usual() ([]string, error) {
	var dirs []string
	for _, pattern := range usualPlaces {
		m, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("looking for PostgreSQL in %s: %w", pattern, err)
		}
		dirs = append(dirs, m...)
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		// PATH often holds links (/usr/local/bin/initdb): the other programs
		// and the share directory are where the link points to.
		if real, err := filepath.EvalSymlinks(p); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	return dirs, nil
}

// inspect asks the programs in bin for their version. ErrNoPostgreSQL when
// initdb or postgres is not there.
func inspect(ctx context.Context, bin string) (Installation, error) {
	abs, err := filepath.Abs(bin)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return Installation{}, fmt.Errorf("%w: %w", ErrNoPostgreSQL, err)
	}
	i := Installation{Bin: abs}
	if !i.Has("initdb") || !i.Has("postgres") {
		return Installation{}, ErrNoPostgreSQL
	}
	out, err := exec.CommandContext(ctx, i.Program("postgres"), "--version").Output()
	if err != nil {
		return Installation{}, fmt.Errorf("asking %s for its version: %w", i.Program("postgres"), err)
	}
	i.Version, i.Major, err = parseVersion(string(out))
	if err != nil {
		return Installation{}, fmt.Errorf("asking %s for its version: %w", i.Program("postgres"), err)
	}
	return i, nil
}

// parseVersion reads what "postgres --version" prints:
// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "... 18beta1".
func parseVersion(s string) (version string, major int, err error) {
	fields := strings.Fields(s)
	if len(fields) < 3 || fields[1] != "(PostgreSQL)" {
		return "", 0, fmt.Errorf("unexpected answer %q", strings.TrimSpace(s))
	}
	version = fields[2]
	digits := version
	if n := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' }); n >= 0 {
		digits = version[:n]
	}
	major, err = strconv.Atoi(digits)
	if err != nil {
		return "", 0, fmt.Errorf("unexpected version %q", version)
	}
	return version, major, nil
}
