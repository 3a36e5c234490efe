package dev

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cli/lateflags"
)

// The exit codes of the dev commands; see docs/operations.md.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitTimeout = 4
)

// Commands returns "understudy dev" with all that is below it.
func Commands() *cli.Command {
	return &cli.Command{
		Name:  "dev",
		Usage: "a whole cluster of real components on this machine's loopback addresses",
		Description: "Each node is a folder with its own PostgreSQL, Consul, daemons and init, on its own address.\n" +
			"Example:\n   understudy dev up --detach && understudy dev info",
		Subcommands: []*cli.Command{
			upCommand(), infoCommand(), killCommand(), startCommand(),
			nodeCommand("stop", "shut a node down in order, as its host would; the active one hands over first", "understudy dev stop node1", Stop),
			nodeCommand("freeze", "stop everything on a node with SIGSTOP", "understudy dev freeze node1", Freeze),
			nodeCommand("thaw", "let a frozen node go on", "understudy dev thaw node1", Thaw),
			cutCommand(), healCommand(), logsCommand(), downCommand(), guardCommand(), initCommand(),
		},
	}
}

func dirFlag() cli.Flag {
	return &cli.StringFlag{Name: "dir", Usage: "the cluster's folder", EnvVars: []string{"UNDERSTUDY_DEV_DIR"}, Value: DefaultDir()}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON"}
}

func example(lines ...string) string {
	return "Example:\n   " + strings.Join(lines, "\n   ")
}

// action checks how many arguments there are and gives an error its exit code.
// Flags may come after the arguments too.
func action(least, most int, do func(c *cli.Context, args []string) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		args, err := lateflags.Args(c)
		if err == nil && (len(args) < least || len(args) > most) {
			err = fmt.Errorf("%w: want 'understudy dev %s'", ErrUsage, strings.TrimSpace(c.Command.Name+" "+c.Command.ArgsUsage))
		}
		if err != nil {
			return exit(fmt.Errorf("%w; see 'understudy dev %s --help'", err, c.Command.Name))
		}
		return exit(do(c, args))
	}
}

func exit(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrUsage), errors.Is(err, ErrNoNode), errors.Is(err, lateflags.ErrFlag):
		return cli.Exit(err, exitUsage)
	case errors.Is(err, context.DeadlineExceeded):
		return cli.Exit(err, exitTimeout)
	}
	return cli.Exit(err, exitFailed)
}

func upCommand() *cli.Command {
	return &cli.Command{
		Name:  "up",
		Usage: "make a cluster, or go on with one that is half made or down",
		Description: "Installs the nodes and runs 'cluster start' on the first and 'cluster join' on the others.\n" +
			"Without --detach it stays, and Ctrl-C takes the cluster down and deletes it.\n" +
			example("understudy dev up --nodes 3 --detach --options sync_mode=strict"),
		Flags: []cli.Flag{
			dirFlag(), jsonFlag(),
			&cli.IntFlag{Name: "nodes", Usage: "how many nodes that can be active", Value: 3},
			&cli.IntFlag{Name: "runners", Usage: "how many nodes beside them that have no database"},
			&cli.BoolFlag{Name: "detach", Usage: "return when the cluster is up"},
			&cli.StringSliceFlag{Name: "options", Usage: "options of the cluster, as for 'cluster start'"},
			&cli.StringFlag{Name: "first-address", Usage: "address of the first node; the others follow it", Value: DefaultFirstAddress},
			&cli.StringFlag{Name: "bin", Usage: "folder of understudy's binaries", DefaultText: "that of this one"},
		},
		Action: action(0, 0, func(c *cli.Context, _ []string) error { return up(c) }),
	}
}

func up(c *cli.Context) error {
	ctx, cancel := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer cancel()
	made, err := Up(ctx, UpOptions{
		Dir: c.String("dir"), Nodes: c.Int("nodes"), Runners: c.Int("runners"), FirstAddress: c.String("first-address"),
		Options: c.StringSlice("options"), Bin: c.String("bin"), Progress: c.App.ErrWriter,
	})
	detach := c.Bool("detach")
	if err != nil {
		if ctx.Err() != nil && !detach {
			return errors.Join(err, takeDown(c, c.String("dir")))
		}
		return err
	}
	if err := printInfo(ctx, c, made.Dir); err != nil || detach {
		return err
	}
	fmt.Fprintln(c.App.ErrWriter, "Ctrl-C takes the cluster down.")
	<-ctx.Done()
	return takeDown(c, made.Dir)
}

func takeDown(c *cli.Context, dir string) error {
	fmt.Fprintln(c.App.ErrWriter, "taking the cluster down")
	return Down(context.WithoutCancel(c.Context), dir, false)
}

func infoCommand() *cli.Command {
	return &cli.Command{
		Name: "info", Usage: "show the nodes, their addresses and processes",
		Description: example("understudy dev info --json"),
		Flags:       []cli.Flag{dirFlag(), jsonFlag()},
		Action:      action(0, 0, func(c *cli.Context, _ []string) error { return printInfo(c.Context, c, c.String("dir")) }),
	}
}

