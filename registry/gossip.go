package registry

import (
	"context"
	"net/url"

	"github.com/hashicorp/consul/api"
)

// serfFailed is the status of a member that gossip has lost, in
// https://pkg.go.dev/github.com/hashicorp/serf/serf#MemberStatus.
const serfFailed = 4

// FailedMembers names the nodes that the local agent's gossip has lost and still
// looks for. Those that left are not among them.
func (c *Client) FailedMembers(ctx context.Context) ([]string, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	var members []api.AgentMember
	if _, err := c.api.Raw().Query("/v1/agent/members", &members, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		return nil, failed("read the members of Consul's gossip", err)
	}
	var names []string
	for _, m := range members {
		if m.Status == serfFailed {
			names = append(names, m.Name)
		}
	}
	return names, nil
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
