package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// The leader's session lives leaseTTL after its last renewal by Consul's
// promise, and leaseFactor times as long by its practice (session TTL timers
// run twice the TTL: agent/structs/structs.go, SessionTTLMultiplier). The
// practice is used, less a margin: a fence that comes late costs stale reads,
// never an acknowledged write, because those need standbys that have not
// promised to another epoch.
const (
	leaseTTL    = time.Second
	leaseFactor = 1.8
	renewals    = 3 // in a TTL
	calmAfter   = 8 // TTLs in which Consul, silent until now, may yet lose the session
	// bindAfter is how long Consul must have been within reach before the lock falls with
	// this node's checks. Where it was not, its servers may hear late of failures that
	// are over; see aloneFor.
	bindAfter = 15 * leaseTTL
	// believeAfter is when the agent's own word on the checks counts again. One that stood
	// still has all of them for expired until it hears of them.
	believeAfter = 3 * leaseTTL
	// lookEvery is how soon it is noticed that a check fails which the lock does not fall
	// with: Consul tells of it at once where it does.
	lookEvery = 50 * time.Millisecond
	// aloneFor is how long the lease goes on while Consul hears other nodes, but not this
	// one. An agent that was cut off from Consul's leader before may go on using the same
	// connection, on which TCP waits as long again before it tries anew; after 30 to 40 s
	// the agent closes it by itself (yamux: KeepAliveInterval, ConnectionWriteTimeout).
	aloneFor = 15 * leaseTTL
	// releaseWithin bounds the release: then the session has ended by itself. It
	// has nearly done so where Consul was silent until the lease was over, and a
	// fenced node that is cut off need not wait for the answer.
	releaseWithin       = 2 * leaseTTL
	releaseSilentWithin = leaseTTL / 2
)

// tenure is the time in which this node may accept writes. It is kept by the
// local monotonic clock, counted from before each renewal was sent.
type tenure struct {
	log  *slog.Logger
	wake func() // called when the tenure has ended, or may have to
	// vouched asks the standbys whether they stand by the active of an epoch, so that
	// no election can succeed for the lifetime of a lease. Consul may hear them: then
	// they have renewed the session.
	vouched func(ctx context.Context, epoch cluster.Epoch) (standing, heard bool)
	hold    func(until time.Time) // tells who watches over this process
	// retake takes the lock again for an epoch, in a new session; where it must be
	// fit, only if this node passes its checks.
	retake func(ctx context.Context, epoch cluster.Epoch, fit bool) (Lease, error)
	fit    func(ctx context.Context) error // ErrUnfit where this node does not pass its checks

	mu      sync.Mutex
	lease   Lease     // the latest; nil when none was begun, or it was given back
	over    bool      // it is being given back
	bound   bool      // it falls with this node's checks
	stirred time.Time // when it last did not simply go on
	silent  time.Time // when Consul was last silent
	epoch   cluster.Epoch
	until   time.Time
	stop    context.CancelFunc
	done    chan struct{}
	doubt   chan struct{} // the lock may be lost
}

// begin holds on to a lease that was asked for at asked, and renews it until
// end is called or it is lost.
func (t *tenure) begin(l Lease, epoch cluster.Epoch, asked time.Time, ttl time.Duration, bound bool) {
	ctx, stop := context.WithCancel(context.Background())
	t.mu.Lock()
	t.lease, t.over, t.epoch, t.stop, t.done, t.doubt = l, false, epoch, stop, make(chan struct{}), make(chan struct{}, 1)
	t.bound, t.stirred, t.silent = bound, asked, time.Time{}
	t.until = asked.Add(lifetime(ttl))
	done, doubt := t.done, t.doubt
	t.hold(t.until)
	t.mu.Unlock()
	go func() {
		defer close(done)
		var looking sync.WaitGroup
		looking.Go(func() { t.lookOut(ctx) })
		t.renew(ctx, l, ttl, doubt)
		stop()
		looking.Wait()
		t.wake()
	}()
}

// renewNow has the lease renewed without delay, because the lock was seen free.
func (t *tenure) renewNow() {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case t.doubt <- struct{}{}:
	default:
	}
}

func lifetime(ttl time.Duration) time.Duration {
	return time.Duration(float64(ttl) * leaseFactor)
}

func (t *tenure) renew(ctx context.Context, l Lease, ttl time.Duration, doubt <-chan struct{}) {
	tick := time.NewTicker(ttl / renewals)
	defer tick.Stop()
	r := renewal{lease: l}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-doubt:
		}
		r = t.attempt(ctx, r, ttl)
		over := t.take(r, ttl)
		if r.err != nil && ctx.Err() == nil {
			t.log.Warn("lease not renewed", "error", r.err, "epoch", t.epoch)
		}
		if over {
			return
		}
	}
}

// renewal is what came of one attempt to have the lease go on.
type renewal struct {
	lease   Lease
	asked   time.Time // before the request that decided was sent
	err     error     // of an attempt by which it does not go on
	stirred bool      // the session was not simply renewed
	vouched bool      // Consul was silent, and the standbys stand by this node
	gone    bool      // the session has ended for good
	alone   time.Time // since when Consul hears other nodes, but not this one
}

