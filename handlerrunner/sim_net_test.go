package handlerrunner

import (
	"context"
	"errors"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// arrives waits for a message on its way, and says whether it comes.
func (s *simulation) arrives(d *dice, from, to string) bool {
	took := d.between(200*time.Microsecond, 3*time.Millisecond)
	s.mu.Lock()
	lost, passes := s.loss > 0 && d.chance(s.loss), s.linked(from, to)
	if s.loss > 0 && d.chance(0.3) {
		took += d.upTo(3 * time.Second) // sent again and again, or through a long queue
	}
	s.mu.Unlock()
	if lost || !passes || sleep(s.ctx, took) != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.linked(from, to)
}

// exchange sends a request to another end and waits for its reply, for as long
// as the caller does. The request is served whether or not anybody waits still,
// sometimes twice, and the reply has a way of its own.
func exchange[T any](ctx context.Context, p *proc, to, op string, serve func(*dice) (T, error)) (T, error) {
	type reply struct {
		value T
		err   error
	}
	var none T
	own, err := p.pass(ctx, op, 20*time.Microsecond, 200*time.Microsecond)
	if err != nil {
		return none, err
	}
	s := p.s
	d, back := &dice{own.next()}, &dice{own.next()}
	s.mu.Lock()
	twice := s.loss > 0 && d.chance(0.1)
	s.mu.Unlock()
	replies := make(chan reply, 1)
	s.running.Go(func() {
		if !s.arrives(d, p.name, to) {
			return
		}
		v, err := serve(d)
		if twice && sleep(s.ctx, d.upTo(2*time.Second)) == nil {
			_, _ = serve(d)
		}
		if !errors.Is(err, errSilent) && s.arrives(back, to, p.name) {
			replies <- reply{v, err}
		}
	})
	var got reply
	select {
	case got = <-replies:
	case <-ctx.Done():
		got.err = ctx.Err()
	}
	if err := p.after(own, op); err != nil {
		return none, err
	}
	return got.value, got.err
}

// errSilent: the other end does not answer.
var errSilent = errors.New("no answer")

// simPeers are the other nodes across the network.
type simPeers struct{ p *proc }

var _ Peers = simPeers{}

// ask lets the handler of another host serve a request. A host that stands still
// serves it when it goes on.
func ask[T any](ctx context.Context, p *proc, to, op string, serve func(context.Context, *Handler) (T, error)) (T, error) {
	return exchange(ctx, p, to, op+" "+to, func(d *dice) (T, error) {
		var none T
		s := p.s
		s.mu.Lock()
		other := s.procs[to]
		var h *Handler
		if other != nil && !other.dead {
			h = other.handler
		}
		dark := other == nil || other.dead
		s.mu.Unlock()
		switch {
		case dark:
			return none, errSilent
		case h == nil:
			return none, errors.New("connection refused")
		}
		if other.awake(d) != nil {
			return none, errSilent
		}
		ctx, cancel := context.WithTimeout(s.ctx, actWithin)
		defer cancel()
		v, err := serve(ctx, h)
		if other.awake(d) != nil {
			return none, errSilent
		}
		return v, err
	})
}

func (n simPeers) Detach(ctx context.Context, node cluster.Node, epoch cluster.Epoch, seen uint64) (cluster.Answer, error) {
	return ask(ctx, n.p, node.Name, "Detach", func(ctx context.Context, h *Handler) (cluster.Answer, error) {
		a, err := h.Detach(ctx, n.p.name, epoch, seen)
		n.p.s.answered(n.p.name, h.Node, epoch, seen, a, err)
		return a, err
	})
}

func (n simPeers) Lend(ctx context.Context, node cluster.Node, epoch cluster.Epoch) (cluster.Loan, error) {
	return ask(ctx, n.p, node.Name, "Lend", func(ctx context.Context, h *Handler) (cluster.Loan, error) {
		loan, err := h.Lend(ctx, n.p.name, epoch)
		if err == nil {
			n.p.s.mu.Lock()
			n.p.s.count("loans")
			n.p.s.mu.Unlock()
		}
		return loan, err
	})
}

func (n simPeers) Vouch(ctx context.Context, node cluster.Node, active string, epoch cluster.Epoch) (bool, error) {
	return ask(ctx, n.p, node.Name, "Vouch", func(ctx context.Context, h *Handler) (bool, error) {
		return h.Vouch(ctx, active, epoch)
	})
}

func (n simPeers) Report(ctx context.Context, node cluster.Node) (cluster.Report, error) {
	return ask(ctx, n.p, node.Name, "Report", func(ctx context.Context, h *Handler) (cluster.Report, error) {
		return h.Report(ctx), nil
	})
}

// simStore is the registry across the network.
type simStore struct{ p *proc }

var _ Store = (*simStore)(nil)

// consult sends a request to the registry, which does not answer while it is
// down.
func consult[T any](ctx context.Context, p *proc, op string, serve func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second) // as the client of the registry does
	defer cancel()
	return exchange(ctx, p, consul, op, func(*dice) (T, error) {
		p.s.mu.Lock()
		down := p.s.reg.down
		p.s.mu.Unlock()
		if down {
			var none T
			return none, errors.New("no cluster leader")
		}
		return serve()
	})
}

