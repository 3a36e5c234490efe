package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"
)

// Epoch counts the changes of the active node. It grows by one with every
// change and never goes back; every decision, promise, event and log line
// carries it. Zero means that no node has been active yet.
type Epoch uint64

// Tri is an observation that may be missing. The zero value is Unknown.
type Tri uint8

// The values of Tri.
const (
	Unknown Tri = iota
	No
	Yes
)

// TriOf turns a fact that was observed into a Tri.
func TriOf(b bool) Tri {
	if b {
		return Yes
	}
	return No
}

func (t Tri) String() string {
	switch t {
	case Yes:
		return "yes"
	case No:
		return "no"
	}
	return "unknown"
}

// MarshalText makes a Tri readable in JSON.
func (t Tri) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (t *Tri) UnmarshalText(b []byte) error {
	switch string(b) {
	case "yes":
		*t = Yes
	case "no":
		*t = No
	case "unknown", "":
		*t = Unknown
	default:
		return fmt.Errorf("not yes, no or unknown: %q", b)
	}
	return nil
}

// Kind says what a member is for.
type Kind string

// The kinds of members. A manager can be the active node and votes; a runner
// only executes.
const (
	Manager Kind = "manager"
	Runner  Kind = "runner"
)

// Node is a member of the cluster, as kept under nodes/NAME.
type Node struct {
	Name        string  `json:"name"`
	Address     string  `json:"address"` // IP that the other members reach
	Kind        Kind    `json:"kind"`
	Ports       Ports   `json:"ports"`
	Fingerprint string  `json:"fingerprint"` // SHA-256 of the certificate, hex
	DeviceID    string  `json:"device_id"`   // Syncthing's name of the same certificate
	Version     string  `json:"version"`     // understudy's
	PostgresVer int     `json:"postgres_major"`
	Options     Options `json:"options,omitempty"` // this node's own, above the cluster's
}

// Ports are the TCP ports of a member on its address.
type Ports struct {
	API      int `json:"api"`      // HTTPS between nodes and for operators
	Status   int `json:"status"`   // plain HTTP /status
	Postgres int `json:"postgres"` // PostgreSQL
	FileSync int `json:"file_sync"`
}

var nodeName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$`)

// ErrName is the error of a node name that cannot be used.
var ErrName = errors.New("a node name has 1 to 40 lower-case letters, digits and hyphens, begins with a letter and does not end with a hyphen")

// CheckName returns an error that wraps ErrName unless name can name a node: it
// becomes a Consul node name, a DNS label, a certificate's common name and,
// with hyphens as underscores, a replication slot.
func CheckName(name string) error {
	if !nodeName.MatchString(name) {
		return fmt.Errorf("node name %q: %w", name, ErrName)
	}
	return nil
}

// CheckAddress refuses everything but an IP address that others can reach.
func CheckAddress(s string) error {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return fmt.Errorf("%q is not an IP address; a host name is not accepted, because the cluster must not depend on DNS", s)
	}
	if a.IsUnspecified() || a.IsMulticast() {
		return fmt.Errorf("%s cannot be reached by other nodes", s)
	}
	return nil
}

// Info is the identity of the cluster, as kept under the key cluster.
type Info struct {
	ID       string    `json:"id"`
	Created  time.Time `json:"created"`
	Schema   int       `json:"schema"`    // version of the layout of these keys
	SystemID string    `json:"system_id"` // PostgreSQL's system identifier
	Options  Options   `json:"options,omitempty"`
	Paused   *Pause    `json:"paused,omitempty"` // nil: it is not
}

// Pause is an operator's word that nothing is to be done by itself about who is
// active, nor to PostgreSQL.
type Pause struct {
	By string    `json:"by"` // the node on which it was said
	At time.Time `json:"at"`
}

// Schema is the version of the key layout that this code writes and reads.
const Schema = 1

// Assignment is the value of next-master: the node that is to be active. It is
// only ever replaced by compare-and-set, with a greater epoch.
type Assignment struct {
	Node   string    `json:"node"`
	Epoch  Epoch     `json:"epoch"`
	Reason string    `json:"reason"`
	By     string    `json:"by"` // the node, or operator, that wrote it
	At     time.Time `json:"at"` // wall clock of By; never compared
	// Above is the latest timeline that the cluster is known to have been on.
	// Whoever is named makes a later one, also where a part of the cluster
	// whose numbers are lower goes on.
	Above Timeline `json:"above,omitempty"`
	// Past is the last of the way to the timeline that the named node makes, the fork
	// from where it stands included. Nobody else's WAL may be beyond that. Empty: not
	// known.
	Past History `json:"past,omitempty"`
}

// Follows says that a data directory at p, with the history own, is known to be on the
// way to the timeline that the named node makes.
func (a Assignment) Follows(p Position, own History) bool {
	const next = 0 // that timeline has no number yet, so no p is on it
	return a.Past.Leads(next, p, own)
}

// Leader is the value of the leader key. Held says whether a session holds the
// lock: a value that nobody holds only tells who was active last.
type Leader struct {
	Node     string   `json:"node"`
	Epoch    Epoch    `json:"epoch"`
	Ready    bool     `json:"ready"` // open to clients
	Timeline Timeline `json:"timeline"`
	Yields   bool     `json:"yields,omitempty"` // it hands over, and holds the election itself
	Lines    []Line   `json:"lines,omitempty"`  // on which it is, oldest first; the last is its own
	Held     bool     `json:"-"`
	Session  string   `json:"-"` // id of the Consul session that holds it
}

// Line is a timeline by the epoch of the promotion that made it. Two promotions
// that know nothing of each other may make timelines of the same number.
type Line struct {
	Timeline Timeline `json:"timeline"`
	Epoch    Epoch    `json:"epoch"`
}

// Serves says that the holder of the lock has promoted, and on which timeline:
// others may be mended from it. It is open to clients only when it is Ready.
func (l Leader) Serves() bool { return l.Held && (l.Ready || l.Timeline > 0 && !l.Yields) }

// Tombstone is the value of removed/NAME.
type Tombstone struct {
	Node string    `json:"node"`
	By   string    `json:"by"`
	At   time.Time `json:"at"`
}

// View is the shared state of the cluster at one Consul index.
type View struct {
	Index      uint64
	Info       *Info // nil: the store has no cluster
	Nodes      map[string]Node
	NextMaster Assignment
	Leader     Leader
	Sync       SyncSet
	Removed    map[string]Tombstone

	// ModifyIndex of the keys that are written by compare-and-set; zero
	// where the key does not exist.
	NextMasterIndex, LeaderIndex, SyncIndex uint64
}

// Options returns what is in force for a node: its own above the cluster's.
func (v View) Options(node string) Options {
	var shared Options
	if v.Info != nil {
		shared = v.Info.Options
	}
	return shared.With(v.Nodes[node].Options)
}

// Active returns the node that holds the lock and is open to clients; false where
// there is none.
func (v View) Active() (Node, bool) {
	n, ok := v.Nodes[v.Leader.Node]
	return n, ok && v.Leader.Held && v.Leader.Ready
}

// Paused says whether the cluster is paused.
func (v View) Paused() bool { return v.Info != nil && v.Info.Paused != nil }

// SyncMode is the sync mode in force.
func (v View) SyncMode() SyncMode { return SyncMode(v.Options("").Get("sync_mode")) }

// Managers returns the names of the members that can be active, in order.
func (v View) Managers() []string {
	return sortedKeys(v.Nodes, func(n Node) bool { return n.Kind == Manager })
}
