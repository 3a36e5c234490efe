package main

import (
	"context"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/watcher"
)

// consul is the registry, as long as it holds this host's cluster, and Consul's
// own leader.
type consul struct {
	host *node.Host
	*registry.Client
}

func (c consul) Watch(ctx context.Context, changed func(cluster.View)) error {
	return c.Client.Watch(ctx, func(v cluster.View) {
		if err := node.SameCluster(c.host.Record, v); err != nil {
			c.host.Log.Error("registry", "error", err)
			return
		}
		changed(v)
	}, nil)
}

func (c consul) Leader(ctx context.Context) (string, bool, error) { return c.RaftLeader(ctx) }

func (c consul) Transfer(ctx context.Context, to string) error { return c.TransferRaftLeader(ctx, to) }

func (c consul) Failed(ctx context.Context) ([]string, error) { return c.FailedMembers(ctx) }

func (c consul) Join(ctx context.Context, address string) error { return c.JoinMember(ctx, address) }

var (
	_ watcher.Views  = consul{}
	_ watcher.Raft   = consul{}
	_ watcher.Gossip = consul{}
)
