package pgreceivewal

import (
	"maps"
	"testing"
)

// The texts were printed by the pg_receivewal of PostgreSQL 15, 17 and 18.
func TestCheckConnection(t *testing.T) {
	for _, c := range []struct {
		connString, port string
		want             string
	}{
		{"", "", ""},
		{"", "5432", ""},
		{"", " 5432 ", ""},
		{"", "+05432", ""},
		{"", "1", ""},
		{"", "65535", ""},
		{"", "5432,abc", ""},
		{"", "abc", `invalid integer value "abc" for connection option "port"`},
		{"", "5432x", `invalid integer value "5432x" for connection option "port"`},
		{"", " ", `invalid integer value " " for connection option "port"`},
		{"", "0x10", `invalid integer value "0x10" for connection option "port"`},
		{"", "2147483648", `invalid integer value "2147483648" for connection option "port"`},
		{"", "99999999999999999999", `invalid integer value "99999999999999999999" for connection option "port"`},
		{"", "0", `invalid port number: "0"`},
		{"", "-5", `invalid port number: "-5"`},
		{"", "65536", `invalid port number: "65536"`},
		{"port=abc", "", `invalid integer value "abc" for connection option "port"`},
		{"port=abc", "5432", ""},
		{"port=5432 port = 0", "", `invalid port number: "0"`},
		{"port=5432", "abc", `invalid integer value "abc" for connection option "port"`},
		{"host=h user='a b' requiressl=1 oauth_scope=", "", ""},
		{"  ", "", ""},
		{"word", "", `missing "=" after "word" in connection info string`},
		{"word", "abc", `missing "=" after "word" in connection info string`},
		{"host=h word", "", `missing "=" after "word" in connection info string`},
		{"two words", "", `missing "=" after "two" in connection info string`},
		{"host = 'h", "", "unterminated quoted string in connection info string"},
		{`host = 'h\'`, "", "unterminated quoted string in connection info string"},
		{"bad=1", "", `invalid connection option "bad"`},
		{"HOST=h", "", `invalid connection option "HOST"`},
		{"=h", "", `invalid connection option ""`},
		{"bad=1 word", "", `invalid connection option "bad"`},
		{"bad='1", "", "unterminated quoted string in connection info string"},
		{"postgres://h:x/?bad=1", "", ""},
		{"postgresql://h", "x", `invalid integer value "x" for connection option "port"`},
	} {
		if got := text((Settings{ConnString: c.connString, Port: c.port}).CheckConnection()); got != c.want {
			t.Errorf("%q, %q: got %q; want %q", c.connString, c.port, got, c.want)
		}
	}
}

func TestParseConnString(t *testing.T) {
	for s, want := range map[string]map[string]string{
		`host=a port = 1`:           {"host": "a", "port": "1"},
		"\n host\t=\va\fport=1\r\n": {"host": "a", "port": "1"},
		`host='a b'port='' user=`:   {"host": "a b", "port": "", "user": ""},
		`host=a\ b\\ user='\'\\'`:   {"host": `a b\`, "user": `'\`},
		`host=a'b' user=\`:          {"host": "a'b'", "user": ""},
		`host=a=b`:                  {"host": "a=b"},
		`host=a host=b`:             {"host": "b"},
		`host= port=1`:              {"host": "port=1"},
	} {
		if got, err := parseConnString(s); err != nil || !maps.Equal(got, want) {
			t.Errorf("%q: got %q, %v; want %q", s, got, err, want)
		}
	}
}
