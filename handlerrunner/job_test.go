package handlerrunner

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

func TestJobsAreDoneOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := job{wake: func() {}}
		var results []error
		failed := errors.New("failed")
		do := func(ctx context.Context) error {
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
			return failed
		}
		then := func(err error) { results = append(results, err) }
		j.start(t.Context(), cluster.Promote, do, then)
		j.start(t.Context(), cluster.Rejoin, func(context.Context) error { t.Error("two at once"); return nil }, then)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(results) != 1 || results[0] != failed {
			t.Fatalf("results %v", results)
		}
		j.start(t.Context(), cluster.Promote, func(context.Context) error { t.Error("decided before the first had ended"); return nil }, then)
		j.observe()
		j.start(t.Context(), cluster.Rejoin, do, then)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(results) != 2 {
			t.Errorf("after the first had ended, none was started: %v", results)
		}
	})
}

func TestCancelWaitsForTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := job{wake: func() {}}
		j.cancel() // nothing is under way
		ended := false
		j.start(t.Context(), cluster.Promote, func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(time.Second) // it cannot be let go at once
			ended = true
			return ctx.Err()
		}, func(error) { t.Error("a job that was cancelled has a result") })
		j.cancel()
		if !ended {
			t.Error("cancel did not wait")
		}
		done := false
		j.observe()
		j.start(t.Context(), cluster.Rejoin, func(context.Context) error { return nil }, func(error) { done = true })
		synctest.Wait()
		if !done {
			t.Error("nothing can be started after cancel")
		}
		j.cancel()
	})
}
