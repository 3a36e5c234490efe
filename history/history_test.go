package history

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// recorded are the events of a cluster of three nodes: its start, a drill, the
// active PostgreSQL killed, a hand-over, the active node killed.
func recorded(t *testing.T) []cluster.Event {
	t.Helper()
	text, err := os.ReadFile("testdata/events.json")
	if err != nil {
		t.Fatal(err)
	}
	var events []cluster.Event
	if err := json.Unmarshal(text, &events); err != nil {
		t.Fatal(err)
	}
	return events
}

func changes(t *testing.T, events []cluster.Event) []Change {
	t.Helper()
	list, err := Changes(events)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// to is the change to an epoch.
func to(t *testing.T, list []Change, epoch cluster.Epoch) Change {
	t.Helper()
	i := slices.IndexFunc(list, func(c Change) bool { return c.Epoch == epoch })
	if i < 0 {
		t.Fatalf("no change to epoch %d in %+v", epoch, list)
	}
	return list[i]
}

func steps(c Change) string {
	var names []string
	for _, s := range c.Steps {
		names = append(names, s.Name+" "+s.Node)
	}
	return strings.Join(names, ", ")
}

func TestEveryChangeIsARecord(t *testing.T) {
	list := changes(t, recorded(t))
	var got []string
	for _, c := range list {
		got = append(got, c.From+">"+c.Winner)
	}
	if want := []string{">node1", "node1>node2", "node2>node1", "node1>node2", "node2>node1", "node1>node2"}; !slices.Equal(got, want) {
		t.Errorf("the changes are %v, not %v", got, want)
	}
	for i, c := range list {
		if c.Epoch != cluster.Epoch(i+1) || c.Why == "" || !slices.IsSortedFunc(c.Steps[:4], func(a, b Step) int { return a.At.Compare(b.At) }) {
			t.Errorf("%+v", c)
		}
		if (c.OutageMs > 0) != (c.From != "") {
			t.Errorf("epoch %d: an outage of %d ms", c.Epoch, c.OutageMs)
		}
	}
	if c := list[0]; c.Asked || c.Why != "nobody was active before" || steps(c) != "locked node1, promoted node1, writable node1, active node1, following node3, following node2" {
		t.Errorf("the start: %s; %+v", steps(c), c)
	}
}

func TestPostgresKilled(t *testing.T) {
	c := to(t, changes(t, recorded(t)), 4)
	if c.Asked || c.Why != "node1 lost the lock: its check postgres-answer fails: does not answer select 1: connection reset by peer" {
		t.Errorf("why: %q, %v", c.Why, c.Asked)
	}
	if got := steps(c); got != "detected node2, elected node2, locked node2, promoted node2, writable node2, following node3, active node2, following node1" {
		t.Errorf("steps: %s", got)
	}
	var seen []string
	for _, s := range c.Seen {
		seen = append(seen, s.Node)
	}
	if !slices.Equal(seen, []string{"node2", "node3", "node1", "node1"}) || !strings.HasSuffix(c.Seen[3].What, "(PostgreSQL does not run)") {
		t.Errorf("seen: %+v", c.Seen)
	}
	if len(c.Answers) != 2 || c.Fate("node2") != "elected" || !strings.Contains(c.Fate("node3"), "node2 comes first") {
		t.Errorf("answers: %+v, %+v", c.Answers, c.Passed)
	}
	if len(c.Silent) != 1 || c.Silent[0].Node != "node1" || !strings.Contains(c.Silent[0].Reason, "holds the lease") {
		t.Errorf("silent: %+v", c.Silent)
	}
	if c.Start.Timeline != 5 || c.Quorum.K != 1 || c.OutageMs != 307 {
		t.Errorf("%+v, %+v, outage %d ms", c.Start, c.Quorum, c.OutageMs)
	}
	if r := c.Return("node1"); r.Standby.IsZero() || r.How != "" {
		t.Errorf("node1 came back: %+v", r)
	}
	if at, ok := c.At(Writable); !ok || at.IsZero() {
		t.Error("writable has no time")
	}
}

func TestHandOverSaysWhoAsked(t *testing.T) {
	c := to(t, changes(t, recorded(t)), 2)
	if !c.Asked || c.Why != "a drill, on node2" || c.By != "node1" || !strings.Contains(c.Fate("node1"), "hands over") {
		t.Errorf("%+v", c)
	}
}

func TestDeadNodeIsNotHeard(t *testing.T) {
	c := to(t, changes(t, recorded(t)), 6)
	if c.Why != "node1 lost the lock: Consul's servers do not hear it" || c.Return("node1") != (Return{Node: "node1"}) {
		t.Errorf("%+v", c)
	}
}

// event is one of node n, s seconds into a made-up history.
func event(s int, n string, epoch cluster.Epoch, kind string, data any) cluster.Event {
	text, err := json.Marshal(data)
	if err != nil {
		panic(err)
	}
	at := time.Date(2026, 1, 1, 12, 0, s, 0, time.UTC)
	return cluster.Event{ID: at.Format(time.RFC3339), At: at, Node: n, Epoch: epoch, Kind: kind, Message: n + " " + kind, Data: text}
}

func state(s int, n string, epoch cluster.Epoch, from, to cluster.State) cluster.Event {
	return event(s, n, epoch, cluster.EventState, cluster.StateChange{From: from, To: to})
}

// reign is how a becomes active.
func reign() []cluster.Event {
	return []cluster.Event{
		event(0, "a", 1, cluster.EventLock, nil), event(0, "a", 1, cluster.EventPromoted, cluster.Position{Timeline: 2}),
		event(0, "a", 1, cluster.EventWritable, cluster.Quorum{}), state(1, "a", 1, cluster.Promoting, cluster.Active),
	}
}

func elected(s int, by, winner string, epoch cluster.Epoch) cluster.Event {
	at := time.Date(2026, 1, 1, 12, 0, s-1, 0, time.UTC)
	return event(s, by, epoch, cluster.EventElected, cluster.Election{From: "a", Winner: winner, Detected: at})
}

func TestNobodyIsWritableYet(t *testing.T) {
	list := changes(t, append(reign(), event(5, "b", 1, cluster.EventLost, cluster.Loss{Node: "a", Why: "a is gone"}), elected(7, "b", "c", 2)))
	c := to(t, list, 2)
	if c.Winner != "" || c.From != "a" || c.Why != "a is gone" || c.OutageMs != 0 {
		t.Errorf("%+v", c)
	}
	if _, ok := c.At(Writable); ok {
		t.Error("nobody has become writable")
	}
}

func TestWinnerThatDoesNotComeIsAnAttempt(t *testing.T) {
	list := changes(t, append(reign(), elected(5, "b", "c", 2), elected(9, "b", "b", 3),
		event(10, "b", 3, cluster.EventLock, nil), event(11, "b", 3, cluster.EventWritable, cluster.Quorum{}), state(12, "b", 3, cluster.Promoting, cluster.Active)))
	c := to(t, list, 3)
	if len(list) != 2 || len(c.Attempts) != 1 || c.Attempts[0].Winner != "c" || c.Steps[0].SinceMs != 0 || c.OutageMs != 7000 {
		t.Errorf("%d changes; %+v", len(list), c)
	}
}

// What the old active got over is no reason for the change that comes later.
func TestEarlierTroubleIsForgotten(t *testing.T) {
	for name, over := range map[string][]cluster.Event{
		"the lock was taken again": {event(3, "b", 1, cluster.EventLost, cluster.Loss{Node: "a", Why: "old"}), event(4, "a", 1, cluster.EventLock, nil)},
		"active again":             {state(3, "a", 1, cluster.Active, cluster.Maintenance), state(4, "a", 1, cluster.Maintenance, cluster.Active)},
	} {
		list := changes(t, slices.Concat(reign(), over, []cluster.Event{
			event(20, "b", 1, cluster.EventLost, cluster.Loss{Node: "a", Why: "new", Seen: time.Date(2026, 1, 1, 12, 0, 20, 0, time.UTC)}),
			elected(21, "b", "b", 2), event(22, "b", 2, cluster.EventWritable, cluster.Quorum{}),
		}))
		if c := to(t, list, 2); c.Why != "new" || c.OutageMs != 2000 || len(c.Seen) != 1 {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// A standby that could not be named yet has taken the WAL that it lacked: the record
// says so, and that alone is no change.
func TestBorrowedWALIsSeen(t *testing.T) {
	lost := time.Date(2026, 1, 1, 12, 0, 5, 0, time.UTC)
	events := append(reign(), event(5, "b", 1, cluster.EventLost, cluster.Loss{Node: "a", Why: "a is gone", Seen: lost}), event(6, "c", 2, cluster.EventBorrowed, nil))
	if list := changes(t, events); len(list) != 1 || len(list[0].Seen) != 0 {
		t.Errorf("nobody was elected: %+v", list)
	}
	c := to(t, changes(t, append(events, elected(8, "b", "c", 2), event(9, "c", 2, cluster.EventWritable, cluster.Quorum{}),
		event(10, "d", 2, cluster.EventBorrowed, nil))), 2)
	if want := []Sighting{{"b", lost, "a is gone"}, {"c", lost.Add(time.Second), "c borrowed"}}; !slices.Equal(c.Seen, want) {
		t.Errorf("seen: %+v, want %+v", c.Seen, want)
	}
	if c.Why != "a is gone" || c.OutageMs != 4000 || steps(c) != "detected b, elected c, writable c" {
		t.Errorf("%s: %+v", steps(c), c)
	}
}

func TestReturnByRewind(t *testing.T) {
	list := changes(t, append(reign(), elected(5, "b", "b", 2), event(6, "b", 2, cluster.EventWritable, cluster.Quorum{}),
		state(7, "a", 2, cluster.Active, cluster.Fenced), event(8, "a", 2, cluster.EventRewind, nil), state(9, "a", 2, cluster.Rejoining, cluster.Standby),
		event(10, "a", 2, cluster.EventFollowing, cluster.Position{}), event(12, "a", 2, cluster.EventFollowing, cluster.Position{})))
	c := to(t, list, 2)
	r := c.Return("a")
	if r.How != cluster.EventRewind || r.Standby.Sub(r.Began) != time.Second {
		t.Errorf("%+v", r)
	}
	if got := steps(c); got != "detected b, elected b, writable b, following a" {
		t.Errorf("a streams for the first time only once: %s", got)
	}
}

func TestDamagedEventHidesNothing(t *testing.T) {
	events := recorded(t)
	broken := event(0, "node1", 4, cluster.EventState, nil)
	broken.At, broken.Data = events[len(events)-1].At, json.RawMessage(`{"to":`)
	list, err := Changes(append(events, broken))
	if err == nil || len(list) != 6 {
		t.Errorf("%d changes, error %v", len(list), err)
	}
}

func TestNoEvents(t *testing.T) {
	if list := changes(t, nil); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}
