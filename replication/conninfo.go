package replication

import (
	"errors"
	"fmt"
	"strings"
)

// Connection strings, as libpq reads them (src/interfaces/libpq/fe-connect.c:
// conninfo_parse, conninfo_uri_parse_options). They are read here and not by
// pgconn because every keyword has to be accounted for, with the place where
// it came from, and because a message must never quote a piece of a string
// that holds a password: a text that does not parse cannot be told apart from
// a secret. So errors name known keywords and places, and quote nothing else.

// isURI tells a connection URI by its beginning.
func isURI(s string) bool {
	return strings.HasPrefix(s, "postgresql://") || strings.HasPrefix(s, "postgres://")
}

// parseDSN reads what stands behind -d: a URI, a keyword=value string, or a
// bare database name. Keywords come out as written; what they mean is decided
// later.
func parseDSN(s string) (map[string]string, error) {
	if strings.IndexByte(s, 0) >= 0 {
		return nil, errors.New("the connection string holds a NUL byte")
	}
	switch {
	case strings.TrimSpace(s) == "":
		return nil, nil
	case isURI(s):
		return parseURI(s)
	case strings.Contains(s, "://"):
		return nil, errors.New("the connection string looks like a URI but begins neither with postgresql:// nor with postgres://")
	case strings.Contains(s, "="):
		return parseKeywords(s)
	}
	return map[string]string{"dbname": s}, nil
}

const spaces = " \t\n\r\v\f"

// parseKeywords reads keyword=value pairs; values with spaces stand in single
// quotes, a backslash takes the next character as it is.
func parseKeywords(s string) (map[string]string, error) {
	settings := map[string]string{}
	secret := false
	rest := strings.TrimLeft(s, spaces)
	for rest != "" {
		at := len(s) - len(rest) + 1
		end := strings.IndexAny(rest, "="+spaces)
		if end < 0 {
			end = len(rest)
		}
		key := rest[:end]
		rest = strings.TrimLeft(rest[end:], spaces)
		if !strings.HasPrefix(rest, "=") || key == "" {
			return nil, fmt.Errorf("missing = behind the word that begins at character %d of the connection string (a value with spaces stands in single quotes)", at)
		}
		if _, known := lookupKeyword(key); !known && secret {
			// A password with a space and a = in it would look like this.
			return nil, fmt.Errorf("unknown keyword at character %d of the connection string (a value with spaces stands in single quotes)", at)
		}
		rest = strings.TrimLeft(rest[1:], spaces)
		value, tail, ok := keywordValue(rest)
		if !ok {
			return nil, fmt.Errorf("missing closing quote of the value of %s in the connection string", key)
		}
		rest = strings.TrimLeft(tail, spaces)
		settings[key] = value
		k, _ := lookupKeyword(key)
		secret = secret || k.secret
	}
	return settings, nil
}

// keywordValue takes one value from the front of s.
func keywordValue(s string) (value, rest string, ok bool) {
	var b strings.Builder
	quoted := strings.HasPrefix(s, "'")
	i := 0
	if quoted {
		i = 1
	}
	for ; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\'':
			return b.String(), s[i+1:], true
		case !quoted && strings.IndexByte(spaces, s[i]) >= 0:
			return b.String(), s[i:], true
		case s[i] == '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), "", !quoted
}

