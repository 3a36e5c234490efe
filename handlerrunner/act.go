package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	// stopWithin bounds a fast shutdown; then the server is killed, which
	// loses nothing that was acknowledged.
	stopWithin = 3 * time.Second
	// fenceWithin is the same for a node that has lost the lease: a fast
	// shutdown also waits for standbys, and these may be out of reach.
	fenceWithin = time.Second
	actWithin   = 20 * time.Second
)

// act does one action, or starts it where it takes long.
func (h *Handler) act(ctx context.Context, a cluster.Action, o cluster.Observation) error {
	try, cancel := context.WithTimeout(ctx, actWithin)
	defer cancel()
	switch a {
	case cluster.Promote:
		if h.rested() {
			h.job.start(ctx, a, h.promote, h.promoted)
		}
	case cluster.Run:
		if h.rested() {
			vacant := o.View.NextMaster.Epoch
			h.job.start(ctx, a, func(ctx context.Context) error { return h.elect(ctx, vacant) }, h.elected)
		}
	case cluster.Rejoin:
		if h.rested() {
			h.job.start(ctx, a, h.rejoin, h.rejoined)
		}
	case cluster.Rally:
		if h.rested() {
			h.job.start(ctx, a, h.rally, h.rallied)
		}
	case cluster.Serve:
		if h.rested() {
			h.job.start(ctx, a, h.serve, h.promoted)
		}
	case cluster.Claim:
		if h.rested() {
			h.job.start(ctx, a, h.claim, h.answered)
		}
	case cluster.OpenReads:
		return h.Postgres.Gate(try, true)
	case cluster.Shut:
		h.setUpstream(0) // to follow again opens the gate
		return h.Postgres.Gate(try, false)
	case cluster.Fence:
		return h.fence(try, fenceWithin)
	case cluster.StartPostgres:
		return h.Units.Start(try, h.PostgresUnit)
	case cluster.Follow:
		return h.follow(try, o)
	case cluster.Maintain:
		return h.maintain(try, o)
	case cluster.Retake:
		return h.retake(try)
	case cluster.Release:
		h.tenure.end(try)
	case cluster.Withdraw:
		return h.depart(try)
	case cluster.StartAlwaysUnits:
		return h.eachUnit(try, h.AlwaysUnits, true)
	case cluster.StartLeaderUnits:
		return h.eachUnit(try, h.LeaderUnits, true)
	case cluster.StopLeaderUnits:
		return h.eachUnit(try, h.LeaderUnits, false)
	case cluster.StopAllUnits:
		return h.eachUnit(try, slices.Concat(h.LeaderUnits, h.AlwaysUnits), false)
	default:
		return fmt.Errorf("no such action: %s", a)
	}
	return nil
}

// startWithin is how long the driver waits for units that it starts.
const startWithin = 300 * time.Millisecond

// eachUnit brings units to run, or not to. Those that already do as wanted are
// left alone; one that fails does not keep the others from it. Units are stopped one
// after the other. They are started all at once, and one that takes its time, as an
// application may, goes on starting while the driver sees to the database.
func (h *Handler) eachUnit(ctx context.Context, units []string, run bool) error {
	failed := make([]error, len(units))
	if !run {
		for i, u := range units {
			failed[i] = h.bring(ctx, u, false)
		}
		return errors.Join(failed...)
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	var all sync.WaitGroup
	for i, u := range units {
		all.Go(func() { failed[i] = h.bring(ctx, u, true) })
	}
	all.Wait()
	return errors.Join(failed...)
}

// bring has one unit run, or not.
func (h *Handler) bring(ctx context.Context, unit string, run bool) error {
	running, err := h.Units.Running(ctx, unit)
	h.mu.Lock()
	was := h.units[unit]
	if run && running == cluster.No && was == cluster.Yes {
		h.faltered[unit] = time.Now()
	}
	h.mu.Unlock()
	starting := run && running == cluster.Unknown && was == cluster.Unknown
	if err == nil && running != cluster.TriOf(run) && !starting {
		if run {
			err = h.Units.Start(ctx, unit)
		} else {
			err = h.Units.Stop(ctx, unit)
		}
		running = cluster.TriOf(run && err == nil)
		if run && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			running, err = cluster.Unknown, nil
		}
		h.Log.Info("unit", "unit", unit, "run", run, "error", err)
	}
	h.mu.Lock()
	h.units[unit] = running
	h.mu.Unlock()
	if err != nil {
		return fmt.Errorf("unit %s: %w", unit, err)
	}
	return nil
}

