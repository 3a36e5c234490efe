package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// MinorityMode says what a node does that is cut off from the majority.
type MinorityMode string

// The minority modes: see the option minority_mode.
const (
	MinorityActive   MinorityMode = "active"
	MinorityReadOnly MinorityMode = "read-only"
	MinorityOff      MinorityMode = "off"
)

// HealMode says whose database goes on after a partition: see the option heal.
type HealMode string

// The heal modes.
const (
	HealMostRecent HealMode = "most-recent"
	HealMajority   HealMode = "majority"
)

// ClockSkew bounds how far the clocks of two nodes may be apart for their
// commit times to be compared, and how much later a commit must be to count.
const ClockSkew = 5 * time.Second

// TimelineGap is how many timelines a node that serves a minority passes over at
// the least. So its timeline is none that the majority makes meanwhile: PostgreSQL
// knows timelines by their number alone.
const TimelineGap = 16

// Side is a part of a cluster that was cut off and served by an active node of
// its own. What was written there is at risk until the cluster is whole again.
type Side struct {
	Leader string    `json:"leader"` // the node that served it
	Epoch  Epoch     `json:"epoch"`  // of the cluster, when the part was cut off
	Fork   Position  `json:"fork"`   // up to here its WAL is the cluster's
	Since  time.Time `json:"since"`
}

// Gap is how many timelines the named node passes over to serve a minority, from
// the one that it is on, and with them all up to the last that it has made so. Each
// manager has numbers of its own, in blocks of TimelineGap for each and one more: so
// two that serve parts make two timelines even where one of them is behind the other.
// A node that was removed keeps its numbers: it may be serving a part just now.
func (v View) Gap(node string, on, made Timeline) int {
	managers := v.Managers()
	for name := range v.Removed {
		if !slices.Contains(managers, name) {
			managers = append(managers, name)
		}
	}
	slices.Sort(managers)
	block := Timeline(TimelineGap * (len(managers) + 1))
	next := Timeline(TimelineGap * (slices.Index(managers, node) + 1))
	if past := max(on+TimelineGap, made); next <= past {
		next += ((past-next)/block + 1) * block
	}
	return int(next - on - 1)
}

// ElectSide chooses the node that serves a part of the cluster that is cut off,
// of the answers of every node in it. A node that serves it already stays; else
// the furthest does. Nobody is chosen while a node of the part is in the majority,
// or does not know yet. It asks for no acknowledged commits: the part is at risk
// whoever serves it.
func ElectSide(v View, answers []Answer) Outcome {
	e := &electorate{}
	for _, a := range answers {
		switch reason := unsuited(v, a); {
		case a.Verdict == Majority:
			return Outcome{Reason: a.Node + " is in the majority", Majority: a.Node}
		case a.Verdict != Minority:
			return Outcome{Reason: fmt.Sprintf("%s is not known to be in the minority: %s", a.Node, a.Verdict)}
		case reason != "" && !a.Serving:
			e.pass(a.Node, reason)
		default:
			e.fit = append(e.fit, a)
		}
	}
	if len(e.fit) == 0 {
		return e.undecided("no node in this part of the cluster can be active")
	}
	b := Ballot{View: v}
	slices.SortFunc(e.fit, func(x, y Answer) int {
		if x.Serving || y.Serving {
			return cmp.Or(compareTrue(x.Serving, y.Serving), compareTrue(x.leadsSide(), y.leadsSide()), latest(x, y), strings.Compare(x.Node, y.Node))
		}
		return cmp.Or(cmp.Compare(y.Position.Timeline, x.Position.Timeline), preference(b, x, y))
	})
	best := e.fit[0]
	for _, a := range e.fit[1:] {
		e.pass(a.Node, why(b, best, a))
	}
	return Outcome{Winner: best.Node, Reason: fmt.Sprintf("%s is furthest in this part of the cluster, at %s", best.Node, best.Position), Passed: e.passed}
}

// unsuited tells why a node cannot serve its part.
func unsuited(v View, a Answer) string {
	b := Ballot{View: v, Epoch: a.Epoch} // there is no promise to compare
	return cmp.Or(unsound(b, a), unfit(b, a))
}

// leadsSide says that the node serves its part, and is not only about to.
func (a Answer) leadsSide() bool { return a.Side != nil && a.Side.Leader == a.Node }

// compareTrue orders true before false.
func compareTrue(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return -1
	}
	return 1
}

// Of is the leader of the side, or empty where there is none.
func (s *Side) Of() string {
	if s == nil {
		return ""
	}
	return s.Leader
}

