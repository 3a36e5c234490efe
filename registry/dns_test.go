package registry_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/registry/registrytest"
)

// named looks up who has a role, as any program on the host of the server would.
func named(t *testing.T, s *registrytest.Server, role cluster.Role) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	list, err := registrytest.Lookup(ctx, s.Config.DNSAddress(), role)
	check(t, err)
	return list
}

// oneOf fails unless the server's node has this role in DNS and no other.
func oneOf(t *testing.T, s *registrytest.Server, role cluster.Role) {
	t.Helper()
	for _, r := range []cluster.Role{cluster.RoleActive, cluster.RoleStandby, cluster.RoleRunner} {
		if got := named(t, s, r); slices.Contains(got, s.Config.Address) != (r == role) {
			t.Errorf("%s is %v, after %q was announced", registry.DNSName(r), got, role)
		}
	}
}

func testAnnounce(t *testing.T, f *fixture) {
	ctx, node := t.Context(), f.server.Config.Name
	const long = time.Minute
	oneOf(t, f.server, cluster.RoleNone)
	want(t, f.KeepAnnounced(ctx), registry.ErrNotRegistered)
	for _, role := range []cluster.Role{cluster.RoleStandby, cluster.RoleActive, cluster.RoleActive, cluster.RoleNone, cluster.RoleRunner, cluster.RoleActive} {
		check(t, f.Announce(ctx, node, role, 5432, long))
		oneOf(t, f.server, role)
	}
	if port, err := registrytest.LookupPort(ctx, f.server.Config.DNSAddress(), cluster.RoleActive); err != nil || port != 5432 {
		t.Errorf("SRV says port %d, %v", port, err)
	}

	// A failing check of the node, such as that of its files, takes nobody the name.
	check(t, f.RegisterChecks(ctx, node, map[cluster.Check]time.Duration{cluster.CheckFiles: long}))
	check(t, f.Post(ctx, cluster.CheckFiles, false, "not in sync"))
	await(t, "the check fails", func() bool { return !f.health(t)[string(cluster.CheckFiles)].OK })
	oneOf(t, f.server, cluster.RoleActive)

	// What the servers alone take for failed passes with the next announcement.
	f.fails(t, &api.AgentCheck{CheckID: "service:understudy-role", Name: "Service 'understudy' check", ServiceID: "understudy-role"})
	await(t, "nobody is named", func() bool { return len(named(t, f.server, cluster.RoleActive)) == 0 })
	check(t, f.Announce(ctx, node, cluster.RoleActive, 5432, long))
	oneOf(t, f.server, cluster.RoleActive)

	// An agent that was killed and started again still knows. It takes the announcement
	// for failed until it hears of it again.
	f.server.Restart()
	await(t, "the agent has told the servers", func() bool {
		check(t, f.KeepAnnounced(ctx))
		return len(named(t, f.server, cluster.RoleActive)) == 1
	})

	// Whoever announces no more is left out.
	check(t, f.Announce(ctx, node, cluster.RoleActive, 5432, 200*time.Millisecond))
	await(t, "its TTL is over", func() bool { return len(named(t, f.server, cluster.RoleActive)) == 0 })
	check(t, f.KeepAnnounced(ctx))
	await(t, "it is back", func() bool { return len(named(t, f.server, cluster.RoleActive)) == 1 })
}

// A server that is cut off from the majority soon names nobody: who was active there
// may be no more. What is announced meanwhile is told once there is a majority again.
func TestDNSWithoutMajority(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	first := registrytest.Start(t, "127.10.1.31")
	other := registrytest.Join(t, "127.10.1.32", "127.10.1.31")
	c, node := first.Client(), first.Config.Name
	check(t, c.WaitVoter(ctx, other.Config.Name))
	check(t, c.Announce(ctx, node, cluster.RoleActive, 5432, time.Minute))
	oneOf(t, first, cluster.RoleActive)
	oneOf(t, other, cluster.RoleNone)
	other.Kill()
	await(t, "the one that is left names nobody", func() bool {
		try, cancel := context.WithTimeout(ctx, deadline)
		defer cancel()
		_, err := registrytest.Lookup(try, first.Config.DNSAddress(), cluster.RoleActive)
		return err != nil
	})
	want(t, c.Announce(ctx, node, cluster.RoleStandby, 5432, time.Minute), registry.ErrNoLeader)
	other.Restart()
	await(t, "there is a majority", func() bool { return c.Announce(ctx, node, cluster.RoleStandby, 5432, time.Minute) == nil })
	oneOf(t, first, cluster.RoleStandby)
}
