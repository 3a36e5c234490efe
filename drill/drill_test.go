package drill

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/cluster"
)

// trio is a cluster in memory of which a is active.
type trio struct {
	view    cluster.View
	refuses map[string]error // whom a would not hand over to
	problem string           // of a
	opened  int
	checked []string
}

var (
	_ Nodes    = (*trio)(nil)
	_ Registry = (*trio)(nil)
)

func healthy() *trio {
	nodes := map[string]cluster.Node{}
	for _, n := range []string{"a", "b", "c"} {
		nodes[n] = cluster.Node{Name: n, Kind: cluster.Manager}
	}
	return &trio{view: cluster.View{
		Info: &cluster.Info{}, Nodes: nodes, NextMaster: cluster.Assignment{Node: "a", Epoch: 1},
		Leader: cluster.Leader{Node: "a", Epoch: 1, Held: true, Ready: true},
	}, refuses: map[string]error{}}
}

func (f *trio) View(context.Context) (cluster.View, error) { return f.view, nil }

func (f *trio) Events(context.Context, time.Time) ([]cluster.Event, error) { return nil, nil }

func (f *trio) Report(context.Context, cluster.Node) (cluster.Report, error) {
	return cluster.Report{Problem: f.problem}, nil
}

func (f *trio) SetActive(_ context.Context, _ cluster.Node, in api.SetActiveRequest) error {
	if !in.Check {
		return errors.New("nothing is handed over here")
	}
	f.checked = append(f.checked, in.Node)
	return f.refuses[in.Node]
}

func (f *trio) Drill(_ context.Context, _ cluster.Node, open bool) error {
	if open {
		f.opened++
		return errors.New("no database")
	}
	f.opened--
	return nil
}

func (f *trio) run(to string) (Report, error) {
	return Run(context.Background(), Options{Nodes: f, Registry: f, To: to, Step: func(string, bool, error) {}})
}

// A drill that could not be done, or not be undone, is refused before anything
// is made.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*trio)
		to     string
		want   string
	}{
		"paused":         {func(f *trio) { f.view.Info.Paused = &cluster.Pause{} }, "", "is paused"},
		"nobody active":  {func(f *trio) { f.view.Leader.Held = false }, "", "nobody is active"},
		"not yet open":   {func(f *trio) { f.view.Leader.Ready = false }, "", "nobody is active"},
		"no way back":    {func(f *trio) { f.view.Info.Options = cluster.Options{"no_failover": "true"} }, "", "a has no_failover set"},
		"ailing":         {func(f *trio) { f.problem = "its disk is full" }, "", "a could not be active again: its disk is full"},
		"target refused": {func(f *trio) { f.refuses["b"] = errors.New("b is behind") }, "b", "b is behind"},
		"all refused": {func(f *trio) {
			f.refuses["b"], f.refuses["c"] = errors.New("b is behind"), errors.New("c is offline")
		}, "", "c is offline"},
		"alone": {func(f *trio) { delete(f.view.Nodes, "b"); delete(f.view.Nodes, "c") }, "", "a is the only manager"},
	} {
		f := healthy()
		c.change(f)
		r, err := f.run(c.to)
		if err == nil || !strings.Contains(err.Error(), c.want) || len(r.Legs) != 0 || f.opened != 0 {
			t.Errorf("%s: %v, %+v, %d", name, err, r, f.opened)
		}
	}
}

// The best standby is the first that could take over, by priority.
func TestChoice(t *testing.T) {
	f := healthy()
	c := f.view.Nodes["c"]
	c.Options = cluster.Options{"priority": "200"}
	f.view.Nodes["c"] = c
	f.refuses["c"] = errors.New("c is behind")
	got, err := (&run{Options: Options{Nodes: f, Registry: f}}).choose(context.Background(), f.view, f.view.Nodes["a"])
	if err != nil || got.Name != "b" || !slices.Equal(f.checked, []string{"c", "b"}) {
		t.Errorf("%s, %v, looked at %v", got.Name, err, f.checked)
	}
}

// What was begun is dropped, though making it failed.
func TestDropped(t *testing.T) {
	f := healthy()
	if _, err := f.run(""); err == nil || !strings.Contains(err.Error(), "no database") || f.opened != 0 {
		t.Errorf("%v, %d", err, f.opened)
	}
}
