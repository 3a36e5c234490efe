package cluster

import (
	"strings"
	"testing"
	"time"
)

// written is a last write some seconds after noon; below zero, nothing was
// written. The clocks agree.
func written(seconds int) *LastWrite {
	w := &LastWrite{Clock: noon.Add(time.Hour)}
	if seconds >= 0 {
		w.At = noon.Add(time.Duration(seconds) * time.Second)
	}
	return w
}

func TestSideWins(t *testing.T) {
	ahead := written(100)
	ahead.Clock = ahead.Clock.Add(ClockSkew + time.Second)
	for name, c := range map[string]struct {
		mode      HealMode
		own, side *LastWrite
		wins      bool
		reason    string
	}{
		"the side was written last":              {HealMostRecent, written(0), written(60), true, "the last commit on own"},
		"the majority was written last":          {HealMostRecent, written(60), written(0), false, "the last commit on own"},
		"only the side was written":              {HealMostRecent, written(-1), written(1), true, "nothing was written on own"},
		"only the majority was written":          {HealMostRecent, written(1), written(-1), false, "nothing was written on side"},
		"neither was":                            {HealMostRecent, written(-1), written(-1), false, "nothing was written on side"},
		"too close to tell":                      {HealMostRecent, written(0), written(5), false, ""},
		"just far enough":                        {HealMostRecent, written(0), written(6), true, ""},
		"the majority's always":                  {HealMajority, written(0), written(60), false, "heal is majority"},
		"the side's time is not known":           {HealMostRecent, written(0), nil, false, "not known"},
		"the majority's time is not known":       {HealMostRecent, nil, written(60), false, "not known"},
		"the clocks are apart":                   {HealMostRecent, written(0), ahead, false, "apart"},
		"apart, but the majority wrote nothing":  {HealMostRecent, written(-1), ahead, true, ""},
		"apart, and the majority, always, stays": {HealMajority, written(-1), ahead, false, ""},
	} {
		wins, reason := SideWins(c.mode, Answer{Node: "own", Last: c.own}, Answer{Node: "side", Last: c.side})
		if wins != c.wins || !strings.Contains(reason, c.reason) || reason == "" {
			t.Errorf("%s: %t because %q", name, wins, reason)
		}
	}
}

// How long an answer may have been under way counts against the clock in it; how long
// it took to find out does not.
func TestClocksThatAreHeardLate(t *testing.T) {
	asked := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	own := &LastWrite{At: asked.Add(-time.Minute), Clock: asked}
	for _, c := range []struct {
		ahead, took, under, later time.Duration
		wins                      bool
	}{
		{4900 * time.Millisecond, 0, 0, 0, true},
		{4900 * time.Millisecond, 10 * time.Second, 0, 0, true},
		{4900 * time.Millisecond, 10 * time.Second, 200 * time.Millisecond, 0, false},
		{4900 * time.Millisecond, 0, 0, 3 * time.Second, true},
		{-5100 * time.Millisecond, 0, 0, 0, false},
	} {
		told := LastWrite{At: asked.Add(-30 * time.Second), Clock: asked.Add(c.ahead), Took: c.took}
		heard := told.Heard(asked, asked.Add(c.took+c.under)).Later(c.later)
		mine := own.Later(c.later)
		if wins, reason := SideWins(HealMostRecent, Answer{Node: "own", Last: &mine}, Answer{Node: "side", Last: &heard}); wins != c.wins {
			t.Errorf("%+v: %t because %q", c, wins, reason)
		}
	}
	if unknown := (LastWrite{At: asked}).Later(time.Hour); !unknown.Clock.IsZero() {
		t.Errorf("a clock that is not known became %s", unknown.Clock)
	}
}

// parted is a trio in which c was cut off at 100 on timeline 1 and served its
// part on timeline 50, while a and b went on on timeline 1.
func parted() Ballot {
	b := healthyTrio()
	b.Answers = []Answer{sound("b", 200), aside("c", 300)}
	b.Answers[0].Last, b.Answers[1].Last = written(10), written(60)
	return b
}

func aside(node string, lsn LSN) Answer {
	a := sound(node, lsn)
	a.Position.Timeline, a.History = 50, History{{1, 100}}
	a.Side = &Side{Leader: node, Epoch: 5, Fork: Position{1, 100}}
	return a
}

