package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl/divergence"
)

func divergenceCommand() *urfave.Command {
	return &urfave.Command{
		Name: "divergence", Usage: "what a losing side wrote: list it, read it, and apply it again",
		Subcommands: []*urfave.Command{
			{Name: "list", Usage: "the exports on this node and on every node that answers", Flags: []urfave.Flag{jsonFlag()}, Action: onMember(listDivergences),
				UsageText: "understudy divergence list [--json]\n\nexample: understudy divergence list"},
			{Name: "show", Usage: "what one export holds: counts for each table, sequences, changes of the schema", ArgsUsage: "ID",
				Flags: []urfave.Flag{jsonFlag()}, Action: onMember(showDivergence, "ID"),
				UsageText: "understudy divergence show [--json] ID\n\nexample: understudy divergence show 20261121T081500Z-beta-epoch5"},
			{Name: "export", Usage: "every change, one a line", ArgsUsage: "ID", Action: exportDivergence,
				Flags: []urfave.Flag{
					&urfave.StringFlag{Name: "format", Value: "jsonl", Usage: "`FORMAT`: jsonl, or sql to be read and run by hand; sql looks for no conflicts"},
					&urfave.StringFlag{Name: "output", Usage: "write to a new `FILE` (default: standard output)"}},
				UsageText: "understudy divergence export [--format jsonl|sql] [--output FILE] ID\n\n" +
					"example: understudy divergence export --format sql --output lost.sql 20261121T081500Z-beta-epoch5"},
			{Name: "apply", Usage: "say which changes fit the active's database and which conflict; with --yes apply those that fit", ArgsUsage: "ID",
				Flags: []urfave.Flag{jsonFlag(),
					&urfave.BoolFlag{Name: "yes", Usage: "change the database; without it nothing is changed"},
					timeoutFlag(900 * time.Second)},
				Action: onMember(applyDivergence, "ID"),
				UsageText: "understudy divergence apply [--yes] [--json] ID\n\nIt is run on the active node. Changes that conflict are left out; exit code 1 when there are any with --yes.\n\n" +
					"example: understudy divergence apply 20261121T081500Z-beta-epoch5"},
		},
	}
}

// held is an export and the node that holds it.
type held struct {
	divergence.Summary
	HeldBy string `json:"held_by"`

	on cluster.Node // empty: this host
}

// exports gathers what this node and the others hold, and the names of those
// that did not answer. Without Consul it is this node's.
func (m *member) exports(ctx context.Context) (list []held, silent []string, err error) {
	self := m.host.Record.Node.Name
	own, err := divergence.List(m.host.Layout.Divergence())
	if err != nil {
		return nil, nil, err
	}
	list = []held{}
	for _, s := range own {
		list = append(list, held{Summary: s, HeldBy: self})
	}
	view, err := m.view(ctx)
	if err != nil {
		return list, []string{fmt.Sprintf("every other node (%v)", err)}, nil
	}
	var mu sync.Mutex
	var wait sync.WaitGroup
	for name, n := range view.Nodes {
		if name == self {
			continue
		}
		wait.Go(func() {
			try, cancel := context.WithTimeout(ctx, reportWithin)
			defer cancel()
			var theirs []divergence.Summary
			err := m.peers.Divergences(try, n, &theirs)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent = append(silent, name)
			}
			for _, s := range theirs {
				list = append(list, held{Summary: s, HeldBy: name, on: n})
			}
		})
	}
	wait.Wait()
	slices.SortFunc(list, func(a, b held) int { return cmp.Or(strings.Compare(a.ID, b.ID), strings.Compare(a.HeldBy, b.HeldBy)) })
	slices.Sort(silent)
	return list, silent, nil
}

// find returns one export.
func (m *member) find(ctx context.Context, id string) (held, error) {
	if err := divergence.CheckID(id); err != nil {
		return held{}, usagef("%w; see 'understudy divergence list'", err)
	}
	list, silent, err := m.exports(ctx)
	if err != nil {
		return held{}, err
	}
	if i := slices.IndexFunc(list, func(h held) bool { return h.ID == id }); i >= 0 {
		return list[i], nil
	}
	if len(silent) > 0 {
		return held{}, fmt.Errorf("%w: %q; not asked, because they do not answer: %s", divergence.ErrUnknown, id, strings.Join(silent, ", "))
	}
	return held{}, fmt.Errorf("%w: %q; see 'understudy divergence list'", divergence.ErrUnknown, id)
}

// changes opens the changes of an export, wherever it is.
func (m *member) changes(ctx context.Context, h held) (io.ReadCloser, error) {
	if h.on.Name == "" {
		return divergence.Open(m.host.Layout.Divergence(), h.ID)
	}
	return m.peers.DivergenceChanges(ctx, h.on, h.ID)
}

func listDivergences(c *urfave.Context, m *member, _ []string) error {
	list, silent, err := m.exports(c.Context)
	if err != nil {
		return err
	}
	if len(silent) > 0 {
		fmt.Fprintf(c.App.ErrWriter, "not asked, because they do not answer: %s\n", strings.Join(silent, ", "))
	}
	return show(c, list, func(w io.Writer) {
		var lines [][]string
		for _, h := range list {
			lines = append(lines, []string{h.ID, h.HeldBy, clock(h.First), clock(h.Last), strconv.Itoa(h.Transactions), strconv.Itoa(h.Changes), completeness(h.Summary)})
		}
		table(w, "ID HELD_BY FIRST LAST TRANSACTIONS CHANGES EXPORTED", lines)
	})
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}

