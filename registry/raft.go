package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// Server is one Consul server in the Raft configuration.
type Server struct {
	ID      string
	Node    string // name, or "(unknown)" while Consul has not met it
	Address string // ip:port
	Leader  bool
	Voter   bool
}

// ErrUnknownServer: no Consul server runs on a node of this name.
var ErrUnknownServer = errors.New("no consul server of this name")

// RaftLeader names the node whose Consul server leads, as the local agent knows
// it: it answers without a leader too, and then ok is false.
func (c *Client) RaftLeader(ctx context.Context) (node string, ok bool, err error) {
	servers, err := c.servers(ctx, true)
	if err != nil {
		return "", false, err
	}
	for _, s := range servers {
		if s.Leader {
			return s.Node, true, nil
		}
	}
	return "", false, nil
}

// LeaderHeard tells when Consul's leader last reached the local server, which speaks
// of that leader for seconds after it has gone. It answers without a leader too, and
// then known is false.
func (c *Client) LeaderHeard(ctx context.Context) (at time.Time, known bool, err error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	_, meta, err := c.api.KV().Get(keyCluster, (&api.QueryOptions{AllowStale: true}).WithContext(ctx))
	if err != nil {
		return time.Time{}, false, failed("read when Consul's leader was heard", err)
	}
	return time.Now().Add(-meta.LastContact), meta.KnownLeader, nil
}

// Servers lists the Raft configuration, as the leader knows it.
func (c *Client) Servers(ctx context.Context) ([]Server, error) { return c.servers(ctx, false) }

func (c *Client) servers(ctx context.Context, stale bool) ([]Server, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	conf, err := c.api.Operator().RaftGetConfiguration((&api.QueryOptions{AllowStale: stale}).WithContext(ctx))
	if err != nil {
		return nil, failed("read the Raft configuration", err)
	}
	var servers []Server
	for _, s := range conf.Servers {
		servers = append(servers, Server{ID: s.ID, Node: s.Node, Address: s.Address, Leader: s.Leader, Voter: s.Voter})
	}
	return servers, nil
}

func (c *Client) server(ctx context.Context, node string) (Server, error) {
	servers, err := c.Servers(ctx)
	if err != nil {
		return Server{}, err
	}
	for _, s := range servers {
		if s.Node == node {
			return s, nil
		}
	}
	return Server{}, fmt.Errorf("server on %s: %w", node, ErrUnknownServer)
}

// TransferRaftLeader hands Consul's leadership to the server on toNode.
func (c *Client) TransferRaftLeader(ctx context.Context, toNode string) error {
	s, err := c.server(ctx, toNode)
	if err != nil || s.Leader {
		return err
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	doing := "transfer Raft leadership to " + toNode
	done, err := c.api.Operator().RaftLeaderTransfer(s.ID, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return failed(doing, err)
	}
	if !done.Success {
		return fmt.Errorf("%s: refused", doing)
	}
	return nil
}

// WaitVoter waits until the server on node has a vote, and so counts for the
// majority. It ends with ctx.
func (c *Client) WaitVoter(ctx context.Context, node string) error {
	for {
		s, err := c.server(ctx, node)
		if err == nil && s.Voter {
			return nil
		}
		sleep(ctx, 100*time.Millisecond)
		if ctx.Err() != nil {
			if err == nil {
				err = ctx.Err()
			}
			return fmt.Errorf("wait for %s to become a voter: %w", node, err)
		}
	}
}

// RemovePeer takes the server of a removed node out of Raft, out of gossip and
// out of the catalog. Its agent must have stopped: one that runs announces itself
// again. What is not there is no error, so it can be repeated, and should be
// after ErrNoLeader, because the removed server may have led.
func (c *Client) RemovePeer(ctx context.Context, node string) error {
	s, err := c.server(ctx, node)
	if err != nil && !errors.Is(err, ErrUnknownServer) {
		return err
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if err == nil {
		if err := c.api.Operator().RaftRemovePeerByID(s.ID, writing(ctx)); err != nil {
			return failed("remove Raft peer "+node, err)
		}
	}
	q := (&api.QueryOptions{}).WithContext(ctx)
	err = c.api.Agent().ForceLeaveOptions(node, api.ForceLeaveOpts{}, q)
	if err != nil && !isStatus(err, http.StatusNotFound) && !isStatus(err, http.StatusInternalServerError) {
		return failed("force "+node+" to leave", err)
	}
	_, err = c.api.Catalog().Deregister(&api.CatalogDeregistration{Node: node}, writing(ctx))
	if err != nil {
		return failed("deregister "+node, err)
	}
	return nil
}

// EnsureAutopilot keeps Consul from removing servers by itself: a dead manager
// stays a member, with its sessions, until it is removed. What the agents are
// started with may not stick, so it is written and read back.
func (c *Client) EnsureAutopilot(ctx context.Context) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	for range casAttempts {
		conf, err := c.autopilot(ctx)
		if err != nil {
			return err
		}
		if !conf.CleanupDeadServers && conf.ServerStabilizationTime.Duration() == stabilization &&
			conf.LastContactThreshold.Duration() == lastContact {
			return nil
		}
		conf.CleanupDeadServers = false
		conf.ServerStabilizationTime = api.NewReadableDuration(stabilization)
		conf.LastContactThreshold = api.NewReadableDuration(lastContact)
		if _, err := c.api.Operator().AutopilotCASConfiguration(conf, writing(ctx)); err != nil {
			return failed("write autopilot configuration", err)
		}
	}
	return fmt.Errorf("write autopilot configuration: %w", ErrConflict)
}

// autopilot reads the configuration. A leader that was elected a moment ago has none yet.
func (c *Client) autopilot(ctx context.Context) (*api.AutopilotConfiguration, error) {
	for {
		conf, err := c.api.Operator().AutopilotGetConfiguration((&api.QueryOptions{}).WithContext(ctx))
		if err == nil {
			return conf, nil
		}
		var status api.StatusError
		if early := errors.As(err, &status) && strings.Contains(status.Body, "not initialized yet"); !early || ctx.Err() != nil {
			return nil, failed("read autopilot configuration", err)
		}
		sleep(ctx, 20*time.Millisecond)
	}
}

const (
	// stabilization is how long a new server must be healthy before it may
	// vote. Consul's default of 10 s only makes joins slower.
	stabilization = time.Second

	// lastContact is how late a healthy server may be. Consul's default of
	// 200 ms keeps a server on a busy host from its vote.
	lastContact = time.Second
)

// Leave takes the local agent out of the cluster gracefully and for good: it
// gives up its vote, tells the others, and ends. The call returns when the agent
// has begun to.
func (c *Client) Leave(ctx context.Context) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if _, err := c.api.Raw().Write("/v1/agent/leave", nil, nil, writing(ctx)); err != nil {
		return failed("leave Consul", err)
	}
	return nil
}

// ReloadAgent has the local agent read its configuration and its certificates again.
func (c *Client) ReloadAgent(ctx context.Context) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if _, err := c.api.Raw().Write("/v1/agent/reload", nil, nil, writing(ctx)); err != nil {
		return failed("reload Consul", err)
	}
	return nil
}
