package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Release takes away everything that makes a stopped server a member of a cluster: its
// replication slots and roles, its configuration and the marks beside the data
// directory. Its next start is as before Prepare, with the data as it is now, also
// where it was a standby. Nothing of the data goes; earlier data directories and what
// was set aside stay.
//
// ErrRunning: the server must be stopped first. ErrRewinding: the data directory is
// neither the old nor the new one. It may be repeated.
func (s *Server) Release(ctx context.Context) error {
	if err := s.release(ctx); err != nil {
		return fmt.Errorf("release postgresql: %w", err)
	}
	return nil
}

func (s *Server) release(ctx context.Context) error {
	if s.postmaster() != 0 {
		return ErrRunning
	}
	s.Close()
	if exists(s.staticFile()) && exists(s.DataDir) {
		unlock, err := s.lock()
		if err != nil {
			return err
		}
		defer unlock()
		if err := s.leaveDatabase(ctx); err != nil {
			return err
		}
	}
	// The order leaves nothing behind that names a file which is gone.
	if err := removeFiles(s.staticFile(), s.dynamicFile()); err != nil {
		return err
	}
	if err := os.RemoveAll(s.own("")); err != nil {
		return err
	}
	return removeFiles(filepath.Join(s.DataDir, standbySignal), completeMark(s.DataDir), s.DataDir+".lock", s.DataDir+".probe")
}

// leaveDatabase drops what understudy has made in the database, on a server that
// nobody else can reach.
func (s *Server) leaveDatabase(ctx context.Context) error {
	server, err := s.startPrivate(ctx)
	if errors.Is(err, errNoRole) {
		return nil // it was the last that an attempt before had dropped
	}
	if err != nil {
		return err
	}
	return errors.Join(s.dropOwn(ctx, server), server.end())
}

func (s *Server) dropOwn(ctx context.Context, server *private) error {
	c, err := server.connect(ctx, "postgres")
	if err != nil {
		return err
	}
	defer discard(c)
	if _, err := c.Exec(ctx, "select pg_drop_replication_slot(slot_name) from pg_replication_slots where starts_with(slot_name, $1)", slotPrefix); err != nil {
		return err
	}
	if _, err := c.Exec(ctx, endDrill); err != nil {
		return err
	}
	rows, err := c.Query(ctx, "select datname from pg_database where datallowconn order by datname = 'postgres', 1")
	if err != nil {
		return err
	}
	databases, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range databases {
		if err := s.disown(ctx, server, name); err != nil {
			return fmt.Errorf("in database %s: %w", name, err)
		}
	}
	// Nobody can drop the role that he is.
	for _, sql := range []string{"set session authorization " + pgx.Identifier{s.Superuser}.Sanitize(), "drop role if exists " + ReplicaRole, "drop role if exists " + AdminRole} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// disown gives what understudy's roles own in a database to the superuser, and drops
// their privileges there.
func (s *Server) disown(ctx context.Context, server *private, database string) error {
	c, err := server.connect(ctx, database)
	if err != nil {
		return err
	}
	defer discard(c)
	heir := pgx.Identifier{s.Superuser}.Sanitize()
	_, err = c.Exec(ctx, strings.NewReplacer("HEIR", heir, "OURS", AdminRole+", "+ReplicaRole).
		Replace("reassign owned by OURS to HEIR; drop owned by OURS"))
	return err
}