// attempt renews the session, and where that cannot be done has the lease go on in
// another way.
func (t *tenure) attempt(ctx context.Context, before renewal, ttl time.Duration) renewal {
	r := renewal{lease: before.lease, asked: time.Now()}
	try, cancel := context.WithTimeout(ctx, ttl/2)
	r.err = r.lease.Renew(try)
	cancel()
	if r.err == nil || ctx.Err() != nil {
		return r
	}
	r.stirred, r.asked, r.alone = true, time.Now(), before.alone
	try, cancel = context.WithTimeout(ctx, ttl/2)
	defer cancel()
	switch {
	case errors.Is(r.err, ErrSessionGone):
		// Consul has forgotten the session, or has heard of a check that fails. That
		// may be long over, and where Consul was silent until now, the agents take
		// their checks for expired. Nobody can be named once the lock is taken again,
		// and whoever was has it.
		unsettled := t.unsettled(ttl)
		again, err := t.retake(try, t.epoch, !unsettled)
		r.err, r.gone = err, err != nil && !unsettled
		if err == nil {
			r.lease = again
		}
	case !r.alone.IsZero() && time.Since(r.alone) >= aloneFor:
		r.err = fmt.Errorf("Consul has heard other nodes for %s, but not this one; they are not asked to vouch any more: %w", aloneFor, r.err)
	default:
		// Consul is silent, which is neither a partition nor a rival.
		standing, heard := t.vouched(try, t.epoch)
		if standing {
			r.err, r.vouched = nil, true
		}
		if heard && r.alone.IsZero() {
			r.alone = r.asked
		}
	}
	return r
}

// unsettled says that Consul was silent until a moment ago.
func (t *tenure) unsettled(ttl time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Since(t.silent) < calmAfter*ttl
}

// take has the lease go on, or not, and says whether it is over.
func (t *tenure) take(r renewal, ttl time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.lease != t.lease {
		t.lease, t.bound = r.lease, false
	}
	if r.stirred {
		t.stirred = r.asked
	}
	if r.vouched {
		t.silent = r.asked
	}
	switch {
	case r.err == nil && !t.over:
		t.until = r.asked.Add(lifetime(ttl))
		t.hold(t.until)
	case r.gone:
		t.until = time.Time{}
	}
	return !time.Now().Before(t.until)
}

// valid says whether this node holds the lock now, and for which epoch.
func (t *tenure) valid(now time.Time) (bool, cluster.Epoch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lease != nil && !t.over && now.Before(t.until), t.epoch
}

// bind has the lock fall with this node's checks, once the lease has gone on
// undisturbed for bindAfter. Until then it looks at them itself: where one fails, the
// tenure is over.
func (t *tenure) bind(ctx context.Context) {
	t.mu.Lock()
	l := t.lease
	open := l != nil && !t.over && !t.bound
	due, believed := time.Since(t.stirred) > bindAfter, time.Since(t.silent) > believeAfter
	t.mu.Unlock()
	if !open || !believed {
		return
	}
	err := t.fit(ctx)
	unfit := errors.Is(err, ErrUnfit)
	if err == nil && due {
		err = l.Bind(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if l != t.lease {
		return
	}
	switch {
	case unfit:
		t.over, t.until = true, time.Time{}
		t.stop()
	case due && err == nil:
		t.bound = true
	case due:
		t.stirred = time.Now()
	}
	if err != nil {
		t.log.Warn("the lock is not bound to this node's checks", "error", err, "epoch", t.epoch)
	}
}

// lookOut wakes the driver, for bind, when a check fails that the lock is not bound to.
func (t *tenure) lookOut(ctx context.Context) {
	unfit, pause := false, lookEvery
	for sleep(ctx, pause) == nil {
		t.mu.Lock()
		bound := t.bound
		t.mu.Unlock()
		if bound {
			unfit, pause = false, tick
			continue
		}
		before := unfit
		unfit, pause = errors.Is(t.fit(ctx), ErrUnfit), lookEvery
		if unfit && !before {
			t.wake()
		}
	}
}

func (t *tenure) held() Lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lease
}

// end stops renewing and gives the lock back. What Consul does not hear ends
// by the session's TTL.
func (t *tenure) end(ctx context.Context) {
	t.mu.Lock()
	begun, stop, done := t.lease != nil, t.stop, t.done
	within := releaseWithin
	if !t.until.IsZero() && !time.Now().Before(t.until) {
		within = releaseSilentWithin
	}
	t.over, t.until = true, time.Time{}
	t.mu.Unlock()
	if !begun {
		return
	}
	stop()
	<-done
	t.mu.Lock()
	l := t.lease
	t.lease = nil
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := l.Release(ctx); err != nil && !errors.Is(err, ErrSessionGone) {
		t.log.Warn("lock not released; its session will expire", "error", err)
	}
}

// leave stops renewing without giving the lock back: the next handler-runner
// on this node adopts it.
func (t *tenure) leave() {
	t.mu.Lock()
	stop, done := t.stop, t.done
	t.mu.Unlock()
	if stop != nil {
		stop()
		<-done
	}
}
