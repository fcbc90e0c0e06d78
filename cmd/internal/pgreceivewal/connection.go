package pgreceivewal

import (
	"math"
	"slices"
	"strings"
)

// CheckConnection returns what libpq refuses about the connection before it
// connects, in libpq's words, or nil: a connection string that cannot be read
// or names an option that does not exist, and a port that is none. It belongs
// behind the opening of the directory, where the original finds such mistakes.
// It is no complete check: of a URI only the port beside it is looked at, a
// list of ports depends on the list of hosts, and what the environment says
// was not asked for; these are left to the connection and its own words. The
// only error is *Error.
func (s Settings) CheckConnection() error {
	port := s.Port
	if !isURI(s.ConnString) {
		options, err := parseConnString(s.ConnString)
		if err != nil {
			return err
		}
		if port == "" {
			port = options["port"]
		}
	}
	return checkPort(port)
}

func checkPort(port string) error {
	if port == "" || strings.Contains(port, ",") {
		return nil
	}
	n, ok := integer(port)
	switch {
	case !ok || strings.Trim(port, spaces) == "" || n > math.MaxInt32 || n < math.MinInt32:
		return fatal(`invalid integer value "%s" for connection option "port"`, port)
	case n < 1 || n > math.MaxUint16:
		return fatal(`invalid port number: "%s"`, port)
	}
	return nil
}

func isURI(s string) bool {
	return strings.HasPrefix(s, "postgresql://") || strings.HasPrefix(s, "postgres://")
}

// parseConnString reads a string of the form "name = value name='value'"
// (PostgreSQL: conninfo_parse in src/interfaces/libpq/fe-connect.c).
func parseConnString(s string) (map[string]string, error) {
	options := map[string]string{}
	for s = trimSpaces(s); s != ""; s = trimSpaces(s) {
		end := strings.IndexAny(s, "="+spaces)
		if end < 0 {
			end = len(s)
		}
		name, rest := s[:end], trimSpaces(s[end:])
		if rest == "" || rest[0] != '=' {
			return nil, fatal(`missing "=" after "%s" in connection info string`, name)
		}
		value, rest, ok := connValue(trimSpaces(rest[1:]))
		if !ok {
			return nil, fatal("unterminated quoted string in connection info string")
		}
		if !slices.Contains(strings.Fields(connOptions), name) {
			return nil, fatal(`invalid connection option "%s"`, name)
		}
		options[name], s = value, rest
	}
	return options, nil
}

func trimSpaces(s string) string { return strings.TrimLeft(s, spaces) }

// connValue reads the value that s begins with: up to white space or, when it
// begins with a single quote, up to the next one. A backslash takes the
// meaning from what follows it. ok is false when the quote has no end.
func connValue(s string) (value, rest string, ok bool) {
	quoted := s != "" && s[0] == '\''
	if quoted {
		s = s[1:]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case quoted && c == '\'', !quoted && strings.IndexByte(spaces, c) >= 0:
			return b.String(), s[i+1:], true
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", !quoted
}

// connOptions are the options that libpq 18 knows (PQconninfoOptions in
// src/interfaces/libpq/fe-connect.c), with requiressl, which it still takes.
const connOptions = `service user password passfile channel_binding connect_timeout dbname host hostaddr port client_encoding
	options application_name fallback_application_name keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout
	sslmode sslnegotiation sslcompression sslcert sslkey sslcertmode sslpassword sslrootcert sslcrl sslcrldir sslsni requirepeer require_auth
	min_protocol_version max_protocol_version ssl_min_protocol_version ssl_max_protocol_version gssencmode krbsrvname gsslib gssdelegation
	replication target_session_attrs load_balance_hosts scram_client_key scram_server_key sslkeylogfile
	oauth_issuer oauth_client_id oauth_client_secret oauth_scope requiressl`
