package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/dev"
)

// Command is "understudy dev bench".
func Command() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "measure outages, idle cost and throughput of a cluster on this machine",
		Description: "Makes a cluster of three nodes and does every fault to it, again and again, under a writer; cuts the\n" +
			"active node off (as root); then measures the daemons at rest, and pgbench beside a PostgreSQL that is\n" +
			"configured by hand. Only when they are asked for: how a node comes back to a database of 1 GB or 10 GB\n" +
			"after a crash.\n" +
			"Ends with 0 unless something acknowledged is lost or the cluster does not recover; never for speed.\n" +
			"Example:\n   understudy dev bench --runs 5 --only kill-postgres,idle --json figures.json",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "the cluster's folder; it must hold none", Value: dev.DefaultDir() + "-bench"},
			&cli.StringFlag{Name: "first-address", Usage: "address of the first node; the others follow it", Value: dev.DefaultFirstAddress},
			&cli.StringFlag{Name: "bin", Usage: "folder of understudy's binaries", DefaultText: "that of this one"},
			&cli.IntFlag{Name: "runs", Usage: "how often each thing is measured", Value: 5},
			&cli.StringFlag{Name: "only", Usage: "some of " + strings.Join(Parts(), ","), DefaultText: "all but those of much data"},
			&cli.DurationFlag{Name: "thaw-after", Usage: "how long a frozen node stands still", Value: time.Minute},
			&cli.StringFlag{Name: "json", Usage: "write the figures to this file as well; - for the output, in place of the tables"},
		},
		Action: func(c *cli.Context) error {
			o := Options{
				Dir: c.String("dir"), FirstAddress: c.String("first-address"), Bin: c.String("bin"),
				Runs: c.Int("runs"), ThawAfter: c.Duration("thaw-after"), JSON: c.String("json"), Out: c.App.Writer, Progress: c.App.ErrWriter,
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
	if o.ThawAfter < 0 {
		return fmt.Errorf("%w: --thaw-after %s: at least 0", dev.ErrUsage, o.ThawAfter)
	}
	for _, p := range o.Only {
		if !slices.Contains(Parts(), p) {
			return fmt.Errorf("%w: --only %s: there are %s", dev.ErrUsage, p, strings.Join(Parts(), ", "))
		}
	}
	return nil
}
