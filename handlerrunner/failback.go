package handlerrunner

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	// settleFor is how long the preferred primary must be well before it becomes
	// active again, before check_ttl_multiplier.
	settleFor = 60 * time.Second
	// considerEvery is how often that is looked at.
	considerEvery = 2 * time.Second
	// bringWithin bounds the hand-over, whose checkpoint may take long.
	bringWithin = 10 * time.Minute
)

// bringBack hands over to the preferred primary when it is due, until ctx ends.
// Every node remembers how it fared, because any of them may become active.
func (h *Handler) bringBack(ctx context.Context) {
	tick := time.NewTicker(considerEvery)
	defer tick.Stop()
	var preferred string
	var past cluster.Failback
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		view := h.View()
		if p := view.Options("").Get("preferred_primary"); p != preferred {
			preferred, past = p, cluster.Failback{}
		}
		if preferred != "" {
			past = h.consider(ctx, view, preferred, past)
		}
	}
}

// consider looks at the preferred primary once, and hands over to it if it is due.
func (h *Handler) consider(ctx context.Context, view cluster.View, preferred string, past cluster.Failback) cluster.Failback {
	settle := view.Options("").Stretch(settleFor)
	named := view.NextMaster.Node == preferred
	could := !named && !view.Paused() && h.Mode() == cluster.MajorityMode && h.isWell(ctx, view, preferred)
	next, due := past.Next(time.Now(), named, could, settle)
	if !due {
		return next
	}
	why := fmt.Sprintf("%s is the preferred primary and has been well for %s", preferred, next.Wait(settle))
	h.Journal.Write(cluster.EventFailback, view.NextMaster.Epoch, why, nil)
	try, cancel := context.WithTimeout(ctx, bringWithin)
	defer cancel()
	if err := h.HandOver(try, preferred, why); err != nil {
		next = next.Failed()
		h.Log.Warn("the preferred primary does not come back", "node", preferred, "error", err, "next_try_after", next.Wait(settle))
		return next
	}
	return next.Named(time.Now())
}

// isWell says whether a node could take over from this one with everything: it
// streams, confirms commits, has all files, and nothing keeps it from being active.
func (h *Handler) isWell(ctx context.Context, view cluster.View, node string) bool {
	_, _, db := h.snapshot()
	if cluster.SyncMode(view.Options("").Get("sync_mode")) != cluster.Async && !slices.Contains(view.Sync.Members, node) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	r, err := h.ready(ctx, view, db, node)
	if err != nil {
		h.Log.Debug("the preferred primary is not ready", "node", node, "error", err)
	}
	return err == nil && r.Files == cluster.Yes
}
