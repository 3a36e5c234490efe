package handlerrunner

import (
	"slices"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// A timeline's number does not say whose it is: the epoch that made it does.
func TestLines(t *testing.T) {
	first, second, third := cluster.Line{Timeline: 2, Epoch: 1}, cluster.Line{Timeline: 3, Epoch: 2}, cluster.Line{Timeline: 3, Epoch: 3}
	for name, c := range map[string]struct {
		lines  []cluster.Line
		tl     cluster.Timeline
		leader []cluster.Line
		want   bool
	}{
		"nothing that broke off":                   {nil, 3, []cluster.Line{third}, false},
		"the same line":                            {[]cluster.Line{first}, 2, []cluster.Line{first, third}, false},
		"its own line, which the leader knows not": {[]cluster.Line{first, second}, 3, []cluster.Line{first, third}, true},
		"followed, but nothing was received of it": {[]cluster.Line{first, second}, 2, []cluster.Line{first, third}, false},
		"an older one, far behind the leader":      {[]cluster.Line{{Timeline: 2, Epoch: 2}}, 2, []cluster.Line{first, third}, true},
	} {
		d, db := durable{Lines: c.lines}, Database{Position: cluster.Position{Timeline: c.tl}}
		if got := doubled(cluster.Leader{Epoch: 3, Lines: c.leader}, d, db); got != c.want {
			t.Errorf("%s: doubled %v, want %v", name, got, c.want)
		}
	}
	// Who followed a promotion and has none of its WAL does not claim to know it.
	if on := (durable{Lines: []cluster.Line{first, second}}).on(2); !slices.Equal(on, []cluster.Line{first}) {
		t.Errorf("on %v, want %v alone", on, first)
	}
}

// A mended directory waits for the WAL of a promotion that the leader knows nothing of:
// it is mended anew.
func TestAstray(t *testing.T) {
	first, second, third := cluster.Line{Timeline: 2, Epoch: 1}, cluster.Line{Timeline: 3, Epoch: 2}, cluster.Line{Timeline: 4, Epoch: 3}
	for name, c := range map[string]struct {
		lines, leader []cluster.Line
		want          cluster.Tri
	}{
		"mended from the leader":                     {[]cluster.Line{first, third}, []cluster.Line{first, third}, cluster.Unknown},
		"from one that it goes on from":              {[]cluster.Line{first, second}, []cluster.Line{second, third}, cluster.Unknown},
		"from one that it knows nothing of":          {[]cluster.Line{first, second}, []cluster.Line{first, third}, cluster.Yes},
		"from one that every election knew of since": {nil, []cluster.Line{third}, cluster.Unknown},
	} {
		h := &Handler{Options: Options{Node: "b"}}
		h.durable.Lines = c.lines
		o := cluster.Observation{Mended: cluster.Yes}
		o.View.Leader = cluster.Leader{Node: "a", Epoch: 3, Ready: true, Held: true, Timeline: 4, Lines: c.leader}
		if got := h.diverged(t.Context(), o, Database{}); got != c.want {
			t.Errorf("%s: diverged %v, want %v", name, got, c.want)
		}
	}
}

// A standby whose WAL is gone, and which was seen to stream for a moment now and then,
// is stranded all the same.
func TestStranded(t *testing.T) {
	o := cluster.Observation{}
	o.View.Leader = cluster.Leader{Node: "a", Epoch: 3, Ready: true, Held: true}
	for name, c := range map[string]struct {
		streams func(look int) bool
		want    cluster.Tri
	}{
		"it never streams":            {func(int) bool { return false }, cluster.Yes},
		"it is let in and thrown out": {func(look int) bool { return look%3 == 0 }, cluster.Yes},
		"it streams":                  {func(int) bool { return true }, cluster.No},
		"it streams again":            {func(look int) bool { return look > 40 }, cluster.No},
	} {
		h := &Handler{Options: Options{Node: "b"}}
		now, got := time.Unix(0, 0), cluster.Unknown
		for look := range 2*int(strandedAfter/time.Second) + 2 {
			got = h.stranded(now, o, Database{Running: cluster.Yes, Streaming: c.streams(look)})
			now = now.Add(time.Second / 2)
		}
		if got != c.want {
			t.Errorf("%s: stranded %v, want %v", name, got, c.want)
		}
	}
}
