// Package haproxy writes the configuration of a HAProxy that sends the clients of a
// cluster to its active node.
package haproxy

import (
	"embed"
	"encoding/base64"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/understudy-ha/understudy/cluster"
)

// Config is what a configuration depends on.
type Config struct {
	Cluster string         // its id
	Nodes   []cluster.Node // the managers
	Bind    string         // IP that clients connect to; "*": every one
	Ports   []Port         // of the application
	// Postgres and ReadOnly are the ports for the database on the active node and on
	// the standbys; 0: none.
	Postgres, ReadOnly int
	BasicAuth          string // user:password that /status asks for; empty: none
	// CAFile is where the load balancer has the cluster's CA: the nodes are asked over
	// HTTPS and verified. Empty: over plain HTTP.
	CAFile string
	// MajorityOnly leaves out nodes that serve a part that is cut off.
	MajorityOnly bool
	Path         string // of /status in the plain form, which may be an alias
}

// Port is a TCP port of the application: where clients connect, and where the nodes
// listen.
type Port struct{ Bind, Node int }

// ParsePort reads PORT, or BIND:NODE where the two differ.
func ParsePort(s string) (Port, error) {
	bind, node, differ := strings.Cut(s, ":")
	if !differ {
		node = bind
	}
	b, errB := strconv.ParseUint(bind, 10, 16)
	n, errN := strconv.ParseUint(node, 10, 16)
	if errB != nil || errN != nil || b == 0 || n == 0 {
		return Port{}, fmt.Errorf("%q is neither a port nor two, as in 80:8080", s)
	}
	return Port{int(b), int(n)}, nil
}

//go:embed *.cfg
var texts embed.FS

var forms = template.Must(template.New("").Funcs(template.FuncMap{"join": join, "quote": quote}).ParseFS(texts, "*.cfg"))

// Full is the configuration that does all that the cluster can. Its health checks
// notice a change of active within a second.
func (c Config) Full() (string, error) { return c.write("full.cfg") }

// Plain asks every node for one path, at HAProxy's own pace, and no more.
func (c Config) Plain() (string, error) { return c.write("plain.cfg") }

func (c Config) write(form string) (string, error) {
	if err := c.check(); err != nil {
		return "", err
	}
	var b strings.Builder
	if err := forms.ExecuteTemplate(&b, form, c); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	return b.String(), nil
}

func (c Config) check() error {
	if len(c.Nodes) == 0 {
		return fmt.Errorf("the cluster has no managers")
	}
	taken := map[int]bool{}
	for _, l := range slices.Concat(c.Listens(), c.readOnly()) {
		if taken[l.Bind] {
			return fmt.Errorf("port %d of the load balancer is asked for twice", l.Bind)
		}
		taken[l.Bind] = true
	}
	if len(taken) == 0 {
		return fmt.Errorf("there is no port to balance")
	}
	return nil
}

// Listen is one port of the load balancer.
type Listen struct {
	Name string
	Bind int
	port func(cluster.Node) int
}

// On is the port of a node that it leads to.
func (l Listen) On(n cluster.Node) int { return l.port(n) }

// Listens are the ports that lead to the active node.
func (c Config) Listens() (all []Listen) {
	if c.Postgres > 0 {
		all = append(all, Listen{"postgres", c.Postgres, postgres})
	}
	for _, p := range c.Ports {
		all = append(all, Listen{fmt.Sprintf("port_%d", p.Bind), p.Bind, func(cluster.Node) int { return p.Node }})
	}
	return all
}

func (c Config) readOnly() []Listen {
	if c.ReadOnly == 0 {
		return nil
	}
	return []Listen{{"postgres_read_only", c.ReadOnly, postgres}}
}

func postgres(n cluster.Node) int { return n.Ports.Postgres }

// StatusPort is where a node is asked how it is.
func (c Config) StatusPort(n cluster.Node) int {
	if c.CAFile != "" {
		return n.Ports.API
	}
	return n.Ports.Status
}

// VerifyHost holds a health check over HTTPS to the node's name, because HAProxy looks
// for no addresses in certificates.
func (c Config) VerifyHost(n cluster.Node) string {
	if c.CAFile == "" {
		return ""
	}
	return " verifyhost " + n.Name
}

// Authorization is the value of the header, empty where none is asked for.
func (c Config) Authorization() string {
	if c.BasicAuth == "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.BasicAuth))
}

// quote makes any text one word of a configuration.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func join(address string, port int) string {
	return net.JoinHostPort(address, strconv.Itoa(port))
}
