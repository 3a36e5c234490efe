package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev"
)

// TestScenarios lives through what other systems of the kind are accepted by.
// After each story the cluster is healthy again.
func TestScenarios(t *testing.T) {
	t.Parallel()
	g := up(t, "c", "127.66.4.11", 3)
	g.healthy(t, "node1", 3)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *group)
	}{
		{"each node is active in turn", inTurn},
		{"ten rounds of set-active while a node is away", tenRounds},
		{"services fail node by node", servicesFail},
		{"slots survive a failover", slotsSurvive},
		{"a standby that lags is not elected", laggard},
		{"the candidate dies in mid-promotion", candidateDies},
		{"all nodes lose power", powerCut},
		{"a foreign data directory", foreignData},
		{"a standby that misses WAL", missesWAL},
	} {
		if !t.Run(story.name, func(t *testing.T) { story.tell(t, g) }) {
			return
		}
	}
}

// inTurn makes every node active, the first one last. Rows and files of each are
// everywhere.
func inTurn(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	after := g.underWrites(t, func() {
		for _, node := range append(before.Standbys(), before.Active) {
			want(t, g.cluster(t, "node1", "set-active", node), 0, node+" is the active node")
			g.healthy(t, "node1", 3)
			name := "turn-" + node + ".txt"
			g.write(t, node, name, "of "+node)
			g.arrives(t, name, "of "+node, "node1", "node2", "node3")
		}
	})
	if after.Active != before.Active || after.Epoch != before.Epoch+3 || after.Timeline != before.Timeline+3 {
		t.Errorf("from %+v to %+v", before, after)
	}
}

// tenRounds hands over to and fro between two nodes while the third is down.
func tenRounds(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	here, there, away := before.Active, before.Standbys()[0], before.Standbys()[1]
	after := g.underWrites(t, func() {
		g.must(t, "kill", away)
		for round := range 10 {
			eventually(t, fmt.Sprintf("round %d: %s is active", round, there), func() error {
				// Refused until the former active streams from its successor.
				if r := g.cluster(t, here, "set-active", there); r.code != 0 && !strings.Contains(r.err, "already the active node") {
					return fmt.Errorf("%v", r)
				}
				return nil
			})
			here, there = there, here
		}
		g.must(t, "start", away)
	})
	if after.Active != before.Active || after.Epoch != before.Epoch+10 {
		t.Errorf("from %+v to %+v", before, after)
	}
}

