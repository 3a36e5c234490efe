package registry_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/registry/registrytest"
)

// deadline bounds every wait of these tests; nothing is asserted about how much
// of it is used. An agent whose first synchronisation finds no leader tries again
// after 15 to 30 s (retryFailIntv in Consul's agent/ae/ae.go).
const deadline = time.Minute

// TestRegistry runs all that one server can show on one server, which is
// emptied in between.
func TestRegistry(t *testing.T) {
	server := registrytest.Start(t, "127.10.1.1")
	raw := rawClient(t, server)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"empty store is no cluster", testEmptyStore},
		{"cluster is created once", testCreateCluster},
		{"options are laid over", testOptions},
		{"a pause is kept until it ends", testPause},
		{"nodes are added, updated and removed", testNodes},
		{"concurrent updates of a node all count", testConcurrentUpdates},
		{"next-master only moves forward", testNextMaster},
		{"sync set is compare-and-set", testSync},
		{"values of later versions", testMalformed},
		{"watch reports only changes", testWatch},
		{"watch restarts where the index went back", testIndexReset},
		{"lock is exclusive and leaves no session behind", testLockHeld},
		{"lock is only for the assigned", testLockAssigned},
		{"lock frees when a check fails", testLockFailedCheck},
		{"lock is bound without being free", testLockBound},
		{"lock is bound unheard", testLockBoundUnheard},
		{"lock frees when the session expires", testLockExpires},
		{"commands are patient", testPatience},
		{"lock can be adopted", testAdopt},
		{"lock is written and released", testRelease},
		{"checks keep their state", testChecks},
		{"DNS names the node by its role", testAnnounce},
		{"events are bounded", testEvents},
		{"events are watched", testWatchEvents},
		{"files of an old epoch are refused", testFiles},
		{"tokens", testTokens},
		{"tokens for a name in use", testTokenNameInUse},
		{"tokens of a removed node", testTokensOfRemoved},
		{"one of many uses a token", testTokenRace},
		{"autopilot", testAutopilot},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &fixture{Client: server.Client(), server: server, raw: raw}
			f.empty(t)
			test.run(t, f)
		})
	}
}

type fixture struct {
	*registry.Client
	server *registrytest.Server
	raw    *api.Client
}

