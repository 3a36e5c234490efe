package handlerrunner

import (
	"slices"

	"github.com/understudy-ha/understudy/cluster"
)

// line is a timeline of this node's WAL, from Timeline on, that a promotion for
// Epoch made, and that a later active may know nothing of: the promotion broke
// off, or sync_mode is async. That active makes a timeline of the same number,
// and PostgreSQL cannot tell the two apart. So it is remembered from before the
// first WAL of it is taken until the node that made it has opened to clients,
// because then k standbys have some of it and every election knows of it.
type line struct {
	Timeline cluster.Timeline `json:"timeline"`
	Epoch    cluster.Epoch    `json:"epoch"`
}

// keptLines bounds the memory in sync_mode async, which confirms no line.
const keptLines = 16

// on returns the epochs of the lines that WAL which ends on tl is on.
func (d durable) on(tl cluster.Timeline) (epochs []cluster.Epoch) {
	for _, l := range d.Lines {
		if l.Timeline <= tl {
			epochs = append(epochs, l.Epoch)
		}
	}
	return epochs
}

// doubled says that this node's WAL is on a line that the leader knows nothing
// of, so that its timeline may be another one than the leader's of that number.
func doubled(l cluster.Leader, d durable, db Database) bool {
	on := d.on(db.Position.Timeline)
	if len(on) == 0 {
		return false
	}
	last := on[len(on)-1]
	return last < l.Epoch && !slices.Contains(l.Knows, last)
}

// embark writes down that WAL of the leader's promotion is about to be made or
// taken, from the timeline tl on. The caller holds moving.
func (h *Handler) embark(tl cluster.Timeline, leader cluster.Leader) error {
	h.mu.Lock()
	var lines []line
	for _, l := range h.durable.Lines { // those that came to nothing are forgotten
		if l.Timeline < tl && l.Epoch < leader.Epoch {
			lines = append(lines, l)
		}
	}
	for _, e := range append(slices.Clone(leader.Knows), leader.Epoch) {
		if !slices.ContainsFunc(lines, func(l line) bool { return l.Epoch == e }) {
			lines = append(lines, line{tl, e})
		}
	}
	h.durable.Lines = lines[max(0, len(lines)-keptLines):]
	h.mu.Unlock()
	return h.keep()
}

// confirm forgets the lines that every election knows of from now on.
func (h *Handler) confirm() {
	h.moving.Lock()
	defer h.moving.Unlock()
	v, d, db := h.snapshot()
	if len(d.Lines) == 0 || !v.Leader.Ready || v.SyncMode() == cluster.Async || d.Lines[len(d.Lines)-1].Epoch != v.Leader.Epoch {
		return
	}
	if d.Side != nil {
		if len(d.on(db.Position.Timeline)) == 0 {
			return // by the line it is known that this node has left its part, once it has
		}
		h.mu.Lock()
		h.durable.Side, h.durable.Lost = nil, false
		h.mu.Unlock()
	}
	_ = h.clearLines() // keep has logged it; what stays on disk costs a returning node a clone
}

// clearLines forgets all lines. The caller holds moving.
func (h *Handler) clearLines() error {
	h.mu.Lock()
	some := len(h.durable.Lines) > 0
	h.durable.Lines = nil
	h.mu.Unlock()
	if !some {
		return nil
	}
	return h.keep()
}
