package registry_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/registry/registrytest"
)

// granted is a server with the tokens of its own node, m, of another manager, o, and
// of a runner, r.
type granted struct {
	*registrytest.Server
	root    *registry.Client
	secrets map[string]registry.Secrets // by node
}

func secrets() registry.Secrets {
	s := registry.Secrets{}
	for _, h := range registry.Holders() {
		s[h] = registry.NewSecret()
	}
	return s
}

func grant(t *testing.T, address string) *granted {
	t.Helper()
	own := secrets()
	g := &granted{secrets: map[string]registry.Secrets{"m": own, "o": secrets(), "r": secrets()}}
	g.Server = registrytest.StartWith(t, registry.AgentConfig{
		Name: "m", Address: address, Bootstrap: true, DataDir: t.TempDir(), Tokens: own,
	})
	g.root = g.Client()
	for name, s := range g.secrets {
		n := cluster.Node{Name: name, Kind: cluster.Manager}
		if name == "r" {
			n.Kind = cluster.Runner
		}
		check(t, g.root.Grant(t.Context(), n, s))
		check(t, g.root.Grant(t.Context(), n, s)) // once more
	}
	check(t, g.root.CreateCluster(t.Context(), cluster.Info{ID: "c1", Schema: cluster.Schema}))
	check(t, g.root.AddNode(t.Context(), cluster.Node{Name: "m", Address: address}))
	return g
}

// as shows the token of a holder of a node; none where the node has no name.
func (g *granted) as(t *testing.T, node string, h registry.Holder) (*registry.Client, *api.Client) {
	t.Helper()
	c, err := registry.Open(registry.Config{Address: g.Address, Token: g.secrets[node][h]})
	check(t, err)
	t.Cleanup(c.Close)
	raw, err := api.NewClient(&api.Config{Address: g.Address, Token: g.secrets[node][h]})
	check(t, err)
	return c, raw
}

// act is something that somebody may try.
type act func(context.Context, *registry.Client, *api.Client) error

func put(key string) act {
	return func(_ context.Context, _ *registry.Client, raw *api.Client) error {
		_, err := raw.KV().Put(&api.KVPair{Key: key, Value: []byte("{}")}, nil)
		return err
	}
}

func get(key string) act {
	return func(_ context.Context, _ *registry.Client, raw *api.Client) error {
		_, _, err := raw.KV().Get(key, nil)
		return err
	}
}

// service registers one with the servers, past the agent.
func service(node, name string) act {
	return func(_ context.Context, _ *registry.Client, raw *api.Client) error {
		_, err := raw.Catalog().Register(&api.CatalogRegistration{Node: node, Address: "127.10.1.61", SkipNodeUpdate: true,
			Service: &api.AgentService{ID: "x-" + name, Service: name}}, nil)
		return err
	}
}

func session(node string) act {
	return func(_ context.Context, _ *registry.Client, raw *api.Client) error {
		_, _, err := raw.Session().CreateNoChecks(&api.SessionEntry{Node: node, TTL: "10s"}, nil)
		return err
	}
}

func checks(ctx context.Context, c *registry.Client, _ *api.Client) error {
	if err := c.RegisterChecks(ctx, "m", map[cluster.Check]time.Duration{cluster.CheckAnswer: time.Hour}); err != nil {
		return err
	}
	return c.Post(ctx, cluster.CheckAnswer, true, "")
}

func view(ctx context.Context, c *registry.Client, _ *api.Client) error {
	v, err := c.View(ctx)
	if err == nil && v.Info == nil {
		err = fmt.Errorf("view: %w", registry.ErrRefused) // Consul leaves out what may not be read
	}
	return err
}

func announce(ctx context.Context, c *registry.Client, _ *api.Client) error {
	return c.Announce(ctx, "m", cluster.RoleActive, 5432, time.Minute)
}

func refused(err error) bool {
	var status api.StatusError
	return errors.Is(err, registry.ErrRefused) || errors.As(err, &status) && status.Code == 403
}