func rawClient(t *testing.T, s *registrytest.Server) *api.Client {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: s.Address, Token: s.Token})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (f *fixture) empty(t *testing.T) {
	t.Helper()
	if _, err := f.raw.KV().DeleteTree("", nil); err != nil {
		t.Fatal(err)
	}
	sessions, _, err := f.raw.Session().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sessions {
		if _, err := f.raw.Session().Destroy(s.ID, nil); err != nil {
			t.Fatal(err)
		}
	}
	services, err := f.raw.Agent().Services()
	if err != nil {
		t.Fatal(err)
	}
	for id := range services {
		check(t, f.raw.Agent().ServiceDeregister(id))
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

func (f *fixture) view(t *testing.T) cluster.View {
	t.Helper()
	v, err := f.View(t.Context())
	check(t, err)
	return v
}

func (f *fixture) cluster(t *testing.T) {
	t.Helper()
	check(t, f.CreateCluster(t.Context(), cluster.Info{ID: "c1", Schema: cluster.Schema, Created: time.Now()}))
}

// await waits until f says yes.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("waited %s in vain: %s", deadline, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func testEmptyStore(t *testing.T, f *fixture) {
	v := f.view(t)
	if v.Info != nil || len(v.Nodes) != 0 || v.Leader.Held || v.NextMasterIndex != 0 || v.Index == 0 {
		t.Errorf("view of an empty store: %+v", v)
	}
	_, _, err := f.SetOptions(t.Context(), cluster.Options{"sync_mode": "strict"})
	want(t, err, registry.ErrNoCluster)
	want(t, f.AddNode(t.Context(), cluster.Node{Name: "n1"}), registry.ErrNoCluster)
}

func testCreateCluster(t *testing.T, f *fixture) {
	f.cluster(t)
	f.cluster(t) // the same start, repeated
	err := f.CreateCluster(t.Context(), cluster.Info{ID: "c2"})
	want(t, err, registry.ErrClusterExists)
	if v := f.view(t); v.Info.ID != "c1" {
		t.Errorf("cluster: %+v", v.Info)
	}
}

func testPause(t *testing.T, f *fixture) {
	ctx := t.Context()
	if _, err := f.SetPause(ctx, &cluster.Pause{By: "a"}); !errors.Is(err, registry.ErrNoCluster) {
		t.Errorf("without a cluster: %v", err)
	}
	if err := f.CreateCluster(ctx, cluster.Info{ID: "x", Options: cluster.Options{"priority": "1"}}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		pause   *cluster.Pause
		changed bool
		by      string // in force afterwards; empty: no pause
	}{
		{nil, false, ""}, {&cluster.Pause{By: "a"}, true, "a"}, {&cluster.Pause{By: "b"}, false, "a"}, {nil, true, ""}, {&cluster.Pause{By: "b"}, true, "b"},
	} {
		changed, err := f.SetPause(ctx, step.pause)
		if err != nil || changed != step.changed {
			t.Errorf("%v: changed %v, %v", step.pause, changed, err)
		}
		v, err := f.View(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if v.Paused() != (step.by != "") || v.Paused() && v.Info.Paused.By != step.by || v.Info.Options["priority"] != "1" {
			t.Errorf("%v: %+v", step.pause, v.Info)
		}
	}
}

func testOptions(t *testing.T, f *fixture) {
	f.cluster(t)
	_, _, err := f.SetOptions(t.Context(), cluster.Options{"sync_mode": "strict", "priority": "5"})
	check(t, err)
	_, got, err := f.SetOptions(t.Context(), cluster.Options{"priority": ""})
	check(t, err)
	if len(got) != 1 || f.view(t).Info.Options["sync_mode"] != "strict" {
		t.Errorf("options: %v", got)
	}
}

func testNodes(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.cluster(t)
	n := cluster.Node{Name: "n1", Address: "10.0.0.1", Kind: cluster.Manager, Fingerprint: "aa"}
	check(t, f.AddNode(ctx, n))
	n.Fingerprint = "ab" // the join was repeated and got another certificate
	check(t, f.AddNode(ctx, n))
	want(t, f.AddNode(ctx, cluster.Node{Name: "n1", Address: "10.0.0.2", Fingerprint: "bb"}), registry.ErrNameTaken)
	want(t, f.UpdateNode(ctx, "n2", func(*cluster.Node) error { return nil }), registry.ErrUnknownNode)
	refused := errors.New("refused")
	want(t, f.UpdateNode(ctx, "n1", func(*cluster.Node) error { return refused }), refused)
	check(t, f.UpdateNode(ctx, "n1", func(n *cluster.Node) error { n.Name, n.DeviceID = "other", "dev"; return nil }))
	if got := f.view(t).Nodes["n1"]; got.Name != "n1" || got.DeviceID != "dev" {
		t.Errorf("node: %+v", got)
	}
	want(t, f.RemoveNode(ctx, "n2", "op"), registry.ErrUnknownNode)
	check(t, f.RemoveNode(ctx, "n1", "op"))
	check(t, f.RemoveNode(ctx, "n1", "op"))
	v := f.view(t)
	if len(v.Nodes) != 0 || v.Removed["n1"].By != "op" {
		t.Errorf("after the removal: %+v", v)
	}
	check(t, f.AddNode(ctx, n))
	if v := f.view(t); len(v.Removed) != 0 || v.Nodes["n1"].Address != "10.0.0.1" {
		t.Errorf("after it came back: %+v", v)
	}
}

func testConcurrentUpdates(t *testing.T, f *fixture) {
	f.cluster(t)
	check(t, f.AddNode(t.Context(), cluster.Node{Name: "n1"}))
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			err := f.UpdateNode(t.Context(), "n1", func(n *cluster.Node) error { n.PostgresVer++; return nil })
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := f.view(t).Nodes["n1"].PostgresVer; got != 8 {
		t.Errorf("%d of 8 updates are there", got)
	}
}

func testNextMaster(t *testing.T, f *fixture) {
	ctx := t.Context()
	set := func(index uint64, node string, e cluster.Epoch) (bool, error) {
		return f.SetNextMaster(ctx, cluster.View{NextMasterIndex: index}, cluster.Assignment{Node: node, Epoch: e})
	}
	_, err := set(0, "a", 0)
	want(t, err, registry.ErrOldEpoch)
	if ok, err := set(0, "a", 1); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := set(0, "b", 2); ok || err != nil {
		t.Fatalf("an assignment that was not known was replaced: %v %v", ok, err)
	}
	index := f.view(t).NextMasterIndex
	_, err = set(index, "b", 1)
	want(t, err, registry.ErrOldEpoch)

	// Two electors that saw the same: one wins.
	results := make(chan bool, 2)
	for _, node := range []string{"b", "c"} {
		go func() {
			ok, err := set(index, node, 2)
			if err != nil {
				t.Error(err)
			}
			results <- ok
		}()
	}
	if first, second := <-results, <-results; first == second {
		t.Errorf("both electors were told %v", first)
	}
}

func testSync(t *testing.T, f *fixture) {
	ctx := t.Context()
	set := cluster.SyncSet{Epoch: 1, Leader: "a", Members: []string{"b"}, K: 1}
	_, err := f.SetSync(ctx, "5f3a6e5c-0000-0000-0000-000000000000", 0, set)
	want(t, err, registry.ErrSessionGone)
	lease := f.acquire(t, long)
	write := func(index uint64) bool {
		ok, err := f.SetSync(ctx, lease.ID(), index, set)
		check(t, err)
		return ok
	}
	if !write(0) || f.view(t).Sync.K != 1 {
		t.Error("not written")
	}
	index := f.view(t).SyncIndex
	set.K = 0
	if write(0) || write(index-1) {
		t.Error("overwritten unseen")
	}
	if !write(index) || f.view(t).Sync.K != 0 {
		t.Error("not changed")
	}
	again := f.view(t).SyncIndex
	if !write(again) || write(again) {
		t.Error("the same set does not stand in the way of a write that was begun before")
	}
	check(t, lease.Release(ctx))
	_, err = f.SetSync(ctx, lease.ID(), f.view(t).SyncIndex, set)
	want(t, err, registry.ErrSessionGone)
}

func testMalformed(t *testing.T, f *fixture) {
	put := func(key, value string) {
		if _, err := f.raw.KV().Put(&api.KVPair{Key: key, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	put("understudy/of-tomorrow", "anything")
	f.view(t)
	put("understudy/cluster", `{"id":"c1","schema":99}`)
	_, err := f.View(t.Context())
	want(t, err, registry.ErrMalformed)
	put("understudy/cluster", `{`)
	_, err = f.View(t.Context())
	want(t, err, registry.ErrMalformed)
}

func testAutopilot(t *testing.T, f *fixture) {
	check(t, f.EnsureAutopilot(t.Context()))
	conf, err := f.raw.Operator().AutopilotGetConfiguration(nil)
	check(t, err)
	if conf.CleanupDeadServers {
		t.Error("dead servers would be removed")
	}
	node, ok, err := f.RaftLeader(t.Context())
	if node != registrytest.NodeName("127.10.1.1") || !ok || err != nil {
		t.Errorf("raft leader: %q %v %v", node, ok, err)
	}
}

func testEvents(t *testing.T, f *fixture) {
	ctx := t.Context()
	start := time.Now().UTC()
	var first cluster.Event
	for i := range registry.MaxEvents + 3 {
		e, err := f.AppendEvent(ctx, cluster.Event{At: start.Add(time.Duration(i) * time.Second), Message: fmt.Sprint(i)})
		check(t, err)
		if i == registry.MaxEvents {
			first = e
		}
	}
	_, err := f.AppendEvent(ctx, first) // told twice
	check(t, err)
	all, err := f.Events(ctx, time.Time{})
	check(t, err)
	sorted := slices.IsSortedFunc(all, func(a, b cluster.Event) int { return a.At.Compare(b.At) })
	if len(all) != registry.MaxEvents || !sorted || all[0].Message != "3" {
		t.Errorf("%d events, sorted %v, from %q", len(all), sorted, all[0].Message)
	}
	late, err := f.Events(ctx, first.At)
	check(t, err)
	if len(late) != 3 {
		t.Errorf("%d events since the third last", len(late))
	}
}

func testWatchEvents(t *testing.T, f *fixture) {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	got := make(chan cluster.Event, 10)
	append := func(e cluster.Event) {
		_, err := f.AppendEvent(ctx, e)
		check(t, err)
	}
	append(cluster.Event{Message: "before"})
	go f.WatchEvents(ctx, time.Time{}, func(e cluster.Event) { got <- e })
	now := time.Now()
	for _, e := range []cluster.Event{
		{Message: "before"}, {Message: "now", At: now}, {Message: "from a slow clock", At: now.Add(-time.Minute)},
	} {
		if e.Message != "before" {
			append(e)
		}
		select {
		case g := <-got:
			if g.Message != e.Message {
				t.Errorf("event %q, want %q", g.Message, e.Message)
			}
		case <-ctx.Done():
			t.Fatal("no event ", e.Message)
		}
	}
}

func testFiles(t *testing.T, f *fixture) {
	ctx := t.Context()
	if _, ok, err := f.Files(ctx); ok || err != nil {
		t.Fatal(ok, err)
	}
	check(t, f.PublishFiles(ctx, cluster.FilesReport{Epoch: 2, Sequence: 10}))
	want(t, f.PublishFiles(ctx, cluster.FilesReport{Epoch: 1, Sequence: 99}), registry.ErrSuperseded)
	r, ok, err := f.Files(ctx)
	if !ok || err != nil || r.Sequence != 10 {
		t.Errorf("files: %+v %v %v", r, ok, err)
	}
}
