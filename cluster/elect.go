package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Answer is what a node says when it is asked to detach for an epoch. It has
// promised, durably, to take no WAL of an earlier epoch, so its position is
// final: no older active can collect its acknowledgement any more.
type Answer struct {
	Node     string   `json:"node"`
	Epoch    Epoch    `json:"epoch"`    // the promise
	Position Position `json:"position"` // durable end of its WAL
	History  History  `json:"history,omitempty"`
	SystemID string   `json:"system_id"`
	Complete Tri      `json:"complete"`          // its data directory is a whole copy
	Problem  string   `json:"problem,omitempty"` // why it cannot be active now; empty: it can
	Files    Tri      `json:"files"`             // it has every file of the last active
	Seen     LSN      `json:"seen,omitempty"`    // end of the last active's WAL, as far as it was told

	// Line is the epoch of the promotion that made its timeline, unless that
	// node is known to have opened to clients on it; then zero.
	Line Epoch `json:"line,omitempty"`

	Side *Side      `json:"side,omitempty"`       // its WAL is that of a part that was cut off
	Last *LastWrite `json:"last_write,omitempty"` // looked for only where there is a Side; nil: not known

	Lines   []Line  `json:"lines,omitempty"`   // in a rally: all those that its WAL is on, see Line
	Verdict Verdict `json:"verdict,omitempty"` // in a rally: where its watcher says it is
	Serving bool    `json:"serving,omitempty"` // it serves its part, or is about to stop doing so: its position is not final
}

// Ballot is everything that an election looks at.
type Ballot struct {
	Epoch   Epoch // to be given to the winner
	View    View
	Answers []Answer
	Target  string   // of a hand-over: wins among equals
	Exclude []string // who must not win, such as the node that hands over
	Avoid   []string // who wins only if nobody else can; see Unconfirmed
	// Forced: an operator names Target, although acknowledged commits may be
	// missing there.
	Forced bool
}

// Passed is a node that did not win, and why.
type Passed struct {
	Node   string `json:"node"`
	Reason string `json:"reason"`
}

// Outcome is the result of Elect. No Winner means undecided: the reason says
// what is missing, and nobody may be made active.
type Outcome struct {
	Winner string   `json:"winner"`
	Reason string   `json:"reason"`
	Passed []Passed `json:"passed,omitempty"`

	Majority string `json:"-"` // a node in the majority that was reached; see ElectSide

	// Borrower would win, had it the WAL of Lender, who cannot.
	Borrower, Lender string `json:"-"`
}

// Elect chooses the node that is to be active, or nobody. It gives the same
// answer wherever it runs on the same ballot.
//
// Safety: the answers of a set that satisfies SyncSet.Enough contain one that
// holds every acknowledged commit, and positions on one line of timelines are
// totally ordered; so whoever is furthest holds them all. A winner is furthest
// among all that answered, or among some of them that are enough, electable or
// not: what others have beyond that was never acknowledged.
func Elect(b Ballot) Outcome {
	if b.Forced {
		return forced(b)
	}
	if avoid := b.avoided(); len(avoid) > 0 {
		others := b
		others.Exclude, others.Avoid = slices.Concat(b.Exclude, avoid), nil
		if out := Elect(others); out.Winner != "" {
			return out
		}
	}
	out := choose(b)
	if rest := b.published(); out.Winner == "" && len(rest.Answers) < len(b.Answers) {
		if of := choose(rest); of.Winner != "" {
			return of
		}
	}
	return out
}

// sidePatience is how many elections in a row may name a node that has served a part
// and did not come for the lock. Nobody else has what was written there.
const sidePatience = 5

// avoided is Avoid, but for those that have served a part, for a while.
func (b Ballot) avoided() []string {
	if b.View.NextMaster.Epoch > b.View.Leader.Epoch+sidePatience {
		return b.Avoid
	}
	return slices.DeleteFunc(slices.Clone(b.Avoid), func(n string) bool {
		return slices.ContainsFunc(b.Answers, func(a Answer) bool { return a.Node == n && a.Side != nil })
	})
}

// published is the ballot without those on the line of a promotion that broke off
// before it had published its sync set: nothing was acknowledged there. The others
// may have gone on from before it, and both sides are then off each other's line.
func (b Ballot) published() Ballot {
	if b.View.SyncMode() != Async {
		b.Answers = slices.DeleteFunc(slices.Clone(b.Answers), func(a Answer) bool { return a.Line > b.View.Sync.Epoch })
	}
	return b
}