// LastWrite is when data on a node was last changed, after a fork.
type LastWrite struct {
	At    time.Time `json:"at"`             // when that was committed; zero: nothing was, since
	Clock time.Time `json:"clock"`          // of who wrote it, when it is compared; zero: not known
	Side  string    `json:"side,omitempty"` // leader of the part whose line it is; empty: the cluster's own

	// Took is how long it took to find out, up to the moment in which Clock was read.
	// Off is by how much Clock may be wrong: what the answer may have been under way.
	Took time.Duration `json:"took_ns"`
	Off  time.Duration `json:"off_ns,omitempty"`
}

// Heard completes what a node has told of its last write: it was asked at one time and
// its answer came at another, by the monotonic clock of who asks.
func (w LastWrite) Heard(asked, came time.Time) LastWrite {
	w.Off = max(0, came.Sub(asked)-w.Took)
	return w
}

// Later is the same, to be compared some time later.
func (w LastWrite) Later(by time.Duration) LastWrite {
	if !w.Clock.IsZero() {
		w.Clock = w.Clock.Add(by)
	}
	return w
}

// apart is by how much the clocks of two writers may be apart.
func (w LastWrite) apart(o LastWrite) time.Duration {
	return w.Clock.Sub(o.Clock).Abs() + w.Off + o.Off
}

