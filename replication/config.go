package replication

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgservicefile"
	"github.com/jackc/pgx/v5/pgconn"
)

// Params is what a person said about the server on the command line. What is
// empty comes from the service file, the PG* environment and libpq's defaults,
// in this order.
type Params struct {
	DSN      string // -d: keyword=value string, URI, or a bare database name
	Host     string // -h; a list as the keyword's, as are the next two
	Port     string // -p
	User     string // -U
	Database string // --dbname: for ConnectSQL only
	// ApplicationName is used when nothing else names one.
	ApplicationName string
	// Password asks for the password; nil: nobody is asked. It is called once,
	// before the first connection (-W), and its answer kept in memory.
	Password func(context.Context) (string, error)
	// PasswordLate: Password is called when a server has refused us because
	// it wants a password and none was found, and not before. PostgreSQL's own
	// programs do so without -W.
	PasswordLate bool
	// NoPassword (-w) forbids to ask.
	NoPassword bool
	// Names says where the fields came from when it was not the flag:
	// "DSN", "Host", "Port", "User" to, say, "WALFERRY_DSN".
	Names map[string]string
}

// DialFunc opens a network connection.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Config says how to reach a server. It is made by ParseConfig. Set its
// exported fields before the first use; it is then safe for concurrent use.
type Config struct {
	// DialFunc replaces the dialer, for tests; names are then not resolved.
	DialFunc DialFunc

	settings settings
	hosts    []host
	user     string
	database string // for ConnectSQL
	attrs    string // target_session_attrs
	shuffle  bool   // load_balance_hosts=random
	timeout  time.Duration
	dial     DialFunc
	notices  []string
	password *passwordPrompt // shared by narrowed copies; nil: nobody is asked
}

// host is one server that may be tried.
type host struct {
	name string // host name, address, or the directory of a Unix socket
	addr string // hostaddr: connect here, whatever the name resolves to
	port uint16
}

func (h host) unix() bool { return strings.HasPrefix(h.name, "/") }

func (h host) String() string {
	if h.unix() {
		return fmt.Sprintf("%s/.s.PGSQL.%d", h.name, h.port)
	}
	s := net.JoinHostPort(h.name, strconv.Itoa(int(h.port)))
	if h.addr != "" && h.addr != h.name {
		s += " (" + h.addr + ")"
	}
	return s
}

// passwordPrompt asks once and remembers.
type passwordPrompt struct {
	ask    func(context.Context) (string, error)
	late   bool // not before a server has refused us
	mu     sync.Mutex
	asked  bool
	answer string
}

func (p *passwordPrompt) get(ctx context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.asked {
		answer, err := p.ask(ctx)
		if err != nil {
			return "", fmt.Errorf("asking for the password: %w", err)
		}
		p.asked, p.answer = true, answer
	}
	return p.answer, nil
}

