package handlerrunner

import (
	"slices"

	"github.com/understudy-ha/understudy/cluster"
)

// The durable Lines are timelines of this node's WAL that a later active may know
// nothing of: their promotion broke off, or sync_mode is async. That active makes
// a timeline of the same number, and PostgreSQL cannot tell the two apart. So they
// are remembered from before the first WAL of them is taken until the node that
// made the last one has opened to clients, because then k standbys have some of it
// and every election knows of it.

// keptLines bounds the memory in sync_mode async, which confirms no line.
const keptLines = 16

// on returns the lines that WAL which ends on tl is on, oldest first.
func (d durable) on(tl cluster.Timeline) (lines []cluster.Line) {
	for _, l := range d.Lines {
		if l.Timeline <= tl {
			lines = append(lines, l)
		}
	}
	return lines
}

// line is the epoch of the promotion that made the timeline tl of this node's
// WAL, if another node may know nothing of it.
func (d durable) line(tl cluster.Timeline) (epoch cluster.Epoch) {
	for _, l := range d.on(tl) {
		epoch = l.Epoch
	}
	return epoch
}

// doubled says that this node's WAL is on a line that the leader is not on, so
// that its timeline may be another one than the leader's of that number.
func doubled(l cluster.Leader, d durable, db Database) bool {
	on := d.on(db.Position.Timeline)
	if len(on) == 0 {
		return false
	}
	last := on[len(on)-1]
	return last.Epoch < l.Epoch && !slices.Contains(l.Lines, last)
}

// astray is doubled for a directory of which nobody knows where it is.
func astray(l cluster.Leader, d durable) bool {
	return doubled(l, d, Database{Position: cluster.Position{Timeline: ^cluster.Timeline(0)}})
}

// embark writes down the leader's lines before WAL of them is made or taken. What
// this node has already is on them, see doubled. The caller holds moving.
func (h *Handler) embark(l cluster.Leader) error {
	h.mu.Lock()
	h.durable.Lines = slices.Clone(l.Lines[max(0, len(l.Lines)-keptLines):])
	h.mu.Unlock()
	return h.keep()
}

// confirm forgets the lines that every election knows of from now on.
func (h *Handler) confirm() {
	h.moving.Lock()
	defer h.moving.Unlock()
	v, d, _ := h.snapshot()
	if len(d.Lines) == 0 || !v.Leader.Ready || v.SyncMode() == cluster.Async || d.Lines[len(d.Lines)-1].Epoch != v.Leader.Epoch {
		return
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