func completeness(s divergence.Summary) string {
	if s.Complete {
		return "all"
	}
	return "partly"
}

func showDivergence(c *urfave.Context, m *member, args []string) error {
	h, err := m.find(c.Context, args[0])
	if err != nil {
		return err
	}
	return show(c, h, func(w io.Writer) { printDivergence(w, h) })
}

func printDivergence(w io.Writer, h held) {
	fmt.Fprintf(w, "divergence    %s, held by %s\n", h.ID, h.HeldBy)
	fmt.Fprintf(w, "written by    %s in epoch %d, on timeline %d after %s\n", h.Node, h.Epoch, h.Timeline, h.Fork)
	fmt.Fprintf(w, "committed     %d transactions that changed data, from %s to %s\n", h.Transactions, clock(h.First), clock(h.Last))
	if !h.Complete {
		fmt.Fprintf(w, "NOT COMPLETE  %s; the whole data directory is in %s on %s\n", strings.Join(h.Missing, "; "), h.Physical, h.HeldBy)
	}
	if len(h.Tables) > 0 {
		var lines [][]string
		for _, t := range h.Tables {
			lines = append(lines, []string{t.Database, t.Schema + "." + t.Name, strconv.Itoa(t.Inserts), strconv.Itoa(t.Updates), strconv.Itoa(t.Deletes), strconv.Itoa(t.Truncates)})
		}
		fmt.Fprintln(w)
		table(w, "DATABASE TABLE INSERTS UPDATES DELETES TRUNCATES", lines)
	}
	for _, s := range h.Sequences {
		fmt.Fprintf(w, "\nsequence %s.%s of database %s has come to %d", s.Schema, s.Name, s.Database, s.Last)
	}
	if len(h.Sequences) > 0 {
		fmt.Fprintln(w)
	}
	for _, s := range h.Schema {
		what := strings.Join(s.Objects, ", ")
		if what == "" {
			what = "entries of " + strings.Join(s.Catalogs, ", ")
		}
		fmt.Fprintf(w, "\nthe schema of %s was changed at %s and is not exported: %s", cmp.Or(s.Database, "the server"), clock(s.At), what)
	}
	if len(h.Schema) > 0 {
		fmt.Fprintln(w)
	}
}

func exportDivergence(c *urfave.Context) error {
	args, err := exactly(c, "ID")
	if err != nil {
		return err
	}
	format := c.String("format")
	if format != "jsonl" && format != "sql" {
		return usagef("--format %q is neither jsonl nor sql", format)
	}
	m, err := openMember(c)
	if err != nil {
		return err
	}
	defer m.close()
	h, err := m.find(c.Context, args[0])
	if err != nil {
		return err
	}
	changes, err := m.changes(c.Context, h)
	if err != nil {
		return err
	}
	defer changes.Close()
	w := out(c)
	if name := c.String("output"); name != "" {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("export divergence: %w", err)
		}
		err = write(f, format, h.Summary, changes)
		return errors.Join(err, f.Sync(), f.Close())
	}
	return write(w, format, h.Summary, changes)
}

func write(w io.Writer, format string, s divergence.Summary, changes io.Reader) error {
	if format == "sql" {
		return divergence.WriteSQL(w, s, changes)
	}
	_, err := io.Copy(w, changes)
	return err
}

func applyDivergence(c *urfave.Context, m *member, args []string) error {
	ctx, cancel := withTimeout(c)
	defer cancel()
	h, err := m.find(ctx, args[0])
	if err != nil {
		return err
	}
	view, err := m.view(ctx)
	if err != nil {
		return err
	}
	on, err := active(view)
	if err != nil {
		return err
	}
	if on.Name != m.host.Record.Node.Name {
		return fmt.Errorf("%s is the active node; run 'understudy divergence apply %s' there", on.Name, h.ID)
	}
	changes, err := m.changes(ctx, h)
	if err != nil {
		return err
	}
	defer changes.Close()
	pg, err := m.host.Postgres()
	if err != nil {
		return err
	}
	defer pg.Close()
	r, err := divergence.Apply(ctx, h.Summary, changes, pg.Writer, c.Bool("yes"))
	if err != nil {
		return err
	}
	if err := show(c, r, func(w io.Writer) { printReport(w, r) }); err != nil {
		return err
	}
	if n := len(r.Conflicts); n > 0 && r.Committed {
		return fmt.Errorf("%d changes conflict and were left out; remove the causes and repeat the command, or change the rows by hand", n)
	}
	return nil
}

func printReport(w io.Writer, r divergence.Report) {
	for _, x := range r.Conflicts {
		fmt.Fprintf(w, "conflict  change %d, %s of %s.%s.%s %s: %s\n", x.Change.N, x.Change.Op, x.Change.Database, x.Change.Schema, x.Change.Table, x.Change.Row(), x.Reason)
	}
	if r.Before > 0 {
		fmt.Fprintf(w, "%d changes were applied before\n", r.Before)
	}
	if r.Committed {
		fmt.Fprintf(w, "%d applied, %d conflicts\n", r.Applied, len(r.Conflicts))
		return
	}
	fmt.Fprintf(w, "%d would be applied, %d conflicts; nothing was changed, --yes applies them\n", r.Applied, len(r.Conflicts))
}
