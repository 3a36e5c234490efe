package handlerrunner

import (
	"context"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Vouch says that this node stands by the active node of an epoch: it will not
// detach from it for the lifetime of a lease. It refuses when it has promised
// itself to a later epoch, or knows that the node does not hold the lock.
func (h *Handler) Vouch(_ context.Context, active string, epoch cluster.Epoch) error {
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
	h.vouches, h.vouchedFor = time.Now().Add(lifetime(ttl)), active
	return nil
}

// standsBy is the active node that this one vouches for at the moment.
func (h *Handler) standsBy() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Now().Before(h.vouches) {
		return h.vouchedFor
	}
	return ""
}

// vouched lets the lease go on while Consul is silent, if K members of the sync
// set vouch for it: an election needs the answers of more members than remain,
// so for as long as they stand by, nobody else can become active. These are the
// same K that a commit needs. Where the set is empty, nobody but this node could
// be elected anyway.
func (h *Handler) vouched(ctx context.Context, epoch cluster.Epoch) bool {
	view, _, _ := h.snapshot()
	if view.Sync.Epoch != epoch || view.Sync.Leader != h.Node {
		return false
	}
	replies := make(chan error, len(view.Sync.Members))
	for _, m := range view.Sync.Members {
		go func() { replies <- h.Peers.Vouch(ctx, view.Nodes[m], h.Node, epoch) }()
	}
	standing := 0
	for range view.Sync.Members {
		if err := <-replies; err == nil {
			standing++
		}
	}
	h.Log.Info("Consul is silent", "vouched_by", standing, "needed", view.Sync.K, "epoch", epoch)
	return standing >= view.Sync.K
}