// Each token is good for what its holder does, and for nothing else.
func TestTokensOfDaemons(t *testing.T) {
	g := grant(t, "127.10.1.61")
	_, err := rawClient(t, g.Server).Catalog().Register(&api.CatalogRegistration{Node: "o", Address: "127.10.1.60"}, nil)
	check(t, err)
	acts := map[string]act{
		"read the state":  view,
		"name the active": put("understudy/next-master"), "write the leader": put("understudy/leader"), "write the sync set": put("understudy/sync"),
		"write options": put("understudy/cluster"), "write its own node": put("understudy/nodes/m"), "write another node": put("understudy/nodes/o"),
		"remove a node": put("understudy/removed/o"), "write events": put("understudy-events/x"), "publish files": put("understudy-files/active"),
		"read join tokens": get("understudy-tokens/x"), "make join tokens": put("understudy-tokens/x"), "write elsewhere": put("elsewhere"),
		"post its checks": checks, "pass for the checks of another": service("m", "understudy-o"),
		"announce its role": announce, "serve something": service("m", "web"),
		"make a session": session("m"), "make a session of another": session("o"),
		"see health": func(ctx context.Context, c *registry.Client, _ *api.Client) error {
			h, err := c.Health(ctx)
			if err == nil && len(h) == 0 {
				err = registry.ErrRefused
			}
			return err
		},
		"see members": func(_ context.Context, _ *registry.Client, raw *api.Client) error {
			members, err := raw.Agent().Members(false)
			if err == nil && len(members) == 0 {
				err = registry.ErrRefused
			}
			return err
		},
		"reload the agent": func(ctx context.Context, c *registry.Client, _ *api.Client) error { return c.ReloadAgent(ctx) },
		"look at Raft": func(ctx context.Context, c *registry.Client, _ *api.Client) error {
			_, err := c.Servers(ctx)
			return err
		},
		"read keys of gossip": func(_ context.Context, _ *registry.Client, raw *api.Client) error {
			_, err := raw.Operator().KeyringList(nil)
			if err != nil && !refused(err) {
				err = nil // there is no keyring without encryption
			}
			return err
		},
		"list tokens": func(_ context.Context, _ *registry.Client, raw *api.Client) error {
			_, _, err := raw.ACL().TokenList(nil)
			return err
		},
		"make tokens": func(_ context.Context, _ *registry.Client, raw *api.Client) error {
			_, _, err := raw.ACL().TokenCreate(&api.ACLToken{}, nil)
			return err
		},
	}
	for _, who := range []struct {
		node   string
		holder registry.Holder
		may    []string // all others it may not
	}{
		{"", "", nil}, // without a token
		{"m", registry.HolderAgent, []string{"see health", "see members"}}, // its own
		{"m", registry.HolderDNS, []string{"see health", "see members"}},
		{"m", registry.HolderCheckRunner, []string{"read the state", "post its checks", "see health", "see members"}},
		{"m", registry.HolderConsulWatcher, []string{"read the state", "see health", "see members", "reload the agent", "look at Raft"}},
		{"m", registry.HolderFileSync, []string{"read the state", "write its own node", "publish files"}},
		{"m", registry.HolderHandlerRunner, []string{"read the state", "name the active", "write the leader", "write the sync set", "write its own node", "write events",
			"read join tokens", "announce its role", "make a session", "make a session of another", "see health", "see members", "reload the agent"}}, // to renew one takes the same right
		{"m", registry.HolderOperator, []string{"read the state", "name the active", "write the leader", "write the sync set", "write options", "write its own node",
			"write another node", "remove a node", "write events", "publish files", "read join tokens", "make join tokens", "see health",
			"see members", "look at Raft", "read keys of gossip", "list tokens", "make tokens"}},
		{"r", registry.HolderHandlerRunner, []string{"read the state", "write events", "announce its role", "see health", "see members"}},
		{"r", registry.HolderConsulWatcher, []string{"read the state", "see health", "see members"}},
		{"r", registry.HolderFileSync, []string{"read the state"}},
		{"r", registry.HolderOperator, []string{"read the state", "see health", "see members", "look at Raft"}},
	} {
		t.Run(who.node+" "+string(who.holder), func(t *testing.T) {
			c, raw := g.as(t, who.node, who.holder)
			allowed := map[string]bool{}
			for _, what := range who.may {
				if acts[what] == nil {
					t.Fatalf("there is no act %q", what)
				}
				allowed[what] = true
			}
			for what, try := range acts {
				switch err := try(t.Context(), c, raw); {
				case allowed[what] && err != nil:
					t.Errorf("may not %s: %v", what, err)
				case !allowed[what] && !refused(err):
					t.Errorf("may %s: %v", what, err)
				}
			}
		})
	}
	// Who asks DNS shows no token; the agent has one for that.
	if list, err := registrytest.Lookup(t.Context(), g.Config.DNSAddress(), cluster.RoleActive); err != nil || len(list) != 1 {
		t.Errorf("DNS names %v, %v", list, err)
	}
}

// What is left of a node that was removed: to read that it was, and to leave.
func TestTokensOfRemovedNode(t *testing.T) {
	ctx := t.Context()
	g := grant(t, "127.10.1.62")
	before := g.secrets["m"]
	g.secrets["operator"] = g.secrets["o"] // of the node on which the command runs
	by, _ := g.as(t, "operator", registry.HolderOperator)
	check(t, by.RemoveNode(ctx, "m", "o"))
	for range 2 { // it may be repeated
		check(t, by.Revoke(ctx, "m"))
	}
	for _, h := range registry.Holders() {
		c, raw := g.as(t, "m", h)
		if err := view(ctx, c, raw); (err == nil) != (h == registry.HolderHandlerRunner) {
			t.Errorf("%s reads the state: %v", h, err)
		}
		for what, try := range map[string]act{
			"its node": put("understudy/nodes/m"), "the leader": put("understudy/leader"), "events": put("understudy-events/x"), "a service": service("m", "understudy"), "a session": session("m"),
		} {
			if err := try(ctx, c, raw); !refused(err) {
				t.Errorf("%s may write %s: %v", h, what, err)
			}
		}
	}
	c, raw := g.as(t, "m", registry.HolderHandlerRunner)
	v, err := c.View(ctx)
	check(t, err)
	if v.Removed["m"].By != "o" || len(v.Nodes) != 0 {
		t.Errorf("it reads %+v", v)
	}
	check(t, c.ReloadAgent(ctx))

	// Where it is let in again, its earlier tokens stay refused.
	now := secrets()
	check(t, by.Grant(ctx, cluster.Node{Name: "m", Kind: cluster.Manager}, now))
	if err := view(ctx, c, raw); !refused(err) {
		t.Errorf("with the token from before: %v", err)
	}
	g.secrets["m"] = now
	c, raw = g.as(t, "m", registry.HolderHandlerRunner)
	check(t, put("understudy/leader")(ctx, c, raw))
	if before[registry.HolderAgent] == now[registry.HolderAgent] {
		t.Error("secrets are made twice")
	}

	// An operator may remove the node that it is on.
	check(t, by.Revoke(ctx, "o"))
	if _, err := by.Servers(ctx); !refused(err) {
		t.Errorf("it looks at Raft: %v", err)
	}
}

