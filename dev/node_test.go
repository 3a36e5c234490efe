package dev

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/services/proctree"
)

// installed makes a cluster of installed nodes, which are up.
func installed(t *testing.T, first string, nodes int) *Cluster {
	t.Helper()
	dir := tempDir(t)
	postgres, err := findPostgres("/usr/lib/postgresql")
	if err != nil {
		t.Fatal(err)
	}
	list, err := newNodes(dir, nodes, 0, first)
	if err != nil {
		t.Fatal(err)
	}
	bin := binDir(t)
	c := &Cluster{Dir: dir, Bin: bin, Consul: filepath.Join(bin, "consul"), PostgresBin: postgres, Nodes: list}
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Down(context.Background(), dir, false); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	if err := c.each(func(n Node) error { return c.Install(t.Context(), n) }); err != nil {
		t.Fatal(err)
	}
	if err := c.each(func(n Node) error { return c.start(t.Context(), n) }); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask runs a query on a node's PostgreSQL, once it answers.
func ask(t *testing.T, n Node, query string) (answer string) {
	t.Helper()
	eventually(t, n.Name+" answers "+query, func() bool {
		conn, err := pgx.Connect(t.Context(), dsn(n.Address))
		if err != nil {
			return false
		}
		defer conn.Close(context.Background())
		return conn.QueryRow(t.Context(), query).Scan(&answer) == nil
	})
	return answer
}

func describe(t *testing.T, c *Cluster, name string) NodeInfo {
	t.Helper()
	info, err := Describe(t.Context(), c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range info.Nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("no %s in %+v", name, info)
	return NodeInfo{}
}

func TestInstalledNode(t *testing.T) {
	c := installed(t, "127.10.4.51", 1)
	n := c.Nodes[0]
	if err := c.Install(t.Context(), n); err != nil {
		t.Errorf("a second install: %v", err)
	}
	conf, err := config.Load(n.Root)
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, n, "show data_directory"); got != conf.Postgres.DataDir {
		t.Errorf("the configuration names data directory %s, PostgreSQL runs on %s", conf.Postgres.DataDir, got)
	}
	if got := ask(t, n, "show config_file"); got != conf.Postgres.ConfigFile {
		t.Errorf("the configuration names %s, PostgreSQL reads %s", conf.Postgres.ConfigFile, got)
	}
	if got := ask(t, n, "select rolsuper::text from pg_roles where rolname = current_user"); got != "true" {
		t.Errorf("superuser: %s", got)
	}
	if err := n.init().Reload(t.Context()); err != nil {
		t.Errorf("unit files: %v", err)
	}

	before := describe(t, c, "node1")
	if before.State != StateUp || before.Pids["postgres"] == 0 || before.Pids["init"] == 0 {
		t.Errorf("info: %+v", before)
	}
	// Not in a cluster: it starts as it was.
	if got := ask(t, n, "select pg_is_in_recovery()::text"); got != "false" {
		t.Errorf("in recovery: %s", got)
	}

	// In a cluster, as understudy.conf says, it starts as a standby.
	ours := filepath.Join(filepath.Dir(conf.Postgres.ConfigFile), "conf.d", "understudy.conf")
	if err := os.WriteFile(ours, []byte("hot_standby = on\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Kill(t.Context(), c.Dir, "node1", "postgres"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "PostgreSQL was started again", func() bool {
		pid := describe(t, c, "node1").Pids["postgres"]
		return pid != 0 && pid != before.Pids["postgres"]
	})
	if got := ask(t, n, "select pg_is_in_recovery()::text"); got != "true" {
		t.Errorf("in recovery: %s", got)
	}

	// A rewind that has not ended keeps it down.
	mark := conf.Postgres.DataDir + ".rewinding"
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.init().Stop(t.Context(), PostgresUnit); err != nil {
		t.Fatal(err)
	}
	if err := n.init().Start(t.Context(), PostgresUnit); err == nil || !strings.Contains(err.Error(), "main.rewinding") {
		t.Errorf("start in the middle of a rewind: %v", err)
	}
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	if err := n.init().Start(t.Context(), PostgresUnit); err != nil {
		t.Error(err)
	}
}

func TestKillAllAndStart(t *testing.T) {
	c := installed(t, "127.10.4.53", 1)
	n := c.Nodes[0]
	ask(t, n, "select 'up'")
	r, up := n.record()
	if !up {
		t.Fatal("the node is not up")
	}
	table, err := proctree.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	all := table.Descendants(r.Guard.PID)
	if len(all) < 5 {
		t.Fatalf("want init, postmaster and its children, got %d", all)
	}
	for range 2 {
		if err := Kill(t.Context(), c.Dir, "node1", All); err != nil {
			t.Fatal(err)
		}
	}
	for _, pid := range all {
		if table[pid].Alive() {
			t.Errorf("process %d has outlived its node", pid)
		}
	}
	if got := describe(t, c, "node1"); got.State != StateDown || len(got.Pids) != 0 {
		t.Errorf("info: %+v", got)
	}
	for what, err := range map[string]error{
		"kill":   Kill(t.Context(), c.Dir, "node1", "postgres"),
		"freeze": Freeze(t.Context(), c.Dir, "node1"),
		"thaw":   Thaw(t.Context(), c.Dir, "node1"),
	} {
		if !errors.Is(err, ErrDown) {
			t.Errorf("%s on a node that is down: %v", what, err)
		}
	}
	for range 2 {
		if err := Start(t.Context(), c.Dir, "node1"); err != nil {
			t.Fatal(err)
		}
	}
	ask(t, n, "select 'back'")
}

func TestFreezeAndThaw(t *testing.T) {
	c := installed(t, "127.10.4.55", 1)
	n := c.Nodes[0]
	ask(t, n, "select 'up'")
	var before int // the unit counts as running a moment after it answers
	eventually(t, "the unit of PostgreSQL runs", func() bool {
		before = describe(t, c, "node1").Pids["postgres"]
		return before != 0
	})
	if err := Freeze(t.Context(), c.Dir, "node1"); err != nil {
		t.Fatal(err)
	}
	r, _ := n.record()
	table, err := proctree.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range table.Descendants(r.Guard.PID) {
		if table[pid].State != 'T' {
			t.Errorf("process %d is not stopped: %c", pid, table[pid].State)
		}
	}
	if got := describe(t, c, "node1").State; got != StateFrozen {
		t.Errorf("state %s", got)
	}
	if err := Kill(t.Context(), c.Dir, "node1", "postgres"); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("kill on a frozen node: %v", err)
	}
	if err := Thaw(t.Context(), c.Dir, "node1"); err != nil {
		t.Fatal(err)
	}
	ask(t, n, "select 'still up'")
	if got := describe(t, c, "node1").Pids["postgres"]; got != before {
		t.Errorf("PostgreSQL is another process, %d instead of %d", got, before)
	}
	// A frozen node can be taken down.
	if err := Freeze(t.Context(), c.Dir, "node1"); err != nil {
		t.Fatal(err)
	}
	if err := Kill(t.Context(), c.Dir, "node1", All); err != nil {
		t.Fatal(err)
	}
}

