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
	unknown, came := make([]error, len(answers)), make([]time.Time, len(answers))
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
			answers[i].Last, came[i] = &w, time.Now()
		})
	}
	all.Wait()
	for i, at := range came { // some took longer to find out than others
		if !at.IsZero() {
			*answers[i].Last = answers[i].Last.Later(time.Since(at))
		}
	}
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
	asked := time.Now()
	w, err := h.Parts.LastWrite(ctx, node, after)
	return w.Heard(asked, time.Now()), err
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
	history, err := h.Replication.History(ctx, db.Position.Timeline)
	if err != nil {
		return err
	}
	own := cluster.Answer{Node: h.Node, Position: db.Position, History: history, Line: d.line(db.Position.Timeline), Side: d.Side}
	err = h.Parts.Claim(ctx, view.Nodes[view.Leader.Node], own)
	if !errors.Is(err, ErrKept) {
		return err
	}
	h.Journal.Write(cluster.EventHeal, view.Leader.Epoch, fmt.Sprintf("%s gives way to %s: %v", h.Node, view.Leader.Node, err), nil)
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
}

// Claim hears a node that has served a part of the cluster. The active node
// hands over to it if that part's database goes on, else the error wraps ErrKept.
func (h *Handler) Claim(ctx context.Context, a cluster.Answer) error {
	if valid, _ := h.tenure.valid(time.Now()); !valid {
		return fmt.Errorf("%s is not the active node", h.Node)
	}
	if a.Side == nil {
		return errors.New("a claim tells where its part was cut off")
	}
	view, _, db := h.snapshot()
	history, err := h.Replication.History(ctx, db.Position.Timeline)
	if err != nil {
		return err
	}
	// The line of this node may be that of another part, cut off before.
	both := []cluster.Answer{{Node: h.Node, Position: db.Position, History: history}, a}
	h.weigh(ctx, view, both)
	if both[1].Last == nil {
		return fmt.Errorf("when %s was last written is not known", a.Node) // by now: it asks again
	}
	claim := claimed{both[1], time.Now(), db.Position.LSN}
	why, err := h.judge(both[0], claim)
	if err != nil {
		return err
	}
	return h.order(ctx, order{target: a.Node, why: "the database that " + a.Node + " has served goes on: " + why, claim: &claim})
}

// claimed is a claim that was weighed at a time, against what had been written here up
// to an LSN.
type claimed struct {
	cluster.Answer
	at   time.Time
	upTo cluster.LSN
}

// judge says why the claimant's database goes on, and not this node's. The error wraps
// ErrKept where it does not.
func (h *Handler) judge(own cluster.Answer, c claimed) (why string, err error) {
	view, _, _ := h.snapshot()
	if why := cluster.BrokenOff(view, c.Answer); why != "" { // no election would name it
		return "", fmt.Errorf("%w: %s", ErrKept, why)
	}
	if c.Last != nil {
		last := c.Last.Later(time.Since(c.at))
		c.Last = &last
	}
	wins, reason := cluster.SideWins(cluster.HealMode(view.Options("").Get("heal")), own, c.Answer)
	if !wins {
		return "", fmt.Errorf("%w: %s", ErrKept, reason)
	}
	h.Log.Info("heal", "to", c.Node, "reason", reason)
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
