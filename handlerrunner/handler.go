// Package handlerrunner drives one node: it observes, lets cluster.Decide
// choose, and acts, one action at a time. It promotes, follows, fences, starts
// and stops services, and answers its peers when they hold an election.
package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/statefile"
)

// Options are what a handler works with.
type Options struct {
	Node    string // this node's name
	Kind    cluster.Kind
	Version string
	State   string // file that keeps its durable state
	Known   string // file that keeps the last view of the cluster

	Store   Store
	Locks   Locks
	Units   Units
	Peers   Peers
	Parts   Parts
	Journal Journal
	Verdict func() cluster.VerdictReport // the watcher's, unknown when it is old
	Files   func() cluster.FilesReport
	Storage func() cluster.StorageReport // check-runner's, empty when it is old
	Depart  func(context.Context) error  // leave Consul for good; may be repeated

	// PostgreSQL on this node; not looked at on a runner.
	Postgres     Postgres
	Replication  Replication
	Directory    Directory
	Divergence   Divergence
	Checkpoint   func(context.Context) error
	PostgresUnit string

	AlwaysUnits []string
	LeaderUnits []string
	Log         *slog.Logger
}

// durable is what a handler must know again after it was killed.
type durable struct {
	State   cluster.State `json:"state"`
	Promise cluster.Epoch `json:"promise"` // takes no WAL of an earlier epoch
	// PromiseAt is the index at which the latest election that was answered
	// had seen the leader key free: see redeem.
	PromiseAt uint64        `json:"promise_at"`
	Tried     cluster.Epoch `json:"tried"`   // the latest epoch for which it took the lock
	Session   string        `json:"session"` // that holds, or held, the lock
	Paused    bool          `json:"paused"`  // the latest word on it that was heard

	// Made is the timeline that a promotion was to make for Tried, until the
	// sync set of that epoch is published: see doubled.
	Made cluster.Timeline `json:"made,omitempty"`

	// Wrote is the timeline that this node opened last, as a primary.
	Wrote cluster.Timeline `json:"wrote,omitempty"`
	// Side is the part of the cluster whose WAL this node has, until it is
	// mended or that part's database goes on. Lost says that it does not.
	Side *cluster.Side `json:"side,omitempty"`
	Lost bool          `json:"lost,omitempty"`
}

// tick is how often a node looks around where nothing wakes it.
const tick = 500 * time.Millisecond

// Handler is the driver of one node. Its exported methods may be called from
// any goroutine.
type Handler struct {
	Options
	tenure tenure
	job    job
	wakeup chan struct{}
	orders chan order

	// moving is held while the durable state or the upstream of PostgreSQL
	// changes, so that a promise and a reconnection cannot cross.
	moving sync.Mutex

	mu       sync.Mutex // guards what follows
	durable  durable
	view     cluster.View
	fresh    cluster.Tri
	seen     time.Time // when who is named, or whether the lock is held, last changed
	db       Database
	since    time.Time
	reason   string
	units    map[string]cluster.Tri
	faltered map[string]time.Time // when a unit that was to run had ended
	attempt  cluster.Tri          // of the promotion under way
	chosen   cluster.Tri          // to serve the part that is cut off
	resting  time.Time            // no new job before
	followed cluster.Epoch        // for which Follow was last done
	tip      tip                  // of the active, asked once per epoch
	departed bool                 // Depart was done
	retiring bool                 // the host goes down
	cutOff   time.Time            // when this node was last known to be cut off
	awaited  time.Time            // since when elections wait for a node that serves a part
	vouches  time.Time            // until then this node does not detach from its active

	// The driver's own:
	strayed  time.Time     // since when the standby does not stream
	roster   roster        // when each standby was last connected
	slotted  []string      // who has a slot here
	changed  cluster.LSN   // position after the quorum in effect was set
	advanced time.Time     // when Divergence was last advanced
	rewound  cluster.Epoch // for which a rewind was tried; the rejoin job's own
}

