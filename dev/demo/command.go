package demo

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/dev"
)

// Command is "understudy dev demo".
func Command() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "a cluster under a writer: two kills and a hand-over, and the story of each",
		Description: "Makes a cluster of three nodes, kills the active PostgreSQL, then the whole active node, then hands\n" +
			"over, while a writer writes; checks every row on every node; prints what happened and takes it down.\n" +
			"Ends with 0 only if nothing that was acknowledged is lost and every node is back.\n" +
			"Example:\n   understudy dev demo --keep",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "the cluster's folder; it must hold none", Value: dev.DefaultDir() + "-demo"},
			&cli.StringFlag{Name: "first-address", Usage: "address of the first node; the others follow it", Value: dev.DefaultFirstAddress},
			&cli.StringFlag{Name: "bin", Usage: "folder of understudy's binaries", DefaultText: "that of this one"},
			&cli.BoolFlag{Name: "keep", Usage: "leave the cluster up"},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return cli.Exit(fmt.Errorf("%w: 'understudy dev demo' takes no arguments", dev.ErrUsage), 2)
			}
			err := Run(c.Context, Options{
				Dir: c.String("dir"), FirstAddress: c.String("first-address"), Bin: c.String("bin"), Keep: c.Bool("keep"), Out: c.App.Writer,
			})
			switch {
			case errors.Is(err, dev.ErrUsage):
				return cli.Exit(err, 2)
			case errors.Is(err, context.Canceled):
				return cli.Exit("the demo was interrupted", 1)
			}
			return err
		},
	}
}
