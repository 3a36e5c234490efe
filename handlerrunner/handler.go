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
	// Failing reads which health checks of a node fail, and what they say.
	Failing func(ctx context.Context, node string) (map[string]string, error)

	// Hold tells the guard of this process, which ends PostgreSQL should the
	// process freeze or die, until when it may be open; the zero time: nothing
	// is to be guarded.
	Hold func(until time.Time)

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
	Tried     cluster.Epoch `json:"tried"`  // the latest epoch for which it took the lock
	Paused    bool          `json:"paused"` // the latest word on it that was heard

	// Lines are the timelines of promotions, here or on a node that was
	// followed, that other nodes may know nothing of: see doubled. Oldest first.
	Lines []cluster.Line `json:"lines,omitempty"`

	// Opened are the timelines that this node has opened as the cluster's
	// active node, the latest last, since its directory was mended: what it
	// wrote there may be nowhere else.
	Opened []cluster.Timeline `json:"opened,omitempty"`
	// Side is the part of the cluster whose WAL this node has, until it is
	// mended or that part's database goes on. Lost says that it does not.
	Side *cluster.Side `json:"side,omitempty"`
	Lost bool          `json:"lost,omitempty"`

	// Made is the last timeline that this node has made to serve a part.
	Made cluster.Timeline `json:"made,omitempty"`

	// Mended says that the directory was rewound or cloned and that no server has
	// been consistent on it since: it needs WAL before it can tell where it is.
	Mended bool `json:"mended,omitempty"`
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
	aside  sync.WaitGroup // what goes on beside the driver

	living context.Context // of Run

	// moving is held while the durable state or the upstream of PostgreSQL
	// changes, so that a promise and a reconnection cannot cross.
	moving latch

	mu       sync.Mutex // guards what follows
	durable  durable
	unkept   bool // the disk has refused durable as it is
	view     cluster.View
	fresh    cluster.Tri
	deaf     time.Time // when the registry was last out of reach
	seen     time.Time // when who is named, or whether the lock is held, last changed
	db       Database
	stood    cluster.Position // where the server was last seen, since the directory was mended
	since    time.Time
	reason   string
	units    map[string]cluster.Tri
	faltered map[string]time.Time // when a unit that was to run had ended
	attempt  cluster.Tri          // of the promotion under way
	chosen   cluster.Tri          // to serve the part that is cut off
	stepsUp  bool                 // it is about to be
	resting  time.Time            // no new job before
	followed cluster.Epoch        // for which Follow was last done
	tip      tip                  // of the active, asked once per epoch
	departed bool                 // Depart was done
	retiring bool                 // the host goes down
	cutOff   time.Time            // when this node was last known to be cut off
	awaited  time.Time            // since when elections wait for a node that serves a part
	vouches  time.Time            // until then this node does not detach from vouchedFor
	returns  time.Time            // until then Consul is returning, which was silent when this node vouched

	vouchedFor string
	rallyError string // of the latest rally

	// The driver's own:
	strayed  time.Time     // since when the standby does not stream
	streamed bool          // it did when it was last looked at
	roster   roster        // when each standby was last connected
	slotted  []string      // who has a slot here
	changed  cluster.LSN   // position after the quorum in effect was set
	settled  bool          // no publication of the sync set, by this process or one before, is under way
	advanced time.Time     // when Divergence was last advanced
	rewound  cluster.Epoch // for which a rewind was tried; the rejoin job's own
	told     told
}

// New reads the durable state and returns a handler that Run drives.
func New(o Options) (*Handler, error) {
	if o.Kind == cluster.Runner {
		o.Postgres, o.Replication, o.Directory, o.PostgresUnit = noDatabase{}, noDatabase{}, noDatabase{}, ""
	}
	h := &Handler{Options: o, wakeup: make(chan struct{}, 1), orders: make(chan order, 1), moving: make(latch, 1), units: map[string]cluster.Tri{}, faltered: map[string]time.Time{}, roster: roster{}}
	h.job.wake = h.wake
	h.tenure.log, h.tenure.wake, h.tenure.vouched, h.tenure.hold, h.tenure.retake = o.Log, h.wake, h.vouched, h.hold, h.relock
	h.tenure.fit = func(ctx context.Context) error { return h.Locks.Fit(ctx) }
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
	defer h.aside.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.living = ctx
	h.aside.Go(func() { h.bringBack(ctx) })
	watching := make(chan error, 1)
	go func() { watching <- h.Store.Watch(ctx, h.see) }()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	defer h.tenure.leave()
	defer h.job.cancel()
	for ctx.Err() == nil {
		select {
		case <-h.wakeup: // first, and orders then, so that what happens does not depend on chance
		default:
			select {
			case <-ctx.Done():
				return nil
			case err := <-watching:
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("watch the cluster's state: %w", err)
			case <-ticker.C:
			case <-h.wakeup:
			}
		}
		select {
		case o := <-h.orders:
			if o.asked.Err() == nil {
				o.done <- h.handOver(ctx, o)
			}
		default:
		}
		h.step(ctx)
	}
	return nil
}

