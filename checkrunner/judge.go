package checkrunner

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// health is what one measurement says.
type health uint8

const (
	unknown  health = iota // could not tell
	good                   // as it should be
	passable               // not as it should be, and need not be yet: the active node is changing
	wavering               // not as it should be, but often so for a moment: the TTL decides
	bad                    // an error
)

func (h health) String() string {
	return [...]string{"unknown", "good", "passable", "wavering", "bad"}[h]
}

// finding is one measurement. Its text is a short sentence for people.
type finding struct {
	health health
	text   string
}

// rules are the options that a decision depends on.
type rules struct {
	ttl      time.Duration
	failFast bool
}

// history is what a check remembers between measurements.
type history struct {
	good    time.Time // when it was last good; at the start, the start
	failing bool      // it was posted as failing, and not as passing since
}

// action is what to tell the agent.
type action uint8

const (
	nothing action = iota // let the TTL run
	pass
	fail
)

func (a action) String() string { return [...]string{"left to its TTL", "passes", "fails"}[a] }

// decision is an action and the text that goes with it.
type decision struct {
	post action
	text string
	good bool // the measurement was good
}

// decide says what to post. An error fails the check at once with check_fail_fast;
// without it, and for whatever may be over in a moment, the check is left alone
// until it has not been good for its TTL. Then it is failed with the reason, in
// the moment in which Consul would fail it without one.
func decide(now time.Time, r rules, h history, f finding) (decision, history) {
	switch {
	case f.health == good:
		return decision{pass, f.text, true}, history{good: now}
	case f.health == bad && r.failFast:
		h.failing = true
		return decision{fail, f.text, false}, h
	case f.health == passable && !h.failing:
		return decision{pass, f.text, false}, h
	case now.Sub(h.good) >= r.ttl:
		h.failing = true
		return decision{fail, f.text, false}, h
	}
	return decision{nothing, f.text, false}, h
}

// judgeRole says whether the database is what this node is to be: the primary
// on the active node, and elsewhere a standby that streams from the active one.
// For a TTL after a change of the active node everything else is passable.
func judgeRole(now time.Time, ttl time.Duration, self string, s situation, r Role) finding {
	if !s.known {
		return finding{unknown, "the state of the cluster is not known yet"}
	}
	if r.Primary == cluster.Unknown {
		return finding{unknown, "the database does not say whether it is a primary"}
	}
	f := settledRole(self, s.view, r)
	if f.health != good && now.Sub(s.changed) < ttl {
		return finding{passable, "the active node is changing: " + f.text}
	}
	return f
}

// settledRole is judgeRole when nothing is changing.
func settledRole(self string, v cluster.View, r Role) finding {
	active := v.Leader.Node
	mine := v.Leader.Held && active == self
	switch {
	case r.Primary == cluster.Yes && mine:
		return finding{good, fmt.Sprintf("primary, timeline %d, epoch %d", r.Timeline, v.Leader.Epoch)}
	case r.Primary == cluster.Yes && v.NextMaster.Node == self:
		return finding{wavering, fmt.Sprintf("primary, timeline %d, but without the leader lock", r.Timeline)}
	case r.Primary == cluster.Yes:
		return finding{bad, "primary, but the active node is " + orNobody(active)}
	case mine && v.Leader.Ready:
		return finding{bad, "standby, but this node is the active one"}
	case mine:
		return finding{wavering, "standby, about to be promoted"}
	}
	return following(v, r)
}

// following judges a standby.
func following(v cluster.View, r Role) finding {
	from := nodeAt(v, r.UpstreamHost)
	right := v.Leader.Node
	if right == "" {
		right = v.NextMaster.Node
	}
	switch {
	case right == "":
		return finding{wavering, "standby, and no node is active"}
	case r.UpstreamHost == "":
		return finding{wavering, "standby, follows nobody; the active node is " + right}
	case from != right && from != v.NextMaster.Node:
		return finding{bad, fmt.Sprintf("follows %s, but the active node is %s", from, right)}
	case !r.Streaming:
		return finding{wavering, "standby, not streaming from " + from}
	}
	text := fmt.Sprintf("streaming from %s, timeline %d", from, r.Timeline)
	if r.LagBytes >= 0 {
		text += fmt.Sprintf(", %d bytes behind", r.LagBytes)
	}
	return finding{good, text}
}

