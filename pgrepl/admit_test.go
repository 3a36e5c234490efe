package pgrepl_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

// TestGate: a closed gate ends every client session and admits none, while
// standbys stream on; an open one admits whom the operator's rules admit.
func TestGate(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.10.2.11", "127.10.2.12")
	a.sql(t, "create table notes (n int)")
	var clients []*pgx.Conn
	for range 5 {
		c, err := pgx.Connect(ctx, a.DSN())
		must(t, err)
		defer c.Close(ctx)
		clients = append(clients, c)
	}
	if o := a.Observe(ctx); o.Clients != 5 || o.Gate != cluster.Yes {
		t.Errorf("open: %+v", o)
	}
	busy := make(chan error, 1)
	go func() {
		_, err := clients[0].Exec(ctx, "select pg_sleep(60)")
		busy <- err
	}()
	must(t, a.Gate(ctx, false))
	if err := <-busy; err == nil {
		t.Error("a busy session outlived the gate")
	}
	for i, c := range clients {
		if _, err := c.Exec(ctx, "insert into notes values (1)"); err == nil {
			t.Errorf("session %d outlived the gate", i)
		}
	}
	if _, err := pgx.Connect(ctx, a.DSN()); err == nil || !strings.Contains(err.Error(), "28000") {
		t.Errorf("connecting through a closed gate: %v", err)
	}
	o := a.Observe(ctx)
	if o.Clients != 0 || o.Gate != cluster.No || o.Primary != cluster.Yes || len(o.Replicas) != 1 {
		t.Errorf("closed: %+v", o)
	}
	if !b.Observe(ctx).Streaming() {
		t.Error("the standby was cut off")
	}
	must(t, a.Gate(ctx, true))
	a.sql(t, "insert into notes values (1)")
}

// TestRunnersDoNotReplicate: the certificate of a manager opens the database to a
// standby, that of a runner does not.
func TestRunnersDoNotReplicate(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	connect := func(name string, units ...string) error {
		dir := t.TempDir()
		ca.Issue(t, dir, name, "127.10.2.12", units...)
		c, err := pgx.Connect(ctx, fmt.Sprintf("host=127.10.2.11 port=%d user=%s dbname=postgres sslmode=verify-ca sslrootcert=%s/ca.crt sslcert=%s/node.crt sslkey=%s/node.key",
			a.Port, pgrepl.ReplicaRole, dir, dir, dir))
		if err == nil {
			err = c.Close(ctx)
		}
		return err
	}
	must(t, connect("node-b"))
	must(t, connect("b2"))
	if err := connect("runner-1", "runner"); err == nil || !strings.Contains(err.Error(), "28000") {
		t.Errorf("a runner is let in: %v", err)
	}
}

// TestQuorumIsInEffect: when SetQuorum returns, no commit is acknowledged by less.
func TestQuorumIsInEffect(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b", "node-c"}))
	b := newStandby(t, ca, "node-b", "127.10.2.12", a)
	c := newStandby(t, ca, "node-c", "127.10.2.13", a)
	a.sql(t, "create table notes (n int)")
	both := []string{"node-b", "node-c"}

	must(t, a.SetQuorum(ctx, cluster.Quorum{Members: both, K: 1}))
	_, err := c.Detach(ctx)
	must(t, err)
	a.sql(t, "insert into notes values (1)") // b alone is enough

	began := time.Now()
	must(t, a.SetQuorum(ctx, cluster.Quorum{Members: both, K: 2}))
	t.Logf("raised to two in %v", time.Since(began))
	if committed(t, a) {
		t.Error("a commit was acknowledged by one of two")
	}
	must(t, a.SetQuorum(ctx, cluster.Quorum{Members: []string{"node-b"}, K: 1}))
	if !committed(t, a) {
		t.Error("b alone is not enough")
	}
	must(t, a.SetQuorum(ctx, cluster.Quorum{Members: []string{"node-c"}, K: 1}))
	if committed(t, a) {
		t.Error("b acknowledged a commit for c")
	}
	must(t, a.SetQuorum(ctx, cluster.Quorum{}))
	if !committed(t, a) {
		t.Error("a commit waits for nobody")
	}
	must(t, a.SetQuorum(ctx, cluster.Quorum{Members: []string{"node-c"}, K: 1}))
	if committed(t, a) {
		t.Error("a commit did not wait after there was nobody")
	}
	if _, err := b.Detach(ctx); err != nil {
		t.Error(err)
	}
	if err := a.SetQuorum(ctx, cluster.Quorum{Members: both, K: 3}); err == nil {
		t.Error("three of two were taken")
	}
}

