// Package history makes one record of each change of active out of the events of
// a cluster: what was observed and by whom, who answered the election with which
// position, who was passed over, who won and why, and when each step was done.
package history

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// The names of steps, in their order.
const (
	Detected  = "detected" // the first sign that the old active is active no more, or is asked to hand over
	Elected   = "elected"
	Locked    = "locked"
	Promoted  = "promoted"
	Writable  = "writable"
	Active    = "active"    // the leader units are started
	Following = "following" // a standby streams from the new active
)

// Step is one thing that happened, on a node. Times are of the node's own clock.
type Step struct {
	Name    string    `json:"name"`
	Node    string    `json:"node"`
	At      time.Time `json:"at"`
	SinceMs int64     `json:"since_ms"` // since the first sign
}

// Sighting is what one node observed of the end of the old active.
type Sighting struct {
	Node string    `json:"node"`
	At   time.Time `json:"at"`
	What string    `json:"what"`
}

// Return says how a node came back as a standby of the new active.
type Return struct {
	Node    string    `json:"node"`
	How     string    `json:"how,omitempty"` // rewind or clone; empty: it just followed
	Began   time.Time `json:"began,omitzero"`
	Standby time.Time `json:"standby,omitzero"` // zero: it has not come back
}

// Attempt is an election whose winner did not become writable.
type Attempt struct {
	Epoch  cluster.Epoch `json:"epoch"`
	Winner string        `json:"winner"`
	Reason string        `json:"reason"`
}

// Change is one change of active.
type Change struct {
	Epoch    cluster.Epoch    `json:"epoch"`            // given to Winner
	From     string           `json:"from,omitempty"`   // active before; empty: nobody
	Winner   string           `json:"winner,omitempty"` // empty: nobody has become writable yet
	Asked    bool             `json:"handed_over"`      // From held the election itself
	Why      string           `json:"why"`              // why From is active no more
	Seen     []Sighting       `json:"seen,omitempty"`
	By       string           `json:"by,omitempty"` // who held the election
	Reason   string           `json:"reason,omitempty"`
	Answers  []cluster.Answer `json:"answers,omitempty"` // by name
	Passed   []cluster.Passed `json:"passed,omitempty"`
	Silent   []cluster.Passed `json:"silent,omitempty"` // who gave no answer, and why
	Attempts []Attempt        `json:"attempts,omitempty"`
	Steps    []Step           `json:"steps"`
	Start    cluster.Position `json:"start,omitzero"`  // where the new timeline began
	Quorum   cluster.Quorum   `json:"quorum,omitzero"` // who confirms commits from then on
	Returns  []Return         `json:"returns,omitempty"`
	OutageMs int64            `json:"outage_ms"` // from the first sign until Writable; a client may have waited before the first sign
}

// At returns when a step was done first; false where it was not.
func (c Change) At(step string) (time.Time, bool) {
	for _, s := range c.Steps {
		if s.Name == step {
			return s.At, true
		}
	}
	return time.Time{}, false
}

// Fate says what the election thought of an answer: elected, or why not.
func (c Change) Fate(node string) string {
	if node == c.Winner {
		return "elected"
	}
	for _, p := range c.Passed {
		if p.Node == node {
			return p.Reason
		}
	}
	return ""
}

// Return returns how a node came back; Standby is zero if it did not.
func (c Change) Return(node string) Return {
	for _, r := range c.Returns {
		if r.Node == node {
			return r
		}
	}
	return Return{Node: node}
}

// Changes returns the changes of active that the events tell of, oldest first.
// The events are in their order. The last change may not have come to its end. An
// event that cannot be understood is left out, and is in the error; the changes
// are good all the same.
func Changes(events []cluster.Event) ([]Change, error) {
	var failed []error
	windows := split(events)
	changes := make([]Change, 0, len(windows))
	for i, w := range windows {
		if i+1 < len(windows) {
			w.until = windows[i+1].elected
		}
		c, err := w.read(events)
		changes = append(changes, c)
		failed = append(failed, err)
	}
	return changes, errors.Join(failed...)
}

// window is where in the history the events of one change are.
type window struct {
	before  cluster.Epoch // of the change before; zero: none is known
	old     string        // its winner
	after   time.Time     // its end
	epoch   cluster.Epoch
	winner  string
	elected time.Time // when its first election began
	until   time.Time // the election of the next change; zero: there is none
}

