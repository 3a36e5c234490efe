package handlerrunner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// viewAgain is the pause before Consul is asked again for its state.
const viewAgain = 100 * time.Millisecond

// order asks the driver of an active node to hand over.
type order struct {
	target string          // empty: the best standby
	why    string          // for the history
	claim  *claimed        // the target has served a part, and its database goes on
	forced bool            // this node is to be active, whatever it lacks
	asked  context.Context // of whoever waits for it
	done   chan error
}

// MayHandOver returns the reason for which HandOver to target would be refused.
func (h *Handler) MayHandOver(ctx context.Context, target string) error {
	return h.mayHandOver(ctx, order{target: target})
}

// HandOver gives activity to target, or where that is empty to the best standby.
// It returns when that one has been named, or with the reason why it was not. It
// is refused on a node that is not active. The history says why it was done.
func (h *Handler) HandOver(ctx context.Context, target, why string) error {
	if err := h.MayHandOver(ctx, target); err != nil {
		return err
	}
	// A checkpoint while clients still write leaves little for the one at
	// shutdown, in which nobody can. It may take long, so it is not for the
	// driver, who watches the lease.
	if err := h.Checkpoint(ctx); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return h.order(ctx, order{target: target, why: why})
}

// Force makes this node the active one although acknowledged commits may be
// missing here: an operator knows that the nodes which hold them are lost. It is
// refused while a node is active. What it names is confirmed by promotion as ever.
func (h *Handler) Force(ctx context.Context) error {
	return h.order(ctx, order{target: h.Node, forced: true})
}

func (h *Handler) force(ctx context.Context) error {
	began := time.Now()
	view, err := h.Store.View(ctx)
	if err != nil {
		return fmt.Errorf("force: %w", err)
	}
	if view.Leader.Held {
		return fmt.Errorf("force: %s holds the leader lock", view.Leader.Node)
	}
	return h.ballot(ctx, cluster.Ballot{View: view, Epoch: h.nextEpoch(view), Target: h.Node, Forced: true}, began)
}