func TestDownKeepsOrDeletes(t *testing.T) {
	c := installed(t, "127.10.4.57", 2)
	for _, n := range c.Nodes {
		ask(t, n, "select 'up'") // one that is stopped before it has begun says nothing
	}
	other := filepath.Join(c.Dir, "somebody's file")
	if err := os.WriteFile(other, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Down(t.Context(), c.Dir, true); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Nodes {
		if _, up := n.record(); up {
			t.Errorf("%s is up", n.Name)
		}
		log, err := os.ReadFile(filepath.Join(n.layout().Log, "postgresql.log"))
		if err != nil || !strings.Contains(string(log), "database system is shut down") {
			t.Errorf("%s was not stopped in order: %s, %v", n.Name, log, err)
		}
	}
	if err := Start(t.Context(), c.Dir, "node1"); err != nil {
		t.Fatal(err)
	}
	ask(t, c.Nodes[0], "select 'kept'")
	for range 2 {
		if err := Down(t.Context(), c.Dir, false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(c.Dir); !errors.Is(err, ErrNoCluster) {
		t.Errorf("after down: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(c.Dir, "*"))
	if err != nil || len(left) != 1 || left[0] != other {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestLogs(t *testing.T) {
	c := bare(t, "127.10.4.59", 2, func(n Node) map[string]string {
		return map[string]string{"say.service": "[Service]\nExecStart=/usr/bin/printf \"one\\\\ntwo\\\\nthree of ADDRESS\\\\n\"\n"}
	})
	var out bytes.Buffer
	eventually(t, "both have spoken", func() bool {
		out.Reset()
		if err := Logs(t.Context(), &out, c.Dir, "", 2, false); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(out.String(), "three of 127.10.4.59") && strings.Contains(out.String(), "three of 127.10.4.60")
	})
	if text := out.String(); !strings.Contains(text, "node1 say             two\n") || strings.Contains(text, "say             one\n") {
		t.Errorf("not the last two lines with their labels:\n%s", text)
	}
	if err := Logs(t.Context(), &out, c.Dir, "node9", 2, false); !errors.Is(err, ErrNoNode) {
		t.Errorf("logs of no node: %v", err)
	}
}
