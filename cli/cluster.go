package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/membership"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/registry"
)

func clusterCommand() *urfave.Command {
	return &urfave.Command{
		Name: "cluster", Usage: "make, join, watch and steer a cluster, from one of its nodes",
		Subcommands: []*urfave.Command{
			startCommand(), joinCommand(), teardownCommand(), statusCommand(), nodesCommand(), setActiveCommand(), optionsCommand(), tokenCommand(), pauseCommand(), resumeCommand(), eventsCommand(), explainCommand(), drillCommand(),
		},
	}
}

func identityFlags() []urfave.Flag {
	return []urfave.Flag{
		&urfave.StringFlag{Name: "cluster-host-ip", Usage: "the `IP` address that the other members reach this host at (default: node.address of understudy.yaml)"},
		&urfave.StringFlag{Name: "cluster-node-name", Usage: "the `NAME` of this node (default: made of its address)"},
		optionsFlag(),
		timeoutFlag(900 * time.Second),
	}
}

func timeoutFlag(d time.Duration) urfave.Flag {
	return &urfave.DurationFlag{Name: "timeout", Value: d, Usage: "give up after this `TIME`; the command can be repeated"}
}

func startCommand() *urfave.Command {
	return &urfave.Command{
		Name: "start", Usage: "make this host, with its data, the active node of a new cluster",
		UsageText: "understudy cluster start [options]\n\nexample: understudy cluster start --cluster-host-ip 10.0.0.1 --cluster-node-name alpha",
		Flags:     identityFlags(),
		Action: func(c *urfave.Context) error {
			if _, err := exactly(c); err != nil {
				return err
			}
			o, err := checked(c.StringSlice("options"), false)
			if err != nil {
				return err
			}
			h, r, err := request(c, o)
			if err != nil {
				return err
			}
			ctx, cancel := withTimeout(c)
			defer cancel()
			if err := membership.Start(ctx, h, r, newProgress(c).step); err != nil {
				return explain(err, "start", h)
			}
			fmt.Fprintf(out(c), "%s is the active node of cluster %s.\nNext: 'understudy cluster token create' here, then 'understudy cluster join --token TOKEN %s' on the other hosts.\n",
				h.Record.Node.Name, h.Record.Info.ID, h.Record.Node.Address)
			return nil
		},
	}
}

func joinCommand() *urfave.Command {
	return &urfave.Command{
		Name: "join", Usage: "make this empty host a standby, or a runner, of an existing cluster", ArgsUsage: "ADDRESS",
		UsageText: "understudy cluster join [options] --token TOKEN ADDRESS\n\nADDRESS is the IP of any manager of the cluster; TOKEN comes from 'understudy cluster token create' there.\n\n" +
			"example: understudy cluster join --cluster-host-ip 10.0.0.2 --cluster-node-name beta --token TOKEN 10.0.0.1\n" +
			"         understudy cluster join --cluster-host-ip 10.0.0.4 --kind runner --token TOKEN 10.0.0.1",
		Flags: append(identityFlags(),
			&urfave.StringFlag{Name: "token", Usage: "the join `TOKEN`", EnvVars: []string{"UNDERSTUDY_TOKEN"}},
			&urfave.StringFlag{Name: "kind", Usage: "`KIND` of member: manager, or runner, which has no database (default: node.kind of understudy.yaml)"}),
		Action: func(c *urfave.Context) error {
			args, err := exactly(c, "ADDRESS")
			if err != nil {
				return err
			}
			if c.String("token") == "" {
				return usagef("--token is missing: 'understudy cluster token create' on a member makes one")
			}
			o, err := checked(c.StringSlice("options"), true)
			if err != nil {
				return err
			}
			h, r, err := request(c, o)
			if err != nil {
				return err
			}
			r.Token, r.Contact, r.Kind = c.String("token"), args[0], cluster.Kind(c.String("kind"))
			ctx, cancel := withTimeout(c)
			defer cancel()
			p := newProgress(c)
			if err := membership.Join(ctx, h, r, p.step, p.note); err != nil {
				return explain(err, "join", h)
			}
			became := "standby"
			if h.Record.Node.Kind == cluster.Runner {
				became = "runner"
			}
			fmt.Fprintf(out(c), "%s is a %s of cluster %s.\n", h.Record.Node.Name, became, h.Record.Info.ID)
			return nil
		},
	}
}

