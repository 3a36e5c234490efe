package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/dev"
)

// Command is "understudy dev bench".
func Command() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "measure outages, idle cost and throughput of a cluster on this machine",
		Description: "Makes a cluster of three nodes and does every fault to it, again and again, under a writer; then\n" +
			"measures the daemons at rest, and pgbench beside a PostgreSQL that is configured by hand.\n" +
			"Ends with 0 unless something acknowledged is lost or the cluster does not recover; never for speed.\n" +
			"Example:\n   understudy dev bench --runs 5 --only kill-postgres,idle --json figures.json",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "the cluster's folder; it must hold none", Value: dev.DefaultDir() + "-bench"},
			&cli.StringFlag{Name: "first-address", Usage: "address of the first node; the others follow it", Value: dev.DefaultFirstAddress},
			&cli.StringFlag{Name: "bin", Usage: "folder of understudy's binaries", DefaultText: "that of this one"},
			&cli.IntFlag{Name: "runs", Usage: "how often each thing is measured", Value: 5},
			&cli.StringFlag{Name: "only", Usage: "some of " + strings.Join(Parts(), ","), DefaultText: "all"},
			&cli.StringFlag{Name: "json", Usage: "write the figures to this file as well; - for the output, in place of the tables"},
		},
		Action: func(c *cli.Context) error {
			o := Options{
				Dir: c.String("dir"), FirstAddress: c.String("first-address"), Bin: c.String("bin"),
				Runs: c.Int("runs"), Only: Parts(), JSON: c.String("json"), Out: c.App.Writer, Progress: c.App.ErrWriter,
			}
			if c.IsSet("only") {
				o.Only = strings.Split(c.String("only"), ",")
			}
			err := o.check()
			if err == nil && c.Args().Present() {
				err = fmt.Errorf("%w: 'understudy dev bench' takes no arguments", dev.ErrUsage)
			}
			if err == nil {
				err = Run(c.Context, o)
			}
			switch {
			case errors.Is(err, dev.ErrUsage):
				return cli.Exit(err, 2)
			case errors.Is(err, context.Canceled):
				return cli.Exit("the measurement was interrupted", 1)
			}
			return err
		},
	}
}

func (o Options) check() error {
	if o.Runs < 1 {
		return fmt.Errorf("%w: --runs %d: at least 1", dev.ErrUsage, o.Runs)
	}
	for _, p := range o.Only {
		if !slices.Contains(Parts(), p) {
			return fmt.Errorf("%w: --only %s: there are %s", dev.ErrUsage, p, strings.Join(Parts(), ", "))
		}
	}
	return nil
}