// fence stops PostgreSQL: fast, which ends every session and lets connected
// standbys have all WAL, and by SIGKILL if that takes longer than within. It is done
// only when the server was seen to be gone. A runner has none.
func (h *Handler) fence(ctx context.Context, within time.Duration) error {
	if h.Kind == cluster.Runner {
		return nil
	}
	began := time.Now()
	fast, cancel := context.WithTimeout(ctx, within)
	err := h.Units.Stop(fast, h.PostgresUnit)
	cancel()
	if err != nil {
		h.Log.Warn("fast shutdown did not end; killing PostgreSQL", "error", err)
		if err := h.Units.Kill(ctx, h.PostgresUnit); err != nil {
			return fmt.Errorf("fence: %w", err)
		}
		if err := h.Units.Stop(ctx, h.PostgresUnit); err != nil {
			return fmt.Errorf("fence: %w", err)
		}
	}
	h.Log.Info("fenced", "took", time.Since(began))
	return nil
}

// follow points PostgreSQL at the node that holds the lock for the epoch in
// force. It waits for that node to hold it, because only then does it make the
// slot. Who held it when the registry was last heard may serve a part meanwhile.
func (h *Handler) follow(ctx context.Context, o cluster.Observation) error {
	l := o.View.Leader
	if o.Fresh != cluster.Yes || !l.Held || l.Epoch != o.View.NextMaster.Epoch || o.Running != cluster.Yes && o.Mended != cluster.Yes {
		return nil
	}
	h.moving.Lock()
	defer h.moving.Unlock()
	if h.upstreamIs(l.Epoch) {
		return nil
	}
	_, d, _ := h.snapshot()
	if d.Side != nil && d.Side.Leader != l.Node && o.Diverged != cluster.No {
		return nil
	}
	if may, err := h.mayFollow(ctx, o); err != nil || !may {
		return err
	}
	// A node that has taken the WAL of a part is of the cluster again before it
	// takes more: it must not be told by what is not its own any more.
	if d.Side != nil {
		if err := h.keepSide(nil); err != nil {
			return err
		}
	}
	if o.Running != cluster.Yes {
		h.attach(ctx, o.View.Upstream())
		return nil
	}
	// They would keep WAL back for ever, and nobody is to take from here what comes.
	if err := h.Replication.Slots(ctx, "", nil); err != nil {
		return err
	}
	if err := h.Replication.Follow(ctx, o.View.Upstream()); err != nil {
		return err
	}
	// Clients may read from a standby.
	if err := h.Postgres.Gate(ctx, true); err != nil {
		return err
	}
	h.setUpstream(l.Epoch)
	h.Log.Info("following", "upstream", l.Node, "epoch", l.Epoch)
	return nil
}

// mayFollow says whether the leader's WAL may be taken, which is not so after a
// promise to a later epoch, nor by a node on a line that the leader does not know, nor
// by one that has forked: these are mended. What may be taken is written down. The
// caller holds moving.
func (h *Handler) mayFollow(ctx context.Context, o cluster.Observation) (bool, error) {
	v, l := o.View, o.View.Leader
	_, d, _ := h.snapshot()
	if l.Epoch < d.Promise {
		return false, nil
	}
	if o.Running != cluster.Yes {
		if astray(l, d) || !recruits(v) {
			return false, nil
		}
	} else if led, err := h.led(ctx, v); err != nil || !led {
		return false, err
	}
	if l.Ready && v.SyncMode() != cluster.Async {
		return true, h.clearLines()
	}
	return true, h.embark(l)
}

