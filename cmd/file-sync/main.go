// Command file-sync mirrors the manager's folders from the active node to the
// others.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/understudy-ha/understudy/filesync"
	"github.com/understudy-ha/understudy/node"
)

func main() {
	root := flag.String("root", "/", "directory that all paths of the node are under")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := filesync.Quiet()
	if err == nil {
		err = run(ctx, *root)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "file-sync:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string) error {
	host, err := node.OpenMember(root, "file-sync")
	if err != nil {
		return err
	}
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
