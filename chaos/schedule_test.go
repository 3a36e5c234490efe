package chaos

import (
	"math/rand/v2"
	"reflect"
	"testing"
)

func rounds(seed uint64, n int, root bool) (list [][]Step) {
	random := rand.New(rand.NewPCG(seed, 0))
	for range n {
		list = append(list, draw(random, root))
	}
	return list
}

func TestASeedIsASchedule(t *testing.T) {
	if !reflect.DeepEqual(rounds(7, 50, true), rounds(7, 50, true)) {
		t.Error("one seed, two schedules")
	}
	if reflect.DeepEqual(rounds(7, 50, true), rounds(8, 50, true)) {
		t.Error("two seeds, one schedule")
	}
}

// Every kind is drawn sooner or later, by root; nobody else draws what needs root.
// Each can be done, and ends.
func TestDraw(t *testing.T) {
	for _, root := range []bool{true, false} {
		seen := make(map[Kind]int)
		strikes := make(map[Strike]bool)
		for _, round := range rounds(1, 1000, root) {
			for _, s := range round {
				seen[s.Kind]++
				strikes[s.Strike] = true
				if s.Hold > 13*1e9 || s.Gap > 4*1e9 || acts()[s.Kind] == nil {
					t.Fatalf("%+v", s)
				}
			}
		}
		for _, d := range kinds {
			if may := root || !d.needRoot; (seen[d.kind] > 0) != may {
				t.Errorf("root %t: %s was drawn %d times", root, d.kind, seen[d.kind])
			}
		}
		if strikes[StrikeIsolate] != root {
			t.Errorf("root %t: strikes %v", root, strikes)
		}
	}
}