// split finds the epochs that somebody became writable in, and the last election
// if nobody has since.
func split(events []cluster.Event) (list []window) {
	var pending window
	var last window
	for _, e := range events {
		switch {
		case e.Kind == cluster.EventElected && e.Epoch > last.epoch:
			var d cluster.Election
			if pending.elected.IsZero() {
				pending.elected = e.At
				if json.Unmarshal(e.Data, &d) == nil && !d.Detected.IsZero() {
					pending.elected = d.Detected
				}
			}
			pending.epoch = e.Epoch
		case e.Kind == cluster.EventWritable && e.Epoch > last.epoch:
			w := window{before: last.epoch, old: last.winner, after: last.after, epoch: e.Epoch, winner: e.Node, elected: pending.elected}
			if w.elected.IsZero() {
				w.elected = e.At
			}
			list = append(list, w)
			last, pending = window{epoch: e.Epoch, winner: e.Node, after: e.At}, window{}
		}
	}
	if pending.epoch > last.epoch {
		pending.before, pending.old, pending.after = last.epoch, last.winner, last.after
		list = append(list, pending)
	}
	return list
}

func (w window) read(events []cluster.Event) (Change, error) {
	c := Change{Epoch: w.epoch, From: w.old, Winner: w.winner}
	r := reader{window: w, Change: &c}
	var failed []error
	for _, e := range events {
		if err := r.take(e); err != nil {
			failed = append(failed, fmt.Errorf("read event %s of kind %s: %w", e.ID, e.Kind, err))
		}
	}
	r.finish()
	return c, errors.Join(failed...)
}

// reader fills in a change.
type reader struct {
	window
	*Change
	first    time.Time // sign
	handOver cluster.HandOver
	lost     string // why, in the words of a witness
	own      string // why, in the words of the old active
}

func (r *reader) take(e cluster.Event) error {
	if e.Epoch > r.before && e.Epoch <= r.epoch {
		if err := r.progress(e); err != nil {
			return err
		}
	}
	begun := !e.At.Before(r.after)
	if begun && e.Epoch <= r.epoch {
		if err := r.sign(e); err != nil {
			return err
		}
	}
	if begun && (r.until.IsZero() || e.At.Before(r.until)) {
		return r.comeback(e)
	}
	return nil
}

// progress reads what the election and its winner say.
func (r *reader) progress(e cluster.Event) error {
	_, done := r.At(Writable)
	switch {
	case e.Kind == cluster.EventElected:
		return r.election(e)
	case e.Epoch != r.epoch || e.Node != r.winner && r.winner != "":
	case e.Kind == cluster.EventLock && !done:
		r.step(Locked, e)
	case e.Kind == cluster.EventPromoted && !done:
		r.step(Promoted, e)
		return json.Unmarshal(e.Data, &r.Start)
	case e.Kind == cluster.EventWritable && !done:
		r.step(Writable, e)
		return json.Unmarshal(e.Data, &r.Quorum)
	}
	return nil
}

func (r *reader) election(e cluster.Event) error {
	var d cluster.Election
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return err
	}
	if r.From == "" {
		r.From = d.From
	}
	r.sighted(d.Detected)
	if e.Epoch != r.epoch {
		r.Attempts = append(r.Attempts, Attempt{e.Epoch, d.Winner, because(e.Message)})
		return nil
	}
	r.By, r.Reason, r.Answers, r.Passed, r.Silent = e.Node, because(e.Message), d.Answers, d.Passed, d.Silent
	slices.SortFunc(r.Answers, func(a, b cluster.Answer) int { return strings.Compare(a.Node, b.Node) })
	r.step(Elected, e)
	return nil
}

// sign reads what shows that the old active is active no more. If it is active
// after all, what came before was of an earlier trouble, which it got over.
func (r *reader) sign(e cluster.Event) error {
	if _, done := r.At(Writable); done {
		return nil
	}
	switch e.Kind {
	case cluster.EventLost:
		var d cluster.Loss
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		r.lost = d.Why
		r.see(e, d.Seen, d.Why)
	case cluster.EventHandOver:
		if err := json.Unmarshal(e.Data, &r.handOver); err != nil && len(e.Data) > 0 {
			return err
		}
		r.see(e, e.At, e.Message)
	case cluster.EventState:
		var d cluster.StateChange
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		if e.Node == r.old && d.To == cluster.Active {
			r.forget()
		} else if e.Node == r.old && (d.From == cluster.Active || d.From == cluster.Maintenance) {
			r.own = d.Detail
			r.see(e, e.At, strings.TrimSuffix(e.Message+" ("+d.Detail+")", " ()"))
		}
	case cluster.EventLock:
		if e.Epoch == r.before {
			r.forget()
		}
	case cluster.EventHeal, cluster.EventVerdict, cluster.EventMinority, cluster.EventBorrowed:
		r.Seen = append(r.Seen, Sighting{e.Node, e.At, e.Message})
	}
	return nil
}

