package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/membership"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/statefile"
)

// nodeRow is one line of nodes list, and one object of its JSON.
type nodeRow struct {
	Name     string            `json:"name"`
	HostIP   string            `json:"host_ip"`
	Kind     cluster.Kind      `json:"kind"`
	State    string            `json:"state"`
	Checks   map[string]string `json:"checks"`
	LagBytes *int64            `json:"lag_bytes"` // null: not known
	Timeline cluster.Timeline  `json:"timeline"`
	Epoch    cluster.Epoch     `json:"epoch"`
	Version  string            `json:"version"`
	Options  cluster.Options   `json:"options"`
}

// columns are the checks of nodes list, and which Consul checks each sums up.
var columns = []column{
	{"consul", []string{"serfHealth"}},
	{"services", []string{string(cluster.CheckServices)}},
	{"database", []string{string(cluster.CheckPort), string(cluster.CheckAnswer), string(cluster.CheckRole), string(cluster.CheckStorage)}},
	{"files", []string{string(cluster.CheckFiles)}},
	{"heartbeat", []string{string(cluster.CheckHeartbeat)}},
}

type column struct {
	name   string
	checks []string
}

// of says whether a member of this kind has the column: a runner has no database.
func (c column) of(kind cluster.Kind) bool { return kind == cluster.Manager || c.name != "database" }

func nodesCommand() *urfave.Command {
	return &urfave.Command{
		Name: "nodes", Usage: "the members of the cluster",
		Subcommands: []*urfave.Command{
			{Name: "list", Usage: "every member with its state and health", Flags: []urfave.Flag{jsonFlag()}, Action: onMember(listNodes),
				UsageText: "understudy cluster nodes list [--json]\n\nexample: understudy cluster nodes list"},
			{Name: "get", Usage: "one member, with its options and what each check says", ArgsUsage: "NAME", Flags: []urfave.Flag{jsonFlag()}, Action: onMember(getNode, "NAME"),
				UsageText: "understudy cluster nodes get [--json] NAME\n\nexample: understudy cluster nodes get alpha"},
			{Name: "update", Usage: "change the options of one member; an empty value takes one back to the cluster's", ArgsUsage: "NAME",
				Flags: []urfave.Flag{optionsFlag()}, Action: updateNode,
				UsageText: "understudy cluster nodes update --options O NAME\n\nexample: understudy cluster nodes update --options priority=200 alpha"},
			{Name: "remove", Usage: "take a member out for good; the active one hands over first", ArgsUsage: "NAME",
				Flags: []urfave.Flag{
					&urfave.BoolFlag{Name: "force", Usage: "remove an active node although no other can take over"},
					timeoutFlag(120 * time.Second)},
				Action:    onManager(removeNode, "NAME"),
				UsageText: "understudy cluster nodes remove [--force] NAME\n\nexample: understudy cluster nodes remove gamma"},
			waitCommand(),
		},
	}
}

func listNodes(c *urfave.Context, m *member, _ []string) error {
	o, err := m.look(c.Context)
	if err != nil {
		return err
	}
	return show(c, o.rows, func(w io.Writer) {
		printNodes(w, o.rows)
		if o.cutOff != "" {
			fmt.Fprintf(w, "\n%s is cut off from the majority, and shows what it last knew: %s.\n", m.host.Record.Node.Name, o.cutOff)
			if serving := o.serving(); serving != "" {
				fmt.Fprintf(w, "AT RISK: what is written on %s may give way to what the majority writes.\n", serving)
			}
		} else if _, err := active(o.view); err != nil {
			fmt.Fprintln(w, "\nNo node is active at the moment.")
		}
		if o.view.Paused() {
			fmt.Fprintln(w, "\nThe cluster is paused: nobody takes over by itself.")
		}
	})
}

func printNodes(w io.Writer, rows []nodeRow) {
	var lines [][]string
	for _, r := range rows {
		line := []string{r.Name, r.HostIP, r.State}
		for _, col := range columns {
			line = append(line, orDash(r.Checks[col.name]))
		}
		lines = append(lines, append(line, bytesOf(r.LagBytes), timelineOf(r.Timeline), r.Version))
	}
	table(w, "NAME HOST_IP STATE CONSUL SERVICES DATABASE FILES HEARTBEAT LAG TIMELINE VERSION", lines)
}

func bytesOf(n *int64) string {
	switch {
	case n == nil:
		return "-"
	case *n < 10<<10:
		return fmt.Sprintf("%d B", *n)
	case *n < 10<<20:
		return fmt.Sprintf("%d kB", *n>>10)
	}
	return fmt.Sprintf("%d MB", *n>>20)
}

func timelineOf(t cluster.Timeline) string {
	if t == 0 {
		return "-"
	}
	return strconv.Itoa(int(t))
}

// reportWithin bounds the time that a node has to tell of itself; nodes that do
// not are offline.
const reportWithin = 2 * time.Second

// overview is the cluster as this host sees it.
type overview struct {
	view   cluster.View
	rows   []nodeRow
	health map[string]map[string]registry.CheckState
	// cutOff says why this host is cut off from the majority; then the view
	// is what it last knew, and Consul's checks are not known.
	cutOff string
}

// serving is the name of the node that serves the part that is cut off.
func (o overview) serving() string {
	for _, r := range o.rows {
		if r.State == string(cluster.ActiveMinority) {
			return r.Name
		}
	}
	return ""
}

