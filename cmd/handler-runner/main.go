// Command handler-runner makes this node active or standby, as the cluster
// decides, and serves /status and the API.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/understudy-ha/understudy/handlerrunner"
	"github.com/understudy-ha/understudy/node"
)

func main() {
	root := flag.String("root", "/", "directory that all paths of the node are under")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *root); err != nil {
		fmt.Fprintln(os.Stderr, "handler-runner:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string) error {
	host, err := node.OpenMember(root, "handler-runner")
	if err != nil {
		return err
	}
	a, err := open(host)
	if err != nil {
		return err
	}
	handler, err := handlerrunner.New(a.options())
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return handler.Run(ctx) })
	group.Go(func() error { return a.journal.run(ctx) })
	group.Go(func() error { return a.serve(ctx, handler) })
	group.Go(func() error { return a.awaitShutdown(ctx, handler) })
	return group.Wait()
}
