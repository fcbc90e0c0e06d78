package replication

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// The password file (PostgreSQL documentation, "The Password File";
// passwordFromFile in src/interfaces/libpq/fe-connect.c). It is read again at
// every connection, so that a password mended there is found without a
// restart.

// usablePassfile returns why libpq would not read a password file, "" when it
// would or when there is none.
func usablePassfile(path string, named bool) string {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
		return ""
	case err != nil:
		return fmt.Sprintf("password file %s is not used: %v", path, errors.Unwrap(err))
	case !info.Mode().IsRegular():
		return fmt.Sprintf("password file %s is not used: it is not a plain file", path)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Sprintf("password file %s is not used: group or others have access to it (want chmod 600)", path)
	}
	return ""
}

// findPassword returns the password of the first line that fits, "" for none.
// hosts are the names that the host goes by.
func findPassword(path string, hosts []string, port, database, user string) string {
	if usablePassfile(path, false) != "" {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // read only
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		line := strings.TrimSuffix(sc.Text(), "\r")
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields, password, ok := passfileLine(line)
		if !ok {
			continue
		}
		fits := func(field, value string) bool { return field == "*" || field == value }
		for _, host := range hosts {
			if fits(fields[0], host) && fits(fields[1], port) && fits(fields[2], database) && fits(fields[3], user) {
				return password
			}
		}
	}
	return ""
}

// passfileLine splits host:port:database:user:password. A backslash takes the
// next character as it is; the password is all that is left, colons too.
func passfileLine(line string) (fields [4]string, password string, ok bool) {
	var b strings.Builder
	n := 0
	for i := 0; i < len(line); i++ {
		switch {
		case line[i] == '\\' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
		case line[i] == ':' && n < 4:
			fields[n] = b.String()
			n++
			b.Reset()
		default:
			b.WriteByte(line[i])
		}
	}
	return fields, b.String(), n == 4
}
