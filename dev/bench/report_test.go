package bench

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/timeline"
	"github.com/understudy-ha/understudy/history"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// measured is an outage of these lengths; writes went on right after the node
// was writable.
func measured(f fault, lengths ...time.Duration) Outage {
	o := newOutage(f)
	for _, d := range lengths {
		m := measurement{gap: probe.Gap{From: noon, To: noon.Add(d)}, healthy: 2 * d, moved: !f.stays, active: "node1", raft: "node2",
			change: timeline.Change{
				Fault: timeline.Fault{At: noon},
				Change: history.Change{Steps: []history.Step{
					{Name: history.Detected, At: noon.Add(d / 4)}, {Name: history.Writable, At: noon.Add(d - time.Millisecond)},
				}},
			}}
		if d > time.Second {
			m.raft = "node1"
		}
		if f.watched {
			m.twoWriters = new(time.Duration)
		}
		if f.stays {
			m.change.Steps = nil
		}
		o.add(m)
	}
	return *o
}

// named returns a fault by its name.
func named(name string) fault {
	return faults[slices.IndexFunc(faults, func(f fault) bool { return f.Name == name })]
}

func TestOutageFigures(t *testing.T) {
	o := measured(named("kill-postgres"), 300*time.Millisecond, 500*time.Millisecond, 400*time.Millisecond)
	if o.MedianMs != 400 || o.MinMs != 300 || o.MaxMs != 500 || o.HealthyMs != 800 || len(o.Ms) != 3 {
		t.Errorf("got %+v", o)
	}
	if o.StepsMs[history.Detected] != 100 || o.StepsMs[history.Writable] != 399 {
		t.Errorf("got steps %v", o.StepsMs)
	}
	if _, ok := o.StepsMs[history.Promoted]; ok {
		t.Error("a step that was never seen has a time")
	}
}

func TestPrint(t *testing.T) {
	r := Report{
		Version: "1.2.3", Machine: Machine{CPUs: 2, Kernel: "6.1.0"}, MadeMs: 12345,
		Outages: []Outage{measured(named("kill-postgres"), 300*time.Millisecond), measured(named("kill-node"), 2800*time.Millisecond),
			measured(named("freeze-node"), 2100*time.Millisecond, 2300*time.Millisecond), measured(named("stop-node"), 450*time.Millisecond),
			measured(named("freeze-consul"), 12*time.Millisecond)},
		Minority: &Minority{AfterMs: 5000, TargetMs: 6000, Serves: series(5700), Majority: series(1900), Heals: series(8000), AtRisk: 123},
		Rejoins:  []Rejoin{{Part: "rejoin-1gb", Size: 1_012_345_678, Series: series(6000, 7000), How: []string{"rewind", "clone"}, CopiedMB: []int{96, 0}}},
		Writes:   &Writes{Acknowledged: 1000, Indeterminate: 2},
		Idle: &Idle{Seconds: 30, CPU: 1.25, RSS: 120, TargetCPU: 2, TargetRSS: 160, Nodes: []IdleNode{{Node: "node1", CPU: 1.25, RSS: 120, Daemons: []IdleDaemon{
			{"check-runner", 0.5, 25}, {"consul-watcher", 0.25, 20}, {"file-sync", 0.25, 50}, {"handler-runner", 0.25, 25}, {"postgres-helper", 0, 10}}}}},
		Pgbench: &Pgbench{Scale: 10, Clients: 4, Seconds: 20, Cluster: []float64{970, 980}, ByHand: []float64{1000, 1000}, Ratio: 0.975, Target: 0.95},
	}
	var b strings.Builder
	r.print(&b)
	want, err := os.ReadFile("testdata/report.txt")
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the text is not that of testdata/report.txt:\n%s", b.String())
	}
}

// series was measured in these milliseconds.
func series(ms ...int) (s Series) {
	for _, m := range ms {
		s.add(time.Duration(m) * time.Millisecond)
	}
	return s
}

func TestTwoWritersOfAllRunsAreAdded(t *testing.T) {
	o := newOutage(named("freeze-node"))
	for _, d := range []time.Duration{0, 30 * time.Millisecond, 12 * time.Millisecond} {
		o.add(measurement{twoWriters: &d})
	}
	if o.TwoWritersMs == nil || *o.TwoWritersMs != 42 {
		t.Errorf("got %+v", o)
	}
	if o = newOutage(named("kill-node")); o.TwoWritersMs != nil {
		t.Error("what was not looked for has a figure")
	}
}

