package handlerrunner

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Rally answers a node of the same part of the cluster that wants to know who
// is to serve it. A node that is cut off, too, ends the reception of WAL, so
// that its position is final, unless it follows the one that serves the part; it
// promises nothing, because what a part writes is no answer to the cluster's
// elections. Any other node says where it stands.
func (h *Handler) Rally(ctx context.Context) (cluster.Answer, error) {
	h.moving.Lock()
	defer h.moving.Unlock()
	a := cluster.Answer{Node: h.Node, Verdict: h.Verdict().Verdict}
	if valid, _ := h.tenure.valid(time.Now()); valid || h.standsBy() != "" {
		a.Verdict = cluster.Majority // the lease is held with those who vouch
		return a, nil
	}
	if a.Verdict != cluster.Minority {
		return a, nil
	}
	if h.serves() {
		return h.describe(ctx, a)
	}
	if at, ok := h.attends(ctx); ok {
		a.Position = at
		return h.describe(ctx, a)
	}
	h.setUpstream(0)
	pos, err := h.Replication.Detach(ctx)
	if err != nil {
		return a, fmt.Errorf("rally: %w", err)
	}
	a.Position = pos
	return h.describe(ctx, a)
}

// attends says that this node streams from the one that serves its part, and where
// it is: that one stays, so nothing is to be final.
func (h *Handler) attends(ctx context.Context) (cluster.Position, bool) {
	view, d, _ := h.snapshot()
	if d.Side == nil || !slices.Contains(h.Verdict().Reached, d.Side.Leader) {
		return cluster.Position{}, false
	}
	db, err := h.Postgres.Observe(ctx)
	return db.Position, err == nil && db.Streaming && db.Upstream == view.Nodes[d.Side.Leader].Address
}

// serves says that this node is open to clients of its part.
func (h *Handler) serves() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.durable.State == cluster.ActiveMinority && h.attempt == cluster.Yes
}

// describe completes an answer by what the node is and has.
func (h *Handler) describe(ctx context.Context, a cluster.Answer) (cluster.Answer, error) {
	view, d, db := h.snapshot()
	a.Serving, a.Side, a.SystemID, a.Files = h.serves(), d.Side, db.SystemID, h.Files().Complete
	if a.Serving {
		a.Position = db.Position
	}
	a.Lines = d.on(a.Position.Timeline)
	h.mu.Lock()
	a.Serving = a.Serving || h.stepsUp || h.chosen == cluster.Yes // it is on its way
	h.mu.Unlock()
	var err error
	if a.History, err = h.Replication.History(ctx, a.Position.Timeline); err != nil {
		return a, err
	}
	complete, err := h.Directory.Complete(ctx)
	if err == nil {
		a.Complete = cluster.TriOf(complete)
	}
	if mode := view.Options(h.Node).Get("minority_mode"); mode != string(cluster.MinorityActive) {
		a.Problem = "its minority_mode is " + mode
	} else {
		a.Problem = h.idle(ctx)
	}
	return a, nil
}

// LastWrite tells when data on this node was last changed after an LSN. Its clock is
// that of who wrote: this node, or the upstream of a standby, as it was heard last.
func (h *Handler) LastWrite(ctx context.Context, after cluster.LSN) (cluster.LastWrite, error) {
	ctx, cancel := context.WithTimeout(ctx, weighWithin)
	defer cancel()
	began := time.Now()
	w, err := h.Divergence.LastCommit(ctx, after)
	if err != nil {
		return w, err
	}
	w.Took = time.Since(began)
	view, d, db := h.snapshot()
	w.Side = d.Side.Of()
	switch {
	case db.Primary == cluster.Yes, view.Leader.Node == h.Node, w.Side == h.Node:
	case db.Ahead == nil:
		w.Clock = time.Time{}
	default:
		w.Clock = w.Clock.Add(*db.Ahead)
	}
	return w, nil
}

