package cluster

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

var noon = time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC)

const after = 10 * time.Second

// unheard is a manager that has left many probes unanswered.
func unheard(r ProbeResult, at time.Time) Contact { return Contact{Result: r, At: at, Misses: 9} }

// cutOffTrio is node1 of three managers with everything gone, long ago. Cases
// change one thing of it.
func cutOffTrio() (Connectivity, Judgement) {
	c := Connectivity{
		Self:       "node1",
		Managers:   []string{"node1", "node2", "node3"},
		RaftLeader: No,
		Contacts: map[string]Contact{
			"node2": unheard(ProbeSilent, noon),
			"node3": unheard(ProbeSilent, noon),
		},
		Fresh:   2 * time.Second,
		Outside: []Outside{{"gateway 10.0.0.1", Yes}},
	}
	return c, Judgement{Verdict: Undecided, with: noon.Add(-after)}
}

// judged are changes of cutOffTrio, and what is to be said of each.
var judged = []struct {
	name   string
	change func(*Connectivity, *Judgement)
	want   Verdict
	reason string
}{
	{"cut off for long enough", func(*Connectivity, *Judgement) {}, Minority,
		"for 10s Consul has had no leader and 1 of 3 managers answer"},
	{"cut off since now", func(_ *Connectivity, b *Judgement) { *b = Judgement{Verdict: Majority} }, Undecided,
		"Consul has no leader and 1 of 3 managers answer; that must last 10s"},
	{"one instant too early", func(_ *Connectivity, b *Judgement) { b.with = b.with.Add(1) }, Undecided, ""},
	{"the clock was set back", func(_ *Connectivity, b *Judgement) { b.with = noon.Add(time.Hour) }, Undecided, ""},
	{"Consul has a leader, nobody answers", func(c *Connectivity, _ *Judgement) { c.RaftLeader = Yes }, Majority, "Consul has a leader"},
	{"the own agent refuses or answers 500", func(c *Connectivity, _ *Judgement) { c.RaftLeader = Unknown }, Undecided,
		"1 of 3 managers answer, and the local Consul agent cannot be asked for a leader"},
	{"Consul is down everywhere, one peer answers", func(c *Connectivity, b *Judgement) {
		c.Contacts["node2"] = Contact{}.Next(noon, ProbeAnswered)
		*b = Judgement{Verdict: Majority}
	}, Majority, "Consul has no leader, but 2 of 3 managers answer"},
	{"a peer that was not probed lately", func(c *Connectivity, _ *Judgement) {
		c.Contacts["node2"] = unheard(ProbeSilent, noon.Add(-3*time.Second))
	}, Undecided, "Consul has no leader, 1 of 3 managers answer, and 1 are not known"},
	{"an old answer is no answer", func(c *Connectivity, _ *Judgement) {
		c.Contacts["node2"] = Contact{}.Next(noon.Add(-3*time.Second), ProbeAnswered)
	}, Undecided, ""},
	{"a peer that refuses is not there", func(c *Connectivity, _ *Judgement) {
		c.Contacts["node2"] = unheard(ProbeRefused, noon)
	}, Minority, ""},
	{"nothing outside answers", func(c *Connectivity, _ *Judgement) {
		c.Outside = []Outside{{"gateway 10.0.0.1", No}, {"10.9.9.9", No}}
	}, Isolated, "for 10s Consul has had no leader and 1 of 3 managers answer; no answer from gateway 10.0.0.1, 10.9.9.9"},
	{"nothing outside was asked often enough", func(c *Connectivity, _ *Judgement) {
		c.Outside, c.Asking = []Outside{{"gateway 10.0.0.1", Unknown}}, true
	}, Undecided, "for 10s Consul has had no leader and 1 of 3 managers answer; not known yet is gateway 10.0.0.1"},
	{"nothing outside was asked often enough since a restart in the minority", func(c *Connectivity, b *Judgement) {
		c.Outside, c.Asking = []Outside{{"gateway 10.0.0.1", Unknown}}, true
		*b = Judgement{Verdict: Minority, Reason: "as before", with: noon.Add(-after)}
	}, Minority, "as before"},
	{"nothing outside was asked often enough since a restart while isolated", func(c *Connectivity, b *Judgement) {
		c.Outside, c.Asking = []Outside{{"gateway 10.0.0.1", Unknown}}, true
		*b = Judgement{Verdict: Isolated, Reason: "as before", with: noon.Add(-after)}
	}, Isolated, "as before"},
	{"those outside are still asked, and one answers", func(c *Connectivity, _ *Judgement) { c.Asking = true }, Minority, ""},
	{"those outside are still asked, but the node is not alone", func(c *Connectivity, _ *Judgement) {
		c.Managers = []string{"node1", "node2", "node3", "node4"}
		c.Contacts["node2"], c.Contacts["node4"] = Contact{}.Next(noon, ProbeAnswered), c.Contacts["node3"]
		c.Outside, c.Asking = []Outside{{"gateway 10.0.0.1", Unknown}}, true
	}, Minority, ""},
	{"one manager has left a single probe unanswered", func(c *Connectivity, _ *Judgement) {
		c.Contacts["node2"] = Contact{Result: ProbeSilent, At: noon, Misses: 1}
	}, Undecided, "Consul has no leader and 1 of 3 managers answer; one probe alone proves nothing"},
	{"one manager has left a single probe unanswered since a restart in the minority", func(c *Connectivity, b *Judgement) {
		c.Contacts["node2"] = Contact{Result: ProbeSilent, At: noon, Misses: 1}
		b.Verdict = Minority
	}, Minority, ""},
	{"one manager answered just before", func(c *Connectivity, _ *Judgement) {
		c.Contacts["node2"] = Contact{ProbeSilent, noon, noon.Add(-after + 1), 9}
	}, Undecided, ""},
	{"Consul's leader was heard just before", func(c *Connectivity, b *Judgement) {
		c.RaftLeader, c.LeaderHeard = Yes, noon.Add(-after+1)
		*b = c.Judge(noon, after, *b)
		c.RaftLeader = No
	}, Undecided, ""},
	{"Consul's leader is remembered, and was heard long ago", func(c *Connectivity, b *Judgement) {
		c.RaftLeader, c.LeaderHeard = Yes, noon.Add(-after)
		*b = c.Judge(noon, after, *b)
		c.RaftLeader = No
	}, Minority, ""},
	{"Consul had a leader, and nobody knows since when not", func(c *Connectivity, b *Judgement) {
		c.RaftLeader = Yes
		*b = c.Judge(noon, after, *b)
		c.RaftLeader = No
	}, Undecided, ""},
	{"nobody judged for a while", func(_ *Connectivity, b *Judgement) { b.at = noon.Add(-2*time.Second - 1) }, Undecided, ""},
	{"nobody judged for a moment", func(_ *Connectivity, b *Judgement) { b.at = noon.Add(-2 * time.Second) }, Minority, ""},
	{"one ping target answers", func(c *Connectivity, _ *Judgement) {
		c.Outside = []Outside{{"gateway 10.0.0.1", No}, {"10.9.9.9", Yes}}
	}, Minority, ""},
	{"one ping target is not known", func(c *Connectivity, _ *Judgement) {
		c.Outside = []Outside{{"gateway 10.0.0.1", No}, {"10.9.9.9", Unknown}}
	}, Minority, ""},
	{"no gateway is known and there is no target", func(c *Connectivity, _ *Judgement) { c.Outside = nil }, Minority, ""},
	{"nothing outside answers, but a peer's host refuses", func(c *Connectivity, _ *Judgement) {
		c.Outside = []Outside{{"gateway 10.0.0.1", No}}
		c.Contacts["node2"] = unheard(ProbeRefused, noon)
	}, Minority, ""},
	{"alone by design", func(c *Connectivity, b *Judgement) {
		c.Managers, *b = []string{"node1"}, Judgement{}
	}, Majority, "Consul has no leader, but 1 of 1 managers answer"},
	{"one of two is lost", func(c *Connectivity, _ *Judgement) { c.Managers = []string{"node1", "node2"} }, Minority, ""},
	{"a runner does not count itself", func(c *Connectivity, _ *Judgement) {
		c.Self = "runner1"
		c.Contacts["node1"] = Contact{}.Next(noon, ProbeAnswered)
	}, Minority, "for 10s Consul has had no leader and 1 of 3 managers answer"},
	{"the members are not known", func(c *Connectivity, _ *Judgement) { c.Managers = nil }, Undecided,
		"Consul has no leader and the members are not known"},
}

