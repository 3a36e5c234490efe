package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

// private is a server on the data directory that nobody but us can reach: no
// TCP, a socket in a folder of its own, and nothing that acts by itself.
type private struct {
	dir  string // with the socket
	s    *Server
	stop context.CancelFunc
	done chan error // the program has ended
}

// startPrivate starts the stopped server as a primary, on the timeline that it
// is on. PostgreSQL decodes WAL in no other way before version 16. It recovers
// from a crash, and it may write WAL: only a directory that will be rewound or
// thrown away may be started so.
func (s *Server) startPrivate(ctx context.Context) (*private, error) {
	if exists(rewindMark(s.DataDir)) {
		return nil, ErrRewinding
	}
	if exists(filepath.Join(s.DataDir, "backup_label")) {
		return nil, fmt.Errorf("%w: it is a copy that was never started", ErrRecovering)
	}
	dir, err := os.MkdirTemp("", "understudy-private-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	p := &private{dir: dir, s: s, done: make(chan error, 1)}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return p, nil
}

func (p *private) start(ctx context.Context) error {
	s := p.s
	hba := filepath.Join(p.dir, "pg_hba.conf")
	if err := s.run.Own(p.dir); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := s.writeFile(hba, fmt.Sprintf("local all %s peer map=%s\n", AdminRole, localMap), 0o600); err != nil {
		return err
	}
	// With the signal file it would be a standby; its unit puts it there again.
	if err := removeFiles(filepath.Join(s.DataDir, standbySignal)); err != nil {
		return err
	}
	argv := []string{s.bin("postgres"), "-D", s.DataDir, "-c", "config_file=" + s.ConfigFile}
	for _, set := range []setting{
		{"listen_addresses", ""}, {"unix_socket_directories", p.dir}, {"hba_file", hba}, {"ident_file", s.own("pg_ident.conf")},
		{"ssl", "off"}, {"archive_mode", "off"}, {"synchronous_standby_names", ""}, {"max_slot_wal_keep_size", "-1"},
		{"autovacuum", "off"}, {"max_worker_processes", "0"}, {"max_logical_replication_workers", "0"},
		{"logging_collector", "off"}, {"log_destination", "stderr"},
	} {
		argv = append(argv, "-c", set.name+"="+set.value)
	}
	ctx, p.stop = context.WithCancel(ctx)
	go func() {
		_, err := s.run.Run(ctx, command.Op{Label: "run the server privately", Argv: argv})
		p.done <- err
	}()
	return p.await(ctx)
}

// errNoRole: the database does not know understudy, or not any more.
var errNoRole = errors.New("the role " + AdminRole + " does not exist")

func hasNoRole(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "28000" // invalid_authorization_specification
}

// await waits until the server answers. Recovery from a crash may take a while.
func (p *private) await(ctx context.Context) error {
	for {
		c, err := p.connect(ctx, "postgres")
		if err == nil {
			discard(c)
			return nil
		}
		if hasNoRole(err) {
			return errors.Join(errNoRole, p.end())
		}
		select {
		case err := <-p.done:
			p.stop()
			return fmt.Errorf("the server ended: %w", err)
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%w: %w", ctx.Err(), err), p.end())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *private) connect(ctx context.Context, database string) (*pgx.Conn, error) {
	return p.s.connectTo(ctx, p.dir, database)
}

// end shuts the server down, and returns when it has ended.
func (p *private) end() error {
	defer p.stop()
	if pid := p.s.postmaster(); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop the private server: %w", err)
		}
	}
	if err := <-p.done; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("stop the private server: %w", err)
	}
	return os.RemoveAll(p.dir)
}
