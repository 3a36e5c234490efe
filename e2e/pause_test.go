package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// paused pauses the cluster and does what an operator may do meanwhile, and what
// may happen.
func paused(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	active, standby := before.Active, before.Standbys()[0]
	want(t, g.cluster(t, standby, "pause"), 0, "the cluster is paused\n")
	want(t, g.cluster(t, active, "pause"), 0, "the cluster is paused already")
	want(t, g.cluster(t, active, "status"), 0, "paused    since ", "on "+standby)
	want(t, g.cluster(t, active, "nodes", "list"), 0, "The cluster is paused")
	if code, body := get(t, g.node(t, active).StatusURL, "", ""); code != 200 || body["paused"] != true {
		t.Errorf("/status says %d %v", code, body)
	}

	// PostgreSQL of the active is started again: no other takes over.
	after := g.underWrites(t, func() {
		g.must(t, "kill", active, "postgres")
		eventually(t, active+" is active again", func() error { return g.isActive(t, standby, active, before.Epoch+1) })
	})
	if after.Active != active || after.Epoch <= before.Epoch {
		t.Errorf("%s is active in epoch %d", after.Active, after.Epoch)
	}

	// All of Consul is gone for a while: nothing changes.
	again := g.underWrites(t, func() {
		for _, n := range g.nodes {
			g.must(t, "kill", n.Name, "consul")
		}
		eventually(t, "Consul answers again", func() error { return g.isActive(t, standby, active, after.Epoch) })
	})
	if again.Active != active || again.Epoch != after.Epoch || again.Timeline != after.Timeline {
		t.Errorf("Consul was down: from %+v to %+v", after, again)
	}

	// An operator may still choose.
	want(t, g.cluster(t, standby, "set-active", standby), 0, standby+" is the active node")
	chosen := g.healthy(t, "node1", 3)

	// The active goes down whole. Nobody takes over, and the pause cannot be ended
	// unseen.
	g.must(t, "kill", standby)
	eventually(t, "nobody is active", func() error {
		if r := g.cluster(t, active, "status"); r.code != 3 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	want(t, g.cluster(t, active, "resume"), 1, standby+", which is active, does not answer", "--force")
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Second) {
		want(t, g.cluster(t, active, "status"), 3, "paused    since ")
	}
	g.must(t, "start", standby)
	if back := g.healthy(t, active, 3); back.Active != standby || back.Epoch <= chosen.Epoch {
		t.Errorf("%s is active in epoch %d, was %s in %d", back.Active, back.Epoch, chosen.Active, chosen.Epoch)
	}
	want(t, g.cluster(t, active, "resume"), 0, "the cluster is not paused\n")
	want(t, g.cluster(t, active, "resume"), 0, "the cluster is not paused already")
	events := ask[[]eventJSON](t, g, active, "events")
	for _, kind := range []string{"pause", "resume"} {
		if !slices.ContainsFunc(events, func(e eventJSON) bool { return e.Kind == kind }) {
			t.Errorf("no event %s", kind)
		}
	}
}

// isActive says what keeps a node from being active in an epoch, or a later one.
func (g *group) isActive(t *testing.T, from, node string, epoch cluster.Epoch) error {
	t.Helper()
	s, r := g.tryStatus(t, from)
	if s.Active != node || s.Epoch < epoch {
		return fmt.Errorf("%q is active in epoch %d: %v", s.Active, s.Epoch, r)
	}
	return nil
}
