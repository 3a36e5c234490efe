package e2e

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"
)

type eventJSON struct {
	At      time.Time `json:"at"`
	Node    string    `json:"node"`
	Kind    string    `json:"kind"`
	Message string    `json:"message"`
}

// eventsSince are the events of a kind on a node since a moment, as another tells them.
func (g *group) eventsSince(t *testing.T, from, node, kind string, since time.Time) (found []eventJSON) {
	t.Helper()
	for _, e := range ask[[]eventJSON](t, g, from, "events", "--since", time.Since(since).String()) {
		if e.Node == node && e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// handlerRestarts ends the handler-runner of the active as an upgrade does, with
// SIGTERM. That is no reason to hand over.
func handlerRestarts(t *testing.T, g *group) {
	before, began := g.healthy(t, "node1", 3), time.Now()
	after := g.underWrites(t, func() {
		pid := g.node(t, before.Active).Pids["handler-runner"]
		kill(t, pid, syscall.SIGTERM)
		eventually(t, "handler-runner is restarted", func() error {
			if now := g.node(t, before.Active).Pids["handler-runner"]; now == 0 || now == pid {
				return fmt.Errorf("process %d, was %d", now, pid)
			}
			return nil
		})
	})
	if after.Active != before.Active || after.Epoch != before.Epoch {
		t.Errorf("%s was active in epoch %d, and %s in %d", before.Active, before.Epoch, after.Active, after.Epoch)
	}
	if found := g.eventsSince(t, before.Standbys()[0], before.Active, "handover", began); len(found) > 0 {
		t.Errorf("%v", found)
	}
}

// shutDown shuts the host of the active down in order. It hands over first, so
// when it comes back it follows, and nothing has to be mended.
func shutDown(t *testing.T, g *group) {
	before, began := g.healthy(t, "node1", 3), time.Now()
	from := before.Standbys()[0]
	after := g.underWrites(t, func() {
		g.must(t, "stop", before.Active)
		// The other one is active already when the node is down.
		if s := g.statusOf(t, from); s.Active == "" || s.Epoch != before.Epoch+1 {
			t.Errorf("%q is active in epoch %d", s.Active, s.Epoch)
		}
		eventually(t, "the hand-over is among the events", func() error {
			if found := g.eventsSince(t, from, before.Active, "handover", began); len(found) != 1 {
				return fmt.Errorf("%v", found)
			}
			return nil
		})
		g.must(t, "start", before.Active)
	})
	if after.Active == before.Active || after.Epoch != before.Epoch+1 {
		t.Errorf("%s was active in epoch %d, and %s in %d", before.Active, before.Epoch, after.Active, after.Epoch)
	}
	for _, kind := range []string{"rewind", "clone"} {
		if found := g.eventsSince(t, from, before.Active, kind, began); len(found) > 0 {
			t.Errorf("%v", found)
		}
	}

	// A standby is simply gone, and all at once come back as they were.
	g.must(t, "stop", after.Standbys()[0])
	eventually(t, "two nodes go on", func() error {
		if r := g.cluster(t, after.Active, "status"); r.code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	g.must(t, "start", after.Standbys()[0])
	g.healthy(t, "node1", 3)
}

// preferred makes a standby the preferred primary. When it has been well for a
// minute it is active.
func preferred(t *testing.T, g *group) {
	before, began := g.healthy(t, "node1", 3), time.Now()
	comes := before.Standbys()[0]
	after := g.underWrites(t, func() {
		want(t, g.cluster(t, comes, "options", "set", "preferred_primary="+comes), 0)
		for time.Since(began) < 2*soon && g.isActive(t, comes, comes, before.Epoch+1) != nil {
			time.Sleep(time.Second)
		}
	})
	if after.Active != comes || after.Epoch != before.Epoch+1 {
		t.Errorf("%s is active in epoch %d, not %s in %d", after.Active, after.Epoch, comes, before.Epoch+1)
	}
	if found := g.eventsSince(t, comes, before.Active, "failback", began); len(found) != 1 || found[0].At.Sub(began) < soon {
		t.Errorf("since %s: %v", began, found)
	}
	want(t, g.cluster(t, comes, "options", "set", "preferred_primary="), 0)
}