// enough says that one of the nodes holds every acknowledged commit. The election
// for the epoch in force saw to it that the node which it named does; and until that
// one publishes a sync set of its own, nothing else is acknowledged.
func (b Ballot) enough(nodes []string) bool {
	named := b.View.NextMaster
	return b.View.Sync.Enough(nodes) || named.Epoch > b.View.Sync.Epoch && slices.Contains(nodes, named.Node)
}

// choose is Elect among those that may be avoided as well.
func choose(b Ballot) Outcome {
	v := voters(b)
	if i := slices.IndexFunc(b.Answers, Answer.serving); i >= 0 {
		return v.undecided(b.Answers[i].Node + " may still serve a part that was cut off, and have what goes on")
	}
	if len(v.sound) == 0 {
		return v.undecided("no node with a whole copy of the database has answered")
	}
	async := b.View.SyncMode() == Async
	if !async && !b.enough(v.heard) {
		return v.undecided(missing(b.View.Sync, v.heard))
	}
	if len(v.fit) == 0 {
		return v.undecided("no node that has answered can be active")
	}
	slices.SortFunc(v.fit, func(x, y Answer) int { return preference(b, x, y) })
	best, top := v.fit[0], v.sound[0]
	switch behind := int64(top.Position.LSN) - int64(best.Position.LSN); {
	case async:
		if lag := int64(v.seen()) - int64(best.Position.LSN); lag > b.View.Options("").Int("max_lag_on_failover") {
			return v.undecided(fmt.Sprintf("%s is %d bytes behind the last known position of the active, more than max_lag_on_failover", best.Node, lag))
		}
	case behind > 0 && !b.enough(v.within(best)):
		out := v.undecided(fmt.Sprintf("%s has %d bytes of WAL, perhaps acknowledged, that no electable node has", top.Node, behind))
		if best.Side == nil && top.Side == nil && (best.Line == 0 || best.Line == top.Line) {
			out.Borrower, out.Lender = best.Node, top.Node
		}
		return out
	}
	for _, a := range v.fit[1:] {
		v.pass(a.Node, why(b, best, a))
	}
	return Outcome{Winner: best.Node, Reason: fmt.Sprintf("%s is furthest, at %s", best.Node, best.Position), Passed: v.passed}
}

// forced names the target, if it is there and can be active at all.
func forced(b Ballot) Outcome {
	reason := "it has not answered"
	for _, a := range b.Answers {
		if a.Node != b.Target {
			continue
		}
		if reason = cmp.Or(unsound(b, a), unfit(b, a)); reason == "" {
			return Outcome{Winner: a.Node, Reason: fmt.Sprintf("an operator named %s, at %s, and accepts that acknowledged commits may be missing there", a.Node, a.Position)}
		}
	}
	return Outcome{Reason: "an operator named " + b.Target, Passed: []Passed{{b.Target, reason}}}
}

// pastForks bounds Assignment.Past. Who was away for longer learns the whole history
// from the active node itself.
const pastForks = 16

// Past is what is told in the Assignment of a node that has answered.
func (b Ballot) Past(node string) History {
	for _, a := range b.Answers {
		if a.Node == node {
			way := append(slices.Clone(a.History), Fork{a.Position.Timeline, a.Position.LSN})
			return way[max(0, len(way)-pastForks):]
		}
	}
	return nil
}

// Unconfirmed names the node that the last election named and that never opened
// to clients: it did not come for the lock, or failed on the way.
func Unconfirmed(v View) []string {
	if v.NextMaster.Node != "" && (v.NextMaster.Epoch > v.Leader.Epoch || v.Leader.Timeline == 0) {
		return []string{v.NextMaster.Node}
	}
	return nil
}

// electorate sorts the answers of a ballot: sound ones hold a whole copy on the
// line that the cluster goes on with, furthest first; fit ones can be active as
// well. Heard are those whose acknowledgements the furthest sound one has.
type electorate struct {
	sound, fit []Answer
	heard      []string
	passed     []Passed
}

func voters(b Ballot) *electorate {
	v := &electorate{}
	b.Answers = rejoined(b)
	tip, found := tipOf(b)
	for _, a := range b.Answers {
		switch reason := unsound(b, a); {
		case reason != "":
			v.pass(a.Node, reason)
			continue
		case !found || !tip.leads(a):
			v.pass(a.Node, fmt.Sprintf("its WAL at %s is not on the way to timeline %d", a.Position, tip.Position.Timeline))
		default:
			v.sound = append(v.sound, a)
		}
		if found && tip.attests(a) {
			v.heard = append(v.heard, a.Node)
		}
	}
	slices.SortFunc(v.sound, furthest)
	for _, a := range v.sound {
		if reason := unfit(b, a); reason != "" {
			v.pass(a.Node, reason)
		} else {
			v.fit = append(v.fit, a)
		}
	}
	return v
}

