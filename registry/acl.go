package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
)

// Holder is who has a token of Consul's on a node. Each has one of its own, which
// is good for what it does and no more: see rules.
type Holder string

// The holders.
const (
	HolderAgent         Holder = "agent" // Consul's agent itself
	HolderDNS           Holder = "dns"   // who asks Consul's DNS on the host
	HolderCheckRunner   Holder = "check-runner"
	HolderConsulWatcher Holder = "consul-watcher"
	HolderFileSync      Holder = "file-sync"
	HolderHandlerRunner Holder = "handler-runner"
	HolderOperator      Holder = "operator" // the commands of understudy
)

// Holders are all that every node has.
func Holders() []Holder {
	return []Holder{HolderAgent, HolderDNS, HolderCheckRunner, HolderConsulWatcher, HolderFileSync, HolderHandlerRunner, HolderOperator}
}

// Secrets are the tokens of a node. Whoever shows a secret is its holder to Consul.
type Secrets map[Holder]string

// NewSecret makes the secret of a token: 122 random bits in the form of a UUID, on
// which Consul insists.
func NewSecret() string {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	return SecretOf(raw)
}

// SecretOf gives 16 bytes the form of a secret.
func SecretOf(raw [16]byte) string {
	raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:])
}

// ErrRefused: Consul does not know the token, or the token does not allow this.
var ErrRefused = errors.New("refused by Consul")

// rules says in Consul's language (https://developer.hashicorp.com/consul/docs/security/acl/acl-rules)
// what a holder on a node may do. What is not named is refused.
func rules(h Holder, n cluster.Node) string {
	manager := n.Kind != cluster.Runner
	var r ruleset
	switch h {
	case HolderAgent:
		r.add("write", "node", n.Name)
		r.add("read", "service", cluster.ServiceID, checksOf(n.Name))
	case HolderDNS:
		r.add("read", "node_prefix", "")
		r.add("read", "service", cluster.ServiceID)
	case HolderCheckRunner:
		r.add("read", "key_prefix", prefix)
		r.add("read", "node", n.Name)
		r.add("read", "service", cluster.ServiceID) // has a check of this node too
		r.add("write", "service", checksOf(n.Name))
	case HolderConsulWatcher:
		r.add("read", "key_prefix", prefix)
		r.add("read", "node_prefix", "")
		r.add("write", "agent", n.Name) // to bring others back into gossip
		if manager {
			r.is("operator", "write") // to move Raft's leader
		}
	case HolderFileSync:
		r.add("read", "key_prefix", prefix)
		r.add("write", "key", keyNodes+n.Name)
		r.add(may(manager), "key", keyFiles)
	case HolderHandlerRunner:
		r.add("read", "key_prefix", prefix)
		r.add("write", "key", keyNodes+n.Name)
		r.add("write", "key_prefix", prefixEvents)
		r.add("read", "node_prefix", "")
		r.add("read", "service_prefix", cluster.ServiceID)
		r.add("write", "service", cluster.ServiceID) // its role, for DNS
		r.add("write", "agent", n.Name)              // to reload it, and to leave
		if manager {
			r.add("write", "key", keyNextMaster, keyLeader, keySync)
			r.add("read", "key_prefix", prefixTokens)
			r.add("write", "session_prefix", "") // whoever vouches for the active renews its session
		}
	case HolderOperator:
		r.add(may(manager), "key_prefix", "understudy")
		r.add(may(manager), "node_prefix", "")
		r.add("read", "service_prefix", "")
		r.is("operator", may(manager))
		if manager {
			r.is("acl", "write")
			r.is("keyring", "write")
		} else {
			r.add("deny", "key_prefix", prefixTokens)
		}
	}
	return r.String()
}

// departing is all that is left to handler-runner of a node that was removed: it
// reads that it was, and leaves.
func departing(node string) string {
	var r ruleset
	r.add("read", "key", keyCluster, keyRemoved+node)
	r.add("write", "agent", node)
	return r.String()
}

// admitting is what it takes to make a newcomer a member.
func admitting() string {
	var r ruleset
	r.add("read", "key", keyCluster)
	r.add("write", "key_prefix", keyNodes, keyRemoved, prefixTokens)
	r.is("acl", "write")
	return r.String()
}

