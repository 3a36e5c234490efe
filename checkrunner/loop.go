package checkrunner

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	retryEvery  = time.Second            // a registry or unit manager that cannot be reached
	retrySoon   = 100 * time.Millisecond // the connection to the database
	heldWell    = time.Second            // a connection that lasted this long was a good one
	postLimit   = 2 * time.Second        // one call of the local agent
	settleEvery = 5 * time.Second        // between looks at what the servers have
	settleAgain = time.Second            // where it was not what the agent has
	probeSoon   = 150 * time.Millisecond // between measurements while a check does not pass
	soonFor     = time.Minute            // how long after the last good one that goes on

	// An agent that comes back has every check for failed until it hears of it, and
	// tells the servers so as soon as they have a leader. That would end the session of
	// an active node that is well.
	repostSoon = 200 * time.Millisecond
)

// measurement takes one look. It honours ctx.
type measurement func(ctx context.Context) finding

// check is one TTL check and the memory of its loop, which alone uses it.
type check struct {
	name    cluster.Check
	measure measurement
	kick    chan struct{} // measure now
	log     *slog.Logger

	past   history
	posted action    // the last post that arrived
	at     time.Time // when it arrived
}

// loop measures and posts one check until ctx ends.
func (r *runner) loop(ctx context.Context, c *check) {
	c.past = history{good: time.Now()}
	for ctx.Err() == nil {
		d := r.step(ctx, c)
		pause(ctx, c.kick, c.delay(time.Now(), d, r.interval(c.name)))
	}
}

// step measures, decides and posts once.
func (r *runner) step(ctx context.Context, c *check) decision {
	limit, cancel := context.WithTimeout(ctx, r.options().Stretch(time.Second))
	f := c.measure(limit)
	cancel()
	now := time.Now()
	rules := rules{ttl: r.ttl(c.name), failFast: r.options().Bool("check_fail_fast")}
	before := c.past
	var d decision
	d, c.past = decide(now, rules, c.past, f)
	c.log.Debug("measured", "health", f.health.String(), "output", f.text, "post", d.post.String())

	interval := r.interval(c.name)
	if d.post == nothing || d.post == c.posted && now.Sub(c.at) < interval/2 {
		return d
	}
	call, stop := context.WithTimeout(ctx, postLimit)
	err := r.Poster.Post(call, c.name, d.post == pass, d.text)
	stop()
	if ctx.Err() != nil {
		return d
	}
	r.online.report(ctx, "post "+string(c.name), err)
	if err != nil {
		c.posted = nothing
		signal(r.again)
		return d
	}
	if d.post != c.posted {
		c.log.Info("check "+d.post.String(), "output", d.text)
	}
	if c.name == cluster.CheckAnswer && d.post == pass && before.failing {
		signal(r.revived)
	}
	c.posted, c.at = d.post, now
	return d
}

// interval is the time between two measurements, and two renewals, of a check
// that passes.
func (r *runner) interval(name cluster.Check) time.Duration {
	if name == cluster.CheckHeartbeat {
		return r.options().Stretch(heartbeatEvery)
	}
	return r.ttl(name) / 3
}

// delay is the time until the next measurement: short while the check does not
// pass, so that a recovery is soon noticed, and while the agent does not hear of it,
// but not for ever.
func (c *check) delay(now time.Time, d decision, interval time.Duration) time.Duration {
	if !d.good && now.Sub(c.past.good) < soonFor {
		return min(probeSoon, interval)
	}
	if unheard := d.post != nothing && c.posted == nothing; unheard && now.Sub(c.at) < soonFor {
		return min(repostSoon, interval)
	}
	return interval
}

// reach logs once when the local agent stops to answer and once when it answers
// again, however many loops call it.
type reach struct {
	log *slog.Logger

	mu     sync.Mutex
	failed map[string]bool // by kind of call
}

func (r *reach) report(ctx context.Context, call string, err error) {
	if ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	was := len(r.failed) > 0
	if err != nil {
		if r.failed == nil {
			r.failed = map[string]bool{}
		}
		r.failed[call] = true
	} else {
		delete(r.failed, call)
	}
	is := len(r.failed) > 0
	r.mu.Unlock()

	switch {
	case is && !was:
		r.log.Warn("the local Consul agent does not answer", "call", call, "error", err)
	case was && !is:
		r.log.Info("the local Consul agent answers again", "call", call)
	case err != nil:
		r.log.Debug("the local Consul agent does not answer", "call", call, "error", err)
	}
}
