// Package pgrepl is understudy's only adapter for PostgreSQL: it configures a
// server of version 15 or later for replication, observes it, and clones,
// promotes, detaches, follows and rewinds it.
//
// It does not start or stop the server; units do. Everything that can work on a
// stopped server does, and says ErrNotRunning where it cannot. Nothing that the
// operator wrote is changed: the settings lie in conf.d/understudy.conf and
// conf.d/understudy-dynamic.conf, the authentication rules and certificates in a
// folder understudy beside postgresql.conf. All of it is outside the data
// directory, because a base backup and a rewind copy what is inside.
//
// The process must be root or the system user that PostgreSQL runs as. The user
// understudy can look (Observe, Select1, Ping, Hold) and change nothing.
package pgrepl

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

// The roles that understudy makes in the database.
const (
	AdminRole   = "understudy"         // superuser, over the local socket only
	ReplicaRole = "understudy_replica" // replication and rewind, by certificate
)

// Nobody is the standby name that synchronous_standby_names holds on every
// standby: nobody can have it, so a server that was promoted before SetQuorum
// acknowledges no commit. It has a space, which no node name has.
const Nobody = "understudy nobody"

// The errors that callers tell apart.
var (
	// ErrNotRunning: there is no server to do it. What could be done without
	// one has been done; the method says what.
	ErrNotRunning = errors.New("postgresql is not running")
	// ErrStarting: the server runs and does not admit connections yet.
	ErrStarting = errors.New("postgresql is starting up")
	// ErrStopping: the server runs and admits no connections any more.
	ErrStopping = errors.New("postgresql is shutting down")
	// ErrRunning: the data directory is in use by a server, which must be
	// stopped first.
	ErrRunning = errors.New("postgresql is running on this data directory")
	// ErrStandby: the server is a standby.
	ErrStandby = errors.New("postgresql is a standby")
	// ErrNotStandby: the server is a primary.
	ErrNotStandby = errors.New("postgresql is not a standby")
	// ErrOverridden: a setting that understudy owns is set elsewhere too, and
	// that wins. The message names it and the remedy.
	ErrOverridden = errors.New("a setting of understudy is overridden")
	// ErrRewinding: a rewind was begun on the data directory and not finished.
	// It must never start; clone it.
	ErrRewinding = errors.New("a rewind of this data directory was not finished")
	// ErrBusy: another clone or rewind of this data directory is under way.
	ErrBusy = errors.New("another clone or rewind of this data directory is under way")
	// ErrNoSpace: the disk is too full for a clone. The message says how much
	// is needed.
	ErrNoSpace = errors.New("not enough disk space")
	// ErrRecovering: the data directory is that of a standby that was not shut
	// down cleanly. It can be started, or cloned anew, but not rewound.
	ErrRecovering = errors.New("the data directory is in recovery and cannot be rewound")
	// ErrForeign: the system identifier is not the one that was expected.
	ErrForeign = errors.New("the data belongs to another database cluster")
)

// Config says which server this is about. Everything but Superuser, Parameters
// and Logger is required.
type Config struct {
	BinDir     string // holds postgres, pg_basebackup, pg_rewind, pg_controldata
	DataDir    string // PGDATA; neither a symbolic link nor a mount point
	ConfigFile string // postgresql.conf, outside DataDir, which includes conf.d beside it
	Port       int    // TCP port and name of the socket
	Address    string // IP of this node, that the other members connect to
	SocketDir  string // where the server makes its Unix socket; made when missing
	SystemUser string // the server runs as this user
	NodeName   string // application_name of this node's receiver
	SSLDir     string // ca.crt, node.crt and node.key of this node

	Superuser  string            // of the database as it was found; empty: postgres
	Parameters map[string]string // more settings; those that replication depends on are refused
	Logger     *slog.Logger      // nil: nothing is logged
}

// Server is one PostgreSQL server and its data directory. Its methods may be
// called from several goroutines; one that waits for the server blocks no other.
type Server struct {
	Config

	log   *slog.Logger
	run   command.Runner
	pool  pool // admin connections over the socket
	ident pool // replication connections, for IDENTIFY_SYSTEM

	conf  sync.Mutex // held while a file of the configuration is changed
	taken int        // generation that was seen in effect; guarded by conf
}

// Upstream is a server to replicate from.
type Upstream struct {
	Name     string // node name
	Address  string // IP; its certificate must be for it
	Port     int
	Tenure   cluster.Tenure // of the slot there to read through; never empty
	SystemID string         // expected system identifier; empty: not checked
}

// SlotName is the replication slot that a node uses on its upstream, in a tenure of
// that one.
func SlotName(t cluster.Tenure, node string) string {
	return slotPrefix + string(t) + "_" + strings.ReplaceAll(node, "-", "_")
}

const slotPrefix = "understudy_"

// State is whether a server can be talked to.
type State uint8