func TestJudgeNamedCases(t *testing.T) {
	for _, tc := range judged {
		t.Run(tc.name, func(t *testing.T) {
			c, before := cutOffTrio()
			tc.change(&c, &before)
			got := c.Judge(noon, after, before)
			if got.Verdict != tc.want || tc.reason != "" && got.Reason != tc.reason {
				t.Errorf("got %s (%s), want %s (%s)", got.Verdict, got.Reason, tc.want, tc.reason)
			}
		})
	}
}

// A flapping link after a minority must not bring the majority back for an
// instant: the others have to answer for a fifth of minority_after in one go.
func TestJudgeHealing(t *testing.T) {
	c, j := cutOffTrio()
	at := func(d time.Duration, node2 ProbeResult) Judgement {
		c.Contacts["node2"] = c.Contacts["node2"].Next(noon.Add(d), node2)
		c.Contacts["node3"] = unheard(ProbeSilent, noon.Add(d))
		j = c.Judge(noon.Add(d), after, j)
		return j
	}
	for _, step := range []struct {
		d     time.Duration
		node2 ProbeResult
		want  Verdict
	}{
		{0, ProbeSilent, Minority},
		{1 * time.Second, ProbeAnswered, Undecided},
		{2 * time.Second, ProbeSilent, Undecided},
		{3 * time.Second, ProbeAnswered, Undecided},
		{4900 * time.Millisecond, ProbeAnswered, Undecided},
		{5 * time.Second, ProbeAnswered, Majority},
		{6 * time.Second, ProbeSilent, Undecided},
		{7 * time.Second, ProbeAnswered, Majority}, // a short gap while in the majority is nothing
		{8 * time.Second, ProbeSilent, Undecided},
		{10 * time.Second, ProbeSilent, Undecided},
		{12 * time.Second, ProbeSilent, Undecided},
		{14 * time.Second, ProbeSilent, Undecided},
		{16 * time.Second, ProbeSilent, Undecided},
		{16999 * time.Millisecond, ProbeSilent, Undecided},
		{17 * time.Second, ProbeSilent, Minority}, // counted from the last answer
	} {
		if got := at(step.d, step.node2); got.Verdict != step.want {
			t.Fatalf("at %s: got %s (%s), want %s", step.d, got.Verdict, got.Reason, step.want)
		}
	}
	c.RaftLeader = Yes
	if got := at(19*time.Second, ProbeSilent); got.Verdict != Majority {
		t.Errorf("with a Consul leader: got %s (%s), want majority at once", got.Verdict, got.Reason)
	}
}

