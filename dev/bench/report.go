package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/timeline"
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

	Minority *Minority `json:"minority,omitempty"`
	Rejoins  []Rejoin  `json:"rejoins,omitempty"`
	Idle     *Idle     `json:"idle,omitempty"`
	Pgbench  *Pgbench  `json:"pgbench,omitempty"`
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

// Writes is what became of all rows.
type Writes struct {
	Acknowledged  int             `json:"acknowledged"`
	Indeterminate int             `json:"indeterminate"`
	Refused       int             `json:"refused"`
	Lost          int             `json:"lost"`  // on at least one node
	Nodes         []probe.Finding `json:"nodes"` // of each writer
}

// add counts one writer's rows.
func (w *Writes) add(j probe.Journal, found []probe.Finding) {
	lost := make(map[int64]bool)
	for _, f := range found {
		for _, id := range f.Lost {
			lost[id] = true
		}
	}
	w.Acknowledged += len(j.Acks)
	w.Indeterminate += len(j.Indeterminate)
	w.Refused += len(j.Refused)
	w.Lost += len(lost)
	w.Nodes = append(w.Nodes, found...)
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
		printOutages(w, r.Outages)
	}
	if r.Minority != nil {
		r.Minority.print(w)
	}
	if len(r.Rejoins) > 0 {
		printRejoins(w, r.Rejoins)
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

// Series is what was measured in each run, in milliseconds.
type Series struct {
	Ms       []float64 `json:"ms"`
	MedianMs float64   `json:"median_ms"`
	MinMs    float64   `json:"min_ms"`
	MaxMs    float64   `json:"max_ms"`
}

func (s *Series) add(d time.Duration) {
	s.Ms = append(s.Ms, millis(d))
	s.MedianMs, s.MinMs, s.MaxMs = probe.Median(s.Ms), slices.Min(s.Ms), slices.Max(s.Ms)
}

// last is the latest run's.
func (s Series) last() string { return ms(s.Ms[len(s.Ms)-1]) }

// row is RUNS, MEDIAN, MIN and MAX of a table.
func (s Series) row() string {
	return fmt.Sprintf("%d\t%s\t%s\t%s", len(s.Ms), ms(s.MedianMs), ms(s.MinMs), ms(s.MaxMs))
}

func millis(d time.Duration) float64 { return float64(d.Round(100*time.Microsecond)) / 1e6 }

func ms(v float64) string { return timeline.Millis(time.Duration(v * 1e6)) }
