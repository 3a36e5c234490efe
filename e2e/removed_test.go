package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
)

// removed takes members out until one is left. It is the last story.
func removed(t *testing.T, g *group) {
	s := g.healthy(t, "node1", 3)
	down, stays := s.Standbys()[0], s.Standbys()[1]
	want(t, g.cluster(t, stays, "nodes", "remove", "node9"), 1, "node9 is not a member")

	// A member that is down is told when it comes back.
	g.must(t, "kill", down)
	want(t, g.cluster(t, stays, "nodes", "remove", down, "--timeout", "55s"), 0, down+" is no member any more")
	g.healthy(t, stays, 2)
	g.must(t, "start", down)
	g.told(t, down, s.Active)
	g.healthy(t, stays, 2)
	want(t, g.cluster(t, stays, "nodes", "remove", down), 0, down+" is no member any more") // once more

	// The active hands over first.
	g.underTwo(t, func() {
		want(t, g.cluster(t, s.Active, "nodes", "remove", s.Active), 0, "hand over", s.Active+" is no member any more")
	})
	after := g.healthy(t, stays, 1)
	if after.Active != stays || after.Epoch <= s.Epoch {
		t.Errorf("%+v", after)
	}
	g.told(t, s.Active, stays)
	want(t, g.cluster(t, stays, "nodes", "remove", stays), 1, "last member")
	g.healthy(t, stays, 1)

	// It is still told after a boot, and has not come back.
	g.must(t, "kill", down)
	g.must(t, "start", down)
	g.told(t, down, stays)
	g.healthy(t, stays, 1)

	// With its data it is refused. Emptied, it may join again, with another address.
	want(t, g.join(t, down, g.token(t, stays), stays), 1, "this host is not empty")
	const moved = "127.40.1.21"
	g.empty(t, down, moved)
	want(t, g.cluster(t, down, "join", "--cluster-host-ip", moved, "--cluster-node-name", down, "--token", g.token(t, stays), g.address(t, stays)), 0, down+" is a standby")
	g.healthy(t, stays, 2)
	want(t, g.cluster(t, stays, "nodes", "get", down), 0, moved)
	want(t, g.cluster(t, stays, "set-active", down), 0, down+" is the active node")
	g.healthy(t, stays, 2)
}

// empty makes a host's database and folders new, as an operator would, who has also
// given it another address.
func (g *group) empty(t *testing.T, node, address string) {
	t.Helper()
	n := g.node(t, node)
	g.must(t, "kill", node)
	for _, dir := range append([]string{n.Postgres.DataDir, filepath.Join(n.Root, "etc/postgresql")}, n.Folders...) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	c, err := dev.Open(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	spec := dev.NodeSpec{Root: n.Root, Name: n.Name, Address: address, Bin: c.Bin, Consul: c.Consul, PostgresBin: c.PostgresBin}
	if err := dev.Install(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	g.must(t, "start", node)
}

// underTwo is like underWrites, for what leaves a single node.
func (g *group) underTwo(t *testing.T, happens func()) {
	t.Helper()
	w := g.writes(t)
	happens()
	eventually(t, "writes are acknowledged", func() error {
		if last := w.Last(); time.Since(last.At) > time.Second {
			return fmt.Errorf("the last was %v", last)
		}
		return nil
	})
	j := w.end(t)
	findings, err := probe.Verify(t.Context(), j, g.targets(w.Last().Node)[0])
	if err != nil || len(findings) != 1 || !findings[0].Sound() {
		t.Errorf("%+v, %v", findings, err)
	}
}

// told checks that a removed node says so itself, and that Consul has let it go.
func (g *group) told(t *testing.T, node, member string) {
	t.Helper()
	n := g.node(t, node)
	eventually(t, node+" has withdrawn", func() error {
		code, body := get(t, n.StatusURL, "", "")
		if code != http.StatusBadRequest || body["removed_from_cluster"] != true {
			return fmt.Errorf("/status answers %d %v", code, body)
		}
		r := g.cluster(t, node, "nodes", "list")
		if r.code != 1 || !strings.Contains(r.err, node+" was removed from the cluster") {
			return fmt.Errorf("%v", r)
		}
		for _, gone := range []string{"consul", "postgres", "file-sync", "check-runner", "consul-watcher", "postgres-helper", "notes-web", "notes-worker"} {
			if pid := g.node(t, node).Pids[gone]; pid != 0 {
				return fmt.Errorf("%s still runs", gone)
			}
		}
		if peers, _ := g.raftPeers(t, member); slices.Contains(peers, node) {
			return fmt.Errorf("it is a Raft peer: %v", peers)
		}
		return nil
	})
}
