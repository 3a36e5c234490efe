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

// ErrKept: the active node keeps its database, because by cluster.SideWins it is
// the one that goes on.
var ErrKept = errors.New("the majority's database goes on")

// weighWithin bounds the search for the last commit in the WAL.
const weighWithin = 20 * time.Second

// claimWithin bounds a claim: two looks into the WAL, and a hand-over.
const claimWithin = 90 * time.Second

// weigh completes the answers of an election in which a part that was cut off
// has a say: when was each written last. The look into the WAL takes its time,
// and is spared everywhere else.
func (h *Handler) weigh(ctx context.Context, view cluster.View, answers []cluster.Answer) {
	fork, parted := cluster.Forked(answers)
	if !parted {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, weighWithin+askWithin)
	defer cancel()
	unknown := make([]error, len(answers))
	var all sync.WaitGroup
	for i := range answers {
		if answers[i].Last != nil {
			continue
		}
		all.Go(func() {
			w, err := h.lastWriteOf(ctx, view.Nodes[answers[i].Node], fork)
			if err == nil && w.Side != answers[i].Side.Of() {
				err = fmt.Errorf("it has served a part since, that of %s", w.Side) // which is not what it has answered with
			}
			if err != nil {
				unknown[i] = err
				return
			}
			answers[i].Last = &w
		})
	}
	all.Wait()
	for i, err := range unknown {
		if err != nil {
			h.Log.Warn("when a node was last written is not known", "node", answers[i].Node, "error", err)
		}
	}
}

func (h *Handler) lastWriteOf(ctx context.Context, node cluster.Node, after cluster.LSN) (cluster.LastWrite, error) {
	if node.Name == h.Node {
		return h.LastWrite(ctx, after)
	}
	return h.Parts.LastWrite(ctx, node, after)
}

// claim asks the active node whether the database of the part that this node has
// served is the one that goes on. Where it is, this node is named and promotes as
// ever; else what it wrote is exported and it is rewound.
func (h *Handler) claim(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, claimWithin)
	defer cancel()
	view, d, db := h.snapshot()
	if d.Side == nil {
		return nil // settled meanwhile
	}
	last, err := h.LastWrite(ctx, d.Side.Fork.LSN)
	if err != nil {
		return err
	}
	history, err := h.Replication.History(ctx, db.Position.Timeline)
	if err != nil {
		return err
	}
	own := cluster.Answer{Node: h.Node, Position: db.Position, History: history, Line: d.line(db.Position.Timeline), Side: d.Side, Last: &last}
	err = h.Parts.Claim(ctx, view.Nodes[view.Leader.Node], own)
	if !errors.Is(err, ErrKept) {
		return err
	}
	h.Journal.Write(cluster.EventHeal, view.Leader.Epoch, fmt.Sprintf("%s gives way to %s: %v", h.Node, view.Leader.Node, err), last)
	h.moving.Lock()
	defer h.moving.Unlock()
	h.mu.Lock()
	h.durable.Lost = true
	h.mu.Unlock()
	return h.keep()
}

func (h *Handler) answered(err error) {
	if err != nil {
		h.Log.Warn("claim", "error", err)
		h.rest(time.Second)
	}
	h.wake()
}

// Claim hears a node that has served a part of the cluster. The active node
// hands over to it if that part's database goes on, else the error wraps ErrKept.
func (h *Handler) Claim(ctx context.Context, a cluster.Answer) error {
	if valid, _ := h.tenure.valid(time.Now()); !valid {
		return fmt.Errorf("%s is not the active node", h.Node)
	}
	if a.Side == nil || a.Last == nil {
		return errors.New("a claim tells where its part was cut off and when it was last written")
	}
	_, _, db := h.snapshot()
	history, err := h.Replication.History(ctx, db.Position.Timeline)
	if err != nil {
		return err
	}
	// The line of this node may be that of another part, cut off before.
	fork, _ := cluster.Forked([]cluster.Answer{a, {Node: h.Node, Position: db.Position, History: history}})
	why, err := h.yields(ctx, a, fork)
	if err != nil {
		return err
	}
	return h.order(ctx, order{target: a.Node, why: "the database that " + a.Node + " has served goes on: " + why, claim: &claimed{a, db.Position.LSN}})
}

