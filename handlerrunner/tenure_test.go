package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// scriptedLease renews as the test says.
type scriptedLease struct {
	renew    func(ctx context.Context) error
	bind     func() error
	released int
	fit      atomic.Pointer[error] // what this node's checks say; nil: all pass
}

var _ Lease = (*scriptedLease)(nil)

func (l *scriptedLease) ID() string                                   { return "session" }
func (l *scriptedLease) Renew(ctx context.Context) error              { return l.renew(ctx) }
func (l *scriptedLease) Bind(context.Context) error                   { return l.bind() }
func (l *scriptedLease) Update(context.Context, cluster.Leader) error { return nil }
func (l *scriptedLease) Release(context.Context) error                { l.released++; return nil }

const ttl = time.Second

// scripted is a scriptedLease, or one that embeds it.
type scripted interface {
	Lease
	says(ctx context.Context) error
}

func (l *scriptedLease) says(context.Context) error {
	if err := l.fit.Load(); err != nil {
		return *err
	}
	return nil
}

// begun returns a tenure of epoch 7 that was asked for at asked; woken is closed
// when it has ended, or a check fails.
func begun(l scripted, asked time.Time) (t *tenure, woken chan struct{}) {
	return vouchedFor(l, asked, false, false)
}

// vouchedFor is begun where the standbys vouch, or do not, while Consul is silent, and
// Consul hears them, or does not.
func vouchedFor(l scripted, asked time.Time, vouched, heard bool) (t *tenure, woken chan struct{}) {
	woken = make(chan struct{})
	t = &tenure{log: slog.New(slog.DiscardHandler), wake: sync.OnceFunc(func() { close(woken) }), fit: l.says,
		vouched: func(context.Context, cluster.Epoch) (bool, bool) { return vouched, heard }, hold: func(time.Time) {},
		retake: func(context.Context, cluster.Epoch, bool) (Lease, error) {
			return nil, errors.New("another was named")
		}}
	t.begin(l, 7, asked, ttl, false)
	return t, woken
}

func mustBe(t *testing.T, x *tenure, want bool) {
	t.Helper()
	if valid, epoch := x.valid(time.Now()); valid != want || epoch != 7 {
		t.Errorf("valid %v for epoch %d, want %v for 7", valid, epoch, want)
	}
}

func TestTenureCountsFromBeforeItWasAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := time.Now()
		time.Sleep(400 * time.Millisecond) // the answer was long in coming
		x, woken := begun(&scriptedLease{renew: func(context.Context) error { return errors.New("no leader") }}, asked)
		defer x.leave()
		time.Sleep(lifetime(ttl) - 400*time.Millisecond - 1)
		mustBe(t, x, true)
		time.Sleep(1)
		mustBe(t, x, false)
		<-woken
	})
}

func TestTenureCountsFromBeforeTheRenewalWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent time.Time
		answers := 0
		x, woken := begun(&scriptedLease{renew: func(ctx context.Context) error {
			if answers++; answers > 1 {
				return errors.New("no leader")
			}
			sent = time.Now()
			return sleep(ctx, 450*time.Millisecond)
		}}, time.Now())
		defer x.leave()
		<-woken
		mustBe(t, x, false)
		if late := time.Since(sent) - lifetime(ttl); late < 0 || late > ttl/renewals {
			t.Errorf("ended %s after its lifetime", late)
		}
		if valid, _ := x.valid(sent.Add(lifetime(ttl) - 1)); !valid {
			t.Error("the renewal did not count")
		}
		if valid, _ := x.valid(sent.Add(lifetime(ttl))); valid {
			t.Error("the renewal counted for longer than from when it was sent")
		}
	})
}

func TestTenureEndsWhileRenewHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		x, woken := begun(&scriptedLease{renew: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}, began)
		defer x.leave()
		<-woken
		mustBe(t, x, false)
		// The driver is woken with the renewal that finds it over, not much later.
		if late := time.Since(began) - lifetime(ttl); late < 0 || late > ttl/2 {
			t.Errorf("woken %s after the end", late)
		}
	})
}

func TestTenureEndsAtOnceWithItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		x, woken := begun(&scriptedLease{renew: func(context.Context) error { return fmt.Errorf("renew: %w", ErrSessionGone) }}, began)
		<-woken
		mustBe(t, x, false)
		if since := time.Since(began); since != ttl/renewals {
			t.Errorf("noticed after %s, want with the first renewal, after %s", since, ttl/renewals)
		}
	})
}

func TestTenureGoesOnWhileItIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		l := &scriptedLease{renew: func(context.Context) error {
			if n++; n%3 != 0 {
				return errors.New("no leader just now")
			}
			return nil
		}}
		x, woken := begun(l, time.Now())
		for range 100 {
			time.Sleep(ttl / 4)
			mustBe(t, x, true)
		}
		x.end(t.Context())
		<-woken
		mustBe(t, x, false)
		x.end(t.Context())
		if l.released != 1 || x.held() != nil {
			t.Errorf("released %d times, want once", l.released)
		}
	})
}

func TestTenureIsLeftToTheNextHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &scriptedLease{renew: func(context.Context) error { return nil }}
		x, woken := begun(l, time.Now())
		x.leave()
		<-woken
		if l.released != 0 {
			t.Error("the lock was given back")
		}
	})
}

