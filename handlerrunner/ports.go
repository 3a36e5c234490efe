package handlerrunner

import (
	"context"
	"errors"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Store is the shared state of the cluster.
type Store interface {
	// Watch calls back with the first view and with every one that differs,
	// and with ok false while the store cannot be read. It returns when ctx
	// ends.
	Watch(ctx context.Context, see func(v cluster.View, ok bool)) error
	// View reads the state now, consistently.
	View(ctx context.Context) (cluster.View, error)
	// SetNextMaster replaces next-master where it and the leader key are
	// still as they were seen.
	SetNextMaster(ctx context.Context, seen cluster.View, a cluster.Assignment) (bool, error)
	// SetSync replaces the published sync set where it still has that index
	// and the session holds the leader lock: so an election that has seen
	// the lock free has seen the last word on the sync set.
	SetSync(ctx context.Context, session string, index uint64, s cluster.SyncSet) (bool, error)
}

// Locks gives out the leader lock.
type Locks interface {
	// Fit wraps ErrUnfit where a health check of this node fails, by the local
	// agent's word, that the active node must pass.
	Fit(ctx context.Context) error
	// Acquire takes the free lock for l, in a session that lives ttl after
	// its last renewal at the least, and, where it is bound, falls with this node's
	// checks. It wraps ErrUnfit where one fails for Consul's servers.
	Acquire(ctx context.Context, l cluster.Leader, ttl time.Duration, bound bool) (Lease, error)
	// Adopt takes up the lock that this node has held for an epoch since before. An
	// error that wraps ErrSessionGone is final.
	Adopt(ctx context.Context, epoch cluster.Epoch) (Lease, error)
	// Renew renews the session of another node.
	Renew(ctx context.Context, session string) error // wraps ErrSessionGone when it has ended
}

// Lease is the leader lock in the hands of this node.
type Lease interface {
	ID() string
	Renew(ctx context.Context) error // wraps ErrSessionGone when it is lost
	// Bind has the lock fall with this node's checks from now on. It may be tried again.
	Bind(ctx context.Context) error
	Update(ctx context.Context, l cluster.Leader) error
	Release(ctx context.Context) error
}

// Errors that adapters wrap.
var (
	// ErrSessionGone: the session that held the lock does not exist any more.
	ErrSessionGone = errors.New("the session is gone")
	// ErrUnfit: a health check fails that the active node must pass.
	ErrUnfit = errors.New("a health check fails")
	// ErrSetAside: what was written could not be exported. The data directory is
	// recorded instead, and a clone keeps it for good.
	ErrSetAside = errors.New("not exported, and the data directory is to be kept")
	// ErrNotRunning: PostgreSQL does not run.
	ErrNotRunning = errors.New("PostgreSQL is not running")
)

// Database is what PostgreSQL on this node says of itself.
type Database struct {
	Running   cluster.Tri
	Primary   cluster.Tri
	Position  cluster.Position // durable end of WAL; zero while unknown
	SystemID  string
	Upstream  string      // address that it streams from; empty: it does not
	Lag       int64       // bytes behind the upstream's last word
	Seen      cluster.LSN // the upstream's last word: its end of WAL
	InEffect  cluster.Quorum
	Standbys  []Downstream // on a primary
	Streaming bool         // its receiver runs

	// Ahead is by how much the clock of the upstream that it streams from is before
	// this node's; nil: not known.
	Ahead *time.Duration
}

// Downstream is a standby that streams from this node.
type Downstream struct {
	Name    string
	Flushed cluster.LSN
}

// Postgres observes and promotes the local server.
type Postgres interface {
	Observe(ctx context.Context) (Database, error)
	// Promote ends recovery and returns the new timeline and where it begins.
	// It does nothing on a primary.
	Promote(ctx context.Context) (cluster.Position, error)
	// SetQuorum sets synchronous_standby_names and sees it in effect.
	SetQuorum(ctx context.Context, q cluster.Quorum) error
	// Gate lets clients in, or ends their sessions and keeps them out.
	Gate(ctx context.Context, open bool) error
}

// Replication moves the local server between upstreams.
type Replication interface {
	// Detach ends the reception of WAL, for good until Follow, and returns
	// the final position. It wraps ErrNotRunning where there is no server;
	// even then none will receive when it starts.
	Detach(ctx context.Context) (cluster.Position, error)
	Follow(ctx context.Context, up cluster.Upstream) error
	// Slots makes sure that each of the nodes, and nobody else, can take WAL from
	// this node's tenure.
	Slots(ctx context.Context, t cluster.Tenure, nodes []string) error
	// History returns the ancestors of a timeline that this server knows.
	History(ctx context.Context, tl cluster.Timeline) (cluster.History, error)
}

// Directory is the local data directory.
type Directory interface {
	Complete(ctx context.Context) (bool, error)
	// Final is the end of WAL of a server that was shut down cleanly.
	Final(ctx context.Context) (cluster.Position, error)
	Rewind(ctx context.Context, source cluster.Upstream) error
	Clone(ctx context.Context, source cluster.Upstream, progress func(string)) error
}

// Units runs systemd units, or what stands for them in dev mode.
type Units interface {
	Start(ctx context.Context, unit string) error
	Stop(ctx context.Context, unit string) error // returns when it has stopped
	Kill(ctx context.Context, unit string) error // SIGKILL to all of it
	Running(ctx context.Context, unit string) (cluster.Tri, error)
}

// Peers asks other nodes.
type Peers interface {
	// Detach asks for the node's promise and final position; seen is the
	// index at which the leader key was free.
	Detach(ctx context.Context, node cluster.Node, epoch cluster.Epoch, seen uint64) (cluster.Answer, error)
	// Lend asks a node that has promised the epoch for its WAL; see Handler.Lend.
	Lend(ctx context.Context, node cluster.Node, epoch cluster.Epoch) (cluster.Loan, error)
	// Vouch asks whether the node stands by the active of an epoch, and whether it
	// could renew that one's session; see Handler.Vouch.
	Vouch(ctx context.Context, node cluster.Node, active string, epoch cluster.Epoch) (renewed bool, err error)
	// Report asks what the node tells of itself.
	Report(ctx context.Context, node cluster.Node) (cluster.Report, error)
}

// Parts asks other nodes about a part of the cluster that is, or was, cut off.
type Parts interface {
	// Rally asks a node of the same part where it stands; see Handler.Rally.
	Rally(ctx context.Context, node cluster.Node) (cluster.Answer, error)
	// Claim asks the active node to hand over to this one. It wraps ErrKept
	// where that is refused for good.
	Claim(ctx context.Context, node cluster.Node, a cluster.Answer) error
	// LastWrite asks when the node's data was last changed after an LSN.
	LastWrite(ctx context.Context, node cluster.Node, after cluster.LSN) (cluster.LastWrite, error)
}

// Divergence keeps what one side of a partition wrote and the other lacks.
type Divergence interface {
	// LastCommit is when data was last changed after an LSN, by the clock of
	// the node that did, and what this node's clock says now.
	LastCommit(ctx context.Context, after cluster.LSN) (cluster.LastWrite, error)
	// SkipTimelines makes the next promotion pass over n timelines.
	SkipTimelines(ctx context.Context, n int) error
	// Keep makes a primary keep its row changes from now on, and lets go of
	// those up to an LSN that every member has confirmed.
	Keep(ctx context.Context, confirmed cluster.LSN) error
	// Export writes down every change of the stopped server after the fork,
	// which it made in an epoch, on these timelines or as a part's. It may be
	// repeated. The error wraps ErrSetAside where a clone now keeps them.
	Export(ctx context.Context, epoch cluster.Epoch, fork cluster.LSN, wrote []cluster.Timeline) error
}

// Journal keeps the history of the cluster. Write does not block.
type Journal interface {
	Write(kind string, epoch cluster.Epoch, message string, data any)
}