// What lies outside may answer before the managers do when a cut is mended: a node
// that was isolated does not serve in between.
func TestJudgeAfterIsolation(t *testing.T) {
	c, j := cutOffTrio()
	c.Outside = []Outside{{"gateway 10.0.0.1", No}}
	for _, step := range []struct {
		d       time.Duration
		outside Tri
		want    Verdict
	}{
		{0, No, Isolated},
		{1 * time.Second, Yes, Undecided},
		{2 * time.Second, No, Isolated},
		{3 * time.Second, Yes, Undecided},
		{4 * time.Second, Yes, Undecided},
		{5 * time.Second, Yes, Undecided},
		{5*time.Second + 1, Yes, Minority}, // all were probed since
		{6 * time.Second, Yes, Minority},
	} {
		now := noon.Add(step.d)
		c.Outside[0].Reached = step.outside
		c.Contacts["node2"], c.Contacts["node3"] = unheard(ProbeSilent, now), unheard(ProbeSilent, now)
		if j = c.Judge(now, after, j); j.Verdict != step.want {
			t.Fatalf("at %s: got %s (%s), want %s", step.d, j.Verdict, j.Reason, step.want)
		}
	}
}

// worse orders the verdicts; a better input never gives a worse verdict.
var worse = []Verdict{Majority, Undecided, Minority, Isolated}

