package cluster

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Event is one entry of the cluster's history.
type Event struct {
	ID      string          `json:"id"` // sorts by time; tells repeats apart
	At      time.Time       `json:"at"` // wall clock of Node
	Node    string          `json:"node"`
	Epoch   Epoch           `json:"epoch"`
	Kind    string          `json:"kind"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data,omitempty"` // by Kind: see below
}

// The kinds of events, and what their Data is.
const (
	EventState       = "state"       // StateChange
	EventLost        = "lost"        // Loss: the lock is free, told by each node that sees it
	EventElected     = "elected"     // Election
	EventBorrowed    = "borrowed"    // none: a node that could not be named has taken the WAL that it lacked
	EventLock        = "lock"        // none
	EventPromoted    = "promoted"    // Position: where the new timeline begins
	EventWritable    = "writable"    // Quorum: who confirms commits
	EventFollowing   = "following"   // Position: a standby streams from the active node
	EventHandOver    = "handover"    // HandOver
	EventFailback    = "failback"    // none
	EventRewind      = "rewind"      // none
	EventClone       = "clone"       // none
	EventVerdict     = "verdict"     // VerdictReport: a node is cut off, or no longer
	EventMinority    = "minority"    // VerdictReport: a node serves its part of the cluster
	EventHeal        = "heal"        // whose database goes on
	EventDivergence  = "divergence"  // summary of an export
	EventPause       = "pause"       // none
	EventResume      = "resume"      // none
	EventOptions     = "options"     // []OptionChange
	EventJoined      = "joined"      // Node
	EventCertificate = "certificate" // description of a node's new one
	EventRemoved     = "removed"     // none
)

// StateChange is the Data of EventState.
type StateChange struct {
	From   State  `json:"from"`
	To     State  `json:"to"`
	Detail string `json:"detail,omitempty"` // what was observed; see Decision
}

// Loss is the Data of EventLost.
type Loss struct {
	Node string    `json:"node"` // that held the lock
	Seen time.Time `json:"seen"` // when the lock was seen to be free
	Why  string    `json:"why"`
}

// Election is the Data of EventElected.
type Election struct {
	From     string    `json:"from"` // who was named before
	Winner   string    `json:"winner"`
	Passed   []Passed  `json:"passed"`
	Answers  []Answer  `json:"answers"`
	Silent   []Passed  `json:"silent,omitempty"` // who gave no answer, and why
	Detected time.Time `json:"detected"`         // when the election began
	AskedMs  int64     `json:"asked_ms"`         // until the answers were enough
}

// HandOver is the Data of EventHandOver.
type HandOver struct {
	To  string `json:"to,omitempty"` // empty: the best standby
	Why string `json:"why"`
}

// OptionChange is one option that an operator has changed.
type OptionChange struct {
	Node string `json:"node,omitempty"` // empty: of the cluster
	Name string `json:"name"`
	Old  string `json:"old"` // empty: the default, or the cluster's
	New  string `json:"new"`
}

func (c OptionChange) String() string {
	where := ""
	if c.Node != "" {
		where = " of " + c.Node
	}
	return fmt.Sprintf("%s%s: %s -> %s", c.Name, where, cmp.Or(c.Old, "default"), cmp.Or(c.New, "default"))
}

// Changed lists in which options the new ones differ from the old, by name. Node
// is empty for those of the cluster.
func Changed(node string, before, after Options) (list []OptionChange) {
	names := slices.Collect(maps.Keys(before))
	names = slices.AppendSeq(names, maps.Keys(after))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if before[name] != after[name] {
			list = append(list, OptionChange{node, name, before[name], after[name]})
		}
	}
	return list
}

// Undo returns the options, by node and under the empty name those of the cluster,
// that take changes back. An option that is not any more what such a change made of it
// is an error, and so is a node that is no member.
func Undo(v View, changes []OptionChange) (map[string]Options, error) {
	back := map[string]Options{}
	for _, c := range changes {
		now := v.Info.Options
		if c.Node != "" {
			n, member := v.Nodes[c.Node]
			if !member {
				return nil, fmt.Errorf("%s is no member any more", c.Node)
			}
			now = n.Options
		}
		if now[c.Name] != c.New {
			return nil, fmt.Errorf("%s has been changed since, and is %s now", c.Name, cmp.Or(now[c.Name], "default"))
		}
		if back[c.Node] == nil {
			back[c.Node] = Options{}
		}
		back[c.Node][c.Name] = c.Old
	}
	return back, nil
}

// serfHealth is Consul's own check of a host.
const serfHealth = "serfHealth"

// WhyLost tells why a node has lost the lock, by the checks of it that fail and
// what they say. A node that does not answer any more cannot tell itself.
func WhyLost(node string, failing map[string]string) string {
	var said []string
	for _, c := range SessionChecks() {
		if output, fails := failing[string(c)]; fails {
			said = append(said, strings.TrimSuffix(fmt.Sprintf("its check %s fails: %s", c, firstLine(output)), ": "))
		}
	}
	if _, unheard := failing[serfHealth]; unheard {
		said = append(said, "Consul's servers do not hear it")
	}
	if len(said) == 0 {
		return node + " did not renew its session, though no check of it fails: it hangs, is cut off, or gave the lock back"
	}
	return node + " lost the lock: " + strings.Join(said, "; ")
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
