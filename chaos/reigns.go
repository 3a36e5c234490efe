package chaos

import (
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
)

// reigns returns the times in which databases acknowledged writes, and the
// operations that their First and Last are places of.
func reigns(ops []Op) ([]probe.Reign, []Op) {
	var acknowledged []Op
	var writes []probe.Confirmed
	for _, o := range ops {
		if o.acknowledged() {
			acknowledged = append(acknowledged, o)
			writes = append(writes, probe.Confirmed{Node: o.Node, Timeline: o.Timeline, Call: o.Call, Return: o.Return})
		}
	}
	return probe.Reigns(writes), acknowledged
}

// TwoWriters returns for how long two databases acknowledged writes, and a
// violation for each pair of them.
func TwoWriters(ops []Op) (total time.Duration, found []Violation) {
	list, writes := reigns(ops)
	for _, o := range probe.Overlaps(list) {
		total += o.Lasted
		found = append(found, Violation{Kind: "two writers", Message: fmt.Sprintf(
			"%s on timeline %s and %s on timeline %s both acknowledged writes for %s", o.A.Node, o.A.Timeline, o.B.Node, o.B.Timeline, o.Lasted),
			History: []Op{writes[o.B.First], writes[o.A.Last]}})
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
