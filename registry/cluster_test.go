package registry_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/registry/registrytest"
)

// member is one server of the TLS cluster, with its certificates.
type member struct {
	*registrytest.Server
	name string
	dir  certs.Dir
}

// newMember starts a server on address with a certificate that ca signed, and
// joins it to the first, if there is one.
func newMember(t *testing.T, ca certs.Dir, name, address string, first *member) *member {
	t.Helper()
	m := &member{name: name, dir: certs.Dir(filepath.Join(t.TempDir(), "ssl"))}
	csr, err := m.dir.Request(name, address)
	check(t, err)
	cert, err := ca.Sign(csr, name, address, cluster.Manager)
	check(t, err)
	caPEM, err := ca.CA()
	check(t, err)
	check(t, m.dir.Install(caPEM, cert))
	gossip, err := ca.GossipKey()
	check(t, err)
	conf := registry.AgentConfig{
		Name: name, Address: address, Kind: cluster.Manager, DataDir: t.TempDir(), GossipKey: gossip,
		CAFile: m.dir.CAFile(), CertFile: m.dir.CertFile(), KeyFile: m.dir.KeyFile(),
		Bootstrap: first == nil,
	}
	if first != nil {
		conf.Join = []string{first.Config.Address}
	}
	m.Server = registrytest.StartWith(t, conf)
	return m
}

func (m *member) client(t *testing.T) *registry.Client {
	t.Helper()
	tls, err := m.dir.ClientTLS(m.Config.Address)
	check(t, err)
	c, err := registry.Open(registry.Config{Address: m.Address, TLS: tls})
	check(t, err)
	t.Cleanup(c.Close)
	return c
}

// TestThreeServersWithTLS walks one cluster from its first server to the loss
// of a member.
func TestThreeServersWithTLS(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	ca := certs.Dir(t.TempDir())
	check(t, ca.NewCA("c1"))
	check(t, ca.NewGossipKey())

	n1 := newMember(t, ca, "n1", "127.10.1.11", nil)
	c1 := n1.client(t)
	await(t, "the first server leads", func() bool { _, err := c1.View(ctx); return err == nil })
	check(t, c1.EnsureAutopilot(ctx))
	check(t, c1.CreateCluster(ctx, cluster.Info{ID: "c1", Schema: cluster.Schema}))

	start := time.Now()
	n2 := newMember(t, ca, "n2", "127.10.1.12", n1)
	n3 := newMember(t, ca, "n3", "127.10.1.13", n1)
	check(t, c1.WaitVoter(ctx, "n2"))
	check(t, c1.WaitVoter(ctx, "n3"))
	t.Logf("from the start of two servers to three voters: %s", time.Since(start))
	servers, err := c1.Servers(ctx)
	check(t, err)
	if len(servers) != 3 {
		t.Fatalf("servers: %+v", servers)
	}
	c2, c3 := n2.client(t), n3.client(t)
	if v, err := c3.View(ctx); err != nil || v.Info == nil {
		t.Fatalf("view from the third: %+v, %v", v, err)
	}

	t.Run("a stranger is refused", func(t *testing.T) { strangerIsRefused(t, n1) })
	t.Run("leadership moves", func(t *testing.T) { leadershipMoves(ctx, t, c1, c3) })
	t.Run("a failed check frees the lock for the others", func(t *testing.T) { checkFreesLock(ctx, t, c1, c3) })
	t.Run("the lock outlives a restart of the agent", func(t *testing.T) { lockOutlivesAgent(ctx, t, n1, c1, c2) })
	t.Run("the lock outlives the Raft leader", func(t *testing.T) { lockOutlivesRaftLeader(ctx, t, n2, c1, c3) })
	t.Run("a lost member is joined anew", func(t *testing.T) { lostIsJoined(ctx, t, n3, c1) })
	t.Run("a member is removed", func(t *testing.T) { memberIsRemoved(ctx, t, n3, c1) })
	t.Run("without a majority", func(t *testing.T) { withoutMajority(ctx, t, n2, c1) })
}

