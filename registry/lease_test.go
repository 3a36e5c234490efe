package registry_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/registry/registrytest"
)

// long is a TTL that no test outlasts.
const long = 20 * time.Second

// bound are the checks that locks are bound to here.
var bound = []cluster.Check{cluster.CheckPort, cluster.CheckAnswer}

// checks registers those, with TTLs that do not end by themselves, and waits until
// the catalog knows them.
func (f *fixture) checks(t *testing.T) {
	t.Helper()
	check(t, f.RegisterChecks(t.Context(), f.server.Config.Name, map[cluster.Check]time.Duration{
		cluster.CheckPort: time.Hour, cluster.CheckAnswer: time.Hour,
	}))
	await(t, "the checks are in the catalog", func() bool { return len(f.health(t)) == 3 })
}

func (f *fixture) health(t *testing.T) map[string]registry.CheckState {
	t.Helper()
	health, err := f.Health(t.Context())
	check(t, err)
	return health[registrytest.NodeName("127.10.1.1")]
}

func (f *fixture) acquire(t *testing.T, ttl time.Duration) *registry.Lease {
	t.Helper()
	lease, err := f.Acquire(t.Context(), cluster.Leader{Node: "a", Epoch: 1}, ttl, nil)
	check(t, err)
	return lease
}

func (f *fixture) sessions(t *testing.T) []*api.SessionEntry {
	t.Helper()
	all, _, err := f.raw.Session().List(nil)
	check(t, err)
	return all
}

func testLockHeld(t *testing.T, f *fixture) {
	lease := f.acquire(t, long)
	_, err := f.Acquire(t.Context(), cluster.Leader{Node: "b", Epoch: 1}, long, nil)
	want(t, err, registry.ErrHeld)
	sessions := f.sessions(t)
	if len(sessions) != 1 || sessions[0].ID != lease.ID() {
		t.Fatalf("sessions: %v", sessions)
	}
	s := sessions[0]
	if len(s.NodeChecks) != 0 || len(s.ServiceChecks) != 0 || s.LockDelay > time.Second || s.Behavior != "release" {
		t.Errorf("session: %+v", s)
	}
	if v := f.view(t); !v.Leader.Held || v.Leader.Node != "a" || v.Leader.Session != lease.ID() {
		t.Errorf("leader: %+v", v.Leader)
	}
}

func testLockAssigned(t *testing.T, f *fixture) {
	f.checks(t)
	_, err := f.SetNextMaster(t.Context(), cluster.View{}, cluster.Assignment{Node: "b", Epoch: 2})
	check(t, err)
	for _, l := range []cluster.Leader{{Node: "a", Epoch: 1}, {Node: "a", Epoch: 2}, {Node: "b", Epoch: 1}} {
		_, err := f.Acquire(t.Context(), l, long, nil)
		want(t, err, registry.ErrSuperseded)
	}
	_, err = f.Acquire(t.Context(), cluster.Leader{Node: "b", Epoch: 2}, long, nil)
	check(t, err)
}

