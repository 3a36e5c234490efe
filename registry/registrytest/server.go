// Package registrytest runs real Consul servers for tests.
package registrytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
)

// Server is a Consul server that runs until the test ends.
type Server struct {
	Address string // ip:port of the HTTP API
	Token   string // may do everything; empty where there are no ACLs
	Config  registry.AgentConfig

	t    testing.TB
	file string
	log  string
	cmd  *exec.Cmd
}

// Start runs the first server of a cluster on a loopback address, with ACLs, over
// plain HTTP, and waits until it leads. consul must be on PATH.
func Start(t testing.TB, address string) *Server {
	t.Helper()
	return StartWith(t, registry.AgentConfig{
		Name: NodeName(address), Address: address, Bootstrap: true, DataDir: t.TempDir(), Tokens: tokens(),
	})
}

// root is the token of every cluster here that may do everything. To keep these tests
// short it is the agents' and DNS's too.
const root = "2f7f4a53-9b6a-4d6c-8a57-5d3a1c0e9f11"

func tokens() registry.Secrets {
	return registry.Secrets{registry.HolderAgent: root, registry.HolderDNS: root, registry.HolderOperator: root}
}

// Join runs one more server, which joins others by their addresses, and waits
// until it knows a leader. It has no vote yet: see registry.Client.WaitVoter.
func Join(t testing.TB, address string, others ...string) *Server {
	t.Helper()
	return StartWith(t, registry.AgentConfig{
		Name: NodeName(address), Address: address, Join: others, DataDir: t.TempDir(), Tokens: tokens(),
	})
}

// NodeName is the name that Start and Join give to the node: node-1-11 for
// 127.10.1.11.
func NodeName(address string) string {
	return "node-" + strings.Join(strings.Split(address, ".")[2:], "-")
}

// StartWith runs an agent with its own configuration. With TLS it waits until
// the API's port is open, otherwise until there is a leader; with ACLs until they are
// there.
func StartWith(t testing.TB, conf registry.AgentConfig) *Server {
	t.Helper()
	text, err := conf.JSON()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &Server{
		Address: conf.APIAddress(), Token: conf.Tokens[registry.HolderOperator], Config: conf, t: t,
		file: filepath.Join(dir, "consul.json"), log: filepath.Join(dir, "consul.log"),
	}
	if err := os.WriteFile(s.file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	s.Restart()
	return s
}

// PID is the agent's process, 0 while it is down.
func (s *Server) PID() int {
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Kill ends the agent with SIGKILL and waits until it has gone.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Stop ends the agent as an init system does, with SIGTERM, and waits until it
// has gone.
func (s *Server) Stop() {
	s.t.Helper()
	s.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Signal sends a signal. With SIGSTOP it returns when the agent has stopped: until
// then it may answer once more.
func (s *Server) Signal(sig syscall.Signal) {
	s.t.Helper()
	if s.cmd == nil {
		s.t.Fatal("the consul agent is not running")
	}
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
	if sig == syscall.SIGSTOP {
		if err := unix.Waitid(unix.P_PID, s.cmd.Process.Pid, nil, unix.WSTOPPED, nil); err != nil {
			s.t.Fatal(err)
		}
	}
}

// Restart kills the agent if it runs, starts it on the same data, and waits as
// StartWith does.
func (s *Server) Restart() {
	s.t.Helper()
	s.start()
	s.await(s.ready())
}

// StartAlone is Restart for a server that will find no leader: it waits until its
// port is open.
func (s *Server) StartAlone() {
	s.t.Helper()
	s.start()
	s.await(s.listens)
}

func (s *Server) start() {
	s.t.Helper()
	s.Kill()
	consul, err := exec.LookPath("consul")
	if err != nil {
		s.t.Fatalf("these tests run against a real Consul: put bin/ on PATH: %v", err)
	}
	out, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(consul, "agent", "-config-file", s.file)
	cmd.Stdout, cmd.Stderr = out, out
	// Should the test binary itself be killed, no clean-up runs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
}

// Wipe kills the agent, deletes its data, and starts it empty.
func (s *Server) Wipe() {
	s.t.Helper()
	s.Kill()
	if err := os.RemoveAll(s.Config.DataDir); err != nil {
		s.t.Fatal(err)
	}
	s.Restart()
}

// Client is a client of this server, closed with the test.
func (s *Server) Client() *registry.Client {
	s.t.Helper()
	c, err := registry.Open(registry.Config{Address: s.Address, Token: s.Token})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

func (s *Server) ready() func(context.Context) error {
	if s.Config.CertFile != "" {
		return s.listens
	}
	return s.leads
}

func (s *Server) await(ready func(context.Context) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			text, _ := os.ReadFile(s.log)
			s.t.Fatalf("consul on %s is not ready: %v\n%s", s.Config.Address, err, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *Server) listens(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (s *Server) leads(ctx context.Context) error {
	c, err := registry.Open(registry.Config{Address: s.Address, Token: s.Token})
	if err != nil {
		return err
	}
	defer c.Close()
	if s.Token != "" && s.Config.Bootstrap {
		if err := c.Bootstrap(ctx); err != nil {
			return err
		}
	}
	_, ok, err := c.RaftLeader(ctx)
	if err == nil && !ok {
		err = errors.New("no leader yet")
	}
	if err != nil {
		return err
	}
	_, err = c.View(ctx)
	return err
}

// Lookup asks an agent's DNS, at ip:port, for the addresses of the nodes of a role, in
// order. That there are none is no error.
func Lookup(ctx context.Context, dns string, role cluster.Role) ([]string, error) {
	addresses, err := resolver(dns).LookupHost(ctx, registry.DNSName(role)+".")
	var problem *net.DNSError
	if errors.As(err, &problem) && problem.IsNotFound {
		return nil, nil
	}
	slices.Sort(addresses)
	return addresses, err
}

// LookupPort asks for the port at which the one node of a role serves its database.
func LookupPort(ctx context.Context, dns string, role cluster.Role) (port int, err error) {
	_, list, err := resolver(dns).LookupSRV(ctx, "", "", registry.DNSName(role)+".")
	if err != nil || len(list) != 1 {
		return 0, fmt.Errorf("%d answers, not one: %w", len(list), err)
	}
	return int(list[0].Port), nil
}

func resolver(dns string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, dns)
	}}
}
