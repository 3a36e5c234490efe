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
// that stays open without a lease, unless an election has asked it since. The
// caller holds mu.
func (h *Handler) spared() bool {
	other := h.view.Info != nil && h.view.NextMaster.Node != h.Node
	return h.durable.State == cluster.Maintenance && h.durable.Paused && h.db.Primary == cluster.Yes && !other && h.durable.Promise <= h.durable.Tried
}

// retake has the lease go on when it was lost while the cluster was paused. The
// session may have outlived it, where the view in which the lock is free is late: the
// lock is then not given back, with PostgreSQL open.
func (h *Handler) retake(ctx context.Context) error {
	_, d, _ := h.snapshot()
	if err := h.Locks.Fit(ctx); err != nil {
		return err
	}
	asked := time.Now()
	lease := h.tenure.held()
	err := ErrSessionGone
	if lease != nil {
		err = lease.Renew(ctx)
	}
	switch {
	case err == nil:
		h.tenure.leave()
	case errors.Is(err, ErrSessionGone):
		h.tenure.end(ctx)
		asked = time.Now()
		lease, err = h.relock(ctx, d.Tried, false)
	}
	if err != nil {
		return err
	}
	h.tenure.begin(lease, d.Tried, asked, h.ttl(), false)
	return nil
}

// relock takes the lock again for the epoch in which this node is active: nobody
// has been named since, and PostgreSQL has gone on as it was. Whoever promised
// himself to a later epoch meanwhile has seen the leader key as it is no more.
func (h *Handler) relock(ctx context.Context, epoch cluster.Epoch, fit bool) (Lease, error) {
	if fit {
		if err := h.Locks.Fit(ctx); err != nil {
			return nil, err
		}
	}
	view, d, db := h.snapshot()
	l := view.Leader
	open := (d.State == cluster.Active || d.State == cluster.Maintenance) && db.Primary == cluster.Yes && !l.Yields
	if !open || l.Node != h.Node || l.Epoch != epoch || d.Tried != epoch || db.Position.Timeline != l.Timeline {
		return nil, errors.New("take the lock again: it was last held for another epoch, or PostgreSQL is closed or on another timeline")
	}
	lease, err := h.Locks.Acquire(ctx, cluster.Leader{Node: h.Node, Epoch: l.Epoch, Ready: true, Timeline: l.Timeline, Lines: l.Lines}, h.ttl(), false)
	if err != nil {
		return nil, err
	}
	h.Journal.Write(cluster.EventLock, l.Epoch, h.Node+" holds the leader lock again", nil)
	return lease, nil
}
