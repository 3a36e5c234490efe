package bench

import (
	"errors"
	"os"
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
		o.add(probe.Gap{From: noon, To: noon.Add(d)}, 2*d, timeline.Change{
			Fault: timeline.Fault{At: noon},
			Change: history.Change{Steps: []history.Step{
				{Name: history.Detected, At: noon.Add(d / 4)}, {Name: history.Writable, At: noon.Add(d - time.Millisecond)},
			}},
		}, d > time.Second)
	}
	return o.done()
}

func TestOutageFigures(t *testing.T) {
	o := measured(faults[0], 300*time.Millisecond, 500*time.Millisecond, 400*time.Millisecond)
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
		Outages: []Outage{measured(faults[0], 300*time.Millisecond), measured(faults[1], 2800*time.Millisecond)},
		Writes:  &Writes{Acknowledged: 1000, Indeterminate: 2},
		Idle: &Idle{Seconds: 30, CPU: 1.25, RSS: 120, TargetCPU: 2, TargetRSS: 160, Nodes: []IdleNode{{Node: "node1", CPU: 1.25, RSS: 120, Daemons: []IdleDaemon{
			{"check-runner", 0.5, 25}, {"consul-watcher", 0.25, 20}, {"file-sync", 0.25, 50}, {"handler-runner", 0.25, 25}}}}},
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

func TestWritesCountALossOnce(t *testing.T) {
	w := writesOf(probe.Journal{Acks: make([]probe.Ack, 9)}, []probe.Finding{{Node: "a", Lost: []int64{3, 4}}, {Node: "b", Lost: []int64{4}}})
	if w.Lost != 2 || w.Acknowledged != 9 {
		t.Errorf("got %+v", w)
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