// led says whether this node's WAL leads to that of the active one. PostgreSQL lets
// a standby in that has forked, and what it says that it holds counts: no commit below
// that is waited for any more, until the active's server is started again. So a node
// connects only when its position is final, and known to be on the way. The caller
// holds moving.
func (h *Handler) led(ctx context.Context, v cluster.View) (bool, error) {
	l := v.Leader
	_, d, db := h.snapshot()
	strange := len(d.Lines) > 0 && d.Lines[len(d.Lines)-1].Epoch != l.Epoch
	if !strange && db.Streaming && db.Upstream == v.Nodes[l.Node].Address {
		return true, nil
	}
	at, err := h.Replication.Detach(ctx) // else WAL may still come in
	if err != nil {
		return false, err
	}
	if db.Position = at; strange && doubled(l, d, db) {
		return false, nil
	}
	own, err := h.Replication.History(ctx, at.Timeline)
	if err != nil {
		return false, err
	}
	if v.NextMaster.Follows(at, own) {
		return true, nil
	}
	t := h.lastTip() // this round has asked for it, once the active had told its line
	return t.epoch == l.Epoch && t.history.Leads(t.timeline, at, own), nil
}

// recruits says that a standby of which nobody knows where it is may connect: the
// active node is open, and counts only those whose position it has seen.
func recruits(v cluster.View) bool { return v.Leader.Ready && v.SyncMode() != cluster.Strict }

// rejoin mends the data directory from the active: by rewinding it where it has
// forked, else by a clone beside it. A rewind that failed leaves no whole copy,
// so the next attempt clones.
func (h *Handler) rejoin(ctx context.Context) error {
	view, d, db := h.snapshot()
	source := view.Upstream()
	db.Position = h.lastSeen() // an attempt that came to nothing has stopped the server
	complete, err := h.Directory.Complete(ctx)
	if err != nil {
		return err
	}
	// A rewind that was done for this epoch and did not help is not repeated.
	clone := !complete || !h.forked(ctx, db) || h.rewound == view.Leader.Epoch || doubled(view.Leader, d, db)
	if err := h.fence(ctx, stopWithin); err != nil {
		return err
	}
	if complete { // else that was done before the rewind which broke off
		if err := h.preserve(ctx, view, d, db); errors.Is(err, ErrSetAside) {
			h.Log.Error("cloned beside", "error", err)
			clone = true
		} else if err != nil {
			return err
		}
	}
	if clone {
		h.Journal.Write(cluster.EventClone, view.Leader.Epoch, fmt.Sprintf("%s is cloned from %s", h.Node, source.Name), nil)
		err = h.Directory.Clone(ctx, source, func(s string) { h.Log.Info("clone", "progress", s) })
	} else {
		h.Journal.Write(cluster.EventRewind, view.Leader.Epoch, fmt.Sprintf("%s is rewound to %s", h.Node, source.Name), nil)
		h.rewound = view.Leader.Epoch
		err = h.Directory.Rewind(ctx, source)
	}
	if err != nil {
		return err
	}
	h.forget()
	if err := h.settle(ctx, view.Leader); err != nil {
		return err
	}
	if err := h.Units.Start(ctx, h.PostgresUnit); err != nil {
		return err
	}
	return h.awaitFollowing(ctx, source, view.Leader.Epoch)
}