func (v *electorate) pass(node, reason string) { v.passed = append(v.passed, Passed{node, reason}) }

func (v *electorate) undecided(reason string) Outcome {
	return Outcome{Reason: reason, Passed: v.passed}
}

// within names the sound answers that have no WAL beyond a.
func (v *electorate) within(a Answer) (names []string) {
	for _, s := range v.sound {
		if s.Position.LSN <= a.Position.LSN {
			names = append(names, s.Node)
		}
	}
	return names
}

// seen is the furthest that the last active is known to have come.
func (v *electorate) seen() (lsn LSN) {
	for _, a := range v.sound {
		lsn = max(lsn, a.Seen, a.Position.LSN)
	}
	return lsn
}

func (a Answer) serving() bool { return a.Serving }

// Settled leaves out the answers of nodes that may still serve a part.
func Settled(answers []Answer) []Answer {
	return slices.DeleteFunc(slices.Clone(answers), Answer.serving)
}

// unsound tells why an answer proves nothing about acknowledged commits.
func unsound(b Ballot, a Answer) string {
	_, member := b.View.Nodes[a.Node]
	broken := BrokenOff(b.View, a)
	switch {
	case !member:
		return "it is not a member"
	case a.Epoch != b.Epoch:
		return fmt.Sprintf("it promised epoch %d, not %d", a.Epoch, b.Epoch)
	case a.Complete != Yes:
		return "its data directory is not a whole copy"
	case broken != "":
		return broken
	case b.View.Info != nil && a.SystemID != b.View.Info.SystemID:
		return "its database is another one, with system identifier " + a.SystemID
	}
	return ""
}

// BrokenOff tells of which promotion, that came to nothing, a node's WAL is. It may
// have a timeline of a number that the cluster's own line has, too. Empty: of none.
func BrokenOff(v View, a Answer) string {
	if a.Line > 0 && a.Line < v.Sync.Epoch && v.SyncMode() != Async {
		return fmt.Sprintf("its timeline %d is that of a promotion for epoch %d which broke off", a.Position.Timeline, a.Line)
	}
	return ""
}

// unfit tells why a node must not be active.
func unfit(b Ballot, a Answer) string {
	switch {
	case a.Problem != "":
		return a.Problem
	case b.View.Nodes[a.Node].Kind != Manager:
		return "it is a runner"
	case b.View.Options(a.Node).Bool("no_failover"):
		return "it has no_failover set"
	case b.View.Paused() && a.Node != cmp.Or(b.Target, b.View.NextMaster.Node):
		return "the cluster is paused"
	case slices.Contains(b.Exclude, a.Node):
		return "it hands over, or did not come when it was named"
	}
	return ""
}

// furthest orders answers on one line of timelines.
func furthest(x, y Answer) int {
	return cmp.Or(beyond(x.Position, y.Position), strings.Compare(x.Node, y.Node))
}

// beyond orders positions on one line of timelines, the furthest first.
func beyond(x, y Position) int {
	return cmp.Or(cmp.Compare(y.Timeline, x.Timeline), cmp.Compare(y.LSN, x.LSN))
}

// preference orders electable nodes: WAL first, then what operators wish.
func preference(b Ballot, x, y Answer) int {
	wish := func(a Answer) int {
		switch a.Node {
		case b.Target:
			return 0
		case b.View.Options("").Get("preferred_primary"):
			return 1
		}
		return 2
	}
	return cmp.Or(
		cmp.Compare(y.Position.LSN, x.Position.LSN),
		cmp.Compare(wish(x), wish(y)),
		cmp.Compare(b.View.Options(y.Node).Int("priority"), b.View.Options(x.Node).Int("priority")),
		cmp.Compare(y.Files, x.Files),
		strings.Compare(x.Node, y.Node))
}

// why says in which respect the winner comes before another.
func why(b Ballot, won, lost Answer) string {
	if won.Position.LSN > lost.Position.LSN {
		return fmt.Sprintf("it is %d bytes behind %s", won.Position.LSN-lost.Position.LSN, won.Node)
	}
	if won.Node == b.Target {
		return won.Node + " was asked for"
	}
	return fmt.Sprintf("equal, but %s comes first by preference, priority, files or name", won.Node)
}

func missing(s SyncSet, answered []string) string {
	if s.K == 0 {
		return fmt.Sprintf("only %s is known to hold every acknowledged commit, and it has not answered", s.Leader)
	}
	return fmt.Sprintf("of the sync set %v, %d must answer so that one of them holds every acknowledged commit; only %v did",
		s.Members, s.Needed(), answered)
}
