package registry_test

import (
	"context"
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
		done <- c.Watch(ctx, func(v cluster.View) { w.views <- v }, func(u *registry.Unreachable) { w.failures <- u })
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
	_, err := f.AppendEvent(ctx, registry.Event{Message: "elsewhere"})
	check(t, err)
	check(t, f.PublishFiles(ctx, cluster.FilesReport{Epoch: 1}))
	_, err = f.SetOptions(ctx, cluster.Options{"sync_mode": ""})
	check(t, err)
	check(t, f.AddNode(ctx, cluster.Node{Name: "n1"}))
	if v := next(t, "the node", w.views); len(v.Nodes) != 1 || len(v.Info.Options) != 0 {
		t.Errorf("a view without a change came before the node: %+v", v)
	}
	f.checks(t)
	lease := f.acquire(t, spec)
	if v := next(t, "the lock", w.views); !v.Leader.Held {
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
	before := f.view(t)
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
		v := next(t, "the restored state", w.views)
		if len(v.Nodes) == 0 {
			if v.Index > before.Index {
				t.Logf("index %d after the restore, %d before the snapshot", v.Index, before.Index)
			}
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
