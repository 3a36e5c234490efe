// Command consul-watcher judges how well this node is connected, and keeps
// Consul's Raft leader off the active node.
package main

import (
	"context"
	"net/netip"
	"path/filepath"

	"github.com/understudy-ha/understudy/cmd/internal/daemon"
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
		Members: filepath.Join(host.Layout.State, "members.json"),
		Views:   consul{host, reg}, Raft: consul{host, reg}, Gossip: consul{host, reg}, Prober: peers,
		Logger: host.Log,
	}
	if a, err := netip.ParseAddr(host.Record.Node.Address); err == nil && a.IsLoopback() {
		// The cluster lives on one machine; no gateway lies between its nodes.
		o.Gateway = func() (netip.Addr, bool) { return netip.Addr{}, false }
	}
	return watcher.Run(ctx, o)
}