func testLockFailedCheck(t *testing.T, f *fixture) {
	f.checks(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	lease, err := f.Acquire(ctx, cluster.Leader{Node: "a", Epoch: 1}, long, bound)
	check(t, err)
	check(t, f.Fit(ctx, bound))
	freed, held := make(chan time.Time, 1), make(chan bool, 1)
	go f.Watch(ctx, func(v cluster.View) {
		if v.Leader.Held {
			held <- true
		} else {
			freed <- time.Now()
		}
	}, nil)
	<-held
	start := time.Now()
	check(t, f.Post(ctx, cluster.CheckAnswer, false, "no answer"))
	select {
	case at := <-freed:
		t.Logf("from the failed check to the watch of the free lock: %s", at.Sub(start))
	case <-ctx.Done():
		t.Fatal("the lock was not freed")
	}
	want(t, lease.Renew(ctx), registry.ErrSessionGone)
	want(t, lease.Update(ctx, cluster.Leader{Node: "a", Epoch: 1, Ready: true}), registry.ErrSessionGone)
	if v := f.view(t); v.Leader.Node != "a" || v.Leader.Ready {
		t.Errorf("the last leader is not on record: %+v", v.Leader)
	}
	want(t, f.Fit(ctx, bound), registry.ErrCheckFailing)
	_, err = f.Acquire(ctx, cluster.Leader{Node: "a", Epoch: 1}, long, bound)
	want(t, err, registry.ErrCheckFailing)
	check(t, lease.Release(ctx))

	// Another takes it at once: no lock delay is in the way.
	check(t, f.Post(ctx, cluster.CheckAnswer, true, "answers"))
	await(t, "the check passes again", func() bool { return f.health(t)[string(cluster.CheckAnswer)].OK })
	f.acquire(t, long)
}

// testLockBound binds a lock that nobody may see free meanwhile.
func testLockBound(t *testing.T, f *fixture) {
	f.checks(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	lease := f.acquire(t, long)
	value := cluster.Leader{Node: "a", Epoch: 1, Ready: true, Timeline: 4}
	check(t, lease.Update(ctx, value))
	seen := make(chan cluster.Leader, 16)
	go f.Watch(ctx, func(v cluster.View) { seen <- v.Leader }, nil)
	first := <-seen
	check(t, lease.Bind(ctx, bound))
	last := <-seen
	if !last.Held || !last.Ready || last.Timeline != 4 || last.Session == first.Session || last.Session != lease.ID() {
		t.Errorf("bound: from %+v to %+v, of the lease %s", first, last, lease.ID())
	}
	for _, s := range f.sessions(t) {
		if wanted := map[bool]int{true: len(bound)}[s.ID == lease.ID()]; len(s.NodeChecks) != 0 || len(s.ServiceChecks) != wanted {
			t.Errorf("session %+v", s)
		}
	}
	check(t, lease.Renew(ctx))
	check(t, lease.Update(ctx, value))

	// What the servers alone take for failed is in the way as well; the lock is kept.
	check(t, f.Post(ctx, cluster.CheckAnswer, false, "no answer"))
	await(t, "the lock is free", func() bool { return !f.view(t).Leader.Held })
	free := f.acquire(t, long)
	f.outdated(t, cluster.CheckAnswer)
	check(t, f.Fit(ctx, bound))
	want(t, free.Bind(ctx, bound), registry.ErrCheckFailing)
	check(t, free.Renew(ctx))
	if l := f.view(t).Leader; !l.Held || l.Session != free.ID() {
		t.Errorf("leader: %+v", l)
	}
}

// outdated has a check pass for the agent, and fail for the servers.
func (f *fixture) outdated(t *testing.T, c cluster.Check) {
	t.Helper()
	check(t, f.Post(t.Context(), c, true, "answers"))
	await(t, "the check passes", func() bool { return f.health(t)[string(c)].OK })
	f.fails(t, &api.AgentCheck{CheckID: c.ID(), Name: string(c), ServiceID: cluster.ServiceID})
}

// fails has a check fail for the servers, of which the agent knows nothing.
func (f *fixture) fails(t *testing.T, c *api.AgentCheck) {
	t.Helper()
	c.Node, c.Status = f.server.Config.Name, api.HealthCritical
	_, err := f.raw.Catalog().Register(&api.CatalogRegistration{Node: c.Node, Address: f.server.Config.Address, SkipNodeUpdate: true, Check: c}, nil)
	check(t, err)
}

// testLockBoundUnheard writes and binds a lock, and what is said gets lost: on the way
// there, or on the way back.
func testLockBoundUnheard(t *testing.T, f *fixture) {
	f.checks(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for _, done := range []bool{false, true} {
		way := cutter(t, f.server, done)
		through, err := registry.Open(registry.Config{Address: way.address, Token: f.server.Token})
		check(t, err)
		lease, err := through.Acquire(ctx, cluster.Leader{Node: "a", Epoch: 1}, long, nil)
		check(t, err)
		before := lease.ID()
		way.cut.Store(true)
		if lease.Update(ctx, cluster.Leader{Node: "a", Epoch: 1, Ready: true, Timeline: 4}) == nil || lease.Bind(ctx, bound) == nil {
			t.Fatal("the answer was not lost")
		}
		way.cut.Store(false)
		check(t, lease.Renew(ctx))
		l := f.view(t).Leader
		if !l.Held || l.Session != lease.ID() || (l.Session != before) != done {
			t.Errorf("done %v: the lease is %s, was %s, and the leader is %+v", done, lease.ID(), before, l)
		}
		check(t, lease.Bind(ctx, bound))
		if bound := f.view(t).Leader; bound.Ready != done || (bound.Timeline == 4) != done {
			t.Errorf("done %v: what was written has become %+v", done, bound)
		}
		check(t, lease.Release(ctx))
		if f.view(t).Leader.Held {
			t.Error("held after its release")
		}
	}
}

// Commands go on while Consul's leader changes, except with writes that may have been done;
// daemons hear of it at once.
func testPatience(t *testing.T, f *fixture) {
	ctx := t.Context()
	consul := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: f.server.Address})
	var refusals atomic.Int32
	words := "node is not the leader"
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if refusals.Add(-1) >= 0 {
			http.Error(rw, "rpc error making call: "+words, http.StatusInternalServerError)
			return
		}
		consul.ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	for _, patient := range []bool{false, true} {
		c, err := registry.Open(registry.Config{Address: server.Listener.Addr().String(), Token: f.server.Token, Patient: patient})
		check(t, err)
		refusals.Store(3)
		_, err = c.Health(ctx)
		if patient {
			check(t, err)
			continue
		}
		want(t, err, registry.ErrNoLeader)
	}
	c, err := registry.Open(registry.Config{Address: server.Listener.Addr().String(), Token: f.server.Token, Patient: true})
	check(t, err)
	info := cluster.Info{ID: "c1", Schema: cluster.Schema}
	refusals.Store(3)
	check(t, c.CreateCluster(ctx, info))
	refusals.Store(1 << 30)
	_, err = c.Health(ctx)
	want(t, err, registry.ErrNoLeader)
	words = "leadership lost while committing log"
	refusals.Store(1)
	want(t, c.CreateCluster(ctx, info), registry.ErrNoLeader)
	refusals.Store(1)
	_, err = c.Health(ctx)
	check(t, err)
}

// way is a way to Consul's API on which transactions, or their answers, get lost.
type way struct {
	address string
	cut     atomic.Bool
}

func cutter(t *testing.T, s *registrytest.Server, arrives bool) *way {
	t.Helper()
	w := &way{}
	consul := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.Address})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		lost := w.cut.Load() && r.URL.Path == "/v1/txn"
		if !lost {
			consul.ServeHTTP(rw, r)
			return
		}
		if arrives {
			consul.ServeHTTP(httptest.NewRecorder(), r)
		}
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(server.Close)
	w.address = server.Listener.Addr().String()
	return w
}

