package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
)

// Minority is what becomes of an active node that is cut off from all others.
type Minority struct {
	AfterMs  int64  `json:"minority_after_ms"`
	TargetMs int64  `json:"target_ms"`    // of Serves
	Serves   Series `json:"serves"`       // from the cut to its first acknowledged write
	Majority Series `json:"majority"`     // from the cut to the first one of the others
	Heals    Series `json:"heals"`        // from the heal to one active node that all stream from
	AtRisk   int    `json:"at_risk_rows"` // acknowledged by the cut-off nodes, all runs
}

const minorityAfter = 5 * time.Second

// minority cuts the active node off again and again, while every node is written
// to for itself. What the node then acknowledges is at risk, and not counted.
func (b *bench) minority(ctx context.Context) error {
	s, err := b.healthy(ctx, 0)
	if err != nil {
		return err
	}
	if _, err = b.open(ctx, "minority"); err == nil { // it makes the table
		err = b.rig.SetOption(ctx, s.Active, "minority_after="+minorityAfter.String())
	}
	if err != nil {
		return err
	}
	watch, err := b.watchAll(ctx, 0)
	if err != nil {
		return err
	}
	out := &Minority{AfterMs: minorityAfter.Milliseconds(), TargetMs: (minorityAfter + time.Second).Milliseconds()}
	var cuts []severed
	for n := range b.Runs {
		var cut severed
		if s, cut, err = b.cutOff(ctx, watch, s, out); err != nil {
			err = fmt.Errorf("run %d: %w", n+1, err)
			break
		}
		cuts = append(cuts, cut)
		b.say("minority %d of %d: %s served it after %s, the majority after %s; whole again %s after the heal", n+1, b.Runs,
			cut.node, out.Serves.last(), out.Majority.last(), out.Heals.last())
	}
	err = errors.Join(err, dev.Heal(context.WithoutCancel(ctx), b.Dir))
	journals, ended := watch.end()
	if err := errors.Join(err, ended); err != nil {
		return err
	}
	for _, cut := range cuts {
		for i := range journals {
			out.AtRisk += journals[i].Discount(cut.node, cut.timeline, cut.from, cut.to)
		}
	}
	b.report.Minority = out
	if err := b.rig.SetOption(ctx, s.Active, "minority_after="); err != nil {
		return err
	}
	return b.verify(ctx, journals)
}

// severed is a time in which a node was cut off, and the timeline before.
type severed struct {
	node, timeline string
	from, to       time.Time
}

// cutOff cuts the active node off, until both sides take writes and for a while
// longer.
func (b *bench) cutOff(ctx context.Context, watch *writers, s rig.Status, out *Minority) (rig.Status, severed, error) {
	cut := severed{node: s.Active, timeline: fmt.Sprintf("%08X", s.Timeline)}
	if err := pause(ctx, breath); err != nil {
		return s, cut, err
	}
	if _, err := b.raftLeader(ctx, true, s); err != nil {
		return s, cut, err
	}
	within, cancel := context.WithTimeout(ctx, minorityAfter+recoverWithin)
	defer cancel()
	cut.from = time.Now()
	for _, n := range s.Standbys() {
		if err := dev.Cut(within, b.Dir, s.Active, n, false); err != nil {
			return s, cut, err
		}
	}
	serves, majority, err := watch.bothSides(within, cut)
	if err == nil {
		err = pause(ctx, breath)
	}
	if err != nil {
		return s, cut, err
	}
	healed := time.Now()
	if err := dev.Heal(ctx, b.Dir); err != nil {
		return s, cut, err
	}
	next, err := b.healthy(ctx, s.Epoch)
	if err != nil {
		return next, cut, err
	}
	cut.to = time.Now()
	out.Serves.add(serves.Sub(cut.from))
	out.Majority.add(majority.Sub(cut.from))
	out.Heals.add(cut.to.Sub(healed))
	return next, cut, nil
}

// bothSides waits until a node that is cut off, and one of the others, have each
// acknowledged a write on a new timeline. It returns when each did so first.
func (g *writers) bothSides(ctx context.Context, cut severed) (node, others time.Time, err error) {
	for node.IsZero() || others.IsZero() {
		if err := pause(ctx, watchEvery); err != nil {
			return node, others, fmt.Errorf("not both sides take writes: %s since %s, the others since %s: %w", cut.node, node, others, err)
		}
		for _, w := range g.list {
			last, first := w.Last(), &others
			if last.Node == cut.node {
				first = &node
			}
			if last.At.After(cut.from) && last.Timeline != cut.timeline && first.IsZero() {
				*first = firstOn(w.Journal(), last.Timeline)
			}
		}
	}
	return node, others, nil
}

// firstOn returns when a journal's first write on a timeline was acknowledged.
func firstOn(j probe.Journal, timeline string) time.Time {
	for _, a := range j.Acks {
		if a.Timeline == timeline {
			return a.At
		}
	}
	return time.Time{}
}

func (m Minority) print(w io.Writer) {
	fmt.Fprintf(w, "\nthe active node is cut off from all others, with minority_after %s\n\n", ms(float64(m.AfterMs)))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TIME\tRUNS\tMEDIAN\tMIN\tMAX\tTARGET")
	for _, row := range []struct {
		what, target string
		Series
	}{
		{"from the cut to its first acknowledged write", ms(float64(m.TargetMs)), m.Serves},
		{"from the cut to the first of the majority", "-", m.Majority},
		{"from the heal to one active, all streaming", "-", m.Heals},
	} {
		fmt.Fprintf(t, "%s\t%s\t%s\n", row.what, row.row(), row.target)
	}
	t.Flush()
	fmt.Fprintf(w, "%d rows were acknowledged by the cut-off node, and are exported where its database did not go on.\n", m.AtRisk)
}
