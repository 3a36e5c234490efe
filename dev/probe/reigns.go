package probe

import (
	"cmp"
	"slices"
	"time"
)

// Confirmed is a write that a database has acknowledged. Both times are since one
// moment, on the monotonic clock.
type Confirmed struct {
	Node, Timeline string // the timeline as PostgreSQL names it
	Call, Return   time.Duration
}

// Reign is the time in which one database acknowledged writes on one timeline.
type Reign struct {
	Node, Timeline string
	First          int           // the write that was acknowledged first, by its place in the list
	Last           int           // the one that was called last
	From           time.Duration // the return of First
	To             time.Duration // the call of Last
}

// Reigns returns the reigns in a list of writes, by their beginning.
func Reigns(writes []Confirmed) []Reign {
	type key struct{ node, timeline string }
	all := make(map[key]Reign)
	for i, w := range writes {
		k := key{w.Node, w.Timeline}
		r, ok := all[k]
		if !ok {
			r = Reign{w.Node, w.Timeline, i, i, w.Return, w.Call}
		}
		if w.Return < r.From {
			r.First, r.From = i, w.Return
		}
		if w.Call > r.To {
			r.Last, r.To = i, w.Call
		}
		all[k] = r
	}
	var list []Reign
	for _, r := range all {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b Reign) int { return cmp.Compare(a.From, b.From) })
	return list
}

// Overlap is a time in which two databases acknowledged writes: A did so for a
// write that was called after B, whose reign began later, had acknowledged one.
type Overlap struct {
	A, B   Reign
	Lasted time.Duration
}

// Overlaps returns every overlap of two of the reigns, which are in the order of
// their beginning.
func Overlaps(reigns []Reign) []Overlap {
	var found []Overlap
	for i, a := range reigns {
		for _, b := range reigns[i+1:] {
			if lasted := min(a.To, b.To) - b.From; lasted > 0 {
				found = append(found, Overlap{a, b, lasted})
			}
		}
	}
	return found
}
