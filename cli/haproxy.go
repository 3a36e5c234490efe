package cli

import (
	"fmt"
	"net/netip"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/haproxy"
)

func haproxyCommand() *urfave.Command {
	return &urfave.Command{
		Name: "haproxy-config", Usage: "print a configuration for HAProxy, which sends clients to the active node",
		UsageText: "understudy haproxy-config [options]\n\n" +
			"It is a whole /etc/haproxy/haproxy.cfg, for HAProxy 2.6 or newer. Clients that connect to a port of the application, or to\n" +
			"PostgreSQL's, reach the active node; a node that serves a part of the cluster that is cut off only while no other active node\n" +
			"is seen. Password and paths of /status are those in this host's understudy.yaml.\n\n" +
			"example: understudy haproxy-config --port 80:8080 --port 443\n" +
			"         understudy haproxy-config --port 443 --postgres-port 0 --read-only-port 0 --tls",
		Flags: []urfave.Flag{
			&urfave.StringSliceFlag{Name: "port", Usage: "a TCP `PORT` of the application; 80:8080 where clients connect to 80 and the nodes listen on 8080; may be repeated"},
			&urfave.IntFlag{Name: "postgres-port", Value: 5432, Usage: "`PORT` for PostgreSQL on the active node; 0: none"},
			&urfave.IntFlag{Name: "read-only-port", Value: 5433, Usage: "`PORT` for PostgreSQL on the standbys; 0: none"},
			&urfave.StringFlag{Name: "bind", Value: "*", Usage: "`IP` that clients connect to"},
			&urfave.BoolFlag{Name: "tls", Usage: "ask the nodes for /status over HTTPS and verify them with the cluster's CA"},
			&urfave.StringFlag{Name: "ca-file", Value: "/etc/haproxy/understudy-ca.crt", Usage: "with --tls, where the load balancer has a copy of the cluster's ca.crt: a `FILE`"},
			&urfave.BoolFlag{Name: "majority-only", Usage: "never send clients to a node that serves a part that is cut off"},
			&urfave.BoolFlag{Name: "plain", Usage: "only check /status of every node, at HAProxy's own pace: a failover takes seconds longer, and sessions with the former active are not ended"},
		},
		Action: printHAProxy,
	}
}

func printHAProxy(c *urfave.Context) error {
	if _, err := exactly(c); err != nil {
		return err
	}
	conf, err := haproxyConfig(c)
	if err != nil {
		return err
	}
	m, err := openMember(c)
	if err != nil {
		return err
	}
	defer m.close()
	view, _, err := m.known(c.Context)
	if err != nil {
		return err
	}
	conf.Cluster = view.Info.ID
	for _, name := range view.Managers() {
		conf.Nodes = append(conf.Nodes, view.Nodes[name])
	}
	if conf.BasicAuth, err = m.host.BasicAuth(); err != nil {
		return err
	}
	conf.Path = "/status"
	if aliases := m.host.Config.Status.Paths; len(aliases) > 0 {
		conf.Path = aliases[0]
	}
	form := conf.Full
	if c.Bool("plain") {
		form = conf.Plain
	}
	text, err := form()
	if err != nil {
		return usagef("%w; see '%s --help'", err, c.Command.HelpName)
	}
	fmt.Fprint(out(c), text)
	return nil
}

// haproxyConfig is what the command line says.
func haproxyConfig(c *urfave.Context) (haproxy.Config, error) {
	conf := haproxy.Config{Bind: c.String("bind"), MajorityOnly: c.Bool("majority-only")}
	for _, text := range c.StringSlice("port") {
		p, err := haproxy.ParsePort(text)
		if err != nil {
			return conf, usagef("--port: %w", err)
		}
		conf.Ports = append(conf.Ports, p)
	}
	for name, port := range map[string]*int{"postgres-port": &conf.Postgres, "read-only-port": &conf.ReadOnly} {
		if *port = c.Int(name); *port < 0 || *port > 65535 {
			return conf, usagef("--%s: %d is not a port", name, *port)
		}
	}
	if ip, err := netip.ParseAddr(conf.Bind); conf.Bind != "*" && (err != nil || ip.Zone() != "") {
		return conf, usagef("--bind: %q is not an IP address", conf.Bind)
	}
	if c.Bool("tls") {
		conf.CAFile = c.String("ca-file")
	} else if c.IsSet("ca-file") {
		return conf, usagef("--ca-file is for --tls, which is not given")
	}
	if c.Bool("plain") {
		for _, name := range []string{"tls", "majority-only", "read-only-port"} {
			if c.IsSet(name) {
				return conf, usagef("--plain has no --%s", name)
			}
		}
		conf.ReadOnly = 0
	}
	return conf, nil
}