func orNobody(node string) string {
	if node == "" {
		return "nobody"
	}
	return node
}

// nodeAt returns the name of the member with an address, or the address.
func nodeAt(v cluster.View, host string) string {
	for name, n := range v.Nodes {
		if n.Address == host || net.ParseIP(host) != nil && net.ParseIP(host).Equal(net.ParseIP(n.Address)) {
			return name
		}
	}
	return host
}

// unitState is one unit as it was observed.
type unitState struct {
	name   string
	active cluster.Tri
	detail string
}

// trouble is the time in which a unit did not run steadily.
type trouble struct {
	since  time.Time // when it was first seen not to run
	active time.Time // since when it runs again; zero while it does not
}

// judgeServices says whether all units run. A unit that is being started, or
// started again, may take a TTL for it: a restart is no failover. One that died
// and came back is trusted again after it has run for a TTL, so that a unit
// that dies over and over does not pass for ever.
func judgeServices(now time.Time, ttl time.Duration, units []unitState, before map[string]trouble) (finding, map[string]trouble) {
	after := map[string]trouble{}
	var down, starting []string
	for _, u := range units {
		t, troubled := before[u.name]
		switch {
		case u.active == cluster.Yes && !troubled:
			continue
		case u.active == cluster.Yes && t.active.IsZero():
			t.active = now
		case u.active == cluster.Yes && now.Sub(t.active) >= ttl:
			continue
		case u.active != cluster.Yes && !troubled:
			t = trouble{since: now}
		case u.active != cluster.Yes:
			t.active = time.Time{}
		}
		after[u.name] = t
		late := now.Sub(t.since) >= ttl
		switch {
		case u.active == cluster.No:
			down = append(down, describe(u))
		case late && u.active == cluster.Unknown:
			down = append(down, fmt.Sprintf("%s for %s", describe(u), now.Sub(t.since).Round(time.Second)))
		case late:
			starting = append(starting, u.name+" (died lately)")
		case u.active == cluster.Unknown:
			starting = append(starting, describe(u))
		}
	}
	slices.Sort(down)
	slices.Sort(starting)
	switch {
	case len(down) > 0:
		return finding{bad, "not running: " + strings.Join(down, ", ")}, after
	case len(starting) > 0:
		return finding{wavering, "waiting for " + strings.Join(starting, ", ")}, after
	case len(units) == 0:
		return finding{good, "no units to run"}, after
	}
	return finding{good, fmt.Sprintf("%d of %d units run", len(units), len(units))}, after
}

func describe(u unitState) string {
	if u.detail == "" {
		return u.name
	}
	return fmt.Sprintf("%s (%s)", u.name, u.detail)
}

// judgeFiles says whether the folders are in sync, by the report of file-sync.
func judgeFiles(now time.Time, staleAfter time.Duration, f cluster.FilesReport) finding {
	switch age := now.Sub(f.At); {
	case age < -staleAfter:
		return finding{bad, "the report of file-sync is dated in the future"}
	case age > staleAfter:
		return finding{bad, fmt.Sprintf("file-sync has not reported for %s", age.Round(time.Second))}
	case f.Problem != "":
		return finding{bad, f.Problem}
	case f.Sending:
		return finding{good, fmt.Sprintf("sending, epoch %d", f.Epoch)}
	case f.Complete == cluster.Yes:
		return finding{good, "in sync"}
	case f.Need > 0:
		return finding{wavering, fmt.Sprintf("%d files still to be fetched", f.Need)}
	case f.Complete == cluster.No:
		return finding{wavering, "not in sync yet"}
	}
	return finding{wavering, "not known whether in sync: the active node has not been heard"}
}
