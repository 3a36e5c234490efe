package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/drill"
	"github.com/understudy-ha/understudy/pgrepl"
)

func drillCommand() *urfave.Command {
	return &urfave.Command{
		Name: "drill", Usage: "a rehearsal: hand over to a standby and back under a writer, and report the outage and the loss",
		UsageText: "understudy cluster drill [--to NAME] [--timeout 120s] [--json]\n\nClients lose their sessions twice, as with set-active. The exit code is 1 if anything acknowledged was lost.\n\nexample: understudy cluster drill --to beta",
		Flags: []urfave.Flag{jsonFlag(), timeoutFlag(120 * time.Second),
			&urfave.StringFlag{Name: "to", Usage: "the `NAME` of the node that takes over for a while (default: the best standby)"}},
		Action: onMember(runDrill),
	}
}

func runDrill(c *urfave.Context, m *member, _ []string) error {
	if m.host.Record.Node.Kind != cluster.Manager {
		return fmt.Errorf("%s is a runner, and its certificate does not open the database; drill on a manager", m.host.Record.Node.Name)
	}
	ctx, cancel := withTimeout(c)
	defer cancel()
	view, err := m.view(ctx)
	if err != nil {
		return err
	}
	if _, err := active(view); err != nil {
		return err
	}
	if to := c.String("to"); to != "" {
		if _, member := view.Nodes[to]; !member {
			return unknownNode(to)
		}
	}
	report, err := drill.Run(ctx, drill.Options{
		Nodes: m.peers, Registry: m.reg, DSN: m.drillDSN, To: c.String("to"), Step: newProgress(c).step,
	})
	if len(report.Legs) == 0 {
		return err
	}
	if shown := show(c, report, func(w io.Writer) { printDrill(w, report) }); err == nil {
		err = shown
	}
	return err
}

// drillDSN is how the writer of a drill connects: as a client does, with the
// certificate of this host.
func (m *member) drillDSN(n cluster.Node) string {
	var b strings.Builder
	d := m.host.Certs
	for _, kv := range [][2]string{
		{"host", n.Address}, {"port", strconv.Itoa(n.Ports.Postgres)}, {"user", pgrepl.DrillRole}, {"dbname", pgrepl.DrillDatabase},
		{"sslmode", "verify-full"}, {"sslrootcert", d.CAFile()}, {"sslcert", d.CertFile()}, {"sslkey", d.KeyFile()},
		{"search_path", pgrepl.DrillSchema}, {"application_name", "understudy drill"},
	} {
		fmt.Fprintf(&b, "%s='%s' ", kv[0], strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(kv[1]))
	}
	return b.String()
}

func printDrill(w io.Writer, r drill.Report) {
	var rows [][]string
	for _, l := range r.Legs {
		rows = append(rows, []string{l.From, l.To, fmt.Sprintf("%d ms", l.OutageMs), fmt.Sprintf("%d ms", l.StandbyMs), orDash(strconv.FormatUint(uint64(l.Record.Epoch), 10))})
	}
	table(w, "FROM TO OUTAGE STANDBY_AGAIN EPOCH", rows)
	for _, l := range r.Legs {
		if len(l.Record.Steps) == 0 {
			continue
		}
		var steps []string
		for _, s := range l.Record.Steps {
			steps = append(steps, fmt.Sprintf("%s %d", s.Name, s.SinceMs))
		}
		fmt.Fprintf(w, "\n%s -> %s, in ms: %s\n", l.From, l.To, strings.Join(steps, ", "))
	}
	var nodes []string
	for _, f := range r.Checked {
		nodes = append(nodes, f.Node)
	}
	fmt.Fprintf(w, "\nwrites    %d sent, %d acknowledged, %d indeterminate\n", r.Written, r.Acknowledged, r.Indeterminate)
	if len(nodes) == 0 {
		fmt.Fprintln(w, "lost      not known: the rows were not looked for")
		return
	}
	fmt.Fprintf(w, "lost      %d, looked for row by row on %s\n", r.Lost, strings.Join(nodes, ", "))
}
