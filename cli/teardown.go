package cli

import (
	"fmt"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/membership"
	"github.com/understudy-ha/understudy/node"
)

func teardownCommand() *urfave.Command {
	return &urfave.Command{
		Name: "teardown", Usage: "make the last member, or one that was removed, a host that belongs to no cluster",
		UsageText: "understudy cluster teardown [options] --yes\n\nThe database stays, with the configuration that it had before, and the folders stay. On the last member PostgreSQL runs again in the end.\n" +
			"What understudy has made on this host goes: daemons, certificates, roles, replication slots. What a losing side wrote and kept versions of files stay, and are named.\n\n" +
			"example: understudy cluster teardown --yes",
		Flags: []urfave.Flag{
			&urfave.BoolFlag{Name: "yes", Usage: "do it: there is no way back but to start a new cluster"},
			&urfave.BoolFlag{Name: "force", Usage: "do not ask the cluster who else is a member: too many of its hosts are lost for good"},
			timeoutFlag(300 * time.Second),
		},
		Action: func(c *urfave.Context) error {
			if _, err := exactly(c); err != nil {
				return err
			}
			h, err := node.OpenQuiet(c.String("root"))
			if err != nil {
				return err
			}
			if !c.Bool("yes") && h.Record.Node.Name != "" {
				return usagef("%s would belong to no cluster any more; --yes says that this is meant", h.Record.Node.Name)
			}
			ctx, cancel := withTimeout(c)
			defer cancel()
			name, unit, removed := h.Record.Node.Name, h.Config.Postgres.Unit, h.Record.Removed || h.Record.Node.Kind == cluster.Runner
			left, err := membership.Teardown(ctx, h, c.Bool("force"), newProgress(c).step)
			for _, dir := range left {
				fmt.Fprintf(out(c), "left, because it may be all there is of it: %s\n", dir)
			}
			if err != nil {
				return fmt.Errorf("tear %s down: %w", name, err)
			}
			fmt.Fprintf(out(c), "%s belongs to no cluster any more.\n", name)
			if !removed {
				fmt.Fprintf(out(c), "%s runs as it was found; see to it that your own units are enabled.\n", unit)
			}
			return nil
		},
	}
}
