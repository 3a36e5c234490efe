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

var spec = registry.SessionSpec{
	Name: "test", TTL: 20 * time.Second,
	Checks: []cluster.Check{cluster.CheckPort, cluster.CheckAnswer},
}

// checks registers what spec binds to, with TTLs that do not end by themselves,
// and waits until the catalog knows them.
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

func (f *fixture) acquire(t *testing.T, spec registry.SessionSpec) *registry.Lease {
	t.Helper()
	lease, err := f.Acquire(t.Context(), cluster.Leader{Node: "a", Epoch: 1}, spec)
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
	f.checks(t)
	lease := f.acquire(t, spec)
	_, err := f.Acquire(t.Context(), cluster.Leader{Node: "b", Epoch: 1}, spec)
	want(t, err, registry.ErrHeld)
	sessions := f.sessions(t)
	if len(sessions) != 1 || sessions[0].ID != lease.ID() {
		t.Fatalf("sessions: %v", sessions)
	}
	s := sessions[0]
	if len(s.NodeChecks) != 0 || len(s.ServiceChecks) != 2 || s.LockDelay > time.Second || s.Behavior != "release" {
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
		_, err := f.Acquire(t.Context(), l, spec)
		want(t, err, registry.ErrSuperseded)
	}
	_, err = f.Acquire(t.Context(), cluster.Leader{Node: "b", Epoch: 2}, spec)
	check(t, err)
}

func testLockFailedCheck(t *testing.T, f *fixture) {
	f.checks(t)
	lease := f.acquire(t, spec)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
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
	_, err := f.Acquire(ctx, cluster.Leader{Node: "a", Epoch: 1}, spec)
	want(t, err, registry.ErrCheckFailing)
	check(t, lease.Release(ctx))

	// Another takes it at once: no lock delay is in the way.
	check(t, f.Post(ctx, cluster.CheckAnswer, true, "answers"))
	await(t, "the check passes again", func() bool { return f.health(t)[string(cluster.CheckAnswer)].OK })
	f.acquire(t, spec)
}

func testLockExpires(t *testing.T, f *fixture) {
	f.checks(t)
	short := spec
	short.TTL = time.Second
	start := time.Now()
	lease := f.acquire(t, short)
	if lease.TTL() != time.Second {
		t.Errorf("TTL %s", lease.TTL())
	}
	await(t, "the session expires", func() bool { return !f.view(t).Leader.Held })
	took := time.Since(start)
	t.Logf("a session with a TTL of %s was gone after %s", short.TTL, took)
	if took < short.TTL {
		t.Errorf("the lock was free after %s, before its TTL was over", took)
	}
	f.acquire(t, spec)
}

func testAdopt(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.checks(t)
	lease := f.acquire(t, spec)
	again, err := f.server.Client().Adopt(ctx, lease.ID(), "a")
	check(t, err)
	if again.ID() != lease.ID() || again.TTL() != spec.TTL {
		t.Errorf("adopted %s with TTL %s", again.ID(), again.TTL())
	}
	check(t, again.Update(ctx, cluster.Leader{Node: "a", Epoch: 1, Ready: true}))
	_, err = f.Adopt(ctx, lease.ID(), "b")
	want(t, err, registry.ErrSessionGone)
	_, err = f.Adopt(ctx, "5f3a6e5c-0000-0000-0000-000000000000", "a")
	want(t, err, registry.ErrSessionGone)
	check(t, again.Release(ctx))
	_, err = f.Adopt(ctx, lease.ID(), "a")
	want(t, err, registry.ErrSessionGone)
}

func testRelease(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.checks(t)
	lease := f.acquire(t, spec)
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
	f.acquire(t, spec)
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
	await(t, "all is told", told(true))
	_, err := f.raw.Catalog().Register(&api.CatalogRegistration{Node: node, Address: f.server.Config.Address, SkipNodeUpdate: true,
		Check: &api.AgentCheck{Node: node, CheckID: cluster.CheckAnswer.ID(), Name: string(cluster.CheckAnswer), ServiceID: cluster.ServiceID, Status: api.HealthCritical}}, nil)
	check(t, err)
	if !told(false)() || f.health(t)["postgres-answer"].OK {
		t.Errorf("the servers have %+v", f.health(t))
	}
	check(t, f.Post(ctx, cluster.CheckAnswer, true, "as before"))
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