// order has the driver hand over.
func (h *Handler) order(ctx context.Context, o order) error {
	o.asked, o.done = ctx, make(chan error, 1)
	select {
	case h.orders <- o:
		h.wake()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// handOver is an election that the active itself holds: it stops PostgreSQL
// cleanly, so that every connected standby has all WAL, excludes itself, and
// prefers the target among equals. The leader key says so meanwhile, and no
// standby begins an election of its own.
func (h *Handler) handOver(ctx context.Context, o order) error {
	if o.forced {
		return h.force(ctx)
	}
	if err := h.mayHandOver(ctx, o); err != nil {
		return err
	}
	view, d, db := h.snapshot()
	began := time.Now()
	h.Journal.Write(cluster.EventHandOver, view.NextMaster.Epoch, fmt.Sprintf("%s hands over to %s", h.Node, cmp.Or(o.target, "the best standby")),
		cluster.HandOver{To: o.target, Why: o.why})
	// The lock falls with the checks of the server that is about to stop.
	// Whose lease runs out while it waits for an answer must not wait on.
	try, cancel := context.WithTimeout(ctx, leaseTTL)
	defer cancel()
	if err := h.tenure.held().Update(try, cluster.Leader{Node: h.Node, Epoch: d.Tried, Timeline: db.Position.Timeline, Yields: true, Lines: view.Leader.Lines}); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	if err := h.eachUnit(ctx, h.LeaderUnits, false); err != nil {
		h.Log.Warn("leader units not stopped", "error", err)
	}
	if err := h.closing(ctx, o); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	if err := h.fence(ctx, stopWithin); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	// From here on the lock is free: if this names nobody, the standbys and
	// this node hold an ordinary election when its time is over.
	h.tenure.end(ctx)
	if err := h.succession(ctx, o, began); err != nil {
		if d.Paused { // then nobody else starts it
			err = errors.Join(err, h.Units.Start(ctx, h.PostgresUnit))
		}
		return fmt.Errorf("hand over: %w; an ordinary election follows", err)
	}
	now, err := h.Store.View(ctx)
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	if o.target != "" && now.NextMaster.Node != o.target {
		return fmt.Errorf("hand over: %s became active instead of %s: %s", now.NextMaster.Node, o.target, now.NextMaster.Reason)
	}
	return nil
}

// closing looks once more at a claim when no client can commit any more, and
// takes the clients back if one has meanwhile.
func (h *Handler) closing(ctx context.Context, o order) error {
	if o.claim == nil {
		return nil
	}
	if err := h.Postgres.Gate(ctx, false); err != nil {
		return err
	}
	own := cluster.Answer{Node: h.Node}
	if last, err := h.LastWrite(ctx, o.claim.upTo); err == nil {
		own.Last = &last
	} else {
		h.Log.Warn("when this node was last written is not known", "error", err)
	}
	_, kept := h.judge(own, *o.claim)
	if kept == nil {
		return nil
	}
	_, d, db := h.snapshot()
	if err := h.Postgres.Gate(ctx, true); err != nil {
		return err
	}
	again := cluster.Leader{Node: h.Node, Epoch: d.Tried, Ready: true, Timeline: db.Position.Timeline}
	if err := h.tenure.held().Update(ctx, again); err != nil {
		return err
	}
	h.Journal.Write(cluster.EventHeal, d.Tried, fmt.Sprintf("%s stays active: %v", h.Node, kept), nil)
	return kept
}

// mayHandOver refuses what could not be done, before anything is stopped.
func (h *Handler) mayHandOver(ctx context.Context, o order) error {
	_, d, _ := h.snapshot()
	if valid, _ := h.tenure.valid(time.Now()); !valid || h.tenure.held() == nil || d.State != cluster.Active {
		return fmt.Errorf("%s is not the active node", h.Node)
	}
	if o.claim != nil {
		return nil // it need not stream from here: its database goes on
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	// Looked at anew: an option may have been set, or a standby may have come, since
	// the watch and the tick last brought anything. While Consul elects a leader this waits.
	view, err := h.Store.View(ctx)
	for err != nil && sleep(ctx, viewAgain) == nil {
		view, err = h.Store.View(ctx)
	}
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	db, err := h.Postgres.Observe(ctx)
	if err != nil {
		return fmt.Errorf("look at PostgreSQL on %s: %w", h.Node, err)
	}
	if o.target != "" {
		_, err := h.ready(ctx, view, db, o.target)
		return err
	}
	if view.Paused() {
		return errors.New("the cluster is paused: name the node that is to be active with 'understudy cluster set-active', or 'understudy cluster resume' first")
	}
	refused := []error{fmt.Errorf("no standby of %s can take over", h.Node)}
	for _, other := range h.others(view) {
		_, err := h.ready(ctx, view, db, other)
		if err == nil {
			return nil
		}
		refused = append(refused, err)
	}
	return errors.Join(refused...)
}

// succession holds the election of a node that has stopped its server, unless it
// took so long that another one was held meanwhile.
func (h *Handler) succession(ctx context.Context, o order, began time.Time) error {
	view, err := h.Store.View(ctx)
	if err != nil {
		return err
	}
	_, d, _ := h.snapshot()
	if l := view.Leader; view.NextMaster.Epoch != d.Tried || l.Held && l.Node != h.Node {
		return fmt.Errorf("%s was named meanwhile", view.NextMaster.Node)
	}
	own, err := h.final(ctx, h.nextEpoch(view), view.LeaderIndex)
	if err != nil {
		return err
	}
	if o.claim != nil {
		own.Last = &cluster.LastWrite{Clock: time.Now()} // nothing that counts: see closing
	}
	return h.ballot(ctx, cluster.Ballot{
		View: view, Epoch: own.Epoch, Answers: []cluster.Answer{own}, Target: o.target, Exclude: []string{h.Node},
	}, began)
}

// final is this node's own answer in the election that it hands over by: the
// end of WAL after a clean shutdown.
func (h *Handler) final(ctx context.Context, epoch cluster.Epoch, seen uint64) (cluster.Answer, error) {
	pos, err := h.Directory.Final(ctx)
	if err != nil {
		return cluster.Answer{}, err
	}
	history, err := h.Replication.History(ctx, pos.Timeline)
	if err != nil {
		return cluster.Answer{}, err
	}
	_, _, db := h.snapshot()
	h.moving.Lock()
	defer h.moving.Unlock()
	if _, err := h.promise(epoch, seen); err != nil {
		return cluster.Answer{}, err
	}
	return cluster.Answer{Node: h.Node, Epoch: epoch, Position: pos, History: history, SystemID: db.SystemID, Complete: cluster.Yes, Files: h.Files().Complete}, nil
}

// ready refuses a target that could not take over, and returns what one that could
// says of itself.
func (h *Handler) ready(ctx context.Context, view cluster.View, db Database, target string) (r cluster.Report, err error) {
	node, member := view.Nodes[target]
	switch {
	case !member:
		return r, fmt.Errorf("%s is not a member of the cluster", target)
	case target == h.Node:
		return r, fmt.Errorf("%s is already the active node", target)
	case node.Kind != cluster.Manager:
		return r, fmt.Errorf("%s is a runner and cannot be active", target)
	case view.Options(target).Bool("no_failover"):
		return r, fmt.Errorf("%s has no_failover set; 'understudy cluster nodes update %s --options no_failover=false' lifts it", target, target)
	}
	r, err = h.Peers.Report(ctx, node)
	if err != nil {
		return r, fmt.Errorf("%s is offline: %w", target, err)
	}
	if r.State != cluster.Standby || !r.Streaming {
		return r, fmt.Errorf("%s is %s and does not stream from %s; wait until it is a standby again", target, r.State, h.Node)
	}
	if r.Problem != "" {
		return r, fmt.Errorf("%s cannot be active: %s", target, r.Problem)
	}
	for _, s := range db.Standbys {
		if s.Name == target && s.Flushed+admitWithin >= db.Position.LSN {
			return r, nil
		}
	}
	return r, fmt.Errorf("%s is too far behind %s to take over; see LAG in 'understudy cluster nodes list'", target, h.Node)
}
