package unpack

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/walferry/walferry/archive"
)

// Tablespace is a tablespace of a backup.
type Tablespace struct {
	OID  uint32
	From string // where it was; relative when it lies in the data directory itself
	To   string // where it goes: mapped, or From
}

// inPlace tells a tablespace that is a directory of pg_tblspc itself, as
// PostgreSQL makes them for tests (allow_in_place_tablespaces).
func (t Tablespace) inPlace() bool { return !filepath.IsAbs(t.From) }

// Tablespaces returns where the tablespaces of a backup go, by ascending OID,
// when it is unpacked into dir. mapping says new places for old ones, all of
// them absolute. An old place at which the backup has no tablespace is an
// error, and so are places that overlap.
func Tablespaces(b archive.Backup, dir string, mapping map[string]string) ([]Tablespace, error) {
	to := map[string]string{}
	for from, into := range mapping {
		for _, p := range []string{from, into} {
			if !filepath.IsAbs(p) || strings.Contains(p, "\x00") {
				return nil, fmt.Errorf("tablespace mapping %s=%s: %q is no absolute path", from, into, p)
			}
		}
		to[filepath.Clean(from)] = filepath.Clean(into)
	}
	var all []Tablespace
	used := map[string]bool{}
	if b.Sentinel.Spec != nil {
		locations := b.Sentinel.Spec.Locations
		for _, oid := range slices.Sorted(maps.Keys(locations)) {
			t := Tablespace{OID: oid, From: locations[oid], To: locations[oid]}
			switch {
			case t.inPlace():
				if t.From != fmt.Sprintf("%s/%d", tablespacesDir, oid) {
					return nil, fmt.Errorf("%w: tablespace %d was at %q, which is no place", ErrDamaged, oid, t.From)
				}
			case to[filepath.Clean(t.From)] != "":
				t.To = to[filepath.Clean(t.From)]
				used[filepath.Clean(t.From)] = true
			default:
				t.To = filepath.Clean(t.From)
			}
			all = append(all, t)
		}
	}
	for from := range to {
		if !used[from] {
			return nil, fmt.Errorf("tablespace mapping of %s: the backup has no tablespace there%s", from, listing(all))
		}
	}
	return all, apart(dir, all)
}

// listing names the places of tablespaces.
func listing(all []Tablespace) string {
	if len(all) == 0 {
		return ", and no other"
	}
	var places []string
	for _, t := range all {
		places = append(places, t.From)
	}
	return ": it has " + strings.Join(places, ", ")
}

// apart makes sure that no place lies in another.
func apart(dir string, all []Tablespace) error {
	places := []string{dir}
	for _, t := range all {
		if t.inPlace() {
			continue
		}
		for _, p := range places {
			if within(t.To, p) || within(p, t.To) {
				return fmt.Errorf("tablespace %d would go to %s, which overlaps with %s: map it to another place", t.OID, t.To, p)
			}
		}
		places = append(places, t.To)
	}
	return nil
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// rewriteMap makes tablespace_map say where the tablespaces are now: at its
// first start the server makes the links anew by it (PostgreSQL:
// read_tablespace_map in src/backend/access/transam/xlogrecovery.c). Without
// mapped ones it stays as it is. Every tablespace that it names must be known.
func (t *tree) rewriteMap(all []Tablespace) error {
	s := spot{t.data, mapName}
	content, err := t.data.root.ReadFile(mapName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return describe("reading", s, err)
	}
	changed, err := remap(content, all)
	if err != nil {
		return err
	}
	if bytes.Equal(changed, content) {
		return nil
	}
	return t.write(mapName, changed)
}

// remap returns the content of a tablespace_map with the places of all. A line
// is an OID, a space, and a path in which a backslash stands before line ends
// and backslashes (PostgreSQL: do_pg_backup_start in
// src/backend/access/transam/xlog.c).
func remap(content []byte, all []Tablespace) ([]byte, error) {
	escape := strings.NewReplacer(`\`, `\\`, "\n", "\\\n", "\r", "\\\r")
	var out []byte
	for len(content) > 0 {
		end := 0
		for end < len(content) && content[end] != '\n' && content[end] != '\r' {
			if content[end] == '\\' {
				end++
			}
			end++
		}
		line := content[:min(end, len(content))]
		rest := content[min(end+1, len(content)):]
		kept := content[:len(content)-len(rest)]
		content = rest
		if len(line) == 0 {
			out = append(out, kept...)
			continue
		}
		name, _, ok := bytes.Cut(line, []byte(" "))
		oid, err := parseOID(string(name))
		i := slices.IndexFunc(all, func(t Tablespace) bool { return t.OID == oid })
		if !ok || err != nil || i < 0 {
			return nil, fmt.Errorf("%w: its %s names a tablespace that its sentinel does not: %q", ErrDamaged, mapName, line)
		}
		if t := all[i]; t.To != filepath.Clean(t.From) && !t.inPlace() {
			kept = fmt.Appendf(nil, "%d %s\n", oid, escape.Replace(t.To))
		}
		out = append(out, kept...)
	}
	return out, nil
}