func testLockExpires(t *testing.T, f *fixture) {
	short := time.Second
	start := time.Now()
	lease := f.acquire(t, short)
	if lease.TTL() != time.Second {
		t.Errorf("TTL %s", lease.TTL())
	}
	await(t, "the session expires", func() bool { return !f.view(t).Leader.Held })
	took := time.Since(start)
	t.Logf("a session with a TTL of %s was gone after %s", short, took)
	if took < short {
		t.Errorf("the lock was free after %s, before its TTL was over", took)
	}
	want(t, f.Renew(t.Context(), lease.ID()), registry.ErrSessionGone)

	// Another may renew it.
	next := f.acquire(t, short)
	for range 12 {
		check(t, f.server.Client().Renew(t.Context(), next.ID()))
		time.Sleep(short / 4)
	}
	check(t, next.Update(t.Context(), cluster.Leader{Node: "a", Epoch: 1, Ready: true}))
}

func testAdopt(t *testing.T, f *fixture) {
	ctx := t.Context()
	lease := f.acquire(t, long)
	again, err := f.server.Client().Adopt(ctx, "a", 1)
	check(t, err)
	if again.ID() != lease.ID() || again.TTL() != long {
		t.Errorf("adopted %s with TTL %s", again.ID(), again.TTL())
	}
	check(t, again.Update(ctx, cluster.Leader{Node: "a", Epoch: 1, Ready: true}))
	_, err = f.Adopt(ctx, "b", 1)
	want(t, err, registry.ErrSessionGone)
	_, err = f.Adopt(ctx, "a", 2)
	want(t, err, registry.ErrSessionGone)
	check(t, again.Release(ctx))
	_, err = f.Adopt(ctx, "a", 1)
	want(t, err, registry.ErrSessionGone)
}

