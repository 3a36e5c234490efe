package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
)

// SerfHealth is Consul's own check of a node, as named in Health.
const SerfHealth = "serfHealth"

// ErrNotRegistered: the local agent does not know the check; register again.
var ErrNotRegistered = errors.New("the check is not registered")

// CheckState is a health check as the cluster sees it.
type CheckState struct {
	OK     bool   `json:"ok"`
	Output string `json:"output"` // up to the agent's check_update_interval old
}

// RegisterChecks tells the local agent, which is that of node, of the service that
// has its checks, and of one TTL check for each. A check that is new starts as passing, because a failing one
// would free the leader lock; one that the agent knows keeps its state, so that
// to register it again turns nothing healthy. The agent tells the servers of all of them.
func (c *Client) RegisterChecks(ctx context.Context, node string, ttls map[cluster.Check]time.Duration) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	q := (&api.QueryOptions{}).WithContext(ctx)
	agent := c.api.Agent()
	known, err := agent.ChecksWithFilterOpts("", q)
	if err != nil {
		return failed("read the agent's checks", err)
	}
	service := &api.AgentServiceRegistration{ID: cluster.ServiceID, Name: checksOf(node)}
	if err := agent.ServiceRegisterOpts(service, api.ServiceRegisterOpts{}.WithContext(ctx)); err != nil {
		return failed("register service "+service.Name, err)
	}
	// A check that is the same as the last is taken for told, even if that one never
	// reached the servers (setCheckStateLocked in Consul's agent/local/state.go).
	stamp := time.Now().Format(time.RFC3339Nano)
	for check, ttl := range ttls {
		status := api.HealthPassing
		if was := known[check.ID()]; was != nil {
			status = was.Status
		}
		reg := &api.AgentCheckRegistration{
			ID: check.ID(), Name: string(check), ServiceID: cluster.ServiceID, Notes: stamp,
			AgentServiceCheck: api.AgentServiceCheck{TTL: ttl.String(), Status: status},
		}
		if err := agent.CheckRegisterOpts(reg, q); err != nil {
			return failed("register check "+string(check), err)
		}
	}
	return nil
}

// Post gives the local agent the result of a check and starts its TTL afresh. A
// failure frees the locks of the sessions that are bound to it, within
// milliseconds. It needs no Consul leader. The error wraps ErrNotRegistered when
// the agent does not know the check.
func (c *Client) Post(ctx context.Context, check cluster.Check, ok bool, output string) error {
	return c.post(ctx, check.ID(), ok, output)
}

func (c *Client) post(ctx context.Context, id string, ok bool, output string) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	status := api.HealthCritical
	if ok {
		status = api.HealthPassing
	}
	err := c.api.Agent().UpdateTTLOpts(id, output, status, (&api.QueryOptions{}).WithContext(ctx))
	switch {
	case err == nil:
		return nil
	case isStatus(err, http.StatusNotFound) || strings.Contains(err.Error(), "does not have associated TTL"):
		return fmt.Errorf("post check %s: %w", id, ErrNotRegistered)
	}
	return failed("post check "+id, err)
}

// Told says whether Consul's servers have every check of this node as the local agent
// has it. An agent that could not tell them of a change, because they had no leader,
// does so only at its next full synchronisation, after one to two minutes (nextFSMState
// in Consul's agent/ae/ae.go). To register the checks again has it tell them at once.
// The error wraps ErrNoLeader where there is none.
func (c *Client) Told(ctx context.Context, node string) (bool, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	told, _, err := c.api.Health().Node(node, consistent(ctx))
	if err != nil {
		return false, failed("read the checks of "+node, err)
	}
	known, err := c.api.Agent().ChecksWithFilterOpts("", (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return false, failed("read the agent's checks", err)
	}
	status := map[string]string{}
	for _, check := range told {
		status[check.CheckID] = check.Status
	}
	for id, check := range known {
		if status[id] != check.Status {
			return false, nil
		}
	}
	return true, nil
}

// Health returns the checks of every node in Consul by node and by name: those
// of cluster.Checks, and SerfHealth.
func (c *Client) Health(ctx context.Context) (map[string]map[string]CheckState, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	checks, _, err := c.api.Health().State(api.HealthAny, consistent(ctx))
	if err != nil {
		return nil, failed("read health", err)
	}
	health := map[string]map[string]CheckState{}
	for _, check := range checks {
		name, ours := strings.CutPrefix(check.CheckID, cluster.ServiceID+":")
		if !ours && name != SerfHealth {
			continue
		}
		if health[check.Node] == nil {
			health[check.Node] = map[string]CheckState{}
		}
		health[check.Node][name] = CheckState{OK: check.Status == api.HealthPassing, Output: check.Output}
	}
	return health, nil
}
