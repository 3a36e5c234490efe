// Command postgres-helper does what only PostgreSQL's own system user may do, for
// the other daemons of this node. It runs as that user.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/cmd/internal/daemon"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/pgrepl/helper"
	"github.com/understudy-ha/understudy/services"
)

func main() { daemon.Main("postgres-helper", run) }

func run(ctx context.Context, host *node.Host) error {
	if host.Record.Node.Kind == cluster.Runner { // has no PostgreSQL
		<-ctx.Done()
		return nil
	}
	pg, err := host.Postgres()
	if err != nil {
		return err
	}
	defer pg.Close()
	l, err := listen(host.Layout.Helper())
	if err != nil {
		return err
	}
	s := helper.Server{Postgres: pg, Divergence: host.Layout.Divergence(), Log: host.Log}
	return s.Serve(ctx, l)
}

// listen returns the socket that systemd has made for the user understudy, or, on a
// node of dev mode, whose daemons run as one user, one for that user.
func listen(socket string) (net.Listener, error) {
	if given, err := services.Given(); given != nil || err != nil {
		return given, err
	}
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("make the socket: %w", err)
	}
	defer syscall.Umask(syscall.Umask(0o177))
	return net.Listen("unix", socket)
}