// settle keeps a promise that was made while the directory was being mended: the
// server, mended to follow the active of that epoch, must not when it starts.
func (h *Handler) settle(ctx context.Context, source cluster.Leader) error {
	h.moving.Lock()
	defer h.moving.Unlock()
	h.setUpstream(0)
	h.mu.Lock()
	h.durable.Side, h.durable.Lost, h.durable.Opened, h.durable.Lines, h.durable.Mended = nil, false, nil, nil, true
	if !source.Ready { // see offer
		h.durable.Lines = slices.Clone(source.Lines)
	}
	h.mu.Unlock()
	if err := h.keep(); err != nil {
		return err
	}
	if _, d, _ := h.snapshot(); d.Promise <= source.Epoch {
		return nil
	}
	if _, err := h.Replication.Detach(ctx); err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	return nil
}

// forked says that the local WAL left the active's line, which a rewind mends;
// WAL that is merely missing it does not.
func (h *Handler) forked(ctx context.Context, db Database) bool {
	t := h.lastTip()
	own, err := h.Replication.History(ctx, db.Position.Timeline)
	return err == nil && db.Position.LSN > 0 && !t.history.Leads(t.timeline, db.Position, own)
}

// recoverWithin bounds the replay of what a mended directory needs before it is
// consistent.
const recoverWithin = 10 * time.Minute

// recoverStarts is how often a server that ends meanwhile is started again. One may
// have been killed; one that ends each time has not got the WAL it needs.
const recoverStarts = 3

// awaitFollowing waits until the server runs as a standby: before that it cannot
// tell where it is, and must not be mended again. An election may have detached
// it meanwhile; where that came to nothing it goes back to the source, without
// whose WAL it would not become consistent, and else to who is active now.
func (h *Handler) awaitFollowing(ctx context.Context, source cluster.Upstream, epoch cluster.Epoch) error {
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	held, restarts := false, 0
	for {
		db, _ := h.Postgres.Observe(ctx)
		if db.Running == cluster.Yes && db.Primary == cluster.No {
			return nil
		}
		if running, err := h.Units.Running(ctx, h.PostgresUnit); err == nil && running == cluster.No {
			if restarts++; restarts > recoverStarts {
				return errors.New("PostgreSQL ends again and again before it is consistent")
			}
			if err := h.Units.Start(ctx, h.PostgresUnit); err != nil {
				return err
			}
		}
		view, d, _ := h.snapshot()
		if l := view.Leader; l.Held && recruits(view) && l.Epoch > epoch && len(d.Lines) == 0 {
			source, epoch, held = view.Upstream(), l.Epoch, true
		}
		if held && d.Promise <= epoch && view.Leader.Epoch == epoch {
			h.reattach(ctx, source, epoch)
		}
		held = d.Promise > epoch
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("wait for PostgreSQL to run as a standby: %w", err)
		}
	}
}

// reattach points a server that is not consistent yet at its source again.
func (h *Handler) reattach(ctx context.Context, source cluster.Upstream, epoch cluster.Epoch) {
	h.moving.Lock()
	defer h.moving.Unlock()
	if _, d, _ := h.snapshot(); d.Promise <= epoch {
		h.attach(ctx, source)
	}
}

// attach points a server at a source without whose WAL it would not become
// consistent. What it says to that does not count: it takes it up when it can. The
// caller holds moving.
func (h *Handler) attach(ctx context.Context, source cluster.Upstream) {
	err := h.Replication.Follow(ctx, source)
	h.Log.Debug("not consistent yet: takes WAL from", "source", source.Name, "tenure", source.Tenure, "error", err)
}

func (h *Handler) rejoined(err error) {
	if err != nil {
		h.rest(5 * time.Second)
		h.Log.Warn("rejoin failed", "error", err)
	}
}

// depart leaves Consul, once. The handler stays, to tell whoever asks that this
// node was removed.
func (h *Handler) depart(ctx context.Context) error {
	h.mu.Lock()
	done := h.departed
	h.mu.Unlock()
	if done {
		return nil
	}
	if err := h.Depart(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	h.departed = true
	h.mu.Unlock()
	h.Log.Info("left the cluster for good")
	return nil
}
