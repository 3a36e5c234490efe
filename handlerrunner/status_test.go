package handlerrunner

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/statefile"
)

// Who is active is told as far as a node can know it: never itself without a lease, and
// nobody else while it is cut off.
func TestActive(t *testing.T) {
	ready := cluster.Leader{Node: "b", Epoch: 3, Held: true, Ready: true}
	for name, c := range map[string]struct {
		leader  func(*cluster.Leader)
		verdict cluster.Verdict
		want    string
	}{
		"another one":                {func(*cluster.Leader) {}, cluster.Majority, "b"},
		"Consul is away":             {func(*cluster.Leader) {}, cluster.Undecided, "b"},
		"this node is cut off":       {func(*cluster.Leader) {}, cluster.Minority, ""},
		"it reaches nobody":          {func(*cluster.Leader) {}, cluster.Isolated, ""},
		"not open yet":               {func(l *cluster.Leader) { l.Ready = false }, cluster.Majority, ""},
		"the lock is free":           {func(l *cluster.Leader) { l.Held = false }, cluster.Majority, ""},
		"no member any more":         {func(l *cluster.Leader) { l.Node = "d" }, cluster.Majority, ""},
		"this node, without a lease": {func(l *cluster.Leader) { l.Node = "a" }, cluster.Majority, ""},
	} {
		dir := t.TempDir()
		h, err := New(Options{Node: "a", State: filepath.Join(dir, "state.json"), Known: filepath.Join(dir, "known.json"),
			Verdict: func() cluster.VerdictReport { return cluster.VerdictReport{Verdict: c.verdict} }, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		v := cluster.View{Leader: ready, Nodes: map[string]cluster.Node{"a": {Name: "a"}, "b": {Name: "b"}}}
		c.leader(&v.Leader)
		h.see(v, true)
		if n, ok := h.Active(); ok != (c.want != "") || ok && n.Name != c.want {
			t.Errorf("%s: %q, %v; want %q", name, n.Name, ok, c.want)
		}
	}
}

// What a node is to clients follows from its state and from whether it is open.
func TestRole(t *testing.T) {
	for _, c := range []struct {
		state     cluster.State
		streaming bool
		want      cluster.Role
	}{
		{cluster.Standby, true, cluster.RoleStandby},
		{cluster.Standby, false, cluster.RoleNone},
		{cluster.Rejoining, true, cluster.RoleNone},
		{cluster.Active, false, cluster.RoleNone}, // it has no lease
		{cluster.Executing, false, cluster.RoleRunner},
	} {
		file := filepath.Join(t.TempDir(), "state.json")
		if err := statefile.Write(file, durable{State: c.state}); err != nil {
			t.Fatal(err)
		}
		h, err := New(Options{Node: "a", State: file, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		h.db.Streaming = c.streaming
		if got := h.Role(); got != c.want {
			t.Errorf("%s, streaming %v: %q, want %q", c.state, c.streaming, got, c.want)
		}
	}
}
