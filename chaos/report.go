package chaos

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// Violation is something that must not be.
type Violation struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Round   int    `json:"round"` // in which it was found
	History []Op   `json:"history,omitempty"`
}

// Fault is one that was done. Times are since the run began.
type Fault struct {
	Round  int           `json:"round"`
	Kind   string        `json:"kind"`
	What   string        `json:"what"`
	Began  time.Duration `json:"began_ns"`
	Ended  time.Duration `json:"ended_ns"`
	Missed string        `json:"missed,omitempty"` // why it could not be done
}

// Round is a few faults, the healing after them, and what clients saw of it.
type Round struct {
	Number      int   `json:"round"`
	RecoveredMs int64 `json:"recovered_ms"` // from the healing to a cluster as good as new
	OutageMs    int64 `json:"outage_ms"`    // the longest time without an acknowledged write
}

// Report is the record of a run.
type Report struct {
	Seed     int64          `json:"seed"`
	At       time.Time      `json:"at"`
	Version  string         `json:"version"`
	Nodes    int            `json:"nodes"`
	Seconds  float64        `json:"seconds"`
	Faults   map[string]int `json:"faults"` // how many of each kind were done
	Missed   int            `json:"missed"` // faults whose moment did not come
	Schedule []Fault        `json:"schedule"`
	Rounds   []Round        `json:"rounds"`

	Operations    int     `json:"operations"`
	Acknowledged  int     `json:"acknowledged"` // writes
	Reads         int     `json:"reads"`
	Indeterminate int     `json:"indeterminate"`
	Refused       int     `json:"refused"`
	Looks         int     `json:"looks"`       // at next-master
	Epochs        int     `json:"epochs"`      // that were seen
	Reigns        int     `json:"reigns"`      // of databases that acknowledged writes
	TwoWritersMs  float64 `json:"two_writers"` // milliseconds in which two databases acknowledged writes

	Violations []Violation `json:"violations"`
	Logs       string      `json:"logs,omitempty"` // where everything is kept after a violation
}

// count fills in what follows from the history.
func (r *Report) count(ops []Op, looks []Look) {
	r.Operations, r.Looks = len(ops), len(looks)
	for _, o := range ops {
		switch {
		case o.Outcome == Info:
			r.Indeterminate++
		case o.Outcome == Fail:
			r.Refused++
		case o.Action == Read:
			r.Reads++
		case o.acknowledged():
			r.Acknowledged++
		}
	}
	epochs := make(map[uint64]bool)
	for _, l := range looks {
		epochs[uint64(l.Epoch)] = true
	}
	list, _ := reigns(ops)
	r.Epochs, r.Reigns = len(epochs), len(list)
	r.Faults = make(map[string]int)
	for _, f := range r.Schedule {
		if f.Missed != "" {
			r.Missed++
			continue
		}
		r.Faults[f.Kind]++
	}
}

func (r Report) json(w io.Writer) error {
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(r)
}

// print is the report for people.
func (r Report) print(w io.Writer) {
	fmt.Fprintf(w, "\nseed %d: %.0f s, %d nodes, %d rounds\n", r.Seed, r.Seconds, r.Nodes, len(r.Rounds))
	fmt.Fprintf(w, "  faults         ")
	for i, kind := range slices.Sorted(maps.Keys(r.Faults)) {
		if i > 0 {
			fmt.Fprint(w, ", ")
		}
		fmt.Fprintf(w, "%d %s", r.Faults[kind], kind)
	}
	fmt.Fprintf(w, "; %d missed\n", r.Missed)
	fmt.Fprintf(w, "  operations     %d: %d reads, %d writes acknowledged, %d indeterminate, %d refused\n",
		r.Operations, r.Reads, r.Acknowledged, r.Indeterminate, r.Refused)
	fmt.Fprintf(w, "  active nodes   %d epochs, %d reigns; two databases acknowledged writes for %.0f ms\n", r.Epochs, r.Reigns, r.TwoWritersMs)
	var worst Round
	var slowest Round
	for _, round := range r.Rounds {
		if round.OutageMs > worst.OutageMs {
			worst = round
		}
		if round.RecoveredMs > slowest.RecoveredMs {
			slowest = round
		}
	}
	fmt.Fprintf(w, "  longest outage %d ms in round %d; longest recovery %d ms in round %d\n", worst.OutageMs, worst.Number, slowest.RecoveredMs, slowest.Number)
	fmt.Fprintf(w, "  violations     %d\n", len(r.Violations))
	for _, v := range r.Violations {
		fmt.Fprintf(w, "\nVIOLATION in round %d: %s: %s\n", v.Round, v.Kind, v.Message)
		for _, o := range v.History {
			fmt.Fprintf(w, "  %s\n", o)
		}
	}
	if len(r.Violations) > 0 {
		fmt.Fprintf(w, "\nseed %d; logs, history and schedule are kept in %s\n", r.Seed, r.Logs)
	}
}
