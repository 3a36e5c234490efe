package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ownApp is the application_name of our sessions. It is no node name, so
// no walsender of ours can count as a standby.
const ownApp = "understudy admin"

// connectTimeout bounds a connection to a server that accepts and then hangs.
const connectTimeout = 5 * time.Second

// connect opens an admin session over the local socket. It commits locally: what
// it writes must not wait for standbys that are not there yet.
func (s *Server) connect(ctx context.Context) (*pgx.Conn, error) {
	return s.connectTo(ctx, s.SocketDir, "postgres")
}

// connectTo is connect to one database, of the server that has its socket in dir.
func (s *Server) connectTo(ctx context.Context, dir, database string) (*pgx.Conn, error) {
	return s.dial(ctx, dir, database, map[string]string{
		"synchronous_commit": "local", "statement_timeout": "0", "lock_timeout": "0",
		"idle_session_timeout": "0", "search_path": "pg_catalog",
	})
}

func (s *Server) connectReplication(ctx context.Context) (*pgx.Conn, error) {
	return s.dial(ctx, s.SocketDir, "postgres", map[string]string{"replication": "database"})
}

// dial opens a session of AdminRole.
func (s *Server) dial(ctx context.Context, dir, database string, params map[string]string) (*pgx.Conn, error) {
	conf, err := pgx.ParseConfig("sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("connect to postgresql: %w", err)
	}
	conf.Host, conf.Port, conf.User, conf.Database = dir, uint16(s.Port), AdminRole, database
	conf.Password, conf.TLSConfig, conf.Fallbacks = "", nil, nil
	conf.ConnectTimeout = connectTimeout
	conf.RuntimeParams = map[string]string{"application_name": ownApp}
	conf.DefaultQueryExecMode = pgx.QueryExecModeExec
	if params["replication"] != "" {
		conf.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	}
	for name, v := range params {
		conf.RuntimeParams[name] = v
	}
	c, err := pgx.ConnectConfig(ctx, conf)
	if err != nil {
		return nil, classify(err)
	}
	return c, nil
}

// classify wraps the error of a failed connection in the sentinel that says why.
func classify(err error) error {
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "57P03":
		if strings.Contains(pg.Message, "shutting down") {
			return fmt.Errorf("%w: %s", ErrStopping, pg.Message)
		}
		return fmt.Errorf("%w: %s", ErrStarting, strings.TrimSpace(pg.Message+" "+pg.Detail))
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	return fmt.Errorf("connect to postgresql: %w", err)
}

func stateOf(err error) State {
	switch {
	case err == nil:
		return StateUp
	case errors.Is(err, ErrNotRunning):
		return StateDown
	case errors.Is(err, ErrStarting):
		return StateStarting
	case errors.Is(err, ErrStopping):
		return StateStopping
	}
	return StateUnknown
}

// Ping connects to the server's TCP port on the node's address, as a client
// would, and says no more.
func (s *Server) Ping(ctx context.Context) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(s.Address, strconv.Itoa(s.Port)))
	if err != nil {
		return fmt.Errorf("connect to the port of postgresql: %w", err)
	}
	return c.Close()
}

// Select1 asks the server for an answer that needs no data.
func (s *Server) Select1(ctx context.Context) error {
	err := s.pool.with(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "select 1")
		return err
	})
	if err != nil {
		return fmt.Errorf("select 1: %w", err)
	}
	return nil
}

// Hold opens a session and returns in the moment in which it dies: with the
// postmaster, or because its own backend was ended. The error is never nil; it is
// the context's when that ended first.
func (s *Server) Hold(ctx context.Context) error {
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer discard(c)
	for {
		if _, err := c.WaitForNotification(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("the held session ended: %w", err)
		}
	}
}

// sql runs a statement on an admin session.
func (s *Server) sql(ctx context.Context, statement string, args ...any) error {
	return s.pool.with(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, statement, args...)
		return err
	})
}

// row reads one row on an admin session.
func (s *Server) row(ctx context.Context, query string, args []any, into ...any) error {
	return s.pool.with(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, query, args...).Scan(into...)
	})
}

// identify returns the answer of IDENTIFY_SYSTEM: on a standby the timeline of
// the last record replayed, and the later of what was replayed and what was
// received on that same timeline. The views are no substitute: received_tli runs
// ahead of what is durable, and pg_control lags behind to the last restartpoint,
// also after a crash recovery.
func (s *Server) identify(ctx context.Context) (p identity, err error) {
	err = s.ident.with(ctx, func(c *pgx.Conn) error {
		p, err = identifyOn(ctx, c)
		return err
	})
	return p, err
}
