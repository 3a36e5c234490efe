package checkrunner

import (
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

var noon = time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC)

const ttl = 5 * time.Second

// TestDecideEnumerated walks every health, age of the last good measurement,
// option and past, and asserts what must always hold.
func TestDecideEnumerated(t *testing.T) {
	for _, h := range []health{unknown, good, passable, wavering, bad} {
		for _, age := range []time.Duration{0, ttl - 1, ttl, time.Hour} {
			for _, failFast := range []bool{false, true} {
				for _, failing := range []bool{false, true} {
					before := history{good: noon.Add(-age), failing: failing}
					d, after := decide(noon, rules{ttl, failFast}, before, finding{h, "why"})
					at := []any{h, age, failFast, failing, d.post}
					if h == good != d.good || h == good && d.post != pass {
						t.Errorf("a good measurement, and no other, passes as good: %v", at)
					}
					if d.post == pass && h != good && (h != passable || failing) {
						t.Errorf("passes what is not good: %v", at)
					}
					if d.post == fail && age < ttl && (h != bad || !failFast) {
						t.Errorf("fails before the TTL has passed: %v", at)
					}
					if h == bad && failFast && d.post != fail {
						t.Errorf("an error does not fail at once: %v", at)
					}
					if age >= ttl && h != good && h != passable && d.post != fail {
						t.Errorf("does not fail after the TTL: %v", at)
					}
					if after.failing != (d.post == fail || failing && d.post != pass) {
						t.Errorf("forgot, or made up, a failure: %v", at)
					}
					if h != good && !after.good.Equal(before.good) {
						t.Errorf("remembers as good what was not: %v", at)
					}
				}
			}
		}
	}
}

// followingTrio is node2 following node1, the active node of three, long after
// the last change. Cases change one thing of it.
func followingTrio() (situation, Role) {
	s := situation{known: true, changed: noon.Add(-time.Hour), view: cluster.View{
		Nodes: map[string]cluster.Node{
			"node1": {Name: "node1", Address: "10.0.0.1"},
			"node2": {Name: "node2", Address: "10.0.0.2"},
			"node3": {Name: "node3", Address: "10.0.0.3"},
		},
		NextMaster: cluster.Assignment{Node: "node1", Epoch: 4},
		Leader:     cluster.Leader{Node: "node1", Epoch: 4, Ready: true, Held: true},
	}}
	return s, Role{Primary: cluster.No, UpstreamHost: "10.0.0.1", Streaming: true, LagBytes: 120, Timeline: 3}
}

