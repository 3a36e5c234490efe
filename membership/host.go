package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/packaging"
	"github.com/understudy-ha/understudy/statefile"
)

const (
	consulUnit  = "understudy-consul.service"
	handlerUnit = "understudy-handler-runner.service"
	watcherUnit = "understudy-consul-watcher.service"
	helperUnit  = "understudy-postgres-helper.service"
)

// preflight finds what would make a later step fail, before anything is changed.
func preflight(ctx context.Context, h *node.Host) error {
	ports := portsOf(h)
	var problems []error
	if h.Record.Node.Kind == cluster.Manager {
		var running bool
		if running, problems = preflightDatabase(ctx, h); running {
			ports = slices.DeleteFunc(ports, func(p config.Port) bool { return p.Of == config.PortPostgres })
		}
	}
	problems = append(problems, freePorts(h, ports)...)
	for _, f := range h.Config.Files {
		if s, err := os.Stat(f.Path); err != nil || !s.IsDir() {
			problems = append(problems, fmt.Errorf("the folder %s of understudy.yaml does not exist; make it, or take it out", f.Path))
		}
	}
	return errors.Join(problems...)
}

// preflightDatabase is the part of preflight for a host with a PostgreSQL. One that
// runs has its port already.
func preflightDatabase(ctx context.Context, h *node.Host) (running bool, problems []error) {
	pg, err := h.Postgres()
	if err != nil {
		return false, []error{err}
	}
	for _, p := range pg.Preflight(ctx) {
		problems = append(problems, fmt.Errorf("%s; %s", p.What, p.Remedy))
	}
	if major, err := pg.Major(ctx); err == nil {
		h.Record.Node.PostgresVer = major
	}
	unit, err := h.Units().State(ctx, h.Config.Postgres.Unit)
	if err != nil {
		problems = append(problems, fmt.Errorf("the unit of PostgreSQL: %w; see postgres.unit of understudy.yaml", err))
	}
	return unit.Active == cluster.Yes, problems
}

// portsOf are those that are listened on by what runs on a node.
func portsOf(h *node.Host) (ports []config.Port) {
	for _, p := range h.Config.Ports() {
		if !p.Managers || h.Record.Node.Kind == cluster.Manager {
			ports = append(ports, p)
		}
	}
	return ports
}

// freePorts tries every port that the daemons are going to listen on. After an
// interrupted attempt they may already: then a unit of ours has it.
func freePorts(h *node.Host, ports []config.Port) []error {
	if len(h.Record.Done) > 0 {
		return nil
	}
	var taken []error
	for _, p := range ports {
		address := p.On(h.Record.Node.Address)
		if err := try(address, p.UDP); err != nil {
			taken = append(taken, fmt.Errorf("%s cannot listen on %s: %w; end what listens there, or change the port in understudy.yaml", p.Of, address, err))
		}
	}
	return taken
}

// try says why an address cannot be listened on.
func try(address string, udp bool) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	l.Close()
	if !udp {
		return nil
	}
	u, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	u.Close()
	return nil
}

// ConfigureConsul writes the agent's configuration.
func ConfigureConsul(h *node.Host) error {
	agent, err := h.Agent()
	if err != nil {
		return err
	}
	text, err := agent.JSON()
	if err != nil {
		return err
	}
	return statefile.WriteText(h.Layout.ConsulConfig(), text, 0o640)
}

// startConsul configures the agent and waits until it votes; that of a runner, which
// never does, until it has found the servers.
func startConsul(ctx context.Context, h *node.Host) error {
	if err := os.MkdirAll(h.Layout.ConsulData(), 0o750); err != nil {
		return fmt.Errorf("make Consul's data folder: %w", err)
	}
	if err := ConfigureConsul(h); err != nil {
		return err
	}
	units := h.Units()
	if err := units.Enable(ctx, consulUnit); err != nil {
		return err
	}
	if err := units.Start(ctx, consulUnit); err != nil {
		return err
	}
	reg, err := h.Registry()
	if err != nil {
		return err
	}
	defer reg.Close()
	return await(ctx, func(ctx context.Context) (bool, string) {
		if h.Record.Command == "start" {
			if err := reg.Bootstrap(ctx); err != nil {
				return false, fmt.Sprintf("Consul is not ready yet: %v; see the log of %s", err, consulUnit)
			}
		}
		if h.Record.Node.Kind == cluster.Runner {
			_, err := reg.View(ctx)
			return err == nil, fmt.Sprintf("Consul on this host has not found the servers yet (%v); see the log of %s", err, consulUnit)
		}
		leader, ok, err := reg.RaftLeader(ctx)
		if err != nil || !ok {
			return false, fmt.Sprintf("Consul has no leader yet (%v); see the log of %s", err, consulUnit)
		}
		if h.Record.Command == "start" {
			return true, ""
		}
		if err := reg.WaitVoter(ctx, h.Record.Node.Name); err != nil {
			return false, fmt.Sprintf("Consul on this host is no voter yet, its leader is %s: %v", leader, err)
		}
		return true, ""
	})
}

// startDaemons enables and starts everything of ours but Consul.
func startDaemons(ctx context.Context, h *node.Host) error {
	units := h.Units()
	for _, u := range packaging.Daemons() {
		if u == consulUnit {
			continue
		}
		if err := units.Enable(ctx, u); err != nil {
			return err
		}
		// Whoever connects to its socket starts it, maybe before understudy.yaml was as
		// it is now.
		if u == helperUnit {
			if err := units.Stop(ctx, u); err != nil {
				return err
			}
		}
		if err := units.Start(ctx, u); err != nil {
			return err
		}
	}
	return nil
}

// awaitState waits until the local handler-runner has reached a state.
func awaitState(ctx context.Context, h *node.Host, want func(cluster.Report) bool) error {
	peers, err := h.Peers()
	if err != nil {
		return err
	}
	return await(ctx, func(ctx context.Context) (bool, string) {
		r, err := peers.Report(ctx, h.Record.Node)
		if err != nil {
			return false, fmt.Sprintf("handler-runner does not answer: %v", err)
		}
		return want(r), fmt.Sprintf("this node is %s: %s", r.State, r.Reason)
	})
}

// emptyFolders refuses folders that hold anything: a member that joins takes
// the cluster's files, and would have to lose its own.
func emptyFolders(h *node.Host) error {
	for _, f := range h.Config.Files {
		entries, err := os.ReadDir(f.Path)
		if err != nil {
			return fmt.Errorf("look into %s: %w", f.Path, err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".st") {
				return fmt.Errorf("%w: the folder %s holds %s; move its content away", ErrNotEmpty, f.Path, filepath.Join(f.Path, e.Name()))
			}
		}
	}
	return nil
}

// ErrNotEmpty is the error of join on a host that has data of its own.
var ErrNotEmpty = errors.New("this host is not empty")
