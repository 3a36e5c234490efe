package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/timeline"
	"github.com/understudy-ha/understudy/history"
)

// Outage is what one kind of fault costs.
type Outage struct {
	Fault        string             `json:"fault"`
	Title        string             `json:"title"`
	TargetMs     int64              `json:"target_ms,omitempty"`
	WorstMs      int64              `json:"target_worst_ms,omitempty"`
	Others       string             `json:"others,omitempty"`
	Series                          // the longest time without an acknowledgement
	HealthyMs    float64            `json:"healthy_median_ms"`        // until every node was healthy again
	StepsMs      map[string]float64 `json:"steps_median_ms"`          // since the fault
	RaftLed      int                `json:"raft_leader_runs"`         // in how many runs Consul's leader was on the active node
	Moved        int                `json:"active_moved_runs"`        // in how many runs the epoch is another one afterwards
	TwoWritersMs *float64           `json:"two_writers_ms,omitempty"` // two databases acknowledged writes, all runs; absent: not looked for

	last    string // the latest run, in words
	healthy []time.Duration
	steps   map[string][]time.Duration
}

func newOutage(f fault) *Outage {
	return &Outage{Fault: f.Name, Title: f.Title, TargetMs: f.Target.Milliseconds(), WorstMs: f.Worst.Milliseconds(), Others: f.Others,
		steps: make(map[string][]time.Duration), StepsMs: make(map[string]float64)}
}

// stepNames are those that are reported.
var stepNames = []string{history.Detected, history.Elected, history.Locked, history.Promoted, history.Writable}

// measurement is one run of a fault.
type measurement struct {
	gap        probe.Gap
	healthy    time.Duration
	change     timeline.Change
	active     string         // before
	raft       string         // the node with Consul's leader, before
	moved      bool           // the epoch is another one afterwards
	twoWriters *time.Duration // nil: not looked for
}

func (o *Outage) add(m measurement) {
	if m.raft == m.active {
		o.RaftLed++
	}
	if m.moved {
		o.Moved++
	}
	o.Series.add(m.gap.Length())
	o.healthy = append(o.healthy, m.healthy)
	o.HealthyMs = millis(probe.Median(o.healthy))
	for _, name := range stepNames {
		if d, ok := m.change.Since(name); ok {
			o.steps[name] = append(o.steps[name], d)
			o.StepsMs[name] = millis(probe.Median(o.steps[name]))
		}
	}
	o.last = fmt.Sprintf("%s without a write, %s -> %s, healthy after %s; Consul's leader was %s",
		timeline.Millis(m.gap.Length()), m.gap.Before, m.gap.After, timeline.Millis(m.healthy), m.raft)
	if m.twoWriters != nil {
		if o.TwoWritersMs == nil {
			o.TwoWritersMs = new(float64)
		}
		*o.TwoWritersMs += millis(*m.twoWriters)
	}
}

func printOutages(w io.Writer, outages []Outage) {
	fmt.Fprintf(w, "\nlongest time without an acknowledged write; synchronous replication is on\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FAULT\tRUNS\tMEDIAN\tMIN\tMAX\tTARGET\tTWO WRITERS\tHEALTHY\tMOVED\tCONSUL LEADER")
	for _, o := range outages {
		target, two := "-", "-"
		if o.TargetMs > 0 {
			target = ms(float64(o.TargetMs))
		}
		if o.WorstMs > 0 {
			target += ", worst " + ms(float64(o.WorstMs))
		}
		if o.TwoWritersMs != nil {
			two = ms(*o.TwoWritersMs)
		}
		runs := len(o.Ms)
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d of %d\t%d of %d\n", o.Fault, o.row(), target, two, ms(o.HealthyMs), o.Moved, runs, o.RaftLed, runs)
	}
	t.Flush()
	fmt.Fprintf(w, "TWO WRITERS: in which two databases acknowledged writes, all runs together; the target is 0. HEALTHY: from the fault, with what\n")
	fmt.Fprintf(w, "it lasts, until every node was. MOVED: how often the epoch had changed. CONSUL LEADER: how often it was on the active node.\n")
	fmt.Fprintf(w, "\nmedian time from the fault to each step\n\n")
	fmt.Fprintf(t, "FAULT\t%s\n", strings.ToUpper(strings.Join(stepNames, "\t")))
	for _, o := range outages {
		line := o.Fault
		for _, name := range stepNames {
			cell := "-"
			if d, ok := o.StepsMs[name]; ok {
				cell = ms(d)
			}
			line += "\t" + cell
		}
		fmt.Fprintln(t, line)
	}
	t.Flush()
	fmt.Fprintf(w, "\nothers with the same client on a machine of this kind, defaults / best tuning found\n\n")
	for _, o := range outages {
		if o.Others != "" {
			fmt.Fprintf(t, "%s\t%s\n", o.Fault, o.Others)
		}
	}
	t.Flush()
}
