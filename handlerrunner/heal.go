package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// ErrKept: the active node keeps its database, because by cluster.SideWins it is
// the one that goes on.
var ErrKept = errors.New("the majority's database goes on")

// claim asks the active node whether the database of the part that this node has
// served is the one that goes on. Where it is, this node is named and promotes as
// ever; else what it wrote is exported and it is rewound.
func (h *Handler) claim(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, promoteWithin)
	defer cancel()
	view, d, db := h.snapshot()
	a := cluster.Answer{Node: h.Node, Position: db.Position, Side: d.Side, LastCommit: h.lastCommit(ctx), At: time.Now()}
	err := h.Parts.Claim(ctx, view.Nodes[view.Leader.Node], a)
	if !errors.Is(err, ErrKept) {
		return err
	}
	h.Journal.Write("heal", view.Leader.Epoch, fmt.Sprintf("%s gives way to %s: %v", h.Node, view.Leader.Node, err), a)
	h.moving.Lock()
	defer h.moving.Unlock()
	h.mu.Lock()
	h.durable.Lost = true
	h.mu.Unlock()
	return h.keep()
}

func (h *Handler) claimed(err error) {
	if err != nil {
		h.Log.Warn("claim", "error", err)
		h.rest(time.Second)
	}
	h.wake()
}

// Claim hears a node that has served a part of the cluster. The active node
// hands over to it if that part's database goes on, else the error wraps ErrKept.
func (h *Handler) Claim(ctx context.Context, a cluster.Answer) error {
	if valid, _ := h.tenure.valid(time.Now()); !valid {
		return fmt.Errorf("%s is not the active node", h.Node)
	}
	if err := h.yields(ctx, a); err != nil {
		return err
	}
	return h.order(ctx, order{target: a.Node, claim: &a})
}

// yields returns nil if the claimant's database goes on.
func (h *Handler) yields(ctx context.Context, a cluster.Answer) error {
	view, _, _ := h.snapshot()
	own := cluster.Answer{Node: h.Node, LastCommit: h.lastCommit(ctx), At: time.Now()}
	wins, reason := cluster.SideWins(cluster.HealMode(view.Options("").Get("heal")), own, a)
	if !wins {
		return fmt.Errorf("%w: %s", ErrKept, reason)
	}
	h.Log.Info("heal", "to", a.Node, "reason", reason)
	return nil
}

// preserve exports what this node wrote beyond the line of the active, before it
// is rewound. An error means that nothing is lost only if the directory is kept.
func (h *Handler) preserve(ctx context.Context, d durable, db Database) error {
	if d.Wrote == 0 || d.Wrote != db.Position.Timeline {
		return nil // another node wrote it, and has it
	}
	own, err := h.Replication.History(ctx, db.Position.Timeline)
	if err != nil {
		return err
	}
	t := h.lastTip()
	fork := t.history.Fork(t.timeline, own, db.Position)
	if err := h.Divergence.Export(ctx, t.epoch, fork); err != nil {
		return fmt.Errorf("export what was written after %s: %w", fork, err)
	}
	return nil
}
