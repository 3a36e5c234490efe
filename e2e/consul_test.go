package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/config"
)

// raftPeers asks a member's Consul for the servers that count, by its own
// command and with the member's certificate: their names, and who leads.
func (g *group) raftPeers(t *testing.T, member string) (names []string, leader string) {
	t.Helper()
	n := g.node(t, member)
	ssl := config.Paths(n.Root).SSL
	eventually(t, "Consul on "+member+" tells its peers", func() error {
		out, err := exec.Command(filepath.Join(bin, "consul"), "operator", "raft", "list-peers", "-http-addr="+n.ConsulURL,
			"-ca-file="+filepath.Join(ssl, "ca.crt"), "-client-cert="+filepath.Join(ssl, "node.crt"), "-client-key="+filepath.Join(ssl, "node.key"),
			"-tls-server-name="+member).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		names, leader = nil, ""
		for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n")[1:] {
			name := strings.Fields(line)[0]
			names = append(names, name)
			if strings.Contains(line, " leader ") {
				leader = name
			}
		}
		return nil
	})
	return names, leader
}

func (g *group) raftLeader(t *testing.T, member string) string {
	t.Helper()
	_, leader := g.raftPeers(t, member)
	return leader
}