func (c *simStore) inner() *fakeStore { return &fakeStore{c.p.host} }

func (c *simStore) View(ctx context.Context) (cluster.View, error) {
	return consult(ctx, c.p, "View", func() (cluster.View, error) { return c.inner().View(c.p.s.ctx) })
}

// Watch reads again when something has changed, and while nothing can be read.
func (c *simStore) Watch(ctx context.Context, see func(cluster.View, bool)) error {
	s, was := c.p.s, cluster.Unknown
	var seen uint64
	for {
		s.mu.Lock()
		changed := s.reg.changed
		d := c.p.roll("Watch")
		s.mu.Unlock()
		try, cancel := context.WithTimeout(ctx, time.Second)
		v, err := consult(try, c.p, "watch", func() (cluster.View, error) { return c.inner().View(s.ctx) })
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if ok := cluster.TriOf(err == nil); ok != was || err == nil && v.Index != seen {
			was = ok
			if err == nil {
				seen = v.Index
			}
			see(v, err == nil)
		}
		if err := c.wait(ctx, d, changed, err != nil); err != nil {
			return err
		}
	}
}

// wait is the long poll: it ends with a change that this host can hear of.
func (c *simStore) wait(ctx context.Context, d *dice, changed chan struct{}, failing bool) error {
	patience := d.between(2*time.Second, 5*time.Second)
	if failing {
		patience = d.between(100*time.Millisecond, 400*time.Millisecond)
	}
	end := time.NewTimer(patience)
	defer end.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-end.C:
		return nil
	case <-changed:
	}
	s := c.p.s
	s.mu.Lock()
	hears := s.speaks(c.p.host)
	s.mu.Unlock()
	if hears {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-end.C:
		return nil
	}
}

func (c *simStore) SetNextMaster(ctx context.Context, seen cluster.View, a cluster.Assignment) (bool, error) {
	return consult(ctx, c.p, "SetNextMaster", func() (bool, error) {
		ok, err := c.inner().SetNextMaster(c.p.s.ctx, seen, a)
		if ok {
			c.p.s.named(seen.Leader)
		}
		return ok, err
	})
}

func (c *simStore) SetSync(ctx context.Context, session string, index uint64, set cluster.SyncSet) (bool, error) {
	return consult(ctx, c.p, "SetSync", func() (bool, error) { return c.inner().SetSync(c.p.s.ctx, session, index, set) })
}

// simLocks gives out the lock of the registry across the network.
type simLocks struct{ p *proc }

var _ Locks = (*simLocks)(nil)

func (l *simLocks) Acquire(ctx context.Context, value cluster.Leader, ttl time.Duration, bound bool) (Lease, error) {
	return consult(ctx, l.p, "Acquire", func() (Lease, error) {
		lease, err := (&fakeLocks{l.p.host}).Acquire(l.p.s.ctx, value, ttl, bound)
		if err != nil {
			return nil, err
		}
		l.p.s.locked(value)
		return &simLease{lease.(*fakeLease), l.p}, nil
	})
}

func (l *simLocks) Fit(ctx context.Context) error {
	if _, err := l.p.pass(ctx, "Fit", 20*time.Microsecond, 200*time.Microsecond); err != nil {
		return err
	}
	return (&fakeLocks{l.p.host}).Fit(ctx)
}

func (l *simLocks) Adopt(ctx context.Context, epoch cluster.Epoch) (Lease, error) {
	return consult(ctx, l.p, "Adopt", func() (Lease, error) {
		lease, err := (&fakeLocks{l.p.host}).Adopt(l.p.s.ctx, epoch)
		if err != nil {
			return nil, err
		}
		return &simLease{lease.(*fakeLease), l.p}, nil
	})
}

func (l *simLocks) Renew(ctx context.Context, session string) error {
	_, err := consult(ctx, l.p, "Renew", func() (bool, error) {
		return true, (&fakeLocks{l.p.host}).Renew(l.p.s.ctx, session)
	})
	return err
}

// simLease is the lock in the hands of a host.
type simLease struct {
	*fakeLease
	p *proc
}

func (l *simLease) change(ctx context.Context, op string, do func() error) error {
	_, err := consult(ctx, l.p, op, func() (bool, error) { return true, do() })
	return err
}

func (l *simLease) Renew(ctx context.Context) error {
	return l.change(ctx, "Renew", func() error { return l.fakeLease.Renew(l.p.s.ctx) })
}

func (l *simLease) Bind(ctx context.Context) error {
	return l.change(ctx, "Bind", func() error { return l.fakeLease.Bind(l.p.s.ctx) })
}

func (l *simLease) Update(ctx context.Context, value cluster.Leader) error {
	return l.change(ctx, "Update", func() error {
		err := l.fakeLease.Update(l.p.s.ctx, value)
		if err == nil {
			l.p.s.updated(value)
		}
		return err
	})
}

func (l *simLease) Release(ctx context.Context) error {
	return l.change(ctx, "Release", func() error { return l.fakeLease.Release(l.p.s.ctx) })
}
