package hosts

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/packaging"
)

var report = flag.String("report", "", "write the figures to this file with .txt, and with .json")

// targets are what a client of the load balancer may miss, as the median.
var targets = map[string]time.Duration{
	"PostgreSQL crashes": time.Second,
	"power cut":          4 * time.Second,
	"hand-over":          800 * time.Millisecond,
}

// figures are what the client saw, and what the hosts cost.
type figures struct {
	h *story
	w *probe.Writer

	names  []string
	series map[string][]time.Duration
	costs  []cost
}

// cost is what a unit takes at rest.
type cost struct {
	Unit    string  `json:"unit"`
	CPU     float64 `json:"cpu_percent"` // of one core
	Private float64 `json:"private_mib"` // memory that is its alone
}

func (r *figures) add(name string, took time.Duration) {
	if r.series == nil {
		r.series = map[string][]time.Duration{}
	}
	if r.series[name] == nil {
		r.names = append(r.names, name)
	}
	r.series[name] = append(r.series[name], took)
	r.h.t.Logf("%s: %d ms", name, took.Milliseconds())
}

// outage adds the longest time that the client went without an acknowledgement while
// something happened, from a healthy cluster to a healthy cluster.
func (r *figures) outage(name string, happens func(before rig.Status)) {
	r.h.t.Helper()
	before := r.h.healthy()
	began := time.Now()
	happens(before)
	r.h.healthy()
	r.acknowledged()
	r.add(name, r.w.Journal().Longest(began, time.Now()).Length())
}

// quiet is outage for what must not move activity.
func (r *figures) quiet(name string, happens func()) {
	r.h.t.Helper()
	r.outage(name, func(before rig.Status) {
		happens()
		if after := r.h.healthy(); after.Epoch != before.Epoch {
			r.h.t.Errorf("%s: epoch %d, then %d", name, before.Epoch, after.Epoch)
		}
	})
}

// acknowledged waits for a write from now on.
func (r *figures) acknowledged() {
	r.h.t.Helper()
	now := time.Now()
	r.h.await("a write is acknowledged", func() error {
		if last := r.w.Last(); last.Sent.Before(now) {
			return fmt.Errorf("the last was %d, sent at %s", last.ID, last.Sent.Format(time.StampMilli))
		}
		return nil
	})
}

// restFor is how long the cluster is watched at rest.
const restFor = 20 * time.Second

// rest measures what the daemons of a standby cost while nobody writes.
func (r *figures) rest() {
	r.h.t.Helper()
	name := r.h.healthy().Standbys()[0]
	const look = `for u in %s; do p=$(systemctl show --property=MainPID --value $u); echo $u $(awk '{print $14+$15}' /proc/$p/stat) $(sudo awk '/^Private/ {s+=$2} END {print s}' /proc/$p/smaps_rollup); done`
	text := fmt.Sprintf(look, strings.Join(packaging.Daemons(), " "))
	before := r.h.script(name, text)
	time.Sleep(restFor)
	after := r.h.script(name, text)
	for i, unit := range packaging.Daemons() {
		const ticks = 100 // a second, of /proc/PID/stat
		was, _ := usage(r.h.t, unit, before, i)
		is, kib := usage(r.h.t, unit, after, i)
		r.costs = append(r.costs, cost{unit, (is - was) / ticks / restFor.Seconds() * 100, kib / 1024})
	}
}

// usage reads what a line of a look says of a unit.
func usage(t *testing.T, unit, look string, line int) (ticks, kib float64) {
	t.Helper()
	var of string
	if lines := strings.Split(look, "\n"); line < len(lines) {
		if _, err := fmt.Sscan(lines[line], &of, &ticks, &kib); err == nil && of == unit && kib > 0 {
			return ticks, kib
		}
	}
	t.Fatalf("what %s costs: %q", unit, look)
	return 0, 0
}

// write tells the figures.
func (r *figures) write() {
	r.h.t.Helper()
	type row struct {
		What   string `json:"what"`
		Runs   int    `json:"runs"`
		Median int64  `json:"median_ms"`
		Worst  int64  `json:"worst_ms"`
		Target int64  `json:"target_ms,omitempty"`
	}
	j := r.w.Journal()
	var said struct {
		Version      string `json:"version"`
		Rows         []row  `json:"figures"`
		Costs        []cost `json:"at_rest"`
		Acknowledged int    `json:"acknowledged"`
	}
	said.Version, said.Costs, said.Acknowledged = strings.TrimSpace(r.h.script("alpha", "understudy --version")), r.costs, len(j.Acks)
	var text strings.Builder
	fmt.Fprintf(&text, "longest time without an acknowledged write, through HAProxy on a machine of its own\n\n")
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WHAT\tRUNS\tMEDIAN\tWORST\tTARGET")
	for _, name := range r.names {
		s := probe.Summarize(r.series[name])
		target := "-"
		if t := targets[name]; t > 0 {
			target = fmt.Sprintf("%d ms", t.Milliseconds())
		}
		said.Rows = append(said.Rows, row{name, len(r.series[name]), s.Median.Milliseconds(), s.Max.Milliseconds(), targets[name].Milliseconds()})
		fmt.Fprintf(table, "%s\t%d\t%d ms\t%d ms\t%s\n", name, len(r.series[name]), s.Median.Milliseconds(), s.Max.Milliseconds(), target)
	}
	table.Flush()
	fmt.Fprintf(&text, "\n%d writes acknowledged, %d indeterminate\n\n", len(j.Acks), len(j.Indeterminate))
	fmt.Fprintln(table, "UNIT AT REST\tCPU\tMEMORY")
	for _, c := range r.costs {
		fmt.Fprintf(table, "%s\t%.1f%%\t%.0f MiB\n", c.Unit, c.CPU, c.Private)
	}
	table.Flush()
	r.h.t.Log(text.String())
	if *report == "" {
		return
	}
	data, err := json.MarshalIndent(said, "", "  ")
	must(r.h.t, err)
	must(r.h.t, writeText(*report+".txt", text.String()))
	must(r.h.t, writeText(*report+".json", string(data)+"\n"))
}

func writeText(file, text string) error { return os.WriteFile(file, []byte(text), 0o644) }