// waits reports whether the question is still to be asked, and not yet.
func (p *passwordPrompt) waits() bool {
	if p == nil || !p.late {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.asked
}

// setting is a value and where it came from.
type setting struct{ value, from string }

type settings map[string]setting

func (s settings) get(key string) string { return s[key].value }

// invalid says what is wrong with a setting. The value is quoted unless it
// could be, or hide, a secret.
func (s settings) invalid(key, want string) error {
	v := s[key]
	k, _ := lookupKeyword(key)
	if k.secret {
		return fmt.Errorf("invalid %s (from %s): want %s", key, v.from, want)
	}
	return fmt.Errorf("invalid %s %q (from %s): want %s", key, v.value, v.from, want)
}

// defaultConnectTimeout bounds one attempt to connect to one address when
// nobody says connect_timeout. libpq waits for ever; a receiver that is to
// reconnect must not hang on a server that accepts and then says nothing.
const defaultConnectTimeout = 30 * time.Second

// ParseConfig checks everything that was said about the server. An error is
// one line: what is wrong, where it came from, what would be right, and never
// a password. Nothing is connected to and no name is resolved; certificates
// and the service file are read, and read again at each connection.
func ParseConfig(p Params) (*Config, error) {
	s, notices, err := collect(p)
	if err != nil {
		return nil, err
	}
	c := &Config{
		settings: s,
		notices:  notices,
		user:     s.get("user"),
		database: s.get("dbname"),
		attrs:    s.get("target_session_attrs"),
		shuffle:  s.get("load_balance_hosts") == "random",
		timeout:  defaultConnectTimeout,
	}
	if p.Database != "" {
		c.database = p.Database
	}
	if c.database == "" {
		c.database = "postgres"
	}
	if p.Password != nil && !p.NoPassword {
		c.password = &passwordPrompt{ask: p.Password, late: p.PasswordLate}
	}
	if c.user == "" {
		return nil, errors.New("no user was given and the operating system's name for us is not known: want -U or PGUSER")
	}
	if c.hosts, err = s.hosts(); err != nil {
		return nil, err
	}
	if err := c.network(); err != nil {
		return nil, err
	}
	if err := c.security(); err != nil {
		return nil, err
	}
	for _, h := range c.hosts {
		if _, err := c.build(h); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Notices are one-line remarks about settings that have no effect. They are
// to be logged once.
func (c *Config) Notices() []string { return slices.Clone(c.notices) }

// User returns the role that we connect as.
func (c *Config) User() string { return c.user }

// ApplicationName returns the application_name of our connections: the name by
// which synchronous_standby_names would call us.
func (c *Config) ApplicationName() string {
	for _, key := range []string{"application_name", "fallback_application_name"} {
		if v := c.settings.get(key); v != "" {
			return v
		}
	}
	return ""
}

// String returns hosts, ports and the user, and never a secret.
func (c *Config) String() string {
	var names []string
	for _, h := range c.hosts {
		names = append(names, h.String())
	}
	return strings.Join(names, ", ") + " as user " + c.user
}

// Each returns the same settings for each of the hosts alone, whatever kind of
// server it is: target_session_attrs does not count.
func (c *Config) Each() []*Config {
	var all []*Config
	for _, h := range c.hosts {
		n := c.only(h)
		n.attrs = "any"
		all = append(all, n)
	}
	return all
}

// only returns the same settings for one host alone.
func (c *Config) only(h host) *Config {
	n := *c
	n.hosts = []host{h}
	return &n
}

// collect merges what was said, strongest first: flags, connection string,
// service file, environment, defaults.
func collect(p Params) (settings, []string, error) {
	from := func(field, flag string) string {
		if n := p.Names[field]; n != "" {
			return n
		}
		return flag
	}
	said, err := parseDSN(p.DSN)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", from("DSN", "-d"), err)
	}
	s := settings{}
	for k, v := range said {
		s[k] = setting{v, from("DSN", "-d")}
	}
	for _, f := range []struct{ key, value, from string }{
		{"host", p.Host, from("Host", "-h")}, {"port", p.Port, from("Port", "-p")}, {"user", p.User, from("User", "-U")},
	} {
		if f.value != "" {
			s[f.key] = setting{f.value, f.from}
		}
	}
	env := settings{}
	for _, k := range keywords() {
		if v := os.Getenv(k.env); k.env != "" && v != "" {
			env[k.name] = setting{v, k.env}
		}
	}
	for _, k := range []string{"service", "servicefile"} {
		if _, ok := s[k]; !ok && env.get(k) != "" {
			s[k] = env[k]
		}
	}
	service, err := s.service()
	if err != nil {
		return nil, nil, err
	}
	for _, more := range []settings{service, env, defaults(p)} {
		for k, v := range more {
			if _, ok := s[k]; !ok {
				s[k] = v
			}
		}
	}
	notices, err := s.check()
	return s, notices, err
}

// service reads the service that is asked for: from the service file, and when
// it is not there from the system's.
func (s settings) service() (settings, error) {
	want, ok := s["service"]
	if !ok || want.value == "" {
		return nil, nil
	}
	files := []string{s.get("servicefile")}
	if files[0] == "" {
		files = nil
		if home, err := os.UserHomeDir(); err == nil {
			files = append(files, filepath.Join(home, ".pg_service.conf"))
		}
	}
	dir := os.Getenv("PGSYSCONFDIR")
	if dir == "" {
		dir = "/etc/postgresql-common" // Debian's; others build libpq with their own
	}
	files = append(files, filepath.Join(dir, "pg_service.conf"))
	for i, path := range files {
		sf, err := pgservicefile.ReadServicefile(path)
		if errors.Is(err, fs.ErrNotExist) && (i > 0 || s.get("servicefile") == "") {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("service %q (from %s): reading the service file %s: %s", want.value, want.from, path, withoutPath(err))
		}
		found, err := sf.GetService(want.value)
		if err != nil {
			continue
		}
		out := settings{}
		for k, v := range found.Settings {
			if k == "service" || k == "servicefile" {
				return nil, fmt.Errorf("service %q in %s: a service cannot name another", want.value, path)
			}
			out[k] = setting{v, fmt.Sprintf("service %q in %s", want.value, path)}
		}
		// pgconn looks the service up again when PGSERVICE is set.
		s["servicefile"] = setting{path, "the service"}
		return out, nil
	}
	return nil, fmt.Errorf("service %q (from %s) is not defined in %s", want.value, want.from, strings.Join(files, " or "))
}

// withoutPath is a file error without the path, which the caller names.
func withoutPath(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// defaults are libpq's.
func defaults(p Params) settings {
	d := settings{}
	put := func(k, v string) { d[k] = setting{v, "the default"} }
	if u, err := user.Current(); err == nil {
		put("user", u.Username)
	}
	put("port", "5432")
	put("target_session_attrs", "any")
	put("load_balance_hosts", "disable")
	if p.ApplicationName != "" {
		put("fallback_application_name", p.ApplicationName)
	}
	if home, err := os.UserHomeDir(); err == nil {
		put("passfile", filepath.Join(home, ".pgpass"))
		exists := func(name string) (string, bool) {
			path := filepath.Join(home, ".postgresql", name)
			_, err := os.Stat(path)
			return path, err == nil
		}
		cert, haveCert := exists("postgresql.crt")
		key, haveKey := exists("postgresql.key")
		if haveCert && haveKey {
			put("sslcert", cert)
		}
		if haveKey {
			put("sslkey", key)
		}
		if root, ok := exists("root.crt"); ok {
			put("sslrootcert", root)
		}
	}
	return d
}

// check accounts for every keyword: known, allowed values, refused, ignored.
func (s settings) check() (notices []string, err error) {
	for _, key := range slices.Sorted(maps.Keys(s)) {
		v := s[key]
		k, ok := lookupKeyword(key)
		if !ok {
			if near := nearestKeyword(key); near != "" {
				return nil, fmt.Errorf("unknown keyword %q (from %s): did you mean %s?", key, v.from, near)
			}
			return nil, fmt.Errorf("unknown keyword %q (from %s): want one of libpq's", key, v.from)
		}
		if strings.IndexByte(v.value, 0) >= 0 {
			return nil, fmt.Errorf("invalid %s (from %s): it holds a NUL byte", key, v.from)
		}
		if k.values != "" && v.value != "" && !allows(k.values, v.value) {
			return nil, s.invalid(key, choices(k.values))
		}
		switch {
		case k.handling == refused && v.value != "" && !(k.harmless != "" && allows(k.harmless, v.value)):
			return nil, fmt.Errorf("%s (from %s) is refused: %s", key, v.from, k.why)
		case key == "sslcompression" && v.value == "1",
			key == "krbsrvname", key == "gsslib", key == "gssdelegation" && v.value == "1":
			notices = append(notices, fmt.Sprintf("%s (from %s) has no effect", key, v.from))
		case key == "replication" && v.value != "true" && v.value != "1":
			notices = append(notices, fmt.Sprintf("replication (from %s) has no effect: the connection is for physical replication", v.from))
		case key == "passfile":
			if why := usablePassfile(v.value, v.from != "the default"); why != "" {
				notices = append(notices, why)
			}
		case key == "tcp_user_timeout" && !hasUserTimeout:
			notices = append(notices, fmt.Sprintf("tcp_user_timeout (from %s) has no effect on this system", v.from))
		}
	}
	return notices, nil
}

// hosts reads the lists host, hostaddr and port.
func (s settings) hosts() ([]host, error) {
	split := func(key string) []string {
		if s.get(key) == "" {
			return nil
		}
		return strings.Split(s.get(key), ",")
	}
	names, addrs, ports := split("host"), split("hostaddr"), split("port")
	n := max(len(names), len(addrs), 1)
	if len(names) > 0 && len(addrs) > 0 && len(names) != len(addrs) {
		return nil, fmt.Errorf("%d hosts (from %s) and %d hostaddrs (from %s): want as many of each", len(names), s["host"].from, len(addrs), s["hostaddr"].from)
	}
	if len(ports) > 1 && len(ports) != n {
		return nil, fmt.Errorf("%d ports (from %s) for %d hosts: want one, or as many", len(ports), s["port"].from, n)
	}
	hosts := make([]host, n)
	for i := range hosts {
		h := &hosts[i]
		if len(names) > 0 {
			h.name = strings.TrimSpace(names[i])
		}
		if len(addrs) > 0 && addrs[i] != "" {
			addr, err := netip.ParseAddr(addrs[i])
			if err != nil {
				return nil, s.invalid("hostaddr", "numeric IP addresses")
			}
			h.addr = addr.String()
			if h.name == "" || h.unix() {
				h.name = h.addr // libpq: hostaddr decides where to connect
			}
		}
		switch {
		case h.name == "":
			h.name = defaultHost()
		case strings.HasPrefix(h.name, "@"):
			return nil, s.invalid("host", "a name, an address or the directory of a socket: abstract sockets are not supported")
		case strings.ContainsAny(h.name, " @"):
			// Not quoted: what is wrong here may be half a password.
			return nil, fmt.Errorf("invalid host (from %s): it holds a space or an @", s["host"].from)
		}
		port := "5432"
		switch {
		case len(ports) == 1 && ports[0] != "":
			port = ports[0]
		case len(ports) > 1 && ports[i] != "":
			port = ports[i]
		}
		v, err := strconv.ParseUint(strings.TrimSpace(port), 10, 16)
		if err != nil || v == 0 {
			if s["port"].from != "-p" && s["port"].from != "PGPORT" {
				// Not quoted: behind a : in a URI stands the password, too.
				return nil, fmt.Errorf("invalid port (from %s): want a number from 1 to 65535", s["port"].from)
			}
			return nil, s.invalid("port", "a number from 1 to 65535")
		}
		h.port = uint16(v)
	}
	return hosts, nil
}

// defaultHost is the directory of the local server's socket, as far as that
// can be known without libpq's build settings.
func defaultHost() string {
	for _, dir := range []string{"/var/run/postgresql", "/tmp"} {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return "localhost"
}

// network reads the settings of the dialer.
func (c *Config) network() error {
	s := c.settings
	var k keepalive
	number := func(key string) (int, error) {
		text := strings.TrimSpace(s.get(key))
		if text == "" {
			return 0, nil
		}
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return 0, s.invalid(key, "a whole number")
		}
		if strings.HasPrefix(key, "keepalives_") {
			k.set = true
		}
		return int(n), nil
	}
	var err error
	for key, to := range map[string]*int{"keepalives_idle": &k.idle, "keepalives_interval": &k.interval, "keepalives_count": &k.count} {
		if *to, err = number(key); err != nil {
			return err
		}
	}
	k.off = s.get("keepalives") == "0"
	ms, err := number("tcp_user_timeout")
	if err != nil {
		return err
	}
	k.userTimeout = time.Duration(ms) * time.Millisecond
	c.dial = k.dialer()
	if s.get("connect_timeout") != "" {
		n, err := number("connect_timeout")
		if err != nil {
			return err
		}
		c.timeout = max(0, time.Duration(n)*time.Second) // zero and less: for ever
	}
	return nil
}

// security refuses combinations that would be weaker than they look, as libpq
// does (src/interfaces/libpq/fe-connect.c, fe-secure-openssl.c).
func (c *Config) security() error {
	s := c.settings
	mode, root := s.get("sslmode"), s.get("sslrootcert")
	if root == "system" {
		if mode == "" {
			mode = "verify-full"
			s["sslmode"] = setting{mode, "sslrootcert=system"}
		}
		if mode != "verify-full" {
			return fmt.Errorf("sslmode %q (from %s) is too weak for sslrootcert=system (from %s): want verify-full", mode, s["sslmode"].from, s["sslrootcert"].from)
		}
	}
	tcp := slices.ContainsFunc(c.hosts, func(h host) bool { return !h.unix() })
	if !tcp {
		return nil // sockets have no TLS
	}
	if root == "" && (mode == "verify-ca" || mode == "verify-full") {
		return fmt.Errorf("sslmode %q (from %s) needs root certificates: want sslrootcert=FILE, sslrootcert=system, or ~/.postgresql/root.crt", mode, s["sslmode"].from)
	}
	if s.get("sslnegotiation") == "direct" && allows("disable|allow|prefer", mode) {
		return fmt.Errorf("sslmode %q (from %s) is too weak for sslnegotiation=direct (from %s): want require, verify-ca or verify-full", mode, s["sslmode"].from, s["sslnegotiation"].from)
	}
	if key := s.get("sslkey"); key != "" && s.get("sslcert") != "" && mode != "disable" {
		if info, err := os.Stat(key); err == nil && info.Mode().Perm()&0o077 != 0 && !(info.Mode().Perm()&0o037 == 0 && ownedByRoot(info)) {
			return fmt.Errorf("private key file %s (from %s) is refused: group or others have access to it (want chmod 600, or 640 when root owns it)", key, s["sslkey"].from)
		}
	}
	lo, hi := tlsVersion(s.get("ssl_min_protocol_version")), tlsVersion(s.get("ssl_max_protocol_version"))
	if hi != 0 && lo > hi {
		return fmt.Errorf("ssl_min_protocol_version (from %s) is above ssl_max_protocol_version (from %s)", s["ssl_min_protocol_version"].from, s["ssl_max_protocol_version"].from)
	}
	return nil
}

func tlsVersion(name string) uint16 {
	switch name {
	case "TLSv1":
		return tls.VersionTLS10
	case "TLSv1.1":
		return tls.VersionTLS11
	case "TLSv1.2":
		return tls.VersionTLS12
	case "TLSv1.3":
		return tls.VersionTLS13
	}
	return 0
}

// build makes pgconn's settings for one host. pgconn reads the environment by
// itself, so every keyword that it knows is said, also when it is empty.
func (c *Config) build(h host) (*pgconn.Config, error) {
	var b strings.Builder
	put := func(key, value string) { fmt.Fprintf(&b, "%s=%s ", key, quoteValue(value)) }
	for _, k := range keywords() {
		if k.handling != passed {
			continue
		}
		v := c.settings.get(k.name)
		if v == "" {
			switch k.name {
			case "sslcertmode":
				v = "allow"
			case "sslmode":
				v = "prefer"
			}
		}
		put(k.name, v)
	}
	put("host", h.name)
	put("port", strconv.Itoa(int(h.port)))
	put("user", c.user)
	put("password", "")
	put("passfile", "")
	put("dbname", "replication")
	put("connect_timeout", "0")
	put("target_session_attrs", "any")
	if _, ok := c.settings["service"]; ok && os.Getenv("PGSERVICE") != "" {
		put("service", c.settings.get("service"))
		put("servicefile", c.settings.get("servicefile"))
	}
	pc, err := pgconn.ParseConfig(b.String())
	if err != nil {
		// pgconn's own text quotes the whole string; its reason does not.
		if reason := errors.Unwrap(err); reason != nil {
			return nil, fmt.Errorf("connection settings for %s: %s", h, oneLine(reason.Error()))
		}
		return nil, fmt.Errorf("connection settings for %s are not accepted", h)
	}
	pc.ConnectTimeout = c.timeout
	pc.RuntimeParams = map[string]string{}
	if v := c.ApplicationName(); v != "" {
		pc.RuntimeParams["application_name"] = v
	}
	if v := c.settings.get("options"); v != "" {
		pc.RuntimeParams["options"] = v
	}
	for _, t := range append([]*pgconn.FallbackConfig{{TLSConfig: pc.TLSConfig}}, pc.Fallbacks...) {
		if t.TLSConfig == nil {
			continue
		}
		if v := tlsVersion(c.settings.get("ssl_min_protocol_version")); v != 0 {
			t.TLSConfig.MinVersion = v
		}
		if v := tlsVersion(c.settings.get("ssl_max_protocol_version")); v != 0 {
			t.TLSConfig.MaxVersion = v
		}
	}
	pc.DialFunc = pgconn.DialFunc(c.dial)
	if c.DialFunc != nil {
		pc.DialFunc = pgconn.DialFunc(c.DialFunc)
	}
	switch {
	case h.addr != "":
		pc.LookupFunc = func(context.Context, string) ([]string, error) { return []string{h.addr}, nil }
	case c.DialFunc != nil:
		pc.LookupFunc = func(_ context.Context, name string) ([]string, error) { return []string{name}, nil }
	}
	return pc, nil
}

// passwordFor finds the password: asked for, said, or in the password file.
func (c *Config) passwordFor(ctx context.Context, h host, database string) (string, error) {
	if c.password != nil && !c.password.waits() {
		return c.password.get(ctx)
	}
	if v := c.settings.get("password"); v != "" {
		return v, nil
	}
	names := []string{h.name}
	if h.unix() {
		names = append(names, "localhost")
	}
	return findPassword(c.settings.get("passfile"), names, strconv.Itoa(int(h.port)), database, c.user), nil
}
