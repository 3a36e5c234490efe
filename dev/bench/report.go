package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/timeline"
	"github.com/understudy-ha/understudy/history"
	"github.com/understudy-ha/understudy/node"
)

// Report is everything that was measured. Times are in milliseconds.
type Report struct {
	At      time.Time `json:"at"`
	Version string    `json:"version"`
	Machine Machine   `json:"machine"`
	Runs    int       `json:"runs"`
	MadeMs  int64     `json:"made_ms"` // until dev up had made the cluster
	Outages []Outage  `json:"outages,omitempty"`
	Writes  *Writes   `json:"writes,omitempty"`
	Idle    *Idle     `json:"idle,omitempty"`
	Pgbench *Pgbench  `json:"pgbench,omitempty"`
}

// Machine is where it was measured.
type Machine struct {
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
}

func machine() Machine {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return Machine{CPUs: runtime.NumCPU(), Kernel: strings.TrimSpace(string(kernel))}
}

// Outage is what one kind of fault costs.
type Outage struct {
	Fault     string             `json:"fault"`
	Title     string             `json:"title"`
	TargetMs  int64              `json:"target_ms"`
	WorstMs   int64              `json:"target_worst_ms,omitempty"`
	Others    string             `json:"others"`
	Ms        []float64          `json:"ms"` // the longest time without an acknowledgement, of each run
	MedianMs  float64            `json:"median_ms"`
	MinMs     float64            `json:"min_ms"`
	MaxMs     float64            `json:"max_ms"`
	HealthyMs float64            `json:"healthy_median_ms"` // until every node was healthy again
	StepsMs   map[string]float64 `json:"steps_median_ms"`   // since the fault
	RaftLed   int                `json:"raft_leader_runs"`  // in how many runs Consul's leader was on the active node

	gaps, healthy []time.Duration
	steps         map[string][]time.Duration
}

func newOutage(f fault) *Outage {
	return &Outage{Fault: f.Name, Title: f.Title, TargetMs: f.Target.Milliseconds(), WorstMs: f.Worst.Milliseconds(), Others: f.Others,
		steps: make(map[string][]time.Duration), StepsMs: make(map[string]float64)}
}

// stepNames are those that are reported.
var stepNames = []string{history.Detected, history.Elected, history.Locked, history.Promoted, history.Writable}

func (o *Outage) add(gap probe.Gap, healthy time.Duration, c timeline.Change, raftLed bool) {
	if raftLed {
		o.RaftLed++
	}
	o.gaps, o.healthy = append(o.gaps, gap.Length()), append(o.healthy, healthy)
	o.Ms = append(o.Ms, millis(gap.Length()))
	for _, name := range stepNames {
		if d, ok := c.Since(name); ok {
			o.steps[name] = append(o.steps[name], d)
		}
	}
}

func (o *Outage) done() Outage {
	s := probe.Summarize(o.gaps)
	o.MedianMs, o.MinMs, o.MaxMs = millis(s.Median), millis(s.Min), millis(s.Max)
	o.HealthyMs = millis(probe.Summarize(o.healthy).Median)
	for name, series := range o.steps {
		o.StepsMs[name] = millis(probe.Summarize(series).Median)
	}
	return *o
}

func millis(d time.Duration) float64 { return float64(d.Round(100*time.Microsecond)) / 1e6 }

// Writes is what became of all rows.
type Writes struct {
	Acknowledged  int             `json:"acknowledged"`
	Indeterminate int             `json:"indeterminate"`
	Refused       int             `json:"refused"`
	Lost          int             `json:"lost"` // on at least one node
	Nodes         []probe.Finding `json:"nodes"`
}

func writesOf(j probe.Journal, found []probe.Finding) *Writes {
	lost := make(map[int64]bool)
	for _, f := range found {
		for _, id := range f.Lost {
			lost[id] = true
		}
	}
	return &Writes{len(j.Acks), len(j.Indeterminate), len(j.Refused), len(lost), found}
}

// publish prints the report, and writes it as JSON where that was asked for.
func (b *bench) publish() error {
	b.report.Version = node.Version
	text, err := json.MarshalIndent(b.report, "", "  ")
	if err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	text = append(text, '\n')
	if b.JSON == "-" {
		_, err := b.Out.Write(text)
		return err
	}
	b.report.print(b.Out)
	if b.JSON == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Clean(b.JSON), text, 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}

func (r Report) print(w io.Writer) {
	fmt.Fprintf(w, "\nunderstudy %s, three nodes on one machine with %d CPUs, Linux %s\n", r.Version, r.Machine.CPUs, r.Machine.Kernel)
	fmt.Fprintf(w, "the cluster was made in %.1f s\n", float64(r.MadeMs)/1000)
	if len(r.Outages) > 0 {
		r.printOutages(w)
	}
	if r.Writes != nil {
		fmt.Fprintf(w, "\nwrites: %d acknowledged, %d indeterminate, %d lost\n", r.Writes.Acknowledged, r.Writes.Indeterminate, r.Writes.Lost)
	}
	if r.Idle != nil {
		r.Idle.print(w)
	}
	if r.Pgbench != nil {
		r.Pgbench.print(w)
	}
}

func (r Report) printOutages(w io.Writer) {
	fmt.Fprintf(w, "\nlongest time without an acknowledged write; synchronous replication is on\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FAULT\tRUNS\tMEDIAN\tMIN\tMAX\tTARGET\tHEALTHY\tCONSUL LEADER")
	for _, o := range r.Outages {
		target := ms(float64(o.TargetMs))
		if o.WorstMs > 0 {
			target += ", worst " + ms(float64(o.WorstMs))
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%d of %d\n", o.Fault, len(o.Ms), ms(o.MedianMs), ms(o.MinMs), ms(o.MaxMs), target, ms(o.HealthyMs), o.RaftLed, len(o.Ms))
	}
	t.Flush()
	fmt.Fprintf(w, "HEALTHY: until every node was; CONSUL LEADER: how often it was on the active node.\n")
	fmt.Fprintf(w, "\nmedian time from the fault to each step\n\n")
	fmt.Fprintf(t, "FAULT\t%s\n", strings.ToUpper(strings.Join(stepNames, "\t")))
	for _, o := range r.Outages {
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
	for _, o := range r.Outages {
		fmt.Fprintf(t, "%s\t%s\n", o.Fault, o.Others)
	}
	t.Flush()
}

func ms(v float64) string { return timeline.Millis(time.Duration(v * 1e6)) }
