package cluster

import (
	"math/bits"
	"slices"
	"testing"
)

var four = []string{"a", "b", "c", "d"}

func subset(mask int) (names []string) {
	for i, n := range four {
		if mask&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}

// quorums gives every quorum over four nodes.
func quorums() (all []Quorum) {
	all = append(all, Quorum{})
	for mask := 1; mask < 1<<len(four); mask++ {
		for k := 1; k <= bits.OnesCount(uint(mask)); k++ {
			all = append(all, Quorum{subset(mask), k})
		}
	}
	return all
}

// covered is a deliberately dumb twin of Covered: it tries every group that can
// acknowledge against every group that satisfies an election.
func covered(s SyncSet, q Quorum) bool {
	for acked := range 1 << len(four) {
		who := subset(acked)
		if len(who) < q.K || len(without(who, q.Members...)) > 0 {
			continue
		}
		for heard := range 1 << len(four) {
			answered := subset(heard)
			meets := slices.ContainsFunc(answered, func(n string) bool { return slices.Contains(who, n) })
			if !slices.Contains(answered, s.Leader) && s.Enough(answered) && !meets {
				return false
			}
		}
	}
	return true
}

func TestCoveredAgreesWithItsTwin(t *testing.T) {
	for _, published := range quorums() {
		s := SyncSet{Epoch: 1, Leader: "x", Members: published.Members, K: published.K}
		for _, q := range quorums() {
			if got, want := s.Covered(q), covered(s, q); got && !want {
				t.Fatalf("%+v covers %s: %v, but an election could miss an acknowledged commit", s, q, got)
			}
		}
	}
}

// From every pair of quorums, step by step: what is published always covers
// what PostgreSQL waits for, and the end is reached.
func TestPlanSyncKeepsElectionsSafe(t *testing.T) {
	for _, from := range quorums() {
		for _, want := range quorums() {
			published := SyncSet{Epoch: 1, Leader: "x", Members: from.Members, K: from.K}
			effect, steps := from, 0
			for ; steps < 6; steps++ {
				step := PlanSync(published, effect, want, true)
				if step.Publish != nil {
					published = *step.Publish
				}
				if step.Apply != nil {
					effect = *step.Apply
				}
				if !covered(published, effect) {
					t.Fatalf("from %s to %s: %+v published over %s", from, want, published, effect)
				}
				if step.Publish == nil && step.Apply == nil {
					break
				}
			}
			if steps > 3 || !effect.Equal(want) || !sameSet(published.Members, want.Members) || published.K != want.K {
				t.Fatalf("from %s to %s: ended with %+v over %s after %d steps", from, want, published, effect, steps)
			}
		}
	}
}

func TestPlanSyncWaitsForWhatCameBefore(t *testing.T) {
	published := SyncSet{Epoch: 1, Leader: "x", Members: []string{"a", "b"}, K: 1}
	want := Quorum{[]string{"b"}, 1}
	step := PlanSync(published, want, want, false)
	if !step.Await || step.Publish != nil {
		t.Errorf("a member was dropped before the others had what it may have acknowledged: %+v", step)
	}
}

func TestDesired(t *testing.T) {
	for name, c := range map[string]struct {
		mode     SyncMode
		managers int
		standbys []string
		want     Quorum
	}{
		"trio":                         {Available, 3, []string{"b", "c"}, Quorum{[]string{"b", "c"}, 1}},
		"trio with one standby":        {Available, 3, []string{"b"}, Quorum{[]string{"b"}, 1}},
		"trio alone":                   {Available, 3, nil, Quorum{}},
		"trio alone, strict":           {Strict, 3, nil, Quorum{nil, 1}},
		"pair":                         {Available, 2, []string{"b"}, Quorum{[]string{"b"}, 1}},
		"five":                         {Available, 5, []string{"b", "c", "d", "e"}, Quorum{[]string{"b", "c", "d", "e"}, 2}},
		"five, one standby":            {Available, 5, []string{"b"}, Quorum{[]string{"b"}, 1}},
		"async":                        {Async, 3, []string{"b", "c"}, Quorum{}},
		"a single manager waits never": {Strict, 1, nil, Quorum{}},
	} {
		if got := Desired(c.mode, c.managers, c.standbys); !got.Equal(c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestOpening: a is named, and b was active.
func TestOpening(t *testing.T) {
	for name, c := range map[string]struct {
		mode     SyncMode
		standbys []string
		want     Quorum
	}{
		"trio: without the one that was active": {Available, []string{"b", "c"}, Quorum{[]string{"c"}, 1}},
		"pair: there is no other":               {Available, []string{"b"}, Quorum{[]string{"b"}, 1}},
		"five":                                  {Available, []string{"b", "c", "d", "e"}, Quorum{[]string{"c", "d", "e"}, 2}},
		"strict waits for any":                  {Strict, []string{"b", "c"}, Quorum{[]string{"b", "c"}, 1}},
		"async for nobody":                      {Async, []string{"b", "c"}, Quorum{}},
	} {
		v := View{
			Info:  &Info{Options: Options{"sync_mode": string(c.mode)}},
			Nodes: map[string]Node{"a": {Name: "a", Kind: Manager}},
			Sync:  SyncSet{Leader: "b", Members: []string{"a"}, K: 1},
		}
		for _, n := range c.standbys {
			v.Nodes[n] = Node{Name: n, Kind: Manager}
		}
		if got := Opening(v, c.standbys); !got.Equal(c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
