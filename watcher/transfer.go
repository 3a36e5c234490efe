package watcher

import (
	"context"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	transferLimit = 5 * time.Second  // one transfer
	firstBackoff  = 10 * time.Second // after the first transfer, doubled after each
	longBackoff   = 5 * time.Minute
)

// moves remembers the transfers of the Raft leader.
type moves struct {
	last  time.Time
	to    string
	count int // since the last long time without one
}

// leadership is what the decision to move the Raft leader depends on.
type leadership struct {
	leads  bool      // the local Consul server is the Raft leader
	active bool      // this node is, or is to be, the active one
	since  time.Time // when one of the two, or the active node, last changed
	others []string  // managers that answer, sorted
	moves  moves
}

// target names the manager that the Raft leader is to be moved to; empty means
// that it is to stay. When the active node dies, Consul must not have to elect a
// leader of its own before it can free the lock: that would cost seconds. A
// transfer costs Consul a moment without a leader as well, so none is done
// before everything has been calm for a while, and ever fewer if it does not
// help. The one tried last is tried last again.
func (l leadership) target(now time.Time, calm time.Duration) string {
	if !l.leads || !l.active || len(l.others) == 0 || now.Sub(l.since) < calm {
		return ""
	}
	if l.moves.count > 0 && now.Sub(l.moves.last) < backoff(l.moves.count) {
		return ""
	}
	i, found := slices.BinarySearch(l.others, l.moves.to)
	if found {
		i++
	}
	return l.others[i%len(l.others)]
}

// backoff is how long after that many transfers the next one may come.
func backoff(count int) time.Duration {
	d := firstBackoff
	for ; count > 1 && d < longBackoff; count-- {
		d *= 2
	}
	return min(d, longBackoff)
}

// next takes in that a transfer is begun. A long time without one makes the
// earlier ones forgotten.
func (m moves) next(now time.Time, to string) moves {
	if now.Sub(m.last) > 2*longBackoff {
		m.count = 0
	}
	return moves{last: now, to: to, count: m.count + 1}
}

// move says whom to transfer the Raft leader to now, and takes it as done.
func (w *watcher) move(now time.Time) (to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.members.Options
	l := leadership{
		leads:  w.raft.has == cluster.Yes && w.raft.node == w.Node && now.Sub(w.raft.at) <= o.Stretch(freshFor),
		active: w.active.self,
		since:  latest(w.raft.from, w.active.from),
		moves:  w.moves,
	}
	for _, n := range w.members.Managers {
		contact := w.contacts[n.Name]
		if n.Name != w.Node && contact.Result == cluster.ProbeAnswered && now.Sub(contact.At) <= o.Stretch(freshFor) {
			l.others = append(l.others, n.Name)
		}
	}
	slices.Sort(l.others)
	to = l.target(now, o.Stretch(calmFor))
	if to != "" {
		w.moves = w.moves.next(now, to)
	}
	return to
}

// isActive says whether this node is, or is to be, the active one.
func (w *watcher) isActive() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.active.self
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (w *watcher) transfer(ctx context.Context, to string) {
	start := time.Now()
	if err := w.Raft.Transfer(ctx, to); err != nil {
		w.Logger.Warn("cannot move the Raft leader off the active node", "to", to, "error", err)
		return
	}
	w.Logger.Info("moved the Raft leader off the active node", "to", to,
		"duration_ms", time.Since(start).Milliseconds())
}
