package replication

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// clean gives a test an environment without any setting of libpq, and a home
// directory of its own, which it returns.
func clean(t *testing.T) string {
	t.Helper()
	for _, k := range keywords() {
		if k.env != "" {
			t.Setenv(k.env, "")
		}
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("PGSYSCONFDIR", filepath.Join(home, "sys"))
	return home
}

func write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigPrecedence(t *testing.T) {
	home := clean(t)
	write(t, filepath.Join(home, ".pg_service.conf"), "[prod]\nhost=service\nport=1001\nuser=service\ndbname=service\n[other]\nport=9\n", 0o600)
	t.Setenv("PGHOST", "env")
	t.Setenv("PGPORT", "1000")
	t.Setenv("PGUSER", "env")
	t.Setenv("PGAPPNAME", "env")
	for _, c := range []struct {
		p    Params
		want string
		db   string
	}{
		{Params{}, "env:1000 as user env", "postgres"},
		{Params{DSN: "service=prod"}, "service:1001 as user service", "service"},
		{Params{DSN: "service=prod port=1002"}, "service:1002 as user service", "service"},
		{Params{DSN: "service=prod port=1002", Port: "1003"}, "service:1003 as user service", "service"},
		{Params{DSN: "service=prod", Host: "flag", User: "flag", Database: "flag"}, "flag:1001 as user flag", "flag"},
		{Params{DSN: "mydb"}, "env:1000 as user env", "mydb"},
		{Params{DSN: "postgresql://u:secret@h1,h2:5/db?connect_timeout=3"}, "h1:5432, h2:5 as user u", "db"},
		{Params{DSN: "postgres:///db?host=/run/pg&user=x"}, "/run/pg/.s.PGSQL.1000 as user x", "db"},
		{Params{DSN: "postgresql://[::1]:77/"}, "[::1]:77 as user env", "postgres"},
		{Params{DSN: "postgresql://[::1],[fe80::1%25eth0]:6"}, "[::1]:5432, [fe80::1%eth0]:6 as user env", "postgres"},
		{Params{DSN: "postgresql://"}, "env:1000 as user env", "postgres"},
		{Params{DSN: `host='a b\'c' user = 'x y'`, Host: "h"}, "h:1000 as user x y", "postgres"},
		{Params{DSN: "host=a,b,c"}, "a:1000, b:1000, c:1000 as user env", "postgres"},
		{Params{DSN: "host=a,b port=1,2"}, "a:1, b:2 as user env", "postgres"},
		{Params{DSN: "host=a,b port=1,"}, "a:1, b:5432 as user env", "postgres"},
		{Params{DSN: "host=a hostaddr=10.0.0.1"}, "a:1000 (10.0.0.1) as user env", "postgres"},
		{Params{DSN: "user=ünï@x host=h"}, "h:1000 as user ünï@x", "postgres"},
	} {
		cfg, err := ParseConfig(c.p)
		if err != nil {
			t.Errorf("%+v: %v", c.p, err)
			continue
		}
		if cfg.String() != c.want || cfg.database != c.db || cfg.ApplicationName() != "env" {
			t.Errorf("%+v: %s, database %s, %s; want %s, %s", c.p, cfg, cfg.database, cfg.ApplicationName(), c.want, c.db)
		}
	}
	t.Setenv("PGSERVICE", "prod")
	t.Setenv("PGAPPNAME", "")
	cfg, err := ParseConfig(Params{ApplicationName: "walferry"})
	if err != nil || cfg.String() != "service:1001 as user service" || cfg.ApplicationName() != "walferry" {
		t.Errorf("PGSERVICE: %v, %v", cfg, err)
	}
	write(t, filepath.Join(home, "sys", "pg_service.conf"), "[sys]\nhost=system\n", 0o644)
	if cfg, err := ParseConfig(Params{DSN: "service=sys"}); err != nil || cfg.hosts[0].name != "system" {
		t.Errorf("the system's service file: %v, %v", cfg, err)
	}
	other := write(t, filepath.Join(home, "svc"), "[prod]\nhost=named\n", 0o644)
	t.Setenv("PGSERVICEFILE", other)
	if cfg, err := ParseConfig(Params{}); err != nil || cfg.hosts[0].name != "named" {
		t.Errorf("PGSERVICEFILE: %v, %v", cfg, err)
	}
}

// Whatever is wrong: one line that says what, where from and what would be
// right, without the secret that stands beside it.
func TestConfigErrors(t *testing.T) {
	home := clean(t)
	loose := write(t, filepath.Join(home, "loose.key"), "key", 0o644)
	write(t, filepath.Join(home, ".pg_service.conf"), "[bad]\nprt=1\n[nested]\nservice=bad\n", 0o600)
	for _, c := range []struct {
		dsn  string
		env  [2]string
		want []string
	}{
		{dsn: "hots=a", want: []string{`unknown keyword "hots"`, "-d", "host"}},
		{dsn: "password=SECRET wal_level=x", want: []string{"unknown keyword", "character 17"}},
		{dsn: "password=my SECRET host=h", want: []string{"missing =", "character 13", "quotes"}},
		{dsn: "password='SECRET", want: []string{"closing quote", "password"}},
		{dsn: "host=h password=a SECRET=b", want: []string{"unknown keyword", "quotes"}},
		{dsn: "=SECRET", want: []string{"missing ="}},
		{dsn: "host=h port=SECRET", want: []string{"port", "1 to 65535"}},
		{dsn: "postgresql://u:p@SECRET@h/db", want: []string{"%40"}},
		{dsn: "postgresql://u:p/SECRET@h/db", want: []string{"%2F"}},
		{dsn: "postgresql://u:p/a?SECRET@h/db", want: []string{"query"}},
		{dsn: "postgresql://u:p/a?SECRET=1@h/db", want: []string{"%3F"}},
		{dsn: "postgresql://u:SECRET%zz@h/db", want: []string{"the password", "%25"}},
		{dsn: "postgresql://u:SECRET@h:x/db", want: []string{"port"}},
		{dsn: "postgresql://u:SECRET@h/db?sslmode", want: []string{"query"}},
		{dsn: "postgresql://u:SECRET@h/db?sslmod=require", want: []string{`"sslmod"`, "sslmode"}},
		{dsn: "postgresql://u:SECRET@[::1/db", want: []string{"bracket"}},
		{dsn: "postgresql://u:SECRET@[::1]x/db", want: []string{"IPv6"}},
		{dsn: "postgresql://u:SECRET@h /db", want: []string{"%20"}},
		{dsn: "mysql://u:SECRET@h/db", want: []string{"postgresql://"}},
		{dsn: "host=h\x00SECRET", want: []string{"NUL"}},
		{dsn: "sslmode=on", want: []string{`sslmode "on"`, "-d", "verify-full"}},
		{env: [2]string{"PGSSLMODE", "yes"}, want: []string{`"yes"`, "PGSSLMODE", "verify-full"}},
		{env: [2]string{"PGPORT", "54x"}, want: []string{`"54x"`, "PGPORT", "65535"}},
		{env: [2]string{"PGPORT", "0"}, want: []string{`"0"`, "PGPORT", "65535"}},
		{env: [2]string{"PGTARGETSESSIONATTRS", "master"}, want: []string{`"master"`, "PGTARGETSESSIONATTRS", "primary"}},
		{env: [2]string{"PGCONNECT_TIMEOUT", "1s"}, want: []string{`"1s"`, "PGCONNECT_TIMEOUT", "whole number"}},
		{env: [2]string{"PGGSSENCMODE", "require"}, want: []string{"gssencmode", "PGGSSENCMODE", "sslmode"}},
		{env: [2]string{"PGREQUIREPEER", "postgres"}, want: []string{"requirepeer", "PGREQUIREPEER"}},
		{env: [2]string{"PGSERVICE", "none"}, want: []string{`"none"`, "PGSERVICE", ".pg_service.conf"}},
		{env: [2]string{"PGSERVICE", "bad"}, want: []string{`"prt"`, `service "bad"`, "port"}},
		{env: [2]string{"PGSERVICE", "nested"}, want: []string{"nested"}},
		{dsn: "service=x servicefile=/nonexistent", want: []string{"/nonexistent", "no such file"}},
		{dsn: "sslcrl=/x", want: []string{"sslcrl", "revocation"}},
		{dsn: "sslcrldir=/x", want: []string{"sslcrldir"}},
		{dsn: "sslkeylogfile=/x", want: []string{"sslkeylogfile"}},
		{dsn: "scram_client_key=SECRET", want: []string{"scram_client_key", "password"}},
		{dsn: "scram_server_key=SECRET", want: []string{"scram_server_key"}},
		{dsn: "oauth_issuer=x oauth_client_secret=SECRET", want: []string{"oauth"}},
		{dsn: "hostaddr=localhost", want: []string{"hostaddr", "numeric"}},
		{dsn: "host=a,b hostaddr=10.0.0.1", want: []string{"2 hosts", "1 hostaddrs"}},
		{dsn: "host=a,b,c port=1,2", want: []string{"2 ports", "3"}},
		{dsn: "host=@abstract", want: []string{"abstract"}},
		{dsn: "host=SECRET@h", want: []string{"host", "@"}},
		{dsn: "host=h sslmode=verify-full", want: []string{"sslrootcert"}},
		{dsn: "host=h sslmode=require sslrootcert=system", want: []string{"too weak", "verify-full"}},
		{dsn: "host=h sslmode=prefer sslnegotiation=direct", want: []string{"too weak", "require"}},
		{dsn: "host=h sslrootcert=/nonexistent/root.crt", want: []string{"/nonexistent/root.crt"}},
		{dsn: "host=h sslcert=/x sslkey=" + loose, want: []string{loose, "chmod 600"}},
		{dsn: "host=h ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", want: []string{"ssl_min_protocol_version", "above"}},
		{dsn: "host=h ssl_min_protocol_version=1.2", want: []string{"TLSv1.2"}},
		{dsn: "require_auth=foo", want: []string{"require_auth", "foo"}},
		{dsn: "channel_binding=always", want: []string{"channel_binding", "require"}},
		{dsn: "keepalives=yes", want: []string{"keepalives", "0 or 1"}},
		{dsn: "keepalives_idle=1m", want: []string{"keepalives_idle", "whole number"}},
		{dsn: "tcp_user_timeout=1s", want: []string{"tcp_user_timeout", "whole number"}},
		{dsn: "load_balance_hosts=yes", want: []string{"load_balance_hosts", "random"}},
	} {
		t.Run(strings.ReplaceAll(c.dsn+c.env[0], "/", "|"), func(t *testing.T) {
			if c.env[0] != "" {
				t.Setenv(c.env[0], c.env[1])
			}
			cfg, err := ParseConfig(Params{DSN: c.dsn, User: "me"})
			if err == nil {
				t.Fatalf("accepted: %s", cfg)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v\nlacks %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), "\n") {
				t.Errorf("a secret or a second line: %v", err)
			}
		})
	}
	// What a flag says may be quoted.
	if _, err := ParseConfig(Params{Port: "70000"}); err == nil || !strings.Contains(err.Error(), `"70000" (from -p)`) {
		t.Errorf("-p 70000: %v", err)
	}
	if _, err := ParseConfig(Params{DSN: "x=1", Names: map[string]string{"DSN": "WALFERRY_DSN"}}); err == nil || !strings.Contains(err.Error(), "WALFERRY_DSN") {
		t.Errorf("the name of a variable: %v", err)
	}
}