func (r *reader) forget() {
	r.Seen, r.first, r.lost, r.own, r.handOver = nil, time.Time{}, "", "", cluster.HandOver{}
}

func (r *reader) see(e cluster.Event, at time.Time, what string) {
	r.Seen = append(r.Seen, Sighting{e.Node, at, what})
	r.sighted(at)
}

func (r *reader) sighted(at time.Time) {
	if r.first.IsZero() || at.Before(r.first) {
		r.first = at
	}
}

// comeback reads how the others became standbys of the winner.
func (r *reader) comeback(e cluster.Event) error {
	if e.Node == r.winner {
		if e.Kind == cluster.EventState && e.Epoch == r.epoch {
			var d cluster.StateChange
			if err := json.Unmarshal(e.Data, &d); err != nil {
				return err
			}
			if _, done := r.At(Active); d.To == cluster.Active && !done {
				r.step(Active, e)
			}
		}
		return nil
	}
	switch e.Kind {
	case cluster.EventRewind, cluster.EventClone:
		back := r.back(e.Node)
		back.How, back.Began = e.Kind, e.At
	case cluster.EventFollowing:
		if e.Epoch == r.epoch && !slices.ContainsFunc(r.Steps, func(s Step) bool { return s.Name == Following && s.Node == e.Node }) {
			r.Steps = append(r.Steps, Step{Name: Following, Node: e.Node, At: e.At})
		}
	case cluster.EventState:
		var d cluster.StateChange
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		back := r.back(e.Node)
		back.Standby = time.Time{}
		if d.To == cluster.Standby {
			back.Standby = e.At
		}
	}
	return nil
}

func (r *reader) back(node string) *Return {
	for i := range r.Returns {
		if r.Returns[i].Node == node {
			return &r.Returns[i]
		}
	}
	r.Returns = append(r.Returns, Return{Node: node})
	return &r.Returns[len(r.Returns)-1]
}

// step notes one, unless it is there: an attempt that is repeated counts from its
// last time on.
func (r *reader) step(name string, e cluster.Event) {
	node := e.Node
	if name == Elected && r.winner != "" {
		node = r.winner
	}
	for i, s := range r.Steps {
		if s.Name == name {
			r.Steps[i] = Step{Name: name, Node: node, At: e.At}
			return
		}
	}
	r.Steps = append(r.Steps, Step{Name: name, Node: node, At: e.At})
}

func (r *reader) finish() {
	r.Asked = r.By != "" && r.By == r.From && (r.handOver.Why != "" || slices.ContainsFunc(r.Passed, func(p cluster.Passed) bool { return p.Node == r.From }))
	switch {
	case r.Asked:
		r.Why = cmp.Or(r.handOver.Why, r.From+" handed over")
	case r.From == "":
		r.Why = "nobody was active before"
	default:
		r.Why = cmp.Or(r.lost, prefixed(r.From+": ", r.own), prefixed(r.From+" was to hand over, and did not name anybody: ", r.handOver.Why),
			"no event tells why "+r.From+" is active no more")
	}
	if !r.first.IsZero() {
		who := r.By
		for _, s := range r.Seen {
			if s.At.Equal(r.first) {
				who = s.Node
			}
		}
		r.Steps = slices.Insert(r.Steps, 0, Step{Name: Detected, Node: who, At: r.first})
	}
	if len(r.Steps) == 0 {
		return
	}
	slices.SortStableFunc(r.Seen, func(a, b Sighting) int { return a.At.Compare(b.At) })
	for i := range r.Steps {
		r.Steps[i].SinceMs = r.Steps[i].At.Sub(r.Steps[0].At).Milliseconds()
	}
	if at, ok := r.At(Writable); ok && r.From != "" {
		r.OutageMs = at.Sub(r.Steps[0].At).Milliseconds()
	}
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

// because takes the reason out of the message of an election, "NODE is to be
// active: REASON".
func because(message string) string {
	if _, reason, ok := strings.Cut(message, " is to be active: "); ok {
		return reason
	}
	return message
}
