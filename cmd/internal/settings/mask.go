package settings

import (
	"net/url"
	"regexp"
	"strings"
)

// Masked stands in the place of a secret.
const Masked = "********"

// MaskDSN returns a connection string (a URI, or "key=value …") without its
// passwords. What cannot be read for certain is not shown at all.
func MaskDSN(dsn string) string {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		dsn = MaskURL(dsn) // and below, for what stands in a place of its own
		if dsn == Masked {
			return dsn
		}
		return passwordWord.ReplaceAllStringFunc(dsn, func(s string) string {
			if strings.Contains(s, Masked) {
				return s // done already, and more may follow it
			}
			return passwordWord.ReplaceAllString(s, "${1}"+Masked)
		})
	}
	if strings.Contains(dsn, "://") {
		return Masked
	}
	return passwordWord.ReplaceAllString(dsn, "${1}"+Masked)
}

// passwordWord finds password and sslpassword of libpq's key=value form, with
// a value that may be quoted; a quote that is not closed hides the rest
// (PostgreSQL: conninfo_parse in src/interfaces/libpq/fe-connect.c).
var passwordWord = regexp.MustCompile(`(?is)(\b[a-z_]*(?:password|passwd|secret|token)[a-z_]*\s*=\s*)('(?:[^'\\]|\\.)*(?:'|$)|(?:[^\s\\]|\\.)+)`)

// MaskURL returns a URL without password and without the values of query
// keys that speak of a secret.
func MaskURL(raw string) string {
	if raw == "" || !strings.ContainsAny(raw, "@?") {
		return raw // nothing in it can hold one
	}
	u, err := url.Parse(raw)
	if err != nil {
		return Masked
	}
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return Masked
	}
	// The text is cut by hand, not put together again by url.URL: what is
	// shown must be what was written, secrets apart.
	rest, fragment, hasFragment := strings.Cut(rest, "#")
	rest, query, hasQuery := strings.Cut(rest, "?")
	authority, path, hasPath := strings.Cut(rest, "/")
	if at := strings.LastIndex(authority, "@"); at >= 0 {
		user, _, hasPassword := strings.Cut(authority[:at], ":")
		if hasPassword {
			user += ":" + Masked
		}
		authority = user + authority[at:]
	} else if u.User != nil {
		return Masked
	}
	if strings.Contains(path, "@") { // a password with a slash in it
		return Masked
	}
	out := scheme + "://" + authority
	if hasPath {
		out += "/" + path
	}
	if hasQuery {
		pairs := strings.Split(query, "&")
		for i, pair := range pairs {
			key, _, ok := strings.Cut(pair, "=")
			plain, err := url.QueryUnescape(key)
			if ok && (err != nil || secretKey.MatchString(plain)) {
				pairs[i] = key + "=" + Masked
			}
		}
		out += "?" + strings.Join(pairs, "&")
	}
	if hasFragment && fragment != "" {
		out += "#" + Masked
	}
	return out
}

var secretKey = regexp.MustCompile(`(?i)pass|secret|token|access_?key|credential`)
