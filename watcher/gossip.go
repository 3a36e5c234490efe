package watcher

import (
	"context"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// rejoinEvery is how often members that gossip has lost are looked for, before
// check_ttl_multiplier.
const rejoinEvery = 2 * time.Second

// rejoin brings managers back into Consul's gossip that it has lost and that answer
// directly: after a partition has healed, gossip alone may take half a minute.
// Until then their Consul servers stay outside.
func (w *watcher) rejoin(ctx context.Context) {
	lost, err := w.Gossip.Failed(ctx)
	if err != nil {
		w.Logger.Debug("the local Consul agent cannot be asked for failed members", "error", err)
		return
	}
	for _, n := range w.answering(time.Now()) {
		if !slices.Contains(lost, n.Name) {
			continue
		}
		if err := w.Gossip.Join(ctx, n.Address); err != nil {
			w.Logger.Debug("a manager answers, and its Consul agent does not", "peer", n.Name, "error", err)
			continue
		}
		w.Logger.Info("manager is brought back into Consul's gossip", "peer", n.Name, "address", n.Address)
	}
}

// answering are the other managers whose last probe was answered, and not too long
// ago.
func (w *watcher) answering(now time.Time) (nodes []cluster.Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fresh := w.members.Options.Stretch(freshFor)
	for _, n := range w.members.Managers {
		c := w.contacts[n.Name]
		if n.Name != w.Node && c.Result == cluster.ProbeAnswered && now.Sub(c.At) <= fresh {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// gossip looks for lost members until ctx ends.
func (w *watcher) gossip(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, nil, jitter(w.stretch(rejoinEvery)))
		limit, cancel := context.WithTimeout(ctx, w.stretch(rejoinEvery))
		w.rejoin(limit)
		cancel()
	}
}
