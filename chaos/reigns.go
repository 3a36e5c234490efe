package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// reign is the time in which one database acknowledged writes on one timeline.
type reign struct {
	node, timeline string
	first          Op            // that was acknowledged
	last           Op            // the acknowledged one that was called last
	from           time.Duration // first.Return
	to             time.Duration // last.Call
}

// reigns returns them by their beginning.
func reigns(ops []Op) []reign {
	type key struct{ node, timeline string }
	all := make(map[key]reign)
	for _, o := range ops {
		if !o.acknowledged() {
			continue
		}
		k := key{o.Node, o.Timeline}
		r, ok := all[k]
		if !ok {
			r = reign{node: o.Node, timeline: o.Timeline, first: o, last: o, from: o.Return, to: o.Call}
		}
		if o.Return < r.from {
			r.first, r.from = o, o.Return
		}
		if o.Call > r.to {
			r.last, r.to = o, o.Call
		}
		all[k] = r
	}
	var list []reign
	for _, r := range all {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b reign) int { return cmp.Compare(a.from, b.from) })
	return list
}

// TwoWriters returns for how long two databases acknowledged writes, and a
// violation for each pair of them: one did so for a write that was called after
// the other, which came after it, had acknowledged one.
func TwoWriters(ops []Op) (total time.Duration, found []Violation) {
	list := reigns(ops)
	for i, a := range list {
		for _, b := range list[i+1:] {
			if overlap := min(a.to, b.to) - b.from; overlap > 0 {
				total += overlap
				found = append(found, Violation{Kind: "two writers", Message: fmt.Sprintf(
					"%s on timeline %s and %s on timeline %s both acknowledged writes for %s", a.node, a.timeline, b.node, b.timeline, overlap),
					History: []Op{b.first, a.last}})
			}
		}
	}
	return total, found
}

// outage returns the longest time between from and to without an acknowledged
// write.
func outage(ops []Op, from, to time.Duration) time.Duration {
	acks := []time.Duration{from, to}
	for _, o := range ops {
		if o.acknowledged() && o.Return > from && o.Return < to {
			acks = append(acks, o.Return)
		}
	}
	slices.Sort(acks)
	var longest time.Duration
	for i := 1; i < len(acks); i++ {
		longest = max(longest, acks[i]-acks[i-1])
	}
	return longest
}