// rally chooses, with every node that this one reaches, who serves their part
// of the cluster. Who is not chosen follows, once the other serves.
//
// What the nodes say may change between two rallies, of which each would choose its
// own. So a node that is chosen says so first, and then asks once more: of two that
// do, one hears of the other.
func (h *Handler) rally(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	view, _, _ := h.snapshot()
	answers, silent := h.muster(ctx, view)
	out := cluster.ElectSide(view, answers)
	serving := h.serves()
	if silent == nil && !serving && out.Winner == h.Node {
		h.stepUp(true)
		defer h.stepUp(false)
		answers, silent = h.muster(ctx, view)
		if another := slices.IndexFunc(answers, func(a cluster.Answer) bool { return a.Serving && a.Node != h.Node }); another >= 0 {
			return fmt.Errorf("%s steps up, too", answers[another].Node)
		}
		out = cluster.ElectSide(view, answers)
	}
	if silent != nil && !serving {
		return silent
	}
	h.mu.Lock()
	switch {
	case out.Winner != "":
		h.chosen = cluster.TriOf(out.Winner == h.Node)
	case out.Majority != "":
		h.chosen = cluster.No
	}
	h.mu.Unlock()
	if out.Winner == "" {
		return fmt.Errorf("nobody serves this part: %s (%v)", out.Reason, out.Passed)
	}
	if out.Winner == h.Node {
		return nil
	}
	find := func(name string) int {
		return slices.IndexFunc(answers, func(a cluster.Answer) bool { return a.Node == name })
	}
	own := find(h.Node)
	if own < 0 {
		return silent // it serves and cannot tell where it is, or was removed
	}
	return h.followPart(ctx, view, answers[find(out.Winner)], answers[own])
}

func (h *Handler) stepUp(now bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stepsUp = now
}

// muster asks every node that the watcher reaches. The error is that of a node
// that did not answer.
func (h *Handler) muster(ctx context.Context, view cluster.View) (answers []cluster.Answer, silent error) {
	reached := h.Verdict().Reached
	type reply struct {
		cluster.Answer
		err error
	}
	replies := make(chan reply, len(reached))
	for _, name := range reached {
		go func() {
			var r reply
			if name == h.Node {
				r.Answer, r.err = h.Rally(ctx)
			} else {
				r.Answer, r.err = h.Parts.Rally(ctx, view.Nodes[name])
			}
			replies <- r
		}()
	}
	for range reached {
		if r := <-replies; r.err != nil {
			silent = fmt.Errorf("rally: %w", r.err)
		} else {
			answers = append(answers, r.Answer)
		}
	}
	return answers, silent
}

// followPart makes this node a standby of the one that serves its part, if its
// WAL leads there. Nothing is rewound while the cluster is cut in two.
func (h *Handler) followPart(ctx context.Context, view cluster.View, there, own cluster.Answer) error {
	_, d, db := h.snapshot()
	own.Lines = d.on(own.Position.Timeline)
	if db.Streaming || !leadsOn(there, own) {
		return nil
	}
	h.moving.Lock()
	defer h.moving.Unlock()
	if err := h.keepSide(there.Side); err != nil {
		return err
	}
	if err := h.embark(cluster.Leader{Lines: there.Lines}); err != nil {
		return err
	}
	if err := h.Replication.Follow(ctx, cluster.Upstream{Node: view.Nodes[there.Node], Tenure: there.Side.Tenure()}); err != nil {
		return err
	}
	h.Log.Info("following in the minority", "upstream", there.Node)
	return h.Postgres.Gate(ctx, true)
}

// leadsOn says that the WAL of a node leads to that of the one which serves the part:
// also that no timeline of the one has only its number in common with the other's.
// That one may be about to promote: until it has, its answer is on the timeline which
// it leaves, and the other may be further on that.
func leadsOn(there, own cluster.Answer) bool {
	ahead := own.Position.Timeline == there.Position.Timeline && own.Position.LSN > there.Position.LSN
	same := slices.Equal(own.Lines, durable{Lines: there.Lines}.on(own.Position.Timeline))
	return there.Serving && there.Side != nil && !ahead && same && there.History.Leads(there.Position.Timeline, own.Position, own.History)
}

// keepSide writes down whose WAL this node takes. The caller holds moving.
func (h *Handler) keepSide(s *cluster.Side) error {
	h.mu.Lock()
	same := h.durable.Side == s
	h.durable.Side, h.durable.Lost = s, false
	h.mu.Unlock()
	if same {
		return nil
	}
	return h.keep()
}

