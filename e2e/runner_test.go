package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev/rig"
)

// TestRunners lives through what may happen to members that only execute, beside
// three managers. After each story all five are healthy again, but for the last.
func TestRunners(t *testing.T) {
	t.Parallel()
	g := up(t, "r", "127.61.1.11", 3, "--runners", "2")
	g.healthy(t, "runner1", 5)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *group)
	}{
		{"what is shown of a runner", showRunner},
		{"what a runner holds", runnerHolds},
		{"what a runner cannot be", runnerRefuses},
		{"files and units through a failover", runnerFollows},
		{"a runner goes down", runnerDies},
		{"a runner is removed", runnerRemoved},
		{"joins that are refused", runnerJoins},
		{"managers are removed before runners", managersRemoved},
	} {
		if !t.Run(story.name, func(t *testing.T) { story.tell(t, g) }) {
			return
		}
	}
}

func showRunner(t *testing.T, g *group) {
	for _, from := range []string{"node2", "runner1"} {
		n := ask[nodeJSON](t, g, from, "nodes", "get", "runner1")
		if n.Kind != "runner" || n.State != "runner" || n.LagBytes != nil || n.Timeline != 0 || n.HostIP != g.address(t, "runner1") {
			t.Errorf("%+v", n)
		}
		if _, ok := n.Checks["database"]; ok || len(n.Checks) != 4 {
			t.Errorf("the checks are %v", n.Checks)
		}
	}
	list := g.cluster(t, "runner2", "nodes", "list")
	for line := range strings.Lines(list.out) {
		if f := strings.Fields(line); f[0] == "runner1" && !slices.Equal(f[2:10], []string{"runner", "OK", "OK", "-", "OK", "OK", "-", "-"}) {
			t.Errorf("nodes list says %q", line)
		}
	}
	want(t, g.cluster(t, "runner1", "nodes", "get", "runner1"), 0, "services", "files", "heartbeat")
	// Of five members three are managers: a commit is on the active and one more.
	want(t, g.cluster(t, "runner1", "status"), 0, "active    node1", "on node1 and on 1 of [node2 node3]")
	n := g.node(t, "runner1")
	if code, body := get(t, n.StatusURL, "", ""); code != http.StatusBadRequest || body["role"] != "runner" || body["node"] != "runner1" {
		t.Errorf("/status answers %d %v", code, body)
	}
	if code, body := get(t, strings.TrimSuffix(n.StatusURL, "/status")+"/replica", "", ""); code != http.StatusServiceUnavailable {
		t.Errorf("/replica answers %d %v", code, body)
	}
	if n.Kind != "runner" || n.Postgres.DSN != "" || n.Pids["notes-web"] == 0 || n.Pids["postgres"] != 0 || n.Pids["notes-worker"] != 0 {
		t.Errorf("dev info says %+v", n)
	}
}

// runnerHolds checks that nothing on a runner would make it more than one.
func runnerHolds(t *testing.T, g *group) {
	l := config.Paths(g.node(t, "runner1").Root)
	for _, file := range []string{filepath.Join(l.SSL, "ca.key"), filepath.Join(l.Root, "var/lib/postgresql")} {
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", file, err)
		}
	}
	if peers, _ := g.raftPeers(t, "node1"); len(peers) != 3 || slices.Contains(peers, "runner1") {
		t.Errorf("the Raft peers are %v", peers)
	}
}

func runnerRefuses(t *testing.T, g *group) {
	before := g.healthy(t, "runner1", 5)
	want(t, g.cluster(t, "runner1", "set-active", "runner1"), 1, "runner1 is a runner and cannot be active")
	want(t, g.cluster(t, "node2", "token", "create", "--kind", "walker"), 2, "--kind", "walker", "neither manager nor runner")
	want(t, g.join(t, "runner1", g.token(t, "node2", "--kind", "runner"), "node1"), 1, "already a member of a cluster: it is runner1")
	for _, c := range [][]string{{"token", "create"}, {"token", "list"}, {"options", "set", "sync_mode=strict"}, {"nodes", "update", "node1", "--options", "priority=3"},
		{"nodes", "remove", "runner1"}, {"pause"}} {
		want(t, g.cluster(t, "runner1", c...), 1, "runner1 is a runner, and may not change the cluster; do it on a manager: node1, node2, node3")
	}
	// What the active node does for who asks, it does for a runner too.
	target := before.Standbys()[0]
	want(t, g.cluster(t, "runner1", "set-active", target), 0, target+" is the active node")
	if after := g.healthy(t, "runner1", 5); after.Epoch != before.Epoch+1 || after.Active != target {
		t.Errorf("from %+v to %+v", before, after)
	}
}

// runnerFollows kills the active under writes. The runners take the files of
// the one after it, and their units go on all the while.
func runnerFollows(t *testing.T, g *group) {
	before := g.healthy(t, "runner1", 5)
	g.write(t, before.Active, "first.txt", "from the first active")
	g.arrives(t, "first.txt", "from the first active", "runner1", "runner2")
	g.write(t, "runner1", "stray.txt", "a runner's")
	web := g.node(t, "runner1").Pids["notes-web"]
	after := g.underWrites(t, func() {
		g.must(t, "kill", before.Active)
		g.epochAfter(t, before)
		active := g.activeNow(t, "runner1")
		g.write(t, active, "second.txt", "from the second active")
		g.arrives(t, "second.txt", "from the second active", "runner1", "runner2")
		g.must(t, "start", before.Active)
	})
	if after.Active == before.Active || after.Active == "" {
		t.Errorf("from %+v to %+v", before, after)
	}
	n := g.node(t, "runner1")
	if n.Pids["notes-web"] != web {
		t.Errorf("notes-web was process %d and is %d", web, n.Pids["notes-web"])
	}
	// What a runner wrote itself goes nowhere, and is kept.
	eventually(t, "the runner's own file leaves its folder", func() error {
		if _, err := os.Stat(g.at(t, "runner1", "stray.txt")); err == nil {
			return errors.New("it is there")
		}
		return nil
	})
	if !kept(t, n.Root, "a runner's") {
		t.Error("it is not kept")
	}
	if _, err := os.Stat(g.at(t, after.Active, "stray.txt")); err == nil {
		t.Error("it was spread")
	}
}