func request(c *urfave.Context, o cluster.Options) (*node.Host, membership.Request, error) {
	r := membership.Request{Name: c.String("cluster-node-name"), Address: c.String("cluster-host-ip"), Options: o}
	if r.Address != "" {
		if err := cluster.CheckAddress(r.Address); err != nil {
			return nil, r, usagef("--cluster-host-ip: %w", err)
		}
	}
	if r.Name != "" {
		if err := cluster.CheckName(r.Name); err != nil {
			return nil, r, usagef("--cluster-node-name: %w", err)
		}
	}
	if os.Getuid() != 0 && c.String("root") == "/" {
		return nil, r, errors.New("this command changes the host and must be run as root, for instance with sudo")
	}
	h, err := node.OpenQuiet(c.String("root"))
	return h, r, err
}

func withTimeout(c *urfave.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.Context, c.Duration("timeout"))
}

// explain adds what to do to an error of start or join.
func explain(err error, command string, h *node.Host) error {
	switch {
	case errors.Is(err, membership.ErrMember), errors.Is(err, membership.ErrNotEmpty):
		return err
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted; 'understudy cluster %s' with the same options goes on from here", command)
	case len(h.Record.Done) > 1:
		return fmt.Errorf("%w\nWhat was done is kept: remove the cause and repeat the same command, it goes on from here.", err)
	}
	return err
}

// member is this host's view of its cluster.
type member struct {
	host  *node.Host
	reg   *registry.Client
	peers *api.Client
}

func openMember(c *urfave.Context) (*member, error) {
	h, err := node.OpenQuiet(c.String("root"))
	if err != nil {
		return nil, err
	}
	switch r := h.Record; {
	case r.Node.Name == "" || len(r.Done) <= 1:
		return nil, node.ErrNotMember
	case r.Removed:
		return nil, fmt.Errorf("%s was removed from the cluster; to join again, empty this host and use 'understudy cluster join'", r.Node.Name)
	case !r.Member:
		return nil, fmt.Errorf("an unfinished 'understudy cluster %s' is on this host; repeat that command to finish it", r.Command)
	}
	m := &member{host: h}
	if m.reg, err = h.Registry(); err != nil {
		return nil, err
	}
	if m.peers, err = h.Peers(); err != nil {
		return nil, err
	}
	warnOfCertificate(c.App.ErrWriter, h, time.Now())
	return m, nil
}

// openManager is openMember for what changes the cluster's state in Consul, which a
// runner may not.
func openManager(c *urfave.Context) (*member, error) {
	m, err := openMember(c)
	if err != nil || m.host.Record.Node.Kind == cluster.Manager {
		return m, err
	}
	defer m.close()
	view, err := m.view(c.Context)
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%s is a runner, and may not change the cluster; do it on a manager: %s", m.host.Record.Node.Name, strings.Join(view.Managers(), ", "))
}

func (m *member) close() { m.reg.Close() }

// onMember makes the action of a command that takes these arguments, on a host that is
// a member.
func onMember(do func(c *urfave.Context, m *member, args []string) error, args ...string) urfave.ActionFunc {
	return on(openMember, do, args)
}

// onManager is onMember for what only a manager may do.
func onManager(do func(c *urfave.Context, m *member, args []string) error, args ...string) urfave.ActionFunc {
	return on(openManager, do, args)
}

func on(open func(*urfave.Context) (*member, error), do func(c *urfave.Context, m *member, args []string) error, args []string) urfave.ActionFunc {
	return func(c *urfave.Context) error {
		given, err := exactly(c, args...)
		if err != nil {
			return err
		}
		m, err := open(c)
		if err != nil {
			return err
		}
		defer m.close()
		return do(c, m, given)
	}
}

// view reads the cluster's state. While Consul elects a leader it waits.
func (m *member) view(ctx context.Context) (v cluster.View, err error) {
	err = registry.Patiently(ctx, func() error {
		v, err = m.reg.View(ctx)
		return err
	})
	if err == nil {
		err = node.SameCluster(m.host.Record, v)
	}
	if err != nil {
		return v, fmt.Errorf("read the cluster's state from Consul on %s: %w", m.host.Record.Node.Name, err)
	}
	if t, removed := v.Removed[m.host.Record.Node.Name]; removed {
		return v, fmt.Errorf("%s was removed from the cluster by %s at %s; to join again, empty this host and use 'understudy cluster join'",
			t.Node, t.By, t.At.Local().Format(time.DateTime))
	}
	return v, nil
}

// active returns the node that holds the lock, ready.
func active(v cluster.View) (cluster.Node, error) {
	n, ok := v.Active()
	if !ok {
		return n, fmt.Errorf("%w at the moment; see 'understudy cluster nodes list'", errNoActive)
	}
	return n, nil
}
