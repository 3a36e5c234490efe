package haproxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/haproxy"
	"github.com/understudy-ha/understudy/haproxy/haproxytest"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// soon bounds every wait; nothing is asserted about how much of it is used.
const soon = 30 * time.Second

// The ports of the hosts, and of the load balancer.
const (
	portStatus, portAPI, portDatabase, portApplication = 8008, 8009, 5432, 8080
	portWeb, portReadOnly                              = 8081, 5433
)

// host stands for a node: it has the real /status, and a database and an application
// that say its name to whoever connects and again for every line they get.
type host struct {
	api.Node
	name, address string
	is            atomic.Pointer[cluster.Report]
}

func (h *host) Mode() cluster.Mode                    { return h.is.Load().Mode }
func (h *host) Report(context.Context) cluster.Report { return *h.is.Load() }

func (h *host) become(r cluster.Report) { h.is.Store(&r) }

// What a host may be.
var (
	active  = cluster.Report{State: cluster.Active, Mode: cluster.MajorityMode}
	atRisk  = cluster.Report{State: cluster.ActiveMinority, Mode: cluster.AtRiskMode}
	standby = cluster.Report{State: cluster.Standby, Streaming: true}
	fenced  = cluster.Report{State: cluster.Fenced}
)

func (h *host) node() cluster.Node {
	return cluster.Node{Name: h.name, Address: h.address, Kind: cluster.Manager,
		Ports: cluster.Ports{API: portAPI, Status: portStatus, Postgres: portDatabase}}
}

// listen serves on one port of the host until the test ends.
func (h *host) listen(t *testing.T, port int, serve func(net.Listener)) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", h.address, port))
	check(t, err)
	t.Cleanup(func() { l.Close() })
	go serve(l)
}

func (h *host) greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			lines := bufio.NewScanner(c)
			for ok := true; ok; ok = lines.Scan() {
				if _, err := fmt.Fprintln(c, h.name); err != nil {
					return
				}
			}
		}()
	}
}

// trio is three hosts below an address like 127.21.1., fenced all, and the
// configuration for them.
func trio(t *testing.T, network, basicAuth string) ([]*host, haproxy.Config) {
	t.Helper()
	c := haproxy.Config{Cluster: "c1", Bind: network + "9", Ports: []haproxy.Port{{Bind: portWeb, Node: portApplication}},
		Postgres: portDatabase, ReadOnly: portReadOnly, BasicAuth: basicAuth, Path: "/api/v3.1/status"}
	var hosts []*host
	for i, name := range []string{"alpha", "beta", "gamma"} {
		h := &host{name: name, address: fmt.Sprintf("%s%d", network, 1+i)}
		h.become(fenced)
		status := api.StatusHandler(h, api.StatusOptions{Paths: []string{c.Path}, BasicAuth: basicAuth})
		h.listen(t, portStatus, func(l net.Listener) { _ = http.Serve(l, status) })
		h.listen(t, portDatabase, h.greet)
		h.listen(t, portApplication, h.greet)
		hosts, c.Nodes = append(hosts, h), append(c.Nodes, h.node())
	}
	return hosts, c
}

// session is a connection of a client.
type session struct {
	net.Conn
	lines *bufio.Reader
	name  string // of the host at the other end
}

// connect connects to a port of the load balancer and hears who is there.
func connect(t *testing.T, c haproxy.Config, port int) (*session, error) {
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", c.Bind, port), soon)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	s := &session{Conn: conn, lines: bufio.NewReader(conn)}
	return s, s.hear()
}

func (s *session) hear() error {
	_ = s.SetReadDeadline(time.Now().Add(soon))
	line, err := s.lines.ReadString('\n')
	s.name = strings.TrimSpace(line)
	return err
}

// lives says that the session goes on with the same host.
func (s *session) lives(t *testing.T) {
	t.Helper()
	was := s.name
	if _, err := fmt.Fprintln(s, "who?"); err != nil {
		t.Fatal(err)
	}
	if err := s.hear(); err != nil || s.name != was {
		t.Fatalf("the session with %s: %q, %v", was, s.name, err)
	}
}

// ends waits until the load balancer has ended the session.
func (s *session) ends(t *testing.T) {
	t.Helper()
	was := s.name
	err := s.hear()
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("the session with %s goes on: %v", was, err)
	}
}

