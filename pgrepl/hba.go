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
// wrote, or a closed door.
func (s *Server) hba(open bool, original string) string {
	var b strings.Builder
	b.WriteString("# Written by understudy; changes are lost. The rules for clients are copied from the file\n" +
		"# that postgresql.conf names; edit that one.\n")
	state := gateClosed
	if open {
		state = gateOpen
	}
	fmt.Fprintln(&b, state)
	fmt.Fprintf(&b, "local all %s peer map=%s\n", AdminRole, localMap)
	fmt.Fprintf(&b, "hostssl replication,all %s all cert clientname=DN map=%s\n", ReplicaRole, certMap)
	fmt.Fprintf(&b, "host replication,all %s,%s all reject\n", AdminRole, ReplicaRole)
	if open {
		fmt.Fprintf(&b, "hostssl %s %s all cert clientname=DN map=%s\n", DrillDatabase, DrillRole, certMap)
		b.WriteString(original)
		return b.String()
	}
	b.WriteString("local replication,all all reject\nhost replication,all all all reject\n")
	return b.String()
}

// identText is our pg_ident.conf: who on this machine is our admin, that every
// manager may replicate and drill, and the operator's maps. The certificate of a manager,
// and of no other member, has its name alone as its subject.
func (s *Server) identText(original string) string {
	users := []string{"root", "understudy", s.SystemUser}
	slices.Sort(users)
	var b strings.Builder
	b.WriteString("# Written by understudy; changes are lost.\n")
	for _, u := range slices.Compact(users) {
		fmt.Fprintf(&b, "%s %s %s\n", localMap, `"`+u+`"`, AdminRole)
	}
	for _, role := range []string{ReplicaRole, DrillRole} {
		fmt.Fprintf(&b, "%s /^CN=[a-z0-9-]+$ %s\n", certMap, role)
	}
	b.WriteString(original)
	return b.String()
}

// Gate opens the server to clients or closes it, and takes over what the
// operator changed in the original files since. Closed, only understudy's own
// sessions and standbys are let in; it returns when no client session is left.
// Without a server the rules are written for its next start and the error wraps
// ErrNotRunning.
func (s *Server) Gate(ctx context.Context, open bool) error {
	word := "close"
	if open {
		word = "open"
	}
	if err := s.admit(ctx, open); err != nil {
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

// admit writes the rules and waits until they are in effect, and durable.
func (s *Server) admit(ctx context.Context, open bool) error {
	sync, err := s.writeAdmission(open)
	if err != nil {
		return err
	}
	synced := make(chan error, 1)
	go func() { synced <- sync() }()
	changed, err := s.change(ctx, func(d *dynamic) { d.generation++ }) // or else it might read nothing
	if err == nil {
		err = s.inEffect(ctx, changed)
	}
	return errors.Join(err, <-synced)
}

// writeAdmission writes the rules. They are durable when sync has been called.
func (s *Server) writeAdmission(open bool) (sync func() error, err error) {
	s.conf.Lock()
	defer s.conf.Unlock()
	from, err := s.readOriginals()
	if err != nil {
		return nil, err
	}
	hba, err := readOptional(from.HBA)
	if err != nil {
		return nil, err
	}
	ident, err := readOptional(from.Ident)
	if err != nil {
		return nil, err
	}
	if err := s.refreshFile(s.own("pg_ident.conf"), s.identText(ident), 0o640); err != nil {
		return nil, err
	}
	return s.replaceFile(s.own("pg_hba.conf"), s.hba(open, hba), 0o640)
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
