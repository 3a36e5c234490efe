package registry

import (
	"context"
	"net/url"

	"github.com/hashicorp/consul/api"
)

// The states of members, as in https://pkg.go.dev/github.com/hashicorp/serf/serf#MemberStatus.
const (
	serfAlive  = 1
	serfFailed = 4
)

// FailedMembers names the nodes that the local agent's gossip has lost and still
// looks for. Those that left are not among them.
func (c *Client) FailedMembers(ctx context.Context) ([]string, error) {
	return c.membersThatAre(ctx, serfFailed)
}

// AliveMembers names the nodes that the local agent's gossip reaches, itself among them.
func (c *Client) AliveMembers(ctx context.Context) ([]string, error) {
	return c.membersThatAre(ctx, serfAlive)
}

func (c *Client) membersThatAre(ctx context.Context, status int) ([]string, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	var members []api.AgentMember
	if _, err := c.api.Raw().Query("/v1/agent/members", &members, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		return nil, failed("read the members of Consul's gossip", err)
	}
	var names []string
	for _, m := range members {
		if m.Status == status {
			names = append(names, m.Name)
		}
	}
	return names, nil
}

// AddGossipKey has every agent understand one more key, and keep it. The error names
// agents that do not: then the key is of no use, and of no harm.
func (c *Client) AddGossipKey(ctx context.Context, key string) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if err := c.api.Operator().KeyringInstall(key, writing(ctx)); err != nil {
		return failed("give every Consul agent the new gossip key", err)
	}
	return nil
}

// UseGossipKey has every agent speak with a key that all understand.
func (c *Client) UseGossipKey(ctx context.Context, key string) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if err := c.api.Operator().KeyringUse(key, writing(ctx)); err != nil {
		return failed("have every Consul agent use the new gossip key", err)
	}
	return nil
}

// KeepGossipKey takes all keys but the one in use from every agent.
func (c *Client) KeepGossipKey(ctx context.Context, key string) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	rings, err := c.api.Operator().KeyringList((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return failed("list the gossip keys", err)
	}
	for _, ring := range rings {
		for old := range ring.Keys {
			if old == key {
				continue
			}
			if err := c.api.Operator().KeyringRemove(old, writing(ctx)); err != nil {
				return failed("take an old gossip key from every Consul agent", err)
			}
		}
	}
	return nil
}

// JoinMember has the local agent exchange all that gossip knows with the agent at
// an IP, at once. Two that hold each other for failed are alive for both then, where
// gossip by itself tries a failed member only every 30 s.
func (c *Client) JoinMember(ctx context.Context, address string) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if _, err := c.api.Raw().Write("/v1/agent/join/"+url.PathEscape(address), nil, nil, writing(ctx)); err != nil {
		return failed("join the Consul agent at "+address, err)
	}
	return nil
}
