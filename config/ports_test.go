package config

import "testing"

// What is for the host's own programs is on loopback; the rest is where the members
// reach it, or where the configuration says.
func TestPortsOn(t *testing.T) {
	c := Defaults()
	c.Status.Listen = "10.9.0.1:80"
	on := map[string][2]string{
		PortPostgres:     {"10.0.0.1:5432", "127.40.0.1:5432"},
		PortStatus:       {"10.9.0.1:80", "10.9.0.1:80"},
		PortAPI:          {"10.0.0.1:8009", "127.40.0.1:8009"},
		PortConsulServer: {"10.0.0.1:8300", "127.40.0.1:8300"},
		PortConsulGossip: {"10.0.0.1:8301", "127.40.0.1:8301"},
		PortConsulAPI:    {"127.0.0.1:8500", "127.40.0.1:8500"},
		PortConsulDNS:    {"127.0.0.1:8600", "127.40.0.1:8600"},
		PortSyncthing:    {"10.0.0.1:22000", "127.40.0.1:22000"},
	}
	for _, p := range c.Ports() {
		if got := [2]string{p.On("10.0.0.1"), p.On("127.40.0.1")}; got != on[p.Of] {
			t.Errorf("%s listens on %v, want %v", p.Of, got, on[p.Of])
		}
		delete(on, p.Of)
	}
	if len(on) > 0 {
		t.Errorf("not listened on: %v", on)
	}
}
