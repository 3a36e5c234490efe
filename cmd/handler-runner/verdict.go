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
func noticeVerdicts(ctx context.Context, read func() cluster.VerdictReport, changed func()) error {
	tick := time.NewTicker(verdictEvery)
	defer tick.Stop()
	before := read().Verdict
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if v := read().Verdict; v != before {
			before = v
			changed()
		}
	}
}
