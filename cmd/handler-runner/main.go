// Command handler-runner makes this node active or standby, as the cluster
// decides, and serves /status and the API.
package main

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/understudy-ha/understudy/cmd/internal/daemon"
	"github.com/understudy-ha/understudy/handlerrunner"
	"github.com/understudy-ha/understudy/node"
)

func main() { daemon.Main("handler-runner", run) }

func run(ctx context.Context, host *node.Host) error {
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
	group.Go(func() error { return a.announcer(handler).run(ctx) })
	group.Go(func() error { return a.awaitShutdown(ctx, handler) })
	group.Go(func() error { return certificates{a, handler}.keepFresh(ctx) })
	group.Go(func() error { return a.noticeVerdicts(ctx, handler.Notice) })
	return group.Wait()
}
