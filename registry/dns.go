package registry

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
)

// DNSName is what Consul's DNS calls the nodes of a role. An SRV record has the port
// of their PostgreSQL.
func DNSName(role cluster.Role) string {
	return string(role) + "." + cluster.ServiceID + ".service.consul"
}

// roleID is a service of its own beside the one that the health checks belong to:
// DNS leaves out whoever has a failing check, and an active node whose files fail is
// active all the same. It fails only when the node, or who announced it, is gone.
const (
	roleID    = cluster.ServiceID + "-role"
	roleCheck = "service:" + roleID // as Consul names it
)

// announced is the key of the metadata by which two announcements differ.
const announced = "announced"

// Announce has Consul's DNS name this node by its role, and by no other, from when it
// returns on. Unless KeepAnnounced is called within the TTL, DNS leaves the node out. The error wraps
// ErrNoLeader, and nothing has been done, where Consul has no leader.
func (c *Client) Announce(ctx context.Context, node string, role cluster.Role, port int, ttl time.Duration) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	// The agent would try in vain, and take no news of the checks meanwhile.
	if _, err := c.announcement(ctx, node); err != nil {
		return err
	}
	// One that is the same as the last is not told to the servers, even if that one
	// never reached them (setServiceStateLocked in Consul's agent/local/state.go).
	stamp := time.Now().Format(time.RFC3339Nano)
	service := &api.AgentServiceRegistration{
		ID: roleID, Name: cluster.ServiceID, Port: port, Meta: map[string]string{announced: stamp},
		Check: &api.AgentServiceCheck{TTL: ttl.String(), Status: api.HealthPassing, Notes: stamp},
	}
	if role != cluster.RoleNone {
		service.Tags = []string{string(role)}
	}
	if err := c.api.Agent().ServiceRegisterOpts(service, api.ServiceRegisterOpts{}.WithContext(ctx)); err != nil {
		return failed("announce the role", err)
	}
	for end := time.Now().Add(announceWithin); ; sleep(ctx, 20*time.Millisecond) {
		there, err := c.announcement(ctx, node)
		if err != nil || there == stamp {
			return err
		}
		if time.Now().After(end) {
			return errors.New("announce the role: the agent has not told the servers in time")
		}
	}
}

// announceWithin is how long the agent may take to tell the servers. What it could
// not tell it tries again only after a minute.
const announceWithin = 2 * time.Second

// announcement is the stamp of the latest announcement that the servers have.
func (c *Client) announcement(ctx context.Context, node string) (stamp string, err error) {
	there, _, err := c.api.Catalog().Node(node, consistent(ctx))
	if err != nil {
		return "", failed("read what "+node+" announces", err)
	}
	if there == nil || there.Services[roleID] == nil {
		return "", nil
	}
	return there.Services[roleID].Meta[announced], nil
}

// KeepAnnounced starts the TTL of the announcement afresh. It needs no Consul leader.
// The error wraps ErrNotRegistered when the agent does not know of one.
func (c *Client) KeepAnnounced(ctx context.Context) error { return c.post(ctx, roleCheck, true, "") }