// claimed is a claim that was found right, by what had been written here up to
// an LSN.
type claimed struct {
	cluster.Answer
	upTo cluster.LSN
}

// yields says why the claimant's database goes on, by what was written here after
// an LSN. The error wraps ErrKept where it does not.
func (h *Handler) yields(ctx context.Context, a cluster.Answer, after cluster.LSN) (why string, err error) {
	view, _, _ := h.snapshot()
	if why := cluster.BrokenOff(view, a); why != "" { // no election would name it
		return "", fmt.Errorf("%w: %s", ErrKept, why)
	}
	own := cluster.Answer{Node: h.Node}
	if last, err := h.LastWrite(ctx, after); err == nil {
		own.Last = &last
	} else {
		h.Log.Warn("when this node was last written is not known", "error", err)
	}
	wins, reason := cluster.SideWins(cluster.HealMode(view.Options("").Get("heal")), own, a)
	if !wins {
		return "", fmt.Errorf("%w: %s", ErrKept, reason)
	}
	h.Log.Info("heal", "to", a.Node, "reason", reason)
	return reason, nil
}

// preserve exports what this node wrote beyond the line of the active, before its
// directory is rewound or replaced. What other nodes wrote they have themselves.
// The error wraps ErrSetAside where a clone loses nothing; after any other nothing
// may be done to the directory.
func (h *Handler) preserve(ctx context.Context, v cluster.View, d durable, db Database) error {
	served := d.Side != nil && d.Side.Leader == h.Node
	if !served && len(d.Opened) == 0 {
		return nil
	}
	t, known := h.learn(ctx, v)
	if !known || db.Position.LSN == 0 {
		return fmt.Errorf("where the lines of %s and %s part is not known yet", h.Node, v.Leader.Node)
	}
	own, err := h.Replication.History(ctx, db.Position.Timeline)
	if err != nil {
		return err
	}
	fork, epoch := parted(t, v.Leader, d, own, db.Position), d.Tried
	if served {
		fork, epoch = min(fork, d.Side.Fork.LSN), d.Side.Epoch
	}
	wrote := beyond(d.Opened, fork, own, db.Position)
	if len(wrote) == 0 && !(served && db.Position.LSN > fork) {
		return nil
	}
	if err := h.Divergence.Export(ctx, epoch, fork, wrote); err != nil {
		return fmt.Errorf("export what was written after %s: %w", fork, err)
	}
	return nil
}

// parted is where the line of this node, which has come to p, left that of the
// active. A timeline that merely has the number of one of the active's is told by
// its promotion: see doubled.
func parted(t tip, l cluster.Leader, d durable, own cluster.History, p cluster.Position) cluster.LSN {
	fork := t.history.Fork(t.timeline, own, p).LSN
	for _, line := range d.on(p.Timeline) {
		if line.Epoch < l.Epoch && !slices.Contains(l.Lines, line) {
			fork = min(fork, own.Start(line.Timeline))
		}
	}
	return fork
}

// beyond returns those of the timelines that go on after a fork, on a line that has
// come to p. One that is not on that line at all may, too.
func beyond(opened []cluster.Timeline, fork cluster.LSN, own cluster.History, p cluster.Position) (wrote []cluster.Timeline) {
	line := append(slices.Clone(own), cluster.Fork{Timeline: p.Timeline, LSN: p.LSN})
	for _, tl := range opened {
		i := slices.IndexFunc(line, func(f cluster.Fork) bool { return f.Timeline == tl })
		if i < 0 || line[i].LSN > fork {
			wrote = append(wrote, tl)
		}
	}
	return wrote
}
