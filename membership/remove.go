package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/packaging"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/statefile"
)

// Removal takes a member out of the cluster.
type Removal struct {
	Registry *registry.Client
	Peers    *api.Client
	By       string // who removes, for the tombstone
	Force    bool   // although the member is active and nobody can take over
}

// ErrLast is the error of removing the only manager.
var ErrLast = errors.New("it is the last member that can be active; a cluster of none cannot be kept")

// Remove takes name out for good. The active node hands over first. It may be
// repeated when it was interrupted.
func (r Removal) Remove(ctx context.Context, view cluster.View, name string, show Progress) error {
	n, member := view.Nodes[name]
	if slices.Equal(view.Managers(), []string{name}) {
		return fmt.Errorf("remove %s: %w", name, ErrLast)
	}
	steps := []step{
		{"hand over", func(ctx context.Context) error { return r.handOver(ctx, view, name) }},
		{"write the tombstone", func(ctx context.Context) error { return r.Registry.RemoveNode(ctx, name, r.By) }},
		{"revoke its tokens", func(ctx context.Context) error { return r.Registry.Revoke(ctx, name) }},
		{"let the node withdraw", func(ctx context.Context) error { return r.withdraw(ctx, n) }},
		{"take it out of Consul", func(ctx context.Context) error { return r.expel(ctx, name) }},
	}
	if !member { // the tombstone is there
		steps = []step{steps[2], steps[4]}
	}
	if err := inTurn(ctx, steps, show); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// handOver moves activity to the best other manager.
func (r Removal) handOver(ctx context.Context, view cluster.View, name string) error {
	if view.Leader.Node != name || !view.Leader.Held {
		return nil
	}
	switch err := r.Peers.SetActive(ctx, view.Nodes[name], api.SetActiveRequest{Why: "the active node is removed"}); {
	case err == nil:
		return r.served(ctx, name)
	case !r.Force:
		return fmt.Errorf("%s is active and no other node can take over: %w; --force removes it all the same", name, err)
	}
	return nil
}

// served waits until another node than name is active.
func (r Removal) served(ctx context.Context, name string) error {
	return await(ctx, func(ctx context.Context) (bool, string) {
		view, err := r.Registry.View(ctx)
		if err != nil {
			return false, err.Error()
		}
		l := view.Leader
		return l.Held && l.Ready && l.Node != name, "no other node is active yet"
	})
}

// withdrawWithin is how long a removed node that answers has to stop its part.
const withdrawWithin = 30 * time.Second

// withdraw waits until a node that can be reached has seen its removal and
// stopped, so that Consul is not taken from under it. One that cannot be
// reached is told when it comes back.
func (r Removal) withdraw(ctx context.Context, n cluster.Node) error {
	ctx, cancel := context.WithTimeout(ctx, withdrawWithin)
	defer cancel()
	for missed := 0; missed < 3; {
		report, err := r.Peers.Report(ctx, n)
		switch {
		case err != nil:
			missed++
		case report.Departed:
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}

// expel takes a node out of Consul that may have been too dead to leave. The node
// on which the command runs cannot do that to itself, and has left gracefully.
func (r Removal) expel(ctx context.Context, name string) error {
	if name == r.By {
		return nil
	}
	return insist(ctx, time.Minute, func(ctx context.Context) error { return r.Registry.RemovePeer(ctx, name) },
		func(err error) bool { return errors.Is(err, registry.ErrNoLeader) }) // the removed server may have led
}

// Depart is the removed node's own part: it leaves Consul gracefully, so that it
// counts for no majority any more, and stops PostgreSQL and the daemons for good but
// handler-runner, which goes on telling that the node was removed. The database
// stays as it is. It may be repeated.
//
// The units stay enabled, because only root may change that. A mark in whose presence
// they do not start keeps them down.
func Depart(ctx context.Context, h *node.Host, reg *registry.Client) error {
	if h.Record.Removed {
		return nil
	}
	if err := statefile.WriteText(h.Layout.Removed(), nil, 0o644); err != nil {
		return err
	}
	units := h.Units()
	leaving := packaging.Daemons()
	if h.Record.Node.Kind == cluster.Manager {
		leaving = append(leaving, h.Config.Postgres.Unit)
	}
	for _, u := range leaving {
		if u == consulUnit || u == handlerUnit {
			continue
		}
		if err := units.Stop(ctx, u); err != nil {
			return err
		}
	}
	if s, err := units.State(ctx, consulUnit); err != nil || s.Active != cluster.No {
		if err := reg.Leave(ctx); err != nil {
			return err
		}
	}
	if err := units.Stop(ctx, consulUnit); err != nil {
		return err
	}
	if err := node.UpdateRecord(h.Layout.Membership(), func(r *node.Record) error {
		r.Removed = true
		return nil
	}); err != nil {
		return err
	}
	h.Record.Removed = true
	return nil
}