// look gathers what nodes list shows, asking all nodes at the same time.
func (m *member) look(ctx context.Context) (o overview, err error) {
	if o.view, o.cutOff, err = m.known(ctx); err != nil {
		return o, err
	}
	if o.cutOff == "" {
		if o.health, err = m.reg.Health(ctx); err != nil {
			return o, err
		}
	}
	names := slices.Sorted(maps.Keys(o.view.Nodes))
	o.rows = make([]nodeRow, len(names))
	var wait sync.WaitGroup
	for i, name := range names {
		wait.Go(func() {
			try, cancel := context.WithTimeout(ctx, reportWithin)
			defer cancel()
			r, err := m.peers.Report(try, o.view.Nodes[name])
			o.rows[i] = rowOf(o.view, o.view.Nodes[name], r, err == nil)
			if o.cutOff == "" {
				o.rows[i].judge(o.health[name])
			}
		})
	}
	wait.Wait()
	return o, nil
}

// known reads the cluster's state, or what this host last knew of it where its
// watcher finds it cut off.
func (m *member) known(ctx context.Context) (v cluster.View, cutOff string, err error) {
	if w := m.host.Verdict(); w.Verdict == cluster.Minority || w.Verdict == cluster.Isolated {
		if v, err := statefile.Read[cluster.View](m.host.Layout.Known()); err == nil {
			return v, w.Reason, nil
		}
	}
	v, err = m.view(ctx)
	return v, "", err
}

func rowOf(view cluster.View, n cluster.Node, r cluster.Report, online bool) nodeRow {
	row := nodeRow{
		Name: n.Name, HostIP: n.Address, Kind: n.Kind, State: "offline", Version: n.Version,
		Options: view.Options(n.Name), Checks: map[string]string{},
	}
	if online {
		row.State, row.Epoch, row.Timeline, row.LagBytes = string(r.State), r.Epoch, r.Position.Timeline, r.LagBytes
		if r.Open && r.State == cluster.Active {
			row.State = "leader"
		}
	}
	return row
}

// judge fills in the checks, by what Consul says of them.
func (row *nodeRow) judge(health map[string]registry.CheckState) {
	for _, col := range columns {
		if !col.of(row.Kind) {
			continue
		}
		row.Checks[col.name] = sumUp(health, col.checks)
		if !health["serfHealth"].OK {
			// Its TTL checks are judged by its own agent, and that is not heard.
			row.Checks[col.name] = "FAIL"
		}
	}
}

// sumUp is OK when all checks are, and FAIL when one is not or is missing.
func sumUp(health map[string]registry.CheckState, checks []string) string {
	for _, name := range checks {
		if state, ok := health[name]; !ok || !state.OK {
			return "FAIL"
		}
	}
	return "OK"
}

func getNode(c *urfave.Context, m *member, args []string) error {
	o, err := m.look(c.Context)
	if err != nil {
		return err
	}
	rows, health := o.rows, o.health
	name := args[0]
	i := slices.IndexFunc(rows, func(r nodeRow) bool { return r.Name == name })
	if i < 0 {
		return unknownNode(name)
	}
	full := struct {
		nodeRow
		Outputs map[string]registry.CheckState `json:"check_outputs"`
	}{rows[i], health[name]}
	return show(c, full, func(w io.Writer) {
		printNodes(w, rows[i:i+1])
		var checks, options [][]string
		for _, col := range columns {
			if !col.of(rows[i].Kind) {
				continue
			}
			for _, check := range col.checks {
				state := health[name][check]
				verdict := "FAIL"
				if state.OK {
					verdict = "OK"
				}
				checks = append(checks, []string{check, verdict, state.Output})
			}
		}
		fmt.Fprintln(w)
		table(w, "CHECK RESULT OUTPUT", checks)
		for _, o := range cluster.KnownOptions() {
			options = append(options, []string{o.Name, orDash(rows[i].Options.Get(o.Name))})
		}
		fmt.Fprintln(w)
		table(w, "OPTION VALUE", options)
	})
}

// tellRemoved writes the removal to the history. A node that removed itself has
// left Consul and cannot: its tombstone says it.
func (m *member) tellRemoved(ctx context.Context, name string) error {
	if name == m.host.Record.Node.Name {
		return nil
	}
	return m.tell(ctx, cluster.EventRemoved, name+" is no member any more", nil)
}

func unknownNode(name string) error {
	return fmt.Errorf("%s is not a member of the cluster; 'understudy cluster nodes list' shows those that are", name)
}

func updateNode(c *urfave.Context) error {
	args, err := exactly(c, "NAME")
	if err != nil {
		return err
	}
	o, err := checked(c.StringSlice("options"), true)
	if err != nil {
		return err
	}
	if len(o) == 0 {
		return usagef("nothing to change: give --options")
	}
	m, err := openManager(c)
	if err != nil {
		return err
	}
	defer m.close()
	name := args[0]
	view, err := m.view(c.Context)
	if err != nil {
		return err
	}
	if _, ok := view.Nodes[name]; !ok {
		return unknownNode(name)
	}
	changed, err := m.change(c.Context, name, o)
	if err == nil {
		err = m.tellOptions(c.Context, changed)
	}
	if err == nil {
		fmt.Fprintf(out(c), "%s updated\n", name)
	}
	return err
}

func removeNode(c *urfave.Context, m *member, args []string) error {
	view, err := m.view(c.Context)
	if err != nil {
		return err
	}
	name := args[0]
	_, member := view.Nodes[name]
	if _, begun := view.Removed[name]; !member && !begun {
		return unknownNode(name)
	}
	ctx, cancel := withTimeout(c)
	defer cancel()
	r := membership.Removal{Registry: m.reg, Peers: m.peers, By: m.host.Record.Node.Name, Force: c.Bool("force")}
	if err := r.Remove(ctx, view, name, newProgress(c).step); err != nil {
		return err
	}
	if err := m.tellRemoved(ctx, name); err != nil {
		return err
	}
	fmt.Fprintf(out(c), "%s is no member any more\n", name)
	return nil
}
