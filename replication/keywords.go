package replication

import "strings"

// What becomes of a keyword of libpq (PostgreSQL 18, chapter "Parameter Key
// Words"; src/interfaces/libpq/fe-connect.c, PQconninfoOptions).
type handling uint8

const (
	ours    handling = iota // acted on in this package
	passed                  // given to pgconn, which acts as libpq does
	ignored                 // asks for nothing that a replication client could do
	refused                 // would be silently without effect, or is a promise that is not kept
)

type keyword struct {
	name     string
	env      string // the environment variable, if it has one
	handling handling
	secret   bool
	values   string // the values there are, separated by |; "" for any
	// refused: values that ask for nothing, separated by |, and why the
	// others are refused.
	harmless string
	why      string
}

// keywords lists every keyword of libpq 13 to 18.
func keywords() []keyword {
	const noGSS = "GSSAPI is not built in"
	const noOAuth = "OAuth is not built in: use a password or a client certificate"
	return []keyword{
		{name: "service", env: "PGSERVICE"},
		{name: "servicefile", env: "PGSERVICEFILE"},
		{name: "host", env: "PGHOST"},
		{name: "hostaddr", env: "PGHOSTADDR"},
		{name: "port", env: "PGPORT"},
		{name: "dbname", env: "PGDATABASE"},
		{name: "user", env: "PGUSER"},
		{name: "password", env: "PGPASSWORD", secret: true},
		{name: "passfile", env: "PGPASSFILE"},
		{name: "connect_timeout", env: "PGCONNECT_TIMEOUT"},
		{name: "application_name", env: "PGAPPNAME"},
		{name: "fallback_application_name"},
		{name: "options", env: "PGOPTIONS"},
		{name: "keepalives", values: "0|1"},
		{name: "keepalives_idle"},
		{name: "keepalives_interval"},
		{name: "keepalives_count"},
		{name: "tcp_user_timeout"},
		{name: "target_session_attrs", env: "PGTARGETSESSIONATTRS", values: "any|read-write|read-only|primary|standby|prefer-standby"},
		{name: "load_balance_hosts", env: "PGLOADBALANCEHOSTS", values: "disable|random"},
		{name: "ssl_min_protocol_version", env: "PGSSLMINPROTOCOLVERSION", values: "TLSv1|TLSv1.1|TLSv1.2|TLSv1.3"},
		{name: "ssl_max_protocol_version", env: "PGSSLMAXPROTOCOLVERSION", values: "TLSv1|TLSv1.1|TLSv1.2|TLSv1.3"},

		{name: "sslmode", env: "PGSSLMODE", handling: passed, values: "disable|allow|prefer|require|verify-ca|verify-full"},
		{name: "sslnegotiation", env: "PGSSLNEGOTIATION", handling: passed, values: "postgres|direct"},
		{name: "sslcert", env: "PGSSLCERT", handling: passed},
		{name: "sslkey", env: "PGSSLKEY", handling: passed},
		{name: "sslcertmode", env: "PGSSLCERTMODE", handling: passed, values: "disable|allow|require"},
		{name: "sslpassword", handling: passed, secret: true},
		{name: "sslrootcert", env: "PGSSLROOTCERT", handling: passed},
		{name: "sslsni", env: "PGSSLSNI", handling: passed, values: "0|1"},
		{name: "channel_binding", env: "PGCHANNELBINDING", handling: passed, values: "disable|prefer|require"},
		{name: "require_auth", env: "PGREQUIREAUTH", handling: passed},
		{name: "min_protocol_version", env: "PGMINPROTOCOLVERSION", handling: passed, values: "3.0|3.2|latest"},
		{name: "max_protocol_version", env: "PGMAXPROTOCOLVERSION", handling: passed, values: "3.0|3.2|latest"},

		// The connection says replication=true whatever stands here, as
		// pg_receivewal's does; no text is sent that had an encoding.
		{name: "replication", handling: ignored},
		{name: "client_encoding", env: "PGCLIENTENCODING", handling: ignored},
		{name: "sslcompression", env: "PGSSLCOMPRESSION", handling: ignored},
		{name: "krbsrvname", env: "PGKRBSRVNAME", handling: ignored},
		{name: "gsslib", env: "PGGSSLIB", handling: ignored},
		{name: "gssdelegation", env: "PGGSSDELEGATION", handling: ignored},
		{name: "authtype", handling: ignored},
		{name: "tty", handling: ignored},

		{name: "gssencmode", env: "PGGSSENCMODE", handling: refused, values: "disable|prefer|require", harmless: "disable|prefer", why: noGSS + ": use sslmode"},
		{name: "sslcrl", env: "PGSSLCRL", handling: refused, why: "certificate revocation lists are not checked"},
		{name: "sslcrldir", env: "PGSSLCRLDIR", handling: refused, why: "certificate revocation lists are not checked"},
		{name: "requirepeer", env: "PGREQUIREPEER", handling: refused, why: "the server's operating system user is not checked"},
		{name: "sslkeylogfile", handling: refused, why: "TLS keys are never written to a file"},
		{name: "scram_client_key", handling: refused, secret: true, why: "SCRAM keys are not supported: use a password"},
		{name: "scram_server_key", handling: refused, secret: true, why: "SCRAM keys are not supported: use a password"},
		{name: "oauth_issuer", handling: refused, why: noOAuth},
		{name: "oauth_client_id", handling: refused, why: noOAuth},
		{name: "oauth_client_secret", handling: refused, secret: true, why: noOAuth},
		{name: "oauth_scope", handling: refused, why: noOAuth},
	}
}

func lookupKeyword(name string) (keyword, bool) {
	for _, k := range keywords() {
		if k.name == name {
			return k, true
		}
	}
	return keyword{}, false
}

// allows tells whether a value is one of a list separated by |.
func allows(list, value string) bool {
	for v := range strings.SplitSeq(list, "|") {
		if v == value {
			return true
		}
	}
	return false
}

// choices writes a list separated by | for a person: "a, b or c".
func choices(list string) string {
	v := strings.Split(list, "|")
	if len(v) == 1 {
		return v[0]
	}
	return strings.Join(v[:len(v)-1], ", ") + " or " + v[len(v)-1]
}

// nearestKeyword returns the keyword that a misspelt one may have meant, or "".
func nearestKeyword(word string) string {
	best, at := "", 3 // more than two slips is another word
	for _, k := range keywords() {
		if d := distance(strings.ToLower(word), k.name); d < at {
			best, at = k.name, d
		}
	}
	return best
}

// distance counts the letters to add, take away or change between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
