// Package node is one host: its configuration, its paths, who it is in the
// cluster, and the adapters to what runs on it. The commands and daemons open it
// and hand its adapters on.
package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/helper"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/services"
	"github.com/understudy-ha/understudy/statefile"
)

// Version of understudy, set when it is built.
var Version = "dev"

// Host is one host.
type Host struct {
	Config config.Config
	Layout config.Layout
	Certs  certs.Dir
	Record Record // empty on a host that is not a member
	Log    *slog.Logger

	holder registry.Holder // whose token is shown to Consul
}

// Open reads the configuration and the membership of the host under root, for one of
// the daemons. The log goes to standard error, for journald, and to the cluster's log file.
func Open(root, component string) (*Host, error) {
	h, err := read(root)
	if err != nil {
		return nil, err
	}
	h.Log = h.logger().With("component", component, "node", h.Record.Node.Name)
	h.holder = registry.Holder(component)
	return h, nil
}

// OpenQuiet is Open for a command: it logs warnings only, to standard error.
func OpenQuiet(root string) (*Host, error) {
	h, err := read(root)
	if err != nil {
		return nil, err
	}
	h.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	h.holder = registry.HolderOperator
	return h, nil
}

// OpenMember is Open for what makes sense on a member only: anywhere else the
// error wraps ErrNotMember.
func OpenMember(root, component string) (*Host, error) {
	h, err := Open(root, component)
	if err == nil && h.Record.Node.Name == "" {
		err = ErrNotMember
	}
	return h, err
}

func read(root string) (*Host, error) {
	conf, err := config.Load(root)
	if err != nil {
		return nil, err
	}
	h := &Host{Config: conf, Layout: config.Paths(root)}
	h.Certs = certs.Dir(h.Layout.SSL)
	h.Record, err = LoadRecord(h.Layout.Membership())
	return h, err
}

// Agent is the configuration of the local Consul agent.
func (h *Host) Agent() (registry.AgentConfig, error) {
	gossip, err := h.Certs.GossipKey()
	if err != nil {
		return registry.AgentConfig{}, err
	}
	tokens := registry.Secrets{}
	for _, holder := range []registry.Holder{registry.HolderAgent, registry.HolderDNS} {
		if tokens[holder], err = h.Secret(holder); err != nil {
			return registry.AgentConfig{}, err
		}
	}
	n := h.Record.Node
	return registry.AgentConfig{
		Name: n.Name, Address: n.Address, Kind: n.Kind, DataDir: h.Layout.ConsulData(),
		Bootstrap: h.Record.Command == "start", Join: h.Record.Members, GossipKey: gossip, Tokens: tokens,
		CAFile: h.Certs.CAFile(), CertFile: h.Certs.CertFile(), KeyFile: h.Certs.KeyFile(),
		RaftMultiplier: int(h.Record.Options().Int("consul_raft_multiplier")),
	}, nil
}

// Registry connects to the local Consul agent, with the token of whom the host was
// opened for.
func (h *Host) Registry() (*registry.Client, error) {
	agent := registry.AgentConfig{Address: h.Record.Node.Address}
	conf, err := h.Certs.ClientTLS(h.Record.Node.Name)
	if err != nil {
		return nil, err
	}
	token, err := h.Secret(h.holder)
	if err != nil {
		return nil, err
	}
	return registry.Open(registry.Config{Address: agent.APIAddress(), TLS: conf, Token: token, Patient: h.holder == registry.HolderOperator})
}

// Postgres is the server on this host.
func (h *Host) Postgres() (*pgrepl.Server, error) {
	c, n := h.Config.Postgres, h.Record.Node
	return pgrepl.New(pgrepl.Config{
		BinDir: c.BinDir, DataDir: c.DataDir, ConfigFile: c.ConfigFile, Port: c.Port, Address: n.Address,
		SocketDir: h.SocketDir(), SystemUser: c.User, NodeName: n.Name, SSLDir: h.Layout.SSL,
		Parameters: c.Parameters, Logger: h.Log,
	})
}

// Helper asks postgres-helper to do what only PostgreSQL's own user may do.
func (h *Host) Helper() *helper.Client { return helper.NewClient(h.Layout.Helper()) }