func testRelease(t *testing.T, f *fixture) {
	ctx := t.Context()
	lease := f.acquire(t, long)
	check(t, lease.Renew(ctx))
	check(t, lease.Update(ctx, cluster.Leader{Node: "a", Epoch: 1, Ready: true, Timeline: 4}))
	if l := f.view(t).Leader; !l.Ready || !l.Held || l.Timeline != 4 {
		t.Errorf("leader: %+v", l)
	}
	check(t, lease.Release(ctx))
	check(t, lease.Release(ctx))
	if l := f.view(t).Leader; l.Ready || l.Held || l.Timeline != 4 {
		t.Errorf("released leader: %+v", l)
	}
	want(t, lease.Update(ctx, cluster.Leader{Node: "a"}), registry.ErrSessionGone)
	if n := len(f.sessions(t)); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	f.acquire(t, long)
}

func testChecks(t *testing.T, f *fixture) {
	ctx := t.Context()
	want(t, f.Post(ctx, cluster.CheckPort, true, ""), registry.ErrNotRegistered)
	f.checks(t)
	check(t, f.Post(ctx, cluster.CheckPort, false, "refused"))
	await(t, "the failure is known", func() bool { return f.health(t)["postgres-port"] == registry.CheckState{Output: "refused"} })
	f.checks(t) // a daemon that restarts
	if h := f.health(t); h["postgres-port"].OK || !h["postgres-answer"].OK || !h[registry.SerfHealth].OK {
		t.Errorf("registering again changed the state: %+v", h)
	}

	// The servers have it otherwise than the agent, which takes them for told.
	node := f.server.Config.Name
	told := func(wanted bool) func() bool {
		return func() bool { got, err := f.Told(ctx, node); return err == nil && got == wanted }
	}
	// An agent that has yet to tell them of a check's text would do so by itself.
	check(t, f.Post(ctx, cluster.CheckAnswer, true, "answers"))
	await(t, "the text is told", func() bool { return f.health(t)["postgres-answer"].Output == "answers" })
	await(t, "all is told", told(true))
	f.outdated(t, cluster.CheckAnswer)
	if !told(false)() || f.health(t)["postgres-answer"].OK {
		t.Errorf("the servers have %+v", f.health(t))
	}
	check(t, f.Post(ctx, cluster.CheckAnswer, true, "answers"))
	if !told(false)() {
		t.Error("a post that is the same as the last was told")
	}
	f.checks(t)
	await(t, "registering again tells them", told(true))
	if !f.health(t)["postgres-answer"].OK {
		t.Error("the check does not pass")
	}

	// A check that nobody posts for fails by its TTL.
	check(t, f.RegisterChecks(ctx, f.server.Config.Name, map[cluster.Check]time.Duration{cluster.CheckAnswer: time.Second}))
	await(t, "the TTL ends", func() bool { return !f.health(t)["postgres-answer"].OK })
	check(t, f.RegisterChecks(ctx, f.server.Config.Name, map[cluster.Check]time.Duration{cluster.CheckAnswer: time.Hour}))
	await(t, "the port check is still there", func() bool { return len(f.health(t)) == 3 })
	if f.health(t)["postgres-answer"].OK {
		t.Error("registering again made a check pass whose TTL had ended")
	}
}
