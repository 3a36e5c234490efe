// Package timeline tells the record of a change of active as a story: what was
// detected, who answered, who won and why, and when writes went on, in
// milliseconds since the fault that was the cause.
package timeline

import (
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/history"
)

// Fault is what was done to a cluster.
type Fault struct {
	Title     string
	At        time.Time // just before it was done
	Active    string    // the active node at that time
	Epoch     cluster.Epoch
	Restarted time.Time // when the node was started again; zero: by itself
}

// Change is one change of active, and the fault that it followed.
type Change struct {
	Fault Fault
	history.Change
	Wasted int // elections before, whose winner did not become writable
	Later  int // elections after, which nobody asked for
}

// Read finds the change that followed a fault in the events, oldest first, up to
// the next fault at until. Events of other kinds are ignored. An error means that
// an event cannot be understood.
func Read(f Fault, events []cluster.Event, until time.Time) (Change, error) {
	c := Change{Fault: f}
	changes, err := history.Changes(events)
	if err != nil {
		return c, fmt.Errorf("read the events: %w", err)
	}
	for _, h := range changes {
		if at, ok := h.At(history.Writable); ok && h.Epoch > f.Epoch && at.Before(until) {
			c.Change = h
			break
		}
	}
	for _, e := range events {
		if e.Kind != cluster.EventElected || e.At.Before(f.At) || !e.At.Before(until) {
			continue
		}
		if c.Winner == "" || e.Epoch < c.Epoch {
			c.Wasted++
		} else if e.Epoch > c.Epoch {
			c.Later++
		}
	}
	// What comes after has no place in the waterfall of the outage.
	c.Steps = slices.DeleteFunc(c.Steps, func(s history.Step) bool { return s.Name == history.Active || s.Name == history.Following })
	return c, nil
}

// Since returns the time from the fault to a step; false where there is none.
func (c Change) Since(step string) (time.Duration, bool) {
	at, ok := c.At(step)
	return at.Sub(c.Fault.At), ok
}
