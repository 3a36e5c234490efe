// Command consul-watcher judges how well this node is connected, keeps Consul's
// Raft leader off the active node, and ends PostgreSQL when handler-runner, frozen
// or dead, lets the lease run out.
package main

import (
	"context"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/cmd/internal/daemon"
	"github.com/understudy-ha/understudy/deadman"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/watcher"
)

func main() { daemon.Main("consul-watcher", run) }

func run(ctx context.Context, host *node.Host) error {
	reg, err := host.Registry()
	if err != nil {
		return err
	}
	defer reg.Close()
	peers, err := host.Peers()
	if err != nil {
		return err
	}
	o := watcher.Options{
		Node:    host.Record.Node.Name,
		Verdict: host.Layout.Verdict(),
		Members: host.Layout.Members(),
		Views:   consul{host, reg}, Raft: consul{host, reg}, Gossip: consul{host, reg}, Prober: peers,
		Logger: host.Log,
	}
	if a, err := netip.ParseAddr(host.Record.Node.Address); err == nil && a.IsLoopback() {
		// The cluster lives on one machine; no gateway lies between its nodes.
		o.Gateway = func() (netip.Addr, bool) { return netip.Addr{}, false }
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return watcher.Run(ctx, o) })
	group.Go(func() error {
		deadman.Switch(host.Layout.Lease()).Watch(ctx, grace, func(ctx context.Context) error { return endPostgres(ctx, host) })
		return nil
	})
	return group.Wait()
}

// grace is what handler-runner has to see by itself that its lease is over.
const grace = 150 * time.Millisecond

func endPostgres(ctx context.Context, host *node.Host) error {
	if host.Record.Node.Kind == cluster.Runner {
		return nil
	}
	err := host.Units().Kill(ctx, host.Config.Postgres.Unit, syscall.SIGKILL)
	host.Log.Warn("PostgreSQL killed: the lease is over, and handler-runner has not fenced this node", "error", err)
	return err
}
