package probe

import (
	"slices"
	"time"
)

// Ack is one acknowledged row.
type Ack struct {
	ID       int64
	Sent, At time.Time // when it was sent and acknowledged, with monotonic readings
	Node     string    // that acknowledged it
	Timeline string    // on which that node wrote then, as PostgreSQL names it
}

// Journal is what a writer did. Every id is in exactly one of the three lists,
// or was under way when the journal was read.
type Journal struct {
	Writer        string    // its name in the rows
	Began         time.Time // of the first attempt
	First, Next   int64     // ids from First to below Next were sent
	Acks          []Ack     // ascending, by id and by time
	Indeterminate []int64   // may or may not be there
	Refused       []int64   // the server said that they are not there
}

// Gap is a time without an acknowledgement.
type Gap struct {
	From, To      time.Time
	Before, After string // nodes of the acknowledgements at its ends; empty: there was none
}

// Length is how long the gap was.
func (g Gap) Length() time.Duration { return g.To.Sub(g.From) }

// Longest returns the longest time without an acknowledgement of which at least
// a part lies between from and to. One that began before from counts in full; the
// one under way at to ends there, because what comes later is not of this time. The
// one before the first acknowledgement begins with the journal. It is zero where
// nothing was measured.
func (j Journal) Longest(from, to time.Time) Gap {
	longest := Gap{From: from, To: from}
	if j.Began.IsZero() {
		return longest
	}
	last := Ack{At: j.Began}
	consider := func(next Ack) {
		g := Gap{From: last.At, To: next.At, Before: last.Node, After: next.Node}
		if g.To.After(to) {
			g.To, g.After = to, ""
		}
		if g.To.After(from) && g.From.Before(to) && g.Length() > longest.Length() {
			longest = g
		}
		last = next
	}
	for _, a := range j.Acks {
		consider(a)
	}
	if last.At.Before(to) {
		consider(Ack{At: to})
	}
	return longest
}

// Confirmed returns the acknowledged writes, with their times since a moment.
func (j Journal) Confirmed(since time.Time) []Confirmed {
	var writes []Confirmed
	for _, a := range j.Acks {
		writes = append(writes, Confirmed{a.Node, a.Timeline, a.Sent.Sub(since), a.At.Sub(since)})
	}
	return writes
}

// Discount makes indeterminate what one node acknowledged between two moments on
// another timeline than the given one: a part of the cluster that is cut off
// promises nothing for the time when it is whole again. It returns how many rows
// that are.
func (j *Journal) Discount(node, timeline string, from, to time.Time) int {
	before := len(j.Acks)
	j.Acks = slices.DeleteFunc(j.Acks, func(a Ack) bool {
		out := a.Node == node && a.Timeline != timeline && a.At.After(from) && a.At.Before(to)
		if out {
			j.Indeterminate = append(j.Indeterminate, a.ID)
		}
		return out
	})
	return before - len(j.Acks)
}

// Summary are the figures of a series of measurements.
type Summary struct {
	Median, Min, Max time.Duration
}

// Summarize returns the figures of a series; zero for an empty one.
func Summarize(series []time.Duration) Summary {
	if len(series) == 0 {
		return Summary{}
	}
	return Summary{Median: Median(series), Min: slices.Min(series), Max: slices.Max(series)}
}

// Median returns the middle of a series, or the mean of the middle two. The
// series is not empty.
func Median[T time.Duration | float64](series []T) T {
	s := slices.Sorted(slices.Values(series))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