func may(write bool) string {
	if write {
		return "write"
	}
	return "read"
}

// ruleset collects rules of Consul's ACLs.
type ruleset struct{ strings.Builder }

func (r *ruleset) add(access, resource string, names ...string) {
	for _, name := range names {
		fmt.Fprintf(r, "%s %q { policy = %q }\n", resource, name, access)
	}
}

func (r *ruleset) is(resource, access string) { fmt.Fprintf(r, "%s = %q\n", resource, access) }

// policyOf names the policy of a holder, by which its token is found too. No node's
// name has an underscore.
func policyOf(h Holder, node string) string { return "understudy_" + node + "_" + string(h) }

const policyAdmission = "understudy_admission"

// As is a client that shows another token, over the same connections.
func (c *Client) As(secret string) (*Client, error) {
	conf := c.conf
	conf.Token = secret
	a, err := api.NewClient(&conf)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	return &Client{api: a, conf: conf, http: c.http, timeout: c.timeout}, nil
}

// Bootstrap makes the token of this client one that may do everything, which Consul
// allows once in a cluster's life. It may be repeated with the same token. The error
// wraps ErrNoLeader while Consul has none, and ErrRefused where another token was first.
func (c *Client) Bootstrap(ctx context.Context) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	_, err := c.api.Raw().Write("/v1/acl/bootstrap", map[string]string{"BootstrapSecret": c.conf.Token}, nil, writing(ctx))
	if isStatus(err, http.StatusForbidden) {
		_, _, err = c.api.ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(ctx))
	}
	if err != nil {
		return failed("make the first token of Consul", err)
	}
	return nil
}

// Grant makes the tokens of a node, each good for what rules says. It may be
// repeated: other tokens of the same holders, such as those of an earlier node of
// the name, come to an end. This client must be an operator's or an admission's.
func (c *Client) Grant(ctx context.Context, n cluster.Node, secrets Secrets) error {
	for _, h := range Holders() {
		if secrets[h] == "" {
			return fmt.Errorf("make the tokens of %s: there is no secret for %s", n.Name, h)
		}
		if err := c.grant(ctx, policyOf(h, n.Name), rules(h, n), string(h)+" of "+n.Name, secrets[h]); err != nil {
			return fmt.Errorf("make the token for %s of %s: %w", h, n.Name, err)
		}
	}
	return nil
}

func (c *Client) grant(ctx context.Context, policy, rules, description, secret string) error {
	id, err := c.setPolicy(ctx, policy, rules)
	if err != nil {
		return err
	}
	link := []*api.ACLTokenPolicyLink{{ID: id}}
	made := false
	if err := c.eachToken(ctx, id, func(t *api.ACLTokenListEntry) error {
		if t.SecretID == secret {
			made = true
			return nil
		}
		return c.deleteToken(ctx, t.AccessorID)
	}); err != nil || made {
		return err
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	t := &api.ACLToken{SecretID: secret}
	if secret == c.conf.Token { // the first of all: from now on it may do what an operator's may
		if t, _, err = c.api.ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(ctx)); err != nil {
			return failed("read it", err)
		}
	}
	t.Description, t.Policies = description, link
	if t.AccessorID == "" {
		_, _, err = c.api.ACL().TokenCreate(t, writing(ctx))
	} else {
		_, _, err = c.api.ACL().TokenUpdate(t, writing(ctx))
	}
	if err != nil {
		return failed("write it", err)
	}
	return nil
}

// setPolicy makes a policy, or gives it other rules, and returns its id.
func (c *Client) setPolicy(ctx context.Context, name, rules string) (id string, err error) {
	for range casAttempts {
		if id, err = c.policy(ctx, name); err != nil {
			return "", err
		}
		p := &api.ACLPolicy{ID: id, Name: name, Rules: rules}
		within, cancel := c.bound(ctx)
		if id == "" {
			p, _, err = c.api.ACL().PolicyCreate(p, writing(within))
		} else {
			_, _, err = c.api.ACL().PolicyUpdate(p, writing(within))
		}
		cancel()
		if err == nil {
			return p.ID, nil
		}
		if !strings.Contains(err.Error(), "already exists") { // another made it meanwhile
			return "", failed("write policy "+name, err)
		}
	}
	return "", fmt.Errorf("write policy %s: %w", name, ErrConflict)
}

