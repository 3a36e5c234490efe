package main

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/statefile"
)

// Every change of the verdict is noticed, and that it is written anew is not.
func TestNoticeVerdicts(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a := &adapters{host: &node.Host{Layout: config.Layout{Run: t.TempDir()}}, cutOff: make(chan struct{}, 1)}
	write := func(v cluster.Verdict) {
		t.Helper()
		if err := statefile.Write(a.host.Layout.Verdict(), cluster.VerdictReport{Verdict: v, At: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	noticed, ended := make(chan cluster.Verdict, 10), make(chan error)
	go func() { ended <- a.noticeVerdicts(ctx, func() { noticed <- a.host.Verdict().Verdict }) }()
	for _, v := range []cluster.Verdict{cluster.Majority, cluster.Undecided, cluster.Minority, cluster.Majority} {
		write(v)
		if got := <-noticed; got != v {
			t.Errorf("noticed %q, want %q", got, v)
		}
		write(v)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(noticed) > 0 || len(a.cutOff) != 1 {
		t.Errorf("%d more changes noticed, read anew: %d", len(noticed), len(a.cutOff))
	}
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
