package watcher

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/statefile"
)

// network is the cluster's network and Consul by hand, as node1 sees them.
type network struct {
	mu        sync.Mutex
	peers     map[string]error // what a probe of a node returns; nil: it answers
	hang      map[string]bool
	pass      map[string]bool // one probe of a node that hangs is let through
	leader    string          // of Raft; empty: none
	agent     error
	heard     time.Time // when the leader last reached the agent's server; zero: just now
	outside   cluster.Tri
	pings     int
	transfers []string
	failed    []string // members that gossip has lost
	joined    []string // addresses
}

func (n *network) change(f func()) { n.mu.Lock(); defer n.mu.Unlock(); f() }

func (n *network) Ping(ctx context.Context, node cluster.Node) error {
	n.mu.Lock()
	err, hang := n.peers[node.Name], n.hang[node.Name] && !n.pass[node.Name]
	n.pass[node.Name] = false
	n.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (n *network) Leader(context.Context) (string, bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leader, n.leader != "" && n.agent == nil, n.agent
}

func (n *network) LeaderHeard(context.Context) (time.Time, bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	known := n.leader != "" && n.agent == nil
	if n.heard.IsZero() {
		return time.Now(), known, n.agent
	}
	return n.heard, known, n.agent
}

func (n *network) Transfer(_ context.Context, to string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.transfers = append(n.transfers, to)
	n.leader = to
	return nil
}

func (n *network) Failed(context.Context) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.failed), n.agent
}

func (n *network) Join(_ context.Context, address string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.joined = append(n.joined, address)
	return nil
}

func (n *network) Reach(context.Context, netip.Addr) cluster.Tri {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pings++
	return n.outside
}

// views hands over what is put into it.
type views chan cluster.View

func (v views) Watch(ctx context.Context, changed func(cluster.View)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case view := <-v:
			changed(view)
		}
	}
}

var (
	_ Prober = (*network)(nil)
	_ Raft   = (*network)(nil)
	_ Gossip = (*network)(nil)
	_ Pinger = (*network)(nil)
	_ Views  = views(nil)
)

func trio() cluster.View {
	v := cluster.View{
		Info:       &cluster.Info{ID: "c1"},
		Nodes:      map[string]cluster.Node{"runner1": {Name: "runner1", Kind: cluster.Runner}},
		NextMaster: cluster.Assignment{Node: "node2", Epoch: 1},
		Leader:     cluster.Leader{Node: "node2", Epoch: 1, Held: true, Ready: true},
	}
	for _, name := range []string{"node1", "node2", "node3"} {
		v.Nodes[name] = cluster.Node{Name: name, Kind: cluster.Manager, Address: "10.0.0." + name[len("node"):]}
	}
	return v
}

type bench struct {
	Options
	network *network
	views   views
	t       *testing.T
}

// healthyTrio is node1 of three that all see each other; node2 is active and
// node3 leads Raft.
func healthyTrio(t *testing.T) *bench {
	dir := t.TempDir()
	n := &network{peers: map[string]error{}, hang: map[string]bool{}, pass: map[string]bool{}, leader: "node3", outside: cluster.Yes}
	b := &bench{network: n, views: make(views, 1), t: t}
	b.views <- trio()
	b.Options = Options{
		Node: "node1", Verdict: filepath.Join(dir, "verdict.json"), Members: filepath.Join(dir, "members.json"),
		Views: b.views, Prober: n, Raft: n, Gossip: n, Pinger: n,
		Gateway: func() (netip.Addr, bool) { return netip.MustParseAddr("10.0.0.1"), true },
		Logger:  slog.New(slog.DiscardHandler),
	}
	return b
}

// run runs the watcher in the bubble until the function that it returns is called.
func (b *bench) run() (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan error)
	go func() { ended <- Run(ctx, b.Options) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Errorf("run: %v", err)
		}
	}
}

// expect reads the verdict that the other daemons see.
func (b *bench) expect(want cluster.Verdict) cluster.VerdictReport {
	b.t.Helper()
	got := b.report()
	if got.Verdict != want {
		b.t.Errorf("verdict %q (%s), want %q", got.Verdict, got.Reason, want)
	}
	if age := time.Since(got.At); age > 2*time.Second {
		b.t.Errorf("the verdict is %s old", age)
	}
	return got
}

func (b *bench) report() cluster.VerdictReport {
	b.t.Helper()
	synctest.Wait()
	got, err := statefile.Read[cluster.VerdictReport](b.Verdict)
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

func (b *bench) cut() {
	b.network.change(func() {
		b.network.leader = ""
		b.network.hang["node2"], b.network.hang["node3"] = true, true
	})
}

func (b *bench) heal() {
	b.network.change(func() { b.network.leader = "node3"; clear(b.network.hang) })
}

func TestPartitionAndHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		defer b.run()()
		time.Sleep(3 * time.Second)
		if r := b.expect(cluster.Majority); !slices.Equal(r.Reached, []string{"node1", "node2", "node3"}) {
			t.Errorf("reached %v", r.Reached)
		}
		if b.network.pings != 0 {
			t.Errorf("%d pings while in the majority", b.network.pings)
		}
		b.cut()
		time.Sleep(2 * time.Second)
		b.expect(cluster.Undecided)
		time.Sleep(7 * time.Second)
		b.expect(cluster.Undecided) // 9 s after the cut
		time.Sleep(4 * time.Second)
		if r := b.expect(cluster.Minority); !slices.Equal(r.Missing, []string{"node2", "node3"}) {
			t.Errorf("missing %v", r.Missing)
		}
		b.network.change(func() { b.network.outside = cluster.No })
		time.Sleep(4 * time.Second)
		b.expect(cluster.Isolated)
		b.heal()
		time.Sleep(2 * time.Second)
		b.expect(cluster.Majority)
	})
}

