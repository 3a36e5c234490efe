package watcher_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/registry/registrytest"
	"github.com/understudy-ha/understudy/statefile"
	"github.com/understudy-ha/understudy/watcher"
)

// consul gives the watcher what it needs of a real registry.
type consul struct{ *registry.Client }

func (c consul) Leader(ctx context.Context) (string, bool, error) { return c.RaftLeader(ctx) }

func (c consul) Transfer(ctx context.Context, to string) error { return c.TransferRaftLeader(ctx, to) }

func (c consul) Failed(ctx context.Context) ([]string, error) { return c.FailedMembers(ctx) }

func (c consul) Join(ctx context.Context, address string) error { return c.JoinMember(ctx, address) }

func (c consul) Watch(ctx context.Context, changed func(cluster.View)) error {
	return c.Client.Watch(ctx, changed, nil)
}

// serfPort stands in for a manager's API: it is open while its agent lives.
type serfPort struct{}

func (serfPort) Ping(ctx context.Context, n cluster.Node) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(n.Address, "8301"))
	if err != nil {
		return err
	}
	return conn.Close()
}

var (
	_ watcher.Raft   = consul{}
	_ watcher.Views  = consul{}
	_ watcher.Gossip = consul{}
	_ watcher.Prober = serfPort{}
)

// Three real servers. The active node leads Raft: the leadership is moved. Then
// both others die: the verdict becomes minority, after minority_after.
func TestWatcherOnRealConsul(t *testing.T) {
	addresses := []string{"127.10.5.11", "127.10.5.12", "127.10.5.13"}
	servers := []*registrytest.Server{registrytest.Start(t, addresses[0])}
	client := servers[0].Client()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, a := range addresses[1:] {
		servers = append(servers, registrytest.Join(t, a, addresses[0]))
		if err := client.WaitVoter(ctx, registrytest.NodeName(a)); err != nil {
			t.Fatal(err)
		}
	}
	active := registrytest.NodeName(addresses[0])
	if node, ok, err := client.RaftLeader(ctx); node != active || !ok || err != nil {
		t.Fatalf("the Raft leader is %q %v %v, want %s", node, ok, err, active)
	}
	fill(ctx, t, client, addresses, active)

	dir := t.TempDir()
	options := watcher.Options{
		Node: active, Verdict: filepath.Join(dir, "verdict.json"), Members: filepath.Join(dir, "members.json"),
		Views: consul{client}, Raft: consul{client}, Gossip: consul{client}, Prober: serfPort{},
		Gateway: func() (netip.Addr, bool) { return netip.Addr{}, false }, // tests stay on this machine
		Logger:  slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- watcher.Run(running, options) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}()

	start := time.Now()
	until(ctx, t, "the Raft leader leaves the active node", func() error {
		node, ok, err := client.RaftLeader(ctx)
		if err == nil && (!ok || node == active) {
			err = errors.New("it is " + node)
		}
		return err
	})
	t.Logf("the Raft leader was moved after %s", time.Since(start).Round(10*time.Millisecond))
	until(ctx, t, "majority", verdictIs(options.Verdict, cluster.Majority))

	servers[1].Kill()
	servers[2].Kill()
	start = time.Now()
	until(ctx, t, "minority", verdictIs(options.Verdict, cluster.Minority))
	// The last sign of the two came before the kill, by two rounds of probes at most.
	if took := time.Since(start); took < time.Second {
		t.Errorf("in the minority after %s, minority_after is 2s", took)
	} else {
		t.Logf("in the minority %s after both others were killed, with minority_after 2s", took.Round(10*time.Millisecond))
	}
}

// fill makes a cluster of the nodes in the registry, the active one named.
func fill(ctx context.Context, t *testing.T, client *registry.Client, addresses []string, active string) {
	t.Helper()
	info := cluster.Info{ID: "watcher-test", Schema: cluster.Schema, Options: cluster.Options{"minority_after": "2s"}}
	if err := client.CreateCluster(ctx, info); err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		n := cluster.Node{Name: registrytest.NodeName(a), Address: a, Kind: cluster.Manager}
		if err := client.AddNode(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := client.SetNextMaster(ctx, cluster.View{}, cluster.Assignment{Node: active, Epoch: 1, Reason: "test"}); !ok || err != nil {
		t.Fatalf("set next-master: %v %v", ok, err)
	}
}

func verdictIs(file string, want cluster.Verdict) func() error {
	return func() error {
		r, err := statefile.Read[cluster.VerdictReport](file)
		if err == nil && r.Verdict != want {
			err = errors.New("it is " + string(r.Verdict) + ": " + r.Reason)
		}
		return err
	}
}

// until waits for a condition.
func until(ctx context.Context, t *testing.T, what string, holds func() error) {
	t.Helper()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