// Nobody watches for two writers as this does: the old one acknowledges what was
// sent after the new one had acknowledged.
func TestTwoWriters(t *testing.T) {
	b := &bench{began: noon, Options: Options{Progress: io.Discard}}
	ack := func(node, timeline string, sent, at int) probe.Ack {
		return probe.Ack{Node: node, Timeline: timeline, Sent: noon.Add(time.Duration(sent) * time.Millisecond), At: noon.Add(time.Duration(at) * time.Millisecond)}
	}
	follows := probe.Journal{Acks: []probe.Ack{ack("a", "1", 0, 1), ack("b", "2", 50, 51), ack("b", "2", 90, 91)}}
	stays := probe.Journal{Acks: []probe.Ack{ack("a", "1", 2, 60)}}
	if got := b.twoWriters([]probe.Journal{follows, stays}); got != 0 {
		t.Errorf("an answer that was late: %s", got)
	}
	stays.Acks = append(stays.Acks, ack("a", "1", 71, 72))
	if got := b.twoWriters([]probe.Journal{follows, stays}); got != 20*time.Millisecond {
		t.Errorf("a write after the other's: %s", got)
	}
}

func TestMended(t *testing.T) {
	log := `level=INFO msg=rejoining component=handler-runner node=node1 event=state epoch=4` + "\n" +
		`level=INFO msg="node1 is rewound to node2" component=handler-runner node=node1 event=rewind epoch=4` + "\n" +
		`level=INFO msg=rewind component=handler-runner node=node1 progress="pg_rewind: need to copy 113 MB (total source directory size is 1180 MB)"` + "\n" +
		`level=INFO msg=rewind component=handler-runner node=node1 progress="pg_rewind: need to copy 97 MB (total source directory size is 1180 MB)"` + "\n"
	if how, copied := mended([]byte(log)); how != "rewind" || copied != 97 {
		t.Errorf("got %q, %d MB", how, copied)
	}
	log += `level=INFO msg="node1 is cloned from node2" component=handler-runner node=node1 event=clone epoch=4`
	if how, _ := mended([]byte(log)); how != "clone" {
		t.Errorf("got %q", how)
	}
	if how, copied := mended([]byte("level=INFO msg=following")); how != "" || copied != 0 {
		t.Errorf("got %q, %d MB", how, copied)
	}
}

func TestWritesCountALossOnce(t *testing.T) {
	w := &Writes{}
	w.add(probe.Journal{Acks: make([]probe.Ack, 9)}, []probe.Finding{{Node: "a", Lost: []int64{3, 4}}, {Node: "b", Lost: []int64{4}}})
	w.add(probe.Journal{Acks: make([]probe.Ack, 2), Refused: []int64{7}}, []probe.Finding{{Node: "a"}, {Node: "b", Lost: []int64{8}}})
	if w.Lost != 3 || w.Acknowledged != 11 || w.Refused != 1 || len(w.Nodes) != 4 {
		t.Errorf("got %+v", w)
	}
}

// What needs much disk is done only when it is asked for.
func TestWants(t *testing.T) {
	b := &bench{}
	for _, part := range Parts() {
		if got := b.wants(part); got == strings.HasPrefix(part, "rejoin-") {
			t.Errorf("%s: %t", part, got)
		}
	}
	b.Only = []string{"rejoin-1gb"}
	if !b.wants("rejoin-1gb") || b.wants("idle") {
		t.Error("what is asked for, and nothing else")
	}
}

func TestParseTPS(t *testing.T) {
	got, err := parseTPS("latency average = 3.9 ms\ninitial connection time = 8.4 ms\ntps = 1017.438270 (without initial connection time)\n")
	if err != nil || got != 1017.43827 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseTPS("pgbench: error: connection refused"); err == nil {
		t.Error("no result gives no error")
	}
}

func TestParseTicks(t *testing.T) {
	got, err := parseTicks("4711 (a (b) c) S 1 4711 4711 0 -1 4194560 900 0 0 0 25 17 0 0 20 0 9 0 100 1 2 3\n")
	if err != nil || got != 42 {
		t.Errorf("%d, %v", got, err)
	}
	for _, bad := range []string{"", "4711 (a", "4711 (a) S 1 2", "4711 (a) S 1 4711 4711 0 -1 4194560 900 0 0 0 x 17 0"} {
		if _, err := parseTicks(bad); err == nil {
			t.Errorf("%q gives no error", bad)
		}
	}
}

func TestThisProcessIsMeasured(t *testing.T) {
	rss, err := residentBytes(os.Getpid())
	if err != nil || rss < mebibyte {
		t.Errorf("%d bytes, %v", rss, err)
	}
	if _, err := residentBytes(0); err == nil {
		t.Error("no process gives no error")
	}
}

func TestCheck(t *testing.T) {
	for name, o := range map[string]Options{
		"no runs":            {Runs: 0},
		"thaw before":        {Runs: 1, ThawAfter: -time.Second},
		"an unknown part":    {Runs: 1, Only: []string{"idle", "weather"}},
		"a part and a space": {Runs: 1, Only: []string{"idle "}},
	} {
		if err := o.check(); !errors.Is(err, dev.ErrUsage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (Options{Runs: 1, Only: Parts()}).check(); err != nil {
		t.Error(err)
	}
}
