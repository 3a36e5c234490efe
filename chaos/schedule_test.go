package chaos

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/dev"
)

func rounds(seed uint64, n int, have means) (list [][]Step) {
	random := rand.New(rand.NewPCG(seed, 0))
	for range n {
		list = append(list, draw(random, lots(have, Kinds()), have))
	}
	return list
}

var all = means{root: true, clock: true}

func TestASeedIsASchedule(t *testing.T) {
	if !reflect.DeepEqual(rounds(7, 50, all), rounds(7, 50, all)) {
		t.Error("one seed, two schedules")
	}
	if reflect.DeepEqual(rounds(7, 50, all), rounds(8, 50, all)) {
		t.Error("two seeds, one schedule")
	}
}

// Every kind is drawn sooner or later where it can be done, and nowhere else. Each
// is one that there is, and ends.
func TestDraw(t *testing.T) {
	for _, have := range []means{all, {root: true}, {clock: true}, {}} {
		seen := make(map[Kind]int)
		strikes := make(map[Strike]bool)
		for _, round := range rounds(1, 1000, have) {
			for _, s := range round {
				seen[s.Kind]++
				strikes[s.Strike] = true
				if s.Hold > 13*time.Second || s.Gap > 4*time.Second || acts()[s.Kind] == nil {
					t.Fatalf("%+v", s)
				}
			}
		}
		for _, d := range kinds {
			if may := (have.root || !d.needs.root) && (have.clock || !d.needs.clock); (seen[d.kind] > 0) != may {
				t.Errorf("with %+v: %s was drawn %d times", have, d.kind, seen[d.kind])
			}
		}
		if strikes[StrikeIsolate] != have.root {
			t.Errorf("with %+v: strikes %v", have, strikes)
		}
	}
}

func TestOptions(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"as they are by themselves": {func(*Options) {}, ""},
		"no time":                   {func(o *Options) { o.For = 0 }, "--minutes"},
		"too few nodes":             {func(o *Options) { o.Nodes = 2 }, "at least 3"},
		"a fault that there is not": {func(o *Options) { o.Only = []string{"kill-node", "rain"} }, "--only rain"},
		"no fault":                  {func(o *Options) { o.Only = nil }, "nothing that can be done here"},
	} {
		o := Options{For: time.Minute, Nodes: 3, Only: Kinds()}
		c.change(&o)
		err := o.check()
		if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, dev.ErrUsage) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