// policy returns the id of a policy, which is empty where there is none of this name.
func (c *Client) policy(ctx context.Context, name string) (id string, err error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	list, _, err := c.api.ACL().PolicyList((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return "", failed("list policies", err)
	}
	for _, p := range list {
		if p.Name == name {
			return p.ID, nil
		}
	}
	return "", nil
}

// eachToken does something with all tokens of a policy.
func (c *Client) eachToken(ctx context.Context, policyID string, do func(*api.ACLTokenListEntry) error) error {
	within, cancel := c.bound(ctx)
	defer cancel()
	list, _, err := c.api.ACL().TokenList((&api.QueryOptions{}).WithContext(within))
	if err != nil {
		return failed("list tokens", err)
	}
	for _, t := range list {
		of := func(p *api.ACLTokenPolicyLink) bool { return p.ID == policyID }
		if !slices.ContainsFunc(t.Policies, of) {
			continue
		}
		if err := do(t); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) deleteToken(ctx context.Context, accessor string) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if _, err := c.api.ACL().TokenDelete(accessor, writing(ctx)); err != nil {
		return failed("delete a token", err)
	}
	return nil
}

// Revoke ends the tokens of a node that was removed. What is left to its
// handler-runner is to read that it was, and to leave, because it may be down now. A
// token cannot end itself: on the node that is removed, so much is left to the
// operator too. It may be repeated.
func (c *Client) Revoke(ctx context.Context, node string) error {
	for _, h := range Holders() {
		if err := c.revoke(ctx, h, node); err != nil {
			return fmt.Errorf("revoke the token for %s of %s: %w", h, node, err)
		}
	}
	return nil
}

func (c *Client) revoke(ctx context.Context, h Holder, node string) error {
	name := policyOf(h, node)
	id, err := c.policy(ctx, name)
	if err != nil || id == "" {
		return err
	}
	kept := h == HolderHandlerRunner
	if err := c.eachToken(ctx, id, func(t *api.ACLTokenListEntry) error {
		if kept || t.SecretID == c.conf.Token {
			kept = true
			return nil
		}
		return c.deleteToken(ctx, t.AccessorID)
	}); err != nil {
		return err
	}
	if kept {
		_, err := c.setPolicy(ctx, name, departing(node))
		return err
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if _, err := c.api.ACL().PolicyDelete(id, writing(ctx)); err != nil {
		return failed("delete its policy", err)
	}
	return nil
}

// admissionLasts is for how long after a join token has expired a join that broke
// off can be repeated with it.
const admissionLasts = time.Hour

// CreateAdmission makes the token of Consul's that makes newcomers members, for as
// long as the join token with this id lasts and a little longer. It may be repeated.
func (c *Client) CreateAdmission(ctx context.Context, id, secret string, ttl time.Duration) error {
	policy, err := c.setPolicy(ctx, policyAdmission, admitting())
	if err != nil {
		return fmt.Errorf("create token %s: %w", id, err)
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	_, _, err = c.api.ACL().TokenCreate(&api.ACLToken{
		SecretID: secret, Description: admissionBy(id), ExpirationTTL: ttl + admissionLasts, Policies: []*api.ACLTokenPolicyLink{{ID: policy}},
	}, writing(ctx))
	if err != nil && !strings.Contains(err.Error(), "SecretID is already in use") { // it is ours: nobody guesses it
		return failed("create token "+id, err)
	}
	return nil
}

func admissionBy(id string) string { return "join token " + id }

// revokeAdmission ends what CreateAdmission made, if it is there.
func (c *Client) revokeAdmission(ctx context.Context, id string) error {
	policy, err := c.policy(ctx, policyAdmission)
	if err != nil {
		return fmt.Errorf("revoke token %s: %w", id, err)
	}
	if policy == "" {
		return nil
	}
	return c.eachToken(ctx, policy, func(t *api.ACLTokenListEntry) error {
		if t.Description != admissionBy(id) {
			return nil
		}
		return c.deleteToken(ctx, t.AccessorID)
	})
}

// checksOf names the service that the health checks of a node belong to. Each node
// has one of its own name, because Consul's rules tell services apart by that.
func checksOf(node string) string { return cluster.ServiceID + "-" + node }
