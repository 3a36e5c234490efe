package config

import (
	"net/netip"
	"strconv"
)

// Port is one that something listens on, on every member or on managers.
type Port struct {
	Of       string // as messages name it: "the API"
	Number   int
	UDP      bool // on UDP beside TCP
	Local    bool // for programs of this host alone, on loopback
	Managers bool // not on runners

	listen string // host:port; no host: the node's address
}

// The ports, as messages name them.
const (
	PortPostgres     = "PostgreSQL"
	PortStatus       = "/status"
	PortAPI          = "the API"
	PortConsulServer = "Consul's servers"
	PortConsulGossip = "Consul's gossip"
	PortConsulAPI    = "Consul's API"
	PortConsulDNS    = "Consul's DNS"
	PortSyncthing    = "Syncthing"
)

// Ports are all that a member listens on; what the services of the manager open
// comes on top.
func (c Config) Ports() []Port {
	at := func(p Port, number int) Port {
		p.Number, p.listen = number, ":"+strconv.Itoa(number)
		return p
	}
	return []Port{
		at(Port{Of: PortPostgres, Managers: true}, c.Postgres.Port),
		{Of: PortStatus, Number: c.StatusPort(), listen: c.Status.Listen},
		{Of: PortAPI, Number: c.APIPort(), listen: c.API.Listen},
		at(Port{Of: PortConsulServer, Managers: true}, 8300),
		at(Port{Of: PortConsulGossip, UDP: true}, 8301),
		at(Port{Of: PortConsulAPI, Local: true}, 8500),
		at(Port{Of: PortConsulDNS, Local: true, UDP: true}, 8600),
		at(Port{Of: PortSyncthing}, FileSyncPort),
	}
}

// On is the host:port that is listened on by the node at an address. A node whose
// address is a loopback one shares the machine with others, and uses that for its own
// programs too.
func (p Port) On(address string) string {
	own, err := netip.ParseAddr(address)
	if p.Local && (err != nil || !own.IsLoopback()) {
		address = "127.0.0.1"
	}
	return ListenOn(address, p.listen)
}
