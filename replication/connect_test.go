package replication_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
)

// servers dials fakes by host name.
func servers(fakes map[string]*fakepg.Server) replication.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		name, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		s, ok := fakes[name]
		if !ok {
			return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
		}
		return s.Dial(ctx, network, address)
	}
}

func parse(t *testing.T, dsn string, dial replication.DialFunc) *replication.Config {
	t.Helper()
	c, err := replication.ParseConfig(replication.Params{DSN: dsn + " user=walferry"})
	if err != nil {
		t.Fatal(err)
	}
	c.DialFunc = dial
	return c
}

func TestConnectTargetSessionAttrs(t *testing.T) {
	t.Setenv("PGTARGETSESSIONATTRS", "")
	synctest.Test(t, func(t *testing.T) {
		fakes := map[string]*fakepg.Server{
			"standby": fakepg.New(fakepg.Options{InRecovery: true}),
			"primary": fakepg.New(fakepg.Options{}),
			"down":    fakepg.New(fakepg.Options{}),
			"old":     fakepg.New(fakepg.Options{Version: "13.20"}),
		}
		for _, s := range fakes {
			defer s.Close()
		}
		fakes["down"].Stop()
		for _, c := range []struct{ hosts, attrs, want string }{
			{"standby,primary", "any", "standby"},
			{"down,nowhere,primary,standby", "any", "primary"},
			{"standby,primary", "primary", "primary"},
			{"standby,primary", "read-write", "primary"},
			{"primary,standby", "standby", "standby"},
			{"primary,standby", "read-only", "standby"},
			{"primary,standby", "prefer-standby", "standby"},
			{"primary,down", "prefer-standby", "primary"},
			{"standby,down", "primary", ""},
			{"primary", "standby", ""},
			{"standby", "read-write", ""},
			{"primary", "read-only", ""},
			{"down,nowhere", "any", ""},
		} {
			cfg := parse(t, "sslmode=disable host="+c.hosts+" target_session_attrs="+c.attrs, servers(fakes))
			conn, err := replication.Connect(t.Context(), cfg)
			if c.want == "" {
				if err == nil || !replication.Passing(err) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "walferry") {
					t.Errorf("%+v: %v", c, err)
				}
				for name := range strings.SplitSeq(c.hosts, ",") {
					if !strings.Contains(err.Error(), name+":5432") {
						t.Errorf("%+v: %v lacks %s", c, err, name)
					}
				}
				if errors.Is(err, replication.ErrWrongServer) != (c.attrs != "any") {
					t.Errorf("%+v: %v", c, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%+v: %v", c, err)
				continue
			}
			if conn.String() != c.want+":5432 as user walferry" || conn.InRecovery() != (c.want == "standby") {
				t.Errorf("%+v: connected to %s", c, conn)
			}
			// Further connections go to this very server.
			again, err := replication.Connect(t.Context(), conn.Config())
			if err != nil || again.String() != conn.String() {
				t.Errorf("%+v: again to %v, %v", c, again, err)
			} else if err := again.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if err := conn.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// Each host alone, also one that target_session_attrs does not choose.
func TestEach(t *testing.T) {
	primary, standby := fakepg.New(fakepg.Options{}), fakepg.New(fakepg.Options{InRecovery: true})
	defer primary.Close()
	defer standby.Close()
	cfg := parse(t, "sslmode=disable host=p,s port=1111,2222 target_session_attrs=primary", servers(map[string]*fakepg.Server{"p": primary, "s": standby}))
	all := cfg.Each()
	if len(all) != 2 {
		t.Fatalf("%d hosts", len(all))
	}
	for i, want := range []string{"p:1111 as user walferry", "s:2222 as user walferry"} {
		conn, err := replication.Connect(t.Context(), all[i])
		if err != nil {
			t.Fatal(err)
		}
		if all[i].String() != want || conn.String() != want || conn.InRecovery() != (i == 1) {
			t.Errorf("%s leads to %s, a standby: %v; want %s", all[i], conn, conn.InRecovery(), want)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := replication.Connect(t.Context(), cfg); err != nil || len(standby.Startups()) != 1 {
		t.Errorf("the settings themselves have changed: %v", err)
	}
}

func TestConnectRefusals(t *testing.T) {
	for _, c := range []struct {
		name     string
		refusal  *replication.ServerError
		passing  bool
		nextHost bool // another host is tried
	}{
		{"starting", &replication.ServerError{Severity: "FATAL", SQLSTATE: "57P03", Message: "the database system is starting up"}, true, true},
		{"no hba line", &replication.ServerError{Severity: "FATAL", SQLSTATE: "28000", Message: "no pg_hba.conf entry\nfor replication"}, true, false},
		{"password", &replication.ServerError{Severity: "FATAL", SQLSTATE: "28P01", Message: "password authentication failed"}, true, false},
		{"walsenders", &replication.ServerError{Severity: "FATAL", SQLSTATE: "53300", Message: "number of requested standby connections exceeds max_wal_senders"}, true, true},
		{"no role attribute", &replication.ServerError{Severity: "FATAL", SQLSTATE: "42501", Message: "must be superuser or replication role to start walsender"}, true, true},
		{"unknown setting", &replication.ServerError{Severity: "FATAL", SQLSTATE: "42704", Message: "unrecognized configuration parameter"}, false, true},
		{"bad option", &replication.ServerError{Severity: "FATAL", SQLSTATE: "22023", Message: "invalid value for parameter"}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := fakepg.New(fakepg.Options{}), fakepg.New(fakepg.Options{})
				defer a.Close()
				defer b.Close()
				a.RefuseStartup(c.refusal)
				dial := servers(map[string]*fakepg.Server{"a": a, "b": b})
				_, err := replication.Connect(t.Context(), parse(t, "sslmode=disable host=a password=SECRET", dial))
				var se *replication.ServerError
				if !errors.As(err, &se) || se.SQLSTATE != c.refusal.SQLSTATE || replication.Passing(err) != c.passing {
					t.Errorf("%v, passing %v", err, replication.Passing(err))
				}
				if s := err.Error(); strings.Contains(s, "\n") || strings.Contains(s, "SECRET") || !strings.Contains(s, "a:5432") || !strings.Contains(s, "user walferry") {
					t.Errorf("error %q", s)
				}
				// sslmode=prefer: said once, and without TLS in the way.
				_, err = replication.Connect(t.Context(), parse(t, "sslmode=prefer host=a password=SECRET", dial))
				if err == nil || strings.Contains(err.Error(), "TLS") || strings.Count(err.Error(), c.refusal.SQLSTATE) != 1 {
					t.Errorf("prefer: %v", err)
				}
				conn, err := replication.Connect(t.Context(), parse(t, "sslmode=disable host=a,b password=x", dial))
				if (err == nil) != c.nextHost {
					t.Errorf("with another host: %v", err)
				}
				if conn != nil {
					if err := conn.Close(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

func TestConnectRequireTLS(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, _ *replication.Config) {
		_, err := replication.Connect(t.Context(), parse(t, "sslmode=require host=h", s.Dial))
		if err == nil || !strings.Contains(err.Error(), "does not offer TLS") || len(s.Startups()) != 0 {
			t.Errorf("%v; startups %v", err, s.Startups())
		}
	})
}

func TestConnectStartup(t *testing.T) {
	fake(t, fakepg.Options{Password: "right"}, func(t *testing.T, s *fakepg.Server, _ *replication.Config) {
		conn, err := replication.Connect(t.Context(), parse(t, "sslmode=disable host=h dbname=ignored replication=database application_name=app password=right options='-c geqo=off'", s.Dial))
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
		got := s.Startups()[0]
		for k, want := range map[string]string{"user": "walferry", "database": "replication", "replication": "true", "application_name": "app", "options": "-c geqo=off"} {
			if got[k] != want {
				t.Errorf("%s = %q; want %q", k, got[k], want)
			}
		}
		if len(got) != 5 {
			t.Errorf("parameters %v", got)
		}
		_, err = replication.Connect(t.Context(), parse(t, "sslmode=disable host=h password=WRONG", s.Dial))
		if err == nil || strings.Contains(err.Error(), "WRONG") || strings.Contains(err.Error(), "no password") || !replication.Passing(err) {
			t.Errorf("wrong password: %v", err)
		}
	})
}

func TestConnectNoPassword(t *testing.T) {
	t.Setenv("PGPASSWORD", "")
	t.Setenv("HOME", t.TempDir())
	fake(t, fakepg.Options{Password: "right"}, func(t *testing.T, s *fakepg.Server, _ *replication.Config) {
		if _, err := replication.Connect(t.Context(), parse(t, "sslmode=disable host=h", s.Dial)); err == nil || !strings.Contains(err.Error(), "no password was given") {
			t.Errorf("no password: %v", err)
		}
	})
}

// Who may be asked late is asked when a server wants a password that nobody has
// given, once, and not before.
func TestConnectPasswordLate(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for _, c := range []struct {
		wants, given, answer string
		err                  error
		asked                int
		says                 string // "": it connects
	}{
		{wants: "right", answer: "right", asked: 1},
		{wants: "right", answer: "WRONG", asked: 1, says: "password authentication failed"},
		{wants: "right", answer: "", asked: 1, says: "no password was given"},
		{wants: "right", err: errors.New("no hands"), asked: 1, says: "asking for the password: no hands"},
		{wants: "right", given: "right", answer: "WRONG"},
		{wants: "right", given: "WRONG", answer: "right", says: "password authentication failed"},
		{wants: "", answer: "WRONG"},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			t.Setenv("PGPASSWORD", c.given)
			fake(t, fakepg.Options{Password: c.wants}, func(t *testing.T, s *fakepg.Server, _ *replication.Config) {
				asked := 0
				config, err := replication.ParseConfig(replication.Params{DSN: "sslmode=disable host=h user=walferry", PasswordLate: true, Password: func(context.Context) (string, error) {
					asked++
					return c.answer, c.err
				}})
				if err != nil {
					t.Fatal(err)
				}
				config.DialFunc = s.Dial
				for range 2 { // the answer is remembered
					conn, err := replication.Connect(t.Context(), config)
					if err == nil {
						err = conn.Close(t.Context())
					}
					if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "WRONG")) {
						t.Errorf("%v; want %q", err, c.says)
					}
					if c.err != nil {
						break // no answer can be remembered
					}
				}
				if asked != c.asked {
					t.Errorf("asked %d times, want %d", asked, c.asked)
				}
			})
		})
	}
}

// A server that accepts and then says nothing.
func TestConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := func(context.Context, string, string) (net.Conn, error) {
			client, _ := net.Pipe()
			return client, nil
		}
		began := time.Now()
		_, err := replication.Connect(t.Context(), parse(t, "sslmode=disable host=h connect_timeout=7", silent))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer within 7s") || !replication.Passing(err) {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := replication.Connect(ctx, parse(t, "sslmode=disable host=h", silent)); !errors.Is(err, context.Canceled) || replication.Passing(err) {
			t.Errorf("cancelled: %v", err)
		}
		synctest.Wait()
	})
}

// A server that greets and ends in one packet: what it said is not lost in
// the library that read ahead. And one that cuts in the middle of the greeting.
func TestConnectEndsAtOnce(t *testing.T) {
	greet := func(more ...pgproto3.BackendMessage) replication.DialFunc {
		return func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() {
				defer func() { _ = server.Close() }() // a pipe's Close cannot fail
				b := pgproto3.NewBackend(server, server)
				if _, err := b.ReceiveStartupMessage(); err != nil {
					return
				}
				b.Send(&pgproto3.AuthenticationOk{})
				b.Send(&pgproto3.ParameterStatus{Name: "server_version", Value: "15.1"})
				for _, m := range more {
					b.Send(m)
				}
				_ = b.Flush()
			}()
			return client, nil
		}
	}
	synctest.Test(t, func(t *testing.T) {
		fatal := &pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P01", Message: "terminating connection due to administrator command"}
		_, err := replication.Connect(t.Context(), parse(t, "sslmode=disable host=h", greet(&pgproto3.ReadyForQuery{TxStatus: 'I'}, fatal)))
		var se *replication.ServerError
		if !errors.As(err, &se) || se.SQLSTATE != "57P01" {
			t.Errorf("ended at once: %v", err)
		}
		if _, err := replication.Connect(t.Context(), parse(t, "sslmode=disable host=h", greet())); err == nil || !replication.Passing(err) {
			t.Errorf("cut: %v", err)
		}
		synctest.Wait()
	})
}

func TestConnectSQL(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, _ *replication.Config) {
		s.OnQuery(func(db, sql string) (fakepg.Rows, error) {
			return fakepg.Rows{Columns: []string{"a"}, Rows: [][]string{{db + " " + sql}}}, nil
		})
		conn, err := replication.ConnectSQL(t.Context(), parse(t, "sslmode=disable host=h dbname=mine", s.Dial), "")
		if err != nil {
			t.Fatal(err)
		}
		res, err := conn.Exec(t.Context(), "SELECT 1").ReadAll()
		if err != nil || string(res[0].Rows[0][0]) != "mine SELECT 1" {
			t.Errorf("%v, %v", res, err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if p := s.Startups()[0]; p["replication"] != "" {
			t.Errorf("parameters %v", p)
		}
		s.Stop()
		if _, err := replication.ConnectSQL(t.Context(), parse(t, "sslmode=disable host=h", s.Dial), ""); !errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(err.Error(), "\n") {
			t.Errorf("no server: %v", err)
		}
	})
}

// A host that is dead, in front of one that is not: nothing comes back from it,
// or it takes the connection and says nothing. Each costs its connect_timeout,
// at each attempt anew.
func TestConnectPassesADeadHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live := fakepg.New(fakepg.Options{})
		defer live.Close()
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			switch {
			case strings.HasPrefix(address, "hole:"):
				<-ctx.Done()
				return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
			case strings.HasPrefix(address, "silent:"):
				client, _ := net.Pipe()
				return client, nil
			}
			return live.Dial(ctx, network, address)
		}
		cfg := parse(t, "sslmode=disable host=hole,silent,live target_session_attrs=read-write", dial)
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			conn, err := replication.Connect(ctx, cfg)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			if conn.String() != "live:5432 as user walferry" {
				t.Errorf("connected to %s", conn)
			}
			if err := conn.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
	})
}
