package pgrepl_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

// TestRoles: they are made on a stopped server, again without harm, and brought
// up to date on a primary; never by making a primary of a standby's data.
func TestRoles(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a := bareNode(t, pgtest.NewCA(t), "node-a", "127.10.2.11")
	must(t, a.EnsureRoles(ctx))
	must(t, a.EnsureRoles(ctx))
	activate(t, a)
	must(t, a.EnsureRoles(ctx))
	a.sql(t, "revoke execute on function pg_read_binary_file(text) from understudy_replica")
	must(t, a.EnsureRoles(ctx))
	if got := a.query(t, "select has_function_privilege('understudy_replica', 'pg_read_binary_file(text)', 'execute')::text"); got != "true" {
		t.Errorf("after the repair: %s", got)
	}
	if got := a.query(t, "select string_agg(rolname || ' ' || rolsuper || ' ' || rolreplication, ', ' order by rolname) from pg_roles where rolname like 'understudy%'"); got !=
		"understudy true true, understudy_replica false true" && got != "understudy true false, understudy_replica false true" {
		t.Errorf("roles: %s", got)
	}
	// Over the network nobody is the admin, and nobody replicates without a certificate.
	for _, role := range []string{pgrepl.AdminRole, pgrepl.ReplicaRole} {
		conf, err := pgx.ParseConfig(a.DSN())
		must(t, err)
		conf.User = role
		if c, err := pgx.ConnectConfig(ctx, conf); err == nil {
			c.Close(ctx)
			t.Errorf("%s was let in by the rules for clients", role)
		}
	}
	a.Instance.Stop(t)
	must(t, pgrepl.PrepareBoot(a.Instance.DataDir))
	if err := a.EnsureRoles(ctx); !errors.Is(err, pgrepl.ErrNotRunning) {
		t.Errorf("on the data of a stopped standby: %v", err)
	}
}
