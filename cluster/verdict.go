package cluster

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// ProbeResult is what came back from a direct probe of another manager.
type ProbeResult uint8

// The results. ProbeUnknown is also the result of an answer that proves
// nothing, such as a failed TLS handshake.
const (
	ProbeUnknown ProbeResult = iota
	ProbeAnswered
	ProbeRefused // the host is there, understudy on it is not
	ProbeSilent  // no answer in time, or no route
)

func (r ProbeResult) String() string {
	switch r {
	case ProbeAnswered:
		return "answered"
	case ProbeRefused:
		return "refused"
	case ProbeSilent:
		return "silent"
	}
	return "unknown"
}

// Contact is what the probes of one manager have shown. The zero value is the
// start.
type Contact struct {
	Result   ProbeResult // of the latest
	At       time.Time   // when it came
	Answered time.Time   // when the manager last answered; zero: it never has
	Misses   int         // probes in a row without an answer
}

// Next takes in the result of one more probe.
func (c Contact) Next(now time.Time, r ProbeResult) Contact {
	if r == ProbeAnswered {
		return Contact{Result: r, At: now, Answered: now}
	}
	return Contact{Result: r, At: now, Answered: c.Answered, Misses: c.Misses + 1}
}

// missesToCut is how many probes in a row a manager must have left unanswered
// before it counts as cut off: one alone may be a packet that was lost.
const missesToCut = 2

// Outside is a point beyond the cluster that shows whether the network works at
// all: the default gateway, or a ping target.
type Outside struct {
	Name    string // as people know it, such as "gateway 10.0.0.1"
	Reached Tri
}

// Connectivity is what one node observed of its connections.
type Connectivity struct {
	Self     string
	Managers []string // every manager there is, Self included if it is one; none: not known
	// RaftLeader says whether Consul has a leader, in the words of the local
	// agent. Unknown when the agent itself gave no sensible answer: that its
	// port is closed says nothing about the network.
	RaftLeader Tri
	// LeaderHeard is when that leader last reached the local agent's server: the
	// agent speaks of it for seconds after it has gone. Zero: not known.
	LeaderHeard time.Time
	Contacts    map[string]Contact
	Fresh       time.Duration // a contact that is older is unknown
	Outside     []Outside     // empty: no gateway is known and no target is set
	Asking      bool          // those outside have not been asked often enough to tell
}

// Judgement is a verdict, and what must be remembered for the next one. The
// zero value is the start.
type Judgement struct {
	Verdict Verdict
	Reason  string
	Reached []string // managers that answered, sorted, Self included
	Missing []string // managers that did not, sorted
	// Due is when the verdict changes if nothing else does; zero: it does not.
	Due time.Time

	at     time.Time // when it was judged
	with   time.Time // until when the node may have been with the majority
	fallen bool      // was in the minority, and not in the majority since
	healed time.Time // while fallen: since when most managers answer again
	back   time.Time // since when something outside answers a node that was isolated
}

// Judge decides where a node stands, from what it observed and from the
// judgement before. It is in the minority when neither Consul's leader nor a
// majority of the managers has reached it for all of after, and it knows both to
// be out of reach now; it is isolated when, besides, everything outside is known
// not to answer. Whatever is not known counts for neither side and leads to
// Undecided.
//
// The time counts from the last sign of the majority, not from when its silence
// was noticed. While anything was not known, or nobody judged, there may have been
// such a sign.
//
// A Consul leader ends a minority at once, because Consul's own election has
// already waited. Direct answers alone end it after a fifth of after; until
// then the verdict is Undecided.
func (c Connectivity) Judge(now time.Time, after time.Duration, before Judgement) Judgement {
	j := c.judge(now, after, before)
	j.fallen = j.Verdict != Majority && (before.fallen || j.cutOff())
	return j
}

func (c Connectivity) judge(now time.Time, after time.Duration, before Judgement) Judgement {
	j := Judgement{}
	var refused, unknown int
	for _, name := range union(c.Managers, nil) {
		switch result := c.result(now, name); result {
		case ProbeAnswered:
			j.Reached = append(j.Reached, name)
		default:
			j.Missing = append(j.Missing, name)
			if result == ProbeRefused {
				refused++
			} else if result == ProbeUnknown {
				unknown++
			}
		}
	}
	all, reached := len(j.Reached)+len(j.Missing), len(j.Reached)
	needed := all/2 + 1
	answer := fmt.Sprintf("%d of %d managers answer", reached, all)
	j.at, j.with = now, c.lastWith(now, needed, before)

	switch {
	case c.RaftLeader == Yes:
		return j.as(Majority, "Consul has a leader")
	case all == 0:
		j.with = now
		return j.as(Undecided, "Consul has no leader and the members are not known")
	case reached >= needed:
		return j.recover(now, after/5, before, answer)
	case c.RaftLeader == Unknown:
		j.with = now
		return j.as(Undecided, answer+", and the local Consul agent cannot be asked for a leader")
	case reached+unknown >= needed:
		j.with = now
		return j.as(Undecided, fmt.Sprintf("Consul has no leader, %s, and %d are not known", answer, unknown))
	case now.Sub(j.with) < after:
		j.Due = j.with.Add(after)
		return j.as(Undecided, fmt.Sprintf("Consul has no leader and %s; that must last %s", answer, after))
	case !before.cutOff() && c.mayBeBack(j.Missing, needed-reached):
		return j.as(Undecided, fmt.Sprintf("Consul has no leader and %s; one probe alone proves nothing", answer))
	}
	return j.outside(c, before, reached <= 1 && refused == 0, fmt.Sprintf("for %s Consul has had no leader and %s", after, answer))
}