// The states. The zero value means that it could not be told, for instance
// because the server is frozen.
const (
	StateUnknown  State = iota
	StateDown           // no server listens
	StateStarting       // it runs and does not admit connections yet
	StateStopping       // it runs and admits no connections any more
	StateUp             // it answers
)

var stateNames = []string{"unknown", "down", "starting", "stopping", "up"}

func (s State) String() string { return stateNames[s] }

// MarshalText makes a State readable in JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *State) UnmarshalText(text []byte) error {
	i := slices.Index(stateNames, string(text))
	if i < 0 {
		return fmt.Errorf("%q is no state of a server", text)
	}
	*s = State(i)
	return nil
}

// Observation is what one look at the server showed. Fields that could not be
// seen keep their zero value, which means unknown.
type Observation struct {
	State    State       `json:"state"`
	Problem  string      `json:"problem,omitempty"` // why State is not up
	Primary  cluster.Tri `json:"primary"`           // yes: out of recovery
	ReadOnly cluster.Tri `json:"read_only"`         // a new session cannot write
	SystemID string      `json:"system_id"`

	// Position is durable. On a primary it is the flushed end of WAL, on a
	// standby the later of what was received and flushed and what was
	// replayed, on the timeline of the last record replayed.
	Position cluster.Position `json:"position"`
	Replayed cluster.LSN      `json:"replayed"` // on a standby

	Upstream     string      `json:"upstream"`      // address configured in primary_conninfo; empty: detached
	UpstreamPort int         `json:"upstream_port"` //
	Receiver     string      `json:"receiver"`      // status of the WAL receiver; empty: none runs
	ReceivedAt   time.Time   `json:"received_at"`   // last message from upstream
	UpstreamEnd  cluster.LSN `json:"upstream_end"`  // end of WAL that upstream last reported

	// Ahead is by how much upstream's clock is before this server's, less what the
	// message took that said so; nil while no receiver runs.
	Ahead *time.Duration `json:"ahead,omitempty"`

	Replicas []Replica       `json:"replicas,omitempty"` // connected standbys
	Quorum   *cluster.Quorum `json:"quorum,omitempty"`   // whom commits wait for, in effect; nil: unknown
	Clients  int             `json:"clients"`            // sessions that are not understudy's own
	Gate     cluster.Tri     `json:"gate"`               // yes: the original rules of admission are in the file
}

// Replica is a standby that is connected to the server.
type Replica struct {
	Name     string      `json:"name"`    // application_name: the node
	Address  string      `json:"address"` // it connects from here
	State    string      `json:"state"`   // startup, catchup, streaming, backup, stopping
	Flushed  cluster.LSN `json:"flushed"`
	Replayed cluster.LSN `json:"replayed"`
	Sync     bool        `json:"sync"` // its walsender counts it for commits
}

// Streaming says whether the server receives WAL from its upstream now.
func (o Observation) Streaming() bool { return o.Receiver == "streaming" }

// ControlData is pg_control of a data directory, as pg_controldata prints it.
type ControlData struct {
	SystemID       string
	State          string // such as "in production", "shut down", "in archive recovery"
	Checkpoint     cluster.LSN
	Redo           cluster.LSN
	Timeline       cluster.Timeline // of the latest checkpoint
	MinRecoveryEnd cluster.Position // zero where there is none
	Checksums      bool
	WALLogHints    bool

	limits map[string]int // settings that a standby must not undercut
}

// Problem is one precondition that is not met.
type Problem struct {
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}

// New returns the server that c describes. Nothing is touched yet.
func New(c Config) (*Server, error) {
	for key, v := range map[string]string{"BinDir": c.BinDir, "DataDir": c.DataDir, "ConfigFile": c.ConfigFile,
		"SocketDir": c.SocketDir, "SSLDir": c.SSLDir} {
		if !filepath.IsAbs(v) {
			return nil, fmt.Errorf("configure postgresql: %s %q is not an absolute path", key, v)
		}
	}
	if err := cluster.CheckName(c.NodeName); err != nil {
		return nil, fmt.Errorf("configure postgresql: %w", err)
	}
	if err := cluster.CheckAddress(c.Address); err != nil {
		return nil, fmt.Errorf("configure postgresql: %w", err)
	}
	if err := checkParameters(c.Parameters); err != nil {
		return nil, fmt.Errorf("configure postgresql: %w", err)
	}
	if c.Superuser == "" {
		c.Superuser = "postgres"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.DataDir, c.ConfigFile = filepath.Clean(c.DataDir), filepath.Clean(c.ConfigFile)
	run, err := command.As(c.SystemUser)
	if err != nil {
		return nil, fmt.Errorf("configure postgresql: %w", err)
	}
	s := &Server{Config: c, log: c.Logger, run: run}
	s.pool.connect = s.connect
	s.ident.connect = s.connectReplication
	return s, nil
}

// Close ends the idle connections. The Server may still be used.
func (s *Server) Close() {
	s.pool.drain()
	s.ident.drain()
}

func (s *Server) bin(name string) string { return filepath.Join(s.BinDir, name) }
