package handlerrunner

import (
	"context"
	"errors"
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
	wake func() // called when the tenure has ended
	// vouched asks the standbys whether they stand by the active of an epoch,
	// so that no election can succeed for the lifetime of a lease.
	vouched func(ctx context.Context, epoch cluster.Epoch) bool
	hold    func(until time.Time) // tells who watches over this process
	// retake takes the lock again for an epoch, in a new session.
	retake func(ctx context.Context, epoch cluster.Epoch) (Lease, error)

	mu    sync.Mutex
	lease Lease // the latest; nil when none was begun, or it was given back
	over  bool  // it is being given back
	epoch cluster.Epoch
	until time.Time
	stop  context.CancelFunc
	done  chan struct{}
}

// begin holds on to a lease that was asked for at asked, and renews it until
// end is called or it is lost.
func (t *tenure) begin(l Lease, epoch cluster.Epoch, asked time.Time, ttl time.Duration) {
	ctx, stop := context.WithCancel(context.Background())
	t.mu.Lock()
	t.lease, t.over, t.epoch, t.stop, t.done = l, false, epoch, stop, make(chan struct{})
	t.until = asked.Add(lifetime(ttl))
	done := t.done
	t.hold(t.until)
	t.mu.Unlock()
	go func() {
		defer close(done)
		t.renew(ctx, l, ttl)
		t.wake()
	}()
}

func lifetime(ttl time.Duration) time.Duration {
	return time.Duration(float64(ttl) * leaseFactor)
}

func (t *tenure) renew(ctx context.Context, l Lease, ttl time.Duration) {
	tick := time.NewTicker(ttl / renewals)
	defer tick.Stop()
	var vouched time.Time // last, because Consul was silent
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asked := time.Now()
		try, cancel := context.WithTimeout(ctx, ttl/2)
		err := l.Renew(try)
		cancel()
		gone := errors.Is(err, ErrSessionGone)
		unsettled := time.Since(vouched) < calmAfter*ttl
		switch {
		case gone && unsettled:
			// Consul is back, and has forgotten the session or found the checks
			// that it is bound to expired. Nobody can be named once the lock is
			// taken again, and whoever was has it.
			asked = time.Now()
			try, cancel := context.WithTimeout(ctx, ttl/2)
			var again Lease
			if again, err = t.retake(try, t.epoch); err == nil {
				l, gone = again, false
			}
			cancel()
		case err != nil && !gone && ctx.Err() == nil:
			// Consul is silent, which is neither a partition nor a rival.
			asked = time.Now()
			try, cancel := context.WithTimeout(ctx, ttl/2)
			if t.vouched(try, t.epoch) {
				err, vouched = nil, asked
			}
			cancel()
		}
		t.mu.Lock()
		t.lease = l
		switch {
		case err == nil && !t.over:
			t.until = asked.Add(lifetime(ttl))
			t.hold(t.until)
		case gone && !unsettled:
			t.until = time.Time{}
		}
		over := !time.Now().Before(t.until)
		t.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			t.log.Warn("lease not renewed", "error", err, "epoch", t.epoch)
		}
		if over {
			return
		}
	}
}

// valid says whether this node holds the lock now, and for which epoch.
func (t *tenure) valid(now time.Time) (bool, cluster.Epoch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lease != nil && !t.over && now.Before(t.until), t.epoch
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
