package cluster

import "time"

// Verdict is what consul-watcher thinks of this node's connectivity.
type Verdict string

// The verdicts. The empty one, and any that is too old, is unknown.
const (
	VerdictUnknown Verdict = ""
	Majority       Verdict = "majority"  // Consul has a leader, or most managers answer directly
	Undecided      Verdict = "undecided" // too early to tell
	Minority       Verdict = "minority"  // cut off from most managers for minority_after
	Isolated       Verdict = "isolated"  // neither gateway nor ping targets answer either
)

// VerdictReport is the file verdict.json in the run directory.
type VerdictReport struct {
	Verdict Verdict   `json:"verdict"`
	Reason  string    `json:"reason"`
	Reached []string  `json:"reached"` // managers that answered directly, sorted, this node included
	Missing []string  `json:"missing"` // managers that did not
	At      time.Time `json:"at"`
}

// FilesReport is the file files.json in the run directory: what file-sync knows
// of all folders together.
type FilesReport struct {
	Sending  bool      `json:"sending"`  // this node's folders are the source
	Epoch    Epoch     `json:"epoch"`    // of the leader key that Sending follows
	Complete Tri       `json:"complete"` // this node has every file of the active
	Need     int       `json:"need"`     // files still to be fetched
	Sequence int64     `json:"sequence"` // of the active's index, as far as it is held here, over all folders
	Problem  string    `json:"problem,omitempty"`
	At       time.Time `json:"at"`
}

// Check names one TTL check in the local Consul agent.
type Check string

// The checks of a node, beside Consul's own serfHealth.
const (
	CheckPort      Check = "postgres-port"   // PostgreSQL accepts connections
	CheckAnswer    Check = "postgres-answer" // it answers select 1
	CheckRole      Check = "postgres-role"   // primary on the active, else following the right active
	CheckStorage   Check = "storage"         // the disk of the database takes writes, and has room
	CheckServices  Check = "services"        // all units of this node's role run
	CheckFiles     Check = "files"           // folders in sync
	CheckHeartbeat Check = "heartbeat"       // check-runner lives
)

// Checks lists all of them with their TTL, before check_ttl_multiplier.
func Checks() map[Check]time.Duration {
	return map[Check]time.Duration{
		CheckPort:      5 * time.Second,
		CheckAnswer:    5 * time.Second,
		CheckRole:      5 * time.Second,
		CheckStorage:   10 * time.Second,
		CheckServices:  5 * time.Second,
		CheckFiles:     10 * time.Second,
		CheckHeartbeat: 35 * time.Second,
	}
}

// SessionChecks are those that the leader's session is bound to: when one of
// them fails, the lock is free at once. The role is not among them, because it
// fails on every standby in the moment in which one of them must take the lock;
// nor is serfHealth, because gossip flaps.
func SessionChecks() []Check { return []Check{CheckPort, CheckAnswer, CheckStorage, CheckServices} }

// ServiceID is the Consul service that the checks belong to; the id of a check
// is ServiceID + ":" + its name.
const ServiceID = "understudy"

// ID is the check's id in the Consul agent.
func (c Check) ID() string { return ServiceID + ":" + string(c) }

// Mode says for whom a node is open to clients that write.
type Mode string

// The modes. The empty one: it is not open.
const (
	Closed       Mode = ""
	MajorityMode Mode = "majority" // active, with a valid lease
	AtRiskMode   Mode = "minority" // active in a part that is cut off: writes are at risk
)

// Role is what a node is to clients at this moment, and the tag by which Consul's DNS
// names it.
type Role string

// The roles. RoleNone is that of a node which has nothing for clients, or which serves
// a part that is cut off.
const (
	RoleNone    Role = ""
	RoleActive  Role = "active"
	RoleStandby Role = "standby" // streams from the active
	RoleRunner  Role = "runner"
)

// Report is what a node tells of itself, to its peers and to operators.
type Report struct {
	Node      string    `json:"node"`
	Cluster   string    `json:"cluster"`
	State     State     `json:"state"`
	Reason    string    `json:"reason"`
	Since     time.Time `json:"since"`
	Epoch     Epoch     `json:"epoch"`
	Promise   Epoch     `json:"promise"`
	Open      bool      `json:"open"` // active, with a lease that is valid; or a primary while the cluster is paused
	Mode      Mode      `json:"mode,omitempty"`
	Position  Position  `json:"position"`
	History   History   `json:"history,omitempty"`
	Upstream  string    `json:"upstream,omitempty"`
	LagBytes  *int64    `json:"lag_bytes"` // null: unknown
	Quorum    Quorum    `json:"quorum"`
	Version   string    `json:"version"`
	Services  []Unit    `json:"services"`
	SystemID  string    `json:"system_id"`
	Streaming bool      `json:"streaming"`
	Follows   Epoch     `json:"follows,omitempty"`  // a standby whose gate is open: the epoch of its active
	Side      *Side     `json:"side,omitempty"`     // its data are those of a part that was cut off, at risk until it is settled
	Departed  bool      `json:"departed,omitempty"` // removed, and withdrawn from Consul
	Paused    bool      `json:"paused,omitempty"`   // has heard that the cluster is
	Files     Tri       `json:"files"`              // it has every file of the active
	Problem   string    `json:"problem,omitempty"`  // why it could not be active now; empty: it could
}

// Role is what the node is to clients.
func (r Report) Role() Role {
	switch {
	case r.Mode == MajorityMode:
		return RoleActive
	case r.State == Standby && r.Streaming:
		return RoleStandby
	case r.State == Executing:
		return RoleRunner
	}
	return RoleNone
}

// Unit is a unit of the manager and whether it runs.
type Unit struct {
	Name    string `json:"name"`
	Leader  bool   `json:"leader"` // runs on the active only
	Running Tri    `json:"running"`
}