// resume adopts the session of an active that was killed, so that its restart
// is no failover. Everything that was half done begins again from fenced.
func (h *Handler) resume(ctx context.Context) {
	d := h.durable
	if d.State == cluster.Active {
		asked := time.Now()
		try, cancel := context.WithTimeout(ctx, leaseTTL) // it may be open without a lease
		lease, err := h.Locks.Adopt(try, d.Tried)
		for err != nil && !errors.Is(err, ErrSessionGone) && try.Err() == nil {
			_ = sleep(try, leaseTTL/10) // the agent may have been restarted, too
			lease, err = h.Locks.Adopt(try, d.Tried)
		}
		cancel()
		if err == nil {
			h.tenure.begin(lease, d.Tried, asked, h.ttl(), false)
			h.Log.Info("leader session adopted", "epoch", d.Tried, "session", lease.ID())
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

// Notice has the driver look around now, because something that it observes has
// changed.
func (h *Handler) Notice() { h.wake() }

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
		if h.seen.IsZero() || v.NextMaster.Epoch != h.view.NextMaster.Epoch || v.Leader.Held != h.view.Leader.Held {
			h.seen = time.Now()
		}
		h.view = v
	}
	was := h.fresh
	h.fresh = cluster.TriOf(ok)
	if !ok || was == cluster.No {
		h.deaf = time.Now()
	}
	changed := was != h.fresh
	lost := ok && before.Leader.Held && !v.Leader.Held && v.Leader.Node == h.Node
	h.mu.Unlock()
	if lost {
		h.tenure.renewNow()
	}
	if ok && (!reflect.DeepEqual(before.Nodes, v.Nodes) || !reflect.DeepEqual(before.Info, v.Info) || before.NextMasterIndex != v.NextMasterIndex || len(before.Removed) != len(v.Removed)) {
		h.remember(v)
	}
	if changed {
		h.Log.Info("registry", "reachable", ok)
	}
	h.wake()
}

// reached says that the registry has been within reach for as long as that.
func (h *Handler) reached(d time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fresh == cluster.Yes && time.Since(h.deaf) > d
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
	h.confirm()
	h.job.observe()
	o := h.observe(ctx)
	h.tell(ctx, o)
	d := cluster.Decide(o)
	if d.To != o.State {
		h.job.cancel()
		h.enter(d)
	}
	if d.To != cluster.Active && o.Running == cluster.No {
		_ = h.act(ctx, cluster.Release, o) // it accepts no writes, and no unit that takes its time to stop must keep another from it
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

// hold has the guard end PostgreSQL when the lease is over. While the cluster is
// paused it is left alone.
func (h *Handler) hold(until time.Time) {
	h.mu.Lock()
	paused := h.durable.Paused
	h.mu.Unlock()
	if paused {
		until = time.Time{}
	}
	h.Hold(until)
}

// enter writes the new state down before anything is done about it.
func (h *Handler) enter(d cluster.Decision) {
	h.moving.Lock()
	defer h.moving.Unlock()
	h.mu.Lock()
	from, epoch := h.durable.State, h.view.NextMaster.Epoch
	h.durable.State, h.reason, h.since = d.To, d.Reason, time.Now()
	h.attempt, h.followed = cluster.Unknown, 0
	if from == cluster.ActiveMinority {
		h.chosen = cluster.Unknown // nor is that of before
	}
	h.mu.Unlock()
	h.roster, h.slotted, h.changed = roster{}, nil, 0
	if d.To != cluster.Promoting && d.To != cluster.Active {
		h.Hold(time.Time{}) // this process sees to it itself
	}
	if d.To != cluster.Promoting {
		// A promotion is on a clock, and one that was interrupted before it
		// had the lock may as well have been a standby's.
		h.keep()
	}
	h.Log.Info("state", "from", string(from), "to", string(d.To), "reason", d.Reason, "detail", d.Detail, "epoch", epoch)
	h.Journal.Write(cluster.EventState, epoch, fmt.Sprintf("%s is %s: %s", h.Node, d.To, d.Reason), cluster.StateChange{From: from, To: d.To, Detail: d.Detail})
}

// keep makes the durable state durable. The caller holds moving. Where the disk
// refuses, the state stays in memory and the next change tries again; a promise
// checks the error itself.
func (h *Handler) keep() error {
	h.mu.Lock()
	d := h.durable
	h.mu.Unlock()
	err := statefile.Keep(h.State, d)
	h.mu.Lock()
	h.unkept = err != nil
	h.mu.Unlock()
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