func strangerIsRefused(t *testing.T, n *member) {
	foreign := certs.Dir(t.TempDir())
	check(t, foreign.NewCA("c1"))
	csr, err := foreign.Request("n1", "127.10.1.11")
	check(t, err)
	cert, err := foreign.Sign(csr, "n1", "127.10.1.11", cluster.Manager)
	check(t, err)
	caPEM, err := foreign.CA()
	check(t, err)
	check(t, foreign.Install(caPEM, cert))
	tls, err := foreign.ClientTLS("127.0.0.1")
	check(t, err)
	tls.VerifyConnection = nil // the agent must refuse, not we
	c, err := registry.Open(registry.Config{Address: n.Address, TLS: tls})
	check(t, err)
	defer c.Close()
	if _, err := c.View(t.Context()); err == nil {
		t.Error("a certificate of another CA was let in")
	}
}

func leadershipMoves(ctx context.Context, t *testing.T, c1, c3 *registry.Client) {
	check(t, c1.TransferRaftLeader(ctx, "n2"))
	await(t, "n2 leads", func() bool { who, ok, _ := c3.RaftLeader(ctx); return ok && who == "n2" })
	for _, c := range []*registry.Client{c1, c3} {
		since := time.Now()
		await(t, "n2 is heard from then on", func() bool { heard, known, err := c.LeaderHeard(ctx); return err == nil && known && heard.After(since) })
	}
	check(t, c1.TransferRaftLeader(ctx, "n2"))
	want(t, c1.TransferRaftLeader(ctx, "n9"), registry.ErrUnknownServer)
}

// locked registers a check with the agent of c, waits until all know it, and takes
// the lock, bound to it.
func locked(ctx context.Context, t *testing.T, c *registry.Client, node string) *registry.Lease {
	t.Helper()
	check(t, c.RegisterChecks(ctx, node, map[cluster.Check]time.Duration{cluster.CheckAnswer: time.Hour}))
	await(t, "the check is known", func() bool {
		h, err := c.Health(ctx)
		return err == nil && h[node][string(cluster.CheckAnswer)].OK
	})
	asked := time.Now()
	lease, err := c.Acquire(ctx, cluster.Leader{Node: node, Epoch: 1}, long, []cluster.Check{cluster.CheckAnswer})
	check(t, err)
	t.Logf("taking the lock: %s", time.Since(asked))
	return lease
}

func checkFreesLock(ctx context.Context, t *testing.T, holder, other *registry.Client) {
	locked(ctx, t, holder, "n1")
	w := watch(t, other)
	if v := next(t, "first view", w.views); !v.Leader.Held {
		t.Fatalf("leader: %+v", v.Leader)
	}
	start := time.Now()
	check(t, holder.Post(ctx, cluster.CheckAnswer, false, "killed"))
	if v := next(t, "the free lock", w.views); v.Leader.Held {
		t.Errorf("leader: %+v", v.Leader)
	}
	t.Logf("from the failed check to another node's watch: %s", time.Since(start))
	check(t, holder.Post(ctx, cluster.CheckAnswer, true, "back"))
}

func lockOutlivesAgent(ctx context.Context, t *testing.T, n1 *member, c1, other *registry.Client) {
	lease := locked(ctx, t, c1, "n1")
	for what, end := range map[string]func(){"killed": n1.Kill, "stopped": n1.Stop} {
		end()
		n1.Restart()
		await(t, "the lease is adopted after the agent was "+what, func() bool {
			_, err := c1.Adopt(ctx, "n1", 1)
			if errors.Is(err, registry.ErrSessionGone) {
				t.Fatal(err)
			}
			return err == nil
		})
	}
	v, err := other.View(ctx)
	check(t, err)
	if v.Leader.Session != lease.ID() {
		t.Errorf("leader: %+v", v.Leader)
	}
	check(t, lease.Release(ctx))
}