// runnerDies takes a runner down whole, which is nobody else's matter.
func runnerDies(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 5)
	g.must(t, "kill", "runner1")
	eventually(t, "the runner is missed", func() error {
		n := ask[nodeJSON](t, g, "node1", "nodes", "get", "runner1")
		if n.State != "offline" || n.Checks["consul"] != "FAIL" {
			return fmt.Errorf("%+v", n)
		}
		return nil
	})
	want(t, g.cluster(t, "node2", "status"), 0, "every acknowledged commit is on")
	g.write(t, before.Active, "meanwhile.txt", "while it was down")
	g.must(t, "start", "runner1")
	g.arrives(t, "meanwhile.txt", "while it was down", "runner1")
	// A daemon of it dies, and is back soon.
	old := g.node(t, "runner1").Pids["handler-runner"]
	g.must(t, "kill", "runner1", "handler-runner")
	eventually(t, "its handler-runner is restarted", func() error {
		if now := g.node(t, "runner1").Pids["handler-runner"]; now == 0 || now == old {
			return fmt.Errorf("process %d, was %d", now, old)
		}
		return nil
	})
	if after := g.healthy(t, "node1", 5); after.Epoch != before.Epoch || after.Active != before.Active {
		t.Errorf("from %+v to %+v", before, after)
	}
}

func runnerRemoved(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 5)
	want(t, g.cluster(t, "node1", "nodes", "remove", "runner2"), 0, "runner2 is no member any more")
	g.told(t, "runner2", "node1")
	if after := g.healthy(t, "runner1", 4); after.Epoch != before.Epoch || after.Active != before.Active {
		t.Errorf("from %+v to %+v", before, after)
	}
	if names := g.consulMembers(t, "node1"); slices.Contains(names, "runner2") || len(names) != 4 {
		t.Errorf("Consul knows %v", names)
	}
}

// runnerJoins has the removed runner2 join again, after all that must be refused.
func runnerJoins(t *testing.T, g *group) {
	n := g.node(t, "runner2")
	good := g.token(t, "node1", "--kind", "runner")
	t.Run("files in a folder", func(t *testing.T) {
		want(t, g.join(t, "runner2", good, "node1"), 1, "this host is not empty", n.Folders[0])
	})
	g.emptyFolders(t, "runner2")
	refused := func(t *testing.T, r result, code int, words ...string) {
		t.Helper()
		want(t, r, code, words...)
		if nodes := ask[[]nodeJSON](t, g, "node1", "nodes", "list"); len(nodes) != 4 {
			t.Errorf("the members are %v", nodes)
		}
	}
	t.Run("a manager's token", func(t *testing.T) {
		refused(t, g.join(t, "runner2", g.token(t, "node1"), "node1"), 1, "join token is for another node or kind: kind manager")
	})
	t.Run("a manager without a database", func(t *testing.T) {
		refused(t, g.join(t, "runner2", g.token(t, "node1"), "node1", "--kind", "manager"), 1, "check this host", "the unit of PostgreSQL", "postgres.unit of understudy.yaml")
	})
	t.Run("another kind", func(t *testing.T) {
		refused(t, g.join(t, "runner2", good, "node1", "--kind", "walker"), 2, "--kind", "walker", "neither manager nor runner")
	})
	t.Run("a runner for a contact", func(t *testing.T) {
		refused(t, g.join(t, "runner2", good, "runner1"), 1, "is a runner and cannot let others in", "give the address of a manager", "127.61.1.11, 127.61.1.12, 127.61.1.13")
	})
	t.Run("a cluster of its own", func(t *testing.T) {
		refused(t, g.start(t, "runner2"), 2, "node.kind", "a cluster is started on a manager")
	})
	// It waits while Consul elects a leader.
	active := g.healthy(t, "node1", 4).Active
	g.must(t, "kill", g.standbyLeadsConsul(t, active), "consul")
	want(t, g.join(t, "runner2", good, active), 0, "runner2 is a runner of cluster")
	g.healthy(t, "runner2", 5)
	g.arrives(t, "meanwhile.txt", "while it was down", "runner2")
}

// managersRemoved takes managers out until one is left: runners do not count.
func managersRemoved(t *testing.T, g *group) {
	s := g.healthy(t, "runner1", 5)
	for _, name := range s.Standbys() {
		want(t, g.cluster(t, s.Active, "nodes", "remove", name), 0, name+" is no member any more")
	}
	want(t, g.cluster(t, s.Active, "nodes", "remove", s.Active, "--force"), 1, "it is the last member that can be active")
	eventually(t, "the last manager serves", func() error {
		after := ask[rig.Status](t, g, "runner2", "status")
		if after.Active != s.Active || after.Epoch != s.Epoch || len(after.Nodes) != 3 {
			return fmt.Errorf("%+v", after)
		}
		return nil
	})
}

// emptyFolders takes all content out of a host's folders.
func (g *group) emptyFolders(t *testing.T, node string) {
	t.Helper()
	for _, dir := range g.node(t, node).Folders {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
}
