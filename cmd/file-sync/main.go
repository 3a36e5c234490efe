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
	options, err := options(host)
	if err != nil {
		return err
	}
	engine, err := filesync.Open(options)
	if err != nil {
		return err
	}
	defer engine.Close()
	go announce(ctx, host, reg)
	return filesync.Follow(ctx, engine, reg, host.Record.Node.Name, host.Layout.Files(), host.Log)
}
