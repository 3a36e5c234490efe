// Package timeline turns the events of a cluster into the story of a change of
// active: what was detected, who answered, who won and why, and when writes went
// on, in milliseconds since the fault.
package timeline

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
)

// Fault is what was done to a cluster.
type Fault struct {
	Title     string
	At        time.Time // just before it was done
	Active    string    // the active node at that time
	Epoch     cluster.Epoch
	Restarted time.Time // when the node was started again; zero: by itself
}

// Step is one thing that happened, on a node.
type Step struct {
	Name string
	At   time.Time
	Node string
}

// The names of steps, in their order.
const (
	Detected = "detected" // an election begins, which may be that of a hand-over
	Elected  = "elected"
	Locked   = "locked"
	Promoted = "promoted"
	Writable = "writable"
)

// Rejoin says how a former active came back.
type Rejoin struct {
	Node    string
	How     string    // rewind or clone; empty: it just followed
	Began   time.Time // of How
	Standby time.Time // zero: it has not come back
}

// Change is one change of active.
type Change struct {
	Fault   Fault
	Epoch   cluster.Epoch // that was given to Winner
	Winner  string        // empty: nobody has become writable
	By      string        // who held the election
	Reason  string
	Asked   bool             // by an operator: it is a hand-over
	Answers []cluster.Answer // by name
	Passed  []cluster.Passed
	Wasted  int // elections before, whose winner did not become writable
	Later   int // elections after, which nobody asked for
	Steps   []Step
	Start   cluster.Position // where the new timeline began
	Quorum  cluster.Quorum   // who confirms commits from then on
	Rejoin  Rejoin
}

// election is the data of an event "elected"; see handlerrunner.
type election struct {
	Answers  []cluster.Answer `json:"answers"`
	Passed   []cluster.Passed `json:"passed"`
	Detected time.Time        `json:"detected"`
}

// Read finds the change that followed a fault in the events, oldest first, up to
// the next fault at until. Events of other kinds are ignored. An error means that
// an event cannot be understood.
func Read(f Fault, events []registry.Event, until time.Time) (Change, error) {
	c := Change{Fault: f, Rejoin: Rejoin{Node: f.Active}}
	for _, e := range events {
		if e.Kind == "writable" && e.Epoch > f.Epoch && e.At.Before(until) {
			c.Winner, c.Epoch = e.Node, e.Epoch
			break
		}
	}
	for _, e := range events {
		if e.At.Before(f.At) || !e.At.Before(until) {
			continue
		}
		if err := c.read(e); err != nil {
			return c, fmt.Errorf("read event %s of kind %s: %w", e.ID, e.Kind, err)
		}
	}
	return c, nil
}

func (c *Change) read(e registry.Event) error {
	if e.Kind == "elected" && (c.Winner == "" || e.Epoch < c.Epoch) {
		c.Wasted++
	} else if e.Kind == "elected" && e.Epoch > c.Epoch {
		c.Later++
	}
	if e.Node == c.Rejoin.Node {
		if err := c.readRejoin(e); err != nil {
			return err
		}
	}
	if e.Kind == "handover" && e.Epoch == c.Fault.Epoch {
		c.Asked = true
	}
	if c.Winner == "" || e.Epoch != c.Epoch {
		return nil
	}
	switch e.Kind {
	case "elected":
		var d election
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		c.By, c.Reason, c.Answers, c.Passed = e.Node, because(e.Message), d.Answers, d.Passed
		slices.SortFunc(c.Answers, func(a, b cluster.Answer) int { return strings.Compare(a.Node, b.Node) })
		c.step(Detected, d.Detected, e.Node)
		c.step(Elected, e.At, c.Winner)
	case "lock":
		c.step(Locked, e.At, e.Node)
	case "promoted":
		c.step(Promoted, e.At, e.Node)
		return json.Unmarshal(e.Data, &c.Start)
	case "writable":
		c.step(Writable, e.At, e.Node)
		return json.Unmarshal(e.Data, &c.Quorum)
	}
	return nil
}

// step adds one, unless it is there: an attempt that is repeated counts from
// its last time on.
func (c *Change) step(name string, at time.Time, node string) {
	for i, s := range c.Steps {
		if s.Name == name {
			c.Steps[i] = Step{name, at, node}
			return
		}
	}
	c.Steps = append(c.Steps, Step{name, at, node})
}

// At returns the time from the fault to a step; false where there is none.
func (c Change) At(name string) (time.Duration, bool) {
	for _, s := range c.Steps {
		if s.Name == name {
			return s.At.Sub(c.Fault.At), true
		}
	}
	return 0, false
}

func (c *Change) readRejoin(e registry.Event) error {
	switch e.Kind {
	case "rewind", "clone":
		c.Rejoin.How, c.Rejoin.Began = e.Kind, e.At
	case "state":
		var d struct {
			To cluster.State `json:"to"`
		}
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		c.Rejoin.Standby = time.Time{}
		if d.To == cluster.Standby {
			c.Rejoin.Standby = e.At
		}
	}
	return nil
}

// because takes the reason out of the message of an election, "NODE is to be
// active: REASON".
func because(message string) string {
	if _, reason, ok := strings.Cut(message, " is to be active: "); ok {
		return reason
	}
	return message
}