// electedAfterAPartition are changes of parted, and who is to win each.
var electedAfterAPartition = map[string]struct {
	change func(*Ballot)
	winner string
	reason string
}{
	"the side was written last": {func(*Ballot) {}, "c", "furthest"},
	"the majority was":          {func(b *Ballot) { b.Answers[0].Last = written(90) }, "b", "furthest"},
	"heal is majority":          {func(b *Ballot) { option(*b, "", "heal", "majority") }, "b", "furthest"},
	"its times are not known":   {func(b *Ballot) { b.Answers[1].Last = nil }, "b", "furthest"},
	"who was cut off tells of what it had acknowledged": {func(b *Ballot) {
		b.Answers[0].Last = written(90)
		b.View.Sync.Members = []string{"b", "c"}
	}, "b", ""},
	"but not if it had more of the cluster's WAL than the rest": {func(b *Ballot) {
		b.Answers[0].Position.LSN = 90
	}, "c", "furthest"},
	"the side holds all that the majority has": {func(b *Ballot) {
		option(*b, "", "heal", "majority")
		b.Answers[0].Position.LSN = 100
	}, "c", "furthest"},
	"who still serves is waited for": {func(b *Ballot) {
		b.Answers[1] = Answer{Node: "c", Side: b.Answers[1].Side, Serving: true}
	}, "", "c may still serve a part"},
	"but not for ever": {func(b *Ballot) {
		b.Answers = Settled(append(b.Answers[:1], sound("a", 150), Answer{Node: "c", Serving: true}))
	}, "b", ""},
	"another standby of the majority knows the time": {func(b *Ballot) {
		b.Answers[0].Last = nil
		a := sound("a", 150)
		a.Last = written(90)
		b.Answers = append(b.Answers, a)
	}, "b", ""},
	"but the time is by the clock of who wrote": {func(b *Ballot) {
		a := sound("a", 200)
		a.Last = &LastWrite{At: written(10).At, Clock: written(10).Clock.Add(time.Minute)}
		b.View.Leader.Node, b.Answers = "a", append(b.Answers, a)
	}, "a", ""},
	"also where that one has served a part itself since": {func(b *Ballot) {
		a := aside("a", 170)
		a.Position.Timeline, a.Side.Fork.LSN = 34, 150
		a.Last = &LastWrite{At: written(10).At, Clock: written(10).Clock.Add(time.Minute)}
		b.View.Leader.Node, b.Answers = "a", append(b.Answers, a)
	}, "b", ""},
	"which may not be known": {func(b *Ballot) {
		b.View.Leader.Node, b.Answers = "a", append(b.Answers, sound("a", 200))
	}, "a", ""},
	"nor may the clock be that did, where it has not answered": {func(b *Ballot) {
		b.View.Leader.Node, b.Answers[0].Last = "a", &LastWrite{At: written(10).At}
	}, "b", ""},
	"nor that of the side": {func(b *Ballot) {
		b.Answers[1].Last.Clock = time.Time{}
	}, "b", ""},
	"which does not matter where nothing was written": {func(b *Ballot) {
		b.Answers[0].Last = &LastWrite{}
	}, "c", ""},
	"a standby of the side that has received nothing of it is behind on the cluster's own line": {func(b *Ballot) {
		a := sound("a", 100)
		a.Side, a.Last = b.Answers[1].Side, &LastWrite{Clock: written(0).Clock}
		b.Answers[1].Last = a.Last
		b.Answers = append(b.Answers, a)
	}, "b", "furthest"},
	"the side did not come for the lock": {func(b *Ballot) {
		b.View.Leader.Epoch, b.View.NextMaster = 5, Assignment{Node: "c", Epoch: 6}
		b.View.Sync.Members, b.Answers[0].Position.LSN = []string{"b", "c"}, 100
		b.Avoid = Unconfirmed(b.View)
	}, "c", ""},
	"the side does not come for the lock again and again": {func(b *Ballot) {
		b.View.Leader.Epoch, b.View.NextMaster = 5, Assignment{Node: "c", Epoch: 11}
		b.View.Sync.Leader, b.Answers[0].Position.LSN = "b", 100
		b.Avoid = Unconfirmed(b.View)
	}, "b", ""},
	"what the majority wrote later was not acknowledged": {func(b *Ballot) {
		b.View.Sync.Members = []string{"c"}
		b.Answers[0].Last = written(90)
	}, "c", ""},
	"unless another part had gone on with the majority": {func(b *Ballot) {
		b.View.Sync.Members = []string{"a", "c"}
		b.Answers[0].Last = written(90)
		late := aside("a", 170)
		late.Position.Timeline, late.Last, late.Side.Fork.LSN = 34, &LastWrite{Clock: written(0).Clock}, 150
		b.Answers = append(b.Answers, late)
	}, "b", ""},
	"unless commits are not confirmed at all": {func(b *Ballot) {
		option(*b, "", "sync_mode", "async")
		b.View.Sync.Members = []string{"c"}
		b.Answers[0].Last = written(90)
	}, "b", ""},
	"the side alone, of a set that asks for more": {func(b *Ballot) { b.Answers = b.Answers[1:] }, "", "2 must answer"},
	"the side alone, of a pair": {func(b *Ballot) {
		b.View.Sync.Members = []string{"c"}
		b.Answers = b.Answers[1:]
	}, "c", "furthest"},
	"two sides, and heal is majority: the one with most of the cluster's own": {func(b *Ballot) {
		option(*b, "", "heal", "majority")
		b.Answers[0] = aside("b", 300)
		b.Answers[0].Position.Timeline, b.Answers[0].Last, b.Answers[0].Side.Fork.LSN = 34, written(30), 150
	}, "b", ""},
	"two sides, and heal is most-recent: the one written last": {func(b *Ballot) {
		b.Answers[0] = aside("b", 200)
		b.Answers[0].Position.Timeline, b.Answers[0].Last, b.Answers[0].Side.Fork.LSN = 34, written(50), 150
	}, "c", ""},
	"but where that cannot be told, the one with most of the cluster's own": {func(b *Ballot) {
		b.Answers[0] = aside("b", 200)
		b.Answers[0].Position.Timeline, b.Answers[0].Last, b.Answers[0].Side.Fork.LSN = 34, written(59), 150
	}, "b", ""},
	"nor can it be told where their clocks are apart": {func(b *Ballot) {
		b.Answers[0] = aside("b", 200)
		b.Answers[0].Position.Timeline, b.Answers[0].Side.Fork.LSN = 34, 150
		b.Answers[0].Last = &LastWrite{At: written(10).At, Clock: written(10).Clock.Add(-time.Minute)}
	}, "b", ""},
	"nor where it is not known by whose they were written": {func(b *Ballot) {
		b.Answers[0] = aside("b", 200)
		b.Answers[0].Position.Timeline, b.Answers[0].Side.Fork.LSN = 34, 150
		b.Answers[0].Last, b.Answers[1].Last = &LastWrite{At: written(10).At}, &LastWrite{At: written(60).At}
	}, "b", ""},
	"unless nothing was written on one of them": {func(b *Ballot) {
		b.Answers[0] = aside("b", 200)
		b.Answers[0].Position.Timeline, b.Answers[0].Side.Fork.LSN = 34, 150
		b.Answers[0].Last = &LastWrite{Clock: written(10).Clock.Add(-time.Minute)}
	}, "c", ""},
	"a third node lacks what one of the sides has of the cluster's own": {func(b *Ballot) {
		b.View.Sync = SyncSet{Epoch: 5, Leader: "a", Members: []string{"b"}, K: 1}
		b.Answers[0] = aside("b", 200)
		b.Answers[0].Position.Timeline, b.Answers[0].Last, b.Answers[0].Side.Fork.LSN = 34, written(10), 150
		b.Answers[0].History = History{{1, 150}}
		a := sound("a", 120)
		a.Last = written(-1)
		b.Answers = append(b.Answers, a)
	}, "c", ""},
	"a former active is on an older timeline than that which a side was cut off from": {func(b *Ballot) {
		b.View.Sync = SyncSet{Epoch: 5, Leader: "a", Members: []string{"c"}, K: 1}
		b.Answers[1].Side.Fork.Timeline, b.Answers[1].History = 2, History{{1, 50}, {2, 100}}
		b.Answers[1].Last = written(-1)
	}, "c", ""},
	"a side that went on with the active of the sync set is none": {func(b *Ballot) {
		b.View.Sync = SyncSet{Epoch: 6, Leader: "c", Members: []string{"a"}, K: 1}
		option(*b, "", "heal", "majority")
		a := aside("a", 400)
		a.Line = 6
		b.Answers = []Answer{a, b.Answers[0]}
	}, "a", "furthest"},
	"two sides: the one that was written last": {func(b *Ballot) {
		b.Answers[0] = aside("b", 500)
		b.Answers[0].Position.Timeline, b.Answers[0].Last = 34, written(30)
	}, "c", ""},
	"a standby of the side counts with it": {func(b *Ballot) {
		a := aside("a", 290)
		a.Side, a.Last = b.Answers[1].Side, written(60)
		b.Answers = append(b.Answers, a)
	}, "c", ""},
	"timelines of one number that began elsewhere are two": {func(b *Ballot) {
		b.Answers[0].Position.Timeline, b.Answers[0].History = 50, History{{1, 110}}
		b.Answers[0].Last = written(90)
	}, "b", ""},
}

