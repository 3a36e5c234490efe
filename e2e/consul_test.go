package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev"
)

// consul runs Consul's own command on a member, with its certificate and its
// operator's token, and returns the lines of the table that it prints.
func (g *group) consul(t *testing.T, member string, command ...string) (lines []string) {
	t.Helper()
	n := g.node(t, member)
	l := config.Paths(n.Root)
	ssl := l.SSL
	args := append(command, "-http-addr="+n.ConsulURL, "-ca-file="+filepath.Join(ssl, "ca.crt"),
		"-client-cert="+filepath.Join(ssl, "node.crt"), "-client-key="+filepath.Join(ssl, "node.key"), "-tls-server-name="+member, "-token-file="+l.Operator())
	eventually(t, "Consul on "+member+" answers", func() error {
		out, err := exec.Command(filepath.Join(bin, "consul"), args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		lines = strings.Split(strings.TrimSpace(string(out)), "\n")[1:]
		return nil
	})
	return lines
}

// raftPeers asks a member's Consul for the servers that count: their names, and
// who leads.
func (g *group) raftPeers(t *testing.T, member string) (names []string, leader string) {
	t.Helper()
	for _, line := range g.consul(t, member, "operator", "raft", "list-peers") {
		name := strings.Fields(line)[0]
		names = append(names, name)
		if strings.Contains(line, " leader ") {
			leader = name
		}
	}
	return names, leader
}

// consulMembers are those that a member's Consul gossips with, and itself.
func (g *group) consulMembers(t *testing.T, member string) (names []string) {
	t.Helper()
	for _, line := range g.consul(t, member, "members") {
		if f := strings.Fields(line); f[2] != "left" {
			names = append(names, f[0])
		}
	}
	return names
}

func (g *group) raftLeader(t *testing.T, member string) string {
	t.Helper()
	_, leader := g.raftPeers(t, member)
	return leader
}

// standbyLeadsConsul waits until the watcher has moved Consul's leadership off the
// active node, and returns who has it.
func (g *group) standbyLeadsConsul(t *testing.T, active string) (leader string) {
	t.Helper()
	eventually(t, "a standby leads Consul", func() error {
		if leader = g.raftLeader(t, active); leader == active {
			return errors.New("the active does")
		}
		return nil
	})
	return leader
}

// consulLeaderDies takes down the standby that leads Consul. Until Consul has a
// leader again no lease is renewed: the other standby vouches for the active, which
// stays what it is.
func consulLeaderDies(t *testing.T, g *group) {
	s := g.healthy(t, "node1", 3)
	g.standbyLeadsConsul(t, s.Active)
	after := g.underWrites(t, func() {
		leader := g.raftLeader(t, s.Active)
		g.must(t, "kill", leader)
		i := slices.IndexFunc(g.nodes, func(n dev.NodeInfo) bool { return n.Name != leader })
		eventually(t, "a node is active", func() error {
			if r := g.cluster(t, g.nodes[i].Name, "status"); r.code != 0 {
				return errors.New(r.String())
			}
			return nil
		})
		g.must(t, "start", leader)
	})
	if after.Epoch != s.Epoch || after.Active != s.Active {
		t.Errorf("%s was active in epoch %d, and %s in %d", s.Active, s.Epoch, after.Active, after.Epoch)
	}
}

// cutStandby cuts one standby off from both others until Consul has lost it. When
// the cut is healed it comes back, although gossip has given it up. Only root
// can cut.
func cutStandby(t *testing.T, g *group) {
	if os.Geteuid() != 0 {
		t.Log("not root: packets cannot be dropped")
		return
	}
	before := g.healthy(t, "node1", 3)
	away, stays := before.Standbys()[0], before.Standbys()[1]
	after := g.underWrites(t, func() {
		g.must(t, "cut", away, before.Active)
		g.must(t, "cut", away, stays)
		eventually(t, "Consul has lost "+away, func() error {
			r := g.cluster(t, before.Active, "nodes", "get", away, "--json")
			var n nodeJSON
			if err := json.Unmarshal([]byte(r.out), &n); err != nil || n.Checks["consul"] != "FAIL" {
				return errors.New(r.String()) // without a leader, if that was cut off, nothing is known
			}
			return nil
		})
		g.must(t, "heal")
		healed := time.Now()
		g.healthy(t, before.Active, 3)
		t.Logf("healthy %.1f s after the cut was healed", time.Since(healed).Seconds())
	})
	if after.Epoch != before.Epoch || after.Active != before.Active {
		t.Errorf("%s was active in epoch %d, and %s in %d", before.Active, before.Epoch, after.Active, after.Epoch)
	}
}
