package pgrepl

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// The role of a drill's writer, and the schema that is all it may write to. They
// are there only during a drill. The role logs in with the certificate of a
// manager, and only where clients are let in: it waits as they do.
const (
	DrillRole   = "understudy_drill"
	DrillSchema = "understudy_drill"
	// DrillDatabase is the database that the schema is in.
	DrillDatabase = "postgres"
)

// OpenDrill makes the role and the schema of a drill on the primary, anew where a
// drill before has left some behind.
func (s *Server) OpenDrill(ctx context.Context) error {
	if err := s.inTurn(ctx, endDrill, `create role `+DrillRole+` login`, `create schema `+DrillSchema+` authorization `+DrillRole); err != nil {
		return fmt.Errorf("open the drill: %w", err)
	}
	return nil
}

// CloseDrill ends the sessions of a drill and drops all that it has made. It does
// nothing where there is nothing.
func (s *Server) CloseDrill(ctx context.Context) error {
	if err := s.inTurn(ctx, endDrill); err != nil {
		return fmt.Errorf("close the drill: %w", err)
	}
	return nil
}

const endDrill = `do $$ begin
	if exists (select from pg_roles where rolname = '` + DrillRole + `') then
		alter role ` + DrillRole + ` nologin;
		perform pg_terminate_backend(pid) from pg_stat_activity where usename = '` + DrillRole + `';
	end if;
	drop schema if exists ` + DrillSchema + ` cascade;
	drop role if exists ` + DrillRole + `;
end $$`

// inTurn runs statements, all or none.
func (s *Server) inTurn(ctx context.Context, statements ...string) error {
	return s.pool.with(ctx, func(c *pgx.Conn) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			for _, sql := range statements {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
	})
}