// Every keyword of libpq is accounted for: with a sensible value it is taken,
// or refused with its name. None reaches the server as a parameter.
func TestConfigEveryKeyword(t *testing.T) {
	home := clean(t)
	write(t, filepath.Join(home, ".pg_service.conf"), "[s]\nhost=h\n", 0o600)
	values := map[string]string{
		"service": "s", "servicefile": filepath.Join(home, ".pg_service.conf"), "host": "h", "hostaddr": "10.0.0.1", "port": "1", "connect_timeout": "1",
		"keepalives_idle": "1", "keepalives_interval": "1", "keepalives_count": "1", "tcp_user_timeout": "1",
		"sslcert": "", "sslkey": "", "sslrootcert": "", "require_auth": "scram-sha-256", "passfile": filepath.Join(home, "none"),
	}
	for _, k := range keywords() {
		value, ok := values[k.name]
		if !ok {
			value = "x"
		}
		if k.values != "" {
			value, _, _ = strings.Cut(k.values, "|")
		}
		if k.harmless != "" {
			value = "require"
		}
		dsn := "host=h user=u " + k.name + "=" + quoteValue(value)
		cfg, err := ParseConfig(Params{DSN: dsn})
		if k.handling == refused {
			if err == nil || !strings.Contains(err.Error(), k.name) {
				t.Errorf("%s: %v", dsn, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", dsn, err)
			continue
		}
		pc, err := cfg.build(cfg.hosts[0])
		if err != nil {
			t.Fatal(err)
		}
		for p := range pc.RuntimeParams {
			if p != "application_name" && p != "options" {
				t.Errorf("%s: %s goes to the server", dsn, p)
			}
		}
	}
	// The other way round: all that pgconn takes from the environment.
	t.Setenv("PGTZ", "UTC")
	t.Setenv("PGOPTIONS", "-c geqo=off")
	cfg, err := ParseConfig(Params{DSN: "host=h user=u"})
	if err != nil {
		t.Fatal(err)
	}
	pc, err := cfg.build(cfg.hosts[0])
	if err != nil || len(pc.RuntimeParams) != 1 || pc.RuntimeParams["options"] != "-c geqo=off" {
		t.Errorf("parameters %v, %v", pc.RuntimeParams, err)
	}
}

func TestConfigMapped(t *testing.T) {
	home := clean(t)
	build := func(dsn string) (*Config, *pgconn.Config) {
		t.Helper()
		cfg, err := ParseConfig(Params{DSN: dsn + " user=u"})
		if err != nil {
			t.Fatal(err)
		}
		pc, err := cfg.build(cfg.hosts[0])
		if err != nil {
			t.Fatal(err)
		}
		return cfg, pc
	}
	for dsn, want := range map[string]time.Duration{"host=h": defaultConnectTimeout, "host=h connect_timeout=7": 7 * time.Second, "host=h connect_timeout=0": 0, "host=h connect_timeout=-1": 0} {
		if _, pc := build(dsn); pc.ConnectTimeout != want {
			t.Errorf("%s: %v", dsn, pc.ConnectTimeout)
		}
	}
	if _, pc := build("host=h hostaddr=10.1.2.3"); pc.Host != "h" {
		t.Errorf("host %s", pc.Host)
	} else if got, err := pc.LookupFunc(t.Context(), "h"); err != nil || len(got) != 1 || got[0] != "10.1.2.3" {
		t.Errorf("hostaddr: %v, %v", got, err)
	}
	modes := map[string][]bool{ // which attempts use TLS
		"disable": {false}, "allow": {false, true}, "prefer": {true, false}, "require": {true},
	}
	for mode, want := range modes {
		_, pc := build("host=h sslmode=" + mode)
		got := []bool{pc.TLSConfig != nil}
		for _, f := range pc.Fallbacks {
			got = append(got, f.TLSConfig != nil)
		}
		if len(got) != len(want) || got[0] != want[0] || len(got) > 1 && got[1] != want[1] {
			t.Errorf("sslmode=%s: attempts with TLS %v; want %v", mode, got, want)
		}
	}
	if _, pc := build("host=h sslrootcert=system"); pc.TLSConfig == nil || pc.TLSConfig.InsecureSkipVerify || pc.TLSConfig.ServerName != "h" || len(pc.Fallbacks) != 0 {
		t.Error("sslrootcert=system does not verify the name")
	}
	if _, pc := build("host=h ssl_min_protocol_version=TLSv1.3"); pc.TLSConfig.MinVersion != tlsVersion("TLSv1.3") {
		t.Error("ssl_min_protocol_version has no effect")
	}
	if _, pc := build("host=/tmp sslmode=require"); pc.TLSConfig != nil {
		t.Error("TLS over a socket")
	}
	if cfg, _ := build("host=h replication=database sslcompression=1 krbsrvname=x passfile=/nonexistent"); len(cfg.Notices()) != 4 {
		t.Errorf("notices %q", cfg.Notices())
	}
	if cfg, _ := build("host=h gssencmode=prefer sslcompression=0 client_encoding=auto replication=true"); len(cfg.Notices()) != 0 {
		t.Errorf("notices %q", cfg.Notices())
	}
	// A secret is in no text, wherever it came from.
	t.Setenv("PGPASSWORD", "SECRET")
	write(t, filepath.Join(home, ".pgpass"), "*:*:*:*:SECRET\n", 0o600)
	cfg, _ := build("host=h password=SECRET")
	if strings.Contains(cfg.String(), "SECRET") {
		t.Error(cfg.String())
	}
}

func TestPassfile(t *testing.T) {
	home := clean(t)
	path := write(t, filepath.Join(home, ".pgpass"), strings.Join([]string{
		"# a comment:*:*:*:no",
		"short:line",
		"h:1:replication:u:first",
		`h:2:*:u:with:colon\:and\\backslash `,
		`we\:ird:*:*:*:weird`,
		"localhost:*:replication:u:socket",
		"h:*:db:*:sql",
		"*:*:*:other:any",
	}, "\n")+"\r\n", 0o600)
	for _, c := range []struct {
		dsn, db, want string
	}{
		{"host=h port=1 user=u", "replication", "first"},
		{"host=h port=2 user=u", "replication", `with:colon:and\backslash `},
		{"host=h port=3 user=u", "replication", ""},
		{"host=h port=3 user=u", "db", "sql"},
		{"host=h port=3 user=other", "replication", "any"},
		{"host=/run/pg user=u", "replication", "socket"},
		{"host=h hostaddr=10.0.0.1 port=1 user=u", "replication", "first"},
		{"host=h port=1 user=u password=said", "replication", "said"},
	} {
		cfg, err := ParseConfig(Params{DSN: c.dsn})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := cfg.passwordFor(t.Context(), cfg.hosts[0], c.db); err != nil || got != c.want {
			t.Errorf("%s to %s: %q, %v; want %q", c.dsn, c.db, got, err, c.want)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	cfg, err := ParseConfig(Params{DSN: "host=h port=1 user=u"})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := cfg.passwordFor(t.Context(), cfg.hosts[0], "replication"); got != "" {
		t.Error("a password file that others can read was used")
	}
	if n := cfg.Notices(); len(n) != 1 || !strings.Contains(n[0], "chmod 600") || !strings.Contains(n[0], path) {
		t.Errorf("notices %q", n)
	}
	// Mended while we run: found without a restart.
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := cfg.passwordFor(t.Context(), cfg.hosts[0], "replication"); got != "first" {
		t.Errorf("after the mend: %q", got)
	}
}

func TestPrompt(t *testing.T) {
	clean(t)
	t.Setenv("PGPASSWORD", "environment")
	asked := 0
	ask := func(context.Context) (string, error) {
		if asked++; asked == 1 {
			return "", errors.New("no terminal")
		}
		return "typed", nil
	}
	cfg, err := ParseConfig(Params{DSN: "host=h user=u", Password: ask})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.passwordFor(t.Context(), cfg.hosts[0], "replication"); err == nil {
		t.Error("a failed question was taken for an answer")
	}
	for range 3 {
		if got, err := cfg.only(cfg.hosts[0]).passwordFor(t.Context(), cfg.hosts[0], "replication"); err != nil || got != "typed" {
			t.Errorf("%q, %v", got, err)
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	if cfg, _ = ParseConfig(Params{DSN: "host=h user=u", Password: ask, NoPassword: true}); cfg.password != nil {
		t.Error("-w asks")
	}
}

// FuzzDSN: no string makes the parser panic, and what was written comes back.
func FuzzDSN(f *testing.F) {
	f.Add("host=a port='1' password='it\\'s'")
	f.Add("postgresql://u:p@h1:1,[::1]:2/db?a=b&c=%20")
	f.Add("postgres://:@/?")
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := parseDSN(s); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%v from %q", err, m)
		}
		if strings.IndexByte(s, 0) < 0 {
			m, err := parseKeywords("host=" + quoteValue(s))
			if err != nil || m["host"] != s {
				t.Errorf("quoted %q came back as %q, %v", s, m["host"], err)
			}
		}
	})
}
