package handlerrunner

import (
	"context"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// told is what the history has been told already, so that it is told once.
type told struct {
	lost    cluster.Epoch   // that the lock of this epoch is free
	follows cluster.Epoch   // that this node streams from the active of this epoch
	verdict cluster.Verdict // that this node is cut off
}

// tell writes to the history what this node has observed and no action of it
// says: that the lock was lost and why, that it streams again, that it is cut off.
func (h *Handler) tell(ctx context.Context, o cluster.Observation) {
	h.tellLost(ctx, o)
	h.tellFollowing(o)
	h.tellVerdict(o)
}

// tellLost looks for the reason of a lock that is free. A node that hands over
// says so itself. The look takes a round trip, in which an election goes on.
func (h *Handler) tellLost(ctx context.Context, o cluster.Observation) {
	l := o.View.Leader
	if l.Held && l.Epoch == h.told.lost {
		h.told.lost = 0 // taken again for the same epoch
	}
	if !o.LockFree() || l.Node == "" || l.Yields || l.Epoch == h.told.lost {
		return
	}
	h.told.lost = l.Epoch
	h.mu.Lock()
	seen := h.seen
	h.mu.Unlock()
	if seen.IsZero() {
		seen = time.Now() // it was free when this daemon started
	}
	h.aside.Go(func() {
		try, cancel := context.WithTimeout(ctx, askWithin)
		defer cancel()
		why := ""
		if failing, err := h.Failing(try, l.Node); err != nil {
			why = fmt.Sprintf("%s lost the lock; its health checks could not be read: %v", l.Node, err)
		} else {
			why = cluster.WhyLost(l.Node, failing)
		}
		h.Journal.Write(cluster.EventLost, l.Epoch, why, cluster.Loss{Node: l.Node, Seen: seen, Why: why})
	})
}

func (h *Handler) tellFollowing(o cluster.Observation) {
	_, _, db := h.snapshot()
	l := o.View.Leader
	if !db.Streaming {
		h.told.follows = 0
		return
	}
	if l.Epoch == h.told.follows || !h.attached(o, db) {
		return
	}
	h.told.follows = l.Epoch
	h.Journal.Write(cluster.EventFollowing, l.Epoch, fmt.Sprintf("%s streams from %s, at %s", h.Node, l.Node, db.Position), db.Position)
}

func (h *Handler) tellVerdict(o cluster.Observation) {
	switch cut := o.Verdict == cluster.Minority || o.Verdict == cluster.Isolated; {
	case cut && o.Verdict != h.told.verdict:
		v := h.Verdict()
		h.told.verdict = o.Verdict
		h.Journal.Write(cluster.EventVerdict, o.View.NextMaster.Epoch, fmt.Sprintf("%s is cut off (%s): %s", h.Node, o.Verdict, v.Reason), v)
	case o.Verdict == cluster.Majority && h.told.verdict != cluster.VerdictUnknown:
		h.told.verdict = cluster.VerdictUnknown
		h.Journal.Write(cluster.EventVerdict, o.View.NextMaster.Epoch, fmt.Sprintf("%s is in the majority again", h.Node), h.Verdict())
	}
}
