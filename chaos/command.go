package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/dev"
)

// Command is "understudy dev chaos".
func Command() *cli.Command {
	return &cli.Command{
		Name:  "chaos",
		Usage: "hurt a cluster on this machine under load, and check what its clients saw",
		Description: "Makes a cluster and does faults to it that are drawn from a seed: kills, freezes, partitions, full disks, at any\n" +
			"time and in the middle of promotions and copies. Clients write and read meanwhile. After every round everything is\n" +
			"healed, the cluster has to recover, and the history has to be linearizable, with all that was acknowledged on every node.\n" +
			"Ends with 1 when a promise was broken, and says where the logs are kept. As root: partitions and full disks\n" +
			"are left out otherwise.\n" +
			"Example:\n   sudo understudy dev chaos --minutes 60 --seed 1",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "the cluster's folder; it must hold none", Value: dev.DefaultDir() + "-chaos"},
			&cli.StringFlag{Name: "first-address", Usage: "address of the first node; the others follow it", Value: dev.DefaultFirstAddress},
			&cli.StringFlag{Name: "bin", Usage: "folder of understudy's binaries", DefaultText: "that of this one"},
			&cli.IntFlag{Name: "nodes", Usage: "how many nodes", Value: 3},
			&cli.Float64Flag{Name: "minutes", Usage: "for how long rounds of faults begin", Value: 60},
			&cli.Int64Flag{Name: "seed", Usage: "of everything that is left to chance", Value: 1},
			&cli.StringFlag{Name: "only", Usage: "some of " + strings.Join(Kinds(), ","), DefaultText: "all"},
			&cli.BoolFlag{Name: "json", Usage: "print the record of the run as JSON"},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
			defer cancel()
			o := Options{
				Dir: c.String("dir"), FirstAddress: c.String("first-address"), Bin: c.String("bin"), Nodes: c.Int("nodes"),
				For: time.Duration(c.Float64("minutes") * float64(time.Minute)), Seed: c.Int64("seed"), Only: Kinds(), JSON: c.Bool("json"),
				Out: c.App.Writer, Progress: c.App.ErrWriter,
			}
			if c.IsSet("only") {
				o.Only = strings.Split(c.String("only"), ",")
			}
			err := o.check()
			if err == nil && c.Args().Present() {
				err = fmt.Errorf("%w: 'understudy dev chaos' takes no arguments", dev.ErrUsage)
			}
			if err == nil {
				_, err = Run(ctx, o)
			}
			switch {
			case errors.Is(err, dev.ErrUsage):
				return cli.Exit(err, 2)
			case errors.Is(err, context.Canceled):
				return cli.Exit("the run was interrupted", 1)
			}
			return err
		},
	}
}

func (o Options) check() error {
	switch {
	case o.For <= 0:
		return fmt.Errorf("%w: --minutes: more than 0", dev.ErrUsage)
	case o.Nodes < 3:
		return fmt.Errorf("%w: --nodes %d: at least 3, so that one may fail", dev.ErrUsage, o.Nodes)
	case len(lots(machine(), o.Only)) == 0:
		return fmt.Errorf("%w: --only %s: nothing that can be done here", dev.ErrUsage, strings.Join(o.Only, ","))
	}
	for _, kind := range o.Only {
		if !slices.Contains(Kinds(), kind) {
			return fmt.Errorf("%w: --only %s: there are %s", dev.ErrUsage, kind, strings.Join(Kinds(), ", "))
		}
	}
	return nil
}
