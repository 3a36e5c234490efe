package handlerrunner

import (
	"context"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	observeTimeout = time.Second
	// confirmWithin is the time that a named node has to take the lock.
	confirmWithin = 2 * time.Second
	// strandedAfter is how long a standby may be without its active's WAL
	// before it is cloned anew.
	strandedAfter = 30 * time.Second
	// consistentAfter is the same for a mended directory, which replays WAL first.
	consistentAfter = 2 * time.Minute
)

// tip is the end of the line of timelines that the active is on.
type tip struct {
	epoch    cluster.Epoch
	timeline cluster.Timeline
	history  cluster.History
}

// observe gathers what Decide needs. What cannot be found out stays unknown.
func (h *Handler) observe(ctx context.Context) cluster.Observation {
	try, cancel := context.WithTimeout(ctx, observeTimeout)
	db, err := h.Postgres.Observe(try)
	cancel()
	if err != nil {
		h.Log.Debug("PostgreSQL not observed", "error", err)
	}
	if db.Running == cluster.Unknown {
		if running, err := h.Units.Running(ctx, h.PostgresUnit); err == nil && running == cluster.No {
			db.Running = cluster.No
		}
	}
	now := time.Now()
	h.mu.Lock()
	if db.Running != cluster.Yes {
		db.SystemID = h.db.SystemID
	}
	db.Ahead = ahead(db, h.db)
	if h.db = db; db.Position.LSN > 0 {
		h.stood = db.Position
	}
	o := cluster.Observation{
		Self: h.Node, State: h.durable.State, View: h.view, Fresh: h.fresh,
		Promise: h.durable.Promise, LeaseEpoch: h.durable.Tried, Attempt: h.attempt, Paused: h.durable.Paused,
		Running: db.Running, Primary: db.Primary,
		Overdue: cluster.TriOf(!h.seen.IsZero() && now.Sub(h.seen) > h.view.Options(h.Node).Stretch(confirmWithin)),
	}
	h.mu.Unlock()
	valid, _ := h.tenure.valid(now)
	o.Lease = cluster.TriOf(valid)
	if complete, err := h.Directory.Complete(ctx); err == nil {
		o.Complete = cluster.TriOf(complete)
	}
	if o.View.Info != nil && db.SystemID != "" {
		o.Foreign = cluster.TriOf(db.SystemID != o.View.Info.SystemID)
	}
	o.Verdict = h.Verdict().Verdict
	o.Chosen, o.Served = h.parted(o.Verdict)
	h.reunite(o, db)
	o.Mended, o.Mending = h.mended(db), cluster.TriOf(h.job.does(cluster.Rejoin))
	o.Diverged = h.diverged(ctx, o, db)
	o.Stranded = h.stranded(now, o, db)
	return o
}

// ahead is by how much the clock of who wrote last what this node holds is before its
// own: that of an upstream, which is remembered when it is gone; or of this node, which
// has written itself since it was a primary, and until it hears of another's WAL.
func ahead(now, past Database) *time.Duration {
	switch {
	case now.Primary == cluster.Yes:
		return new(time.Duration)
	case now.Ahead == nil:
		return past.Ahead
	}
	return now.Ahead
}

// parted says whether this node is chosen to serve a part that is cut off, and
// whether it has served one and does not know yet whose database goes on.
func (h *Handler) parted(v cluster.Verdict) (chosen, served cluster.Tri) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v == cluster.Majority || v == cluster.Isolated {
		h.chosen = cluster.Unknown // it is another partition next time
	}
	if v == cluster.Minority || v == cluster.Isolated {
		h.cutOff = time.Now()
	}
	d := h.durable
	return h.chosen, cluster.TriOf(d.Side != nil && d.Side.Leader == h.Node && !d.Lost)
}

