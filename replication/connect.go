package replication

import (
	"context"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Connect opens a replication connection.
func Connect(ctx context.Context, c *Config) (*Conn, error) {
	pc := c.hosts[0].Copy()
	pc.Database = "replication"
	pc.RuntimeParams["replication"] = "true"
	if c.DialFunc != nil {
		pc.DialFunc = pgconn.DialFunc(c.DialFunc)
		pc.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	}
	var r io.Reader
	pc.BuildFrontend = func(in io.Reader, out io.Writer) *pgproto3.Frontend {
		r = in
		return pgproto3.NewFrontend(in, out)
	}
	pg, err := pgconn.ConnectConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", c, err)
	}
	h, err := pg.Hijack()
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", c, err)
	}
	return newConn(&wire{conn: h.Conn, r: r}, h.ParameterStatuses, h.PID, c.String())
}

// ConnectSQL opens an ordinary connection to a database.
func ConnectSQL(ctx context.Context, c *Config, dbname string) (*pgconn.PgConn, error) {
	pc := c.hosts[0].Copy()
	pc.Database = dbname
	return pgconn.ConnectConfig(ctx, pc)
}
