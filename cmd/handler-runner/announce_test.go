package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
)

// dns is what was announced, or kept, one after the other.
type dns struct {
	role    cluster.Role
	said    []string
	kept    int
	silent  bool // nothing can be announced
	nothing bool // nothing is announced, as the agent knows it
}

// play lets an announcer of the node run while things happen to it; pass lets time pass.
func (d *dns) play(ctx context.Context, happens func(d *dns, pass func(time.Duration))) {
	n := &announcer{
		role: func() cluster.Role { return d.role },
		announce: func(_ context.Context, r cluster.Role) error {
			if d.silent {
				return errors.New("no leader")
			}
			d.said, d.nothing = append(d.said, fmt.Sprintf("%q", r)), false
			return nil
		},
		keep: func(context.Context) error {
			if d.nothing {
				return registry.ErrNotRegistered
			}
			d.kept++
			return nil
		},
		ttl: func() time.Duration { return roleTTL },
		log: slog.New(slog.DiscardHandler),
	}
	now := time.Unix(0, 0)
	happens(d, func(t time.Duration) {
		for end := now.Add(t); now.Before(end); now = now.Add(roleEvery) {
			n.step(ctx, now)
		}
	})
}

func TestAnnouncements(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(*dns, func(time.Duration))
		want    []string
	}{
		"a standby becomes active": {func(d *dns, pass func(time.Duration)) {
			d.role = cluster.RoleStandby
			pass(roleTTL)
			d.role = cluster.RoleNone // detached, and promoted
			pass(turnsWithin / 2)
			d.role = cluster.RoleActive
			pass(roleEvery)
		}, []string{`"standby"`, `"active"`}},
		"a standby turns to another active": {func(d *dns, pass func(time.Duration)) {
			d.role = cluster.RoleStandby
			pass(time.Second)
			d.role = cluster.RoleNone
			pass(turnsWithin / 2)
			d.role = cluster.RoleStandby
			pass(time.Minute)
		}, []string{`"standby"`}},
		"a standby loses its active": {func(d *dns, pass func(time.Duration)) {
			d.role = cluster.RoleStandby
			pass(time.Minute)
			d.role = cluster.RoleNone
			pass(turnsWithin + time.Second)
		}, []string{`"standby"`, `""`}},
		"an active is fenced": {func(d *dns, pass func(time.Duration)) {
			d.role = cluster.RoleActive
			pass(time.Second)
			d.role = cluster.RoleNone
			pass(roleEvery)
		}, []string{`"active"`, `""`}},
		"Consul has no leader for a while": {func(d *dns, pass func(time.Duration)) {
			d.role = cluster.RoleActive
			pass(time.Second)
			d.role, d.silent = cluster.RoleNone, true
			pass(time.Minute)
			// What the agent was told meanwhile may have reached the servers.
			d.role, d.silent = cluster.RoleActive, false
			pass(2 * announceAgain)
		}, []string{`"active"`, `"active"`}},
		"the agent has lost its data": {func(d *dns, pass func(time.Duration)) {
			d.role = cluster.RoleActive
			pass(time.Second)
			d.nothing = true
			pass(roleTTL)
		}, []string{`"active"`, `"active"`}},
	} {
		d := &dns{}
		if d.play(t.Context(), c.happens); !slices.Equal(d.said, c.want) {
			t.Errorf("%s: announced %v, want %v", name, d.said, c.want)
		}
	}
}

// The announcement is kept before its TTL is over, however long nothing changes.
func TestAnnouncementIsKept(t *testing.T) {
	(&dns{role: cluster.RoleActive}).play(t.Context(), func(d *dns, pass func(time.Duration)) {
		for range 20 {
			before := d.kept
			if pass(roleTTL / 2); d.kept == before {
				t.Error("not kept for half of its TTL")
			}
		}
	})
}
