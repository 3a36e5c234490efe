package main

import (
	"context"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// verdictEvery is how often the watcher's verdict is looked at, between the times
// at which the driver looks around anyway.
const verdictEvery = 100 * time.Millisecond

// noticeVerdicts calls back when the watcher's verdict has changed, until ctx ends.
// When this node is found to be cut off, the registry is to be read anew.
func (a *adapters) noticeVerdicts(ctx context.Context, read func() cluster.VerdictReport, changed func()) error {
	tick := time.NewTicker(verdictEvery)
	defer tick.Stop()
	before := read().Verdict
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		v := read().Verdict
		if v == before {
			continue
		}
		if v == cluster.Minority || v == cluster.Isolated {
			select {
			case a.cutOff <- struct{}{}:
			default:
			}
		}
		before = v
		changed()
	}
}

// rewatch watches the registry until ctx ends. Whenever this node is found to be
// cut off, what was read before is not known to be the newest any more: lost is
// called, and the watch begins anew. By itself a watch takes many seconds to find
// that out, because Consul holds a request in the hope of a leader.
func rewatch(ctx context.Context, cutOff <-chan struct{}, watch func(context.Context) error, lost func()) error {
	for {
		attempt, end := context.WithCancel(ctx)
		watching := make(chan error, 1)
		go func() { watching <- watch(attempt) }()
		select {
		case err := <-watching:
			end()
			return err
		case <-cutOff:
			end()
			<-watching
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		lost()
	}
}