func TestElectAfterAPartition(t *testing.T) {
	for name, c := range electedAfterAPartition {
		b := parted()
		c.change(&b)
		out := Elect(b)
		if out.Winner != c.winner || !strings.Contains(out.Reason, c.reason) {
			t.Errorf("%s: %q because %q (%v)", name, out.Winner, out.Reason, out.Passed)
		}
	}
}

// Who follows a node that has not told its line yet knows by this whether its WAL leads
// there.
func TestPast(t *testing.T) {
	long := History{}
	for tl := Timeline(1); tl < 40; tl++ {
		long = append(long, Fork{tl, LSN(tl) * 10})
	}
	b := Ballot{Answers: []Answer{
		{Node: "a", Position: Position{3, 300}, History: History{{1, 100}, {2, 200}}},
		{Node: "b", Position: Position{40, 400}, History: long},
		{Node: "c", Position: Position{1, 50}},
	}}
	for _, c := range []struct {
		winner string
		p      Position
		own    History
		want   bool
	}{
		{"a", Position{3, 300}, History{{1, 100}, {2, 200}}, true},
		{"a", Position{3, 301}, History{{1, 100}, {2, 200}}, false}, // has more
		{"a", Position{2, 200}, History{{1, 100}}, true},
		{"a", Position{2, 201}, History{{1, 100}}, false},
		{"a", Position{2, 150}, History{{1, 90}}, false}, // another timeline of that number
		{"a", Position{1, 100}, nil, true},
		{"a", Position{4, 250}, History{{1, 100}, {2, 200}, {3, 240}}, false},
		{"b", Position{39, 390}, long[:38], true},
		{"b", Position{5, 20}, long[:4], false}, // too long ago to be told
		{"c", Position{1, 50}, nil, true},
		{"d", Position{1, 50}, nil, false}, // did not answer
	} {
		if got := (Assignment{Past: b.Past(c.winner)}).Follows(c.p, c.own); got != c.want {
			t.Errorf("%v leads to %s: %v, want %v", c.p, c.winner, got, c.want)
		}
	}
}