// forgetful is Consul that is silent, then back, and after so many renewals more
// without the session.
func forgetful(silences, renewed int) func(context.Context) error {
	n := 0
	return func(context.Context) error {
		switch n++; {
		case n <= silences:
			return errors.New("no leader")
		case n <= silences+renewed:
			return nil
		}
		return fmt.Errorf("renew: %w", ErrSessionGone)
	}
}

// Where Consul was silent until now, the checks do not count. Else they do: one may
// have failed.
func TestTenureTakesTheLockAgain(t *testing.T)            { takesAgain(t, forgetful(20, 0), false) }
func TestTenureTakesTheLockAgainAWhileLater(t *testing.T) { takesAgain(t, forgetful(20, 4), false) }
func TestTenureTakesTheLockAgainIfFit(t *testing.T)       { takesAgain(t, forgetful(0, 4), true) }

func takesAgain(t *testing.T, consul func(context.Context) error, wantFit bool) {
	synctest.Test(t, func(t *testing.T) {
		var held time.Time
		first, second := &scriptedLease{renew: consul}, &scriptedLease{renew: func(context.Context) error { return nil }}
		x := &tenure{log: slog.New(slog.DiscardHandler), wake: func() {}, fit: first.says, hold: func(until time.Time) { held = until },
			vouched: func(context.Context, cluster.Epoch) (bool, bool) { return true, false },
			retake: func(_ context.Context, epoch cluster.Epoch, fit bool) (Lease, error) {
				if epoch != 7 || fit != wantFit {
					t.Errorf("taken again for epoch %d, must be fit: %v", epoch, fit)
				}
				return second, nil
			}}
		x.begin(first, 7, time.Now(), ttl, false)
		for range 40 {
			time.Sleep(ttl / 4)
			mustBe(t, x, true)
		}
		if left := time.Until(held); left < ttl || left > lifetime(ttl) {
			t.Errorf("the guard is held for %s", left)
		}
		x.end(t.Context())
		mustBe(t, x, false)
		if first.released != 0 || second.released != 1 {
			t.Errorf("released %d and %d times", first.released, second.released)
		}
	})
}

func TestTenureIsNotTakenAgainWhereAnotherWasNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, woken := vouchedFor(&scriptedLease{renew: forgetful(1, 0)}, time.Now(), true, false)
		<-woken
		mustBe(t, x, false)
	})
}

// Consul may be silent for as long as it will, if it is for all. If it hears the
// others, something is wrong with this node.
func TestTenureAloneWithoutConsulEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		x, woken := vouchedFor(&scriptedLease{renew: forgetful(1000, 0)}, began, true, true)
		defer x.leave()
		time.Sleep(aloneFor)
		mustBe(t, x, true)
		<-woken
		mustBe(t, x, false)
		if late := time.Since(began) - aloneFor - lifetime(ttl); late < 0 || late > ttl {
			t.Errorf("ended %s after its time", late)
		}
	})
}

func TestTenureWithoutConsulGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, woken := vouchedFor(&scriptedLease{renew: forgetful(1000, 0)}, time.Now(), true, false)
		for range 200 {
			time.Sleep(ttl / 4)
			mustBe(t, x, true)
		}
		x.leave()
		<-woken
	})
}

// A tenure is bound when it has gone on for a while, once; after Consul was silent, again
// after a while, if it was lost.
func TestTenureIsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bound := 0
		answer := error(nil)
		l := &scriptedLease{renew: func(context.Context) error { return nil }, bind: func() error { bound++; return answer }}
		x, woken := begun(l, time.Now())
		bindFor := func(d time.Duration, want int) {
			t.Helper()
			for range d / (100 * time.Millisecond) {
				x.bind(t.Context())
				time.Sleep(100 * time.Millisecond)
			}
			if bound != want {
				t.Errorf("tried %d times to bind it, want %d", bound, want)
			}
		}
		fit := errors.New("the agent does not answer")
		l.fit.Store(&fit)
		bindFor(bindAfter, 0)
		l.fit.Store(nil)
		answer = fmt.Errorf("the servers have not heard: %w", ErrUnfit)
		bindFor(bindAfter/2, 1)
		bindFor(bindAfter, 2)
		mustBe(t, x, true)
		answer = nil
		bindFor(10*bindAfter, 3)
		x.leave()
		<-woken

		x, woken = begun(l, time.Now())
		bound, fit = 0, fmt.Errorf("a check: %w", ErrUnfit)
		l.fit.Store(&fit)
		failed := time.Now()
		<-woken
		if took := time.Since(failed); took > lookEvery {
			t.Errorf("woken after %s", took)
		}
		mustBe(t, x, true)
		bindFor(ttl, 0)
		mustBe(t, x, false)
		x.end(t.Context())
		if l.released != 1 {
			t.Errorf("released %d times, want once", l.released)
		}
	})
}

// Right after Consul was silent for all, the agent's word on the checks does not count.
func TestTenureIsNotEndedByChecksThatExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		l := &scriptedLease{renew: func(context.Context) error {
			if n.Add(1) < 10 {
				return errors.New("no leader")
			}
			return nil
		}}
		x, woken := vouchedFor(l, time.Now(), true, false)
		for n.Load() < 11 {
			time.Sleep(ttl / 10)
		}
		l.fit.Store(&ErrUnfit)
		for range believeAfter / ttl {
			x.bind(t.Context())
			mustBe(t, x, true)
			time.Sleep(ttl - ttl/renewals)
		}
		time.Sleep(ttl)
		x.bind(t.Context())
		mustBe(t, x, false)
		<-woken
		x.end(t.Context())
	})
}