// New reads the durable state and returns a handler that Run drives.
func New(o Options) (*Handler, error) {
	if o.Kind == cluster.Runner {
		o.Postgres, o.Replication, o.Directory, o.PostgresUnit = noDatabase{}, noDatabase{}, noDatabase{}, ""
	}
	h := &Handler{Options: o, wakeup: make(chan struct{}, 1), orders: make(chan order), units: map[string]cluster.Tri{}, faltered: map[string]time.Time{}, roster: roster{}}
	h.tenure.log, h.tenure.wake, h.tenure.vouched = o.Log, h.wake, h.vouched
	d, err := statefile.Read[durable](o.State)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d = durable{State: cluster.Joining}
	case err != nil:
		return nil, fmt.Errorf("%w; remove the file only if this node may be cloned again", err)
	}
	h.durable, h.since = d, time.Now()
	v, err := statefile.Read[cluster.View](o.Known)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.Log.Warn("the last view of the cluster cannot be read", "error", err)
	}
	v.Leader = cluster.Leader{} // who holds the lock is only ever known fresh
	h.view = v
	return h, nil
}

// Run drives the node until ctx ends. It leaves PostgreSQL, the units and the
// lock as they are: the next run takes them up.
func (h *Handler) Run(ctx context.Context) error {
	h.resume(ctx)
	var aside sync.WaitGroup
	defer aside.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	aside.Go(func() { h.bringBack(ctx) })
	watching := make(chan error, 1)
	go func() { watching <- h.Store.Watch(ctx, h.see) }()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	defer h.tenure.leave()
	defer h.job.cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-watching:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch the cluster's state: %w", err)
		case o := <-h.orders:
			o.done <- h.handOver(ctx, o)
		case <-ticker.C:
		case <-h.wakeup:
		}
		h.step(ctx)
	}
}

// resume adopts the session of an active that was killed, so that its restart
// is no failover. Everything that was half done begins again from fenced.
func (h *Handler) resume(ctx context.Context) {
	d := h.durable
	if d.State == cluster.Active {
		asked := time.Now()
		lease, err := h.Locks.Adopt(ctx, d.Session)
		for err != nil && !errors.Is(err, ErrSessionGone) && time.Since(asked) < leaseTTL && ctx.Err() == nil {
			_ = sleep(ctx, leaseTTL/10) // the agent may have been restarted, too
			lease, err = h.Locks.Adopt(ctx, d.Session)
		}
		if err == nil {
			h.tenure.begin(lease, d.Tried, asked, h.ttl())
			h.Log.Info("leader session adopted", "epoch", d.Tried, "session", d.Session)
			return
		}
		h.Log.Warn("leader session not adopted", "epoch", d.Tried, "error", err)
	}
	if d.State == cluster.Active && d.Paused {
		h.enter(cluster.Decision{To: cluster.Maintenance, Reason: "handler-runner was restarted while the cluster was paused"})
		return
	}
	if d.State == cluster.Active || d.State == cluster.Promoting || d.State == cluster.Rejoining {
		h.enter(cluster.Decision{To: cluster.Fenced, Reason: "handler-runner was restarted while " + string(d.State)})
	}
}

func (h *Handler) wake() {
	select {
	case h.wakeup <- struct{}{}:
	default:
	}
}

// see takes a view from the registry.
func (h *Handler) see(v cluster.View, ok bool) {
	h.mu.Lock()
	before := h.view
	if ok {
		if v.NextMaster.Epoch != h.view.NextMaster.Epoch || v.Leader.Held != h.view.Leader.Held {
			h.seen = time.Now()
		}
		h.view = v
	}
	was := h.fresh
	h.fresh = cluster.TriOf(ok)
	changed := was != h.fresh
	h.mu.Unlock()
	if ok && (!reflect.DeepEqual(before.Nodes, v.Nodes) || !reflect.DeepEqual(before.Info, v.Info) || before.NextMaster != v.NextMaster || len(before.Removed) != len(v.Removed)) {
		h.remember(v)
	}
	if changed {
		h.Log.Info("registry", "reachable", ok)
	}
	h.wake()
}