// reunite forgets the part whose WAL this node has taken, once it streams from
// the cluster's own active node, because the one led to the other; or once it is
// that node.
func (h *Handler) reunite(o cluster.Observation, db Database) {
	l := o.View.Leader
	leads := l.Held && l.Ready && l.Node == h.Node && o.Fresh == cluster.Yes && o.Lease == cluster.Yes && o.LeaseEpoch == l.Epoch
	if leads || h.attached(o, db) {
		h.moving.Lock()
		defer h.moving.Unlock()
		_ = h.keepSide(nil) // keep has logged an error, and the next round tries again
	}
}

// attached says that this node streams from the cluster's active node.
func (h *Handler) attached(o cluster.Observation, db Database) bool {
	l := o.View.Leader
	return db.Streaming && o.Fresh == cluster.Yes && l.Held && l.Ready && h.upstreamIs(l.Epoch) && db.Upstream == o.View.Nodes[l.Node].Address
}

const (
	rallyEvery = time.Second // while there is nothing to do
	// rallyAgain is how soon the next one follows that came to nothing: the nodes
	// of a part find out one after the other that they are cut off.
	rallyAgain = 300 * time.Millisecond
)

// rallied ends a rally. The node that it has chosen goes on at once.
func (h *Handler) rallied(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	h.mu.Lock()
	changed := text != h.rallyError
	h.rallyError = text
	chosen := h.chosen == cluster.Yes && h.durable.State == cluster.Standby
	h.mu.Unlock()
	if changed && err != nil {
		h.Log.Warn("rally", "error", err)
	}
	switch {
	case err != nil:
		h.rest(rallyAgain)
	case !chosen:
		h.rest(rallyEvery)
	}
}

// serve promotes this node for its part of the cluster. Commits wait for nobody:
// who could confirm them is cut off.
func (h *Handler) serve(ctx context.Context) error {
	if h.serves() {
		return nil // it was asked for just when it was done
	}
	view, d, _ := h.snapshot()
	db, err := h.Postgres.Observe(ctx)
	if err != nil {
		return err
	}
	if err := h.Postgres.SetQuorum(ctx, cluster.Quorum{}); err != nil {
		return fmt.Errorf("serve the minority: %w", err)
	}
	if db.Primary == cluster.No { // else this daemon was restarted while it served
		side := cluster.Side{Leader: h.Node, Epoch: view.NextMaster.Epoch, Since: time.Now()}
		at, err := h.detach(ctx)
		if err != nil {
			return fmt.Errorf("serve the minority: %w", err)
		}
		if side.Fork = at; d.Side != nil {
			side.Fork = d.Side.Fork // nothing of the cluster's came since
		}
		if err := h.promotePart(ctx, view, side, at.Timeline); err != nil {
			return fmt.Errorf("serve the minority: %w", err)
		}
	}
	h.keepChanges(ctx, 0)
	if err := h.Postgres.Gate(ctx, true); err != nil {
		return fmt.Errorf("serve the minority: %w", err)
	}
	h.promoted(nil)
	h.Journal.Write(cluster.EventMinority, view.NextMaster.Epoch,
		fmt.Sprintf("%s serves the minority: what is written there is at risk until the cluster is whole", h.Node), h.Verdict())
	if err := h.Checkpoint(ctx); err != nil { // see trap 19 in promote
		h.Log.Warn("no checkpoint after the promotion", "error", err)
	}
	return nil
}

// detach ends the reception of WAL, which a standby may have taken up again since
// it rallied, and returns the final position.
func (h *Handler) detach(ctx context.Context) (cluster.Position, error) {
	h.moving.Lock()
	defer h.moving.Unlock()
	h.setUpstream(0)
	return h.Replication.Detach(ctx)
}

// promotePart ends recovery, from a timeline on. Clients that read here may write
// from then on; the side that is written down before tells that what they write is
// this node's.
func (h *Handler) promotePart(ctx context.Context, view cluster.View, side cluster.Side, on cluster.Timeline) error {
	if err := h.Replication.Slots(ctx, side.Tenure(), h.others(view)); err != nil {
		return err
	}
	h.moving.Lock()
	h.mu.Lock()
	gap := view.Gap(h.Node, on, h.durable.Made)
	h.durable.Made = on + cluster.Timeline(gap) + 1
	h.mu.Unlock()
	err := h.keepSide(&side)
	h.moving.Unlock()
	if err != nil {
		return err
	}
	if err := h.Divergence.SkipTimelines(ctx, gap); err != nil {
		return err
	}
	_, err = h.Postgres.Promote(ctx)
	return err
}
