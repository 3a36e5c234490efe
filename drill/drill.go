// Package drill rehearses a failover on a running cluster: it hands over to a
// standby and back while a writer of its own writes, and reports how long no write
// was acknowledged, and whether any acknowledged write was lost.
package drill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/history"
)

// Nodes are the members, as they are asked and told.
type Nodes interface {
	Report(ctx context.Context, n cluster.Node) (cluster.Report, error)
	SetActive(ctx context.Context, active cluster.Node, in api.SetActiveRequest) error
	// Drill makes, or drops, what the writer needs.
	Drill(ctx context.Context, active cluster.Node, open bool) error
}

// Registry is the cluster's state and history.
type Registry interface {
	View(ctx context.Context) (cluster.View, error)
	Events(ctx context.Context, since time.Time) ([]cluster.Event, error)
}

// Options say what is drilled and how.
type Options struct {
	Nodes    Nodes
	Registry Registry
	// DSN tells where the writer connects to a node.
	DSN  func(cluster.Node) string
	To   string // who takes over for a while; empty: the best standby
	Step func(name string, done bool, err error)
}

const (
	breath       = time.Second      // of writing before and after each hand-over
	closeWithin  = 30 * time.Second // to drop what was made
	verifyWithin = time.Minute
	lookEvery    = 20 * time.Millisecond
	connectLimit = time.Second
	writeLimit   = 10 * time.Second
)

// ErrLost is the error of a drill in which an acknowledged write is not there.
var ErrLost = errors.New("acknowledged writes are lost")

// Leg is one hand-over of a drill.
type Leg struct {
	From      string         `json:"from"`
	To        string         `json:"to"`
	OutageMs  int64          `json:"outage_ms"`  // longest time without an acknowledged write
	StandbyMs int64          `json:"standby_ms"` // until From could have taken over again
	Record    history.Change `json:"record"`
}

// Report is what came of a drill.
type Report struct {
	Began         time.Time       `json:"began"`
	Legs          []Leg           `json:"legs"` // there, and back
	Written       int             `json:"written"`
	Acknowledged  int             `json:"acknowledged"`
	Indeterminate int             `json:"indeterminate"` // of them nobody was told whether they are there
	Lost          int             `json:"lost"`          // acknowledged, and not on one of Checked
	Checked       []probe.Finding `json:"checked"`       // the active node first; none: the rows were not looked for
}

// run is a drill under way.
type run struct {
	Options
	report Report
	writer *probe.Writer
}

// Run drills. It is refused, before anything is done, where one of the two
// hand-overs would be. What it makes in the database it drops again, also when
// ctx ends; it does not hand back then. The report is of what was done, also with
// an error, which wraps ErrLost where that is so.
func Run(ctx context.Context, o Options) (Report, error) {
	r := &run{Options: o, report: Report{Began: time.Now()}}
	view, from, err := r.look(ctx)
	if err != nil {
		return r.report, err
	}
	to, err := r.choose(ctx, view, from)
	if err != nil {
		return r.report, fmt.Errorf("the drill is refused: %w", err)
	}
	err = r.step("make a schema for the writer on "+from.Name, func() error { return o.Nodes.Drill(ctx, from, true) })
	if err == nil {
		err = r.perform(ctx, view, from, to)
	}
	return r.report, errors.Join(err, r.step("drop the schema", func() error { return r.clean(ctx) }))
}

func (r *run) step(name string, do func() error) error {
	r.Step(name, false, nil)
	err := do()
	r.Step(name, true, err)
	return err
}

// look reads who is active.
func (r *run) look(ctx context.Context) (v cluster.View, active cluster.Node, err error) {
	if v, err = r.Registry.View(ctx); err != nil {
		return v, active, err
	}
	active, ok := v.Nodes[v.Leader.Node]
	if !ok || !v.Leader.Held || !v.Leader.Ready {
		return v, active, errors.New("nobody is active; see 'understudy cluster nodes list'")
	}
	return v, active, nil
}

// choose finds the node that is to take over, and refuses what could not be done
// or not be undone.
func (r *run) choose(ctx context.Context, v cluster.View, from cluster.Node) (cluster.Node, error) {
	none := cluster.Node{}
	if v.Paused() {
		return none, errors.New("the cluster is paused; 'understudy cluster resume' ends it")
	}
	if err := r.couldReturn(ctx, v, from); err != nil {
		return none, err
	}
	names := slices.DeleteFunc(v.Managers(), func(n string) bool { return n == from.Name })
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(v.Options(b).Int("priority"), v.Options(a).Int("priority")) })
	if r.To != "" {
		names = []string{r.To}
	}
	var refused []error
	for _, name := range names {
		err := r.Nodes.SetActive(ctx, from, api.SetActiveRequest{Node: name, Check: true})
		if err == nil {
			return v.Nodes[name], nil
		}
		refused = append(refused, err)
	}
	if len(refused) == 0 {
		return none, fmt.Errorf("%s is the only manager", from.Name)
	}
	return none, errors.Join(refused...)
}