// TestJudgeEnumerated walks every observation of clusters with one to four
// managers, from every kind of past, and asserts what must always hold.
func TestJudgeEnumerated(t *testing.T) {
	pasts := map[string]Judgement{
		"start":           {},
		"majority":        {Verdict: Majority},
		"cut for less":    {Verdict: Undecided, with: noon.Add(-after + 1)},
		"cut for long":    {Verdict: Undecided, with: noon.Add(-after)},
		"minority":        {Verdict: Minority, with: noon.Add(-time.Hour), fallen: true},
		"isolated":        {Verdict: Isolated, with: noon.Add(-time.Hour), fallen: true},
		"healing":         {Verdict: Undecided, healed: noon.Add(-after/5 + 1), fallen: true},
		"healed":          {Verdict: Undecided, healed: noon.Add(-after / 5), fallen: true},
		"fell, then dark": {Verdict: Undecided, fallen: true},
	}
	outsides := [][]Outside{nil, {{"gw", Unknown}}, {{"gw", No}}, {{"gw", Yes}},
		{{"gw", No}, {"t", Unknown}}, {{"gw", No}, {"t", No}}, {{"gw", No}, {"t", Yes}}}
	seen := 0
	for past, before := range pasts {
		for _, leader := range []Tri{Unknown, No, Yes} {
			for _, outside := range outsides {
				for peers := range 4 {
					results := make([]ProbeResult, peers)
					for {
						seen++
						checkJudgement(t, past, before, leader, outside, results)
						if !next(results) {
							break
						}
					}
				}
			}
		}
	}
	if want := len(pasts) * 3 * len(outsides) * (1 + 4 + 16 + 64); seen != want {
		t.Errorf("walked %d observations, want %d", seen, want)
	}
}

// next counts results up in base 4 and says whether there is another one.
func next(results []ProbeResult) bool {
	for i := range results {
		if results[i] < ProbeSilent {
			results[i]++
			return true
		}
		results[i] = ProbeUnknown
	}
	return false
}

func observed(leader Tri, outside []Outside, results []ProbeResult) Connectivity {
	c := Connectivity{Self: "node0", Managers: []string{"node0"}, RaftLeader: leader,
		Contacts: map[string]Contact{}, Fresh: time.Second, Outside: outside}
	for i, r := range results {
		name := fmt.Sprintf("node%d", i+1)
		c.Managers = append(c.Managers, name)
		c.Contacts[name] = unheard(r, noon)
		if r == ProbeAnswered {
			c.Contacts[name] = Contact{}.Next(noon, r)
		}
	}
	return c
}

func checkJudgement(t *testing.T, past string, before Judgement, leader Tri, outside []Outside, results []ProbeResult) {
	t.Helper()
	got := observed(leader, outside, results).Judge(noon, after, before)
	at := fmt.Sprintf("after %s, leader %s, outside %v, peers %v: %s (%s)", past, leader, outside, results, got.Verdict, got.Reason)

	count := func(r ProbeResult) (n int) {
		for _, x := range results {
			if x == r {
				n++
			}
		}
		return n
	}
	answered, unknown := 1+count(ProbeAnswered), count(ProbeUnknown)
	majority := answered*2 > len(results)+1
	fallen := got.Verdict == Minority || got.Verdict == Isolated

	if !slices.Contains(worse, got.Verdict) || got.Reason == "" {
		t.Errorf("%s: no verdict or no reason", at)
	}
	if len(got.Reached) != answered || len(got.Reached)+len(got.Missing) != len(results)+1 {
		t.Errorf("%s: reached %v, missing %v", at, got.Reached, got.Missing)
	}
	if fallen && (before.with.IsZero() || noon.Sub(before.with) < after) {
		t.Errorf("%s: minority_after has not passed", at)
	}
	if fallen && (majority || leader != No) {
		t.Errorf("%s: a majority answers, or Consul may have a leader", at)
	}
	if fallen && (answered+unknown)*2 > len(results)+1 {
		t.Errorf("%s: those not known could be a majority", at)
	}
	if got.Verdict == Majority && !majority && leader != Yes {
		t.Errorf("%s: there is no majority", at)
	}
	if got.Verdict == Isolated && (len(outside) == 0 || answered > 1 || count(ProbeRefused) > 0 ||
		slices.ContainsFunc(outside, func(o Outside) bool { return o.Reached != No })) {
		t.Errorf("%s: something was reached, or may have been", at)
	}
	if got.fallen != (got.Verdict != Majority && (before.fallen || fallen)) {
		t.Errorf("%s: forgot, or made up, a minority", at)
	}
	rank := slices.Index(worse, got.Verdict)
	for i := range results {
		better := slices.Clone(results)
		better[i] = ProbeAnswered
		if b := observed(leader, outside, better).Judge(noon, after, before); slices.Index(worse, b.Verdict) > rank {
			t.Errorf("%s: is %s when node%d answers", at, b.Verdict, i+1)
		}
	}
	if b := observed(Yes, outside, results).Judge(noon, after, before); b.Verdict != Majority {
		t.Errorf("%s: is %s when Consul has a leader", at, b.Verdict)
	}
}