// leads waits until a port leads to one of the hosts and to no other, and returns a
// session with each of them. With no hosts it leads nowhere.
func leads(t *testing.T, c haproxy.Config, port int, to ...string) (sessions map[string]*session) {
	t.Helper()
	const inARow = 8
	var seen string
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		sessions, seen = map[string]*session{}, ""
		nowhere := 0
		for range inARow {
			s, err := connect(t, c, port)
			if err != nil {
				nowhere++
				seen += " " + err.Error()
				continue
			}
			sessions[s.name] = s
			seen += " " + s.name
		}
		right := len(sessions) == len(to) && (nowhere == 0 || len(to) == 0)
		for _, name := range to {
			right = right && sessions[name] != nil
		}
		if right {
			return sessions
		}
		for _, s := range sessions {
			s.Close()
		}
	}
	t.Fatalf("port %d is to lead to %v, and leads to%s", port, to, seen)
	return nil
}

// A partition and a failover, as the clients of the load balancer see them.
func TestFollowsTheActive(t *testing.T) {
	t.Parallel()
	hosts, c := trio(t, "127.21.1.", "")
	alpha, beta, gamma := hosts[0], hosts[1], hosts[2]
	alpha.become(active)
	beta.become(standby)
	gamma.become(standby)
	text, err := c.Full()
	check(t, err)
	haproxytest.Start(t, text)

	leads(t, c, portDatabase, "alpha")
	web := leads(t, c, portWeb, "alpha")["alpha"]
	database := leads(t, c, portDatabase, "alpha")["alpha"]
	reader := leads(t, c, portReadOnly, "beta", "gamma")["gamma"]

	// Beta serves a part that is cut off, and is left alone.
	beta.become(atRisk)
	leads(t, c, portReadOnly, "gamma")
	leads(t, c, portDatabase, "alpha")
	web.lives(t)

	// Now no active of a majority is seen.
	alpha.become(fenced)
	web.ends(t)
	database.ends(t)
	risky := leads(t, c, portWeb, "beta")["beta"]
	leads(t, c, portDatabase, "beta")
	reader.lives(t)

	// There is one again, and the sessions with beta are ended although beta still serves.
	gamma.become(active)
	risky.ends(t)
	leads(t, c, portWeb, "gamma")
	leads(t, c, portDatabase, "gamma")

	// Without standbys the active serves the readers.
	leads(t, c, portReadOnly, "gamma")
	beta.become(standby)
	leads(t, c, portReadOnly, "beta")
}

func TestMajorityOnly(t *testing.T) {
	t.Parallel()
	hosts, c := trio(t, "127.21.2.", "")
	c.MajorityOnly = true
	hosts[0].become(active)
	hosts[1].become(atRisk)
	text, err := c.Full()
	check(t, err)
	haproxytest.Start(t, text)
	leads(t, c, portWeb, "alpha")
	hosts[0].become(fenced)
	leads(t, c, portWeb)
	hosts[0].become(active)
	leads(t, c, portWeb, "alpha")
}

