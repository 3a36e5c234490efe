// Command file-sync mirrors the manager's folders from the active node to the
// others.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/understudy-ha/understudy/cmd/internal/daemon"
	"github.com/understudy-ha/understudy/filesync"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/registry"
)

func main() {
	if err := filesync.Quiet(); err != nil {
		fmt.Fprintln(os.Stderr, "file-sync:", err)
		os.Exit(1)
	}
	daemon.Main("file-sync", run)
}

func run(ctx context.Context, host *node.Host) error {
	reg, err := host.Registry()
	if err != nil {
		return err
	}
	defer reg.Close()
	for ctx.Err() == nil {
		if err := sync(ctx, host, reg); err != nil {
			return err
		}
	}
	return nil
}

// sync mirrors the folders until ctx ends, or the node has another certificate, by
// which its peers know it, or trusts other CAs: Syncthing cannot change either.
func sync(ctx context.Context, host *node.Host, reg *registry.Client) error {
	cas, err := host.Certs.CA()
	if err != nil {
		return err
	}
	options, err := options(host)
	if err != nil {
		return err
	}
	engine, err := filesync.Open(options)
	if err != nil {
		return err
	}
	defer engine.Close()
	life, cancel := context.WithCancel(ctx)
	defer cancel()
	go announce(life, host, reg)
	go func() {
		defer cancel()
		awaitOther(life, host.Certs, options.Certificate.Certificate[0], cas)
	}()
	err = filesync.Follow(life, engine, reg, host.Record.Node.Name, host.Layout.Files(), host.Log)
	if ctx.Err() == nil && life.Err() != nil {
		host.Log.Info("this node has a new certificate, or trusts other CAs")
		return nil
	}
	return err
}
