package main

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Every change of the verdict is noticed, and that it is written anew is not.
func TestNoticeVerdicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var verdict atomic.Value
		verdict.Store(cluster.Majority)
		noticed, ended := 0, make(chan error)
		go func() {
			ended <- noticeVerdicts(ctx, func() cluster.VerdictReport {
				return cluster.VerdictReport{Verdict: verdict.Load().(cluster.Verdict), At: time.Now()}
			}, func() { noticed++ })
		}()
		for i, v := range []cluster.Verdict{cluster.Majority, cluster.Undecided, cluster.Minority, cluster.VerdictUnknown} {
			verdict.Store(v)
			time.Sleep(time.Second)
			synctest.Wait()
			if noticed != i {
				t.Errorf("noticed %d changes when it is %q, want %d", noticed, v, i)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
