package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// setting is a line of a settings file that sets something.
type setting struct {
	name  string // lower case
	value string // as the server takes it: without quotes and escapes
	file  string
}

// parseLine reads a line as the server does (PostgreSQL:
// src/backend/utils/misc/guc-file.l). ok is false for a line that sets nothing
// or is none of its language.
func parseLine(line string) (name, value string, ok bool) {
	rest := strings.TrimLeft(line, " \t\r")
	end := 0
	for end < len(rest) && isNameByte(rest[end], end > 0) {
		end++
	}
	name, rest = strings.ToLower(rest[:end]), strings.TrimLeft(rest[end:], " \t\r")
	if name == "" {
		return "", "", false
	}
	if after, found := strings.CutPrefix(rest, "="); found {
		rest = strings.TrimLeft(after, " \t\r")
	}
	value, rest, ok = parseValue(rest)
	if !ok {
		return "", "", false
	}
	rest = strings.TrimLeft(rest, " \t\r\n")
	return name, value, rest == "" || rest[0] == '#'
}

// isNameByte tells the bytes of a name: letters, digits behind the first one,
// the underscore, whatever is not ASCII, and the dot of a qualified name.
func isNameByte(c byte, inside bool) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c >= 0x80:
		return true
	}
	return inside && (c >= '0' && c <= '9' || c == '.')
}

// parseValue reads a value: quoted, or bare up to a space or a comment.
func parseValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, "'") {
		end := strings.IndexAny(s, " \t\r\n#'=")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], end > 0
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\n':
			return "", "", false
		case c == '\'' && i+1 < len(s) && s[i+1] == '\'':
			b.WriteByte('\'')
			i++
		case c == '\'':
			return b.String(), s[i+1:], true
		case c == '\\':
			n := unescape(s[i+1:], &b)
			if n == 0 {
				return "", "", false
			}
			i += n
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// unescape reads what follows a backslash and returns how much of it
// (PostgreSQL: DeescapeQuotedString in guc-file.l).
func unescape(s string, into *strings.Builder) int {
	if s == "" || s[0] == '\n' {
		return 0
	}
	if at := strings.IndexByte("bfnrt", s[0]); at >= 0 {
		into.WriteByte("\b\f\n\r\t"[at])
		return 1
	}
	n, octal := 0, byte(0)
	for n < 3 && n < len(s) && s[n] >= '0' && s[n] <= '7' {
		octal = octal<<3 + s[n] - '0'
		n++
	}
	if n > 0 {
		into.WriteByte(octal)
		return n
	}
	into.WriteByte(s[0])
	return 1
}

// quote writes a value as a settings file wants it.
func quote(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`, "\n", `\n`, "\r", `\r`).Replace(v) + "'"
}

// maxDepth is how deep files may include each other (PostgreSQL:
// CONF_FILE_MAX_DEPTH).
const maxDepth = 10

// readSettings returns what a file and those that it includes set, in the
// server's order. A file that is included and not there is told, since the
// server would not start: the error matches fs.ErrNotExist.
func readSettings(path string, depth int) ([]setting, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: settings files include each other more than %d deep", path, maxDepth)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []setting
	for line := range strings.Lines(string(content)) {
		name, value, ok := parseLine(line)
		if !ok {
			continue
		}
		included, is, err := includes(filepath.Dir(path), name, value, depth)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if is {
			all = append(all, included...)
		} else {
			all = append(all, setting{name, value, path})
		}
	}
	return all, nil
}

// includes follows a directive that includes other files; is tells one. They
// are relative to the file that names them.
func includes(dir, name, value string, depth int) (all []setting, is bool, err error) {
	path := value
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	switch name {
	case "include":
		all, err = readSettings(path, depth+1)
	case "include_if_exists":
		if all, err = readSettings(path, depth+1); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	case "include_dir":
		all, err = includeDir(path, depth)
	default:
		return nil, false, nil
	}
	return all, true, err
}

// includeDir reads the files of a directory whose names end in .conf, in the
// order of their names (PostgreSQL: GetConfFilesInDir).
func includeDir(dir string, depth int) ([]setting, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []setting
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") || !strings.HasSuffix(e.Name(), ".conf") {
			continue
		}
		some, err := readSettings(filepath.Join(dir, e.Name()), depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}