// Many make join tokens at the same time.
func TestTokensOfManyAdmissions(t *testing.T) {
	g := grant(t, "127.10.1.67")
	made := make(chan error)
	for i := range 8 {
		go func() {
			made <- g.root.CreateAdmission(t.Context(), fmt.Sprint(i), registry.NewSecret(), time.Minute)
		}()
	}
	for range 8 {
		check(t, <-made)
	}
}

// What lets newcomers in is for that alone, and ends with its join token.
func TestTokensOfAdmission(t *testing.T) {
	ctx := t.Context()
	g := grant(t, "127.10.1.63")
	secret := registry.NewSecret()
	now := time.Now()
	check(t, g.root.CreateToken(ctx, registry.Token{ID: "j", Created: now, Expires: now.Add(time.Hour)}))
	for range 2 {
		check(t, g.root.CreateAdmission(ctx, "j", secret, time.Hour))
	}
	handler, _ := g.as(t, "m", registry.HolderHandlerRunner)
	admission, err := handler.As(secret)
	check(t, err)
	all, by := func(string) bool { return true }, registry.TokenUse{Node: "n", Kind: cluster.Manager, Key: "k"}
	check(t, handler.CheckToken(ctx, "j", all, by, now))
	want(t, handler.UseToken(ctx, "j", all, by, now), registry.ErrRefused)
	check(t, admission.UseToken(ctx, "j", all, by, now))
	n, made := cluster.Node{Name: "n", Address: "127.10.1.64", Kind: cluster.Manager}, secrets()
	want(t, handler.AddNode(ctx, n), registry.ErrRefused)
	want(t, handler.Grant(ctx, n, made), registry.ErrRefused)
	check(t, admission.AddNode(ctx, n))
	check(t, admission.Grant(ctx, n, made))
	delete(made, registry.HolderDNS)
	if err := admission.Grant(ctx, n, made); err == nil {
		t.Error("a node without all tokens is let in")
	}
	if _, err := admission.View(ctx); err != nil {
		t.Error(err)
	}
	check(t, g.root.RemoveNode(ctx, "n", "m")) // and with it the join token that it has used
	if _, err := admission.Events(ctx, now); !refused(err) {
		t.Errorf("after its end: %v", err)
	}
}

// A server that has no leader knows tokens as well as before: checks are posted and
// sessions answer as they did.
func TestTokensWithoutLeader(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*deadline)
	defer cancel()
	g := grant(t, "127.10.1.65")
	other := registrytest.StartWith(t, registry.AgentConfig{Name: "o", Address: "127.10.1.66", Join: []string{"127.10.1.65"}, DataDir: t.TempDir(), Tokens: g.secrets["o"]})
	check(t, g.root.WaitVoter(ctx, "o"))
	c, raw := g.as(t, "m", registry.HolderCheckRunner)
	check(t, checks(ctx, c, raw))
	await(t, "there is a snapshot", func() bool {
		list, err := filepath.Glob(filepath.Join(g.Config.DataDir, "raft/snapshots/*-*/state.bin"))
		return err == nil && len(list) > 0
	})
	other.Kill()
	await(t, "there is no leader", func() bool { _, err := g.root.View(ctx); return errors.Is(err, registry.ErrNoLeader) })
	start := time.Now()
	for range 100 {
		check(t, c.Post(ctx, cluster.CheckAnswer, true, "still"))
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("100 posts took %s", took)
	}
	watcher, _ := g.as(t, "m", registry.HolderConsulWatcher)
	if _, known, err := watcher.LeaderHeard(ctx); err != nil || known {
		t.Errorf("leader heard: %t, %v", known, err)
	}

	// So does one that is started then, by its last snapshot.
	g.StartAlone()
	check(t, c.Post(ctx, cluster.CheckAnswer, true, "still"))
	_, _, err := watcher.LeaderHeard(ctx)
	want(t, err, registry.ErrNoLeader)
	other.Restart()
	await(t, "there is a leader", func() bool { _, err := g.root.View(ctx); return err == nil })
}
