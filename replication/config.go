package replication

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
)

// Params is what a person said about the server on the command line. What is
// empty comes from the service file, the PG* environment and libpq's defaults.
type Params struct {
	DSN      string // -d: keyword=value string, URI, or a bare database name
	Host     string // -h
	Port     string // -p
	User     string // -U
	Database string // --dbname: for ConnectSQL
	// ApplicationName is used when nothing else names one.
	ApplicationName string
	// Password asks for the password (-W); nil: nobody is asked. It is
	// called once, at the first connection, and its answer kept in memory.
	Password   func(context.Context) (string, error)
	NoPassword bool // -w: never ask
}

// DialFunc opens a network connection.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Config says how to reach a server. It is made by ParseConfig, and safe for
// concurrent use once its exported fields are set.
type Config struct {
	// DialFunc replaces the dialer, for tests; names are then not resolved.
	DialFunc DialFunc

	hosts    []*pgconn.Config
	database string
	prompt   func(context.Context) (string, error)

	mu       sync.Mutex
	password string // the answer to prompt
	prompted bool
}

// ParseConfig checks everything that was said about the server.
func ParseConfig(p Params) (*Config, error) {
	pc, err := pgconn.ParseConfig(p.DSN)
	if err != nil {
		return nil, fmt.Errorf("invalid connection settings")
	}
	if p.Host != "" {
		pc.Host = p.Host
	}
	if p.Port != "" {
		n, err := strconv.ParseUint(p.Port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("invalid port %q", p.Port)
		}
		pc.Port = uint16(n)
	}
	pc.RuntimeParams["application_name"] = p.ApplicationName
	if p.User != "" {
		pc.User = p.User
	}
	return &Config{hosts: []*pgconn.Config{pc}, database: p.Database, prompt: p.Password}, nil
}

// String returns host, port and user, never a secret.
func (c *Config) String() string {
	h := c.hosts[0]
	return fmt.Sprintf("%s:%d as user %s", h.Host, h.Port, h.User)
}