func TestJudgeRole(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*situation, *Role)
		want   finding
	}{
		{"streaming from the active", func(*situation, *Role) {},
			finding{good, "streaming from node1, timeline 3, 120 bytes behind"}},
		{"distance not known", func(_ *situation, r *Role) { r.LagBytes = -1 },
			finding{good, "streaming from node1, timeline 3"}},
		{"the receiver reconnects", func(_ *situation, r *Role) { r.Streaming = false },
			finding{wavering, "standby, not streaming from node1"}},
		{"detached", func(_ *situation, r *Role) { r.UpstreamHost, r.Streaming = "", false },
			finding{wavering, "standby, follows nobody; the active node is node1"}},
		{"follows the wrong node", func(_ *situation, r *Role) { r.UpstreamHost = "10.0.0.3" },
			finding{bad, "follows node3, but the active node is node1"}},
		{"follows a stranger", func(_ *situation, r *Role) { r.UpstreamHost = "10.7.7.7" },
			finding{bad, "follows 10.7.7.7, but the active node is node1"}},
		{"still follows the old one in a failover", func(s *situation, r *Role) {
			s.view.NextMaster = cluster.Assignment{Node: "node3", Epoch: 5}
			s.view.Leader = cluster.Leader{Node: "node3", Epoch: 5, Held: true}
			s.changed = noon.Add(-ttl + 1)
		}, finding{passable, "the active node is changing: follows node1, but the active node is node3"}},
		{"still follows the old one a TTL later", func(s *situation, r *Role) {
			s.view.NextMaster = cluster.Assignment{Node: "node3", Epoch: 5}
			s.view.Leader = cluster.Leader{Node: "node3", Epoch: 5, Held: true}
			s.changed = noon.Add(-ttl)
		}, finding{bad, "follows node1, but the active node is node3"}},
		{"already follows the one that is to be active", func(s *situation, r *Role) {
			s.view.NextMaster = cluster.Assignment{Node: "node3", Epoch: 5}
			r.UpstreamHost = "10.0.0.3"
		}, finding{good, "streaming from node3, timeline 3, 120 bytes behind"}},
		{"nobody holds the lock, the old active still sends", func(s *situation, _ *Role) { s.view.Leader.Held = false },
			finding{good, "streaming from node1, timeline 3, 120 bytes behind"}},
		{"no node has been active", func(s *situation, r *Role) {
			s.view.NextMaster, s.view.Leader, *r = cluster.Assignment{}, cluster.Leader{}, Role{Primary: cluster.No}
		}, finding{wavering, "standby, and no node is active"}},
		{"two primaries", func(_ *situation, r *Role) { r.Primary = cluster.Yes },
			finding{bad, "primary, but the active node is node1"}},
		{"promoted, the lock not taken yet", func(s *situation, r *Role) {
			s.view.NextMaster.Node, r.Primary = "node2", cluster.Yes
		}, finding{wavering, "primary, timeline 3, but without the leader lock"}},
		{"primary on the active", func(s *situation, r *Role) {
			s.view.Leader.Node, r.Primary = "node2", cluster.Yes
		}, finding{good, "primary, timeline 3, epoch 4"}},
		{"about to be promoted", func(s *situation, r *Role) {
			s.view.Leader.Node, s.view.Leader.Ready = "node2", false
		}, finding{wavering, "standby, about to be promoted"}},
		{"standby on the active", func(s *situation, r *Role) { s.view.Leader.Node = "node2" },
			finding{bad, "standby, but this node is the active one"}},
		{"the database does not say", func(_ *situation, r *Role) { r.Primary = cluster.Unknown },
			finding{unknown, "the database does not say whether it is a primary"}},
		{"the cluster is not known", func(s *situation, _ *Role) { s.known = false },
			finding{unknown, "the state of the cluster is not known yet"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, r := followingTrio()
			tc.change(&s, &r)
			if got := judgeRole(noon, ttl, "node2", s, r); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestJudgeServices(t *testing.T) {
	type look struct {
		after  time.Duration
		active cluster.Tri
		want   health
	}
	const second = time.Second
	for _, tc := range []struct {
		name  string
		looks []look
	}{
		{"runs", []look{{0, cluster.Yes, good}}},
		{"dead", []look{{0, cluster.Yes, good}, {second, cluster.No, bad}, {2 * second, cluster.Yes, good}}},
		{"a restart is no failover", []look{{0, cluster.Yes, good}, {second, cluster.Unknown, wavering},
			{2 * second, cluster.Unknown, wavering}, {3 * second, cluster.Yes, good}, {time.Hour, cluster.Yes, good}}},
		{"a restart that takes too long", []look{{0, cluster.Unknown, wavering}, {ttl - 1, cluster.Unknown, wavering},
			{ttl, cluster.Unknown, bad}}},
		{"dies over and over", []look{{0, cluster.Unknown, wavering}, {second, cluster.Yes, good},
			{2 * second, cluster.Unknown, wavering}, {4 * second, cluster.Yes, good}, {6 * second, cluster.Unknown, bad},
			{7 * second, cluster.Yes, wavering}, {11 * second, cluster.Yes, wavering}, {12 * second, cluster.Yes, good}}},
		{"two restarts far apart", []look{{0, cluster.Unknown, wavering}, {second, cluster.Yes, good},
			{10 * second, cluster.Yes, good}, {11 * second, cluster.Unknown, wavering}, {12 * second, cluster.Yes, good}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var troubles map[string]trouble
			for _, l := range tc.looks {
				var f finding
				units := []unitState{{"web.service", cluster.Yes, "running"}, {"worker.service", l.active, "seen"}}
				f, troubles = judgeServices(noon.Add(l.after), ttl, units, troubles)
				if f.health != l.want {
					t.Errorf("at %s: %s (%s), want %s", l.after, f.health, f.text, l.want)
				}
			}
		})
	}
}

func TestJudgeServicesTexts(t *testing.T) {
	units := []unitState{{"b.service", cluster.No, "failed"}, {"a.service", cluster.No, ""}, {"c.service", cluster.Unknown, "auto-restart"}}
	if f, _ := judgeServices(noon, ttl, units, nil); f.text != "not running: a.service, b.service (failed)" {
		t.Errorf("down: %q", f.text)
	}
	if f, _ := judgeServices(noon, ttl, units[2:], nil); f.text != "waiting for c.service (auto-restart)" {
		t.Errorf("starting: %q", f.text)
	}
	if f, _ := judgeServices(noon, ttl, nil, nil); f != (finding{good, "no units to run"}) {
		t.Errorf("none: %v", f)
	}
}

func TestJudgeFiles(t *testing.T) {
	for _, tc := range []struct {
		name   string
		report cluster.FilesReport
		want   finding
	}{
		{"complete", cluster.FilesReport{Complete: cluster.Yes}, finding{good, "in sync"}},
		{"sending", cluster.FilesReport{Sending: true, Epoch: 4}, finding{good, "sending, epoch 4"}},
		{"fetching", cluster.FilesReport{Complete: cluster.No, Need: 12}, finding{wavering, "12 files still to be fetched"}},
		{"not complete", cluster.FilesReport{Complete: cluster.No}, finding{wavering, "not in sync yet"}},
		{"unknown", cluster.FilesReport{}, finding{wavering, "not known whether in sync: the active node has not been heard"}},
		{"a lost folder", cluster.FilesReport{Complete: cluster.Yes, Problem: "folder notes: marker missing"}, finding{bad, "folder notes: marker missing"}},
		{"stale", cluster.FilesReport{Complete: cluster.Yes, At: noon.Add(-11 * time.Second)}, finding{bad, "file-sync has not reported for 11s"}},
		{"from the future", cluster.FilesReport{Complete: cluster.Yes, At: noon.Add(time.Minute)}, finding{bad, "the report of file-sync is dated in the future"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.report.At.IsZero() {
				tc.report.At = noon
			}
			if got := judgeFiles(noon, 10*time.Second, tc.report); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