// couldReturn refuses a drill after which the active node could not be active
// again.
func (r *run) couldReturn(ctx context.Context, v cluster.View, from cluster.Node) error {
	if v.Options(from.Name).Bool("no_failover") {
		return fmt.Errorf("%s has no_failover set, so it could not be active again", from.Name)
	}
	report, err := r.Nodes.Report(ctx, from)
	if err == nil && report.Problem != "" {
		err = fmt.Errorf("%s could not be active again: %s", from.Name, report.Problem)
	}
	return err
}

// perform writes, hands over and back, and looks for every row.
func (r *run) perform(ctx context.Context, v cluster.View, from, to cluster.Node) (err error) {
	targets := map[string]probe.Target{}
	var all []probe.Target
	for _, name := range v.Managers() {
		targets[name] = probe.Target{Node: name, DSN: r.DSN(v.Nodes[name])}
		all = append(all, targets[name])
	}
	r.writer, err = probe.Open(ctx, probe.Options{Targets: all, Name: "drill", Connect: connectLimit, Limit: writeLimit})
	if err != nil {
		return err
	}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	wrote := make(chan error, 1)
	go func() { wrote <- r.writer.Run(writing) }()
	err = pause(ctx, breath)
	for _, leg := range [][2]cluster.Node{{from, to}, {to, from}} {
		if err == nil {
			err = r.leg(ctx, leg[0], leg[1])
		}
	}
	stop()
	err = errors.Join(err, <-wrote)
	r.count()
	if err != nil {
		return err
	}
	return r.step("look for every row", func() error { return r.verify(ctx, targets, from.Name) })
}

// leg hands over once.
func (r *run) leg(ctx context.Context, from, to cluster.Node) error {
	r.report.Legs = append(r.report.Legs, Leg{From: from.Name, To: to.Name})
	l := &r.report.Legs[len(r.report.Legs)-1]
	began := time.Now()
	err := r.step("hand over from "+from.Name+" to "+to.Name, func() error {
		err := r.Nodes.SetActive(ctx, from, api.SetActiveRequest{Node: to.Name, Why: "a drill"})
		if err != nil {
			return err
		}
		return until(ctx, to.Name+" takes writes", func() bool { a := r.writer.Last(); return a.Node == to.Name && a.At.After(began) })
	})
	if err == nil {
		err = r.step("wait until "+from.Name+" could take over again", func() error {
			return until(ctx, from.Name+" could take over", func() bool {
				return r.Nodes.SetActive(ctx, to, api.SetActiveRequest{Node: from.Name, Check: true}) == nil
			})
		})
		l.StandbyMs = time.Since(began).Milliseconds()
	}
	if err == nil {
		err = pause(ctx, breath)
	}
	l.OutageMs = r.writer.Journal().Longest(began, time.Now()).Length().Milliseconds()
	if err != nil {
		return fmt.Errorf("%w; see 'understudy cluster status' for who is active now", err)
	}
	l.Record, err = r.record(ctx, to.Name)
	return err
}

// record is what the cluster says of the last change.
func (r *run) record(ctx context.Context, winner string) (history.Change, error) {
	events, err := r.Registry.Events(ctx, time.Time{})
	if err != nil {
		return history.Change{}, err
	}
	changes, _ := history.Changes(events) // what cannot be read is no matter of a drill
	for _, c := range slices.Backward(changes) {
		if c.Winner == winner {
			return c, nil
		}
	}
	return history.Change{Winner: winner}, nil
}

func (r *run) count() {
	j := r.writer.Journal()
	r.report.Written, r.report.Acknowledged, r.report.Indeterminate = int(j.Next-j.First), len(j.Acks), len(j.Indeterminate)
}

// verify looks for the rows on the active node and on every standby that streams.
func (r *run) verify(ctx context.Context, targets map[string]probe.Target, active string) error {
	ctx, cancel := context.WithTimeout(ctx, verifyWithin)
	defer cancel()
	v, err := r.Registry.View(ctx)
	if err != nil {
		return err
	}
	var others []probe.Target
	for _, name := range v.Managers() {
		report, err := r.Nodes.Report(ctx, v.Nodes[name])
		if t, known := targets[name]; known && name != active && err == nil && report.Streaming {
			others = append(others, t)
		}
	}
	r.report.Checked, err = probe.Verify(ctx, r.writer.Journal(), targets[active], others...)
	lost := map[int64]bool{}
	for _, f := range r.report.Checked {
		for _, id := range f.Lost {
			lost[id] = true
		}
	}
	if r.report.Lost = len(lost); r.report.Lost > 0 {
		return fmt.Errorf("%w: %d", ErrLost, r.report.Lost)
	}
	return err
}

// clean drops what was made, wherever it is by now.
func (r *run) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	var last error
	err := until(ctx, "the schema understudy_drill is dropped", func() bool {
		_, active, err := r.look(ctx)
		if err == nil {
			err = r.Nodes.Drill(ctx, active, false)
		}
		last = err
		return err == nil
	})
	if err != nil {
		return fmt.Errorf("%w: %w; the next drill drops it", err, last)
	}
	return nil
}

// until waits for something to be so.
func until(ctx context.Context, what string, so func() bool) error {
	for !so() {
		if err := pause(ctx, lookEvery); err != nil {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
