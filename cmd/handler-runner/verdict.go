package main

import (
	"context"
	"os"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// verdictEvery is how often the watcher's verdict is looked at, between the times
// at which the driver looks around anyway.
const verdictEvery = 100 * time.Millisecond

// noticeVerdicts calls back when the watcher has written another verdict, until ctx
// ends. When this node is found to be cut off, the registry is to be read anew.
func (a *adapters) noticeVerdicts(ctx context.Context, changed func()) error {
	tick := time.NewTicker(verdictEvery)
	defer tick.Stop()
	file := a.host.Layout.Verdict()
	before := cluster.VerdictUnknown
	var seen os.FileInfo
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := os.Stat(file)
		if err != nil || seen != nil && os.SameFile(seen, now) && seen.ModTime().Equal(now.ModTime()) {
			continue
		}
		seen = now
		v := a.host.Verdict().Verdict
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
