package rig

import (
	"slices"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
)

func healthyTrio() Status {
	none := int64(0)
	node := func(name, state string) NodeStatus {
		return NodeStatus{Name: name, State: state, LagBytes: &none, Timeline: 3, Epoch: 4,
			Checks: map[string]string{"consul": "OK", "database": "OK", "files": "OK", "heartbeat": "OK", "services": "OK"}}
	}
	return Status{
		Active: "b", Epoch: 4, Timeline: 3, Sync: cluster.SyncSet{Epoch: 4, Leader: "b", Members: []string{"a", "c"}, K: 1},
		Nodes: []NodeStatus{node("a", "standby"), node("b", "leader"), node("c", "standby")},
	}
}

func runner() NodeStatus {
	return NodeStatus{Name: "r", Kind: cluster.Runner, State: "runner", Epoch: 4,
		Checks: map[string]string{"consul": "OK", "files": "OK", "heartbeat": "OK", "services": "OK"}}
}

func TestAilments(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Status)
		want   []string
	}{
		"healthy with a runner":      {func(s *Status) { s.Nodes = append(s.Nodes, runner()) }, nil},
		"a runner is down":           {func(s *Status) { s.Nodes = append(s.Nodes, runner()); s.Nodes[3].State = "offline" }, []string{"r is offline"}},
		"a runner's check fails":     {func(s *Status) { s.Nodes = append(s.Nodes, runner()); s.Nodes[3].Checks["files"] = "FAIL" }, []string{"files of r is FAIL"}},
		"healthy":                    {func(*Status) {}, nil},
		"nobody is active":           {func(s *Status) { s.Active = "" }, []string{"no node is active"}},
		"one is down":                {func(s *Status) { s.Nodes[0].State = "offline" }, []string{"a is offline"}},
		"two are leaders":            {func(s *Status) { s.Nodes[2].State = "leader" }, []string{"c is leader"}},
		"one is on an old timeline":  {func(s *Status) { s.Nodes[0].Timeline = 2 }, []string{"a is on timeline 2, not 3"}},
		"one does not stream":        {func(s *Status) { s.Nodes[0].LagBytes = nil }, []string{"a does not stream"}},
		"a check fails":              {func(s *Status) { s.Nodes[1].Checks["files"] = "FAIL" }, []string{"files of b is FAIL"}},
		"one is not in the sync set": {func(s *Status) { s.Sync.Members = []string{"a"} }, []string{"the sync set is 1 of [a]"}},
		"nobody must confirm":        {func(s *Status) { s.Sync.K = 0 }, []string{"the sync set is 0 of [a c]"}},
		"the sync set is an old one": {func(s *Status) { s.Sync.Epoch = 3 }, []string{"the sync set is of epoch 3"}},
	} {
		s := healthyTrio()
		c.change(&s)
		if got := Ailments(s); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, not %q", name, got, c.want)
		}
	}
}