func TestElectSide(t *testing.T) {
	v := trio()
	in := func(node string, lsn LSN, verdict Verdict) Answer {
		a := sound(node, lsn)
		a.Verdict = verdict
		return a
	}
	serving := in("c", 100, Minority)
	serving.Serving = true
	struggling := serving
	struggling.Problem = "its unit x does not run"
	ill := in("b", 200, Minority)
	ill.Problem = "its unit x does not run"
	for name, c := range map[string]struct {
		answers []Answer
		winner  string
		reason  string
	}{
		"alone":                               {[]Answer{in("b", 100, Minority)}, "b", "furthest"},
		"the furthest":                        {[]Answer{in("b", 100, Minority), in("c", 200, Minority)}, "c", "furthest"},
		"who serves already stays":            {[]Answer{in("b", 200, Minority), serving}, "c", ""},
		"also with a unit that fails":         {[]Answer{in("b", 200, Minority), struggling}, "c", ""},
		"one of them is in the majority":      {[]Answer{in("b", 200, Minority), in("c", 100, Majority)}, "", "c is in the majority"},
		"one of them does not know yet":       {[]Answer{in("b", 200, Minority), in("c", 100, Undecided)}, "", "not known to be in the minority"},
		"nobody fit":                          {[]Answer{ill}, "", "no node in this part"},
		"the furthest is not fit":             {[]Answer{ill, in("c", 100, Minority)}, "c", ""},
		"no_failover holds in a minority too": {[]Answer{in("a", 100, Minority)}, "", "no node"},
	} {
		n := v.Nodes["a"]
		n.Options = Options{"no_failover": "true"}
		v.Nodes["a"] = n
		out := ElectSide(v, c.answers)
		if out.Winner != c.winner || !strings.Contains(out.Reason, c.reason) {
			t.Errorf("%s: %q because %q (%v)", name, out.Winner, out.Reason, out.Passed)
		}
	}
}