// SideWins decides whose database goes on where two lines have both been
// written: the cluster's own, which holds what the majority acknowledged, or
// that of a part which was cut off. It is the one whose last transaction came
// later; but where that cannot be told, because a time is unknown, the two are
// too close, or the clocks are apart, the cluster's own goes on.
func SideWins(mode HealMode, own, side Answer) (bool, string) {
	switch {
	case mode == HealMajority:
		return false, "heal is majority"
	case own.Last == nil || side.Last == nil:
		return false, fmt.Sprintf("when %s and %s were last written is not known", own.Node, side.Node)
	case side.Last.At.IsZero():
		return false, "nothing was written on " + side.Node
	}
	apart, later := own.Last.apart(*side.Last), side.Last.At.Sub(own.Last.At)
	switch {
	case own.Last.At.IsZero():
		return true, "nothing was written on " + own.Node
	case own.Last.Clock.IsZero() || side.Last.Clock.IsZero():
		return false, fmt.Sprintf("by which clock %s and %s were last written is not known", own.Node, side.Node)
	case apart > ClockSkew:
		return false, fmt.Sprintf("the clocks of %s and %s may be %s apart, so their commits cannot be compared", own.Node, side.Node, apart.Round(100*time.Millisecond))
	}
	return later > ClockSkew, fmt.Sprintf("the last commit on %s was at %s, on %s at %s", own.Node, stamp(own.Last.At), side.Node, stamp(side.Last.At))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000") }

// rank orders parts by when they were last written. Where that cannot be told, or
// heal is majority, the one comes first that has most of the cluster's own.
func rank(mode HealMode, sides []Answer) {
	if len(sides) == 0 {
		return
	}
	first := slices.MinFunc(sides, func(x, y Answer) int { return cmp.Or(latest(x, y), furthest(x, y)) })
	alike := func(a Answer) bool {
		switch {
		case mode == HealMajority, a.Last == nil:
			return true
		case a.Last.At.IsZero():
			return false // nothing was written there, by whatever clock
		}
		known := !first.clock().IsZero() && !a.clock().IsZero()
		return !known || first.writtenAt().Sub(a.writtenAt()) <= ClockSkew || first.lastWrite().apart(a.lastWrite()) > ClockSkew
	}
	slices.SortFunc(sides, func(x, y Answer) int {
		return cmp.Or(compareTrue(alike(x), alike(y)), beyond(x.Side.Fork, y.Side.Fork), latest(x, y), furthest(x, y))
	})
}

// latest orders answers by their last write, the latest first.
func latest(x, y Answer) int { return y.writtenAt().Compare(x.writtenAt()) }

// writtenAt is when the node was last written; zero where that is not known, too.
func (a Answer) writtenAt() time.Time { return a.lastWrite().At }

// clock is that of the node when it answered; zero where that is not known.
func (a Answer) clock() time.Time { return a.lastWrite().Clock }

func (a Answer) lastWrite() (w LastWrite) {
	if a.Last != nil {
		w = *a.Last
	}
	return w
}

// Forked returns where the lines of the answers part, at the earliest; not ok
// where no answer comes from a part that was cut off.
func Forked(answers []Answer) (at LSN, ok bool) {
	at = ^LSN(0)
	for i, a := range answers {
		if a.Side != nil {
			at, ok = min(at, a.Side.Fork.LSN), true
		}
		for _, o := range answers[:i] {
			if a.Position.LSN > 0 && o.Position.LSN > 0 && !a.leads(o) && !o.leads(a) {
				at = min(at, a.History.Fork(a.Position.Timeline, o.History, o.Position).LSN)
			}
		}
	}
	return at, ok
}

// tipOf finds the end of the line of timelines that the cluster goes on with.
// Timelines grow by promotions that an election allowed, so the latest is the
// cluster's own; what a part made that was cut off goes on where it holds all of
// that, or by SideWins.
func tipOf(b Ballot) (tip Answer, found bool) {
	var own, sides []Answer
	for _, a := range b.Answers {
		switch {
		case unsound(b, a) != "":
		case a.Side == nil:
			own = append(own, a)
		default:
			sides = append(sides, a)
		}
	}
	slices.SortFunc(own, furthest)
	if len(own) > 0 {
		own[0].Last = b.lastWriteOf(own)
	}
	mode := HealMode(b.View.Options("").Get("heal"))
	rank(mode, sides)
	switch {
	case len(own)+len(sides) == 0:
		return Answer{}, false
	case len(sides) == 0:
		return own[0], true
	case len(own) == 0 || slices.ContainsFunc(sides, func(s Answer) bool { return s.outdates(own[0]) }):
		return sides[0], true // which has all of the cluster's own, or was written later than who has
	}
	if own[0].Last != nil && b.unconfirmed(sides) {
		own[0].Last = &LastWrite{Clock: own[0].Last.Clock, Off: own[0].Last.Off}
	}
	if wins, _ := SideWins(mode, own[0], sides[0]); wins && !own[0].leads(sides[0]) {
		return sides[0], true
	}
	return own[0], true
}

// outdates says that a part has all that a node has of the cluster's own: it goes on
// from there, or it was cut off from a later timeline of the cluster than that one is
// on.
func (a Answer) outdates(o Answer) bool {
	behind := a.Position.Timeline == o.Position.Timeline && a.Position.LSN < o.Position.LSN
	return a.leads(o) && !behind || a.Side.Fork.Timeline > o.Position.Timeline
}

// unconfirmed says that nothing on the cluster's own line was acknowledged after the
// first of the parts had forked from it: too many of the sync set had not gone on
// with it when they were cut off themselves.
func (b Ballot) unconfirmed(sides []Answer) bool {
	others := b.View.Sync.Members
	for _, side := range sides {
		if side.Side.Fork.LSN <= sides[0].Side.Fork.LSN {
			others = slices.DeleteFunc(slices.Clone(others), func(m string) bool { return m == side.Node })
		}
	}
	return b.View.SyncMode() != Async && len(others) < b.View.Sync.K
}

// lastWriteOf is when the line of the first answer, which is the furthest, was last
// written: any node on it tells. The times in WAL are by the clock of who wrote it,
// the last active, which knows its clock best where it has answered.
func (b Ballot) lastWriteOf(own []Answer) (last *LastWrite) {
	for _, o := range own {
		if own[0].leads(o) && o.Last != nil && (last == nil || o.Last.At.After(last.At)) {
			last = o.Last
		}
	}
	i := slices.IndexFunc(b.Answers, func(a Answer) bool { return a.Node == b.View.Leader.Node })
	switch {
	case i < 0 || last == nil:
		return last
	case b.Answers[i].Last == nil:
		return nil
	}
	return &LastWrite{At: last.At, Clock: b.Answers[i].Last.Clock, Off: b.Answers[i].Last.Off}
}

// rejoined returns the answers without the sides that are none any more: whose WAL
// has gone on, on the timeline of the active that published the sync set. What
// such a node has confirmed there was the cluster's.
func rejoined(b Ballot) []Answer {
	answers := slices.Clone(b.Answers)
	for i, a := range answers {
		if a.Side != nil && a.Line > a.Side.Epoch && a.Line == b.View.Sync.Epoch {
			answers[i].Side = nil
		}
	}
	return answers
}

// Above is the latest timeline that the cluster, or a part of it, is known to
// have been on: see Assignment.
func Above(b Ballot) Timeline {
	last := max(b.View.NextMaster.Above, b.View.Leader.Timeline)
	for _, a := range b.published().Answers {
		if unsound(b, a) == "" {
			last = max(last, a.Position.Timeline)
		}
	}
	return last
}

// leads says that o lies on the way to a.
func (a Answer) leads(o Answer) bool {
	return a.History.Leads(a.Position.Timeline, o.Position, o.History)
}

// attests says that whatever o has ever acknowledged of the cluster's own
// commits lies on the way to a, or was weighed when a's line was chosen.
func (a Answer) attests(o Answer) bool {
	return a.Side != nil || a.leads(o) || o.Side != nil && a.History.Contains(a.Position.Timeline, o.Side.Fork)
}