// diverged compares the local position with the active's line of timelines.
func (h *Handler) diverged(ctx context.Context, o cluster.Observation, db Database) cluster.Tri {
	l := o.View.Leader
	_, d, _ := h.snapshot()
	// A directory that was mended from a node which is not active any more cannot tell
	// where it is, and may wait for WAL that nobody has.
	if o.Mended == cluster.Yes && db.Running != cluster.Yes && l.Serves() && l.Node != h.Node && astray(l, d) {
		return cluster.Yes
	}
	if o.State == cluster.Standby && db.Running != cluster.Yes && db.Position.LSN == 0 {
		db.Position = h.lastSeen() // it may never start again on WAL that the active's line does not lead to
	}
	if !l.Serves() || l.Node == h.Node || db.Primary == cluster.Yes || db.Position.LSN == 0 {
		return cluster.Unknown
	}
	// What this node served a part with is not the cluster's, even where the
	// cluster's active node has made a timeline of the same number at the same LSN.
	lost := d.Lost && d.Side != nil && d.Side.Leader == h.Node
	if lost || doubled(l, d, db) {
		return cluster.Yes
	}
	if db.Streaming && db.Upstream == o.View.Nodes[l.Node].Address {
		return cluster.No
	}
	t, known := h.learn(ctx, o.View)
	if !known {
		return cluster.Unknown
	}
	own, err := h.Replication.History(ctx, db.Position.Timeline)
	if err != nil {
		return cluster.Unknown
	}
	return cluster.TriOf(!t.history.Leads(t.timeline, db.Position, own))
}

// stranded says that a standby has been without its active for so long that the
// WAL it needs must be taken for gone.
func (h *Handler) stranded(now time.Time, o cluster.Observation, db Database) cluster.Tri {
	// A standby whose WAL is gone is let in and thrown out five times a second: one
	// look alone may find it streaming.
	streams := db.Streaming && h.streamed
	h.streamed = db.Streaming
	if db.Running != cluster.Yes && o.Mended != cluster.Yes || streams || !o.View.Leader.Serves() {
		h.strayed = time.Time{}
		return cluster.No
	}
	if h.strayed.IsZero() {
		h.strayed = now
	}
	patience := strandedAfter
	if o.Mended == cluster.Yes {
		patience = consistentAfter
	}
	return cluster.TriOf(now.Sub(h.strayed) > o.View.Options(h.Node).Stretch(patience))
}

// mended says that the directory was mended and no server has been consistent on it
// yet.
func (h *Handler) mended(db Database) cluster.Tri {
	h.mu.Lock()
	since := h.durable.Mended
	h.mu.Unlock()
	if since && db.Running == cluster.Yes {
		h.moving.Lock()
		defer h.moving.Unlock()
		h.mu.Lock()
		h.durable.Mended, since = false, false
		h.mu.Unlock()
		_ = h.keep() // has logged an error; a restart would learn it anew
	}
	return cluster.TriOf(since)
}

// learn asks the active node for its line, once per epoch.
func (h *Handler) learn(ctx context.Context, v cluster.View) (t tip, known bool) {
	l := v.Leader
	if t = h.lastTip(); t.epoch == l.Epoch {
		return t, true
	}
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	r, err := h.Peers.Report(ctx, v.Nodes[l.Node])
	// A daemon that has just started does not know its own position yet.
	known = err == nil && (r.Open || !l.Ready) && r.Epoch == l.Epoch && r.Position.Timeline == l.Timeline &&
		(l.Timeline == 1 || len(r.History) > 0)
	if !known {
		return t, false
	}
	t = tip{l.Epoch, r.Position.Timeline, r.History}
	h.mu.Lock()
	h.tip = t
	h.mu.Unlock()
	return t, true
}

func (h *Handler) lastTip() tip {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tip
}

// lastSeen is where the server was when it last told, also once it is stopped.
func (h *Handler) lastSeen() cluster.Position {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stood
}

// forget is for a directory that is another one now.
func (h *Handler) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stood = cluster.Position{}
}