// committed says whether a commit is acknowledged. It ends the session of one
// that waits; that commit is then indeterminate.
func committed(t *testing.T, n *node) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(ctxOf(t))
	defer cancel()
	c, err := pgx.Connect(ctx, n.DSN())
	must(t, err)
	defer c.Close(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := c.Exec(ctx, "insert into notes values (2)")
		done <- err
	}()
	var err2 error
	acknowledged := false
	await(t, "the commit is acknowledged or waits", func() bool {
		select {
		case err2 = <-done:
			acknowledged = true
			return true
		default:
		}
		// One that a standby is about to acknowledge waits a moment too.
		return waits(t, n) && settled(t, n)
	})
	if !acknowledged {
		cancel()
		<-done
		return false
	}
	must(t, err2)
	return true
}

func waits(t *testing.T, n *node) bool {
	return n.query(t, "select count(*)::text from pg_stat_activity where wait_event = 'SyncRep'") != "0"
}

// settled: a commit still waits when every standby that streams has flushed it.
func settled(t *testing.T, n *node) bool {
	at := n.Observe(t.Context()).Position.LSN
	await(t, "the standbys have flushed", func() bool {
		for _, r := range n.Observe(t.Context()).Replicas {
			if r.State == "streaming" && r.Flushed < at {
				return false
			}
		}
		return true
	})
	return waits(t, n)
}

// TestSlots: ours are kept as they should be, those of others are left alone.
func TestSlots(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	a.sql(t, "select pg_create_physical_replication_slot('theirs', true)")
	a.sql(t, "select pg_create_physical_replication_slot('understudyxnode_x', true)")
	a.sql(t, "select pg_create_logical_replication_slot('understudy_logical', 'test_decoding')")
	a.sql(t, "select pg_create_physical_replication_slot('understudy_node_c')") // reserves nothing
	slots := func(n *node) string {
		return n.query(t, `select string_agg(slot_name || case when restart_lsn is null then '?' else '' end, ' ' order by slot_name collate "C") from pg_replication_slots`)
	}
	for range 2 {
		must(t, a.EnsureSlots(ctx, "1", []string{"node-b", "node-c"}))
		if got := slots(a); got != "theirs understudy_1_node_b understudy_1_node_c understudy_logical understudyxnode_x" {
			t.Errorf("slots: %s", got)
		}
	}
	b := newStandby(t, ca, "node-b", "127.10.2.12", a)
	must(t, b.EnsureSlots(ctx, "1", []string{"node-a", "node-c"}))
	if got := slots(b); got != "understudy_1_node_a understudy_1_node_c" {
		t.Errorf("slots of the standby: %s", got)
	}
	must(t, b.EnsureSlots(ctx, "1", nil))
	if got := b.query(t, "select count(*)::text from pg_replication_slots"); got != "0" {
		t.Errorf("%s slots left", got)
	}
	await(t, "b streams", func() bool { return b.Observe(ctx).Streaming() })
	must(t, a.EnsureSlots(ctx, "2", []string{"node-b"}))
	if got := slots(a); got != "theirs understudy_2_node_b understudy_logical understudyxnode_x" {
		t.Errorf("slots: %s", got)
	}
	await(t, "b gets nothing of a tenure that it does not follow", func() bool { return b.Observe(ctx).Receiver == "" })
	up := a.upstream()
	up.Tenure = "2"
	must(t, b.Follow(ctx, up))
	await(t, "b streams again", func() bool { return b.Observe(ctx).Streaming() })
	must(t, a.EnsureSlots(ctx, "", nil))
	if got := slots(a); got != "theirs understudy_logical understudyxnode_x" {
		t.Errorf("slots: %s", got)
	}
}

