// Command check-runner measures this node and posts what it finds to the health
// checks of the local Consul agent.
package main

import (
	"context"

	"github.com/understudy-ha/understudy/checkrunner"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/cmd/internal/daemon"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/statefile"
)

func main() { daemon.Main("check-runner", run) }

func run(ctx context.Context, host *node.Host) error {
	reg, err := host.Registry()
	if err != nil {
		return err
	}
	defer reg.Close()
	o := checkrunner.Options{
		Node: host.Record.Node.Name, Kind: host.Record.Node.Kind,
		Always: host.Config.Services.Always, Leader: host.Config.Services.Leader,
		Poster: consul{host, reg}, Views: consul{host, reg}, Units: units{host.Units()},
		Files: func() (cluster.FilesReport, error) {
			return statefile.Read[cluster.FilesReport](host.Layout.Files())
		},
		Disk:    func() (int64, error) { return host.Helper().Probe(ctx) },
		Storage: func(s cluster.StorageReport) error { return statefile.Write(host.Layout.Storage(), s) },
		Logger:  host.Log,
	}
	if o.Kind == cluster.Manager {
		pg, err := host.Postgres()
		if err != nil {
			return err
		}
		defer pg.Close()
		o.Database = postgres{pg}
	}
	return checkrunner.Run(ctx, o)
}
