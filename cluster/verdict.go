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

// Contact is the latest probe of one manager.
type Contact struct {
	Result ProbeResult
	At     time.Time // when the result came
}

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
	Contacts   map[string]Contact
	Fresh      time.Duration // a contact that is older is unknown
	Outside    []Outside     // empty: no gateway is known and no target is set
}

// Judgement is a verdict, and what must be remembered for the next one. The
// zero value is the start.
type Judgement struct {
	Verdict Verdict
	Reason  string
	Reached []string // managers that answered, sorted, Self included
	Missing []string // managers that did not, sorted

	cut    time.Time // since when the node is known to be cut off, without a break
	fallen bool      // was in the minority, and not in the majority since
	healed time.Time // while fallen: since when most managers answer again
}

// Judge decides where a node stands, from what it observed and from the
// judgement before. It is in the minority when Consul has had no leader, and
// fewer than a majority of the managers have answered it, for all of after;
// it is isolated when, besides, everything outside is known not to answer.
// Whatever is not known counts for neither side and leads to Undecided.
//
// A Consul leader ends a minority at once, because Consul's own election has
// already waited. Direct answers alone end it after a fifth of after; until
// then the verdict is Undecided.
func (c Connectivity) Judge(now time.Time, after time.Duration, before Judgement) Judgement {
	j := c.judge(now, after, before)
	j.fallen = j.Verdict != Majority && (before.fallen || j.Verdict == Minority || j.Verdict == Isolated)
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

	switch {
	case c.RaftLeader == Yes:
		return j.as(Majority, "Consul has a leader")
	case all == 0:
		return j.as(Undecided, "Consul has no leader and the members are not known")
	case reached >= needed:
		return j.recover(now, after/5, before, answer)
	case c.RaftLeader == Unknown:
		return j.as(Undecided, answer+", and the local Consul agent cannot be asked for a leader")
	case reached+unknown >= needed:
		return j.as(Undecided, fmt.Sprintf("Consul has no leader, %s, and %d are not known", answer, unknown))
	}

	j.cut = before.cut
	if j.cut.IsZero() || now.Before(j.cut) {
		j.cut = now
	}
	lasted := now.Sub(j.cut)
	if lasted < after {
		return j.as(Undecided, fmt.Sprintf("Consul has no leader and %s; that must last %s", answer, after))
	}
	reason := fmt.Sprintf("for %s Consul has had no leader and %s", after, answer)
	if reached <= 1 && refused == 0 && c.nothingOutside() {
		return j.as(Isolated, reason+"; no answer from "+c.outsideNames())
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
	if r.Verdict == Minority || r.Verdict == Isolated {
		j.fallen, j.cut = true, now.Add(-after)
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

func (c Connectivity) outsideNames() string {
	var names []string
	for _, o := range c.Outside {
		names = append(names, o.Name)
	}
	return strings.Join(names, ", ")
}