// what one round of a node of three shows: the others' answers to its probes, the
// agent's word on Consul, and when Consul's leader was last heard, in rounds ago.
type round struct {
	node2, node3 ProbeResult
	leader       Tri
	heard        int
}

// TestJudgeSequences plays every sequence of six rounds, a second each, and
// compares the verdict with the plain meaning of the words: in the minority is who
// is cut off now, has found the others silent twice, and has had no sign of the
// majority for three seconds.
func TestJudgeSequences(t *testing.T) {
	const rounds, lasts = 6, 3
	kinds := []round{
		{ProbeAnswered, ProbeSilent, No, 0},
		{ProbeSilent, ProbeSilent, No, 0},
		{ProbeUnknown, ProbeSilent, No, 0},
		{ProbeSilent, ProbeSilent, Yes, 0},
		{ProbeSilent, ProbeSilent, Yes, 2}, // it has gone, and the agent does not know
		{ProbeSilent, ProbeSilent, Unknown, 0},
	}
	played, fell := 0, 0
	sequence := make([]int, rounds)
	for {
		j, contacts, sign, silent := Judgement{}, map[string]Contact{}, -1, 0
		for i, kind := range sequence {
			r, now := kinds[kind], noon.Add(time.Duration(i)*time.Second)
			contacts["node2"], contacts["node3"] = contacts["node2"].Next(now, r.node2), contacts["node3"].Next(now, r.node3)
			c := Connectivity{Self: "node1", Managers: []string{"node1", "node2", "node3"}, RaftLeader: r.leader,
				LeaderHeard: now.Add(-time.Duration(r.heard) * time.Second), Contacts: contacts, Fresh: 2 * time.Second}
			j = c.Judge(now, lasts*time.Second, j)

			isCut := r.leader == No && r.node2 != ProbeAnswered && r.node2 != ProbeUnknown
			switch {
			case r.leader == Yes:
				sign = max(sign, i-r.heard)
			case !isCut || i == 0:
				sign = i
			}
			if i == 0 {
				sign = 0 // nobody knows of the time before
			}
			if silent++; r.node2 == ProbeAnswered {
				silent = 0
			}
			want := isCut && i-sign >= lasts && silent >= 2
			if got := j.Verdict == Minority; got != want {
				t.Fatalf("round %d of %v: %s (%s), want in the minority: %v", i, sequence, j.Verdict, j.Reason, want)
			}
			if want {
				fell++
			}
		}
		played++
		if !countUp(sequence, len(kinds)) {
			break
		}
	}
	if played != 6*6*6*6*6*6 || fell == 0 {
		t.Errorf("played %d sequences, %d times in the minority", played, fell)
	}
}

// countUp counts digits up in a base and says whether there is another number.
func countUp(digits []int, base int) bool {
	for i := range digits {
		if digits[i]++; digits[i] < base {
			return true
		}
		digits[i] = 0
	}
	return false
}
