package registry

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Ports of the Consul agent. Zero is the default in brackets.
type Ports struct {
	Server  int // Raft and RPC between servers [8300]
	SerfLAN int // gossip, TCP and UDP [8301]
	HTTP    int // the API for this host, HTTPS where there is TLS [8500]
	DNS     int // for this host, UDP and TCP [8600]
}

// AgentConfig is what the configuration of a Consul agent depends on.
type AgentConfig struct {
	Name    string       // node name
	Address string       // IP that the other members reach; gossip and RPC listen there alone
	Kind    cluster.Kind // a runner's agent is a client, all others are servers
	DataDir string

	// Bootstrap is set for the first server of a cluster alone: with an empty
	// data directory it elects itself. All others give addresses in Join.
	Bootstrap bool
	Join      []string // ip or ip:port of members, asked again and again until one answers

	GossipKey string // base64 of 32 bytes; empty: gossip in clear, for tests
	CAFile    string // with CertFile and KeyFile; all empty: no TLS, for tests
	CertFile  string
	KeyFile   string

	// Tokens for the agent itself and for who asks its DNS. Without them there are no
	// ACLs, for tests.
	Tokens Secrets

	RaftMultiplier int           // stretches Raft's timing, 1 to 10; 0: 1
	SessionTTLMin  time.Duration // 0: 1 s, so that a dead node is missed in seconds
	LogLevel       string        // empty: warn
	Ports          Ports
}

// APIAddress is the ip:port where the agent serves its HTTP API to this host.
func (a AgentConfig) APIAddress() string {
	return netip.AddrPortFrom(a.clientIP(), uint16(a.ports().HTTP)).String()
}

// DNSAddress is the ip:port where the agent answers DNS to this host.
func (a AgentConfig) DNSAddress() string {
	return netip.AddrPortFrom(a.clientIP(), uint16(a.ports().DNS)).String()
}

// clientIP is loopback, because only this host asks. A node whose own address is a
// loopback one shares the machine with others, and uses that.
func (a AgentConfig) clientIP() netip.Addr {
	if own, err := netip.ParseAddr(a.Address); err == nil && own.IsLoopback() {
		return own
	}
	return netip.MustParseAddr("127.0.0.1")
}

func (a AgentConfig) ports() Ports {
	or := func(p, otherwise int) int {
		if p == 0 {
			return otherwise
		}
		return p
	}
	return Ports{Server: or(a.Ports.Server, 8300), SerfLAN: or(a.Ports.SerfLAN, 8301), HTTP: or(a.Ports.HTTP, 8500), DNS: or(a.Ports.DNS, 8600)}
}

// section is one object of Consul's configuration. Its keys are documented at
// https://developer.hashicorp.com/consul/docs/agent/config/config-files.
type section map[string]any

// JSON is the configuration file for `consul agent -config-file`. It holds the
// gossip key and tokens: keep it readable by the agent's user alone.
func (a AgentConfig) JSON() ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, fmt.Errorf("consul agent configuration: %w", err)
	}
	conf := a.base()
	for _, part := range []section{a.timing(), a.membership(), a.security(), a.acl()} {
		for key, value := range part {
			conf[key] = value
		}
	}
	text, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("consul agent configuration: %w", err)
	}
	return append(text, '\n'), nil
}

func (a AgentConfig) check() error {
	if err := cluster.CheckName(a.Name); err != nil {
		return err
	}
	if err := cluster.CheckAddress(a.Address); err != nil {
		return err
	}
	switch tls := []bool{a.CAFile != "", a.CertFile != "", a.KeyFile != ""}; {
	case a.DataDir == "":
		return fmt.Errorf("no data directory")
	case a.Bootstrap && a.client():
		return fmt.Errorf("a runner cannot be the first node")
	case a.Bootstrap == (len(a.Join) > 0):
		return fmt.Errorf("either the first node or addresses to join must be given")
	case tls[0] != tls[1] || tls[1] != tls[2]:
		return fmt.Errorf("CA, certificate and key go together")
	}
	return nil
}

func (a AgentConfig) client() bool { return a.Kind == cluster.Runner }

