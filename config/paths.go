package config

import "path/filepath"

// Layout is where a host keeps what belongs to understudy.
type Layout struct {
	Root   string // "/" on a real host
	Config string // understudy.yaml
	SSL    string // cluster-ssl: certificates and keys
	Units  string // unit files, in dev mode
	State  string // what must survive a reboot
	Run    string // what must not
	Log    string // cluster.log
}

// Paths returns the layout under root; an empty root is "/".
func Paths(root string) Layout {
	if root == "" {
		root = "/"
	}
	at := func(p string) string { return filepath.Join(root, p) }
	return Layout{
		Root:   at("/"),
		Config: at("etc/understudy/understudy.yaml"),
		SSL:    at("etc/understudy/cluster-ssl"),
		Units:  at("etc/systemd/system"),
		State:  at("var/lib/understudy"),
		Run:    at("run/understudy"),
		Log:    at("var/log/understudy"),
	}
}

// Verdict is where consul-watcher writes what it judged.
func (l Layout) Verdict() string { return filepath.Join(l.Run, "verdict.json") }

// Files is where file-sync writes how complete the folders are.
func (l Layout) Files() string { return filepath.Join(l.Run, "files.json") }

// Storage is where check-runner writes whether the database's disk takes writes.
func (l Layout) Storage() string { return filepath.Join(l.Run, "storage.json") }

// Lease is the switch that handler-runner holds while PostgreSQL may be open, and
// consul-watcher watches.
func (l Layout) Lease() string { return filepath.Join(l.Run, "lease") }

// Helper is where postgres-helper answers.
func (l Layout) Helper() string { return filepath.Join(l.Run, "postgres-helper.sock") }

// InitSocket is where the supervisor of a dev node answers.
func (l Layout) InitSocket() string { return filepath.Join(l.Run, "init.sock") }

// Handler is the durable state of handler-runner: its state, promise and epoch.
func (l Layout) Handler() string { return filepath.Join(l.State, "handler.json") }

// Known is the cluster as handler-runner last saw it in Consul.
func (l Layout) Known() string { return filepath.Join(l.State, "cluster.json") }

// Members is what consul-watcher must know without Consul.
func (l Layout) Members() string { return filepath.Join(l.State, "members.json") }

// Membership is how far start or join has come on this host.
func (l Layout) Membership() string { return filepath.Join(l.State, "membership.json") }

// Operator holds the token by which the commands of understudy act in Consul. It is
// root's, and not in the daemons' folder.
func (l Layout) Operator() string { return filepath.Join(filepath.Dir(l.Config), "operator.token") }

// Removed is a mark that the node was removed: no unit of it starts any more, but for
// handler-runner, which goes on telling that.
func (l Layout) Removed() string { return filepath.Join(l.State, "removed") }

// Polkit is the rule that says which units the daemons may start and stop.
func (l Layout) Polkit() string {
	return filepath.Join(l.Root, "etc/polkit-1/rules.d/50-understudy.rules")
}

// ConsulData and ConsulConfig belong to the local Consul agent.
func (l Layout) ConsulData() string { return filepath.Join(l.State, "consul") }

// ConsulConfig is the agent's configuration file, written by start and join.
func (l Layout) ConsulConfig() string { return filepath.Join(l.State, "consul.json") }

// FileSync is Syncthing's database and its kept versions.
func (l Layout) FileSync() string { return filepath.Join(l.State, "file-sync") }

// Divergence is where the exports of what this node wrote in vain are kept.
func (l Layout) Divergence() string { return filepath.Join(l.State, "divergence") }
