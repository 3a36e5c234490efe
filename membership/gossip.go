package membership

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/registry"
)

// GossipRotation gives Consul's gossip another key, while everything goes on running.
type GossipRotation struct {
	Registry *registry.Client // an operator's
	Peers    *api.Client
}

// ErrAway is the error of what takes all members, while one is not there.
var ErrAway = errors.New("not every member is there")

// Rotate does so on all members of view. Until the last step every agent understands
// the former key too, so that nobody falls out wherever it breaks off. It may be
// repeated: each time makes another key, and takes away whatever there was before.
func (r GossipRotation) Rotate(ctx context.Context, view cluster.View, show Progress) error {
	key := certs.GossipKey()
	err := inTurn(ctx, []step{
		{"look for every member", func(ctx context.Context) error { return r.allThere(ctx, view) }},
		{"give every agent the new key", func(ctx context.Context) error { return r.Registry.AddGossipKey(ctx, key) }},
		// Before it is used: an agent that has lost its data begins with what is kept here.
		{"keep it on every member", func(ctx context.Context) error { return r.keep(ctx, view, key) }},
		{"use it", func(ctx context.Context) error { return r.Registry.UseGossipKey(ctx, key) }},
		{"take the old one away", func(ctx context.Context) error { return r.Registry.KeepGossipKey(ctx, key) }},
	}, show)
	switch {
	case errors.Is(err, ErrAway):
		return fmt.Errorf("replace the gossip key: %w", err)
	case err != nil:
		return fmt.Errorf("replace the gossip key: %w; the former one is understood as long as it was not taken away everywhere: repeat the command", err)
	}
	return nil
}

// allThere refuses while a member would miss the new key: it could not come back.
func (r GossipRotation) allThere(ctx context.Context, view cluster.View) error {
	alive, err := r.Registry.AliveMembers(ctx)
	if err != nil {
		return err
	}
	var away []string
	for _, name := range slices.Sorted(maps.Keys(view.Nodes)) {
		if !slices.Contains(alive, name) || r.Peers.Ping(ctx, view.Nodes[name]) != nil {
			away = append(away, name)
		}
	}
	if len(away) > 0 {
		return fmt.Errorf("%w: %s; bring it up, or take it out with 'understudy cluster nodes remove', and repeat the command", ErrAway, strings.Join(away, ", "))
	}
	return nil
}

func (r GossipRotation) keep(ctx context.Context, view cluster.View, key string) error {
	var failed []error
	for _, name := range slices.Sorted(maps.Keys(view.Nodes)) {
		failed = append(failed, r.Peers.KeepGossipKey(ctx, view.Nodes[name], key))
	}
	return errors.Join(failed...)
}

// KeepGossipKey keeps the key on this host: for the next start of an agent that has
// lost its data, and for hosts that join.
func KeepGossipKey(h *node.Host, key string) error {
	if err := h.Certs.InstallGossipKey(key); err != nil {
		return err
	}
	return ConfigureConsul(h)
}
