package cli

import (
	"fmt"
	"os"
	"path/filepath"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/membership"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/packaging"
	"github.com/understudy-ha/understudy/services"
	"github.com/understudy-ha/understudy/statefile"
)

func permitCommand() *urfave.Command {
	return &urfave.Command{
		Name:  "permit",
		Usage: "let the daemons of this host start and stop the units that understudy.yaml names, and no others",
		Description: "Writes a rule for polkit. The unit of handler-runner does this, as root, whenever it starts; so after a change of\n" +
			"services in understudy.yaml it is enough to restart that. On a member that was upgraded it also renews what start or\n" +
			"join has laid over the unit of PostgreSQL.\n\nExample:\n  sudo understudy permit",
		Action: func(c *urfave.Context) error {
			if _, err := exactly(c); err != nil {
				return err
			}
			h, err := node.OpenQuiet(c.String("root"))
			if err != nil {
				return err
			}
			if err := permit(c, h); err != nil {
				return err
			}
			renewed, err := membership.RenewGuard(c.Context, h)
			if renewed {
				fmt.Fprintf(out(c), "the drop-in of %s is that of this version\n", h.Config.Postgres.Unit)
			}
			return err
		},
	}
}

func permit(c *urfave.Context, h *node.Host) error {
	units := append(append([]string{}, h.Config.Services.Always...), h.Config.Services.Leader...)
	if h.Record.Node.Kind != cluster.Runner {
		units = append(units, h.Config.Postgres.Unit)
	}
	for i, u := range units {
		units[i] = services.UnitName(u)
	}
	text, err := packaging.PolkitRule(units)
	if err != nil {
		return err
	}
	file := h.Layout.Polkit()
	if now, err := os.ReadFile(file); err == nil && string(now) == text {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("write polkit rule: %w", err)
	}
	if err := statefile.WriteText(file, []byte(text), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(out(c), "%s lets understudy's daemons start and stop %d units\n", file, len(units))
	return nil
}
