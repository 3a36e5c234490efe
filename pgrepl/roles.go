package pgrepl

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

// EnsureRoles makes the two roles of understudy, with what pg_rewind needs to
// read from this server. It changes nothing where they are.
//
// A new cluster calls it before the first boot as a standby, on a stopped
// server: there it works in single-user mode, which asks for no password and
// recovers from a crash first. On a running primary that has the admin role it
// brings the other one up to date; on a standby it says what is missing.
func (s *Server) EnsureRoles(ctx context.Context) error {
	err := s.ensureRoles(ctx)
	if err != nil {
		return fmt.Errorf("make the roles of understudy: %w", err)
	}
	return nil
}

func (s *Server) ensureRoles(ctx context.Context) error {
	if s.postmaster() == 0 {
		return s.singleUser(ctx, rolesSQL)
	}
	return s.pool.with(ctx, func(c *pgx.Conn) error {
		var made bool
		if err := c.QueryRow(ctx, "select "+rolesMade).Scan(&made); err != nil || made {
			return err
		}
		_, err := c.Exec(ctx, rolesSQL)
		return err
	})
}

// singleUser runs statements on the data directory of a stopped server. That
// would make a primary of a standby, so it is refused there.
func (s *Server) singleUser(ctx context.Context, statements string) error {
	if exists(filepath.Join(s.DataDir, standbySignal)) {
		return fmt.Errorf("%w, and its data directory is a standby's; start it first", ErrNotRunning)
	}
	out, err := s.run.Run(ctx, command.Op{
		Label: "run single-user mode",
		Argv: []string{s.bin("postgres"), "--single", "-j", "-D", s.DataDir, "-c", "config_file=" + s.ConfigFile,
			"-c", "log_destination=stderr", "-c", "logging_collector=off", "-c", "exit_on_error=on", "-c", "synchronous_commit=local", "postgres"},
		Stdin: statements + ";\n\n",
	})
	if err != nil {
		return err
	}
	if i := strings.Index(out, "ERROR:"); i >= 0 {
		return fmt.Errorf("run single-user mode: %s", strings.TrimSpace(out[i:]))
	}
	return nil
}

const rolesMade = `exists (select from pg_roles where rolname = '` + AdminRole + `')
	and exists (select from pg_roles where rolname = '` + ReplicaRole + `'
		and pg_has_role(oid, 'pg_checkpoint', 'member') and pg_has_role(oid, 'pg_monitor', 'member')
		and has_function_privilege(oid, 'pg_ls_dir(text, boolean, boolean)', 'execute')
		and has_function_privilege(oid, 'pg_stat_file(text, boolean)', 'execute')
		and has_function_privilege(oid, 'pg_read_binary_file(text)', 'execute')
		and has_function_privilege(oid, 'pg_read_binary_file(text, bigint, bigint, boolean)', 'execute'))`

const rolesSQL = `do $$ begin
	if not exists (select from pg_roles where rolname = '` + AdminRole + `') then
		create role ` + AdminRole + ` superuser login;
	end if;
	if not exists (select from pg_roles where rolname = '` + ReplicaRole + `') then
		create role ` + ReplicaRole + ` login replication;
	end if;
	grant pg_monitor, pg_checkpoint to ` + ReplicaRole + `;
	grant execute on function pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
		pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) to ` + ReplicaRole + `;
end $$`