func (a AgentConfig) base() section {
	level := a.LogLevel
	if level == "" {
		level = "warn"
	}
	return section{
		"node_name":                   a.Name,
		"datacenter":                  Datacenter,
		"data_dir":                    a.DataDir,
		"server":                      !a.client(),
		"bind_addr":                   a.Address,
		"advertise_addr":              a.Address,
		"client_addr":                 a.clientIP().String(),
		"log_level":                   level,
		"disable_update_check":        true,
		"disable_anonymous_signature": true,
		"disable_remote_exec":         true,
		"enable_script_checks":        false,
		// Network coordinates are not used, and cost a Raft write now and then.
		"disable_coordinates": true,
		"connect":             section{"enabled": false},
		"peering":             section{"enabled": false},
		"ui_config":           section{"enabled": false},
		// DNS may be answered by any server, but not by one that was cut off a while
		// ago: it would name an active that is none any more.
		"dns_config": section{"allow_stale": true, "max_stale": "5s"},
		"telemetry":  section{"disable_hostname": true, "prometheus_retention_time": "0s"},
		// All nodes of a dev cluster come from one address.
		"limits": section{
			"http_max_conns_per_client": 1000, "rpc_max_conns_per_client": 1000,
			// How long an agent waits for the answer of a leader that was cut off, and
			// takes no news of checks meanwhile: below their TTL, instead of 60 s.
			"rpc_client_timeout": "2s",
		},
	}
}

// timing makes a dead or cut-off node be missed within seconds.
func (a AgentConfig) timing() section {
	ttlMin := a.SessionTTLMin
	if ttlMin == 0 {
		ttlMin = time.Second
	}
	return section{
		"session_ttl_min": ttlMin.String(),
		"performance": section{
			"raft_multiplier":  max(a.RaftMultiplier, 1),
			"leave_drain_time": "200ms",
			// How long a request waits for a leader. While the agent tells the servers
			// of a check it takes no news of any (SyncChanges and UpdateCheck in
			// agent/local/state.go), so this is well below the TTL of our checks: else
			// an election lets them expire, and with them the leader's session.
			"rpc_hold_timeout": "1s",
		},
		"gossip_lan": section{
			"probe_interval":  "200ms",
			"probe_timeout":   "200ms",
			"gossip_interval": "100ms",
			"suspicion_mult":  3,
		},
		// The text of a check, as far as its state stays the same.
		"check_update_interval": "5s",
		// A server that is started knows what is in its last snapshot, and the rest
		// only when it has heard a leader. Tokens must be in it: without them it takes
		// no news of checks, which would end while it waits.
		"raft_snapshot_interval":  "5s",
		"raft_snapshot_threshold": 8,
	}
}

// membership: a manager that is dead, stopped or away for months stays a member
// until an operator removes it, and finds back by itself.
func (a AgentConfig) membership() section {
	s := section{
		"leave_on_terminate":      false,
		"skip_leave_on_interrupt": true,
		"rejoin_after_leave":      true,
		"reconnect_timeout":       "87600h",
		"retry_interval":          "1s",
	}
	if len(a.Join) > 0 {
		s["retry_join"] = a.Join
	}
	if a.Bootstrap {
		s["bootstrap_expect"] = 1
	}
	if !a.client() {
		s["autopilot"] = section{
			"cleanup_dead_servers":      false,
			"server_stabilization_time": stabilization.String(),
			"last_contact_threshold":    lastContact.String(),
		}
	}
	return s
}

// acl refuses whatever a token does not allow, and everything without one. Servers
// read tokens where they stand, in their copy of Raft's state: that waits for nobody,
// and for no leader. The agent of a runner has to ask them; once it knows a token it
// goes on by what it knows, while it asks again or cannot.
func (a AgentConfig) acl() section {
	if len(a.Tokens) == 0 {
		return nil
	}
	return section{"acl": section{
		"enabled": true, "default_policy": "deny", "down_policy": "async-cache",
		"tokens": section{"agent": a.Tokens[HolderAgent], "dns": a.Tokens[HolderDNS]},
	}}
}

func (a AgentConfig) security() section {
	p := a.ports()
	ports := section{
		"server": p.Server, "serf_lan": p.SerfLAN, "serf_wan": -1,
		"dns": p.DNS, "grpc": -1, "grpc_tls": -1, "http": p.HTTP, "https": -1,
	}
	s := section{"ports": ports}
	if a.GossipKey != "" {
		s["encrypt"] = a.GossipKey
	}
	if a.CAFile == "" {
		return s
	}
	ports["http"], ports["https"] = -1, p.HTTP
	s["tls"] = section{
		"defaults": section{
			"ca_file": a.CAFile, "cert_file": a.CertFile, "key_file": a.KeyFile,
			"verify_incoming": true, "verify_outgoing": true,
			"tls_min_version": "TLSv1_3",
		},
		"internal_rpc": section{"verify_server_hostname": true},
	}
	return s
}
