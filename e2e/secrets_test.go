package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/registry"
)

// The key of gossip is replaced under a running cluster, and the tokens of a node that
// is removed come to an end.
func TestSecrets(t *testing.T) {
	t.Parallel()
	g := hosts(t, "se", "127.40.23.", 3)
	want(t, g.start(t, "node1"), 0, "is the active node of cluster")
	g.healthy(t, "node1", 1)
	want(t, g.join(t, "node2", g.token(t, "node1"), "node1"), 0, "node2 is a standby of cluster")
	before := g.healthy(t, "node1", 2)
	was := g.gossipKey(t, "node1")
	g.replaceGossipKey(t, "node2", 2)
	if after := g.healthy(t, "node1", 2); after.Epoch != before.Epoch {
		t.Errorf("epoch %d, then %d", before.Epoch, after.Epoch)
	}
	if g.gossipKey(t, "node1") == was {
		t.Error("the key is the former one")
	}
	want(t, g.join(t, "node3", g.token(t, "node1"), "node1"), 0, "node3 is a standby of cluster")
	g.healthy(t, "node1", 3)

	after := g.underWrites(t, func() {
		g.replaceGossipKey(t, "node1", 3)
		g.must(t, "kill", "node2", "consul")
		eventually(t, "node2 is back in gossip", func() error {
			if r := g.command(t, "node2", "certs", "rotate", "--gossip"); r.code != 0 {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
	})
	if after.Epoch != before.Epoch {
		t.Errorf("epoch %d, then %d", before.Epoch, after.Epoch)
	}
	g.nobodyIsRefused(t, "node1", "node2", "node3")

	want(t, g.command(t, "node1", "certs", "rotate", "--gossip", "node2"), 2, "--gossip is of all members")
	standby := after.Standbys()[0]
	g.must(t, "kill", standby)
	r := g.command(t, after.Active, "certs", "rotate", "--gossip")
	want(t, r, 1, "not every member is there: "+standby, "bring it up, or take it out with 'understudy cluster nodes remove'")

	// Whoever took the tokens of a removed node has no more use of them.
	for _, h := range registry.Holders() {
		if err := g.reads(t, after.Active, standby, h); h != registry.HolderAgent && h != registry.HolderDNS && err != nil {
			t.Errorf("%s of %s, before its removal: %v", h, standby, err)
		}
	}
	want(t, g.cluster(t, after.Active, "nodes", "remove", standby), 0, "revoke its tokens", standby+" is no member any more")
	g.healthy(t, after.Active, 2)
	for _, h := range registry.Holders() {
		if err := g.reads(t, after.Active, standby, h); h != registry.HolderHandlerRunner && !errors.Is(err, registry.ErrRefused) {
			t.Errorf("%s of %s, after its removal: %v", h, standby, err)
		}
	}
	g.must(t, "start", standby)
	g.told(t, standby, after.Active)
	g.replaceGossipKey(t, after.Active, 2)
}

// replaceGossipKey does so on all members, from one.
func (g *group) replaceGossipKey(t *testing.T, from string, members int) {
	t.Helper()
	was := g.gossipKey(t, from)
	want(t, g.command(t, from, "certs", "rotate", "--gossip"), 0, fmt.Sprintf("Consul's gossip has a new key, on %d members.", members))
	now := g.gossipKey(t, from)
	if now == was {
		t.Error("the key is the former one")
	}
	for _, line := range g.consul(t, from, "keyring", "-list") {
		if f := strings.Fields(line); strings.Contains(line, "=") && (f[0] != now || f[1] != fmt.Sprintf("[%d/%d]", members, members)) {
			t.Errorf("the keyring has %q, the key is %s", line, now)
		}
	}
}

// gossipKey is the key that a member keeps, of which its Consul is configured with.
func (g *group) gossipKey(t *testing.T, member string) string {
	t.Helper()
	l := config.Paths(filepath.Join(g.dir, member))
	key, err := certs.Dir(l.SSL).GossipKey()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(l.ConsulConfig())
	if err != nil || !strings.Contains(string(conf), key) {
		t.Errorf("Consul on %s is configured without the key: %v", member, err)
	}
	return key
}

// reads has somebody on another member read the cluster's state, with a token of a node.
func (g *group) reads(t *testing.T, at, node string, h registry.Holder) error {
	t.Helper()
	secret, err := g.host(t, node).Secret(h)
	if err != nil {
		t.Fatal(err)
	}
	c, err := g.host(t, at).Registry()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c, err = c.As(secret); err != nil {
		t.Fatal(err)
	}
	_, err = c.View(t.Context())
	return err
}

func (g *group) host(t *testing.T, name string) *node.Host {
	t.Helper()
	h, err := node.OpenQuiet(filepath.Join(g.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// nobodyIsRefused checks that the daemons of members, and their Consul, may do all
// that they have tried.
func (g *group) nobodyIsRefused(t *testing.T, members ...string) {
	t.Helper()
	for _, member := range members {
		logs, err := filepath.Glob(filepath.Join(config.Paths(filepath.Join(g.dir, member)).Log, "*.log"))
		if err != nil || len(logs) == 0 {
			t.Fatalf("no logs of %s: %v", member, err)
		}
		for _, log := range logs {
			text, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				// A server that is new knows no tokens at first, in other words.
				if strings.Contains(line, "Permission denied: ") || strings.Contains(line, "blocked by ACLs") {
					t.Errorf("%s, %s: %s", member, filepath.Base(log), line)
				}
			}
		}
	}
}
