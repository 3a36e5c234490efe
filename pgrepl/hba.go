package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// The two user name maps of ours in pg_ident.conf.
const (
	localMap = "understudy_local"
	certMap  = "understudy_cert"
)

const gateOpen, gateClosed = "# gate: open", "# gate: closed"

// hba is our pg_hba.conf. Our own way in comes first; then what the operator
// wrote, or a closed door. With bootstrap the superuser of the database as it
// was found is let in too, to make our role.
func (s *Server) hba(open, bootstrap bool, original string) string {
	var b strings.Builder
	b.WriteString("# Written by understudy; changes are lost. The rules for clients are copied from the file\n" +
		"# that postgresql.conf names; edit that one.\n")
	state := gateClosed
	if open {
		state = gateOpen
	}
	fmt.Fprintln(&b, state)
	if bootstrap {
		fmt.Fprintf(&b, "local all %s peer map=%s\n", hbaQuote(s.Superuser), localMap)
	}
	fmt.Fprintf(&b, "local all %s peer map=%s\n", AdminRole, localMap)
	fmt.Fprintf(&b, "hostssl replication,all %s all cert clientcert=verify-full map=%s\n", ReplicaRole, certMap)
	fmt.Fprintf(&b, "host replication,all %s,%s all reject\n", AdminRole, ReplicaRole)
	if open {
		b.WriteString(original)
		return b.String()
	}
	b.WriteString("local replication,all all reject\nhost replication,all all all reject\n")
	return b.String()
}

// identText is our pg_ident.conf: who on this machine is our admin, that every
// certificate of the cluster's CA may replicate, and the operator's maps.
func (s *Server) identText(original string) string {
	users := []string{"root", "understudy", s.SystemUser}
	slices.Sort(users)
	var b strings.Builder
	b.WriteString("# Written by understudy; changes are lost.\n")
	for _, u := range slices.Compact(users) {
		for _, role := range []string{AdminRole, s.Superuser} {
			fmt.Fprintf(&b, "%s %s %s\n", localMap, hbaQuote(u), hbaQuote(role))
		}
	}
	fmt.Fprintf(&b, "%s /^(.*)$ %s\n", certMap, ReplicaRole)
	b.WriteString(original)
	return b.String()
}

func hbaQuote(name string) string { return `"` + name + `"` }

// Gate opens the server to clients or closes it, and takes over what the
// operator changed in the original files since. Closed, only understudy's own
// sessions and standbys are let in; it returns when no client session is left.
// Without a server the rules are written for its next start and the error wraps
// ErrNotRunning.
func (s *Server) Gate(ctx context.Context, open bool) error {
	s.conf.Lock()
	defer s.conf.Unlock()
	word := "close"
	if open {
		word = "open"
	}
	if err := s.admit(ctx, open, false); err != nil {
		return fmt.Errorf("%s the gate: %w", word, err)
	}
	if open {
		return nil
	}
	if err := s.expel(ctx); err != nil {
		return fmt.Errorf("close the gate: end client sessions: %w", err)
	}
	return nil
}

// admit writes the rules and waits until they are in effect. The caller holds
// s.conf.
func (s *Server) admit(ctx context.Context, open, bootstrap bool) error {
	if err := s.writeAdmission(open, bootstrap); err != nil {
		return err
	}
	generation, err := s.change(ctx, func(*dynamic) {})
	if err != nil {
		return err
	}
	return s.inEffect(ctx, generation)
}

func (s *Server) writeAdmission(open, bootstrap bool) error {
	from, err := s.readOriginals()
	if err != nil {
		return err
	}
	hba, err := readOptional(from.HBA)
	if err != nil {
		return err
	}
	ident, err := readOptional(from.Ident)
	if err != nil {
		return err
	}
	if err := s.writeFile(s.own("pg_ident.conf"), s.identText(ident), 0o640); err != nil {
		return err
	}
	return s.writeFile(s.own("pg_hba.conf"), s.hba(open, bootstrap, hba), 0o640)
}

func readOptional(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil && !isMissing(err) {
		return "", fmt.Errorf("read rules of admission: %w", err)
	}
	return string(text), nil
}

// gateFile says whether the rules in the file let clients in.
func (s *Server) gateFile() (open bool, err error) {
	text, err := os.ReadFile(s.own("pg_hba.conf"))
	if err != nil {
		return false, fmt.Errorf("read rules of admission: %w", err)
	}
	return strings.Contains(string(text), gateOpen+"\n"), nil
}

// clients selects the sessions of others, with those of logical replication but
// without the walsenders of standbys.
const clients = `from pg_stat_activity where usename is distinct from '` + AdminRole + `' and pid <> pg_backend_pid()
	and (backend_type = 'client backend' or backend_type = 'walsender' and usename is distinct from '` + ReplicaRole + `')`

// expel ends client sessions until there is none. A session that was being
// admitted when the rules changed shows up a moment later, so they are ended
// anew on every look.
func (s *Server) expel(ctx context.Context) error {
	return poll(ctx, pollEvery, func() (bool, error) {
		var n int
		err := s.row(ctx, "select count(pg_terminate_backend(pid)) "+clients, nil, &n)
		return n == 0, err
	})
}

// EnsureRoles makes the two roles of understudy on a primary, with what
// pg_rewind needs to read from it. It changes nothing where they are.
func (s *Server) EnsureRoles(ctx context.Context) error {
	s.conf.Lock()
	defer s.conf.Unlock()
	if err := s.ensureAdmin(ctx); err != nil {
		return fmt.Errorf("make role %s: %w", AdminRole, err)
	}
	if err := s.sql(ctx, replicaRoleSQL); err != nil {
		return fmt.Errorf("make role %s: %w", ReplicaRole, err)
	}
	return nil
}

// ensureAdmin makes the admin role as the database's own superuser, who is let
// in for that long.
func (s *Server) ensureAdmin(ctx context.Context) error {
	err := s.sql(ctx, "select 1")
	if err == nil || !isNoRole(err) {
		return err
	}
	open, err := s.gateFile()
	if err != nil {
		return err
	}
	if err := s.writeAdmission(open, true); err != nil {
		return err
	}
	pid := s.postmaster()
	if pid == 0 {
		return ErrNotRunning
	}
	if err := hangUp(pid); err != nil {
		return err
	}
	err = poll(ctx, pollEvery, func() (bool, error) {
		c, err := s.dial(ctx, s.Superuser, nil)
		if err != nil {
			return false, retryRefused(err)
		}
		defer c.Close(ctx)
		_, err = c.Exec(ctx, "set synchronous_commit = local")
		if err == nil {
			_, err = c.Exec(ctx, "create role "+AdminRole+" superuser login")
		}
		return err == nil, err
	})
	return errors.Join(err, s.admit(ctx, open, false))
}

const replicaRoleSQL = `do $$ begin
	if not exists (select from pg_roles where rolname = '` + ReplicaRole + `') then
		create role ` + ReplicaRole + ` login replication;
	end if;
	if not has_function_privilege('` + ReplicaRole + `', 'pg_read_binary_file(text, bigint, bigint, boolean)', 'execute')
	   or not pg_has_role('` + ReplicaRole + `', 'pg_checkpoint', 'member') then
		grant pg_monitor, pg_checkpoint to ` + ReplicaRole + `;
		grant execute on function pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
			pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) to ` + ReplicaRole + `;
	end if;
end $$`
