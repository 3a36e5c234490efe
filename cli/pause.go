package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
)

// heardWithin is how long pause and resume wait for every node to hear of it.
const heardWithin = 10 * time.Second

func pauseCommand() *urfave.Command {
	return &urfave.Command{
		Name: "pause", Usage: "leave PostgreSQL to the operator: nobody takes over by itself until 'resume'",
		UsageText: "understudy cluster pause\n\nexample: understudy cluster pause",
		Action: func(c *urfave.Context) error {
			return changePause(c, func(m *member, _ cluster.View) (*cluster.Pause, error) {
				return &cluster.Pause{By: m.host.Record.Node.Name, At: time.Now()}, nil
			})
		},
	}
}

func resumeCommand() *urfave.Command {
	return &urfave.Command{
		Name: "resume", Usage: "end a pause; refused while the node that is active cannot be told",
		UsageText: "understudy cluster resume [--force]\n\nexample: understudy cluster resume",
		Flags: []urfave.Flag{&urfave.BoolFlag{Name: "force",
			Usage: "although the node that is active does not answer: it must be down, or two databases may be open to clients"}},
		Action: func(c *urfave.Context) error {
			force := c.Bool("force")
			return changePause(c, func(m *member, view cluster.View) (*cluster.Pause, error) {
				named := view.NextMaster.Node
				ctx, cancel := context.WithTimeout(c.Context, reportWithin)
				defer cancel()
				if _, err := m.peers.Report(ctx, view.Nodes[named]); err != nil && !force {
					return nil, fmt.Errorf("resume: %s, which is active, does not answer: %w; if it is only cut off, another node would become active beside it. See that it is down, then repeat with --force", named, err)
				}
				return nil, nil
			})
		},
	}
}

// changePause writes the pause that a command wants, and waits until every node
// has heard of it.
func changePause(c *urfave.Context, want func(*member, cluster.View) (*cluster.Pause, error)) error {
	if _, err := exactly(c); err != nil {
		return err
	}
	m, err := openManager(c)
	if err != nil {
		return err
	}
	defer m.close()
	view, err := m.view(c.Context)
	if err != nil {
		return err
	}
	p, err := want(m, view)
	if err != nil {
		return err
	}
	var changed bool
	if err := registry.Patiently(c.Context, func() error {
		now, err := m.reg.SetPause(c.Context, p)
		changed = changed || now
		return err
	}); err != nil {
		return err
	}
	kind, says := cluster.EventPause, "the cluster is paused"
	if p == nil {
		kind, says = cluster.EventResume, "the cluster is not paused"
	}
	if !changed {
		fmt.Fprintln(out(c), says+" already")
		return nil
	}
	if err := m.tell(c.Context, kind, says, nil); err != nil {
		return err
	}
	if deaf := m.deaf(c.Context, view, p != nil); len(deaf) > 0 {
		says += "; not told yet, because they do not answer: " + strings.Join(deaf, ", ")
	}
	fmt.Fprintln(out(c), says)
	return nil
}

// deaf names the nodes that have not heard in time whether the cluster is paused.
func (m *member) deaf(ctx context.Context, view cluster.View, paused bool) []string {
	ctx, cancel := context.WithTimeout(ctx, heardWithin)
	defer cancel()
	var names []string
	for _, name := range view.Managers() {
		for {
			r, err := m.peers.Report(ctx, view.Nodes[name])
			if err == nil && r.Paused == paused {
				break
			}
			if err != nil || ctx.Err() != nil {
				names = append(names, name)
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return names
}