// Consul is down on every node, the nodes see each other: no minority, ever.
func TestConsulOutageAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		defer b.run()()
		time.Sleep(3 * time.Second)
		b.network.change(func() { b.network.leader = "" })
		for range 30 {
			time.Sleep(time.Second)
			b.expect(cluster.Majority)
		}
		b.network.change(func() { b.network.agent = errors.New("connection refused") })
		for range 30 {
			time.Sleep(time.Second)
			b.expect(cluster.Majority)
		}
	})
}

// The own agent died and the others refuse: that is not a minority (trap 38).
func TestOwnAgentRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		defer b.run()()
		b.network.change(func() {
			b.network.agent = errors.New("connection refused")
			b.network.peers["node2"], b.network.peers["node3"] = syscall.ECONNREFUSED, syscall.ECONNREFUSED
		})
		time.Sleep(3 * time.Second)
		for range 30 {
			time.Sleep(time.Second)
			b.expect(cluster.Undecided)
		}
	})
}

// One peer hangs, the other is probed on time, and the verdict stays.
func TestHangingPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		defer b.run()()
		b.network.change(func() { b.network.leader, b.network.hang["node2"] = "", true })
		time.Sleep(3 * time.Second)
		for range 30 {
			time.Sleep(time.Second)
			if r := b.expect(cluster.Majority); !slices.Contains(r.Reached, "node3") {
				t.Errorf("reached %v", r.Reached)
			}
		}
	})
}

// The watcher is killed and comes back while the node is cut off, and Consul
// cannot tell it the members: it goes on where it was. A verdict that nobody
// believes any more is not taken up.
func TestRestartInTheMinority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		stop := b.run()
		time.Sleep(3 * time.Second)
		b.cut()
		time.Sleep(15 * time.Second)
		b.expect(cluster.Minority)
		stop()
		time.Sleep(time.Second)
		stop = b.run()
		for range 30 {
			time.Sleep(100 * time.Millisecond)
			if r, err := statefile.Read[cluster.VerdictReport](b.Verdict); err != nil || r.Verdict != cluster.Minority {
				t.Fatalf("after the restart: %q (%s) %v, want minority", r.Verdict, r.Reason, err)
			}
		}
		stop()
		time.Sleep(time.Minute)
		defer b.run()()
		time.Sleep(4 * time.Second)
		b.expect(cluster.Undecided)
		time.Sleep(10 * time.Second)
		b.expect(cluster.Minority)
	})
}

// The gateway's route goes with the link: it must be reached all the same.
func TestGatewayRouteIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		gone := false
		b.Gateway = func() (netip.Addr, bool) {
			b.network.mu.Lock()
			defer b.network.mu.Unlock()
			return netip.MustParseAddr("10.0.0.1"), !gone
		}
		defer b.run()()
		time.Sleep(3 * time.Second)
		b.cut()
		b.network.change(func() { gone, b.network.outside = true, cluster.No })
		time.Sleep(20 * time.Second)
		b.expect(cluster.Isolated)
	})
}

// A store that has lost its cluster does not make a cluster of one (trap 39).
func TestWipedStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		defer b.run()()
		time.Sleep(3 * time.Second)
		b.views <- cluster.View{}
		b.cut()
		time.Sleep(5 * time.Second)
		if r := b.expect(cluster.Undecided); len(r.Missing) != 2 {
			t.Errorf("missing %v, want node2 and node3", r.Missing)
		}
	})
}

// node1 becomes active while it leads Raft: the leadership is moved once, not
// in the first seconds, and not while nobody else answers.
func TestRaftLeaderIsMovedOffTheActive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		b.network.leader = "node1"
		defer b.run()()
		time.Sleep(20 * time.Second)
		moved := func() []string {
			b.network.mu.Lock()
			defer b.network.mu.Unlock()
			return slices.Clone(b.network.transfers)
		}
		if got := moved(); len(got) != 0 {
			t.Fatalf("moved to %v off a standby", got)
		}
		v := trio()
		v.NextMaster = cluster.Assignment{Node: "node1", Epoch: 2}
		v.Leader = cluster.Leader{Node: "node1", Epoch: 2, Held: true}
		b.network.change(func() { b.network.peers["node2"] = syscall.ECONNREFUSED })
		b.views <- v
		time.Sleep(calmFor - 100*time.Millisecond)
		if got := moved(); len(got) != 0 {
			t.Errorf("moved to %v in the middle of a failover", got)
		}
		time.Sleep(3 * time.Second)
		if got := moved(); !slices.Equal(got, []string{"node3"}) {
			t.Errorf("moved to %v, want node3, the only one that answers", got)
		}
		time.Sleep(time.Minute)
		if got := moved(); len(got) != 1 {
			t.Errorf("moved again: %v", got)
		}
	})
}
