package probe

import (
	"testing"
	"time"
)

func TestOverlaps(t *testing.T) {
	write := func(node, timeline string, call, end int) Confirmed {
		return Confirmed{node, timeline, time.Duration(call), time.Duration(end)}
	}
	for name, c := range map[string]struct {
		writes []Confirmed
		want   time.Duration
	}{
		"nothing":                       {nil, 0},
		"one after the other":           {[]Confirmed{write("a", "1", 0, 1), write("b", "2", 5, 6)}, 0},
		"the first writes on":           {[]Confirmed{write("a", "1", 0, 1), write("b", "2", 5, 6), write("b", "2", 40, 41), write("a", "1", 16, 17)}, 10},
		"an answer that was late":       {[]Confirmed{write("a", "1", 0, 9), write("b", "2", 5, 6), write("b", "2", 40, 41)}, 0},
		"active again is another reign": {[]Confirmed{write("a", "1", 0, 1), write("b", "2", 5, 6), write("a", "3", 9, 10)}, 0},
	} {
		var total time.Duration
		for _, o := range Overlaps(Reigns(c.writes)) {
			total += o.Lasted
			if first, last := c.writes[o.B.First], c.writes[o.A.Last]; last.Call <= first.Return {
				t.Errorf("%s: %+v was not called after %+v was acknowledged", name, last, first)
			}
		}
		if total != c.want {
			t.Errorf("%s: %s, not %s", name, total, c.want)
		}
	}
}