// TestLostSlotIsMadeAnew: a slot whose WAL is gone would never be of use again.
func TestLostSlotIsMadeAnew(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a := newPrimary(t, pgtest.NewCA(t), "node-a", "127.10.2.11")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	a.sql(t, "alter system set wal_keep_size = 0")
	a.sql(t, "alter system set max_slot_wal_keep_size = '16MB'")
	a.sql(t, "alter system set min_wal_size = '32MB'")
	a.sql(t, "alter system set max_wal_size = '32MB'")
	a.sql(t, "select pg_reload_conf()")
	await(t, "the slot is lost", func() bool {
		a.sql(t, "select pg_switch_wal() from (select pg_logical_emit_message(false, 'x', 'y')) x")
		a.sql(t, "checkpoint")
		return a.query(t, "select wal_status from pg_replication_slots") == "lost"
	})
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	if got := a.query(t, "select wal_status from pg_replication_slots"); got != "reserved" {
		t.Errorf("the slot is %s", got)
	}
}

// TestDrill: the writer of a drill comes in with a manager's certificate, only
// during a drill and only where clients do, and may write to its own schema alone.
func TestDrill(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	a.sql(t, "create table notes (n int)")
	connect := func(name string, units ...string) (*pgx.Conn, error) {
		dir := t.TempDir()
		ca.Issue(t, dir, name, "127.10.2.12", units...)
		return pgx.Connect(ctx, fmt.Sprintf("host=127.10.2.11 port=%d user=%s dbname=%s search_path=%s sslmode=verify-full sslrootcert=%s/ca.crt sslcert=%s/node.crt sslkey=%s/node.key",
			a.Port, pgrepl.DrillRole, pgrepl.DrillDatabase, pgrepl.DrillSchema, dir, dir, dir))
	}
	if _, err := connect("node-b"); err == nil {
		t.Error("there is no drill, and its role comes in")
	}
	must(t, a.OpenDrill(ctx))
	must(t, a.OpenDrill(ctx)) // what another drill has left
	if _, err := connect("runner-1", "runner"); err == nil || !strings.Contains(err.Error(), "28000") {
		t.Errorf("a runner is let in: %v", err)
	}
	c, err := connect("node-b")
	must(t, err)
	defer c.Close(ctx)
	if _, err := c.Exec(ctx, "create table probe (id int); insert into probe values (1)"); err != nil {
		t.Error(err)
	}
	if _, err := c.Exec(ctx, "insert into public.notes values (1)"); err == nil || !strings.Contains(err.Error(), "42501") {
		t.Errorf("the writer may write elsewhere: %v", err)
	}
	must(t, a.Gate(ctx, false))
	if _, err := connect("node-b"); err == nil || !strings.Contains(err.Error(), "28000") {
		t.Errorf("the gate is closed, and the writer comes in: %v", err)
	}
	must(t, a.Gate(ctx, true))
	again, err := connect("node-b")
	must(t, err)
	defer again.Close(ctx)
	must(t, a.CloseDrill(ctx))
	must(t, a.CloseDrill(ctx))
	if _, err := again.Exec(ctx, "select 1"); err == nil {
		t.Error("a session outlived the drill")
	}
	if left := a.query(t, "select ((select count(*) from pg_roles where rolname = '"+pgrepl.DrillRole+"') + (select count(*) from pg_namespace where nspname = '"+pgrepl.DrillSchema+"'))::text"); left != "0" {
		t.Errorf("%s things are left", left)
	}
}
