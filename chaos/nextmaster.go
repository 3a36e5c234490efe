package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Look is one consistent read of next-master. Times are since the run began.
type Look struct {
	From   string        `json:"from"` // the node whose agent was asked
	Call   time.Duration `json:"call_ns"`
	Return time.Duration `json:"return_ns"`
	Index  uint64        `json:"index"` // of its last change
	Node   string        `json:"node"`
	Epoch  cluster.Epoch `json:"epoch"`
}

func (l Look) String() string {
	return fmt.Sprintf("%.4fs - %.4fs by %s: index %d, epoch %d, %s", l.Call.Seconds(), l.Return.Seconds(), l.From, l.Index, l.Epoch, l.Node)
}

// Register checks next-master as a register whose every value has an index: an
// index has one value, a later index a greater epoch, and a read that began when
// another had ended does not see an earlier index. This is all that it takes to be
// linearizable, because the indexes say in which order it was written.
func Register(looks []Look) []Violation {
	var found []Violation
	bad := func(a, b Look, what string) {
		found = append(found, Violation{Kind: "next-master", Message: fmt.Sprintf("%s: %s; then %s", what, a, b)})
	}
	byIndex := slices.SortedStableFunc(slices.Values(looks), func(a, b Look) int { return cmp.Compare(a.Index, b.Index) })
	for i := 1; i < len(byIndex); i++ {
		a, b := byIndex[i-1], byIndex[i]
		switch {
		case a.Index == b.Index && (a.Node != b.Node || a.Epoch != b.Epoch):
			bad(a, b, "two values at one index")
		case a.Index < b.Index && a.Epoch >= b.Epoch:
			bad(a, b, "the epoch did not grow")
		}
	}
	// Of all reads that had ended before one began, the greatest index.
	calls := slices.SortedStableFunc(slices.Values(looks), func(a, b Look) int { return cmp.Compare(a.Call, b.Call) })
	ends := slices.SortedStableFunc(slices.Values(looks), func(a, b Look) int { return cmp.Compare(a.Return, b.Return) })
	var newest Look
	for _, l := range calls {
		for len(ends) > 0 && ends[0].Return < l.Call {
			if ends[0].Index > newest.Index {
				newest = ends[0]
			}
			ends = ends[1:]
		}
		if l.Index < newest.Index {
			bad(newest, l, "an older value was read")
		}
	}
	return found
}
