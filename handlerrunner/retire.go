package handlerrunner

import (
	"context"
	"errors"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	// hurryWithin is the time for a checkpoint before a hand-over that the
	// host waits for. Without it the one at shutdown takes longer.
	hurryWithin = 2 * time.Second
	// succeedWithin is how long a node that goes down waits for its successor
	// to open: until then it is a standby that confirms commits.
	succeedWithin = 5 * time.Second
)

// Retire prepares for the shutdown of the host, or with down false for going on
// after all. From then on this node is not electable; if it is active, it hands
// over to the best standby, and returns when that one is open to clients. It
// returns soon where there is nothing to do, and in any case when ctx ends.
func (h *Handler) Retire(ctx context.Context, down bool) {
	h.mu.Lock()
	h.retiring = down
	h.mu.Unlock()
	h.Log.Info("host", "going_down", down)
	if !down || h.Mode() != cluster.MajorityMode {
		return
	}
	if err := h.mayHandOver(ctx, order{}); err != nil {
		h.Log.Warn("nothing is handed over before the shutdown", "error", err)
		return
	}
	hurry, cancel := context.WithTimeout(ctx, hurryWithin)
	defer cancel()
	if err := h.Checkpoint(hurry); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		h.Log.Warn("no checkpoint before the hand-over", "error", err)
	}
	if err := h.order(ctx, order{why: "the host of " + h.Node + " is shut down"}); err != nil {
		h.Log.Warn("not handed over before the shutdown", "error", err)
		return
	}
	end, cancel := context.WithTimeout(ctx, succeedWithin)
	defer cancel()
	for {
		l := h.View().Leader
		if l.Held && l.Ready && l.Node != h.Node || sleep(end, 20*time.Millisecond) != nil {
			return
		}
	}
}