// SocketDir is where PostgreSQL makes its socket. The path of a socket is
// limited to 107 bytes, so a node under a long root uses a short one elsewhere.
func (h *Host) SocketDir() string { return filepath.Join(h.Layout.Run, "postgresql") }

// Upstream is a member as PostgreSQL connects to it.
func (h *Host) Upstream(n cluster.Upstream) pgrepl.Upstream {
	return pgrepl.Upstream{Name: n.Name, Address: n.Address, Port: n.Ports.Postgres, Tenure: n.Tenure, SystemID: h.Record.Info.SystemID}
}

// Units starts, stops and observes the units of the host.
type Units interface {
	Start(ctx context.Context, unit string) error
	Stop(ctx context.Context, unit string) error
	Kill(ctx context.Context, unit string, sig syscall.Signal) error
	State(ctx context.Context, unit string) (services.State, error)
	Enable(ctx context.Context, units ...string) error
	Disable(ctx context.Context, units ...string) error
	Reload(ctx context.Context) error
	// OnShutdown calls back when the host begins to go down, and holds that up.
	OnShutdown(ctx context.Context, changed func(ctx context.Context, down bool)) error
}

// Units connects to systemd, or to the init of a dev node.
func (h *Host) Units() Units {
	if h.Config.Services.Manager == "exec" {
		return services.NewExec(h.Layout.InitSocket())
	}
	return services.NewSystemd()
}

// Peers calls the other members' API.
func (h *Host) Peers() (*api.Client, error) {
	conf, err := h.Certs.Clients()
	if err != nil {
		return nil, err
	}
	return api.NewMemberClient(conf), nil
}

// Contact is a client for a manager that only the pin of a token vouches for.
func Contact(pin string) *api.Client { return api.NewClient(certs.BootstrapTLS(pin)) }

// Clock is such a client that asks what the manager's clock shows, whatever ours does.
func Clock(pin string) *api.Client { return api.NewClient(certs.ClockTLS(pin)) }

// ServerTLS is for this node's API.
func (h *Host) ServerTLS() (*tls.Config, error) { return h.Certs.ServerTLS() }

// Verdict is what consul-watcher judged lately; unknown where it is old.
func (h *Host) Verdict() cluster.VerdictReport {
	v, err := statefile.Read[cluster.VerdictReport](h.Layout.Verdict())
	if err != nil || time.Since(v.At) > config.StaleAfter {
		return cluster.VerdictReport{}
	}
	return v
}

// Files is what file-sync wrote lately; an error where it is missing or old.
func (h *Host) Files() (cluster.FilesReport, error) {
	f, err := statefile.Read[cluster.FilesReport](h.Layout.Files())
	if err == nil && time.Since(f.At) > config.StaleAfter {
		err = errors.New("file-sync has not reported lately")
	}
	return f, err
}

// Storage is what check-runner found of the database's disk lately; empty where
// that is missing or old.
func (h *Host) Storage() cluster.StorageReport {
	s, err := statefile.Read[cluster.StorageReport](h.Layout.Storage())
	if err != nil || time.Since(s.At) > max(config.StaleAfter, h.Record.Options().Stretch(cluster.Checks()[cluster.CheckStorage])) {
		return cluster.StorageReport{}
	}
	return s
}

// Folders are the synced folders of the host, by a name that is the same on all
// members.
func (h *Host) Folders() map[string]config.Folder {
	out := map[string]config.Folder{}
	for _, f := range h.Config.Files {
		rel, err := filepath.Rel(h.Layout.Root, f.Path)
		if err != nil {
			rel = f.Path
		}
		out[strings.ReplaceAll(rel, "/", "-")] = f
	}
	return out
}

// BasicAuth is the user:password that /status asks for, empty for none.
func (h *Host) BasicAuth() (string, error) {
	if h.Config.Status.BasicAuthFile == "" {
		return "", nil
	}
	text, err := os.ReadFile(h.Config.Status.BasicAuthFile)
	if err != nil {
		return "", fmt.Errorf("read status.basic_auth_file: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
