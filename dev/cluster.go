// Package dev keeps a whole cluster on one machine: real servers and the real
// daemons, each node on its own loopback address and below its own folder, with
// an init of its own in place of systemd.
package dev

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/services"
	"github.com/understudy-ha/understudy/services/proctree"
	"github.com/understudy-ha/understudy/services/supervisor"
	"github.com/understudy-ha/understudy/statefile"
)

// Cluster is what a dev cluster's folder remembers, in dev.json.
type Cluster struct {
	Dir         string   `json:"dir"`
	Bin         string   `json:"bin"`          // folder of our binaries
	Consul      string   `json:"consul"`       // the consul binary
	PostgresBin string   `json:"postgres_bin"` // folder of PostgreSQL's binaries
	Options     []string `json:"options"`      // --options of cluster start
	Nodes       []Node   `json:"nodes"`
}

// Node is one node of a dev cluster.
type Node struct {
	Name    string       `json:"name"`
	Address string       `json:"address"`
	Kind    cluster.Kind `json:"kind,omitempty"` // empty: a manager
	Root    string       `json:"root"`           // what --root of the other commands wants
	Member  bool         `json:"member"`         // start or join has been done
}

func (n Node) runner() bool { return n.Kind == cluster.Runner }

// managers are the addresses of the nodes that have a database.
func (c *Cluster) managers() (addresses []string) {
	for _, n := range c.Nodes {
		if !n.runner() {
			addresses = append(addresses, n.Address)
		}
	}
	return addresses
}

// The ports that every node uses on its own address.
const (
	PortPostgres = 5432
	PortConsul   = 8500
	PortNotes    = 8080
)

const clusterFile = "dev.json"

// ErrNoCluster is the error of a folder that holds no dev cluster.
var ErrNoCluster = errors.New("no dev cluster here; 'understudy dev up' makes one")

// ErrNoNode is the error of a node, or a component of it, that does not exist.
var ErrNoNode = errors.New("no such thing in this dev cluster")

// ErrDown is the error of a node that would have to be up.
var ErrDown = errors.New("the node is down")

// DefaultDir is the folder that is used when none is given. Every user has one.
func DefaultDir() string {
	parent := "/var/tmp"
	if tmp := os.Getenv("TMPDIR"); tmp != "" {
		parent = tmp
	}
	if uid := os.Geteuid(); uid != 0 {
		return filepath.Join(parent, "understudy-dev-"+strconv.Itoa(uid))
	}
	return filepath.Join(parent, "understudy-dev")
}

// Open reads the cluster of a folder. The error wraps ErrNoCluster when there is
// none.
func Open(dir string) (*Cluster, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open dev cluster: %w", err)
	}
	c, err := statefile.Read[Cluster](filepath.Join(abs, clusterFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open dev cluster in %s: %w", abs, ErrNoCluster)
	}
	if err != nil {
		return nil, fmt.Errorf("open dev cluster in %s: %w", abs, err)
	}
	return &c, nil
}

func (c *Cluster) save() error {
	return statefile.WriteMode(filepath.Join(c.Dir, clusterFile), c, 0o644)
}

// node returns a node by name.
func (c *Cluster) node(name string) (Node, error) {
	i := slices.IndexFunc(c.Nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		var names []string
		for _, n := range c.Nodes {
			names = append(names, n.Name)
		}
		return Node{}, fmt.Errorf("node %q: %w; its nodes are %s", name, ErrNoNode, strings.Join(names, ", "))
	}
	return c.Nodes[i], nil
}

// openNode is Open and node.
func openNode(dir, name string) (*Cluster, Node, error) {
	c, err := Open(dir)
	if err != nil {
		return nil, Node{}, err
	}
	n, err := c.node(name)
	return c, n, err
}

// hash tells dev clusters on one machine apart, where a name must be short.
func (c *Cluster) hash() string {
	sum := sha256.Sum256([]byte(c.Dir))
	return hex.EncodeToString(sum[:4])
}

func (n Node) layout() config.Layout { return config.Paths(n.Root) }

func (n Node) init() *services.Exec { return services.NewExec(n.layout().InitSocket()) }

// record tells the processes of a node; false when it is down.
func (n Node) record() (supervisor.Record, bool) {
	r, err := statefile.Read[supervisor.Record](recordFile(n.layout()))
	return r, err == nil && r.Guard.Alive()
}

func recordFile(l config.Layout) string { return filepath.Join(l.Run, "init.json") }

// frozen says whether a node that is up is stopped by Freeze.
func frozen(r supervisor.Record) bool {
	p, ok := proctree.Read(r.Init.PID)
	return ok && p.State == 'T'
}

// newNodes names managers, then runners, and gives them addresses, one after the
// other.
func newNodes(dir string, managers, runners int, first string) ([]Node, error) {
	address, err := netip.ParseAddr(first)
	if err != nil || !address.Is4() || !address.IsLoopback() {
		return nil, fmt.Errorf("%w: first address %q is not an IPv4 address of 127.0.0.0/8", ErrUsage, first)
	}
	nodes := make([]Node, managers+runners)
	for i := range nodes {
		if !address.IsLoopback() {
			return nil, fmt.Errorf("%w: %d nodes from %s on are more than 127.0.0.0/8 has", ErrUsage, len(nodes), first)
		}
		n := Node{Name: "node" + strconv.Itoa(i+1), Kind: cluster.Manager, Address: address.String()}
		if i >= managers {
			n.Name, n.Kind = "runner"+strconv.Itoa(i-managers+1), cluster.Runner
		}
		n.Root = filepath.Join(dir, n.Name)
		nodes[i] = n
		address = address.Next()
	}
	return nodes, nil
}

// ErrUsage is the error of arguments that cannot be.
var ErrUsage = errors.New("wrong usage")

// states asks the init of a node for its units; nil when it does not answer.
func (n Node) states(ctx context.Context) map[string]services.State {
	states, err := n.init().States(ctx)
	if err != nil {
		return nil
	}
	return states
}

// unitOf maps the names that people use to units.
func unitOf(component string) string {
	switch component {
	case "postgres":
		return PostgresUnit
	case "consul", "file-sync", "check-runner", "consul-watcher", "handler-runner", "postgres-helper":
		return "understudy-" + component + ".service"
	}
	return services.UnitName(component)
}

// componentOf is the other way round.
func componentOf(unit string) string {
	if unit == PostgresUnit {
		return "postgres"
	}
	return strings.TrimPrefix(strings.TrimSuffix(unit, ".service"), "understudy-")
}