func lockOutlivesRaftLeader(ctx context.Context, t *testing.T, n2 *member, c1, c3 *registry.Client) {
	check(t, c1.TransferRaftLeader(ctx, "n2"))
	await(t, "n2 leads", func() bool { who, ok, _ := c1.RaftLeader(ctx); return ok && who == "n2" })
	lease := locked(ctx, t, c1, "n1")
	w := watch(t, c3)
	next(t, "first view", w.views)
	start := time.Now()
	n2.Kill()
	await(t, "the lease is renewed", func() bool { return lease.Renew(ctx) == nil })
	t.Logf("from the death of the Raft leader to a renewal: %s", time.Since(start))
	check(t, lease.Update(ctx, cluster.Leader{Node: "n1", Epoch: 1, Ready: true}))
	for {
		if v := next(t, "a view after the election", w.views); v.Leader.Ready {
			break
		}
	}
	n2.Restart()
	check(t, c1.WaitVoter(ctx, "n2"))
	await(t, "n2 answers", func() bool { _, err := n2.client(t).View(ctx); return err == nil })
	check(t, lease.Release(ctx))
}

// lostIsJoined takes a server down and starts it so that it knows of nobody: it is
// found by the address that another one is told.
func lostIsJoined(ctx context.Context, t *testing.T, m *member, other *registry.Client) {
	lost := func() bool {
		names, err := other.FailedMembers(ctx)
		check(t, err)
		return slices.Contains(names, m.name)
	}
	if lost() {
		t.Fatal(m.name + " is lost although it runs")
	}
	m.Kill()
	await(t, m.name+" is lost", lost)
	if err := other.JoinMember(ctx, m.Config.Address); err == nil {
		t.Error("a member was joined that does not run")
	}
	conf := m.Config
	check(t, os.RemoveAll(filepath.Join(conf.DataDir, "serf")))
	conf.Join = []string{"127.10.1.99"}
	m.Server = registrytest.StartWith(t, conf)
	await(t, m.name+" is a member again", func() bool { return other.JoinMember(ctx, conf.Address) == nil && !lost() })
}

func memberIsRemoved(ctx context.Context, t *testing.T, n3 *member, c1 *registry.Client) {
	n3.Kill()
	start := time.Now()
	// It may have been the Raft leader: then there is none for a while.
	await(t, "n3 is removed", func() bool { return c1.RemovePeer(ctx, "n3") == nil })
	t.Logf("removal of a server: %s", time.Since(start))
	check(t, c1.RemovePeer(ctx, "n3"))
	servers, err := c1.Servers(ctx)
	check(t, err)
	health, err := c1.Health(ctx)
	check(t, err)
	if len(servers) != 2 || len(health) != 2 {
		t.Errorf("left: %+v, health of %d nodes", servers, len(health))
	}
}

// withoutMajority takes the second of two servers down.
func withoutMajority(ctx context.Context, t *testing.T, n2 *member, c1 *registry.Client) {
	w := watch(t, c1)
	next(t, "first view", w.views)
	n2.Kill()
	await(t, "n1 has no leader", func() bool { _, ok, err := c1.RaftLeader(ctx); return !ok && err == nil })
	gone := time.Now()
	heard, known, err := c1.LeaderHeard(ctx)
	check(t, err)
	const rounding = time.Second / 4 // of milliseconds, and of how long the answer took
	if known || heard.After(gone.Add(rounding)) {
		t.Errorf("a leader was heard %s after it was gone", heard.Sub(gone))
	}
	// Consul holds a request for a while in the hope of a leader, on a busy
	// machine for longer than this client waits.
	await(t, "a read says that there is no leader", func() bool {
		_, err := c1.View(ctx)
		if err == nil {
			t.Fatal("read without a leader")
		}
		return errors.Is(err, registry.ErrNoLeader)
	})
	check(t, c1.Post(ctx, cluster.CheckAnswer, true, "posted without a leader"))
	again, known, err := c1.LeaderHeard(ctx)
	check(t, err)
	if known || again.After(gone.Add(rounding)) {
		t.Errorf("a leader was heard %s after it was gone", again.Sub(gone))
	}
	await(t, "the watch says that there is no leader", func() bool {
		return errors.Is(next(t, "the watch notices", w.failures), registry.ErrNoLeader)
	})
}
