package cli

import (
	"fmt"
	"io"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/cluster"
)

// clusterStatus is what cluster status shows.
type clusterStatus struct {
	ID       string          `json:"id"`
	Created  time.Time       `json:"created"`
	Active   string          `json:"active"` // empty: none
	Epoch    cluster.Epoch   `json:"epoch"`
	Timeline uint32          `json:"timeline"`
	Named    string          `json:"next_master"`
	Reason   string          `json:"reason"`
	Paused   *cluster.Pause  `json:"paused,omitempty"`
	Sync     cluster.SyncSet `json:"sync"`
	CutOff   string          `json:"cut_off,omitempty"` // why this host is not in the majority; what is shown is what it last knew
	Nodes    []nodeRow       `json:"nodes"`
}

func statusCommand() *urfave.Command {
	return &urfave.Command{
		Name: "status", Usage: "who is active, since which epoch, and how safe the data is; exit code 3 when nobody is active",
		UsageText: "understudy cluster status [--json]\n\nexample: understudy cluster status",
		Flags:     []urfave.Flag{jsonFlag()},
		Action:    onMember(showCluster),
	}
}

func showCluster(c *urfave.Context, m *member, _ []string) error {
	o, err := m.look(c.Context)
	if err != nil {
		return err
	}
	view := o.view
	s := clusterStatus{
		ID: view.Info.ID, Created: view.Info.Created, Epoch: view.NextMaster.Epoch, Timeline: uint32(view.Leader.Timeline),
		Named: view.NextMaster.Node, Reason: view.NextMaster.Reason, Paused: view.Info.Paused, Sync: view.Sync, Nodes: o.rows, CutOff: o.cutOff,
	}
	_, none := active(view)
	if none == nil {
		s.Active = view.Leader.Node
	}
	if o.cutOff != "" {
		s.Active, none = o.serving(), nil
		if s.Active == "" {
			none = fmt.Errorf("%w in the part of the cluster that %s is in", errNoActive, m.host.Record.Node.Name)
		}
	}
	if err := show(c, s, func(w io.Writer) { printStatus(w, s) }); err != nil {
		return err
	}
	return none
}

func printStatus(w io.Writer, s clusterStatus) {
	fmt.Fprintf(w, "cluster   %s, since %s\n", s.ID, s.Created.Local().Format(time.DateTime))
	fmt.Fprintf(w, "active    %s, epoch %d, timeline %d\n", orDash(s.Active), s.Epoch, s.Timeline)
	fmt.Fprintf(w, "because   %s\n", s.Reason)
	if s.Paused != nil {
		fmt.Fprintf(w, "paused    since %s, on %s: nobody takes over by itself; 'understudy cluster resume' ends it\n", s.Paused.At.Local().Format(time.DateTime), s.Paused.By)
	}
	if s.CutOff != "" {
		fmt.Fprintf(w, "safety    AT RISK: this part of the cluster is cut off from the majority, and what is written here may give way to what is written there: %s\n\n", s.CutOff)
	} else if s.Sync.K > 0 {
		fmt.Fprintf(w, "safety    every acknowledged commit is on %s and on %d of %v\n\n", s.Sync.Leader, s.Sync.K, s.Sync.Members)
	} else {
		fmt.Fprintf(w, "safety    AT RISK: acknowledged commits are on %s alone, and no other node is promoted automatically\n\n", orDash(s.Sync.Leader))
	}
	printNodes(w, s.Nodes)
}

func setActiveCommand() *urfave.Command {
	return &urfave.Command{
		Name: "set-active", Usage: "make another node the active one", ArgsUsage: "NAME",
		UsageText: "understudy cluster set-active [--timeout 60s] [--allow-data-loss] NAME\n\nexample: understudy cluster set-active beta",
		Flags: []urfave.Flag{timeoutFlag(60 * time.Second),
			&urfave.BoolFlag{Name: "allow-data-loss", Usage: "when no node is active and none is elected: promote NAME, although commits that were acknowledged may be missing there"}},
		Action: onMember(setActive, "NAME"),
	}
}

func setActive(c *urfave.Context, m *member, args []string) error {
	ctx, cancel := withTimeout(c)
	defer cancel()
	view, err := m.view(ctx)
	if err != nil {
		return err
	}
	target := args[0]
	if _, ok := view.Nodes[target]; !ok {
		return unknownNode(target)
	}
	from, err := active(view)
	step, name := func() error { return m.peers.SetActive(ctx, from, api.SetActiveRequest{Node: target}) }, "hand over from "+from.Name+" to "+target
	switch {
	case err != nil && c.Bool("allow-data-loss"):
		step, name = func() error { return m.peers.Force(ctx, view.Nodes[target]) }, "promote "+target+", whatever it lacks"
	case err != nil:
		return fmt.Errorf("%w\nA node is elected by itself when enough members are there. If those that are not are lost for good, --allow-data-loss promotes %s all the same", err, target)
	case from.Name == target:
		fmt.Fprintf(out(c), "%s is the active node already\n", target)
		return nil
	}
	began := time.Now()
	p := newProgress(c)
	p.begin(name)
	if err = step(); err == nil {
		err = m.awaitActive(ctx, target)
	}
	p.end(name, err)
	if err != nil {
		return err
	}
	fmt.Fprintf(out(c), "%s is the active node (%d ms)\n", target, time.Since(began).Milliseconds())
	if p := view.Options("").Get("preferred_primary"); p != "" && p != target && !view.Paused() {
		fmt.Fprintf(out(c), "%s is the preferred primary and becomes active again when it is well; see 'understudy cluster options list'\n", p)
	}
	return nil
}

// eventsCommand shows the history that the daemons keep.
func eventsCommand() *urfave.Command {
	return &urfave.Command{
		Name: "events", Usage: "what happened: elections, promotions, changes of state",
		UsageText: "understudy cluster events [--since 1h] [--follow] [--json]\n\nexample: understudy cluster events --since 10m",
		Flags: []urfave.Flag{jsonFlag(),
			&urfave.DurationFlag{Name: "since", Value: 24 * time.Hour, Usage: "not older than this `TIME`"},
			&urfave.BoolFlag{Name: "follow", Usage: "go on with what happens from now on"}},
		Action: onMember(showEvents),
	}
}

func showEvents(c *urfave.Context, m *member, _ []string) error {
	since := time.Now().Add(-c.Duration("since"))
	if c.Bool("follow") {
		return m.reg.WatchEvents(c.Context, since, func(e cluster.Event) { printEvents(out(c), []cluster.Event{e}) })
	}
	events, err := m.reg.Events(c.Context, since)
	if err != nil {
		return err
	}
	return show(c, events, func(w io.Writer) { printEvents(w, events) })
}

func printEvents(w io.Writer, events []cluster.Event) {
	for _, e := range events {
		fmt.Fprintf(w, "%s  epoch %-4d %-10s %-9s %s\n", e.At.Local().Format("2006-01-02 15:04:05.000"), e.Epoch, e.Node, e.Kind, e.Message)
	}
}
