package handlerrunner

import (
	"context"
	"errors"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// hearPause writes down whether the cluster is paused, so that it is known when
// the registry cannot be read, and after a restart.
func (h *Handler) hearPause() {
	h.moving.Lock()
	defer h.moving.Unlock()
	h.mu.Lock()
	paused := h.view.Paused()
	changed := h.view.Info != nil && paused != h.durable.Paused
	if changed {
		h.durable.Paused = paused
	}
	h.mu.Unlock()
	if changed {
		_ = h.keep() // has logged it
		h.Log.Info("pause", "paused", paused)
	}
}

// spared says that this node, active when the cluster was paused, is a primary
// that stays open without a lease. The caller holds mu.
func (h *Handler) spared() bool {
	other := h.view.Info != nil && h.view.NextMaster.Node != h.Node
	return h.durable.State == cluster.Maintenance && h.durable.Paused && h.db.Primary == cluster.Yes && !other
}

// retake takes the lock again for the epoch in which this node is active, when it
// was lost while the cluster was paused: nobody has been named since, and
// PostgreSQL has gone on as it was. Whoever promised himself to a later epoch
// meanwhile has seen the leader key as it is no more.
func (h *Handler) retake(ctx context.Context) error {
	view, d, db := h.snapshot()
	l := view.Leader
	if l.Node != h.Node || l.Epoch != d.Tried || db.Position.Timeline != l.Timeline {
		return errors.New("take the lock again: it was last held for another epoch, or PostgreSQL is on another timeline")
	}
	h.tenure.end(ctx)
	asked := time.Now()
	lease, err := h.Locks.Acquire(ctx, cluster.Leader{Node: h.Node, Epoch: l.Epoch, Ready: true, Timeline: l.Timeline}, h.ttl())
	if err != nil {
		return err
	}
	h.tenure.begin(lease, l.Epoch, asked, h.ttl())
	h.moving.Lock()
	defer h.moving.Unlock()
	h.mu.Lock()
	h.durable.Session = lease.ID()
	h.mu.Unlock()
	h.Journal.Write(cluster.EventLock, l.Epoch, h.Node+" holds the leader lock again", nil)
	return h.keep()
}