// lastWith is until when this node may have been with the majority: when as many
// managers as are needed had last answered, or Consul's leader was last heard.
func (c Connectivity) lastWith(now time.Time, needed int, before Judgement) time.Time {
	last := before.with
	var answered []time.Time
	for _, name := range union(c.Managers, nil) {
		if name == c.Self {
			needed--
		} else {
			answered = append(answered, c.Contacts[name].Answered)
		}
	}
	slices.SortFunc(answered, func(a, b time.Time) int { return b.Compare(a) })
	if needed > 0 && needed <= len(answered) {
		last = lastOf(last, answered[needed-1])
	}
	if c.RaftLeader == Yes {
		last = lastOf(last, c.LeaderHeard)
	}
	blind := !before.at.IsZero() && now.Sub(before.at) > c.Fresh
	if blind || before.with.IsZero() || last.After(now) || c.RaftLeader == Yes && c.LeaderHeard.IsZero() {
		return now
	}
	return last
}

func lastOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// mayBeBack says that enough of the missing managers for a majority have left only
// one probe unanswered, or were never probed.
func (c Connectivity) mayBeBack(missing []string, enough int) bool {
	for _, name := range missing {
		if c.Contacts[name].Misses < missesToCut {
			enough--
		}
	}
	return enough <= 0
}

// outside tells an isolated node from one in the minority. Until those outside
// have been asked often enough, the verdict does not get worse.
func (j Judgement) outside(c Connectivity, before Judgement, alone bool, reason string) Judgement {
	switch {
	case alone && c.nothingOutside():
		return j.as(Isolated, reason+"; no answer from "+c.outsideNames())
	case alone && c.Asking && before.cutOff() && !c.reachesOutside():
		return j.as(before.Verdict, before.Reason)
	case alone && c.Asking && !c.reachesOutside():
		return j.as(Undecided, reason+"; not known yet is "+c.outsideNames())
	}
	return j.backFrom(c, before, reason)
}

// backFrom is the verdict of a node that is not isolated, or not any more. What
// ended the isolation may have brought the managers back too: they are probed anew
// before the node counts as in the minority, and serves.
func (j Judgement) backFrom(c Connectivity, before Judgement, reason string) Judgement {
	j.back = before.back
	if before.Verdict == Isolated {
		j.back = j.at
	}
	if before.Verdict != Minority && !j.back.IsZero() && j.at.Sub(j.back) <= c.Fresh {
		j.Due = j.back.Add(c.Fresh)
		return j.as(Undecided, reason+"; something outside answers again, and the managers are probed anew")
	}
	return j.as(Minority, reason)
}

// recover is the verdict while most managers answer and Consul has no leader.
func (j Judgement) recover(now time.Time, settle time.Duration, before Judgement, answer string) Judgement {
	if !before.fallen {
		return j.as(Majority, "Consul has no leader, but "+answer)
	}
	j.healed = before.healed
	if j.healed.IsZero() || now.Before(j.healed) {
		j.healed = now
	}
	if now.Sub(j.healed) < settle {
		return j.as(Undecided, fmt.Sprintf("%s again; that must last %s", answer, settle))
	}
	return j.as(Majority, "Consul has no leader, but "+answer)
}

func (j Judgement) cutOff() bool { return j.Verdict == Minority || j.Verdict == Isolated }

func (j Judgement) as(v Verdict, reason string) Judgement {
	j.Verdict, j.Reason = v, reason
	return j
}

// Report is the judgement as it is written for the other daemons.
func (j Judgement) Report(now time.Time) VerdictReport {
	return VerdictReport{Verdict: j.Verdict, Reason: j.Reason, Reached: j.Reached, Missing: j.Missing, At: now}
}

// Resume takes up the verdict of a report that is still believed, after a
// restart. A minority goes on where it was; everything else is judged anew.
func Resume(r VerdictReport, now time.Time, after time.Duration) Judgement {
	j := Judgement{Verdict: r.Verdict, Reason: r.Reason, Reached: r.Reached, Missing: r.Missing}
	if j.cutOff() {
		j.fallen, j.with = true, now.Add(-after)
	}
	return j
}

// Same says whether two judgements tell the other daemons the same.
func (j Judgement) Same(o Judgement) bool {
	return j.Verdict == o.Verdict && slices.Equal(j.Reached, o.Reached) && slices.Equal(j.Missing, o.Missing)
}

func (c Connectivity) result(now time.Time, name string) ProbeResult {
	if name == c.Self {
		return ProbeAnswered
	}
	contact, ok := c.Contacts[name]
	if !ok || now.Sub(contact.At) > c.Fresh {
		return ProbeUnknown
	}
	return contact.Result
}

// nothingOutside is true only if there is something outside to ask and all of
// it is known not to answer.
func (c Connectivity) nothingOutside() bool {
	return len(c.Outside) > 0 &&
		!slices.ContainsFunc(c.Outside, func(o Outside) bool { return o.Reached != No })
}

func (c Connectivity) reachesOutside() bool {
	return slices.ContainsFunc(c.Outside, func(o Outside) bool { return o.Reached == Yes })
}

func (c Connectivity) outsideNames() string {
	var names []string
	for _, o := range c.Outside {
		names = append(names, o.Name)
	}
	return strings.Join(names, ", ")
}