// runs has a unit of a node run another command from its next start on, until the
// drop-in is removed.
func (g *group) runs(t *testing.T, node, unit, command string) (dropIn string) {
	t.Helper()
	dropIn = filepath.Join(config.Paths(g.node(t, node).Root).Units, unit+".service.d", "zz-test.conf")
	if err := os.WriteFile(dropIn, []byte("[Service]\nExecStart=\nExecStart="+command+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dropIn
}

// servicesFail breaks a unit that every member runs, on the active, then on the
// one after it. The last one serves, and does not give way to the broken ones.
func servicesFail(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	after := g.underWrites(t, func() {
		var broken, dropIns []string
		for seen := before; len(broken) < 2; seen = g.statusOf(t, "node1") {
			dropIns, broken = append(dropIns, g.runs(t, seen.Active, "notes-web", "/bin/false")), append(broken, seen.Active)
			g.must(t, "kill", seen.Active, "notes-web")
			eventually(t, "another node is active", func() error {
				s, r := g.tryStatus(t, "node1")
				if s.Active == "" || slices.Contains(broken, s.Active) {
					return fmt.Errorf("%q is: %v", s.Active, r)
				}
				return nil
			})
		}
		last := g.statusOf(t, "node1")
		for _, node := range broken {
			eventually(t, node+" is a standby that cannot be active", func() error {
				n := ask[nodeJSON](t, g, "node1", "nodes", "get", node)
				if n.State != "standby" || n.LagBytes == nil || n.Checks["services"] != "FAIL" {
					return fmt.Errorf("%+v", n)
				}
				return nil
			})
			want(t, g.cluster(t, "node1", "set-active", node), 1, node, "notes-web")
		}
		if now := g.statusOf(t, "node1"); now.Active != last.Active || now.Epoch != last.Epoch {
			t.Errorf("from %+v to %+v", last, now)
		}
		for _, file := range dropIns {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	})
	if after.Active == before.Active || after.Epoch < before.Epoch+2 {
		t.Errorf("from %+v to %+v", before, after)
	}
}

// slotsSurvive looks at the replication slots before and after PostgreSQL of the
// active has died: those of the members are there at once, so nobody is cloned,
// and those of others are left alone.
func slotsSurvive(t *testing.T, g *group) {
	before, began := g.healthy(t, "node1", 3), time.Now()
	for _, n := range g.nodes {
		sql(t, n, "select pg_create_physical_replication_slot('theirs')")
	}
	after := g.underWrites(t, func() {
		g.must(t, "kill", before.Active, "postgres")
		g.epochAfter(t, before)
	})
	for _, node := range append(after.Standbys(), after.Active) {
		for _, e := range g.eventsSince(t, "node1", node, "clone", began) {
			t.Errorf("%+v", e)
		}
		if node == before.Active { // a rewind drops all slots
			continue
		}
		names, err := g.query(t, node, "select string_agg(slot_name, ' ' order by slot_name) from pg_replication_slots where slot_type = 'physical'")
		wanted := []string{"theirs"}
		if node == after.Active {
			for _, standby := range slices.Sorted(slices.Values(after.Standbys())) {
				wanted = append(wanted, fmt.Sprintf("understudy_%d_%s", after.Epoch, standby))
			}
		}
		if err != nil || names != strings.Join(wanted, " ") {
			t.Errorf("%s has the slots %q, not %v: %v", node, names, wanted, err)
		}
		sql(t, g.node(t, node), "select pg_drop_replication_slot('theirs')")
	}
}

// laggard cuts the one link between the active and the standby that operators
// prefer, which does not lead Consul. What is written then only the other standby
// has, so that one is elected.
func laggard(t *testing.T, g *group) {
	if os.Geteuid() != 0 {
		t.Log("not root: packets cannot be dropped")
		return
	}
	before := g.healthy(t, "node1", 3)
	lags, current := before.Standbys()[0], before.Standbys()[1]
	if g.standbyLeadsConsul(t, before.Active) == lags {
		lags, current = current, lags
	}
	want(t, g.cluster(t, "node1", "nodes", "update", lags, "--options", "priority=200"), 0)
	after := g.underWrites(t, func() {
		g.must(t, "cut", lags, before.Active)
		eventually(t, "commits go on without "+lags, func() error {
			if s := g.statusOf(t, current); !slices.Equal(s.Sync.Members, []string{current}) {
				return fmt.Errorf("the sync set is %+v", s.Sync)
			}
			return nil
		})
		g.must(t, "kill", before.Active)
		g.epochAfter(t, before)
		if s := g.statusOf(t, current); s.Active != current {
			t.Errorf("%s is active", s.Active)
		}
		g.must(t, "heal")
		g.must(t, "start", before.Active)
	})
	if after.Active != current || after.Epoch != before.Epoch+1 {
		t.Errorf("from %+v to %+v", before, after)
	}
	want(t, g.cluster(t, "node1", "nodes", "update", lags, "--options", "priority="), 0)
}

// slowPromotion has the next promotion of a node take long, after its timeline is
// made and before clients could write; begun says that it does. undo makes it as it
// was.
func (g *group) slowPromotion(t *testing.T, node string) (begun func() bool, undo func()) {
	t.Helper()
	n := g.node(t, node)
	found, err := filepath.Glob(filepath.Join(n.Root, "etc/postgresql/*/main/conf.d"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	file, sign := filepath.Join(found[0], "zz-slow.conf"), filepath.Join(n.Root, "promotes")
	if err := os.WriteFile(sign, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(sign, 0o666); err != nil { // whatever the umask
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("recovery_end_command = 'echo yes > "+sign+"; sleep 30'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sql(t, n, "select pg_reload_conf()")
	begun = func() bool {
		said, err := os.ReadFile(sign)
		return err == nil && len(said) > 0
	}
	return begun, func() {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// candidateDies kills the node that is to be active whole, while it promotes.
func candidateDies(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	begun, undo := map[string]func() bool{}, map[string]func(){}
	for _, node := range before.Standbys() {
		begun[node], undo[node] = g.slowPromotion(t, node)
	}
	var candidate string
	after := g.underWrites(t, func() {
		g.must(t, "kill", before.Active, "postgres")
		eventually(t, "a node promotes", func() error {
			for node, begun := range begun {
				if begun() {
					candidate = node
				}
			}
			if candidate == "" {
				return errors.New("none does")
			}
			return nil
		})
		g.must(t, "kill", candidate)
		for node, undo := range undo {
			undo()
			if node != candidate {
				sql(t, g.node(t, node), "select pg_reload_conf()")
			}
		}
		g.must(t, "start", candidate)
	})
	if after.Epoch < before.Epoch+2 {
		t.Errorf("%s was not passed over: from %+v to %+v", candidate, before, after)
	}
}

// powerCut takes all nodes down at the same time.
func powerCut(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	all := func(what string) {
		var each sync.WaitGroup
		for _, n := range g.nodes {
			each.Go(func() {
				if r := g.dev(t, what, n.Name); r.code != 0 {
					t.Error(r)
				}
			})
		}
		each.Wait()
	}
	after := g.underWrites(t, func() {
		all("kill")
		all("start")
	})
	if after.Epoch <= before.Epoch {
		t.Errorf("from %+v to %+v", before, after)
	}
}

// foreignData puts the database of another cluster where that of a standby was. It
// is not used: the standby is cloned beside it, and it is kept as it is.
func foreignData(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	node := before.Standbys()[0]
	own := g.node(t, node).Postgres.DataDir
	var foreign []byte
	after := g.underWrites(t, func() {
		g.must(t, "kill", node)
		if err := os.RemoveAll(own); err != nil {
			t.Fatal(err)
		}
		c, err := dev.Open(g.dir)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(c.Nodes, func(n dev.Node) bool { return n.Name == node })
		if err := c.Install(t.Context(), c.Nodes[i]); err != nil {
			t.Fatal(err)
		}
		foreign = identity(t, own)
		if bytes.Equal(foreign, identity(t, g.node(t, before.Active).Postgres.DataDir)) {
			t.Fatal("it is not another database")
		}
		g.must(t, "start", node)
	})
	if after.Active != before.Active || after.Epoch != before.Epoch {
		t.Errorf("from %+v to %+v", before, after)
	}
	if now := identity(t, own); bytes.Equal(now, foreign) {
		t.Errorf("%s uses the foreign database", node)
	}
	kept, err := filepath.Glob(own + ".old-*")
	if err != nil || !slices.ContainsFunc(kept, func(dir string) bool { return bytes.Equal(identity(t, dir), foreign) }) {
		t.Errorf("the foreign database is not among %v: %v", kept, err)
	}
}

// identity reads the system identifier of a data directory, the first 8 bytes of
// pg_control.
func identity(t *testing.T, dataDir string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dataDir, "global/pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	return text[:8]
}

// missesWAL brings a standby back whose WAL the active has thrown away. It is
// cloned anew.
func missesWAL(t *testing.T, g *group) {
	before, began := g.healthy(t, "node1", 3), time.Now()
	node := before.Standbys()[0]
	active := g.node(t, before.Active)
	settings := []string{"wal_keep_size", "max_slot_wal_keep_size", "max_wal_size", "min_wal_size"}
	after := g.underWrites(t, func() {
		g.must(t, "kill", node)
		for i, value := range []string{"0", "16MB", "32MB", "32MB"} {
			sql(t, active, "alter system set "+settings[i]+" = '"+value+"'")
		}
		sql(t, active, "select pg_reload_conf()")
		eventually(t, "the WAL is gone", func() error {
			sql(t, active, "select pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()", "checkpoint")
			status, err := g.query(t, active.Name, "select wal_status from pg_replication_slots where slot_name = '"+fmt.Sprintf("understudy_%d_%s", before.Epoch, node)+"'")
			if err != nil || status != "lost" {
				return fmt.Errorf("the slot is %s: %v", status, err)
			}
			return nil
		})
		for _, s := range settings {
			sql(t, active, "alter system reset "+s)
		}
		sql(t, active, "select pg_reload_conf()")
		g.must(t, "start", node)
	})
	if found := g.eventsSince(t, before.Active, node, "clone", began); len(found) != 1 {
		t.Errorf("it was cloned %d times: %+v", len(found), found)
	}
	if after.Active != before.Active || after.Epoch != before.Epoch {
		t.Errorf("from %+v to %+v", before, after)
	}
}
