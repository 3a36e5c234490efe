package registry_test

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
)

// first is the agent of a first node with TLS, on an address that is not loopback.
func first(t *testing.T) registry.AgentConfig {
	t.Helper()
	d := certs.Dir(t.TempDir())
	check(t, d.NewCA("c1"))
	check(t, d.NewGossipKey())
	csr, err := d.Request("n1", "192.0.2.1")
	check(t, err)
	cert, err := d.Sign(csr, "n1", "192.0.2.1", cluster.Manager)
	check(t, err)
	ca, err := d.CA()
	check(t, err)
	check(t, d.Install(ca, cert))
	key, err := d.GossipKey()
	check(t, err)
	return registry.AgentConfig{
		Name: "n1", Address: "192.0.2.1", Kind: cluster.Manager, DataDir: t.TempDir(), Bootstrap: true,
		GossipKey: key, CAFile: d.CAFile(), CertFile: d.CertFile(), KeyFile: d.KeyFile(),
	}
}

func joiner(c *registry.AgentConfig) { c.Bootstrap, c.Join = false, []string{"192.0.2.1"} }

// TestAgentConfigIsValid asks Consul itself.
func TestAgentConfigIsValid(t *testing.T) {
	consul, err := exec.LookPath("consul")
	if err != nil {
		t.Fatalf("these tests run against a real Consul: put bin/ on PATH: %v", err)
	}
	for what, change := range map[string]func(*registry.AgentConfig){
		"first node":   func(*registry.AgentConfig) {},
		"joining node": joiner,
		"runner":       func(c *registry.AgentConfig) { joiner(c); c.Kind = cluster.Runner },
		"slow network": func(c *registry.AgentConfig) { c.RaftMultiplier = 5 },
	} {
		t.Run(what, func(t *testing.T) {
			c := first(t)
			change(&c)
			text, err := c.JSON()
			check(t, err)
			file := filepath.Join(t.TempDir(), "consul.json")
			check(t, os.WriteFile(file, text, 0o600))
			out, err := exec.CommandContext(t.Context(), consul, "validate", file).CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func TestAgentConfigRefuses(t *testing.T) {
	for words, change := range map[string]func(*registry.AgentConfig){
		"node name":        func(c *registry.AgentConfig) { c.Name = "Node 1" },
		"not an IP":        func(c *registry.AgentConfig) { c.Address = "host.example" },
		"data directory":   func(c *registry.AgentConfig) { c.DataDir = "" },
		"runner":           func(c *registry.AgentConfig) { c.Kind = cluster.Runner },
		"addresses to":     func(c *registry.AgentConfig) { c.Bootstrap = false },
		"first node or":    func(c *registry.AgentConfig) { c.Join = []string{"192.0.2.2"} },
		"certificate and ": func(c *registry.AgentConfig) { c.KeyFile = "" },
	} {
		c := first(t)
		change(&c)
		if _, err := c.JSON(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("error %v, want one with %q", err, words)
		}
	}
}

// TestAgentConfigKeepsPromises names the settings that the cluster relies on.
func TestAgentConfigKeepsPromises(t *testing.T) {
	c := first(t)
	text, err := c.JSON()
	check(t, err)
	var got struct {
		ClientAddr       string `json:"client_addr"`
		BootstrapExpect  int    `json:"bootstrap_expect"`
		LeaveOnTerminate *bool  `json:"leave_on_terminate"`
		SessionTTLMin    string `json:"session_ttl_min"`
		Performance      struct {
			Hold string `json:"rpc_hold_timeout"`
		}
		Autopilot struct {
			Cleanup *bool `json:"cleanup_dead_servers"`
		}
		Ports struct{ HTTP, HTTPS, DNS, GRPC int }
		TLS   struct {
			Defaults struct {
				In  bool `json:"verify_incoming"`
				Out bool `json:"verify_outgoing"`
			}
			RPC struct {
				Hostname bool `json:"verify_server_hostname"`
			} `json:"internal_rpc"`
		}
	}
	check(t, json.Unmarshal(text, &got))
	hold, err := time.ParseDuration(got.Performance.Hold)
	check(t, err)
	// With check_ttl_multiplier 1.
	shortest := slices.Min(slices.Collect(maps.Values(cluster.Checks())))
	no := func(b *bool) bool { return b != nil && !*b }
	for what, kept := range map[string]bool{
		"the API is for this host alone":    got.ClientAddr == "127.0.0.1" && c.APIAddress() == "127.0.0.1:8500",
		"only DNS speaks in clear":          got.Ports.HTTP == -1 && got.Ports.DNS == 8600 && got.Ports.GRPC == -1,
		"the API speaks HTTPS":              got.Ports.HTTPS == 8500,
		"both sides are verified":           got.TLS.Defaults.In && got.TLS.Defaults.Out && got.TLS.RPC.Hostname,
		"a stop does not leave the cluster": no(got.LeaveOnTerminate),
		"a dead server stays a member":      no(got.Autopilot.Cleanup),
		"sessions may end within seconds":   got.SessionTTLMin == "1s",
		"the first node waits for nobody":   got.BootstrapExpect == 1,
		"no check ends in a mere election":  hold > 0 && hold < shortest,
	} {
		if !kept {
			t.Errorf("broken: %s:\n%s", what, text)
		}
	}
	joiner(&c)
	text, err = c.JSON()
	check(t, err)
	if strings.Contains(string(text), "bootstrap") {
		t.Errorf("a joining node could make a cluster of its own:\n%s", text)
	}
	c.Address = "127.0.0.12"
	if a := c.APIAddress(); a != "127.0.0.12:8500" {
		t.Errorf("on a shared machine the API is at %s", a)
	}
	if a := c.DNSAddress(); a != "127.0.0.12:8600" {
		t.Errorf("on a shared machine DNS is at %s", a)
	}
}

func TestOpenRefusesBadAddress(t *testing.T) {
	if _, err := registry.Open(registry.Config{Address: "127.0.0.1"}); err == nil {
		t.Error("an address without a port was accepted")
	}
}
