package cli

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cli/lateflags"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/history"
)

func explainCommand() *urfave.Command {
	return &urfave.Command{
		Name: "explain", Usage: "one change of active: what was observed, who answered, who won and why, and how long each step took", ArgsUsage: "[EPOCH]",
		UsageText: "understudy cluster explain [--json] [EPOCH]\n\nWithout EPOCH it is the last change.\n\nexample: understudy cluster explain",
		Flags:     []urfave.Flag{jsonFlag()},
		Action:    explainChange,
	}
}

func explainChange(c *urfave.Context) error {
	args, err := lateflags.Args(c)
	if err != nil || len(args) > 1 {
		return usagef("at most one EPOCH is wanted, and --json; see '%s --help'", c.Command.HelpName)
	}
	var epoch cluster.Epoch
	if len(args) == 1 {
		n, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil || n == 0 {
			return usagef("%q is no epoch; 'understudy cluster events' shows them", args[0])
		}
		epoch = cluster.Epoch(n)
	}
	m, err := openMember(c)
	if err != nil {
		return err
	}
	defer m.close()
	events, err := m.reg.Events(c.Context, time.Time{})
	if err != nil {
		return err
	}
	changes, unread := history.Changes(events)
	change, err := pick(changes, epoch)
	if err != nil {
		return err
	}
	if unread != nil {
		fmt.Fprintf(c.App.ErrWriter, "some events are left out: %v\n", unread)
	}
	return show(c, change, func(w io.Writer) { printChange(w, change) })
}

// pick finds the change to an epoch, or the last one for zero.
func pick(changes []history.Change, epoch cluster.Epoch) (history.Change, error) {
	if len(changes) == 0 {
		return history.Change{}, fmt.Errorf("no change of active is among the events that are kept; see 'understudy cluster events'")
	}
	if epoch == 0 {
		return changes[len(changes)-1], nil
	}
	for _, c := range changes {
		tried := slices.ContainsFunc(c.Attempts, func(a history.Attempt) bool { return a.Epoch == epoch })
		if c.Epoch == epoch || tried {
			return c, nil
		}
	}
	return history.Change{}, fmt.Errorf("no change to epoch %d is among the events that are kept, which reach from epoch %d to %d", epoch, changes[0].Epoch, changes[len(changes)-1].Epoch)
}

const withMillis = "15:04:05.000"

// printChange tells a change so that it can be read by somebody who was asleep.
func printChange(w io.Writer, c history.Change) {
	at := ""
	if len(c.Steps) > 0 {
		at = ", " + c.Steps[0].At.Local().Format("2006-01-02 "+withMillis)
	}
	fmt.Fprintf(w, "epoch %d: %s -> %s%s\n\n", c.Epoch, orDash(c.From), orDash(c.Winner), at)
	line := func(label, format string, args ...any) {
		fmt.Fprintf(w, "%-10s %s\n", label, strings.TrimRight(fmt.Sprintf(format, args...), " "))
	}
	line("why", "%s", c.Why)
	for i, s := range together(c.Seen) {
		line(once("seen", i), "%s by %s: %s", s.At.Local().Format(withMillis), s.Node, s.What)
	}
	for i, a := range c.Answers {
		line(once("answered", i), "%-10s %s  %s", a.Node, a.Position, c.Fate(a.Node))
	}
	for i, p := range c.Silent {
		line(once("silent", i), "%-10s %s", p.Node, p.Reason)
	}
	for i, a := range c.Attempts {
		line(once("before", i), "epoch %d was given to %s, which did not become writable (%s)", a.Epoch, a.Winner, a.Reason)
	}
	if c.Reason != "" {
		line("because", "%s, says %s", c.Reason, c.By)
	}
	if c.Start.Timeline > 0 {
		line("timeline", "%d begins at %s; commits are confirmed by %s", c.Start.Timeline, c.Start.LSN, c.Quorum)
	}
	for _, r := range c.Returns {
		if r.Standby.IsZero() {
			line("rejoined", "%s is not a standby", r.Node)
		} else if r.How != "" {
			line("rejoined", "%s by %s, which took %d ms", r.Node, r.How, r.Standby.Sub(r.Began).Milliseconds())
		}
	}
	var rows [][]string
	for _, s := range c.Steps {
		rows = append(rows, []string{s.Name, s.At.Local().Format(withMillis), fmt.Sprintf("%d ms", s.SinceMs), s.Node})
	}
	fmt.Fprintln(w)
	table(w, "STEP AT SINCE NODE", rows)
	fmt.Fprintln(w)
	if _, writable := c.At(history.Writable); !writable {
		line("outage", "goes on: no node has become writable")
	} else if c.From != "" {
		line("outage", "%d ms from the first sign until %s accepted writes; clients may have waited before that sign", c.OutageMs, c.Winner)
	}
}

// together makes one line of what several nodes observed alike.
func together(seen []history.Sighting) (list []history.Sighting) {
	for _, s := range seen {
		i := slices.IndexFunc(list, func(o history.Sighting) bool { return o.What == s.What })
		if i < 0 {
			list = append(list, s)
		} else {
			list[i].Node += ", " + s.Node
		}
	}
	return list
}

// once is the label of the first line of several.
func once(label string, i int) string {
	if i > 0 {
		return ""
	}
	return label
}