func printInfo(ctx context.Context, c *cli.Context, dir string) error {
	info, err := Describe(ctx, dir)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		out := json.NewEncoder(c.App.Writer)
		out.SetIndent("", "  ")
		return out.Encode(info)
	}
	return info.table(c.App.Writer)
}

func (i Info) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tADDRESS\tSTATE\tSTATUS\tPOSTGRESQL\tRUNS")
	for _, n := range i.Nodes {
		var runs []string
		for name := range n.Pids {
			runs = append(runs, name)
		}
		slices.Sort(runs)
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Address, n.State, n.StatusURL, cmp.Or(n.Postgres.DSN, "-"), strings.Join(runs, " "))
	}
	return t.Flush()
}

func killCommand() *cli.Command {
	return &cli.Command{
		Name: "kill", Usage: "SIGKILL to a component of a node, or to all of it", ArgsUsage: "NODE [COMPONENT]",
		Description: "COMPONENT is postgres, consul, file-sync, check-runner, handler-runner, consul-watcher, postgres-helper, a unit, or all (the default).\n" +
			"A component is started again by its node's init; after 'all' nothing is, until 'understudy dev start NODE'.\n" +
			example("understudy dev kill node1 postgres"),
		Flags: []cli.Flag{dirFlag()},
		Action: action(1, 2, func(c *cli.Context, args []string) error {
			component := All
			if len(args) > 1 {
				component = args[1]
			}
			return Kill(c.Context, c.String("dir"), args[0], component)
		}),
	}
}

func startCommand() *cli.Command {
	return nodeCommand("start", "bring a node that is down back up", "understudy dev start node1", Start)
}

// nodeCommand is a command that does one thing to one node.
func nodeCommand(name, usage, line string, do func(ctx context.Context, dir, node string) error) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: "NODE", Description: example(line),
		Flags: []cli.Flag{dirFlag()},
		Action: action(1, 1, func(c *cli.Context, args []string) error {
			return do(c.Context, c.String("dir"), args[0])
		}),
	}
}

func cutCommand() *cli.Command {
	return &cli.Command{
		Name: "cut", Usage: "drop all packets between two nodes (needs root)", ArgsUsage: "A B [--one-way]",
		Description: example("sudo understudy dev cut node1 node2 --one-way    only from node1 to node2"),
		Flags:       []cli.Flag{dirFlag(), &cli.BoolFlag{Name: "one-way", Usage: "only those from A to B"}},
		Action: action(2, 2, func(c *cli.Context, args []string) error {
			return Cut(c.Context, c.String("dir"), args[0], args[1], c.Bool("one-way"))
		}),
	}
}

func healCommand() *cli.Command {
	return &cli.Command{
		Name: "heal", Usage: "undo all cuts", Description: example("sudo understudy dev heal"),
		Flags:  []cli.Flag{dirFlag()},
		Action: action(0, 0, func(c *cli.Context, _ []string) error { return Heal(c.Context, c.String("dir")) }),
	}
}

func logsCommand() *cli.Command {
	return &cli.Command{
		Name: "logs", Usage: "show the logs of a node, or of all", ArgsUsage: "[NODE]",
		Description: example("understudy dev logs --follow node1"),
		Flags: []cli.Flag{
			dirFlag(),
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on with what is added"},
			&cli.IntFlag{Name: "lines", Aliases: []string{"n"}, Usage: "how many lines of each log", Value: 20},
		},
		Action: action(0, 1, func(c *cli.Context, args []string) error {
			ctx, cancel := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
			defer cancel()
			node := ""
			if len(args) > 0 {
				node = args[0]
			}
			return Logs(ctx, c.App.Writer, c.String("dir"), node, c.Int("lines"), c.Bool("follow"))
		}),
	}
}

func downCommand() *cli.Command {
	return &cli.Command{
		Name: "down", Usage: "stop all nodes and delete the cluster", Description: example("understudy dev down", "understudy dev down --keep    stops only; 'dev up' goes on"),
		Flags:  []cli.Flag{dirFlag(), &cli.BoolFlag{Name: "keep", Usage: "stop in order and keep the files"}},
		Action: action(0, 0, func(c *cli.Context, _ []string) error { return Down(c.Context, c.String("dir"), c.Bool("keep")) }),
	}
}

func guardCommand() *cli.Command {
	return &cli.Command{
		Name: "guard", Usage: "the outer process of a node", Hidden: true,
		Flags: []cli.Flag{&cli.StringFlag{Name: "root", Required: true}, &cli.StringFlag{Name: "cgroup"}},
		Action: action(0, 0, func(c *cli.Context, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this binary: %w", err)
			}
			root := c.String("root")
			return RunGuard(root, c.String("cgroup"), []string{self, "dev", "init", "--root", root})
		}),
	}
}

func initCommand() *cli.Command {
	return &cli.Command{
		Name: "init", Usage: "the init of a node", Hidden: true,
		Flags: []cli.Flag{&cli.StringFlag{Name: "root", Required: true}},
		Action: action(0, 0, func(c *cli.Context, _ []string) error {
			ctx, cancel := signal.NotifyContext(c.Context, syscall.SIGTERM)
			defer cancel()
			return RunInit(ctx, c.String("root"))
		}),
	}
}