// remember keeps what a node must know of the cluster that starts while the
// registry cannot be read.
func (h *Handler) remember(v cluster.View) {
	if err := statefile.Write(h.Known, v); err != nil {
		h.Log.Warn("the view of the cluster is not kept", "error", err)
	}
}

// step is one round of observe, decide, act.
func (h *Handler) step(ctx context.Context) {
	h.redeem()
	h.hearPause()
	o := h.observe(ctx)
	d := cluster.Decide(o)
	if d.To != o.State {
		h.job.cancel()
		h.enter(d)
	}
	for _, a := range d.Do {
		if err := h.act(ctx, a, o); err != nil {
			h.Log.Warn("action failed", "action", string(a), "state", string(d.To), "epoch", o.View.NextMaster.Epoch, "error", err)
			if a == cluster.Fence {
				break // the lock is not given back before; nothing else keeps the rest from being done
			}
		}
	}
	// A fence that failed has left the lock here.
	if idle := d.To != cluster.Active && d.To != cluster.Promoting; idle && (o.Primary == cluster.No || o.Running == cluster.No) {
		_ = h.act(ctx, cluster.Release, o)
	}
	if d.To != o.State {
		h.wake()
	}
}

// enter writes the new state down before anything is done about it.
func (h *Handler) enter(d cluster.Decision) {
	h.moving.Lock()
	defer h.moving.Unlock()
	h.mu.Lock()
	from, epoch := h.durable.State, h.view.NextMaster.Epoch
	h.durable.State, h.reason, h.since = d.To, d.Reason, time.Now()
	h.attempt, h.followed = cluster.Unknown, 0
	h.mu.Unlock()
	h.roster, h.slotted, h.changed = roster{}, nil, 0
	if d.To != cluster.Promoting {
		// A promotion is on a clock, and one that was interrupted before it
		// had the lock may as well have been a standby's.
		h.keep()
	}
	h.Log.Info("state", "from", string(from), "to", string(d.To), "reason", d.Reason, "epoch", epoch)
	h.Journal.Write("state", epoch, fmt.Sprintf("%s is %s: %s", h.Node, d.To, d.Reason), map[string]any{"from": from, "to": d.To})
}

// keep makes the durable state durable. The caller holds moving. Where the disk
// refuses, the state stays in memory and the next change tries again; a promise
// checks the error itself.
func (h *Handler) keep() error {
	h.mu.Lock()
	d := h.durable
	h.mu.Unlock()
	err := statefile.Keep(h.State, d)
	if err != nil {
		h.Log.Error("state not written", "error", err)
	}
	return err
}

func (h *Handler) options() cluster.Options {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view.Options(h.Node)
}

func (h *Handler) ttl() time.Duration { return max(h.options().Stretch(leaseTTL), leaseTTL) }

func (h *Handler) snapshot() (cluster.View, durable, Database) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view, h.durable, h.db
}

func (h *Handler) setUpstream(e cluster.Epoch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.followed = e
}

// confirmMade forgets an unconfirmed timeline. The caller holds moving.
func (h *Handler) confirmMade() error {
	h.mu.Lock()
	made := h.durable.Made
	h.durable.Made = 0
	h.mu.Unlock()
	if made == 0 {
		return nil
	}
	return h.keep()
}

func (h *Handler) followedEpoch() cluster.Epoch {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.followed
}

func (h *Handler) upstreamIs(e cluster.Epoch) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.followed == e
}

// rest keeps jobs that fail from being repeated at once.
func (h *Handler) rest(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.resting = time.Now().Add(d)
	time.AfterFunc(d, h.wake)
}

func (h *Handler) rested() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !time.Now().Before(h.resting)
}
