package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/config"
)

// consul runs Consul's own command on a member, with its certificate, and
// returns the lines of the table that it prints.
func (g *group) consul(t *testing.T, member string, command ...string) (lines []string) {
	t.Helper()
	n := g.node(t, member)
	ssl := config.Paths(n.Root).SSL
	args := append(command, "-http-addr="+n.ConsulURL, "-ca-file="+filepath.Join(ssl, "ca.crt"),
		"-client-cert="+filepath.Join(ssl, "node.crt"), "-client-key="+filepath.Join(ssl, "node.key"), "-tls-server-name="+member)
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
