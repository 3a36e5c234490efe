package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// renewWithin is the part of a lease's TTL in which a node that vouches tries to renew
// the session. The active waits for half a TTL.
const renewWithin = 5

// Vouch says that this node stands by the active node of an epoch: it will not
// detach from it for the lifetime of a lease. It refuses when it has promised
// itself to a later epoch, or knows that the node does not hold the lock. Where
// Consul hears this node, it renews the session of the lock first: else that would
// end, although the active lives, and only its agent does not reach Consul's leader.
func (h *Handler) Vouch(ctx context.Context, active string, epoch cluster.Epoch) (renewed bool, err error) {
	if renewed, err = h.renewFor(ctx, active, epoch); err != nil {
		return false, err
	}
	return renewed, h.standBy(active, epoch, renewed)
}

// renewFor renews the session of an active node. An error says that it has ended.
func (h *Handler) renewFor(ctx context.Context, active string, epoch cluster.Epoch) (bool, error) {
	h.mu.Lock()
	l, fresh := h.view.Leader, h.fresh
	h.mu.Unlock()
	if fresh != cluster.Yes || !l.Held || l.Node != active || l.Epoch != epoch {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.ttl()/renewWithin)
	defer cancel()
	err := h.Locks.Renew(ctx, l.Session)
	if errors.Is(err, ErrSessionGone) {
		return false, fmt.Errorf("vouch for %s: %w", active, err)
	}
	return err == nil, nil
}

// standBy gives this node's word.
func (h *Handler) standBy(active string, epoch cluster.Epoch, renewed bool) error {
	h.moving.Lock()
	defer h.moving.Unlock()
	ttl := h.ttl()
	h.mu.Lock()
	defer h.mu.Unlock()
	named, held := h.view.NextMaster, h.view.Leader.Held
	switch {
	case h.Kind == cluster.Runner:
		return fmt.Errorf("vouch for %s: %w", active, errNoDatabase)
	case h.durable.Promise > epoch:
		return fmt.Errorf("%s has promised itself to epoch %d", h.Node, h.durable.Promise)
	case named.Node != active || named.Epoch != epoch:
		return fmt.Errorf("%s knows %s as the active node of epoch %d", h.Node, named.Node, named.Epoch)
	case h.fresh == cluster.Yes && !held:
		return fmt.Errorf("%s sees that nobody holds the lock", h.Node)
	}
	now := time.Now()
	h.vouches, h.vouchedFor = now.Add(lifetime(ttl)), active
	if !renewed {
		h.returns = now.Add(calmAfter * ttl)
	}
	return nil
}

// standsBy is the active node that this one vouches for at the moment. While Consul
// returns, which was silent for both, that one may lose its session and takes the lock
// again: when the lock has just become free it is given the time.
func (h *Handler) standsBy() string {
	ttl, now := h.ttl(), time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	returns := now.Before(h.returns) && !h.view.Leader.Held && now.Sub(h.seen) < ttl/2
	if now.Before(h.vouches) || returns {
		return h.vouchedFor
	}
	return ""
}

// vouched lets the lease go on while Consul is silent, if K members of the sync
// set vouch for it: an election needs the answers of more members than remain,
// so for as long as they stand by, nobody else can become active. These are the
// same K that a commit needs. Where the set is empty, nobody but this node could
// be elected anyway; but with sync_mode async anybody could, so all must vouch.
func (h *Handler) vouched(ctx context.Context, epoch cluster.Epoch) (standing, heard bool) {
	view, _, _ := h.snapshot()
	if view.Sync.Epoch != epoch || view.Sync.Leader != h.Node {
		return false, false
	}
	members, needed := view.Sync.Members, view.Sync.K
	if view.SyncMode() == cluster.Async {
		members = h.others(view)
		needed = len(members)
	}
	type reply struct {
		renewed bool
		err     error
	}
	replies := make(chan reply, len(members))
	for _, m := range members {
		go func() {
			renewed, err := h.Peers.Vouch(ctx, view.Nodes[m], h.Node, epoch)
			replies <- reply{renewed, err}
		}()
	}
	stand, renewed := 0, 0
	for range members {
		r := <-replies
		if r.err == nil {
			stand++
		}
		if r.renewed {
			renewed++
		}
	}
	h.Log.Info("Consul is silent", "vouched_by", stand, "needed", needed, "renewed_by", renewed, "epoch", epoch)
	return stand >= needed, renewed > 0
}
