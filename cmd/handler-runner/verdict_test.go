package main

import (
	"context"
	"errors"
	"slices"
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
		a := &adapters{cutOff: make(chan struct{}, 1)}
		go func() {
			ended <- a.noticeVerdicts(ctx, func() cluster.VerdictReport {
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
		if len(a.cutOff) != 1 {
			t.Error("the registry is not read anew")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A node that is found to be cut off takes what it had read for old, and reads anew.
func TestRewatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var happened []string
		cutOff, ended := make(chan struct{}), make(chan error)
		go func() {
			ended <- rewatch(ctx, cutOff, func(ctx context.Context) error {
				happened = append(happened, "begins")
				<-ctx.Done()
				happened = append(happened, "ends")
				return ctx.Err()
			}, func() { happened = append(happened, "lost") })
		}()
		cutOff <- struct{}{}
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if want := []string{"begins", "ends", "lost", "begins", "ends"}; !slices.Equal(happened, want) {
			t.Errorf("got %v, want %v", happened, want)
		}
	})
}