// parseURI reads postgresql://user:password@host:port,host:port/dbname?key=value&...
func parseURI(s string) (map[string]string, error) {
	_, p, _ := strings.Cut(s, "://")
	settings := map[string]string{}
	put := func(key, what, raw string) error {
		v, err := uriDecode(raw)
		if err != nil {
			return fmt.Errorf("%s in the URI: %w", what, err)
		}
		settings[key] = v
		return nil
	}
	// Only a slash ends the search for the credentials' @, as in libpq.
	if i := strings.IndexAny(p, "@/"); i >= 0 && p[i] == '@' {
		user, password, _ := strings.Cut(p[:i], ":")
		p = p[i+1:]
		if user != "" {
			if err := put("user", "the user", user); err != nil {
				return nil, err
			}
		}
		if password != "" {
			if err := put("password", "the password", password); err != nil {
				return nil, err
			}
		}
	}
	netloc, query, hasQuery := strings.Cut(p, "?")
	netloc, dbname, _ := strings.Cut(netloc, "/")
	if strings.Contains(p, "@") && !(hasQuery && !strings.Contains(netloc+dbname, "@")) {
		return nil, errors.New("the URI has a / or a second @ before the host: in a user or password write %2F for / and %40 for @")
	}
	hosts, ports, err := uriHosts(netloc)
	if err != nil {
		return nil, err
	}
	if strings.Trim(hosts, ",") != "" {
		if err := put("host", "the host", hosts); err != nil {
			return nil, err
		}
	}
	if ports != "" {
		if err := put("port", "the port", ports); err != nil {
			return nil, err
		}
	}
	if dbname != "" {
		if err := put("dbname", "the database name", dbname); err != nil {
			return nil, err
		}
	}
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" && !strings.Contains(query, "&") {
			break
		}
		rawKey, raw, ok := strings.Cut(pair, "=")
		key, err := uriDecode(rawKey)
		if !ok || err != nil || key == "" || strings.Contains(raw, "=") {
			return nil, errors.New("the URI's query is not key=value&key=value (write %3D for = and %26 for & in a value)")
		}
		if _, known := lookupKeyword(key); !known && key != "ssl" && strings.Contains(p, "@") {
			// A password with a / and a ? in it would look like this.
			return nil, errors.New("the URI has an unknown key in its query, and an @ behind it: in a user or password write %2F for / and %3F for ?")
		}
		if err := put(key, "the value of "+quoteKeyword(key), raw); err != nil {
			return nil, err
		}
	}
	if settings["ssl"] == "true" { // JDBC's spelling, which libpq takes
		delete(settings, "ssl")
		settings["sslmode"] = "require"
	}
	return settings, nil
}

// quoteKeyword names a keyword in an error: only a known one.
func quoteKeyword(key string) string {
	if _, ok := lookupKeyword(key); ok {
		return key
	}
	return "a key"
}

// uriHosts splits host:port,host:port into the lists that the keywords host
// and port have. An IPv6 address stands in brackets.
func uriHosts(s string) (hosts, ports string, err error) {
	var h, p []string
	given := false
	for s != "" || len(h) == 0 {
		host := ""
		if strings.HasPrefix(s, "[") {
			end := strings.IndexByte(s, ']')
			if end < 2 {
				return "", "", errors.New("the URI has an IPv6 address without its closing bracket, or an empty one")
			}
			host, s = s[1:end], s[end+1:]
			if s != "" && s[0] != ':' && s[0] != ',' {
				return "", "", errors.New("the URI has neither a port nor the end of the host behind an IPv6 address")
			}
		} else {
			end := strings.IndexAny(s, ":,")
			if end < 0 {
				end = len(s)
			}
			host, s = s[:end], s[end:]
		}
		port := ""
		if strings.HasPrefix(s, ":") {
			port, s, _ = strings.Cut(s[1:], ",")
			p = append(p, port)
			given = given || port != ""
			h = append(h, host)
			continue
		}
		h, p = append(h, host), append(p, "")
		if s == "," {
			h, p = append(h, ""), append(p, "")
		}
		s = strings.TrimPrefix(s, ",")
	}
	if given || len(p) > 1 {
		ports = strings.Join(p, ",")
	}
	return strings.Join(h, ","), ports, nil
}

// uriDecode takes percent signs for what they stand for.
func uriDecode(raw string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == ' ':
			return "", errors.New("a space (write %20)")
		case c != '%':
			b.WriteByte(c)
		default:
			if i+2 >= len(raw) {
				return "", errors.New("a % without two hexadecimal digits (write %25 for %)")
			}
			hi, ok1 := unhex(raw[i+1])
			lo, ok2 := unhex(raw[i+2])
			if !ok1 || !ok2 || hi<<4|lo == 0 {
				return "", errors.New("a % without two hexadecimal digits (write %25 for %)")
			}
			b.WriteByte(hi<<4 | lo)
			i += 2
		}
	}
	return b.String(), nil
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// quoteValue writes a value for a keyword=value string.
func quoteValue(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'"
}
