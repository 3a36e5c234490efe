// Command consul-watcher judges how well this node is connected, and keeps
// Consul's Raft leader off the active node.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/watcher"
)

func main() {
	root := flag.String("root", "/", "directory that all paths of the node are under")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *root); err != nil {
		fmt.Fprintln(os.Stderr, "consul-watcher:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string) error {
	host, err := node.OpenMember(root, "consul-watcher")
	if err != nil {
		return err
	}
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
