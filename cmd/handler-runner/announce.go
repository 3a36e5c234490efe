package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
)

const (
	// roleEvery is how often the node's role is looked at, which takes no I/O.
	roleEvery = 200 * time.Millisecond
	// roleTTL is for how long the node keeps its name in DNS when this process does
	// not run, before check_ttl_multiplier: longer than a restart takes.
	roleTTL = 10 * time.Second
	// announceAgain is the pause after an announcement that has failed.
	announceAgain = time.Second
	// turnsWithin is how long a standby may take to turn from one active node to
	// another, and be a standby all the same.
	turnsWithin = 2 * time.Second
)

// announcer keeps Consul's DNS naming this node by its role.
type announcer struct {
	role     func() cluster.Role
	announce func(context.Context, cluster.Role) error
	keep     func(context.Context) error // wraps registry.ErrNotRegistered where nothing is announced
	ttl      func() time.Duration
	log      *slog.Logger

	said      cluster.Role
	known     bool      // said is what DNS has
	since     time.Time // when said was last the role
	kept      time.Time // when the TTL last began
	notBefore time.Time // of the next announcement
}

// run does so until ctx ends.
func (n *announcer) run(ctx context.Context) error {
	tick := time.NewTicker(roleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			n.step(ctx, time.Now())
		}
	}
}

func (n *announcer) step(ctx context.Context, now time.Time) {
	role := n.role()
	if role == n.said {
		n.since = now
	}
	turning := n.said == cluster.RoleStandby && role == cluster.RoleNone && now.Sub(n.since) < turnsWithin
	switch {
	case (!n.known || role != n.said) && !turning:
		if now.Before(n.notBefore) {
			return
		}
		err := n.announce(ctx, role)
		if err != nil {
			n.known, n.notBefore = false, now.Add(announceAgain)
			n.log.Debug("role not announced", "role", string(role), "error", err)
			return
		}
		n.log.Info("announced in DNS", "role", string(role))
		n.said, n.known, n.since, n.kept = role, true, now, now
	case now.Sub(n.kept) >= n.ttl()/4:
		err := n.keep(ctx)
		if errors.Is(err, registry.ErrNotRegistered) {
			n.known = false // the agent has lost it
		}
		if err != nil {
			n.log.Debug("announcement not kept", "error", err)
			return
		}
		n.kept = now
	}
}
