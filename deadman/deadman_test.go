package deadman_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/deadman"
)

// watched runs Watch until the test ends; every call of act is told, with its turn.
func watched(t *testing.T, s deadman.Switch, grace time.Duration, fails int) <-chan time.Time {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	calls, done := make(chan time.Time, 100), make(chan struct{})
	go func() {
		defer close(done)
		s.Watch(ctx, grace, func(context.Context) error {
			calls <- time.Now()
			if fails--; fails >= 0 {
				return errors.New("not yet")
			}
			return nil
		})
	}()
	t.Cleanup(func() { stop(); <-done })
	return calls
}

func newSwitch(t *testing.T) deadman.Switch {
	return deadman.Switch(filepath.Join(t.TempDir(), "switch"))
}

func TestActsWhenNotHeldAgain(t *testing.T) {
	s := newSwitch(t)
	until := time.Now().Add(200 * time.Millisecond)
	if err := s.Hold(until); err != nil {
		t.Fatal(err)
	}
	const grace = 100 * time.Millisecond
	calls := watched(t, s, grace, 2)
	for range 3 { // two fail
		if at := <-calls; at.Before(until.Add(grace)) {
			t.Errorf("acted %s too early", until.Add(grace).Sub(at))
		}
	}
	quiet(t, calls)
}

func TestDoesNotActWhileHeldOrReleased(t *testing.T) {
	s := newSwitch(t)
	calls := watched(t, s, 0, 0)
	for range 20 {
		if err := s.Hold(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	quiet(t, calls)
	for range 2 {
		if err := s.Release(); err != nil {
			t.Fatal(err)
		}
	}
	quiet(t, calls)
	if err := s.Hold(time.Now()); err != nil {
		t.Fatal(err)
	}
	<-calls
}

// quiet asserts that nothing is done for some rounds of Watch.
func quiet(t *testing.T, calls <-chan time.Time) {
	t.Helper()
	select {
	case <-calls:
		t.Error("acted on a switch that is held, or that nobody holds")
	case <-time.After(300 * time.Millisecond):
	}
}