func TestFork(t *testing.T) {
	line := History{{1, 100}, {2, 200}}
	for name, c := range map[string]struct {
		other History
		at    Position
		want  Position
	}{
		"on the way":               {nil, Position{1, 90}, Position{1, 90}},
		"too far on an old one":    {nil, Position{1, 130}, Position{1, 100}},
		"another second timeline":  {History{{1, 80}}, Position{2, 150}, Position{1, 80}},
		"another third timeline":   {History{{1, 100}, {2, 150}}, Position{50, 300}, Position{2, 150}},
		"beyond the end of second": {History{{1, 100}}, Position{2, 250}, Position{2, 200}},
		"the same line":            {line, Position{3, 400}, Position{3, 400}},
	} {
		if got := line.Fork(3, c.other, c.at); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestGap: whatever two managers were on, they make two timelines to serve parts, and
// none that the cluster makes meanwhile or that they have made before. So it is where one
// of them has been removed, while it serves a part.
func TestGap(t *testing.T) {
	v := trio()
	of := map[Timeline]string{}
	gaps(t, v, of)
	delete(v.Nodes, "b")
	v.Removed = map[string]Tombstone{"b": {}}
	gaps(t, v, of)
}

func gaps(t *testing.T, v View, of map[Timeline]string) {
	t.Helper()
	for _, node := range v.Managers() {
		made := Timeline(0)
		for on := range Timeline(200) {
			next := on + Timeline(v.Gap(node, on, 0)) + 1
			if by := of[next]; next <= on+TimelineGap || by != "" && by != node {
				t.Fatalf("%s makes timeline %d from %d, as %q does", node, next, on, by)
			}
			of[next] = node
			if again := on + Timeline(v.Gap(node, on, made)) + 1; again <= made || again > made+on+200 {
				t.Fatalf("%s makes timeline %d from %d after %d", node, again, on, made)
			} else {
				made = again
			}
		}
	}
}

func TestForked(t *testing.T) {
	later := aside("a", 300)
	later.Position.Timeline, later.History, later.Side.Fork.LSN = 60, History{{1, 250}}, 250
	went := aside("c", 240) // has become the cluster's own
	went.Side = nil
	for name, c := range map[string]struct {
		answers []Answer
		at      LSN
		ok      bool
	}{
		"no part":                           {[]Answer{sound("a", 100), sound("b", 200)}, 0, false},
		"a part and the cluster":            {[]Answer{sound("b", 200), aside("c", 300)}, 100, true},
		"the cluster's was a part's before": {[]Answer{went, later}, 100, true},
		"one that still serves":             {[]Answer{later, {Node: "c", Side: &Side{Fork: Position{1, 300}}}}, 250, true},
	} {
		if at, ok := Forked(c.answers); ok != c.ok || ok && at != c.at {
			t.Errorf("%s: %s, %t", name, at, ok)
		}
	}
}

func TestAbove(t *testing.T) {
	b := parted()
	if got := Above(b); got != 50 {
		t.Errorf("a side has made timeline 50, and %d is told", got)
	}
	b.View.NextMaster.Above = 60
	if got := Above(b); got != 60 {
		t.Errorf("an election has told of 60 before, and this one tells of %d", got)
	}
	b.View.NextMaster.Above, b.View.Leader.Timeline = 0, 70
	if got := Above(b); got != 70 {
		t.Errorf("the last active was on 70, and %d is told", got)
	}
}
