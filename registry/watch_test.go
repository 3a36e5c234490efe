package registry_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/registry/registrytest"
)

// watched runs Watch until the test ends and gives what it reports.
type watched struct {
	views    chan cluster.View
	failures chan *registry.Unreachable
}

func watch(t *testing.T, c *registry.Client) watched {
	t.Helper()
	w := watched{make(chan cluster.View, 100), make(chan *registry.Unreachable, 10000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- c.Watch(ctx, func(v cluster.View) { w.views <- v }, func(err error) {
			var u *registry.Unreachable
			if !errors.As(err, &u) {
				t.Errorf("reported %T", err)
			}
			w.failures <- u
		})
	}()
	t.Cleanup(func() {
		cancel()
		want(t, <-done, context.Canceled)
	})
	return w
}

func next[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(deadline):
		t.Fatalf("waited %s in vain: %s", deadline, what)
		panic("unreachable")
	}
}

func testWatch(t *testing.T, f *fixture) {
	ctx := t.Context()
	w := watch(t, f.Client)
	if v := next(t, "first view", w.views); v.Info != nil {
		t.Errorf("first view: %+v", v)
	}
	f.cluster(t)
	if v := next(t, "the cluster", w.views); v.Info == nil {
		t.Error("view without the cluster")
	}
	// None of these is a change of the state: other prefixes, the same value.
	_, err := f.AppendEvent(ctx, cluster.Event{Message: "elsewhere"})
	check(t, err)
	check(t, f.PublishFiles(ctx, cluster.FilesReport{Epoch: 1}))
	_, _, err = f.SetOptions(ctx, cluster.Options{"sync_mode": ""})
	check(t, err)
	check(t, f.AddNode(ctx, cluster.Node{Name: "n1"}))
	if v := next(t, "the node", w.views); len(v.Nodes) != 1 || len(v.Info.Options) != 0 {
		t.Errorf("a view without a change came before the node: %+v", v)
	}
	f.checks(t)
	lease := f.acquire(t, long)
	if v := next(t, "the lock", w.views); !v.Leader.Held {
		t.Errorf("leader: %+v", v.Leader)
	}
	check(t, lease.Bind(ctx, bound))
	if v := next(t, "the lock, bound", w.views); !v.Leader.Held || v.Leader.Session != lease.ID() {
		t.Errorf("leader: %+v", v.Leader)
	}
	check(t, f.Post(ctx, cluster.CheckPort, false, "down"))
	if v := next(t, "the free lock", w.views); v.Leader.Held || v.Leader.Node != "a" {
		t.Errorf("leader after %s ended: %+v", lease.ID(), v.Leader)
	}
	if len(w.views) != 0 || len(w.failures) != 0 {
		t.Errorf("%d more views, %d failures", len(w.views), len(w.failures))
	}
}

// A store that was restored has a lower index. Polls that wait for the old one
// would sleep through what happens next.
func testIndexReset(t *testing.T, f *fixture) {
	f.cluster(t)
	snapshot, _, err := f.raw.Snapshot().Save(nil)
	check(t, err)
	defer snapshot.Close()
	check(t, f.AddNode(t.Context(), cluster.Node{Name: "n1"}))
	for range 20 {
		_, err := f.raw.KV().Put(&api.KVPair{Key: "elsewhere", Value: []byte(time.Now().String())}, nil)
		check(t, err)
	}
	w := watch(t, f.Client)
	if v := next(t, "first view", w.views); len(v.Nodes) != 1 {
		t.Fatalf("first view: %+v", v)
	}
	check(t, f.raw.Snapshot().Restore(nil, snapshot))
	for {
		if v := next(t, "the restored state", w.views); len(v.Nodes) == 0 {
			break
		}
	}
	check(t, f.AddNode(t.Context(), cluster.Node{Name: "n2"}))
	for {
		if v := next(t, "a node added later", w.views); v.Nodes["n2"].Name == "n2" {
			return
		}
	}
}

// TestWatchThroughOutages kills, restarts and wipes the server under a watch.
func TestWatchThroughOutages(t *testing.T) {
	server := registrytest.Start(t, "127.10.1.2")
	f := &fixture{Client: server.Client(), server: server, raw: rawClient(t, server)}
	f.cluster(t)
	w := watch(t, f.Client)
	start := next(t, "first view", w.views)

	server.Kill()
	first := next(t, "a failure", w.failures)
	second := next(t, "another failure", w.failures)
	if !first.Since.Equal(second.Since) || first.Err == nil {
		t.Errorf("unreachable since %s, then since %s: %v", first.Since, second.Since, first.Err)
	}
	if _, err := f.View(t.Context()); err == nil {
		t.Error("a view of a server that is down")
	}
	if len(w.views) != 0 {
		t.Error("a view was handed over while the server was down")
	}
	server.Restart()
	if v := next(t, "the view after the restart", w.views); v.Info == nil || v.Info.ID != start.Info.ID {
		t.Errorf("view after the restart: %+v", v)
	}

	server.Wipe()
	if v := next(t, "the view of the wiped store", w.views); v.Info != nil {
		t.Errorf("view of the wiped store: %+v", v)
	}
	f.cluster(t)
	if v := next(t, "what is written there", w.views); v.Info == nil {
		t.Errorf("view after the wipe: %+v", v)
	}
}

// TestFrozenAgent stops the agent's process: it accepts connections and never
// answers.
func TestFrozenAgent(t *testing.T) {
	server := registrytest.Start(t, "127.10.1.4")
	c, err := registry.Open(registry.Config{Address: server.Address, Token: server.Token, Timeout: time.Second})
	check(t, err)
	defer c.Close()
	_, err = c.View(t.Context())
	check(t, err)
	server.Signal(syscall.SIGSTOP)
	_, err = c.View(t.Context())
	want(t, err, context.DeadlineExceeded)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.View(ctx)
	want(t, err, context.Canceled)
	server.Signal(syscall.SIGCONT)
	await(t, "it answers again", func() bool { _, err := c.View(t.Context()); return err == nil })
}

// TestRunner reads and watches through the agent of a runner, which is no server.
func TestRunner(t *testing.T) {
	server := registrytest.Start(t, "127.10.1.5")
	runner := registrytest.StartWith(t, registry.AgentConfig{
		Name: "runner", Address: "127.10.1.6", Kind: cluster.Runner, DataDir: t.TempDir(), Join: []string{"127.10.1.5"}, Tokens: server.Config.Tokens,
	})
	c := runner.Client()
	w := watch(t, c)
	next(t, "first view", w.views)
	(&fixture{Client: server.Client()}).cluster(t)
	if v := next(t, "the cluster", w.views); v.Info == nil {
		t.Errorf("view: %+v", v)
	}
	servers, err := c.Servers(t.Context())
	check(t, err)
	if len(servers) != 1 || servers[0].Node != registrytest.NodeName("127.10.1.5") {
		t.Errorf("servers: %+v", servers)
	}
}