// The checks carry the password, and believe nobody but the node that they mean to ask.
func TestChecksAreVerified(t *testing.T) {
	t.Parallel()
	const auth = `lb:se"cr' et#\`
	ca, foreign := certs.Dir(t.TempDir()), certs.Dir(t.TempDir())
	check(t, ca.NewCA("c1"))
	check(t, foreign.NewCA("c2"))
	hosts, c := trio(t, "127.21.3.", auth)
	c.CAFile = ca.CAFile()
	for i, of := range []struct {
		signer certs.Dir
		name   string
	}{{foreign, "alpha"}, {ca, "delta"}, {ca, "gamma"}} {
		h := hosts[i]
		conf, err := certificate(t, of.signer, of.name, h.address).ServerTLS()
		check(t, err)
		h.listen(t, portAPI, func(l net.Listener) {
			server := http.Server{Handler: api.StatusHandler(h, api.StatusOptions{BasicAuth: auth}), ErrorLog: nil}
			_ = server.Serve(tls.NewListener(l, conf))
		})
		h.become(active)
	}
	text, err := c.Full()
	check(t, err)
	haproxytest.Start(t, text)
	leads(t, c, portWeb, "gamma")
	hosts[2].become(standby)
	leads(t, c, portWeb)
	leads(t, c, portReadOnly, "gamma")

	wrong := c
	wrong.Bind, wrong.BasicAuth = "127.21.3.10", "lb:secret"
	hosts[2].become(active)
	text, err = wrong.Full()
	check(t, err)
	haproxytest.Start(t, text)
	leads(t, c, portWeb, "gamma")
	leads(t, wrong, portWeb)
}

func certificate(t *testing.T, signer certs.Dir, name, ip string) certs.Dir {
	t.Helper()
	d := certs.Dir(t.TempDir())
	csr, err := d.Request(name, ip)
	check(t, err)
	cert, err := signer.Sign(csr, name, ip, cluster.Manager)
	check(t, err)
	ca, err := signer.CA()
	check(t, err)
	check(t, d.Install(ca, cert))
	return d
}

func TestPlain(t *testing.T) {
	t.Parallel()
	hosts, c := trio(t, "127.21.4.", "lb:secret")
	hosts[1].become(active)
	text, err := c.Plain()
	check(t, err)
	for _, line := range []string{
		"option httpchk GET /api/v3.1/status HTTP/1.0", `Authorization "Basic bGI6c2VjcmV0"`, "http-check expect status 200", "balance roundrobin",
		"server alpha 127.21.4.1:8080 check", "server beta 127.21.4.2:8080 check", "server gamma 127.21.4.3:8080 check",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	haproxytest.Start(t, text)
	leads(t, c, portWeb, "beta")
	hosts[1].become(standby)
	hosts[2].become(active)
	leads(t, c, portWeb, "gamma")
}

// HAProxy takes every form without a warning.
func TestForms(t *testing.T) {
	six := cluster.Node{Name: "six", Address: "fd00::6", Ports: cluster.Ports{API: portAPI, Status: portStatus, Postgres: portDatabase}}
	for name, change := range map[string]func(*haproxy.Config){
		"the database alone":    func(c *haproxy.Config) { c.Ports = nil },
		"the application alone": func(c *haproxy.Config) { c.Postgres, c.ReadOnly = 0, 0 },
		"the readers alone":     func(c *haproxy.Config) { c.Ports, c.Postgres = nil, 0 },
		"on every address":      func(c *haproxy.Config) { c.Bind = "*" },
		"over IPv6":             func(c *haproxy.Config) { c.Bind = "::1" },
		"the majority alone":    func(c *haproxy.Config) { c.MajorityOnly = true },
	} {
		t.Run(name, func(t *testing.T) {
			c := haproxy.Config{Cluster: "c1", Nodes: []cluster.Node{six}, Bind: "127.21.5.9", Ports: []haproxy.Port{{Bind: portWeb, Node: portApplication}},
				Postgres: portDatabase, ReadOnly: portReadOnly, Path: "/status"}
			change(&c)
			text, err := c.Full()
			check(t, err)
			haproxytest.Check(t, text)
			if len(c.Listens()) == 0 {
				return // the plain form has nothing for readers
			}
			text, err = c.Plain()
			check(t, err)
			haproxytest.Check(t, text)
		})
	}
}

func TestRefuses(t *testing.T) {
	one := []cluster.Node{{Name: "alpha", Address: "10.0.0.1"}}
	for words, c := range map[string]haproxy.Config{
		"no managers":         {Postgres: 5432},
		"no port to balance":  {Nodes: one},
		"port 5432 of":        {Nodes: one, Postgres: 5432, ReadOnly: 5432},
		"port 80 of the load": {Nodes: one, Ports: []haproxy.Port{{Bind: 80, Node: 80}, {Bind: 80, Node: 8080}}},
	} {
		if _, err := c.Full(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("error %v, want one with %q", err, words)
		}
	}
}

func TestParsePort(t *testing.T) {
	for text, want := range map[string]haproxy.Port{"80": {Bind: 80, Node: 80}, "80:8080": {Bind: 80, Node: 8080}, "65535:1": {Bind: 65535, Node: 1}} {
		if got, err := haproxy.ParsePort(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "65536", "-1", "80:", ":80", "80:8080:1", "http", "80:0"} {
		if got, err := haproxy.ParsePort(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}
