package registry_test

import (
	"context"
	"slices"
	"testing"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/registry/registrytest"
)

// The key of gossip is replaced on three servers that go on running. It holds through a
// restart, and is the only one that lets anybody in.
func TestGossipKeyIsReplaced(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*deadline)
	defer cancel()
	tokens, former := secrets(), certs.GossipKey()
	conf := func(name, address, key string) registry.AgentConfig {
		return registry.AgentConfig{Name: name, Address: address, DataDir: t.TempDir(), Tokens: tokens, GossipKey: key, Join: []string{"127.10.1.71"}}
	}
	one := conf("a", "127.10.1.71", former)
	one.Bootstrap, one.Join = true, nil
	a := registrytest.StartWith(t, one)
	b := registrytest.StartWith(t, conf("b", "127.10.1.72", former))
	third := registrytest.StartWith(t, conf("c", "127.10.1.73", former))
	c := a.Client()
	check(t, c.WaitVoter(ctx, "b"))
	check(t, c.WaitVoter(ctx, "c"))
	alive := func(names ...string) func() bool {
		return func() bool {
			got, err := c.AliveMembers(ctx)
			slices.Sort(got)
			return err == nil && slices.Equal(got, names)
		}
	}
	await(t, "all are there", alive("a", "b", "c"))

	// Half of it, as where it breaks off; then all, with another key.
	half, key := certs.GossipKey(), certs.GossipKey()
	check(t, c.AddGossipKey(ctx, half))
	check(t, c.AddGossipKey(ctx, key))
	check(t, c.AddGossipKey(ctx, key))
	check(t, c.UseGossipKey(ctx, key))
	for range 2 {
		check(t, c.KeepGossipKey(ctx, key))
	}
	rings, err := rawClient(t, a).Operator().KeyringList(nil)
	check(t, err)
	if len(rings) != 1 || len(rings[0].Keys) != 1 || rings[0].Keys[key] != 3 || rings[0].PrimaryKeys[key] != 3 {
		t.Errorf("the keys are %+v", rings)
	}

	// b is configured with the former one yet, and has kept the new one.
	b.Restart()
	await(t, "b is back", alive("a", "b", "c"))
	d := registrytest.StartWith(t, conf("d", "127.10.1.74", key))
	await(t, "whoever has the new key gets in", alive("a", "b", "c", "d"))
	e := conf("e", "127.10.1.75", former)
	e.Bootstrap, e.Join = true, nil // a cluster of its own, for want of a better way to see it start
	stranger := registrytest.StartWith(t, e)
	if err := stranger.Client().JoinMember(ctx, a.Config.Address); err == nil {
		t.Error("the former key lets in")
	}
	if !alive("a", "b", "c", "d")() {
		t.Error("a stranger is among the members")
	}

	// Who is away would miss the next.
	third.Kill()
	await(t, "c is missed", alive("a", "b", "d"))
	d.Kill()
	if err := c.UseGossipKey(ctx, certs.GossipKey()); err == nil {
		t.Error("a key that nobody has is used")
	}
}
